//! Values that are right by type and else are not, for every method on every kind of object: the daemon neither dies nor hangs, says of
//! each what is wrong with it, and does nothing for those who have no right. (The lab does the same on a real host.)

use std::collections::BTreeMap;

use mdevd_dbus::{BUS_NAME, ErrorName, interface, path, xml};
use mdevd_tests::harness::{Domain, FakePolkit, PATIENCE, Verdict, claim_files};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::{Union, ValueTree};
use proptest::test_runner::TestRunner;
use uuid::Uuid;
use zbus::wire::StructureBuilder;
use zbus::{Array, Connection, Dict, Signature, Structure, Variant};
use zbus_xml::{ArgDirection, Node};

use super::common::{CARD, GPU, Lab, connect_as_nobody, error_name, one_card, root_or_left_out, with_functions};

/// How many calls of a method on one object.
const CALLS: usize = 40;

/// Words that lead further into the daemon than noise does.
const WORDS: [&str; 24] = [
    CARD,
    GPU,
    "mtty-1",
    "0000:03:00.0",
    "0000:03:00",
    "0000:61:00.0",
    "ffffffff:ff:1f.7",
    "vfio-pci",
    "e1000e",
    "mdev",
    "pci",
    "vf",
    "c2177883-f1bb-47f0-914d-32a22e3a8804",
    "52:54:00:aa:bb:cc",
    "yes",
    "off",
    "0",
    "1",
    "64",
    "4095",
    "4294967296",
    "../..",
    "",
    "\u{1b}[2J\n",
];

/// The keys of requests, hostdevs and options.
const KEYS: [&str; 24] = [
    "name",
    "type",
    "parent",
    "uuid",
    "count",
    "kind",
    "address",
    "device",
    "pf",
    "vgpu-type",
    "driver",
    "managed",
    "mac",
    "vlan",
    "force",
    "label",
    "attrs",
    "timeout-ms",
    "pid",
    "start-time",
    "run",
    "reason",
    "dry-run",
    "pool",
];

fn text(words: &'static [&'static str]) -> BoxedStrategy<String> {
    let word = select(words).prop_map(str::to_owned);
    prop_oneof![6 => word, 2 => "[^\0]{0,40}", 1 => "[a-z0-9:.-]{0,40}", 1 => "x{300}|/{5000}|\u{202e}|é{200}"].boxed()
}

/// Values of a type.
fn values(signature: &Signature, depth: usize) -> BoxedStrategy<Variant<'static>> {
    match signature {
        Signature::Bool => any::<bool>().prop_map(Variant::Bool).boxed(),
        Signature::I32 => any::<i32>().prop_map(Variant::I32).boxed(),
        Signature::U32 => prop_oneof![0..9u32, Just(u32::MAX), any::<u32>()].prop_map(Variant::U32).boxed(),
        Signature::U64 => prop_oneof![0..9u64, Just(u64::MAX), any::<u64>()].prop_map(Variant::U64).boxed(),
        Signature::Str => text(&WORDS).prop_map(|text| Variant::Str(text.into())).boxed(),
        Signature::Variant => {
            let types = ["s", "u", "b", "t", "i", "as", "a(ss)", "a{sv}", "v"];
            let few = if depth > 4 { 5 } else { types.len() };
            let inner = types[..few].iter().map(|inner| values(&inner.parse().unwrap(), depth + 1));
            Union::new(inner).prop_map(|inner| Variant::Variant(Box::new(inner))).boxed()
        }
        Signature::Array(child) => {
            let child = child.signature().clone();
            let list = vec(values(&child, depth + 1), 0..4);
            list.prop_map(move |list| {
                let mut array = Array::new(&child);
                list.into_iter().for_each(|value| array.append(value).unwrap());
                Variant::Array(array)
            })
            .boxed()
        }
        Signature::Dict { key, value } => {
            let (key, value) = (key.signature().clone(), value.signature().clone());
            let keys = text(&KEYS).prop_map(|text| Variant::Str(text.into()));
            let entries = vec((keys, values(&value, depth + 1)), 0..5);
            entries
                .prop_map(move |entries| {
                    let mut dict = Dict::new(&key, &value);
                    entries.into_iter().for_each(|(key, value)| dict.append(key, value).unwrap());
                    Variant::Dict(dict)
                })
                .boxed()
        }
        Signature::Structure(fields) => {
            let fields: Vec<_> = fields.iter().map(|field| values(field, depth + 1)).collect();
            fields.prop_map(|fields| Variant::Structure(structure(fields))).boxed()
        }
        other => panic!("'{other}' is new in the contract: say here what its values are like"),
    }
}

fn structure(fields: Vec<Variant<'static>>) -> Structure<'static> {
    fields.into_iter().fold(StructureBuilder::new(), StructureBuilder::append_field).build().unwrap()
}

/// Every method, with the types of its arguments and an object that has it.
async fn methods(lab: &Lab) -> Vec<(String, &'static str, String, Vec<Signature>)> {
    // One object of each kind.
    let mut paths = BTreeMap::from([(interface::MANAGER.to_string(), path::ROOT.to_string())]);
    for (path, interfaces) in lab.objects().await {
        paths.extend(interfaces.into_keys().map(|interface| (interface, path.clone())));
    }
    let mut all = Vec::new();
    for (name, text) in xml::ALL {
        let node = Node::from_reader(text.as_bytes()).unwrap();
        for method in node.interfaces()[0].methods() {
            let arguments = method.args().iter().filter(|arg| arg.direction() != Some(ArgDirection::Out));
            let types = arguments.map(|arg| arg.ty().to_string().parse().unwrap()).collect();
            all.push((paths[name].clone(), name, method.name().to_string(), types));
        }
    }
    all
}

/// Calls all of them, and answers with how often each error came.
async fn fuzz(lab: &Lab, caller: &Connection) -> BTreeMap<String, usize> {
    let mut runner = TestRunner::default();
    let mut answers = BTreeMap::new();
    for (path, interface, method, types) in methods(lab).await {
        let arguments: Vec<_> = types.iter().map(|signature| values(signature, 0)).collect();
        for _ in 0..CALLS {
            let body = structure(arguments.new_tree(&mut runner).unwrap().current());
            let call = caller.call_method(Some(BUS_NAME), path.as_str(), Some(interface), method.as_str(), &body);
            let answer = tokio::time::timeout(PATIENCE, call).await;
            let answer = answer.unwrap_or_else(|_| panic!("no answer to {method} {body:?}"));
            let Err(error) = answer else {
                *answers.entry("success".to_owned()).or_default() += 1;
                continue;
            };
            // Objects come and go meanwhile: then it is the bus library that says so.
            let (ours, message) = mdevd_dbus::error::split(&error);
            let gone = error_name(&error) == "org.freedesktop.DBus.Error.UnknownObject";
            assert!(ours.is_some() || gone, "{method} {body:?}: {error}");
            let fit = message.chars().all(|c| c == '\n' || !c.is_control()) && message.chars().count() < 4000;
            assert!(fit, "{method} {body:?}: {message:?}");
            *answers.entry(ours.map_or("gone", ErrorName::as_str).to_owned()).or_default() += 1;
        }
    }
    assert!(!lab.daemon.log().contains("panicked"), "{}", lab.daemon.log());
    eprintln!("{answers:?}");
    answers
}

async fn scene() -> (Lab, Uuid) {
    let foreign = Uuid::new_v4();
    let lab = Lab::start_without_polkit(with_functions(one_card().mtty()), |host| {
        host.create_mdev("mtty", "mtty-1", foreign).unwrap();
    })
    .await;
    (lab, foreign)
}

#[tokio::test]
async fn nothing_comes_of_what_somebody_without_a_right_calls() {
    if !root_or_left_out("values at random from a caller without a right") {
        return;
    }
    let (lab, _) = scene().await;
    Domain::wants("vm1", &[GPU]).prepare(&lab.manager).await.unwrap();
    lab.create("by hand").await;
    let nobody = connect_as_nobody(&lab.bus).await;
    let _polkit = FakePolkit::start(&lab.bus, Verdict::Deny).await;
    lab.settle().await;
    let before = (lab.host.mdevs(), claim_files(&lab.host), lab.objects().await);
    lab.host.clear_log();
    let answers = fuzz(&lab, &nobody).await;
    // What is no name of anything is refused before polkit is asked about it.
    assert!(answers.keys().all(|name| ["NotAuthorized", "InvalidArgument"].contains(&name.as_str())), "{answers:?}");
    assert!(lab.host.sys_writes().is_empty());
    assert_eq!((lab.host.mdevs(), claim_files(&lab.host), lab.objects().await), before);
}

#[tokio::test]
async fn whoever_may_do_everything_gets_an_answer_to_anything() {
    let (mut lab, _) = scene().await;
    if !rustix::process::geteuid().is_root() {
        lab.polkit = Some(FakePolkit::start(&lab.bus, Verdict::Allow).await);
    }
    lab.create("by hand").await;
    let connection = lab.connection.clone();
    let answers = fuzz(&lab, &connection).await;
    assert!(answers.contains_key("success") && answers.contains_key("InvalidOption"), "{answers:?}");
    // It is well, and still does what it is for.
    lab.manager.reconcile(&super::common::none()).await.unwrap();
    assert!(!lab.manager.version().await.unwrap().is_empty());
}
