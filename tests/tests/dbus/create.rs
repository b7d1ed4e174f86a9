//! `CreateMdev` and `Acquire`: where a device is made, what is said when it is not, attributes, and repeating a call.

use mdevd_dbus::wire::text;
use mdevd_dbus::{ErrorName, Options, path};
use mdevd_tests::fakesys::{self, Errno, FakeHost, Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, eventually, manager, text_dict};
use uuid::Uuid;

use super::common::{
    CARD, GPU, Lab, assert_refused, claim_id, connect_as_nobody, mdev_uuid, none, one_card, options, refused,
    root_or_left_out,
};

const OTHER: &str = "0000:c1:00.0";

/// A claim with nothing of it on the host: nothing was made, or it was undone.
fn nothing_left(host: &FakeHost) {
    assert_eq!(host.mdevs(), []);
    assert!(claim_files(host).is_empty());
}

#[tokio::test]
async fn a_call_with_a_uuid_may_be_repeated() {
    let lab = Lab::start(one_card().parent(OTHER).mdev_type(GPU, 4)).await;
    let uuid = Uuid::new_v4();
    let (text, upper) = (uuid.to_string(), uuid.to_string().to_uppercase());
    let (mdev, changed) = lab.manager.create_mdev(GPU, &options([("uuid", &upper), ("parent", CARD)])).await.unwrap();
    assert_eq!((mdev.clone(), changed), (path::mdev(uuid), true));
    let claims = claim_files(&lab.host);
    for again in [
        options([("uuid", &text)]),
        options([("uuid", &text), ("parent", CARD)]),
        options([("uuid", &upper), ("label", "x")]),
    ] {
        assert_eq!(lab.manager.create_mdev(GPU, &again).await.unwrap(), (mdev.clone(), false));
    }
    assert_eq!(lab.host.sys_writes().len(), 1);
    assert_eq!(claim_files(&lab.host), claims);

    // Not what is there.
    let other_parent = lab.manager.create_mdev(GPU, &options([("uuid", &text), ("parent", OTHER)])).await;
    assert_refused(other_parent, ErrorName::AlreadyExists, &[&text, GPU, CARD]);
    let other_type = lab.manager.create_mdev("nvidia-64", &options([("uuid", &text)])).await;
    assert_refused(other_type, ErrorName::AlreadyExists, &[&text, GPU]);
    assert_eq!(lab.host.sys_writes().len(), 1);
    assert_eq!(claim_files(&lab.host), claims);
}

#[tokio::test]
async fn a_uuid_of_somebody_else_is_taken() {
    let foreign = Uuid::new_v4();
    let lab = Lab::start_with(one_card(), |host| host.create_mdev(CARD, GPU, foreign).unwrap()).await;
    let ask = |uuid: Uuid| {
        let lab = &lab;
        async move { lab.manager.create_mdev(GPU, &options([("uuid", &uuid.to_string())])).await }
    };
    assert_refused(ask(foreign).await, ErrorName::AlreadyExists, &[&foreign.to_string(), "nobody's"]);
    let domain = Domain::wants("vm1", &[GPU]);
    domain.prepare(&lab.manager).await.unwrap();
    assert_refused(ask(domain.mdevs[0]).await, ErrorName::AlreadyExists, &["domain 'vm1'"]);

    // Made by hand a moment ago, and the kernel's word of it was lost.
    lab.host.lose_uevents(true);
    let unseen = Uuid::new_v4();
    lab.host.create_mdev(CARD, GPU, unseen).unwrap();
    assert_refused(ask(unseen).await, ErrorName::AlreadyExists, &[&unseen.to_string()]);
    assert_eq!(lab.host.mdevs().len(), 3);
    assert_eq!(claim_files(&lab.host).len(), 1);
    assert_eq!(lab.host.sys_writes().len(), 1);
}

#[tokio::test]
async fn another_callers_device_is_taken() {
    if !root_or_left_out("two callers of different uid and one UUID") {
        return;
    }
    let lab = Lab::start(one_card()).await;
    let _polkit = mdevd_tests::harness::FakePolkit::start(&lab.bus, mdevd_tests::harness::Verdict::Allow).await;
    let nobody = manager(&connect_as_nobody(&lab.bus).await).await;
    let uuid = Uuid::new_v4().to_string();
    let same = options([("uuid", uuid.as_str()), ("label", "nobody's")]);
    assert!(nobody.create_mdev(GPU, &same).await.unwrap().1);
    assert!(!nobody.create_mdev(GPU, &same).await.unwrap().1);
    assert_refused(lab.manager.create_mdev(GPU, &same).await, ErrorName::AlreadyExists, &["nobody's"]);
}

#[tokio::test]
async fn two_who_ask_for_one_uuid_at_once() {
    let lab = Lab::start(one_card()).await;
    let uuid = Uuid::new_v4();
    let hang = lab.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let (first, text) = (lab.manager.clone(), uuid.to_string());
    let first = tokio::spawn(async move { first.create_mdev(GPU, &options([("uuid", &text)])).await });
    eventually("the first write", || async { hang.hits() == 1 }).await;
    let second = lab.manager.create_mdev(GPU, &options([("uuid", &uuid.to_string())])).await;
    assert_refused(second, ErrorName::AlreadyExists, &[&uuid.to_string(), "promised"]);
    hang.let_go();
    assert_eq!(first.await.unwrap().unwrap(), (path::mdev(uuid), true));
    assert_eq!(claim_files(&lab.host).len(), 1);
}

#[tokio::test]
async fn what_cannot_be_had_says_what_can() {
    let lab = Lab::start(one_card().mtty()).await;
    let ask = |mdev_type: &'static str, options: Options<'static>| {
        let lab = &lab;
        async move { lab.manager.create_mdev(mdev_type, &options).await }
    };
    assert_refused(ask("nvidia-36", none()).await, ErrorName::NotFound, &["nvidia-36", "did you mean 'nvidia-63'?"]);
    assert_refused(ask("i915-GVTg_V5_4", none()).await, ErrorName::NotFound, &["mtty-1, mtty-2, nvidia-63"]);
    assert_refused(
        ask("mtty-1", options([("parent", CARD)])).await,
        ErrorName::NotFound,
        &[CARD, "does not offer", "mtty-1", GPU],
    );
    assert_refused(ask(GPU, options([("parent", OTHER)])).await, ErrorName::NotFound, &["no mdev parent", OTHER]);
    nothing_left(&lab.host);
    assert!(lab.host.sys_writes().is_empty());
}

#[tokio::test]
async fn a_full_host_names_who_has_its_devices() {
    let foreign = Uuid::new_v4();
    let builder = fakesys::host().parent(CARD).mdev_type(GPU, 2).parent(OTHER).mdev_type(GPU, 1);
    let lab = Lab::start_with(builder, |host| host.create_mdev(OTHER, GPU, foreign).unwrap()).await;
    Domain::wants("vm1", &[GPU]).prepare(&lab.manager).await.unwrap();
    lab.create("mine").await;
    let full = lab.manager.create_mdev(GPU, &none()).await;
    assert_refused(full, ErrorName::NoCapacity, &[CARD, OTHER, GPU, "domain 'vm1'", "manual claim 'mine'", "1 mdev "]);
    let request = [text_dict(&[("name", "a"), ("type", GPU)])];
    assert_refused(lab.manager.acquire(&request, &none()).await, ErrorName::NoCapacity, &["domain 'vm1'"]);
    let late = Domain::wants("vm2", &[GPU]);
    assert_refused(late.prepare(&lab.manager).await, ErrorName::NoCapacity, &["'dev0'", "domain 'vm1'"]);
    assert_eq!(lab.host.mdevs().len(), 3);
    assert_eq!(claim_files(&lab.host).len(), 2);
}

#[tokio::test]
async fn names_cannot_trick_a_terminal() {
    let lab = Lab::start(fakesys::host().parent(CARD).mdev_type(GPU, 1)).await;
    Domain::wants("vm\u{1b}[2J\n'; rm", &[GPU]).prepare(&lab.manager).await.unwrap();
    let (name, message) = refused(lab.manager.create_mdev(GPU, &none()).await);
    assert_eq!(name, ErrorName::NoCapacity);
    assert!(message.contains("vm\\u{1b}[2J\\n"), "{message}");
}

#[tokio::test]
async fn placement_and_exclusion_are_kept() {
    let three = || {
        fakesys::host()
            .parent("0000:01:00.0")
            .mdev_type(GPU, 4)
            .parent("0000:02:00.0")
            .mdev_type(GPU, 2)
            .parent("0000:03:00.0")
            .mdev_type(GPU, 3)
    };
    let configured = |text: &'static str| {
        move |host: &FakeHost| {
            std::fs::create_dir_all(host.etc().join("mdevd")).unwrap();
            std::fs::write(host.etc().join("mdevd/mdevd.toml"), text).unwrap();
        }
    };
    // (configuration, where four devices go)
    for (text, order) in [
        // The one with the least left is filled first, so that the empty ones stay empty.
        ("", ["02", "02", "03", "03"]),
        ("mdev.placement = 'pack'\n", ["02", "02", "03", "03"]),
        // The one with the most left; of equals the first by name.
        ("mdev.placement = 'spread'\n", ["01", "01", "03", "01"]),
        ("mdev.exclude-parents = ['0000:02:00.0']\n", ["03", "03", "03", "01"]),
    ] {
        let lab = Lab::start_with(three(), configured(text)).await;
        let mut went = Vec::new();
        for _ in order {
            let uuid = lab.create("").await;
            let parent = lab.host.mdevs().into_iter().find(|(made, ..)| *made == uuid).unwrap().1;
            went.push(parent[5..7].to_string());
            // What the kernel says to have left is what counts.
            let left = lab.host.available(&parent, GPU);
            let proxy = lab.parent(&parent).await;
            eventually("the kernel's new number", || async {
                let types = proxy.types().await.unwrap();
                mdevd_dbus::wire::number(&types[0], "available") == Some(u64::from(left))
            })
            .await;
        }
        assert_eq!(went, order, "{text}");
    }

    let lab = Lab::start_with(
        three(),
        configured("mdev.exclude-parents = ['0000:01:00.0', '0000:02:00.0', '0000:03:00.0']\n"),
    )
    .await;
    assert_refused(
        lab.manager.create_mdev(GPU, &none()).await,
        ErrorName::NoCandidate,
        &["0000:01:00.0", "excluded by configuration"],
    );
    let by_name = lab.manager.create_mdev(GPU, &options([("parent", "0000:03:00.0")])).await;
    assert_refused(by_name, ErrorName::NoCandidate, &["0000:03:00.0", "excluded by configuration"]);
    nothing_left(&lab.host);
}

fn attributes(pairs: &[(&str, &str)]) -> Options<'static> {
    let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Options::from([("attrs", pairs.into())])
}

#[tokio::test]
async fn attributes_are_written_in_order_and_may_repeat() {
    let host = one_card().mdev_attr("assign_adapter", 0o200, "").mdev_attr("vendor/rate", 0o644, "60");
    let lab = Lab::start(host).await;
    let wanted = [("assign_adapter", "5"), ("vendor/rate", "30"), ("assign_adapter", "6"), ("assign_adapter", "5")];
    let (mdev, _) = lab.manager.create_mdev(GPU, &attributes(&wanted)).await.unwrap();
    let home = lab.host.mdev_path(CARD, mdev_uuid(mdev.as_str()));
    let writes: Vec<(String, String)> = lab
        .host
        .sys_writes()
        .into_iter()
        .skip(1)
        .map(|(path, value, errno)| {
            assert_eq!(errno, None);
            (path.strip_prefix(&format!("{home}/")).unwrap_or(&path).to_string(), value)
        })
        .collect();
    assert_eq!(writes, wanted.map(|(name, value)| (name.to_string(), value.to_string())));
    // Whoever hands the device on to libvirt hands them on too.
    let uuid = mdev_uuid(mdev.as_str());
    let xml = lab.mdev(uuid).await.nodedev_xml(&none()).await.unwrap();
    let attrs: Vec<&str> = xml.lines().map(str::trim).filter(|line| line.starts_with("<attr ")).collect();
    assert_eq!(attrs, wanted.map(|(name, value)| format!("<attr name='{name}' value='{value}'/>")));
    // None at all is also a list.
    lab.manager.create_mdev(GPU, &attributes(&[])).await.unwrap();
}

#[tokio::test]
async fn bad_attributes_leave_nothing_behind() {
    let lab = Lab::start(one_card().mdev_attr("vendor/rate", 0o644, "60")).await;
    let long = "x".repeat(5000);
    for (name, value, word) in [
        ("remove", "1", "'remove'"),
        ("../remove", "1", "'../remove'"),
        ("driver/unbind", "1", "'driver/unbind'"),
        ("vendor/../remove", "1", "'vendor/../remove'"),
        ("", "1", "''"),
        ("/etc/passwd", "1", "'/etc/passwd'"),
        ("vendor\u{1b}rate", "1", "vendor\\u{1b}rate"),
        ("vendor/rate", long.as_str(), "4096"),
    ] {
        let refused = lab.manager.create_mdev(GPU, &attributes(&[("vendor/rate", "30"), (name, value)])).await;
        assert_refused(refused, ErrorName::InvalidArgument, &[word]);
    }
    assert!(lab.host.sys_writes().is_empty(), "refused before anything was written");
    // The device has no such attribute, or does not take the value: it goes again.
    assert_refused(
        lab.manager.create_mdev(GPU, &attributes(&[("vendor/rate", "30"), ("vendor/speed", "1")])).await,
        ErrorName::KernelRefused,
        &["vendor/speed", "ENOENT"],
    );
    nothing_left(&lab.host);
    let _no = lab.host.fault(Op::Write, "sys/**/vendor/rate", Fault::Errno(Errno::INVAL));
    let no = lab.manager.create_mdev(GPU, &attributes(&[("vendor/rate", "9999")])).await;
    assert_refused(no, ErrorName::KernelRefused, &["vendor/rate", "EINVAL"]);
    nothing_left(&lab.host);
    assert_eq!(lab.paths("claim").await.len() + lab.paths("mdev").await.len(), 0);
}

#[tokio::test]
async fn acquire_gives_all_or_nothing() {
    let lab = Lab::start(one_card().mtty()).await;
    let ask = |requests: &[&[(&str, &str)]]| {
        let requests: Vec<_> = requests.iter().map(|request| text_dict(request)).collect();
        let lab = &lab;
        async move { lab.manager.acquire(&requests, &options([("label", "lab")])).await }
    };
    // The second is not to be had: the first is given back.
    assert_refused(
        ask(&[&[("name", "a"), ("type", GPU)], &[("name", "b"), ("type", GPU), ("count", "4")]]).await,
        ErrorName::NoCapacity,
        &["'b.4'", "promised"],
    );
    assert!(lab.host.sys_writes().is_empty(), "it was clear before the first write");
    let _no = lab.host.fault(Op::Write, "sys/**/mtty-2/create", Fault::Errno(Errno::INVAL));
    assert_refused(
        ask(&[&[("name", "a"), ("type", GPU)], &[("name", "b"), ("type", "mtty-2")]]).await,
        ErrorName::KernelRefused,
        &["mtty-2", "EINVAL"],
    );
    nothing_left(&lab.host);
    for (requests, words) in [
        (vec![], vec!["no request"]),
        (vec![vec![("type", GPU)]], vec!["name"]),
        (vec![vec![("name", "a")]], vec!["'a'", "type"]),
        (vec![vec![("name", "a"), ("tpye", GPU)]], vec!["tpye", "did you mean 'type'?"]),
        (vec![vec![("name", "a b"), ("type", GPU)]], vec!["a b"]),
        (vec![vec![("name", "a"), ("type", GPU)], vec![("name", "a"), ("type", GPU)]], vec!["'a'"]),
        (vec![vec![("name", "a"), ("type", GPU), ("pool", "gold")]], vec!["pool", "type"]),
        (vec![vec![("name", "a"), ("type", GPU), ("count", "0")]], vec!["count"]),
        (vec![vec![("name", "a"), ("type", GPU), ("count", "-1")]], vec!["count", "-1"]),
    ] {
        let requests: Vec<&[(&str, &str)]> = requests.iter().map(Vec::as_slice).collect();
        assert_refused(ask(&requests).await, ErrorName::InvalidArgument, &words);
    }
    assert_refused(ask(&[&[("name", "a"), ("pool", "gold")]]).await, ErrorName::NotFound, &["pool 'gold'"]);
    let absent = Uuid::new_v4().to_string();
    assert_refused(ask(&[&[("name", "a"), ("uuid", &absent)]]).await, ErrorName::NotFound, &[&absent]);
    nothing_left(&lab.host);

    let claim = ask(&[
        &[("name", "a"), ("type", GPU), ("numa-node", "0")],
        &[("name", "b"), ("type", "mtty-1"), ("parent", "mtty")],
    ])
    .await;
    let claim = lab.claim(claim_id(claim.unwrap().as_str())).await;
    assert_eq!(claim.owner_name().await.unwrap(), "lab");
    let grants = claim.grants().await.unwrap();
    assert_eq!(grants.iter().map(|grant| text(grant, "request")).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(lab.host.mdevs().len(), 2);
    assert_refused(
        ask(&[&[("name", "c"), ("type", GPU), ("numa-node", "1")]]).await,
        ErrorName::NoCandidate,
        &["NUMA node"],
    );
}
