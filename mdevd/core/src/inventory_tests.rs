//! What changed keeps no trace of what was, and what did not change keeps its identity.

use super::*;
use crate::fixtures::{Host, mdev_type, parent, uuid};
use alloc::collections::BTreeSet;
use alloc::vec;
use proptest::prelude::*;

fn host() -> Host {
    Host::default().parent("p").offers("t", 3).mdev(1, "t").mdev(2, "t").parent("q").offers("t", 4).mdev(3, "t")
}

#[test]
fn an_equal_look_keeps_every_identity() {
    let first = host().inventory();
    let mut second = first.clone();
    for scan in host().scans() {
        second.update(scan.clone());
    }
    assert!(first.parents().zip(second.parents()).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert!(first.mdevs().zip(second.mdevs()).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert_eq!((second.parents().count(), second.mdevs().count()), (2, 3));

    // A changed one is new, its neighbours are not.
    let mut changed = host().scans()[0].clone();
    changed.parent.types.get_mut(&mdev_type("t")).unwrap().available = 2;
    changed.mdevs[1].mdev_type = None;
    second.update(changed);
    let same_parent =
        |name: &str| Arc::ptr_eq(first.parent(&parent(name)).unwrap(), second.parent(&parent(name)).unwrap());
    let same_mdev = |n: u32| Arc::ptr_eq(first.mdev(&uuid(n)).unwrap(), second.mdev(&uuid(n)).unwrap());
    assert_eq!((same_parent("p"), same_parent("q")), (false, true));
    assert_eq!((same_mdev(1), same_mdev(2), same_mdev(3)), (true, false, true));
    assert_eq!(second.mdev(&uuid(2)).unwrap().mdev_type, None);
}

#[test]
fn a_look_at_one_count_changes_that_count() {
    let before = host().inventory();
    let mut after = before.clone();
    after.set_available(&parent("p"), &mdev_type("t"), 3);
    after.set_available(&parent("p"), &mdev_type("other"), 1);
    after.set_available(&parent("other"), &mdev_type("t"), 1);
    assert!(before.parents().zip(after.parents()).all(|(a, b)| Arc::ptr_eq(a, b)), "nothing is new");

    after.set_available(&parent("p"), &mdev_type("t"), 2);
    let available =
        |inventory: &Inventory| inventory.parents().map(|p| p.types[&mdev_type("t")].available).collect::<Vec<_>>();
    assert_eq!((available(&before), available(&after)), (vec![3, 4], vec![2, 4]));
}

#[test]
fn what_a_look_no_longer_finds_is_gone_and_nothing_else() {
    let mut inventory = host().inventory();
    let mut scan = host().scans()[0].clone();
    scan.mdevs.remove(0);
    inventory.update(scan);
    let left = |inventory: &Inventory| inventory.mdevs().map(|m| m.uuid).collect::<Vec<_>>();
    assert_eq!(left(&inventory), [uuid(2), uuid(3)]);
    assert_eq!(inventory.mdevs_on(&parent("p")).map(|m| m.uuid).collect::<Vec<_>>(), [uuid(2)]);

    inventory.remove_parent(&parent("p"));
    assert_eq!(left(&inventory), [uuid(3)]);
    assert_eq!(inventory.parents().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["q"]);
    inventory.remove_parent(&parent("never there"));
    assert_eq!(left(&inventory), [uuid(3)]);
}

#[test]
fn a_uuid_that_moved_to_another_parent_is_where_it_was_seen_last() {
    let mut inventory = host().inventory();
    let mut moved = host().scans()[1].clone();
    moved.mdevs = vec![Mdev { uuid: uuid(1), ..moved.mdevs[0].clone() }];
    inventory.update(moved);
    assert_eq!(inventory.mdev(&uuid(1)).unwrap().parent, parent("q"));
    // The old parent, looked at later, does not take it along.
    let mut old = host().scans()[0].clone();
    old.mdevs.remove(0);
    inventory.update(old);
    assert_eq!(inventory.mdev(&uuid(1)).unwrap().parent, parent("q"));
}

#[test]
fn stuck_marks_last_until_the_next_look() {
    let mut inventory = host().inventory();
    let before = inventory.clone();
    inventory.mark_parent_stuck(&parent("p"), "a read does not come back");
    let stuck = DeviceState::Stuck("a read does not come back".into());
    assert_eq!(inventory.parent(&parent("p")).unwrap().state, stuck);
    assert!(inventory.mdevs().all(|mdev| mdev.state == DeviceState::Ok));
    assert_eq!(inventory.parent(&parent("q")).unwrap().state, DeviceState::Ok);
    assert_eq!(before, host().inventory(), "the picture taken before is not touched");

    inventory.update(host().scans()[0].clone());
    assert_eq!(inventory, before);

    inventory.mark_mdev_stuck(&uuid(3), "its removal hangs");
    assert_eq!(inventory.mdev(&uuid(3)).unwrap().state.as_str(), "stuck");
    assert_eq!(inventory.parent(&parent("q")).unwrap().state.as_str(), "ok");
    inventory.mark_mdev_stuck(&uuid(99), "not there");
    inventory.mark_parent_stuck(&parent("r"), "not there");
    assert_eq!((inventory.parents().count(), inventory.mdevs().count()), (2, 3));
}

#[test]
fn a_look_at_one_device() {
    let first = host().inventory();
    let mut inventory = first.clone();
    let one = |inventory: &Inventory| inventory.mdev(&uuid(1)).cloned().unwrap();
    inventory.insert_mdev(Mdev::clone(&one(&first)));
    assert!(Arc::ptr_eq(&one(&first), &one(&inventory)), "what is equal keeps its identity");
    inventory.insert_mdev(Mdev { mdev_type: None, ..Mdev::clone(&one(&first)) });
    assert_eq!(one(&inventory).mdev_type, None);
    assert_eq!(inventory.mdevs().count(), 3);
    inventory.remove_mdev(&uuid(1));
    inventory.remove_mdev(&uuid(1));
    assert_eq!(inventory.mdevs().map(|m| m.uuid).collect::<Vec<_>>(), [uuid(2), uuid(3)]);
    inventory.insert_mdev(Mdev::clone(&one(&first)));
    assert_eq!(inventory, first);
}

proptest! {
    #[test]
    fn the_last_look_at_each_parent_is_the_picture(
        looks in proptest::collection::vec((0usize..3, proptest::collection::btree_set(0u32..5, 0..4), 0u32..3), 0..12)
    ) {
        // Each parent has UUIDs of its own, as the kernel has it at any one moment.
        let scan = |p: usize, mdevs: &BTreeSet<u32>, available: u32| {
            let mut host = Host::default().parent(["p", "q", "r"][p]).offers("t", available);
            for n in mdevs {
                host = host.mdev(p as u32 * 10 + n, "t");
            }
            host.scans()[0].clone()
        };
        let mut inventory = Inventory::default();
        let mut last = BTreeMap::new();
        for (p, mdevs, available) in &looks {
            inventory.update(scan(*p, mdevs, *available));
            last.insert(*p, scan(*p, mdevs, *available));
        }
        prop_assert_eq!(inventory, Inventory::new(last.into_values()));
    }
}
