//! Which process waits for this one: the libvirt daemon, found above the hook scripts in between.
//!
//! A hook that outlives its libvirt daemon is an orphan. Its words are of a run that nobody waits for any more, and the
//! next run of the same domain may have begun.

use std::{ffi::OsString, fs, os::unix::ffi::OsStrExt};

use rustix::process::getppid;

/// How many scripts there may be between libvirt and this program.
const SCRIPTS: usize = 8;

/// A libvirt daemon, told from a later process with the same pid by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its process id.
    pub pid: u32,
    /// When it started: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl Caller {
    /// Goes up from this process, past the scripts that libvirt ran: they have the same arguments, last, as this
    /// program. `None` when that ends at pid 1 or at a process that is gone: this is an orphan.
    pub fn find(args: &[OsString]) -> Option<Self> {
        let tail: Vec<u8> = args.iter().flat_map(|arg| [b"\0", arg.as_bytes()].concat()).chain([0]).collect();
        let mut pid = u32::try_from(getppid()?.as_raw_nonzero().get()).ok()?;
        for _ in 0..SCRIPTS {
            if pid <= 1 {
                return None;
            }
            let stat = Stat::read(pid)?;
            if !fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.ends_with(&tail)) {
                return Some(Self { pid, start_time: stat.start_time });
            }
            pid = stat.parent;
        }
        None
    }

    /// Whether it still is the one that waits.
    pub fn still_waits(self, args: &[OsString]) -> bool {
        Self::find(args) == Some(self)
    }
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    parent: u32,
    start_time: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in parentheses and may itself have blanks, parentheses, and bytes that
    /// are no text: the fields are counted from the last closing one.
    fn parse(stat: &[u8]) -> Option<Self> {
        let after_name = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = str::from_utf8(stat.get(after_name + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // What follows begins with field 3, the state.
        let parent = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, start_time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        for name in ["libvirtd", "a b", "x) S 1 2 (y", ") R 1 (", ""] {
            let line = format!("412 ({name}) S 77 412 412 0 -1 4194560 9 8 7 6 5 4 3 2 20 0 19 0 123456789012 1 2 3\n");
            let stat = Stat::parse(line.as_bytes()).unwrap();
            assert_eq!((stat.parent, stat.start_time), (77, 123_456_789_012), "{name}");
        }
        assert!(Stat::parse(b"412 (\xff\xfe) S 77 412 412 0 -1 4 9 8 7 6 5 4 3 2 20 0 19 0 55 1\n").is_some());
        assert!(Stat::parse(b"412 (x) S 77").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn the_caller_is_the_parent() {
        let caller = Caller::find(&["no such argument".into()]).unwrap();
        assert_eq!(caller.pid, std::os::unix::process::parent_id());
        assert!(caller.still_waits(&["no such argument".into()]));
    }
}
