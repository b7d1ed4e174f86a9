//! Domains that want the same thing, or come and go faster than the kernel: nobody gets what another one has, nobody's device is removed
//! under it, and late words change nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use faults_common::*;
use mdevd_dbus::ErrorName;
use mdevd_dbus::wire::text;
use mdevd_tests::fakesys::{self, Builder, Fault, Op, Point};
use mdevd_tests::harness::{Domain, claim_files, claim_json, eventually, hostdev, text_dict};
use uuid::Uuid;

fn one_left() -> Builder {
    fakesys::host().parent(A).driver("i915").mdev_type(GOLD, 1)
}

#[tokio::test]
async fn two_domains_want_the_last_one() {
    let stage = Stage::start(one_left()).await;
    for round in 0..10 {
        let domains = [Domain::wants("left", &[GOLD]), Domain::wants("right", &[GOLD])];
        let calls = [0, 1].map(|i| preparing(&stage, &domains[(i + round) % 2], 8000));
        let mut answers = Vec::new();
        for (i, call) in calls.into_iter().enumerate() {
            answers.push((&domains[(i + round) % 2], call.await.unwrap()));
        }
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(_, answer)| answer.is_ok());
        assert_eq!((won.len(), lost.len()), (1, 1));
        let (winner, loser) = (won[0].0, lost[0].0);
        let (error, message) = refused(lost.into_iter().next().unwrap().1);
        assert!(matches!(error, ErrorName::NoCapacity | ErrorName::KernelRefused), "{error}: {message}");
        assert!(message.contains(&format!("'{}'", winner.name)), "the message names who has it: {message}");
        assert_eq!(stage.host.mdevs(), [(winner.mdevs[0], A.into(), GOLD.into())]);
        assert_eq!(claim_files(&stage.host), BTreeSet::from([format!("{}.json", winner.uuid)]));
        // libvirt ends the start that failed, which frees nothing of the other's.
        assert!(!loser.release(&stage.manager).await.unwrap());
        assert_eq!(stage.host.mdevs().len(), 1);
        assert!(winner.release(&stage.manager).await.unwrap());
        stage.wait_clean().await;
    }
}

/// The one that is promised the last instance has not made it yet.
#[tokio::test]
async fn what_is_promised_is_not_promised_again() {
    let stage = Stage::start(one_left()).await;
    let hang = stage.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let (first, second) = (Domain::wants("first", &[GOLD]), Domain::wants("second", &[GOLD]));
    let start = preparing(&stage, &first, 8000);
    met(&hang, 1).await;
    let (error, message) = refused(second.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::NoCapacity, "{message}");
    assert!(message.contains("promised") && message.contains("'first'"), "{message}");
    hang.let_go();
    start.await.unwrap().unwrap();
    assert_eq!(stage.host.mdevs(), [(first.mdevs[0], A.into(), GOLD.into())]);
}

/// The kernel counts a device as soon as it makes it, and until it is there it counts as promised: a look in between must not count it twice.
#[tokio::test]
async fn what_is_being_made_is_counted_once() {
    let stage = Stage::start(fakesys::host().parent(A).driver("i915").mdev_type(GOLD, 2)).await;
    let hang = stage.host.fault_at(Point::after_write("sys/**/create"), Fault::Hang);
    let (first, second) = (Domain::wants("first", &[GOLD]), Domain::wants("second", &[GOLD]));
    let one = preparing(&stage, &first, 8000);
    met(&hang, 1).await;
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    let other = preparing(&stage, &second, 8000);
    eventually("the second one is promised what is left", || async { claim_files(&stage.host).len() == 2 }).await;
    hang.let_go();
    one.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(stage.host.mdevs().len(), 2);
}

/// `virsh destroy` and `virsh start` back to back, while the kernel takes its time with the removal: longer than a single write may take.
#[tokio::test]
async fn destroy_and_start_back_to_back() {
    let stage = Stage::start(one_left()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let first_run = stage.run_of(&domain);
    let slow = stage.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    assert!(domain.release(&stage.manager).await.unwrap(), "this answers before the kernel does");
    let start = preparing(&stage, &domain, 30_000);
    met(&slow, 1).await;
    // Past the deadline of one write the device counts as stuck. The start still waits.
    stage.wait_mdev(domain.mdevs[0], "stuck").await;
    assert!(!start.is_finished());
    slow.let_go();
    let grants = start.await.unwrap().unwrap();
    assert_eq!(text(&grants[0], "uuid"), domain.mdevs[0].to_string());
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
    assert_ne!(stage.run_of(&domain), first_run);
    let verbs: Vec<_> = stage.writes().into_iter().map(|(_, verb, errno)| (verb, errno)).collect();
    assert_eq!(verbs, [("create", None), ("remove", None), ("create", None)]);
    stage.wait_no_problems().await;
}

/// Within what one write may take, as it is most of the time.
#[tokio::test]
async fn destroy_and_start_while_the_removal_is_a_little_slow() {
    let stage = Stage::start(one_left()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    for _ in 0..5 {
        domain.prepare(&stage.manager).await.unwrap();
        let slow = stage.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
        let end = releasing(&stage, &domain);
        met(&slow, 1).await;
        let start = preparing(&stage, &domain, 8000);
        slow.let_go();
        assert!(end.await.unwrap().unwrap());
        start.await.unwrap().unwrap();
        assert_eq!(stage.host.mdevs().len(), 1);
        assert!(domain.release(&stage.manager).await.unwrap());
        stage.wait_clean().await;
    }
}

#[tokio::test]
async fn words_of_an_earlier_run_change_nothing() {
    let stage = Stage::start(two_cards()).await;
    let libvirtd = stage.host.process(900, "libvirtd", &["libvirtd"]).started(5000);
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let first = stage.run_of(&domain);
    assert!(domain.release(&stage.manager).await.unwrap());
    domain.prepare(&stage.manager).await.unwrap();
    let second = stage.run_of(&domain);
    assert_ne!(first, second);
    let release = async |run: &str| {
        let options = HashMap::from([("run", run.into()), ("reason", "destroyed".into())]);
        stage.manager.release_domain(&domain.uuid.to_string(), &options).await
    };
    assert!(!release(&first).await.unwrap());
    assert!(!release(&Uuid::new_v4().to_string()).await.unwrap());
    assert_eq!(refused(release("yesterday").await).0, ErrorName::InvalidArgument);
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(stage.run_of(&domain), second);

    // A hook whose libvirt daemon has died speaks for a start that nobody waits for: it takes nothing, and ends nothing.
    let before = stage.host.sys_writes();
    libvirtd.vanish();
    let prepare_from = async |domain: &Domain, pid: u32, start: u64| {
        let options = HashMap::from([("pid", pid.into()), ("start-time", start.into())]);
        let (uuid, manager) = (domain.uuid.to_string(), &stage.manager);
        manager.prepare_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options).await
    };
    let (error, message) = refused(prepare_from(&domain, 900, 5000).await);
    assert_eq!(error, ErrorName::Unavailable, "{message}");
    assert!(message.contains("'vm'") && message.contains("900"), "{message}");
    // Another process has its pid by now.
    let _reused = stage.host.process(900, "sshd", &["sshd"]).started(9000);
    assert_eq!(refused(prepare_from(&domain, 900, 5000).await).0, ErrorName::Unavailable);
    let fresh = Domain::wants("fresh", &[GOLD]);
    assert_eq!(refused(prepare_from(&fresh, 900, 5000).await).0, ErrorName::Unavailable);
    assert_eq!(stage.run_of(&domain), second);
    assert_eq!(stage.host.sys_writes(), before);
    assert_eq!(claim_files(&stage.host).len(), 1);
    assert!(release(&second).await.unwrap());
    stage.wait_clean().await;
}

/// A start waits for the end of an earlier run, and its libvirt daemon dies meanwhile: it takes nothing from the start that the next one
/// makes.
#[tokio::test]
async fn a_start_whose_libvirt_daemon_dies_while_it_waits() {
    let stage = Stage::start(two_cards()).await;
    let libvirtd = stage.host.process(900, "libvirtd", &["libvirtd"]).started(5000);
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let hang = stage.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    let end = releasing(&stage, &domain);
    met(&hang, 1).await;
    let looks = stage.host.fault(Op::Read, "proc/900/stat", Fault::Delay(Duration::ZERO));
    let orphan = {
        let (manager, domain) = (stage.manager.clone(), domain.clone());
        tokio::spawn(async move {
            let options = HashMap::from([
                ("pid", 900u32.into()),
                ("start-time", 5000u64.into()),
                ("timeout-ms", 20_000u32.into()),
            ]);
            let uuid = domain.uuid.to_string();
            manager.prepare_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options).await
        })
    };
    met(&looks, 1).await;
    // The next look waits for that one.
    stage.reconcile().await;
    libvirtd.vanish();
    hang.let_go();
    assert!(end.await.unwrap().unwrap());
    let (error, message) = refused(orphan.await.unwrap());
    assert_eq!(error, ErrorName::Unavailable, "{message}");
    assert!(message.contains("'vm'") && message.contains("900"), "{message}");
    stage.wait_clean().await;
}

/// A claim that is made when its caller has gone would be kept for nobody.
#[tokio::test]
async fn nothing_is_promised_to_a_caller_who_has_given_up() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    stage.host.create_mdev(A, GOLD, domain.mdevs[0]).unwrap();
    stage.wait_mdev(domain.mdevs[0], "ok").await;
    // All of this is kept back for the answer's way.
    let (error, message) = refused(domain.prepare_within(&stage.manager, 250).await);
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    assert!(claim_files(&stage.host).is_empty());
    // Who holds it is looked at under a claim already, and takes longer than there is time.
    let slow = stage.host.fault(Op::List, "proc", Fault::Delay(Duration::from_millis(1500)));
    let (error, message) = refused(domain.prepare_within(&stage.manager, 1250).await);
    assert_eq!(error, ErrorName::TimedOut, "{message}");
    slow.let_go();
    stage.wait_no_claims().await;
    assert_eq!(stage.host.mdevs(), [(domain.mdevs[0], A.into(), GOLD.into())]);
    domain.prepare(&stage.manager).await.unwrap();
}

#[tokio::test]
async fn a_release_in_mid_prepare_stops_after_the_step_and_undoes() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    let hang = stage.host.fault(Op::Write, format!("sys/**/{GOLD}/create"), Fault::Hang);
    let start = preparing(&stage, &domain, 8000);
    met(&hang, 1).await;
    let run = claim_json(&domain.claim_file(&stage.host))["run"].as_str().unwrap().to_owned();
    let end = releasing(&stage, &domain);
    stage.wait_claim(domain.uuid, "releasing").await;
    hang.let_go();
    assert!(end.await.unwrap().unwrap());
    let (error, message) = refused(start.await.unwrap());
    assert_eq!(error, ErrorName::Conflict, "{message}");
    assert!(message.contains("release"), "{message}");
    stage.wait_clean().await;
    // The second device was never begun.
    let made = domain.mdevs[0].to_string();
    assert_eq!(stage.writes(), [(A.into(), "create", None), (made, "remove", None)]);
    domain.prepare(&stage.manager).await.unwrap();
    assert_ne!(stage.run_of(&domain), run);
}

#[tokio::test]
async fn a_release_while_another_parent_is_being_looked_for() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let hang = stage.host.fault(Op::Write, stage.host.type_path(A, GOLD, "create"), Fault::Hang);
    let start = preparing(&stage, &domain, 8000);
    met(&hang, 1).await;
    let end = releasing(&stage, &domain);
    stage.wait_claim(domain.uuid, "releasing").await;
    hang.let_go_with(fakesys::Errno::NOSPC);
    assert!(end.await.unwrap().unwrap());
    assert_eq!(refused(start.await.unwrap()).0, ErrorName::Conflict);
    stage.wait_clean().await;
    assert_eq!(stage.writes(), [(A.into(), "create", Some(fakesys::Errno::NOSPC))]);
}

#[tokio::test]
async fn one_domain_is_prepared_twice_at_once() {
    let stage = Stage::start(two_cards()).await;
    for _ in 0..5 {
        let domain = Domain::wants("vm", &[GOLD, TIN]);
        let calls = [0; 4].map(|_| preparing(&stage, &domain, 20_000));
        let mut served = 0;
        for call in calls {
            match call.await.unwrap() {
                Ok(_) => served += 1,
                Err(error) => {
                    let (name, message) = refused::<()>(Err(error));
                    assert_eq!(name, ErrorName::Busy, "{message}");
                    assert!(message.contains("'vm'") && message.contains("try again"), "{message}");
                }
            }
        }
        assert!(served > 0);
        // One claim, and the devices of one claim.
        assert_eq!(claim_files(&stage.host).len(), 1);
        assert_eq!(claim_json(&domain.claim_file(&stage.host))["state"], "ready");
        let made: BTreeSet<Uuid> = stage.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
        assert_eq!(made, domain.mdevs.iter().copied().collect());
        assert!(domain.release(&stage.manager).await.unwrap());
        stage.wait_clean().await;
    }
}

/// The caller goes away; what it has asked for goes on, and is freed like any other.
#[tokio::test]
async fn a_caller_who_goes_away_cancels_nothing() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let domain = Domain::wants("vm", &[GOLD]);
    let caller = stage.bus.manager().await;
    let call = {
        let (caller, domain) = (caller.clone(), domain.clone());
        tokio::spawn(async move { domain.prepare(&caller).await })
    };
    met(&hang, 1).await;
    call.abort();
    caller.inner().connection().clone().close().await.unwrap();
    hang.let_go();
    stage.wait_claim(domain.uuid, "ready").await;
    assert_eq!(stage.host.mdevs().len(), 1);
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}

/// One writes, the others wait their turn on the same parent, and different parents do not wait for each other.
#[tokio::test]
async fn one_change_at_a_time_on_a_parent() {
    let stage = Stage::start(two_cards()).await;
    let hang = stage.host.fault(Op::Write, stage.host.type_path(A, GOLD, "create"), Fault::Hang);
    let first = Domain::wants("first", &[GOLD]);
    let start = preparing(&stage, &first, 20_000);
    met(&hang, 1).await;
    let on = |name: &str, parent: &str| {
        let mut domain = Domain::wants(name, &[TIN]);
        domain.requests[0].insert("parent".into(), parent.into());
        domain
    };
    let waits = on("waits", A);
    let waiting = preparing(&stage, &waits, 20_000);
    eventually("its claim", || async { waits.claim_file(&stage.host).exists() }).await;
    on("passes", B).prepare(&stage.manager).await.unwrap();
    assert!(!waiting.is_finished());
    assert_eq!(stage.writes(), [(B.into(), "create", None)]);
    hang.let_go();
    start.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(stage.host.mdevs().len(), 3);
}

#[tokio::test]
async fn many_domains_start_and_stop_at_once() {
    let stage = Stage::start(two_cards()).await;
    let domains: Vec<Domain> = (0..24).map(|i| Domain::wants(&format!("vm{i}"), &[[GOLD, TIN][i % 2]])).collect();
    let calls: Vec<_> = domains.iter().map(|domain| preparing(&stage, domain, 20_000)).collect();
    let mut started = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(_) => started += 1,
            Err(error) => {
                let (name, message) = refused::<()>(Err(error));
                assert!(matches!(name, ErrorName::NoCapacity | ErrorName::KernelRefused), "{name}: {message}");
            }
        }
    }
    // Four of each type on each of two cards.
    assert_eq!(started, 16);
    assert_eq!(stage.host.mdevs().len(), 16);
    assert_eq!(claim_files(&stage.host).len(), 16);
    let ends: Vec<_> = domains.iter().map(|domain| releasing(&stage, domain)).collect();
    for end in ends {
        end.await.unwrap().unwrap();
    }
    stage.wait_clean().await;
}

// ---- requests that meet what is there ----

#[tokio::test]
async fn a_uuid_that_another_domain_has() {
    let stage = Stage::start(two_cards()).await;
    let owner = Domain::wants("owner", &[GOLD]);
    owner.prepare(&stage.manager).await.unwrap();
    // A clone: a new UUID, but the old hostdev and so the old device.
    let mut clone = Domain::wants("clone", &[GOLD]);
    clone.hostdevs = owner.hostdevs.clone();
    clone.requests[0].insert("uuid".into(), owner.mdevs[0].to_string());
    let (error, message) = refused(clone.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InUse, "{message}");
    assert!(message.contains("'owner'") && message.contains(&owner.mdevs[0].to_string()), "{message}");
    // libvirt's release of the clone's failed start changes nothing.
    assert!(!clone.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs(), [(owner.mdevs[0], A.into(), GOLD.into())]);
    // Without `uuid` the clone's request does not find a hostdev that carries the other's UUID: the element to paste is printed.
    clone.requests[0].remove("uuid");
    let (error, message) = refused(clone.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InvalidArgument, "{message}");
    let own = Uuid::new_v5(&clone.uuid, b"dev0");
    assert!(message.contains("<hostdev") && message.contains(&own.to_string()), "{message}");
    // Once the owner has stopped, the clone may have it.
    assert!(owner.release(&stage.manager).await.unwrap());
    clone.requests[0].insert("uuid".into(), owner.mdevs[0].to_string());
    clone.prepare(&stage.manager).await.unwrap();
    let (error, message) = refused(owner.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InUse, "{message}");
    assert!(message.contains("'clone'"), "{message}");
}

#[tokio::test]
async fn a_request_without_its_hostdev() {
    let stage = Stage::start(two_cards()).await;
    let mut domain = Domain::wants("vm", &[GOLD]);
    domain.hostdevs.clear();
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InvalidArgument, "{message}");
    for part in ["'dev0'", "<hostdev", "type='mdev'", &domain.mdevs[0].to_string(), "</hostdev>"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
    assert!(stage.host.sys_writes().is_empty() && claim_files(&stage.host).is_empty());
}

#[tokio::test]
async fn a_hostdev_without_a_request() {
    let stage = Stage::start(two_cards()).await;
    let mut domain = Domain::wants("vm", &[GOLD]);
    let extra = Uuid::new_v4();
    domain.hostdevs.push(hostdev(extra));
    // It is not there: next to other requests that is a mistake, and the request to paste is printed.
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InvalidArgument, "{message}");
    for part in [&extra.to_string(), "<mdevd:request", "uuid="] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
    assert!(stage.host.sys_writes().is_empty() && claim_files(&stage.host).is_empty());
    // It is there: it is used, promised to nobody else, and stays when the domain ends.
    stage.host.create_mdev(B, TIN, extra).unwrap();
    let grants = domain.prepare(&stage.manager).await.unwrap();
    let undo: Vec<_> = grants.iter().map(|grant| (text(grant, "uuid").to_owned(), text(grant, "undo"))).collect();
    assert_eq!(undo, [(domain.mdevs[0].to_string(), "remove"), (extra.to_string(), "keep")]);
    let mut other = Domain::wants("other", &[GOLD]);
    other.hostdevs.push(hostdev(extra));
    assert_eq!(refused(other.prepare(&stage.manager).await).0, ErrorName::InUse);
    assert!(domain.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs(), [(extra, B.into(), TIN.into())]);
    stage.wait_no_claims().await;
}

#[tokio::test]
async fn a_foreign_device_under_the_requests_uuid() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0];
    stage.host.create_mdev(B, TIN, uuid).unwrap();
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::Conflict, "{message}");
    assert!(message.contains(TIN) && message.contains(GOLD) && message.contains("remove it"), "{message}");
    stage.host.remove_mdev(uuid).unwrap();
    // Of the right type it is borrowed.
    stage.host.create_mdev(B, GOLD, uuid).unwrap();
    let grants = domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(text(&grants[0], "undo"), "keep");
    assert!(domain.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs(), [(uuid, B.into(), GOLD.into())]);
    stage.wait_mdev(uuid, "ok").await;
    eventually("foreign again", || async { stage.mdev(uuid).await.origin().await.is_ok_and(|o| o == "foreign") }).await;
    // On another parent than the request says.
    let mut pinned = domain.clone();
    pinned.requests[0].insert("parent".into(), A.into());
    assert_eq!(refused(pinned.prepare(&stage.manager).await).0, ErrorName::Conflict);
    // In use by somebody whom mdevd knows nothing of.
    let user = stage.host.process(4000, "qemu-by-hand", &["qemu"]).opens_group_of(uuid);
    let (error, message) = refused(domain.prepare(&stage.manager).await);
    assert_eq!(error, ErrorName::InUse, "{message}");
    assert!(message.contains("qemu-by-hand") && message.contains("4000"), "{message}");
    stage.wait_no_claims().await;
    user.vanish();
    assert_eq!(stage.writes(), [], "nothing of this was mdevd's to write");
}

/// A device made by hand for a domain is borrowed by it: the domain's end leaves it, and it is not taken away under the domain.
#[tokio::test]
async fn a_manual_claims_device_is_borrowed() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    let uuid = domain.mdevs[0].to_string();
    let options = HashMap::from([("uuid", uuid.as_str().into()), ("label", "by hand".into())]);
    stage.manager.create_mdev(GOLD, &options).await.unwrap();
    domain.prepare(&stage.manager).await.unwrap();
    let mdev = stage.mdev(domain.mdevs[0]).await;
    let (error, message) = refused(mdev.remove(&HashMap::new()).await);
    assert_eq!(error, ErrorName::InUse, "{message}");
    assert!(message.contains("'vm'"), "{message}");
    assert!(domain.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs().len(), 1);
    assert!(mdev.remove(&HashMap::new()).await.unwrap());
    stage.wait_clean().await;
}

#[tokio::test]
async fn looking_reserves_nothing() {
    let stage = Stage::start(one_left()).await;
    let request = [text_dict(&[("name", "x"), ("type", GOLD)])];
    for _ in 0..3 {
        let found = stage.manager.explain(&request, &HashMap::new()).await.unwrap();
        assert_eq!(text(&found[0], "verdict"), "chosen");
    }
    assert!(claim_files(&stage.host).is_empty() && stage.host.sys_writes().is_empty());
    Domain::wants("vm", &[GOLD]).prepare(&stage.manager).await.unwrap();
}
