//! What the doctor finds on hosts of plain files, and what it says of them. The whole reports are in `golden/`, each for three
//! distributions; `UPDATE_GOLDEN=1 cargo test -p mdevd-host --test facts` writes them anew, to be read in the diff.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use mdevd_core::check::check_host;
use mdevd_core::check::facts::{
    BootLoader, CpuVendor, HookEntry, HostFacts, Libvirt, Memlock, Module, Surroundings, VendorService, VfioFile,
};
use mdevd_host::facts::{SystemPaths, host_facts};
use mdevd_host::roots::Roots;

const RELEASE: &str = "6.12.1-amd64";
const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme vmx x2apic\n";
const AMD: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme svm x2apic\n";
const ARM: &str = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n";
const HOOK: &str = include_str!("../../../libvirt-hooks/qemu.d/mdevd");
const LOADER_INFO: &str = "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-471d-b6cf-b88027c97ea2";

/// What libvirtd is told of itself: its limits and its rights.
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max locked memory         67108864             67108864             bytes     \n";
const ALL_RIGHTS: &str = "Name:\tlibvirtd\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n";
const FEW_RIGHTS: &str = "Name:\tlibvirtd\nCapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff\n";

struct Host {
    dir: tempfile::TempDir,
    roots: Roots,
    system: SystemPaths,
}

impl Host {
    /// A machine of this processor, with a kernel that has VFIO as modules, and nothing else.
    fn new(cpuinfo: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let roots = Roots { sys: at("sys"), proc: at("proc"), etc: at("etc"), run: at("run") };
        let system = SystemPaths {
            boot: at("boot"),
            dev: at("dev"),
            modules: at("lib/modules"),
            usr_bin: at("usr/bin"),
            usr_lib: at("usr/lib"),
        };
        let host = Self { roots, system, dir };
        host.file("proc/cpuinfo", cpuinfo);
        host.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 quiet -- intel_iommu=off\n");
        host.file("proc/sys/kernel/osrelease", format!("{RELEASE}\n"));
        host.link("proc/self/ns/pid", "pid:[4026531836]");
        host.file(
            "proc/interrupts",
            "  0:  9  IO-APIC  2-edge  timer\n 24:  5  PCI-MSIX-0000:01:00.0  0-edge  nvme0q0\n",
        );
        for folder in ["class/iommu", "kernel/iommu_groups", "firmware/acpi/tables"] {
            host.folder(&format!("sys/{folder}"));
        }
        host.kernel(
            "vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\nvfio/vfio.ko.xz:\nvfio/vfio_iommu_type1.ko.xz:\n",
        );
        host
    }

    /// As it should be, on Intel's processors, with libvirt and mdevd installed.
    fn all_well() -> Self {
        let host = Self::new(INTEL);
        host.file("proc/cmdline", "root=/dev/vda1 intel_iommu=on iommu=pt quiet\n");
        host.table("DMAR");
        host.iommu("dmar0", 12);
        host.remapping();
        for module in ["vfio", "vfio_pci", "vfio_iommu_type1"] {
            host.module(module);
        }
        host.with_mode("dev/vfio/vfio", "", 0o666);
        host.libvirtd(ALL_RIGHTS);
        host.hook();
        host.folder("sys/class/mdev_bus/0000:00:02.0");
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), content).unwrap();
    }

    fn with_mode(&self, path: &str, content: &str, mode: u32) {
        self.file(path, content);
        std::fs::set_permissions(self.at(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn folder(&self, path: &str) {
        std::fs::create_dir_all(self.at(path)).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        symlink(target, self.at(path)).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.at(path);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }

    fn kernel(&self, modules: &str) {
        self.file(&format!("lib/modules/{RELEASE}/modules.dep"), modules);
        self.file(&format!("lib/modules/{RELEASE}/modules.builtin"), "kernel/fs/ext4/ext4.ko\n");
    }

    fn module(&self, name: &str) {
        self.folder(&format!("sys/module/{name}"));
    }

    fn table(&self, name: &str) {
        self.file(&format!("sys/firmware/acpi/tables/{name}"), "");
    }

    fn iommu(&self, unit: &str, groups: u32) {
        self.folder(&format!("sys/class/iommu/{unit}"));
        for group in 0..groups {
            self.folder(&format!("sys/kernel/iommu_groups/{group}"));
        }
    }

    fn remapping(&self) {
        self.file("proc/interrupts", "  0:  9  IR-IO-APIC  2-edge  timer\n 24:  5  DMAR-MSI  0-edge  dmar0\n");
    }

    fn unit(&self, name: &str) {
        self.file(&format!("usr/lib/systemd/system/{name}.service"), "[Service]\n");
    }

    fn libvirtd(&self, rights: &str) {
        self.unit("libvirtd");
        self.file("run/libvirtd.pid", "812\n");
        for (name, content) in [("comm", "libvirtd\n"), ("limits", LIMITS), ("status", rights)] {
            self.file(&format!("proc/812/{name}"), content);
        }
    }

    fn hook(&self) {
        self.with_mode("etc/libvirt/hooks/qemu.d/mdevd", HOOK, 0o755);
        self.with_mode("usr/bin/mdevd-hook", "", 0o755);
    }

    /// Makes it a host of this distribution, with the boot loader that such hosts mostly have.
    fn distribution(&self, name: &str) {
        match name {
            "debian" => {
                self.file(
                    "etc/os-release",
                    "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n",
                );
                self.file("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n");
            }
            "rocky" => {
                self.remove("etc/default/grub");
                self.file("etc/os-release", "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n");
                self.file("boot/grub2/grub.cfg", "");
            }
            "arch" => {
                self.remove("boot/grub2");
                self.remove("etc/os-release");
                self.file("usr/lib/os-release", "NAME=\"Arch Linux\"\nID=arch\n");
                self.file("boot/loader/loader.conf", "default arch.conf\n");
            }
            _ => unreachable!(),
        }
    }

    fn facts(&self) -> HostFacts {
        host_facts(&self.roots, &self.system)
    }
}

/// The report as text.
fn report(facts: &HostFacts) -> String {
    let mut text = String::new();
    for finding in check_host(facts) {
        writeln!(text, "{:<19} {}: {}", finding.verdict.as_str(), finding.subject, finding.message).unwrap();
        if !finding.fix.is_empty() {
            writeln!(text, "{:<19} ({}) {}", "", finding.reason, finding.fix).unwrap();
        }
    }
    text
}

fn golden(name: &str, host: &Host) {
    let mut actual = String::new();
    for distribution in ["debian", "rocky", "arch"] {
        host.distribution(distribution);
        let facts = host.facts();
        assert_eq!(facts.problems, [""; 0], "{name}");
        writeln!(actual, "== {distribution}\n{}", report(&facts)).unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(expected == actual, "{name} has changed\n--- expected\n{expected}\n--- actual\n{actual}");
}

#[test]
fn intel_without_the_parameter() {
    let host = Host::new(INTEL);
    host.table("DMAR");
    golden("intel-without-the-parameter", &host);
}

#[test]
fn intel_switched_off() {
    let host = Host::all_well();
    host.remove("sys/class/iommu/dmar0");
    host.remove("sys/kernel/iommu_groups");
    host.file("proc/cmdline", "root=/dev/vda1 intel_iommu=on,sm_on intel_iommu=off\n");
    golden("intel-switched-off", &host);
}

#[test]
fn intel_all_well() {
    golden("intel-all-well", &Host::all_well());
}

#[test]
fn intel_all_well_but_vfio_pci_is_not_loaded() {
    let host = Host::all_well();
    host.remove("sys/module/vfio_pci");
    golden("vfio-pci-not-loaded", &host);
}

#[test]
fn amd_without_the_firmwares_table() {
    golden("amd-firmware", &Host::new(AMD));
}

#[test]
fn amd_switched_off() {
    let host = Host::new(AMD);
    host.table("IVRS");
    host.file("proc/cmdline", "root=/dev/vda1 amd_iommu=off\n");
    golden("amd-switched-off", &host);
}

#[test]
fn arm_without_an_smmu() {
    let host = Host::new(ARM);
    host.remove("sys/firmware");
    golden("arm-without-an-smmu", &host);
}

#[test]
fn a_vm_without_an_iommu() {
    let host = Host::new(&AMD.replace("flags\t\t: ", "flags\t\t: hypervisor "));
    host.file("sys/class/dmi/id/sys_vendor", "QEMU\n");
    golden("vm-without-an-iommu", &host);
}

#[test]
fn a_container() {
    let host = Host::new(INTEL);
    host.table("DMAR");
    host.file("run/systemd/container", "lxc");
    golden("container", &host);
}

#[test]
fn all_that_can_be_wrong_beside_the_iommu() {
    let host = Host::all_well();
    host.file(
        "proc/cmdline",
        "intel_iommu=on intremap=off pcie_acs_override=downstream,multifunction module_blacklist=nouveau,vfio_pci\n",
    );
    host.file("proc/interrupts", "  0:  9  IO-APIC  2-edge  timer\n");
    host.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    host.remove("sys/module/vfio_pci");
    host.kernel("");
    host.with_mode("dev/vfio/vfio", "", 0o600);
    host.libvirtd(FEW_RIGHTS);
    host.with_mode("etc/libvirt/hooks/qemu.d/mdevd", "#!/usr/bin/python2\n", 0o755);
    for service in ["nvidia-vgpud", "nvidia-vgpu-mgr", "nvidia-persistenced"] {
        host.unit(service);
    }
    host.file("sys/fs/cgroup/system.slice/nvidia-persistenced.service/cgroup.procs", "999\n");
    golden("all-wrong", &host);
}

#[test]
fn facts_of_a_host_where_all_is_well() {
    let host = Host::all_well();
    host.distribution("debian");
    let facts = host.facts();
    assert_eq!((facts.cpu, &facts.surroundings), (CpuVendor::Intel, &Surroundings::Hardware));
    assert_eq!((facts.iommu_units.as_deref(), facts.iommu_groups), (Some(&["dmar0".to_owned()][..]), Some(12)));
    assert_eq!((facts.dmar, facts.ivrs, facts.interrupt_remapping), (Some(true), Some(false), Some(true)));
    assert_eq!([facts.vfio, facts.vfio_pci, facts.vfio_iommu_type1], [Module::Present; 3]);
    assert!(matches!(facts.vfio_file, Some(VfioFile::Mode(mode)) if mode & 0o777 == 0o666));
    assert_eq!(facts.memlock, Some(Memlock { limit: Some(64 << 20), may_raise: true }));
    assert_eq!((facts.mdev_parents, facts.unsafe_interrupts), (Some(1), None));
}

#[test]
fn of_a_host_that_shows_nothing_nothing_is_known() {
    let host = Host::new(INTEL);
    for folder in ["sys", "proc", "lib"] {
        host.remove(folder);
    }
    // What is not in the configuration or among what runs is not installed.
    let expected = HostFacts {
        libvirt: Some(Libvirt::Absent),
        hook: Some(HookEntry::Absent),
        vfio_file: Some(VfioFile::Absent),
        ..HostFacts::default()
    };
    assert_eq!(host.facts(), expected);
    let subjects: Vec<String> = check_host(&host.facts()).into_iter().map(|finding| finding.subject).collect();
    assert_eq!(subjects, ["libvirt"]);
}

#[test]
fn what_cannot_be_read_is_unknown_and_said() {
    let host = Host::all_well();
    for path in ["proc/cmdline", "proc/interrupts", "proc/812/limits", "etc/libvirt/hooks/qemu.d/mdevd"] {
        host.remove(path);
        host.folder(path);
    }
    host.remove("sys/class/iommu");
    host.file("sys/class/iommu", "");
    let facts = host.facts();
    assert_eq!((facts.command_line, facts.interrupt_remapping, facts.memlock, facts.hook), (None, None, None, None));
    assert_eq!((facts.iommu_units, facts.libvirt), (None, Some(Libvirt::Running("libvirtd"))));
    let told = facts.problems.join("\n");
    for part in
        ["cmdline: EISDIR", "interrupts: EISDIR", "limits: EISDIR", "qemu.d/mdevd: EISDIR", "class/iommu: ENOTDIR"]
    {
        assert!(told.contains(part), "{part}: {told}");
    }
    let finding = check_host(&host.facts()).pop().unwrap();
    assert_eq!((finding.subject.as_str(), finding.reason), ("facts", "unread"));
    assert!(finding.message.contains("cmdline: EISDIR"), "{finding:?}");
}

#[test]
fn processors_and_what_the_machine_is_in() {
    let hygon = AMD.replace("AuthenticAMD", "HygonGenuine");
    for (cpuinfo, cpu) in [
        (INTEL, CpuVendor::Intel),
        (AMD, CpuVendor::Amd),
        (&hygon, CpuVendor::Amd),
        (ARM, CpuVendor::Arm),
        ("vendor_id       : IBM/S390\n", CpuVendor::Other),
        ("processor\t: 0\ncpu\t\t: POWER9\n", CpuVendor::Other),
        ("", CpuVendor::Unknown),
    ] {
        assert_eq!(Host::new(cpuinfo).facts().cpu, cpu, "{cpuinfo}");
    }
    let surroundings = |prepare: &dyn Fn(&Host), cpuinfo: &str| {
        let host = Host::new(cpuinfo);
        prepare(&host);
        host.facts().surroundings
    };
    let guest = INTEL.replace("flags\t\t: ", "flags\t\t: hypervisor ");
    let vm = |by: &str| Surroundings::Vm(by.into());
    let container = |by: &str| Surroundings::Container(by.into());
    assert_eq!(surroundings(&|_| {}, INTEL), Surroundings::Hardware);
    assert_eq!(surroundings(&|_| {}, &guest), vm(""));
    assert_eq!(surroundings(&|host| host.file("sys/class/dmi/id/sys_vendor", "QEMU\n"), &guest), vm("QEMU"));
    assert_eq!(surroundings(&|host| host.file("sys/hypervisor/type", "xen\n"), &guest), vm("xen"));
    assert_eq!(surroundings(&|_| {}, ARM), Surroundings::Unknown);
    assert_eq!(surroundings(&|host| host.folder("proc/device-tree/hypervisor"), ARM), vm(""));
    assert_eq!(surroundings(&|host| host.file("run/systemd/container", "lxc\n"), &guest), container("lxc"));
    assert_eq!(surroundings(&|host| host.file("run/host/container-manager", "x\x1b"), INTEL), container("x\\u{1b}"));
    assert_eq!(surroundings(&|host| host.file("run/.containerenv", ""), INTEL), container("podman"));
    let elsewhere = |host: &Host| {
        host.remove("proc/self/ns/pid");
        host.link("proc/self/ns/pid", "pid:[4026532451]");
    };
    assert_eq!(surroundings(&elsewhere, INTEL), container(""));
}

#[test]
fn the_boot_loader_says_its_name_or_is_the_only_one_there() {
    let said = |name: &str| {
        let mut bytes = vec![6, 0, 0, 0];
        bytes.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
        bytes
    };
    let systemd_boot = Some(BootLoader::SystemdBoot { command_line_file: false });
    let grub = Some(BootLoader::Grub);
    for (files, info, expected) in [
        (&[][..], None, None),
        (&["etc/default/grub"][..], None, grub),
        (&["boot/grub2/grub.cfg"], None, grub),
        (&["boot/efi/loader/loader.conf"], None, systemd_boot),
        (&["boot/loader/loader.conf", "etc/default/grub"], None, None),
        (&["boot/loader/loader.conf", "etc/default/grub", "sys/firmware/efi/efivars/Boot0000-x"], None, grub),
        (&["boot/loader/loader.conf", "etc/default/grub"], Some("systemd-boot 252.39-1~deb12u1\0"), systemd_boot),
        (&["boot/loader/loader.conf", "etc/kernel/proxmox-boot-uuids"], Some("GRUB 2.12\0"), grub),
        (&["etc/default/grub"], Some("rEFInd 0.14.0\0"), None),
        (&["etc/default/grub", "run/ostree-booted"], Some("GRUB 2.12\0"), Some(BootLoader::Ostree)),
        (&["etc/kernel/cmdline"], Some("systemd-boot 255"), Some(BootLoader::SystemdBoot { command_line_file: true })),
        (
            &["etc/kernel/cmdline", "etc/kernel/proxmox-boot-uuids"],
            Some("systemd-boot 254"),
            Some(BootLoader::ProxmoxBootTool),
        ),
    ] {
        let host = Host::new(INTEL);
        for file in files {
            host.file(file, "");
        }
        if let Some(info) = info {
            host.file(LOADER_INFO, said(info));
        }
        assert_eq!(host.facts().boot_loader, expected, "{files:?} {info:?}");
    }
    let host = Host::new(INTEL);
    host.file("etc/default/grub", "");
    for short in [&b""[..], b"\x06\0\0", b"\x06\0\0\0G", b"\x06\0\0\0\x00\xd8"] {
        host.file(LOADER_INFO, short);
        assert_eq!(host.facts().boot_loader, None, "{short:?}");
    }
}

#[test]
fn modules_are_there_can_be_loaded_or_are_missing() {
    let state = |prepare: &dyn Fn(&Host)| {
        let host = Host::new(INTEL);
        prepare(&host);
        host.facts().vfio_pci
    };
    assert_eq!(state(&|_| {}), Module::Loadable);
    assert_eq!(state(&|host| host.module("vfio_pci")), Module::Present);
    assert_eq!(state(&|host| host.kernel("kernel/drivers/vfio/pci/vfio-pci-core.ko: a.ko\n")), Module::Missing);
    let builtin = |host: &Host| {
        host.file(&format!("lib/modules/{RELEASE}/modules.builtin"), "kernel/drivers/vfio/pci/vfio-pci.ko\n");
    };
    assert_eq!(state(&builtin), Module::Present);
    // Without one of the lists it may be in that one.
    assert_eq!(state(&|host| host.remove("lib")), Module::Unknown);
    let no_builtin = |host: &Host| {
        host.kernel("");
        host.remove(&format!("lib/modules/{RELEASE}/modules.builtin"));
    };
    assert_eq!(state(&no_builtin), Module::Unknown);
    assert_eq!(state(&|host| host.file("proc/sys/kernel/osrelease", "../x\n")), Module::Unknown);
}

#[test]
fn groups_that_vfio_made_are_not_an_iommus() {
    let host = Host::new(INTEL);
    host.file("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    let facts = host.facts();
    assert_eq!((facts.iommu_units, facts.iommu_groups), (Some(vec![]), Some(0)));
    host.folder("sys/kernel/iommu_groups/1");
    assert_eq!(host.facts().iommu_groups, Some(1));
}

#[test]
fn interrupts_are_remapped_where_their_controllers_say_so() {
    for (cpuinfo, interrupts, expected) in [
        (INTEL, "  0:  9  IR-IO-APIC  2-edge  timer\n", Some(true)),
        (AMD, " 24:  9  IR-PCI-MSI-0000:00:00.2  0-edge  AMD-Vi\n", Some(true)),
        (INTEL, "  0:  9  IO-APIC  2-edge  timer\n", Some(false)),
        (INTEL, "NMI:  9  Non-maskable interrupts\n", None),
        // The name of a controller of another kind, which has nothing to do with it.
        (ARM, " 30:  9  PCI-MSI  0 Edge  nvme\n", None),
    ] {
        let host = Host::new(cpuinfo);
        host.file("proc/interrupts", interrupts);
        assert_eq!(host.facts().interrupt_remapping, expected, "{interrupts}");
    }
}

#[test]
fn libvirts_daemon_runs_starts_on_demand_stopped_or_is_absent() {
    let host = Host::new(INTEL);
    let libvirt = |host: &Host| host.facts().libvirt.unwrap();
    assert_eq!(libvirt(&host), Libvirt::Absent);
    host.unit("libvirtd");
    assert_eq!(libvirt(&host), Libvirt::Stopped("libvirtd"));
    host.unit("virtqemud");
    host.file("run/libvirt/virtqemud-sock", "");
    assert_eq!(libvirt(&host), Libvirt::OnDemand("virtqemud"));
    host.libvirtd(ALL_RIGHTS);
    assert_eq!(libvirt(&host), Libvirt::Running("libvirtd"));
    // It was killed, and another has its number.
    host.file("proc/812/comm", "bash\n");
    assert_eq!((libvirt(&host), host.facts().memlock), (Libvirt::OnDemand("virtqemud"), None));
}

#[test]
fn a_hook_entry_is_as_it_was_installed_or_what_is_wrong_is_said() {
    let host = Host::all_well();
    let hook = |host: &Host| host.facts().hook.unwrap();
    assert_eq!(hook(&host), HookEntry::Installed);
    host.with_mode("usr/bin/mdevd-hook", "", 0o644);
    assert_eq!(hook(&host), HookEntry::NoProgram);
    host.remove("usr/bin/mdevd-hook");
    assert_eq!(hook(&host), HookEntry::NoProgram);
    for other in ["", "#!/bin/sh\n", &"x".repeat(5000)] {
        host.with_mode("etc/libvirt/hooks/qemu.d/mdevd", other, 0o755);
        assert_eq!(hook(&host), HookEntry::Changed);
    }
    host.file("etc/libvirt/hooks/qemu.d/mdevd", b"\xff");
    assert_eq!(hook(&host), HookEntry::Changed);
    host.with_mode("etc/libvirt/hooks/qemu.d/mdevd", HOOK, 0o644);
    assert_eq!(hook(&host), HookEntry::NotExecutable);
    host.remove("etc/libvirt/hooks/qemu.d/mdevd");
    assert_eq!(hook(&host), HookEntry::Absent);

    assert_eq!(host.facts().other_hooks, [""; 0]);
    host.with_mode("etc/libvirt/hooks/qemu", "#!/bin/sh\n", 0o755);
    host.with_mode("etc/libvirt/hooks/qemu.d/10-other", "#!/bin/sh\n", 0o755);
    host.with_mode("etc/libvirt/hooks/qemu.d/README", "", 0o644);
    host.folder("etc/libvirt/hooks/qemu.d/win11/prepare");
    assert_eq!(host.facts().other_hooks, ["qemu", "qemu.d/10-other"]);
}

#[test]
fn limits_of_locked_memory() {
    let host = Host::all_well();
    let memlock = |host: &Host| host.facts().memlock;
    host.libvirtd(FEW_RIGHTS);
    assert_eq!(memlock(&host), Some(Memlock { limit: Some(64 << 20), may_raise: false }));
    host.file("proc/812/limits", LIMITS.replace("67108864", "unlimited"));
    assert_eq!(memlock(&host), Some(Memlock { limit: None, may_raise: false }));
    host.file("proc/812/limits", LIMITS.replace("67108864", "many"));
    assert_eq!(memlock(&host), None);
}

#[test]
fn services_run_where_systemd_has_processes_of_theirs() {
    let host = Host::new(INTEL);
    let running = |host: &Host| -> Vec<_> {
        host.facts().vendor_services.iter().map(|VendorService { name, running }| (*name, *running)).collect()
    };
    assert_eq!(running(&host), []);
    host.unit("nvidia-vgpu-mgr");
    assert_eq!(running(&host), [("nvidia-vgpu-mgr", None)]);
    for slice in ["systemd/system.slice", "system.slice"] {
        host.folder(&format!("sys/fs/cgroup/{slice}"));
        assert_eq!(running(&host), [("nvidia-vgpu-mgr", Some(false))], "{slice}");
        let processes = format!("sys/fs/cgroup/{slice}/nvidia-vgpu-mgr.service/cgroup.procs");
        host.file(&processes, "71\n72\n");
        assert_eq!(running(&host), [("nvidia-vgpu-mgr", Some(true))], "{slice}");
        host.file(&processes, "");
        assert_eq!(running(&host), [("nvidia-vgpu-mgr", Some(false))], "{slice}");
    }
}

/// Whatever machine this runs on: nothing panics, nothing hangs, and what is set up badly comes with what to do.
#[test]
fn this_machine() {
    let facts = host_facts(&Roots::default(), &SystemPaths::default());
    let findings = check_host(&facts);
    println!("{}", report(&facts));
    assert!(findings.iter().any(|finding| finding.subject == "kernel command line"), "{findings:?}");
}
