//! Writes that can block for ever, each in a process of its own.
//!
//! `remove` of a device in use, and a few like it, do not return before the user closes it, and nothing can end such a wait. So the
//! daemon never writes to sysfs itself: it starts its own executable as `mdevd write PATH VALUE`, which does exactly one `write` and
//! answers with the errno as its exit status. The writer's standard input is the open file of a lock ([`BusyLocks`]), and that is how
//! a daemon that starts anew knows of it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};

use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

use crate::busy::BusyLocks;
use crate::error::EffectError;

/// The exit status of a writer that was called wrongly. No errno is that large.
const MISUSE: u8 = 255;

/// The writer itself: `args` are those after `write`. Returns what the process exits with: 0, or the errno.
///
/// It touches nothing but the file, so that its standard input stays open, and the lock taken, until it has ended. No signal is caught:
/// stopping the unit signals the daemon alone (`KillMode=process`), its own process group keeps it from a terminal's signals, and a
/// wait in the kernel that has begun is not ended by a signal either.
pub fn writer_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(path), Some(value), None) = (args.next(), args.next(), args.next()) else {
        return ExitCode::from(MISUSE);
    };
    match write_once(Path::new(&path), value.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            ExitCode::from(u8::try_from(errno).unwrap_or(MISUSE))
        }
    }
}

/// Opens write-only, never creating (a missing attribute is then ENOENT, and not the EACCES of a file that sysfs does not let us make)
/// nor following a last link, and writes once: sysfs takes each `write` as a whole value.
fn write_once(path: &Path, value: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::NOCTTY;
    let mut file = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.write(value)? == value.len() { Ok(()) } else { Err(Errno::IO.into()) }
}

/// How a write ended, or that it has not.
#[derive(Debug)]
pub enum WriteOutcome {
    /// The kernel took it. What it did is for a read-back to say.
    Done,
    /// The kernel refused it.
    Errno(EffectError),
    /// The writer could not be started, so that nothing was written.
    NotStarted(EffectError),
    /// The writer was killed by this signal: whether it has written is for a read-back to say.
    Killed(i32),
    /// The deadline has passed and the writer is still at it.
    TimedOut(InFlight),
    /// Another write to the same thing is in flight.
    LockTaken,
}

/// A write past its deadline. It cannot be stopped; dropping this only means that nobody waits for it.
#[derive(Debug)]
pub struct InFlight {
    child: Child,
    locks: BusyLocks,
    key: String,
    path: PathBuf,
    value: String,
}

impl InFlight {
    /// The key of its lock.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The writer's process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the writer has ended, however long that takes: [`WriteOutcome::Done`], `Errno` or `Killed`.
    pub async fn ended(mut self) -> WriteOutcome {
        let status = self.child.wait().await;
        self.outcome(status)
    }

    fn outcome(self, status: std::io::Result<ExitStatus>) -> WriteOutcome {
        // A file that is left behind does no harm: its lock is free, and the next look removes it.
        if let Err(error) = self.locks.clear(&self.key) {
            tracing::debug!("{error}");
        }
        let failed =
            |errno| WriteOutcome::Errno(EffectError { op: "write", path: self.path, value: Some(self.value), errno });
        match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(0), _) => WriteOutcome::Done,
                (Some(code), _) if code != i32::from(MISUSE) => failed(code),
                (None, Some(signal)) => WriteOutcome::Killed(signal),
                _ => failed(Errno::INVAL.raw_os_error()),
            },
            Err(error) => failed(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
        }
    }
}

/// Writes `value` to `path` by a process of its own, `exe write PATH VALUE`, under the lock `key`; waits for it until `deadline`.
/// Past that the writer is left alone, never killed.
///
/// `exe` is an absolute path. All processes of the program are to be started from one thread: one that another thread starts has a copy
/// of this lock until its `exec`, and the lock would then seem taken for that instant.
pub async fn write(
    exe: &Path,
    locks: &BusyLocks,
    key: &str,
    path: &Path,
    value: &str,
    deadline: impl Into<Instant>,
) -> WriteOutcome {
    let lock = match locks.try_take(key) {
        Ok(Some(lock)) => lock,
        Ok(None) => return WriteOutcome::LockTaken,
        Err(error) => return WriteOutcome::NotStarted(error),
    };
    // The lock's file moves into the child: with this statement our own is closed.
    let child = Command::new(exe)
        .arg("write")
        .arg(path)
        .arg(value)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(lock)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(false)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            let _ = locks.clear(key);
            return WriteOutcome::NotStarted(EffectError::io("start the writer", exe, &error));
        }
    };
    let mut write = InFlight { child, locks: locks.clone(), key: key.into(), path: path.into(), value: value.into() };
    match timeout_at(deadline.into(), write.child.wait()).await {
        Ok(status) => write.outcome(status),
        Err(_) => WriteOutcome::TimedOut(write),
    }
}
