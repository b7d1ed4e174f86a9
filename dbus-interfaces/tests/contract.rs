//! Holds the proxies against the interface XML, and the XML against the rules that it follows.
//!
//! Each proxy method is called once on a peer that knows nothing but the XML: it checks the member and the signature
//! of what arrives, and answers with a value of the type that the XML promises, which the proxy has to understand.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A test fails by panicking.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    os::unix::net::UnixStream,
    pin::pin,
};

use mdevd_dbus::{
    ClaimProxy, FunctionProxy, ManagerProxy, MdevProxy, Options, ParentProxy, PhysicalFunctionProxy, TextDict,
    VirtualFunctionProxy, path, xml,
};
use zbus::{
    Connection, Guid, MessageStream, ObjectPath, Signature, Structure, Variant, connection,
    export::futures_core::Stream,
    message::{Message, Type},
    proxy::CacheProperties,
};
use zbus_xml::{Annotation, ArgDirection, Interface, Node};

const DOC: &str = "org.gtk.GDBus.DocString";
const SINCE: &str = "org.gtk.GDBus.Since";
const EMITS: &str = "org.freedesktop.DBus.Property.EmitsChangedSignal";

fn interfaces() -> BTreeMap<String, Interface<'static>> {
    xml::ALL
        .iter()
        .map(|(name, text)| {
            let (node, warnings) = Node::from_reader_with_warnings(text.as_bytes()).unwrap();
            assert!(warnings.is_empty(), "{name}: {warnings:?}");
            assert_eq!(node.interfaces().len(), 1, "{name}: one interface for each document");
            assert_eq!(node.interfaces()[0].name().as_str(), *name);
            ((*name).to_owned(), node.interfaces()[0].to_owned())
        })
        .collect()
}

fn annotation<'a>(annotations: &'a [Annotation<'_>], name: &str) -> Option<&'a str> {
    annotations.iter().find(|a| a.name() == name).map(|a| a.value())
}

fn signature(method: &zbus_xml::Method<'_>, direction: ArgDirection) -> Vec<Signature> {
    method
        .args()
        .iter()
        .filter(|arg| arg.direction().unwrap_or(ArgDirection::In) == direction)
        .map(|arg| arg.ty().clone())
        .collect()
}

/// Some value of a type, with one element in every array.
fn value(signature: &Signature) -> Variant<'static> {
    match signature {
        Signature::Bool => true.into(),
        Signature::I32 => (-1i32).into(),
        Signature::U16 => 2u16.into(),
        Signature::U32 => 3u32.into(),
        Signature::U64 => 5u64.into(),
        Signature::Str => "text".into(),
        Signature::ObjectPath => ObjectPath::from_static_str("/org/mdevd1").unwrap().into(),
        Signature::Variant => Variant::new(Variant::from("inner")),
        Signature::Array(element) => {
            let mut array = zbus::Array::new(element.signature());
            array.append(value(element.signature())).unwrap();
            array.into()
        }
        Signature::Dict { key, value: of } => {
            let mut dict = zbus::Dict::new(key.signature(), of.signature());
            dict.append(value(key.signature()), value(of.signature())).unwrap();
            dict.into()
        }
        Signature::Structure(fields) => fields
            .iter()
            .fold(Structure::builder(), |all, field| all.append_field(value(field)))
            .build()
            .unwrap()
            .into(),
        other => panic!("the contract has no {other}"),
    }
}

/// The answer to a call, from the XML alone; and what was called, as `interface.member`.
fn answer(interfaces: &BTreeMap<String, Interface<'_>>, call: &Message) -> (String, Message) {
    let header = call.header();
    let (interface, member) = (header.interface().unwrap().to_string(), header.member().unwrap().to_string());
    let reply = Message::method_return(&header);
    if interface == "org.freedesktop.DBus.Properties" {
        assert_eq!(member, "Get");
        let (interface, name): (String, String) = call.body().deserialize().unwrap();
        let property = interfaces[&interface].properties().find(|p| p.name().as_str() == name);
        let property = property.unwrap_or_else(|| panic!("{interface} has no property {name}"));
        return (format!("{interface}.{name}"), reply.build(&(value(property.ty()),)).unwrap());
    }
    let method = interfaces[&interface].methods().find(|m| m.name().as_str() == member);
    let method = method.unwrap_or_else(|| panic!("{interface} has no method {member}"));
    let expected: String = signature(method, ArgDirection::In).iter().map(ToString::to_string).collect();
    assert_eq!(call.body().signature().to_string_no_parens(), expected, "{interface}.{member}");
    let outs = signature(method, ArgDirection::Out);
    let reply = if outs.is_empty() {
        reply.build(&())
    } else {
        let body = outs.iter().fold(Structure::builder(), |all, out| all.append_field(value(out)));
        reply.build(&body.build().unwrap())
    };
    (format!("{interface}.{member}"), reply.unwrap())
}

async fn connect() -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = connection::Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
    let client = connection::Builder::unix_stream(ours).p2p().build();
    let (server, client) = tokio::join!(server, client);
    (server.unwrap(), client.unwrap())
}

#[tokio::test(flavor = "current_thread")]
async fn the_proxies_are_those_of_the_xml() {
    let interfaces = interfaces();
    let (server, client) = connect().await;

    let peer = tokio::spawn({
        let (interfaces, mut calls) = (interfaces.clone(), MessageStream::from(&server));
        async move {
            let mut seen = BTreeSet::new();
            while let Some(Ok(call)) = poll_fn(|cx| pin!(&mut calls).poll_next(cx)).await {
                if call.message_type() != Type::MethodCall {
                    continue;
                }
                if call.header().member().is_some_and(|member| member.as_str() == "TheEnd") {
                    break;
                }
                let (name, reply) = answer(&interfaces, &call);
                seen.insert(name);
                server.send(&reply).await.unwrap();
            }
            seen
        }
    });

    let none = Options::new();
    let requests = [TextDict::from([("name".to_owned(), "gpu0".to_owned())])];
    let uuid = uuid::Uuid::nil();

    let manager = ManagerProxy::builder(&client).cache_properties(CacheProperties::No).build().await.unwrap();
    let (mdev, changed) = manager.create_mdev("nvidia-63", &none).await.unwrap();
    assert_eq!((mdev.as_str(), changed), ("/org/mdevd1", true));
    let grants = manager.prepare_domain("u", "vm", &requests, &[], &none).await.unwrap();
    assert_eq!(grants.len(), 1);
    manager.release_domain("u", &none).await.unwrap();
    manager.adopt_domain("u", "vm", &requests, &requests, &none).await.unwrap();
    manager.acquire(&requests, &none).await.unwrap();
    manager.explain(&requests, &none).await.unwrap();
    manager.check(&none).await.unwrap();
    manager.find("mtty").await.unwrap();
    manager.rescan(&none).await.unwrap();
    manager.reload(&none).await.unwrap();
    manager.reconcile(&none).await.unwrap();
    manager.version().await.unwrap();
    manager.libvirt_version().await.unwrap();
    assert_eq!(manager.problems().await.unwrap().len(), 1);

    let parent = ParentProxy::builder(&client).path(path::parent("mtty")).cache_properties(CacheProperties::No);
    let parent = parent.build().await.unwrap();
    parent.name().await.unwrap();
    parent.function().await.unwrap();
    assert_eq!(parent.numa_node().await.unwrap(), -1);
    parent.driver().await.unwrap();
    assert_eq!(parent.types().await.unwrap().len(), 1);
    parent.mdevs().await.unwrap();
    parent.state().await.unwrap();

    let mdev = MdevProxy::builder(&client).path(path::mdev(uuid)).cache_properties(CacheProperties::No);
    let mdev = mdev.build().await.unwrap();
    assert_eq!(mdev.get_holders(&none).await.unwrap(), [(3, "text".to_owned())]);
    mdev.remove(&none).await.unwrap();
    mdev.hostdev_xml(&none).await.unwrap();
    mdev.nodedev_xml(&none).await.unwrap();
    mdev.uuid().await.unwrap();
    mdev.parent().await.unwrap();
    mdev.mdev_type().await.unwrap();
    mdev.device_api().await.unwrap();
    mdev.iommu_group().await.unwrap();
    mdev.numa_node().await.unwrap();
    mdev.driver().await.unwrap();
    mdev.claim().await.unwrap();
    mdev.state().await.unwrap();
    mdev.origin().await.unwrap();

    let function =
        FunctionProxy::builder(&client).path(path::function("0000:41:00.4")).cache_properties(CacheProperties::No);
    let function = function.build().await.unwrap();
    function.get_holders(&none).await.unwrap();
    function.bind("vfio-pci", &none).await.unwrap();
    function.restore(&none).await.unwrap();
    function.hostdev_xml(&none).await.unwrap();
    function.address().await.unwrap();
    function.vendor_id().await.unwrap();
    function.device_id().await.unwrap();
    function.subsystem_vendor_id().await.unwrap();
    function.subsystem_device_id().await.unwrap();
    function.class().await.unwrap();
    function.name().await.unwrap();
    function.role().await.unwrap();
    function.driver().await.unwrap();
    function.driver_override().await.unwrap();
    function.variant_drivers().await.unwrap();
    function.iommu_group().await.unwrap();
    function.group_members().await.unwrap();
    function.numa_node().await.unwrap();
    function.reset_methods().await.unwrap();
    function.netdevs().await.unwrap();
    function.host_critical().await.unwrap();
    function.verdict().await.unwrap();
    function.claim().await.unwrap();
    function.state().await.unwrap();

    let pf = PhysicalFunctionProxy::builder(&client)
        .path(path::function("0000:41:00.4"))
        .cache_properties(CacheProperties::No);
    let pf = pf.build().await.unwrap();
    pf.set_num_vfs(7, &none).await.unwrap();
    pf.total_vfs().await.unwrap();
    pf.num_vfs().await.unwrap();
    pf.vfs().await.unwrap();
    pf.drivers_autoprobe().await.unwrap();
    pf.eswitch_mode().await.unwrap();

    let vf = VirtualFunctionProxy::builder(&client)
        .path(path::function("0000:41:00.4"))
        .cache_properties(CacheProperties::No);
    let vf = vf.build().await.unwrap();
    vf.configure(&none).await.unwrap();
    vf.set_vgpu_type(7, &none).await.unwrap();
    vf.pf().await.unwrap();
    vf.vf_index().await.unwrap();
    vf.mac().await.unwrap();
    vf.vlan().await.unwrap();
    vf.trust().await.unwrap();
    vf.spoof_check().await.unwrap();
    vf.min_rate().await.unwrap();
    vf.max_rate().await.unwrap();
    vf.link_state().await.unwrap();
    vf.vgpu_type().await.unwrap();
    vf.creatable_vgpu_types().await.unwrap();
    vf.gpu_instance().await.unwrap();

    let claim = ClaimProxy::builder(&client).path(path::claim(uuid)).cache_properties(CacheProperties::No);
    let claim = claim.build().await.unwrap();
    claim.release(&none).await.unwrap();
    claim.hostdev_xml(&none).await.unwrap();
    claim.id().await.unwrap();
    claim.owner_kind().await.unwrap();
    claim.owner_uuid().await.unwrap();
    claim.owner_name().await.unwrap();
    assert_eq!(claim.owner_uid().await.unwrap(), 3);
    claim.state().await.unwrap();
    claim.step().await.unwrap();
    claim.grants().await.unwrap();
    assert_eq!(claim.created().await.unwrap(), 5);
    claim.run().await.unwrap();

    let end = Message::method_call("/", "TheEnd").build(&()).unwrap();
    client.send(&end).await.unwrap();
    let seen = peer.await.unwrap();
    let all: BTreeSet<String> = interfaces
        .iter()
        .flat_map(|(name, interface)| {
            let methods = interface.methods().map(|m| m.name().to_string());
            let properties = interface.properties().map(|p| p.name().to_string());
            methods.chain(properties).map(move |member| format!("{name}.{member}"))
        })
        .collect();
    assert_eq!(seen, all, "each member of the XML has its proxy method, and the other way round");
}

#[test]
fn each_method_says_who_may_call_it() {
    let actions = [
        xml::NONE_ROOT_ONLY,
        "org.mdevd1.inspect",
        "org.mdevd1.claim",
        "org.mdevd1.manage",
        "org.mdevd1.configure-function",
        "org.mdevd1.claim org.mdevd1.manage",
    ];
    let policy = include_str!("../../packaging/polkit-1/actions/org.mdevd1.policy");
    for (name, interface) in interfaces() {
        for method in interface.methods() {
            let action = annotation(method.annotations(), xml::ACTION);
            let action = action.unwrap_or_else(|| panic!("{name}.{}: no {}", method.name(), xml::ACTION));
            assert!(actions.contains(&action), "{name}.{}: {action}", method.name());
            for id in action.split(' ').filter(|id| *id != xml::NONE_ROOT_ONLY) {
                assert!(policy.contains(&format!("<action id=\"{id}\">")), "{id} is not in the polkit policy");
            }
        }
    }
}

#[test]
fn each_member_is_documented_and_follows_the_conventions() {
    for (name, interface) in interfaces() {
        let own: Vec<_> = interface.annotations().cloned().collect();
        assert!(annotation(&own, DOC).is_some() && annotation(&own, SINCE).is_some(), "{name}");
        assert_eq!(interface.signals().count(), 0, "{name}: PropertiesChanged and ObjectManager say all there is");
        for method in interface.methods() {
            let member = format!("{name}.{}", method.name());
            assert!(annotation(method.annotations(), DOC).is_some(), "{member}");
            assert!(annotation(method.annotations(), SINCE).is_some(), "{member}");
            assert!(method.args().iter().all(|arg| arg.name().is_some()), "{member}: an argument without a name");
            if method.name().as_str() != "Find" {
                let options = method.args().iter().rfind(|arg| arg.direction() == Some(ArgDirection::In)).unwrap();
                assert_eq!((options.name(), options.ty().to_string().as_str()), (Some("options"), "a{sv}"), "{member}");
            }
        }
        for property in interface.properties() {
            let member = format!("{name}.{}", property.name());
            assert!(annotation(property.annotations(), DOC).is_some(), "{member}");
            assert!(annotation(property.annotations(), SINCE).is_some(), "{member}");
            assert!(property.access().read() && !property.access().write(), "{member}");
            let emits = annotation(property.annotations(), EMITS).unwrap_or_else(|| panic!("{member}: no {EMITS}"));
            assert!(["true", "const"].contains(&emits), "{member}: {emits}");
        }
    }
}

#[test]
fn the_bus_policy_lists_each_interface() {
    let conf = include_str!("../../packaging/dbus-1/system.d/org.mdevd1.conf");
    for (name, _) in xml::ALL {
        let allow = format!("<allow send_destination=\"{}\" send_interface=\"{name}\"/>", mdevd_dbus::BUS_NAME);
        assert!(conf.contains(&allow), "{allow}");
    }
}
