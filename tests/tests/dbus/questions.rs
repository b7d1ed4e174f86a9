//! What is asked and changes nothing: Find, Explain, Problems, the XML of a device.

use mdevd_dbus::wire::{number, text};
use mdevd_dbus::{Dict, ErrorName, Options, interface, path};
use mdevd_tests::fakesys::{self, Errno, Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, eventually, text_dict};
use uuid::Uuid;
use zbus::Variant;

use super::common::{CARD, GPU, Heard, Lab, Listener, assert_refused, mdev_uuid, none, one_card, options};

#[tokio::test]
async fn find_takes_every_word_that_a_person_has() {
    let lab = Lab::start(one_card().mtty()).await;
    let domain = Domain::wants("win11", &["mtty-1"]);
    domain.prepare(&lab.manager).await.unwrap();
    let by_hand = lab.create("Anna's").await;
    let claim = path::claim(lab.claim_of(by_hand).await);
    let (mdev, of_domain) = (path::mdev(domain.mdevs[0]), path::claim(domain.uuid));
    // Two domains of one name (one was renamed, or migrated in), and one that is called by its UUID.
    let twin = Domain::wants("win11", &["mtty-1"]);
    twin.prepare(&lab.manager).await.unwrap();
    let mut odd = Domain::wants("", &["mtty-1"]);
    odd.name = odd.uuid.to_string();
    odd.prepare(&lab.manager).await.unwrap();

    let mut both = vec![of_domain.clone(), path::claim(twin.uuid)];
    both.sort_by_key(ToString::to_string);
    for (word, expected) in [
        (CARD.to_string(), vec![path::function(CARD), path::parent(CARD)]),
        ("41:00".into(), vec![path::function(CARD)]),
        (path::function(CARD).to_string(), vec![path::function(CARD)]),
        ("mtty".into(), vec![path::parent("mtty")]),
        (by_hand.to_string(), vec![path::mdev(by_hand)]),
        (by_hand.to_string().to_uppercase(), vec![path::mdev(by_hand)]),
        (domain.uuid.to_string(), vec![of_domain.clone()]),
        ("win11".into(), both),
        ("Anna's".into(), vec![claim.clone()]),
        (odd.name.clone(), vec![path::claim(odd.uuid)]),
        (mdev.to_string(), vec![mdev]),
        (claim.to_string(), vec![claim]),
        (path::parent(CARD).to_string(), vec![path::parent(CARD)]),
        // Nothing.
        (String::new(), vec![]),
        ("/".into(), vec![]),
        (path::ROOT.into(), vec![]),
        ("..".into(), vec![]),
        ("win1".into(), vec![]),
        ("mtty-1".into(), vec![]),
        (Uuid::new_v4().to_string(), vec![]),
        (path::mdev(Uuid::new_v4()).to_string(), vec![]),
        ("\u{1b}[2J".into(), vec![]),
        ("x".repeat(1_000_000), vec![]),
    ] {
        let mut found = lab.manager.find(&word).await.unwrap();
        found.sort_by_key(ToString::to_string);
        assert_eq!(found, expected, "{word:.80}");
    }
}

fn verdicts(candidates: &[Dict]) -> Vec<[&str; 4]> {
    let words = |c| [text(c, "request"), text(c, "parent"), text(c, "verdict"), text(c, "reason")];
    candidates.iter().map(words).collect()
}

#[tokio::test]
async fn explain_says_of_every_parent_what_is_thought_of_it() {
    let existing = Uuid::new_v4();
    let builder = fakesys::host()
        .parent("0000:01:00.0")
        .numa(0)
        .mdev_type(GPU, 4)
        .parent("0000:02:00.0")
        .numa(1)
        .mdev_type(GPU, 4)
        .parent("0000:03:00.0")
        .numa(0)
        .mdev_type(GPU, 1)
        .parent("0000:04:00.0")
        .numa(0)
        .mdev_type("nvidia-64", 1)
        .parent("0000:05:00.0")
        .numa(0)
        .mdev_type(GPU, 4)
        .parent("0000:06:00.0")
        .numa(0)
        .mdev_type(GPU, 2);
    let lab = Lab::start_with(builder, |host| {
        std::fs::create_dir_all(host.etc().join("mdevd/conf.d")).unwrap();
        std::fs::write(host.etc().join("mdevd/conf.d/50-x.toml"), "mdev.exclude-parents = ['0000:05:00.0']\n").unwrap();
        host.create_mdev("0000:03:00.0", GPU, existing).unwrap();
    })
    .await;
    let explain = |requests: &[&[(&str, &str)]]| {
        let requests: Vec<_> = requests.iter().map(|request| text_dict(request)).collect();
        let lab = &lab;
        async move { lab.manager.explain(&requests, &none()).await }
    };
    let before = lab.objects().await;

    let said = explain(&[&[("name", "a"), ("type", GPU), ("numa-node", "0")]]).await.unwrap();
    assert_eq!(
        verdicts(&said),
        [
            ["a", "0000:06:00.0", "chosen", ""],
            ["a", "0000:01:00.0", "possible", ""],
            ["a", "0000:03:00.0", "last-resort", "no-instance"],
            ["a", "0000:02:00.0", "refused", "wrong-numa-node"],
            ["a", "0000:04:00.0", "refused", "no-such-type"],
            ["a", "0000:05:00.0", "refused", "excluded"],
        ]
    );
    for candidate in &said {
        assert_eq!(text(candidate, "device"), "");
        assert_eq!(text(candidate, "message").is_empty(), text(candidate, "reason").is_empty());
        let keys: std::collections::BTreeSet<&str> = candidate.keys().map(String::as_str).collect();
        assert_eq!(keys, ["device", "message", "parent", "reason", "request", "verdict"].into());
    }

    let said = explain(&[&[("name", "a"), ("type", GPU), ("parent", "0000:01:00.0")]]).await.unwrap();
    assert_eq!(verdicts(&said)[0], ["a", "0000:01:00.0", "chosen", ""]);
    assert_eq!(verdicts(&said).iter().filter(|v| v[3] == "other-parent").count(), 5);

    // What one request gets the next cannot have: two on the sixth, the third elsewhere.
    let said = explain(&[
        &[("name", "a"), ("type", GPU), ("count", "2"), ("numa-node", "0")],
        &[("name", "b"), ("type", GPU), ("numa-node", "0")],
    ])
    .await;
    let said = said.unwrap();
    let chosen: Vec<_> = verdicts(&said).into_iter().filter(|v| v[2] == "chosen").map(|v| [v[0], v[1]]).collect();
    assert_eq!(chosen, [["a.1", "0000:06:00.0"], ["a.2", "0000:06:00.0"], ["b", "0000:01:00.0"]]);
    let said =
        explain(&[&[("name", "a"), ("type", "nvidia-64")], &[("name", "b"), ("type", "nvidia-64")]]).await.unwrap();
    assert!(verdicts(&said).contains(&["a", "0000:04:00.0", "chosen", ""]));
    assert!(verdicts(&said).contains(&["b", "0000:04:00.0", "refused", "no-instance"]), "{:?}", verdicts(&said));

    // A device that is there.
    let text_uuid = existing.to_string();
    let said = explain(&[&[("name", "a"), ("uuid", &text_uuid)]]).await.unwrap();
    assert_eq!(verdicts(&said), [["a", "0000:03:00.0", "chosen", ""]]);
    assert_eq!(text(&said[0], "device"), text_uuid);
    let said = explain(&[&[("name", "a"), ("type", "nvidia-64"), ("uuid", &text_uuid)]]).await.unwrap();
    assert_eq!(verdicts(&said), [["a", "", "refused", "conflict"]]);
    let said = explain(&[&[("name", "a"), ("uuid", &Uuid::new_v4().to_string())]]).await.unwrap();
    assert_eq!(verdicts(&said), [["a", "", "refused", "not-found"]]);
    let said = explain(&[&[("name", "a"), ("pool", "gold")]]).await.unwrap();
    assert_eq!(verdicts(&said)[0][2..], ["refused", "not-found"]);
    assert_eq!(explain(&[]).await.unwrap(), Vec::<Dict>::new());
    assert_refused(
        explain(&[&[("name", "a"), ("typ", GPU)]]).await,
        ErrorName::InvalidArgument,
        &["did you mean 'type'?"],
    );

    // It has changed nothing.
    assert_eq!(lab.objects().await, before);
    assert!(lab.host.sys_writes().is_empty() && claim_files(&lab.host).is_empty());

    // And what it says comes true.
    let (mdev, _) = lab.manager.create_mdev(GPU, &options([])).await.unwrap();
    let uuid = mdev_uuid(mdev.as_str());
    assert_eq!(lab.host.mdevs().into_iter().find(|(made, ..)| *made == uuid).unwrap().1, "0000:06:00.0");
    let requests = [text_dict(&[("name", "a"), ("uuid", &uuid.to_string())])];
    let said = lab.manager.explain(&requests, &none()).await.unwrap();
    assert_eq!(verdicts(&said)[0][2], "chosen", "a domain may borrow it");
    let domain = Domain::wants("vm1", &["nvidia-64"]);
    domain.prepare(&lab.manager).await.unwrap();
    let requests = [text_dict(&[("name", "a"), ("uuid", &domain.mdevs[0].to_string())])];
    let said = lab.manager.explain(&requests, &none()).await.unwrap();
    assert_eq!(verdicts(&said)[0][2..], ["refused", "in-use"]);
}

#[tokio::test]
async fn explain_knows_what_is_stuck_and_what_no_host_has() {
    let lab = Lab::start(fakesys::host()).await;
    let request = [text_dict(&[("name", "a"), ("type", GPU)])];
    let said = lab.manager.explain(&request, &none()).await.unwrap();
    assert_eq!(verdicts(&said), [["a", "", "refused", "not-found"]]);
    assert!(text(&said[0], "message").contains("driver loaded"), "{said:?}");
    assert_refused(lab.manager.create_mdev(GPU, &none()).await, ErrorName::NotFound, &["driver loaded"]);
}

fn problem<'a>(problems: &'a [Dict], subject: &str) -> Option<&'a Dict> {
    problems.iter().find(|problem| text(problem, "subject") == subject)
}

#[tokio::test]
async fn problems_come_and_go_with_a_signal() {
    let lab = Lab::start(one_card().mtty()).await;
    let mut listener = Listener::open(&lab.bus).await;
    assert_eq!(lab.manager.problems().await.unwrap(), Vec::<Dict>::new());
    let said = |words: &'static str| {
        move |heard: &Heard| {
            matches!(heard, Heard::Changed(path, name, properties)
                if path == path::ROOT && name == interface::MANAGER && properties.len() == 1 && properties["Problems"].contains(words))
        }
    };
    // A type that does not parse is left out, the rest of the parent is not.
    let file = lab.host.type_path("mtty", "mtty-1", "available_instances");
    lab.host.set_text(&file, "many\n");
    let (heard, _) = listener.call(path::ROOT, interface::MANAGER, "Rescan", &(none(),)).await;
    assert!(heard.iter().any(said("mtty-1")), "{heard:?}");
    let problems = lab.manager.problems().await.unwrap();
    let about = problem(&problems, "mtty").unwrap();
    assert!(text(about, "message").contains("available_instances"), "{about:?}");
    assert!(number(about, "since").is_some_and(|since| since > 1_700_000_000));
    let keys: std::collections::BTreeSet<&str> = about.keys().map(String::as_str).collect();
    assert_eq!(keys, ["message", "since", "subject"].into());
    let types = lab.parent("mtty").await.types().await.unwrap();
    assert_eq!(types.iter().map(|t| text(t, "id")).collect::<Vec<_>>(), ["mtty-2"]);
    assert_refused(lab.manager.create_mdev("mtty-1", &none()).await, ErrorName::NotFound, &["mtty-1"]);
    lab.manager.create_mdev("mtty-2", &none()).await.unwrap();

    // A device that cannot be given back.
    let made = lab.create("mine").await;
    let claim = lab.claim_of(made).await;
    let busy = lab.host.fault(Op::Write, "sys/**/remove", Fault::Errno(Errno::BUSY));
    assert_refused(lab.claim(claim).await.release(&none()).await, ErrorName::Busy, &["EBUSY", &made.to_string()]);
    assert_eq!(lab.claim(claim).await.state().await.unwrap(), "failed");
    let problems = lab.manager.problems().await.unwrap();
    let about = problem(&problems, &format!("claim {claim}")).unwrap();
    assert!(text(about, "message").contains("EBUSY"), "{about:?}");
    let since = number(about, "since");

    // Mended: both go, by signal.
    busy.let_go();
    lab.host.set_text(&file, "22\n");
    lab.manager.rescan(&none()).await.unwrap();
    let heard = listener.ears.until(|heard| {
        matches!(heard, Heard::Changed(path, _, properties) if path == path::ROOT && properties["Problems"] == "[]")
    });
    heard.await;
    assert!(since.is_some());
    eventually("an end of the claim", || async { lab.manager.problems().await.unwrap().is_empty() }).await;
    assert!(!claim_files(&lab.host).contains(&format!("{claim}.json")));
    assert_eq!(lab.parent("mtty").await.types().await.unwrap().len(), 2);
}

#[tokio::test]
async fn hostdev_xml_takes_the_options_that_the_device_can_have() {
    let builder = fakesys::host()
        .parent(CARD)
        .mdev_type(GPU, 4)
        .parent("0.0.26ab")
        .at("devices/css0/0.0.26ab")
        .mdev_type("vfio_ccw-io", 1)
        .device_api("vfio-ccw")
        .parent("matrix")
        .at("devices/vfio_ap/matrix")
        .mdev_type("vfio_ap-passthrough", 1)
        .device_api("vfio-ap")
        .parent("odd")
        .mdev_type("odd-1", 1)
        .device_api("vfio-platform");
    let lab = Lab::start(builder).await;
    let make = |mdev_type: &'static str| {
        let lab = &lab;
        async move { lab.mdev(mdev_uuid(lab.manager.create_mdev(mdev_type, &none()).await.unwrap().0.as_str())).await }
    };
    let (gpu, ccw, ap, odd) =
        (make(GPU).await, make("vfio_ccw-io").await, make("vfio_ap-passthrough").await, make("odd-1").await);
    let uuid = gpu.uuid().await.unwrap();

    let plain = gpu.hostdev_xml(&none()).await.unwrap();
    assert_eq!(
        plain,
        format!(
            "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n  <source>\n    <address uuid='{uuid}'/>\n  </source>\n</hostdev>\n"
        )
    );
    let mut all =
        options([("display", "on"), ("ramfb", "on"), ("alias", "ua-gpu0"), ("guest-address", "0000:04:00.0")]);
    let full = gpu.hostdev_xml(&all).await.unwrap();
    for part in ["display='on'", "ramfb='on'", "<alias name='ua-gpu0'/>", "bus='0x04'", &uuid] {
        assert!(full.contains(part), "{part} is not in {full}");
    }
    let boot = Options::from([("boot-order", 2u32.into()), ("guest-address", "fe.0.0001".into())]);
    let full = ccw.hostdev_xml(&boot).await.unwrap();
    for part in ["model='vfio-ccw'", "<boot order='2'/>", "cssid='0xfe'"] {
        assert!(full.contains(part), "{part} is not in {full}");
    }
    assert!(ap.hostdev_xml(&none()).await.unwrap().contains("model='vfio-ap'"));

    // What this device cannot have.
    assert_refused(
        gpu.hostdev_xml(&Options::from([("boot-order", 1u32.into())])).await,
        ErrorName::NotSupported,
        &["boot-order", "vfio-pci"],
    );
    assert_refused(
        ap.hostdev_xml(&options([("display", "on")])).await,
        ErrorName::NotSupported,
        &["display", "vfio-ap"],
    );
    assert_refused(
        ap.hostdev_xml(&options([("guest-address", "0000:04:00.0")])).await,
        ErrorName::NotSupported,
        &["guest-address"],
    );
    assert_refused(
        ccw.hostdev_xml(&options([("guest-address", "0000:04:00.0")])).await,
        ErrorName::NotSupported,
        &["CCW"],
    );
    assert_refused(odd.hostdev_xml(&none()).await, ErrorName::NotSupported, &["vfio-platform"]);
    // What no device can have.
    for (key, value) in [("display", "yes"), ("ramfb", ""), ("alias", "gpu0"), ("alias", "ua-"), ("guest-address", "4")]
    {
        assert_refused(gpu.hostdev_xml(&options([(key, value)])).await, ErrorName::InvalidArgument, &[key]);
    }
    assert_refused(
        gpu.hostdev_xml(&Options::from([("boot-order", 0u32.into())])).await,
        ErrorName::InvalidArgument,
        &["boot-order"],
    );
    assert_refused(gpu.hostdev_xml(&options([("ramfb", "on")])).await, ErrorName::InvalidArgument, &["display"]);
    // What is no option at all, and what is of another type.
    assert_refused(
        gpu.hostdev_xml(&options([("dispaly", "on")])).await,
        ErrorName::InvalidOption,
        &["dispaly", "did you mean 'display'?"],
    );
    assert_refused(gpu.hostdev_xml(&options([("model", "vfio-pci")])).await, ErrorName::InvalidOption, &["model"]);
    all.insert("display", Variant::from(true));
    assert_refused(gpu.hostdev_xml(&all).await, ErrorName::InvalidOption, &["display", "'b'"]);
    assert_refused(
        gpu.hostdev_xml(&options([("boot-order", "1")])).await,
        ErrorName::InvalidOption,
        &["boot-order", "'s'"],
    );

    let xml = gpu.nodedev_xml(&none()).await.unwrap();
    for part in [
        format!("<uuid>{uuid}</uuid>"),
        format!("<type id='{GPU}'/>"),
        "<parent>pci_0000_41_00_0</parent>".into(),
        "<name>mdev_".into(),
    ] {
        assert!(xml.contains(&part), "{part} is not in {xml}");
    }
    assert_refused(gpu.nodedev_xml(&options([("name", "x")])).await, ErrorName::InvalidOption, &["name", "no options"]);

    let half = gpu.uuid().await.unwrap().parse().unwrap();
    lab.host.loses_type_link(half);
    lab.manager.rescan(&none()).await.unwrap();
    assert_refused(gpu.nodedev_xml(&none()).await, ErrorName::NotSupported, &["half removed"]);
}

#[tokio::test]
async fn the_version_is_the_programs() {
    let lab = Lab::start(one_card()).await;
    assert_eq!(lab.manager.version().await.unwrap(), env!("CARGO_PKG_VERSION"));
}

fn keys(dict: &Dict) -> Vec<&str> {
    let mut keys: Vec<&str> = dict.keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn dictionaries_have_the_keys_that_are_documented() {
    let lab = Lab::start(one_card()).await;
    let domain = Domain::wants("vm1", &[GPU]);
    let grants = domain.prepare(&lab.manager).await.unwrap();
    let grant = ["claim", "device", "object", "request", "undo", "uuid", "xml"];
    assert_eq!(keys(&grants[0]), grant);
    assert_eq!(lab.claim(domain.uuid).await.grants().await.unwrap(), grants);
    let types = lab.parent(CARD).await.types().await.unwrap();
    assert_eq!(keys(&types[0]), ["available", "description", "device_api", "id", "name"]);
    assert_eq!([text(&types[0], "id"), text(&types[0], "device_api")], [GPU, "vfio-pci"]);

    let writes = lab.host.sys_writes();
    for dry_run in [true, false] {
        let actions = lab.manager.reconcile(&Options::from([("dry-run", dry_run.into())])).await.unwrap();
        assert_eq!(actions.len(), 1);
        assert_eq!(keys(&actions[0]), ["action", "claim", "device", "reason"]);
        assert_eq!(text(&actions[0], "claim"), path::claim(domain.uuid).as_str());
        assert!(!text(&actions[0], "action").is_empty() && !text(&actions[0], "reason").is_empty());
    }
    assert_eq!(lab.host.sys_writes(), writes);
}

#[tokio::test]
async fn no_text_of_a_driver_is_too_strange_for_the_bus() {
    // The bus throws out whoever sends a string with a zero byte.
    let lab = Lab::start_with(one_card(), |host| {
        host.set_text(&host.type_path(CARD, GPU, "name"), "GRID\0 \u{1b}[2JP40\n");
        host.set_text(&host.type_path(CARD, GPU, "description"), "num_heads=4\0\nframebuffer=1024M\u{7}\n");
    })
    .await;
    let types = lab.parent(CARD).await.types().await.unwrap();
    assert_eq!(
        [text(&types[0], "name"), text(&types[0], "description")],
        ["GRID\u{fffd} \u{fffd}[2JP40", "num_heads=4\u{fffd}, framebuffer=1024M\u{fffd}"]
    );
}
