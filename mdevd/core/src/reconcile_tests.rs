//! Every combination of what can be known about a claim, against the rules said a second time in the plainest way.

use super::*;
use crate::claim::{Grant, Undo};
use crate::fixtures::{Host, claim, domain, grant, manual, uuid};
use crate::holders::Holder;
use alloc::vec;

/// The device number `n`.
fn key(n: u32) -> DeviceKey {
    DeviceKey::Mdev(uuid(n))
}

fn qemu() -> Holders {
    Holders::Known(vec![Holder { pid: 4711, command: "qemu-system-x86".into() }])
}

fn nobody() -> Holders {
    Holders::Known(vec![])
}

fn unknown() -> Holders {
    Holders::Unknown("/proc/4711/fd: EPERM".into())
}

/// One look that finds nothing alive anywhere, for the second time.
fn dead() -> Look {
    Look {
        running: Known::Known(false),
        holders: vec![(key(1), nobody()), (key(2), nobody())],
        libvirt_alive: Known::Known(false),
        absent_since: Some(100),
        now: 100 + ABSENT_SECONDS,
    }
}

fn grants() -> [Grant; 2] {
    [grant(1, "p", "t", Undo::Remove), grant(2, "p", "t", Undo::Keep)]
}

fn ready() -> Claim {
    claim(domain(1, "vm"), ClaimState::Ready, grants())
}

fn inventory() -> Inventory {
    Host::default().parent("p").offers("t", 1).mdev(1, "t").mdev(2, "t").inventory()
}

#[test]
fn the_whole_table() {
    use ClaimState::{Failed, Planned, Preparing, Ready, Releasing};
    let inventory = inventory();
    let truths = || [Known::Known(true), Known::Known(false), Known::Unknown("EIO".into())];
    // `None`: nobody looked at that device.
    let holders = || [Some(nobody()), Some(qemu()), Some(unknown()), None];
    let absences =
        [None, Some(1000), Some(1000 - ABSENT_SECONDS + 1), Some(1000 - ABSENT_SECONDS), Some(0), Some(1001)];
    let mut cases = 0;
    let mut freed = 0;
    for state in [Planned, Preparing, Ready, Releasing, Failed] {
        for owner in [domain(1, "vm"), manual("bench")] {
            for (first, second) in
                holders().into_iter().flat_map(|first| holders().map(|second| (first.clone(), second)))
            {
                for (running, libvirt_alive) in
                    truths().into_iter().flat_map(|running| truths().map(|alive| (running.clone(), alive)))
                {
                    for seen in [false, true] {
                        for absent_since in absences {
                            cases += 1;
                            let claim = Claim { seen, ..claim(owner.clone(), state, grants()) };
                            let found = [(key(1), first.clone()), (key(2), second.clone())];
                            let look = Look {
                                running: running.clone(),
                                holders: found
                                    .into_iter()
                                    .filter_map(|(uuid, holders)| Some((uuid, holders?)))
                                    .collect(),
                                libvirt_alive: libvirt_alive.clone(),
                                absent_since,
                                now: 1000,
                            };
                            let action = decide(&claim, &inventory, &look);
                            let case = (state, owner.kind(), &look, seen, &action);

                            let held = first == Some(qemu()) || second == Some(qemu());
                            let certainly_not_held = first == Some(nobody()) && second == Some(nobody());
                            let alive = held || running == Known::Known(true);
                            let surely_absent = certainly_not_held && running == Known::Known(false);
                            let starting_is_over = seen || libvirt_alive == Known::Known(false);
                            let long_enough = absent_since.is_some_and(|since| since + ABSENT_SECONDS <= 1000);

                            let may_free =
                                state == Ready && owner.kind() == "domain" && surely_absent && starting_is_over;
                            assert_eq!(matches!(action, Action::Free(_)), may_free && long_enough, "{case:?}");
                            assert_eq!(matches!(action, Action::LookAgain(_)), may_free && !long_enough, "{case:?}");
                            let ending = matches!(state, Releasing | Failed);
                            assert_eq!(matches!(action, Action::Retry(_)), ending, "{case:?}");
                            let judged = state == Ready && owner.kind() == "domain";
                            assert_eq!(matches!(action, Action::Seen(_)), judged && alive, "{case:?}");
                            let unknown =
                                !alive && (!surely_absent || (!seen && matches!(libvirt_alive, Known::Unknown(_))));
                            assert_eq!(matches!(action, Action::KeepUnknown(_)), judged && unknown, "{case:?}");
                            assert!(!action.reason().is_empty() && !action.as_str().is_empty(), "{case:?}");
                            freed += usize::from(matches!(action, Action::Free(_)));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(cases, 5 * 2 * 16 * 9 * 2 * 6);
    // seen: 3 answers about libvirtd; never seen: 1; each with 2 absences that are long enough
    assert_eq!(freed, (3 + 1) * 2);
}

#[test]
fn words_and_reasons() {
    let unknown_look = |look: Look| Look { running: Known::Unknown("/run/libvirt/qemu: EACCES".into()), ..look };
    let held = |holders: Holders| Look { holders: vec![(key(1), nobody()), (key(2), holders)], ..dead() };
    let u2 = uuid(2);
    let seen = || Claim { seen: true, ..ready() };
    let in_state = |state| Claim { state, ..ready() };
    let failed = || Claim { problem: "remove: EBUSY".into(), ..in_state(ClaimState::Failed) };
    let held_reason = alloc::format!("{u2} is held by qemu-system-x86 (pid 4711)");
    let held_unknown = alloc::format!("whether {u2} is held is not known: /proc/4711/fd: EPERM");
    let not_looked = alloc::format!("whether {u2} is held was not looked at");
    let table: Vec<(Claim, Look, &str, &str)> = vec![
        (in_state(ClaimState::Planned), dead(), "keep", "being prepared"),
        (in_state(ClaimState::Preparing), dead(), "keep", "being prepared"),
        (in_state(ClaimState::Releasing), dead(), "retry", "being given back"),
        (failed(), dead(), "retry", "being given back: remove: EBUSY"),
        (ready(), held(qemu()), "keep", &held_reason),
        (ready(), held(unknown()), "keep", &held_unknown),
        (ready(), Look { holders: vec![(key(1), nobody())], ..dead() }, "keep", &not_looked),
        (ready(), Look { running: Known::Known(true), ..held(unknown()) }, "keep", "the domain is running"),
        (ready(), unknown_look(held(qemu())), "keep", &held_reason),
        (ready(), unknown_look(dead()), "keep", "whether the domain runs is not known: /run/libvirt/qemu: EACCES"),
        (
            ready(),
            Look { libvirt_alive: Known::Known(true), ..dead() },
            "keep",
            "the domain is starting: the libvirt daemon that asked is there",
        ),
        (
            ready(),
            Look { libvirt_alive: Known::Unknown("/proc/1: EIO".into()), ..dead() },
            "keep",
            "whether the libvirt daemon that asked lives is not known: /proc/1: EIO",
        ),
        (
            ready(),
            Look { absent_since: None, ..dead() },
            "look-again",
            "the domain is not running; freed if that is still so after 30 s",
        ),
        (
            seen(),
            Look { libvirt_alive: Known::Known(true), absent_since: Some(101), ..dead() },
            "look-again",
            "the domain is not running; freed if that is still so after 30 s",
        ),
        (
            seen(),
            Look { libvirt_alive: Known::Known(true), ..dead() },
            "free",
            "the domain is not running and nobody holds its devices",
        ),
        (
            claim(manual("x"), ClaimState::Ready, grants()),
            held(qemu()),
            "keep",
            "a manual claim stays until it is released",
        ),
    ];
    for (claim, look, word, reason) in table {
        let action = decide(&claim, &inventory(), &look);
        assert_eq!((action.as_str(), action.reason()), (word, reason));
    }
}

#[test]
fn a_manual_claim_whose_device_is_gone_is_a_problem() {
    let claim = claim(manual("bench"), ClaimState::Ready, grants());
    let half = Host::default().parent("p").offers("t", 1).mdev(2, "t").inventory();
    let reason = alloc::format!("its device {} is gone; release the claim", uuid(1));
    assert_eq!(decide(&claim, &half, &dead()), Action::KeepUnknown(reason));
    let both = alloc::format!("its device {}, {} is gone; release the claim", uuid(1), uuid(2));
    assert_eq!(decide(&claim, &Inventory::default(), &dead()), Action::KeepUnknown(both));
}

#[test]
fn nobody_can_hold_a_device_that_is_gone() {
    // Some drivers remove the device themselves when its VM stops; nobody then looks for its holders.
    let look = Look { holders: vec![(key(2), nobody())], ..dead() };
    let only_the_other = Host::default().parent("p").mdev(2, "t").inventory();
    assert!(matches!(decide(&ready(), &only_the_other, &look), Action::Free(_)));
    assert!(matches!(decide(&ready(), &inventory(), &look), Action::KeepUnknown(_)));
}

#[test]
fn a_holder_of_a_device_that_is_not_the_claims_says_nothing_new() {
    // The look may be shared; what it says of other devices keeps, never frees.
    let look = Look { holders: vec![(key(1), nobody()), (key(2), nobody()), (key(3), unknown())], ..dead() };
    assert!(matches!(decide(&ready(), &inventory(), &look), Action::Free(_)));
}

#[test]
fn an_abandoned_run_is_freed_on_the_second_look_and_a_clock_that_jumps_back_frees_nothing() {
    // As the engine drives it: remember since when nothing was seen, forget it whenever something was.
    let drive = |looks: &[(u64, bool)]| {
        let mut absent_since = None;
        let mut actions: Vec<&'static str> = Vec::new();
        for (now, running) in looks {
            let look = Look { running: Known::Known(*running), absent_since, now: *now, ..dead() };
            let action = decide(&ready(), &inventory(), &look);
            absent_since = match action {
                Action::LookAgain(_) => absent_since.or(Some(*now)),
                _ => None,
            };
            actions.push(action.as_str());
        }
        actions
    };
    assert_eq!(drive(&[(0, false), (30, false)]), ["look-again", "free"]);
    assert_eq!(drive(&[(0, false), (29, false), (30, false)]), ["look-again", "look-again", "free"]);
    assert_eq!(
        drive(&[(0, false), (10, true), (31, false), (60, false), (61, false)]),
        ["look-again", "keep", "look-again", "look-again", "free"]
    );
    assert_eq!(drive(&[(500, false), (3, false)]), ["look-again", "look-again"]);
}

#[test]
fn a_claim_without_devices_ends_like_any_other() {
    let empty = claim(domain(1, "vm"), ClaimState::Ready, []);
    assert!(matches!(decide(&empty, &inventory(), &Look { holders: vec![], ..dead() }), Action::Free(_)));
    let look = Look { holders: vec![], running: Known::Unknown("EIO".into()), ..dead() };
    assert!(matches!(decide(&empty, &inventory(), &look), Action::KeepUnknown(_)));
}

#[test]
fn running_domains_with_requests_and_no_claim_are_adopted() {
    let ids: Vec<Uuid> = (1..=4).map(crate::fixtures::domain_uuid).collect();
    let running = [(&ids[0], true), (&ids[1], false), (&ids[2], true), (&ids[3], true)];
    assert_eq!(to_adopt(running, |id| *id == ids[2]), [ids[0], ids[3]]);
    assert_eq!(to_adopt([], |_| false), Vec::<Uuid>::new());
}
