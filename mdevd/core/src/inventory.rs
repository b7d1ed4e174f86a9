//! What the kernel says now: mdev parents with their types, the mediated devices that exist, and the PCI functions. One immutable
//! picture; a new look at a parent or a function makes a new one.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::function::{Function, Role};
use crate::names::{DeviceKey, DriverName, IommuGroupId, MdevTypeId, MdevUuid, NumaNode, ParentName, PciAddress};

/// A type that a parent offers: `mdev_supported_types/<id>` (kernel: Documentation/ABI/testing/sysfs-bus-vfio-mdev).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevType {
    /// The folder's name.
    pub id: MdevTypeId,
    /// Human name; empty where the driver gives none.
    pub name: String,
    /// The vendor's text, newlines as `, `; empty where the driver gives none.
    pub description: String,
    /// `vfio-pci`, `vfio-ccw`, `vfio-ap`, …
    pub device_api: String,
    /// How many more can be made. A hint: other types of the same parent may draw on the same stock, and only the write is the truth.
    pub available: u32,
}

/// Whether a device can be worked with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceState {
    /// As it should be.
    #[default]
    Ok,
    /// A write or read of it has not come back, or it is half removed; nothing is tried on it until that ends. The text says which.
    Stuck(String),
}

impl DeviceState {
    /// `ok` or `stuck`, as on D-Bus.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Stuck(_) => "stuck",
        }
    }
}

/// A device that offers mdev types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its name in `/sys/class/mdev_bus`.
    pub name: ParentName,
    /// Its folder below the sysfs root, without a leading `/`: `devices/virtual/mtty/mtty`.
    pub path: String,
    /// The NUMA node it is near to.
    pub numa_node: Option<NumaNode>,
    /// Its driver; virtual devices have none.
    pub driver: Option<DriverName>,
    /// The types that could be read.
    pub types: BTreeMap<MdevTypeId, MdevType>,
    /// Whether it can be worked with.
    pub state: DeviceState,
    /// What could not be read or parsed, one sentence each.
    pub problems: Vec<String>,
}

/// A mediated device that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    /// Its UUID.
    pub uuid: MdevUuid,
    /// The parent it was made on.
    pub parent: ParentName,
    /// Its type; `None` when the link is gone, as it is while a removal is under way.
    pub mdev_type: Option<MdevTypeId>,
    /// Its type's device API; empty when the type is not known.
    pub device_api: String,
    /// Its IOMMU group.
    pub iommu_group: Option<IommuGroupId>,
    /// The NUMA node of its parent.
    pub numa_node: Option<NumaNode>,
    /// The driver bound to it.
    pub driver: Option<DriverName>,
    /// Whether it can be worked with.
    pub state: DeviceState,
}

/// One look at one parent: itself and the mediated devices on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentScan {
    /// The parent.
    pub parent: Parent,
    /// The mediated devices on it.
    pub mdevs: Vec<Mdev>,
}

/// One immutable picture of what the kernel says now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    parents: BTreeMap<ParentName, Arc<Parent>>,
    mdevs: BTreeMap<MdevUuid, Arc<Mdev>>,
    functions: BTreeMap<PciAddress, Arc<Function>>,
}

impl Inventory {
    /// The picture that these looks make.
    pub fn new(scans: impl IntoIterator<Item = ParentScan>) -> Self {
        let mut inventory = Self::default();
        for scan in scans {
            inventory.update(scan);
        }
        inventory
    }

    /// Takes in a new look at one parent; what is equal keeps its identity, so that a comparison by pointer finds what changed.
    pub fn update(&mut self, scan: ParentScan) {
        let name = scan.parent.name.clone();
        let mut old: BTreeMap<MdevUuid, Arc<Mdev>> = BTreeMap::new();
        self.mdevs.retain(|uuid, mdev| {
            let other = mdev.parent != name;
            if !other {
                old.insert(*uuid, mdev.clone());
            }
            other
        });
        for mdev in scan.mdevs {
            let kept = old.remove(&mdev.uuid).filter(|old| **old == mdev);
            self.mdevs.insert(mdev.uuid, kept.unwrap_or_else(|| Arc::new(mdev)));
        }
        match self.parents.get(&name) {
            Some(old) if **old == scan.parent => {}
            _ => {
                self.parents.insert(name, Arc::new(scan.parent));
            }
        }
    }

    /// Forgets a parent that is gone, and the mediated devices on it.
    pub fn remove_parent(&mut self, name: &ParentName) {
        self.parents.remove(name);
        self.mdevs.retain(|_, mdev| mdev.parent != *name);
    }

    /// Marks a parent `stuck`. The mediated devices on it stay as they were last seen: they work on, and can be removed.
    pub fn mark_parent_stuck(&mut self, name: &ParentName, why: &str) {
        if let Some(parent) = self.parents.get_mut(name) {
            Arc::make_mut(parent).state = DeviceState::Stuck(why.into());
        }
    }

    /// Marks a mediated device `stuck`.
    pub fn mark_mdev_stuck(&mut self, uuid: &MdevUuid, why: &str) {
        if let Some(mdev) = self.mdevs.get_mut(uuid) {
            Arc::make_mut(mdev).state = DeviceState::Stuck(why.into());
        }
    }

    /// Takes in a new look at how many of one type a parent has left.
    pub fn set_available(&mut self, parent: &ParentName, mdev_type: &MdevTypeId, available: u32) {
        let Some(parent) = self.parents.get_mut(parent) else { return };
        if parent.types.get(mdev_type).is_some_and(|offered| offered.available != available)
            && let Some(offered) = Arc::make_mut(parent).types.get_mut(mdev_type)
        {
            offered.available = available;
        }
    }

    /// Takes in a new look at one mediated device.
    pub fn insert_mdev(&mut self, mdev: Mdev) {
        match self.mdevs.get(&mdev.uuid) {
            Some(old) if **old == mdev => {}
            _ => {
                self.mdevs.insert(mdev.uuid, Arc::new(mdev));
            }
        }
    }

    /// Forgets a mediated device that is gone.
    pub fn remove_mdev(&mut self, uuid: &MdevUuid) {
        self.mdevs.remove(uuid);
    }

    /// Takes in a new look at one PCI function; one that is equal keeps its identity.
    pub fn insert_function(&mut self, function: Function) {
        match self.functions.get(&function.address) {
            Some(old) if **old == function => {}
            _ => {
                self.functions.insert(function.address, Arc::new(function));
            }
        }
    }

    /// Forgets a PCI function that is gone.
    pub fn remove_function(&mut self, address: &PciAddress) {
        self.functions.remove(address);
    }

    /// Marks a PCI function `stuck`.
    pub fn mark_function_stuck(&mut self, address: &PciAddress, why: &str) {
        if let Some(function) = self.functions.get_mut(address) {
            Arc::make_mut(function).state = DeviceState::Stuck(why.into());
        }
    }

    /// A PCI function by address.
    pub fn function(&self, address: &PciAddress) -> Option<&Arc<Function>> {
        self.functions.get(address)
    }

    /// All PCI functions, by address.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values()
    }

    /// The functions of one IOMMU group, by address.
    pub fn group_members(&self, group: IommuGroupId) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values().filter(move |function| function.iommu_group == Some(group))
    }

    /// The virtual functions of a physical one, by address.
    pub fn vfs_of(&self, physical: PciAddress) -> impl Iterator<Item = &Arc<Function>> {
        self.functions.values().filter(move |function| matches!(function.role, Role::Vf { pf, .. } if pf == physical))
    }

    /// Whether a device is there.
    pub fn has(&self, device: DeviceKey) -> bool {
        match device {
            DeviceKey::Mdev(uuid) => self.mdevs.contains_key(&uuid),
            DeviceKey::Pci(address) => self.functions.contains_key(&address),
        }
    }

    /// A parent by name.
    pub fn parent(&self, name: &ParentName) -> Option<&Arc<Parent>> {
        self.parents.get(name)
    }

    /// A mediated device by UUID.
    pub fn mdev(&self, uuid: &MdevUuid) -> Option<&Arc<Mdev>> {
        self.mdevs.get(uuid)
    }

    /// All parents, by name.
    pub fn parents(&self) -> impl Iterator<Item = &Arc<Parent>> {
        self.parents.values()
    }

    /// All mediated devices, by UUID.
    pub fn mdevs(&self) -> impl Iterator<Item = &Arc<Mdev>> {
        self.mdevs.values()
    }

    /// The mediated devices on one parent.
    pub fn mdevs_on<'a>(&'a self, parent: &'a ParentName) -> impl Iterator<Item = &'a Arc<Mdev>> {
        self.mdevs.values().filter(move |mdev| mdev.parent == *parent)
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
