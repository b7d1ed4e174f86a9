//! The writer, with a real child process: what it answers, and what is left when it hangs.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mdevd_core::function::VfSettings;
use mdevd_host::busy::BusyLocks;
use mdevd_host::files::ensure_state_dirs;
use mdevd_host::roots::Roots;
use mdevd_host::write::{InFlight, WriteOutcome, read_attribute, set_vf, write};
use rustix::fs::{CWD, Mode};

/// The writer's executable.
const EXE: &str = env!("CARGO_BIN_EXE_mdevd-host-writer");

/// One host at a time: the daemon starts its writers from one thread, and a test on another thread that starts one would share our
/// locks with it until its `exec`.
static ONE: Mutex<()> = Mutex::new(());

struct Host {
    dir: tempfile::TempDir,
    locks: BusyLocks,
    _one: MutexGuard<'static, ()>,
}

impl Host {
    fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { run: dir.path().into(), ..Roots::default() };
        ensure_state_dirs(&roots).unwrap();
        Self { locks: BusyLocks::new(&roots), dir, _one: one }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file on which a writer hangs until [`let_go`].
    fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        path
    }

    async fn write(&self, key: &str, path: &Path, value: &str) -> WriteOutcome {
        write(Path::new(EXE), &self.locks, key, path, value, Instant::now() + Duration::from_secs(60)).await
    }

    /// A write of "1" that hangs.
    async fn hang(&self, key: &str, path: &Path) -> InFlight {
        match write(Path::new(EXE), &self.locks, key, path, "1", Instant::now() + Duration::from_millis(20)).await {
            WriteOutcome::TimedOut(write) => write,
            other => panic!("{other:?}"),
        }
    }
}

/// Lets the writer that hangs on this file go on, and returns what it wrote.
fn let_go(fifo: &Path) -> String {
    std::fs::read_to_string(fifo).unwrap()
}

fn error(outcome: WriteOutcome) -> String {
    match outcome {
        WriteOutcome::Errno(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_value_is_written_and_the_lock_goes() {
    let host = Host::new();
    let path = host.path("attribute");
    std::fs::write(&path, "").unwrap();
    for value in ["6f1a4c1e-0c5c-4f7e-9d1c-1f0a3f1b2c3d", "", "two words; $(x)"] {
        std::fs::write(&path, "").unwrap();
        assert!(matches!(host.write("parent.mtty", &path, value).await, WriteOutcome::Done));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), value);
    }
    assert_eq!(std::fs::read_dir(host.path("mdevd/busy")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_kernels_errno_comes_back_by_name() {
    let host = Host::new();
    assert_eq!(
        error(host.write("k", Path::new("/dev/full"), "x").await),
        "cannot write 'x' to /dev/full: ENOSPC (No space left on device)"
    );
    let missing = host.path("missing");
    let wanted = format!("cannot write '1' to {}: ENOENT (No such file or directory)", missing.display());
    assert_eq!(error(host.write("k", &missing, "1").await), wanted);
    assert!(!missing.exists(), "a file is never made");
    assert!(error(host.write("k", host.dir.path(), "1").await).contains("EISDIR"));
    assert!(host.locks.in_flight().unwrap().is_empty());
}

#[tokio::test]
async fn a_last_link_is_not_followed_but_those_before_it_are() {
    let host = Host::new();
    std::fs::write(host.path("real"), "").unwrap();
    std::os::unix::fs::symlink(host.path("real"), host.path("link")).unwrap();
    assert!(error(host.write("k", &host.path("link"), "1").await).contains("ELOOP"));
    // As in sysfs, where /sys/class and /sys/bus have nothing but links to the devices' folders.
    std::os::unix::fs::symlink(host.dir.path(), host.path("class")).unwrap();
    assert!(matches!(host.write("k", &host.path("class/real"), "1").await, WriteOutcome::Done));
}

#[tokio::test]
async fn a_write_that_hangs_is_left_alone_and_others_go_on() {
    let host = Host::new();
    let fifo = host.fifo();
    let write = host.hang("stuck", &fifo).await;
    assert_eq!((write.key(), host.locks.in_flight().unwrap()), ("stuck", vec!["stuck".to_owned()]));
    assert!(write.pid().is_some());
    assert!(matches!(host.write("stuck", &host.path("x"), "1").await, WriteOutcome::LockTaken));
    std::fs::write(host.path("x"), "").unwrap();
    assert!(matches!(host.write("other", &host.path("x"), "1").await, WriteOutcome::Done));

    let reader = std::thread::spawn(move || let_go(&fifo));
    assert!(matches!(write.ended().await, WriteOutcome::Done));
    assert_eq!(reader.join().unwrap(), "1");
    assert!(host.locks.in_flight().unwrap().is_empty());
}

#[tokio::test]
async fn what_the_kernel_answers_late_is_not_lost() {
    let host = Host::new();
    let fifo = host.fifo();
    let write = host.hang("k", &fifo).await;
    let pid = rustix::process::Pid::from_raw(write.pid().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    match write.ended().await {
        WriteOutcome::Killed(9) => {}
        other => panic!("{other:?}"),
    }
    assert!(host.locks.in_flight().unwrap().is_empty());
}

#[tokio::test]
async fn nobody_who_waits_is_no_end_of_the_write() {
    let host = Host::new();
    let fifo = host.fifo();
    drop(host.hang("k", &fifo).await);
    assert_eq!(host.locks.in_flight().unwrap(), ["k"]);
    let locks = host.locks.clone();
    let waiter = std::thread::spawn(move || locks.wait_free("k").unwrap());
    assert_eq!(let_go(&fifo), "1");
    waiter.join().unwrap();
    assert!(host.locks.in_flight().unwrap().is_empty());
}

#[test]
fn a_write_outlives_its_daemon_and_the_next_daemon_knows() {
    let host = Host::new();
    let fifo = host.fifo();
    let mut daemon =
        Command::new(EXE).arg("daemon").arg(host.dir.path()).args(["k"]).arg(&fifo).arg("late").spawn().unwrap();
    // The daemon's child is the writer once it has the lock as its standard input.
    let lock = host.path("mdevd/busy/k").canonicalize();
    let children = format!("/proc/{0}/task/{0}/children", daemon.id());
    let writer = loop {
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon must hang: {lock:?}");
        let child = std::fs::read_to_string(&children).unwrap();
        let command = child
            .split_whitespace()
            .next()
            .map(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
        if command.is_some_and(|command| command.windows(7).any(|part| part == b"\0write\0")) {
            break child.trim().to_owned();
        }
        std::thread::yield_now();
    };
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    assert!(Path::new("/proc").join(&writer).exists(), "the writer lives on");
    let next = BusyLocks::new(&Roots { run: host.dir.path().into(), ..Roots::default() });
    assert_eq!(next.in_flight().unwrap(), ["k"]);
    assert!(next.try_take("k").unwrap().is_none());
    let waiter = {
        let next = next.clone();
        std::thread::spawn(move || next.wait_free("k").unwrap())
    };
    assert_eq!(let_go(&fifo), "late");
    waiter.join().unwrap();
    assert!(next.try_take("k").unwrap().is_some());
}

#[tokio::test]
async fn a_writer_that_cannot_start_has_written_nothing() {
    let host = Host::new();
    match write(Path::new("/nowhere/mdevd"), &host.locks, "k", &host.path("x"), "1", Instant::now()).await {
        WriteOutcome::NotStarted(error) => {
            assert_eq!(error.to_string(), "cannot start the writer /nowhere/mdevd: ENOENT (No such file or directory)");
        }
        other => panic!("{other:?}"),
    }
    assert!(host.locks.in_flight().unwrap().is_empty());
    assert!(matches!(host.write("../k", &host.path("x"), "1").await, WriteOutcome::NotStarted(_)));
}

#[test]
fn a_writer_called_wrongly_says_so_and_a_right_one_says_nothing() {
    let host = Host::new();
    let run = |args: &[&str]| Command::new(EXE).args(args).stdin(Stdio::null()).output().unwrap();
    for wrong in [
        &["write"][..],
        &["write", "/dev/null"],
        &["write", "/dev/null", "1", "2"],
        &["read"],
        &["read", "/dev/null", "1"],
        &["vf", "lo", "0"],
        &["vf", "lo", "-1", "{}"],
        &["vf", "lo", "0", "trust"],
        &["vf", "lo", "0", "{}", "{}"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(255));
    }
    let path = host.path("x");
    std::fs::write(&path, "").unwrap();
    let right = run(&["write", path.to_str().unwrap(), "1"]);
    assert_eq!((right.status.code(), right.stdout, right.stderr), (Some(0), vec![], vec![]));
    assert_eq!(run(&["write", "/dev/full", "1"]).status.code(), Some(28));
    let read = run(&["read", path.to_str().unwrap()]);
    assert_eq!((read.status.code(), read.stdout, read.stderr), (Some(0), b"1".to_vec(), vec![]));
    assert_eq!(run(&["vf", "lo", "0", "{}"]).status.code(), Some(0));
}

#[tokio::test]
async fn a_setting_of_a_virtual_function_that_is_refused_is_named() {
    let host = Host::new();
    let until = || Instant::now() + Duration::from_secs(60);
    let set = VfSettings { vlan: Some(42), qos: Some(3), trust: Some(true), ..VfSettings::default() };
    let exe = Path::new(EXE);
    // The loopback has no virtual functions, so that the kernel refuses the first setting; for another user than root, any.
    let errno = if rustix::process::geteuid().is_root() {
        "EOPNOTSUPP (Operation not supported)"
    } else {
        "EPERM (Operation not permitted)"
    };
    let refused = error(set_vf(exe, &host.locks, "k", "lo", 3, &set, until()).await);
    assert_eq!(refused, format!("cannot give 'vlan 42, qos 3' to virtual function 3 of lo: {errno}"));
    let gone = error(set_vf(exe, &host.locks, "k", "mdevd-none", 0, &set, until()).await);
    assert!(gone.starts_with("cannot give 'vlan 42, qos 3' to virtual function 0 of mdevd-none: E"), "{gone}");
    let nothing = VfSettings::default();
    assert!(matches!(set_vf(exe, &host.locks, "k", "lo", 0, &nothing, until()).await, WriteOutcome::Done));
    assert!(host.locks.in_flight().unwrap().is_empty());
    let _lock = host.locks.try_take("k").unwrap().unwrap();
    assert!(matches!(set_vf(exe, &host.locks, "k", "lo", 0, &nothing, until()).await, WriteOutcome::LockTaken));
}

#[tokio::test]
async fn an_attribute_is_read_by_another_process() {
    let host = Host::new();
    let read = async |path: &Path| read_attribute(Path::new(EXE), path, Instant::now() + Duration::from_secs(60)).await;
    let path = host.path("sriov_numvfs");
    let longest = "x".repeat(4096);
    for (content, value) in [("2\n", "2"), ("", ""), ("a\nb\n", "a\nb"), (&longest, &longest)] {
        std::fs::write(&path, content).unwrap();
        assert_eq!(read(&path).await.unwrap().as_deref(), Some(value));
    }
    assert_eq!(read(&host.path("missing")).await, Ok(None));
    let failed = async |path: &Path| read(path).await.unwrap_err().to_string();
    let wanted = format!("cannot read {}: EISDIR (Is a directory)", host.dir.path().display());
    assert_eq!(failed(host.dir.path()).await, wanted);
    std::fs::write(&path, b"\xff").unwrap();
    assert!(failed(&path).await.contains("EILSEQ"));
    std::fs::write(&path, format!("{longest}x")).unwrap();
    assert!(failed(&path).await.contains("EFBIG"));
    let nobody = read_attribute(Path::new("/nowhere/mdevd"), &path, Instant::now()).await.unwrap_err().to_string();
    assert_eq!(nobody, "cannot start the writer /nowhere/mdevd: ENOENT (No such file or directory)");
}

#[tokio::test]
async fn a_read_that_hangs_is_given_up() {
    let host = Host::new();
    let fifo = host.fifo();
    let late = read_attribute(Path::new(EXE), &fifo, Instant::now() + Duration::from_millis(20)).await;
    let wanted = format!("cannot read {}: ETIMEDOUT (Connection timed out)", fifo.display());
    assert_eq!(late.unwrap_err().to_string(), wanted);
    // Nobody is left who waits for it.
    let reads = |entry: &std::fs::DirEntry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.windows(fifo.as_os_str().len()).any(|part| part == fifo.as_os_str().as_encoded_bytes())
    };
    while std::fs::read_dir("/proc").unwrap().flatten().any(|entry| reads(&entry)) {
        tokio::task::yield_now().await;
    }
}
