//! The `<interface type='hostdev'>` that gives a network card's virtual function to a guest. Unlike with `<hostdev>`, libvirt sets its MAC
//! address and VLAN through the physical function when the VM starts.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;

use super::HostdevError;
use super::passthrough::Passthrough;
use super::version::{self, LibvirtVersion, Need};
use super::xml::{Options, escape, expressible, pci_attributes};
use crate::names::{MacAddress, PciAddress};

/// The most bytes of a port profile's name.
const MAX_PROFILE: usize = 39;

/// An `<interface type='hostdev'>` that gives a virtual function to a guest. It exists only in combinations that libvirt accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceHostdevXml {
    function: Passthrough,
    mac: Option<MacAddress>,
    vlan: Option<u16>,
    /// The profile of an 802.1Qbh port.
    profile: Option<String>,
}

impl InterfaceHostdevXml {
    /// Its options.
    pub const OPTIONS: [&str; 14] = [
        "managed",
        "driver",
        "mac",
        "vlan",
        "virtualport-type",
        "profile-id",
        "teaming",
        "boot-order",
        "alias",
        "rom-enabled",
        "rom-bar",
        "rom-file",
        "guest-address",
        "multifunction",
    ];

    /// The element for the virtual function at `address`, with `options`: [`Self::OPTIONS`].
    ///
    /// `managed` is `yes` by default. Without a `mac` libvirt makes one up when the VM is defined; with `teaming`, the alias of the virtio
    /// interface that takes over during a migration, it must be that interface's. A `virtualport-type` is 802.1Qbh with a `profile-id`,
    /// the only one that libvirt sets up on a virtual function, and the switch then decides on the VLAN.
    ///
    /// # Errors
    /// An option that is unknown (the nearest known one is named), given twice, has a value it cannot have, or does not go with
    /// another one.
    pub fn from_options<'a>(
        address: PciAddress,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, HostdevError> {
        let options = Options::read("interface option", &Self::OPTIONS, options)?;
        let function = Passthrough::read(address, &options)?;
        let mac = options
            .get("mac")
            .map(str::parse::<MacAddress>)
            .transpose()
            .map_err(|e| HostdevError::new(format!("mac: {e}")))?;
        if let Some(mac) = mac.filter(|mac| mac.is_multicast() || *mac == MacAddress::ZERO) {
            return Err(HostdevError::new(format!("mac='{mac}': it is not an address that one interface can have")));
        }
        let vlan = options
            .get("vlan")
            .map(|text| {
                let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
                let id = digits.and_then(|text| text.parse().ok()).filter(|id| (1..=4094).contains(id));
                id.ok_or_else(|| HostdevError::value("vlan", text, "a number from 1 to 4094"))
            })
            .transpose()?;
        let profile = profile(&options)?;
        if profile.is_some() && vlan.is_some() {
            return Err(HostdevError::new(
                "'vlan' does not go with a virtualport-type: the switch decides on the VLAN",
            ));
        }
        Ok(Self { function, mac, vlan, profile })
    }

    /// The virtual function.
    pub fn address(&self) -> PciAddress {
        self.function.address
    }

    /// Whether libvirt binds it.
    pub fn managed(&self) -> bool {
        self.function.binding.managed
    }

    /// The name it is given in the domain.
    pub fn alias(&self) -> Option<&str> {
        self.function.alias.as_deref()
    }

    /// The option that needs the newest libvirt, and which that is; `None` when any will do.
    pub fn needs(&self) -> Option<Need> {
        self.function.needs()
    }

    /// Whether the installed libvirt knows all that is said here.
    ///
    /// # Errors
    /// The option that it would silently drop.
    pub fn check_version(&self, installed: LibvirtVersion) -> Result<(), HostdevError> {
        version::check(self.needs(), installed)
    }

    /// The element as libvirt prints it, with a newline at its end.
    pub fn to_xml(&self) -> String {
        // libvirt prints managed='no' in a <hostdev> only
        let managed = if self.managed() { " managed='yes'" } else { "" };
        let mut out = format!("<interface type='hostdev'{managed}>\n");
        // writing to a String cannot fail
        if let Some(mac) = self.mac {
            let _ = writeln!(out, "  <mac address='{mac}'/>");
        }
        let source = pci_attributes(self.function.address);
        let driver = self.function.binding.element();
        let _ = write!(out, "{driver}  <source>\n    <address type='pci' {source}/>\n  </source>\n");
        if let Some(vlan) = self.vlan {
            let _ = write!(out, "  <vlan>\n    <tag id='{vlan}'/>\n  </vlan>\n");
        }
        if let Some(profile) = &self.profile {
            let profile = escape(profile);
            let _ = write!(
                out,
                "  <virtualport type='802.1Qbh'>\n    <parameters profileid='{profile}'/>\n  </virtualport>\n"
            );
        }
        out.push_str(&self.function.tail());
        out.push_str("</interface>\n");
        out
    }
}

/// Reads `virtualport-type` and `profile-id`, which go together.
fn profile(options: &Options<'_>) -> Result<Option<String>, HostdevError> {
    let profile = options.get("profile-id");
    match options.get("virtualport-type") {
        None if profile.is_some() => return Err(HostdevError::new("'profile-id' needs virtualport-type='802.1Qbh'")),
        None => return Ok(None),
        Some("802.1Qbh") => {}
        Some(text) => {
            return Err(HostdevError::value(
                "virtualport-type",
                text,
                "802.1Qbh, the only one that libvirt sets up on a virtual function",
            ));
        }
    }
    let profile = profile.ok_or_else(|| HostdevError::new("virtualport-type='802.1Qbh' needs a profile-id"))?;
    // libvirt writes it into its own files as it is, and could not read them again
    let plain = expressible(profile) && !profile.contains(['<', '>', '&', '\'', '"']);
    if profile.is_empty() || profile.len() > MAX_PROFILE || !plain {
        return Err(HostdevError::value(
            "profile-id",
            profile,
            "1 to 39 bytes of text, without control characters and < > & ' \"",
        ));
    }
    Ok(Some(profile.to_owned()))
}
