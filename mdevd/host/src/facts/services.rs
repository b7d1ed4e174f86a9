//! What runs beside mdevd: libvirt's daemon and hooks, vendors' services.

use std::path::PathBuf;

use mdevd_core::check::facts::{HookEntry, Libvirt, Memlock, VendorService};
use mdevd_core::hostdev::LibvirtVersion;
use mdevd_core::names::printable;
use rustix::io::Errno;

use super::{Look, field};
use crate::process;
use crate::read;

/// libvirt's daemons that run VMs with QEMU, the newer one first; each with its socket below `/run/libvirt`.
const DAEMONS: [(&str, &str); 2] = [("virtqemud", "virtqemud-sock"), ("libvirtd", "libvirt-sock")];

/// The vendors' services that have to do with devices for VMs.
const VENDOR_SERVICES: [&str; 3] = ["nvidia-vgpud", "nvidia-vgpu-mgr", "nvidia-persistenced"];

/// mdevd's hook entry, byte for byte.
const HOOK_ENTRY: &str = include_str!("../../../../libvirt-hooks/qemu.d/mdevd");

/// The right to raise one's limits, as a bit of a process's capabilities.
const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// The most hooks that are named.
const NAMED_HOOKS: usize = 16;

/// libvirt's daemon, and its process where it is running.
pub(super) fn libvirt(look: &mut Look<'_>) -> Option<(Libvirt, Option<u32>)> {
    let installed: Vec<(&str, &str)> = DAEMONS.into_iter().filter(|(daemon, _)| unit_exists(look, daemon)).collect();
    // One that was started by hand has no unit.
    for (daemon, _) in DAEMONS {
        let pid = look.text(&look.roots.run.join(format!("{daemon}.pid"))).and_then(|pid| pid.trim().parse().ok());
        // The file stays behind when the daemon is killed.
        if let Some(pid) = pid.filter(|pid| process::command(look.roots, *pid) == daemon) {
            return Some((Libvirt::Running(daemon), Some(pid)));
        }
    }
    let on_demand = installed.iter().find(|(_, socket)| look.exists(&look.roots.run.join("libvirt").join(socket)));
    Some(match (on_demand, installed.last()) {
        (Some((daemon, _)), _) => (Libvirt::OnDemand(daemon), None),
        // Where both are installed, either will do.
        (None, Some((daemon, _))) => (Libvirt::Stopped(daemon), None),
        (None, None) => (Libvirt::Absent, None),
    })
}

fn unit_exists(look: &mut Look<'_>, name: &str) -> bool {
    let unit = format!("systemd/system/{name}.service");
    let folders = [&look.roots.etc, &look.roots.run, &look.system.usr_lib];
    folders.iter().any(|folder| look.exists(&folder.join(&unit)))
}

/// How much memory a running daemon can have locked.
pub(super) fn memlock(look: &mut Look<'_>, pid: u32) -> Option<Memlock> {
    let folder = look.roots.process_dir(pid);
    let limits = look.text(&folder.join("limits"))?;
    let hard = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().nth(1))?;
    let limit = if hard == "unlimited" { None } else { Some(hard.parse().ok()?) };
    let status = look.text(&folder.join("status"))?;
    let capabilities = u64::from_str_radix(field(&status, "CapEff")?, 16).ok()?;
    Some(Memlock { limit, may_raise: capabilities & CAP_SYS_RESOURCE != 0 })
}

fn hooks(look: &Look<'_>) -> PathBuf {
    look.roots.etc.join("libvirt/hooks")
}

/// mdevd's entry among libvirt's hooks.
pub(super) fn hook(look: &mut Look<'_>) -> Option<HookEntry> {
    let path = hooks(look).join("qemu.d/mdevd");
    let Some(mode) = look.mode(&path)? else { return Some(HookEntry::Absent) };
    let same = match read::text(&path, read::ATTRIBUTE_LIMIT) {
        Ok(text) => text == HOOK_ENTRY,
        // Too long, or no text: another's.
        Err(error) if error.is(Errno::FBIG) || error.is(Errno::ILSEQ) => false,
        Err(error) => return look.known(Err(error)),
    };
    let program = look.mode(&look.system.usr_bin.join("mdevd-hook"))?;
    Some(match (mode & 0o111 != 0, same, program) {
        (false, ..) => HookEntry::NotExecutable,
        (_, false, _) => HookEntry::Changed,
        (true, true, Some(mode)) if mode & 0o111 != 0 => HookEntry::Installed,
        (true, true, _) => HookEntry::NoProgram,
    })
}

/// The hooks of others that libvirt runs when a VM starts.
pub(super) fn other_hooks(look: &mut Look<'_>) -> Vec<String> {
    let entries = look.folder(&hooks(look).join("qemu.d")).unwrap_or_default();
    let entries = entries.iter().filter(|name| *name != "mdevd").map(|name| format!("qemu.d/{name}"));
    let mut found: Vec<String> = vec!["qemu".into()];
    found.extend(entries);
    // Other tools keep folders there, which libvirt passes over, as it does files that are not executable.
    found.retain(|name| {
        let path = hooks(look).join(name);
        !path.is_dir() && look.mode(&path).flatten().is_some_and(|mode| mode & 0o111 != 0)
    });
    found.truncate(NAMED_HOOKS);
    found.iter().map(|name| printable(name)).collect()
}

/// The vendors' services that are installed, and whether they run: systemd keeps a control group for each that does.
pub(super) fn vendor_services(look: &mut Look<'_>) -> Vec<VendorService> {
    let control_groups = look.roots.sys.join("fs/cgroup");
    let roots = ["", "systemd", "unified"].map(|root| control_groups.join(root).join("system.slice"));
    let slice = roots.into_iter().find(|slice| look.exists(slice));
    let installed = VENDOR_SERVICES.into_iter().filter(|name| unit_exists(look, name)).collect::<Vec<_>>();
    let running = |name: &str, look: &mut Look<'_>| {
        let processes = slice.as_ref()?.join(format!("{name}.service")).join("cgroup.procs");
        look.known(read::unless_gone(read::text(&processes, read::LIST_LIMIT)))
            .map(|processes| processes.is_some_and(|processes| !processes.trim().is_empty()))
    };
    installed.into_iter().map(|name| VendorService { name, running: running(name, look) }).collect()
}

/// The installed libvirt, by the file of its library: `libvirt.so.0.9000.0` is 9.0.0, `libvirt.so.0.11003.0` is 11.3.0.
pub(super) fn libvirt_version(look: &mut Look<'_>) -> Option<LibvirtVersion> {
    let lib = look.system.usr_lib.clone();
    let lib64 = lib.with_file_name("lib64");
    // Debian has a folder for each architecture, others lib64.
    let names = look.folder(&lib).unwrap_or_default();
    let own: Vec<_> = names.iter().filter(|name| name.ends_with("-linux-gnu")).map(|name| lib.join(name)).collect();
    own.into_iter().chain([lib64, lib]).find_map(|folder| {
        let names = look.folder(&folder).unwrap_or_default();
        names.iter().filter_map(|name| library_version(name)).max()
    })
}

fn library_version(name: &str) -> Option<LibvirtVersion> {
    let (number, micro) = name.strip_prefix("libvirt.so.0.")?.split_once('.')?;
    let number: u32 = number.parse().ok()?;
    Some(LibvirtVersion { major: number / 1000, minor: number % 1000, micro: micro.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_library_s_name() {
        let shown = |name: &str| library_version(name).map(|version| version.to_string());
        assert_eq!(shown("libvirt.so.0.9000.0").as_deref(), Some("9.0.0"));
        assert_eq!(shown("libvirt.so.0.11003.0").as_deref(), Some("11.3.0"));
        for other in ["libvirt.so.0", "libvirt.so", "libvirt-qemu.so.0.9000.0", "libvirt.so.0.x.0", "libvirt.so.0.9000"]
        {
            assert_eq!(shown(other), None, "{other}");
        }
    }
}
