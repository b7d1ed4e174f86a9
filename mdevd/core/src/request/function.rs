//! What a request says of a PCI function: which one would do, and what becomes of it.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use super::{AsPair, Request, XmlOptions, number};
use crate::function::{LinkState, PciIds, VfSettings, VgpuTypes};
use crate::hostdev::{Hostdev, PciHostdevXml};
use crate::names::{DriverName, MacAddress, PciAddress, PciCard, PciSelector, VgpuTypeId, printable};

/// A key and what is wrong with its value.
type Bad = (&'static str, String);

/// Which kinds of function would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionKind {
    /// One that is no virtual function.
    Pci,
    /// A virtual function.
    Vf,
}

impl FunctionKind {
    /// `pci` or `vf`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Vf => "vf",
        }
    }
}

/// Which function would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedFunction {
    /// This one.
    Address(PciAddress),
    /// All functions of this card together.
    Card(PciCard),
    /// Any that fits.
    Any {
        /// Its kind.
        kind: Option<FunctionKind>,
        /// Its vendor and device numbers.
        ids: Option<(u16, u16)>,
        /// The physical function that made it.
        pf: Option<PciAddress>,
    },
}

impl WantedFunction {
    pub(super) fn parse<'a>(get: &dyn Fn(&str) -> Option<&'a str>) -> Result<Self, Bad> {
        let name = |key: &'static str, e: crate::names::NameError| (key, e.to_string());
        let kind = match get("kind") {
            Some("vf") => Some(FunctionKind::Vf),
            Some("pci") => Some(FunctionKind::Pci),
            _ => None,
        };
        let ids = get("device").map(ids).transpose().map_err(|why| ("device", why))?;
        let pf = get("pf").map(str::parse).transpose().map_err(|e| name("pf", e))?;
        let Some(address) = get("address") else { return Ok(Self::Any { kind, ids, pf }) };
        for key in ["device", "pf"] {
            if get(key).is_some() {
                return Err((key, "the address says already which function it is".into()));
            }
        }
        match address.parse() {
            Ok(PciSelector::Function(address)) => Ok(Self::Address(address)),
            Ok(PciSelector::Card(card)) => Ok(Self::Card(card)),
            Err(error) => Err(name("address", error)),
        }
    }

    /// The same as keys and values for the command line.
    pub fn to_cli(&self) -> String {
        match self {
            Self::Address(address) => format!("address={address}"),
            Self::Card(card) => format!("address={card}"),
            Self::Any { kind, ids, pf } => {
                let parts = [
                    kind.map(|kind| format!("kind={}", kind.as_str())),
                    ids.map(|(vendor, device)| format!("device={vendor:04x}:{device:04x}")),
                    pf.map(|pf| format!("pf={pf}")),
                ];
                parts.into_iter().flatten().collect::<alloc::vec::Vec<_>>().join(",")
            }
        }
    }

    /// Whether a function with these numbers is of the kind that is wanted.
    pub fn ids_fit(&self, found: PciIds) -> bool {
        match self {
            Self::Any { ids: Some(ids), .. } => *ids == (found.vendor, found.device),
            _ => true,
        }
    }
}

impl fmt::Display for WantedFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "the PCI function {address}"),
            Self::Card(card) => write!(f, "all functions of the PCI card {card}"),
            Self::Any { kind, ids, pf } => {
                f.write_str(match kind {
                    Some(FunctionKind::Vf) => "any virtual function",
                    _ if pf.is_some() => "any virtual function",
                    _ => "any PCI function",
                })?;
                if let Some((vendor, device)) = ids {
                    write!(f, " {vendor:04x}:{device:04x}")?;
                }
                pf.map_or(Ok(()), |pf| write!(f, " of {pf}"))
            }
        }
    }
}

/// One of the vendor's vGPU types, as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedVgpu {
    /// By its number.
    Id(VgpuTypeId),
    /// By its name, `NVIDIA L40S-8Q`, with or without the vendor's name before it.
    Name(String),
}

impl WantedVgpu {
    /// The type's number, as far as this list of types knows it.
    pub fn find(&self, types: &VgpuTypes) -> Option<VgpuTypeId> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Name(name) => {
                let same = |known: &str| known == name || known.split_once(' ').is_some_and(|(_, rest)| rest == name);
                types.creatable.iter().find(|known| same(&known.name)).map(|known| known.id)
            }
        }
    }
}

impl fmt::Display for WantedVgpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => write!(f, "'{}'", printable(name)),
        }
    }
}

/// What becomes of a function while it is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FunctionOptions {
    /// What is set through the physical function.
    pub set: VfSettings,
    /// The vendor's vGPU type that it gets.
    pub vgpu_type: Option<WantedVgpu>,
    /// The driver that it is bound to, `vfio-pci` or one of its variants.
    pub driver: Option<DriverName>,
    /// Whether libvirt binds it.
    pub managed: Option<bool>,
}

impl FunctionOptions {
    pub(super) fn parse<'a>(get: &dyn Fn(&str) -> Option<&'a str>) -> Result<Self, Bad> {
        let on_off = |key: &'static str| match get(key) {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(text) => Err((key, format!("'{}' is neither on nor off", printable(text)))),
        };
        let up_to = |key: &'static str, most: u32| match get(key).map(number).transpose() {
            Ok(Some(value)) if value > most => Err((key, format!("{value} is above {most}"))),
            Ok(value) => Ok(value),
            Err(why) => Err((key, why)),
        };
        let mac: Option<MacAddress> =
            get("mac").map(str::parse).transpose().map_err(|e: crate::names::NameError| ("mac", e.to_string()))?;
        if let Some(mac) = mac.filter(|mac| mac.is_multicast() || *mac == MacAddress::ZERO) {
            return Err(("mac", format!("{mac} is not an address that one interface can have")));
        }
        let set = VfSettings {
            mac,
            vlan: up_to("vlan", 4094)?.and_then(|vlan| u16::try_from(vlan).ok()),
            qos: up_to("qos", 7)?.and_then(|qos| u8::try_from(qos).ok()),
            trust: on_off("trust")?,
            spoof_check: on_off("spoof-check")?,
            min_rate: up_to("min-rate", u32::MAX)?,
            max_rate: up_to("max-rate", u32::MAX)?,
            link_state: get("link-state")
                .map(str::parse::<LinkState>)
                .transpose()
                .map_err(|why| ("link-state", why))?,
        };
        let vgpu_type = match get("vgpu-type") {
            None => None,
            Some("") => return Err(("vgpu-type", "it is empty".into())),
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                Some(WantedVgpu::Id(text.parse().map_err(|e: crate::names::NameError| ("vgpu-type", e.to_string()))?))
            }
            Some(text) => Some(WantedVgpu::Name(text.into())),
        };
        let driver: Option<DriverName> = get("driver")
            .map(str::parse)
            .transpose()
            .map_err(|e: crate::names::NameError| ("driver", e.to_string()))?;
        if let Some(driver) = driver.as_ref().filter(|driver| !crate::plan::is_vfio(driver)) {
            return Err((
                "driver",
                format!("{driver} is not a VFIO driver, which a VM needs: vfio-pci or a variant of it"),
            ));
        }
        let managed = match get("managed") {
            None => None,
            Some("yes") => Some(true),
            Some("no") => Some(false),
            Some(text) => return Err(("managed", format!("'{}' is neither yes nor no", printable(text)))),
        };
        Ok(Self { set, vgpu_type, driver, managed })
    }

    /// Whether a domain's element for the function says nothing else than the request.
    pub(super) fn fits(&self, hostdev: &Hostdev) -> Result<(), String> {
        let word = |yes: bool| if yes { "yes" } else { "no" };
        if let Some(managed) = self.managed.filter(|managed| *managed != hostdev.managed) {
            return Err(format!("managed is '{}' there, '{}' in the request", word(hostdev.managed), word(managed)));
        }
        if self.vgpu_type.is_some() && hostdev.managed {
            return Err(
                "with a vgpu-type it must have managed='no': libvirt would bind another driver and reset it".into()
            );
        }
        if !hostdev.interface {
            return Ok(());
        }
        if let Some(wanted) = self.set.mac.filter(|wanted| hostdev.mac != Some(*wanted)) {
            let has = hostdev.mac.map_or_else(|| "none".into(), |mac| mac.to_string());
            return Err(format!("its MAC is {has}, the request's {wanted}"));
        }
        if let Some(vlan) = self.set.vlan
            && hostdev.vlan.unwrap_or(0) != vlan
        {
            let has = hostdev.vlan.map_or_else(|| "none".into(), |vlan| vlan.to_string());
            return Err(format!("its VLAN is {has}, the request's {vlan}"));
        }
        if let Some(qos) = self.set.qos.filter(|qos| *qos > 0) {
            return Err(format!(
                "libvirt gives an interface's VLAN no priority, the request has qos {qos}; take a <hostdev> for that"
            ));
        }
        Ok(())
    }
}

impl Request {
    /// The `<hostdev>` element for one function of this request; empty where its options do not fit.
    pub(super) fn function_xml(&self, address: PciAddress) -> String {
        let options = self.xml.0.iter().map(AsPair::as_pair).filter(|(key, _)| *key != "managed");
        // libvirt would bind a function with a vGPU type to another driver.
        let default = self.function.vgpu_type.is_none();
        let managed = if self.function.managed.unwrap_or(default) { "yes" } else { "no" };
        PciHostdevXml::from_options(address, options.chain([("managed", managed)]))
            .map(|xml| xml.to_xml())
            .unwrap_or_default()
    }
}

/// What does not go together, as far as the request alone tells.
pub(super) fn check(wanted: &WantedFunction, options: &FunctionOptions, xml: &XmlOptions) -> Result<(), String> {
    match wanted {
        WantedFunction::Any { kind: None, ids: None, pf: None } if options.vgpu_type.is_none() => {
            return Err("it says neither address nor kind nor device nor pf: what should the device be?".into());
        }
        WantedFunction::Any { kind: Some(FunctionKind::Pci), pf: Some(_), .. } => {
            return Err("pf goes with virtual functions, but the kind is pci".into());
        }
        WantedFunction::Card(_) if !options.set.is_empty() || options.vgpu_type.is_some() => {
            return Err("what is set of a virtual function does not go with a whole card".into());
        }
        _ => {}
    }
    if options.vgpu_type.is_some() && (options.managed == Some(true) || options.driver.is_some()) {
        return Err(
            "a function with a vgpu-type stays on its driver: neither managed=yes nor a driver goes with it".into()
        );
    }
    if options.set.qos.is_some_and(|qos| qos > 0) && options.set.vlan.is_none_or(|vlan| vlan == 0) {
        return Err("qos is a priority in a VLAN and needs one".into());
    }
    if let (Some(min), Some(max)) = (options.set.min_rate, options.set.max_rate)
        && min > max
        && max != 0
    {
        return Err(format!("min-rate {min} is above max-rate {max}"));
    }
    let address = match wanted {
        WantedFunction::Address(address) => *address,
        // Any address will do to find out whether the options are sound.
        WantedFunction::Card(_) | WantedFunction::Any { .. } => PciCard { domain: 0, bus: 0, device: 0 }.function(0),
    };
    PciHostdevXml::from_options(address, xml.0.iter().map(AsPair::as_pair)).map(|_| ()).map_err(|e| e.to_string())
}

/// `8086:10ca`.
fn ids(text: &str) -> Result<(u16, u16), String> {
    let hex = |part: &str| {
        let fits = part.len() == 4 && part.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| u16::from_str_radix(part, 16).ok()).flatten()
    };
    text.split_once(':')
        .and_then(|(vendor, device)| Some((hex(vendor)?, hex(device)?)))
        .ok_or_else(|| format!("'{}' is not a vendor and a device (like 8086:10ca)", printable(text)))
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
