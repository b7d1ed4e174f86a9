//! Looking at a sysfs of plain folders: what is found, and what a broken part of it costs the rest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mdevd_core::inventory::{DeviceState, Inventory, Mdev, ParentScan};
use mdevd_core::names::{IommuGroupId, MdevUuid, NumaNode};
use mdevd_host::roots::Roots;
use mdevd_host::scan::{available, list_parents, scan_all, scan_mdev, scan_parent};

const UUID: &str = "11111111-2222-3333-4444-555555555555";

struct Sysfs {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Sysfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in [
            "class/mdev_bus",
            "bus/mdev/devices",
            "bus/mdev/drivers/mtty",
            "kernel/iommu_groups/6",
            "bus/pci/drivers/nvidia",
        ] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        Self { roots: Roots { sys: dir.path().into(), ..Roots::default() }, dir }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.at(&path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), content).unwrap();
    }

    fn link(&self, path: impl AsRef<Path>, target: &str) {
        symlink(target, self.at(path)).unwrap();
    }

    /// A parent that is no PCI device, like the sample drivers'.
    fn mtty(&self) -> PathBuf {
        let parent = PathBuf::from("devices/virtual/mtty/mtty");
        self.mdev_type(&parent, "mtty-1", "24\n");
        self.mdev_type(&parent, "mtty-2", "12\n");
        self.file(parent.join("mdev_supported_types/mtty-2/name"), "Dual port serial\n");
        self.link("class/mdev_bus/mtty", "../../devices/virtual/mtty/mtty");
        parent
    }

    fn mdev_type(&self, parent: &Path, id: &str, available: &str) {
        let at = parent.join("mdev_supported_types").join(id);
        self.file(at.join("device_api"), "vfio-pci\n");
        self.file(at.join("available_instances"), available);
        self.file(at.join("create"), "");
    }

    fn mdev(&self, parent: &Path, uuid: &str) -> PathBuf {
        let at = parent.join(uuid);
        self.file(at.join("remove"), "");
        self.link(at.join("subsystem"), "../../../../../bus/mdev");
        self.link(at.join("mdev_type"), "../mdev_supported_types/mtty-2");
        self.link(at.join("driver"), "../../../../../bus/mdev/drivers/mtty");
        self.link(at.join("iommu_group"), "../../../../../kernel/iommu_groups/6");
        self.link(Path::new("bus/mdev/devices").join(uuid), &format!("../../../{}", at.display()));
        at
    }

    fn scan(&self, parent: &str) -> ParentScan {
        scan_parent(&self.roots, &parent.parse().unwrap(), &|_| false).unwrap().unwrap()
    }
}

fn uuid() -> MdevUuid {
    UUID.parse().unwrap()
}

#[test]
fn a_parent_is_seen_with_its_types_and_devices() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    sysfs.mdev(&parent, UUID);
    let scan = sysfs.scan("mtty");
    assert_eq!(scan.parent.path, "devices/virtual/mtty/mtty");
    assert_eq!((scan.parent.numa_node, &scan.parent.driver, &scan.parent.problems), (None, &None, &vec![]));
    let types: Vec<_> = scan.parent.types.values().map(|t| (t.id.as_str(), t.name.as_str(), t.available)).collect();
    assert_eq!(types, [("mtty-1", "", 24), ("mtty-2", "Dual port serial", 12)]);
    let expected = Mdev {
        uuid: uuid(),
        parent: "mtty".parse().unwrap(),
        mdev_type: Some("mtty-2".parse().unwrap()),
        device_api: "vfio-pci".into(),
        iommu_group: Some(IommuGroupId(6)),
        numa_node: None,
        driver: Some("mtty".parse().unwrap()),
        state: DeviceState::Ok,
    };
    assert_eq!(scan.mdevs, std::slice::from_ref(&expected));
    assert_eq!(scan_mdev(&sysfs.roots, &uuid()).unwrap(), Some(expected));
}

#[test]
fn one_count_is_read_alone() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    let count = |id: &str| available(&sysfs.roots, parent.to_str().unwrap(), &id.parse().unwrap());
    assert_eq!((count("mtty-1"), count("mtty-2"), count("mtty-3")), (Some(24), Some(12), None));
    sysfs.file(parent.join("mdev_supported_types/mtty-1/available_instances"), "many\n");
    assert_eq!(count("mtty-1"), None);
}

#[test]
fn a_pci_parent_has_a_driver_and_a_numa_node() {
    let sysfs = Sysfs::new();
    let parent = PathBuf::from("devices/pci0000:40/0000:40:01.1/0000:41:00.0");
    sysfs.mdev_type(&parent, "nvidia-63", "4\n");
    sysfs.file(
        parent.join("mdev_supported_types/nvidia-63/description"),
        "num_heads=4, frl_config=45\nframebuffer=1024M\n\n",
    );
    sysfs.file(parent.join("numa_node"), "1\n");
    sysfs.link(parent.join("driver"), "../../../../bus/pci/drivers/nvidia");
    sysfs.link("class/mdev_bus/0000:41:00.0", "../../devices/pci0000:40/0000:40:01.1/0000:41:00.0");
    sysfs.mdev(&parent, UUID);
    let scan = sysfs.scan("0000:41:00.0");
    assert_eq!(scan.parent.numa_node, Some(NumaNode(1)));
    assert_eq!(scan.parent.driver.as_ref().unwrap().as_str(), "nvidia");
    assert_eq!(scan.parent.types.values().next().unwrap().description, "num_heads=4, frl_config=45, framebuffer=1024M");
    assert_eq!(scan.mdevs[0].numa_node, Some(NumaNode(1)));
    assert_eq!(scan_mdev(&sysfs.roots, &uuid()).unwrap().unwrap().numa_node, Some(NumaNode(1)));

    std::fs::write(sysfs.at(parent.join("numa_node")), "-1\n").unwrap();
    assert_eq!(sysfs.scan("0000:41:00.0").parent.numa_node, None);
}

#[test]
fn a_type_that_does_not_parse_is_said_and_costs_the_others_nothing() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    let types = parent.join("mdev_supported_types");
    sysfs.mdev_type(&parent, "negative", "-1\n");
    sysfs.mdev_type(&parent, "words", "many\n");
    sysfs.mdev_type(&parent, "huge", &"9".repeat(5000));
    sysfs.mdev_type(&parent, "noapi", "1\n");
    sysfs.file(types.join("noapi/device_api"), "\n");
    sysfs.mdev_type(&parent, "binary", "1\n");
    sysfs.file(types.join("binary/device_api"), b"\xff");
    std::fs::create_dir(sysfs.at(types.join("empty"))).unwrap();
    sysfs.mdev_type(&parent, "evil\x1b[2J", "1\n");
    let scan = sysfs.scan("mtty");
    let offered: Vec<_> = scan.parent.types.keys().map(|id| id.as_str()).collect();
    assert_eq!(offered, ["mtty-1", "mtty-2"]);
    let said = scan.parent.problems.join("\n");
    for part in [
        "type negative: its available_instances is '-1' and not a number; it is not offered",
        "type words: its available_instances is 'many' and not a number",
        "type huge: cannot read ",
        "available_instances: EFBIG (File too large)",
        "type noapi: its device_api is '' and not one word",
        "binary/device_api: EILSEQ",
        "empty/device_api: ENOENT",
        "it contains a control character",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(scan.parent.problems.len(), 7, "{said}");
    assert!(!said.contains('\x1b'));
}

#[test]
fn what_only_describes_a_type_does_not_cost_it() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    std::fs::create_dir(sysfs.at(parent.join("mdev_supported_types/mtty-1/description"))).unwrap();
    let scan = sysfs.scan("mtty");
    assert_eq!(scan.parent.types.len(), 2);
    assert_eq!(scan.parent.problems.len(), 1);
    assert!(scan.parent.problems[0].contains("description: EISDIR"), "{:?}", scan.parent.problems);
}

#[test]
fn what_describes_a_type_has_no_control_characters() {
    let sysfs = Sysfs::new();
    let at = sysfs.mtty().join("mdev_supported_types/mtty-1");
    sysfs.file(at.join("name"), "GRID\0 \u{1b}[2JP40\n");
    sysfs.file(at.join("description"), " num_heads=4\0\n\nframebuffer=1024M\u{7}\n");
    let scan = sysfs.scan("mtty");
    let found = &scan.parent.types[&"mtty-1".parse().unwrap()];
    assert_eq!(
        (found.name.as_str(), found.description.as_str()),
        ("GRID\u{fffd} \u{fffd}[2JP40", "num_heads=4\u{fffd}, framebuffer=1024M\u{fffd}")
    );
}

#[test]
fn a_device_half_removed_is_stuck_and_so_is_one_without_a_type() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    // As the kernel leaves it while someone holds the device: only the group's link.
    let at = sysfs.mdev(&parent, UUID);
    std::fs::remove_file(sysfs.at(at.join("mdev_type"))).unwrap();
    let scan = sysfs.scan("mtty");
    assert!(
        matches!(&scan.mdevs[0].state, DeviceState::Stuck(why) if why.starts_with("half removed")),
        "{:?}",
        scan.mdevs
    );
    for name in ["subsystem", "driver", "remove"] {
        std::fs::remove_file(sysfs.at(at.join(name))).unwrap();
    }
    std::fs::remove_file(sysfs.at("bus/mdev/devices").join(UUID)).unwrap();
    let scan = sysfs.scan("mtty");
    let mdev = &scan.mdevs[0];
    assert!(matches!(&mdev.state, DeviceState::Stuck(why) if why.starts_with("half removed: ")), "{mdev:?}");
    assert_eq!((&mdev.mdev_type, mdev.iommu_group), (&None, Some(IommuGroupId(6))));
    assert_eq!(scan_mdev(&sysfs.roots, &uuid()).unwrap(), None);
}

#[test]
fn other_children_of_a_parent_are_no_devices() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    for child in ["power", "aaaaaaaa-2222-3333-4444-55555555555", "AAAAAAAA-2222-3333-4444-555555555555"] {
        std::fs::create_dir(sysfs.at(parent.join(child))).unwrap();
    }
    // A device of another bus that has such a name.
    std::fs::create_dir(sysfs.at(parent.join(UUID))).unwrap();
    sysfs.link(parent.join(UUID).join("subsystem"), "../../../../../bus/pci");
    assert_eq!(sysfs.scan("mtty").mdevs, []);
}

#[test]
fn a_device_that_cannot_be_read_is_stuck_with_the_reason() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    let at = sysfs.mdev(&parent, UUID);
    std::fs::remove_file(sysfs.at(at.join("iommu_group"))).unwrap();
    sysfs.link(at.join("iommu_group"), "../../../../../kernel/iommu_groups/many");
    let scan = sysfs.scan("mtty");
    assert!(matches!(&scan.mdevs[0].state, DeviceState::Stuck(why) if why.contains("iommu_group")), "{:?}", scan.mdevs);
}

#[test]
fn a_skipped_device_is_not_touched() {
    let sysfs = Sysfs::new();
    let parent = sysfs.mtty();
    sysfs.mdev(&parent, UUID);
    let asked = RefCell::new(vec![]);
    let skip = |uuid: &MdevUuid| {
        asked.borrow_mut().push(*uuid);
        true
    };
    let scan = scan_parent(&sysfs.roots, &"mtty".parse().unwrap(), &skip).unwrap().unwrap();
    assert_eq!((scan.mdevs, asked.into_inner()), (vec![], vec![uuid()]));
}

#[test]
fn what_is_not_there_is_none_and_no_error() {
    let sysfs = Sysfs::new();
    assert_eq!(scan_parent(&sysfs.roots, &"mtty".parse().unwrap(), &|_| false).unwrap(), None);
    assert_eq!(scan_mdev(&sysfs.roots, &uuid()).unwrap(), None);
    // The link is there, the device behind it has just gone.
    sysfs.link("class/mdev_bus/mtty", "../../devices/virtual/mtty/mtty");
    assert_eq!(scan_parent(&sysfs.roots, &"mtty".parse().unwrap(), &|_| false).unwrap(), None);
    // Its types come later than itself.
    std::fs::create_dir_all(sysfs.at("devices/virtual/mtty/mtty")).unwrap();
    let scan = sysfs.scan("mtty");
    assert!(scan.parent.types.is_empty() && scan.parent.problems.is_empty());
    // A kernel without mdev.
    let none = Roots { sys: sysfs.at("nothing"), ..Roots::default() };
    assert_eq!(list_parents(&none).unwrap(), (vec![], vec![]));
}

#[test]
fn a_parent_outside_sysfs_is_refused() {
    let sysfs = Sysfs::new();
    sysfs.mtty();
    sysfs.link("class/mdev_bus/out", "../../../../../../../../etc");
    sysfs.link("class/mdev_bus/esc\x1b[2J", "../../devices/virtual/mtty/mtty");
    let all = scan_all(&sysfs.roots, &|_| false).unwrap();
    assert_eq!(all.scans.iter().map(|scan| scan.parent.name.as_str()).collect::<Vec<_>>(), ["mtty"]);
    let said: Vec<_> = all.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("it contains a control character") && said[1].contains("class/mdev_bus/out"), "{said:?}");
}

#[test]
fn a_look_at_one_parent_reads_no_other() {
    let sysfs = Sysfs::new();
    sysfs.mtty();
    // Reading this one would hang for ever.
    let other = PathBuf::from("devices/virtual/hung/hung");
    sysfs.mdev_type(&other, "x", "1\n");
    let fifo = sysfs.at(other.join("mdev_supported_types/x/name"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    sysfs.link("class/mdev_bus/hung", "../../devices/virtual/hung/hung");
    assert_eq!(sysfs.scan("mtty").parent.types.len(), 2);
}

#[test]
fn many_parents_make_one_inventory() {
    let sysfs = Sysfs::new();
    for n in 0..16 {
        let name = format!("0000:{:02x}:00.{}", n / 8, n % 8);
        let parent = PathBuf::from("devices/pci0000:00").join(&name);
        for t in 0..20 {
            sysfs.mdev_type(&parent, &format!("nvidia-{t}"), "1\n");
        }
        sysfs.link(Path::new("class/mdev_bus").join(&name), &format!("../../devices/pci0000:00/{name}"));
    }
    let all = scan_all(&sysfs.roots, &|_| false).unwrap();
    let inventory = Inventory::new(all.scans);
    assert_eq!((inventory.parents().count(), all.problems), (16, vec![]));
    assert!(inventory.parents().all(|parent| parent.types.len() == 20));
}
