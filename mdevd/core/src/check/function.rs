//! Whether one PCI function can be given to a VM.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::facts::HostFacts;
use super::{Finding, Grade, Note, host as of_host, iommu, list};
use crate::choose::Reason;
use crate::function::{Function, Role};
use crate::inventory::{DeviceState, Inventory};
use crate::names::IommuGroupId;
use crate::plan::is_vfio;

/// PCI's class of bridges, the highest of the class's three bytes; those that lead to no bus are parts of the chipset.
const BRIDGES: u32 = 0x06;

/// What is said of one function: the worst counts, and the message has all that applies. Whom it is promised to and who has it open is
/// not asked here.
pub fn check_function(inventory: &Inventory, function: &Function, host: &HostFacts) -> Finding {
    let mut notes = Vec::new();
    if function.bridge {
        let message = "it is a bridge, and what is behind it can be given to a VM in its place";
        notes.push(Note::refused(Reason::Bridge.as_str(), message, ""));
    } else if function.class >> 16 == BRIDGES {
        let message = "it is a part of the chipset, which the host may need in ways that cannot be seen";
        notes.push(Note::refused(Reason::Bridge.as_str(), message, ""));
    }
    if !function.host_critical.is_empty() {
        let message = format!("the host itself needs it: it {}", list(&function.host_critical));
        notes.push(Note::refused(Reason::HostCritical.as_str(), message, ""));
    }
    if let DeviceState::Stuck(why) = &function.state {
        let fix = "wait until that ends; if a VM has it open, shut that VM down";
        notes.push(Note::refused(Reason::Stuck.as_str(), format!("it is stuck: {why}"), fix));
    }
    // What no VM is ever given needs no setup.
    if !function.bridge {
        match function.iommu_group {
            Some(group) => {
                notes.extend(of_group(inventory, function, group));
                if host.interrupt_remapping == Some(false) {
                    notes.extend(
                        of_host::interrupts(host)
                            .into_iter()
                            .map(|note| Note { message: format!("interrupt remapping: {}", note.message), ..note }),
                    );
                }
            }
            None => notes.push(no_group(host)),
        }
        notes.extend(of_drivers(function, host));
        notes.extend(of_role(function));
        if function.reset_methods.is_empty() && function.vgpu.is_none() {
            let message = "the kernel cannot reset it: what one VM leaves in it the next one finds, and it may work only once after a boot";
            notes.push(Note::warning("no-reset", message, "reboot the host when it no longer works"));
        }
    }
    let subject = function.address.to_string();
    match notes.iter().position(|note| note.grade != Grade::Ready) {
        Some(index) => Finding::of(subject, notes.remove(index), notes),
        None => {
            let group = function.iommu_group.map(|group| format!(", alone in IOMMU group {group}")).unwrap_or_default();
            Finding::of(subject, Note::ready(format!("it can be given to a VM{group}")), notes)
        }
    }
}

/// What of its IOMMU group stands in the way. Bridges may be in any group.
fn of_group(inventory: &Inventory, function: &Function, group: IommuGroupId) -> Vec<Note> {
    let members = inventory.group_members(group).filter(|member| member.address != function.address && !member.bridge);
    let (critical, others): (Vec<&Function>, Vec<&Function>) =
        members.map(|member| &**member).partition(|member| !member.host_critical.is_empty());
    let mut notes = Vec::new();
    if !critical.is_empty() {
        let names = critical.iter().map(|member| {
            format!("{}, which the host itself needs (it {})", named(member), list(&member.host_critical))
        });
        let message = format!("it shares IOMMU group {group} with {}", list(&names.collect::<Vec<_>>()));
        let fix = "put its card into another slot, so that it gets a group of its own";
        notes.push(Note::refused(Reason::GroupNotIsolated.as_str(), message, fix));
    }
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|member| named(member)).collect();
        let message =
            format!("it shares IOMMU group {group} with {}: one VM gets all of them, or nobody any", list(&names));
        let card = function.address.card();
        let fix = if others.iter().all(|member| member.address.card() == card) {
            format!("ask for the whole card: address={card}")
        } else {
            "ask for all of them in one VM, or put the card into another slot, so that it gets a group of its own"
                .into()
        };
        notes.push(Note::warning("shared-group", message, fix));
    }
    notes
}

/// `0000:41:00.1 (NVIDIA … Audio Controller, driver snd_hda_intel)`.
fn named(function: &Function) -> String {
    let driver = function.driver.as_ref().map(|driver| format!("driver {driver}"));
    let name = (!function.name.is_empty()).then(|| function.name.clone());
    let parts: Vec<String> = [name, driver].into_iter().flatten().collect();
    if parts.is_empty() { function.address.to_string() } else { format!("{} ({})", function.address, parts.join(", ")) }
}

fn no_group(host: &HostFacts) -> Note {
    let reason = Reason::NoIommu.as_str();
    match iommu::is_on(host) {
        Some(true) => Note::setup(
            reason,
            "it has no IOMMU group although the IOMMU is on: the firmware's description of the IOMMU leaves it out",
            "update the firmware, or put the card into another slot",
        ),
        on => {
            let off = on.and_then(|_| iommu::check(host));
            let (why, fix) =
                off.map(|off| (format!(", since the IOMMU is not on ({})", off.message), off.fix)).unwrap_or_default();
            Note::setup(
                reason,
                format!("it has no IOMMU group{why}: in a VM it could reach the memory of the host and of all others"),
                fix,
            )
        }
    }
}

fn of_drivers(function: &Function, host: &HostFacts) -> Vec<Note> {
    let mut notes = Vec::new();
    let bound = function.driver.as_ref().filter(|driver| is_vfio(driver));
    if function.vgpu.is_some() {
        // It stays with the vendor's driver.
        notes.extend(of_host::vgpu_manager(host));
    } else if bound.is_none() {
        notes.extend(of_host::vfio(host).into_iter().filter(|note| note.grade != Grade::Ready));
    }
    if let Some(only) = &function.driver_override
        && bound != Some(only)
    {
        let driver = function.driver.as_ref().map_or("none".into(), ToString::to_string);
        let message = format!(
            "somebody has left the override {only} on it (its driver is {driver}): no other driver binds to it by itself"
        );
        let fix = format!("run 'echo > /sys/bus/pci/devices/{}/driver_override' as root", function.address);
        notes.push(Note::warning("override", message, fix));
    }
    notes
}

fn of_role(function: &Function) -> Option<Note> {
    let Role::Pf(physical) = &function.role else { return None };
    let address = function.address;
    match (physical.num_vfs(), physical.total_vfs) {
        (0, 0) => None,
        (0, total) => {
            let message = format!("it can make up to {total} virtual functions, and has none now");
            Some(Note { fix: format!("to make some: hostdevctl vfs {address} COUNT"), ..Note::ready(message) })
        }
        (now, _) => {
            let message =
                format!("its {now} virtual functions can be given to VMs, and vanish when it is given away itself");
            Some(Note::warning(
                "has-vfs",
                message,
                format!("before it is given away itself: hostdevctl vfs {address} 0"),
            ))
        }
    }
}
