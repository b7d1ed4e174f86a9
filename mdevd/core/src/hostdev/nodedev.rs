//! Node devices: the names libvirt has for devices of the host, and the `<device>` that makes a mediated one (`virsh nodedev-create`).

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Write as _;

use super::xml::escape;
use crate::names::{MdevTypeId, MdevUuid, ParentName, PciAddress};

/// `text` as libvirt makes it part of a node device's name.
fn part(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// The name that libvirt gives the node device of a PCI function, for `virsh nodedev-dumpxml` and `nodedev-detach`: `pci_0000_41_00_0`.
pub fn nodedev_function(address: PciAddress) -> String {
    format!("pci_{}", part(&address.to_string()))
}

/// The name that libvirt gives the node device of a parent: `pci_0000_41_00_0`, `css_0_0_26ab`, `ap_matrix`. libvirt builds it from
/// subsystem and name; a parent on no bus is in a class of its driver's own, which has the device's name (`mtty_mtty`).
pub fn nodedev_parent(parent: &ParentName) -> String {
    let name = parent.as_str();
    let is_subchannel = || {
        let mut parts = name.split('.');
        let lengths = [1..=2, 1..=1, 4..=4];
        lengths.iter().all(|length| {
            parts.next().is_some_and(|part| length.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit()))
        }) && parts.next().is_none()
    };
    let subsystem = if name.parse::<PciAddress>().is_ok() {
        "pci"
    } else if is_subchannel() {
        "css"
    } else if name == "matrix" {
        "ap"
    } else {
        name
    };
    format!("{}_{}", part(subsystem), part(name))
}

/// The node device XML of a mediated device, for `virsh nodedev-create` and `nodedev-define`, with a newline at its end. The name is
/// the one libvirt gives it since 7.7; it needs one to be valid, though libvirt replaces it.
pub fn nodedev_xml(mdev: MdevUuid, parent: &ParentName, mdev_type: &MdevTypeId, attrs: &[(String, String)]) -> String {
    let mut out = format!(
        "<device>\n  <name>mdev_{}_{}</name>\n  <parent>{}</parent>\n  <capability type='mdev'>\n    <type id='{}'/>\n    <uuid>{mdev}</uuid>\n",
        part(&mdev.to_string()),
        part(parent.as_str()),
        nodedev_parent(parent),
        escape(mdev_type.as_str()),
    );
    for (name, value) in attrs {
        // writing to a String cannot fail
        let _ = writeln!(out, "    <attr name='{}' value='{}'/>", escape(name), escape(value));
    }
    out.push_str("  </capability>\n</device>\n");
    out
}
