//! The steps of PCI functions one by one: in words, as writes, as they stand in the claim's file, and when they are done.

use super::*;
use crate::claim::GrantedVf;
use alloc::format;
use alloc::string::ToString;

fn id(number: u32) -> Option<VgpuTypeId> {
    number.to_string().parse().ok()
}

fn mac(text: &str) -> Option<MacAddress> {
    text.parse().ok()
}

/// Every kind of step of a function, what it is in words, its write, and how it stands in the file.
fn table() -> Vec<(Step, &'static str, Write, &'static str)> {
    let (vf, pf) = (address(VF), address(PF));
    let file = |path: &str, value: &str| Write::File { path: path.into(), value: value.into() };
    let settings = VfSettings {
        mac: mac("52:54:00:6d:90:02"),
        vlan: Some(42),
        qos: Some(3),
        trust: Some(true),
        spoof_check: Some(false),
        min_rate: Some(100),
        max_rate: Some(1000),
        link_state: Some(LinkState::Enable),
    };
    vec![
        (
            Step::SetOverride { address: vf, driver: Some(driver("vfio-pci")) },
            "reserve 0000:01:10.0 for the driver vfio-pci",
            file("bus/pci/devices/0000:01:10.0/driver_override", "vfio-pci"),
            r#"{"op":"set-override","address":"0000:01:10.0","driver":"vfio-pci"}"#,
        ),
        (
            Step::SetOverride { address: vf, driver: None },
            "leave 0000:01:10.0 to any driver",
            // An empty write would do nothing.
            file("bus/pci/devices/0000:01:10.0/driver_override", "\n"),
            r#"{"op":"set-override","address":"0000:01:10.0","driver":null}"#,
        ),
        (
            Step::Unbind { address: vf },
            "unbind 0000:01:10.0 from its driver",
            file("bus/pci/devices/0000:01:10.0/driver/unbind", "0000:01:10.0"),
            r#"{"op":"unbind","address":"0000:01:10.0"}"#,
        ),
        (
            Step::Probe { address: vf, driver: driver("igbvf") },
            "bind 0000:01:10.0 to igbvf",
            file("bus/pci/drivers_probe", "0000:01:10.0"),
            r#"{"op":"probe","address":"0000:01:10.0","driver":"igbvf"}"#,
        ),
        (
            Step::SetVgpuType { address: vf, vgpu_type: id(1145) },
            "give 0000:01:10.0 the vGPU type 1145",
            file("bus/pci/devices/0000:01:10.0/nvidia/current_vgpu_type", "1145"),
            r#"{"op":"set-vgpu-type","address":"0000:01:10.0","vgpu_type":1145}"#,
        ),
        (
            Step::SetVgpuType { address: vf, vgpu_type: None },
            "take the vGPU type from 0000:01:10.0",
            file("bus/pci/devices/0000:01:10.0/nvidia/current_vgpu_type", "0"),
            r#"{"op":"set-vgpu-type","address":"0000:01:10.0","vgpu_type":null}"#,
        ),
        (
            Step::SetVf { address: vf, pf, index: 0, settings },
            "set mac 52:54:00:6d:90:02, vlan 42, qos 3, trust on, spoofchk off, min_tx_rate 100, max_tx_rate 1000, state enable of \
             0000:01:10.0 through 0000:01:00.0",
            Write::Vf { netdev: "enp1s0".into(), index: 0, settings },
            r#"{"op":"set-vf","address":"0000:01:10.0","pf":"0000:01:00.0","index":0,"settings":{"mac":"52:54:00:6d:90:02","vlan":42,"qos":3,"trust":true,"spoof_check":false,"min_rate":100,"max_rate":1000,"link_state":"enable"}}"#,
        ),
        (
            Step::SetNumVfs { pf, count: 7 },
            "set the number of virtual functions of 0000:01:00.0 to 7",
            file("bus/pci/devices/0000:01:00.0/sriov_numvfs", "7"),
            r#"{"op":"set-num-vfs","pf":"0000:01:00.0","count":7}"#,
        ),
        (
            Step::SetAutoprobe { pf, on: false },
            "turn driver binding of new virtual functions of 0000:01:00.0 off",
            file("bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe", "0"),
            r#"{"op":"set-autoprobe","pf":"0000:01:00.0","on":false}"#,
        ),
        (
            Step::SetAutoprobe { pf, on: true },
            "turn driver binding of new virtual functions of 0000:01:00.0 on",
            file("bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe", "1"),
            r#"{"op":"set-autoprobe","pf":"0000:01:00.0","on":true}"#,
        ),
    ]
}

fn network_card() -> World {
    let mut pf = Function {
        netdevs: vec![Netdev { name: "enp1s0".into(), mac: None }, Netdev { name: "enp1s0r".into(), mac: None }],
        ..physical(PF, 12, &[VF])
    };
    if let Role::Pf(physical) = &mut pf.role {
        physical.vf_settings.insert(0, VfSettings { vlan: Some(0), qos: Some(0), ..VfSettings::default() });
    }
    World { function: virtual_function(VF, 15, PF, 0), pf, native: Some(driver("igbvf")), types: None }
}

#[test]
fn each_step_in_words_as_a_write_and_in_the_file() {
    let inventory = network_card().inventory();
    for (step, words, write, json) in table() {
        assert_eq!(step.to_string(), words);
        assert_eq!(step.write(&inventory), Ok(write), "{words}");
        assert_eq!(serde_json::to_string(&step).unwrap(), json);
        assert_eq!(serde_json::from_str::<Step>(json).unwrap(), step);
        // One card's virtual functions are changed one at a time, also when this one has just vanished.
        assert_eq!(step.lock(&inventory), PF, "{words}");
        assert_eq!(step.parent(), None);
    }
    let vanished = Step::SetVf { address: address(VF), pf: address(PF), index: 0, settings: VfSettings::default() };
    assert_eq!(vanished.lock(&Inventory::default()), PF);
    assert_eq!(vanished.to_string(), "set nothing of 0000:01:10.0 through 0000:01:00.0");
    // Other functions stand for themselves.
    let alone = Step::Unbind { address: address("0000:41:00.0") };
    assert_eq!(alone.lock(&inventory), "0000:41:00.0");
}

#[test]
fn what_is_no_step_is_an_error() {
    for (text, message) in [
        (r#"{"op":"unbind","address":"../0000:01:10.0"}"#, "is not a PCI address"),
        (r#"{"op":"probe","address":"0000:01:10.0","driver":"../../x"}"#, "is not a driver name"),
        (r#"{"op":"probe","address":"0000:01:10.0"}"#, "missing field `driver`"),
        (r#"{"op":"set-vgpu-type","address":"0000:01:10.0","vgpu_type":0}"#, "nonzero"),
        (r#"{"op":"set-num-vfs","pf":"0000:01:00.0","count":-1}"#, "invalid value: integer `-1`"),
        (r#"{"op":"new-id","address":"0000:01:10.0"}"#, "unknown variant `new-id`"),
    ] {
        let error = serde_json::from_str::<Step>(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn settings_go_through_the_physical_function_s_interface() {
    let step = Step::SetVf { address: address(VF), pf: address(PF), index: 0, settings: VfSettings::default() };
    let message =
        "0000:01:00.0 has no network interface, through which its virtual functions would be set; is its driver bound?";
    assert_eq!(step.write(&Inventory::default()), Err(message.into()));
    let mut world = network_card();
    world.pf.netdevs.clear();
    assert_eq!(step.write(&world.inventory()), Err(message.into()));
}

#[test]
fn when_a_step_counts_as_done() {
    let card = network_card();
    let with = |change: &dyn Fn(&mut World)| {
        let mut world = card.clone();
        change(&mut world);
        world.inventory()
    };
    let (vf, pf) = (address(VF), address(PF));
    let set_vf = |settings| Step::SetVf { address: vf, pf, index: 0, settings };
    let none = VfSettings::default();
    let vfio = || Some(driver("vfio-pci"));
    let gone = Inventory::default();
    let here = card.inventory();
    let vgpu = |current| with(&move |w| w.function.vgpu = vgpu_types(current, &[]));
    let table: Vec<(Step, &Inventory, bool)> = vec![
        (Step::SetOverride { address: vf, driver: None }, &here, true),
        (Step::SetOverride { address: vf, driver: vfio() }, &here, false),
        (Step::SetOverride { address: vf, driver: None }, &gone, false),
        (Step::Unbind { address: vf }, &here, false),
        (Step::Unbind { address: vf }, &gone, true),
        (Step::Probe { address: vf, driver: driver("igbvf") }, &here, true),
        (Step::Probe { address: vf, driver: driver("vfio-pci") }, &here, false),
        (Step::Probe { address: vf, driver: driver("igbvf") }, &gone, false),
        // What has no types has none.
        (Step::SetVgpuType { address: vf, vgpu_type: None }, &here, true),
        (Step::SetVgpuType { address: vf, vgpu_type: id(5) }, &here, false),
        (set_vf(VfSettings { vlan: Some(0), ..none }), &here, true),
        (set_vf(VfSettings { vlan: Some(42), ..none }), &here, false),
        // A driver that does not say cannot be taken at its word.
        (set_vf(VfSettings { trust: Some(false), ..none }), &here, false),
        (set_vf(none), &here, true),
        (set_vf(none), &gone, false),
        (Step::SetVf { address: vf, pf, index: 1, settings: none }, &here, false),
        (Step::SetNumVfs { pf, count: 1 }, &here, true),
        (Step::SetNumVfs { pf, count: 0 }, &here, false),
        (Step::SetNumVfs { pf, count: 0 }, &gone, false),
        (Step::SetNumVfs { pf: vf, count: 0 }, &here, false),
        (Step::SetAutoprobe { pf, on: true }, &here, true),
        (Step::SetAutoprobe { pf, on: false }, &here, false),
    ];
    for (step, inventory, done) in &table {
        assert_eq!(step.already_done(inventory), *done, "{step}");
    }
    let set = |vgpu_type| Step::SetVgpuType { address: vf, vgpu_type };
    assert!(set(id(5)).already_done(&vgpu(Some(5))) && !set(id(5)).already_done(&vgpu(Some(50))));
    assert!(!set(None).already_done(&vgpu(Some(5))) && set(None).already_done(&vgpu(None)));
    let unbound = with(&|w| w.function.driver = None);
    assert!(Step::Unbind { address: vf }.already_done(&unbound));
    let reserved = with(&|w| w.function.driver_override = vfio());
    assert!(Step::SetOverride { address: vf, driver: vfio() }.already_done(&reserved));
}

/// The words of the steps that prepare what these need.
fn words(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn granted(change: impl FnOnce(&mut GrantedFunction)) -> Grant {
    let world = network_card();
    let need = function_need(WantedFunction::Address(address(VF)));
    let mut grant = grant_function(&world.inventory(), &need, "dev0", &world.function);
    if let Granted::Pci(function) = &mut grant.device {
        change(function);
    }
    grant
}

#[test]
fn prepare_in_words() {
    let of = |change: &dyn Fn(&mut GrantedFunction)| words(&Plan::prepare(&[granted(change)]));
    let bind = [
        "reserve 0000:01:10.0 for the driver vfio-pci",
        "unbind 0000:01:10.0 from its driver",
        "bind 0000:01:10.0 to vfio-pci",
    ];
    assert_eq!(of(&|_| {}), bind);
    assert_eq!(of(&|f| f.driver_was = None), [bind[0], bind[2]], "there is nothing to unbind");
    assert_eq!(of(&|f| f.driver_was.clone_from(&f.driver)), [""; 0], "it is there already");
    assert_eq!(of(&|f| f.driver = None), [""; 0], "libvirt binds it");
    let set = |f: &mut GrantedFunction| {
        f.vf.as_mut().unwrap().set = VfSettings { vlan: Some(42), qos: Some(0), ..VfSettings::default() };
    };
    // Before the driver goes.
    let vlan = "set vlan 42, qos 0 of 0000:01:10.0 through 0000:01:00.0";
    assert_eq!(of(&set), [vlan, bind[0], bind[1], bind[2]]);
    let typed = |f: &mut GrantedFunction| (f.vgpu_type, f.driver) = (id(1145), None);
    assert_eq!(of(&typed), ["take the vGPU type from 0000:01:10.0", "give 0000:01:10.0 the vGPU type 1145"]);
    // What stays as it is has no steps; nor has the way back of a function, which follows from what it then is.
    let kept = Grant { undo: Undo::Keep, ..granted(|_| {}) };
    assert_eq!(Plan::prepare(&[kept, granted(|_| {})]).steps.len(), 3);
    assert_eq!(Plan::release(&[granted(|_| {})]), Plan::default());
}

/// The words of the way back from `now`.
fn way_back(was: &GrantedFunction, mut world: World) -> Vec<String> {
    let mut made = Vec::new();
    while let Some(step) = restore(was, &world.inventory()) {
        world.make(&step).unwrap();
        made.push(step.to_string());
        assert!(made.len() <= MOST_STEPS, "{made:?}");
    }
    made
}

#[test]
fn restore_in_words() {
    let from = |change: &dyn Fn(&mut World), was: &dyn Fn(&mut GrantedFunction)| {
        let mut world = network_card();
        change(&mut world);
        way_back(granted(was).function().unwrap(), world)
    };
    let bound = |w: &mut World| {
        (w.function.driver, w.function.driver_override) = (Some(driver("vfio-pci")), Some(driver("vfio-pci")))
    };
    let reserve = "reserve 0000:01:10.0 for the driver igbvf";
    let (unbind, bind) = ("unbind 0000:01:10.0 from its driver", "bind 0000:01:10.0 to igbvf");
    let free = "leave 0000:01:10.0 to any driver";
    assert_eq!(from(&|_| {}, &|_| {}), [""; 0]);
    assert_eq!(from(&bound, &|_| {}), [reserve, unbind, bind, free]);
    assert_eq!(from(&bound, &|f| f.driver_was = None), [unbind, free]);
    assert_eq!(from(&|w| w.function.driver_override = Some(driver("vfio-pci")), &|_| {}), [free]);
    assert_eq!(from(&|w| w.function.driver = None, &|_| {}), [reserve, bind, free]);
    // With the override that it had for another driver, which was not bound.
    let uio = "reserve 0000:01:10.0 for the driver uio_pci_generic";
    assert_eq!(from(&bound, &|f| f.override_was = Some(driver("uio_pci_generic"))), [reserve, unbind, bind, uio]);
    // libvirt has cleared that of a function kept for programs, and the kernel chose.
    let kept = |f: &mut GrantedFunction| {
        f.managed = true;
        (f.driver_was, f.override_was) = (Some(driver("uio_pci_generic")), Some(driver("uio_pci_generic")));
    };
    assert_eq!(from(&|_| {}, &kept), [unbind, uio, "bind 0000:01:10.0 to uio_pci_generic"]);
    // Somebody else's.
    assert_eq!(from(&|w| w.function.driver = Some(driver("dpdk")), &|_| {}), [""; 0]);
    assert_eq!(from(&|w| w.function.driver_override = Some(driver("dpdk")), &|_| {}), [""; 0]);
    let reserved = |w: &mut World| {
        (w.function.driver, w.function.driver_override) = (Some(driver("vfio-pci")), Some(driver("dpdk")))
    };
    assert_eq!(from(&reserved, &|_| {}), [unbind]);
    // What is gone, or stuck behind a physical function that is gone, has no way back.
    let was = granted(|_| {});
    assert_eq!(restore(was.function().unwrap(), &Inventory::default()), None);
}

#[test]
fn restore_of_settings_in_words() {
    let had = VfSettings {
        mac: Some(MacAddress::ZERO),
        vlan: Some(0),
        qos: Some(0),
        trust: Some(false),
        ..VfSettings::default()
    };
    let now = VfSettings { mac: mac("52:54:00:6d:90:02"), vlan: Some(42), qos: Some(3), trust: Some(true), ..had };
    let from = |now: Option<VfSettings>, set: VfSettings, interface| {
        let mut world = network_card();
        if let Role::Pf(physical) = &mut world.pf.role {
            physical.vf_settings.clear();
            physical.vf_settings.extend(now.map(|now| (0, now)));
        }
        let was = granted(|f| {
            f.interface = interface;
            let vf = f.vf.as_mut().unwrap();
            (vf.set, vf.was) = (set, had);
        });
        way_back(was.function().unwrap(), world)
    };
    let through = "of 0000:01:10.0 through 0000:01:00.0";
    let none = VfSettings::default();
    // Only what was set here; of an interface also what libvirt sets.
    let zero = "mac 00:00:00:00:00:00";
    assert_eq!(from(Some(now), none, false), [""; 0]);
    assert_eq!(from(Some(now), VfSettings { trust: Some(true), ..none }, false), [format!("set trust off {through}")]);
    assert_eq!(from(Some(now), VfSettings { mac: now.mac, ..none }, false), [format!("set {zero} {through}")]);
    assert_eq!(from(Some(now), VfSettings { vlan: Some(42), ..none }, false), [format!("set vlan 0, qos 0 {through}")]);
    assert_eq!(from(Some(now), none, true), [format!("set {zero}, vlan 0, qos 0 {through}")]);
    assert_eq!(from(Some(had), now, true), [""; 0]);
    assert_eq!(from(None, now, true), [""; 0], "the physical function's driver is gone");
}

#[test]
fn settings_that_are_not_known_are_not_none() {
    let mut pf = network_card().pf;
    assert_eq!(settings_unknown(&pf), None);
    let Role::Pf(physical) = &mut pf.role else { unreachable!() };
    physical.vf_settings.clear();
    assert_eq!(settings_unknown(&pf), None, "its driver has none");
    let Role::Pf(physical) = &mut pf.role else { unreachable!() };
    physical.settings_unread = Some("the kernel does not answer".into());
    assert_eq!(settings_unknown(&pf).as_deref(), Some("0000:01:00.0: the kernel does not answer"));
    pf.state = DeviceState::Stuck("its class cannot be read".into());
    assert_eq!(settings_unknown(&pf).as_deref(), Some("0000:01:00.0 is stuck: its class cannot be read"));
    // It matters where something was set, here or by libvirt.
    let changed = |change: fn(&mut GrantedFunction)| granted(change).function().unwrap().changed_vf().is_some();
    assert!(!changed(|_| {}));
    assert!(changed(|f| f.interface = true));
    assert!(changed(|f| f.vf.as_mut().unwrap().set.trust = Some(true)));
    assert!(!changed(|f| (f.interface, f.vf) = (true, None)));
}

#[test]
fn which_drivers_are_for_vms() {
    for name in ["vfio-pci", "mlx5_vfio_pci", "hisi-acc-vfio-pci", "nvgrace_gpu_vfio_pci", "xe-vfio-pci"] {
        assert!(is_vfio(&driver(name)), "{name}");
    }
    for name in ["vfio", "vfio-platform", "vfio-pci-core", "vfio_mdev", "igbvf", "pci-stub", "nvidia", "vfio-pcix"] {
        assert!(!is_vfio(&driver(name)), "{name}");
    }
}

/// The host's driver was back before the VM's address was taken away, and its network interface still has that.
#[test]
fn an_interface_that_kept_the_vm_s_address_is_bound_anew() {
    let (given, own) = (mac("52:54:00:6d:90:02"), mac("16:17:1d:5d:40:5c"));
    let host = |admin: Option<MacAddress>, netdev: Option<MacAddress>| {
        let mut pf = physical(PF, 1, &[VF]);
        let Role::Pf(role) = &mut pf.role else { unreachable!() };
        role.vf_settings.insert(0, VfSettings { mac: admin, ..VfSettings::default() });
        let mut vf = virtual_function(VF, 2, PF, 0);
        vf.driver = Some(driver("igbvf"));
        vf.netdevs.push(Netdev { name: "enp1s0v0".into(), mac: netdev });
        let mut inventory = Inventory::default();
        inventory.insert_function(pf);
        inventory.insert_function(vf);
        inventory
    };
    let zero = Some(MacAddress::ZERO);
    let grant = granted(|function| {
        function.driver = None;
        function.driver_was = Some(driver("igbvf"));
        function.override_was = None;
        function.vf = Some(GrantedVf {
            pf: address(PF),
            index: 0,
            set: VfSettings { mac: given, ..VfSettings::default() },
            was: VfSettings { mac: zero, ..VfSettings::default() },
            netdev_mac_was: own,
        });
    });
    let was = grant.function().unwrap().clone();
    let settings = VfSettings { mac: zero, ..VfSettings::default() };
    let set_back = Step::SetVf { address: address(VF), pf: address(PF), index: 0, settings };
    assert_eq!(restore(&was, &host(given, given)), Some(set_back), "the settings go first");
    assert_eq!(restore(&was, &host(zero, given)), Some(Step::Unbind { address: address(VF) }));
    // Its own, or one that a driver has made up: it is what it was as far as anybody can bring it.
    assert_eq!(restore(&was, &host(zero, own)), None);
    assert_eq!(restore(&was, &host(zero, mac("02:00:00:00:00:01"))), None);
    // One that was given its own address has nothing to lose.
    let mut kept = was;
    kept.vf.as_mut().unwrap().netdev_mac_was = given;
    assert_eq!(restore(&kept, &host(zero, given)), None);
}
