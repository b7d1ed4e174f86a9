//! What will be written, as data: steps that can be printed, replayed and undone in reverse.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::claim::{Grant, Granted, GrantedFunction, GrantedMdev, Undo};
use crate::function::{Function, PhysicalFunction, Role, VfSettings};
use crate::inventory::{DeviceState, Inventory};
use crate::names::{DeviceKey, DriverName, MdevTypeId, MdevUuid, ParentName, PciAddress, VgpuTypeId, printable};

/// One change on the host, small enough to be either done or not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Step {
    /// Writes the UUID to the type's `create`.
    Create {
        /// The parent.
        parent: ParentName,
        /// The type.
        mdev_type: MdevTypeId,
        /// The new device.
        uuid: MdevUuid,
    },
    /// Writes a value to an attribute of the device.
    SetAttribute {
        /// The parent, whose changes are made one at a time.
        parent: ParentName,
        /// The device.
        uuid: MdevUuid,
        /// The attribute's path below the device's folder.
        name: String,
        /// What is written.
        value: String,
    },
    /// Writes `1` to the device's `remove`.
    Remove {
        /// The parent.
        parent: ParentName,
        /// The device.
        uuid: MdevUuid,
    },
    /// Writes to a function's `driver_override`: from then on only this driver binds to it, or any with `None`.
    SetOverride {
        /// The function.
        address: PciAddress,
        /// The driver.
        driver: Option<DriverName>,
    },
    /// Takes a function from its driver.
    Unbind {
        /// The function.
        address: PciAddress,
    },
    /// Lets the kernel look for a function's driver, which must come out as this one.
    Probe {
        /// The function.
        address: PciAddress,
        /// The driver.
        driver: DriverName,
    },
    /// Gives a function one of the vendor's vGPU types, or takes it away with `None`.
    SetVgpuType {
        /// The function.
        address: PciAddress,
        /// The type.
        vgpu_type: Option<VgpuTypeId>,
    },
    /// Sets what a physical function's network driver does with a virtual one.
    SetVf {
        /// The virtual function.
        address: PciAddress,
        /// The physical one.
        pf: PciAddress,
        /// The number of the virtual one there.
        index: u32,
        /// What is set; `None`s stay as they are.
        settings: VfSettings,
    },
    /// Writes to a physical function's `sriov_numvfs`.
    SetNumVfs {
        /// The physical function.
        pf: PciAddress,
        /// How many virtual functions it has then.
        count: u32,
    },
    /// Writes to a physical function's `sriov_drivers_autoprobe`.
    SetAutoprobe {
        /// The physical function.
        pf: PciAddress,
        /// Whether the kernel binds drivers to new virtual functions.
        on: bool,
    },
}

/// How a step is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Into a file.
    File {
        /// Below the sysfs root.
        path: String,
        /// What.
        value: String,
    },
    /// Over rtnetlink, through a physical function's network interface.
    Vf {
        /// The interface.
        netdev: String,
        /// The number of the virtual function.
        index: u32,
        /// What is set.
        settings: VfSettings,
    },
}

impl Step {
    /// The mdev parent that the step is about.
    pub fn parent(&self) -> Option<&ParentName> {
        match self {
            Self::Create { parent, .. } | Self::SetAttribute { parent, .. } | Self::Remove { parent, .. } => {
                Some(parent)
            }
            _ => None,
        }
    }

    /// The device.
    pub fn device(&self) -> DeviceKey {
        match self {
            Self::Create { uuid, .. } | Self::SetAttribute { uuid, .. } | Self::Remove { uuid, .. } => {
                DeviceKey::Mdev(*uuid)
            }
            Self::SetOverride { address, .. }
            | Self::Unbind { address }
            | Self::Probe { address, .. }
            | Self::SetVgpuType { address, .. }
            | Self::SetVf { address, .. } => DeviceKey::Pci(*address),
            Self::SetNumVfs { pf, .. } | Self::SetAutoprobe { pf, .. } => DeviceKey::Pci(*pf),
        }
    }

    /// What this step must not overlap with another one on, by its name in sysfs: a parent, a physical function, or the function itself.
    pub fn lock(&self, inventory: &Inventory) -> String {
        // Also of a virtual function that has just vanished.
        if let Self::SetVf { pf, .. } = self {
            return pf.to_string();
        }
        match (self.parent(), self.device()) {
            (Some(parent), _) => parent.to_string(),
            (None, DeviceKey::Pci(address)) => match inventory.function(&address).map(|function| &function.role) {
                Some(Role::Vf { pf, .. }) => pf.to_string(),
                _ => address.to_string(),
            },
            (None, DeviceKey::Mdev(uuid)) => uuid.to_string(),
        }
    }

    /// Whether the inventory shows this step's effect, so that replaying it would be wrong, or useless. An attribute's value cannot be
    /// seen there and is written again.
    pub fn already_done(&self, inventory: &Inventory) -> bool {
        let function = |address| inventory.function(address);
        match self {
            Self::Create { parent, mdev_type, uuid } => {
                inventory.mdev(uuid).is_some_and(|m| m.parent == *parent && m.mdev_type.as_ref() == Some(mdev_type))
            }
            Self::SetAttribute { .. } => false,
            // On another parent it is not the device that this step is about.
            Self::Remove { parent, uuid } => inventory.mdev(uuid).is_none_or(|m| m.parent != *parent),
            Self::SetOverride { address, driver } => {
                function(address).is_some_and(|function| function.driver_override == *driver)
            }
            Self::Unbind { address } => function(address).is_none_or(|function| function.driver.is_none()),
            Self::Probe { address, driver } => {
                function(address).is_some_and(|function| function.driver.as_ref() == Some(driver))
            }
            Self::SetVgpuType { address, vgpu_type } => function(address)
                .and_then(|function| function.vgpu.as_ref())
                .map_or(vgpu_type.is_none(), |vgpu| vgpu.current == *vgpu_type),
            Self::SetVf { pf, index, settings, .. } => function(pf)
                .and_then(|pf| settings_of(pf, *index))
                .is_some_and(|now| settings.changed_from(&now).is_empty()),
            Self::SetNumVfs { pf, count } => physical(inventory, pf).is_some_and(|pf| pf.num_vfs() == *count),
            Self::SetAutoprobe { pf, on } => physical(inventory, pf).is_some_and(|pf| pf.drivers_autoprobe == *on),
        }
    }

    /// What to write, or where the thing to write to is missing.
    ///
    /// # Errors
    /// A sentence that says what is gone.
    pub fn write(&self, inventory: &Inventory) -> Result<Write, String> {
        let file = |path: String, value: String| Ok(Write::File { path, value });
        let pci = |address: &PciAddress, name: &str| format!("bus/pci/devices/{address}/{name}");
        match self {
            Self::Create { parent, mdev_type, uuid } => match inventory.parent(parent) {
                Some(found) => {
                    file(format!("{}/mdev_supported_types/{mdev_type}/create", found.path), format!("{uuid}"))
                }
                None => Err(format!("the parent {parent} is gone")),
            },
            Self::SetAttribute { uuid, name, value, .. } => {
                file(format!("bus/mdev/devices/{uuid}/{name}"), value.clone())
            }
            Self::Remove { uuid, .. } => file(format!("bus/mdev/devices/{uuid}/remove"), "1".into()),
            Self::SetOverride { address, driver } => {
                // An empty write does nothing; a newline alone clears it.
                let value = driver.as_ref().map_or_else(|| "\n".into(), |driver| format!("{driver}"));
                file(pci(address, "driver_override"), value)
            }
            Self::Unbind { address } => file(pci(address, "driver/unbind"), format!("{address}")),
            Self::Probe { address, .. } => file("bus/pci/drivers_probe".into(), format!("{address}")),
            Self::SetVgpuType { address, vgpu_type } => {
                let value = vgpu_type.map_or_else(|| "0".into(), |id| format!("{id}"));
                file(pci(address, "nvidia/current_vgpu_type"), value)
            }
            Self::SetVf { pf, index, settings, .. } => {
                let netdev = inventory.function(pf).and_then(|pf| pf.netdevs.first());
                match netdev {
                    Some(netdev) => Ok(Write::Vf { netdev: netdev.name.clone(), index: *index, settings: *settings }),
                    None => Err(format!(
                        "{pf} has no network interface, through which its virtual functions would be set; is its driver bound?"
                    )),
                }
            }
            Self::SetNumVfs { pf, count } => file(pci(pf, "sriov_numvfs"), format!("{count}")),
            Self::SetAutoprobe { pf, on } => {
                file(pci(pf, "sriov_drivers_autoprobe"), if *on { "1" } else { "0" }.into())
            }
        }
    }
}

fn physical<'a>(inventory: &'a Inventory, pf: &PciAddress) -> Option<&'a PhysicalFunction> {
    match &inventory.function(pf)?.role {
        Role::Pf(physical) => Some(physical),
        _ => None,
    }
}

/// What a physical function says of one of its virtual ones.
pub fn settings_of(pf: &Function, index: u32) -> Option<VfSettings> {
    match &pf.role {
        Role::Pf(physical) => physical.vf_settings.get(&index).copied(),
        _ => None,
    }
}

/// Why what a physical function does with its virtual ones is not known: then [`restore`] cannot tell what is to be put back. `None` also
/// where its network driver is gone, and with it what that did.
pub fn settings_unknown(pf: &Function) -> Option<String> {
    match (&pf.state, &pf.role) {
        (DeviceState::Stuck(why), _) => Some(format!("{} is stuck: {why}", pf.address)),
        (_, Role::Pf(physical)) => physical.settings_unread.as_ref().map(|why| format!("{}: {why}", pf.address)),
        _ => None,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { parent, mdev_type, uuid } => write!(f, "create {uuid} of type {mdev_type} on {parent}"),
            Self::SetAttribute { uuid, name, value, .. } => {
                write!(f, "set {} of {uuid} to '{}'", printable(name), printable(value))
            }
            Self::Remove { parent, uuid } => write!(f, "remove {uuid} from {parent}"),
            Self::SetOverride { address, driver: Some(driver) } => {
                write!(f, "reserve {address} for the driver {driver}")
            }
            Self::SetOverride { address, driver: None } => write!(f, "leave {address} to any driver"),
            Self::Unbind { address } => write!(f, "unbind {address} from its driver"),
            Self::Probe { address, driver } => write!(f, "bind {address} to {driver}"),
            Self::SetVgpuType { address, vgpu_type: Some(id) } => write!(f, "give {address} the vGPU type {id}"),
            Self::SetVgpuType { address, vgpu_type: None } => write!(f, "take the vGPU type from {address}"),
            Self::SetVf { address, pf, settings, .. } => write!(f, "set {settings} of {address} through {pf}"),
            Self::SetNumVfs { pf, count } => write!(f, "set the number of virtual functions of {pf} to {count}"),
            Self::SetAutoprobe { pf, on } => {
                let word = if *on { "on" } else { "off" };
                write!(f, "turn driver binding of new virtual functions of {pf} {word}")
            }
        }
    }
}

/// Steps in the order in which they are made, and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// How many of them, from the front, have had their effect read back.
    pub done: usize,
}

impl Plan {
    /// What it takes to make these grants' devices what they are to be.
    pub fn prepare(grants: &[Grant]) -> Self {
        let mut steps = Vec::new();
        for grant in grants.iter().filter(|grant| grant.undo != Undo::Keep) {
            match &grant.device {
                Granted::Mdev(mdev) => make(&mut steps, mdev),
                Granted::Pci(function) => take(&mut steps, function),
            }
        }
        Self { steps, done: 0 }
    }

    /// What it takes to undo these grants: what was made is removed, last first; what was there before stays. A PCI function's steps
    /// are not among them: they follow from what it then is, see [`restore`].
    pub fn release(grants: &[Grant]) -> Self {
        let made = grants.iter().rev().filter(|grant| grant.undo == Undo::Remove).filter_map(Grant::mdev);
        let steps = made.map(|mdev| Step::Remove { parent: mdev.parent.clone(), uuid: mdev.uuid }).collect();
        Self { steps, done: 0 }
    }

    /// The next step.
    pub fn next(&self) -> Option<&Step> {
        self.steps.get(self.done)
    }
}

fn make(steps: &mut Vec<Step>, mdev: &GrantedMdev) {
    let (parent, uuid) = (mdev.parent.clone(), mdev.uuid);
    steps.push(Step::Create { parent: parent.clone(), mdev_type: mdev.mdev_type.clone(), uuid });
    for (name, value) in &mdev.attributes {
        steps.push(Step::SetAttribute { parent: parent.clone(), uuid, name: name.clone(), value: value.clone() });
    }
}

fn take(steps: &mut Vec<Step>, function: &GrantedFunction) {
    let address = function.address;
    if let Some(vgpu_type) = function.vgpu_type {
        // The list of types that can be had is short until the present one is taken away.
        steps.push(Step::SetVgpuType { address, vgpu_type: None });
        steps.push(Step::SetVgpuType { address, vgpu_type: Some(vgpu_type) });
    }
    // Before the driver goes: some network drivers tell a bound virtual function only.
    if let Some(vf) = function.vf.as_ref().filter(|vf| !vf.set.is_empty()) {
        steps.push(Step::SetVf { address, pf: vf.pf, index: vf.index, settings: vf.set });
    }
    if let Some(driver) = function.driver.as_ref().filter(|driver| function.driver_was.as_ref() != Some(driver)) {
        steps.push(Step::SetOverride { address, driver: Some(driver.clone()) });
        if function.driver_was.is_some() {
            steps.push(Step::Unbind { address });
        }
        steps.push(Step::Probe { address, driver: driver.clone() });
    }
}

/// The next step on a PCI function's way back to what it was before it was granted, from what it is now; `None` when it is there.
///
/// Facts alone decide, so that it comes out the same wherever the daemon died. A driver that neither was there before nor is one of
/// VFIO's was bound by somebody else meanwhile, and stays. So does an override for such a driver: the function is only taken from VFIO's,
/// and who wrote the override says when that driver gets it.
pub fn restore(was: &GrantedFunction, inventory: &Inventory) -> Option<Step> {
    let address = was.address;
    let now = inventory.function(&address)?;
    if let (Some(_), Some(vgpu)) = (was.vgpu_type, &now.vgpu)
        && vgpu.current.is_some()
    {
        return Some(Step::SetVgpuType { address, vgpu_type: None });
    }
    // Before the driver comes back, which takes its address from the physical function.
    set_back(was, inventory).or_else(|| rebind(was, now)).or_else(|| take_anew(was, now))
}

fn set_back(was: &GrantedFunction, inventory: &Inventory) -> Option<Step> {
    let vf = was.changed_vf()?;
    let says = settings_of(inventory.function(&vf.pf)?, vf.index)?;
    // What libvirt sets for an interface, and what was set here, is put back; what else has changed is not ours.
    let ours = if was.interface { vf.set.with_mac_and_vlan() } else { vf.set };
    let settings = vf.was.changed_from(&says).only(&ours);
    (!settings.is_empty()).then_some(Step::SetVf { address: was.address, pf: vf.pf, index: vf.index, settings })
}

/// libvirt brings the driver back before the address is: then the network interface has the VM's, and keeps it until its driver is bound
/// anew.
fn take_anew(was: &GrantedFunction, now: &Function) -> Option<Step> {
    let vf = was.vf.as_ref()?;
    let given = vf.set.mac.filter(|mac| Some(*mac) != vf.netdev_mac_was)?;
    let keeps = now.driver.is_some() && now.netdevs.iter().any(|netdev| netdev.mac == Some(given));
    keeps.then_some(Step::Unbind { address: was.address })
}

fn rebind(was: &GrantedFunction, now: &Function) -> Option<Step> {
    let address = was.address;
    let ours = |driver: &DriverName| is_vfio(driver) || was.driver.as_ref() == Some(driver);
    let foreign_override = now.driver_override.as_ref().is_some_and(|driver| {
        !ours(driver) && ![&was.driver_was, &was.override_was].into_iter().any(|had| had.as_ref() == Some(driver))
    });
    // libvirt gives back what it has bound by clearing the override, whatever that was, and letting the kernel choose the driver.
    let chosen_for_libvirt = was.managed && was.override_was.is_some() && now.driver_override.is_none();
    if now.driver != was.driver_was {
        match (&now.driver, &was.driver_was) {
            // Before anything shows that this is not over yet: with an override it would look like somebody's choice.
            (Some(driver), _) if !ours(driver) && chosen_for_libvirt => return Some(Step::Unbind { address }),
            (Some(driver), _) if !ours(driver) => {}
            (Some(_), _) if foreign_override => return Some(Step::Unbind { address }),
            (None, _) if foreign_override => {}
            // First the name of the one that must come, so that no other is quicker.
            (_, Some(driver)) if now.driver_override.as_ref() != Some(driver) => {
                return Some(Step::SetOverride { address, driver: Some(driver.clone()) });
            }
            (None, Some(driver)) => return Some(Step::Probe { address, driver: driver.clone() }),
            (Some(_), _) => return Some(Step::Unbind { address }),
            (None, None) => {}
        }
    }
    (now.driver_override != was.override_was && !foreign_override)
        .then(|| Step::SetOverride { address, driver: was.override_was.clone() })
}

/// Whether a driver is one that gives a function to VMs: `vfio-pci`, or one of its variants such as `mlx5_vfio_pci`.
pub fn is_vfio(driver: &DriverName) -> bool {
    driver.as_str() == "vfio-pci" || driver.as_str().ends_with("vfio_pci") || driver.as_str().ends_with("vfio-pci")
}

/// Whether `name` may be written as an attribute of a mediated device: a path of plain components below its folder that is not one of
/// the files by which the kernel manages the device.
pub fn attribute_name_is_sound(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    // Links lead out of the device's folder; the rest would change what the device is.
    let reserved = ["remove", "uevent", "driver", "subsystem", "mdev_type", "iommu_group", "power", "vfio-dev"];
    name.split('/').all(plain)
        && name.split('/').next().is_some_and(|first| !reserved.contains(&first))
        && name.len() <= 255
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "restore_tests.rs"]
mod restore_tests;
