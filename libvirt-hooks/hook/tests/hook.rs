//! The hook against a daemon that notes what it is told, on a private bus, run as libvirt runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // A test fails by panicking.

mod common;

use std::time::Duration;

use common::{Call, DOMAIN, Host, MDEV, Mood, RUN, entry, read, requesting_xml, run, this_process, xml};
use mdevd_dbus::TextDict;
use serde_json::json;

const NAMESPACE: &str = "urn:mdevd:domain:1";

fn text(pairs: &[(&str, &str)]) -> TextDict {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn released(reason: &str) -> Call {
    Call::Release { uuid: DOMAIN.to_owned(), reason: reason.to_owned(), run: RUN.to_owned() }
}

#[tokio::test]
async fn a_domain_without_request_and_claim_is_not_heard_of() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Refusing).await;
    let empty = xml("<mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'/>");
    for xml in [xml(""), empty] {
        host.prepare(&xml).await.silent();
        host.release(&xml).await.silent();
        host.reconnect(&xml).await.silent();
    }
    assert_eq!(host.calls(), []);
    assert_eq!(host.mark(), None);
}

#[tokio::test]
async fn it_needs_no_bus_and_no_directory_either() {
    let host = Host::new();
    std::fs::remove_dir_all(host.path("run")).unwrap();
    host.prepare(&xml("")).await.silent();
    host.release(&xml("")).await.silent();
    host.reconnect(&xml("")).await.silent();
}

#[tokio::test]
async fn every_other_operation_is_silent() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Refusing).await;
    host.claim_of_run();
    let large = format!("{}{}", requesting_xml(), " ".repeat(1 << 20));
    for op in [
        "start begin -",
        "started begin -",
        "stopped end -",
        "migrate begin -",
        "restore begin -",
        "attach begin -",
        "prepare end -",
        "release begin -",
        "reconnect end -",
        "PREPARE begin -",
        "- - -",
    ] {
        let words: Vec<_> = op.split(' ').collect();
        host.hook(words[0], words[1], words[2], &large).await.silent();
        host.hook(words[0], words[1], words[2], "\0 no XML").await.silent();
    }
    assert_eq!(host.calls(), []);
    assert_eq!(host.mark(), None);
}

#[tokio::test]
async fn prepare_says_what_the_domain_requests_and_has() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.prepare(&requesting_xml()).await.silent();
    let calls = host.calls();
    let [Call::Prepare { uuid, name, requests, hostdevs, timeout_ms, pid, start }] = calls.as_slice() else {
        panic!("{calls:?}");
    };
    assert_eq!((uuid.as_str(), name.as_str()), (DOMAIN, "vm & co"));
    assert_eq!(*requests, [text(&[("name", "tty0"), ("type", "mtty-1")])]);
    let hostdev =
        [("kind", "mdev"), ("uuid", MDEV), ("model", "vfio-pci"), ("managed", "no"), ("alias", "ua-mdevd-tty0")];
    assert_eq!(*hostdevs, [text(&hostdev)]);
    assert_eq!((*pid, *start), this_process());
    assert!((4000..8000).contains(timeout_ms), "{timeout_ms} is what is left of 8 s, less a margin");
}

#[tokio::test]
async fn prepare_refuses_with_the_words_of_the_daemon() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Refusing).await;
    let outcome = host.prepare(&requesting_xml()).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, "mdevd: no instance of mtty-1 is left on mtty\n"));
}

#[tokio::test]
async fn prepare_without_a_daemon_says_what_to_do() {
    for host in [Host::new(), Host::with_bus(), Host::with_service("exit 1")] {
        let outcome = host.prepare(&requesting_xml()).await;
        assert_eq!(outcome.code, 1);
        let stderr = outcome.stderr;
        assert!(
            stderr.starts_with("mdevd: domain 'vm & co' requests devices, but mdevd cannot be reached ("),
            "{stderr}"
        );
        assert!(stderr.contains("systemctl status mdevd") && stderr.ends_with("start the domain again\n"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(outcome.took < Duration::from_secs(4), "nothing to wait for, but it took {:?}", outcome.took);
    }
}

#[tokio::test]
async fn prepare_has_the_daemon_started() {
    let host = Host::with_service("echo started > DIR/activated");
    let activated = host.fifo("activated");
    let daemon = async {
        assert_eq!(read(activated).await, "started\n");
        host.daemon(Mood::Willing).await
    };
    let xml = requesting_xml();
    let (outcome, _daemon) = tokio::join!(host.prepare(&xml), daemon);
    outcome.silent();
    assert!(matches!(host.calls().as_slice(), [Call::Prepare { .. }]), "{:?}", host.calls());
}

#[tokio::test]
async fn prepare_outlives_a_restart_of_the_daemon() {
    let host = Host::with_service("echo started > DIR/activated");
    let activated = host.fifo("activated");
    let _leaving = host.daemon(Mood::Leaving).await;
    let next = async {
        read(activated).await;
        host.daemon(Mood::Willing).await
    };
    let xml = requesting_xml();
    let (outcome, _next) = tokio::join!(host.prepare(&xml), next);
    outcome.silent();
    assert!(matches!(host.calls().as_slice(), [Call::Prepare { .. }, Call::Prepare { .. }]), "{:?}", host.calls());
}

#[tokio::test]
async fn nobody_waits_longer_than_promised() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Silent).await;
    host.claim_of_run();
    let requesting = requesting_xml();
    let without = xml("");
    let (prepare, leftover, release, reconnect) = tokio::join!(
        host.prepare(&requesting),
        host.prepare(&without),
        host.release(&requesting),
        host.reconnect(&requesting)
    );
    let between = |took: Duration, from: u64, to: u64| (from * 1000..to * 1000).contains(&(took.as_millis() as u64));
    assert_eq!(prepare.code, 1);
    assert!(
        prepare.stderr.contains("but mdevd did not answer within 8 s; see 'systemctl status mdevd'"),
        "{}",
        prepare.stderr
    );
    assert!(between(prepare.took, 8, 11), "{:?}", prepare.took);
    leftover.silent();
    assert!(between(leftover.took, 2, 5), "{:?}", leftover.took);
    release.silent();
    assert!(between(release.took, 3, 6), "{:?}", release.took);
    assert_eq!(host.mark().unwrap().0, json!({"run": RUN, "reason": "destroyed"}));
    reconnect.silent();
    assert!(between(reconnect.took, 2, 5), "{:?}", reconnect.took);
}

#[tokio::test]
async fn release_names_the_run_of_the_claim() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.claim_of_run();
    host.release(&requesting_xml()).await.silent();
    // Also when the request was edited away meanwhile, and with the word of an older libvirt for why.
    host.hook("release", "end", "-", &xml("")).await.silent();
    assert_eq!(host.calls(), [released("destroyed"), released("-")]);
    assert_eq!(host.mark(), None);
}

#[tokio::test]
async fn requests_that_were_spoiled_while_the_domain_ran_hide_no_end() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.claim_of_run();
    // 'virsh metadata --live --set' takes any element.
    let spoiled = xml(&format!("<mdevd:request xmlns:mdevd='{NAMESPACE}' name='tty0' type='mtty-1'/>"));
    assert_eq!(host.prepare(&spoiled).await.code, 1);
    host.reconnect(&spoiled).await.silent();
    host.release(&spoiled).await.silent();
    let calls = host.calls();
    assert!(
        matches!(calls.as_slice(), [Call::Adopt { requests: 0, .. }, end] if *end == released("destroyed")),
        "{calls:?}"
    );
}

#[tokio::test]
async fn release_of_no_claim_or_of_no_run_does_nothing() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.release(&requesting_xml()).await.silent();
    for claim in ["", "{}", "{\"run\":", "{\"run\":7}", "[]"] {
        host.claim(claim);
        host.release(&requesting_xml()).await.silent();
    }
    assert_eq!(host.calls(), []);
    assert_eq!(host.mark(), None);
}

#[tokio::test]
async fn release_leaves_a_mark_when_the_daemon_does_not_take_it() {
    let refusing = Host::with_bus();
    let _daemon = refusing.daemon(Mood::Refusing).await;
    for host in [&Host::new(), &Host::with_bus(), &Host::with_service("exit 1"), &refusing] {
        host.claim_of_run();
        host.release(&requesting_xml()).await.silent();
        assert_eq!(host.mark(), Some((json!({"run": RUN, "reason": "destroyed"}), 0o700)));
        // A later run's mark takes its place.
        host.claim(&format!("{{\"run\":\"{MDEV}\"}}"));
        host.hook("release", "end", "from snapshot", &requesting_xml()).await.silent();
        assert_eq!(host.mark().unwrap().0, json!({"run": MDEV, "reason": "from snapshot"}));
    }
}

#[tokio::test]
async fn release_has_the_daemon_started_with_the_mark_in_place() {
    let host = Host::with_service("cat DIR/run/mdevd/released/* > DIR/activated");
    let activated = host.fifo("activated");
    host.claim_of_run();
    let daemon = async {
        let mark: serde_json::Value = serde_json::from_str(&read(activated).await).unwrap();
        assert_eq!(mark, json!({"run": RUN, "reason": "destroyed"}));
        host.daemon(Mood::Willing).await
    };
    let xml = requesting_xml();
    let (outcome, _daemon) = tokio::join!(host.release(&xml), daemon);
    outcome.silent();
    assert_eq!(host.calls(), [released("destroyed")]);
    assert_eq!(host.mark(), None, "the daemon has heard of it");
}

#[tokio::test]
async fn release_that_can_leave_no_mark_says_so() {
    let host = Host::new();
    host.claim_of_run();
    std::fs::write(host.path("run/mdevd/released"), "in the way").unwrap();
    let outcome = host.release(&requesting_xml()).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("mdevd: the end of domain 'vm & co' could not be noted"), "{}", outcome.stderr);
}

#[tokio::test]
async fn reconnect_says_who_waits_now() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.reconnect(&requesting_xml()).await.silent();
    host.claim("");
    host.reconnect(&xml("")).await.silent();
    let (pid, start) = this_process();
    let adopt = |requests| Call::Adopt { uuid: DOMAIN.to_owned(), requests, pid, start };
    assert_eq!(host.calls(), [adopt(1), adopt(0)]);
}

#[tokio::test]
async fn reconnect_never_fails() {
    let refusing = Host::with_bus();
    let _daemon = refusing.daemon(Mood::Refusing).await;
    for host in [&Host::new(), &Host::with_bus(), &Host::with_service("exit 1"), &refusing] {
        for xml in [requesting_xml(), String::new(), format!("<{NAMESPACE}"), "\0".to_owned()] {
            host.reconnect(&xml).await.silent();
        }
    }
    assert!(matches!(refusing.calls().as_slice(), [Call::Adopt { .. }]), "{:?}", refusing.calls());
}

#[tokio::test]
async fn a_claim_left_over_is_no_reason_to_refuse() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Refusing).await;
    host.claim_of_run();
    host.prepare(&xml("")).await.silent();
    assert!(
        matches!(host.calls().as_slice(), [Call::Prepare { requests, .. }] if requests.is_empty()),
        "{:?}",
        host.calls()
    );
    let host = Host::new();
    host.claim_of_run();
    host.prepare(&xml("")).await.silent();
}

#[tokio::test]
async fn xml_that_cannot_be_read_is_refused_only_when_it_may_hold_a_request() {
    let host = Host::new();
    host.claim_of_run();
    let doctype = format!("<!DOCTYPE domain>{}", xml(""));
    let huge = " ".repeat(9 << 20);
    for xml in ["", "\u{0}", "<domain>", "no XML at all", doctype.as_str(), huge.as_str()] {
        host.prepare(xml).await.silent();
        host.release(xml).await.silent();
        let outcome = host.prepare(&format!("{xml}<x xmlns='{NAMESPACE}'>")).await;
        assert_eq!(outcome.code, 1);
        let stderr = outcome.stderr;
        assert!(stderr.starts_with("mdevd: the requests of domain 'vm & co' cannot be read: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    assert_eq!(host.mark(), None);
}

#[tokio::test]
async fn xml_that_cannot_be_read_is_not_repeated() {
    let host = Host::new();
    for broken in [
        "<graphics passwd=hunter2/>",
        "<graphics passwd='&hunter2;'/>",
        "<graphics passwd='hunter2'x'/>",
        "<title>&hunter2;</title>",
        "<title>hunter2</tilte>",
        "<title>hunter2\u{1}</title>",
    ] {
        let outcome = host.prepare(&requesting_xml().replace("<memory ", &format!("{broken}<memory "))).await;
        let stderr = outcome.stderr;
        assert!(outcome.code == 1 && stderr.contains("cannot be read"), "{stderr}");
        assert!(!stderr.contains("hunter2"), "a password is shown: {stderr}");
    }
}

#[tokio::test]
async fn an_ordinary_user_has_no_devices_to_give() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    host.claim_of_run();
    let hook = |op: &'static str, xml: String| {
        let mut command = host.command(&host.path("mdevd-hook"));
        command.args(["vm", op, if op == "release" { "end" } else { "begin" }, "-"]).env_remove("MDEVD_RUN_DIR");
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        async move { run(command, &xml).await }
    };
    for op in ["prepare", "release", "reconnect"] {
        hook(op, xml("")).await.silent();
    }
    for op in ["release", "reconnect"] {
        hook(op, requesting_xml()).await.silent();
    }
    let outcome = hook("prepare", requesting_xml()).await;
    assert_eq!(outcome.code, 1);
    let stderr = outcome.stderr;
    assert!(stderr.starts_with("mdevd: domain 'vm & co' ") && stderr.contains("needs qemu:///system"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_eq!(host.calls(), []);
}

#[tokio::test]
async fn by_hand_it_explains_itself() {
    let output = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_mdevd-hook")).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(output(&["--version"]), (0, format!("mdevd-hook {}\n", env!("CARGO_PKG_VERSION")), String::new()));
    assert!(output(&["--help"]).1.starts_with("Usage: mdevd-hook NAME OP SUBOP EXTRA"));
    for args in [&[][..], &["vm"], &["vm", "prepare", "begin"], &["vm", "prepare", "begin", "-", "more"]] {
        let (code, stdout, stderr) = output(args);
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.starts_with("mdevd: this needs four arguments"), "{stderr}");
    }
    // A domain may have any name.
    let host = Host::new();
    let mut command = host.command(&host.path("mdevd-hook"));
    command.args(["--help", "prepare", "begin", "-"]);
    run(command, &xml("")).await.silent();
}

#[tokio::test]
async fn the_entry_hides_every_failure_but_that_of_prepare() {
    let host = Host::new();
    let entry = entry(&host);
    let call = |op: &'static str, subop: &'static str, xml: String| {
        let mut command = host.command(&entry);
        command.args(["vm", op, subop, "-"]);
        async move { run(command, &xml).await }
    };
    assert_eq!(call("prepare", "begin", requesting_xml()).await.code, 1);
    assert_eq!(call("prepare", "begin", xml("")).await.code, 0);
    host.claim_of_run();
    std::fs::write(host.path("run/mdevd/released"), "in the way").unwrap();
    let outcome = call("release", "end", requesting_xml()).await;
    assert!(outcome.code == 0 && !outcome.stderr.is_empty(), "{outcome:?}");
    // The program is gone, the entry is not: as after a package was removed.
    std::fs::remove_file(host.path("mdevd-hook")).unwrap();
    for op in ["prepare", "reconnect", "restore", "release"] {
        call(op, "begin", requesting_xml()).await.silent();
    }
}

#[tokio::test]
async fn the_entry_is_not_taken_for_the_libvirt_daemon() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Willing).await;
    for op in ["prepare", "reconnect"] {
        let mut command = host.command(&entry(&host));
        command.args(["vm with  blanks", op, "begin", "-"]);
        run(command, &requesting_xml()).await.silent();
    }
    let seen: Vec<_> = host
        .calls()
        .iter()
        .map(|call| match call {
            Call::Prepare { pid, start, .. } | Call::Adopt { pid, start, .. } => (*pid, *start),
            Call::Release { .. } => panic!("{call:?}"),
        })
        .collect();
    assert_eq!(seen, [this_process(), this_process()]);
}
