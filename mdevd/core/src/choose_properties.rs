//! The rules of a choice, held against hosts, claims and needs of every kind.

use super::*;
use alloc::collections::BTreeMap;
use proptest::prelude::*;

const PARENTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const TYPES: [&str; 3] = ["t0", "t1", "t2"];

fn settings() -> impl Strategy<Value = Setting> {
    let offered = proptest::collection::btree_map(0..TYPES.len(), (0u32..4, any::<bool>()), 0..=TYPES.len());
    let one = (offered, proptest::option::of(0u32..2), proptest::bool::weighted(0.15));
    let few = || proptest::collection::btree_set(0..PARENTS.len(), 0..2);
    let claims =
        proptest::collection::vec((0..PARENTS.len(), 0..TYPES.len(), 0u8..5, any::<bool>(), any::<bool>()), 0..6);
    (proptest::collection::vec(one, 0..=PARENTS.len()), few(), few(), any::<bool>(), claims).prop_map(
        |(parents, excluded, refused, spread, claims)| {
            let mut host = Host::default();
            let count = parents.len();
            for (name, (types, node, stuck)) in PARENTS.iter().zip(parents) {
                host = host.parent(name);
                if let Some(node) = node {
                    host = host.numa(node);
                }
                if stuck {
                    host = host.stuck("hangs");
                }
                for (id, (available, pci)) in types {
                    host = host.offers_api(TYPES[id], available, if pci { "vfio-pci" } else { "vfio-ap" });
                }
                let made = claims.iter().enumerate().filter(|(_, (p, _, _, made, _))| *made && PARENTS[*p] == *name);
                for (n, (_, id, ..)) in made {
                    host = host.mdev(100 + n as u32, TYPES[*id]);
                }
            }
            let mut setting = Setting::of(host);
            setting.excluded = excluded.into_iter().map(|i| parent(PARENTS[i])).collect();
            setting.refused =
                refused.into_iter().filter(|i| *i < count).map(|i| (parent(PARENTS[i]), "ENOSPC".into())).collect();
            setting.placement = if spread { Placement::Spread } else { Placement::Pack };
            for (n, (p, id, state, _, keep)) in claims.into_iter().enumerate() {
                use ClaimState::{Failed, Planned, Preparing, Ready, Releasing};
                let state = [Planned, Preparing, Ready, Releasing, Failed][usize::from(state)];
                let undo = if keep { Undo::Keep } else { Undo::Remove };
                setting.claims.push(claim(
                    domain(n as u32, "vm"),
                    state,
                    [grant(100 + n as u32, PARENTS[p], TYPES[id], undo)],
                ));
            }
            setting
        },
    )
}

fn needs() -> impl Strategy<Value = MdevNeed> {
    let only = proptest::option::weighted(0.2, 0..PARENTS.len());
    let model = proptest::option::weighted(0.4, prop_oneof![Just("vfio-pci"), Just("vfio-ap")]);
    (0..TYPES.len(), only, proptest::option::weighted(0.3, 0u32..2), model).prop_map(|(id, only, node, model)| {
        MdevNeed {
            wanted: Wanted::Type { mdev_type: mdev_type(TYPES[id]), parent: only.map(|i| parent(PARENTS[i])) },
            numa_node: node.map(NumaNode),
            model: model.map(Into::into),
            ..need(1, TYPES[id])
        }
    })
}

/// What the rules say about one parent, said a second time in the plainest way: `None` where it may not be touched at all, else how many
/// instances are to be had without a doubt.
fn allowed(setting: &Setting, need: &MdevNeed, name: &ParentName) -> Option<u32> {
    let Wanted::Type { mdev_type, parent: only } = &need.wanted else { return None };
    let found = setting.inventory.parent(name)?;
    let offered = found.types.get(mdev_type)?;
    let wrong = only.as_ref().is_some_and(|only| only != name)
        || setting.excluded.contains(name)
        || found.state != DeviceState::Ok
        || setting.refused.iter().any(|(refused, _)| refused == name)
        || need.model.as_ref().is_some_and(|model| *model != offered.device_api)
        || need.numa_node.is_some_and(|node| found.numa_node != Some(node));
    if wrong {
        return None;
    }
    let mut left = offered.available;
    for claim in &setting.claims {
        for grant in &claim.grants {
            let coming = matches!(claim.state, ClaimState::Planned | ClaimState::Preparing | ClaimState::Ready)
                && grant.undo == Undo::Remove
                && !setting.inventory.has(grant.key());
            let mdev = grant.mdev().unwrap();
            if coming && mdev.parent == *name && mdev.mdev_type == *mdev_type {
                left = left.saturating_sub(1);
            }
        }
    }
    Some(left)
}

proptest! {
    #[test]
    fn the_choice_keeps_every_rule(setting in settings(), need in needs()) {
        let choice = setting.choose(&need);
        // Each parent once, something chosen or a reason.
        let listed: BTreeSet<&ParentName> = choice.candidates.iter().map(|c| &c.parent).collect();
        prop_assert_eq!(listed.len(), choice.candidates.len());
        prop_assert_eq!(listed, setting.inventory.parents().map(|p| &p.name).collect());
        prop_assert_eq!(choice.chosen().is_some(), choice.refusal.is_none());
        if let Some(refusal) = &choice.refusal {
            prop_assert!(!refusal.message.is_empty());
        }

        let allowed: BTreeMap<&ParentName, u32> =
            setting.inventory.parents().filter_map(|p| Some((&p.name, allowed(&setting, &need, &p.name)?))).collect();
        for candidate in &choice.candidates {
            let left = allowed.get(&candidate.parent).copied();
            match &candidate.verdict {
                Verdict::Possible => prop_assert!(left.is_some_and(|left| left > 0), "{:?}", candidate),
                Verdict::LastResort(_) => prop_assert_eq!(left, Some(0), "{:?}", candidate),
                Verdict::Refused(_) => prop_assert!(left.is_none_or(|left| left == 0), "{:?}", candidate),
            }
        }
        // Nothing that would do is passed over, and the one taken is the one the placement asks for.
        let best = allowed.values().copied().filter(|left| *left > 0);
        let best = if setting.placement == Placement::Pack { best.min() } else { best.max() };
        if let Some(best) = best {
            let chosen = choice.chosen().map(|c| &c.parent);
            prop_assert_eq!(chosen.and_then(|c| allowed.get(c)).copied(), Some(best));
            prop_assert_eq!(chosen, allowed.iter().find(|(_, left)| **left == best).map(|(name, _)| *name), "the first by name");
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(setting in settings(), need in needs()) {
        let mut other = setting.clone();
        other.claims.reverse();
        other.inventory = Inventory::new({
            let mut scans: Vec<_> = setting.inventory.parents().map(|p| crate::fixtures::scan_of(&setting.inventory, &p.name)).collect();
            scans.reverse();
            scans
        });
        let (first, second) = (setting.choose(&need), other.choose(&need));
        prop_assert_eq!(first.chosen(), second.chosen());
        prop_assert_eq!(ranking(&first), ranking(&second));
    }

    #[test]
    fn promises_never_exceed_what_is_left(mut setting in settings(), need in needs()) {
        let before: BTreeMap<ParentName, u32> = setting
            .inventory
            .parents()
            .map(|p| (p.name.clone(), allowed(&setting, &need, &p.name).unwrap_or(0)))
            .collect();
        let Wanted::Type { mdev_type, .. } = &need.wanted else { unreachable!("needs() asks for types") };
        let mut promised: BTreeMap<ParentName, u32> = BTreeMap::new();
        let mut next = 1000;
        while let Some(chosen) = setting.choose(&need).chosen().filter(|c| c.verdict == Verdict::Possible) {
            *promised.entry(chosen.parent.clone()).or_default() += 1;
            next += 1;
            let grant = grant(next, chosen.parent.as_str(), mdev_type.as_str(), Undo::Remove);
            setting.claims.push(claim(domain(next, "vm"), ClaimState::Planned, [grant]));
            prop_assert!(next < 1100, "no end");
        }
        // All of it is given away, and not one more.
        prop_assert_eq!(promised, before.into_iter().filter(|(_, left)| *left > 0).collect());
    }

    #[test]
    fn a_call_ends_with_each_parent_tried_at_most_once(mut setting in settings(), need in needs()) {
        let mut tried = BTreeSet::new();
        while let Some(chosen) = setting.choose(&need).chosen().cloned() {
            prop_assert!(tried.insert(chosen.parent.clone()), "{} a second time", chosen.parent);
            setting.refused.push((chosen.parent, "EAGAIN".into()));
        }
    }
}
