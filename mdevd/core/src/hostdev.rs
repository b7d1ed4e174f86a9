//! One host device as a domain's XML speaks of it, both ways: [`Hostdev`] is what was read (by [`crate::domain_xml`]) or came as text
//! pairs over D-Bus; [`MdevHostdevXml`], [`PciHostdevXml`], [`InterfaceHostdevXml`], [`HostdevNetworkXml`] and [`nodedev_xml`] are what we
//! print for people to paste. They exist only in combinations that libvirt takes, and know which libvirt it takes.

mod interface;
mod mdev;
mod network;
mod nodedev;
mod passthrough;
mod pci;
mod version;
mod xml;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use thiserror::Error;

use crate::names::{MacAddress, MdevUuid, PciAddress, printable};
use crate::suggest::nearest;

pub use interface::InterfaceHostdevXml;
pub use mdev::{MdevHostdevXml, MdevModel};
pub use network::{HostdevNetworkXml, NetworkSource};
pub use nodedev::{nodedev_function, nodedev_parent, nodedev_xml};
pub use pci::PciHostdevXml;
pub use version::LibvirtVersion;
pub(crate) use xml::escape;
pub use xml::{CcwAddress, GuestAddress};

/// Why text pairs do not describe a hostdev or what is printed for one. Prints as one sentence that names the key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct HostdevError {
    what: String,
}

impl HostdevError {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }

    /// The key is not one of `known`.
    fn unknown(kind: &str, key: &str, known: &[&str]) -> Self {
        let advice = match nearest(key, known.iter().copied()) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("known are {}", known.join(", ")),
        };
        Self::new(format!("unknown {kind} '{}': {advice}", printable(key)))
    }

    /// The key is there already.
    fn twice(key: &str) -> Self {
        Self::new(format!("'{}' is given twice", printable(key)))
    }

    /// The key has a value that is none of its values.
    fn value(key: &str, text: &str, expected: &str) -> Self {
        Self::new(format!("{key}='{}': it must be {expected}", printable(text)))
    }
}

/// Puts `text` into the slot of `key`, once.
fn set<'a>(slot: &mut Option<&'a str>, key: &str, text: &'a str) -> Result<(), HostdevError> {
    match slot.replace(text) {
        None => Ok(()),
        Some(_) => Err(HostdevError::twice(key)),
    }
}

/// The device on the host that a hostdev gives to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostdevSource {
    /// A mediated device.
    Mdev(MdevUuid),
    /// A PCI function.
    Pci(PciAddress),
}

/// One `<hostdev>` of type mdev or pci, or one `<interface type='hostdev'>`, of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostdev {
    /// The device.
    pub source: HostdevSource,
    /// The model of a mediated device as libvirt writes it (`vfio-pci`, …); empty for a PCI function.
    pub model: String,
    /// Whether libvirt binds the device to vfio by itself.
    pub managed: bool,
    /// The name libvirt (`hostdev0`) or a person (`ua-…`) gave the device in its domain.
    pub alias: Option<String>,
    /// Whether it is an `<interface type='hostdev'>`.
    pub interface: bool,
    /// The MAC address that an interface's element gives it.
    pub mac: Option<MacAddress>,
    /// The VLAN that an interface's element puts it into. A trunk of several is `None`: libvirt starts no VM with one on a virtual
    /// function.
    pub vlan: Option<u16>,
}

/// The keys of a hostdev in text pairs.
pub const KEYS: [&str; 9] = ["kind", "uuid", "address", "model", "managed", "alias", "interface", "mac", "vlan"];

/// The largest VLAN tag that libvirt takes.
pub(crate) const MAX_VLAN: u16 = 4095;

impl Hostdev {
    /// The text pairs that [`Hostdev::from_pairs`] reads; what is absent or `no` by default has no pair, except `managed`.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::with_capacity(KEYS.len());
        let mut put = |key: &str, value: String| pairs.push((key.to_owned(), value));
        match self.source {
            HostdevSource::Mdev(uuid) => {
                put("kind", "mdev".to_owned());
                put("uuid", uuid.to_string());
            }
            HostdevSource::Pci(address) => {
                put("kind", "pci".to_owned());
                put("address", address.to_string());
            }
        }
        if !self.model.is_empty() {
            put("model", self.model.clone());
        }
        put("managed", if self.managed { "yes" } else { "no" }.to_owned());
        if let Some(alias) = &self.alias {
            put("alias", alias.clone());
        }
        if self.interface {
            put("interface", "yes".to_owned());
        }
        if let Some(mac) = self.mac {
            put("mac", mac.to_string());
        }
        if let Some(vlan) = self.vlan {
            put("vlan", vlan.to_string());
        }
        pairs
    }

    /// Reads a hostdev from text pairs: `kind` (mdev, pci) with `uuid` or `address`, and `model`, `managed`, `alias`, `interface`,
    /// and with this one `mac` and `vlan` (0 is none).
    ///
    /// # Errors
    /// A key that is unknown (the nearest known one is named), given twice, missing, or does not go with the others, and a value that
    /// its key cannot have.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, HostdevError> {
        let [mut kind, mut uuid, mut address, mut model, mut managed, mut alias, mut interface, mut mac, mut vlan] =
            [None; 9];
        for (key, value) in pairs {
            let slot = match key {
                "kind" => &mut kind,
                "uuid" => &mut uuid,
                "address" => &mut address,
                "model" => &mut model,
                "managed" => &mut managed,
                "alias" => &mut alias,
                "interface" => &mut interface,
                "mac" => &mut mac,
                "vlan" => &mut vlan,
                _ => return Err(HostdevError::unknown("hostdev key", key, &KEYS)),
            };
            set(slot, key, value)?;
        }
        let bad_name = |key: &str, e: crate::names::NameError| HostdevError::new(format!("{key}: {e}"));
        let source = match (kind, uuid, address) {
            (None, ..) => return Err(HostdevError::new("a hostdev needs 'kind', mdev or pci")),
            (Some("mdev"), Some(uuid), None) => HostdevSource::Mdev(uuid.parse().map_err(|e| bad_name("uuid", e))?),
            (Some("pci"), None, Some(address)) => {
                HostdevSource::Pci(address.parse().map_err(|e| bad_name("address", e))?)
            }
            (Some("mdev"), ..) => {
                return Err(HostdevError::new("a hostdev of kind mdev needs 'uuid' and has no 'address'"));
            }
            (Some("pci"), ..) => {
                return Err(HostdevError::new("a hostdev of kind pci needs 'address' and has no 'uuid'"));
            }
            (Some(kind), ..) => return Err(HostdevError::value("kind", kind, "mdev or pci")),
        };
        let yes_no = |key: &str, text: Option<&str>| match text {
            Some("yes") => Ok(true),
            Some("no") | None => Ok(false),
            Some(text) => Err(HostdevError::value(key, text, "yes or no")),
        };
        let managed = yes_no("managed", managed)?;
        let interface = yes_no("interface", interface)?;
        match source {
            HostdevSource::Mdev(_) if interface => {
                return Err(HostdevError::new("'interface' goes with kind pci only"));
            }
            HostdevSource::Pci(_) if model.is_some_and(|m| !m.is_empty()) => {
                return Err(HostdevError::new("'model' goes with kind mdev only"));
            }
            _ => {}
        }
        let mac = mac.filter(|mac| !mac.is_empty());
        let vlan = vlan.filter(|vlan| !vlan.is_empty() && *vlan != "0");
        if let Some(key) = [("mac", mac), ("vlan", vlan)].iter().find_map(|(key, value)| value.map(|_| *key))
            && !interface
        {
            return Err(HostdevError::new(format!("'{key}' goes with interface='yes' only")));
        }
        let mac = mac.map(str::parse).transpose().map_err(|e| bad_name("mac", e))?;
        let vlan = vlan
            .map(|text| {
                let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                let id = digits.and_then(|text| text.parse().ok()).filter(|id| *id <= MAX_VLAN);
                id.ok_or_else(|| HostdevError::value("vlan", text, "a number up to 4095"))
            })
            .transpose()?
            .filter(|id| *id != 0);
        let alias = alias.filter(|alias| !alias.is_empty()).map(ToOwned::to_owned);
        Ok(Self { source, model: model.unwrap_or("").to_owned(), managed, alias, interface, mac, vlan })
    }
}
