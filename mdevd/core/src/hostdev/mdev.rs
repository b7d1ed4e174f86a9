//! The `<hostdev>` that gives a mediated device to a guest.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;
use core::num::NonZeroU32;
use core::str::FromStr;

use super::HostdevError;
use super::version::{self, LibvirtVersion, Need, need, newest};
use super::xml::{CcwAddress, GuestAddress, Options, check_ramfb, display_attributes, escape, pci_attributes};
use crate::names::{MdevUuid, printable};

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
    /// Its options.
    pub const OPTIONS: [&str; 6] = ["model", "display", "ramfb", "alias", "guest-address", "boot-order"];

    /// The element for the device `uuid`, whose type has the device API `device_api`, with `options`: [`Self::OPTIONS`].
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
        let options = Options::read("hostdev option", &Self::OPTIONS, options)?;
        let display = options.on_off("display")?;
        let ramfb = options.on_off("ramfb")?;
        let alias = options.user_alias("alias")?;
        let guest_address = options.guest_address()?;
        let boot_order = options.boot_order()?;
        let model = match (device_api, options.get("model")) {
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
        check_ramfb(self.display, self.ramfb)?;
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

    /// The option that needs the newest libvirt, and which that is; `None` when any will do.
    pub fn needs(&self) -> Option<Need> {
        newest([need(self.display.is_some(), "display", 4, 6), need(self.ramfb.is_some(), "ramfb", 5, 10)])
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
        let mut out = format!("<hostdev mode='subsystem' type='mdev' managed='no' model='{}'", self.model.as_str());
        out.push_str(&display_attributes(self.display, self.ramfb));
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
            Some(GuestAddress::Pci(address)) => {
                let _ = writeln!(out, "  <address type='pci' {}/>", pci_attributes(address));
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
