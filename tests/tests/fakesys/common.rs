//! What these tests share: two hosts, and programs that read and write.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{self, Errno, FakeHost};
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
