//! What libvirt leaves in `/run/libvirt/qemu` while a domain runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Writes the status file of a running domain as libvirt does, under a temporary name and then renamed. `domain` is the domain's own XML,
/// `pid` QEMU's.
pub(super) fn write(run: &Path, name: &str, pid: u32, domain: &str) -> io::Result<PathBuf> {
    let dir = run.join("libvirt/qemu");
    fs::create_dir_all(&dir)?;
    let text = format!(
        "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE\nOVERWRITTEN AND LOST. Changes to this xml configuration should be made using:\n  \
         virsh edit {name}\nor other application using the libvirt API.\n-->\n\n<domstatus state='running' reason='booted' pid='{pid}'>\n  \
         <monitor path='/var/lib/libvirt/qemu/domain-1-{name}/monitor.sock' type='unix'/>\n  <vcpus>\n    <vcpu id='0' pid='{}'/>\n  </vcpus>\n  \
         <qemuCaps>\n    <flag name='hda-duplex'/>\n  </qemuCaps>\n  <devices>\n    <device alias='hostdev0'/>\n  </devices>\n  \
         <libDir path='/var/lib/libvirt/qemu/domain-1-{name}'/>\n  \
         <channelTargetDir path='/run/libvirt/qemu/channel/1-{name}'/>\n{}\n</domstatus>\n",
        pid + 1,
        domain.trim(),
    );
    fs::write(dir.join(format!("{name}.pid")), format!("{pid}\n"))?;
    let temporary = dir.join(format!("{name}.xml.new"));
    fs::write(&temporary, text)?;
    let path = dir.join(format!("{name}.xml"));
    fs::rename(temporary, &path)?;
    Ok(path)
}

/// Removes it, as libvirt does when the domain has stopped.
pub(super) fn remove(run: &Path, name: &str) -> io::Result<()> {
    let dir = run.join("libvirt/qemu");
    fs::remove_file(dir.join(format!("{name}.xml")))?;
    fs::remove_file(dir.join(format!("{name}.pid")))
}
