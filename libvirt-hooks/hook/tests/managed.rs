//! A domain with a PCI function that it does not request: what the hook does where the configuration says to manage it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // A test fails by panicking.

mod common;

use std::time::{Duration, Instant};

use common::{Call, DOMAIN, Host, Mood, xml};
use mdevd_dbus::TextDict;

/// The domain, with a function of a card beside its mdev.
fn with_function() -> String {
    add_function(&xml(""), 0)
}

/// A domain with one more function of the card.
fn add_function(xml: &str, number: u8) -> String {
    let hostdev = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>
      <address domain='0x0000' bus='0x41' slot='0x00' function='0x{number}'/></source></hostdev>"
    );
    xml.replace("<devices>", &format!("<devices>{hostdev}"))
}

/// The domain with two functions of the card and these requests.
fn requesting(requests: &str) -> String {
    let metadata = format!("<mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'>{requests}</mdevd:devices>");
    add_function(&add_function(&xml(&metadata), 1), 0)
}

/// The daemon was asked to prepare the domain with these requests, each a name and what it asks for.
fn asked(call: &Call) -> Vec<(&str, &str)> {
    let Call::Prepare { requests, .. } = call else { panic!("{call:?}") };
    let what = |request| ["address", "type"].iter().find_map(|key| TextDict::get(request, *key)).unwrap();
    requests.iter().map(|request| (request["name"].as_str(), what(request).as_str())).collect()
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
        let [call @ Call::Prepare { uuid, hostdevs, timeout_ms, .. }] = &calls[..] else { panic!("{calls:?}") };
        assert_eq!(uuid, DOMAIN);
        assert_eq!(asked(call), [("fixed0", "0000:41:00.0")]);
        assert_eq!(hostdevs.len(), 2);
        assert!(*timeout_ms <= 1000, "{timeout_ms}");
    }
}

#[tokio::test]
async fn only_that_somebody_else_has_it_or_works_with_it_refuses_the_start() {
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

    let host = Host::with_bus();
    manage(&host, "0000:41:00.0\n");
    let _daemon = host.daemon(Mood::Busy).await;
    assert_eq!(host.prepare(&with_function()).await.code, 1);
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

#[tokio::test]
async fn the_end_of_an_earlier_run_is_waited_for() {
    let host = Host::with_bus();
    manage(&host, "0000:41:00.0\n");
    host.claim_of_run();
    // Nobody there, and nobody is started.
    host.prepare(&with_function()).await.silent();
    let daemon = host.daemon(Mood::Willing).await;
    host.prepare(&with_function()).await.silent();
    let calls = host.calls();
    let [call @ Call::Prepare { timeout_ms, .. }] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(asked(call), [("fixed0", "0000:41:00.0")]);
    // The hook waits a little longer than mdevd, to hear what it says.
    assert!((5000..=7500).contains(timeout_ms), "{timeout_ms}");
    drop(daemon);

    for (mood, code) in [(Mood::Refusing, 0), (Mood::Busy, 1), (Mood::Taken, 1)] {
        let host = Host::with_bus();
        manage(&host, "0000:41:00.0\n");
        host.claim_of_run();
        let _daemon = host.daemon(mood).await;
        assert_eq!(host.prepare(&with_function()).await.code, code, "{mood:?}");
        assert_eq!(host.calls().len(), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn what_no_request_names_is_claimed_beside_the_requests() {
    let host = Host::with_bus();
    manage(&host, "0000:41:00\n");
    let _daemon = host.daemon(Mood::Willing).await;
    let (zero, one) = ("0000:41:00.0", "0000:41:00.1");
    let table = [
        ("<mdevd:request name='a' type='mtty-1'/>", vec![("a", "mtty-1"), ("fixed0", zero), ("fixed1", one)]),
        // A name that is taken is not taken again.
        ("<mdevd:request name='fixed0' type='mtty-1'/>", vec![("fixed0", "mtty-1"), ("fixed1", zero), ("fixed2", one)]),
        ("<mdevd:request name='a' address='0000:41:00.0'/>", vec![("a", zero), ("fixed0", one)]),
        ("<mdevd:request name='a' address='0000:41:00'/>", vec![("a", "0000:41:00")]),
        ("<mdevd:request name='a' address='what'/>", vec![("a", "what"), ("fixed0", zero), ("fixed1", one)]),
    ];
    for (requests, expected) in &table {
        host.prepare(&requesting(requests)).await.silent();
        assert_eq!(asked(host.calls().last().unwrap()), *expected);
    }
    assert_eq!(host.calls().len(), table.len());
}

#[tokio::test]
async fn what_is_wrong_with_a_managed_function_stops_no_request() {
    let of_mdev = "<mdevd:request name='a' type='mtty-1'/>";
    for (mood, code, calls) in [
        (Mood::Picky, 0, 2),
        // Then it is the request that is refused.
        (Mood::Refusing, 1, 2),
        // Without it another owner's device would be in two domains.
        (Mood::Taken, 1, 1),
        (Mood::Busy, 1, 1),
    ] {
        let host = Host::with_bus();
        manage(&host, "0000:41:00.0\n");
        let _daemon = host.daemon(mood).await;
        let outcome = host.prepare(&requesting(of_mdev)).await;
        assert_eq!((outcome.code, outcome.stderr.is_empty()), (code, code == 0), "{mood:?}: {}", outcome.stderr);
        let made = host.calls();
        let expected = [vec![("a", "mtty-1"), ("fixed0", "0000:41:00.0")], vec![("a", "mtty-1")]];
        assert_eq!(made.iter().map(asked).collect::<Vec<_>>(), expected[..calls], "{mood:?}");
    }
    // Nothing is managed: a refusal is a refusal.
    let host = Host::with_bus();
    let _daemon = host.daemon(Mood::Refusing).await;
    assert_eq!(host.prepare(&requesting(of_mdev)).await.code, 1);
    assert_eq!(host.calls().len(), 1);
}
