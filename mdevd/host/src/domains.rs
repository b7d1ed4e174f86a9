//! Which domains run, from libvirt's status files in `/run/libvirt/qemu`: the one thing that says so without asking libvirt, which must
//! not be asked from below its own hook.

use std::path::Path;

use mdevd_core::domain_xml::DomainStatus;

use crate::error::EffectError;
use crate::process::{self, Alive};
use crate::read;
use crate::roots::Roots;

/// The longest status file that is read. libvirt limits the XML of a domain to 8 MiB; the status has a little more around it.
const STATUS_LIMIT: usize = 10 * 1024 * 1024;

/// A domain that has a status file.
#[derive(Debug, Clone)]
pub struct DomainStatusView {
    /// What the file says.
    pub status: DomainStatus,
    /// Whether its QEMU is there. A status file outlives QEMU when both it and libvirtd were killed.
    pub alive: Alive,
}

/// All domains that have a status file. `Err` is why it is not known which there are: one file that cannot be read or parsed may be
/// that of any domain, and unknown must not be taken for "not running".
pub fn domains(roots: &Roots) -> Result<Vec<DomainStatusView>, String> {
    let dir = roots.libvirt_status_dir();
    let names = read::folder(&dir).map_err(|error| error.to_string())?.unwrap_or_default();
    // Beside them: `NAME.pid`, folders like `autostarted`, and `NAME.xml.new` while one is being rewritten.
    let files = names.iter().filter(|name| name.ends_with(".xml"));
    files.filter_map(|name| domain(roots, &dir.join(name)).transpose()).collect()
}

fn domain(roots: &Roots, path: &Path) -> Result<Option<DomainStatusView>, String> {
    let Some(text) =
        read::unless_gone(read::text(path, STATUS_LIMIT)).map_err(|error: EffectError| error.to_string())?
    else {
        return Ok(None);
    };
    let status = DomainStatus::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let alive = match status.pid {
        Some(pid) => process::alive(roots, pid, None),
        None => Alive::Unknown(format!("{} names no process", path.display())),
    };
    Ok(Some(DomainStatusView { status, alive }))
}
