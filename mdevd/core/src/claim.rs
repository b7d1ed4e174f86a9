//! The claim: the durable promise of devices to one owner, with how to undo it. Its JSON form is the file `/run/mdevd/claims/<id>.json`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::function::VfSettings;
use crate::names::{
    DeviceKey, DriverName, MacAddress, MdevTypeId, MdevUuid, ParentName, PciAddress, RunId, VgpuTypeId, printable,
};
use crate::plan::Plan;
use crate::request::XmlOptions;

/// Whom a claim belongs to. Domains are told apart by UUID; the name is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// A libvirt domain.
    Domain {
        /// Its UUID.
        uuid: Uuid,
        /// Its name when it was last heard of.
        name: String,
    },
    /// A person or program that asked on D-Bus.
    Manual {
        /// What they call it.
        label: String,
    },
}

impl Owner {
    /// `domain` or `manual`, as on D-Bus.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Domain { .. } => "domain",
            Self::Manual { .. } => "manual",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain { name, .. } => write!(f, "domain '{}'", printable(name)),
            Self::Manual { label } if label.is_empty() => f.write_str("a manual claim"),
            Self::Manual { label } => write!(f, "manual claim '{}'", printable(label)),
        }
    }
}

/// How far a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// On disk, nothing written to the host yet.
    Planned,
    /// Its steps are being made.
    Preparing,
    /// Its devices are there.
    Ready,
    /// They are being given back.
    Releasing,
    /// Giving them back failed and is tried again; `problem` says why.
    Failed,
}

impl ClaimState {
    /// The state as on D-Bus and in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Releasing => "releasing",
            Self::Failed => "failed",
        }
    }

    /// Whether the devices are on their way back to the host.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Releasing | Self::Failed)
    }
}

/// What giving back means for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Undo {
    /// This claim made it (or is about to): remove it.
    Remove,
    /// The claim may have changed it: bring it back to what it was.
    Restore,
    /// It was there before the claim: leave it.
    Keep,
}

impl Undo {
    /// `remove`, `restore` or `keep`, as on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Restore => "restore",
            Self::Keep => "keep",
        }
    }
}

/// One device inside a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The request it answers, with `.N` where its count is above one.
    pub request: String,
    /// The device, and what is done with it.
    pub device: Granted,
    /// What giving back means.
    pub undo: Undo,
    /// What its XML says beside the device.
    #[serde(default)]
    pub xml: XmlOptions,
}

/// A device that is granted, and what is done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granted {
    /// A mediated device.
    Mdev(GrantedMdev),
    /// A PCI function.
    Pci(GrantedFunction),
}

/// A mediated device that is granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedMdev {
    /// Its UUID.
    pub uuid: MdevUuid,
    /// The parent it is (or will be) made on.
    pub parent: ParentName,
    /// Its type.
    #[serde(rename = "type")]
    pub mdev_type: MdevTypeId,
    /// Its type's device API.
    pub device_api: String,
    /// Attributes that are set after it is made, in order; a name may repeat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<(String, String)>,
}

/// A PCI function that is granted: what it becomes while the claim lasts, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedFunction {
    /// Its address.
    pub address: PciAddress,
    /// Whether libvirt binds it to its VFIO driver by itself.
    pub managed: bool,
    /// Whether the domain has it as a network interface, for which libvirt itself sets MAC and VLAN and puts neither back.
    #[serde(default)]
    pub interface: bool,
    /// The driver that it is bound to; `None` leaves that to libvirt, or the function on the driver it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverName>,
    /// The vendor's vGPU type that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vgpu_type: Option<VgpuTypeId>,
    /// The physical function that made it, of a virtual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<GrantedVf>,
    /// The driver that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_was: Option<DriverName>,
    /// What its `driver_override` said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_was: Option<DriverName>,
}

impl GrantedFunction {
    /// The virtual function's place, where something of what its physical function does with it changes while the claim lasts: what is set
    /// here, and what libvirt sets for an interface.
    pub fn changed_vf(&self) -> Option<&GrantedVf> {
        self.vf.as_ref().filter(|vf| self.interface || !vf.set.is_empty())
    }
}

/// What a granted virtual function has beyond any other function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedVf {
    /// Its physical function.
    pub pf: PciAddress,
    /// Its number there.
    pub index: u32,
    /// What is set through the physical function.
    #[serde(default, skip_serializing_if = "VfSettings::is_empty")]
    pub set: VfSettings,
    /// What the physical function said before.
    #[serde(default, skip_serializing_if = "VfSettings::is_empty")]
    pub was: VfSettings,
    /// The address of its own network interface before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev_mac_was: Option<MacAddress>,
}

impl Grant {
    /// The device.
    pub fn key(&self) -> DeviceKey {
        match &self.device {
            Granted::Mdev(mdev) => DeviceKey::Mdev(mdev.uuid),
            Granted::Pci(function) => DeviceKey::Pci(function.address),
        }
    }

    /// The mediated device.
    pub fn mdev(&self) -> Option<&GrantedMdev> {
        match &self.device {
            Granted::Mdev(mdev) => Some(mdev),
            Granted::Pci(_) => None,
        }
    }

    /// The mediated device, to be changed.
    pub fn mdev_mut(&mut self) -> Option<&mut GrantedMdev> {
        match &mut self.device {
            Granted::Mdev(mdev) => Some(mdev),
            Granted::Pci(_) => None,
        }
    }

    /// The PCI function.
    pub fn function(&self) -> Option<&GrantedFunction> {
        match &self.device {
            Granted::Pci(function) => Some(function),
            Granted::Mdev(_) => None,
        }
    }
}

/// A process, told from a later one with the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its pid.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// The durable promise of devices to one owner. A domain has at most one, and its id is the domain's UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its id: the domain's UUID, or a version 7 UUID.
    pub id: Uuid,
    /// Whom it belongs to.
    pub owner: Owner,
    /// The uid that asked.
    pub owner_uid: u32,
    /// Which start of the domain this is.
    pub run: RunId,
    /// How far it has come.
    pub state: ClaimState,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The libvirtd or virtqemud that asked for it.
    #[serde(default)]
    pub process: Option<ProcessRef>,
    /// Whether this run has been seen alive: a status file with a live QEMU, or a holder.
    #[serde(default)]
    pub seen: bool,
    /// The devices.
    pub grants: Vec<Grant>,
    /// What is being written.
    pub plan: Plan,
    /// Why it is being given back, or what failed; empty when all is well.
    #[serde(default)]
    pub problem: String,
}

impl Claim {
    /// The claim's grant of this device.
    pub fn grant(&self, device: DeviceKey) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.key() == device)
    }

    /// What the claim is doing now, for people; empty when nothing.
    pub fn step(&self) -> String {
        match self.state {
            ClaimState::Ready => String::new(),
            _ => self.plan.next().map(|step| format!("{step}")).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
