//! PCI functions in sysfs: where they are, and the attributes that the kernel gives each.

use super::tree::{Attr, Tree};

/// What is to be known of a PCI function.
pub(super) struct Function<'a> {
    pub(super) address: &'a str,
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) class: u32,
    pub(super) numa: i32,
    pub(super) driver: Option<&'a str>,
    pub(super) group: u32,
}

/// True for `0000:41:00.0`.
pub(super) fn is_address(name: &str) -> bool {
    parts(name).is_some()
}

/// Domain and bus as they are written, and the bus as a number.
fn parts(address: &str) -> Option<(&str, &str, u8)> {
    let (domain, rest) = address.split_once(':')?;
    let (bus, slot) = rest.split_once(':')?;
    let (device, function) = slot.split_once('.')?;
    let hex = |text: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let good = hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1);
    Some((domain, bus, u8::from_str_radix(bus, 16).ok()?)).filter(|_| good)
}

/// The folder of a function below the mount, and the address of the port above it unless it sits on the root bus. Each bus has its own
/// port: the device and function number of port N are those that make N.
pub(super) fn place(address: &str) -> (String, Option<String>) {
    match parts(address) {
        Some((domain, _, bus)) if bus != 0 => {
            let port = format!("{domain}:00:{:02x}.{}", bus >> 3, bus & 7);
            (format!("sys/devices/pci{domain}:00/{port}/{address}"), Some(port))
        }
        Some((domain, ..)) => (format!("sys/devices/pci{domain}:00/{address}"), None),
        None => (format!("sys/devices/virtual/{address}/{address}"), None),
    }
}

/// Puts a function with its attributes and links at `path`.
pub(super) fn add(tree: &mut Tree, path: &str, function: &Function<'_>) {
    let Function { address, vendor, device, class, numa, driver, group } = *function;
    let mut text = |name: &str, mode: u16, value: &str| {
        tree.attr(&format!("{path}/{name}"), mode, true, Attr::Text(format!("{value}\n")))
    };
    let modalias = format!(
        "pci:v{vendor:08X}d{device:08X}sv{vendor:08X}sd00000001bc{:02x}sc{:02x}i{:02x}",
        class >> 16,
        class >> 8 & 0xff,
        class & 0xff
    );
    for (name, mode, value) in [
        ("ari_enabled", 0o444, "0"),
        ("broken_parity_status", 0o644, "0"),
        ("class", 0o444, format!("0x{class:06x}").as_str()),
        ("consistent_dma_mask_bits", 0o444, "64"),
        ("d3cold_allowed", 0o644, "1"),
        ("device", 0o444, &format!("0x{device:04x}")),
        ("dma_mask_bits", 0o444, "64"),
        ("enable", 0o644, "1"),
        ("irq", 0o444, "21"),
        ("local_cpulist", 0o444, "0-1"),
        ("local_cpus", 0o444, "3"),
        ("modalias", 0o444, &modalias),
        ("msi_bus", 0o644, "1"),
        ("power_state", 0o444, "D0"),
        ("reset_method", 0o644, "flr bus"),
        ("revision", 0o444, "0xa1"),
        ("subsystem_device", 0o444, "0x0001"),
        ("subsystem_vendor", 0o444, &format!("0x{vendor:04x}")),
        ("vendor", 0o444, &format!("0x{vendor:04x}")),
    ] {
        text(name, mode, value);
    }
    let uevent = format!(
        "{}PCI_CLASS={class:X}\nPCI_ID={vendor:04X}:{device:04X}\nPCI_SUBSYS_ID={vendor:04X}:0001\nPCI_SLOT_NAME={address}\nMODALIAS={modalias}\n",
        driver.map(|driver| format!("DRIVER={driver}\n")).unwrap_or_default(),
    );
    for (name, mode, value, keeps) in [
        ("driver_override", 0o644, "(null)\n", true),
        ("numa_node", 0o644, &format!("{numa}\n"), true),
        ("uevent", 0o644, &uevent, false),
        ("remove", 0o220, "", false),
        ("rescan", 0o200, "", false),
        ("reset", 0o200, "", false),
    ] {
        tree.attr(&format!("{path}/{name}"), mode, true, Attr::Store(value.to_owned(), keeps));
    }
    let mut link = |at: &str, to: &str| {
        let (dir, _) = at.rsplit_once('/').unwrap_or((at, ""));
        tree.link(at, &Tree::relative(dir, to), true);
    };
    link(&format!("{path}/subsystem"), "sys/bus/pci");
    link(&format!("sys/bus/pci/devices/{address}"), path);
    link(&format!("{path}/iommu_group"), &format!("sys/kernel/iommu_groups/{group}"));
    link(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), path);
    if let Some(driver) = driver {
        let home = format!("sys/bus/pci/drivers/{driver}");
        link(&format!("{path}/driver"), &home);
        link(&format!("{home}/{address}"), path);
        link(&format!("{home}/module"), &format!("sys/module/{driver}"));
        tree.dir(&format!("sys/module/{driver}"), true);
        for name in ["bind", "unbind", "new_id", "remove_id", "uevent"] {
            tree.attr(&format!("{home}/{name}"), 0o200, true, Attr::Store(String::new(), false));
        }
    }
    group_files(tree, group, "DMA", true);
}

/// The files of an IOMMU group besides its devices.
pub(super) fn group_files(tree: &mut Tree, group: u32, kind: &str, lasting: bool) {
    let home = format!("sys/kernel/iommu_groups/{group}");
    tree.attr(&format!("{home}/reserved_regions"), 0o444, lasting, Attr::Text(String::new()));
    tree.attr(&format!("{home}/type"), 0o644, lasting, Attr::Store(format!("{kind}\n"), false));
}
