//! Which PCI function a need gets, and why not the others: what the host itself needs, what is promised, what shares an IOMMU group
//! with something in use, and what cannot become what is asked for.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Context, Placement, Reason, Refusal, Verdict};
use crate::claim::{Claim, Grant, Granted, GrantedFunction, GrantedVf, Undo};
use crate::function::{Function, Role, VfSettings, VgpuType};
use crate::inventory::{DeviceState, Inventory};
use crate::names::{DeviceKey, DriverName, MacAddress, PciAddress, PciCard, VgpuTypeId};
use crate::plan::{is_vfio, settings_of, settings_unknown};
use crate::request::{FunctionKind, FunctionNeed, WantedFunction, WantedVgpu};

/// The driver that gives a function to a VM where the request names none.
const VFIO_PCI: &str = "vfio-pci";

/// Drivers that may stay bound to members of a group that goes to a VM: the kernel counts them as harmless.
const HARMLESS_DRIVERS: [&str; 2] = ["pci-stub", "pcieport"];

/// The PCI class of bridges to anything: host bridges, bridges to the ISA bus.
const CHIPSET: u32 = 0x06;

/// One function, looked at for one need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionCandidate {
    /// The function.
    pub address: PciAddress,
    /// What is thought of it.
    pub verdict: Verdict,
}

/// The functions for one need, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionChoice {
    /// Possible ones in the order they would be taken, then the last resorts, then the refused ones by address.
    pub candidates: Vec<FunctionCandidate>,
    /// Why nothing was chosen; `None` when something was.
    pub refusal: Option<Refusal>,
}

impl FunctionChoice {
    /// The functions to take: one, or all of a card.
    pub fn chosen(&self, wanted: &WantedFunction) -> Vec<PciAddress> {
        let count = match (&self.refusal, wanted) {
            (Some(_), _) => 0,
            (None, WantedFunction::Card(_)) => self.candidates.len(),
            (None, _) => 1,
        };
        self.candidates.iter().take(count).map(|candidate| candidate.address).collect()
    }
}

/// Ranks the functions that a need may mean. `together` are the functions that go to the same VM anyway: with those it may share an IOMMU
/// group.
pub fn choose_function(context: &Context<'_>, need: &FunctionNeed, together: &BTreeSet<PciAddress>) -> FunctionChoice {
    let inventory = context.inventory;
    let meant: Vec<&Function> = match &need.wanted {
        WantedFunction::Address(address) => inventory.function(address).into_iter().map(|f| &**f).collect(),
        WantedFunction::Card(card) => of_card(inventory, *card).collect(),
        WantedFunction::Any { .. } => inventory.functions().map(|f| &**f).filter(|f| is_meant(need, f)).collect(),
    };
    let mut together = together.clone();
    if let WantedFunction::Card(_) = need.wanted {
        together.extend(meant.iter().map(|function| function.address));
    }
    let mut ranked: Vec<((u8, i64), FunctionCandidate)> = Vec::new();
    for function in meant {
        let verdict = judge(context, need, function, &together);
        let rank = match &verdict {
            Verdict::Possible => (0, crowding(context, function)),
            Verdict::LastResort(_) => (1, crowding(context, function)),
            Verdict::Refused(_) => (2, 0),
        };
        ranked.push((rank, FunctionCandidate { address: function.address, verdict }));
    }
    // The sort is stable and functions come by address: equal hosts give equal answers.
    ranked.sort_by_key(|(rank, _)| *rank);
    let candidates: Vec<FunctionCandidate> = ranked.into_iter().map(|(_, candidate)| candidate).collect();
    let refusal = match &need.wanted {
        WantedFunction::Card(_) => candidates
            .iter()
            .find_map(|candidate| refusal_of(&candidate.verdict))
            .map(|first| Refusal::new(first.reason, told(need, &first.message))),
        _ => match candidates.first().map(|candidate| &candidate.verdict) {
            Some(Verdict::Possible | Verdict::LastResort(_)) => None,
            Some(Verdict::Refused(_)) => Some(summary(need, &candidates)),
            None => None,
        },
    };
    let refusal = if candidates.is_empty() { Some(nothing_there(inventory, need)) } else { refusal };
    FunctionChoice { candidates, refusal }
}

/// The functions of a card that a VM can be given: all but bridges.
fn of_card(inventory: &Inventory, card: PciCard) -> impl Iterator<Item = &Function> {
    inventory.functions().map(|f| &**f).filter(move |f| f.address.card() == card && !f.bridge)
}

/// How full the physical function behind a virtual one is, so that the fullest, or the emptiest, is taken first.
fn crowding(context: &Context<'_>, function: &Function) -> i64 {
    let Role::Vf { pf, .. } = function.role else { return 0 };
    let taken = context.inventory.vfs_of(pf).filter(|vf| promised_to(context, vf.address).is_some()).count();
    let taken = i64::try_from(taken).unwrap_or(i64::MAX);
    if context.placement == Placement::Pack { -taken } else { taken }
}

/// Whether a need that names no address may mean this function.
fn is_meant(need: &FunctionNeed, function: &Function) -> bool {
    let wanted = &need.wanted;
    let WantedFunction::Any { kind, pf, .. } = wanted else { return true };
    let typed = need.options.vgpu_type.is_none() || function.vgpu.is_some();
    let of_kind = match (kind, &function.role) {
        // A physical function is given only to those who ask for just that device.
        (_, Role::Pf(_)) => *kind == Some(FunctionKind::Pci) && wanted.ids_fit(function.ids) && !ids_open(wanted),
        (Some(FunctionKind::Vf), Role::Vf { .. }) | (Some(FunctionKind::Pci), Role::Pci) | (None, _) => true,
        (Some(_), _) => false,
    };
    let made_by = match function.role {
        Role::Vf { pf, .. } => Some(pf),
        _ => None,
    };
    typed && of_kind && wanted.ids_fit(function.ids) && pf.is_none_or(|pf| made_by == Some(pf)) && !function.bridge
}

fn ids_open(wanted: &WantedFunction) -> bool {
    matches!(wanted, WantedFunction::Any { ids: None, .. })
}

fn refusal_of(verdict: &Verdict) -> Option<&Refusal> {
    match verdict {
        Verdict::Refused(refusal) => Some(refusal),
        Verdict::Possible | Verdict::LastResort(_) => None,
    }
}

fn promised_to<'a>(context: &Context<'a>, address: PciAddress) -> Option<&'a Claim> {
    context.claims.iter().find(|claim| claim.grant(DeviceKey::Pci(address)).is_some()).copied()
}

fn judge(context: &Context<'_>, need: &FunctionNeed, function: &Function, together: &BTreeSet<PciAddress>) -> Verdict {
    let refused = |reason, message: String| Verdict::Refused(Refusal::new(reason, message));
    let address = function.address;
    if function.bridge {
        return refused(Reason::Bridge, bridge(function));
    }
    if function.class >> 16 == CHIPSET {
        return refused(Reason::Bridge, format!("{address} is part of the chipset{}", named(function)));
    }
    let verdict = judge_alone(context, need, function, together);
    match (critical(function), verdict) {
        (None, verdict) => verdict,
        // Who forces it takes it from the host, and from nobody else.
        (Some(why), Verdict::Refused(other)) => refused(other.reason, format!("{why}; besides, {other}")),
        (Some(why), _) => refused(Reason::HostCritical, why),
    }
}

/// The same, if the host itself would not need it.
fn judge_alone(
    context: &Context<'_>,
    need: &FunctionNeed,
    function: &Function,
    together: &BTreeSet<PciAddress>,
) -> Verdict {
    let refused = |reason, message: String| Verdict::Refused(Refusal::new(reason, message));
    let address = function.address;
    if let DeviceState::Stuck(why) = &function.state {
        return refused(Reason::Stuck, format!("{address} is stuck: {why}"));
    }
    if let Role::Vf { pf, .. } = function.role
        && let Some(DeviceState::Stuck(why)) = context.inventory.function(&pf).map(|pf| &pf.state)
    {
        return refused(Reason::Stuck, format!("{pf}, which {address} is a part of, is stuck: {why}"));
    }
    if let Some(why) = in_use(context, function) {
        return refused(Reason::InUse, why);
    }
    let Some(group) = function.iommu_group else {
        let message = format!(
            "{address} has no IOMMU group: the IOMMU is off, and without it a VM's device could write anywhere; 'hostdevctl doctor' says \
             how to turn it on"
        );
        return refused(Reason::NoIommu, message);
    };
    for member in context.inventory.group_members(group).filter(|member| member.address != address && !member.bridge) {
        if let Some(why) = keeps_group(context, member, together) {
            let message =
                format!("{address} shares IOMMU group {group} with {}{}, {why}", member.address, named(member));
            return refused(Reason::GroupNotIsolated, message);
        }
    }
    if let Some(node) = need.numa_node.filter(|node| function.numa_node != Some(*node)) {
        let message = match function.numa_node {
            Some(other) => format!("{address} is on NUMA node {other}, not {node}"),
            None => format!("the NUMA node of {address} is not known; asked for was node {node}"),
        };
        return refused(Reason::WrongNumaNode, message);
    }
    if !need.options.set.is_empty()
        && let Some(why) = cannot_set(context.inventory, function)
    {
        return refused(Reason::WrongKind, why);
    }
    if (!need.options.set.is_empty() || need.hostdev.as_ref().is_some_and(|hostdev| hostdev.interface))
        && let Role::Vf { pf, .. } = function.role
        && let Some(why) = context.inventory.function(&pf).and_then(|pf| settings_unknown(pf))
    {
        return refused(Reason::Stuck, format!("what {address} is given now could not be taken back later: {why}"));
    }
    judge_vgpu(context.inventory, need, function)
}

fn bridge(function: &Function) -> String {
    format!("{} is a bridge{}; what is behind it can be given to a VM", function.address, named(function))
}

fn named(function: &Function) -> String {
    if function.name.is_empty() { String::new() } else { format!(" ({})", function.name) }
}

/// Why the host itself needs a function.
pub fn critical(function: &Function) -> Option<String> {
    let why = function.host_critical.join(", ");
    (!why.is_empty()).then(|| format!("the host itself needs {}{}: {why}", function.address, named(function)))
}

/// Who has a function, or what goes with it.
fn in_use(context: &Context<'_>, function: &Function) -> Option<String> {
    let address = function.address;
    if let Some(claim) = promised_to(context, address) {
        return Some(format!("{address} is already promised to {}", claim.owner));
    }
    match &function.role {
        Role::Vf { pf, .. } => {
            if let Some(claim) = promised_to(context, *pf) {
                return Some(format!("{pf}, which {address} is a part of, is promised to {}", claim.owner));
            }
        }
        Role::Pf(physical) => {
            // What a claim knows holds also while the links between the two are not all there.
            let made_by_it = |grant: &Grant| {
                let linked = physical.vfs.values().any(|vf| grant.key() == DeviceKey::Pci(*vf));
                linked || grant.function().and_then(|vf| vf.vf.as_ref()).is_some_and(|vf| vf.pf == address)
            };
            let grants = context.claims.iter().flat_map(|claim| claim.grants.iter().map(move |grant| (claim, grant)));
            let taken = grants.filter(|(_, grant)| made_by_it(grant)).map(|(claim, vf)| (vf.key(), &claim.owner));
            if let Some((vf, owner)) = taken.min_by_key(|(vf, _)| *vf) {
                return Some(format!("its virtual function {vf} is promised to {owner}"));
            }
            let what = match physical.num_vfs() {
                0 => None,
                1 => Some("1 virtual function, which would vanish with its driver; remove it".to_string()),
                n => Some(format!("{n} virtual functions, which would vanish with its driver; remove them")),
            };
            if let Some(what) = what {
                return Some(format!("{address} has {what} first: hostdevctl vfs {address} 0"));
            }
        }
        Role::Pci => {}
    }
    let parent = address.to_string().parse().ok()?;
    let mdevs = context.inventory.mdevs_on(&parent).count();
    let promised = context
        .claims
        .iter()
        .find(|claim| claim.grants.iter().filter_map(Grant::mdev).any(|mdev| mdev.parent == parent));
    match promised {
        Some(claim) => Some(format!("a mediated device on {address} is promised to {}", claim.owner)),
        None if mdevs == 1 => Some(format!("{address} carries a mediated device")),
        None if mdevs > 1 => Some(format!("{address} carries {mdevs} mediated devices")),
        None => None,
    }
}

/// Why a member of the same IOMMU group stands in the way; `None` when it does not.
fn keeps_group(context: &Context<'_>, member: &Function, together: &BTreeSet<PciAddress>) -> Option<String> {
    // It is looked at for itself, and when it is refused, so is all that goes with it. The promise may be that of the same VM.
    if together.contains(&member.address) {
        return None;
    }
    if let Some(claim) = promised_to(context, member.address) {
        return Some(format!("which is promised to {}", claim.owner));
    }
    if !member.host_critical.is_empty() {
        return Some(format!("which the host itself needs: {}", member.host_critical.join(", ")));
    }
    let driver = member.driver.as_ref().filter(|driver| !is_vfio(driver))?;
    if HARMLESS_DRIVERS.contains(&driver.as_str()) {
        return None;
    }
    Some(format!("which the host uses (driver {driver}); give the VM both, or unbind that one"))
}

/// Why nothing can be set of a function through a physical one.
fn cannot_set(inventory: &Inventory, function: &Function) -> Option<String> {
    let address = function.address;
    let Role::Vf { pf, .. } = function.role else {
        return Some(format!("{address} is no virtual function: MAC, VLAN and the like are set of those only"));
    };
    let netdev = inventory.function(&pf).is_some_and(|pf| !pf.netdevs.is_empty());
    (!netdev).then(|| {
        format!("MAC, VLAN and the like of {address} are set through a network interface of {pf}, which has none")
    })
}

/// Whether a function can have the vGPU type that is asked for.
fn judge_vgpu(inventory: &Inventory, need: &FunctionNeed, function: &Function) -> Verdict {
    let refused = |reason, message: String| Verdict::Refused(Refusal::new(reason, message));
    let (address, options) = (function.address, &need.options);
    let types = match (&function.vgpu, &options.vgpu_type) {
        (None, None) => return Verdict::Possible,
        (None, Some(_)) => return refused(Reason::WrongKind, format!("{address} has no vGPU types")),
        (Some(types), _) => types,
    };
    if need.hostdev.as_ref().is_some_and(|hostdev| hostdev.managed) {
        let message = format!(
            "{address} has a vGPU type in a VM and needs managed='no' there: libvirt would bind another driver"
        );
        return refused(Reason::WrongKind, message);
    }
    if options.driver.is_some() || options.managed == Some(true) {
        let message = format!(
            "{address} has a vGPU type in a VM and stays on its driver: neither managed=yes nor a driver goes with it"
        );
        return refused(Reason::WrongKind, message);
    }
    let Some(wanted) = &options.vgpu_type else {
        let can = types_of(&types.creatable);
        let message = format!("{address} needs a vgpu-type before a VM can use it; it can have: {can}");
        return if types.current.is_none() { refused(Reason::WrongKind, message) } else { Verdict::Possible };
    };
    let found = vgpu_type_id(inventory, wanted, function);
    match (types.current, found) {
        // What it could become shows only when that is taken away.
        (Some(current), Some(_)) => Verdict::LastResort(Refusal::new(
            Reason::InUse,
            format!("{address} has the vGPU type {current}, which nobody has claimed"),
        )),
        (Some(current), None) => {
            let message = format!(
                "{address} has the vGPU type {current}, which nobody has claimed, and does not tell while it has that which number \
                 {wanted} is: give the number, or take the type away: hostdevctl vgpu-type {address} none"
            );
            refused(Reason::NoInstance, message)
        }
        (None, Some(id)) if types.creatable.iter().any(|known| known.id == id) => Verdict::Possible,
        (None, _) => {
            let can = types_of(&types.creatable);
            refused(Reason::NoInstance, format!("{address} cannot have the vGPU type {wanted} now; it can have: {can}"))
        }
    }
}

/// The number of the vGPU type that is wanted of a function. While it has another one its own list is short: then those of its like know.
fn vgpu_type_id(inventory: &Inventory, wanted: &WantedVgpu, function: &Function) -> Option<VgpuTypeId> {
    let like = || inventory.functions().filter(|other| other.ids == function.ids);
    wanted.find(function.vgpu.as_ref()?).or_else(|| like().find_map(|other| wanted.find(other.vgpu.as_ref()?)))
}

fn types_of(types: &[VgpuType]) -> String {
    if types.is_empty() {
        return "none now".into();
    }
    let list: Vec<String> = types.iter().take(12).map(|known| format!("{} ({})", known.id, known.name)).collect();
    let more = if types.len() > 12 { format!(" and {} more", types.len() - 12) } else { String::new() };
    format!("{}{more}", list.join(", "))
}

/// Why no function is even meant.
fn nothing_there(inventory: &Inventory, need: &FunctionNeed) -> Refusal {
    let address = match &need.wanted {
        WantedFunction::Address(address) => *address,
        WantedFunction::Card(card) => {
            if let Some(function) = inventory.functions().find(|function| function.address.card() == *card) {
                return Refusal::new(Reason::Bridge, bridge(function));
            }
            card.function(0)
        }
        WantedFunction::Any { .. } => return none_fits(inventory, need),
    };
    let what = match &need.wanted {
        WantedFunction::Card(card) => format!("the PCI card {card}"),
        wanted => wanted.to_string(),
    };
    // Virtual functions are often just not there yet.
    let near = |f: &&alloc::sync::Arc<Function>| {
        let empty = matches!(&f.role, Role::Pf(physical) if physical.vfs.is_empty() && physical.total_vfs > 0);
        empty && f.address.domain == address.domain && f.address.bus == address.bus
    };
    let hint = match inventory.functions().find(near) {
        Some(pf) => {
            format!("; if it is a virtual function of {0}, make those first: hostdevctl vfs {0} COUNT", pf.address)
        }
        None => "; 'hostdevctl list' shows what there is".into(),
    };
    Refusal::new(Reason::NotFound, format!("this host does not have {what}{hint}"))
}

/// Why not even one function is of the kind that is wanted.
fn none_fits(inventory: &Inventory, need: &FunctionNeed) -> Refusal {
    let WantedFunction::Any { pf, .. } = &need.wanted else {
        return Refusal::new(Reason::NotFound, need.wanted.to_string());
    };
    let typed = if need.options.vgpu_type.is_some() { " with vGPU types" } else { "" };
    let can_make = |function: &&alloc::sync::Arc<Function>| matches!(&function.role, Role::Pf(physical) if physical.vfs.is_empty() && physical.total_vfs > 0);
    let fits = |function: &&alloc::sync::Arc<Function>| {
        matches!(function.role, Role::Pf(_)) && need.wanted.ids_fit(function.ids) && !ids_open(&need.wanted)
    };
    let hint = match (pf.and_then(|pf| inventory.function(&pf)).filter(can_make), inventory.functions().find(fits)) {
        (Some(pf), _) => format!("make them first: hostdevctl vfs {} COUNT", pf.address),
        (None, Some(whole)) if typed.is_empty() => format!(
            "{} is a physical function, which is given away only to those who ask for it with kind=pci or its address",
            whole.address
        ),
        _ => "'hostdevctl list' shows what there is".into(),
    };
    Refusal::new(Reason::NotFound, format!("this host does not have {}{typed}; {hint}", need.wanted))
}

/// One sentence for the whole need.
fn summary(need: &FunctionNeed, candidates: &[FunctionCandidate]) -> Refusal {
    let mut refusals: Vec<&Refusal> =
        candidates.iter().filter_map(|candidate| refusal_of(&candidate.verdict)).collect();
    // Those that came nearest first: who has it is worth more than why another one could never have done.
    refusals.sort_by_key(|refusal| refusal.reason);
    let Some(first) = refusals.first() else { return Refusal::new(Reason::NotFound, need.wanted.to_string()) };
    let mut parts: Vec<&str> = refusals.iter().take(4).map(|refusal| refusal.message.as_str()).collect();
    let more = format!("and {} more; 'hostdevctl explain' lists them", refusals.len().saturating_sub(4));
    if refusals.len() > 4 {
        parts.push(&more);
    }
    Refusal::new(first.reason, told(need, &parts.join("; ")))
}

/// The sentence for a need; one that names an address says it in the reason already.
fn told(need: &FunctionNeed, why: &str) -> String {
    match need.wanted {
        WantedFunction::Address(_) => format!("no device for '{}': {why}", need.name),
        _ => format!("no device for '{}' ({}): {why}", need.name, need.wanted),
    }
}

/// The promise of a function: what it becomes, and what it was.
pub fn grant_function(inventory: &Inventory, need: &FunctionNeed, name: &str, function: &Function) -> Grant {
    let options = &need.options;
    let managed = match &need.hostdev {
        Some(hostdev) => hostdev.managed,
        None => options.managed.unwrap_or(function.vgpu.is_none()),
    };
    let typed = function.vgpu.is_some();
    let vgpu_type: Option<VgpuTypeId> =
        options.vgpu_type.as_ref().and_then(|wanted| vgpu_type_id(inventory, wanted, function));
    // A manual claim's function is bound for whoever made the claim: no libvirt is there to do it.
    let bind = !typed && (!managed || need.hostdev.is_none());
    let driver: Option<DriverName> = if bind { options.driver.clone().or_else(|| VFIO_PCI.parse().ok()) } else { None };
    let interface = need.hostdev.as_ref().is_some_and(|hostdev| hostdev.interface);
    let vf = match function.role {
        Role::Vf { pf, index } => {
            let was = inventory.function(&pf).and_then(|pf| settings_of(pf, index)).unwrap_or_default();
            let mut set = options.set;
            if interface {
                // libvirt sets these itself and would write over ours.
                set = VfSettings { mac: None, vlan: None, qos: None, ..set };
            } else if set.mac.is_none() && was.mac == Some(MacAddress::ZERO) {
                // A guest's driver would make up another address at each start: it keeps the one that the host's driver has.
                set.mac = function.netdevs.iter().find_map(|netdev| netdev.mac);
            }
            let netdev_mac_was = function.netdevs.iter().find_map(|netdev| netdev.mac);
            Some(GrantedVf { pf, index, set: set.changed_from(&was), was, netdev_mac_was })
        }
        _ => None,
    };
    Grant {
        request: name.into(),
        device: Granted::Pci(GrantedFunction {
            address: function.address,
            managed,
            interface,
            driver,
            vgpu_type,
            vf,
            driver_was: function.driver.clone(),
            override_was: function.driver_override.clone(),
        }),
        undo: Undo::Restore,
        xml: need.xml.clone(),
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
