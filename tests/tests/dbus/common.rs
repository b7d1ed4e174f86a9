//! What these tests share: the daemon over a small host, a caller that is nobody, an ear that hears in order, and taking errors apart.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::future::poll_fn;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::pin::Pin;

use mdevd_dbus::{BUS_NAME, ClaimProxy, Dict, ErrorName, ManagerProxy, MdevProxy, Options, ParentProxy, path};
use mdevd_tests::fakesys::{self, Builder, FakeHost};
use mdevd_tests::harness::{Bus, Daemon, FakePolkit, PATIENCE, Verdict, eventually, manager};
use uuid::Uuid;
use zbus::export::futures_core::Stream;
use zbus::export::serde::Serialize;
use zbus::message::{Message, Type};
use zbus::proxy::CacheProperties;
use zbus::{Connection, DynamicType, MessageStream, OwnedVariant};

/// The PCI parent of the small host.
pub const CARD: &str = "0000:41:00.0";
/// Its type.
pub const GPU: &str = "nvidia-63";
/// Who is nobody.
pub const NOBODY: u32 = 65534;

/// The daemon over a host, and a connection to it. The daemon goes first when this is dropped.
#[derive(Debug)]
pub struct Lab {
    pub daemon: Daemon,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub polkit: Option<FakePolkit>,
    pub bus: Bus,
    pub host: FakeHost,
}

/// A card with four instances of one type.
pub fn one_card() -> Builder {
    fakesys::host().parent(CARD).numa(0).mdev_type(GPU, 4)
}

/// The same host with a card of two VFs that take vGPU types, and one that can be bound: an object of every kind of PCI function.
pub fn with_functions(builder: Builder) -> Builder {
    builder
        .vgpu_card("0000:61:00.0", 2)
        .function("0000:03:00.0")
        .pci_driver("e1000e", &[(0x8086, 0x10d3)])
        .ids(0x8086, 0x10d3)
        .driver("e1000e")
}

impl Lab {
    /// Starts the daemon over this host.
    pub async fn start(builder: Builder) -> Self {
        Self::start_with(builder, |_| {}).await
    }

    /// Starts the daemon over this host as `before` leaves it.
    pub async fn start_with(builder: Builder, before: impl FnOnce(&FakeHost)) -> Self {
        let mut lab = Self::start_without_polkit(builder, before).await;
        if !rustix::process::geteuid().is_root() {
            // Then nobody is root, and somebody has to allow.
            lab.polkit = Some(FakePolkit::start(&lab.bus, Verdict::Allow).await);
        }
        lab
    }

    /// The same where the test brings its own polkit, or none.
    pub async fn start_without_polkit(builder: Builder, before: impl FnOnce(&FakeHost)) -> Self {
        let host = builder.mount().unwrap();
        host.process(1, "systemd", &["/sbin/init"]);
        before(&host);
        let bus = Bus::start();
        let daemon = Daemon::start(&host, &bus).await;
        let connection = bus.connect().await;
        Self { daemon, manager: manager(&connection).await, connection, polkit: None, bus, host }
    }

    pub async fn mdev(&self, uuid: Uuid) -> MdevProxy<'static> {
        let builder = MdevProxy::builder(&self.connection).path(path::mdev(uuid));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    pub async fn claim(&self, id: Uuid) -> ClaimProxy<'static> {
        let builder = ClaimProxy::builder(&self.connection).path(path::claim(id));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    pub async fn parent(&self, name: &str) -> ParentProxy<'static> {
        let builder = ParentProxy::builder(&self.connection).path(path::parent(name));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    /// The manual claim that a device is in.
    pub async fn claim_of(&self, uuid: Uuid) -> Uuid {
        let claim = self.mdev(uuid).await.claim().await.unwrap();
        let Some(path::Object::Claim(id)) = path::Object::from_path(claim.as_str()) else {
            panic!("{uuid} is in no claim: {claim}")
        };
        id
    }

    /// Makes a device of the card's type with a manual claim on it.
    pub async fn create(&self, label: &str) -> Uuid {
        let (mdev, changed) = self.manager.create_mdev(GPU, &options([("label", label)])).await.unwrap();
        assert!(changed);
        mdev_uuid(mdev.as_str())
    }

    /// Waits until the daemon has taken in every uevent so far: they come in order, and this adds a last one.
    pub async fn settle(&self) {
        let name = format!("settled-{}", Uuid::new_v4());
        self.host.plug(fakesys::host().parent(&name));
        let path = path::parent(&name).to_string();
        eventually("the last uevent", || async { self.objects().await.contains_key(&path) }).await;
        self.host.unplug(&name);
        eventually("the very last uevent", || async { !self.objects().await.contains_key(&path) }).await;
    }

    /// Everything under `/org/mdevd1`, with all properties.
    pub async fn objects(&self) -> Objects {
        let call = self.connection.call_method(
            Some(BUS_NAME),
            path::ROOT,
            Some("org.freedesktop.DBus.ObjectManager"),
            "GetManagedObjects",
            &(),
        );
        objects_of(&call.await.unwrap())
    }

    /// The objects of one kind: `mdev`, `claim`, `parent`.
    pub async fn paths(&self, kind: &str) -> Vec<String> {
        let below = format!("{}/{kind}/", path::ROOT);
        self.objects().await.into_keys().filter(|path| path.starts_with(&below)).collect()
    }
}

/// What `GetManagedObjects` answered.
fn objects_of(reply: &Message) -> Objects {
    let objects: zbus::fdo::ManagedObjects = reply.body().deserialize().unwrap();
    let mut found = Objects::new();
    for (path, interfaces) in objects {
        let interfaces = interfaces.into_iter().map(|(name, properties)| (name.to_string(), sorted(properties)));
        found.insert(path.to_string(), interfaces.collect());
    }
    // Nodes on the way to an object have no interface.
    found.retain(|_, interfaces| !interfaces.is_empty());
    found
}

/// Path, interface, property.
pub type Objects = BTreeMap<String, BTreeMap<String, BTreeMap<String, String>>>;

/// Properties in an order, each as text.
fn sorted(properties: HashMap<String, OwnedVariant>) -> BTreeMap<String, String> {
    properties.into_iter().map(|(name, value)| (name, show(&value))).collect()
}

/// A value as text that does not depend on the order of a dictionary.
pub fn show(value: &zbus::Variant<'_>) -> String {
    match value {
        zbus::Variant::Variant(inner) => show(inner),
        zbus::Variant::Array(array) => format!("[{}]", array.iter().map(show).collect::<Vec<_>>().join(", ")),
        zbus::Variant::Dict(dict) => {
            let mut entries: Vec<_> =
                dict.iter().map(|(key, value)| format!("{}: {}", show(key), show(value))).collect();
            entries.sort();
            format!("{{{}}}", entries.join(", "))
        }
        zbus::Variant::Str(text) => format!("{text:?}"),
        zbus::Variant::ObjectPath(path) => path.to_string(),
        other => format!("{other:?}"),
    }
}

/// The options of a call, all of them strings.
pub fn options<'a, const N: usize>(pairs: [(&'a str, &'a str); N]) -> Options<'a> {
    pairs.into_iter().map(|(key, value)| (key, value.into())).collect()
}

/// No options.
pub fn none() -> Options<'static> {
    Options::new()
}

/// `force`.
pub fn force() -> Options<'static> {
    Options::from([("force", true.into())])
}

/// The UUID in the path of an mdev.
pub fn mdev_uuid(mdev: &str) -> Uuid {
    match path::Object::from_path(mdev) {
        Some(path::Object::Mdev(uuid)) => uuid,
        other => panic!("{mdev} is not the path of an mdev but of {other:?}"),
    }
}

/// The UUID in the path of a claim.
pub fn claim_id(claim: &str) -> Uuid {
    match path::Object::from_path(claim) {
        Some(path::Object::Claim(id)) => id,
        other => panic!("{claim} is not the path of a claim but of {other:?}"),
    }
}

/// The error of ours that a call failed with: name and message, which is fit for a terminal.
pub fn refused<T: Debug>(result: zbus::Result<T>) -> (ErrorName, String) {
    let error = result.expect_err("this must be refused");
    let (name, message) = mdevd_dbus::error::split(&error);
    let name = name.unwrap_or_else(|| panic!("not an error of mdevd: {error}"));
    assert!(!message.is_empty(), "{name}: no message");
    assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "control characters in {message:?}");
    assert!(message.chars().count() < 2000, "{name}: a message of {} characters", message.chars().count());
    (name, message)
}

/// [`refused`] with this name and with these words in its message.
#[track_caller]
pub fn assert_refused<T: Debug>(result: zbus::Result<T>, name: ErrorName, words: &[&str]) {
    let (got, message) = refused(result);
    assert_eq!(got, name, "{message}");
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

/// The D-Bus name of an error, whoever sent it.
pub fn error_name(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, ..) => name.to_string(),
        zbus::Error::FDO(fdo) => zbus::DBusError::name(&**fdo).to_string(),
        other => other.to_string(),
    }
}

/// True as root. Else says loudly what this run cannot show.
pub fn root_or_left_out(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Not by the test's own output, which is only shown when it fails.
        let _ = writeln!(
            std::io::stderr(),
            "LEFT OUT, because the tests do not run as root: {what} (run `make check` as root, or in a container)"
        );
    }
    root
}

/// A connection whose other end the bus says is nobody. Only root can have it; an ordinary user is nobody already.
pub async fn connect_as_nobody(bus: &Bus) -> Connection {
    if !rustix::process::geteuid().is_root() {
        return bus.connect().await;
    }
    let socket = bus.address().strip_prefix("unix:path=").unwrap().split(',').next().unwrap().to_string();
    // Whom the kernel names to the bus is decided when the socket is connected, and by the one thread that does it.
    let connecting = std::thread::spawn(move || {
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        let (uid, gid) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        UnixStream::connect(socket).unwrap()
    });
    let stream = connecting.join().unwrap();
    zbus::connection::Builder::unix_stream(stream).user_id(NOBODY).build().await.expect("nobody may connect")
}

/// The uid that the bus says [`connect_as_nobody`] has.
pub fn nobody_uid() -> u32 {
    if rustix::process::geteuid().is_root() { NOBODY } else { rustix::process::geteuid().as_raw() }
}

/// One thing that mdevd said to everybody.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// `InterfacesAdded`: path, interface, properties.
    Added(String, String, BTreeMap<String, String>),
    /// `InterfacesRemoved`: path, interface.
    Removed(String, String),
    /// `PropertiesChanged`: path, interface, properties.
    Changed(String, String, BTreeMap<String, String>),
}

impl Heard {
    /// The object it is about.
    pub fn path(&self) -> &str {
        match self {
            Self::Added(path, ..) | Self::Removed(path, ..) | Self::Changed(path, ..) => path,
        }
    }

    fn of(message: &Message) -> Vec<Self> {
        let header = message.header();
        let body = message.body();
        match header.member().map(|member| member.as_str()) {
            Some("InterfacesAdded") => {
                let (path, interfaces): (zbus::OwnedObjectPath, HashMap<String, Dict>) = body.deserialize().unwrap();
                let one = |(name, properties)| Self::Added(path.to_string(), name, sorted(properties));
                interfaces.into_iter().map(one).collect()
            }
            Some("InterfacesRemoved") => {
                let (path, interfaces): (zbus::OwnedObjectPath, Vec<String>) = body.deserialize().unwrap();
                interfaces.into_iter().map(|name| Self::Removed(path.to_string(), name)).collect()
            }
            Some("PropertiesChanged") => {
                let (interface, changed, invalidated): (String, Dict, Vec<String>) = body.deserialize().unwrap();
                assert_eq!(invalidated, Vec::<String>::new(), "{interface}: values come with the signal");
                vec![Self::Changed(header.path().unwrap().to_string(), interface, sorted(changed))]
            }
            other => panic!("a signal that the contract does not have: {other:?}"),
        }
    }
}

/// A connection that hears every signal of mdevd, in the order of the wire.
pub struct Ears {
    connection: Connection,
    messages: MessageStream,
}

impl Ears {
    pub async fn open(bus: &Bus) -> Self {
        let connection = bus.connect().await;
        let rule = zbus::MatchRule::builder().msg_type(Type::Signal).sender(BUS_NAME).build().unwrap();
        zbus::fdo::DBusProxy::new(&connection).await.unwrap().add_match_rule(rule).await.unwrap();
        let messages = MessageStream::from(&connection);
        Self { connection, messages }
    }

    async fn next(&mut self) -> Message {
        let next = poll_fn(|context| Pin::new(&mut self.messages).poll_next(context));
        tokio::time::timeout(PATIENCE, next).await.expect("mdevd says something").unwrap().unwrap()
    }

    fn is_signal(message: &Message) -> bool {
        message.message_type() == Type::Signal
            && message.header().path().is_some_and(|path| path.as_str().starts_with(path::ROOT))
    }

    /// Calls a method, and answers with what was heard before its reply came, and the reply.
    pub async fn call<B: Serialize + DynamicType>(
        &mut self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> (Vec<Heard>, Message) {
        let call = Message::method_call(path, method).destination(BUS_NAME).interface(interface).build(body).unwrap();
        let serial = call.primary_header().serial_num();
        self.connection.send(&call).await.unwrap();
        let mut heard = Vec::new();
        loop {
            let message = self.next().await;
            if message.header().reply_serial() == Some(serial) {
                return (heard, message);
            }
            if Self::is_signal(&message) {
                heard.extend(Heard::of(&message));
            }
        }
    }

    /// Listens until something is heard that `last` means; answers with all up to it.
    pub async fn until(&mut self, last: impl Fn(&Heard) -> bool) -> Vec<Heard> {
        let mut heard = Vec::new();
        while !heard.last().is_some_and(&last) {
            let message = self.next().await;
            if Self::is_signal(&message) {
                heard.extend(Heard::of(&message));
            }
        }
        heard
    }
}

/// What somebody believes who only listens: the objects as they were at first, and every signal since. Holds each signal against the
/// contract: what is added was not there, what is removed or changed was, and nothing `const` ever changes.
pub struct Listener {
    pub ears: Ears,
    believed: Objects,
}

impl Listener {
    pub async fn open(bus: &Bus) -> Self {
        let mut listener = Self { ears: Ears::open(bus).await, believed: Objects::new() };
        let (_, now) = listener.ask().await;
        listener.believed = now;
        listener
    }

    /// `GetManagedObjects` on the same connection, and what was heard before it answered.
    async fn ask(&mut self) -> (Vec<Heard>, Objects) {
        let (heard, reply) =
            self.ears.call(path::ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", &()).await;
        (heard, objects_of(&reply))
    }

    /// Takes in what was heard.
    pub fn believe(&mut self, heard: &[Heard]) {
        for one in heard {
            match one {
                Heard::Added(path, name, properties) => {
                    let interfaces = self.believed.entry(path.clone()).or_default();
                    assert!(interfaces.insert(name.clone(), properties.clone()).is_none(), "{path} is added twice");
                }
                Heard::Removed(path, name) => {
                    let interfaces = self.believed.get_mut(path);
                    assert!(
                        interfaces.is_some_and(|i| i.remove(name).is_some()),
                        "{path} is removed and was not there"
                    );
                    self.believed.retain(|_, interfaces| !interfaces.is_empty());
                }
                Heard::Changed(path, name, _) if path == path::ROOT => {
                    assert_eq!(name, mdevd_dbus::interface::MANAGER);
                }
                Heard::Changed(path, name, changed) => {
                    let believed = self.believed.get_mut(path).and_then(|interfaces| interfaces.get_mut(name));
                    let believed = believed.unwrap_or_else(|| panic!("{path} changes and is not there"));
                    for (property, value) in changed {
                        assert!(!is_const(name, property), "{path}: {property} is const and changes to {value}");
                        let old = believed.insert(property.clone(), value.clone());
                        assert_ne!(old.as_ref(), Some(value), "{path}: {property} changes to what it was");
                    }
                }
            }
        }
    }

    /// Calls a method and takes in what is heard before its reply, which must be no error. Whatever the call has changed is then
    /// believed already: it was said before the reply.
    pub async fn call<B: Serialize + DynamicType>(
        &mut self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> (Vec<Heard>, Message) {
        let (heard, reply) = self.ears.call(path, interface, method, body).await;
        assert_eq!(reply.message_type(), Type::MethodReturn, "{method}: {reply:?}");
        self.believe(&heard);
        (heard, reply)
    }

    /// What is believed.
    pub fn believed(&self) -> &Objects {
        &self.believed
    }

    /// Listens until what is believed is as `done` wants it.
    pub async fn wait(&mut self, done: impl Fn(&Objects) -> bool) {
        while !done(&self.believed) {
            let heard = self.ears.until(|_| true).await;
            self.believe(&heard);
        }
    }

    /// Asks, and holds what is believed against the answer.
    pub async fn check(&mut self) {
        let (heard, now) = self.ask().await;
        self.believe(&heard);
        assert_eq!(self.believed, now);
    }
}

/// Whether the contract says that a property never changes.
fn is_const(interface: &str, property: &str) -> bool {
    let (_, text) = mdevd_dbus::xml::ALL.iter().find(|(name, _)| *name == interface).unwrap();
    let node = zbus_xml::Node::from_reader(text.as_bytes()).unwrap();
    let interface = &node.interfaces()[0];
    let property = interface.properties().find(|p| p.name().as_str() == property);
    let property = property.unwrap_or_else(|| panic!("a property that is not in the contract"));
    property.annotations().iter().any(|a| a.name().ends_with("EmitsChangedSignal") && a.value() == "const")
}
