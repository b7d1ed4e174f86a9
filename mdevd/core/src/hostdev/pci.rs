//! The `<hostdev>` that gives a PCI function to a guest: a whole one, a virtual function, or one of a vendor's vGPU type; and those that
//! give it all functions of a card.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::HostdevError;
use super::passthrough::Passthrough;
use super::version::{self, LibvirtVersion, Need, need, newest};
use super::xml::{Options, check_ramfb, display_attributes, each_once, pci_attributes};
use crate::names::PciAddress;

/// A `<hostdev>` that gives a PCI function to a guest. It exists only in combinations that libvirt accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciHostdevXml {
    function: Passthrough,
    display: Option<bool>,
    ramfb: Option<bool>,
}

impl PciHostdevXml {
    /// Its options.
    pub const OPTIONS: [&str; 12] = [
        "managed",
        "driver",
        "display",
        "ramfb",
        "teaming",
        "boot-order",
        "alias",
        "rom-enabled",
        "rom-bar",
        "rom-file",
        "guest-address",
        "multifunction",
    ];

    /// The element for the function at `address`, with `options`: [`Self::OPTIONS`].
    ///
    /// `managed` is `yes` by default: libvirt binds the function to vfio and back. A function with a vendor's vGPU type must have `no`,
    /// for it stays on its driver. `teaming` is the alias of the virtio interface that takes over during a migration. `display='on'`
    /// needs a `<graphics>` in the domain.
    ///
    /// # Errors
    /// An option that is unknown (the nearest known one is named), given twice, has a value it cannot have, or does not go with
    /// another one.
    pub fn from_options<'a>(
        address: PciAddress,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, HostdevError> {
        Self::read(address, &Options::read("hostdev option", &Self::OPTIONS, options)?)
    }

    /// The elements for these functions of one card, in the order of their numbers, with `options` as above.
    ///
    /// With a `guest-address`, which then ends in `.0`, the guest sees them as one card as well: at one slot, with the numbers that they
    /// have on the host, so function 0 must be among them. Without one, libvirt gives each a slot of its own.
    ///
    /// `boot-order`, `rom-file`, `teaming`, `display` and `ramfb` are for the first function; all others hold for each. An `alias` is
    /// followed by `-` and the number of the function.
    ///
    /// # Errors
    /// As above; and no functions, the same one twice, or functions of several cards.
    pub fn card<'a>(
        functions: &[PciAddress],
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Vec<Self>, HostdevError> {
        let mut functions = functions.to_vec();
        functions.sort_unstable();
        let Some(first) = functions.first().copied() else {
            return Err(HostdevError::new("a card without functions has no XML"));
        };
        if let Some(stranger) = functions.iter().find(|function| function.card() != first.card()) {
            return Err(HostdevError::new(format!("{first} and {stranger} are not functions of one card")));
        }
        each_once(&functions)?;
        let options = Options::read("hostdev option", &Self::OPTIONS, options)?;
        if options.get("multifunction").is_some() {
            return Err(HostdevError::new(
                "'multifunction' is for one function; for a card it follows from its functions",
            ));
        }
        let whole = Self::read(first, &options)?;
        if let Some(guest) = whole.function.guest_address() {
            if guest.function != 0 {
                return Err(HostdevError::new(format!("guest-address='{guest}': that of a card ends in .0")));
            }
            if first.function != 0 {
                return Err(HostdevError::new(format!(
                    "guest-address='{guest}': a guest finds a card only by its function 0, but the first one here is {first}"
                )));
            }
        }
        let element = |function: &PciAddress| {
            let is_first = *function == first;
            let mut element = Self { function: whole.function.for_function(*function, is_first), ..whole.clone() };
            if is_first && functions.len() > 1 && whole.function.guest_address().is_some() {
                element.function.set_multifunction();
            }
            if !is_first {
                (element.display, element.ramfb) = (None, None);
            }
            element
        };
        Ok(functions.iter().map(element).collect())
    }

    fn read(address: PciAddress, options: &Options<'_>) -> Result<Self, HostdevError> {
        let function = Passthrough::read(address, options)?;
        let display = options.on_off("display")?;
        let ramfb = options.on_off("ramfb")?;
        check_ramfb(display, ramfb)?;
        Ok(Self { function, display, ramfb })
    }

    /// The function.
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
        newest([
            self.function.needs(),
            need(self.display.is_some(), "display", 10, 3),
            need(self.ramfb.is_some(), "ramfb", 10, 3),
        ])
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
        let mut out = format!(
            "<hostdev mode='subsystem' type='pci' managed='{}'{}>\n{}",
            self.function.binding.managed(),
            display_attributes(self.display, self.ramfb),
            self.function.binding.element(),
        );
        let source = pci_attributes(self.function.address);
        // writing to a String cannot fail
        let _ = write!(out, "  <source>\n    <address {source}/>\n  </source>\n{}</hostdev>\n", self.function.tail());
        out
    }
}
