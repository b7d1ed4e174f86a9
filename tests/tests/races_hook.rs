//! libvirt's hook against the real daemon: a run from its prepare to its release, and a daemon that goes away in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

mod faults_common;

use std::process::{Output, Stdio};

use faults_common::*;
use mdevd_tests::fakesys::{Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, claim_json, eventually, program, text_dict};
use rustix::process::Signal;

/// A host that sees this process, which plays the libvirt daemon.
async fn stage() -> Stage {
    Stage::start(two_cards().real_processes()).await
}

/// libvirt minds what is printed to stdout, and shows stderr to a person.
fn went_well(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = said(output);
    assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
    said
}

fn marks(stage: &Stage) -> Vec<String> {
    stage.host.view().names("run/mdevd/released")
}

#[tokio::test]
async fn a_run_from_prepare_to_release() {
    let stage = stage().await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    for reason in ["destroyed", "shutdown", "crashed", "-"] {
        went_well(&stage.hook(&domain, "prepare", "begin", "-").await);
        assert_eq!(stage.host.mdevs().len(), 2);
        let claim = claim_json(&domain.claim_file(&stage.host));
        assert_eq!(claim["state"], "ready");
        assert_eq!(claim["process"]["pid"], std::process::id());
        for op in ["start", "started"] {
            went_well(&stage.hook(&domain, op, "begin", "-").await);
        }
        // The guest's devices are its own until everything is given back.
        went_well(&stage.hook(&domain, "stopped", "end", "-").await);
        assert_eq!(stage.host.mdevs().len(), 2);
        went_well(&stage.hook(&domain, "release", "end", reason).await);
        assert!(claim_files(&stage.host).is_empty() && stage.host.mdevs().is_empty());
    }
    // A start that fails later on in libvirt.
    went_well(&stage.hook(&domain, "prepare", "begin", "-").await);
    went_well(&stage.hook(&domain, "stopped", "end", "failed").await);
    went_well(&stage.hook(&domain, "release", "end", "failed").await);
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_start_that_is_refused_says_why_and_frees_nothing_of_others() {
    let stage = stage().await;
    let owner = Domain::wants("owner", &[GOLD]);
    went_well(&stage.hook(&owner, "prepare", "begin", "-").await);
    let mut clone = Domain::wants("clone", &[GOLD]);
    clone.hostdevs = owner.hostdevs.clone();
    clone.requests[0].insert("uuid".into(), owner.mdevs[0].to_string());
    let said = failed(&stage.hook(&clone, "prepare", "begin", "-").await);
    assert!(said.contains("'owner'") && said.contains(&owner.mdevs[0].to_string()), "{said}");
    went_well(&stage.hook(&clone, "stopped", "end", "failed").await);
    went_well(&stage.hook(&clone, "release", "end", "failed").await);
    assert_eq!(stage.host.mdevs().len(), 1);
    assert_eq!(claim_files(&stage.host).len(), 1);
}

#[tokio::test]
async fn a_restarted_libvirt_daemon_takes_over_its_domains() {
    let stage = stage().await;
    let domain = Domain::wants("vm", &[GOLD]);
    went_well(&stage.hook(&domain, "prepare", "begin", "-").await);
    // Another libvirt daemon: a shell in the middle that is not a hook script.
    let reconnects = |stage: &Stage, domain: &Domain| {
        let (bus, run) = (stage.bus.address().to_owned(), stage.host.run());
        let xml = domain_xml(domain);
        tokio::task::spawn_blocking(move || {
            let mut command = std::process::Command::new("/bin/sh");
            let script = format!("{} vm reconnect begin -; exit $?", program("mdevd-hook").display());
            command.arg("-c").arg(script).env("DBUS_SYSTEM_BUS_ADDRESS", bus).env("MDEVD_RUN_DIR", run);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let pid = child.id();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), xml.as_bytes()).unwrap();
            (pid, child.wait_with_output().unwrap())
        })
    };
    let (pid, output) = reconnects(&stage, &domain).await.unwrap();
    went_well(&output);
    let run = stage.run_of(&domain);
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["process"]["pid"], pid);
    assert_eq!(stage.host.mdevs().len(), 1);
    // The run is the same, and ends as before.
    assert_eq!(stage.run_of(&domain), run);
    went_well(&stage.hook(&domain, "release", "end", "shutdown").await);
    stage.wait_clean().await;

    // A domain that mdevd has never heard of, with its device: it is adopted, and its device goes with it.
    stage.host.create_mdev(A, GOLD, domain.mdevs[0]).unwrap();
    went_well(&reconnects(&stage, &domain).await.unwrap().1);
    assert_eq!(claim_json(&domain.claim_file(&stage.host))["grants"][0]["undo"], "remove");
    went_well(&stage.hook(&domain, "release", "end", "shutdown").await);
    stage.wait_clean().await;
}

#[tokio::test]
async fn nothing_of_ours_in_the_way_of_a_domain_without_requests() {
    let mut stage = stage().await;
    stage.kill().await;
    let plain = Domain::wants("plain", &[]);
    for (op, sub) in [
        ("prepare", "begin"),
        ("start", "begin"),
        ("started", "begin"),
        ("stopped", "end"),
        ("release", "end"),
        ("reconnect", "begin"),
        ("migrate", "begin"),
        ("restore", "begin"),
        ("attach", "begin"),
    ] {
        went_well(&stage.hook(&plain, op, sub, "-").await);
    }
    // One with a request is told what to do.
    let domain = Domain::wants("vm", &[GOLD]);
    let said = failed(&stage.hook(&domain, "prepare", "begin", "-").await);
    assert!(said.contains("'vm'") && said.contains("systemctl"), "{said}");
    for (op, sub) in [("stopped", "end"), ("release", "end"), ("reconnect", "begin"), ("restore", "begin")] {
        went_well(&stage.hook(&domain, op, sub, "-").await);
    }
    stage.again().await;
    stage.wait_clean().await;
}

/// The daemon is killed while the kernel makes the device: the start fails, and so libvirt ends the run while nobody listens.
#[tokio::test]
async fn the_daemon_is_killed_in_mid_prepare() {
    let mut stage = stage().await;
    let domain = Domain::wants("vm", &[GOLD, TIN]);
    let hang = stage.host.fault(Op::Write, format!("sys/**/{TIN}/create"), Fault::Hang);
    let start = stage.hook_started(&domain, "prepare", "begin", "-");
    met(&hang, 1).await;
    stage.kill().await;
    let said = failed(&start.await.unwrap());
    assert!(said.contains("'vm'") && said.contains("systemctl"), "{said}");
    went_well(&stage.hook(&domain, "stopped", "end", "failed").await);
    assert!(stage.hook(&domain, "release", "end", "failed").await.stdout.is_empty());
    assert_eq!(marks(&stage), [domain.uuid.to_string()]);
    assert_eq!(stage.host.mdevs().len(), 1, "the first device");
    stage.again().await;
    // The next start comes while the kernel is still at it, and waits.
    let next = stage.hook_started(&domain, "prepare", "begin", "-");
    eventually("the first device is gone", || async { stage.host.mdevs().is_empty() }).await;
    hang.let_go();
    went_well(&next.await.unwrap());
    assert!(marks(&stage).is_empty());
    assert_eq!(stage.host.mdevs().len(), 2);
    went_well(&stage.hook(&domain, "release", "end", "destroyed").await);
    stage.wait_clean().await;
}

#[tokio::test]
async fn a_domain_that_ends_while_the_daemon_is_away() {
    let mut stage = stage().await;
    let (ends, lives) = (Domain::wants("ends", &[GOLD]), Domain::wants("lives", &[GOLD]));
    went_well(&stage.hook(&ends, "prepare", "begin", "-").await);
    went_well(&stage.hook(&lives, "prepare", "begin", "-").await);
    stage.daemon.stop(&stage.bus).await;
    assert_eq!(stage.host.mdevs().len(), 2, "stopping touches no device");
    assert!(stage.hook(&ends, "release", "end", "shutdown").await.stdout.is_empty());
    assert_eq!(marks(&stage), [ends.uuid.to_string()]);
    stage.again().await;
    stage.host.wait_mdevs("the device of the one that ended is gone", |all| *all == [lives.mdevs[0]]);
    eventually("its claim is gone", || async { claim_files(&stage.host).len() == 1 }).await;
    assert!(marks(&stage).is_empty());
    stage.wait_no_problems().await;
    went_well(&stage.hook(&lives, "release", "end", "shutdown").await);
    stage.wait_clean().await;
}

/// It is there, but does not answer in time: the mark is read when it can again.
#[tokio::test]
async fn a_domain_that_ends_while_the_daemon_is_stopped_in_its_tracks() {
    let stage = stage().await;
    let domain = Domain::wants("vm", &[GOLD]);
    went_well(&stage.hook(&domain, "prepare", "begin", "-").await);
    stage.daemon.signal(Signal::STOP);
    assert!(stage.hook(&domain, "release", "end", "shutdown").await.stdout.is_empty());
    assert_eq!(marks(&stage), [domain.uuid.to_string()]);
    stage.daemon.signal(Signal::CONT);
    stage.wait_clean().await;
    eventually("the mark was read", || async { marks(&stage).is_empty() }).await;
}

/// The kernel does not come back: the start fails in the daemon's own words, before the hook's patience ends.
#[tokio::test]
async fn a_kernel_that_hangs_fails_the_start_in_the_daemons_words() {
    let stage = stage().await;
    let hang = stage.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let domain = Domain::wants("vm", &[GOLD]);
    let said = failed(&stage.hook(&domain, "prepare", "begin", "-").await);
    assert!(said.contains("has not come back from the kernel") && said.contains(A), "{said}");
    went_well(&stage.hook(&domain, "release", "end", "failed").await);
    hang.let_go();
    stage.wait_clean().await;
}

/// A function that the configuration says to manage, in domains that do not request it, whatever else they request.
#[tokio::test]
async fn a_managed_function_has_one_owner() {
    let nic = "0000:03:00.0";
    let host = two_cards().real_processes().function(nic).ids(0x8086, 0x10d3).class(0x02_0000).driver("e1000e");
    let host = host.mount().unwrap();
    std::fs::create_dir_all(host.etc().join("mdevd")).unwrap();
    std::fs::write(host.etc().join("mdevd/mdevd.toml"), format!("pci.manage = ['{nic}']\n")).unwrap();
    let stage = Stage::over(host).await;
    let has_it = |mut domain: Domain| {
        domain.hostdevs.push(text_dict(&[("kind", "pci"), ("address", nic), ("managed", "yes")]));
        domain
    };
    let (alone, beside) = (has_it(Domain::wants("alone", &[])), has_it(Domain::wants("beside", &[GOLD])));
    let granted = |domain: &Domain| {
        let text = std::fs::read_to_string(domain.claim_file(&stage.host)).ok()?;
        let claim: mdevd_core::claim::Claim = serde_json::from_str(&text).unwrap();
        Some(claim.grants.iter().map(|grant| grant.key().to_string()).collect::<Vec<_>>())
    };
    // A second is all that such a start waits for: on a busy machine that may be too short.
    eventually("a claim", || async {
        went_well(&stage.hook(&alone, "prepare", "begin", "-").await);
        granted(&alone).is_some_and(|devices| devices == [nic])
    })
    .await;
    let said = failed(&stage.hook(&beside, "prepare", "begin", "-").await);
    assert!(said.contains(nic) && said.contains("'alone'"), "{said}");
    went_well(&stage.hook(&alone, "release", "end", "destroyed").await);
    went_well(&stage.hook(&beside, "prepare", "begin", "-").await);
    assert_eq!(granted(&beside).unwrap(), [beside.mdevs[0].to_string(), nic.to_owned()]);
    went_well(&stage.hook(&beside, "release", "end", "destroyed").await);
    stage.wait_clean().await;
}
