//! Hosts and claims for the tests, said in the words of the domain.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use uuid::Uuid;

use crate::claim::{Claim, ClaimState, Grant, Owner, Undo};
use crate::inventory::{DeviceState, Inventory, Mdev, MdevType, Parent, ParentScan};
use crate::names::{DeviceKey, MdevTypeId, MdevUuid, NumaNode, ParentName, RunId};
use crate::plan::Plan;
use crate::request::{Need, Wanted, XmlOptions};

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
        device: DeviceKey::Mdev(uuid(n)),
        parent: parent(on),
        mdev_type: mdev_type(id),
        device_api: "vfio-pci".into(),
        undo,
        attributes: Vec::new(),
        xml: XmlOptions::default(),
    }
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
pub(crate) fn need(n: u32, id: &str) -> Need {
    Need {
        name: "gpu0".into(),
        uuid: uuid(n),
        wanted: Wanted::Type { mdev_type: mdev_type(id), parent: None },
        numa_node: None,
        model: None,
        xml: XmlOptions::default(),
    }
}
