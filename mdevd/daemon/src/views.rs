//! What each D-Bus object shows: an immutable view, replaced only by the publisher, so that getters never wait and never fail.

mod function;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use mdevd_core::claim::Granted;
use mdevd_core::claim::{Claim, Grant, Owner, Undo};
use mdevd_core::function::Role;
use mdevd_core::hostdev::{MdevHostdevXml, PciHostdevXml};
use mdevd_core::inventory::{Mdev, Parent};
use mdevd_core::names::{DeviceKey, IommuGroupId, MdevUuid, PciAddress};
use mdevd_core::request::AsPair;
use mdevd_dbus::{Dict, path};
use uuid::Uuid;
use zbus::{ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

pub use function::{FunctionView, PhysicalView, VirtualView};

/// The place where an object finds its view.
#[derive(Debug)]
pub struct Slot<T>(RwLock<Arc<T>>);

impl<T> Slot<T> {
    /// A place with its first view.
    pub fn new(view: T) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(view))))
    }

    /// The view of now.
    pub fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the view.
    pub fn set(&self, view: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }
}

/// A view that can say which of its properties changed.
pub trait View: PartialEq {
    /// The D-Bus interface.
    const INTERFACE: &'static str;
    /// The properties that may change, with their values.
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)>;
    /// Whether `next` is the same object later on, so that what is `const` still holds.
    fn is_same_object(&self, next: &Self) -> bool;
}

/// `a{sv}` from pairs.
pub fn dict<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Dict {
    // A value without a file descriptor can always be owned.
    pairs
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_string(), OwnedVariant::try_from(value).ok()?)))
        .collect::<HashMap<_, _>>()
}

fn owned<'a>(value: impl Into<Variant<'a>>) -> OwnedVariant {
    // A value without a file descriptor can always be owned.
    OwnedVariant::try_from(value.into()).unwrap_or_else(|_| OwnedVariant::from(false))
}

/// `/org/mdevd1`.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct ManagerView {
    /// Subject, since (seconds since 1970), message.
    pub problems: Vec<(String, u64, String)>,
    /// Which libvirt is installed; empty where that is not known.
    pub libvirt: String,
}

impl ManagerView {
    /// `Problems`.
    pub fn problems(&self) -> Vec<Dict> {
        let problem = |(subject, since, message): &(String, u64, String)| {
            dict([
                ("subject", subject.as_str().into()),
                ("since", (*since).into()),
                ("message", message.as_str().into()),
            ])
        };
        self.problems.iter().map(problem).collect()
    }
}

impl View for ManagerView {
    const INTERFACE: &'static str = mdevd_dbus::interface::MANAGER;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![("Problems", owned(self.problems())), ("LibvirtVersion", owned(self.libvirt.as_str()))]
    }
    fn is_same_object(&self, _: &Self) -> bool {
        true
    }
}

/// `/org/mdevd1/parent/…`.
#[derive(Debug, PartialEq)]
pub struct ParentView {
    /// The parent.
    pub parent: Arc<Parent>,
    /// The mediated devices on it.
    pub mdevs: Vec<MdevUuid>,
}

impl ParentView {
    /// `Function`. A name that is a PCI address is that of a PCI function.
    pub fn function(&self) -> OwnedObjectPath {
        let address = self.parent.name.as_str().parse::<PciAddress>();
        address.map_or_else(|_| path::none(), |address| path::function(&address.to_string()))
    }

    /// `NumaNode`.
    pub fn numa_node(&self) -> i32 {
        self.parent.numa_node.map_or(-1, |node| i32::try_from(node.0).unwrap_or(-1))
    }

    /// `Driver`.
    pub fn driver(&self) -> String {
        self.parent.driver.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// `Types`.
    pub fn types(&self) -> Vec<Dict> {
        let one = |t: &mdevd_core::inventory::MdevType| {
            dict([
                ("id", t.id.as_str().into()),
                ("name", t.name.as_str().into()),
                ("description", t.description.as_str().into()),
                ("device_api", t.device_api.as_str().into()),
                ("available", t.available.into()),
            ])
        };
        self.parent.types.values().map(one).collect()
    }

    /// `Mdevs`.
    pub fn mdevs(&self) -> Vec<OwnedObjectPath> {
        self.mdevs.iter().map(|uuid| path::mdev(uuid.0)).collect()
    }

    /// `State`.
    pub fn state(&self) -> &'static str {
        self.parent.state.as_str()
    }
}

impl View for ParentView {
    const INTERFACE: &'static str = mdevd_dbus::interface::PARENT;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("NumaNode", owned(self.numa_node())),
            ("Driver", owned(self.driver())),
            ("Types", owned(self.types())),
            ("Mdevs", owned(self.mdevs())),
            ("State", owned(self.state())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        self.parent.name == next.parent.name
    }
}

/// `/org/mdevd1/mdev/…`.
#[derive(Debug, PartialEq)]
pub struct MdevView {
    /// The device.
    pub mdev: Arc<Mdev>,
    /// Its claim, and the uid that owns that.
    pub claim: Option<(Uuid, u32)>,
    /// Whether that claim made it.
    pub made: bool,
    /// The attributes that the claim sets on it, in order.
    pub attributes: Vec<(String, String)>,
}

impl MdevView {
    /// `Parent`.
    pub fn parent(&self) -> OwnedObjectPath {
        path::parent(self.mdev.parent.as_str())
    }

    /// `Type`.
    pub fn mdev_type(&self) -> String {
        self.mdev.mdev_type.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// `IommuGroup`.
    pub fn iommu_group(&self) -> i32 {
        self.mdev.iommu_group.map_or(-1, |group| i32::try_from(group.0).unwrap_or(-1))
    }

    /// `NumaNode`.
    pub fn numa_node(&self) -> i32 {
        self.mdev.numa_node.map_or(-1, |node| i32::try_from(node.0).unwrap_or(-1))
    }

    /// `Driver`.
    pub fn driver(&self) -> String {
        self.mdev.driver.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// `Claim`.
    pub fn claim(&self) -> OwnedObjectPath {
        self.claim.map_or_else(path::none, |(id, _)| path::claim(id))
    }

    /// `State`.
    pub fn state(&self) -> &'static str {
        self.mdev.state.as_str()
    }

    /// `Origin`.
    pub fn origin(&self) -> &'static str {
        if self.made { "claim" } else { "foreign" }
    }
}

impl View for MdevView {
    const INTERFACE: &'static str = mdevd_dbus::interface::MDEV;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("Type", owned(self.mdev_type())),
            ("DeviceApi", owned(self.mdev.device_api.as_str())),
            ("IommuGroup", owned(self.iommu_group())),
            ("NumaNode", owned(self.numa_node())),
            ("Driver", owned(self.driver())),
            ("Claim", owned(self.claim().into_inner())),
            ("State", owned(self.state())),
            ("Origin", owned(self.origin())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        self.mdev.uuid == next.mdev.uuid && self.mdev.parent == next.mdev.parent
    }
}

/// `/org/mdevd1/claim/…`.
#[derive(Debug, PartialEq)]
pub struct ClaimView {
    /// The claim.
    pub claim: Arc<Claim>,
}

impl ClaimView {
    /// `OwnerUuid`.
    pub fn owner_uuid(&self) -> String {
        match &self.claim.owner {
            Owner::Domain { uuid, .. } => uuid.to_string(),
            Owner::Manual { .. } => String::new(),
        }
    }

    /// `OwnerName`.
    pub fn owner_name(&self) -> String {
        match &self.claim.owner {
            Owner::Domain { name, .. } => name.clone(),
            Owner::Manual { label } => label.clone(),
        }
    }

    /// `Run`; a manual claim has no runs.
    pub fn run(&self) -> String {
        match &self.claim.owner {
            Owner::Domain { .. } => self.claim.run.to_string(),
            Owner::Manual { .. } => String::new(),
        }
    }

    /// `Grants`.
    pub fn grants(&self) -> Vec<Dict> {
        self.claim.grants.iter().map(|grant| grant_dict(&self.claim, grant)).collect()
    }
}

/// A grant as `PrepareDomain` answers it and `Grants` lists it.
pub fn grant_dict(claim: &Claim, grant: &Grant) -> Dict {
    let key = grant.key();
    let object = match key {
        DeviceKey::Mdev(uuid) => path::mdev(uuid.0),
        DeviceKey::Pci(address) => path::function(&address.to_string()),
    };
    let named = match key {
        DeviceKey::Mdev(_) => "uuid",
        DeviceKey::Pci(_) => "address",
    };
    dict([
        ("request", grant.request.as_str().into()),
        ("device", key.to_string().into()),
        ("object", ObjectPath::from(object).into()),
        ("claim", ObjectPath::from(path::claim(claim.id)).into()),
        (named, key.to_string().into()),
        ("undo", grant.undo.as_str().into()),
        ("xml", grant_xml(grant).into()),
    ])
}

/// The `<hostdev>` element of a grant; empty where its options do not fit its device.
pub fn grant_xml(grant: &Grant) -> String {
    let options = grant.xml.0.iter().map(AsPair::as_pair);
    match &grant.device {
        Granted::Mdev(mdev) => MdevHostdevXml::from_options(mdev.uuid, &mdev.device_api, options)
            .map(|xml| xml.to_xml())
            .unwrap_or_default(),
        Granted::Pci(function) => {
            // A claim says for sure what a request may leave open.
            let managed = ("managed", if function.managed { "yes" } else { "no" });
            let options = options.filter(|(key, _)| *key != "managed").chain([managed]);
            PciHostdevXml::from_options(function.address, options).map(|xml| xml.to_xml()).unwrap_or_default()
        }
    }
}

impl View for ClaimView {
    const INTERFACE: &'static str = mdevd_dbus::interface::CLAIM;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("OwnerName", owned(self.owner_name())),
            ("State", owned(self.claim.state.as_str())),
            ("Step", owned(self.claim.step())),
            ("Grants", owned(self.grants())),
            ("Run", owned(self.run())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        let (a, b) = (&self.claim, &next.claim);
        a.id == b.id && a.created == b.created && a.owner_uid == b.owner_uid && a.owner.kind() == b.owner.kind()
    }
}

/// Everything that is shown, as the engine's state makes it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The root object.
    pub manager: ManagerView,
    /// By name.
    pub parents: BTreeMap<String, ParentView>,
    /// By UUID.
    pub mdevs: BTreeMap<Uuid, MdevView>,
    /// By address.
    pub functions: BTreeMap<PciAddress, FunctionView>,
    /// Those of them that can have virtual functions.
    pub physical: BTreeMap<PciAddress, PhysicalView>,
    /// Those of them that are virtual functions.
    pub virtuals: BTreeMap<PciAddress, VirtualView>,
    /// By id.
    pub claims: BTreeMap<Uuid, ClaimView>,
}

impl Snapshot {
    /// What there is to show now.
    pub fn of(
        inventory: &mdevd_core::inventory::Inventory,
        claims: &BTreeMap<Uuid, Arc<Claim>>,
        problems: Vec<(String, u64, String)>,
        verdicts: &BTreeMap<PciAddress, &'static str>,
        libvirt: String,
    ) -> Self {
        let mut claim_of: BTreeMap<DeviceKey, (&Claim, bool)> = BTreeMap::new();
        for claim in claims.values() {
            for grant in &claim.grants {
                let made = grant.undo != Undo::Keep;
                // A domain that borrows a manual claim's device does not become its owner.
                if made || !claim_of.contains_key(&grant.key()) {
                    claim_of.insert(grant.key(), (claim, made));
                }
            }
        }
        let mut mdevs_on: BTreeMap<&str, Vec<MdevUuid>> = BTreeMap::new();
        for mdev in inventory.mdevs() {
            mdevs_on.entry(mdev.parent.as_str()).or_default().push(mdev.uuid);
        }
        let parents = inventory.parents().map(|parent| {
            let mdevs = mdevs_on.get(parent.name.as_str()).cloned().unwrap_or_default();
            (parent.name.to_string(), ParentView { parent: parent.clone(), mdevs })
        });
        let mdevs = inventory.mdevs().map(|mdev| {
            let claim = claim_of.get(&DeviceKey::Mdev(mdev.uuid));
            let view = MdevView {
                mdev: mdev.clone(),
                claim: claim.map(|(claim, _)| (claim.id, claim.owner_uid)),
                made: claim.is_some_and(|(_, made)| *made),
                attributes: claim
                    .and_then(|(claim, _)| claim.grant(DeviceKey::Mdev(mdev.uuid))?.mdev())
                    .map(|granted| granted.attributes.clone())
                    .unwrap_or_default(),
            };
            (mdev.uuid.0, view)
        });
        let mut members: BTreeMap<IommuGroupId, Vec<PciAddress>> = BTreeMap::new();
        for function in inventory.functions() {
            if let Some(group) = function.iommu_group {
                members.entry(group).or_default().push(function.address);
            }
        }
        let members: BTreeMap<IommuGroupId, Arc<[PciAddress]>> =
            members.into_iter().map(|(group, members)| (group, members.into())).collect();
        let (mut physical, mut virtuals) = (BTreeMap::new(), BTreeMap::new());
        let mut functions = BTreeMap::new();
        for function in inventory.functions() {
            let address = function.address;
            match &function.role {
                Role::Pci => {}
                Role::Pf(_) => {
                    physical.insert(address, PhysicalView { function: function.clone() });
                }
                Role::Vf { pf, index } => {
                    let settings = inventory.function(pf).and_then(|pf| mdevd_core::plan::settings_of(pf, *index));
                    let view = VirtualView {
                        function: function.clone(),
                        pf: *pf,
                        index: *index,
                        settings: settings.unwrap_or_default(),
                    };
                    virtuals.insert(address, view);
                }
            }
            let view = FunctionView {
                function: function.clone(),
                members: function.iommu_group.and_then(|group| members.get(&group)).cloned().unwrap_or_default(),
                claim: claim_of.get(&DeviceKey::Pci(address)).map(|(claim, _)| claim.id),
                verdict: verdicts.get(&address).copied().unwrap_or_default(),
            };
            functions.insert(address, view);
        }
        Self {
            manager: ManagerView { problems, libvirt },
            parents: parents.collect(),
            mdevs: mdevs.collect(),
            functions,
            physical,
            virtuals,
            claims: claims.values().map(|claim| (claim.id, ClaimView { claim: claim.clone() })).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mdevd_core::claim::{ClaimState, GrantedFunction, GrantedMdev};
    use mdevd_core::names::RunId;
    use mdevd_core::plan::Plan;
    use mdevd_core::request::XmlOptions;

    use super::*;

    fn granted(device: Granted, undo: Undo) -> Grant {
        Grant { request: "gpu0".into(), device, undo, xml: XmlOptions::default() }
    }

    #[test]
    fn a_grant_has_the_keys_and_words_of_the_interface_xml() {
        let (_, xml) = mdevd_dbus::xml::ALL.iter().find(|(name, _)| *name == ClaimView::INTERFACE).unwrap();
        let text = xml.split_once("A grant has the keys ").unwrap().1.split_once(".\"/>").unwrap().0;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        // `request s, the request's name; device s, …`
        let documented: BTreeSet<String> =
            text.split("; ").map(|part| part.split(',').next().unwrap().to_owned()).collect();

        let mdev = Granted::Mdev(GrantedMdev {
            uuid: MdevUuid(Uuid::nil()),
            parent: "mtty".parse().unwrap(),
            mdev_type: "mtty-1".parse().unwrap(),
            device_api: "vfio-pci".into(),
            attributes: Vec::new(),
        });
        let function = Granted::Pci(GrantedFunction {
            address: "0000:41:00.0".parse().unwrap(),
            managed: true,
            interface: false,
            driver: None,
            vgpu_type: None,
            vf: None,
            driver_was: None,
            override_was: None,
        });
        let claim = Claim {
            id: Uuid::nil(),
            owner: Owner::Manual { label: String::new() },
            owner_uid: 0,
            run: RunId(Uuid::nil()),
            state: ClaimState::Ready,
            created: 0,
            process: None,
            seen: false,
            grants: vec![granted(mdev, Undo::Remove), granted(function, Undo::Restore)],
            plan: Plan::default(),
            problem: String::new(),
        };
        let grants = ClaimView { claim: Arc::new(claim) }.grants();
        let sent = grants.iter().flatten().map(|(key, value)| format!("{key} {}", value.value_signature()));
        assert_eq!(sent.collect::<BTreeSet<_>>(), documented);
        for undo in [Undo::Remove, Undo::Restore, Undo::Keep] {
            assert!(text.contains(&format!("'{}'", undo.as_str())), "{undo:?} is not documented");
        }
    }
}
