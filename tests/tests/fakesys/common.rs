//! What these tests share: two hosts, and programs that read and write.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{self, Builder, Errno, FakeHost};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

pub const A: &str = "11111111-2222-3333-4444-555555555555";

pub fn uuid(text: &str) -> Uuid {
    Uuid::try_parse(text).unwrap()
}

pub fn two_cards() -> FakeHost {
    fakesys::host()
        .parent("0000:41:00.0")
        .numa(0)
        .driver("nvidia")
        .mdev_type("nvidia-63", 4)
        .mdev_type("nvidia-64", 2)
        .parent("0000:c1:00.0")
        .numa(1)
        .driver("nvidia")
        .mdev_type("nvidia-63", 4)
        .mount()
        .unwrap()
}

pub fn samples() -> FakeHost {
    fakesys::host().mbochs().mdpy().mtty().first_group(6).mount().unwrap()
}

/// Opens write-only without making the file and does one `write()`, as the daemon's writer does.
pub fn write(path: impl AsRef<Path>, text: &str) -> Result<usize, Errno> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    file.write(text.as_bytes()).map_err(|error| Errno::from_io_error(&error).unwrap())
}

pub fn read(path: impl AsRef<Path>) -> Result<String, Errno> {
    fs::read_to_string(path).map_err(|error| Errno::from_io_error(&error).unwrap())
}

/// A process of its own that writes, for writes that hang: a thread of ours that hangs would keep the test from ending.
pub fn writer(path: &Path, text: &str) -> Child {
    Command::new("sh").args(["-c", "printf %s \"$0\" > \"$1\"", text]).arg(path).stderr(Stdio::null()).spawn().unwrap()
}

/// As [`writer`], beside another one in the same file: the shell would empty the file first, and have to wait for that here.
pub fn second_writer(path: &Path, text: &str) -> Child {
    let script = "printf %s \"$0\" | dd of=\"$1\" conv=notrunc";
    Command::new("sh").args(["-c", script, text]).arg(path).stderr(Stdio::null()).spawn().unwrap()
}

pub fn reader(path: &Path) -> Child {
    Command::new("cat").arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn kill(child: &Child) {
    kill_process(Pid::from_child(child), Signal::KILL).unwrap();
}

/// Waits until the process is in uninterruptible sleep.
pub fn wait_stuck(child: &Child) {
    let stat = format!("/proc/{}/stat", child.id());
    let end = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&stat).unwrap().contains(") D ") {
        assert!(Instant::now() < end, "{}", fs::read_to_string(&stat).unwrap());
        std::thread::yield_now();
    }
}

/// All uevents so far, each as its lines.
pub fn received(socket: &UnixDatagram) -> Vec<Vec<String>> {
    socket.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => all.push(
                String::from_utf8(buffer[..len].to_vec()).unwrap().split_terminator('\0').map(str::to_owned).collect(),
            ),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn heads(events: &[Vec<String>]) -> Vec<&str> {
    events.iter().map(|lines| lines[0].as_str()).collect()
}

pub const PF: &str = "0000:01:00.0";
pub const VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
pub const NIC: &str = "0000:03:00.0";

/// An igb PF with room for seven VFs, and an e1000e.
pub fn igb() -> Builder {
    with_igb(fakesys::host())
}

pub fn with_igb(host: Builder) -> Builder {
    host.pf(PF, 7)
        .ids(0x8086, 0x10c9)
        .class(0x02_0000)
        .driver("igb")
        .reset_methods("flr pm bus")
        .netdev("enp1s0", "52:54:00:00:00:01")
        .subsystem(0x1af4, 0x1100, 1)
        .hardware_vfs(8)
        .vf_ids(0x8086, 0x10ca)
        .vf_driver("igbvf")
        .vf_netdevs("enp1s0v")
        .offset_stride(128, 2)
        .function(NIC)
        .ids(0x8086, 0x10d3)
        .class(0x02_0000)
        .driver("e1000e")
        .netdev("enp3s0", "52:54:00:00:00:02")
}

/// The file of a function, through its link on the bus.
pub fn at(host: &FakeHost, address: &str, file: &str) -> PathBuf {
    host.sys().join("bus/pci/devices").join(address).join(file)
}

pub fn of_driver(host: &FakeHost, driver: &str, file: &str) -> PathBuf {
    host.sys().join("bus/pci/drivers").join(driver).join(file)
}

pub fn probe(host: &FakeHost, address: &str) -> Result<usize, Errno> {
    write(host.sys().join("bus/pci/drivers_probe"), address)
}

/// Gives a function to `vfio-pci`, as one does.
pub fn to_vfio(host: &FakeHost, address: &str) {
    write(at(host, address, "driver_override"), "vfio-pci").unwrap();
    if at(host, address, "driver").exists() {
        write(at(host, address, "driver/unbind"), address).unwrap();
    }
    probe(host, address).unwrap();
    assert_eq!(host.view().driver_of(address).as_deref(), Some("vfio-pci"));
}

/// The uevents so far, each as `ACTION name`, the name being the last one of its path.
pub fn short(socket: &UnixDatagram) -> Vec<String> {
    let name = |line: &String| {
        let (action, path) = line.split_once('@').unwrap();
        format!("{action} {}", path.rsplit('/').next().unwrap())
    };
    received(socket).iter().map(|lines| name(&lines[0])).collect()
}
