//! The names of things, each a type that is valid from the moment it exists: PCI addresses, mdev parents, types and UUIDs, drivers,
//! IOMMU groups, NUMA nodes, requests, runs. Parsing them is the only place where such text can be wrong.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Why a text is not the name it should be. Prints as one sentence that quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is not {expected}: {why}")]
pub struct NameError {
    /// The text as it came, control characters escaped and cut to 80 characters, so that it can be printed.
    pub text: String,
    /// What it should have been, with its article: `a PCI address`.
    pub expected: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl NameError {
    fn new(text: &str, expected: &'static str, why: impl Into<String>) -> Self {
        Self { text: printable(text), expected, why: why.into() }
    }
}

/// `text` fit for a message: control characters escaped, at most 80 characters.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(80) {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    out
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    };
}

/// The address of a PCI function: `0000:41:00.4`. The domain has four or more hexadecimal digits (`10000:e1:00.0` behind Intel VMD).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device (slot) number, at most 0x1f.
    pub device: u8,
    /// Function number, at most 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for PciAddress {
    type Err = NameError;

    /// Reads `DDDD:BB:DD.F`; upper case is accepted, a missing domain is not.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why: &str| NameError::new(text, "a PCI address (like 0000:41:00.4)", why);
        let (domain, rest) = text.split_once(':').ok_or_else(|| bad("no ':' after the domain"))?;
        let (bus, rest) = rest.split_once(':').ok_or_else(|| bad("no ':' between bus and device"))?;
        let (device, function) = rest.split_once('.').ok_or_else(|| bad("no '.' before the function"))?;
        let hex = |part: &str, digits: core::ops::RangeInclusive<usize>, what: &str| {
            if !digits.contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad(&format!(
                    "the {what} '{}' must have {} hexadecimal digits",
                    printable(part),
                    show(&digits)
                )));
            }
            u32::from_str_radix(part, 16).map_err(|_| bad(&format!("the {what} is too large")))
        };
        let domain = hex(domain, 4..=8, "domain")?;
        let bus = hex(bus, 2..=2, "bus")?;
        let device = hex(device, 2..=2, "device")?;
        let function = hex(function, 1..=1, "function")?;
        if device > 0x1f {
            return Err(bad("the device is above 1f"));
        }
        if function > 7 {
            return Err(bad("the function is above 7"));
        }
        Ok(Self { domain, bus: bus as u8, device: device as u8, function: function as u8 })
    }
}

fn show(digits: &core::ops::RangeInclusive<usize>) -> String {
    if digits.start() == digits.end() {
        digits.start().to_string()
    } else {
        format!("{} to {}", digits.start(), digits.end())
    }
}

text_conversions!(PciAddress);

macro_rules! sysfs_name {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as the kernel writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                sysfs_component(text, $expected)?;
                Ok(Self(text.to_owned()))
            }
        }

        text_conversions!($name);
    };
}

/// A text that is one component of a sysfs path and can be joined to one without leaving its folder.
fn sysfs_component(text: &str, expected: &'static str) -> Result<(), NameError> {
    let why = if text.is_empty() {
        "it is empty"
    } else if text == "." || text == ".." {
        "it is a relative folder"
    } else if text.contains('/') {
        "it contains '/'"
    } else if text.len() > 255 {
        "it is longer than 255 bytes"
    } else if text.chars().any(char::is_control) {
        "it contains a control character"
    } else {
        return Ok(());
    };
    Err(NameError::new(text, expected, why))
}

sysfs_name!(
    /// The sysfs name of a device that offers mdev types: a PCI address (`0000:41:00.0`) or any other device's name (`mtty`, `matrix`,
    /// `0.0.26ab`).
    ParentName,
    "the name of an mdev parent"
);
sysfs_name!(
    /// The id of an mdev type, the folder name below `mdev_supported_types`: `nvidia-63`, `i915-GVTg_V5_4`.
    MdevTypeId,
    "an mdev type id"
);
sysfs_name!(
    /// The name of a kernel driver: `vfio-pci`, `nvidia`.
    DriverName,
    "a driver name"
);

/// The UUID of a mediated device, hyphenated lower case in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MdevUuid(pub Uuid);

impl MdevUuid {
    /// The UUID that belongs to a domain's request when its XML names none: version 5, the namespace is the domain's UUID, the name
    /// the request's; the same as `uuidgen --sha1 -n DOMAIN_UUID -N NAME`.
    pub fn derived(domain: Uuid, request: &str) -> Self {
        Self(Uuid::new_v5(&domain, request.as_bytes()))
    }
}

impl fmt::Display for MdevUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for MdevUuid {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_uuid(text).map(Self)
    }
}

text_conversions!(MdevUuid);

/// Reads a hyphenated UUID of either case. Braces, a `urn:` prefix and the form without hyphens are errors, as they are for the kernel.
pub fn parse_uuid(text: &str) -> Result<Uuid, NameError> {
    let bad = |why: &str| NameError::new(text, "a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804)", why);
    if text.len() != 36 {
        return Err(bad("it must have 36 characters"));
    }
    Uuid::try_parse(text).map_err(|_| bad("it must be hexadecimal digits in groups of 8-4-4-4-12"))
}

/// The number of an IOMMU group. It changes at every boot and is never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IommuGroupId(pub u32);

impl fmt::Display for IommuGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A NUMA node. The kernel's `-1` (no affinity known) is `None` wherever an `Option<NumaNode>` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NumaNode(pub u32);

impl fmt::Display for NumaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a request in a domain: `[A-Za-z0-9_-]{1,32}`, unique there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestName(String);

impl RequestName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RequestName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why: &str| NameError::new(text, "a request name", why);
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Err(bad("only letters, digits, '_' and '-' are allowed"));
        }
        if text.is_empty() || text.len() > 32 {
            return Err(bad("it must have 1 to 32 characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

text_conversions!(RequestName);

/// One start of a domain, from `prepare` to `release`. A word that carries another run's id changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse_uuid(text).map(Self)
    }
}

/// What a VM is given. Only mediated devices so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKey {
    /// A mediated device.
    Mdev(MdevUuid),
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mdev(uuid) => uuid.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn pci_addresses_that_are_right() {
        for (text, shown) in [
            ("0000:41:00.4", "0000:41:00.4"),
            ("10000:E1:1f.7", "10000:e1:1f.7"),
            ("ffffffff:ff:1f.7", "ffffffff:ff:1f.7"),
        ] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()), Ok(shown.into()));
        }
    }

    #[test]
    fn pci_addresses_that_are_wrong_say_why() {
        let why = |text: &str| text.parse::<PciAddress>().unwrap_err().why;
        assert_eq!(why("41:00.4"), "no ':' between bus and device");
        assert_eq!(why("0000:41:20.0"), "the device is above 1f");
        assert_eq!(why("0000:41:00.8"), "the function is above 7");
        assert_eq!(why("000:41:00.0"), "the domain '000' must have 4 to 8 hexadecimal digits");
        assert_eq!(why("0000:+1:00.0"), "the bus '+1' must have 2 hexadecimal digits");
        assert_eq!(why("0000:41:00"), "no '.' before the function");
    }

    #[test]
    fn names_cannot_leave_their_folder_or_hide_in_a_terminal() {
        for bad in ["", ".", "..", "a/b", "a\nb", "a\0b", "\u{1b}[2J"] {
            assert!(bad.parse::<ParentName>().is_err(), "{bad:?}");
            assert!(bad.parse::<MdevTypeId>().is_err(), "{bad:?}");
        }
        let error = "a\n\u{1b}[2J".parse::<ParentName>().unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }

    #[test]
    fn request_names_say_what_is_wrong_with_them() {
        let longest = "x".repeat(32);
        assert_eq!(longest.parse::<RequestName>().map(String::from), Ok(longest));
        let why = |text: &str| text.parse::<RequestName>().unwrap_err().why;
        assert_eq!(why(""), "it must have 1 to 32 characters");
        assert_eq!(why(&"x".repeat(33)), "it must have 1 to 32 characters");
        // 17 characters, but 34 bytes: the length is not what is wrong.
        assert_eq!(why(&"ä".repeat(17)), "only letters, digits, '_' and '-' are allowed");
        assert_eq!(why("a.1"), "only letters, digits, '_' and '-' are allowed");
    }

    #[test]
    fn uuids_are_hyphenated_and_lower_cased() {
        let upper = "AAAAAAAA-2222-3333-4444-555555555555";
        assert_eq!(upper.parse::<MdevUuid>().map(|u| u.to_string()), Ok(upper.to_lowercase()));
        for bad in ["aaaaaaaa222233334444555555555555", "{aaaaaaaa-2222-3333-4444-55555555555}", "", "urn:uuid:x"] {
            assert!(bad.parse::<MdevUuid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_derived_uuid_is_what_uuidgen_prints() {
        let domain = parse_uuid("0f154289-728c-42df-9e56-9b6c1be66e73").unwrap();
        // uuidgen --sha1 -n 0f154289-728c-42df-9e56-9b6c1be66e73 -N gpu0
        assert_eq!(MdevUuid::derived(domain, "gpu0").to_string(), "95dfa89f-59f0-54a0-83f4-c665e1e9868b");
    }

    proptest! {
        #[test]
        fn every_address_survives_text(domain: u32, bus: u8, device in 0u8..=0x1f, function in 0u8..=7) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[0-9a-f:.]{0,20}") {
            let parsed: Vec<bool> = [text.parse::<PciAddress>().is_ok(), text.parse::<RequestName>().is_ok(), parse_uuid(&text).is_ok()].into();
            prop_assert_eq!(parsed.len(), 3);
        }
    }
}
