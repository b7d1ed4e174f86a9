//! Writes and reads that hang: the bus answers on, everything else stays usable, what is concerned is `stuck` and says so, and recovers by
//! itself when the kernel comes back; also across a daemon that is killed or stopped meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;
use std::time::Duration;

use faults_common::*;
use mdevd_dbus::ErrorName;
use mdevd_dbus::wire::text;
use mdevd_tests::fakesys::{Errno, FakeHost, Fault, Op, Rule};
use mdevd_tests::harness::{Domain, claim_files, claim_json, eventually, text_dict};

fn create_hangs(host: &FakeHost, parent: &str) -> Rule {
    host.fault(Op::Write, host.type_path(parent, GOLD, "create"), Fault::Hang)
}

fn remove_hangs(host: &FakeHost, parent: &str, domain: &Domain) -> Rule {
    host.fault(Op::Write, format!("{}/remove", host.mdev_path(parent, domain.mdevs[0])), Fault::Hang)
}

/// A domain that wants one of a parent's.
fn wants_on(name: &str, parent: &str) -> Domain {
    let mut domain = Domain::wants(name, &[GOLD]);
    domain.requests[0].insert("parent".into(), parent.into());
    domain
}

/// The bus answers, and the other card works.
async fn the_rest_works(stage: &Stage, parent: &str) {
    assert!(!stage.manager.version().await.unwrap().is_empty());
    let other = wants_on("neighbour", parent);
    other.prepare(&stage.manager).await.unwrap();
    assert!(other.release(&stage.manager).await.unwrap());
    assert!(stage.host.mdevs().iter().all(|(uuid, ..)| *uuid != other.mdevs[0]));
}

#[tokio::test]
async fn a_create_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let hang = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    let start = preparing(&stage, &domain, 4000);
    met(&hang, 1).await;
    // Nobody waits for it: neither the bus, nor the other card, nor one who only asks.
    the_rest_works(&stage, B).await;
    assert_eq!(stage.manager.explain(&domain.requests, &HashMap::new()).await.unwrap().len(), 2);
    let (error, message) = refused(start.await.unwrap());
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    assert!(message.contains(A) && message.contains(&domain.mdevs[0].to_string()), "{message}");

    stage.wait_parent(A, "stuck").await;
    stage.wait_problem(A, "has not come back").await;
    stage.wait_problem(&format!("claim {}", domain.uuid), "stuck").await;
    assert_eq!(stage.parent(B).await.state().await.unwrap(), "ok");
    the_rest_works(&stage, B).await;
    let (error, message) = refused(wants_on("next", A).prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Stuck, "{message}");
    assert!(message.contains(A) && message.contains("has not come back"), "{message}");
    // Whoever minds not where is sent elsewhere, and nothing is written to it meanwhile.
    let anywhere = Domain::wants("anywhere", &[GOLD]);
    anywhere.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(anywhere.mdevs[0], B.into(), GOLD.into())]);
    assert_eq!(hang.hits(), 1);
    let (error, message) = refused(domain.prepare_within(&stage.manager, 500).await);
    assert_eq!(error, ErrorName::Busy, "{message}");
    assert!(anywhere.release(&stage.manager).await.unwrap());

    hang.let_go();
    stage.wait_clean().await;
    stage.wait_parent(A, "ok").await;
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
}

#[tokio::test]
async fn a_create_that_hangs_and_then_fails() {
    let stage = Stage::start(two_cards()).await;
    let hang = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    assert_eq!(refused(domain.prepare_within(&stage.manager, 3000).await).0, ErrorName::TimedOut);
    stage.wait_parent(A, "stuck").await;
    hang.let_go_with(Errno::INVAL);
    stage.wait_clean().await;
    stage.wait_parent(A, "ok").await;
    assert_eq!(stage.writes(), [(A.into(), "create", Some(Errno::INVAL))]);
}

/// Its device is there all the same: somebody else has made it while the write hung, and it is theirs.
#[tokio::test]
async fn a_create_that_hangs_and_then_finds_a_strangers_device() {
    let stage = Stage::start(two_cards()).await;
    let hang = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    assert_eq!(refused(domain.prepare_within(&stage.manager, 3000).await).0, ErrorName::TimedOut);
    stage.wait_claim(domain.uuid, "failed").await;
    stage.host.create_mdev(A, GOLD, domain.mdevs[0]).unwrap();
    hang.let_go_with(Errno::EXIST);
    stage.wait_no_claims().await;
    stage.wait_parent(A, "ok").await;
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
    assert_eq!(stage.writes(), [(A.into(), "create", Some(Errno::EXIST))]);
}

/// A write that is begun at the last moment has not hung when it does not come back.
#[tokio::test]
async fn no_write_begins_when_no_time_is_left() {
    let stage = Stage::start(two_cards()).await;
    let (error, message) = refused(wants_on("vm", A).prepare_within(&stage.manager, 400).await);
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    assert!(message.contains("nothing is promised") || message.contains("nothing was written"), "{message}");
    stage.wait_clean().await;
    assert_eq!(stage.writes(), []);
    assert_eq!(stage.parent(A).await.state().await.unwrap(), "ok");
}

/// Whoever asked gets his answer when what was made is unmade: the time for that is kept back.
#[tokio::test]
async fn a_start_that_runs_out_of_time_has_some_left_to_undo() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::Write, format!("sys/**/{TIN}/create"), Fault::Hang);
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    assert_eq!(refused(domain.prepare_within(&stage.manager, 4000).await).0, ErrorName::TimedOut);
    assert_eq!(stage.host.mdevs(), []);
    hang.let_go();
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_remove_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let domain = wants_on("vm", A);
    domain.prepare(&stage.manager).await.unwrap();
    let hang = remove_hangs(&stage.host, A, &domain);
    // libvirt waits for this answer, and gets it long before the kernel's.
    assert!(domain.release(&stage.manager).await.unwrap());
    met(&hang, 1).await;
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["state"], "releasing");
    the_rest_works(&stage, B).await;

    stage.wait_mdev(domain.mdevs[0], "stuck").await;
    stage.wait_problem(&domain.mdevs[0].to_string(), "has not come back").await;
    stage.wait_problem(&format!("claim {}", domain.uuid), "stuck").await;
    // The card it is on works on as well.
    the_rest_works(&stage, A).await;
    let (error, message) = refused(stage.mdev(domain.mdevs[0]).await.remove(&HashMap::new()).await);
    assert_eq!(error, ErrorName::Stuck, "{message}");
    assert_eq!(hang.hits(), 1, "it is not tried again while it hangs");

    hang.let_go();
    stage.wait_clean().await;
    assert!(stage.writes().iter().filter(|(on, ..)| *on == domain.mdevs[0].to_string()).count() == 1);
}

/// A removal waits its turn on a parent where something else hangs, and somebody opens the device in that time.
#[tokio::test]
async fn a_removal_looks_who_holds_it_when_its_turn_has_come() {
    let stage = Stage::start(two_cards()).await;
    let domain = wants_on("vm", A);
    domain.prepare(&stage.manager).await.unwrap();
    let hang = create_hangs(&stage.host, A);
    let start = preparing(&stage, &wants_on("other", A), 20_000);
    met(&hang, 1).await;
    let driver = format!("{}/driver", stage.host.mdev_path(A, domain.mdevs[0]));
    let looks = stage.host.fault(Op::Readlink, driver, Fault::Delay(Duration::ZERO));
    let end = releasing(&stage, &domain);
    met(&looks, 1).await;
    // Each look waits for those before it: the removal has come as far as it does without its turn.
    for _ in 0..3 {
        stage.reconcile().await;
    }
    let qemu = stage.host.process(4242, "qemu-system-x86", &["qemu"]).opens_group_of(domain.mdevs[0]);
    hang.let_go();
    start.await.unwrap().unwrap();
    assert!(end.await.unwrap().unwrap());
    stage.wait_problem(&format!("claim {}", domain.uuid), "still held").await;
    assert!(stage.writes().iter().all(|(_, verb, _)| *verb == "create"));
    qemu.vanish();
    stage.host.wait_mdevs("the other's device alone", |all| !all.contains(&domain.mdevs[0]));
}

/// Killed in mid-write, and started again while the kernel is still at it.
async fn killed_while_it_hangs(stage: &mut Stage, hang: &Rule, uuid: uuid::Uuid) {
    met(hang, 1).await;
    stage.kill().await;
    assert_eq!(hang.hanging(), 1, "the writer lives on");
    stage.again().await;
    eventually("the write is known to be in flight", || async {
        stage.problems().await.iter().any(|(_, message)| message.contains("before mdevd was restarted"))
    })
    .await;
    assert!(stage.host.view().names("run/mdevd/busy").iter().any(|key| key.contains(&uuid.to_string())));
    assert_eq!(claim_files(&stage.host).len(), 1);
    the_rest_works(stage, B).await;
    // However often it is looked at.
    stage.reconcile().await;
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    assert_eq!(claim_files(&stage.host).len(), 1);
    assert_eq!(hang.hits(), 1);
}

#[tokio::test]
async fn killed_while_a_create_hangs() {
    let mut stage = Stage::start(two_cards()).await;
    let hang = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    let start = preparing(&stage, &domain, 8000);
    killed_while_it_hangs(&mut stage, &hang, domain.mdevs[0]).await;
    start.await.unwrap().unwrap_err();
    stage.wait_parent(A, "stuck").await;
    assert_eq!(refused(wants_on("next", A).prepare(&stage.manager).await).0, ErrorName::Stuck);
    // The same domain starts again meanwhile: it is told to wait, and waits.
    assert_eq!(refused(domain.prepare_within(&stage.manager, 500).await).0, ErrorName::Busy);
    let again = preparing(&stage, &domain, 30_000);
    hang.let_go();
    again.await.unwrap().unwrap();
    // The one that was asked for first was made in the end, and removed; this is the second.
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
    assert_eq!(stage.writes().iter().filter(|(_, verb, _)| *verb == "create").count(), 2 + 1);
    stage.wait_no_problems().await;
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}

#[tokio::test]
async fn killed_while_a_create_hangs_that_then_fails() {
    let mut stage = Stage::start(two_cards()).await;
    let hang = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    let _start = preparing(&stage, &domain, 8000);
    killed_while_it_hangs(&mut stage, &hang, domain.mdevs[0]).await;
    hang.let_go_with(Errno::NOSPC);
    stage.wait_clean().await;
    stage.wait_parent(A, "ok").await;
}

#[tokio::test]
async fn killed_while_a_remove_hangs() {
    let mut stage = Stage::start(two_cards()).await;
    let domain = wants_on("vm", A);
    domain.prepare(&stage.manager).await.unwrap();
    let hang = remove_hangs(&stage.host, A, &domain);
    let _end = releasing(&stage, &domain);
    killed_while_it_hangs(&mut stage, &hang, domain.mdevs[0]).await;
    stage.wait_mdev(domain.mdevs[0], "stuck").await;
    // The device's own object says what is known of it, and whose it is.
    let mdev = stage.mdev(domain.mdevs[0]).await;
    assert_eq!((mdev.mdev_type().await.unwrap().as_str(), mdev.origin().await.unwrap().as_str()), (GOLD, "claim"));
    the_rest_works(&stage, A).await;
    let again = preparing(&stage, &domain, 30_000);
    hang.let_go();
    again.await.unwrap().unwrap();
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
    stage.wait_no_problems().await;
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}

#[tokio::test]
async fn stopped_while_writes_hang() {
    let mut stage = Stage::start(two_cards()).await;
    let (first, second) = (wants_on("first", A), wants_on("second", B));
    first.prepare(&stage.manager).await.unwrap();
    let remove = remove_hangs(&stage.host, A, &first);
    let create = create_hangs(&stage.host, B);
    let _end = releasing(&stage, &first);
    let _start = preparing(&stage, &second, 8000);
    met(&remove, 1).await;
    met(&create, 1).await;
    // The unit's own limit is two seconds, and this returns when the process has ended, its writers not.
    let status = stage.daemon.stop(&stage.bus).await;
    assert!(status.success(), "{status}");
    assert!(stage.daemon.log().contains("stopped"));
    assert_eq!((remove.hanging(), create.hanging()), (1, 1));
    stage.again().await;
    stage.wait_mdev(first.mdevs[0], "stuck").await;
    stage.wait_parent(B, "stuck").await;
    the_rest_works(&stage, A).await;
    remove.let_go();
    create.let_go();
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_read_of_a_parent_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let held = wants_on("held", A);
    held.prepare(&stage.manager).await.unwrap();
    let hang = stage.host.fault(Op::Read, stage.host.type_path(A, GOLD, "available_instances"), Fault::Hang);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    met(&hang, 1).await;
    stage.wait_parent(A, "stuck").await;
    stage.wait_problem(A, "has not come back").await;
    // It is shown as it was, and not read again.
    assert_eq!(stage.types(A).await, [GOLD, TIN]);
    assert_eq!(stage.mdev(held.mdevs[0]).await.state().await.unwrap(), "ok");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    // Once more at most: a look after the device's own event may have waited its turn behind the one that hangs.
    assert!(hang.hits() <= 2, "{}", hang.hits());
    the_rest_works(&stage, B).await;
    assert_eq!(refused(wants_on("next", A).prepare(&stage.manager).await).0, ErrorName::Stuck);
    // What is on it is given back all the same: its removal reads nothing that hangs.
    assert!(held.release(&stage.manager).await.unwrap());
    stage.host.wait_mdevs("the device of the domain that ended is gone", |all| all.is_empty());

    hang.let_go();
    stage.wait_parent(A, "ok").await;
    stage.wait_clean().await;
    the_rest_works(&stage, A).await;
}

/// Both are reasons of their own: the end of the one is not the end of the other.
#[tokio::test]
async fn a_read_of_a_parent_that_hangs_while_a_create_does() {
    let stage = Stage::start(two_cards()).await;
    let create = create_hangs(&stage.host, A);
    let domain = wants_on("vm", A);
    let start = preparing(&stage, &domain, 4000);
    met(&create, 1).await;
    let read = stage.host.fault(Op::Read, stage.host.type_path(A, GOLD, "available_instances"), Fault::Hang);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    assert_eq!(refused(start.await.unwrap()).0, ErrorName::TimedOut);
    stage.wait_problem(A, "create").await;
    read.let_go();
    // Each look waits for those before it.
    for _ in 0..3 {
        stage.manager.rescan(&HashMap::new()).await.unwrap();
    }
    assert_eq!(stage.parent(A).await.state().await.unwrap(), "stuck");
    assert_eq!(refused(wants_on("next", A).prepare(&stage.manager).await).0, ErrorName::Stuck);
    create.let_go();
    stage.wait_clean().await;
    stage.wait_parent(A, "ok").await;
}

#[tokio::test]
async fn a_read_of_a_parent_that_hangs_at_start_up() {
    let host = two_cards().mount().unwrap();
    let hang = host.fault(Op::Read, host.type_path(A, GOLD, "available_instances"), Fault::Hang);
    let stage = Stage::over(host).await;
    met(&hang, 1).await;
    stage.wait_problem(A, "has not come back").await;
    stage.wait_parent(A, "stuck").await;
    the_rest_works(&stage, B).await;
    let (error, message) = refused(wants_on("vm", A).prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Stuck, "{message}");
    hang.let_go();
    stage.wait_parent(A, "ok").await;
    stage.wait_clean().await;
    assert_eq!(stage.types(A).await, [GOLD, TIN]);
    the_rest_works(&stage, A).await;
}

#[tokio::test]
async fn a_read_of_a_device_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let domain = wants_on("vm", A);
    domain.prepare(&stage.manager).await.unwrap();
    let hang =
        stage.host.fault(Op::Readlink, format!("{}/driver", stage.host.mdev_path(A, domain.mdevs[0])), Fault::Hang);
    assert!(domain.release(&stage.manager).await.unwrap());
    met(&hang, 1).await;
    stage.wait_mdev(domain.mdevs[0], "stuck").await;
    stage.wait_problem(&domain.mdevs[0].to_string(), "has not come back").await;
    the_rest_works(&stage, B).await;
    stage.wait_problem(&format!("claim {}", domain.uuid), "stuck").await;
    // A look at it and one at its parent, after an event; each further one would cost another thread that hangs.
    stage.reconcile().await;
    assert!(hang.hits() <= 2, "{}", hang.hits());
    hang.let_go();
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_list_of_parents_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::List, "sys/class/mdev_bus", Fault::Hang);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    met(&hang, 1).await;
    stage.wait_problem("scan", "does not come back").await;
    the_rest_works(&stage, A).await;
    // What came meanwhile is seen when the kernel comes back, without anybody asking.
    stage.host.lose_uevents(true);
    stage.host.plug(mdevd_tests::fakesys::host().mtty());
    hang.let_go();
    stage.wait_parent("mtty", "ok").await;
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_look_at_the_processes_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let domain = wants_on("vm", A);
    domain.prepare(&stage.manager).await.unwrap();
    let _other = stage.host.process(77, "sleeper", &["sleeper"]);
    let hang = stage.host.fault(Op::List, "proc/77/fd", Fault::Hang);
    // Who holds it cannot be known: it is not removed, and the reason is said.
    releasing(&stage, &domain);
    met(&hang, 1).await;
    stage.wait_problem(&format!("claim {}", domain.uuid), "does not come back").await;
    assert!(!stage.manager.version().await.unwrap().is_empty());
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(stage.writes().iter().filter(|(_, verb, _)| *verb == "remove").count(), 0);
    hang.let_go();
    stage.wait_clean().await;
}

/// The parent is as it was seen last, and what it says of itself then is not believed for a choice.
#[tokio::test]
async fn explain_names_what_is_stuck() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::Read, stage.host.type_path(A, GOLD, "device_api"), Fault::Hang);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_parent(A, "stuck").await;
    let request = text_dict(&[("name", "x"), ("type", GOLD)]);
    let found = stage.manager.explain(&[request], &HashMap::new()).await.unwrap();
    let verdict = |one: &mdevd_dbus::Dict| {
        (text(one, "parent").to_owned(), text(one, "verdict").to_owned(), text(one, "reason").to_owned())
    };
    let found: Vec<_> = found.iter().map(verdict).collect();
    assert_eq!(found, [(B.into(), "chosen".into(), String::new()), (A.into(), "refused".into(), "stuck".into())]);
    hang.let_go();
}
