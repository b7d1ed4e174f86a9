//! The verdict of each kind of function and host, and what holds for all of them.

use alloc::format;
use alloc::string::ToString;
use proptest::prelude::*;
use proptest::sample::select;

use super::facts::*;
use super::*;
use crate::fixtures::address;
use crate::function::{Function, PciIds, PhysicalFunction, Role, VgpuTypes};
use crate::inventory::{DeviceState, Inventory};
use crate::names::{IommuGroupId, PciAddress};

/// A network card alone in its group.
fn nic(at: &str) -> Function {
    Function {
        address: address(at),
        ids: PciIds::default(),
        class: 0x02_00_00,
        name: String::new(),
        driver: Some("igb".parse().unwrap()),
        driver_override: None,
        iommu_group: Some(IommuGroupId(12)),
        numa_node: None,
        reset_methods: vec!["flr".into()],
        role: Role::Pci,
        bridge: false,
        netdevs: vec![],
        vgpu: None,
        variant_drivers: vec![],
        host_critical: vec![],
        state: DeviceState::Ok,
        problems: vec![],
    }
}

fn physical(total: u32, now: u32) -> Role {
    let vfs = (0..now).map(|n| (n, PciAddress { domain: 0, bus: 1, device: 0x10, function: n as u8 })).collect();
    Role::Pf(PhysicalFunction { total_vfs: total, vfs, drivers_autoprobe: true, ..PhysicalFunction::default() })
}

/// A host where all is well.
fn well() -> HostFacts {
    HostFacts {
        cpu: CpuVendor::Intel,
        surroundings: Surroundings::Hardware,
        distribution: Distribution::Debian,
        boot_loader: Some(BootLoader::Grub),
        command_line: Some(CommandLine::parse("quiet intel_iommu=on iommu=pt")),
        iommu_units: Some(vec!["dmar0".into()]),
        iommu_groups: Some(20),
        dmar: Some(true),
        ivrs: Some(false),
        interrupt_remapping: Some(true),
        unsafe_interrupts: Some(false),
        vfio: Module::Present,
        vfio_pci: Module::Present,
        vfio_iommu_type1: Module::Present,
        vfio_file: Some(VfioFile::Mode(0o20666)),
        libvirt: Some(Libvirt::Running("libvirtd")),
        memlock: Some(Memlock { limit: Some(64 << 20), may_raise: true }),
        hook: Some(HookEntry::Installed),
        mdev_parents: Some(0),
        ..HostFacts::default()
    }
}

fn off(command_line: &str) -> HostFacts {
    HostFacts {
        iommu_units: Some(vec![]),
        iommu_groups: Some(0),
        interrupt_remapping: Some(false),
        command_line: Some(CommandLine::parse(command_line)),
        ..well()
    }
}

/// The verdict on the function, which has these others beside it.
fn judge(function: &Function, others: &[Function], host: &HostFacts) -> Finding {
    let mut inventory = Inventory::default();
    for function in others.iter().chain([function]) {
        inventory.insert_function(function.clone());
    }
    check_function(&inventory, function, host)
}

fn short(finding: &Finding) -> (&'static str, &'static str) {
    (finding.verdict.as_str(), finding.reason)
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn one_reason_at_a_time() {
    let with = |change: &dyn Fn(&mut Function)| {
        let mut function = nic("0000:01:00.0");
        change(&mut function);
        function
    };
    let cases: &[(Function, HostFacts, &str, &str)] = &[
        (nic("0000:01:00.0"), well(), "ready", "ok"),
        (nic("0000:01:00.0"), HostFacts::default(), "ready", "ok"),
        (with(&|f| f.bridge = true), well(), "refused", "bridge"),
        (with(&|f| f.host_critical = vec!["is the boot display".into()]), well(), "refused", "host-critical"),
        (with(&|f| f.state = DeviceState::Stuck("its unbind hangs".into())), well(), "refused", "stuck"),
        (with(&|f| f.iommu_group = None), well(), "needs-setup", "no-iommu"),
        (with(&|f| f.iommu_group = None), off(""), "needs-setup", "no-iommu"),
        (with(&|f| f.iommu_group = None), HostFacts::default(), "needs-setup", "no-iommu"),
        (with(&|f| f.reset_methods.clear()), well(), "ready-with-warning", "no-reset"),
        (with(&|f| f.class = 0x06_01_00), well(), "refused", "bridge"),
        (with(&|f| f.role = physical(0, 0)), well(), "ready", "ok"),
        (with(&|f| f.role = physical(7, 0)), well(), "ready", "ok"),
        (with(&|f| f.role = physical(7, 2)), well(), "ready-with-warning", "has-vfs"),
        (with(&|f| f.driver_override = "vfio-pci".parse().ok()), well(), "ready-with-warning", "override"),
        (
            with(&|f| {
                f.driver = "vfio-pci".parse().ok();
                f.driver_override = f.driver.clone();
            }),
            well(),
            "ready",
            "ok",
        ),
        (nic("0000:01:00.0"), HostFacts { vfio_pci: Module::Loadable, ..well() }, "needs-setup", "module-not-loaded"),
        (nic("0000:01:00.0"), HostFacts { vfio_pci: Module::Missing, ..well() }, "needs-setup", "module-missing"),
        // It has a driver of that kind already, or stays with the vendor's.
        (
            with(&|f| f.driver = "mlx5_vfio_pci".parse().ok()),
            HostFacts { vfio_pci: Module::Loadable, ..well() },
            "ready",
            "ok",
        ),
        (
            with(&|f| {
                f.vgpu = Some(VgpuTypes::default());
                f.reset_methods.clear();
            }),
            HostFacts { vfio_pci: Module::Missing, ..well() },
            "ready",
            "ok",
        ),
        (
            with(&|f| f.vgpu = Some(VgpuTypes::default())),
            HostFacts {
                vendor_services: vec![VendorService { name: "nvidia-vgpu-mgr", running: Some(false) }],
                ..well()
            },
            "needs-setup",
            "vgpu-manager-stopped",
        ),
        (
            nic("0000:01:00.0"),
            HostFacts { interrupt_remapping: Some(false), ..well() },
            "needs-setup",
            "no-interrupt-remapping",
        ),
        (
            nic("0000:01:00.0"),
            HostFacts { interrupt_remapping: Some(false), unsafe_interrupts: Some(true), ..well() },
            "ready-with-warning",
            "unsafe-interrupts",
        ),
        // There it changes nothing.
        (nic("0000:01:00.0"), HostFacts { unsafe_interrupts: Some(true), ..well() }, "ready", "ok"),
    ];
    for (function, host, verdict, reason) in cases {
        let finding = judge(function, &[], host);
        assert_eq!(short(&finding), (*verdict, *reason), "{finding:?}");
        assert_eq!(finding.subject, "0000:01:00.0");
    }
}

#[test]
fn what_is_needed_by_the_host_is_refused_with_every_reason() {
    let mut disk = nic("0000:01:00.0");
    disk.host_critical = vec!["carries / on nvme0n1p2".into(), "carries swap on nvme0n1p3".into()];
    disk.iommu_group = None;
    disk.reset_methods.clear();
    let finding = judge(&disk, &[], &off(""));
    assert_eq!(short(&finding), ("refused", "host-critical"));
    let parts = ["it carries / on nvme0n1p2 and carries swap on nvme0n1p3", "no IOMMU group", "cannot reset"];
    has(&finding.message, &parts);
    assert_eq!(finding.fix, "", "what is refused is not set up");
}

#[test]
fn a_group_is_given_as_a_whole_or_kept_by_the_host() {
    let gpu = nic("0000:41:00.0");
    let mut audio = nic("0000:41:00.1");
    audio.name = "Audio Controller".into();
    audio.driver = "snd_hda_intel".parse().ok();
    let mut port = nic("0000:40:01.0");
    port.bridge = true;
    let finding = judge(&gpu, &[audio.clone(), port.clone()], &well());
    assert_eq!(short(&finding), ("ready-with-warning", "shared-group"));
    has(&finding.message, &["IOMMU group 12 with 0000:41:00.1 (Audio Controller, driver snd_hda_intel): one VM"]);
    assert_eq!(finding.fix, "ask for the whole card: address=0000:41:00");
    assert_eq!(short(&judge(&gpu, &[port], &well())), ("ready", "ok"), "bridges may be in any group");

    let mut elsewhere = nic("0000:42:00.0");
    elsewhere.driver = None;
    let finding = judge(&gpu, &[audio.clone(), elsewhere.clone()], &well());
    has(&finding.message, &["(Audio Controller, driver snd_hda_intel) and 0000:42:00.0: one VM"]);
    has(&finding.fix, &["all of them in one VM"]);

    elsewhere.host_critical = vec!["carries the default route through enp66s0".into()];
    let mut disk = nic("0000:43:00.0");
    disk.host_critical = vec!["carries / on sda1".into()];
    let finding = judge(&gpu, &[audio, elsewhere, disk], &well());
    assert_eq!(short(&finding), ("refused", "group-not-isolated"));
    let parts = [
        "0000:42:00.0, which the host itself needs (it carries the default route through enp66s0)",
        "0000:43:00.0 (driver igb), which the host itself needs (it carries / on sda1)",
        "0000:41:00.1",
    ];
    has(&finding.message, &parts);
    has(&finding.fix, &["another slot"]);

    let mut other_group = nic("0000:44:00.0");
    other_group.iommu_group = Some(IommuGroupId(13));
    other_group.host_critical = vec!["is the boot display".into()];
    assert_eq!(short(&judge(&gpu, &[other_group], &well())), ("ready", "ok"));
}

#[test]
fn a_function_without_a_group_is_told_what_the_host_is_told() {
    let mut function = nic("0000:01:00.0");
    function.iommu_group = None;
    for host in [off("quiet"), off("intel_iommu=off"), HostFacts { dmar: Some(false), ..off("") }] {
        let of_host = check_host(&host).into_iter().find(|finding| finding.subject == "iommu").unwrap();
        let finding = judge(&function, &[], &host);
        assert_eq!(finding.fix, of_host.fix);
        has(&finding.message, &[&of_host.message]);
    }
}

#[test]
fn a_physical_function_is_told_how_to_make_virtual_ones() {
    let mut function = nic("0000:01:00.0");
    function.role = physical(7, 0);
    let finding = judge(&function, &[], &well());
    assert_eq!(
        finding.message,
        "it can be given to a VM, alone in IOMMU group 12; it can make up to 7 virtual functions, and has none now"
    );
    assert_eq!(finding.fix, "to make some: hostdevctl vfs 0000:01:00.0 COUNT");
}

#[test]
fn several_setups_are_all_said() {
    let mut function = nic("0000:01:00.0");
    function.iommu_group = None;
    function.reset_methods.clear();
    let finding = judge(&function, &[], &HostFacts { vfio_pci: Module::Loadable, ..off("") });
    assert_eq!(short(&finding), ("needs-setup", "no-iommu"));
    has(&finding.fix, &["intel_iommu=on iommu=pt", "update-grub", "modprobe vfio-pci"]);
    assert!(!finding.fix.contains("no longer works"), "{finding:?}");
}

#[test]
fn why_the_iommu_is_off() {
    let amd = |line: &str, ivrs| HostFacts { cpu: CpuVendor::Amd, dmar: Some(false), ivrs: Some(ivrs), ..off(line) };
    let arm = HostFacts { cpu: CpuVendor::Arm, dmar: None, ivrs: None, ..off("") };
    let vm = |host: HostFacts| HostFacts { surroundings: Surroundings::Vm("QEMU".into()), ..host };
    let no_table = |host: HostFacts| HostFacts { dmar: Some(false), ..host };
    let cases: &[(HostFacts, &str, &[&str], &[&str])] = &[
        (off("quiet"), "iommu-parameter-missing", &["not told to use it"], &["add 'intel_iommu=on iommu=pt'"]),
        (off("intel_iommu=off intel_iommu=on"), "iommu-off", &["does not use it"], &["dmesg"]),
        (
            off("intel_iommu=on intel-iommu=off"),
            "iommu-switched-off",
            &["intel-iommu=off on"],
            &["replace 'intel-iommu=off'"],
        ),
        (off("iommu=pt,off"), "iommu-switched-off", &["iommu=pt,off"], &["with 'intel_iommu=on iommu=pt'"]),
        (off("intel_iommu=on iommu=off quiet"), "iommu-switched-off", &["iommu=off"], &["remove 'iommu=off'"]),
        (off("intel_iommu=on,sm_on"), "iommu-off", &[], &["DMAR"]),
        (off("quiet -- intel_iommu=on"), "iommu-parameter-missing", &[], &[]),
        (no_table(off("")), "no-iommu-table", &["DMAR", "not told"], &["VT-d", "then add 'intel_iommu=on"]),
        (no_table(off("intel_iommu=on")), "no-iommu-table", &["DMAR"], &["VT-d"]),
        (
            vm(no_table(off(""))),
            "no-virtual-iommu",
            &["itself a VM (QEMU)"],
            &["<iommu model='intel'>", "intel_iommu=on"],
        ),
        (vm(off("")), "iommu-parameter-missing", &["not told"], &["update-grub"]),
        (amd("", true), "iommu-off", &["does not use it"], &["AMD-Vi"]),
        (amd("", false), "no-iommu-table", &["IVRS"], &["SVM and IOMMU"]),
        (amd("amd_iommu=off", true), "iommu-switched-off", &["amd_iommu=off"], &["remove 'amd_iommu=off'"]),
        (vm(amd("", false)), "no-virtual-iommu", &[], &["intel_iommu=on"]),
        (arm.clone(), "iommu-off", &["SMMU"], &["firmware setup"]),
        (vm(arm), "no-virtual-iommu", &[], &["smmuv3"]),
        (HostFacts { cpu: CpuVendor::Unknown, dmar: None, ivrs: None, ..off("") }, "iommu-off", &[], &["dmesg"]),
        // What the processor is does not matter where the firmware says it.
        (HostFacts { cpu: CpuVendor::Other, ..off("") }, "iommu-parameter-missing", &[], &["intel_iommu=on"]),
        // Of what is not known nothing is said.
        (HostFacts { dmar: None, command_line: None, ..off("") }, "iommu-off", &["does not use it"], &[]),
    ];
    for (host, reason, messages, fixes) in cases {
        let finding = check_host(host).into_iter().find(|finding| finding.subject == "iommu").unwrap();
        assert_eq!(short(&finding), ("needs-setup", *reason), "{finding:?} {:?}", host.command_line);
        has(&finding.message, messages);
        has(&finding.fix, fixes);
    }
    let of = |host: HostFacts| check_host(&host).into_iter().find(|finding| finding.subject == "iommu");
    assert_eq!(of(HostFacts { iommu_units: None, iommu_groups: Some(0), ..off("") }), None);
    let units = (0..9).map(|n| format!("dmar{n}")).collect();
    assert_eq!(of(HostFacts { iommu_units: Some(units), ..well() }).unwrap().message, "it is on (9 units, 20 groups)");
    let nameless = HostFacts { iommu_units: Some(vec![]), iommu_groups: Some(1), ..well() };
    assert_eq!(of(nameless).unwrap().message, "it is on (1 group)");
}

#[test]
fn parameters_are_the_kernels_as_the_kernel_reads_them() {
    let line = CommandLine::parse(" a=\"x -- y\" vfio-pci.ids=10de:1,10de:2\tq \x1b -- iommu=off\n");
    let texts: Vec<&str> = line.parameters().map(|parameter| parameter.text).collect();
    assert_eq!(texts, ["a=\"x -- y\"", "vfio-pci.ids=10de:1,10de:2", "q", "?"]);
    let ids = line.last("vfio_pci.ids").unwrap();
    assert!(ids.has("10de:2") && !ids.has("10de"));
    assert_eq!((line.last("iommu"), line.last("q").map(|q| q.has(""))), (None, Some(true)));
}

#[test]
fn a_blocked_module_is_named_and_the_others_stay_blocked() {
    let of = |line: &str, vfio_pci| {
        let host = HostFacts { vfio_pci, command_line: Some(CommandLine::parse(line)), ..well() };
        check_host(&host).into_iter().find(|finding| finding.subject == "kernel command line").unwrap()
    };
    let finding = of("module_blacklist=nouveau,vfio_pci", Module::Loadable);
    assert_eq!(short(&finding), ("needs-setup", "module-blocked"));
    has(&finding.fix, &["replace 'module_blacklist=nouveau,vfio_pci' with 'module_blacklist=nouveau' in"]);
    has(&of("module_blacklist=vfio-pci", Module::Loadable).fix, &["remove 'module_blacklist=vfio-pci' from"]);
    assert_eq!(short(&of("module_blacklist=nouveau", Module::Loadable)), ("ready", "ok"));
    assert_eq!(short(&of("nomodule", Module::Present)), ("ready", "ok"));
}

#[test]
fn distributions_are_known_by_what_they_are_like() {
    for (text, expected) in [
        ("ID=debian\n", Distribution::Debian),
        ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Distribution::Debian),
        ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Distribution::Fedora),
        ("ID='opensuse-leap'\nID_LIKE='suse opensuse'\n", Distribution::Suse),
        ("ID=endeavouros\nID_LIKE=arch\n", Distribution::Arch),
        ("ID=nixos\n", Distribution::Nixos),
        ("ID=gentoo\n", Distribution::Other),
        ("VERSION_ID=debian\nPRETTY_NAME=arch\n", Distribution::Other),
        ("", Distribution::Other),
    ] {
        assert_eq!(Distribution::parse(text), expected, "{text}");
    }
}

#[test]
fn locked_memory_that_cannot_be_raised() {
    let of = |limit, may_raise| {
        let host = HostFacts { memlock: Some(Memlock { limit, may_raise }), ..well() };
        let finding = check_host(&host).into_iter().find(|finding| finding.subject == "memlock").unwrap();
        (finding.verdict, finding.message)
    };
    assert_eq!(of(Some(8 << 20), true).0, Grade::Ready);
    assert_eq!(of(None, false).0, Grade::Ready);
    let (verdict, message) = of(Some(8 << 20), false);
    assert_eq!(verdict, Grade::NeedsSetup);
    has(&message, &["8 MiB"]);
    assert_eq!(of(Some(512 << 30), false).0, Grade::ReadyWithWarning);
}

#[test]
fn a_stopped_daemon_is_named_in_what_to_do() {
    let host = HostFacts { libvirt: Some(Libvirt::Stopped("virtqemud")), hook: Some(HookEntry::Absent), ..well() };
    let fixes: Vec<String> =
        check_host(&host).into_iter().map(|finding| finding.fix).filter(|fix| !fix.is_empty()).collect();
    has(&fixes[0], &["systemctl enable --now virtqemud.socket"]);
    has(&fixes[1], &["systemctl try-reload-or-restart virtqemud"]);
    assert_eq!(fixes.len(), 2);
}

#[test]
fn nothing_known_is_nothing_said() {
    assert_eq!(check_host(&HostFacts::default()), []);
}

fn maybe<T: Clone + core::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(select(values))
}

prop_compose! {
    fn any_host()(
        cpu in select(vec![CpuVendor::Intel, CpuVendor::Amd, CpuVendor::Arm, CpuVendor::Other, CpuVendor::Unknown]),
        surroundings in select(vec![
            Surroundings::Hardware, Surroundings::Vm("QEMU".into()), Surroundings::Container(String::new()), Surroundings::Unknown,
        ]),
        distribution in select(vec![
            Distribution::Debian, Distribution::Fedora, Distribution::Suse, Distribution::Arch, Distribution::Nixos, Distribution::Other,
        ]),
        boot_loader in maybe(vec![
            BootLoader::Grub, BootLoader::SystemdBoot { command_line_file: true }, BootLoader::SystemdBoot { command_line_file: false },
            BootLoader::ProxmoxBootTool, BootLoader::Ostree,
        ]),
        line in proptest::option::of(proptest::collection::vec(select(vec![
            "intel_iommu=on", "intel_iommu=off", "amd_iommu=off", "iommu=off", "iommu=pt", "acpi=off", "intremap=off", "nointremap", "--",
            "pcie_acs_override=downstream", "nomodule", "module_blacklist=vfio_pci,a", "vfio_iommu_type1.allow_unsafe_interrupts=1", "\"",
        ]), 0..5)),
        (units, groups) in (maybe(vec![vec![], vec![String::from("dmar0")]]), maybe(vec![0, 20])),
        (dmar, ivrs, remapping, unsafe_interrupts) in any::<(Option<bool>, Option<bool>, Option<bool>, Option<bool>)>(),
        modules in proptest::collection::vec(
            select(vec![Module::Present, Module::Loadable, Module::Missing, Module::Unknown]), 3..4),
        vfio_file in maybe(vec![VfioFile::Absent, VfioFile::Mode(0o600), VfioFile::Mode(0o666)]),
        libvirt in maybe(vec![Libvirt::Absent, Libvirt::Stopped("libvirtd"), Libvirt::OnDemand("virtqemud"), Libvirt::Running("libvirtd")]),
        (limit, may_raise) in any::<(Option<u64>, bool)>(),
        hook in maybe(vec![
            HookEntry::Installed, HookEntry::Absent, HookEntry::NotExecutable, HookEntry::Changed, HookEntry::NoProgram,
        ]),
        (manager, persistenced) in any::<(Option<bool>, Option<bool>)>(),
    ) -> HostFacts {
        HostFacts {
            libvirt_version: None,
            cpu, surroundings, distribution, boot_loader,
            command_line: line.map(|words| CommandLine::parse(&words.join(" "))),
            iommu_units: units, iommu_groups: groups, dmar, ivrs, interrupt_remapping: remapping, unsafe_interrupts,
            vfio: modules[0], vfio_pci: modules[1], vfio_iommu_type1: modules[2], vfio_file, libvirt,
            memlock: Some(Memlock { limit, may_raise }), hook, other_hooks: vec![],
            vendor_services: vec![
                VendorService { name: "nvidia-vgpu-mgr", running: manager },
                VendorService { name: "nvidia-persistenced", running: persistenced },
            ],
            mdev_parents: Some(1), problems: vec![],
        }
    }
}

prop_compose! {
    fn any_function(at: &'static str)(
        (bridge, critical, group, reset, stuck) in any::<(bool, bool, bool, bool, bool)>(),
        driver in maybe(vec!["igb", "vfio-pci"]),
        driver_override in maybe(vec!["igb", "vfio-pci"]),
        vgpu in any::<bool>(),
        (total, now) in (0u32..3, 0u32..2),
    ) -> Function {
        Function {
            driver: driver.and_then(|driver| driver.parse().ok()),
            driver_override: driver_override.and_then(|driver| driver.parse().ok()),
            iommu_group: group.then_some(IommuGroupId(12)),
            reset_methods: if reset { vec!["flr".into()] } else { vec![] },
            role: physical(total, now),
            bridge,
            vgpu: vgpu.then(VgpuTypes::default),
            host_critical: if critical { vec!["is the boot display".into()] } else { vec![] },
            state: if stuck { DeviceState::Stuck("its unbind hangs".into()) } else { DeviceState::Ok },
            ..nic(at)
        }
    }
}

/// What holds for every finding.
fn sound(finding: &Finding) -> Result<(), TestCaseError> {
    prop_assert_eq!(finding.verdict == Grade::Ready, finding.reason == OK, "{:?}", finding);
    prop_assert!(!finding.message.is_empty() && !finding.message.contains('\n') && !finding.fix.contains('\n'));
    prop_assert!(
        finding.verdict != Grade::NeedsSetup || !finding.fix.is_empty() || finding.message.contains("IOMMU group")
    );
    let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
    prop_assert!(finding.reason.chars().all(kebab), "{}", finding.reason);
    prop_assert_eq!(finding.message.matches("()").count() + finding.fix.matches("''").count(), 0, "{:?}", finding);
    Ok(())
}

proptest! {
    #[test]
    fn every_finding_about_a_host_is_sound(host in any_host()) {
        let findings = check_host(&host);
        for finding in &findings {
            sound(finding)?;
        }
        let mut subjects: Vec<&str> = findings.iter().map(|finding| finding.subject.as_str()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        prop_assert_eq!(subjects.len(), findings.len());
    }

    #[test]
    fn every_verdict_is_sound_and_says_all(
        host in any_host(), function in any_function("0000:01:00.0"), other in any_function("0000:02:00.0")
    ) {
        let finding = judge(&function, core::slice::from_ref(&other), &host);
        sound(&finding)?;
        prop_assert_eq!(&finding.subject, &function.address.to_string());
        let shares = function.iommu_group.is_some() && other.iommu_group.is_some() && !other.bridge && !function.bridge;
        let needed = function.bridge
            || !function.host_critical.is_empty()
            || function.state != DeviceState::Ok
            || shares && !other.host_critical.is_empty();
        prop_assert_eq!(finding.verdict == Grade::Refused, needed);
        if !function.bridge {
            let has_group = !finding.message.contains("no IOMMU group");
            prop_assert_eq!(has_group, function.iommu_group.is_some());
            prop_assert_eq!(finding.message.contains("0000:02:00.0"), shares);
            prop_assert!(finding.verdict != Grade::Ready || has_group);
            let on = function.reset_methods.is_empty() && function.vgpu.is_none();
            prop_assert_eq!(finding.message.contains("cannot reset"), on);
        }
    }
}
