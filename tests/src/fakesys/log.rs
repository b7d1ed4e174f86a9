//! The record of what was done to the fake host's files.

use rustix::io::Errno;

use super::rules::{Event, Op};

/// One operation that is over: a write, or the making, renaming or deleting of a file or folder.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// What was done.
    pub op: Op,
    /// On which path, from the mount: `sys/…`, `run/…`.
    pub path: String,
    /// The new path of a rename.
    pub to: Option<String>,
    /// What was written, as text, without its last newline.
    pub value: String,
    /// The process that did it.
    pub pid: u32,
    /// How it failed, or `None` when it went well.
    pub errno: Option<Errno>,
}

impl LogEntry {
    pub(super) fn new(event: &Event, errno: Option<Errno>) -> Self {
        let Event { op, path, to, value, pid } = event.clone();
        Self { op, path, to, value: value.strip_suffix('\n').map(str::to_owned).unwrap_or(value), pid, errno }
    }

    /// True for a write to sysfs.
    pub fn is_sys_write(&self) -> bool {
        self.op == Op::Write && self.path.starts_with("sys/")
    }
}

/// True for the operations that are recorded.
pub(super) fn worth_it(op: Op) -> bool {
    matches!(op, Op::Write | Op::Create | Op::Rename | Op::Unlink | Op::Mkdir)
}
