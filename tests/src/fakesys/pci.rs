//! PCI functions in sysfs: where they are, and the attributes that the kernel gives each.

use super::functions::{FunctionAttr, FunctionSpec};
use super::tree::{Attr, Tree};

/// The parts of a PCI address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address<'a> {
    /// As it is written: four digits or more.
    pub(super) domain: &'a str,
    pub(super) bus: u8,
    pub(super) device: u8,
    pub(super) function: u8,
}

/// True for `0000:41:00.0`.
pub(super) fn is_address(name: &str) -> bool {
    parse(name).is_some()
}

/// The parts of what looks like a PCI address.
pub(super) fn parse(address: &str) -> Option<Address<'_>> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, slot) = rest.split_once(':')?;
    let (device, function) = slot.split_once('.')?;
    let hex = |text: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let good = hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1);
    let number = |text| u8::from_str_radix(text, 16).ok();
    Some(Address { domain, bus: number(bus)?, device: number(device)?, function: number(function)? }).filter(|_| good)
}

/// The address that lies `distance` functions after this one, as the kernel numbers virtual functions.
pub(super) fn after(address: &str, distance: u32) -> Option<String> {
    let Address { domain, bus, device, function } = parse(address)?;
    let id = (u32::from(bus) << 8 | u32::from(device) << 3 | u32::from(function)).checked_add(distance)?;
    (id <= 0xffff).then(|| format!("{domain}:{:02x}:{:02x}.{}", id >> 8, id >> 3 & 0x1f, id & 7))
}

/// The address of the port that a bus has when nobody named a bridge for it: the device and function number of port N are those that
/// make N.
pub(super) fn port(domain: &str, bus: u8) -> String {
    format!("{domain}:00:{:02x}.{}", bus >> 3, bus & 7)
}

/// Puts a function with its attributes and links at `path`; what depends on its driver comes with that.
pub(super) fn add(tree: &mut Tree, path: &str, spec: &FunctionSpec, group: Option<u32>) {
    let FunctionSpec { address, vendor, device, class, .. } = spec;
    let (is_vf, lasting) = (spec.vf_of.is_some(), spec.lasting());
    let mut attr = |name: &str, mode: u16, attr: Attr| tree.attr(&format!("{path}/{name}"), mode, lasting, attr);
    let mut text = |name: &str, mode: u16, value: &str| attr(name, mode, Attr::Text(format!("{value}\n")));
    for (name, value) in [
        ("ari_enabled", if spec.pf.is_some() || is_vf { "1" } else { "0" }),
        ("class", format!("0x{class:06x}").as_str()),
        ("consistent_dma_mask_bits", "64"),
        ("device", &format!("0x{device:04x}")),
        ("dma_mask_bits", "64"),
        ("irq", if is_vf { "0" } else { "21" }),
        ("local_cpulist", "0-1"),
        ("local_cpus", "3"),
        ("modalias", &spec.modalias()),
        ("power_state", "D0"),
        ("revision", &format!("0x{:02x}", spec.revision)),
        ("subsystem_device", &format!("0x{:04x}", spec.subsystem().1)),
        ("subsystem_vendor", &format!("0x{:04x}", spec.subsystem().0)),
        ("vendor", &format!("0x{vendor:04x}")),
    ] {
        text(name, 0o444, value);
    }
    if parse(address).is_some_and(|address| address.bus != 0) {
        for (name, value) in [("link_speed", "2.5 GT/s PCIe"), ("link_width", "1")] {
            text(&format!("current_{name}"), 0o444, value);
            text(&format!("max_{name}"), 0o444, value);
        }
    }
    for (name, value) in [
        ("broken_parity_status", "0"),
        ("d3cold_allowed", if is_vf { "0" } else { "1" }),
        ("msi_bus", "1"),
        ("numa_node", &spec.numa.unwrap_or(-1).to_string()),
    ] {
        attr(name, 0o644, Attr::Store(format!("{value}\n"), true));
    }
    let mut swallow = |name: &str, mode: u16| attr(name, mode, Attr::Store(String::new(), false));
    match is_vf {
        true => swallow("sriov_vf_msix_count", 0o200),
        false => {
            swallow("remove", 0o220);
            swallow("rescan", 0o200);
        }
    }
    if !spec.reset_methods.is_empty() {
        swallow("reset", 0o200);
        attr("reset_method", 0o644, Attr::Store(format!("{}\n", spec.reset_methods), true));
    }
    let mut own = |name: &str, mode: u16, which| attr(name, mode, Attr::Function(which, address.clone()));
    own("driver_override", 0o644, FunctionAttr::Override);
    own("enable", 0o644, FunctionAttr::Enable);
    own("uevent", 0o644, FunctionAttr::Uevent);
    if let Some(pf) = &spec.pf {
        own("sriov_drivers_autoprobe", 0o644, FunctionAttr::Autoprobe);
        own("sriov_numvfs", 0o644, FunctionAttr::NumVfs);
        own("sriov_totalvfs", 0o444, FunctionAttr::TotalVfs);
        for (name, value) in [
            ("offset", pf.offset.to_string()),
            ("stride", pf.stride.to_string()),
            ("vf_device", format!("{:x}", pf.device)),
            ("vf_total_msix", "0".to_owned()),
        ] {
            attr(&format!("sriov_{name}"), 0o444, Attr::Text(format!("{value}\n")));
        }
    }
    if let (Some(bus), Some(own)) = (spec.bridge, parse(address)) {
        tree.dir(&format!("{path}/pci_bus/{}:{bus:02x}", own.domain), lasting);
    }
    let mut link = |at: &str, to: &str| {
        let (dir, _) = at.rsplit_once('/').unwrap_or((at, ""));
        tree.link(at, &Tree::relative(dir, to), lasting);
    };
    link(&format!("{path}/subsystem"), "sys/bus/pci");
    link(&format!("sys/bus/pci/devices/{address}"), path);
    if let Some(group) = group {
        link(&format!("{path}/iommu"), "sys/devices/virtual/iommu/dmar0");
        link(&format!("{path}/iommu_group"), &format!("sys/kernel/iommu_groups/{group}"));
        link(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), path);
        group_files(tree, group, "identity", "0x00000000fee00000 0x00000000feefffff msi\n", lasting);
    }
}

/// The files of an IOMMU group besides its devices.
pub(super) fn group_files(tree: &mut Tree, group: u32, kind: &str, reserved: &str, lasting: bool) {
    let home = format!("sys/kernel/iommu_groups/{group}");
    tree.attr(&format!("{home}/reserved_regions"), 0o444, lasting, Attr::Text(reserved.to_owned()));
    tree.attr(&format!("{home}/type"), 0o644, lasting, Attr::Store(format!("{kind}\n"), false));
}
