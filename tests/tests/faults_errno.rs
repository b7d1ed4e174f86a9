//! Every errno on every write: what is done next, what the person reads, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;

use faults_common::*;
use mdevd_dbus::{ErrorName, Options};
use mdevd_tests::fakesys::{self, Errno, FakeHost, Fault, Op, Point, Rule, Then};
use mdevd_tests::harness::{Domain, claim_files, eventually};
use uuid::Uuid;
use zbus::Variant;

/// Every errno that a driver is known to answer with, and its name.
const ALL: [(Errno, &str); 9] = [
    (Errno::EXIST, "EEXIST"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::INVAL, "EINVAL"),
    (Errno::BUSY, "EBUSY"),
    (Errno::PERM, "EPERM"),
    (Errno::NODEV, "ENODEV"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::USERS, "EUSERS"),
    (Errno::IO, "EIO"),
];
/// Those that mean "not here".
const ELSEWHERE: [Errno; 4] = [Errno::NOSPC, Errno::BUSY, Errno::AGAIN, Errno::USERS];

fn create_fails(host: &FakeHost, parent: &str, mdev_type: &str, errno: Errno) -> Rule {
    host.fault(Op::Write, host.type_path(parent, mdev_type, "create"), Fault::Errno(errno))
}

/// A text for a person names the file, the value, the errno, and says what to do.
fn reads_well(message: &str, file: &str, errno: &str) {
    assert!(message.contains(file), "{message}");
    assert!(message.contains(errno), "{message}");
    let advice = ["journalctl", "hostdevctl", "stop ", "try again", "remove it", "run as root"];
    assert!(advice.iter().any(|advice| message.contains(advice)), "says not what to do: {message}");
    assert!(!message.contains("EffectError") && !message.contains("os error"), "{message}");
}

#[tokio::test]
async fn create_that_says_not_here_is_tried_on_the_next_parent_once() {
    let stage = Stage::start(two_cards()).await;
    for (errno, name) in ALL.into_iter().filter(|(errno, _)| ELSEWHERE.contains(errno)) {
        stage.host.clear_log();
        let domain = Domain::wants("vm", &[GOLD]);
        let fault = create_fails(&stage.host, A, GOLD, errno);
        domain.prepare(&stage.manager).await.unwrap();
        assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], B.into(), GOLD.into())], "{name}");
        assert_eq!(stage.writes(), [(A.into(), "create", Some(errno)), (B.into(), "create", None)], "{name}");
        assert!(domain.release(&stage.manager).await.unwrap());

        // Both refuse: each is asked once, and the words name the kernel's answer of each.
        stage.host.clear_log();
        let other = create_fails(&stage.host, B, GOLD, errno);
        let (error, message) = refused(domain.prepare(&stage.manager).await);
        assert_eq!(error, ErrorName::KernelRefused, "{name}: {message}");
        for parent in [A, B] {
            reads_well(&message, &format!("{parent}/mdev_supported_types/{GOLD}/create"), name);
        }
        assert!(message.contains(&domain.mdevs[0].to_string()), "{message}");
        assert_eq!(stage.writes(), [(A.into(), "create", Some(errno)), (B.into(), "create", Some(errno))], "{name}");
        fault.let_go();
        other.let_go();
        stage.wait_clean().await;
    }
}

#[tokio::test]
async fn create_that_says_anything_else_fails_the_start_and_undoes_it() {
    let stage = Stage::start(two_cards()).await;
    for (errno, name) in ALL.into_iter().filter(|(errno, _)| !ELSEWHERE.contains(errno)) {
        stage.host.clear_log();
        let domain = Domain::wants("vm", &[GOLD, TIN]);
        let fault = host_fault(&stage, errno);
        let (error, message) = refused(domain.prepare(&stage.manager).await);
        let expected = if errno == Errno::EXIST { ErrorName::Conflict } else { ErrorName::KernelRefused };
        assert_eq!(error, expected, "{name}: {message}");
        reads_well(&message, &format!("mdev_supported_types/{TIN}/create"), name);
        assert!(message.contains(&domain.mdevs[1].to_string()), "{message}");
        // The first device was made and is removed again; the second was tried once, and nowhere else.
        let removed = domain.mdevs[0].to_string();
        assert_eq!(
            stage.writes(),
            [(A.into(), "create", None), (A.into(), "create", Some(errno)), (removed, "remove", None)],
            "{name}"
        );
        fault.let_go();
        stage.wait_clean().await;
        // And it was the fault's doing.
        domain.prepare(&stage.manager).await.unwrap();
        assert!(domain.release(&stage.manager).await.unwrap());
        stage.wait_clean().await;
    }
}

fn host_fault(stage: &Stage, errno: Errno) -> Rule {
    stage.host.fault(Op::Write, format!("sys/**/{TIN}/create"), Fault::Errno(errno))
}

#[tokio::test]
async fn a_full_second_request_takes_its_first_with_it() {
    let stage = Stage::start(two_cards()).await;
    for errno in ELSEWHERE {
        let domain = Domain::wants("vm", &[GOLD, TIN]);
        let fault = host_fault(&stage, errno);
        assert_eq!(refused(domain.prepare(&stage.manager).await).0, ErrorName::KernelRefused);
        assert_eq!(fault.hits(), 2);
        fault.let_go();
        stage.wait_clean().await;
    }
}

/// Somebody makes the very device between mdevd's look and its write: it is theirs.
#[tokio::test]
async fn a_device_that_somebody_else_made_first_is_never_removed() {
    let host = std::sync::Arc::new(two_cards().mount().unwrap());
    let domain = Domain::wants("vm", &[TIN, GOLD]);
    let theirs = domain.mdevs[1];
    let maker = host.clone();
    let point = host.on(Point::in_write(format!("sys/**/{GOLD}/create")), move |_| {
        maker.create_mdev(A, GOLD, theirs).unwrap();
        Then::Proceed
    });
    let shared = host.clone();
    let _init = host.process(1, "systemd", &["/sbin/init"]);
    let bus = mdevd_tests::harness::Bus::start();
    let mut daemon = mdevd_tests::harness::Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    let (error, message) = refused(domain.prepare(&manager).await);
    assert_eq!(error, ErrorName::Conflict, "{message}");
    reads_well(&message, &theirs.to_string(), "EEXIST");
    met(&point, 1).await;
    eventually("the claim's end", || async { claim_files(&shared).is_empty() }).await;
    assert_eq!(host.mdevs(), [(theirs, A.into(), GOLD.into())]);
    assert!(host.sys_writes().iter().all(|(path, _, _)| !path.contains(&format!("{theirs}/remove"))));
    // Nor by a start that follows, nor by a new daemon.
    daemon.kill(&bus).await;
    let _daemon = mdevd_tests::harness::Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    manager.reconcile(&HashMap::new()).await.unwrap();
    assert_eq!(host.mdevs(), [(theirs, A.into(), GOLD.into())]);
}

/// Nine domains end, and each of their devices answers another errno.
#[tokio::test]
async fn remove_that_fails_is_listed_and_tried_again() {
    let stage = Stage::start(fakesys::host().parent(A).driver("i915").mdev_type(GOLD, 16)).await;
    let mut failing = Vec::new();
    for (errno, name) in ALL {
        let domain = Domain::wants(&format!("vm-{name}"), &[GOLD]);
        domain.prepare(&stage.manager).await.unwrap();
        let remove = format!("{}/remove", stage.host.mdev_path(A, domain.mdevs[0]));
        failing.push((stage.host.fault(Op::Write, remove, Fault::Errno(errno)), domain, name));
    }
    for (_, domain, _) in &failing {
        releasing(&stage, domain);
    }
    for (fault, domain, name) in &failing {
        let message = stage.wait_problem(&format!("claim {}", domain.uuid), name).await;
        reads_well(&message, &format!("{}/remove", domain.mdevs[0]), name);
        assert!(message.contains(&domain.name), "{message}");
        stage.wait_claim(domain.uuid, "failed").await;
        assert!(fault.hits() >= 1);
    }
    assert_eq!(stage.host.mdevs().len(), ALL.len(), "no device is forgotten");
    for (fault, ..) in &failing {
        let tried = fault.hits();
        stage.reconcile().await;
        met(fault, tried + 1).await;
        fault.let_go();
    }
    stage.reconcile().await;
    stage.wait_clean().await;
}

/// An attribute is set after its device is made: a refusal unmakes the device.
#[tokio::test]
async fn an_attribute_that_is_refused_unmakes_the_device() {
    let stage = Stage::start(two_cards()).await;
    for (errno, name) in ALL {
        stage.host.clear_log();
        let uuid = Uuid::new_v4();
        let fault = stage.host.fault(Op::Write, "sys/**/tuning/depth", Fault::Errno(errno));
        let text = uuid.to_string();
        let attributes = || Variant::from(vec![("tuning/depth", "7"), ("tuning/depth", "9")]);
        let options: Options<'_> = HashMap::from([("uuid", Variant::from(text.as_str())), ("attrs", attributes())]);
        let (error, message) = refused(stage.manager.create_mdev(GOLD, &options).await);
        assert_eq!(error, ErrorName::KernelRefused, "{name}: {message}");
        reads_well(&message, &format!("{uuid}/tuning/depth"), name);
        assert!(message.contains("'7'"), "{message}");
        let verbs: Vec<_> = stage.writes().into_iter().map(|(_, verb, errno)| (verb, errno)).collect();
        assert_eq!(verbs, [("create", None), ("set", Some(errno)), ("remove", None)], "{name}");
        fault.let_go();
        stage.wait_clean().await;
    }
    // In order, the same name twice.
    stage.host.clear_log();
    let options = HashMap::from([("attrs", Variant::from(vec![("tuning/depth", "7"), ("tuning/depth", "9")]))]);
    stage.manager.create_mdev(GOLD, &options).await.unwrap();
    let values: Vec<String> = stage.host.sys_writes().into_iter().skip(1).map(|(_, value, _)| value).collect();
    assert_eq!(values, ["7", "9"]);
}

/// An undo that fails as well: both are told, and it is tried again.
#[tokio::test]
async fn an_undo_that_fails_is_told_and_tried_again() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    let create = stage.host.fault(Op::Write, format!("sys/**/{TIN}/create"), Fault::Errno(Errno::INVAL));
    let remove = stage.host.fault(Op::Write, "sys/**/remove", Fault::Errno(Errno::BUSY));
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::KernelRefused, "{message}");
    assert!(message.contains("EINVAL"), "what failed first is what the start failed of: {message}");
    stage.wait_problem(&format!("claim {}", domain.uuid), "EBUSY").await;
    create.let_go();
    // Its next start waits for the device to be given back, and says so when that takes too long.
    let (error, message) = refused(domain.prepare_within(&stage.manager, 500).await);
    assert_eq!(error, ErrorName::Busy, "{message}");
    assert!(message.contains("given back") && message.contains("EBUSY"), "{message}");
    remove.let_go();
    stage.wait_clean().await;
    domain.prepare(&stage.manager).await.unwrap();
}
