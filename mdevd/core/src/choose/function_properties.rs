//! The rules of a choice, held against hosts of every kind on which one VM after the other starts.

use super::*;
use alloc::collections::{BTreeMap, BTreeSet};
use proptest::prelude::*;
use proptest::sample::select;

const BUSES: u8 = 3;

/// What is said of one function.
#[derive(Debug, Clone)]
struct Trait {
    group: Option<u32>,
    driver: Option<&'static str>,
    bridge: bool,
    critical: bool,
    stuck: bool,
    node: Option<u32>,
}

fn traits() -> impl Strategy<Value = Trait> {
    let rare = || proptest::bool::weighted(0.08);
    let drivers =
        select(vec![None, Some("nvme"), Some("igbvf"), Some("vfio-pci"), Some("pcieport"), Some("mlx5_vfio_pci")]);
    let group = proptest::option::weighted(0.9, 0u32..9);
    (group, drivers, rare(), rare(), rare(), proptest::option::of(0u32..2)).prop_map(
        |(group, driver, bridge, critical, stuck, node)| Trait { group, driver, bridge, critical, stuck, node },
    )
}

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress { domain: 0, bus, device, function }
}

fn shaped(shape: &Trait, function: Function) -> Function {
    Function {
        iommu_group: shape.group.map(crate::names::IommuGroupId),
        driver: shape.driver.map(driver),
        bridge: shape.bridge,
        host_critical: if shape.critical { vec!["carries /".into()] } else { vec![] },
        state: if shape.stuck { DeviceState::Stuck("it hangs".into()) } else { DeviceState::Ok },
        numa_node: shape.node.map(NumaNode),
        ..function
    }
}

/// Hosts with a card of two functions and a physical function with up to three virtual ones on each bus.
fn hosts() -> impl Strategy<Value = Vec<Function>> {
    let bus =
        (proptest::collection::vec(traits(), 2), traits(), proptest::collection::vec(traits(), 0..=3), any::<bool>());
    proptest::collection::vec(bus, usize::from(BUSES)).prop_map(|buses| {
        let mut functions = Vec::new();
        for (bus, (card, pf, vfs, netdev)) in (1..).zip(buses) {
            for (n, shape) in (0..).zip(&card) {
                functions.push(shaped(shape, function(&at(bus, 0, n).to_string(), 0)));
            }
            let pf_at = at(bus, 1, 0).to_string();
            let names: Vec<String> = (0..vfs.len()).map(|n| at(bus, 2, n as u8).to_string()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let netdevs = if netdev { vec![Netdev { name: "enp".into(), mac: None }] } else { vec![] };
            functions.push(shaped(&pf, Function { netdevs, ..physical(&pf_at, 0, &names) }));
            for (n, (name, shape)) in (0..).zip(names.iter().zip(&vfs)) {
                functions.push(shaped(shape, virtual_function(name, 0, &pf_at, n)));
            }
        }
        functions
    })
}

fn needs() -> impl Strategy<Value = FunctionNeed> {
    let address = || (1..=BUSES, 0u8..3, 0u8..3).prop_map(|(bus, device, function)| at(bus, device, function));
    let kind = select(vec![None, Some(FunctionKind::Vf), Some(FunctionKind::Pci)]);
    let ids = select(vec![None, Some((0x8086, 0x10ca)), Some((0x8086, 0x10c9)), Some((0x8086, 0x0a54))]);
    let pf = proptest::option::weighted(0.2, address());
    let wanted = prop_oneof![
        3 => address().prop_map(WantedFunction::Address),
        1 => address().prop_map(|address| WantedFunction::Card(address.card())),
        2 => (kind, ids, pf).prop_map(|(kind, ids, pf)| WantedFunction::Any { kind, ids, pf }),
    ];
    let node = proptest::option::weighted(0.15, 0u32..2);
    (wanted, node, proptest::bool::weighted(0.2)).prop_map(|(wanted, node, trust)| {
        let mut need = FunctionNeed { numa_node: node.map(NumaNode), ..function_need(wanted) };
        need.options.set.trust = trust.then_some(true);
        need
    })
}

fn settings() -> impl Strategy<Value = (Setting, Vec<Vec<FunctionNeed>>)> {
    let vms = proptest::collection::vec(proptest::collection::vec(needs(), 1..4), 0..6);
    (hosts(), any::<bool>(), vms).prop_map(|(functions, spread, vms)| {
        let placement = if spread { Placement::Spread } else { Placement::Pack };
        (Setting { placement, ..Setting::of(functions) }, vms)
    })
}

fn fixed(needs: &[FunctionNeed]) -> BTreeSet<PciAddress> {
    let address = |need: &FunctionNeed| match need.wanted {
        WantedFunction::Address(address) => Some(address),
        _ => None,
    };
    needs.iter().filter_map(address).collect()
}

impl Setting {
    /// A VM starts: all that it needs, or nothing.
    fn start(&mut self, n: u32, needs: &[FunctionNeed]) -> bool {
        let together = fixed(needs);
        self.claims.push(claim(domain(n, "vm"), ClaimState::Planned, []));
        for need in needs {
            let choice = self.choose(need, &together);
            if choice.refusal.is_some() {
                self.claims.pop();
                return false;
            }
            for address in choice.chosen(&need.wanted) {
                let function = self.inventory.function(&address).unwrap();
                let grant = grant_function(&self.inventory, need, &need.name, function);
                self.claims.last_mut().unwrap().grants.push(grant);
            }
        }
        true
    }

    /// Who has each promised function, by the number of the claim.
    fn owners(&self) -> Vec<(PciAddress, usize)> {
        let granted = |(n, claim): (usize, &Claim)| {
            claim.grants.iter().filter_map(Grant::function).map(move |f| (f.address, n)).collect::<Vec<_>>()
        };
        self.claims.iter().enumerate().flat_map(granted).collect()
    }

    /// What the rules say about one function that goes to nobody else's VM, said a second time in the plainest way.
    fn allowed(&self, need: &FunctionNeed, f: &Function, together: &BTreeSet<PciAddress>) -> bool {
        let owners = self.owners();
        let promised = |address: PciAddress| owners.iter().any(|(owned, _)| *owned == address);
        let related = match &f.role {
            Role::Pf(physical) => physical.num_vfs() > 0,
            Role::Vf { pf, .. } => {
                promised(*pf) || self.inventory.function(pf).is_some_and(|pf| pf.state != DeviceState::Ok)
            }
            Role::Pci => false,
        };
        let group_is_free = f.iommu_group.is_some_and(|group| {
            self.inventory.functions().filter(|m| m.iommu_group == Some(group) && m.address != f.address).all(|m| {
                let idle =
                    m.driver.as_ref().is_none_or(|d| ["vfio-pci", "mlx5_vfio_pci", "pcieport"].contains(&d.as_str()));
                m.bridge || together.contains(&m.address) || !promised(m.address) && m.host_critical.is_empty() && idle
            })
        });
        let settable = need.options.set.is_empty()
            || matches!(f.role, Role::Vf { pf, .. } if self.inventory.function(&pf).is_some_and(|pf| !pf.netdevs.is_empty()));
        !f.bridge
            && f.host_critical.is_empty()
            && f.state == DeviceState::Ok
            && !promised(f.address)
            && !related
            && group_is_free
            && need.numa_node.is_none_or(|node| f.numa_node == Some(node))
            && settable
    }
}

/// Addresses and what is thought of them, without the words.
fn outline(choice: &FunctionChoice) -> Vec<(PciAddress, u8, Option<Reason>)> {
    let of = |candidate: &FunctionCandidate| match &candidate.verdict {
        Verdict::Possible => (candidate.address, 0, None),
        Verdict::LastResort(refusal) => (candidate.address, 1, Some(refusal.reason)),
        Verdict::Refused(refusal) => (candidate.address, 2, Some(refusal.reason)),
    };
    choice.candidates.iter().map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_gets_what_another_one_has((mut setting, vms) in settings()) {
        for (n, needs) in (0..).zip(&vms) {
            setting.start(n, needs);
        }
        let owners = setting.owners();
        let of: BTreeMap<PciAddress, usize> = owners.iter().copied().collect();
        prop_assert_eq!(of.len(), owners.len(), "a function is promised once");
        let mut groups = BTreeMap::new();
        for (address, owner) in &of {
            let function = setting.inventory.function(address).unwrap();
            prop_assert!(!function.bridge && function.host_critical.is_empty() && function.state == DeviceState::Ok);
            if let Role::Vf { pf, .. } = function.role {
                prop_assert!(!of.contains_key(&pf), "{} and its physical function", address);
            }
            let group = function.iommu_group.unwrap();
            prop_assert_eq!(*groups.entry(group).or_insert(*owner), *owner, "{} of {}", address, group);
            for member in setting.inventory.group_members(group).filter(|m| !m.bridge && of.get(&m.address) != Some(owner)) {
                let driver = member.driver.as_ref().map(|driver| driver.as_str());
                prop_assert!(!matches!(driver, Some("nvme" | "igbvf")), "{} is with the host's {}", address, member.address);
                prop_assert!(member.host_critical.is_empty());
            }
        }
    }

    #[test]
    fn the_choice_keeps_every_rule((mut setting, vms) in settings(), need in needs()) {
        for (n, needs) in (0..).zip(&vms) {
            setting.start(n, needs);
        }
        let mut together = fixed(core::slice::from_ref(&need));
        let choice = setting.choose(&need, &together);
        let chosen = choice.chosen(&need.wanted);
        // Each function at most once; something chosen, or a reason.
        let listed: BTreeSet<PciAddress> = choice.candidates.iter().map(|c| c.address).collect();
        prop_assert_eq!(listed.len(), choice.candidates.len());
        prop_assert_eq!(chosen.is_empty(), choice.refusal.is_some());
        for refusal in choice.refusal.iter().chain(choice.candidates.iter().filter_map(|c| refusal_of(&c.verdict))) {
            prop_assert!(!refusal.message.is_empty() && !refusal.message.chars().any(char::is_control), "{:?}", refusal);
        }
        if let WantedFunction::Card(_) = need.wanted {
            together.extend(listed.iter().copied());
        }
        let mut may = BTreeSet::new();
        for candidate in &choice.candidates {
            let function = setting.inventory.function(&candidate.address).unwrap();
            let allowed = setting.allowed(&need, function, &together);
            prop_assert_eq!(candidate.verdict == Verdict::Possible, allowed, "{:?}", candidate);
            may.extend(allowed.then_some(candidate.address));
        }
        match need.wanted {
            WantedFunction::Address(address) => prop_assert_eq!(chosen, Vec::from_iter(may.get(&address).copied())),
            WantedFunction::Card(_) if may.len() < listed.len() => prop_assert_eq!(chosen, []),
            WantedFunction::Card(_) => prop_assert_eq!(chosen, Vec::from_iter(may)),
            WantedFunction::Any { .. } => {
                // The one taken is the one that the placement asks for, and of equals the first.
                let owners = setting.owners();
                let taken = |address: &PciAddress| match setting.inventory.function(address).unwrap().role {
                    Role::Vf { pf, .. } => {
                        setting.inventory.vfs_of(pf).filter(|vf| owners.iter().any(|(a, _)| *a == vf.address)).count()
                    }
                    _ => 0,
                };
                let best = if setting.placement == Placement::Pack {
                    may.iter().map(taken).max()
                } else {
                    may.iter().map(taken).min()
                };
                let first = may.iter().find(|address| Some(taken(address)) == best);
                prop_assert_eq!(chosen, Vec::from_iter(first.copied()));
            }
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer((mut setting, vms) in settings(), need in needs()) {
        for (n, needs) in (0..).zip(&vms) {
            setting.start(n, needs);
        }
        let functions: Vec<Function> = setting.inventory.functions().map(|f| Function::clone(f)).collect();
        let other = Setting {
            claims: setting.claims.iter().rev().cloned().collect(),
            placement: setting.placement,
            ..Setting::of(functions.into_iter().rev())
        };
        let (first, second) = (setting.choose(&need, &BTreeSet::new()), other.choose(&need, &BTreeSet::new()));
        prop_assert_eq!(outline(&first), outline(&second));
        prop_assert_eq!(first.chosen(&need.wanted), second.chosen(&need.wanted));
        prop_assert_eq!(first.refusal.map(|r| r.message), second.refusal.map(|r| r.message));
    }

    #[test]
    fn a_host_gives_all_it_has_to_who_asks_again_and_again(functions in hosts()) {
        let mut setting = Setting::of(functions);
        let any = function_need(WantedFunction::Any { kind: None, ids: None, pf: None });
        let mut n = 0;
        while setting.start(n, core::slice::from_ref(&any)) {
            n += 1;
            prop_assert!(n < 100, "no end");
        }
        // Nothing that the rules allow is left.
        let left = setting.inventory.functions().filter(|f| !matches!(f.role, Role::Pf(_)));
        for function in left {
            prop_assert!(!setting.allowed(&any, function, &BTreeSet::from([function.address])), "{}", function.address);
        }
    }
}
