//! Which libvirt knows what is printed. An older one does not complain: it drops what it does not know, and the VM starts without it.

use alloc::format;
use core::fmt;
use core::str::FromStr;

use super::HostdevError;
use crate::names::printable;

/// A version of libvirt: `11.3.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LibvirtVersion {
    /// `11` of `11.3.0`.
    pub major: u32,
    /// `3` of it.
    pub minor: u32,
    /// `0` of it.
    pub micro: u32,
}

impl LibvirtVersion {
    /// The first release of a series: `11.3.0` of 11 and 3.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, micro: 0 }
    }
}

impl fmt::Display for LibvirtVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl FromStr for LibvirtVersion {
    type Err = HostdevError;

    /// Reads `11.3.0`.
    fn from_str(text: &str) -> Result<Self, HostdevError> {
        let number = |part: Option<&str>| {
            part.filter(|part| part.bytes().all(|b| b.is_ascii_digit())).and_then(|part| part.parse().ok())
        };
        let mut parts = text.split('.');
        let numbers = (number(parts.next()), number(parts.next()), number(parts.next()), parts.next());
        let (Some(major), Some(minor), Some(micro), None) = numbers else {
            return Err(HostdevError::new(format!(
                "'{}' is not a version of libvirt: it must be like 11.3.0",
                printable(text)
            )));
        };
        Ok(Self { major, minor, micro })
    }
}

/// An option, and the libvirt that brought it.
pub(super) type Need = (&'static str, LibvirtVersion);

/// The newest need among those that are there.
pub(super) fn newest(needs: impl IntoIterator<Item = Option<Need>>) -> Option<Need> {
    needs.into_iter().flatten().max_by_key(|(_, version)| *version)
}

/// The need of `option`, when it is used.
pub(super) fn need(used: bool, option: &'static str, major: u32, minor: u32) -> Option<Need> {
    used.then_some((option, LibvirtVersion::new(major, minor)))
}

/// Refuses what the installed libvirt would drop.
pub(super) fn check(need: Option<Need>, installed: LibvirtVersion) -> Result<(), HostdevError> {
    match need {
        Some((option, since)) if installed < since => Err(HostdevError::new(format!(
            "'{option}' needs libvirt {}.{}, but {installed} is installed: leave it out, or install a newer libvirt",
            since.major, since.minor
        ))),
        _ => Ok(()),
    }
}
