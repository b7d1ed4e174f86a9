//! A private bus, a daemon on it that only notes what it is told, and the hook run as libvirt runs it.

#![allow(dead_code)] // Each test program uses a part of it.

use std::{
    collections::HashMap,
    fs::{self, Permissions},
    io::{BufRead, BufReader, ErrorKind},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mdevd_dbus::{BUS_NAME, Dict, TextDict, path, wire};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, task::spawn_blocking};
use zbus::Connection;

/// The domain of [`xml`].
pub const DOMAIN: &str = "0f154289-728c-42df-9e56-9b6c1be66e73";
/// Its mdev.
pub const MDEV: &str = "aaaaaaaa-0000-4000-8000-000000000001";
/// A run of it.
pub const RUN: &str = "11111111-2222-4333-8444-555555555555";

/// A domain with one mdev, and with these metadata.
pub fn xml(metadata: &str) -> String {
    format!(
        "<domain type='qemu' id='1'>
  <name>vm &amp; co</name>
  <uuid>{DOMAIN}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='KiB'>49152</memory>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
  <devices>
    <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>
      <source><address uuid='{MDEV}'/></source>
      <alias name='ua-mdevd-tty0'/>
    </hostdev>
  </devices>
</domain>
"
    )
}

/// The same with a request.
pub fn requesting_xml() -> String {
    xml("<mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'><mdevd:request name='tty0' type='mtty-1'/></mdevd:devices>")
}

/// What the daemon was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// `PrepareDomain`: uuid, name, requests, hostdevs, and the options in this order.
    Prepare {
        uuid: String,
        name: String,
        requests: Vec<TextDict>,
        hostdevs: Vec<TextDict>,
        timeout_ms: u64,
        pid: u64,
        start: u64,
    },
    /// `AdoptDomain`.
    Adopt { uuid: String, requests: usize, pid: u64, start: u64 },
    /// `ReleaseDomain`.
    Release { uuid: String, reason: String, run: String },
}

/// What the daemon does when it is told something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mood {
    /// It does it.
    Willing,
    /// It refuses.
    Refusing,
    /// It refuses, because somebody else has the device.
    Taken,
    /// It refuses, because somebody is at work with the device.
    Busy,
    /// It refuses the functions that are asked for by their addresses, and does the rest.
    Picky,
    /// It never answers.
    Silent,
    /// It leaves the bus without an answer.
    Leaving,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.mdevd1.Error")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoCapacity(String),
    NotSupported(String),
    Busy(String),
    InUse(String),
}

struct Manager {
    mood: Mood,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Manager {
    async fn answer(&self, call: Call, connection: &Connection) -> Result<(), Refusal> {
        let by_address =
            matches!(&call, Call::Prepare { requests, .. } if requests.iter().any(|r| r.contains_key("address")));
        self.calls.lock().unwrap().push(call);
        match self.mood {
            Mood::Picky if by_address => Err(Refusal::NotSupported("0000:41:00.0 has no IOMMU group".to_owned())),
            Mood::Willing | Mood::Picky => Ok(()),
            Mood::Refusing => Err(Refusal::NoCapacity("no instance of mtty-1 is left on mtty".to_owned())),
            Mood::Taken => Err(Refusal::InUse("0000:41:00.0 is already promised to domain 'other'".to_owned())),
            Mood::Busy => Err(Refusal::Busy("the number of virtual functions is being changed".to_owned())),
            Mood::Silent => std::future::pending().await,
            Mood::Leaving => {
                connection.release_name(BUS_NAME).await.unwrap();
                connection.clone().close().await.unwrap();
                std::future::pending().await
            }
        }
    }
}

#[zbus::interface(name = "org.mdevd1.Manager")]
impl Manager {
    async fn prepare_domain(
        &self,
        #[zbus(connection)] connection: &Connection,
        uuid: String,
        name: String,
        requests: Vec<TextDict>,
        hostdevs: Vec<TextDict>,
        options: Dict,
    ) -> Result<Vec<Dict>, Refusal> {
        let number = |key| wire::number(&options, key).unwrap();
        let (timeout_ms, pid, start) = (number("timeout-ms"), number("pid"), number("start-time"));
        assert_eq!(options.len(), 3, "{options:?}");
        let call = Call::Prepare { uuid, name, requests, hostdevs, timeout_ms, pid, start };
        self.answer(call, connection).await.map(|()| vec![HashMap::new()])
    }

    async fn adopt_domain(
        &self,
        #[zbus(connection)] connection: &Connection,
        uuid: String,
        _name: String,
        requests: Vec<TextDict>,
        _hostdevs: Vec<TextDict>,
        options: Dict,
    ) -> Result<bool, Refusal> {
        let number = |key| wire::number(&options, key).unwrap();
        let call = Call::Adopt { uuid, requests: requests.len(), pid: number("pid"), start: number("start-time") };
        self.answer(call, connection).await.map(|()| true)
    }

    async fn release_domain(
        &self,
        #[zbus(connection)] connection: &Connection,
        uuid: String,
        options: Dict,
    ) -> Result<bool, Refusal> {
        let text = |key| wire::text(&options, key).to_owned();
        let call = Call::Release { uuid, reason: text("reason"), run: text("run") };
        self.answer(call, connection).await.map(|()| true)
    }
}

/// How one run of the hook ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub code: i32,
    /// What it said, after checking that stdout stayed empty.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// That it let libvirt go on, and said nothing.
    pub fn silent(&self) {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""));
    }
}

/// A directory with a `/run` in it, and perhaps a bus.
pub struct Host {
    pub dir: TempDir,
    bus: Option<Child>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(bus) = &mut self.bus {
            bus.kill().unwrap();
            bus.wait().unwrap();
        }
    }
}

impl Host {
    /// Without a bus.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Also another user must be able to run the hook in it.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(dir.path().join("run/mdevd/claims")).unwrap();
        fs::create_dir(dir.path().join("services")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_mdevd-hook"), dir.path().join("mdevd-hook")).unwrap();
        Self { dir, bus: None, calls: Arc::default() }
    }

    /// With a bus, on which nobody is yet.
    pub fn with_bus() -> Self {
        Self::new().start_bus()
    }

    fn start_bus(mut self) -> Self {
        let config = self.path("bus.conf");
        let (socket, services) = (self.path("bus"), self.path("services"));
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><servicedir>{}</servicedir>
             <policy context='default'><allow user='*'/><allow own='*'/><allow send_destination='*'/>
             <allow receive_sender='*'/></policy></busconfig>",
            socket.display(),
            services.display()
        );
        fs::write(&config, text).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", "--print-address=1"])
            .arg(format!("--config-file={}", config.display()))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.path("bus.log")).unwrap())
            .spawn()
            .expect("dbus-daemon is needed for this test");
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "{address}");
        self.bus = Some(bus);
        self
    }

    /// With a bus that can start the daemon: by running this shell script, in which `DIR` is the host's directory.
    pub fn with_service(script: &str) -> Self {
        let host = Self::new();
        let (service, run) = (host.path("services/org.mdevd1.service"), host.path("start"));
        fs::write(&service, format!("[D-BUS Service]\nName={BUS_NAME}\nExec=/bin/sh {}\n", run.display())).unwrap();
        fs::write(&run, script.replace("DIR", &host.dir.path().display().to_string())).unwrap();
        host.start_bus()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The address of the bus, whether it is there or not.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    /// Puts a daemon on the bus. It leaves with what is returned.
    pub async fn daemon(&self, mood: Mood) -> Connection {
        let manager = Manager { mood, calls: self.calls.clone() };
        let builder = zbus::connection::Builder::address(self.address().as_str());
        builder.serve_at(path::ROOT, manager).name(BUS_NAME).build().await.unwrap()
    }

    /// What the daemons were told so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Writes the domain's claim.
    pub fn claim(&self, text: &str) {
        fs::write(self.path(&format!("run/mdevd/claims/{DOMAIN}.json")), text).unwrap();
    }

    /// Writes it with [`RUN`] in it.
    pub fn claim_of_run(&self) {
        self.claim(&format!("{{\"id\":\"{DOMAIN}\",\"run\":\"{RUN}\",\"state\":\"ready\"}}"));
    }

    /// The mark that the domain's run has ended, and how its directory may be used.
    pub fn mark(&self) -> Option<(serde_json::Value, u32)> {
        let dir = self.path("run/mdevd/released");
        let names: Vec<_> = fs::read_dir(&dir).ok()?.map(|entry| entry.unwrap().file_name()).collect();
        if names.is_empty() {
            return None;
        }
        assert_eq!(names, [DOMAIN], "nothing unfinished is left");
        let text = fs::read(dir.join(DOMAIN)).unwrap();
        Some((serde_json::from_slice(&text).unwrap(), fs::metadata(dir).unwrap().permissions().mode() & 0o777))
    }

    /// A named pipe in the host's directory.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        path
    }

    /// The hook with libvirt's environment, by way of `program`.
    pub fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .env("MDEVD_RUN_DIR", self.path("run"))
            .current_dir("/")
            .kill_on_drop(true);
        command
    }

    /// Runs the hook.
    pub async fn hook(&self, op: &str, subop: &str, extra: &str, xml: &str) -> Outcome {
        let mut command = self.command(&self.path("mdevd-hook"));
        command.args(["vm & co", op, subop, extra]);
        run(command, xml).await
    }

    pub async fn prepare(&self, xml: &str) -> Outcome {
        self.hook("prepare", "begin", "-", xml).await
    }

    pub async fn release(&self, xml: &str) -> Outcome {
        self.hook("release", "end", "destroyed", xml).await
    }

    pub async fn reconnect(&self, xml: &str) -> Outcome {
        self.hook("reconnect", "begin", "-", xml).await
    }
}

/// Runs a command with this on stdin.
pub async fn run(mut command: tokio::process::Command, stdin: &str) -> Outcome {
    let started = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = loop {
        match command.spawn() {
            // A test beside this one has forked while the program was copied, and has not got to its own yet.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => tokio::task::yield_now().await,
            child => break child.unwrap(),
        }
    };
    // A hook that does not read is no error, as it is none for libvirt.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.signal(), None);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "what is printed replaces the XML");
    let stderr = String::from_utf8(output.stderr).unwrap();
    Outcome { code: output.status.code().unwrap(), stderr, took: started.elapsed() }
}

/// The entry in `qemu.d`, with another path in it than that of the installed hook.
pub fn entry(host: &Host) -> PathBuf {
    let text = include_str!("../../../qemu.d/mdevd");
    let path = host.path("mdevd");
    fs::write(&path, text.replace("/usr/bin/mdevd-hook", &host.path("mdevd-hook").display().to_string())).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

/// Waits for what is written into a named pipe.
pub async fn read(fifo: PathBuf) -> String {
    spawn_blocking(move || fs::read_to_string(fifo).unwrap()).await.unwrap()
}

/// This process, which the hook must take for the libvirt daemon: its id, and field 22 of its `/proc/PID/stat`.
pub fn this_process() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    (std::process::id().into(), start)
}
