//! What `<hostdev>` and `<interface>` say alike of a PCI function: who binds it, how the guest sees and boots it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;
use core::num::NonZeroU32;

use super::HostdevError;
use super::version::{Need, need, newest};
use super::xml::{GuestAddress, Options, escape, expressible, pci_attributes};
use crate::names::{DriverName, PciAddress};
use crate::plan::is_vfio;

/// Who binds a function, and to which driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) managed: bool,
    driver: Option<DriverName>,
}

impl Binding {
    /// Reads `managed` and `driver`.
    pub(super) fn read(options: &Options<'_>) -> Result<Self, HostdevError> {
        let managed = options.yes_no("managed")?.unwrap_or(true);
        let Some(text) = options.get("driver") else { return Ok(Self { managed, driver: None }) };
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-'));
        let driver = text.parse().ok().filter(|driver| plain && is_vfio(driver)).ok_or_else(|| {
            HostdevError::value("driver", text, "a VFIO driver, vfio-pci or a variant (like mlx5_vfio_pci)")
        })?;
        Ok(Self { managed, driver: Some(driver) })
    }

    /// The value of `managed`.
    pub(super) fn managed(&self) -> &'static str {
        if self.managed { "yes" } else { "no" }
    }

    /// The driver that libvirt has to be told of. Of a function that somebody else binds to vfio-pci it need not know.
    pub(super) fn model(&self) -> Option<&DriverName> {
        self.driver.as_ref().filter(|driver| self.managed || driver.as_str() != "vfio-pci")
    }

    /// `<driver name='vfio' model='mlx5_vfio_pci'/>`, where there is something to say.
    pub(super) fn element(&self) -> String {
        self.model().map_or_else(String::new, |model| format!("  <driver name='vfio' model='{model}'/>\n"))
    }

    pub(super) fn needs(&self) -> Option<Need> {
        need(self.model().is_some(), "driver", 10, 0)
    }
}

/// The function's expansion ROM.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rom {
    enabled: Option<bool>,
    bar: Option<bool>,
    file: Option<String>,
}

impl Rom {
    fn read(options: &Options<'_>) -> Result<Self, HostdevError> {
        let enabled = options.yes_no("rom-enabled")?;
        let bar = options.on_off("rom-bar")?;
        let file = options.get("rom-file");
        if let Some(file) = file
            && (!file.starts_with('/') || file.ends_with('/') || !expressible(file))
        {
            return Err(HostdevError::value(
                "rom-file",
                file,
                "the absolute path of a file, without control characters",
            ));
        }
        for (key, given) in [("rom-bar", bar.is_some()), ("rom-file", file.is_some())] {
            if enabled == Some(false) && given {
                return Err(HostdevError::new(format!("'{key}' does not go with rom-enabled='no'")));
            }
        }
        Ok(Self { enabled, bar, file: file.map(ToOwned::to_owned) })
    }

    fn element(&self) -> String {
        let mut out = String::new();
        if let Some(enabled) = self.enabled {
            out.extend([" enabled='", if enabled { "yes" } else { "no" }, "'"]);
        }
        if let Some(bar) = self.bar {
            out.extend([" bar='", if bar { "on" } else { "off" }, "'"]);
        }
        if let Some(file) = &self.file {
            out.extend([" file='", &escape(file), "'"]);
        }
        if out.is_empty() { out } else { format!("  <rom{out}/>\n") }
    }
}

/// What both elements say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passthrough {
    pub(super) address: PciAddress,
    pub(super) binding: Binding,
    teaming: Option<String>,
    boot_order: Option<NonZeroU32>,
    pub(super) alias: Option<String>,
    rom: Rom,
    guest_address: Option<PciAddress>,
    multifunction: Option<bool>,
}

impl Passthrough {
    /// Reads `managed`, `driver`, `teaming`, `boot-order`, `alias`, `rom-enabled`, `rom-bar`, `rom-file`, `guest-address` and
    /// `multifunction`.
    pub(super) fn read(address: PciAddress, options: &Options<'_>) -> Result<Self, HostdevError> {
        let guest_address = match options.guest_address()? {
            None => None,
            Some(GuestAddress::Pci(address)) => Some(address),
            Some(address @ GuestAddress::Ccw(_)) => {
                return Err(HostdevError::new(format!(
                    "guest-address='{address}': a PCI function has a PCI address (like 0000:04:00.0)"
                )));
            }
        };
        let multifunction = options.on_off("multifunction")?;
        if multifunction.is_some() && guest_address.is_none() {
            return Err(HostdevError::new("'multifunction' needs a guest-address"));
        }
        Ok(Self {
            address,
            binding: Binding::read(options)?,
            teaming: options.user_alias("teaming")?,
            boot_order: options.boot_order()?,
            alias: options.user_alias("alias")?,
            rom: Rom::read(options)?,
            guest_address,
            multifunction,
        })
    }

    /// The same for `function` of the same card. What there can be only once in a guest stays with the first function.
    pub(super) fn for_function(&self, function: PciAddress, first: bool) -> Self {
        let mut other = self.clone();
        other.address = function;
        other.alias = self.alias.as_ref().map(|alias| format!("{alias}-{:x}", function.function));
        other.guest_address = self.guest_address.map(|guest| PciAddress { function: function.function, ..guest });
        if !first {
            other.multifunction = None;
            other.boot_order = None;
            other.teaming = None;
            other.rom.file = None;
        }
        other
    }

    /// Where the guest sees it.
    pub(super) fn guest_address(&self) -> Option<PciAddress> {
        self.guest_address
    }

    /// Says that there are more functions at its guest slot.
    pub(super) fn set_multifunction(&mut self) {
        self.multifunction = Some(true);
    }

    pub(super) fn needs(&self) -> Option<Need> {
        newest([
            self.binding.needs(),
            need(self.teaming.is_some(), "teaming", 7, 1),
            need(self.rom.enabled.is_some(), "rom-enabled", 4, 3),
        ])
    }

    /// The elements that follow those that only one of the two has.
    pub(super) fn tail(&self) -> String {
        let mut out = String::new();
        // writing to a String cannot fail
        if let Some(alias) = &self.teaming {
            let _ = writeln!(out, "  <teaming type='transient' persistent='{}'/>", escape(alias));
        }
        if let Some(order) = self.boot_order {
            let _ = writeln!(out, "  <boot order='{order}'/>");
        }
        if let Some(alias) = &self.alias {
            let _ = writeln!(out, "  <alias name='{}'/>", escape(alias));
        }
        out.push_str(&self.rom.element());
        if let Some(address) = self.guest_address {
            let multifunction = match self.multifunction {
                None => "",
                Some(true) => " multifunction='on'",
                Some(false) => " multifunction='off'",
            };
            let _ = writeln!(out, "  <address type='pci' {}{multifunction}/>", pci_attributes(address));
        }
        out
    }
}
