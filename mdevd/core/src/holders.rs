//! Who has a device open: a list, or the fact that it is not known.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::names::printable;

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command name, as in `/proc/PID/comm`.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A process may call itself anything, and this reaches a terminal.
        write!(f, "{} (pid {})", printable(&self.command), self.pid)
    }
}

/// The answer to "who holds it?". **Unknown counts as held**: a process whose file descriptors cannot be read may hold anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holders {
    /// All of them; empty when nobody has it open.
    Known(Vec<Holder>),
    /// It could not be found out, and why.
    Unknown(String),
}

impl Holders {
    /// True only when it is certain that nobody has the device open.
    pub fn none(&self) -> bool {
        matches!(self, Self::Known(list) if list.is_empty())
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(list) if list.is_empty() => f.write_str("nobody"),
            Self::Known(list) => {
                for (i, holder) in list.iter().enumerate() {
                    write!(f, "{}{holder}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::Unknown(why) => write!(f, "unknown ({why})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    #[test]
    fn only_a_list_that_is_empty_says_nobody() {
        let holder = |pid, command: &str| Holder { pid, command: command.into() };
        let table = [
            (Holders::Known(vec![]), true, "nobody"),
            (Holders::Known(vec![holder(7, "qemu-kvm")]), false, "qemu-kvm (pid 7)"),
            (Holders::Known(vec![holder(7, "qemu-kvm"), holder(8, "cat")]), false, "qemu-kvm (pid 7), cat (pid 8)"),
            (Holders::Known(vec![holder(9, "\u{1b}[2Jx\n")]), false, "\\u{1b}[2Jx\\n (pid 9)"),
            (Holders::Unknown("/proc/7/fd: EPERM".into()), false, "unknown (/proc/7/fd: EPERM)"),
        ];
        for (holders, none, shown) in table {
            assert_eq!(holders.none(), none, "{holders:?}");
            assert_eq!(holders.to_string(), shown);
        }
    }
}
