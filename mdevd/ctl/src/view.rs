//! mdevd's objects as values: what arrives as `a{sv}` is read once, here.
//!
//! What names an object has to be there; anything else that is missing, or of another type, is taken as absent, so that
//! an mdevd of another version can still be listed.

mod function;

use mdevd_core::names::PciAddress;
use mdevd_dbus::path::Object;
use mdevd_dbus::wire::{number, text};
use mdevd_dbus::{Dict, interface};
use uuid::Uuid;
use zbus::fdo::ManagedObjects;
use zbus::{OwnedVariant, Variant};

pub use function::{Function, Physical, Virtual};

/// Everything that mdevd lists, each in a fixed order.
#[derive(Debug, Default)]
pub struct Host {
    /// By address.
    pub functions: Vec<Function>,
    /// By name.
    pub parents: Vec<Parent>,
    /// By parent, then UUID.
    pub mdevs: Vec<Mdev>,
    /// By creation, then id.
    pub claims: Vec<Claim>,
}

/// A device that offers mdev types.
#[derive(Debug, Default)]
pub struct Parent {
    /// Its name in sysfs.
    pub name: String,
    /// Its NUMA node.
    pub numa_node: Option<i32>,
    /// Its driver, or empty.
    pub driver: String,
    /// `ok` or `stuck`; `gone` for one that only its mdevs speak of.
    pub state: String,
    /// What it offers.
    pub types: Vec<MdevType>,
}

/// A type that a parent offers.
#[derive(Debug)]
pub struct MdevType {
    /// `nvidia-63`.
    pub id: String,
    /// What the driver calls it, or empty.
    pub name: String,
    /// What the driver says about it, or empty.
    pub description: String,
    /// `vfio-pci`, …
    pub device_api: String,
    /// How many more the kernel says it would create.
    pub available: Option<u64>,
}

/// A mediated device.
#[derive(Debug, Default)]
pub struct Mdev {
    /// Its UUID.
    pub uuid: Uuid,
    /// The name of its parent.
    pub parent: String,
    /// Its type, or empty.
    pub mdev_type: String,
    /// `vfio-pci`, …, or empty.
    pub device_api: String,
    /// Its IOMMU group.
    pub iommu_group: Option<i32>,
    /// The NUMA node of its parent.
    pub numa_node: Option<i32>,
    /// The driver of the mdev itself, or empty.
    pub driver: String,
    /// The id of the claim that holds it.
    pub claim: Option<Uuid>,
    /// `ok` or `stuck`.
    pub state: String,
    /// `claim` or `foreign`.
    pub origin: String,
}

/// Devices promised to one owner.
#[derive(Debug)]
pub struct Claim {
    /// Its id.
    pub id: Uuid,
    /// `domain` or `manual`.
    pub owner_kind: String,
    /// The domain's UUID, or empty.
    pub owner_uuid: String,
    /// The domain's name, or the label.
    pub owner_name: String,
    /// The uid that asked.
    pub owner_uid: Option<u64>,
    /// `planned`, `preparing`, `ready`, `releasing` or `failed`.
    pub state: String,
    /// What is being done for it, or empty.
    pub step: String,
    /// What it holds.
    pub grants: Vec<Grant>,
    /// Seconds since 1970.
    pub created: Option<u64>,
    /// Which start of the domain it is for, or empty.
    pub run: String,
}

/// One device inside a claim.
#[derive(Debug)]
pub struct Grant {
    /// The request's name.
    pub request: String,
    /// What a person would call the device.
    pub device: String,
    /// Of an mdev.
    pub uuid: Option<Uuid>,
    /// Of a PCI function.
    pub address: Option<PciAddress>,
    /// What a release does with it: `remove`, `restore` or `keep`.
    pub undo: String,
    /// Its hostdev element.
    pub xml: String,
}

/// What `Explain` says of one device or parent.
#[derive(Debug)]
pub struct Candidate {
    /// The request's name.
    pub request: String,
    /// The device, empty when it would be created.
    pub device: String,
    /// On which parent.
    pub parent: String,
    /// `chosen`, `possible`, `last-resort` or `refused`.
    pub verdict: String,
    /// Why it is not simply possible: a fixed word, or empty.
    pub reason: String,
    /// The same for people.
    pub message: String,
}

/// What `Reconcile` did, or would do.
#[derive(Debug)]
pub struct Action {
    /// The id of the claim.
    pub claim: Option<Uuid>,
    /// The device; empty for the claim as a whole.
    pub device: String,
    /// What.
    pub action: String,
    /// Why.
    pub reason: String,
}

/// What is wrong at present.
#[derive(Debug)]
pub struct Problem {
    /// With what.
    pub subject: String,
    /// Seconds since 1970.
    pub since: Option<u64>,
    /// What, and what to do.
    pub message: String,
}

/// Something that `Check` looked at.
#[derive(Debug)]
pub struct Finding {
    /// A device, or what of the host.
    pub subject: String,
    /// `ready`, `ready-with-warning`, `needs-setup` or `refused`.
    pub verdict: String,
    /// Why: a fixed word, or empty.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// What to do, to be copied, or empty.
    pub fix: String,
}

impl Host {
    /// Reads the answer of the ObjectManager. Objects without an interface of ours are only nodes of the tree.
    pub fn read(objects: &ManagedObjects) -> Self {
        let mut host = Self::default();
        for (path, interfaces) in objects {
            let find =
                |name: &str| interfaces.iter().find(|(interface, _)| interface.as_str() == name).map(|(_, dict)| dict);
            match Object::from_path(path.as_str()) {
                Some(Object::Parent(name)) => {
                    host.parents.extend(find(interface::PARENT).map(|dict| Parent::read(name, dict)))
                }
                Some(Object::Mdev(uuid)) => host.mdevs.extend(find(interface::MDEV).map(|dict| Mdev::read(uuid, dict))),
                Some(Object::Claim(id)) => host.claims.extend(find(interface::CLAIM).map(|dict| Claim::read(id, dict))),
                Some(Object::Function(address)) => {
                    let function = address.parse().ok().zip(find(interface::FUNCTION)).map(|(address, dict)| {
                        let (pf, vf) = (find(interface::PHYSICAL_FUNCTION), find(interface::VIRTUAL_FUNCTION));
                        Function::read(address, dict, pf, vf)
                    });
                    host.functions.extend(function);
                }
                None => {}
            }
        }
        // A device that is half removed may outlive its parent; it has to be seen somewhere.
        for mdev in &host.mdevs {
            if host.parents.iter().all(|parent| parent.name != mdev.parent) {
                host.parents.push(Parent { name: mdev.parent.clone(), state: "gone".to_owned(), ..Parent::default() });
            }
        }
        host.functions.sort_by_key(|function| function.address);
        host.parents.sort_by(|a, b| a.name.cmp(&b.name));
        host.mdevs.sort_by(|a, b| (&a.parent, &a.uuid).cmp(&(&b.parent, &b.uuid)));
        host.claims.sort_by_key(|claim| (claim.created, claim.id));
        host
    }

    /// The mdevs on a parent.
    pub fn mdevs_on(&self, parent: &str) -> impl Iterator<Item = &Mdev> {
        self.mdevs.iter().filter(move |mdev| mdev.parent == parent)
    }

    /// The claim with this id.
    pub fn claim(&self, id: Uuid) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.id == id)
    }

    /// The mdev with this UUID.
    pub fn mdev(&self, uuid: Uuid) -> Option<&Mdev> {
        self.mdevs.iter().find(|mdev| mdev.uuid == uuid)
    }

    /// The function with this address.
    pub fn function(&self, address: PciAddress) -> Option<&Function> {
        let index = self.functions.binary_search_by_key(&address, |function| function.address).ok()?;
        self.functions.get(index)
    }

    /// The VFs of a PF, by number.
    pub fn vfs_of(&self, pf: PciAddress) -> Vec<&Function> {
        let of = |function: &&Function| function.vf().is_some_and(|vf| vf.pf == Some(pf));
        let mut vfs: Vec<&Function> = self.functions.iter().filter(of).collect();
        vfs.sort_by_key(|function| function.vf().map(|vf| vf.index));
        vfs
    }

    /// These functions without the VFs of others of them, which are in the same slot as their PF.
    pub fn without_own_vfs(&self, addresses: &[PciAddress]) -> Vec<PciAddress> {
        let own = |address: &PciAddress| {
            let pf = self.function(*address).and_then(|function| function.vf()?.pf);
            pf.is_some_and(|pf| addresses.contains(&pf))
        };
        addresses.iter().copied().filter(|address| !own(address)).collect()
    }

    /// The parent that a function is.
    pub fn parent_of(&self, function: &Function) -> Option<&Parent> {
        let name = function.address.to_string();
        self.parents.iter().find(|parent| parent.name == name)
    }

    /// The function that a parent is.
    pub fn function_of(&self, parent: &Parent) -> Option<&Function> {
        self.function(parent.name.parse().ok()?)
    }

    /// What the vendor calls one of its vGPU types, as far as any function still offers it.
    pub fn vgpu_name(&self, id: u32) -> Option<&str> {
        let mut types = self.functions.iter().filter_map(Function::vf).flat_map(|vf| &vf.creatable_vgpu_types);
        types.find(|(known, _)| *known == id).map(|(_, name)| name.as_str())
    }

    /// The claim that holds an mdev.
    pub fn claim_of(&self, mdev: &Mdev) -> Option<&Claim> {
        self.claim(mdev.claim?)
    }
}

impl Parent {
    fn read(name: String, dict: &Dict) -> Self {
        let mut types: Vec<MdevType> = dicts(dict, "Types").iter().map(MdevType::read).collect();
        types.sort_by(|a, b| a.id.cmp(&b.id));
        Self {
            name,
            numa_node: natural(dict, "NumaNode"),
            driver: owned(dict, "Driver"),
            state: owned(dict, "State"),
            types,
        }
    }
}

impl MdevType {
    fn read(dict: &Dict) -> Self {
        Self {
            id: owned(dict, "id"),
            name: owned(dict, "name"),
            description: owned(dict, "description"),
            device_api: owned(dict, "device_api"),
            available: number(dict, "available"),
        }
    }
}

impl Mdev {
    fn read(uuid: Uuid, dict: &Dict) -> Self {
        let parent = match Object::from_path(text(dict, "Parent")) {
            Some(Object::Parent(name)) => name,
            _ => String::new(),
        };
        Self {
            uuid,
            parent,
            mdev_type: owned(dict, "Type"),
            device_api: owned(dict, "DeviceApi"),
            iommu_group: natural(dict, "IommuGroup"),
            numa_node: natural(dict, "NumaNode"),
            driver: owned(dict, "Driver"),
            claim: claim_id(dict, "Claim"),
            state: owned(dict, "State"),
            origin: owned(dict, "Origin"),
        }
    }
}

impl Claim {
    fn read(id: Uuid, dict: &Dict) -> Self {
        Self {
            id,
            owner_kind: owned(dict, "OwnerKind"),
            owner_uuid: owned(dict, "OwnerUuid"),
            owner_name: owned(dict, "OwnerName"),
            owner_uid: number(dict, "OwnerUid"),
            state: owned(dict, "State"),
            step: owned(dict, "Step"),
            grants: dicts(dict, "Grants").iter().map(Grant::read).collect(),
            created: number(dict, "Created"),
            run: owned(dict, "Run"),
        }
    }
}

impl Grant {
    fn read(dict: &Dict) -> Self {
        Self {
            request: owned(dict, "request"),
            device: owned(dict, "device"),
            uuid: Uuid::try_parse(text(dict, "uuid")).ok(),
            address: text(dict, "address").parse().ok(),
            undo: owned(dict, "undo"),
            xml: owned(dict, "xml"),
        }
    }
}

impl Candidate {
    /// Reads one of the dictionaries of `Explain`.
    pub fn read(dict: &Dict) -> Self {
        Self {
            request: owned(dict, "request"),
            device: owned(dict, "device"),
            parent: owned(dict, "parent"),
            verdict: owned(dict, "verdict"),
            reason: owned(dict, "reason"),
            message: owned(dict, "message"),
        }
    }
}

impl Action {
    /// Reads one of the dictionaries of `Reconcile`.
    pub fn read(dict: &Dict) -> Self {
        Self {
            claim: claim_id(dict, "claim"),
            device: owned(dict, "device"),
            action: owned(dict, "action"),
            reason: owned(dict, "reason"),
        }
    }
}

impl Problem {
    /// Reads one of the dictionaries of `Problems`.
    pub fn read(dict: &Dict) -> Self {
        Self { subject: owned(dict, "subject"), since: number(dict, "since"), message: owned(dict, "message") }
    }
}

impl Finding {
    /// Reads one of the dictionaries of `Check`.
    pub fn read(dict: &Dict) -> Self {
        Self {
            subject: owned(dict, "subject"),
            verdict: owned(dict, "verdict"),
            reason: owned(dict, "reason"),
            message: owned(dict, "message"),
            fix: owned(dict, "fix"),
        }
    }
}

fn owned(dict: &Dict, key: &str) -> String {
    text(dict, key).to_owned()
}

/// A number for which -1 stands for none.
fn natural(dict: &Dict, key: &str) -> Option<i32> {
    match dict.get(key).map(|value| &**value) {
        Some(Variant::I32(n)) if *n >= 0 => Some(*n),
        _ => None,
    }
}

fn claim_id(dict: &Dict, key: &str) -> Option<Uuid> {
    match Object::from_path(text(dict, key)) {
        Some(Object::Claim(id)) => Some(id),
        _ => None,
    }
}

fn dicts(dict: &Dict, key: &str) -> Vec<Dict> {
    list(dict, key)
}

/// The elements under `key`; none when they are of another type.
fn list<T>(dict: &Dict, key: &str) -> Vec<T>
where
    Vec<T>: TryFrom<OwnedVariant>,
{
    dict.get(key).and_then(|value: &OwnedVariant| Vec::<T>::try_from(value.clone()).ok()).unwrap_or_default()
}
