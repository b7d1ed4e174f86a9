//! What a running mdevd says of itself is what the interface XML says: member for member, with argument names, signatures,
//! directions, access and change signals. Our own annotations (`org.mdevd1.*`, `org.gtk.GDBus.*`) are in the XML only.

use std::collections::{BTreeMap, BTreeSet};

use mdevd_dbus::{BUS_NAME, interface, path, xml};
use mdevd_tests::harness::Domain;
use zbus::Connection;
use zbus_xml::{Annotation, Arg, ArgDirection, Interface, Node};

use super::common::{GPU, Lab, error_name, one_card, with_functions};

const EMITS: &str = "org.freedesktop.DBus.Property.EmitsChangedSignal";
const OF_EVERY_OBJECT: [&str; 3] =
    ["org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer", "org.freedesktop.DBus.Properties"];

fn annotations(all: &[Annotation<'_>]) -> String {
    let ours = |a: &&Annotation<'_>| !a.name().starts_with("org.mdevd1.") && !a.name().starts_with("org.gtk.GDBus.");
    let mut list: Vec<String> = all
        .iter()
        .filter(ours)
        .filter(|a| a.name() != EMITS)
        .map(|a| format!(" [{}={}]", a.name(), a.value()))
        .collect();
    list.sort();
    list.concat()
}

/// `in options a{sv}, out changed b`.
fn arguments(arguments: &[Arg<'_>], default: ArgDirection) -> String {
    let one = |arg: &Arg<'_>| {
        let direction = match arg.direction().unwrap_or(default) {
            ArgDirection::In => "in",
            ArgDirection::Out => "out",
        };
        format!("{direction} {} {}{}", arg.name().unwrap_or("?"), arg.ty(), annotations(arg.annotations()))
    };
    arguments.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// An interface, a line for each member. What is left out in XML stands here as what it means.
fn members(interface: &Interface<'_>) -> BTreeSet<String> {
    let method = |m: &zbus_xml::Method<'_>| {
        format!("method {}({}){}", m.name(), arguments(m.args(), ArgDirection::In), annotations(m.annotations()))
    };
    let signal = |s: &zbus_xml::Signal<'_>| {
        format!("signal {}({}){}", s.name(), arguments(s.args(), ArgDirection::Out), annotations(s.annotations()))
    };
    let property = |p: &zbus_xml::Property<'_>| {
        let emits = p.annotations().iter().find(|a| a.name() == EMITS).map_or("true", |a| a.value());
        let (read, write) = (p.access().read(), p.access().write());
        let rest = annotations(p.annotations());
        format!("property {} {} read={read} write={write} emits={emits}{rest}", p.name(), p.ty())
    };
    let methods = interface.methods().map(method);
    let signals = interface.signals().map(signal);
    let properties = interface.properties().map(property);
    let own: Vec<_> = interface.annotations().cloned().collect();
    methods.chain(signals).chain(properties).chain([format!("interface{}", annotations(&own))]).collect()
}

fn contract(name: &str) -> BTreeSet<String> {
    let (_, text) = xml::ALL.iter().find(|(interface, _)| *interface == name).unwrap();
    let node = Node::from_reader(text.as_bytes()).unwrap();
    members(node.interfaces().first().unwrap())
}

/// The interfaces that the object at `path` says it has.
async fn introspect(connection: &Connection, path: &str) -> BTreeMap<String, BTreeSet<String>> {
    let reply = connection
        .call_method(Some(BUS_NAME), path, Some("org.freedesktop.DBus.Introspectable"), "Introspect", &())
        .await
        .unwrap();
    let text: String = reply.body().deserialize().unwrap();
    let (node, warnings) = Node::from_reader_with_warnings(text.as_bytes()).unwrap();
    assert!(warnings.is_empty(), "{path}: {warnings:?}");
    node.interfaces().iter().map(|interface| (interface.name().to_string(), members(interface))).collect()
}

#[tokio::test]
async fn every_object_is_as_the_contract_says() {
    let lab = Lab::start_with(with_functions(one_card().mtty()), |host| {
        host.create_mdev("mtty", "mtty-1", uuid::Uuid::new_v4()).unwrap();
    })
    .await;
    // A claim and a device of each kind: manual, of a domain, foreign.
    lab.create("by hand").await;
    Domain::wants("vm1", &[GPU]).prepare(&lab.manager).await.unwrap();

    let objects = lab.objects().await;
    let mut kinds = BTreeSet::from([interface::MANAGER.to_string()]);
    let mut check = vec![(path::ROOT.to_string(), vec![interface::MANAGER.to_string()])];
    for (path, interfaces) in objects {
        // A PCI function may have one more.
        let names: Vec<String> = interfaces.into_keys().collect();
        assert!(names.len() == 1 || names.contains(&interface::FUNCTION.to_string()), "{path}: {names:?}");
        kinds.extend(names.iter().cloned());
        check.push((path, names));
    }
    let all: BTreeSet<String> = xml::ALL.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(kinds, all, "there is an object of every kind to look at");

    for (path, names) in check {
        let mut found = introspect(&lab.connection, &path).await;
        for name in names {
            assert_eq!(found.remove(&name).unwrap(), contract(&name), "{path}");
        }
        let mut others: BTreeSet<&str> = OF_EVERY_OBJECT.into();
        if path == path::ROOT {
            others.insert("org.freedesktop.DBus.ObjectManager");
        }
        assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), others, "{path}");
    }
}

#[tokio::test]
async fn what_is_not_in_the_contract_is_not_there() {
    let lab = Lab::start(one_card()).await;
    let call = |path: &'static str, interface: &'static str, method: &'static str| {
        let connection = lab.connection.clone();
        async move {
            let reply = connection.call_method(Some(BUS_NAME), path, Some(interface), method, &()).await;
            error_name(&reply.unwrap_err())
        }
    };
    let parent = "/org/mdevd1/parent/_30000_3a41_3a00_2e0";
    assert_eq!(call(path::ROOT, interface::MANAGER, "Define").await, "org.freedesktop.DBus.Error.UnknownMethod");
    assert_eq!(call(path::ROOT, interface::MDEV, "Remove").await, "org.freedesktop.DBus.Error.UnknownInterface");
    assert_eq!(call(parent, interface::MDEV, "Remove").await, "org.freedesktop.DBus.Error.UnknownInterface");
    assert_eq!(
        call("/org/mdevd1/mdev/c2177883_f1bb_47f0_914d_32a22e3a8804", interface::MDEV, "Remove").await,
        "org.freedesktop.DBus.Error.UnknownObject"
    );
    assert_eq!(call("/", interface::MANAGER, "Rescan").await, "org.freedesktop.DBus.Error.UnknownInterface");
    assert!(lab.host.sys_writes().is_empty());
}

#[tokio::test]
async fn no_property_can_be_set() {
    let lab = Lab::start(one_card()).await;
    lab.create("by hand").await;
    lab.settle().await;
    let before = lab.objects().await;
    let mut tried = 0;
    let objects =
        before.iter().flat_map(|(path, interfaces)| interfaces.keys().map(move |name| (path.as_str(), name.as_str())));
    for (path, name) in objects.chain([(path::ROOT, interface::MANAGER)]) {
        let (_, text) = xml::ALL.iter().find(|(interface, _)| *interface == name).unwrap();
        let node = Node::from_reader(text.as_bytes()).unwrap();
        for property in node.interfaces()[0].properties() {
            // A value of the right type where it is text; what is refused is the writing, not the type.
            let property = property.name().to_string();
            let body = (name, property.as_str(), zbus::Variant::from("new"));
            let properties = Some("org.freedesktop.DBus.Properties");
            let reply = lab.connection.call_method(Some(BUS_NAME), path, properties, "Set", &body).await;
            let error = error_name(&reply.unwrap_err());
            assert!(error.starts_with("org.freedesktop.DBus.Error."), "{name}.{property}: {error}");
            tried += 1;
        }
    }
    assert!(tried > 20, "only {tried} properties were tried");
    assert_eq!(lab.objects().await, before);
}
