//! Which device a need gets: every candidate ranked, and for each one rejected the reason.
//!
//! The kernel's `available_instances` is a hint: it can be late, and types of one parent may draw on the same stock. So a parent that
//! says 0 is tried last rather than never, and one that refused a write during the call is not tried again in it.
//!
//! Parents for a new mediated device are here, PCI functions in [`function`].

pub mod function;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::claim::{Claim, ClaimState, Grant, Granted, GrantedMdev, Owner, Undo};
use crate::inventory::{DeviceState, Inventory, Mdev, Parent};
use crate::names::{DeviceKey, MdevTypeId, MdevUuid, ParentName, printable};
use crate::request::{MdevNeed, Wanted};
use crate::suggest::nearest;

/// How many parents that say "no instance left" are tried all the same.
const LAST_RESORTS: usize = 8;

/// Which of several parents with room is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// The fullest, so that empty cards stay empty for large types.
    #[default]
    Pack,
    /// The emptiest, so that VMs share a card with as few others as possible.
    Spread,
}

/// Why a candidate, or a whole request, was refused. The text form is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The parent does not offer the type.
    NoSuchType,
    /// Nothing of that name exists.
    NotFound,
    /// Every instance is taken.
    NoInstance,
    /// The type's device API is not what the domain's hostdev says.
    WrongDeviceApi,
    /// Configuration says that this parent is not to be used.
    Excluded,
    /// The request names another parent.
    OtherParent,
    /// The parent is not near to the NUMA node asked for.
    WrongNumaNode,
    /// A write or read of it has not come back.
    Stuck,
    /// The kernel refused the write during this call.
    KernelRefused,
    /// Somebody else has it.
    InUse,
    /// It exists, but is not what was asked for.
    Conflict,
    /// It is a bridge.
    Bridge,
    /// The host itself needs it.
    HostCritical,
    /// No IOMMU keeps a VM's device from the rest of the memory.
    NoIommu,
    /// What shares its IOMMU group is used by somebody else.
    GroupNotIsolated,
    /// It is not of the kind asked for, or cannot do what was asked for.
    WrongKind,
}

impl Reason {
    /// The stable code, as `Explain` gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchType => "no-such-type",
            Self::NotFound => "not-found",
            Self::NoInstance => "no-instance",
            Self::WrongDeviceApi => "wrong-device-api",
            Self::Excluded => "excluded",
            Self::OtherParent => "other-parent",
            Self::WrongNumaNode => "wrong-numa-node",
            Self::Stuck => "stuck",
            Self::KernelRefused => "kernel-refused",
            Self::InUse => "in-use",
            Self::Conflict => "conflict",
            Self::Bridge => "bridge",
            Self::HostCritical => "host-critical",
            Self::NoIommu => "no-iommu",
            Self::GroupNotIsolated => "group-not-isolated",
            Self::WrongKind => "wrong-kind",
        }
    }
}

/// A reason, and the sentence that tells a person what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The stable code.
    pub reason: Reason,
    /// What a person reads.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What is thought of one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It would do; the first of these is taken.
    Possible,
    /// It says it is full, but may be tried when nothing else is left.
    LastResort(Refusal),
    /// It would not do.
    Refused(Refusal),
}

/// One parent, looked at for one need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The parent.
    pub parent: ParentName,
    /// Its type's device API; empty where it does not offer the type.
    pub device_api: String,
    /// What is thought of it.
    pub verdict: Verdict,
}

impl Candidate {
    /// Why it is not simply possible.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.verdict {
            Verdict::Possible => None,
            Verdict::LastResort(refusal) | Verdict::Refused(refusal) => Some(refusal),
        }
    }
}

/// What a choice is made from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What the kernel says now.
    pub inventory: &'a Inventory,
    /// Everything promised, the claim in the making included.
    pub claims: &'a [&'a Claim],
    /// Parents that configuration takes out.
    pub excluded: &'a BTreeSet<ParentName>,
    /// Which of several is taken.
    pub placement: Placement,
    /// What the kernel refused during this call.
    pub refused: &'a [(ParentName, String)],
}

/// The parents for one need, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Possible ones in the order they would be tried, then the last resorts, then the refused ones by name.
    pub candidates: Vec<Candidate>,
    /// Why nothing was chosen; `None` when something was.
    pub refusal: Option<Refusal>,
}

impl Choice {
    /// The parent to try.
    pub fn chosen(&self) -> Option<&Candidate> {
        self.candidates.first().filter(|_| self.refusal.is_none())
    }
}

/// Ranks every parent for a need that wants a new device.
pub fn choose(context: &Context<'_>, need: &MdevNeed) -> Choice {
    let (mdev_type, only) = match &need.wanted {
        Wanted::Type { mdev_type, parent } => (mdev_type, parent.as_ref()),
        Wanted::Pool(pool) => return Choice { candidates: Vec::new(), refusal: Some(no_such_pool(pool)) },
        Wanted::Existing => {
            let message = format!("there is no mediated device {}; say which type to make", need.uuid);
            return Choice { candidates: Vec::new(), refusal: Some(Refusal::new(Reason::NotFound, message)) };
        }
        Wanted::Function(wanted) => {
            let message = format!("{wanted} is no mediated device");
            return Choice { candidates: Vec::new(), refusal: Some(Refusal::new(Reason::WrongKind, message)) };
        }
    };
    let mut ranked: Vec<(Rank, Candidate)> = Vec::new();
    let usage = usage(context, mdev_type);
    for parent in context.inventory.parents() {
        let unused = Usage::default();
        let usage = usage.get(&parent.name).unwrap_or(&unused);
        let offered = parent.types.get(mdev_type);
        let left = offered.map_or(0, |t| t.available).saturating_sub(usage.reserved);
        let verdict = judge(context, need, parent, mdev_type, only, usage);
        let rank = match (&verdict, context.placement) {
            (Verdict::Possible, Placement::Pack) => (0, left, Reverse(0)),
            (Verdict::Possible, Placement::Spread) => (0, 0, Reverse(left)),
            (Verdict::LastResort(_), _) => (1, 0, Reverse(0)),
            (Verdict::Refused(_), _) => (2, 0, Reverse(0)),
        };
        let device_api = offered.map(|t| t.device_api.clone()).unwrap_or_default();
        ranked.push((rank, Candidate { parent: parent.name.clone(), device_api, verdict }));
    }
    // The sort is stable and parents come by name: equal hosts give equal answers.
    ranked.sort_by_key(|(rank, _)| *rank);
    let candidates: Vec<Candidate> = ranked.into_iter().map(|(_, candidate)| candidate).collect();
    let refusal = match candidates.first().map(|c| &c.verdict) {
        Some(Verdict::Possible) => None,
        Some(Verdict::LastResort(_)) if context.refused.len() < LAST_RESORTS => None,
        _ => Some(summary(context, need, mdev_type, only, &candidates)),
    };
    Choice { candidates, refusal }
}

type Rank = (u8, u32, Reverse<u32>);

/// What is known of the use of one parent.
#[derive(Debug, Default)]
struct Usage<'a> {
    /// Instances that are promised but not made yet: the kernel's count knows nothing of them.
    reserved: u32,
    /// Who has devices on it.
    owners: Vec<&'a Owner>,
    /// How many of its mediated devices no claim knows.
    foreign: usize,
}

/// The use of every parent that is used, in one pass: a full host has thousands of claims.
fn usage<'a>(context: &Context<'a>, mdev_type: &MdevTypeId) -> BTreeMap<&'a ParentName, Usage<'a>> {
    let mut parents: BTreeMap<&ParentName, Usage<'a>> = BTreeMap::new();
    let mut claimed: BTreeSet<MdevUuid> = BTreeSet::new();
    for claim in context.claims {
        for (grant, mdev) in claim.grants.iter().filter_map(|grant| Some((grant, grant.mdev()?))) {
            claimed.insert(mdev.uuid);
            let usage = parents.entry(&mdev.parent).or_default();
            if usage.owners.last().is_none_or(|last| !core::ptr::eq(*last, &claim.owner)) {
                usage.owners.push(&claim.owner);
            }
            let promised = !claim.state.is_ending() && grant.undo == Undo::Remove && mdev.mdev_type == *mdev_type;
            if promised && context.inventory.mdev(&mdev.uuid).is_none() {
                usage.reserved = usage.reserved.saturating_add(1);
            }
        }
    }
    for mdev in context.inventory.mdevs().filter(|mdev| !claimed.contains(&mdev.uuid)) {
        parents.entry(&mdev.parent).or_default().foreign += 1;
    }
    parents
}

fn no_such_pool(pool: &str) -> Refusal {
    Refusal::new(Reason::NotFound, format!("there is no pool '{}' on this host", printable(pool)))
}

fn judge(
    context: &Context<'_>,
    need: &MdevNeed,
    parent: &Parent,
    mdev_type: &MdevTypeId,
    only: Option<&ParentName>,
    usage: &Usage<'_>,
) -> Verdict {
    let refused = |reason, message: String| Verdict::Refused(Refusal::new(reason, message));
    let name = &parent.name;
    if only.is_some_and(|only| only != name) {
        return refused(
            Reason::OtherParent,
            format!("the request names the parent {}", only.map_or("", |p| p.as_str())),
        );
    }
    let Some(offered) = parent.types.get(mdev_type) else {
        // Stuck before it could be looked at: what it offers is not known.
        if let (DeviceState::Stuck(why), true) = (&parent.state, parent.types.is_empty()) {
            return refused(Reason::Stuck, format!("{name} is stuck: {why}"));
        }
        return refused(Reason::NoSuchType, format!("{name} does not offer the type {mdev_type}"));
    };
    if let Some(owner) = given_whole(context, name) {
        return refused(Reason::InUse, format!("{name} itself is promised to {owner}"));
    }
    if context.excluded.contains(name) {
        return refused(Reason::Excluded, format!("{name} is excluded by configuration"));
    }
    if let DeviceState::Stuck(why) = &parent.state {
        return refused(Reason::Stuck, format!("{name} is stuck: {why}"));
    }
    let none_left = || format!("no instance of {mdev_type} is left on {name}{}", in_use_by(usage, ", "));
    if let Some((_, why)) = context.refused.iter().find(|(refused, _)| refused == name) {
        // The kernel has only confirmed what it said before.
        if offered.available == 0 {
            return refused(Reason::NoInstance, none_left());
        }
        return refused(Reason::KernelRefused, format!("{why}{}", in_use_by(usage, &format!("; {name} is "))));
    }
    if let Some(model) = need.model.as_ref().filter(|model| **model != offered.device_api) {
        let api = &offered.device_api;
        let message = format!(
            "{mdev_type} on {name} is a {api} device, but the domain's hostdev has model='{}'",
            printable(model)
        );
        return refused(Reason::WrongDeviceApi, message);
    }
    if let Some(node) = need.numa_node.filter(|node| parent.numa_node != Some(*node)) {
        let message = match parent.numa_node {
            Some(other) => format!("{name} is on NUMA node {other}, not {node}"),
            None => format!("the NUMA node of {name} is not known; asked for was node {node}"),
        };
        return refused(Reason::WrongNumaNode, message);
    }
    if offered.available == 0 {
        return Verdict::LastResort(Refusal::new(Reason::NoInstance, none_left()));
    }
    if offered.available <= usage.reserved {
        let message = format!("the last instance of {mdev_type} on {name} is promised{}", in_use_by(usage, ", "));
        return refused(Reason::NoInstance, message);
    }
    Verdict::Possible
}

/// Whom the parent is promised to as a PCI function: what it offers goes with it.
fn given_whole<'a>(context: &Context<'a>, name: &ParentName) -> Option<&'a Owner> {
    let address = name.as_str().parse().ok()?;
    let claim = context.claims.iter().find(|claim| claim.grant(DeviceKey::Pci(address)).is_some())?;
    let vgpu = claim.grant(DeviceKey::Pci(address))?.function()?.vgpu_type.is_some();
    (!vgpu).then_some(&claim.owner)
}

/// `in use by domain 'a', domain 'b' and 3 more` after `before`; empty when nobody is known.
fn in_use_by(usage: &Usage<'_>, before: &str) -> String {
    let mut users: Vec<String> = usage.owners.iter().take(4).map(ToString::to_string).collect();
    if usage.foreign > 0 {
        let plural = if usage.foreign == 1 { "" } else { "s" };
        users.push(format!("{} mdev{plural} that mdevd did not make", usage.foreign));
    }
    match usage.owners.len() + usize::from(usage.foreign > 0) {
        0 => String::new(),
        1..=4 => format!("{before}in use by {}", users.join(", ")),
        n => format!("{before}in use by {} and {} more", users.get(..3).unwrap_or_default().join(", "), n - 3),
    }
}

/// One sentence for the whole request.
fn summary(
    context: &Context<'_>,
    need: &MdevNeed,
    mdev_type: &MdevTypeId,
    only: Option<&ParentName>,
    candidates: &[Candidate],
) -> Refusal {
    let all = |f: fn(&Refusal) -> bool| candidates.iter().filter_map(Candidate::refusal).all(f);
    if candidates.is_empty() {
        return Refusal::new(
            Reason::NotFound,
            "no device on this host offers mdev types; is the vendor's driver loaded?",
        );
    }
    if let Some(only) = only.filter(|only| context.inventory.parent(only).is_none()) {
        return Refusal::new(Reason::NotFound, format!("there is no mdev parent '{only}' on this host"));
    }
    if all(|r| matches!(r.reason, Reason::NoSuchType | Reason::OtherParent)) {
        let place =
            only.map_or_else(|| "no parent on this host offers".into(), |only| format!("{only} does not offer"));
        let on = |p: &&alloc::sync::Arc<Parent>| only.is_none_or(|only| p.name == *only);
        let types: BTreeSet<&str> =
            context.inventory.parents().filter(on).flat_map(|p| p.types.keys()).map(|t| t.as_str()).collect();
        let hint = match nearest(mdev_type.as_str(), types.iter().copied()) {
            Some(known) => format!("; did you mean '{known}'?"),
            None if types.is_empty() => "; no type could be read".into(),
            None if types.len() <= 12 => format!("; on offer: {}", types.into_iter().collect::<Vec<_>>().join(", ")),
            None => "; 'hostdevctl types' lists what there is".into(),
        };
        return Refusal::new(Reason::NoSuchType, format!("{place} the type {mdev_type}{hint}"));
    }
    // What is worth telling: not the parents that could never have done.
    let told: Vec<&Refusal> = candidates
        .iter()
        .filter_map(Candidate::refusal)
        .filter(|refusal| !matches!(refusal.reason, Reason::NoSuchType | Reason::OtherParent))
        .collect();
    let reason = told
        .iter()
        .map(|refusal| refusal.reason)
        .min_by_key(|reason| match reason {
            Reason::NoInstance => 0,
            Reason::KernelRefused => 1,
            Reason::Stuck => 2,
            _ => 3,
        })
        .unwrap_or(Reason::NoSuchType);
    let mut parts: Vec<&str> = told.iter().take(4).map(|refusal| refusal.message.as_str()).collect();
    let more = format!("and {} more; 'hostdevctl explain' lists them", told.len().saturating_sub(4));
    if told.len() > 4 {
        parts.push(&more);
    }
    Refusal::new(reason, format!("no device for '{}' ({}): {}", need.name, need.wanted, parts.join("; ")))
}

/// What a need gets that names a device which exists already, or which somebody else was promised: a grant that leaves the device in
/// place at release, or a refusal; `None` when the UUID is free.
///
/// # Errors
/// A [`Refusal`] when it belongs to another domain, is stuck, or is not what was asked for.
pub fn take_existing(context: &Context<'_>, need: &MdevNeed, domain_claim: bool) -> Result<Option<Grant>, Refusal> {
    let uuid = need.uuid;
    if let Wanted::Pool(pool) = &need.wanted {
        return Err(no_such_pool(pool));
    }
    let mdev = context.inventory.mdev(&uuid);
    // What is promised but not there is nobody's to make but its owner's: two claims would each remove it.
    let lent = |claim: &Claim| mdev.is_some() && borrowable(claim, domain_claim);
    let device = DeviceKey::Mdev(uuid);
    if let Some(claim) = context.claims.iter().find(|claim| claim.grant(device).is_some() && !lent(claim)) {
        let message = format!(
            "the mediated device {uuid} for '{}' is already promised to {}; release that, or use another UUID \
             ('hostdevctl xml --domain' prints a domain's own)",
            need.name, claim.owner
        );
        return Err(Refusal::new(Reason::InUse, message));
    }
    let Some(mdev) = mdev else { return Ok(None) };
    if let DeviceState::Stuck(why) = &mdev.state {
        return Err(Refusal::new(
            Reason::Stuck,
            format!("the mediated device {uuid} for '{}' is stuck: {why}", need.name),
        ));
    }
    let Some(mdev_type) = mdev.mdev_type.clone() else {
        return Err(Refusal::new(
            Reason::Stuck,
            format!("the mediated device {uuid} for '{}' is half removed", need.name),
        ));
    };
    if let Some(why) = mismatch(need, mdev, &mdev_type) {
        let message = format!(
            "the mediated device {uuid} for '{}' exists already, but {why}; remove it or change the request",
            need.name
        );
        return Err(Refusal::new(Reason::Conflict, message));
    }
    Ok(Some(Grant {
        request: need.name.clone(),
        device: Granted::Mdev(GrantedMdev {
            uuid,
            parent: mdev.parent.clone(),
            mdev_type,
            device_api: mdev.device_api.clone(),
            attributes: Vec::new(),
        }),
        undo: Undo::Keep,
        xml: need.xml.clone(),
    }))
}

/// A domain may use a device that was made by hand for it; nobody may have what another domain has.
fn borrowable(claim: &Claim, by_domain: bool) -> bool {
    by_domain && matches!(claim.owner, Owner::Manual { .. }) && claim.state == ClaimState::Ready
}

fn mismatch(need: &MdevNeed, mdev: &Mdev, mdev_type: &MdevTypeId) -> Option<String> {
    if let Wanted::Type { mdev_type: wanted, parent } = &need.wanted {
        if wanted != mdev_type {
            return Some(format!("its type is {mdev_type}, not {wanted}"));
        }
        if let Some(parent) = parent.as_ref().filter(|parent| **parent != mdev.parent) {
            return Some(format!("it is on {}, not {parent}", mdev.parent));
        }
    }
    if let Some(node) = need.numa_node.filter(|node| mdev.numa_node != Some(*node)) {
        return Some(match mdev.numa_node {
            Some(other) => format!("it is on NUMA node {other}, not {node}"),
            None => format!("its NUMA node is not known; asked for was node {node}"),
        });
    }
    let model = need.model.as_ref().filter(|model| **model != mdev.device_api && !mdev.device_api.is_empty())?;
    Some(format!("it is a {} device, not {} as the hostdev says", mdev.device_api, printable(model)))
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
