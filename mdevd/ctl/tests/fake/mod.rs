//! A bus of one's own, and on it a daemon that looks like mdevd and always has the same devices.
//!
//! It checks what a client must do (that a call which may ask for a password says so), remembers the calls it got, and
//! answers with each kind of error when asked for the right words.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use mdevd_dbus::{BUS_NAME, Dict, TextDict, path};
use tempfile::TempDir;
use uuid::Uuid;
use zbus::fdo::ObjectManager;
use zbus::message::{Flags, Header};
use zbus::{Connection, DBusError, OwnedObjectPath, OwnedVariant, Variant, connection, interface};

/// The mdev of a VM that runs.
pub const GPU: &str = "c2177883-f1bb-47f0-914d-32a22e3a8804";
/// An mdev that is promised to the same VM, and does not exist yet.
pub const COMING: &str = "7b1a55a4-3f0c-4c3b-9c44-3b0f2b8d7a10";
/// An mdev that somebody made by hand.
pub const FOREIGN: &str = "0d9e6f3a-1111-4222-8333-444455556666";
/// An mdev that is stuck, in a manual claim.
pub const STUCK: &str = "11d177a5-7e15-4bb0-9dd2-5d0a2c5b1c02";
/// The claim of the VM, and its UUID.
pub const VM: &str = "0f154289-728c-42df-9e56-9b6c1be66e73";
/// The manual claim.
pub const MANUAL: &str = "01935b6e-0000-7000-8000-00000000c1a1";
/// A claim of somebody who does not mean well.
pub const EVIL: &str = "01935b6e-0000-7000-8000-00000000e411";
/// What a new mdev or claim is called.
pub const NEW: &str = "5eed5eed-0000-4000-8000-000000000001";

/// A private bus, gone with the value.
pub struct Bus {
    child: Child,
    /// Where it listens.
    pub address: String,
    directory: TempDir,
}

impl Bus {
    /// Starts one on which nobody is. When someone calls org.mdevd1 the bus runs `activation` to start it, if there is one.
    pub fn start(activation: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("bus.conf");
        let services = directory.path().join("services");
        fs::create_dir(&services).unwrap();
        if let Some(command) = activation {
            fs::write(
                services.join("org.mdevd1.service"),
                format!("[D-BUS Service]\nName=org.mdevd1\nExec={command}\n"),
            )
            .unwrap();
        }
        fs::write(
            &config,
            format!(
                "<busconfig><listen>unix:path={0}/bus</listen><servicedir>{0}/services</servicedir>\
                 <policy context='default'><allow send_destination='*' eavesdrop='true'/><allow own='*'/></policy></busconfig>",
                directory.path().display()
            ),
        )
        .unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is needed for these tests: install the package dbus");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "dbus-daemon did not say where it listens");
        Self { child, address: address.trim().to_owned(), directory }
    }

    /// A folder that lives as long as the bus.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the daemon was asked to do, one line for each call.
pub type Calls = Arc<Mutex<Vec<String>>>;

/// A bus with a daemon on it.
pub struct Fake {
    /// The bus.
    pub bus: Bus,
    /// What it was asked to do.
    pub calls: Calls,
}

impl Fake {
    /// Starts both; `full` with devices, else on a host that has none.
    pub fn start(full: bool) -> Self {
        let bus = Bus::start(None);
        let calls = Calls::default();
        let (ready, wait) = mpsc::channel();
        let (address, log) = (bus.address.clone(), calls.clone());
        // Ends with the process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connection = serve(&address, &log, full).await;
                ready.send(()).unwrap();
                std::future::pending::<()>().await;
                drop(connection);
            });
        });
        wait.recv().expect("the daemon did not come up");
        Self { bus, calls }
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

async fn serve(address: &str, calls: &Calls, full: bool) -> Connection {
    let mut builder = connection::Builder::address(address)
        .serve_at(path::ROOT, ObjectManager)
        .serve_at(path::ROOT, Manager { calls: calls.clone(), full });
    if full {
        for parent in parents() {
            builder = builder.serve_at(path::parent(&parent.name), parent);
        }
        for mdev in mdevs(calls) {
            builder = builder.serve_at(path::mdev(uuid(mdev.uuid)), mdev);
        }
        for claim in claims(calls) {
            builder = builder.serve_at(path::claim(uuid(claim.id)), claim);
        }
    }
    builder.name(BUS_NAME).build().await.unwrap()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn dict<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Dict {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), OwnedVariant::try_from(value).unwrap())).collect()
}

/// The errors that are asked for.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.mdevd1.Error")]
enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoCapacity(String),
    NotAuthorized(String),
    NotFound(String),
    InUse(String),
    Unavailable(String),
}

/// Remembers a call, after a look at whether it said that it can wait for a person.
fn note(calls: &Calls, header: &Header<'_>, what: String, options: &HashMap<String, OwnedVariant>) {
    let mut options: Vec<String> = options.iter().map(|(key, value)| format!("{key}={}", **value)).collect();
    options.sort();
    let patient = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let patient = if patient { "" } else { " (without ALLOW_INTERACTIVE_AUTHORIZATION)" };
    calls.lock().unwrap().push(format!("{what} {{{}}}{patient}", options.join(", ")));
}

fn text_of(requests: &[TextDict]) -> String {
    let each = requests.iter().map(|r| r.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","));
    each.collect::<Vec<_>>().join(" ")
}

struct Manager {
    calls: Calls,
    full: bool,
}

#[interface(name = "org.mdevd1.Manager")]
impl Manager {
    async fn create_mdev(
        &self,
        r#type: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedObjectPath, bool), Error> {
        note(&self.calls, &header, format!("CreateMdev {}", r#type), &options);
        match r#type {
            "full" => Err(Error::NoCapacity(
                "no instance of full is left: 0000:41:00.0 has none; stop a VM or take another type".into(),
            )),
            "forbidden" => Err(Error::NotAuthorized("org.mdevd1.claim is not allowed to uid 1000".into())),
            _ if options.contains_key("uuid") => Ok((path::mdev(uuid(GPU)), false)),
            _ => Ok((path::mdev(uuid(STUCK)), true)),
        }
    }

    async fn acquire(
        &self,
        requests: Vec<TextDict>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        note(&self.calls, &header, format!("Acquire {}", text_of(&requests)), &options);
        Ok(path::claim(uuid(if self.full { MANUAL } else { NEW })))
    }

    async fn explain(&self, requests: Vec<TextDict>, _options: HashMap<String, OwnedVariant>) -> Vec<Dict> {
        let mut candidates = Vec::new();
        for request in requests.iter().filter(|_| self.full) {
            let one = |parent: &str, verdict: &str, reason: &str, message: &str| {
                dict([
                    ("request", request["name"].as_str().into()),
                    ("device", "".into()),
                    ("parent", parent.into()),
                    ("verdict", verdict.into()),
                    ("reason", reason.into()),
                    ("message", message.into()),
                ])
            };
            match request.get("type").map(String::as_str) {
                Some("nvidia-63") => {
                    candidates.push(one("0000:42:00.0", "possible", "", ""));
                    candidates.push(one("0000:41:00.0", "chosen", "", ""));
                    candidates.push(one("mtty", "refused", "no-such-type", "mtty does not offer nvidia-63"));
                }
                _ => candidates.push(one(
                    "0000:41:00.0",
                    "refused",
                    "no-instance",
                    "0000:41:00.0 says that it has no instance of this type left: domain vm1 has gpu0, and somebody else has made 0d9e6f3a-1111-4222-8333-444455556666",
                )),
            }
        }
        candidates
    }

    async fn find(&self, what: &str) -> Vec<OwnedObjectPath> {
        let claim = |id: &str| vec![path::claim(uuid(id))];
        match what {
            _ if !self.full => Vec::new(),
            "mtty" | "0000:41:00.0" | "0000:42:00.0" => vec![path::parent(what)],
            GPU | FOREIGN | STUCK => vec![path::mdev(uuid(what))],
            "vm1" | VM => claim(VM),
            MANUAL => claim(MANUAL),
            "both" => vec![path::parent("mtty"), path::mdev(uuid(STUCK))],
            _ => Vec::new(),
        }
    }

    async fn rescan(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        note(&self.calls, &header, "Rescan".into(), &options);
        if !self.full {
            connection.clone().close().await?; // a daemon that dies in mid-call
        }
        Ok(())
    }

    async fn reload(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        note(&self.calls, &header, "Reload".into(), &options);
        Err(Error::NotFound("/etc/mdevd/mdevd.toml:3: unknown key 'plicy'; did you mean 'policy'?".into()))
    }

    async fn reconcile(&self, options: HashMap<String, OwnedVariant>, #[zbus(header)] header: Header<'_>) -> Vec<Dict> {
        note(&self.calls, &header, "Reconcile".into(), &options);
        if !self.full {
            return Vec::new();
        }
        let one = |id: &str, device: &str, action: &str, reason: &str| {
            dict([
                ("claim", path::claim(uuid(id)).into_inner().into()),
                ("device", device.into()),
                ("action", action.into()),
                ("reason", reason.into()),
            ])
        };
        vec![
            one(VM, "", "keep", "domain vm1 runs"),
            one(
                MANUAL,
                STUCK,
                "free",
                "its owner has gone, and no process has had it open for two looks that were 30 s apart",
            ),
        ]
    }

    #[zbus(property)]
    fn version(&self) -> &str {
        "0.1.0"
    }

    #[zbus(property)]
    fn problems(&self) -> Vec<Dict> {
        if !self.full {
            return Vec::new();
        }
        vec![dict([
            ("subject", STUCK.into()),
            ("since", 1_700_000_000u64.into()),
            (
                "message",
                "a removal has hung in the kernel since then; it ends when the process that has it open does".into(),
            ),
        ])]
    }
}

struct Parent {
    name: String,
    numa_node: i32,
    driver: &'static str,
    types: Vec<Dict>,
    mdevs: Vec<OwnedObjectPath>,
}

#[interface(name = "org.mdevd1.Parent")]
impl Parent {
    #[zbus(property)]
    fn name(&self) -> &str {
        &self.name
    }
    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.numa_node
    }
    #[zbus(property)]
    fn driver(&self) -> &str {
        self.driver
    }
    #[zbus(property)]
    fn types(&self) -> Vec<Dict> {
        self.types.clone()
    }
    #[zbus(property)]
    fn mdevs(&self) -> Vec<OwnedObjectPath> {
        self.mdevs.clone()
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        "ok"
    }
}

fn mdev_type(id: &str, name: &str, description: &str, available: u32) -> Dict {
    dict([
        ("id", id.into()),
        ("name", name.into()),
        ("description", description.into()),
        ("device_api", "vfio-pci".into()),
        ("available", available.into()),
    ])
}

fn parents() -> Vec<Parent> {
    let nvidia = |left| {
        vec![
            mdev_type(
                "nvidia-63",
                "GRID M60-0B",
                "num_heads=2, frl_config=45, framebuffer=512M, max_resolution=2560x1600, max_instance=16",
                left,
            ),
            mdev_type(
                "nvidia-64",
                "GRID M60-1Q",
                "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=8",
                0,
            ),
        ]
    };
    vec![
        Parent {
            name: "0000:41:00.0".into(),
            numa_node: 0,
            driver: "nvidia",
            types: nvidia(2),
            mdevs: vec![path::mdev(uuid(FOREIGN)), path::mdev(uuid(GPU))],
        },
        Parent { name: "0000:42:00.0".into(), numa_node: 1, driver: "nvidia", types: nvidia(16), mdevs: Vec::new() },
        Parent {
            name: "mtty".into(),
            numa_node: -1,
            driver: "",
            types: vec![mdev_type("mtty-2", "", "two\nports\u{1b}[2J\n", 11)],
            mdevs: vec![path::mdev(uuid(STUCK))],
        },
    ]
}

struct Mdev {
    calls: Calls,
    uuid: &'static str,
    parent: &'static str,
    mdev_type: &'static str,
    claim: Option<&'static str>,
    state: &'static str,
}

#[interface(name = "org.mdevd1.Mdev")]
impl Mdev {
    async fn get_holders(&self, _options: HashMap<String, OwnedVariant>) -> Result<Vec<(u32, String)>, Error> {
        match self.uuid {
            GPU => Ok(vec![(4711, "qemu-system-x86".into())]),
            STUCK => Err(Error::Unavailable("cannot read /proc/812/fd: EACCES".into())),
            _ => Ok(Vec::new()),
        }
    }
    async fn remove(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Remove {}", self.uuid), &options);
        match self.uuid {
            GPU => Err(Error::InUse(format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first"))),
            _ => Ok(self.uuid == FOREIGN),
        }
    }
    async fn hostdev_xml(&self, options: HashMap<String, OwnedVariant>, #[zbus(header)] header: Header<'_>) -> String {
        note(&self.calls, &header, "HostdevXml".into(), &options);
        hostdev(self.uuid)
    }
    async fn nodedev_xml(&self, _options: HashMap<String, OwnedVariant>) -> String {
        format!("<device>\n  <name>mdev_{}</name>\n</device>\n", self.uuid.replace('-', "_"))
    }
    #[zbus(property)]
    fn uuid(&self) -> &str {
        self.uuid
    }
    #[zbus(property)]
    fn parent(&self) -> OwnedObjectPath {
        path::parent(self.parent)
    }
    #[zbus(property, name = "Type")]
    fn mdev_type(&self) -> &str {
        self.mdev_type
    }
    #[zbus(property)]
    fn device_api(&self) -> &str {
        "vfio-pci"
    }
    #[zbus(property)]
    fn iommu_group(&self) -> i32 {
        if self.state == "ok" { 12 } else { -1 }
    }
    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        if self.parent == "mtty" { -1 } else { 0 }
    }
    #[zbus(property)]
    fn driver(&self) -> &str {
        "vfio_mdev"
    }
    #[zbus(property)]
    fn claim(&self) -> OwnedObjectPath {
        self.claim.map_or_else(path::none, |id| path::claim(uuid(id)))
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        self.state
    }
    #[zbus(property)]
    fn origin(&self) -> &str {
        if self.claim.is_some() { "claim" } else { "foreign" }
    }
}

fn mdevs(calls: &Calls) -> Vec<Mdev> {
    let mdev =
        |uuid, parent, mdev_type, claim, state| Mdev { calls: calls.clone(), uuid, parent, mdev_type, claim, state };
    vec![
        mdev(GPU, "0000:41:00.0", "nvidia-63", Some(VM), "ok"),
        mdev(FOREIGN, "0000:41:00.0", "nvidia-63", None, "ok"),
        mdev(STUCK, "mtty", "mtty-2", Some(MANUAL), "stuck"),
    ]
}

fn hostdev(uuid: &str) -> String {
    format!(
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n  <source>\n    <address uuid='{uuid}'/>\n  </source>\n</hostdev>\n"
    )
}

struct Claim {
    calls: Calls,
    id: &'static str,
    owner: [&'static str; 3],
    state: [&'static str; 2],
    grants: Vec<Dict>,
}

#[interface(name = "org.mdevd1.Claim")]
impl Claim {
    async fn release(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Release {}", self.id), &options);
        match self.id {
            VM => Err(Error::InUse(format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first"))),
            _ => Ok(true),
        }
    }
    async fn hostdev_xml(&self, _options: HashMap<String, OwnedVariant>) -> String {
        self.grants.iter().map(|grant| mdevd_dbus::wire::text(grant, "xml")).collect()
    }
    #[zbus(property)]
    fn id(&self) -> &str {
        self.id
    }
    #[zbus(property)]
    fn owner_kind(&self) -> &str {
        self.owner[0]
    }
    #[zbus(property)]
    fn owner_uuid(&self) -> &str {
        self.owner[1]
    }
    #[zbus(property)]
    fn owner_name(&self) -> &str {
        self.owner[2]
    }
    #[zbus(property)]
    fn owner_uid(&self) -> u32 {
        if self.owner[0] == "domain" { 0 } else { 1000 }
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        self.state[0]
    }
    #[zbus(property)]
    fn step(&self) -> &str {
        self.state[1]
    }
    #[zbus(property)]
    fn grants(&self) -> Vec<Dict> {
        self.grants.clone()
    }
    #[zbus(property)]
    fn created(&self) -> u64 {
        1_700_000_000
    }
    #[zbus(property)]
    fn run(&self) -> &str {
        if self.owner[0] == "domain" { "9d8c7b6a-0000-7000-8000-000000000001" } else { "" }
    }
}

fn grant(request: &str, device: &str, exists: bool, undo: &str) -> Dict {
    let object = if exists { path::mdev(uuid(device)) } else { path::none() };
    dict([
        ("request", request.into()),
        ("device", device.into()),
        ("object", object.into_inner().into()),
        ("uuid", device.into()),
        ("undo", undo.into()),
        ("xml", hostdev(device).into()),
    ])
}

fn claims(calls: &Calls) -> Vec<Claim> {
    let claim = |id, owner, state, grants| Claim { calls: calls.clone(), id, owner, state, grants };
    vec![
        claim(
            VM,
            ["domain", VM, "vm1"],
            ["preparing", "create nvidia-63 on 0000:42:00.0"],
            vec![grant("gpu0", GPU, true, "remove"), grant("gpu1", COMING, false, "remove")],
        ),
        claim(MANUAL, ["manual", "", "test"], ["ready", ""], vec![grant("dev0", STUCK, true, "keep")]),
        claim(EVIL, ["manual", "", "harm\u{1b}[2J\u{202e}less"], ["failed", ""], Vec::new()),
    ]
}
