//! Bad input on the bus: arguments of other types, options that are unknown or of another type, names that are none, huge and hostile
//! strings. Every such call is answered with an error that says what is wrong, and nothing comes of it.

use std::collections::HashMap;

use mdevd_dbus::{BUS_NAME, ErrorName, Options, TextDict, interface, path, xml};
use mdevd_tests::harness::{Domain, claim_files, text_dict};
use uuid::Uuid;
use zbus::message::{Message, Type};
use zbus::{OwnedVariant, Variant};
use zbus_xml::{ArgDirection, Node};

use super::common::{
    CARD, Ears, GPU, Lab, assert_refused, error_name, none, one_card, options, refused, with_functions,
};

/// Nothing has come of all that was asked: no write, no claim, and the daemon is well.
async fn nothing_came_of_it(lab: &Lab) {
    assert_eq!(lab.host.sys_writes(), []);
    assert!(claim_files(&lab.host).is_empty());
    lab.create("all is well").await;
    assert!(!lab.daemon.log().contains("panicked"), "{}", lab.daemon.log());
}

/// Every method of the interfaces with an object to call it on.
async fn methods(lab: &Lab) -> Vec<(String, &'static str, String, String)> {
    let objects = lab.objects().await;
    let mut all = Vec::new();
    for (name, text) in xml::ALL {
        let node = Node::from_reader(text.as_bytes()).unwrap();
        for method in node.interfaces()[0].methods() {
            let signature: String = method
                .args()
                .iter()
                .filter(|arg| arg.direction() != Some(ArgDirection::Out))
                .map(|arg| arg.ty().to_string())
                .collect();
            let path = match name {
                interface::MANAGER => path::ROOT.to_string(),
                _ => objects.iter().find(|(_, has)| has.contains_key(name)).unwrap().0.clone(),
            };
            all.push((path, name, method.name().to_string(), signature));
        }
    }
    all
}

#[tokio::test]
async fn arguments_of_other_types_are_refused_by_every_method() {
    let lab = Lab::start(with_functions(one_card())).await;
    let made = lab.create("to call methods on").await;
    lab.settle().await;
    let before = lab.objects().await;
    lab.host.clear_log();
    let mut ears = Ears::open(&lab.bus).await;
    let methods = methods(&lab).await;
    assert!(methods.len() >= 16);
    for (path, interface, method, signature) in methods {
        macro_rules! wrong {
            ($body:expr) => {
                let body = $body;
                if zbus::DynamicType::signature(&body).to_string_no_parens() != signature {
                    let (heard, reply) = ears.call(&path, interface, &method, &body).await;
                    assert_eq!(heard, [], "{method}");
                    assert_eq!(
                        reply.message_type(),
                        Type::Error,
                        "{method}({signature}) took {:?}",
                        zbus::DynamicType::signature(&body)
                    );
                    let name = reply.header().error_name().unwrap().to_string();
                    assert!(name.starts_with("org.freedesktop.DBus.Error."), "{method}: {name}");
                }
            };
        }
        wrong!(());
        wrong!((1u32,));
        wrong!(("text",));
        wrong!((vec!["a", "b"],));
        wrong!((HashMap::<&str, &str>::new(),));
        wrong!((vec![HashMap::<&str, &str>::new()],));
        wrong!((none(), none()));
        wrong!((GPU, HashMap::<&str, &str>::new()));
        wrong!((GPU, GPU, none()));
        wrong!((vec![HashMap::<&str, Variant<'_>>::new()], none()));
        wrong!(("u", "n", Vec::<TextDict>::new(), none()));
        wrong!(("u", "n", Vec::<TextDict>::new(), Vec::<Options<'_>>::new(), none()));
    }
    assert_eq!(lab.host.log().len(), 0);
    assert_eq!(lab.objects().await, before);
    lab.mdev(made).await.remove(&none()).await.unwrap();
    lab.host.clear_log();
    nothing_came_of_it(&lab).await;
}

/// A call with these options and arguments that are else right.
async fn with_options(
    lab: &Lab,
    path: &str,
    interface: &str,
    method: &str,
    options: &Options<'_>,
) -> zbus::Result<Message> {
    let uuid = Uuid::new_v4().to_string();
    let requests = vec![text_dict(&[("name", "a"), ("type", GPU)])];
    macro_rules! send {
        ($body:expr) => {
            lab.connection.call_method(Some(BUS_NAME), path, Some(interface), method, $body).await
        };
    }
    match method {
        "CreateMdev" => send!(&(GPU, options)),
        "PrepareDomain" | "AdoptDomain" => {
            send!(&(uuid, "vm", Vec::<TextDict>::new(), Vec::<TextDict>::new(), options))
        }
        "ReleaseDomain" => send!(&(uuid, options)),
        "Acquire" | "Explain" => send!(&(requests, options)),
        "Bind" => send!(&("vfio-pci", options)),
        "SetNumVfs" => send!(&(2u32, options)),
        "SetVgpuType" => send!(&(0u32, options)),
        _ => send!(&(options,)),
    }
}

/// The options of each method and their types, as its documentation in the XML has them: `Options: force b, …; label s, …`.
fn documented(interface: &str, method: &str) -> Vec<(String, String)> {
    // (method, options)
    let table: &[(&str, &[(&str, &str)])] = &[
        ("CreateMdev", &[("parent", "s"), ("uuid", "s"), ("attrs", "a(ss)"), ("label", "s")]),
        ("PrepareDomain", &[("timeout-ms", "u"), ("pid", "u"), ("start-time", "t")]),
        ("AdoptDomain", &[("pid", "u"), ("start-time", "t")]),
        ("ReleaseDomain", &[("reason", "s"), ("run", "s")]),
        ("Acquire", &[("label", "s")]),
        ("Reconcile", &[("dry-run", "b")]),
        ("Remove", &[("force", "b")]),
        ("Release", &[("force", "b")]),
        ("Check", &[("device", "s")]),
        ("Bind", &[("force", "s")]),
        ("SetNumVfs", &[("drivers-autoprobe", "b")]),
        (
            "Configure",
            &[
                ("mac", "s"),
                ("vlan", "u"),
                ("qos", "u"),
                ("trust", "b"),
                ("spoof-check", "b"),
                ("min-rate", "u"),
                ("max-rate", "u"),
                ("link-state", "s"),
            ],
        ),
    ];
    let of_function = [
        ("managed", "s"),
        ("driver", "s"),
        ("rom-bar", "s"),
        ("rom-file", "s"),
        ("alias", "s"),
        ("guest-address", "s"),
        ("display", "s"),
        ("ramfb", "s"),
        ("mac", "s"),
        ("boot-order", "u"),
        ("vlan", "u"),
        ("interface", "b"),
    ];
    let of_device = [("display", "s"), ("ramfb", "s"), ("alias", "s"), ("guest-address", "s"), ("boot-order", "u")];
    let found = table.iter().find(|(name, _)| *name == method).map(|(_, options)| *options).unwrap_or_default();
    let found = match (interface, method) {
        (interface::MDEV, "HostdevXml") => &of_device[..],
        (interface::FUNCTION, "HostdevXml") => &of_function[..],
        _ => found,
    };
    let text = xml::ALL.iter().find(|(name, _)| *name == interface).unwrap().1;
    let doc = text.split(&format!("<method name=\"{method}\">")).nth(1).unwrap().split("</method>").next().unwrap();
    let doc = doc.split_whitespace().collect::<Vec<_>>().join(" ");
    for (key, signature) in found {
        let said = [format!("{key} {signature}"), key.to_string()];
        assert!(said.iter().any(|words| doc.contains(words.as_str())), "{method}: {key} is not documented in: {doc}");
    }
    assert_eq!(found.is_empty(), !doc.contains("Options:"), "{method}: {doc}");
    found.iter().map(|(key, signature)| (key.to_string(), signature.to_string())).collect()
}

#[tokio::test]
async fn unknown_options_are_named_with_the_nearest_known() {
    let lab = Lab::start(with_functions(one_card())).await;
    let made = lab.create("to call methods on").await;
    lab.host.clear_log();
    for (path, interface, method, signature) in methods(&lab).await {
        if !signature.ends_with("a{sv}") {
            continue;
        }
        let known = documented(interface, &method);
        let unknown = with_options(&lab, &path, interface, &method, &options([("colour\n", "blue")])).await;
        let hint = known.first().map_or("this call has no options", |(key, _)| key.as_str());
        assert_refused(unknown, ErrorName::InvalidOption, &["'colour\\n'", hint]);
        for (key, signature) in known {
            // A slip in the key; then the right key with a value of every other type.
            let slip = format!("{}x", &key[..key.len() - 1]);
            let answer = with_options(&lab, &path, interface, &method, &options([(&slip, "x")])).await;
            assert_refused(answer, ErrorName::InvalidOption, &[&slip, &format!("did you mean '{key}'?")]);
            let values: [Variant<'_>; 9] = [
                "text".into(),
                7u32.into(),
                7u64.into(),
                (-7i32).into(),
                true.into(),
                vec!["a"].into(),
                vec![("a", 1u32)].into(),
                HashMap::from([("a", "b")]).into(),
                Variant::new(Variant::from("inner")),
            ];
            for value in values.into_iter().filter(|value| value.value_signature() != &*signature) {
                let of = value.value_signature().to_string();
                let answer =
                    with_options(&lab, &path, interface, &method, &Options::from([(key.as_str(), value)])).await;
                let (name, message) = refused(answer);
                assert_eq!(name, ErrorName::InvalidOption, "{method} {key}={of}: {message}");
                assert!(message.contains(&format!("'{key}'")), "{message}");
            }
        }
    }
    assert_eq!(lab.host.sys_writes(), []);
    lab.mdev(made).await.remove(&none()).await.unwrap();
    lab.host.clear_log();
    nothing_came_of_it(&lab).await;
}

#[tokio::test]
async fn a_file_descriptor_is_no_option() {
    let lab = Lab::start(one_card()).await;
    let file = std::fs::File::open("/dev/null").unwrap();
    let fd = Variant::from(zbus::Fd::from(std::os::fd::OwnedFd::from(file)));
    let answer = lab.manager.create_mdev(GPU, &Options::from([("label", fd)])).await;
    assert_refused(answer, ErrorName::InvalidOption, &["label", "'h'"]);
    nothing_came_of_it(&lab).await;
}

/// Texts that are the name of nothing.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "a\nb",
        "\u{1b}[2J",
        "a\u{7f}",
        "\u{85}",
        "{}",
        "%s%n",
        "' OR 1",
        "\u{202e}x/",
    ]
    .map(String::from)
    .into();
    texts.push("x".repeat(300));
    texts.push("ä/".repeat(100_000));
    texts
}

#[tokio::test]
async fn names_that_are_none_are_refused_with_what_is_wrong() {
    let lab = Lab::start(one_card()).await;
    let uuid = Uuid::new_v4().to_string();
    let unhyphenated = uuid.replace('-', "");
    let braced = format!("{{{uuid}}}");
    let urn = format!("urn:uuid:{uuid}");
    for bad in [unhyphenated, braced, urn, format!("{uuid}\n"), format!(" {uuid}")] {
        let answer = lab.manager.create_mdev(GPU, &options([("uuid", &bad)])).await;
        assert_refused(answer, ErrorName::InvalidArgument, &["UUID"]);
        assert_refused(lab.manager.release_domain(&bad, &none()).await, ErrorName::InvalidArgument, &["UUID"]);
    }
    for bad in &hostile() {
        let shown = bad.chars().take(20).collect::<String>();
        let call = |answer: zbus::Result<()>, what: &str| {
            let (name, message) = refused(answer.map(|()| format!("{what} {shown:?}")));
            // A name may also be well formed and the name of nothing here.
            let right = name == ErrorName::InvalidArgument || (name == ErrorName::NotFound && message.contains(&shown));
            assert!(right, "{what} {shown:?}: {name}: {message}");
        };
        call(lab.manager.create_mdev(bad, &none()).await.map(drop), "type");
        call(lab.manager.create_mdev(GPU, &options([("parent", bad)])).await.map(drop), "parent");
        assert_refused(
            lab.manager.create_mdev(GPU, &options([("uuid", bad)])).await,
            ErrorName::InvalidArgument,
            &["UUID"],
        );
        let (empty, no) = (Vec::<TextDict>::new(), none());
        for answer in [
            lab.manager.prepare_domain(bad, "vm", &empty, &empty, &no).await.map(drop),
            lab.manager.adopt_domain(bad, "vm", &empty, &empty, &no).await.map(drop),
            lab.manager.release_domain(bad, &no).await.map(drop),
        ] {
            assert_refused(answer, ErrorName::InvalidArgument, &["UUID"]);
        }
        if !bad.is_empty() {
            assert_refused(
                lab.manager.release_domain(&uuid, &options([("run", bad)])).await,
                ErrorName::InvalidArgument,
                &["UUID"],
            );
        }
        // As keys and values of requests and hostdevs.
        for request in [
            text_dict(&[("name", bad), ("type", GPU)]),
            text_dict(&[("name", "a"), ("type", bad), ("parent", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("uuid", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("count", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("numa-node", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("display", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("guest-address", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), ("kind", bad)]),
            text_dict(&[("name", "a"), ("type", GPU), (bad, "x")]),
        ] {
            let domain = Domain { requests: vec![request.clone()], ..Domain::wants("vm", &[]) };
            call(
                lab.manager.acquire(std::slice::from_ref(&request), &none()).await.map(drop),
                &format!("{request:.300?}"),
            );
            call(domain.prepare(&lab.manager).await.map(drop), &format!("{request:.300?}"));
        }
        for hostdev in [
            text_dict(&[("kind", bad), ("uuid", &uuid)]),
            text_dict(&[("kind", "mdev"), ("uuid", bad)]),
            text_dict(&[("kind", "pci"), ("address", bad)]),
            text_dict(&[("kind", "mdev"), ("uuid", &uuid), ("managed", bad)]),
            text_dict(&[("kind", "mdev"), ("uuid", &uuid), (bad, "x")]),
        ] {
            let domain = Domain { hostdevs: vec![hostdev], ..Domain::wants("vm", &[GPU]) };
            assert_refused(domain.prepare(&lab.manager).await, ErrorName::InvalidArgument, &[]);
        }
        assert_eq!(lab.manager.find(bad).await.unwrap(), []);
    }
    let long = "x".repeat(129);
    for label in ["a\nb", "\u{1b}[2J", long.as_str()] {
        let request = [text_dict(&[("name", "a"), ("type", GPU)])];
        assert_refused(
            lab.manager.create_mdev(GPU, &options([("label", label)])).await,
            ErrorName::InvalidArgument,
            &["label"],
        );
        assert_refused(
            lab.manager.acquire(&request, &options([("label", label)])).await,
            ErrorName::InvalidArgument,
            &["label"],
        );
    }
    nothing_came_of_it(&lab).await;
}

#[tokio::test]
async fn requests_that_ask_for_nothing_get_nothing() {
    let lab = Lab::start(one_card()).await;
    let domain = Domain::wants("vm", &[]);
    assert_eq!(domain.prepare(&lab.manager).await.unwrap(), Vec::<HashMap<String, OwnedVariant>>::new());
    assert!(!domain.release(&lab.manager).await.unwrap());
    let (empty, no) = (Vec::<TextDict>::new(), none());
    assert!(!lab.manager.adopt_domain(&domain.uuid.to_string(), "vm", &empty, &empty, &no).await.unwrap());
    assert_eq!(lab.manager.explain(&empty, &no).await.unwrap().len(), 0);
    assert_refused(lab.manager.acquire(&empty, &no).await, ErrorName::InvalidArgument, &["no request"]);
    assert_refused(lab.manager.acquire(&[TextDict::new()], &no).await, ErrorName::InvalidArgument, &["name"]);
    assert_refused(lab.manager.explain(&[TextDict::new()], &no).await, ErrorName::InvalidArgument, &["name"]);
    // A process is its id and its start time.
    let half = Options::from([("pid", 1u32.into())]);
    let uuid = domain.uuid.to_string();
    assert_refused(
        lab.manager.prepare_domain(&uuid, "vm", &empty, &empty, &half).await,
        ErrorName::InvalidArgument,
        &["start-time"],
    );
    nothing_came_of_it(&lab).await;
}

#[tokio::test]
async fn ten_thousand_requests_are_an_error_and_not_an_end() {
    let lab = Lab::start(one_card()).await;
    let many: Vec<TextDict> = (0..10_000).map(|i| text_dict(&[("name", &format!("r{i}")), ("type", GPU)])).collect();
    assert_refused(lab.manager.acquire(&many, &none()).await, ErrorName::InvalidArgument, &["10000"]);
    assert_refused(lab.manager.explain(&many, &none()).await, ErrorName::InvalidArgument, &["10000"]);
    let pairs: TextDict = (0..10_000).map(|i| (format!("key{i}"), "x".to_string())).collect();
    assert_refused(lab.manager.acquire(&[pairs], &none()).await, ErrorName::InvalidArgument, &["key"]);
    nothing_came_of_it(&lab).await;
}

#[tokio::test]
async fn the_path_of_what_just_vanished_is_answered() {
    let lab = Lab::start(one_card()).await;
    let uuid = lab.create("short").await;
    let claim = lab.claim_of(uuid).await;
    let (mdev, claim) = (lab.mdev(uuid).await, lab.claim(claim).await);
    assert!(mdev.remove(&none()).await.unwrap());
    let gone = "org.freedesktop.DBus.Error.UnknownObject";
    assert_eq!(error_name(&mdev.remove(&none()).await.unwrap_err()), gone);
    assert_eq!(error_name(&mdev.get_holders(&none()).await.unwrap_err()), gone);
    assert_eq!(error_name(&mdev.hostdev_xml(&none()).await.unwrap_err()), gone);
    assert_eq!(error_name(&claim.release(&none()).await.unwrap_err()), gone);
    assert!(mdev.state().await.is_err() && claim.state().await.is_err());

    // Gone from the kernel, and the word of it was lost: the object is still there.
    let foreign = Uuid::new_v4();
    lab.host.create_mdev(CARD, GPU, foreign).unwrap();
    lab.settle().await;
    lab.host.lose_uevents(true);
    lab.host.remove_mdev(foreign).unwrap();
    let mdev = lab.mdev(foreign).await;
    assert_eq!(mdev.get_holders(&none()).await.unwrap(), []);
    assert!(mdev.hostdev_xml(&none()).await.unwrap().contains(&foreign.to_string()));
    let request = [text_dict(&[("name", "a"), ("uuid", &foreign.to_string())])];
    assert_refused(lab.manager.acquire(&request, &none()).await, ErrorName::NotFound, &[&foreign.to_string()]);
    assert!(lab.paths("mdev").await.is_empty(), "it has been looked at");
}
