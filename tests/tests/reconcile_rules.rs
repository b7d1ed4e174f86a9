//! When a claim ends without its `release`, rule by rule: what proves that a domain lives, what proves nothing, and that not knowing
//! means keeping.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;

use faults_common::*;
use mdevd_dbus::ErrorName;
use mdevd_tests::fakesys::{Errno, Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, claim_json, eventually};
use uuid::Uuid;

const LIBVIRTD: u32 = 900;
const QEMU: u32 = 4242;

/// Prepares a domain as the hook of a libvirt daemon that started then.
async fn prepare_from(stage: &Stage, domain: &Domain, pid: u32, start: u64) {
    let options = HashMap::from([("pid", pid.into()), ("start-time", start.into())]);
    let (uuid, manager) = (domain.uuid.to_string(), &stage.manager);
    manager.prepare_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options).await.unwrap();
}

/// Looks once, and answers with action and reason of the domain's claim.
async fn look(stage: &Stage, domain: &Domain) -> (String, String) {
    let done = stage.reconcile().await;
    let (_, action, reason) = done.into_iter().find(|(claim, ..)| *claim == domain.uuid).expect("its claim");
    (action, reason)
}

/// Until a look has seen the domain alive.
async fn wait_seen(stage: &Stage, domain: &Domain) {
    eventually("the domain was seen", || async { claim_json(&domain.claim_file(&stage.host))["seen"] == true }).await;
}

fn still_has(stage: &Stage, domain: &Domain) {
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["state"], "ready");
    assert!(domain.mdevs.iter().all(|uuid| stage.host.mdevs().iter().any(|(made, ..)| made == uuid)));
    assert!(stage.writes().iter().all(|(_, verb, _)| *verb != "remove"));
}

/// Between `prepare` and QEMU's first open there is no status file and no holder, for as long as a hook script takes.
#[tokio::test]
async fn a_domain_that_is_starting_is_kept_as_long_as_its_libvirt_daemon_lives() {
    let mut stage = Stage::start(two_cards()).await;
    let libvirtd = stage.host.process(LIBVIRTD, "libvirtd", &["libvirtd"]).started(5000);
    let domain = Domain::wants("vm", &[GOLD]);
    prepare_from(&stage, &domain, LIBVIRTD, 5000).await;
    for _ in 0..20 {
        let (action, reason) = look(&stage, &domain).await;
        assert_eq!(action, "keep", "{reason}");
        assert!(reason.contains("starting"), "{reason}");
    }
    still_has(&stage, &domain);
    stage.kill().await;
    stage.again().await;
    for _ in 0..20 {
        assert_eq!(look(&stage, &domain).await.0, "keep");
    }
    still_has(&stage, &domain);
    // It begins to run, and its libvirt daemon is restarted.
    let qemu = stage.host.process(QEMU, "qemu-system-x86", &["qemu"]).opens_group_of(domain.mdevs[0]);
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    wait_seen(&stage, &domain).await;
    libvirtd.vanish();
    let (action, reason) = look(&stage, &domain).await;
    assert_eq!(action, "keep");
    assert!(reason.contains("qemu-system-x86") && reason.contains("4242"), "{reason}");
    // Either of the two is enough.
    stage.host.domain_stops("vm").unwrap();
    assert_eq!(look(&stage, &domain).await.0, "keep");
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    qemu.closes_groups();
    let (action, reason) = look(&stage, &domain).await;
    assert_eq!((action.as_str(), reason.as_str()), ("keep", "the domain is running"));
    still_has(&stage, &domain);
}

#[tokio::test]
async fn one_look_frees_nothing() {
    let stage = Stage::start(two_cards()).await;
    let _libvirtd = stage.host.process(LIBVIRTD, "libvirtd", &["libvirtd"]).started(5000);
    let domain = Domain::wants("vm", &[GOLD]);
    prepare_from(&stage, &domain, LIBVIRTD, 5000).await;
    let qemu = stage.host.process(QEMU, "qemu-system-x86", &["qemu"]).opens_group_of(domain.mdevs[0]);
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    wait_seen(&stage, &domain).await;
    // Seen, and then gone: between libvirt's `stopped` and `release` it looks like that as well.
    stage.host.domain_stops("vm").unwrap();
    qemu.vanish();
    for _ in 0..10 {
        let (action, reason) = look(&stage, &domain).await;
        assert_eq!(action, "look-again", "{reason}");
        assert!(reason.contains("30 s"), "{reason}");
    }
    still_has(&stage, &domain);
    // It is back: the time that has passed does not count any more.
    stage.host.domain_runs("vm", 1, &domain_xml(&domain)).unwrap();
    assert_eq!(look(&stage, &domain).await.0, "keep");
    // A status file that outlives its QEMU proves nothing.
    stage.host.domain_runs("vm", 31337, &domain_xml(&domain)).unwrap();
    assert_eq!(look(&stage, &domain).await.0, "look-again");
    still_has(&stage, &domain);
    stage.wait_no_problems().await;
}

#[tokio::test]
async fn without_its_libvirt_daemon_files_and_holders_decide() {
    let stage = Stage::start(two_cards()).await;
    let libvirtd = stage.host.process(LIBVIRTD, "libvirtd", &["libvirtd"]).started(5000);
    let (dead, held, nameless) =
        (Domain::wants("dead", &[GOLD]), Domain::wants("held", &[TIN]), Domain::wants("nameless", &[GOLD]));
    prepare_from(&stage, &dead, LIBVIRTD, 5000).await;
    prepare_from(&stage, &held, LIBVIRTD, 5000).await;
    nameless.prepare(&stage.manager).await.unwrap();
    let _qemu = stage.host.process(QEMU, "qemu-system-x86", &["qemu"]).opens_group_of(held.mdevs[0]);
    // Its pid is another's by now.
    libvirtd.vanish();
    let _other = stage.host.process(LIBVIRTD, "sshd", &["sshd"]).started(7000);
    assert_eq!(look(&stage, &dead).await.0, "look-again");
    assert_eq!(look(&stage, &held).await.0, "keep");
    assert_eq!(look(&stage, &nameless).await.0, "look-again", "one that says no process cannot be waited for");
    for domain in [&dead, &held, &nameless] {
        still_has(&stage, domain);
    }
}

#[tokio::test]
async fn who_holds_it_cannot_be_known() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let secret = stage.host.process(666, "secretive", &["secretive"]).hides_fds();
    for _ in 0..3 {
        let (action, reason) = look(&stage, &domain).await;
        assert_eq!(action, "keep", "{reason}");
        assert!(reason.contains("secretive") && reason.contains("EACCES"), "{reason}");
    }
    let message = stage.wait_problem(&format!("domain of claim {}", domain.uuid), "secretive").await;
    assert!(message.contains("'vm'") && message.contains("not known"), "{message}");
    // Nor may it be taken away when the domain ends, by hand, or by force.
    assert_eq!(
        refused(stage.claim(domain.uuid).await.release(&HashMap::from([("force", true.into())])).await).0,
        ErrorName::InUse
    );
    still_has(&stage, &domain);
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_problem(&format!("claim {}", domain.uuid), "secretive").await;
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(stage.writes(), [(A.into(), "create", None)]);
    secret.vanish();
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_device_that_is_still_held_at_release_is_waited_for() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    domain.prepare(&stage.manager).await.unwrap();
    let qemu = stage.host.process(QEMU, "qemu-system-x86", &["qemu"]).opens_group_of(domain.mdevs[1]);
    assert!(domain.release(&stage.manager).await.unwrap());
    let message = stage.wait_problem(&format!("claim {}", domain.uuid), "still held").await;
    assert!(message.contains("qemu-system-x86") && message.contains(&domain.mdevs[1].to_string()), "{message}");
    // What nobody holds is given back at once; the write that would block is not made.
    assert_eq!(stage.host.mdevs().iter().map(|(uuid, ..)| *uuid).collect::<Vec<_>>(), [domain.mdevs[1]]);
    let (error, message) = refused(domain.prepare_within(&stage.manager, 600).await);
    assert_eq!(error, ErrorName::Busy, "{message}");
    assert!(message.contains("still held"), "{message}");
    qemu.closes_groups();
    stage.wait_clean().await;
    assert!(stage.writes().iter().all(|(.., errno)| errno.is_none()));
}

/// What failed is tried at ever longer intervals, whatever else happens on the host; whoever asks for it has it tried at once, once.
#[tokio::test]
async fn reconcile_tries_at_once_what_has_failed() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let remove = format!("{}/remove", stage.host.mdev_path(A, domain.mdevs[0]));
    let fault = stage.host.fault(Op::Write, remove, Fault::Errno(Errno::BUSY));
    assert!(domain.release(&stage.manager).await.unwrap());
    for tries in 1..12 {
        met(&fault, tries).await;
        stage.wait_claim(domain.uuid, "failed").await;
        let (action, reason) = look(&stage, &domain).await;
        assert_eq!(action, "retry");
        assert!(reason.contains("EBUSY"), "{reason}");
    }
    met(&fault, 12).await;
    // By now the next is half a minute away.
    let tried = fault.hits();
    assert_eq!(look(&stage, &domain).await.0, "retry");
    met(&fault, tried + 1).await;
    let other = Domain::wants("other", &[TIN]);
    for _ in 0..20 {
        other.prepare(&stage.manager).await.unwrap();
        assert!(other.release(&stage.manager).await.unwrap());
    }
    // A few more for a machine that has taken that long.
    assert!(fault.hits() < tried + 5, "{tried}, and then {}", fault.hits());
    fault.let_go();
    stage.reconcile().await;
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_status_file_that_cannot_be_read() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let broken = stage.host.run().join("libvirt/qemu/other.xml");
    let subject = format!("domain of claim {}", domain.uuid);
    for content in ["", "<domstatus state='running'", "<!DOCTYPE x><domstatus/>", "\u{0}"] {
        std::fs::write(&broken, content).unwrap();
        let (action, reason) = look(&stage, &domain).await;
        assert_eq!(action, "keep", "{content:?}: {reason}");
        assert!(reason.contains("other.xml"), "{reason}");
        stage.wait_problem(&subject, "other.xml").await;
        std::fs::remove_file(&broken).unwrap();
        assert_eq!(look(&stage, &domain).await.0, "look-again");
        stage.wait_no_problems().await;
    }
    stage.host.domain_runs("other", 1, &domain_xml(&Domain::wants("other", &[]))).unwrap();
    assert_eq!(look(&stage, &domain).await.0, "look-again", "another domain's file says nothing");
    let unreadable = stage.host.fault(Op::Open, "run/libvirt/qemu/other.xml", Fault::Errno(Errno::IO));
    let (action, reason) = look(&stage, &domain).await;
    assert_eq!(action, "keep", "{reason}");
    assert!(reason.contains("EIO"), "{reason}");
    // A start of the same domain must not end a run of which it is not known that it has ended.
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Unavailable, "{message}");
    still_has(&stage, &domain);
    unreadable.let_go();
    let listing = stage.host.fault(Op::List, "run/libvirt/qemu", Fault::Errno(Errno::ACCESS));
    assert_eq!(look(&stage, &domain).await.0, "keep");
    listing.let_go();
    // And one that runs does not start again.
    stage.host.domain_runs("vm", 1, &domain_xml(&domain)).unwrap();
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InUse, "{message}");
    still_has(&stage, &domain);
}

#[tokio::test]
async fn a_look_that_is_only_a_look() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let stranger = Domain::wants("stranger", &[TIN]);
    stage.host.create_mdev(B, TIN, stranger.mdevs[0]).unwrap();
    let _qemu = stage.host.process(QEMU, "qemu", &["qemu"]);
    // Written past the daemon's eyes, which look by themselves when libvirt's folder changes.
    let unseen = stage.host.fault(Op::List, "run/libvirt/qemu", Fault::Errno(Errno::ACCESS));
    stage.host.domain_runs("stranger", QEMU, &domain_xml(&stranger)).unwrap();
    stage.wait_problem(&format!("domain of claim {}", domain.uuid), "EACCES").await;
    unseen.let_go();
    let before = claim_files(&stage.host);
    let done = stage.manager.reconcile(&HashMap::from([("dry-run", true.into())])).await.unwrap();
    let mut actions: Vec<&str> = done.iter().map(|one| mdevd_dbus::wire::text(one, "action")).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["adopt", "look-again"]);
    assert_eq!(claim_files(&stage.host), before);
}

#[tokio::test]
async fn a_manual_claim_stays_and_is_listed_when_its_device_is_gone() {
    let stage = Stage::start(two_cards()).await;
    let (path, _) = stage.manager.create_mdev(GOLD, &HashMap::from([("label", "by hand".into())])).await.unwrap();
    let Some(mdevd_dbus::path::Object::Mdev(uuid)) = mdevd_dbus::path::Object::from_path(path.as_str()) else {
        panic!()
    };
    assert_eq!(stage.reconcile().await[0].1, "keep");
    stage.host.remove_mdev(uuid).unwrap();
    stage.wait_mdev(uuid, "gone").await;
    let (claim, action, reason) = stage.reconcile().await.remove(0);
    assert_eq!(action, "keep");
    assert!(reason.contains(&uuid.to_string()) && reason.contains("release the claim"), "{reason}");
    stage.wait_problem(&format!("domain of claim {claim}"), "gone").await;
    assert!(stage.claim(claim).await.release(&HashMap::new()).await.unwrap());
    stage.wait_clean().await;
}

// ---- running domains that have no claim ----

#[tokio::test]
async fn a_running_domain_is_adopted_at_start_up() {
    let host = two_cards().mount().unwrap();
    // One device under the UUID that mdevd would derive, one that the administrator has chosen.
    let mut domain = Domain::wants("vm", &[GOLD, TIN]);
    let chosen = Uuid::new_v4();
    domain.requests[1].insert("uuid".into(), chosen.to_string());
    domain.hostdevs[1].insert("uuid".into(), chosen.to_string());
    domain.mdevs[1] = chosen;
    host.create_mdev(A, GOLD, domain.mdevs[0]).unwrap();
    host.create_mdev(B, TIN, chosen).unwrap();
    let _qemu = host.process(QEMU, "qemu-system-x86", &["qemu"]).opens_group_of(chosen);
    host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    // Neither one that has ended, nor one that asks for nothing, nor one whose device is not there.
    let ended = Domain::wants("ended", &[GOLD]);
    host.create_mdev(A, GOLD, ended.mdevs[0]).unwrap();
    host.domain_runs("ended", 31337, &domain_xml(&ended)).unwrap();
    let plain = Domain::wants("plain", &[]);
    let without = Domain::wants("without", &[GOLD]);
    let _more = host.process(QEMU + 1, "qemu", &["qemu"]);
    host.domain_runs("plain", QEMU + 1, &domain_xml(&plain)).unwrap();
    host.domain_runs("without", QEMU + 1, &domain_xml(&without)).unwrap();
    let mut stage = Stage::over(host).await;
    eventually("its claim", || async { claim_files(&stage.host).len() == 1 }).await;
    stage.reconcile().await;
    assert_eq!(claim_files(&stage.host).len(), 1);
    let claim = claim_json(&domain.claim_file(&stage.host));
    assert_eq!((&claim["state"], &claim["seen"]), (&"ready".into(), &true.into()));
    let undo: Vec<&str> = claim["grants"].as_array().unwrap().iter().map(|g| g["undo"].as_str().unwrap()).collect();
    assert_eq!(undo, ["remove", "keep"]);
    assert_eq!(stage.host.sys_writes(), []);
    let stranger = stage.mdev(ended.mdevs[0]).await;
    assert_eq!(stranger.origin().await.unwrap(), "foreign");
    // Its run is one like any other, also for the daemon after this one.
    let run = stage.run_of(&domain);
    stage.kill().await;
    stage.again().await;
    stage.reconcile().await;
    assert_eq!(stage.run_of(&domain), run);
    stage.host.domain_stops("vm").unwrap();
    _qemu.vanish();
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_no_claims().await;
    let left: Vec<Uuid> = stage.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
    assert!(!left.contains(&domain.mdevs[0]), "made for it, and goes with it");
    assert!(left.contains(&chosen), "somebody's, and stays");
    assert!(left.contains(&ended.mdevs[0]));
}

#[tokio::test]
async fn a_device_that_a_manual_claim_has_is_only_lent_when_its_domain_is_adopted() {
    let mut stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0];
    let under = HashMap::from([("uuid", uuid.to_string().into())]);
    stage.manager.create_mdev(GOLD, &under).await.unwrap();
    let _qemu = stage.host.process(QEMU, "qemu", &["qemu"]).opens_group_of(uuid);
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    stage.kill().await;
    stage.again().await;
    eventually("its claim", || async { domain.claim_file(&stage.host).exists() }).await;
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["grants"][0]["undo"], "keep");
    stage.host.domain_stops("vm").unwrap();
    _qemu.vanish();
    assert!(domain.release(&stage.manager).await.unwrap());
    assert_eq!(claim_files(&stage.host).len(), 1, "the manual claim is left");
    assert!(stage.mdev(uuid).await.remove(&HashMap::new()).await.unwrap());
    stage.wait_no_claims().await;
    assert_eq!(stage.host.mdevs(), []);
}

#[tokio::test]
async fn lost_claims_of_running_domains_are_found_again() {
    let mut stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let _qemu = stage.host.process(QEMU, "qemu", &["qemu"]).opens_group_of(domain.mdevs[0]);
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    stage.kill().await;
    std::fs::remove_file(domain.claim_file(&stage.host)).unwrap();
    stage.again().await;
    eventually("its claim", || async { domain.claim_file(&stage.host).exists() }).await;
    still_has(&stage, &domain);
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["grants"][0]["undo"], "remove");
    // At run time as well, when libvirt says that one runs.
    let late = Domain::wants("late", &[TIN]);
    stage.host.create_mdev(B, TIN, late.mdevs[0]).unwrap();
    stage.host.domain_runs("late", QEMU, &domain_xml(&late)).unwrap();
    eventually("the claim of the late one", || async { late.claim_file(&stage.host).exists() }).await;
}

#[tokio::test]
async fn adopting_renews_the_process() {
    let stage = Stage::start(two_cards()).await;
    let old = stage.host.process(LIBVIRTD, "libvirtd", &["libvirtd"]).started(5000);
    let domain = Domain::wants("vm", &[GOLD]);
    prepare_from(&stage, &domain, LIBVIRTD, 5000).await;
    let run = stage.run_of(&domain);
    old.vanish();
    let _new = stage.host.process(LIBVIRTD + 1, "libvirtd", &["libvirtd"]).started(8000);
    let adopt = async || {
        let options = HashMap::from([("pid", (LIBVIRTD + 1).into()), ("start-time", 8000u64.into())]);
        let uuid = domain.uuid.to_string();
        stage.manager.adopt_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options).await.unwrap()
    };
    assert!(adopt().await);
    let claim = claim_json(&domain.claim_file(&stage.host));
    assert_eq!(claim["process"], serde_json::json!({"pid": LIBVIRTD + 1, "start_time": 8000}));
    assert_eq!(stage.run_of(&domain), run);
    assert!(!adopt().await, "nothing was needed");
    assert_eq!(look(&stage, &domain).await.0, "keep");
    still_has(&stage, &domain);
}

/// A domain that was seen running with mdevs of NVIDIA's driver, has ended, and is released.
async fn after_a_run_on_nvidia(types: &[&str]) -> (Stage, Domain) {
    let stage = Stage::start(mdevd_tests::fakesys::host().parent(A).driver("nvidia").mdev_type("nvidia-63", 4)).await;
    let domain = Domain::wants("vm", types);
    domain.prepare(&stage.manager).await.unwrap();
    let qemu = stage.host.process(QEMU, "qemu", &["qemu"]).opens_group_of(domain.mdevs[0]);
    stage.host.domain_runs("vm", QEMU, &domain_xml(&domain)).unwrap();
    wait_seen(&stage, &domain).await;
    stage.host.domain_stops("vm").unwrap();
    qemu.vanish();
    assert!(domain.release(&stage.manager).await.unwrap());
    (stage, domain)
}

/// NVIDIA's driver removes the device by itself when its VM has ended; removing it first leaves a ghost behind.
#[tokio::test]
async fn a_driver_that_removes_its_devices_itself_is_waited_for() {
    let (stage, domain) = after_a_run_on_nvidia(&["nvidia-63"]).await;
    stage.host.remove_mdev(domain.mdevs[0]).unwrap();
    stage.wait_clean().await;
    assert_eq!(stage.writes(), [(A.into(), "create", None)]);
}

/// It is waited for once, and not once for each device: the start that follows waits 8 s.
#[tokio::test]
async fn a_driver_that_does_not_remove_them_after_all_is_not_waited_for_longer_than_a_start_waits() {
    let (stage, domain) = after_a_run_on_nvidia(&["nvidia-63", "nvidia-63"]).await;
    assert_eq!(stage.host.mdevs().len(), 2, "it is waited for");
    preparing(&stage, &domain, 10_000).await.unwrap().unwrap();
    let verbs: Vec<&str> = stage.writes().iter().map(|(_, verb, _)| *verb).collect();
    assert_eq!(verbs, ["create", "create", "remove", "remove", "create", "create"]);
}
