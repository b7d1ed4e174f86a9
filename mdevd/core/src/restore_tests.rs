//! The steps of PCI functions against a model of the kernel that, like the real one, refuses what cannot be: whatever the point at which
//! the daemon or libvirt dies, the function comes back to what it was, and what somebody else has made of it meanwhile stays.

use super::*;
use crate::choose::function::grant_function;
use crate::fixtures::{address, driver, function, function_need, physical, vgpu_types, virtual_function};
use crate::function::{LinkState, Netdev, VgpuTypes};
use crate::hostdev::{Hostdev, HostdevSource};
use crate::names::MacAddress;
use crate::request::{FunctionNeed, FunctionOptions, WantedFunction, WantedVgpu};
use alloc::vec;
use proptest::prelude::*;
use proptest::sample::select;

#[path = "restore_steps_tests.rs"]
mod steps;

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";

/// As many steps as the daemon makes in one try.
const MOST_STEPS: usize = 8;

/// The model: one function, the physical one behind it, and the drivers that there are.
#[derive(Debug, Clone, PartialEq)]
struct World {
    function: Function,
    pf: Function,
    /// The driver that takes the function where no override names another; none takes it while it is not loaded.
    native: Option<DriverName>,
    /// The types that the function could have while it has none.
    types: Option<VgpuTypes>,
}

type Errno = &'static str;

impl World {
    fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        inventory.insert_function(self.pf.clone());
        inventory.insert_function(self.function.clone());
        inventory
    }

    /// `drivers_probe`: nobody is told that no driver came.
    fn probe(&mut self) {
        let takes = |driver: &DriverName| {
            ["igbvf", "vfio-pci", "mlx5_vfio_pci", "uio_pci_generic", "dpdk"].contains(&driver.as_str())
        };
        if self.function.driver.is_none() {
            // An override means this driver or none, also where that one is not loaded.
            let next = self.function.driver_override.as_ref().or(self.native.as_ref());
            self.function.driver = next.filter(|driver| takes(driver)).cloned();
        }
    }

    fn unbind(&mut self) -> Result<(), Errno> {
        self.function.driver.take().map(|_| ()).ok_or("ENOENT")
    }

    fn set_vgpu(&mut self, wanted: Option<VgpuTypeId>) -> Result<(), Errno> {
        let (vgpu, types) = (self.function.vgpu.as_mut().ok_or("ENOENT")?, self.types.as_ref().ok_or("ENOENT")?);
        match (wanted, vgpu.current) {
            (None, None) | (Some(_), Some(_)) => return Err("EPERM"),
            (None, Some(_)) => *vgpu = types.clone(),
            (Some(id), None) if vgpu.creatable.iter().any(|known| known.id == id) => {
                // What else it could become no longer shows.
                *vgpu = VgpuTypes { current: Some(id), creatable: vec![], ..types.clone() };
            }
            (Some(_), None) => return Err("EIO"),
        }
        Ok(())
    }

    fn set_vf(&mut self, index: u32, settings: &VfSettings) -> Result<(), Errno> {
        if self.pf.netdevs.is_empty() {
            return Err("ENODEV");
        }
        let Role::Pf(physical) = &mut self.pf.role else { return Err("ENODEV") };
        let now = physical.vf_settings.get_mut(&index).ok_or("EINVAL")?;
        let next = applied(now, settings);
        let (vlan, qos) = (next.vlan.unwrap_or(0), next.qos.unwrap_or(0));
        let (min, max) = (next.min_rate.unwrap_or(0), next.max_rate.unwrap_or(0));
        if vlan > 4094 || qos > 7 || vlan == 0 && qos > 0 || max > 0 && min > max {
            return Err("EINVAL");
        }
        *now = next;
        Ok(())
    }

    fn apply(&mut self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::SetOverride { driver, .. } => self.function.driver_override.clone_from(driver),
            Step::Unbind { .. } => self.unbind()?,
            Step::Probe { .. } => self.probe(),
            Step::SetVgpuType { vgpu_type, .. } => self.set_vgpu(*vgpu_type)?,
            Step::SetVf { index, settings, .. } => self.set_vf(*index, settings)?,
            _ => unreachable!("{step} is of no function of a claim"),
        }
        Ok(())
    }

    /// Makes a step as the daemon does: refused is fine where it is done already, and its effect is read back.
    fn make(&mut self, step: &Step) -> Result<(), String> {
        assert_eq!(step.device(), DeviceKey::Pci(self.function.address));
        let answer = self.apply(step);
        match (step.already_done(&self.inventory()), answer) {
            (true, _) => Ok(()),
            (false, Ok(())) => Err(format!("{step}: not read back")),
            (false, Err(errno)) => Err(format!("{step}: {errno}")),
        }
    }

    /// Makes the first `count` steps that prepare this grant.
    fn prepare(&mut self, grant: &Grant, count: usize) {
        for step in Plan::prepare(core::slice::from_ref(grant)).steps.iter().take(count) {
            self.make(step).unwrap();
        }
    }

    /// libvirt binds the function of an element with `managed='yes'`, or gives it back; it may die after any of its writes.
    fn libvirt(&mut self, detach: bool, interface: Option<&VfSettings>, writes: usize) {
        let vfio = driver("vfio-pci");
        if detach && self.function.driver.as_ref() == Some(&vfio) {
            return;
        }
        let mut steps: Vec<&dyn Fn(&mut Self)> = Vec::new();
        let set = |world: &mut Self| {
            if let Some(settings) = interface {
                world.set_vf(0, settings).unwrap();
            }
        };
        let name = |world: &mut Self| world.function.driver_override = detach.then(|| vfio.clone());
        let unbind = |world: &mut Self| _ = world.unbind();
        let probe = |world: &mut Self| world.probe();
        if detach {
            steps.push(&set);
        }
        steps.extend([&name as &dyn Fn(&mut Self), &unbind, &probe]);
        for step in steps.into_iter().take(writes) {
            step(self);
        }
    }

    /// Restores the function as the daemon does, which dies after each of these numbers of steps; returns how many it took in all.
    fn restore(&mut self, was: &GrantedFunction, deaths: &[usize]) -> Result<usize, String> {
        let mut total = 0;
        for steps in deaths.iter().copied().chain([usize::MAX]) {
            // All that the next daemon knows is in the claim's file.
            let text = serde_json::to_string(was).map_err(|e| e.to_string())?;
            let was: GrantedFunction = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            for _ in 0..steps {
                let Some(step) = restore(&was, &self.inventory()) else { return Ok(total) };
                if step.already_done(&self.inventory()) {
                    return Err(format!("{step}: done already"));
                }
                self.make(&step)?;
                total += 1;
                if total > 3 * MOST_STEPS {
                    return Err("no end".into());
                }
            }
        }
        Ok(total)
    }

    fn settings(&self) -> VfSettings {
        settings_of(&self.pf, 0).unwrap_or_default()
    }
}

/// What a virtual function has after these have been set of it.
fn applied(now: &VfSettings, set: &VfSettings) -> VfSettings {
    VfSettings {
        mac: set.mac.or(now.mac),
        vlan: set.vlan.or(now.vlan),
        qos: set.qos.or(now.qos),
        trust: set.trust.or(now.trust),
        spoof_check: set.spoof_check.or(now.spoof_check),
        min_rate: set.min_rate.or(now.min_rate),
        max_rate: set.max_rate.or(now.max_rate),
        link_state: set.link_state.or(now.link_state),
    }
}

fn drivers() -> impl Strategy<Value = Option<DriverName>> {
    let name = select(vec!["igbvf", "igbvf", "vfio-pci", "uio_pci_generic"]);
    proptest::option::weighted(0.8, name.prop_map(driver))
}

fn macs() -> impl Strategy<Value = MacAddress> {
    (0u8..3).prop_map(|n| if n == 0 { MacAddress::ZERO } else { MacAddress([0x52, 0x54, 0, 0, 0, n]) })
}

/// Settings that a driver takes; each may be unsaid.
fn vf_settings() -> impl Strategy<Value = VfSettings> {
    use proptest::option::of;
    let link_state = of(select(vec![LinkState::Auto, LinkState::Enable, LinkState::Disable]));
    // A VLAN with its priority, which needs one; a lowest and a highest rate.
    let vlan = of((select(vec![0u16, 42, 43]), 0u8..3).prop_map(|(vlan, qos)| (vlan, if vlan == 0 { 0 } else { qos })));
    let rates = of((0u32..3, 0u32..3).prop_map(|(min, more)| (min, min + more)));
    (of(macs()), vlan, of(any::<bool>()), of(any::<bool>()), rates, link_state).prop_map(
        |(mac, vlan, trust, spoof_check, rates, link_state)| VfSettings {
            mac,
            vlan: vlan.map(|(vlan, _)| vlan),
            qos: vlan.map(|(_, qos)| qos),
            trust,
            spoof_check,
            min_rate: rates.map(|(min, _)| min),
            max_rate: rates.map(|(_, max)| max),
            link_state,
        },
    )
}

/// A whole function, a virtual one of a network card, or, where `typed`, also one of the vendor's vGPU types.
fn worlds(typed: bool) -> impl Strategy<Value = World> {
    let says = proptest::option::weighted(0.9, vf_settings());
    let vgpu = proptest::option::weighted(0.3, proptest::option::of(select(vec![1145u32, 1155])));
    (any::<bool>(), drivers(), drivers(), any::<bool>(), says, vgpu).prop_map(
        move |(virtual_one, driver_was, override_was, native, says, vgpu)| {
            let netdevs = vec![Netdev { name: "enp1s0".into(), mac: None }];
            let mut pf = Function { netdevs, ..physical(PF, 12, &[VF]) };
            if let (Role::Pf(physical), Some(says)) = (&mut pf.role, says) {
                physical.vf_settings.insert(0, says);
            }
            let mut function = if virtual_one { virtual_function(VF, 15, PF, 0) } else { function(VF, 15) };
            (function.driver, function.driver_override) = (driver_was, override_was);
            let types = vgpu_types(None, &[(1145, "NVIDIA L40S-1B"), (1155, "NVIDIA L40S-8Q")]);
            let types = if let Some(current) = vgpu.filter(|_| typed) {
                (function.driver, function.driver_override) = (Some(driver("nvidia")), None);
                function.vgpu = if current.is_some() { vgpu_types(current, &[]) } else { types.clone() };
                types
            } else {
                None
            };
            World { function, pf, native: native.then(|| driver("igbvf")), types }
        },
    )
}

/// What is asked for, that fits this world; always for libvirt to bind where `always`.
fn grants(world: &World, always: bool) -> impl Strategy<Value = Grant> + use<> {
    let world = world.clone();
    let variant = select(vec![None, Some("vfio-pci"), Some("mlx5_vfio_pci")]);
    (any::<[bool; 3]>(), variant, vf_settings()).prop_map(move |([in_domain, managed, interface], variant, set)| {
        let (in_domain, managed) = (in_domain || always, managed || always);
        let (typed, nic) = (world.types.is_some(), matches!(world.function.role, Role::Vf { .. }));
        // Of a driver that says nothing of its virtual functions nothing can be set.
        let says = nic && settings_of(&world.pf, 0).is_some();
        let interface = interface && nic && !typed;
        let options = FunctionOptions {
            set: if says { set } else { VfSettings::default() },
            vgpu_type: typed.then(|| WantedVgpu::Name("L40S-8Q".into())),
            driver: variant.filter(|_| !typed).map(driver),
            managed: None,
        };
        let hostdev = in_domain.then(|| Hostdev {
            source: HostdevSource::Pci(world.function.address),
            model: String::new(),
            managed: managed && !typed,
            alias: None,
            interface,
            mac: None,
            vlan: None,
        });
        let need = FunctionNeed { hostdev, options, ..function_need(WantedFunction::Address(world.function.address)) };
        let mut inventory = world.inventory();
        if typed {
            // One that has a type already does not tell the number; another one of its like does.
            let like = Function { vgpu: world.types.clone(), ..virtual_function("0000:01:10.2", 16, PF, 1) };
            inventory.insert_function(Function { ids: world.function.ids, ..like });
        }
        grant_function(&inventory, &need, "dev0", &world.function)
    })
}

fn situations(typed: bool, always_managed: bool) -> impl Strategy<Value = (World, Grant)> {
    worlds(typed).prop_flat_map(move |world| {
        let grants = grants(&world, always_managed);
        (Just(world), grants)
    })
}

/// A run of the claim's VM up to some point: prepare, and where libvirt binds, how many of its writes for the start and for the end.
fn runs() -> impl Strategy<Value = (usize, usize, Option<usize>, VfSettings)> {
    let set = (macs(), select(vec![0u16, 7])).prop_map(|(mac, vlan)| VfSettings {
        mac: Some(mac),
        vlan: Some(vlan),
        qos: Some(0),
        ..VfSettings::default()
    });
    (0usize..8, 0usize..6, proptest::option::of(0usize..4), set)
}

fn run(world: &mut World, grant: &Grant, (steps, starts, ends, set): &(usize, usize, Option<usize>, VfSettings)) {
    world.prepare(grant, *steps);
    let was = grant.function().unwrap();
    let interface = was.interface && !world.settings().is_empty();
    // The start goes on only once prepare is through, and its end follows a start that is.
    if !was.managed || was.driver.is_some() || *steps < Plan::prepare(core::slice::from_ref(grant)).steps.len() {
        return;
    }
    let bound_before = world.function.driver.as_ref().is_some_and(is_vfio);
    world.libvirt(true, interface.then_some(set), *starts);
    if let Some(ends) = ends.filter(|_| *starts >= 4 && !bound_before) {
        world.libvirt(false, None, ends);
    }
}

/// What the world is to be afterwards.
fn expected(before: &World, was: &GrantedFunction, after: &World) -> World {
    let mut expected = before.clone();
    if was.vgpu_type.is_some() {
        expected.function.vgpu.clone_from(&before.types);
    }
    // When libvirt gives back a function that had no override, the kernel chooses its driver, and that looks like anybody's choice.
    if was.managed && before.function.driver_override.is_none() && before.native == after.function.driver {
        expected.function.driver.clone_from(&after.function.driver);
    }
    // What libvirt sets of an interface is known again only where the driver said it before.
    let (now, had) = (after.settings(), before.settings());
    if let (Role::Pf(physical), true) = (&mut expected.pf.role, was.vf.is_some())
        && let Some(settings) = physical.vf_settings.get_mut(&0)
    {
        *settings = applied(&now, &had);
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_crash_at_any_point_brings_back_what_was(
        (before, grant) in situations(true, false),
        run_to in runs(),
        deaths in proptest::collection::vec(0usize..4, 0..3),
    ) {
        let was = grant.function().unwrap();
        let mut world = before.clone();
        run(&mut world, &grant, &run_to);
        let steps = world.restore(was, &deaths);
        prop_assert!(steps.as_ref().is_ok_and(|steps| *steps <= MOST_STEPS), "{:?}", steps);
        prop_assert_eq!(&world, &expected(&before, was, &world));
        // Once more does nothing.
        prop_assert_eq!(restore(was, &world.inventory()), None);
    }

    #[test]
    fn libvirt_and_the_daemon_may_take_turns(
        (before, grant) in situations(false, true),
        run_to in runs(),
        after in 0usize..4,
        writes in 0usize..4,
    ) {
        let was = grant.function().unwrap();
        let mut world = before.clone();
        run(&mut world, &grant, &run_to);
        // libvirt is slow: it gives back while the daemon does already.
        for _ in 0..after {
            let Some(step) = restore(was, &world.inventory()) else { break };
            prop_assert_eq!(world.make(&step), Ok(()));
        }
        if world.function.driver.as_ref().is_some_and(is_vfio) && !before.function.driver.as_ref().is_some_and(is_vfio) {
            world.libvirt(false, None, writes);
        }
        let steps = world.restore(was, &[]);
        prop_assert!(steps.as_ref().is_ok_and(|steps| *steps <= MOST_STEPS), "{:?}", steps);
        prop_assert_eq!(&world, &expected(&before, was, &world));
    }

    #[test]
    fn what_somebody_else_has_made_of_it_stays(
        (before, grant) in situations(false, false),
        run_to in runs(),
        (binds, names) in select(vec![(true, true), (true, false), (false, true)]),
        deaths in proptest::collection::vec(0usize..4, 0..3),
    ) {
        let was = grant.function().unwrap();
        // libvirt's clearing of an override that was there looks the same as theirs.
        let names = names || was.managed && was.override_was.is_some();
        let mut world = before.clone();
        run(&mut world, &grant, &run_to);
        let found = world.function.driver.clone();
        if binds {
            world.function.driver = Some(driver("dpdk"));
        }
        if names {
            world.function.driver_override = Some(driver("dpdk"));
        } else {
            // With an override for another driver theirs could not be bound.
            world.function.driver_override = None;
        }
        let steps = world.restore(was, &deaths);
        prop_assert!(steps.as_ref().is_ok_and(|steps| *steps <= MOST_STEPS), "{:?}", steps);
        if binds {
            prop_assert_eq!(&world.function.driver, &Some(driver("dpdk")));
        } else if found != was.driver_was && found.as_ref().is_some_and(is_vfio) {
            prop_assert_eq!(&world.function.driver, &None, "their override says what comes next");
        } else {
            prop_assert_eq!(&world.function.driver, &found);
        }
        let override_now = if names { Some(driver("dpdk")) } else { was.override_was.clone() };
        prop_assert_eq!(&world.function.driver_override, &override_now);
        // What it had of the physical function comes back all the same.
        prop_assert_eq!(&world.pf, &expected(&before, was, &world).pf);
    }

    #[test]
    fn only_a_driver_for_vms_is_ever_taken_away(
        (before, grant) in situations(true, false),
        now in drivers(),
        other in proptest::option::of(select(vec!["dpdk", "nvidia", "mlx5_vfio_pci"])),
        override_now in drivers(),
    ) {
        let was = grant.function().unwrap();
        let mut world = before;
        world.function.driver = other.map(driver).or(now);
        world.function.driver_override = override_now;
        let by_libvirt = was.managed && was.override_was.is_some() && world.function.driver_override.is_none();
        if let Some(Step::Unbind { .. }) = restore(was, &world.inventory()) {
            let taken = world.function.driver.as_ref().unwrap();
            prop_assert!(is_vfio(taken) || by_libvirt, "{}", taken);
            prop_assert!(Some(taken) != was.driver_was.as_ref(), "{}", taken);
        }
    }

    #[test]
    fn prepare_gives_what_was_asked_for((before, grant) in situations(true, false)) {
        let was = grant.function().unwrap();
        let mut world = before;
        world.prepare(&grant, usize::MAX);
        if let Some(driver) = &was.driver {
            prop_assert_eq!(world.function.driver.as_ref(), Some(driver));
        } else {
            prop_assert_eq!(&world.function.driver, &was.driver_was, "that is left to libvirt");
        }
        if let Some(vgpu) = &world.function.vgpu {
            prop_assert_eq!((vgpu.current, was.vgpu_type.is_some()), (was.vgpu_type, true));
        }
        if let Some(vf) = &was.vf {
            prop_assert!(vf.set.changed_from(&world.settings()).is_empty());
        }
    }
}
