//! The state directory as it may be found: marks of ended runs, files that make no sense, files of others, no room, a second daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use faults_common::*;
use mdevd_dbus::ErrorName;
use mdevd_tests::fakesys::{Errno, FakeHost, Fault, Op, Point};
use mdevd_tests::harness::{Bus, Daemon, Domain, claim_files, claim_json, eventually, program};
use serde_json::json;
use uuid::Uuid;

/// Leaves a mark as the hook does: whole or not at all.
fn mark(host: &FakeHost, domain: &Domain, text: &str) {
    let dir = host.run().join("mdevd/released");
    let unfinished = dir.join(format!(".{}.77", domain.uuid));
    std::fs::write(&unfinished, text).unwrap();
    std::fs::rename(unfinished, dir.join(domain.uuid.to_string())).unwrap();
}

fn marks(stage: &Stage) -> Vec<String> {
    stage.host.view().names("run/mdevd/released")
}

#[tokio::test]
async fn a_mark_ends_its_run_and_no_other() {
    let mut stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    let first = stage.run_of(&domain);
    let says = |run: &str| json!({"run": run, "reason": "shutdown"}).to_string();
    // At run time, as soon as it is there.
    mark(&stage.host, &domain, &says(&first));
    stage.wait_clean().await;
    eventually("the mark was read", || async { marks(&stage).is_empty() }).await;
    // Of an earlier run, of no run, and of a domain that nobody knows.
    domain.prepare(&stage.manager).await.unwrap();
    let second = stage.run_of(&domain);
    for text in [says(&first), says(&Uuid::new_v4().to_string()), json!({"reason": "-"}).to_string(), says("")] {
        mark(&stage.host, &domain, &text);
        eventually("the mark was read", || async { marks(&stage).is_empty() }).await;
        assert_eq!(stage.run_of(&domain), second, "{text}");
        assert_eq!(stage.host.mdevs().len(), 1);
    }
    mark(&stage.host, &Domain::wants("nobody", &[]), &says(&second));
    eventually("the mark was read", || async { marks(&stage).is_empty() }).await;
    // At start-up; and while a prepare comes, which ends an earlier run first.
    stage.kill().await;
    mark(&stage.host, &domain, &says(&second));
    stage.again().await;
    stage.wait_clean().await;
    assert!(marks(&stage).is_empty());
    domain.prepare(&stage.manager).await.unwrap();
    stage.kill().await;
    mark(&stage.host, &domain, &says(&stage.run_of(&domain)));
    stage.again().await;
    domain.prepare(&stage.manager).await.unwrap();
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["state"], "ready");
    eventually("the mark was read", || async { marks(&stage).is_empty() }).await;
    assert_eq!(stage.host.mdevs().len(), 1);
}

#[tokio::test]
async fn marks_that_make_no_sense_are_set_aside() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    mark(&stage.host, &domain, "{half");
    stage
        .wait_problem(
            &format!(
                "mark {}",
                stage.host.run().join("mdevd/released").join(format!(".taken.{}.1", domain.uuid)).display()
            ),
            "moved",
        )
        .await;
    std::fs::write(stage.host.run().join("mdevd/released/README"), "hello").unwrap();
    let readme = stage.host.run().join("mdevd/released/README");
    stage.wait_problem(&format!("mark {}", readme.display()), "moved").await;
    assert!(marks(&stage).is_empty());
    assert_eq!(stage.host.mdevs().len(), 1);
    assert!(domain.release(&stage.manager).await.unwrap());
}

/// What a person, a crash or an attacker may leave among the claims: each is moved aside and told of, and costs the others nothing.
#[tokio::test]
async fn claims_that_make_no_sense_are_set_aside() {
    let mut stage = Stage::start(two_cards()).await;
    let good = Domain::wants("good", &[GOLD]);
    let torn = Domain::wants("torn", &[TIN]);
    good.prepare(&stage.manager).await.unwrap();
    torn.prepare(&stage.manager).await.unwrap();
    stage.kill().await;
    let dir = stage.host.run().join("mdevd/claims");
    let whole = std::fs::read(torn.claim_file(&stage.host)).unwrap();
    std::fs::write(torn.claim_file(&stage.host), &whole[..whole.len() / 2]).unwrap();
    // Another's claim under a name that is not its own: it would be freed twice.
    let copied = dir.join(format!("{}.json", Uuid::new_v4()));
    std::fs::copy(good.claim_file(&stage.host), &copied).unwrap();
    let link = dir.join(format!("{}.json", Uuid::new_v4()));
    let elsewhere = stage.host.etc().join("elsewhere.json");
    std::fs::write(&elsewhere, &whole).unwrap();
    symlink(&elsewhere, &link).unwrap();
    let folder = dir.join(format!("{}.json", Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let foreign = dir.join("notes.txt");
    std::fs::write(&foreign, "hello").unwrap();
    let empty = dir.join(format!("{}.json", Uuid::new_v4()));
    std::fs::write(&empty, "").unwrap();
    let unfinished = dir.join(".unfinished.json.tmp");
    std::fs::write(&unfinished, "{").unwrap();
    stage.again().await;
    let quarantine = stage.host.view().names("run/mdevd/quarantine");
    for path in [&torn.claim_file(&stage.host), &copied, &link, &folder, &foreign, &empty] {
        let message = stage.wait_problem(&format!("claim file {}", path.display()), "moved to").await;
        assert!(message.contains("quarantine"), "{message}");
        assert!(std::fs::symlink_metadata(path).is_err(), "{}", path.display());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(quarantine.iter().any(|kept| kept.starts_with(name)), "{name} in {quarantine:?}");
    }
    assert!(!unfinished.exists());
    assert_eq!(std::fs::read(&elsewhere).unwrap(), whole, "what a link points to is left alone");
    assert_eq!(claim_files(&stage.host).len(), 1);
    // The device of the claim that was lost stays: nobody knows any more whose it is.
    assert_eq!(stage.host.mdevs().len(), 2);
    assert_eq!(stage.mdev(torn.mdevs[0]).await.origin().await.unwrap(), "foreign");
    assert!(good.release(&stage.manager).await.unwrap());
    assert_eq!(stage.host.mdevs(), [(torn.mdevs[0], A.into(), TIN.into())]);
    // And can be had by the domain that it was made for.
    torn.prepare(&stage.manager).await.unwrap();
}

/// Starts a daemon that is not to live, and waits for its end.
async fn does_not_start(host: &FakeHost, bus: &Bus) -> Output {
    let mut command = std::process::Command::new(program("mdevd"));
    command.args(host.root_args()).args(["--bus", bus.address(), "--uevents", "stdin"]).env_remove("JOURNAL_STREAM");
    let uevents: std::os::fd::OwnedFd = host.uevents().unwrap().into();
    command.stdin(Stdio::from(uevents)).stdout(Stdio::piped()).stderr(Stdio::piped());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&stage.manager).await.unwrap();
    // On a bus of its own, so that only the state is shared.
    let output = does_not_start(&stage.host, &Bus::start()).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = said(&output);
    for part in ["another mdevd", &format!("pid {}", stage.daemon.pid()), "run/mdevd/lock", "systemctl stop mdevd"] {
        assert!(said.contains(part), "no {part} in: {said}");
    }
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_state_folder_that_is_a_link_is_refused() {
    let host = two_cards().mount().unwrap();
    let elsewhere = host.etc().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, host.run().join("mdevd/claims")).unwrap();
    let output = does_not_start(&host, &Bus::start()).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = said(&output);
    assert!(
        said.contains("run/mdevd/claims") && said.contains("symbolic link") && said.contains("remove it"),
        "{said}"
    );
}

#[tokio::test]
async fn no_room_for_a_claim() {
    let stage = Stage::start(two_cards()).await;
    let faults: [(Op, &str); 3] =
        [(Op::Create, "run/mdevd/claims/*"), (Op::Write, "run/mdevd/claims/*"), (Op::Rename, "run/mdevd/claims/*")];
    for (op, glob) in faults {
        let full = stage.host.fault(op, glob, Fault::Errno(Errno::NOSPC));
        let domain = Domain::wants("vm", &[GOLD, TIN]);
        let (error, message) = refused(domain.prepare(&stage.manager).await);
        assert_eq!(error, ErrorName::Unavailable, "{op:?}: {message}");
        for part in ["'vm'", "ENOSPC", "run/mdevd/claims", "make room in /run"] {
            assert!(message.contains(part), "no {part} in: {message}");
        }
        assert_eq!(stage.host.sys_writes(), [], "before anything is written to the host");
        assert_eq!(stage.host.view().names("run/mdevd/claims"), [""; 0], "and nothing half written is left");
        full.let_go();
        // Whoever asked was told. There is nothing that anybody would have to look after.
        stage.wait_clean().await;
    }
    Domain::wants("vm", &[GOLD]).prepare(&stage.manager).await.unwrap();
    stage.wait_no_problems().await;
}

/// The folder fills up while devices are being made: what was made is unmade, and not forgotten.
#[tokio::test]
async fn no_room_in_the_middle() {
    let stage = Stage::start(two_cards()).await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    // After the first device, and after the last.
    for (made, errno) in [(GOLD, Errno::NOSPC), (TIN, Errno::ROFS)] {
        let full = stage.host.fault_at(
            Point::after_write(format!("sys/**/{made}/create")).then(Point::before_create("run/mdevd/claims/*")),
            Fault::Errno(errno),
        );
        let (error, message) = refused(domain.prepare(&stage.manager).await);
        assert_eq!(error, ErrorName::Unavailable, "{message}");
        assert_eq!(message.contains("make room"), errno == Errno::NOSPC, "{message}");
        assert_eq!(full.hits(), 1);
        stage.wait_clean().await;
    }
    // A release does not need room to free what it has.
    domain.prepare(&stage.manager).await.unwrap();
    let full = stage.host.fault(Op::Create, "run/mdevd/claims/*", Fault::Errno(Errno::NOSPC));
    assert!(domain.release(&stage.manager).await.unwrap());
    stage.host.wait_mdevs("its devices are gone", |all| all.is_empty());
    full.let_go();
    stage.wait_clean().await;
}

/// Claims speak of devices that are not there any more, as when a driver was loaded anew.
#[tokio::test]
async fn claims_whose_devices_have_gone_meanwhile() {
    let mut stage = Stage::start(two_cards()).await;
    let (first, second) = (Domain::wants("first", &[GOLD]), Domain::wants("second", &[TIN]));
    first.prepare(&stage.manager).await.unwrap();
    second.prepare(&stage.manager).await.unwrap();
    stage.kill().await;
    stage.host.remove_mdev(first.mdevs[0]).unwrap();
    stage.host.remove_mdev(second.mdevs[0]).unwrap();
    // Somebody has made another device under the same UUID: of another type, so it is not the claim's.
    stage.host.create_mdev(B, GOLD, second.mdevs[0]).unwrap();
    stage.again().await;
    assert!(first.release(&stage.manager).await.unwrap());
    assert!(second.release(&stage.manager).await.unwrap());
    stage.wait_no_claims().await;
    assert_eq!(stage.host.mdevs(), [(second.mdevs[0], B.into(), GOLD.into())]);
}

/// Locks that nobody holds any more, and names that mean nothing to this version.
#[tokio::test]
async fn locks_that_are_left_over() {
    let host = two_cards().mount().unwrap();
    let busy = host.run().join("mdevd/busy");
    std::fs::create_dir(&busy).unwrap();
    let left: [PathBuf; 3] = [
        busy.join(format!("create.{}.{A}", Uuid::new_v4())),
        busy.join(format!("mdev.{}", Uuid::new_v4())),
        busy.join("something.else"),
    ];
    for path in &left {
        std::fs::write(path, "").unwrap();
    }
    let stage = Stage::over(host).await;
    stage.wait_clean().await;
    assert_eq!(stage.parent(A).await.state().await.unwrap(), "ok");
    Domain::wants("vm", &[GOLD]).prepare(&stage.manager).await.unwrap();
}

/// libvirt has never run on this host: its folder comes later.
#[tokio::test]
async fn libvirts_folder_comes_late() {
    let host = two_cards().mount().unwrap();
    std::fs::remove_dir(host.run().join("libvirt/qemu")).unwrap();
    std::fs::remove_dir(host.run().join("libvirt")).unwrap();
    let _init = host.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let daemon = Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    let domain = Domain::wants("vm", &[GOLD]);
    domain.prepare(&manager).await.unwrap();
    let _qemu = host.process(4242, "qemu", &["qemu"]);
    host.domain_runs("vm", 4242, &domain_xml(&domain)).unwrap();
    eventually("it was seen", || async { claim_json(&domain.claim_file(&host))["seen"] == true }).await;
    assert!(manager.problems().await.unwrap().is_empty());
    assert_eq!(manager.reconcile(&HashMap::new()).await.unwrap().len(), 1);
    drop(daemon);
}
