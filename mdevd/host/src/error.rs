//! What went wrong with the host, said so that a person can act on it: [`EffectError`] for one system call on one path, [`Problem`]
//! for a file that is not as it should be.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mdevd_core::names::printable;
use rustix::io::Errno;

/// One system call on one path that failed. Prints as
/// `cannot write '6f…' to /sys/…/create: ENOSPC (No space left on device)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectError {
    /// What was tried, a verb: `read`, `write`, `list`.
    pub op: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What was being written.
    pub value: Option<String>,
    /// The kernel's answer. `EILSEQ` stands for text that is not UTF-8, `EFBIG` for a file that is longer than it may be.
    pub errno: i32,
}

impl EffectError {
    pub(crate) fn new(op: &'static str, path: impl Into<PathBuf>, errno: Errno) -> Self {
        Self { op, path: path.into(), value: None, errno: errno.raw_os_error() }
    }

    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>, error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        Self { op, path: path.into(), value: None, errno }
    }

    /// The errno's name: `ENOSPC`.
    pub fn errno_name(&self) -> Cow<'static, str> {
        errno_name(self.errno)
    }

    /// Whether this is that errno.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno == errno.raw_os_error()
    }

    /// Whether the thing is gone. `ENODEV` is how sysfs answers on an attribute that was opened before its device went, `ESRCH` how
    /// procfs does.
    pub fn is_gone(&self) -> bool {
        [Errno::NOENT, Errno::NODEV, Errno::SRCH].iter().any(|errno| self.is(*errno))
    }
}

impl fmt::Display for EffectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} ", self.op)?;
        if let Some(value) = &self.value {
            write!(f, "'{}' to ", printable(value))?;
        }
        write!(f, "{}: {}", self.path.display(), describe_errno(self.errno))
    }
}

impl std::error::Error for EffectError {}

/// A file that is not as it should be, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and what was done about it.
    pub why: String,
}

impl Problem {
    pub(crate) fn new(path: &Path, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), why: why.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for Problem {}

impl From<EffectError> for Problem {
    fn from(error: EffectError) -> Self {
        Self { why: format!("cannot {} it: {}", error.op, describe_errno(error.errno)), path: error.path }
    }
}

/// An errno as people search for it: `ENOSPC (No space left on device)`.
pub fn describe_errno(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    format!("{} ({text})", errno_name(errno))
}

macro_rules! errno_names {
    ($($errno:ident),* $(,)?) => {
        /// The names, for Linux: those that sysfs, procfs and the file systems below our state answer with.
        const NAMES: &[(Errno, &str)] = &[(Errno::ACCESS, "EACCES"), $((Errno::$errno, concat!("E", stringify!($errno)))),*];
    };
}

errno_names!(
    PERM,
    NOENT,
    SRCH,
    INTR,
    IO,
    NXIO,
    NOEXEC,
    BADF,
    CHILD,
    AGAIN,
    NOMEM,
    FAULT,
    NOTBLK,
    BUSY,
    EXIST,
    XDEV,
    NODEV,
    NOTDIR,
    TOOBIG,
    ISDIR,
    INVAL,
    NFILE,
    MFILE,
    NOTTY,
    TXTBSY,
    FBIG,
    NOSPC,
    SPIPE,
    ROFS,
    MLINK,
    PIPE,
    DOM,
    RANGE,
    DEADLK,
    NAMETOOLONG,
    NOLCK,
    NOSYS,
    NOTEMPTY,
    LOOP,
    ILSEQ,
    USERS,
    OPNOTSUPP,
    OVERFLOW,
    BADMSG,
    PROTO,
    NOLINK,
    REMOTEIO,
    NOMEDIUM,
    MEDIUMTYPE,
    TIMEDOUT,
    CANCELED,
    STALE,
    DQUOT,
    ALREADY,
    INPROGRESS,
    CONNREFUSED,
    NOTCONN,
    NOBUFS,
    MSGSIZE,
    ADDRINUSE,
    PROTONOSUPPORT,
    AFNOSUPPORT,
    NODATA,
    TIME,
    HOSTDOWN,
    SHUTDOWN,
    NOTUNIQ,
    BADFD,
    REMCHG,
    UCLEAN,
    OWNERDEAD,
    NOTRECOVERABLE,
    RFKILL,
    HWPOISON,
);

/// The name of an errno: `ENOSPC`; `errno 4711` for one without a name here.
pub fn errno_name(errno: i32) -> Cow<'static, str> {
    match NAMES.iter().find(|(known, _)| known.raw_os_error() == errno) {
        Some((_, name)) => (*name).into(),
        None => format!("errno {errno}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_have_their_names() {
        // By number: the table itself is made from symbols, so this is what holds them against the ABI.
        for (number, name) in [
            (1, "EPERM"),
            (2, "ENOENT"),
            (5, "EIO"),
            (11, "EAGAIN"),
            (13, "EACCES"),
            (16, "EBUSY"),
            (17, "EEXIST"),
            (19, "ENODEV"),
            (22, "EINVAL"),
            (28, "ENOSPC"),
            (34, "ERANGE"),
            (84, "EILSEQ"),
            (87, "EUSERS"),
            (105, "ENOBUFS"),
            (4711, "errno 4711"),
        ] {
            assert_eq!(errno_name(number), name);
        }
    }

    #[test]
    fn an_error_says_what_failed_on_what_and_why() {
        let mut error = EffectError::new("write", "/sys/x/create", Errno::NOSPC);
        error.value = Some("6f\n".into());
        assert_eq!(error.to_string(), "cannot write '6f\\n' to /sys/x/create: ENOSPC (No space left on device)");
        let error = EffectError::new("list", "/sys/x", Errno::ACCESS);
        assert_eq!(error.to_string(), "cannot list /sys/x: EACCES (Permission denied)");
        assert_eq!(Problem::from(error).to_string(), "/sys/x: cannot list it: EACCES (Permission denied)");
    }
}
