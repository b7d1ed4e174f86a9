//! Hangs away from a domain's own start and end: attributes, what a person asks for by hand, and a daemon that is stopped while it reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;
use std::time::Duration;

use faults_common::*;
use mdevd_dbus::{BUS_NAME, ErrorName, path};
use mdevd_tests::fakesys::{Fault, Op, Rule};
use mdevd_tests::harness::{Daemon, Domain, claim_files};
use rustix::process::Signal;
use uuid::Uuid;
use zbus::Variant;

/// `CreateMdev` with a UUID and an attribute, as a task.
fn creating(stage: &Stage, uuid: Uuid) -> tokio::task::JoinHandle<zbus::Result<bool>> {
    let manager = stage.manager.clone();
    tokio::spawn(async move {
        let text = uuid.to_string();
        let attributes = Variant::from(vec![("tuning/depth", "7")]);
        let options = HashMap::from([("uuid", text.as_str().into()), ("attrs", attributes)]);
        manager.create_mdev(GOLD, &options).await.map(|(_, changed)| changed)
    })
}

fn attribute_hangs(stage: &Stage) -> Rule {
    stage.host.fault(Op::Write, "sys/**/tuning/depth", Fault::Hang)
}

#[tokio::test]
async fn an_attribute_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let hang = attribute_hangs(&stage);
    let uuid = Uuid::new_v4();
    let call = creating(&stage, uuid);
    met(&hang, 1).await;
    stage.wait_mdev(uuid, "stuck").await;
    let (error, message) = refused(call.await.unwrap());
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    assert!(message.contains("tuning/depth") && message.contains(&uuid.to_string()), "{message}");
    // The device is stuck, its parent is not.
    assert_eq!(stage.parent(A).await.state().await.unwrap(), "ok");
    Domain::wants("vm", &[GOLD]).prepare(&stage.manager).await.unwrap();
    assert_eq!(refused(creating(&stage, uuid).await.unwrap()).0, ErrorName::Stuck);
    hang.let_go();
    stage.wait_mdev(uuid, "gone").await;
    assert_eq!(stage.host.mdevs().len(), 1);
    stage.wait_no_problems().await;
}

#[tokio::test]
async fn killed_while_an_attribute_hangs() {
    let mut stage = Stage::start(two_cards()).await;
    let hang = attribute_hangs(&stage);
    let uuid = Uuid::new_v4();
    let call = creating(&stage, uuid);
    met(&hang, 1).await;
    stage.kill().await;
    call.await.unwrap().unwrap_err();
    stage.again().await;
    stage.wait_mdev(uuid, "stuck").await;
    // Nobody got an answer, so nobody has it: it is unmade, as soon as that can be.
    assert_eq!(claim_files(&stage.host).len(), 1);
    assert_eq!(stage.host.mdevs().len(), 1);
    hang.let_go();
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_removal_by_hand_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let (object, _) = stage.manager.create_mdev(GOLD, &HashMap::new()).await.unwrap();
    let Some(path::Object::Mdev(own)) = path::Object::from_path(object.as_str()) else { panic!("{object}") };
    let foreign = Uuid::new_v4();
    stage.host.create_mdev(B, TIN, foreign).unwrap();
    stage.wait_mdev(foreign, "ok").await;
    let hang = stage.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    let remove = |uuid: Uuid, force: bool| {
        let mdev = stage.mdev(uuid);
        async move { mdev.await.remove(&HashMap::from([("force", force.into())])).await }
    };
    // One's own, and somebody's by force: a person is told, and it goes on.
    let (mine, theirs) = tokio::join!(remove(own, false), remove(foreign, true));
    let (error, message) = refused(mine);
    assert_eq!(error, ErrorName::Busy, "{message}");
    assert!(message.contains("has not come back"), "{message}");
    let (error, message) = refused(theirs);
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    assert!(message.contains("has not come back"), "{message}");
    for uuid in [own, foreign] {
        stage.wait_mdev(uuid, "stuck").await;
        assert_eq!(refused(remove(uuid, true).await).0, ErrorName::Stuck);
    }
    assert_eq!(hang.hits(), 2);
    hang.let_go();
    stage.wait_clean().await;
}

/// `Remove` of somebody's device by force, as a task.
async fn removing_by_force(stage: &Stage, uuid: Uuid) -> tokio::task::JoinHandle<zbus::Result<bool>> {
    let mdev = stage.mdev(uuid).await;
    tokio::spawn(async move { mdev.remove(&HashMap::from([("force", true.into())])).await })
}

/// Somebody's device is removed by force, which waits its turn; in that time a domain gets it.
#[tokio::test]
async fn a_removal_by_force_looks_again_when_its_turn_has_come() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0];
    stage.host.create_mdev(A, GOLD, uuid).unwrap();
    stage.wait_mdev(uuid, "ok").await;
    let hang = stage.host.fault(Op::Write, stage.host.type_path(A, TIN, "create"), Fault::Hang);
    let mut other = Domain::wants("other", &[TIN]);
    other.requests[0].insert("parent".into(), A.into());
    let start = preparing(&stage, &other, 20_000);
    met(&hang, 1).await;
    let driver = format!("{}/driver", stage.host.mdev_path(A, uuid));
    let looks = stage.host.fault(Op::Readlink, driver, Fault::Delay(Duration::ZERO));
    let removal = removing_by_force(&stage, uuid).await;
    met(&looks, 1).await;
    // Each look waits for those before it: the removal has come as far as it does without its turn.
    for _ in 0..3 {
        stage.reconcile().await;
    }
    domain.prepare(&stage.manager).await.unwrap();
    hang.let_go();
    start.await.unwrap().unwrap();
    let (error, message) = refused(removal.await.unwrap());
    assert_eq!(error, ErrorName::Conflict, "{message}");
    assert!(message.contains("another owner"), "{message}");
    assert!(stage.host.mdevs().iter().any(|(there, ..)| *there == uuid));
    assert!(stage.writes().iter().all(|(_, verb, _)| *verb == "create"));
}

#[tokio::test]
async fn a_device_that_is_being_removed_is_promised_to_nobody() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0];
    stage.host.create_mdev(A, GOLD, uuid).unwrap();
    stage.wait_mdev(uuid, "ok").await;
    let hang = stage.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    let removal = removing_by_force(&stage, uuid).await;
    met(&hang, 1).await;
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Busy, "{message}");
    assert!(message.contains(&uuid.to_string()) && message.contains("try again"), "{message}");
    hang.let_go();
    assert!(removal.await.unwrap().unwrap());
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.writes().len(), 2, "its own is made");
}

/// A thread that hangs in a read cannot be ended, and nor can its process. The next daemon must not have to wait for that.
#[tokio::test]
async fn stopped_while_a_read_hangs() {
    let mut stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let hang = stage.host.fault(Op::Read, stage.host.type_path(B, GOLD, "available_instances"), Fault::Hang);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_parent(B, "stuck").await;
    stage.daemon.signal(Signal::TERM);
    stage.bus.wait_owned(BUS_NAME, false).await;
    let next = Daemon::start(&stage.host, &stage.bus).await;
    let old = std::mem::replace(&mut stage.daemon, next);
    stage.wait_parent(B, "stuck").await;
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.host.wait_mdevs("the domain's device is gone", |all| all.is_empty());
    hang.let_go();
    stage.wait_clean().await;
    stage.wait_parent(B, "ok").await;
    drop(old);
}

/// The device is made, but looking at it does not come back: it is nobody's yet, must not be made a second time elsewhere, and is removed
/// when it can be looked at.
#[tokio::test]
async fn a_read_back_that_hangs() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let hang = stage.host.fault(Op::Readlink, format!("sys/**/{}/driver", domain.mdevs[0]), Fault::Hang);
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Stuck, "{message}");
    assert!(message.contains(&domain.mdevs[0].to_string()) && message.contains("has not come back"), "{message}");
    met(&hang, 1).await;
    assert_eq!(stage.writes(), [(A.into(), "create", None)]);
    stage.wait_claim(domain.uuid, "failed").await;
    Domain::wants("other", &[TIN]).prepare(&stage.manager).await.unwrap();
    hang.let_go();
    stage.host.wait_mdevs("only the other's device", |all| all.len() == 1 && !all.contains(&domain.mdevs[0]));
    stage.wait_no_problems().await;
    domain.prepare(&stage.manager).await.unwrap();
}
