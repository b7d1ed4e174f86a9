//! The names of things, each a type that is valid from the moment it exists: PCI addresses, mdev parents, types and UUIDs, drivers,
//! IOMMU groups, NUMA nodes, requests, runs. Parsing them is the only place where such text can be wrong.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::num::NonZeroU32;
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

impl PciAddress {
    /// Its card: the same without the function, `0000:41:00`.
    pub fn card(self) -> PciCard {
        PciCard { domain: self.domain, bus: self.bus, device: self.device }
    }
}

/// All functions of one device number, which usually are one card: `0000:41:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciCard {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device (slot) number, at most 0x1f.
    pub device: u8,
}

impl PciCard {
    /// One of its functions.
    pub fn function(self, function: u8) -> PciAddress {
        PciAddress { domain: self.domain, bus: self.bus, device: self.device, function: function & 7 }
    }
}

impl fmt::Display for PciCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

impl FromStr for PciCard {
    type Err = NameError;

    /// Reads `DDDD:BB:DD`, or `BB:DD` of domain 0.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why: String| NameError::new(text, "a PCI card (like 0000:41:00)", why);
        if text.contains('.') {
            return Err(bad("it has a function".into()));
        }
        let domain = if text.matches(':').count() == 1 { "0000:" } else { "" };
        let first = format!("{domain}{text}.0").parse::<PciAddress>().map_err(|error| bad(error.why))?;
        Ok(first.card())
    }
}

text_conversions!(PciCard);

/// One PCI function, or all of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PciSelector {
    /// The function.
    Function(PciAddress),
    /// The card.
    Card(PciCard),
}

impl PciSelector {
    /// Whether it means this function.
    pub fn means(&self, address: PciAddress) -> bool {
        match self {
            Self::Function(only) => *only == address,
            Self::Card(card) => *card == address.card(),
        }
    }
}

impl fmt::Display for PciSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => address.fmt(f),
            Self::Card(card) => card.fmt(f),
        }
    }
}

impl FromStr for PciSelector {
    type Err = NameError;

    /// Reads `0000:41:00.4`, or `0000:41:00` of a card.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains('.') { text.parse().map(Self::Function) } else { text.parse().map(Self::Card) }
    }
}

text_conversions!(PciSelector);

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

/// What a VM is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKey {
    /// A mediated device.
    Mdev(MdevUuid),
    /// A PCI function.
    Pci(PciAddress),
}

impl DeviceKey {
    /// The UUID of a mediated device.
    pub fn mdev(&self) -> Option<MdevUuid> {
        match self {
            Self::Mdev(uuid) => Some(*uuid),
            Self::Pci(_) => None,
        }
    }

    /// The address of a PCI function.
    pub fn pci(&self) -> Option<PciAddress> {
        match self {
            Self::Pci(address) => Some(*address),
            Self::Mdev(_) => None,
        }
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mdev(uuid) => uuid.fmt(f),
            Self::Pci(address) => address.fmt(f),
        }
    }
}

/// The number of a vendor's vGPU type: `1145`. Never 0, which the vendor's file uses for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VgpuTypeId(pub NonZeroU32);

impl fmt::Display for VgpuTypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VgpuTypeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        digits
            .and_then(|text| text.parse().ok())
            .map(Self)
            .ok_or_else(|| NameError::new(text, "the number of a vGPU type", "it must be a whole number from 1 on"))
    }
}

/// A network interface's hardware address, `52:54:00:6d:90:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// What a driver shows for a virtual function that has been given none.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether it stands for many interfaces, so that none can have it.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = NameError;

    /// Reads six pairs of hexadecimal digits with `:` between them, of either case.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::new(text, "a MAC address", "it must be like 52:54:00:6d:90:02");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(bad)?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

text_conversions!(MacAddress);

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
