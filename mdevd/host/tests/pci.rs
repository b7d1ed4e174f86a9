//! Looking at PCI functions on a sysfs of plain folders, as Linux 6.12 shows them: what is found, and what a broken part of it costs the
//! rest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mdevd_core::function::{Function, Netdev, PciIds, PhysicalFunction, Role, VgpuTypes};
use mdevd_core::inventory::DeviceState;
use mdevd_core::names::{IommuGroupId, NumaNode, PciAddress};
use mdevd_host::pci::names::PciNames;
use mdevd_host::pci::variants::VariantDrivers;
use mdevd_host::pci::{
    driver_of, driver_override_of, ids_of, list_functions, physical_function_of, scan_function, vgpu_types,
};
use mdevd_host::roots::Roots;

const PF: &str = "0000:01:00.0";
const VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
const NVME: &str = "0000:02:00.0";
const NVME_VFS: [&str; 2] = ["0000:02:00.1", "0000:02:00.2"];
const GPU_VF: &str = "0000:41:00.4";

struct Sysfs {
    dir: tempfile::TempDir,
    roots: Roots,
}

/// What all functions have, as text; see [`Sysfs::function`].
struct Attributes {
    ids: [&'static str; 4],
    class: &'static str,
    driver: &'static str,
    group: &'static str,
    reset: &'static str,
}

const IGB: Attributes = Attributes {
    ids: ["0x8086", "0x10c9", "0x1af4", "0x1100"],
    class: "0x020000",
    driver: "igb",
    group: "12",
    reset: "flr pm bus",
};

impl Sysfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("bus/pci/devices")).unwrap();
        Self { roots: Roots { sys: dir.path().into(), proc: dir.path().join("proc"), ..Roots::default() }, dir }
    }

    /// The lab's igb with two virtual functions, one of them without a driver, and its nvme with two.
    fn lab() -> Self {
        let sysfs = Self::new();
        let igb = sysfs.function(PF, "0000:00:05.0", &IGB);
        sysfs.physical(&igb, "7\n", &VFS);
        sysfs.netdev(&igb, "enp1s0", "52:54:00:00:00:01\n");
        let vf = Attributes {
            ids: ["0x8086", "0x10ca", "0x1af4", "0x1100"],
            driver: "igbvf",
            group: "15",
            reset: "flr",
            ..IGB
        };
        let first = sysfs.function(VFS[0], "0000:00:05.0", &vf);
        sysfs.virtual_of(&first, PF);
        sysfs.netdev(&first, "enp1s0v0", "6e:3c:3a:29:2c:a1\n");
        let second = sysfs.function(VFS[1], "0000:00:05.0", &Attributes { driver: "", group: "16", ..vf });
        sysfs.virtual_of(&second, PF);

        let attributes = Attributes {
            ids: ["0x1b36", "0x0010", "0x1af4", "0x1100"],
            class: "0x010802",
            driver: "nvme",
            group: "13",
            reset: "flr bus",
        };
        let nvme = sysfs.function(NVME, "0000:00:06.0", &attributes);
        sysfs.physical(&nvme, "4\n", &NVME_VFS);
        for (vf, group) in NVME_VFS.into_iter().zip(["17", "18"]) {
            let at = sysfs.function(vf, "0000:00:06.0", &Attributes { driver: "", group, reset: "flr", ..attributes });
            sysfs.virtual_of(&at, NVME);
        }
        sysfs
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.at(&path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), content).unwrap();
    }

    fn link(&self, path: impl AsRef<Path>, target: &str) {
        let _ = std::fs::remove_file(self.at(&path));
        symlink(target, self.at(path)).unwrap();
    }

    fn remove(&self, path: impl AsRef<Path>) {
        std::fs::remove_file(self.at(path)).unwrap();
    }

    /// A function behind a port; gives its folder.
    fn function(&self, address: &str, port: &str, attributes: &Attributes) -> PathBuf {
        let dir = PathBuf::from("devices/pci0000:00").join(port).join(address);
        for (name, value) in
            ["vendor", "device", "subsystem_vendor", "subsystem_device"].into_iter().zip(attributes.ids)
        {
            self.file(dir.join(name), format!("{value}\n"));
        }
        for (name, value) in [
            ("class", attributes.class),
            ("driver_override", "(null)"),
            ("numa_node", "-1"),
            ("reset_method", attributes.reset),
            ("enable", "1"),
        ] {
            self.file(dir.join(name), format!("{value}\n"));
        }
        self.link(dir.join("iommu_group"), &format!("../../../../kernel/iommu_groups/{}", attributes.group));
        self.link(dir.join("subsystem"), "../../../../bus/pci");
        if !attributes.driver.is_empty() {
            self.link(dir.join("driver"), &format!("../../../../bus/pci/drivers/{}", attributes.driver));
        }
        self.link(Path::new("bus/pci/devices").join(address), &format!("../../../{}", dir.display()));
        dir
    }

    fn physical(&self, dir: &Path, total: &str, vfs: &[&str]) {
        self.file(dir.join("sriov_totalvfs"), total);
        self.file(dir.join("sriov_drivers_autoprobe"), "1\n");
        // Whoever opens one of these waits for ever.
        for name in ["sriov_numvfs", "sriov_vf_total_msix", "uevent"] {
            let path = self.at(dir.join(name));
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        }
        for (index, vf) in vfs.iter().enumerate() {
            self.link(dir.join(format!("virtfn{index}")), &format!("../{vf}"));
        }
    }

    fn virtual_of(&self, dir: &Path, pf: &str) {
        self.file(dir.join("sriov_vf_msix_count"), "");
        self.link(dir.join("physfn"), &format!("../{pf}"));
    }

    fn netdev(&self, dir: &Path, name: &str, mac: &str) {
        self.file(dir.join("net").join(name).join("address"), mac);
    }

    /// A vendor-typed virtual function of a GPU that has no other parts here.
    fn gpu_vf(&self) -> PathBuf {
        let attributes = Attributes {
            ids: ["0x10de", "0x26b9", "0x10de", "0x1851"],
            class: "0x030200",
            driver: "nvidia",
            group: "64",
            reset: "flr",
        };
        let pf = self.function("0000:41:00.0", "0000:40:01.1", &attributes);
        self.physical(&pf, "32\n", &[GPU_VF]);
        let vf = self.function(GPU_VF, "0000:40:01.1", &attributes);
        self.virtual_of(&vf, "0000:41:00.0");
        self.file(vf.join("numa_node"), "1\n");
        self.file(vf.join("nvidia/current_vgpu_type"), "1145\n");
        self.file(
            vf.join("nvidia/creatable_vgpu_types"),
            "ID    : vGPU Name\n1145  : NVIDIA L40S-1B\n1155  : NVIDIA L40S-8Q\n",
        );
        vf
    }

    fn look(&self, address: &str) -> Option<Function> {
        let (names, _) = PciNames::load(&[self.at("pci.ids")], &BTreeSet::new());
        let (variants, _) = VariantDrivers::load(&self.roots, &self.at("modules"));
        scan_function(&self.roots, &addr(address), &names, &variants).unwrap()
    }

    fn scan(&self, address: &str) -> Function {
        self.look(address).unwrap()
    }
}

fn addr(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn stuck(function: &Function) -> &str {
    match &function.state {
        DeviceState::Stuck(why) => why,
        DeviceState::Ok => panic!("{function:?}"),
    }
}

#[test]
fn a_physical_function_is_seen_with_its_virtual_ones() {
    let sysfs = Sysfs::lab();
    sysfs.file("pci.ids", "8086  Intel Corporation\n\t10c9  82576 Gigabit Network Connection\n");
    let expected = Function {
        address: addr(PF),
        ids: PciIds { vendor: 0x8086, device: 0x10c9, subsystem_vendor: 0x1af4, subsystem_device: 0x1100 },
        class: 0x02_00_00,
        name: "Intel Corporation 82576 Gigabit Network Connection".into(),
        driver: Some("igb".parse().unwrap()),
        driver_override: None,
        iommu_group: Some(IommuGroupId(12)),
        numa_node: None,
        reset_methods: ["flr", "pm", "bus"].map(String::from).into(),
        role: Role::Pf(PhysicalFunction {
            total_vfs: 7,
            vfs: [(0, addr(VFS[0])), (1, addr(VFS[1]))].into(),
            drivers_autoprobe: true,
            ..PhysicalFunction::default()
        }),
        bridge: false,
        netdevs: vec![Netdev { name: "enp1s0".into(), mac: Some("52:54:00:00:00:01".parse().unwrap()) }],
        vgpu: None,
        variant_drivers: vec![],
        host_critical: vec![],
        state: DeviceState::Ok,
        problems: vec![],
    };
    assert_eq!(sysfs.scan(PF), expected);
}

#[test]
fn a_virtual_function_knows_its_physical_one_and_its_number_there() {
    let sysfs = Sysfs::lab();
    let first = sysfs.scan(VFS[0]);
    assert_eq!(first.role, Role::Vf { pf: addr(PF), index: 0 });
    assert_eq!(first.driver.as_ref().map(|driver| driver.as_str()), Some("igbvf"));
    assert_eq!(first.netdevs.iter().map(|netdev| netdev.name.as_str()).collect::<Vec<_>>(), ["enp1s0v0"]);
    let second = sysfs.scan(VFS[1]);
    assert_eq!((second.role, second.driver, second.netdevs), (Role::Vf { pf: addr(PF), index: 1 }, None, vec![]));
    for (index, vf) in (0..).zip(NVME_VFS) {
        let found = sysfs.scan(vf);
        assert_eq!(found.role, Role::Vf { pf: addr(NVME), index });
        assert_eq!((found.state, found.problems), (DeviceState::Ok, vec![]));
        assert_eq!(found.reset_methods, ["flr"]);
    }
    assert_eq!(physical_function_of(&sysfs.roots, &addr(VFS[0])).unwrap(), Some(addr(PF)));
    assert_eq!(physical_function_of(&sysfs.roots, &addr(PF)).unwrap(), None);
}

#[test]
fn all_functions_are_listed_and_other_names_are_problems() {
    let sysfs = Sysfs::lab();
    sysfs.link("bus/pci/devices/10000:e1:00.0", "../../../devices/vmd");
    sysfs.link("bus/pci/devices/x\x1b[2J", "../../../devices/x");
    let (found, problems) = list_functions(&sysfs.roots).unwrap();
    let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
    let expected = [PF, VFS[0], VFS[1], NVME, NVME_VFS[0], NVME_VFS[1], "10000:e1:00.0"];
    assert_eq!(shown, expected);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let said = problems[0].to_string();
    assert!(said.contains("is not a PCI address") && !said.contains('\x1b'), "{said}");
    // A host without PCI.
    let none = Roots { sys: sysfs.at("nothing"), ..Roots::default() };
    assert_eq!(list_functions(&none).unwrap(), (vec![], vec![]));
}

#[test]
fn an_override_is_a_name_or_none() {
    let sysfs = Sysfs::lab();
    for (text, expected) in [("(null)\n", None), ("\n", None), ("", None), ("vfio-pci\n", Some("vfio-pci"))] {
        sysfs.file(Path::new("bus/pci/devices").join(VFS[0]).join("driver_override"), text);
        let found = sysfs.scan(VFS[0]).driver_override;
        assert_eq!(found.as_ref().map(|driver| driver.as_str()), expected, "{text:?}");
        assert_eq!(driver_override_of(&sysfs.roots, &addr(VFS[0])).unwrap(), found);
    }
}

#[test]
fn a_function_that_cannot_be_reset_has_no_methods() {
    let sysfs = Sysfs::lab();
    let at = Path::new("bus/pci/devices").join(PF).join("reset_method");
    sysfs.file(&at, "\n");
    assert_eq!(sysfs.scan(PF).reset_methods, [""; 0]);
    sysfs.remove(&at);
    let found = sysfs.scan(PF);
    assert_eq!((found.reset_methods, found.problems), (vec![], vec![]));
}

#[test]
fn what_leads_to_other_functions_is_a_bridge() {
    let sysfs = Sysfs::new();
    for (n, (class, bus, bridge)) in [
        ("0x060400", true, true),
        ("0x060400", false, true),
        ("0x060700", false, true),
        ("0x060940", false, true),
        ("0x068000", true, true),
        ("0x060000", false, false),
        ("0x060100", false, false),
        ("0x030000", false, false),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("0000:00:{n:02x}.0");
        let dir = sysfs.function(&address, "", &Attributes { class, driver: "", ..IGB });
        if bus {
            std::fs::create_dir_all(sysfs.at(dir.join("pci_bus/0000:01"))).unwrap();
        }
        assert_eq!(sysfs.scan(&address).bridge, bridge, "{class} {bus}");
    }
}

#[test]
fn a_virtio_interface_and_an_infiniband_one_are_found() {
    let sysfs = Sysfs::new();
    let dir = sysfs.function("0000:00:03.0", "", &IGB);
    sysfs.netdev(&dir.join("virtio2"), "eth0", "52:54:00:00:00:09\n");
    std::fs::create_dir_all(sysfs.at(dir.join("virtio3"))).unwrap();
    sysfs.netdev(&dir, "ib0", "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0a:6e:c1\n");
    let found = sysfs.scan("0000:00:03.0");
    let shown: Vec<_> =
        found.netdevs.iter().map(|netdev| (netdev.name.as_str(), netdev.mac.map(|mac| mac.to_string()))).collect();
    assert_eq!(shown, [("ib0", None), ("eth0", Some("52:54:00:00:00:09".into()))]);
    assert_eq!(found.problems, [""; 0]);
}

#[test]
fn a_vendors_types_are_read() {
    let sysfs = Sysfs::new();
    let vf = sysfs.gpu_vf();
    let found = sysfs.scan(GPU_VF);
    assert_eq!((found.numa_node, &found.state, &found.problems), (Some(NumaNode(1)), &DeviceState::Ok, &vec![]));
    let types = found.vgpu.unwrap();
    assert_eq!(vgpu_types(&sysfs.roots, &addr(GPU_VF)).unwrap().as_ref(), Some(&types));
    assert_eq!(types.current, Some("1145".parse().unwrap()));
    let creatable: Vec<_> = types.creatable.iter().map(|found| (found.id.0.get(), found.name.as_str())).collect();
    assert_eq!(creatable, [(1145, "NVIDIA L40S-1B"), (1155, "NVIDIA L40S-8Q")]);
    assert_eq!(types.gpu_instance, None);

    sysfs.file(vf.join("nvidia/current_vgpu_type"), "0\n");
    sysfs.file(vf.join("nvidia/creatable_vgpu_types"), "ID    : vGPU Name\n");
    sysfs.file(vf.join("nvidia/gpu_instance_id"), "3\n");
    let expected = VgpuTypes { current: None, creatable: vec![], gpu_instance: Some(3) };
    assert_eq!(sysfs.scan(GPU_VF).vgpu, Some(expected));
    // The card itself takes none.
    assert_eq!(sysfs.scan("0000:41:00.0").vgpu, None);
    assert_eq!(vgpu_types(&sysfs.roots, &addr("0000:41:00.0")).unwrap(), None);
    assert_eq!(vgpu_types(&sysfs.roots, &addr("0000:42:00.0")).unwrap(), None);
}

#[test]
fn a_type_that_cannot_be_told_makes_a_function_stuck_and_a_bad_list_does_not() {
    let sysfs = Sysfs::new();
    let vf = sysfs.gpu_vf();
    sysfs.file(vf.join("nvidia/creatable_vgpu_types"), "1145  : NVIDIA L40S-1B\ngarbage\n");
    let found = sysfs.scan(GPU_VF);
    assert_eq!((found.state, found.vgpu.unwrap().creatable.len()), (DeviceState::Ok, 1));
    assert!(found.problems[0].contains("'garbage'"), "{:?}", found.problems);
    sysfs.file(vf.join("nvidia/current_vgpu_type"), "many\n");
    let found = sysfs.scan(GPU_VF);
    assert!(stuck(&found).contains("current_vgpu_type"), "{found:?}");
    assert_eq!(found.vgpu, None);
    let error = vgpu_types(&sysfs.roots, &addr(GPU_VF)).unwrap_err();
    assert!(error.to_string().contains("current_vgpu_type: EINVAL"), "{error}");
}

#[test]
fn a_variant_driver_is_named() {
    let sysfs = Sysfs::lab();
    sysfs.file("proc/sys/kernel/osrelease", "6.12.1\n");
    let aliases =
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\nalias vfio_pci:v00008086d000010CAsv*sd*bc*sc*i* igb_vfio_pci\n";
    sysfs.file("modules/6.12.1/modules.alias", aliases);
    let names = |address: &str| sysfs.scan(address).variant_drivers.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(VFS[0]), names(PF)), (vec!["igb_vfio_pci".to_owned()], vec![]));
}

/// As the kernel leaves it while the write of 0 to `sriov_numvfs` waits for whoever has the function open.
#[test]
fn a_virtual_function_that_is_half_removed_is_stuck_and_its_lock_is_left_alone() {
    let sysfs = Sysfs::lab();
    let vf = Path::new("bus/pci/devices").join(VFS[0]);
    let pf = Path::new("bus/pci/devices").join(PF);
    for link in [pf.join("virtfn0"), vf.join("physfn"), vf.join("driver"), vf.join("driver_override")] {
        sysfs.remove(link);
    }
    // Whoever reads this one waits as well.
    let locked = sysfs.at(vf.join("driver_override"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &locked, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let found = sysfs.scan(VFS[0]);
    assert!(stuck(&found).starts_with("half removed "), "{found:?}");
    assert_eq!((found.iommu_group, found.driver, &found.role), (Some(IommuGroupId(15)), None, &Role::Pci));
    let Role::Pf(physical) = sysfs.scan(PF).role else { panic!() };
    assert_eq!(physical.vfs, [(1, addr(VFS[1]))].into());
    assert_eq!(sysfs.scan(VFS[1]).role, Role::Vf { pf: addr(PF), index: 1 });
}

#[test]
fn a_virtual_function_that_its_physical_one_does_not_link_is_stuck() {
    let sysfs = Sysfs::lab();
    sysfs.remove(Path::new("bus/pci/devices").join(PF).join("virtfn1"));
    assert!(stuck(&sysfs.scan(VFS[1])).contains("half made"));
}

#[test]
fn what_decides_and_cannot_be_read_makes_a_function_stuck() {
    for (name, target, said) in [
        ("iommu_group", "../kernel/iommu_groups/many", "iommu_group"),
        ("driver", "..", "driver"),
        ("physfn", "../x", "physfn"),
    ] {
        let sysfs = Sysfs::lab();
        sysfs.link(Path::new("bus/pci/devices").join(VFS[0]).join(name), target);
        let found = sysfs.scan(VFS[0]);
        assert!(stuck(&found).contains(said), "{found:?}");
        assert_eq!(found.problems.len(), 1, "{found:?}");
        assert_eq!(found.ids.device, 0x10ca);
    }
    for (address, name, content) in [
        (VFS[0], "class", "many"),
        (VFS[0], "vendor", "8086"),
        (VFS[0], "device", "0x110ca"),
        (VFS[0], "subsystem_device", "0x+1"),
        (VFS[0], "driver_override", "a/b"),
        (PF, "sriov_totalvfs", "-1"),
        (PF, "sriov_drivers_autoprobe", "2"),
    ] {
        let sysfs = Sysfs::lab();
        sysfs.file(Path::new("bus/pci/devices").join(address).join(name), format!("{content}\n"));
        let found = sysfs.scan(address);
        assert!(stuck(&found).contains(name), "{found:?}");
        assert_eq!(found.problems.len(), 1, "{found:?}");
        assert!(found.iommu_group.is_some() && !found.netdevs.is_empty(), "{found:?}");
    }
}

#[test]
fn a_function_without_a_class_is_stuck() {
    let sysfs = Sysfs::lab();
    sysfs.remove(Path::new("bus/pci/devices").join(PF).join("class"));
    assert!(stuck(&sysfs.scan(PF)).contains("class: ENOENT"));
}

#[test]
fn what_only_describes_a_function_does_not_make_it_stuck() {
    let sysfs = Sysfs::lab();
    let dir = Path::new("bus/pci/devices").join(PF);
    sysfs.file(dir.join("numa_node"), "many\n");
    sysfs.file(dir.join("net/enp1s0/address"), "52:54:00:00:00:0x\n");
    sysfs.remove(dir.join("reset_method"));
    std::fs::create_dir(sysfs.at(dir.join("reset_method"))).unwrap();
    let found = sysfs.scan(PF);
    assert_eq!(found.state, DeviceState::Ok);
    assert_eq!(found.netdevs, [Netdev { name: "enp1s0".into(), mac: None }]);
    let said = found.problems.join("\n");
    for part in ["numa_node is 'many'", "address: '52:54:00:00:00:0x' is not a MAC address", "reset_method: EISDIR"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(found.problems.len(), 3, "{said}");
}

#[test]
fn what_is_not_there_is_none_and_no_error() {
    let sysfs = Sysfs::lab();
    assert_eq!(sysfs.look("0000:05:00.0"), None);
    assert_eq!(ids_of(&sysfs.roots, &addr("0000:05:00.0")).unwrap(), None);
    assert_eq!(driver_of(&sysfs.roots, &addr("0000:05:00.0")).unwrap(), None);
    // The link is there, the function behind it has just gone, or is about to.
    sysfs.link("bus/pci/devices/0000:05:00.0", "../../../devices/pci0000:00/0000:05:00.0");
    assert_eq!(sysfs.look("0000:05:00.0"), None);
    std::fs::create_dir_all(sysfs.at("devices/pci0000:00/0000:05:00.0/power")).unwrap();
    assert_eq!(sysfs.look("0000:05:00.0"), None);
}

#[test]
fn single_facts_are_read_alone() {
    let sysfs = Sysfs::lab();
    let driver = |address: &str| driver_of(&sysfs.roots, &addr(address)).unwrap().map(|driver| driver.to_string());
    assert_eq!((driver(PF), driver(VFS[1])), (Some("igb".into()), None));
    let ids = ids_of(&sysfs.roots, &addr(NVME)).unwrap().unwrap();
    assert_eq!((ids.to_string(), ids), ("1b36:0010".into(), sysfs.scan(NVME).ids));
    sysfs.file(Path::new("bus/pci/devices").join(NVME).join("vendor"), "x\n");
    assert!(ids_of(&sysfs.roots, &addr(NVME)).unwrap_err().to_string().contains("vendor: EINVAL"));
}
