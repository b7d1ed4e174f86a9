//! Hosts and claims for the tests, said in the words of the domain.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use uuid::Uuid;

use crate::claim::{Claim, ClaimState, Grant, Granted, GrantedMdev, Owner, Undo};
use crate::function::{Function, PciIds, PhysicalFunction, Role, VgpuType, VgpuTypes};
use crate::inventory::{DeviceState, Inventory, Mdev, MdevType, Parent, ParentScan};
use crate::names::{DriverName, IommuGroupId, MdevTypeId, MdevUuid, NumaNode, ParentName, PciAddress, RunId};
use crate::plan::Plan;
use crate::request::{FunctionNeed, FunctionOptions, MdevNeed, Wanted, WantedFunction, XmlOptions};

/// The device number `n`.
pub(crate) fn uuid(n: u32) -> MdevUuid {
    MdevUuid(Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 | u128::from(n)))
}

/// The domain number `n`.
pub(crate) fn domain_uuid(n: u32) -> Uuid {
    Uuid::from_u128(0xdddd_dddd_0000_4000_8000_0000_0000_0000 | u128::from(n))
}

pub(crate) fn parent(name: &str) -> ParentName {
    name.parse().unwrap()
}

pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

pub(crate) fn mdev_type(id: &str) -> MdevTypeId {
    id.parse().unwrap()
}

/// A host, built parent by parent; what follows `.parent()` is said of the last one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host(Vec<ParentScan>);

impl Host {
    pub(crate) fn parent(mut self, name: &str) -> Self {
        let parent = Parent {
            name: parent(name),
            path: ["devices/virtual/", name].concat(),
            numa_node: None,
            driver: None,
            types: [].into(),
            state: DeviceState::Ok,
            problems: Vec::new(),
        };
        self.0.push(ParentScan { parent, mdevs: Vec::new() });
        self
    }

    fn last(&mut self) -> &mut ParentScan {
        self.0.last_mut().expect("a parent first")
    }

    pub(crate) fn numa(mut self, node: u32) -> Self {
        self.last().parent.numa_node = Some(NumaNode(node));
        self
    }

    pub(crate) fn stuck(mut self, why: &str) -> Self {
        self.last().parent.state = DeviceState::Stuck(why.into());
        self
    }

    pub(crate) fn offers(self, id: &str, available: u32) -> Self {
        self.offers_api(id, available, "vfio-pci")
    }

    pub(crate) fn offers_api(mut self, id: &str, available: u32, device_api: &str) -> Self {
        let id = mdev_type(id);
        let offered = MdevType {
            id: id.clone(),
            name: String::new(),
            description: String::new(),
            device_api: device_api.into(),
            available,
        };
        self.last().parent.types.insert(id, offered);
        self
    }

    pub(crate) fn mdev(mut self, n: u32, id: &str) -> Self {
        let scan = self.last();
        let mdev_type = mdev_type(id);
        let device_api = scan.parent.types.get(&mdev_type).map(|t| t.device_api.clone()).unwrap_or_default();
        scan.mdevs.push(Mdev {
            uuid: uuid(n),
            parent: scan.parent.name.clone(),
            mdev_type: Some(mdev_type),
            device_api,
            iommu_group: None,
            numa_node: scan.parent.numa_node,
            driver: None,
            state: DeviceState::Ok,
        });
        self
    }

    /// Changes the mdev that was added last.
    pub(crate) fn mdev_is(mut self, change: impl FnOnce(&mut Mdev)) -> Self {
        change(self.last().mdevs.last_mut().expect("an mdev first"));
        self
    }

    pub(crate) fn scans(&self) -> &[ParentScan] {
        &self.0
    }

    pub(crate) fn inventory(&self) -> Inventory {
        Inventory::new(self.0.clone())
    }
}

/// A new look at one parent as the inventory has it.
pub(crate) fn scan_of(inventory: &Inventory, name: &ParentName) -> ParentScan {
    ParentScan {
        parent: inventory.parent(name).map(|p| Parent::clone(p)).expect("a known parent"),
        mdevs: inventory.mdevs_on(name).map(|m: &Arc<Mdev>| Mdev::clone(m)).collect(),
    }
}

pub(crate) fn grant(n: u32, on: &str, id: &str, undo: Undo) -> Grant {
    Grant {
        request: ["dev", &n.to_string()].concat(),
        device: Granted::Mdev(GrantedMdev {
            uuid: uuid(n),
            parent: parent(on),
            mdev_type: mdev_type(id),
            device_api: "vfio-pci".into(),
            attributes: Vec::new(),
        }),
        undo,
        xml: XmlOptions::default(),
    }
}

/// The same, with attributes to set.
pub(crate) fn grant_with(n: u32, on: &str, id: &str, attributes: Vec<(String, String)>) -> Grant {
    let mut grant = grant(n, on, id, Undo::Remove);
    grant.mdev_mut().expect("a mediated device").attributes = attributes;
    grant
}

pub(crate) fn domain(n: u32, name: &str) -> Owner {
    Owner::Domain { uuid: domain_uuid(n), name: name.into() }
}

pub(crate) fn manual(label: &str) -> Owner {
    Owner::Manual { label: label.into() }
}

pub(crate) fn claim(owner: Owner, state: ClaimState, grants: impl IntoIterator<Item = Grant>) -> Claim {
    let grants: Vec<Grant> = grants.into_iter().collect();
    let plan = Plan::prepare(&grants);
    let id = match &owner {
        Owner::Domain { uuid, .. } => *uuid,
        Owner::Manual { .. } => Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001),
    };
    Claim {
        id,
        owner,
        owner_uid: 0,
        run: RunId(Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0002)),
        state,
        created: 1_763_700_000,
        process: None,
        seen: false,
        grants,
        plan,
        problem: String::new(),
    }
}

/// The need of a new device `n` of a type.
pub(crate) fn need(n: u32, id: &str) -> MdevNeed {
    MdevNeed {
        name: "gpu0".into(),
        uuid: uuid(n),
        wanted: Wanted::Type { mdev_type: mdev_type(id), parent: None },
        numa_node: None,
        model: None,
        xml: XmlOptions::default(),
    }
}

pub(crate) fn driver(name: &str) -> DriverName {
    name.parse().unwrap()
}

/// A PCI function that a VM can be given, on the driver `nvme`, in the IOMMU group `group`.
pub(crate) fn function(at: &str, group: u32) -> Function {
    Function {
        address: address(at),
        ids: PciIds { vendor: 0x8086, device: 0x0a54, ..PciIds::default() },
        class: 0x01_08_02,
        name: String::new(),
        driver: Some(driver("nvme")),
        driver_override: None,
        iommu_group: Some(IommuGroupId(group)),
        numa_node: None,
        reset_methods: Vec::new(),
        role: Role::Pci,
        bridge: false,
        netdevs: Vec::new(),
        vgpu: None,
        variant_drivers: Vec::new(),
        host_critical: Vec::new(),
        state: DeviceState::Ok,
        problems: Vec::new(),
    }
}

/// A physical function on `igb` with these virtual ones, which could have eight.
pub(crate) fn physical(at: &str, group: u32, vfs: &[&str]) -> Function {
    let vfs = (0..).zip(vfs.iter().map(|vf| address(vf))).collect();
    let role = PhysicalFunction { total_vfs: 8, vfs, drivers_autoprobe: true, ..PhysicalFunction::default() };
    let ids = PciIds { vendor: 0x8086, device: 0x10c9, ..PciIds::default() };
    Function { ids, driver: Some(driver("igb")), role: Role::Pf(role), ..function(at, group) }
}

/// A virtual function on `igbvf`.
pub(crate) fn virtual_function(at: &str, group: u32, pf: &str, index: u32) -> Function {
    let ids = PciIds { vendor: 0x8086, device: 0x10ca, ..PciIds::default() };
    Function { ids, driver: Some(driver("igbvf")), role: Role::Vf { pf: address(pf), index }, ..function(at, group) }
}

/// The vendor's vGPU types of a function.
pub(crate) fn vgpu_types(current: Option<u32>, creatable: &[(u32, &str)]) -> Option<VgpuTypes> {
    let id = |id: u32| id.to_string().parse().unwrap();
    let creatable = creatable.iter().map(|(n, name)| VgpuType { id: id(*n), name: (*name).into() }).collect();
    Some(VgpuTypes { current: current.map(id), creatable, gpu_instance: None })
}

/// The need of a PCI function.
pub(crate) fn function_need(wanted: WantedFunction) -> FunctionNeed {
    FunctionNeed {
        name: "dev0".into(),
        wanted,
        numa_node: None,
        hostdev: None,
        options: FunctionOptions::default(),
        xml: XmlOptions::default(),
    }
}
