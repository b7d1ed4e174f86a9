//! The `<network>` whose interfaces are virtual functions of a network card: libvirt's own pool, from which it gives each VM a free one.
//! A physical function belongs either to such a network or to mdevd, never to both.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::HostdevError;
use super::passthrough::Binding;
use super::version::{self, LibvirtVersion, Need};
use super::xml::{Options, each_once, escape, expressible, pci_attributes};
use crate::names::PciAddress;

/// The longest name of a network interface that the kernel has.
const MAX_NETDEV: usize = 15;

/// Where a network takes its virtual functions from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkSource {
    /// All of the physical function with this network interface: `enp59s0f0`. libvirt looks at them once, when the network starts, and
    /// there must be some by then.
    Pf(String),
    /// These.
    Vfs(Vec<PciAddress>),
}

/// A `<network>` of virtual functions. It exists only in combinations that libvirt accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostdevNetworkXml {
    name: String,
    binding: Binding,
    source: NetworkSource,
}

impl HostdevNetworkXml {
    /// Its options.
    pub const OPTIONS: [&str; 2] = ["managed", "driver"];

    /// The network `name` over `source`, with `options`: [`Self::OPTIONS`]. `managed` is `yes` by default.
    ///
    /// # Errors
    /// A name that libvirt would not take; a source that is no network interface, empty, or has a function twice; an option that is
    /// unknown (the nearest known one is named), given twice, or has a value it cannot have.
    pub fn from_options<'a>(
        name: &str,
        source: NetworkSource,
        options: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, HostdevError> {
        let options = Options::read("network option", &Self::OPTIONS, options)?;
        let binding = Binding::read(&options)?;
        if name.trim().is_empty() || name.contains('/') || !expressible(name) {
            return Err(HostdevError::value("name", name, "a name without '/' and control characters"));
        }
        match &source {
            NetworkSource::Pf(netdev) => {
                let plain = netdev.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
                if !plain || matches!(netdev.as_str(), "" | "." | "..") || netdev.len() > MAX_NETDEV {
                    return Err(HostdevError::value("pf", netdev, "the name of a network interface (like enp59s0f0)"));
                }
            }
            NetworkSource::Vfs(vfs) if vfs.is_empty() => {
                return Err(HostdevError::new("a network over no virtual function has nothing to give"));
            }
            NetworkSource::Vfs(vfs) => {
                let mut vfs = vfs.clone();
                vfs.sort_unstable();
                each_once(&vfs)?;
            }
        }
        Ok(Self { name: name.to_string(), binding, source })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The option that needs the newest libvirt, and which that is; `None` when any will do.
    pub fn needs(&self) -> Option<Need> {
        self.binding.needs()
    }

    /// Whether the installed libvirt knows all that is said here.
    ///
    /// # Errors
    /// The option that it would silently drop.
    pub fn check_version(&self, installed: LibvirtVersion) -> Result<(), HostdevError> {
        version::check(self.needs(), installed)
    }

    /// The document as libvirt prints it, with a newline at its end.
    pub fn to_xml(&self) -> String {
        let mut out = format!(
            "<network>\n  <name>{}</name>\n  <forward mode='hostdev' managed='{}'>\n",
            escape(&self.name),
            self.binding.managed()
        );
        let model = self.binding.model().map_or_else(String::new, |model| format!(" model='{model}'"));
        // writing to a String cannot fail
        let _ = writeln!(out, "    <driver name='vfio'{model}/>");
        match &self.source {
            NetworkSource::Pf(netdev) => {
                let _ = writeln!(out, "    <pf dev='{}'/>", escape(netdev));
            }
            NetworkSource::Vfs(vfs) => {
                for vf in vfs {
                    let _ = writeln!(out, "    <address type='pci' {}/>", pci_attributes(*vf));
                }
            }
        }
        out.push_str("  </forward>\n</network>\n");
        out
    }
}
