//! Which of several functions is taken, and what a promise of it says.

use super::*;

#[test]
fn a_card_is_all_its_functions_but_bridges_or_nothing() {
    let at = |n: u8| format!("0000:41:00.{n}");
    let card = || need(&[("address", "41:00")]);
    let functions = |change: &dyn Fn(u8, &mut Function)| {
        Setting::of((0..3).map(|n| {
            let mut function = function(&at(n), 7);
            change(n, &mut function);
            function
        }))
    };
    // They share a group, and go together.
    assert_eq!(functions(&|_, _| {}).chosen(&card()), [at(0), at(1), at(2)]);
    assert_eq!(functions(&|n, f| f.bridge = n == 1).chosen(&card()), [at(0), at(2)]);
    let refused = |setting: &Setting| {
        let choice = setting.choose(&card(), &BTreeSet::new());
        assert_eq!(choice.chosen(&card().wanted), []);
        refusal(&choice).1.to_string()
    };
    let critical = functions(&|n, f| f.host_critical.extend((n == 1).then(|| "is the console".to_string())));
    assert_eq!(
        refused(&critical),
        "no device for 'dev0' (all functions of the PCI card 0000:41:00): the host itself needs 0000:41:00.1: is the console"
    );
    assert_eq!(
        refused(&functions(&|_, _| {}).promise(domain(1, "vm1"), &["0000:41:00.2"])),
        "no device for 'dev0' (all functions of the PCI card 0000:41:00): 0000:41:00.2 is already promised to domain 'vm1'"
    );
    assert_eq!(
        refused(&functions(&|_, f| (f.bridge, f.name) = (true, "Switch".into()))),
        "0000:41:00.0 is a bridge (Switch); what is behind it can be given to a VM"
    );
    assert_eq!(
        refused(&Setting::of([function(B, 8)])),
        "this host does not have the PCI card 0000:41:00; 'hostdevctl list' shows what there is"
    );
}

#[test]
fn any_function_by_kind_numbers_and_physical_function() {
    let [pf, vf0, vf1] = network_card();
    let other_pf = "0000:02:00.0";
    let bridge = Function { bridge: true, ..function("0000:00:01.0", 1) };
    let setting = Setting::of([
        bridge,
        function(A, 7),
        pf,
        vf0,
        vf1,
        physical(other_pf, 20, &["0000:02:10.0"]),
        virtual_function("0000:02:10.0", 21, other_pf, 0),
        physical("0000:03:00.0", 22, &[]),
    ]);
    let meant = |pairs: &[(&str, &str)]| {
        let candidates = setting.choose(&need(pairs), &BTreeSet::new()).candidates;
        let mut all: Vec<String> = candidates.iter().map(|candidate| candidate.address.to_string()).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(meant(&[("kind", "vf")]), [VF0, VF1, "0000:02:10.0"]);
    // A physical function only for those who ask for just that.
    assert_eq!(meant(&[("kind", "pci")]), [A]);
    assert_eq!(meant(&[("kind", "pci"), ("device", "8086:10c9")]), [PF, other_pf, "0000:03:00.0"]);
    assert_eq!(meant(&[("device", "8086:10ca")]), [VF0, VF1, "0000:02:10.0"]);
    assert_eq!(meant(&[("device", "8086:0A54")]), [A]);
    assert_eq!(meant(&[("pf", other_pf)]), ["0000:02:10.0"]);
    assert_eq!(meant(&[("kind", "vf"), ("device", "8086:10ca"), ("pf", PF)]), [VF0, VF1]);
    assert_eq!(setting.chosen(&need(&[("kind", "vf")])), [VF0], "one, the first by address");
}

#[test]
fn pack_takes_from_the_fullest_card_and_spread_from_the_emptiest() {
    let card = |bus: u8| {
        let vfs: Vec<String> = (0..4).map(|n| format!("0000:{bus:02x}:10.{n}")).collect();
        let pf = format!("0000:{bus:02x}:00.0");
        let names: Vec<&str> = vfs.iter().map(String::as_str).collect();
        let mut functions = vec![physical(&pf, u32::from(bus) * 16, &names)];
        functions.extend((0..4).map(|n| virtual_function(names[n], u32::from(bus) * 16 + 1 + n as u32, &pf, n as u32)));
        functions
    };
    let mut setting = Setting::of([card(1), card(2), card(3)].concat())
        .promise(domain(1, "a"), &["0000:02:10.0", "0000:02:10.1"])
        .promise(domain(2, "b"), &["0000:03:10.3"]);
    assert_eq!(setting.chosen(&need(&[("kind", "vf")])), ["0000:02:10.2"]);
    setting.placement = Placement::Spread;
    assert_eq!(setting.chosen(&need(&[("kind", "vf")])), ["0000:01:10.0"]);
}

#[test]
fn vgpu_types_by_number_and_by_name() {
    let types: [(u32, &str); 2] = [(1145, "NVIDIA L40S-1B"), (1155, "NVIDIA L40S-8Q")];
    let setting = Setting::of([Function { vgpu: vgpu_types(None, &types), ..virtual_function(VF0, 15, PF, 0) }]);
    for (text, id) in [("1155", 1155), ("NVIDIA L40S-8Q", 1155), ("L40S-8Q", 1155), ("L40S-1B", 1145)] {
        let need = need(&[("address", VF0), ("vgpu-type", text)]);
        assert_eq!(setting.chosen(&need), [VF0], "{text}");
        let function = setting.inventory.function(&address(VF0)).unwrap();
        let grant = grant_function(&setting.inventory, &need, "gpu0", function);
        let granted = grant.function().unwrap();
        assert_eq!(granted.vgpu_type.map(|id| id.0.get()), Some(id), "{text}");
        assert_eq!((granted.managed, &granted.driver), (false, &None), "it stays on its driver");
    }
    for text in ["NVIDIA", "8Q", "nvidia l40s-8q", "NVIDIA L40S-8Q ", "115", "11555"] {
        assert_eq!(setting.chosen(&need(&[("address", VF0), ("vgpu-type", text)])), [""; 0], "{text}");
    }
}

#[test]
fn a_vgpu_type_that_nobody_has_claimed_is_taken_last() {
    let vf = |at, n, current, types: &[(u32, &str)]| Function {
        vgpu: vgpu_types(current, types),
        ..virtual_function(at, 15 + n, PF, n)
    };
    let types: [(u32, &str); 1] = [(1145, "NVIDIA L40S-1B")];
    let dirty = || vf(VF0, 0, Some(1155), &[]);
    let wanted = || need(&[("kind", "vf"), ("vgpu-type", "NVIDIA L40S-1B")]);
    let both = Setting::of([dirty(), vf(VF1, 1, None, &types), function(A, 7)]);
    let choice = both.choose(&wanted(), &BTreeSet::new());
    let last = Refusal::new(Reason::InUse, "0000:01:10.0 has the vGPU type 1155, which nobody has claimed");
    assert_eq!(
        choice.candidates,
        [
            FunctionCandidate { address: address(VF1), verdict: Verdict::Possible },
            FunctionCandidate { address: address(VF0), verdict: Verdict::LastResort(last) },
        ]
    );
    // Its own list is short, but those of its like know which number the name is.
    let only_dirty = both.promise(domain(1, "vm1"), &[VF1]);
    assert_eq!(only_dirty.chosen(&wanted()), [VF0]);
    let function = only_dirty.inventory.function(&address(VF0)).unwrap();
    let grant = grant_function(&only_dirty.inventory, &wanted(), "gpu0", function);
    assert_eq!(grant.function().unwrap().vgpu_type.map(|id| id.0.get()), Some(1145));
    // A like that is another model does not: its numbers may be others.
    let other = Function { ids: PciIds { device: 1, ..PciIds::default() }, ..vf(VF1, 1, None, &types) };
    let setting = Setting::of([dirty(), other]).promise(domain(1, "vm1"), &[VF1]);
    assert_eq!(setting.chosen(&wanted()), [""; 0]);
    // By number nobody has to be asked, and one that has a type may be used as it is.
    assert_eq!(Setting::of([dirty()]).chosen(&need(&[("kind", "vf"), ("vgpu-type", "1145")])), [VF0]);
    assert_eq!(Setting::of([dirty()]).chosen(&this(VF0)), [VF0]);
}

#[test]
fn of_many_refusals_those_that_came_nearest_are_told() {
    let types = vgpu_types(None, &[]);
    let vf = |n: u32| virtual_function(&format!("0000:01:10.{n}"), 15 + n, PF, n);
    let mut setting = Setting::of((0..7).map(|n| Function { vgpu: types.clone(), ..vf(n) }));
    for n in 0..3 {
        setting = setting.promise(domain(n, &format!("vm{n}")), &[&format!("0000:01:10.{n}")]);
    }
    let choice = setting.choose(&need(&[("kind", "vf"), ("vgpu-type", "1145")]), &BTreeSet::new());
    let full = |n: u32| format!("0000:01:10.{n} cannot have the vGPU type 1145 now; it can have: none now");
    let message = format!(
        "no device for 'dev0' (any virtual function): {}; {}; {}; {}; and 3 more; 'hostdevctl explain' lists them",
        full(3),
        full(4),
        full(5),
        full(6)
    );
    assert_eq!(refusal(&choice), (Reason::NoInstance, message.as_str()));
}

#[test]
fn a_long_list_of_types_is_cut() {
    let names: Vec<(u32, &str)> = (1..=14).map(|id| (id, "x")).collect();
    let setting = Setting::of([Function { vgpu: vgpu_types(None, &names), ..function(A, 7) }]);
    let choice = setting.choose(&this(A), &BTreeSet::new());
    assert!(refusal(&choice).1.ends_with(", 11 (x), 12 (x) and 2 more"), "{:?}", choice.refusal);
}

#[test]
fn a_promise_remembers_what_was() {
    let was = VfSettings {
        mac: Some(MacAddress::ZERO),
        vlan: Some(0),
        qos: Some(0),
        trust: Some(false),
        ..VfSettings::default()
    };
    let [mut pf, mut vf, _] = network_card();
    if let Role::Pf(physical) = &mut pf.role {
        physical.vf_settings.insert(0, was);
    }
    vf.driver_override = Some(driver("igbvf"));
    let setting = Setting::of([pf, vf]);
    let mac: MacAddress = "52:54:00:6d:90:02".parse().unwrap();
    let wanted = || need(&[("address", VF0), ("mac", "52:54:00:6d:90:02"), ("vlan", "42"), ("trust", "off")]);
    let hostdev = |interface, managed| Hostdev {
        source: HostdevSource::Pci(address(VF0)),
        model: String::new(),
        managed,
        alias: None,
        interface,
        mac: None,
        vlan: None,
    };
    let granted = |hostdev: Option<Hostdev>, driver: Option<&str>| {
        let mut need = FunctionNeed { hostdev, ..wanted() };
        need.options.driver = driver.map(|name| name.parse().unwrap());
        let function = setting.inventory.function(&address(VF0)).unwrap();
        let grant = grant_function(&setting.inventory, &need, "nic0", function);
        assert_eq!((grant.request.as_str(), grant.undo), ("nic0", Undo::Restore));
        grant.function().cloned().unwrap()
    };
    // Only what differs is set; with the VLAN its priority, as the kernel takes both.
    let set = VfSettings { mac: Some(mac), vlan: Some(42), qos: Some(0), ..VfSettings::default() };
    let plain = granted(Some(hostdev(false, false)), None);
    assert_eq!(
        plain,
        GrantedFunction {
            address: address(VF0),
            managed: false,
            interface: false,
            driver: Some(driver("vfio-pci")),
            vgpu_type: None,
            vf: Some(GrantedVf { pf: address(PF), index: 0, set, was, netdev_mac_was: None }),
            driver_was: Some(driver("igbvf")),
            override_was: Some(driver("igbvf")),
        }
    );
    // libvirt sets an interface's MAC and VLAN; and binds what it manages.
    let interface = granted(Some(hostdev(true, true)), None);
    assert_eq!((interface.driver, interface.interface, interface.managed), (None, true, true));
    assert_eq!(interface.vf.map(|vf| (vf.set, vf.was)), Some((VfSettings::default(), was)));
    // By hand nobody else binds it; a variant only where it is asked for.
    assert_eq!(granted(None, None).driver, Some(driver("vfio-pci")));
    assert_eq!(granted(None, Some("mlx5_vfio_pci")).driver, Some(driver("mlx5_vfio_pci")));
}
