//! What the printed elements share: escaping, the reading of options, aliases, guest addresses. The elements are printed in the order and
//! with the quotes in which libvirt itself prints them, so that a pasted element and a dumped one compare equal.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;

use super::HostdevError;
use crate::names::PciAddress;

/// `text` fit for an attribute in either kind of quotes, or for element text. What XML 1.0 cannot express becomes U+FFFD.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // as they are, a parser would turn them into spaces inside an attribute
            '\t' => out.push_str("&#9;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// Whether `text` can stand in a document letter for letter, in one line.
pub(super) fn expressible(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// The options of one element: known keys, each once.
pub(super) struct Options<'a> {
    given: Vec<(&'static str, &'a str)>,
}

impl<'a> Options<'a> {
    /// Takes in `pairs`, whose keys are among `known`; `kind` is what an error calls them.
    pub(super) fn read(
        kind: &str,
        known: &'static [&'static str],
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, HostdevError> {
        let mut given: Vec<(&'static str, &'a str)> = Vec::new();
        for (key, value) in pairs {
            let known_key =
                *known.iter().find(|known| **known == key).ok_or_else(|| HostdevError::unknown(kind, key, known))?;
            if given.iter().any(|(earlier, _)| *earlier == known_key) {
                return Err(HostdevError::twice(key));
            }
            given.push((known_key, value));
        }
        Ok(Self { given })
    }

    /// The value of an option.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.given.iter().find(|(given, _)| *given == key).map(|(_, value)| *value)
    }

    /// The value of an option that is `yes` or `no`.
    pub(super) fn yes_no(&self, key: &str) -> Result<Option<bool>, HostdevError> {
        self.either(key, "yes", "no")
    }

    /// The value of an option that is `on` or `off`.
    pub(super) fn on_off(&self, key: &str) -> Result<Option<bool>, HostdevError> {
        self.either(key, "on", "off")
    }

    fn either(&self, key: &str, yes: &str, no: &str) -> Result<Option<bool>, HostdevError> {
        match self.get(key) {
            None => Ok(None),
            Some(text) if text == yes => Ok(Some(true)),
            Some(text) if text == no => Ok(Some(false)),
            Some(text) => Err(HostdevError::value(key, text, &format!("{yes} or {no}"))),
        }
    }

    /// The place in the guest's boot order.
    pub(super) fn boot_order(&self) -> Result<Option<NonZeroU32>, HostdevError> {
        let Some(text) = self.get("boot-order") else { return Ok(None) };
        let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let order = digits.and_then(|text| text.parse().ok());
        order.map(Some).ok_or_else(|| HostdevError::value("boot-order", text, "a number from 1 on"))
    }

    /// An alias that libvirt takes from a person and keeps. Any other it silently drops.
    pub(super) fn user_alias(&self, key: &str) -> Result<Option<String>, HostdevError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let name = text.strip_prefix("ua-").unwrap_or("");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return Err(HostdevError::value(key, text, "'ua-' followed by letters, digits, '-' and '_'"));
        }
        Ok(Some(text.to_owned()))
    }

    /// Where the guest sees the device.
    pub(super) fn guest_address(&self) -> Result<Option<GuestAddress>, HostdevError> {
        self.get("guest-address").map(str::parse).transpose()
    }
}

/// libvirt refuses a function that it is given twice; these are in order.
pub(super) fn each_once(functions: &[PciAddress]) -> Result<(), HostdevError> {
    match functions.iter().zip(functions.iter().skip(1)).find(|(a, b)| a == b) {
        Some((twice, _)) => Err(HostdevError::new(format!("the function {twice} is given twice"))),
        None => Ok(()),
    }
}

/// libvirt shows a boot framebuffer only on a display.
pub(super) fn check_ramfb(display: Option<bool>, ramfb: Option<bool>) -> Result<(), HostdevError> {
    if ramfb == Some(true) && display != Some(true) {
        return Err(HostdevError::new("ramfb='on' needs display='on'"));
    }
    Ok(())
}

/// ` display='on' ramfb='on'`, as far as they are said.
pub(super) fn display_attributes(display: Option<bool>, ramfb: Option<bool>) -> String {
    let attribute = |key: &str, on: Option<bool>| match on {
        None => String::new(),
        Some(on) => format!(" {key}='{}'", if on { "on" } else { "off" }),
    };
    attribute("display", display) + &attribute("ramfb", ramfb)
}

/// The attributes of a PCI address: `domain='0x0000' bus='0x41' slot='0x00' function='0x4'`.
pub(super) fn pci_attributes(address: PciAddress) -> String {
    let PciAddress { domain, bus, device, function } = address;
    format!("domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{device:02x}' function='0x{function:x}'")
}

/// A guest's address of a channel device: `fe.0.0001`, channel subsystem, subchannel set and device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CcwAddress {
    pub(super) cssid: u8,
    pub(super) ssid: u8,
    pub(super) devno: u16,
}

/// Where the guest sees the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestAddress {
    /// `0000:04:00.0`. A guest has only domain 0.
    Pci(PciAddress),
    /// `fe.0.0001`.
    Ccw(CcwAddress),
}

impl FromStr for GuestAddress {
    type Err = HostdevError;

    /// Reads `DDDD:BB:DD.F` or `CSSID.SSID.DEVNO`, all hexadecimal.
    fn from_str(text: &str) -> Result<Self, HostdevError> {
        if text.contains(':') {
            let address: PciAddress = text.parse().map_err(|e| HostdevError::new(format!("guest-address: {e}")))?;
            if address.domain != 0 {
                return Err(HostdevError::new(format!("guest-address='{address}': a guest has only PCI domain 0000")));
            }
            // libvirt takes this address for none at all, and chooses another
            if (address.bus, address.device) == (0, 0) {
                return Err(HostdevError::new(format!(
                    "guest-address='{address}': the guest's host bridge is there; on bus 00 the devices begin with 01"
                )));
            }
            return Ok(Self::Pci(address));
        }
        let hex = |part: &str, digits: usize| {
            let fits = !part.is_empty() && part.len() <= digits && part.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u16::from_str_radix(part, 16).ok()).flatten()
        };
        let mut parts = text.split('.');
        let numbers = (parts.next(), parts.next(), parts.next(), parts.next());
        if let (Some(cssid), Some(ssid), Some(devno), None) = numbers
            && let (Some(cssid), Some(ssid), Some(devno)) = (hex(cssid, 2), hex(ssid, 1), hex(devno, 4))
            && let (Ok(cssid @ ..=0xfe), Ok(ssid @ ..=3)) = (u8::try_from(cssid), u8::try_from(ssid))
        {
            return Ok(Self::Ccw(CcwAddress { cssid, ssid, devno }));
        }
        Err(HostdevError::value(
            "guest-address",
            text,
            "a PCI address (like 0000:04:00.0) or a CCW address (like fe.0.0001)",
        ))
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci(address) => address.fmt(f),
            Self::Ccw(CcwAddress { cssid, ssid, devno }) => {
                write!(f, "{cssid:x}.{ssid:x}.{devno:04x}")
            }
        }
    }
}
