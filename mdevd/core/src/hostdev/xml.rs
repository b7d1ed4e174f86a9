//! The XML that is printed for a mediated device: `<hostdev>` for a domain and `<device>` for `virsh nodedev-create`, in the order and
//! with the quotes in which libvirt itself prints them, so that a pasted element and a dumped one compare equal.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::fmt::Write as _;
use core::num::NonZeroU32;
use core::str::FromStr;

use super::{HostdevError, set};
use crate::names::{MdevTypeId, MdevUuid, ParentName, PciAddress, printable};

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

/// What the guest sees a mediated device through; the kernel calls it the type's device API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MdevModel {
    /// A PCI device.
    VfioPci,
    /// A channel device of s390.
    VfioCcw,
    /// A crypto matrix of s390.
    VfioAp,
}

impl MdevModel {
    /// `vfio-pci`, `vfio-ccw`, `vfio-ap`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VfioPci => "vfio-pci",
            Self::VfioCcw => "vfio-ccw",
            Self::VfioAp => "vfio-ap",
        }
    }
}

impl FromStr for MdevModel {
    type Err = HostdevError;
    fn from_str(text: &str) -> Result<Self, HostdevError> {
        [Self::VfioPci, Self::VfioCcw, Self::VfioAp].into_iter().find(|model| model.as_str() == text).ok_or_else(|| {
            HostdevError::new(format!(
                "device API '{}': libvirt can give a VM only mediated devices of vfio-pci, vfio-ccw or vfio-ap",
                printable(text)
            ))
        })
    }
}

/// A guest's address of a channel device: `fe.0.0001`, channel subsystem, subchannel set and device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CcwAddress {
    cssid: u8,
    ssid: u8,
    devno: u16,
}

/// Where the guest sees the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestAddress {
    /// `0000:04:00.0`.
    Pci(PciAddress),
    /// `fe.0.0001`.
    Ccw(CcwAddress),
}

impl FromStr for GuestAddress {
    type Err = HostdevError;

    /// Reads `DDDD:BB:DD.F` or `CSSID.SSID.DEVNO`, all hexadecimal.
    fn from_str(text: &str) -> Result<Self, HostdevError> {
        if text.contains(':') {
            return text.parse().map(Self::Pci).map_err(|e| HostdevError::new(format!("guest-address: {e}")));
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

/// The keys that [`MdevHostdevXml::from_options`] reads.
pub const OPTIONS: [&str; 6] = ["model", "display", "ramfb", "alias", "guest-address", "boot-order"];

/// A `<hostdev>` that gives a mediated device to a guest. It exists only in combinations that libvirt accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevHostdevXml {
    uuid: MdevUuid,
    model: MdevModel,
    display: Option<bool>,
    ramfb: Option<bool>,
    alias: Option<String>,
    guest_address: Option<GuestAddress>,
    boot_order: Option<NonZeroU32>,
}

impl MdevHostdevXml {
    /// The element for the device `uuid`, whose type has the device API `device_api`, with `options`: [`OPTIONS`].
    ///
    /// An empty `device_api` means that it is not known yet, as before the device has been chosen. Then the model is `model`, or else the
    /// one that the other options speak of: vfio-ccw with a CCW address or a boot order, vfio-pci otherwise.
    ///
    /// # Errors
    /// An option that is unknown (the nearest known one is named), given twice, has a value it cannot have, or does not go with the
    /// model or with another option.
    pub fn from_options<'a>(
        uuid: MdevUuid,
        device_api: &str,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, HostdevError> {
        let [mut model, mut display, mut ramfb, mut alias, mut guest_address, mut boot_order] = [None; 6];
        for (key, value) in options {
            let slot = match key {
                "model" => &mut model,
                "display" => &mut display,
                "ramfb" => &mut ramfb,
                "alias" => &mut alias,
                "guest-address" => &mut guest_address,
                "boot-order" => &mut boot_order,
                _ => return Err(HostdevError::unknown("hostdev option", key, &OPTIONS)),
            };
            set(slot, key, value)?;
        }
        let on_off = |key: &str, text: Option<&str>| match text {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(text) => Err(HostdevError::value(key, text, "on or off")),
        };
        let display = on_off("display", display)?;
        let ramfb = on_off("ramfb", ramfb)?;
        let alias = alias.map(user_alias).transpose()?;
        let guest_address = guest_address.map(str::parse::<GuestAddress>).transpose()?;
        let boot_order = boot_order
            .map(|text| {
                let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                digits
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| HostdevError::value("boot-order", text, "a number from 1 on"))
            })
            .transpose()?;
        let model = match (device_api, model) {
            ("", None) if matches!(guest_address, Some(GuestAddress::Ccw(_))) || boot_order.is_some() => {
                MdevModel::VfioCcw
            }
            ("", None) => MdevModel::VfioPci,
            ("", Some(model)) => model.parse()?,
            (api, Some(model)) if api != model => {
                return Err(HostdevError::new(format!(
                    "model='{}' does not fit: the device's API is {}",
                    printable(model),
                    printable(api)
                )));
            }
            (api, _) => api.parse()?,
        };
        let this = Self { uuid, model, display, ramfb, alias, guest_address, boot_order };
        this.check()?;
        Ok(this)
    }

    /// What libvirt refuses at define or start, refused here with the option's name.
    fn check(&self) -> Result<(), HostdevError> {
        let misfit = |key: &str, fits: &str| {
            Err(HostdevError::new(format!(
                "'{key}' goes with {fits} only, and this device's model is {}",
                self.model.as_str()
            )))
        };
        if self.model != MdevModel::VfioPci {
            if self.display.is_some() {
                return misfit("display", "model vfio-pci");
            }
            if self.ramfb.is_some() {
                return misfit("ramfb", "model vfio-pci");
            }
        }
        if self.ramfb == Some(true) && self.display != Some(true) {
            return Err(HostdevError::new("ramfb='on' needs display='on'"));
        }
        // libvirt 9.0 and 11.3: "booting from assigned devices is not supported by mediated devices of model vfio-pci"
        if self.boot_order.is_some() && self.model != MdevModel::VfioCcw {
            return misfit("boot-order", "model vfio-ccw");
        }
        match (self.model, self.guest_address) {
            (_, None)
            | (MdevModel::VfioPci, Some(GuestAddress::Pci(_)))
            | (MdevModel::VfioCcw, Some(GuestAddress::Ccw(_))) => Ok(()),
            (MdevModel::VfioAp, Some(_)) => Err(HostdevError::new("a device of model vfio-ap has no guest-address")),
            (model, Some(address)) => {
                let kind = if model == MdevModel::VfioPci {
                    "a PCI address (like 0000:04:00.0)"
                } else {
                    "a CCW address (like fe.0.0001)"
                };
                Err(HostdevError::new(format!(
                    "guest-address='{address}': a device of model {} has {kind}",
                    model.as_str()
                )))
            }
        }
    }

    /// The device.
    pub fn uuid(&self) -> MdevUuid {
        self.uuid
    }

    /// Its model.
    pub fn model(&self) -> MdevModel {
        self.model
    }

    /// The name it is given in the domain.
    pub fn alias(&self) -> Option<&str> {
        self.alias.as_deref()
    }

    /// The element as libvirt prints it, with a newline at its end.
    pub fn to_xml(&self) -> String {
        let mut out = format!("<hostdev mode='subsystem' type='mdev' managed='no' model='{}'", self.model.as_str());
        for (key, value) in [("display", self.display), ("ramfb", self.ramfb)] {
            if let Some(value) = value {
                out.extend([" ", key, "='", if value { "on" } else { "off" }, "'"]);
            }
        }
        out.push_str(">\n  <source>\n");
        // writing to a String cannot fail
        let _ = writeln!(out, "    <address uuid='{}'/>\n  </source>", self.uuid);
        if let Some(order) = self.boot_order {
            let _ = writeln!(out, "  <boot order='{order}'/>");
        }
        if let Some(alias) = &self.alias {
            let _ = writeln!(out, "  <alias name='{}'/>", escape(alias));
        }
        match self.guest_address {
            None => {}
            Some(GuestAddress::Pci(PciAddress { domain, bus, device, function })) => {
                let _ = writeln!(
                    out,
                    "  <address type='pci' domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{device:02x}' function='0x{function:x}'/>"
                );
            }
            Some(GuestAddress::Ccw(CcwAddress { cssid, ssid, devno })) => {
                let _ = writeln!(
                    out,
                    "  <address type='ccw' cssid='0x{cssid:x}' ssid='0x{ssid:x}' devno='0x{devno:04x}'/>"
                );
            }
        }
        out.push_str("</hostdev>\n");
        out
    }
}

/// An alias that libvirt takes from a person and keeps.
fn user_alias(text: &str) -> Result<String, HostdevError> {
    let name = text.strip_prefix("ua-").unwrap_or("");
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(HostdevError::value("alias", text, "'ua-' followed by letters, digits, '-' and '_'"));
    }
    Ok(text.to_owned())
}

/// `text` as libvirt makes it part of a node device's name.
fn nodedev_part(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// The name that libvirt gives the node device of a parent: `pci_0000_41_00_0`, `css_0_0_26ab`, `ap_matrix`. libvirt builds it from
/// subsystem and name; a parent on no bus is in a class of its driver's own, which has the device's name (`mtty_mtty`).
pub fn nodedev_parent(parent: &ParentName) -> String {
    let name = parent.as_str();
    let is_subchannel = || {
        let mut parts = name.split('.');
        let lengths = [1..=2, 1..=1, 4..=4];
        lengths.iter().all(|length| {
            parts.next().is_some_and(|part| length.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit()))
        }) && parts.next().is_none()
    };
    let subsystem = if name.parse::<PciAddress>().is_ok() {
        "pci"
    } else if is_subchannel() {
        "css"
    } else if name == "matrix" {
        "ap"
    } else {
        name
    };
    format!("{}_{}", nodedev_part(subsystem), nodedev_part(name))
}

/// The node device XML of a mediated device, for `virsh nodedev-create` and `nodedev-define`, with a newline at its end. The name is
/// the one libvirt gives it since 7.7; it needs one to be valid, though libvirt replaces it.
pub fn nodedev_xml(mdev: MdevUuid, parent: &ParentName, mdev_type: &MdevTypeId, attrs: &[(String, String)]) -> String {
    let mut out = format!(
        "<device>\n  <name>mdev_{}_{}</name>\n  <parent>{}</parent>\n  <capability type='mdev'>\n    <type id='{}'/>\n    <uuid>{mdev}</uuid>\n",
        nodedev_part(&mdev.to_string()),
        nodedev_part(parent.as_str()),
        nodedev_parent(parent),
        escape(mdev_type.as_str()),
    );
    for (name, value) in attrs {
        let _ = writeln!(out, "    <attr name='{}' value='{}'/>", escape(name), escape(value));
    }
    out.push_str("  </capability>\n</device>\n");
    out
}
