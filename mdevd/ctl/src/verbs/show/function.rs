//! Everything about one PCI function.

use mdevd_core::names::DeviceKey;

use super::{AllHolders, Facts, add_mdevs, claim_of, open_in, types_of};
use crate::outline::Outline;
use crate::table::{BAD, Cell};
use crate::verbs::{number, or_dash, rows, state};
use crate::view::{Function, Host, Physical, Virtual};

/// A function, with its mdevs and types when it is a parent, and its VFs when it is a PF.
pub fn text(function: &Function, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    let mut facts = Facts::of("function", &function.address.to_string());
    facts.add("name", or_dash(&function.name));
    facts.add("class", format!("{} ({:06x})", function.class_name(), function.class));
    facts.add("ids", format!("{}, subsystem {}", function.ids, function.subsystem_ids));
    facts.add("driver", or_dash(&function.driver));
    if !function.driver_override.is_empty() {
        facts.add("override", format!("only {} may bind to it", function.driver_override));
    }
    if !function.variant_drivers.is_empty() {
        facts.add("for VMs", format!("vfio-pci, or its own {}", function.variant_drivers.join(", ")));
    }
    facts.add("NUMA node", number(function.numa_node));
    facts.add("IOMMU group", group(function));
    let resets = function.reset_methods.join(", ");
    facts.add("reset", if resets.is_empty() { "the kernel cannot reset it".to_owned() } else { resets });
    for (name, mac) in &function.netdevs {
        facts.add("network", if mac.is_empty() { name.clone() } else { format!("{name}, {mac}") });
    }
    for why in &function.host_critical {
        facts.add("host-critical", Cell::styled(why, BAD));
    }
    if let Some(physical) = function.physical() {
        add_physical(&mut facts, function, physical, host);
    }
    if let Some(vf) = function.vf() {
        add_vf(&mut facts, vf, host);
    }
    facts.add("state", state(&function.state));
    facts.add("claim", claim_of(function.claim, |grant| grant.address == Some(function.address), host));
    facts.add("held by", open_in(holders.get(&DeviceKey::Pci(function.address))));
    let parent = host.parent_of(function);
    if let Some(parent) = parent {
        add_mdevs(&mut facts, parent, host, holders);
    }
    let mut text = facts.render(width);
    if let Some(parent) = parent {
        text += &types_of(parent, host, width);
    }
    let mut lines = Outline::default();
    rows::vfs(&mut lines, 2, &host.vfs_of(function.address), host, false);
    text + &lines.render(width)
}

fn group(function: &Function) -> String {
    let Some(group) = function.iommu_group else { return "none: without an IOMMU no VM can have it".to_owned() };
    let own = function.address.to_string();
    let others: Vec<&str> = function.group_members.iter().map(String::as_str).filter(|member| *member != own).collect();
    if others.is_empty() { format!("{group}, alone in it") } else { format!("{group}, with {}", others.join(", ")) }
}

fn add_physical(facts: &mut Facts, pf: &Function, physical: &Physical, host: &Host) {
    let vfs = host.vfs_of(pf.address);
    let now = if vfs.is_empty() { "none".to_owned() } else { rows::vf_use(&vfs, host, true) };
    facts.add("VFs", format!("{now}; {} at most", physical.total_vfs));
    let autoprobe = if physical.drivers_autoprobe { "get the drivers that fit" } else { "get no driver" };
    facts.add("new VFs", autoprobe);
    if !physical.eswitch_mode.is_empty() {
        facts.add("eswitch", physical.eswitch_mode.as_str());
    }
}

fn add_vf(facts: &mut Facts, vf: &Virtual, host: &Host) {
    let pf = vf.pf.map_or_else(|| "a PF that is not known".to_owned(), |pf| pf.to_string());
    facts.add("VF", format!("{} of {pf}", vf.index));
    let on_off = |on: bool| if on { "on" } else { "off" };
    // Only a network card's PF says any of these.
    if !vf.mac.is_empty() || !vf.link_state.is_empty() {
        facts.add("MAC", or_dash(&vf.mac));
        facts.add("VLAN", if vf.vlan == 0 { "none".to_owned() } else { vf.vlan.to_string() });
        facts.add("trust", on_off(vf.trust));
        facts.add("spoof check", on_off(vf.spoof_check));
        let rate = |rate: u64| if rate == 0 { "none".to_owned() } else { format!("{rate} Mbit/s") };
        facts.add("rates", format!("min {}, max {}", rate(vf.min_rate), rate(vf.max_rate)));
        facts.add("link", or_dash(&vf.link_state));
    }
    if vf.has_vgpu_types() {
        facts.add("vGPU type", vf.vgpu_type.map_or_else(|| "none".to_owned(), |id| rows::vgpu_type(id, host)));
        if let Some(instance) = vf.gpu_instance {
            facts.add("MIG instance", instance.to_string());
        }
        let can: Vec<String> = vf.creatable_vgpu_types.iter().map(|(id, name)| format!("{name} ({id})")).collect();
        facts.add("could have", or_dash(&can.join(", ")));
    }
}
