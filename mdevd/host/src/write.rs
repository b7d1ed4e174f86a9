//! What can block for ever, each in a process of its own.
//!
//! `remove` of a device in use, and a few like it, do not return before the user closes it, and nothing can end such a wait. So the
//! daemon never writes to sysfs itself: it starts its own executable as `mdevd write PATH VALUE`, which does exactly one `write` and
//! answers with the errno as its exit status. In the same way `mdevd vf NETDEV INDEX SETTINGS` sets up a virtual function over netlink,
//! and `mdevd read PATH` reads an attribute that cannot be read while a change of it hangs. The writer's standard input is the open file
//! of a lock ([`BusyLocks`]), and that is how a daemon that starts anew knows of it; what it has to say goes to its standard output. Of the
//! daemon's [rights] it has none but what its verb takes.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};

use mdevd_core::function::VfSettings;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

use crate::busy::BusyLocks;
use crate::error::EffectError;
use crate::netlink;
use crate::read;
use crate::rights;

/// The first arguments that make the program a writer.
pub const VERBS: [&str; 3] = ["write", "vf", "read"];

/// The exit status of a writer that was called wrongly. No errno is that large.
const MISUSE: u8 = 255;

/// The writer itself: `verb` is one of [`VERBS`], `args` are those after it. Returns what the process exits with: 0, or the errno.
///
/// It touches nothing but its file or socket, so that its standard input stays open, and the lock taken, until it has ended. No signal is
/// caught: stopping the unit signals the daemon alone (`KillMode=process`), its own process group keeps it from a terminal's signals, and
/// a wait in the kernel that has begun is not ended by a signal either.
pub fn writer_main(verb: &OsStr, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let errno = match (verb.to_str(), args.as_slice()) {
        (Some("write"), [path, value]) => write_once(Path::new(path), value.as_bytes()),
        (Some("read"), [path]) => print_attribute(Path::new(path)),
        (Some("vf"), [netdev, index, settings]) => match vf_arguments(netdev, index, settings) {
            Some((netdev, index, settings)) => set_vf_once(netdev, index, &settings),
            None => return ExitCode::from(MISUSE),
        },
        _ => return ExitCode::from(MISUSE),
    };
    match errno {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => ExitCode::from(u8::try_from(errno).unwrap_or(MISUSE)),
    }
}

/// Opens write-only, never creating (a missing attribute is then ENOENT, and not the EACCES of a file that sysfs does not let us make)
/// nor following a last link, and writes once: sysfs takes each `write` as a whole value.
fn write_once(path: &Path, value: &[u8]) -> Result<(), i32> {
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
    let flags = OFlags::NOFOLLOW | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(errno)?;
    if file.write(value).map_err(errno)? == value.len() { Ok(()) } else { Err(Errno::IO.raw_os_error()) }
}

fn print_attribute(path: &Path) -> Result<(), i32> {
    let value = read::attribute(path).map_err(|error| error.errno)?;
    std::io::stdout().write_all(value.as_bytes()).map_err(|_| Errno::PIPE.raw_os_error())
}

fn vf_arguments<'a>(netdev: &'a OsStr, index: &OsStr, settings: &OsStr) -> Option<(&'a str, u32, VfSettings)> {
    let settings = serde_json::from_str(settings.to_str()?).ok()?;
    Some((netdev.to_str()?, index.to_str()?.parse().ok()?, settings))
}

/// Prints which of the settings was refused; a daemon that has gone needs not know.
fn set_vf_once(netdev: &str, index: u32, settings: &VfSettings) -> Result<(), i32> {
    netlink::set_vf(netdev, index, settings).map_err(|error| {
        let _ = std::io::stdout().write_all(error.value.unwrap_or_default().as_bytes());
        error.errno
    })
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
    /// What to say if it fails, but for the errno.
    failure: Box<EffectError>,
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
        self.outcome(status).await
    }

    async fn outcome(mut self, status: std::io::Result<ExitStatus>) -> WriteOutcome {
        // A file that is left behind does no harm: its lock is free, and the next look removes it.
        if let Err(error) = self.locks.clear(&self.key) {
            tracing::debug!("{error}");
        }
        match End::of(status) {
            End::Done => WriteOutcome::Done,
            End::Killed(signal) => WriteOutcome::Killed(signal),
            End::Errno(errno) => {
                let said = said(&mut self.child).await;
                let mut failure = *self.failure;
                failure.errno = errno;
                if !said.is_empty() {
                    failure.value = Some(said);
                }
                WriteOutcome::Errno(failure)
            }
        }
    }
}

/// How a writer ended.
enum End {
    Done,
    Errno(i32),
    Killed(i32),
}

impl End {
    fn of(status: std::io::Result<ExitStatus>) -> Self {
        match status.map(|status| (status.code(), status.signal())) {
            Ok((Some(0), _)) => Self::Done,
            Ok((Some(code), _)) if code != i32::from(MISUSE) => Self::Errno(code),
            Ok((None, Some(signal))) => Self::Killed(signal),
            Ok(_) => Self::Errno(Errno::INVAL.raw_os_error()),
            Err(error) => Self::Errno(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error())),
        }
    }
}

/// What a writer that has ended has said. That is never more than a pipe holds, so that it did not have to wait for us.
async fn said(child: &mut Child) -> String {
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take()
        && let Err(error) = stdout.take(read::ATTRIBUTE_LIMIT as u64).read_to_end(&mut said).await
    {
        tracing::debug!("cannot read what a writer says: {error}");
    }
    String::from_utf8_lossy(&said).into_owned()
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
    let failure = EffectError { value: Some(value.into()), ..EffectError::new("write", path, Errno::IO) };
    let args = ["write".as_ref(), path.as_os_str(), value.as_ref()];
    under_lock(exe, locks, key, args, None, failure, deadline.into()).await
}

/// The same for what `settings` says of a virtual function: `exe vf NETDEV INDEX SETTINGS`. The value of an error is the setting that
/// was refused; those before it have been taken.
pub async fn set_vf(
    exe: &Path,
    locks: &BusyLocks,
    key: &str,
    netdev: &str,
    index: u32,
    settings: &VfSettings,
    deadline: impl Into<Instant>,
) -> WriteOutcome {
    let failure = EffectError::new("give", netlink::vf_name(netdev, index), Errno::IO);
    let failure = EffectError { value: Some(settings.to_string()), ..failure };
    let json = match serde_json::to_string(settings) {
        Ok(json) => json,
        Err(_) => return WriteOutcome::NotStarted(failure),
    };
    let index = index.to_string();
    let args = ["vf".as_ref(), netdev.as_ref(), index.as_ref(), json.as_ref()];
    under_lock(exe, locks, key, args, Some(rights::NETWORK), failure, deadline.into()).await
}

/// Reads an attribute by a process of its own, `exe read PATH`; `None` when there is no such attribute. Past the deadline, `ETIMEDOUT`,
/// the reader is killed: if the kernel makes it wait it ends with that wait, and nobody minds.
pub async fn read_attribute(
    exe: &Path,
    path: &Path,
    deadline: impl Into<Instant>,
) -> Result<Option<String>, EffectError> {
    let fail = |errno: Errno| EffectError::new("read", path, errno);
    let mut child = start(exe, ["read".as_ref(), path.as_os_str()], None, Stdio::null(), true)?;
    let status = timeout_at(deadline.into(), child.wait()).await.map_err(|_| fail(Errno::TIMEDOUT))?;
    match End::of(status) {
        End::Done => Ok(Some(said(&mut child).await)),
        End::Errno(errno) => read::unless_gone(Err(EffectError { errno, ..fail(Errno::IO) })),
        End::Killed(_) => Err(fail(Errno::INTR)),
    }
}

/// Starts a writer under a lock and waits for it; `failure` is what to say if it fails, but for the errno.
async fn under_lock<const N: usize>(
    exe: &Path,
    locks: &BusyLocks,
    key: &str,
    args: [&OsStr; N],
    right: Option<CapabilitySet>,
    failure: EffectError,
    deadline: Instant,
) -> WriteOutcome {
    let lock = match locks.try_take(key) {
        Ok(Some(lock)) => lock,
        Ok(None) => return WriteOutcome::LockTaken,
        Err(error) => return WriteOutcome::NotStarted(error),
    };
    // The lock's file moves into the child: with this statement our own is closed.
    let child = match start(exe, args, right, Stdio::from(OwnedFd::from(lock)), false) {
        Ok(child) => child,
        Err(error) => {
            let _ = locks.clear(key);
            return WriteOutcome::NotStarted(error);
        }
    };
    let mut write = InFlight { child, locks: locks.clone(), key: key.into(), failure: Box::new(failure) };
    match timeout_at(deadline, write.child.wait()).await {
        Ok(status) => write.outcome(status).await,
        Err(_) => WriteOutcome::TimedOut(write),
    }
}

fn start<const N: usize>(
    exe: &Path,
    args: [&OsStr; N],
    right: Option<CapabilitySet>,
    stdin: Stdio,
    kill_on_drop: bool,
) -> Result<Child, EffectError> {
    let mut command = Command::new(exe);
    command
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(kill_on_drop);
    rights::pass_on(right, || command.spawn()).map_err(|error| EffectError::io("start the writer", exe, &error))
}
