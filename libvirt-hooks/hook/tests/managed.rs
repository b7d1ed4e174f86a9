//! A domain that requests nothing but has a PCI function: what the hook does where the configuration says to manage it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // A test fails by panicking.

mod common;

use std::time::{Duration, Instant};

use common::{Call, DOMAIN, Host, Mood, xml};

/// The domain, with a function of a card beside its mdev.
fn with_function() -> String {
    let hostdev = "<hostdev mode='subsystem' type='pci' managed='yes'><source>
      <address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/></source></hostdev>";
    xml("").replace("<devices>", &format!("<devices>{hostdev}"))
}

fn manage(host: &Host, lines: &str) {
    std::fs::write(host.path("run/mdevd/manage"), lines).unwrap();
}

#[tokio::test]
async fn what_is_not_managed_is_not_heard_of() {
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Taken).await;
    host.prepare(&with_function()).await.silent();
    for lines in ["", "0000:42:00.0\n", "0000:41:00.1\n0000:40:00\n", "nonsense\n\0\n"] {
        manage(&host, lines);
        host.prepare(&with_function()).await.silent();
    }
    // A managed function is none of the business of a domain that does not have it.
    manage(&host, "0000:41:00.0\n");
    host.prepare(&xml("")).await.silent();
    assert_eq!(host.calls(), []);
}

#[tokio::test]
async fn what_is_managed_is_claimed_by_its_address() {
    for lines in ["0000:41:00.0\n", "nonsense\n0000:41:00\n"] {
        let host = Host::with_bus();
        let _daemon = host.daemon(Mood::Willing).await;
        manage(&host, lines);
        host.prepare(&with_function()).await.silent();
        let calls = host.calls();
        let [Call::Prepare { uuid, requests, hostdevs, timeout_ms, .. }] = &calls[..] else { panic!("{calls:?}") };
        assert_eq!(uuid, DOMAIN);
        let asked: Vec<(&str, &str)> =
            requests.iter().map(|request| (request["name"].as_str(), request["address"].as_str())).collect();
        assert_eq!(asked, [("fixed0", "0000:41:00.0")]);
        assert_eq!(hostdevs.len(), 2);
        assert!(*timeout_ms <= 1000, "{timeout_ms}");
    }
}

#[tokio::test]
async fn only_that_somebody_else_has_it_refuses_the_start() {
    let host = Host::with_bus();
    manage(&host, "0000:41:00.0\n");
    // Nobody there, and nobody is started.
    host.prepare(&with_function()).await.silent();
    let daemon = host.daemon(Mood::Refusing).await;
    host.prepare(&with_function()).await.silent();
    drop(daemon);

    let host = Host::with_bus();
    manage(&host, "0000:41:00.0\n");
    let _daemon = host.daemon(Mood::Taken).await;
    let outcome = host.prepare(&with_function()).await;
    let told = "mdevd: 0000:41:00.0 is already promised to domain 'other'\n";
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, told));
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_costs_a_second() {
    let host = Host::with_bus();
    manage(&host, "0000:41:00.0\n");
    let _daemon = host.daemon(Mood::Silent).await;
    let begin = Instant::now();
    host.prepare(&with_function()).await.silent();
    // Far below the time that a domain with a request would wait.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
