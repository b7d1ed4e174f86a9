//! What `make bench` measures, on simulated hosts of two sizes: `bench SAMPLES ENTRY [PARENTSxTYPES]...`, with `mdevctl` and
//! `mdevctl-start` on PATH.
//!
//! Each sample is one thing of every kind, one after the other, so that whatever else the machine does falls on all alike; and each
//! begins when mdevd is at rest, so that its look after the kernel's events of the one before, which nobody waits for, falls on none.
#![allow(clippy::expect_used, clippy::indexing_slicing)] // a measurement that cannot be made must say so and end

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mdevd_dbus::ManagerProxy;
use mdevd_tests::fakesys::{self, FakeHost};
use mdevd_tests::harness::{Bus, Daemon, Domain};
use uuid::Uuid;

/// Parents and types on each, where nothing else is said.
const SIZES: [&str; 2] = ["8x20", "512x20"];
/// What is asked for.
const TYPE: &str = "nvidia-205";
/// How long mdevd has to do nothing to be at rest.
const REST: Duration = Duration::from_millis(10);
/// For so many samples there is one of what is slow.
const OF_SLOW: usize = 10;

const RAW: &str = "raw write to `create`";
const ROWS: [&str; 10] = [
    RAW,
    "the same by sh -c 'echo UUID >create'",
    "hook entry, prepare with one request",
    "hook entry, release",
    "hook entry, prepare without a request",
    "PrepareDomain alone, on an open connection",
    "ReleaseDomain alone, on an open connection",
    "mdevctl types --dumpjson",
    "mdevctl in a shell that picks a parent",
    "mdevctl stop",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(samples), Some(entry)) = (args.next().and_then(|n| n.parse().ok()), args.next()) else {
        eprintln!("Usage: bench SAMPLES ENTRY [PARENTSxTYPES]..., by way of tests/bench/run");
        return ExitCode::from(2);
    };
    let mut sizes: Vec<String> = args.collect();
    if sizes.is_empty() {
        sizes = SIZES.map(str::to_owned).to_vec();
    }
    let mut tables = Vec::new();
    for size in &sizes {
        let bench = Bench::new(size, PathBuf::from(&entry)).await;
        let table = bench.run(samples).await;
        print(size, samples, &table);
        tables.push(table);
    }
    if let ([first, .., last], [small, .., large]) = (sizes.as_slice(), tables.as_slice()) {
        println!("\np50 with {last} is, of that with {first}:");
        for (row, name) in ROWS.iter().enumerate() {
            println!("{name:44}  {:6.1} x", percentile(&large[row], 50) / percentile(&small[row], 50));
        }
    }
    ExitCode::SUCCESS
}

/// Milliseconds, by row, sorted.
type Table = Vec<Vec<f64>>;

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * percent / 100).min(last)).copied().unwrap_or(f64::NAN)
}

fn print(size: &str, samples: usize, table: &Table) {
    println!("\n{size}, that is PARENTSxTYPES: {samples} samples, {} of mdevctl", slow(samples));
    println!("{:44}  {:>9}  {:>9}  {:>14}", "", "p50 ms", "p99 ms", "p50, raw = 1");
    let raw = percentile(&table[0], 50);
    for (name, times) in ROWS.iter().zip(table) {
        let (p50, p99) = (percentile(times, 50), percentile(times, 99));
        println!("{name:44}  {p50:9.2}  {p99:9.2}  {:14.1}", p50 / raw);
    }
}

fn slow(samples: usize) -> usize {
    samples.div_ceil(OF_SLOW)
}

/// A host with mdevd on it.
struct Bench {
    host: FakeHost,
    bus: Bus,
    daemon: Daemon,
    /// mdevd's and libvirt's `/run`, in memory as the real one is.
    run: tempfile::TempDir,
    manager: ManagerProxy<'static>,
    entry: PathBuf,
    /// The root that mdevctl looks at: the host's sysfs, and the folders of its own that it insists on.
    mdevctl_root: tempfile::TempDir,
    /// The `create` that is written to by hand.
    create: PathBuf,
}

impl Bench {
    async fn new(size: &str, entry: PathBuf) -> Self {
        let numbers = size.split_once('x').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
        let (parents, types) = numbers.unwrap_or_else(|| panic!("'{size}' is not PARENTSxTYPES"));
        let mut host = fakesys::host().real_processes();
        let address = |n: u32| format!("{:04x}:{:02x}:00.0", n / 255, n % 255 + 1);
        for n in 0..parents {
            host = host.parent(&address(n)).driver("nvidia");
            for id in 0..types {
                host = host.mdev_type(&format!("nvidia-{}", 200 + id), 4);
                host = host.described("num_heads=4, frl_config=45, framebuffer=1024M");
            }
        }
        let host = host.mount().unwrap_or_else(|error| panic!("{error}"));
        let bus = Bus::start();
        let run = if Path::new("/dev/shm").is_dir() { tempfile::tempdir_in("/dev/shm") } else { tempfile::tempdir() };
        let run = run.expect("a temporary folder");
        let daemon = Daemon::start_with_run(&host, &bus, run.path()).await;
        let manager = bus.manager().await;
        let root = tempfile::tempdir().expect("a temporary folder");
        std::os::unix::fs::symlink(host.sys(), root.path().join("sys")).expect("a link");
        for base in ["etc/mdevctl.d", "usr/lib/mdevctl"] {
            for kind in ["callouts", "notifiers"] {
                std::fs::create_dir_all(root.path().join(base).join("scripts.d").join(kind)).expect("a folder");
            }
        }
        let create = host.sys().join("class/mdev_bus").join(address(parents - 1));
        let create = create.join("mdev_supported_types").join(TYPE).join("create");
        Self { host, bus, daemon, run, manager, entry, mdevctl_root: root, create }
    }

    async fn run(&self, samples: usize) -> Table {
        let mut table = vec![Vec::new(); ROWS.len()];
        for n in 0..samples {
            let row = self.sample().await.into_iter().chain(if n < slow(samples) { self.slow() } else { Vec::new() });
            for (times, time) in table.iter_mut().zip(row) {
                times.push(time);
            }
        }
        table.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        table
    }

    /// One of each of the first seven rows.
    async fn sample(&self) -> Vec<f64> {
        let mut times = Vec::new();

        let uuid = Uuid::new_v4();
        times.push(timed(|| write(&self.create, &uuid.to_string())));
        self.remove(uuid);

        let uuid = Uuid::new_v4();
        let mut echo = Command::new("sh");
        echo.args(["-c", "echo \"$1\" >\"$2\"", "sh", &uuid.to_string()]).arg(&self.create);
        times.push(timed(|| succeeds(&mut echo)));
        self.remove(uuid);

        let domain = Domain::wants("vm-with-a-name", &[TYPE]);
        let xml = self.xml(&domain, true);
        times.push(self.hook(&["prepare", "begin", "-"], &xml));
        self.expect(Some(domain.mdevs[0]));
        times.push(self.hook(&["release", "end", "shutdown"], &xml));
        self.expect(None);

        times.push(self.hook(&["prepare", "begin", "-"], &self.xml(&domain, false)));
        self.expect(None);

        let domain = Domain::wants("vm-with-a-name", &[TYPE]);
        let begin = Instant::now();
        domain.prepare(&self.manager).await.expect("PrepareDomain");
        times.push(millis(begin));
        self.expect(Some(domain.mdevs[0]));
        let begin = Instant::now();
        domain.release(&self.manager).await.expect("ReleaseDomain");
        times.push(millis(begin));
        self.expect(None);
        times
    }

    /// One of each of mdevctl's.
    fn slow(&self) -> Vec<f64> {
        let uuid = Uuid::new_v4();
        let types = timed(|| succeeds(self.mdevctl("mdevctl").args(["types", "--dumpjson"])));
        let start = timed(|| succeeds(self.mdevctl("mdevctl-start").args([TYPE, &uuid.to_string()])));
        self.expect(Some(uuid));
        let stop = timed(|| succeeds(self.mdevctl("mdevctl").args(["stop", "--uuid", &uuid.to_string()])));
        self.expect(None);
        vec![types, start, stop]
    }

    fn mdevctl(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("MDEVCTL_ENV_ROOT", self.mdevctl_root.path());
        command
    }

    /// The hook's entry, as libvirt runs it.
    fn hook(&self, args: &[&str], xml: &Path) -> f64 {
        let mut entry = Command::new(&self.entry);
        entry.arg("vm-with-a-name").args(args).current_dir("/");
        entry.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).env("MDEVD_RUN_DIR", self.run.path());
        entry.stdin(File::open(xml).expect("the XML"));
        timed(|| succeeds(&mut entry))
    }

    /// Makes a file with a domain's XML.
    fn xml(&self, domain: &Domain, with_request: bool) -> PathBuf {
        let metadata = if with_request {
            format!(
                "<metadata><mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'><mdevd:request name='dev0' type='{TYPE}'/></mdevd:devices></metadata>"
            )
        } else {
            String::new()
        };
        let path = self.mdevctl_root.path().join("domain.xml");
        let mut file = File::create(&path).expect("a file");
        write!(
            file,
            "<domain type='kvm'><name>{}</name><uuid>{}</uuid>{metadata}{ORDINARY}<hostdev mode='subsystem' type='mdev' managed='no' \
             model='vfio-pci'><source><address uuid='{}'/></source></hostdev></devices></domain>",
            domain.name,
            if with_request { domain.uuid } else { Uuid::new_v4() },
            domain.mdevs[0]
        )
        .expect("a file");
        path
    }

    fn remove(&self, uuid: Uuid) {
        self.expect(Some(uuid));
        write(&self.host.sys().join(format!("bus/mdev/devices/{uuid}/remove")), "1");
        self.expect(None);
    }

    /// Exactly this device is there, of the type that was asked for. Then waits until mdevd is at rest.
    fn expect(&self, device: Option<Uuid>) {
        let there: Vec<_> = self.host.mdevs().into_iter().map(|(uuid, _, id)| (uuid, id)).collect();
        let wanted: Vec<_> = device.into_iter().map(|uuid| (uuid, TYPE.to_owned())).collect();
        assert_eq!(there, wanted, "the devices on the host");
        let mut before = self.switches();
        loop {
            std::thread::sleep(REST);
            let now = self.switches();
            if now == before {
                return;
            }
            before = now;
        }
    }

    /// How often each of mdevd's threads has gone to sleep.
    fn switches(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.daemon.pid())).expect("mdevd runs");
        let status = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok());
        let line =
            |text: String| text.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned);
        status.filter_map(line).collect()
    }
}

/// What an ordinary domain has besides.
const ORDINARY: &str = "<memory unit='GiB'>16</memory><vcpu>8</vcpu><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>\
    <features><acpi/><apic/></features><cpu mode='host-passthrough'/><clock offset='utc'/><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/vm.qcow2'/><target dev='vda' bus='virtio'/></disk>\
    <controller type='usb' model='qemu-xhci'/><controller type='pci' model='pcie-root'/><interface type='network'><source network='default'/>\
    <model type='virtio'/></interface><console type='pty'/><graphics type='vnc' autoport='yes'/><video><model type='virtio'/></video>";

fn millis(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

fn timed(action: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    action();
    millis(begin)
}

fn write(path: &Path, value: &str) {
    let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn succeeds(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{command:?}: {status:?}");
}
