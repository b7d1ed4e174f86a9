//! A PCI function as the kernel shows it: what it is, who drives it, whom it shares an IOMMU group with, and what it is to SR-IOV: a
//! physical function with its virtual functions, one of those, or neither; and the vendor's vGPU types of a virtual function.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::inventory::DeviceState;
use crate::names::{DriverName, IommuGroupId, MacAddress, NumaNode, PciAddress, VgpuTypeId};

/// Vendor and device numbers of a function, its own and its subsystem's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PciIds {
    /// Who made it.
    pub vendor: u16,
    /// What they call it.
    pub device: u16,
    /// Who made the card.
    pub subsystem_vendor: u16,
    /// What they call that.
    pub subsystem_device: u16,
}

impl fmt::Display for PciIds {
    /// `10de:26b9`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// A PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its address.
    pub address: PciAddress,
    /// Its numbers.
    pub ids: PciIds,
    /// Its class, 24 bits: `0x030200` is a 3D controller.
    pub class: u32,
    /// What people call it, from the system's `pci.ids`; empty where that does not know it.
    pub name: String,
    /// The driver bound to it.
    pub driver: Option<DriverName>,
    /// The only driver that may bind to it, when one was written to `driver_override`.
    pub driver_override: Option<DriverName>,
    /// Its IOMMU group; none without an IOMMU.
    pub iommu_group: Option<IommuGroupId>,
    /// The NUMA node it is near to.
    pub numa_node: Option<NumaNode>,
    /// How the kernel can reset it, in the order it tries: `flr`, `pm`, `bus`, …; empty where it cannot.
    pub reset_methods: Vec<String>,
    /// What it is to SR-IOV.
    pub role: Role,
    /// Whether other functions are behind it; a bridge is never given to a VM.
    pub bridge: bool,
    /// Its network interfaces.
    pub netdevs: Vec<Netdev>,
    /// The vendor's vGPU types, of a function that takes one.
    pub vgpu: Option<VgpuTypes>,
    /// Other VFIO drivers than `vfio-pci` that the kernel has for it (`mlx5_vfio_pci`), from `modules.alias`.
    pub variant_drivers: Vec<DriverName>,
    /// Why the host itself needs it, a clause each (`carries / on nvme0n1p2`); empty where it does not.
    pub host_critical: Vec<String>,
    /// Whether it can be worked with.
    pub state: DeviceState,
    /// What could not be read or parsed, one sentence each.
    pub problems: Vec<String>,
}

/// What a function is to SR-IOV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Neither a physical nor a virtual function.
    Pci,
    /// It can make virtual functions.
    Pf(PhysicalFunction),
    /// It was made by a physical function.
    Vf {
        /// The physical function.
        pf: PciAddress,
        /// Its number there, from 0 on, as in `virtfn0`.
        index: u32,
    },
}

impl Role {
    /// `pci`, `pf` or `vf`, as on D-Bus.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Pf(_) => "pf",
            Self::Vf { .. } => "vf",
        }
    }
}

/// What a physical function has beyond any other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PhysicalFunction {
    /// The most virtual functions that it can have; the driver may have lowered it.
    pub total_vfs: u32,
    /// Its virtual functions, by number. How many there are is how many links there are: `sriov_numvfs` cannot be read while a change
    /// of it hangs.
    pub vfs: BTreeMap<u32, PciAddress>,
    /// Whether the kernel binds drivers to new virtual functions.
    pub drivers_autoprobe: bool,
    /// What the network driver does with each virtual function, as the first of its interfaces says; empty where it has none.
    pub vf_settings: BTreeMap<u32, VfSettings>,
    /// Why that is not known, a sentence; unknown is not none.
    pub settings_unread: Option<String>,
    /// `legacy` or `switchdev`, where devlink says; else empty.
    pub eswitch_mode: String,
}

impl PhysicalFunction {
    /// How many virtual functions there are.
    pub fn num_vfs(&self) -> u32 {
        u32::try_from(self.vfs.len()).unwrap_or(u32::MAX)
    }
}

/// A network interface of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netdev {
    /// Its name of now: `enp1s0f0`.
    pub name: String,
    /// Its hardware address of now.
    pub mac: Option<MacAddress>,
}

/// What a physical function's network driver does with one virtual function (`ip link show`, the `vf` lines). Where a value is `None` the
/// driver does not say, or, in what is to be set, it stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VfSettings {
    /// The address that the virtual function must use; all zero while it may choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The VLAN that its packets are put into; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The priority in that VLAN, 0 to 7.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Whether it may ask for what could harm others: promiscuous mode, another address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Whether packets from other addresses than its own are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// The rate that it is sure of, in Mbit/s; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rate: Option<u32>,
    /// The rate that it cannot exceed, in Mbit/s; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
    /// Whether it sees a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_state: Option<LinkState>,
}

impl VfSettings {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is said here and differs from `now`. VLAN and priority go together, as do the two rates: the kernel takes each as a pair.
    /// Without a VLAN there is no priority in it.
    #[must_use]
    pub fn changed_from(&self, now: &Self) -> Self {
        fn differs<T: PartialEq + Copy>(wanted: Option<T>, now: Option<T>) -> Option<T> {
            wanted.filter(|wanted| now != Some(*wanted))
        }
        let mut changed = Self {
            mac: differs(self.mac, now.mac),
            vlan: differs(self.vlan, now.vlan),
            qos: differs(self.qos, now.qos),
            trust: differs(self.trust, now.trust),
            spoof_check: differs(self.spoof_check, now.spoof_check),
            min_rate: differs(self.min_rate, now.min_rate),
            max_rate: differs(self.max_rate, now.max_rate),
            link_state: differs(self.link_state, now.link_state),
        };
        if changed.vlan.is_some() || changed.qos.is_some() {
            changed.vlan = self.vlan.or(now.vlan);
            changed.qos = self.qos.or(now.qos.map(|qos| if changed.vlan == Some(0) { 0 } else { qos }));
        }
        if changed.min_rate.is_some() || changed.max_rate.is_some() {
            changed.min_rate = self.min_rate.or(now.min_rate);
            changed.max_rate = self.max_rate.or(now.max_rate);
        }
        changed
    }

    /// What is said here one by one, as the kernel takes it and in an order that drivers take: the address before what is checked
    /// against it.
    pub fn one_by_one(&self) -> impl Iterator<Item = Self> + use<> {
        let none = Self::default();
        let Self { mac, vlan, qos, trust, spoof_check, min_rate, max_rate, link_state } = *self;
        [
            Self { mac, ..none },
            Self { vlan, qos, ..none },
            Self { spoof_check, ..none },
            Self { trust, ..none },
            Self { min_rate, max_rate, ..none },
            Self { link_state, ..none },
        ]
        .into_iter()
        .filter(|one| !one.is_empty())
    }

    /// What is said here of the things that `of` says something of.
    #[must_use]
    pub fn only(&self, of: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| of.mac.is_some()),
            vlan: self.vlan.filter(|_| of.vlan.is_some() || of.qos.is_some()),
            qos: self.qos.filter(|_| of.vlan.is_some() || of.qos.is_some()),
            trust: self.trust.filter(|_| of.trust.is_some()),
            spoof_check: self.spoof_check.filter(|_| of.spoof_check.is_some()),
            min_rate: self.min_rate.filter(|_| of.min_rate.is_some() || of.max_rate.is_some()),
            max_rate: self.max_rate.filter(|_| of.min_rate.is_some() || of.max_rate.is_some()),
            link_state: self.link_state.filter(|_| of.link_state.is_some()),
        }
    }

    /// The same, and that MAC and VLAN are said too, whatever they are: what libvirt sets for an interface.
    #[must_use]
    pub fn with_mac_and_vlan(self) -> Self {
        Self { mac: self.mac.or(Some(MacAddress::ZERO)), vlan: self.vlan.or(Some(0)), ..self }
    }
}

impl fmt::Display for VfSettings {
    /// `mac 52:54:00:6d:90:02, vlan 42`, in the words of `ip link`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_off = |on: bool| if on { "on" } else { "off" };
        let parts = [
            self.mac.map(|mac| format!("mac {mac}")),
            self.vlan.map(|vlan| format!("vlan {vlan}")),
            self.qos.map(|qos| format!("qos {qos}")),
            self.trust.map(|on| format!("trust {}", on_off(on))),
            self.spoof_check.map(|on| format!("spoofchk {}", on_off(on))),
            self.min_rate.map(|rate| format!("min_tx_rate {rate}")),
            self.max_rate.map(|rate| format!("max_tx_rate {rate}")),
            self.link_state.map(|state| format!("state {}", state.as_str())),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing".into() } else { parts.join(", ") }.as_str())
    }
}

/// Whether a virtual function sees a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// As the physical function's.
    Auto,
    /// Always.
    Enable,
    /// Never.
    Disable,
}

impl LinkState {
    /// `auto`, `enable` or `disable`, the words of `ip link`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

impl FromStr for LinkState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::Enable, Self::Disable]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("'{}' is not auto, enable or disable", crate::names::printable(text)))
    }
}

/// One of the vendor's vGPU types that a function can become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VgpuType {
    /// Its number.
    pub id: VgpuTypeId,
    /// Its name: `NVIDIA L40S-8Q`.
    pub name: String,
}

/// What a function with the vendor's vGPU types says (NVIDIA, on kernels since 6.8: the folder `nvidia` of a virtual function).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VgpuTypes {
    /// The type that it has now.
    pub current: Option<VgpuTypeId>,
    /// The types that it could have now. The list is short until the current type is cleared, and changes as its siblings fill.
    pub creatable: Vec<VgpuType>,
    /// The MIG instance that backs it, where the card is split into such.
    pub gpu_instance: Option<u32>,
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
