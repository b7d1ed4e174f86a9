//! What a client hears, and when: every change is announced before the reply of the call that caused it, and whoever only listens
//! knows what whoever asks is told.

use mdevd_dbus::{interface, path};
use mdevd_tests::fakesys::{self, Fault, Op};
use mdevd_tests::harness::{Domain, eventually};
use uuid::Uuid;
use zbus::Variant;

use super::common::{
    CARD, GPU, Heard, Lab, Listener, assert_refused, claim_id, mdev_uuid, none, one_card, options, show,
};

/// The kinds of signal about one object, in the order in which they came.
fn about<'a>(heard: &'a [Heard], path: &str) -> Vec<&'a Heard> {
    heard.iter().filter(|one| one.path() == path).collect()
}

fn value<'a>(listener: &'a Listener, path: &str, property: &str) -> &'a str {
    let interfaces = listener.believed().get(path).unwrap_or_else(|| panic!("{path} was not announced"));
    interfaces.values().next().unwrap().get(property).unwrap()
}

#[tokio::test]
async fn create_and_remove_are_announced_before_they_are_answered() {
    let lab = Lab::start(one_card()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let parent = path::parent(CARD).to_string();
    assert_eq!(value(&listener, &parent, "Mdevs"), "[]");

    let body = (GPU, options([("label", "mine")]));
    let (heard, reply) = listener.call(path::ROOT, interface::MANAGER, "CreateMdev", &body).await;
    let (mdev, changed): (zbus::OwnedObjectPath, bool) = reply.body().deserialize().unwrap();
    assert!(changed);
    let mdev = mdev.to_string();
    assert_eq!(value(&listener, &parent, "Mdevs"), format!("[{mdev}]"));
    assert_eq!(value(&listener, &mdev, "Parent"), parent);
    assert_eq!(value(&listener, &mdev, "Type"), format!("{GPU:?}"));
    assert_eq!(value(&listener, &mdev, "State"), "\"ok\"");
    assert_eq!(value(&listener, &mdev, "Origin"), "\"claim\"");
    let claim = value(&listener, &mdev, "Claim").to_string();
    assert_eq!(value(&listener, &claim, "State"), "\"ready\"");
    assert_eq!(value(&listener, &claim, "OwnerName"), "\"mine\"");
    assert!(value(&listener, &claim, "Grants").contains(&mdev));
    assert!(matches!(about(&heard, &mdev).first(), Some(Heard::Added(..))));
    assert!(matches!(about(&heard, &claim).first(), Some(Heard::Added(..))));
    listener.check().await;

    // The kernel's own word of it, and what it now says to have left, comes when it comes.
    listener.wait(|objects| objects[&parent][interface::PARENT]["Types"].contains("U32(3)")).await;
    listener.check().await;

    let (heard, reply) = listener.call(&mdev, interface::MDEV, "Remove", &(none(),)).await;
    assert!(reply.body().deserialize::<bool>().unwrap());
    assert!(matches!(about(&heard, &mdev).last(), Some(Heard::Removed(..))));
    assert!(matches!(about(&heard, &claim).last(), Some(Heard::Removed(..))));
    assert_eq!(value(&listener, &parent, "Mdevs"), "[]");
    assert!(!listener.believed().contains_key(&mdev) && !listener.believed().contains_key(&claim));
    listener.check().await;
}

#[tokio::test]
async fn prepare_and_release_are_announced_before_they_are_answered() {
    let lab = Lab::start(one_card().mtty()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let domain = Domain::wants("vm1", &[GPU, "mtty-2"]);
    let body = (domain.uuid.to_string(), &domain.name, &domain.requests, &domain.hostdevs, none());
    let (heard, reply) = listener.call(path::ROOT, interface::MANAGER, "PrepareDomain", &body).await;
    let grants: Vec<mdevd_dbus::Dict> = reply.body().deserialize().unwrap();
    let grants: Vec<&str> = grants.iter().map(|grant| mdevd_dbus::wire::text(grant, "object")).collect();
    let claim = path::claim(domain.uuid).to_string();
    assert!(matches!(about(&heard, &claim).first(), Some(Heard::Added(..))));
    assert_eq!(value(&listener, &claim, "State"), "\"ready\"");
    assert_eq!(value(&listener, &claim, "Step"), "\"\"");
    for (uuid, parent) in domain.mdevs.iter().zip([CARD, "mtty"]) {
        let mdev = path::mdev(*uuid).to_string();
        assert_eq!(about(&heard, &mdev).iter().filter(|one| matches!(one, Heard::Added(..))).count(), 1);
        assert_eq!(value(&listener, &mdev, "Claim"), claim);
        assert_eq!(value(&listener, path::parent(parent).as_str(), "Mdevs"), format!("[{mdev}]"));
        assert!(grants.contains(&mdev.as_str()), "{grants:?}");
    }
    listener.check().await;

    let body = (domain.uuid.to_string(), options([("reason", "destroyed")]));
    let (heard, _) = listener.call(path::ROOT, interface::MANAGER, "ReleaseDomain", &body).await;
    for path in domain.mdevs.iter().map(|uuid| path::mdev(*uuid).to_string()).chain([claim]) {
        assert!(matches!(about(&heard, &path).last(), Some(Heard::Removed(..))), "{path}: {heard:?}");
    }
    listener.check().await;
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn a_call_that_fails_leaves_nothing_that_was_announced() {
    let lab = Lab::start(one_card().mtty()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let before = listener.believed().clone();
    let domain = Domain::wants("vm1", &[GPU, "mtty-1"]);
    let _refuse = lab.host.fault(Op::Write, "sys/**/mtty-1/create", Fault::Errno(fakesys::Errno::INVAL));
    let body = (domain.uuid.to_string(), &domain.name, &domain.requests, &domain.hostdevs, none());
    let (heard, reply) = listener.ears.call(path::ROOT, interface::MANAGER, "PrepareDomain", &body).await;
    listener.believe(&heard);
    assert_eq!(reply.message_type(), zbus::message::Type::Error);
    for path in [path::claim(domain.uuid), path::mdev(domain.mdevs[0]), path::mdev(domain.mdevs[1])] {
        assert!(!listener.believed().contains_key(path.as_str()), "{path} is left");
    }
    let mdevs =
        |objects: &super::common::Objects| objects[path::parent(CARD).as_str()][interface::PARENT]["Mdevs"].clone();
    assert_eq!(mdevs(listener.believed()), mdevs(&before));
    listener.check().await;
}

#[tokio::test]
async fn a_step_that_takes_long_can_be_watched() {
    let lab = Lab::start(one_card()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let claim_is = |state: &'static str, step: &'static str| {
        move |objects: &super::common::Objects| {
            let mut claims = objects.values().filter_map(|interfaces| interfaces.get(interface::CLAIM));
            claims.any(|claim| claim["State"].contains(state) && claim["Step"].contains(step))
        }
    };
    let hang = lab.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let manager = lab.manager.clone();
    let creating = tokio::spawn(async move { manager.create_mdev(GPU, &none()).await });
    listener.wait(claim_is("preparing", "create")).await;
    assert!(!creating.is_finished());
    hang.let_go();
    let (mdev, _) = creating.await.unwrap().unwrap();
    listener.check().await;

    let hang = lab.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    let proxy = lab.mdev(mdev_uuid(mdev.as_str())).await;
    let removing = tokio::spawn(async move { proxy.remove(&none()).await });
    listener.wait(claim_is("releasing", "remove")).await;
    assert!(!removing.is_finished());
    hang.let_go();
    assert!(removing.await.unwrap().unwrap());
    listener.check().await;
    assert!(lab.paths("claim").await.is_empty() && lab.paths("mdev").await.is_empty());
}

#[tokio::test]
async fn what_others_do_by_hand_is_announced() {
    let lab = Lab::start(one_card()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let uuid = Uuid::new_v4();
    let mdev = path::mdev(uuid).to_string();
    lab.host.create_mdev(CARD, GPU, uuid).unwrap();
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Added(path, ..) if *path == mdev)).await;
    listener.believe(&heard);
    assert_eq!(value(&listener, &mdev, "Origin"), "\"foreign\"");
    assert_eq!(value(&listener, &mdev, "Claim"), "/");
    listener.check().await;
    lab.host.remove_mdev(uuid).unwrap();
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Removed(path, ..) if *path == mdev)).await;
    listener.believe(&heard);
    listener.check().await;

    // A parent comes and goes, with its devices.
    lab.host.plug(fakesys::host().parent("0000:c1:00.0").mdev_type("nvidia-64", 2));
    let other = path::parent("0000:c1:00.0").to_string();
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Added(path, ..) if *path == other)).await;
    listener.believe(&heard);
    lab.host.create_mdev("0000:c1:00.0", "nvidia-64", uuid).unwrap();
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Added(path, ..) if *path == mdev)).await;
    listener.believe(&heard);
    lab.host.unplug("0000:c1:00.0");
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Removed(path, ..) if *path == other)).await;
    listener.believe(&heard);
    assert!(!listener.believed().contains_key(&mdev), "a device goes with its parent, and before it");
    listener.check().await;
}

#[tokio::test]
async fn a_device_made_again_on_another_parent_is_another_object() {
    let lab = Lab::start(one_card().parent("0000:c1:00.0").mdev_type(GPU, 4)).await;
    let mut listener = Listener::open(&lab.bus).await;
    let uuid = Uuid::new_v4();
    let mdev = path::mdev(uuid).to_string();
    lab.host.create_mdev(CARD, GPU, uuid).unwrap();
    let heard = listener.ears.until(|heard| matches!(heard, Heard::Added(path, ..) if *path == mdev)).await;
    listener.believe(&heard);

    // Nobody sees that it was away for a moment.
    lab.settle().await;
    listener.check().await;
    lab.host.lose_uevents(true);
    lab.host.remove_mdev(uuid).unwrap();
    lab.host.create_mdev("0000:c1:00.0", GPU, uuid).unwrap();
    let (heard, _) = listener.call(path::ROOT, interface::MANAGER, "Rescan", &(none(),)).await;
    let kinds: Vec<_> = about(&heard, &mdev).into_iter().map(std::mem::discriminant).collect();
    let removed = std::mem::discriminant(&Heard::Removed(String::new(), String::new()));
    let added = std::mem::discriminant(&Heard::Added(String::new(), String::new(), Default::default()));
    assert_eq!(kinds, [removed, added], "{heard:?}");
    assert_eq!(value(&listener, &mdev, "Parent"), path::parent("0000:c1:00.0").as_str());
    listener.check().await;

    // On the same parent as another type it is the same object with another type.
    lab.host.plug(fakesys::host().parent("0000:e1:00.0").mdev_type(GPU, 1).mdev_type("nvidia-64", 1));
    lab.host.remove_mdev(uuid).unwrap();
    lab.host.create_mdev("0000:e1:00.0", GPU, uuid).unwrap();
    listener.call(path::ROOT, interface::MANAGER, "Rescan", &(none(),)).await;
    lab.host.remove_mdev(uuid).unwrap();
    lab.host.create_mdev("0000:e1:00.0", "nvidia-64", uuid).unwrap();
    let (heard, _) = listener.call(path::ROOT, interface::MANAGER, "Rescan", &(none(),)).await;
    assert!(matches!(about(&heard, &mdev)[..], [Heard::Changed(..)]), "{heard:?}");
    assert_eq!(value(&listener, &mdev, "Type"), "\"nvidia-64\"");
    listener.check().await;
}

#[tokio::test]
async fn a_claim_of_the_next_run_says_so() {
    let lab = Lab::start(one_card()).await;
    let mut listener = Listener::open(&lab.bus).await;
    let domain = Domain::wants("vm1", &[GPU]);
    let claim = path::claim(domain.uuid).to_string();
    let mut runs = Vec::new();
    for _ in 0..3 {
        // No release comes: the next prepare makes up for it.
        let body = (domain.uuid.to_string(), &domain.name, &domain.requests, &domain.hostdevs, none());
        listener.call(path::ROOT, interface::MANAGER, "PrepareDomain", &body).await;
        runs.push(value(&listener, &claim, "Run").to_string());
        listener.check().await;
    }
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), 3);
    assert_eq!(claim_id(&claim), domain.uuid);
}

/// The two ways to ask for properties, and every single getter, also of what is broken.
#[tokio::test]
async fn getters_never_fail_and_agree() {
    let (half, typeless) = (Uuid::new_v4(), Uuid::new_v4());
    let lab = Lab::start_with(one_card().mtty().parent("empty").types_late(), |host| {
        host.create_mdev(CARD, GPU, half).unwrap();
        host.create_mdev("mtty", "mtty-1", typeless).unwrap();
        host.half_remove(half);
        host.loses_type_link(typeless);
    })
    .await;
    Domain::wants("vm1", &["mtty-1"]).prepare(&lab.manager).await.unwrap();
    let made = lab.create("by hand").await;
    let _hang = lab.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    assert_refused(lab.mdev(made).await.remove(&none()).await, mdevd_dbus::ErrorName::Busy, &["has not come back"]);

    let objects = lab.objects().await;
    let mdevs: Vec<&String> = objects.keys().filter(|path| path.contains("/mdev/")).collect();
    assert_eq!(mdevs.len(), 4, "{mdevs:?}");
    for (path, interfaces) in &objects {
        let (name, properties) = interfaces.first_key_value().unwrap();
        let ask = |method: &'static str| {
            (Some(mdevd_dbus::BUS_NAME), path.as_str(), Some("org.freedesktop.DBus.Properties"), method)
        };
        let (to, at, of, get_all) = ask("GetAll");
        let reply = lab.connection.call_method(to, at, of, get_all, &(name.as_str(),)).await.unwrap();
        let all: mdevd_dbus::Dict = reply.body().deserialize().unwrap();
        assert_eq!(all.len(), properties.len());
        let (_, text) = mdevd_dbus::xml::ALL.iter().find(|(interface, _)| interface == name).unwrap();
        let node = zbus_xml::Node::from_reader(text.as_bytes()).unwrap();
        for property in node.interfaces()[0].properties() {
            let key = property.name().to_string();
            let (to, at, of, get) = ask("Get");
            let reply = lab.connection.call_method(to, at, of, get, &(name.as_str(), key.as_str())).await.unwrap();
            let one: Variant<'_> = reply.body().deserialize::<Variant<'_>>().unwrap().try_to_owned().unwrap().into();
            assert_eq!(one.value_signature(), property.ty(), "{path}: {key}");
            assert_eq!(show(&one), show(&all[&key]), "{path}: {key}");
            assert_eq!(show(&one), properties[&key], "{path}: {key}");
        }
    }
    let states: Vec<_> =
        [half, typeless, made].map(|uuid| objects[path::mdev(uuid).as_str()][interface::MDEV]["State"].clone()).into();
    assert_eq!(states, ["\"stuck\""; 3]);
    eventually("the problems of the stuck", || async {
        let problems = lab.manager.problems().await.unwrap();
        let subjects: Vec<&str> = problems.iter().map(|p| mdevd_dbus::wire::text(p, "subject")).collect();
        [half, typeless, made].iter().all(|uuid| subjects.contains(&uuid.to_string().as_str()))
    })
    .await;
}
