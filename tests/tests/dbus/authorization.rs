//! Who may call what. Every method of the interface XML is called as nobody, with arguments that are right, on every object that has
//! it: against a polkit that denies, that is not there, that allows, and that does not answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mdevd_dbus::{BUS_NAME, ErrorName, ManagerProxy, interface, path, xml};
use mdevd_tests::fakesys::FakeHost;
use mdevd_tests::harness::{Domain, FakePolkit, Question, Verdict, claim_files, eventually, manager, text_dict};
use uuid::Uuid;
use zbus::message::Message;
use zbus::{Connection, Variant};
use zbus_xml::Node;

use super::common::{
    GPU, Lab, Objects, assert_refused, connect_as_nobody, error_name, mdev_uuid, nobody_uid, none, one_card, options,
    refused, root_or_left_out, with_functions,
};

/// A method of the contract, and what its annotation says.
#[derive(Debug, Clone)]
struct Rule {
    interface: &'static str,
    method: String,
    own: String,
    others: String,
}

fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for (interface, text) in xml::ALL {
        let node = Node::from_reader(text.as_bytes()).unwrap();
        for method in node.interfaces()[0].methods() {
            let action = method.annotations().iter().find(|a| a.name() == xml::ACTION);
            let action = action.unwrap_or_else(|| panic!("{interface}.{} is not in the table", method.name()));
            let (own, others) = action.value().split_once(' ').unwrap_or((action.value(), action.value()));
            rules.push(Rule { interface, method: method.name().to_string(), own: own.into(), others: others.into() });
        }
    }
    rules
}

/// Calls a method with arguments that would work.
async fn call(connection: &Connection, path: &str, rule: &Rule) -> zbus::Result<Message> {
    let none: HashMap<&str, Variant<'_>> = HashMap::new();
    let requests = vec![text_dict(&[("name", "gpu0"), ("type", GPU)])];
    let uuid = Uuid::new_v4();
    let hostdev = Uuid::new_v5(&uuid, b"gpu0").to_string();
    let hostdevs = vec![text_dict(&[("kind", "mdev"), ("uuid", &hostdev)])];
    let uuid = uuid.to_string();
    let (destination, interface) = (Some(BUS_NAME), Some(rule.interface));
    macro_rules! send {
        ($body:expr) => {
            connection.call_method(destination, path, interface, rule.method.as_str(), $body).await
        };
    }
    match rule.method.as_str() {
        "CreateMdev" => send!(&(GPU, none)),
        "PrepareDomain" => send!(&(uuid, "vm9", requests, hostdevs, none)),
        "AdoptDomain" => send!(&(uuid, "vm9", requests, hostdevs, none)),
        "ReleaseDomain" => send!(&(uuid, none)),
        "Acquire" | "Explain" => send!(&(requests, none)),
        "Find" => send!(&("mtty",)),
        "Rescan" | "Reload" | "Reconcile" => send!(&(none,)),
        "GetHolders" | "HostdevXml" | "NodedevXml" | "Check" | "Restore" | "Configure" => send!(&(none,)),
        "Bind" => send!(&("vfio-pci", none)),
        // As many as it has, and the type that it has: none.
        "SetNumVfs" => send!(&(2u32, none)),
        "SetVgpuType" => send!(&(0u32, none)),
        "Remove" | "Release" => send!(&(HashMap::from([("force", Variant::from(true))]),)),
        other => panic!("{other} is new: say here how it is called"),
    }
}

/// What a person would read who is asked for a password, with the details in their places. Of those, what is left is about the device.
fn shown(question: &mut Question) -> String {
    assert_eq!(question.details.remove("polkit.gettext_domain").as_deref(), Some("mdevd"));
    let mut message = question.details.remove("polkit.message").unwrap();
    for (key, value) in &question.details {
        message = message.replace(&format!("$({key})"), value);
    }
    assert!(message.starts_with("Authentication is required to ") && !message.contains("$("), "{message}");
    message
}

/// A host with a domain's device, one made by hand, and a foreign one; all of them root's or nobody's.
struct Scene {
    lab: Lab,
    by_hand: Uuid,
    foreign: Uuid,
    nobody: Connection,
}

impl Scene {
    async fn set() -> Self {
        let foreign = Uuid::new_v4();
        let lab = Lab::start_without_polkit(with_functions(one_card().mtty()), |host| {
            host.create_mdev("mtty", "mtty-1", foreign).unwrap();
        })
        .await;
        Domain::wants("vm1", &[GPU]).prepare(&lab.manager).await.unwrap();
        let by_hand = lab.create("by hand").await;
        let nobody = connect_as_nobody(&lab.bus).await;
        Self { lab, by_hand, foreign, nobody }
    }

    async fn nobodys_manager(&self) -> ManagerProxy<'static> {
        manager(&self.nobody).await
    }

    /// Every method on every object that has it.
    async fn calls(&self) -> Vec<(String, Rule)> {
        let objects = self.lab.objects().await;
        let on = |interface: &str| -> Vec<String> {
            if interface == interface::MANAGER {
                return vec![path::ROOT.to_string()];
            }
            objects.iter().filter(|(_, has)| has.contains_key(interface)).map(|(path, _)| path.clone()).collect()
        };
        let mut calls = Vec::new();
        for rule in rules() {
            let paths = on(rule.interface);
            assert!(!paths.is_empty(), "no object has {}", rule.interface);
            calls.extend(paths.into_iter().map(|path| (path, rule.clone())));
        }
        calls
    }
}

/// Everything that a call could have changed.
#[derive(Debug, PartialEq)]
struct State {
    mdevs: BTreeSet<(Uuid, String, String)>,
    claims: BTreeMap<String, String>,
    objects: Objects,
}

impl State {
    async fn of(lab: &Lab) -> Self {
        let text =
            |host: &FakeHost, name: &str| std::fs::read_to_string(host.run().join("mdevd/claims").join(name)).unwrap();
        Self {
            mdevs: lab.host.mdevs().into_iter().collect(),
            claims: claim_files(&lab.host).into_iter().map(|name| (name.clone(), text(&lab.host, &name))).collect(),
            objects: lab.objects().await,
        }
    }
}

/// Root's claims and devices, and what nobody may do with them: nothing.
async fn nothing_may_be_done(scene: &Scene, polkit: Option<&FakePolkit>) {
    let calls = scene.calls().await;
    scene.lab.settle().await;
    let before = State::of(&scene.lab).await;
    scene.lab.host.clear_log();
    for (path, rule) in &calls {
        let (name, message) = refused(call(&scene.nobody, path, rule).await);
        assert_eq!(name, ErrorName::NotAuthorized, "{}.{} on {path}: {message}", rule.interface, rule.method);
        let Some(polkit) = polkit else { continue };
        let asked = polkit.asked();
        if rule.others == xml::NONE_ROOT_ONLY {
            assert_eq!(asked, [], "{}: no polkit rule opens it", rule.method);
            assert!(message.contains("only root"), "{message}");
        } else {
            // Nothing here is nobody's own.
            assert_eq!(
                asked.iter().map(|q| q.action.as_str()).collect::<Vec<_>>(),
                [rule.others.as_str()],
                "{}",
                rule.method
            );
            assert_eq!(asked[0].subject, "system-bus-name");
            assert_eq!(asked[0].name, scene.nobody.unique_name().unwrap().as_str(), "{}", rule.method);
            assert!(message.contains(&rule.others), "{message}");
        }
    }
    assert_eq!(scene.lab.host.log().iter().map(|entry| entry.path.clone()).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(State::of(&scene.lab).await, before);
    assert_eq!(calls.iter().map(|(_, rule)| &rule.method).collect::<BTreeSet<_>>().len(), methods());
}

/// How many different method names the contract has.
fn methods() -> usize {
    rules().into_iter().map(|rule| rule.method).collect::<BTreeSet<_>>().len()
}

#[tokio::test]
async fn a_polkit_that_denies_stops_every_method() {
    if !root_or_left_out("a denying polkit against root's claims and devices") {
        return;
    }
    let scene = Scene::set().await;
    let polkit = FakePolkit::start(&scene.lab.bus, Verdict::Deny).await;
    nothing_may_be_done(&scene, Some(&polkit)).await;
    // Root needs no polkit.
    scene.lab.manager.rescan(&none()).await.unwrap();
    assert!(scene.lab.mdev(scene.by_hand).await.remove(&none()).await.unwrap());
    assert_eq!(polkit.asked(), []);
}

#[tokio::test]
async fn without_polkit_only_root_may() {
    if !root_or_left_out("the absence of polkit against root's claims and devices") {
        return;
    }
    let scene = Scene::set().await;
    nothing_may_be_done(&scene, None).await;
    scene.lab.manager.rescan(&none()).await.unwrap();
    assert!(scene.lab.mdev(scene.by_hand).await.remove(&none()).await.unwrap());
}

#[tokio::test]
async fn an_ordinary_user_can_do_nothing_without_polkit() {
    let lab = Lab::start_without_polkit(one_card(), |_| {}).await;
    let nobody = connect_as_nobody(&lab.bus).await;
    // An ordinary user's own daemon serves that user's hook.
    let hook = root_or_left_out("that a stranger may not call what is for libvirt's hook");
    let of_manager = |rule: &&Rule| rule.interface == interface::MANAGER && (hook || rule.own != xml::NONE_ROOT_ONLY);
    for rule in rules().iter().filter(of_manager) {
        assert_refused(call(&nobody, path::ROOT, rule).await, ErrorName::NotAuthorized, &[]);
    }
    assert!(lab.host.sys_writes().is_empty());
    assert!(claim_files(&lab.host).is_empty());
}

#[tokio::test]
async fn a_polkit_that_allows_opens_all_but_libvirts_own() {
    if !root_or_left_out("an allowing polkit against root's claims and devices") {
        return;
    }
    let scene = Scene::set().await;
    let polkit = FakePolkit::start(&scene.lab.bus, Verdict::Allow).await;
    let (mut passed, mut stopped) = (BTreeSet::new(), BTreeSet::new());
    // What takes objects away comes last.
    let mut calls = scene.calls().await;
    calls.sort_by_key(|(_, rule)| ["Release", "Remove"].iter().position(|last| rule.method == *last));
    for (path, rule) in calls {
        let answer = call(&scene.nobody, &path, &rule).await;
        let asked = polkit.asked();
        if rule.own == xml::NONE_ROOT_ONLY {
            assert_eq!(asked, []);
            assert_refused(answer, ErrorName::NotAuthorized, &["only root", "libvirt's hook"]);
            stopped.insert(rule.method);
            continue;
        }
        match answer {
            Ok(_) => {}
            // An earlier call of this loop has taken the object or its device away, or the claim has to go first.
            Err(error) => {
                let name = error_name(&error);
                assert!(!name.ends_with("NotAuthorized"), "{}.{} on {path}: {error}", rule.interface, rule.method);
                // Nor can every function do everything.
                let may = ["Remove", "Release"].contains(&rule.method.as_str()) || path.contains("/function/");
                assert!(may, "{} on {path}: {error}", rule.method);
                continue;
            }
        }
        assert_eq!(asked.len(), 1, "{}", rule.method);
        passed.insert(rule.method);
    }
    assert_eq!(passed.len() + stopped.len(), methods(), "worked: {passed:?}; stopped: {stopped:?}");
    assert_eq!(stopped, ["AdoptDomain", "PrepareDomain", "ReleaseDomain"].map(String::from).into());
}

#[tokio::test]
async fn ones_own_takes_the_right_to_claim_and_others_the_right_to_manage() {
    let root = root_or_left_out("that root's claims need org.mdevd1.manage");
    let lab = Lab::start_without_polkit(one_card(), |_| {}).await;
    let polkit = FakePolkit::start(&lab.bus, Verdict::Allow).await;
    let connection = connect_as_nobody(&lab.bus).await;
    let nobody = manager(&connection).await;
    let lone = |polkit: &FakePolkit| -> Question {
        let mut asked = polkit.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        let mut question = asked.remove(0);
        if question.action != "org.mdevd1.inspect" {
            shown(&mut question);
        }
        question
    };
    let details = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };

    let (mdev, _) = nobody.create_mdev(GPU, &options([("label", "nobody's")])).await.unwrap();
    let question = lone(&polkit);
    assert_eq!((question.action.as_str(), question.details), ("org.mdevd1.claim", details(&[("type", GPU)])));
    assert!(question.interactive, "a person may be asked for a password when the caller allows it");
    let own = mdev_uuid(mdev.as_str());
    let claim = lab.claim_of(own).await;
    assert_eq!(lab.claim(claim).await.owner_uid().await.unwrap(), nobody_uid());

    // Looking asks nobody for a password.
    nobody.find("x").await.unwrap();
    let question = lone(&polkit);
    assert_eq!((question.action.as_str(), question.interactive), ("org.mdevd1.inspect", false));

    // One question for each distinct type.
    let requests = [
        text_dict(&[("name", "a"), ("type", GPU)]),
        text_dict(&[("name", "b"), ("type", "nvidia-64")]),
        text_dict(&[("name", "c"), ("type", GPU)]),
    ];
    polkit.asked();
    refused(nobody.acquire(&requests, &none()).await);
    let asked: Vec<_> = polkit.asked().into_iter().map(|mut q| (shown(&mut q), q.action, q.details)).collect();
    let one = |mdev_type: &str| {
        let request = format!("type {mdev_type}");
        let words = "Authentication is required to take a device of this host for a virtual machine";
        (
            format!("{words} ({request})"),
            "org.mdevd1.claim".into(),
            details(&[("request", &request), ("type", mdev_type)]),
        )
    };
    assert_eq!(asked, [one(GPU), one("nvidia-64")]);

    // And for each device, which a rule by type does not open.
    let vgpu = "NVIDIA L40S-8Q\n";
    let requests = [
        text_dict(&[("name", "a"), ("address", "0000:03:00.0")]),
        text_dict(&[("name", "b"), ("address", "0000:05:00")]),
        text_dict(&[("name", "c"), ("kind", "vf"), ("pf", "0000:61:00.0"), ("vgpu-type", vgpu)]),
        text_dict(&[("name", "d"), ("uuid", &own.to_string())]),
        text_dict(&[("name", "e"), ("pool", "\u{1b}[2J")]),
    ];
    refused(nobody.acquire(&requests, &none()).await);
    let mut asked: Vec<_> = polkit.asked().into_iter().map(|mut q| (shown(&mut q), q.details).1).collect();
    let mut wanted = vec![
        details(&[("request", "the PCI function 0000:03:00.0"), ("device", "0000:03:00.0")]),
        details(&[("request", "all functions of the PCI card 0000:05:00"), ("device", "0000:05:00")]),
        details(&[("request", "any virtual function of 0000:61:00.0"), ("vgpu-type", "NVIDIA L40S-8Q\\n")]),
        details(&[("request", "an existing device"), ("device", &own.to_string())]),
        details(&[("request", "pool \\u{1b}[2J"), ("pool", "\\u{1b}[2J")]),
    ];
    for list in [&mut asked, &mut wanted] {
        list.sort_by_key(|details| details["request"].clone());
    }
    assert_eq!(asked, wanted);
    refused(nobody.acquire(&[], &none()).await);
    assert_eq!(lone(&polkit).details, details(&[("request", "nothing")]));

    // Its own: the right to claim will do, by the device and by the claim.
    polkit.answer(Verdict::Deny);
    let id = claim.to_string();
    let by_device = mdevd_dbus::MdevProxy::builder(&connection).path(path::mdev(own)).build().await.unwrap();
    let by_claim = mdevd_dbus::ClaimProxy::builder(&connection).path(path::claim(claim)).build().await.unwrap();
    assert_refused(by_device.remove(&none()).await, ErrorName::NotAuthorized, &["org.mdevd1.claim"]);
    let question = lone(&polkit);
    assert_eq!(question.action, "org.mdevd1.claim");
    assert_eq!(question.details, details(&[("device", &own.to_string()), ("type", GPU)]));
    assert_refused(by_claim.release(&none()).await, ErrorName::NotAuthorized, &["org.mdevd1.claim"]);
    let question = lone(&polkit);
    assert_eq!(question.action, "org.mdevd1.claim");
    assert_eq!(question.details, details(&[("claim", &id), ("owner", "nobody's")]));
    assert_eq!(lab.host.mdevs().len(), 1);
    polkit.answer(Verdict::Allow);
    assert!(by_device.remove(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());

    if !root {
        return;
    }
    let roots = lab.create("root's").await;
    let claim = lab.claim_of(roots).await;
    polkit.answer(Verdict::Deny);
    polkit.asked();
    let by_device = mdevd_dbus::MdevProxy::builder(&connection).path(path::mdev(roots)).build().await.unwrap();
    let by_claim = mdevd_dbus::ClaimProxy::builder(&connection).path(path::claim(claim)).build().await.unwrap();
    assert_refused(by_device.remove(&none()).await, ErrorName::NotAuthorized, &["org.mdevd1.manage"]);
    assert_eq!(lone(&polkit).action, "org.mdevd1.manage");
    assert_refused(by_claim.release(&none()).await, ErrorName::NotAuthorized, &["org.mdevd1.manage"]);
    assert_eq!(lone(&polkit).action, "org.mdevd1.manage");
    assert_eq!(lab.host.mdevs().len(), 1);
    polkit.answer(Verdict::Allow);
    assert!(by_claim.release(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn a_right_to_remove_ones_own_does_not_outlive_the_claim() {
    if !root_or_left_out("a claim that changes hands while polkit thinks") {
        return;
    }
    let lab = Lab::start_without_polkit(one_card(), |_| {}).await;
    let polkit = FakePolkit::start(&lab.bus, Verdict::Allow).await;
    let connection = connect_as_nobody(&lab.bus).await;
    let uuid = Uuid::new_v4();
    let text = uuid.to_string();
    let nobody = manager(&connection).await;
    nobody.create_mdev(GPU, &options([("uuid", &text)])).await.unwrap();
    polkit.asked();

    polkit.answer(Verdict::Hang);
    let mdev = mdevd_dbus::MdevProxy::builder(&connection).path(path::mdev(uuid)).build().await.unwrap();
    let asking = tokio::spawn(async move { mdev.remove(&none()).await });
    let mut asked = Vec::new();
    eventually("the question", || {
        asked.extend(polkit.asked());
        let there = !asked.is_empty();
        async move { there }
    })
    .await;
    assert_eq!(asked[0].action, "org.mdevd1.claim");
    // Meanwhile it ends, and root makes a device of its own under the same UUID.
    assert!(lab.mdev(uuid).await.remove(&none()).await.unwrap());
    lab.manager.create_mdev(GPU, &options([("uuid", &text), ("label", "root's")])).await.unwrap();
    polkit.answer(Verdict::Allow);
    let (name, message) = refused(asking.await.unwrap());
    assert_eq!(name, ErrorName::Conflict, "{message}");
    assert_eq!(lab.host.mdevs().len(), 1);
}

#[tokio::test]
async fn what_polkit_is_shown_is_fit_to_be_shown() {
    let lab = Lab::start_without_polkit(one_card(), |_| {}).await;
    let polkit = FakePolkit::start(&lab.bus, Verdict::Allow).await;
    let nobody = manager(&connect_as_nobody(&lab.bus).await).await;
    for bad in ["", "a\nb", "\u{1b}[2Jnvidia-63", "../nvidia-63", &"x".repeat(100_000)] {
        assert_refused(nobody.create_mdev(bad, &none()).await, ErrorName::InvalidArgument, &["mdev type"]);
        let requests = [text_dict(&[("name", "a"), ("type", bad)])];
        assert_refused(nobody.acquire(&requests, &none()).await, ErrorName::InvalidArgument, &["type"]);
    }
    assert_eq!(polkit.asked(), [], "nobody is asked to decide over nonsense");
    assert!(lab.host.sys_writes().is_empty());
}

#[tokio::test]
async fn a_polkit_that_hangs_holds_up_nobody_else() {
    if !root_or_left_out("that root is served while polkit hangs") {
        return;
    }
    let scene = Scene::set().await;
    let polkit = FakePolkit::start(&scene.lab.bus, Verdict::Hang).await;
    scene.lab.host.clear_log();
    let mut waiting = Vec::new();
    for (path, rule) in scene.calls().await {
        if rule.own == xml::NONE_ROOT_ONLY {
            continue;
        }
        let connection = scene.nobody.clone();
        waiting.push(tokio::spawn(async move { call(&connection, &path, &rule).await }));
    }
    let mut asked = 0;
    let questions = waiting.len();
    eventually("a question for each call", || {
        asked += polkit.asked().len();
        let all = asked == questions;
        async move { all }
    })
    .await;

    // Others are served, the same connection among them.
    let version = scene.nobodys_manager().await.version().await.unwrap();
    assert_eq!(version, scene.lab.manager.version().await.unwrap());
    assert_refused(
        Domain::wants("vm2", &[GPU]).prepare(&scene.nobodys_manager().await).await,
        ErrorName::NotAuthorized,
        &["only root"],
    );
    let domain = Domain::wants("vm2", &[GPU]);
    domain.prepare(&scene.lab.manager).await.unwrap();
    assert!(domain.release(&scene.lab.manager).await.unwrap());
    let made = scene.lab.create("while polkit hangs").await;
    assert!(scene.lab.mdev(made).await.remove(&none()).await.unwrap());
    let writes = scene.lab.host.sys_writes().len();
    assert!(waiting.iter().all(|call| !call.is_finished()));

    // It dies without an answer: that is no permission.
    polkit.die().await;
    for call in waiting {
        assert_refused(call.await.unwrap(), ErrorName::NotAuthorized, &["polkit"]);
    }
    assert_eq!(scene.lab.host.sys_writes().len(), writes);
    let left: BTreeSet<Uuid> = scene.lab.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
    assert!(left.contains(&scene.by_hand) && left.contains(&scene.foreign));
}
