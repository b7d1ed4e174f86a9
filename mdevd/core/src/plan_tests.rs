//! Plans against a model of the kernel that, like the real one, refuses what cannot be: whatever the point at which the daemon dies,
//! the host comes out as it went in.

use super::*;
use crate::fixtures::{Host, grant, grant_with, mdev_type, parent, scan_of, uuid};
use crate::inventory::{DeviceState, Mdev};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// The model: what exists, and which attributes were written.
#[derive(Debug, Clone, PartialEq)]
struct World {
    inventory: Inventory,
    attributes: BTreeMap<(MdevUuid, String), String>,
}

impl World {
    fn apply(&mut self, step: &Step) -> Result<(), &'static str> {
        match step {
            Step::Create { parent, mdev_type, uuid } => {
                if self.inventory.mdev(uuid).is_some() {
                    return Err("EEXIST");
                }
                let mut scan =
                    self.inventory.parent(parent).map(|_| scan_of(&self.inventory, parent)).ok_or("ENOENT")?;
                scan.mdevs.push(Mdev {
                    uuid: *uuid,
                    parent: parent.clone(),
                    mdev_type: Some(mdev_type.clone()),
                    device_api: "vfio-pci".into(),
                    iommu_group: None,
                    numa_node: None,
                    driver: None,
                    state: DeviceState::Ok,
                });
                self.inventory.update(scan);
            }
            Step::SetAttribute { uuid, name, value, .. } => {
                self.inventory.mdev(uuid).ok_or("ENOENT")?;
                self.attributes.insert((*uuid, name.clone()), value.clone());
            }
            Step::Remove { uuid, .. } => {
                let parent = self.inventory.mdev(uuid).map(|mdev| mdev.parent.clone()).ok_or("ENOENT")?;
                let mut scan = scan_of(&self.inventory, &parent);
                scan.mdevs.retain(|mdev| mdev.uuid != *uuid);
                self.inventory.update(scan);
                self.attributes.retain(|(owner, _), _| owner != uuid);
            }
            _ => unreachable!("the grants of these tests are mediated devices"),
        }
        Ok(())
    }

    /// Carries a plan on from where its record says it is, as the daemon does, for at most `writes` writes; dies before the mark of the
    /// last one when `unmarked`.
    fn carry_on(&mut self, plan: &mut Plan, mut writes: usize, unmarked: bool) -> Result<(), &'static str> {
        while let Some(step) = plan.next() {
            if !step.already_done(&self.inventory) {
                if writes == 0 {
                    return Ok(());
                }
                self.apply(step)?;
                writes -= 1;
                if writes == 0 && unmarked {
                    return Ok(());
                }
                assert!(
                    step.already_done(&self.inventory) || matches!(step, Step::SetAttribute { .. }),
                    "{step}: not read back"
                );
            }
            plan.done += 1;
        }
        Ok(())
    }
}

const ALL: usize = usize::MAX;

fn world(foreign: &[u32]) -> World {
    let mut host = Host::default().parent("p").offers("t", 9);
    for n in foreign.iter().filter(|n| *n % 2 == 0) {
        host = host.mdev(*n, "t");
    }
    host = host.parent("q").offers("t", 9);
    for n in foreign.iter().filter(|n| *n % 2 == 1) {
        host = host.mdev(*n, "t");
    }
    World { inventory: host.inventory(), attributes: BTreeMap::new() }
}

/// Foreign devices, some of them kept by the claim, and devices that the claim makes.
fn situations(least_made: usize) -> impl Strategy<Value = (World, Vec<Grant>)> {
    let attributes = || proptest::collection::vec(("[a-c]", "[0-9]{0,2}"), 0..3);
    let kept = proptest::collection::btree_set(0u32..6, 0..4);
    let made = proptest::collection::vec((any::<bool>(), attributes()), least_made..4);
    (kept, any::<bool>(), made, any::<prop::sample::Index>()).prop_map(|(foreign, keep, made, turn)| {
        let foreign: Vec<u32> = foreign.into_iter().collect();
        let on = |q: bool| if q { "q" } else { "p" };
        let mut grants: Vec<Grant> = Vec::new();
        if keep {
            grants.extend(foreign.iter().map(|n| grant(*n, on(n % 2 == 1), "t", Undo::Keep)));
        }
        for (i, (q, attributes)) in made.into_iter().enumerate() {
            grants.push(grant_with(100 + i as u32, on(q), "t", attributes));
        }
        // Kept and made ones in any order.
        if !grants.is_empty() {
            let by = turn.index(grants.len());
            grants.rotate_left(by);
        }
        (world(&foreign), grants)
    })
}

#[test]
fn a_plan_in_words_and_writes() {
    let attributes =
        vec![("nvidia/vgpu_params".into(), "frl=0".into()), ("a".into(), "1".into()), ("a".into(), "2".into())];
    let first = grant_with(1, "p", "t", attributes);
    let grants = [first, grant(2, "q", "t", Undo::Keep), grant(3, "q", "u", Undo::Remove)];
    let (one, three) = (uuid(1), uuid(3));
    let words = |plan: &Plan| plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        words(&Plan::prepare(&grants)),
        [
            format!("create {one} of type t on p"),
            format!("set nvidia/vgpu_params of {one} to 'frl=0'"),
            format!("set a of {one} to '1'"),
            format!("set a of {one} to '2'"),
            format!("create {three} of type u on q"),
        ]
    );
    assert_eq!(words(&Plan::release(&grants)), [format!("remove {three} from q"), format!("remove {one} from p")]);

    let prepare = Plan::prepare(&grants);
    let inventory = Host::default().parent("p").inventory();
    let file = |path: String, value: String| Ok(Write::File { path, value });
    let writes: Vec<_> = prepare.steps.iter().take(2).map(|step| step.write(&inventory)).collect();
    assert_eq!(
        writes,
        [
            file("devices/virtual/p/mdev_supported_types/t/create".into(), one.to_string()),
            file(format!("bus/mdev/devices/{one}/nvidia/vgpu_params"), "frl=0".into()),
        ]
    );
    assert_eq!(prepare.steps[4].write(&inventory), Err("the parent q is gone".into()));
    let remove = &Plan::release(&grants).steps[1];
    assert_eq!(remove.write(&Inventory::default()), file(format!("bus/mdev/devices/{one}/remove"), "1".into()));
    let about = |step: &Step| (step.parent().cloned(), step.device(), step.lock(&inventory));
    assert_eq!(about(remove), (Some(parent("p")), DeviceKey::Mdev(one), "p".into()));
    assert_eq!(about(&prepare.steps[1]), (Some(parent("p")), DeviceKey::Mdev(one), "p".into()));
    assert_eq!(about(&prepare.steps[4]), (Some(parent("q")), DeviceKey::Mdev(three), "q".into()));
}

#[test]
fn the_next_step_follows_what_is_done() {
    let mut plan = Plan::prepare(&[grant(1, "p", "t", Undo::Remove)]);
    assert_eq!(plan.next(), plan.steps.first());
    plan.done = 1;
    assert_eq!(plan.next(), None);
    // As a damaged file might have it.
    plan.done = usize::MAX;
    assert_eq!(plan.next(), None);
    assert_eq!(Plan::default().next(), None);
}

#[test]
fn what_counts_as_done() {
    let create = Step::Create { parent: parent("p"), mdev_type: mdev_type("t"), uuid: uuid(1) };
    let remove = Step::Remove { parent: parent("p"), uuid: uuid(1) };
    let set = Step::SetAttribute { parent: parent("p"), uuid: uuid(1), name: "a".into(), value: "1".into() };
    let host = |change: fn(Host) -> Host| change(Host::default().parent("p").offers("t", 1).offers("u", 1)).inventory();
    // (what is there, create is done, remove is done)
    let table = [
        (host(|host| host), false, true),
        (host(|host| host.mdev(1, "t")), true, false),
        (host(|host| host.mdev(2, "t")), false, true),
        // Another type: not ours to call done; that the write says EEXIST tells so.
        (host(|host| host.mdev(1, "u")), false, false),
        // Half removed.
        (host(|host| host.mdev(1, "t").mdev_is(|mdev| mdev.mdev_type = None)), false, false),
        // The UUID on another parent is another device: never removed for this one.
        (host(|host| host.parent("q").mdev(1, "t")), false, true),
    ];
    for (i, (inventory, created, removed)) in table.iter().enumerate() {
        assert_eq!(create.already_done(inventory), *created, "row {i}");
        assert_eq!(remove.already_done(inventory), *removed, "row {i}");
        assert!(!set.already_done(inventory), "row {i}: an attribute is written again");
    }
}

#[test]
fn steps_in_the_claim_file() {
    let plan = Plan::prepare(&[grant_with(1, "p", "t", vec![("a".into(), "1".into())])]);
    let u = uuid(1);
    assert_eq!(
        serde_json::to_string(&plan).unwrap(),
        format!(
            r#"{{"steps":[{{"op":"create","parent":"p","mdev_type":"t","uuid":"{u}"}},{{"op":"set-attribute","parent":"p","uuid":"{u}","name":"a","value":"1"}}],"done":0}}"#
        )
    );
    assert_eq!(
        serde_json::to_string(&Plan::release(&[grant(1, "p", "t", Undo::Remove)]).steps).unwrap(),
        format!(r#"[{{"op":"remove","parent":"p","uuid":"{u}"}}]"#)
    );
    assert!(serde_json::from_str::<Step>(r#"{"op":"explode","parent":"p"}"#).is_err());
    assert!(serde_json::from_str::<Step>(&format!(r#"{{"op":"remove","parent":"../p","uuid":"{u}"}}"#)).is_err());
}

#[test]
fn attributes_stay_inside_the_device() {
    for good in ["assign_adapter", "nvidia/vgpu_params", "a", "a.b-c_d/e"] {
        assert!(attribute_name_is_sound(good), "{good}");
    }
    let long = "x".repeat(256);
    for bad in [
        "",
        "/",
        "/etc/passwd",
        "../remove",
        "a/../b",
        "a/./b",
        "remove",
        "driver/unbind",
        "a//b",
        "a/",
        "a\n",
        "a b",
        "mdev_type/create",
        "uevent",
        "subsystem/uevent",
        "iommu_group/reserved_regions",
        "power/control",
        "vfio-dev/vfio0/dev",
        "grün",
        "a\0",
        &long,
    ] {
        assert!(!attribute_name_is_sound(bad), "{bad}");
    }
}

proptest! {
    #[test]
    fn release_undoes_prepare_step_for_step((_, grants) in situations(0)) {
        let created: Vec<DeviceKey> =
            Plan::prepare(&grants).steps.iter().filter(|s| matches!(s, Step::Create { .. })).map(Step::device).collect();
        let mut removed: Vec<DeviceKey> = Plan::release(&grants).steps.iter().map(Step::device).collect();
        removed.reverse();
        prop_assert_eq!(&created, &removed);
        for grant in grants.iter().filter(|grant| grant.undo == Undo::Keep) {
            prop_assert!(!created.contains(&grant.key()), "what is kept is not made and not removed");
        }
    }

    #[test]
    fn a_crash_at_any_point_loses_and_leaks_nothing(
        (before, grants) in situations(0),
        dies_after in 0usize..12,
        unmarked: bool,
        finishes: bool,
        undo_dies_after in 0usize..5,
        undo_unmarked: bool,
        forgets: bool,
    ) {
        let mut whole = before.clone();
        let mut plan = Plan::prepare(&grants);
        prop_assert_eq!(whole.carry_on(&mut plan, ALL, false), Ok(()));
        prop_assert_eq!(plan.done, plan.steps.len());

        // The daemon dies in prepare; what is on disk is the plan with its marks.
        let mut world = before.clone();
        let mut plan = Plan::prepare(&grants);
        prop_assert_eq!(world.carry_on(&mut plan, dies_after, unmarked), Ok(()));
        if finishes {
            // The next one completes it: no step fails, and it comes out as without the crash.
            prop_assert_eq!(world.carry_on(&mut plan, ALL, false), Ok(()));
            prop_assert_eq!(&world, &whole);
        }
        // Or undoes it, and dies again, with its marks or (before they were written) without.
        let mut undo = Plan::release(&grants);
        prop_assert_eq!(world.carry_on(&mut undo, undo_dies_after, undo_unmarked), Ok(()));
        if forgets {
            undo.done = 0;
        }
        prop_assert_eq!(world.carry_on(&mut undo, ALL, false), Ok(()));
        prop_assert_eq!(&world, &before);
        // Once more does nothing.
        prop_assert_eq!(world.carry_on(&mut Plan::release(&grants), 0, false), Ok(()));
        prop_assert_eq!(&world, &before);
    }

    #[test]
    fn a_device_of_another_parent_that_took_the_uuid_survives((before, grants) in situations(1), victim: prop::sample::Index) {
        let made: Vec<&Grant> = grants.iter().filter(|grant| grant.undo == Undo::Remove).collect();
        let victim = made[victim.index(made.len())].mdev().unwrap();
        let elsewhere = parent(if victim.parent.as_str() == "p" { "q" } else { "p" });
        let mut world = before;
        // Somebody makes it by hand between our look and our write.
        world.apply(&Step::Create { parent: elsewhere, mdev_type: mdev_type("t"), uuid: victim.uuid }).unwrap();
        let with_foreign = world.clone();
        prop_assert_eq!(world.carry_on(&mut Plan::prepare(&grants), ALL, false), Err("EEXIST"));
        prop_assert_eq!(world.carry_on(&mut Plan::release(&grants), ALL, false), Ok(()));
        prop_assert_eq!(world, with_foreign);
    }
}
