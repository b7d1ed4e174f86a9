//! The kernel says one thing and does another, or half of it; parents and types come late, go early, or cannot be read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;
use std::sync::Arc;

use faults_common::*;
use mdevd_dbus::ErrorName;
use mdevd_dbus::wire::{number, text};
use mdevd_tests::fakesys::{self, Errno, FakeHost, Fault, Op, Point, Then};
use mdevd_tests::harness::{Bus, Daemon, Domain, claim_files, eventually, text_dict};
use uuid::Uuid;

#[tokio::test]
async fn a_device_of_another_type_is_not_given_to_the_domain_nor_left_behind() {
    let stage = Stage::start(two_cards()).await;
    stage.host.next_create_makes(A, GOLD, TIN);
    let domain = Domain::wants("vm", &[GOLD]);
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::KernelRefused, "{message}");
    for part in [GOLD, TIN, A, &domain.mdevs[0].to_string(), "journalctl"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
    stage.wait_clean().await;
    assert_eq!(
        stage.writes(),
        [(A.into(), "create", None), (domain.mdevs[0].to_string(), "remove", None)],
        "it was made by us, and is unmade by us"
    );
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
}

/// What is wrong with a parent leaves with it, whether or not the kernel says so, and whether or not it could ever be read.
#[tokio::test]
async fn a_parent_that_cannot_be_read_is_forgotten_when_it_is_gone() {
    let host = two_cards().mount().unwrap();
    let link = |parent| format!("sys/class/mdev_bus/{parent}");
    host.fault(Op::Readlink, link(B), Fault::Errno(Errno::IO));
    let stage = Stage::over(host).await;
    stage.wait_problem(&format!("parent {B}"), "EIO").await;
    stage.host.fault(Op::Readlink, link(A), Fault::Errno(Errno::IO));
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_problem(&format!("parent {A}"), "EIO").await;
    stage.host.unplug(A);
    stage.wait_parent(A, "gone").await;
    stage.host.lose_uevents(true);
    stage.host.unplug(B);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_no_problems().await;
}

#[tokio::test]
async fn a_create_that_is_accepted_but_makes_nothing() {
    let host = Arc::new(two_cards().mount().unwrap());
    let domain = Domain::wants("vm", &[GOLD]);
    let (undoes, uuid) = (host.clone(), domain.mdevs[0]);
    host.on(Point::after_write("sys/**/create"), move |_| {
        undoes.remove_mdev(uuid).unwrap();
        Then::Proceed
    });
    let _init = host.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let _daemon = Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    let (error, message) = refused(domain.prepare(&manager).await);
    assert_eq!(error, ErrorName::KernelRefused, "{message}");
    assert!(message.contains(A) && message.contains(&uuid.to_string()) && message.contains("journalctl"), "{message}");
    assert!(claim_files(&host).is_empty());
    assert_eq!(host.sys_writes().len(), 1);
    domain.prepare(&manager).await.unwrap();
}

#[tokio::test]
async fn a_remove_that_is_accepted_but_removes_nothing() {
    let host = Arc::new(two_cards().mount().unwrap());
    let domain = Domain::wants("vm", &[GOLD]);
    let (redoes, uuid) = (host.clone(), domain.mdevs[0]);
    host.on(Point::after_write("sys/**/remove"), move |_| {
        redoes.create_mdev(A, GOLD, uuid).unwrap();
        Then::Proceed
    });
    let _init = host.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let _daemon = Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    domain.prepare(&manager).await.unwrap();
    assert!(domain.release(&manager).await.unwrap());
    // It is tried again until it is so.
    eventually("the device's end", || async { host.mdevs().is_empty() && claim_files(&host).is_empty() }).await;
    assert_eq!(host.sys_writes().iter().filter(|(path, ..)| path.ends_with("/remove")).count(), 2);
}

/// The writer is killed (by a person, or for want of memory) in its write, which the kernel carries out all the same.
#[tokio::test]
async fn a_writer_that_is_killed() {
    let stage = Stage::start(two_cards()).await;
    let kill = |glob: &str| {
        stage.host.on(Point::in_write(glob), |event| {
            let pid = i32::try_from(event.pid).ok().and_then(rustix::process::Pid::from_raw).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            Then::Proceed
        })
    };
    kill("sys/**/create");
    let domain = Domain::wants("vm", &[GOLD]);
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::KernelRefused, "{message}");
    assert!(message.contains("killed by signal 9") && message.contains("try again"), "{message}");
    stage.wait_clean().await;
    domain.prepare(&stage.manager).await.unwrap();
    kill("sys/**/remove");
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_parent_that_says_none_is_left_is_tried_last() {
    let stage = Stage::start(two_cards()).await;
    stage.host.says_available(A, GOLD, "0");
    stage.host.says_available(B, GOLD, "0");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    let first = Domain::wants("first", &[GOLD]);
    first.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(first.mdevs[0], A.into(), GOLD.into())]);
    // One that says it has some comes first.
    stage.host.says_available(B, GOLD, "1");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    let second = Domain::wants("second", &[GOLD]);
    second.prepare(&stage.manager).await.unwrap();
    assert!(stage.host.mdevs().contains(&(second.mdevs[0], B.into(), GOLD.into())));
}

#[tokio::test]
async fn a_parent_that_says_some_are_left_but_has_none_is_passed_over() {
    let stage = Stage::start(two_cards()).await;
    for _ in 0..4 {
        stage.host.create_mdev(A, GOLD, Uuid::new_v4()).unwrap();
    }
    stage.host.says_available(A, GOLD, "3");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    let types = stage.parent(A).await.types().await.unwrap();
    let gold = types.iter().find(|one| text(one, "id") == GOLD).unwrap();
    assert_eq!(number(gold, "available"), Some(3), "what the kernel says is what is shown");
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.writes(), [(A.into(), "create", Some(Errno::NOSPC)), (B.into(), "create", None)]);
    assert!(domain.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs().len(), 4);
}

/// A removal by hand of a device that somebody has open: the kernel waits, and the device is neither there nor gone.
#[tokio::test]
async fn a_half_removed_device_is_stuck_until_it_is_gone() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0];
    stage.host.create_mdev(A, GOLD, uuid).unwrap();
    stage.wait_mdev(uuid, "ok").await;
    stage.host.half_remove(uuid);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_mdev(uuid, "stuck").await;
    stage.wait_problem(&uuid.to_string(), "half removed").await;
    // Nobody gets it, neither now nor when it is asked for again, and nothing is written to it.
    for _ in 0..2 {
        let (error, message) = refused(domain.prepare(&stage.manager).await);
        assert_eq!(error, ErrorName::Stuck, "{message}");
        assert!(message.contains("half removed"), "{message}");
    }
    let options = HashMap::from([("force", true.into())]);
    let (error, message) = refused(stage.mdev(uuid).await.remove(&options).await);
    assert_eq!(error, ErrorName::Stuck, "{message}");
    assert_eq!(stage.writes(), []);
    assert_eq!(stage.mdev(uuid).await.state().await.unwrap(), "stuck");
    // The kernel ends it, and says so.
    stage.host.unplug(A);
    stage.wait_mdev(uuid, "gone").await;
    stage.wait_clean().await;
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(uuid, B.into(), GOLD.into())]);
}

#[tokio::test]
async fn a_device_without_its_type_is_stuck_and_stays() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    stage.host.loses_type_link(domain.mdevs[0]);
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_mdev(domain.mdevs[0], "stuck").await;
    assert_eq!(stage.mdev(domain.mdevs[0]).await.mdev_type().await.unwrap(), "");
    stage.wait_problem(&domain.mdevs[0].to_string(), "mdev_type").await;
    stage.reconcile().await;
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(stage.writes().iter().map(|(_, verb, _)| *verb).collect::<Vec<_>>(), ["create"]);
}

#[tokio::test]
async fn a_type_that_cannot_be_read_is_reported_and_skipped() {
    let host = two_cards().mount().unwrap();
    host.set_text(&host.type_path(A, GOLD, "available_instances"), "many\n");
    host.drop_path(&host.type_path(B, TIN, "device_api"));
    host.set_text(&host.type_path(B, GOLD, "name"), "\u{1b}[2Jbad\u{7}\n");
    let stage = Stage::over(host).await;
    let message = stage.wait_problem(A, "available_instances").await;
    assert!(message.contains(GOLD) && message.contains("'many'") && message.contains("not offered"), "{message}");
    let message = stage.wait_problem(B, "device_api").await;
    assert!(message.contains(TIN) && message.contains("ENOENT"), "{message}");
    assert_eq!((stage.types(A).await, stage.types(B).await), (vec![TIN.to_owned()], vec![GOLD.to_owned()]));
    // The rest of the host is as it was.
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    domain.prepare(&stage.manager).await.unwrap();
    let mut made = stage.host.mdevs();
    made.sort_by_key(|(_, parent, _)| parent.clone());
    assert_eq!(made, [(domain.mdevs[1], A.into(), TIN.into()), (domain.mdevs[0], B.into(), GOLD.into())]);
    let wants_broken = text_dict(&[("name", "x"), ("type", GOLD), ("parent", A)]);
    let mut other = Domain::wants("other", &[GOLD]);
    other.requests = vec![wants_broken];
    other.requests[0].insert("uuid".into(), other.mdevs[0].to_string());
    let (error, message) = refused(other.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::NotFound, "{message}");
    // Mended, it is offered, and no problem any more.
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.host.set_text(&stage.host.type_path(A, GOLD, "available_instances"), "2\n");
    stage.host.set_text(&stage.host.type_path(B, TIN, "device_api"), "vfio-pci\n");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    stage.wait_clean().await;
    assert_eq!(stage.types(A).await, [GOLD, TIN]);
}

#[tokio::test]
async fn what_vanishes_in_the_middle_of_a_look_costs_the_rest_nothing() {
    let host = two_cards().mount().unwrap();
    // Listed, and gone when it is opened: an attribute that is needed, and one that is not.
    host.fault(Op::Open, host.type_path(A, GOLD, "available_instances"), Fault::Errno(Errno::NOENT));
    host.fault(Op::Open, host.type_path(A, TIN, "name"), Fault::Errno(Errno::NOENT));
    // Opened, and gone when it is read.
    host.fault(Op::Read, host.type_path(B, GOLD, "device_api"), Fault::Errno(Errno::NODEV));
    let stage = Stage::over(host).await;
    assert_eq!((stage.types(A).await, stage.types(B).await), (vec![TIN.to_owned()], vec![TIN.to_owned()]));
    stage.wait_problem(A, GOLD).await;
    stage.wait_problem(B, GOLD).await;
    Domain::wants("vm", &[TIN]).prepare(&stage.manager).await.unwrap();
    // A whole parent that goes while it is read.
    let vanishing = Arc::new(fakesys::host().mtty().mount().unwrap());
    let pulled = vanishing.clone();
    let gone = vanishing.on(Point::before(Op::Open, "sys/**/mtty-2/available_instances"), move |_| {
        pulled.unplug("mtty");
        Then::Proceed
    });
    let _init = vanishing.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let daemon = Daemon::start(&vanishing, &bus).await;
    met(&gone, 1).await;
    let manager = bus.manager().await;
    eventually("no trace of it", || async {
        manager.problems().await.unwrap().is_empty() && manager.find("mtty").await.unwrap().is_empty()
    })
    .await;
    drop(daemon);
}

#[tokio::test]
async fn types_that_come_late_are_offered_when_the_kernel_says_so() {
    let stage = Stage::start(two_cards().parent("0000:81:00.0").driver("i915").types_late().mdev_type("late", 1)).await;
    let domain = Domain::wants("vm", &["late"]);
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::NotFound, "{message}");
    stage.host.types_appear("0000:81:00.0");
    stage.wait_parent("0000:81:00.0", "ok").await;
    eventually("its type", || async { stage.types("0000:81:00.0").await == ["late"] }).await;
    domain.prepare(&stage.manager).await.unwrap();
}

#[tokio::test]
async fn parents_come_and_go() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    stage.host.plug(fakesys::host().mtty());
    stage.wait_parent("mtty", "ok").await;
    let serial = Domain::wants("serial", &["mtty-1"]);
    serial.prepare(&stage.manager).await.unwrap();
    stage.wait_mdev(serial.mdevs[0], "ok").await;
    assert!(serial.release(&stage.manager).await.unwrap());

    stage.host.unplug(A);
    stage.wait_parent(A, "gone").await;
    stage.wait_mdev(domain.mdevs[0], "gone").await;
    let (error, message) = refused({
        let mut pinned = Domain::wants("pinned", &[GOLD]);
        pinned.requests[0].insert("parent".into(), A.into());
        pinned.prepare(&stage.manager).await
    });
    assert_eq!(error, ErrorName::NotFound, "{message}");
    assert!(message.contains(A), "{message}");
    // Its domain still has its claim, and ends like any other.
    assert_eq!(claim_files(&stage.host).len(), 1);
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], B.into(), GOLD.into())]);
}

/// The parent goes while a device is being made on it.
#[tokio::test]
async fn a_parent_that_goes_in_mid_create() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::Write, stage.host.type_path(A, GOLD, "create"), Fault::Hang);
    let domain = Domain::wants("vm", &[GOLD]);
    let start = preparing(&stage, &domain, 8000);
    met(&hang, 1).await;
    stage.host.unplug(A);
    hang.let_go_with(Errno::NODEV);
    let (error, message) = refused(start.await.unwrap());
    assert_eq!(error, ErrorName::KernelRefused, "{message}");
    assert!(message.contains("ENODEV") && message.contains(A), "{message}");
    stage.wait_clean().await;
}

#[tokio::test]
async fn lost_events_are_repaired_by_a_rescan() {
    let stage = Stage::start(two_cards()).await;
    let stays = Uuid::new_v4();
    stage.host.create_mdev(B, GOLD, stays).unwrap();
    stage.wait_mdev(stays, "ok").await;
    stage.host.lose_uevents(true);
    let unseen = Uuid::new_v4();
    stage.host.create_mdev(B, TIN, unseen).unwrap();
    stage.host.remove_mdev(stays).unwrap();
    stage.host.unplug(A);
    stage.host.plug(fakesys::host().mdpy());
    assert!(stage.mdev(stays).await.state().await.is_ok(), "nobody has said anything yet");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    // When the call returns all of it has been told.
    assert!(stage.parent(A).await.state().await.is_err());
    assert!(stage.mdev(stays).await.state().await.is_err());
    assert_eq!(stage.mdev(unseen).await.origin().await.unwrap(), "foreign");
    assert_eq!(stage.types("mdpy").await.len(), 3);
    // Even unseen, the very device that is asked for is looked at before it is promised.
    let domain = Domain::wants("vm", &[TIN]);
    stage.host.create_mdev(B, TIN, domain.mdevs[0]).unwrap();
    domain.prepare(&stage.manager).await.unwrap();
    assert!(domain.release(&stage.manager).await.unwrap());
    assert!(stage.host.mdevs().iter().any(|(uuid, ..)| *uuid == domain.mdevs[0]), "it was there before, and stays");
}

fn many(parents: usize) -> FakeHost {
    let mut host = fakesys::host();
    for i in 0..parents {
        host = host.parent(&format!("0000:{:02x}:{:02x}.{}", 0x10 + i / 64, (i / 8) % 8, i % 8)).driver("i915");
        for (n, mdev_type) in [GOLD, TIN].into_iter().enumerate() {
            host = host.mdev_type(mdev_type, 1 + n as u32);
        }
    }
    host.mount().unwrap()
}

#[tokio::test]
async fn five_hundred_and_twelve_parents() {
    let stage = Stage::over(many(512)).await;
    let candidates =
        stage.manager.explain(&[text_dict(&[("name", "x"), ("type", GOLD)])], &HashMap::new()).await.unwrap();
    assert_eq!(candidates.len(), 512);
    assert_eq!(candidates.iter().filter(|one| text(one, "verdict") == "chosen").count(), 1);
    // Every one of a domain's eight is somewhere else, where there is one each.
    let domain = Domain::wants("vm", &[GOLD; 8]);
    domain.prepare_within(&stage.manager, 30_000).await.unwrap();
    let parents: std::collections::BTreeSet<String> =
        stage.host.mdevs().into_iter().map(|(_, parent, _)| parent).collect();
    assert_eq!(parents.len(), 8);
    // Full hosts refuse in a sentence that a person can read.
    let (error, message) = refused({
        let mut greedy = Domain::wants("greedy", &[GOLD]);
        greedy.requests[0].insert("parent".into(), parents.first().unwrap().clone());
        greedy.prepare(&stage.manager).await
    });
    assert!(matches!(error, ErrorName::NoCapacity | ErrorName::KernelRefused), "{error}: {message}");
    assert!(message.contains("domain 'vm'") && message.len() < 1000, "{message}");
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}
