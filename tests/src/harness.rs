//! What the end-to-end tests stand on: a private bus, the daemon on it over a [fake host](crate::fakesys), and a stand-in for polkit.
//!
//! ```no_run
//! # use mdevd_tests::{fakesys, harness::{Bus, Daemon}};
//! # async fn example() -> std::io::Result<()> {
//! let host = fakesys::host().parent("0000:41:00.0").mdev_type("nvidia-63", 4).mount()?;
//! let bus = Bus::start();
//! let daemon = Daemon::start(&host, &bus).await;
//! let manager = bus.manager().await;
//! # Ok(()) }
//! ```
#![allow(clippy::expect_used, clippy::missing_panics_doc)] // a test that cannot stand up must fall down, and say why

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use mdevd_dbus::{BUS_NAME, Dict, ManagerProxy, TextDict};
use tokio::sync::watch;
use uuid::Uuid;
use zbus::Connection;

use crate::fakesys::FakeHost;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, and panics with `what` when it does not in time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The path of one of the project's programs, built if need be.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        // Tests run from target/PROFILE/deps; the programs stand one folder above.
        let exe = std::env::current_exe().expect("the test's own path");
        let dir = exe.ancestors().find(|dir| dir.ends_with("debug") || dir.ends_with("release"));
        let dir = dir.expect("a test runs from target/debug or target/release").to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).args(["build", "--quiet"]);
        // The whole workspace, as the tests themselves are built: a part of it would have its libraries built again, with fewer features.
        build.args(["--workspace", "--bins"]);
        build.arg("--target-dir").arg(dir.parent().expect("target"));
        if dir.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs do not build");
        dir
    });
    dir.join(name)
}

/// A bus of the test's own, where everybody may own and call everything: what is refused is refused by mdevd.
#[derive(Debug)]
pub struct Bus {
    daemon: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Bus {
    /// Starts it.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        // Another user has to reach the socket.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let config = dir.path().join("bus.conf");
        let text = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={}/socket</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*" eavesdrop="false"/><allow receive_sender="*"/>
  </policy>
  <limit name="max_replies_per_connection">4096</limit>
</busconfig>
"#,
            dir.path().display()
        );
        std::fs::write(&config, text).expect("bus.conf");
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon starts (Debian: apt install dbus)");
        let mut address = String::new();
        let stdout = daemon.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut address).expect("dbus-daemon prints its address");
        Self { daemon, address: address.trim().into(), _dir: dir }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A connection of its own.
    pub async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str()).build().await.expect("a connection to the bus")
    }

    /// mdevd's root object, over a connection of its own, without a cache.
    pub async fn manager(&self) -> ManagerProxy<'static> {
        manager(&self.connect().await).await
    }

    /// Waits until somebody owns the name, or nobody does.
    pub async fn wait_owned(&self, name: &'static str, owned: bool) {
        let connection = self.connect().await;
        let bus = zbus::fdo::DBusProxy::new(&connection).await.expect("the bus itself");
        let name = zbus::names::BusName::try_from(name).expect("a bus name");
        eventually(&format!("{name} owned: {owned}"), || async {
            bus.name_has_owner(name.clone()).await.expect("the bus answers") == owned
        })
        .await;
    }

    /// `busctl ARGS`, as uid 65534 where the test is root, so that polkit is asked. Answers with success and what was printed.
    pub fn busctl_as_nobody(&self, args: &[&str]) -> (bool, String) {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address)).args(["--timeout=20"]).args(args).env_clear();
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        let output = command.output().expect("busctl runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// mdevd's root object, without a cache.
pub async fn manager(connection: &Connection) -> ManagerProxy<'static> {
    ManagerProxy::builder(connection).cache_properties(zbus::proxy::CacheProperties::No).build().await.expect("a proxy")
}

/// The daemon, over a fake host.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it has its bus name.
    pub async fn start(host: &FakeHost, bus: &Bus) -> Self {
        let daemon = Self::spawn(host, bus);
        bus.wait_owned(BUS_NAME, true).await;
        daemon
    }

    /// Starts it with a `/run` that is not the fake host's, and waits until it has its bus name.
    pub async fn start_with_run(host: &FakeHost, bus: &Bus, run: &Path) -> Self {
        let daemon = Self::spawn_with_run(host, bus, run);
        bus.wait_owned(BUS_NAME, true).await;
        daemon
    }

    /// Starts it and waits for nothing.
    pub fn spawn(host: &FakeHost, bus: &Bus) -> Self {
        Self::spawn_with_run(host, bus, &host.run())
    }

    fn spawn_with_run(host: &FakeHost, bus: &Bus, run: &Path) -> Self {
        let log = std::env::temp_dir().join(format!("mdevd-test-{}-{}.log", std::process::id(), Uuid::new_v4()));
        let stderr = std::fs::File::create(&log).expect("a log file");
        let uevents: OwnedFd = host.uevents().expect("the uevent socket").into();
        let child = Command::new(program("mdevd"))
            .arg("--sys")
            .arg(host.sys())
            .arg("--proc")
            .arg(host.proc())
            .arg("--etc")
            .arg(host.etc())
            .arg("--run")
            .arg(run)
            .args(["--bus", bus.address(), "--uevents", "stdin"])
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::from(uevents))
            .stderr(stderr)
            .spawn()
            .expect("mdevd starts");
        Self { child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the daemon is there");
    }

    /// Kills it with SIGKILL and waits until it and its bus name are gone.
    pub async fn kill(&mut self, bus: &Bus) {
        let _ = self.child.kill();
        self.gone(bus).await;
    }

    /// Waits until it has ended, by whatever has ended it, and its bus name is free.
    pub async fn gone(&mut self, bus: &Bus) {
        let child = Mutex::new(&mut self.child);
        eventually("the daemon's end", || async {
            child.lock().expect("one thread").try_wait().expect("our child").is_some()
        })
        .await;
        bus.wait_owned(BUS_NAME, false).await;
    }

    /// Stops it as systemd does. Answers with its exit status.
    pub async fn stop(&mut self, bus: &Bus) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.gone(bus).await;
        self.child.wait().expect("our child")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of mdevd\n{}---", self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// `a{ss}` from pairs.
pub fn text_dict(pairs: &[(&str, &str)]) -> TextDict {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// A hostdev of the XML, as the hook sends it.
pub fn hostdev(uuid: Uuid) -> TextDict {
    text_dict(&[("kind", "mdev"), ("uuid", &uuid.to_string()), ("model", "vfio-pci"), ("managed", "no")])
}

/// A domain with one request per type, each with its hostdev; the requests are called `dev0`, `dev1`, ….
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its requests.
    pub requests: Vec<TextDict>,
    /// Its hostdevs.
    pub hostdevs: Vec<TextDict>,
    /// The devices' UUIDs.
    pub mdevs: Vec<Uuid>,
}

impl Domain {
    /// A domain that wants these types, on any parent.
    pub fn wants(name: &str, types: &[&str]) -> Self {
        let uuid = Uuid::new_v4();
        let mut domain =
            Self { uuid, name: name.into(), requests: Vec::new(), hostdevs: Vec::new(), mdevs: Vec::new() };
        for (i, mdev_type) in types.iter().enumerate() {
            let request = format!("dev{i}");
            let mdev = Uuid::new_v5(&uuid, request.as_bytes());
            domain.requests.push(text_dict(&[("name", &request), ("type", mdev_type)]));
            domain.hostdevs.push(hostdev(mdev));
            domain.mdevs.push(mdev);
        }
        domain
    }

    /// `PrepareDomain` as the hook calls it.
    ///
    /// # Errors
    /// The call's.
    pub async fn prepare(&self, manager: &ManagerProxy<'_>) -> zbus::Result<Vec<Dict>> {
        self.prepare_within(manager, 8000).await
    }

    /// `PrepareDomain` of a caller with so many milliseconds.
    ///
    /// # Errors
    /// The call's.
    pub async fn prepare_within(&self, manager: &ManagerProxy<'_>, ms: u32) -> zbus::Result<Vec<Dict>> {
        let options = HashMap::from([("timeout-ms", ms.into())]);
        manager.prepare_domain(&self.uuid.to_string(), &self.name, &self.requests, &self.hostdevs, &options).await
    }

    /// `ReleaseDomain` without a run.
    ///
    /// # Errors
    /// The call's.
    pub async fn release(&self, manager: &ManagerProxy<'_>) -> zbus::Result<bool> {
        manager.release_domain(&self.uuid.to_string(), &HashMap::from([("reason", "destroyed".into())])).await
    }

    /// The claim's file on the host.
    pub fn claim_file(&self, host: &FakeHost) -> PathBuf {
        host.run().join("mdevd/claims").join(format!("{}.json", self.uuid))
    }
}

/// The claim files that are there, without temporary ones.
pub fn claim_files(host: &FakeHost) -> BTreeSet<String> {
    let entries = std::fs::read_dir(host.run().join("mdevd/claims")).map(|dir| dir.flatten().collect::<Vec<_>>());
    let names = entries.unwrap_or_default().into_iter().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// A claim file's content.
pub fn claim_json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).expect("the claim file");
    serde_json::from_str(&text).expect("JSON")
}

/// What the stand-in for polkit answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is allowed.
    Allow,
    /// Nothing is.
    Deny,
    /// No answer comes until it answers something else.
    Hang,
}

/// One question that the stand-in for polkit was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `system-bus-name`, one would hope.
    pub subject: String,
    /// The bus name that the question is about.
    pub name: String,
    /// The action's id.
    pub action: String,
    /// The details.
    pub details: HashMap<String, String>,
    /// Whether a person may be asked for a password.
    pub interactive: bool,
}

/// A stand-in for polkit.
#[derive(Debug)]
pub struct FakePolkit {
    connection: Connection,
    verdict: watch::Sender<Verdict>,
    asked: Arc<Mutex<Vec<Question>>>,
}

struct Authority {
    verdict: watch::Sender<Verdict>,
    asked: Arc<Mutex<Vec<Question>>>,
}

type SubjectArgument = (String, HashMap<String, zbus::OwnedVariant>);

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    async fn check_authorization(
        &self,
        subject: SubjectArgument,
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        _cancellation: String,
    ) -> (bool, bool, HashMap<String, String>) {
        let name = subject.1.get("name").and_then(|name| String::try_from(name.clone()).ok()).unwrap_or_default();
        let question = Question { subject: subject.0, name, action, details, interactive: flags & 1 != 0 };
        self.asked.lock().expect("not poisoned").push(question);
        let mut verdict = self.verdict.subscribe();
        let verdict = *verdict.wait_for(|verdict| *verdict != Verdict::Hang).await.expect("its sender is ours");
        (verdict == Verdict::Allow, false, HashMap::new())
    }
}

impl FakePolkit {
    /// Puts it on the bus.
    pub async fn start(bus: &Bus, verdict: Verdict) -> Self {
        Self::start_at(bus.address(), verdict).await
    }

    /// Puts it on the bus with this address.
    pub async fn start_at(address: &str, verdict: Verdict) -> Self {
        let (verdict, asked) = (watch::Sender::new(verdict), Arc::new(Mutex::new(Vec::new())));
        let connection = zbus::connection::Builder::address(address)
            .serve_at(
                "/org/freedesktop/PolicyKit1/Authority",
                Authority { verdict: verdict.clone(), asked: asked.clone() },
            )
            .name("org.freedesktop.PolicyKit1")
            .build()
            .await
            .expect("a polkit of our own");
        Self { connection, verdict, asked }
    }

    /// Changes what it answers, also to the questions that it has not answered yet.
    pub fn answer(&self, verdict: Verdict) {
        self.verdict.send_replace(verdict);
    }

    /// Takes it from the bus, whatever it still owes an answer to.
    pub async fn die(self) {
        self.connection.close().await.expect("its connection is open");
    }

    /// What it has been asked, and forgets it.
    pub fn asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.asked.lock().expect("not poisoned"))
    }
}
