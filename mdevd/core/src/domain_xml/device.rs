//! One `<hostdev>` or `<interface>` of a domain, while it is being read.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::hostdev::{Hostdev, HostdevSource, MAX_VLAN};
use crate::names::{MacAddress, NameError, PciAddress, printable};

/// An element's attributes, unescaped.
pub(super) type Attributes<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// What has been read of a host device of a kind that is kept.
pub(super) struct Draft {
    /// Where its element begins.
    at: usize,
    mdev: bool,
    interface: bool,
    model: String,
    managed: bool,
    alias: Option<String>,
    mac: Option<Result<MacAddress, String>>,
    /// The tags of its `<vlan>`.
    tags: Vec<Result<u16, String>>,
    trunk: bool,
    source: Option<Result<HostdevSource, String>>,
}

impl Draft {
    /// The device of an element that begins at byte `at`; `None` when it is of a kind that does not matter to us.
    pub(super) fn begin(interface: bool, attributes: &Attributes<'_>, at: usize) -> Option<Self> {
        let subsystem = matches!(get(attributes, "mode"), None | Some("subsystem"));
        let mdev = match (interface, get(attributes, "type")) {
            (true, Some("hostdev")) => false,
            (false, Some("pci")) if subsystem => false,
            (false, Some("mdev")) if subsystem => true,
            _ => return None,
        };
        let model = get(attributes, "model").filter(|_| mdev).unwrap_or("").to_owned();
        let managed = get(attributes, "managed") == Some("yes");
        Some(Self {
            at,
            mdev,
            interface,
            model,
            managed,
            alias: None,
            mac: None,
            tags: Vec::new(),
            trunk: false,
            source: None,
        })
    }

    /// Takes in its `<alias>`.
    pub(super) fn alias(&mut self, attributes: &Attributes<'_>) {
        self.alias = get(attributes, "name").map(ToOwned::to_owned);
    }

    /// Takes in an interface's `<mac>`.
    pub(super) fn mac(&mut self, attributes: &Attributes<'_>) {
        if let Some(text) = get(attributes, "address").filter(|_| self.interface) {
            self.mac = Some(text.trim().parse().map_err(|e: NameError| format!("its <mac>: {e}")));
        }
    }

    /// Takes in an interface's `<vlan>`.
    pub(super) fn vlan(&mut self, attributes: &Attributes<'_>) {
        self.trunk = get(attributes, "trunk") == Some("yes");
    }

    /// Takes in a `<tag>` of that.
    pub(super) fn tag(&mut self, attributes: &Attributes<'_>) {
        let text = get(attributes, "id").unwrap_or("");
        let id = c_number(text.trim()).and_then(|id| u16::try_from(id).ok()).filter(|id| *id <= MAX_VLAN);
        let why = || format!("id='{}' of the <tag> in its <vlan> is no number from 0 to {MAX_VLAN}", printable(text));
        if self.interface {
            self.tags.push(id.ok_or_else(why));
        }
    }

    /// Takes in the `<address>` of its `<source>`; `None` when that shows that it does not matter to us after all.
    pub(super) fn source(mut self, attributes: &Attributes<'_>) -> Option<Self> {
        if self.source.is_some() {
            return Some(self);
        }
        self.source = Some(if self.mdev {
            mdev_source(attributes)
        } else if matches!(get(attributes, "type"), None | Some("pci")) {
            pci_source(attributes)
        } else {
            // an interface may also give a USB device
            return None;
        });
        Some(self)
    }

    /// The device, or where it begins and what is wrong with it.
    pub(super) fn finish(self) -> Result<Hostdev, (usize, String)> {
        let (at, element) = (self.at, if self.interface { "interface" } else { "hostdev" });
        self.device().map_err(|why| (at, format!("<{element}>: {why}")))
    }

    fn device(self) -> Result<Hostdev, String> {
        let Self { at: _, mdev: _, interface, model, managed, alias, mac, tags, trunk, source } = self;
        let source = source.unwrap_or_else(|| Err("it has no <address> in its <source>".to_owned()))?;
        let mac = mac.transpose()?;
        let tags = tags.into_iter().collect::<Result<Vec<u16>, String>>()?;
        let vlan = match tags.as_slice() {
            [tag] if !trunk && *tag != 0 => Some(*tag),
            _ => None,
        };
        Ok(Hostdev { source, model, managed, alias, interface, mac, vlan })
    }
}

/// The value of an attribute.
pub(super) fn get<'a>(attributes: &'a Attributes<'_>, name: &str) -> Option<&'a str> {
    attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_ref())
}

fn mdev_source(attributes: &Attributes<'_>) -> Result<HostdevSource, String> {
    let uuid = get(attributes, "uuid").ok_or("the <address> in its <source> has no uuid")?;
    uuid.trim().parse().map(HostdevSource::Mdev).map_err(|e: NameError| e.to_string())
}

fn pci_source(attributes: &Attributes<'_>) -> Result<HostdevSource, String> {
    // what libvirt leaves out is 0 there as well
    let number = |key: &str, max: u32| match get(attributes, key) {
        None => Ok(0),
        Some(text) => c_number(text).filter(|n| *n <= max).ok_or_else(|| {
            format!("{key}='{}' in the <address> in its <source> is no number from 0 to 0x{max:x}", printable(text))
        }),
    };
    let byte = |key: &str, max: u8| number(key, max.into()).map(|n| n as u8);
    Ok(HostdevSource::Pci(PciAddress {
        domain: number("domain", u32::MAX)?,
        bus: byte("bus", 0xff)?,
        device: byte("slot", 0x1f)?,
        function: byte("function", 7)?,
    }))
}

/// A number as libvirt reads one: hexadecimal after `0x`, octal after `0`, else decimal.
fn c_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // from_str_radix would accept a sign
    let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}
