//! The JSON of PCI functions, of what is listed by card, and of what the doctor finds.

use serde_json::{Value, json};

use super::{claim_in_short, parent, text, with};
use crate::card::{Card, Use};
use crate::cli::DeviceKind;
use crate::view::{Finding, Function, Host, Parent, Physical, Virtual};

/// A PCI function.
pub fn function(function: &Function, host: &Host) -> Value {
    let netdev = |(name, mac): &(String, String)| json!({ "name": name, "mac": text(mac) });
    json!({
        "address": function.address.to_string(),
        "name": text(&function.name),
        "ids": function.ids,
        "subsystem_ids": function.subsystem_ids,
        "class": format!("{:06x}", function.class),
        "role": function.role(),
        "driver": text(&function.driver),
        "driver_override": text(&function.driver_override),
        "variant_drivers": function.variant_drivers,
        "iommu_group": function.iommu_group,
        "group_members": function.group_members,
        "numa_node": function.numa_node,
        "reset_methods": function.reset_methods,
        "netdevs": function.netdevs.iter().map(netdev).collect::<Vec<_>>(),
        "host_critical": function.host_critical,
        "state": text(&function.state),
        "use": Use::of(function, host).as_str(),
        "claim": function.claim.map(|id| claim_in_short(id, host)),
        "pf": function.physical().map(physical),
        "vf": function.vf().map(|vf| virtual_(vf, host)),
    })
}

fn physical(physical: &Physical) -> Value {
    json!({
        "total_vfs": physical.total_vfs,
        "num_vfs": physical.num_vfs,
        "vfs": physical.vfs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "drivers_autoprobe": physical.drivers_autoprobe,
        "eswitch_mode": text(&physical.eswitch_mode),
    })
}

fn virtual_(vf: &Virtual, host: &Host) -> Value {
    let settings = json!({
        "pf": vf.pf.map(|pf| pf.to_string()),
        "index": vf.index,
        "mac": text(&vf.mac),
        "vlan": vf.vlan,
        "trust": vf.trust,
        "spoof_check": vf.spoof_check,
        "min_rate": vf.min_rate,
        "max_rate": vf.max_rate,
        "link_state": text(&vf.link_state),
    });
    let settings = with(settings, "vgpu_type", vf.vgpu_type.map_or(Value::Null, |id| named(id, host.vgpu_name(id))));
    let settings = with(settings, "creatable_vgpu_types", creatable(vf));
    with(settings, "gpu_instance", vf.gpu_instance.map_or(Value::Null, Value::from))
}

fn creatable(vf: &Virtual) -> Value {
    vf.creatable_vgpu_types.iter().map(|(id, name)| named(*id, Some(name))).collect()
}

fn named(id: u32, name: Option<&str>) -> Value {
    json!({ "id": id, "name": name.and_then(|name| text(name).as_str().map(str::to_owned)) })
}

/// The vGPU type of a VF, and those that it could have.
pub fn vgpu_types(function: &Function, vf: &Virtual, host: &Host) -> Value {
    json!({
        "address": function.address.to_string(),
        "vgpu_type": vf.vgpu_type.map(|id| named(id, host.vgpu_name(id))),
        "creatable_vgpu_types": creatable(vf),
    })
}

/// One of the vendor's vGPU types, of all VFs of a PF; with the keys of an mdev type.
pub fn vgpu_type(pf: &Function, id: u32, name: &str, available: usize, used: usize) -> Value {
    json!({
        "kind": "vgpu",
        "parent": pf.address.to_string(),
        "id": id.to_string(),
        "name": text(name),
        "description": null,
        "device_api": null,
        "available": available,
        "used": used,
    })
}

/// A PF with its VFs.
pub fn vfs(pf: &Function, host: &Host) -> Value {
    let vfs: Value = host.vfs_of(pf.address).into_iter().map(|vf| function(vf, host)).collect();
    with(function(pf, host), "virtual_functions", vfs)
}

/// Every parent and function of what is shown, each once, by name; only those of a kind, if one is given.
pub fn list(cards: &[Card<'_>], parents: &[&Parent], kind: Option<DeviceKind>, host: &Host) -> Value {
    let mut functions: Vec<&Function> =
        cards.iter().flat_map(|card| card.functions.iter().copied().chain(card.vfs(host))).collect();
    functions.sort_by_key(|function| function.address);
    let entries = functions.into_iter().map(|f| (host.parent_of(f), Some(f)));
    let entries = entries.chain(parents.iter().map(|parent| (Some(*parent), None)));
    entries
        .map(|(of, function)| (kinds(of, function), of, function))
        .filter(|(kinds, ..)| kind.is_none_or(|kind| kinds.contains(&kind)))
        .map(|(kinds, of, function)| entry(&kinds, of, function, host))
        .collect()
}

/// As which kinds of device VMs can be given a function, or what is made on it.
fn kinds(of: Option<&Parent>, function: Option<&Function>) -> Vec<DeviceKind> {
    let vf = function.filter(|function| function.vf().is_some()).map(|_| DeviceKind::Vf);
    let whole = function.filter(|function| function.is_whole()).map(|_| DeviceKind::Pci);
    vf.into_iter().chain(whole).chain(of.map(|_| DeviceKind::Mdev)).collect()
}

fn entry(kinds: &[DeviceKind], of: Option<&Parent>, own: Option<&Function>, host: &Host) -> Value {
    let entry = match (of, own) {
        (Some(of), _) => parent(of, host),
        (None, Some(function)) => json!({
            "name": function.address.to_string(),
            "driver": text(&function.driver),
            "numa_node": function.numa_node,
            "state": text(&function.state),
            "types": [],
            "mdevs": [],
        }),
        (None, None) => json!({}),
    };
    let entry = with(entry, "kinds", kinds.iter().map(|kind| kind.as_str()).collect());
    with(entry, "function", own.map_or(Value::Null, |own| function(own, host)))
}

/// Cards with their functions, with their VFs and mdevs; then the parents that are no functions.
pub fn tree(cards: &[Card<'_>], parents: &[&Parent], host: &Host) -> Value {
    let node = |own: &Function| {
        with(function(own, host), "parent", host.parent_of(own).map_or(Value::Null, |p| parent(p, host)))
    };
    let branch = |own: &Function| {
        let vfs: Value = host.vfs_of(own.address).into_iter().map(node).collect();
        with(node(own), "virtual_functions", vfs)
    };
    let card = |card: &Card<'_>| {
        json!({
            "card": card.name(),
            "name": text(&card.lead.name),
            "numa_node": card.lead.numa_node,
            "functions": card.functions.iter().map(|own| branch(own)).collect::<Vec<_>>(),
            "parent": null,
        })
    };
    let other = |of: &&Parent| json!({ "card": null, "name": of.name, "numa_node": of.numa_node, "functions": [], "parent": parent(of, host) });
    cards.iter().map(card).chain(parents.iter().map(other)).collect()
}

/// Something that the doctor finds.
pub fn finding(finding: &Finding) -> Value {
    json!({
        "subject": text(&finding.subject),
        "verdict": text(&finding.verdict),
        "reason": text(&finding.reason),
        "message": text(&finding.message),
        "fix": text(&finding.fix),
    })
}
