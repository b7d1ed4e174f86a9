//! Whether the IOMMU is on, and where it is not: which of firmware, hypervisor and command line keeps it off.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::boot::change;
use super::facts::{CommandLine, CpuVendor, HostFacts, Surroundings};
use super::{Note, list};

/// Whose IOMMU a machine has, or would have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Intel,
    Amd,
    Arm,
    Other,
}

/// Whether the IOMMU is on, where that is known.
pub(super) fn is_on(host: &HostFacts) -> Option<bool> {
    match (&host.iommu_units, host.iommu_groups) {
        // Some architectures have groups and name no units.
        (Some(units), groups) => Some(!units.is_empty() || groups.is_some_and(|groups| groups > 0)),
        (None, Some(groups)) if groups > 0 => Some(true),
        (None, _) => None,
    }
}

/// The parameters by which the IOMMU has been switched off.
pub(super) fn switched_off_by(line: &CommandLine) -> Vec<String> {
    let off = |name: &'static str| {
        // Of these the last counts.
        line.last(name).filter(|parameter| parameter.has("off")).map(|_| name)
    };
    let names: Vec<&str> = ["intel_iommu", "amd_iommu", "acpi"].into_iter().filter_map(off).collect();
    // This one says no for good wherever it stands.
    let given = line.parameters().filter(|parameter| {
        parameter.has("off") && (parameter.name == "iommu" || names.contains(&parameter.name.as_str()))
    });
    given.map(|parameter| parameter.text.into()).collect()
}

/// How the IOMMU stands.
pub(super) fn check(host: &HostFacts) -> Option<Note> {
    match is_on(host)? {
        true => {
            let units = host.iommu_units.as_deref().unwrap_or_default();
            let names = if units.len() > 4 { format!("{} units", units.len()) } else { list(units) };
            let groups =
                host.iommu_groups.map(|groups| if groups == 1 { "1 group".into() } else { format!("{groups} groups") });
            let parts: Vec<String> =
                [Some(names).filter(|names| !names.is_empty()), groups].into_iter().flatten().collect();
            Some(Note::ready(format!("it is on ({})", parts.join(", "))))
        }
        false => Some(why_off(host)),
    }
}

fn why_off(host: &HostFacts) -> Note {
    let kind = match (host.dmar, host.ivrs, host.cpu) {
        (Some(true), ..) => Kind::Intel,
        (_, Some(true), _) => Kind::Amd,
        // A virtual IOMMU is mostly of Intel's kind, whatever the processor.
        (.., CpuVendor::Amd) if matches!(host.surroundings, Surroundings::Vm(_)) => Kind::Intel,
        (.., CpuVendor::Intel) => Kind::Intel,
        (.., CpuVendor::Amd) => Kind::Amd,
        (.., CpuVendor::Arm) => Kind::Arm,
        (.., CpuVendor::Other | CpuVendor::Unknown) => Kind::Other,
    };
    let mut notes: Vec<(&'static str, String, String)> = Vec::new();
    if let Some(note) = not_offered(host, kind) {
        notes.push(note);
    }
    if let Some(line) = &host.command_line {
        let off = switched_off_by(line);
        let asked = line.last("intel_iommu").is_some_and(|parameter| parameter.has("on"));
        let add: &[&str] = if kind == Kind::Intel && !asked { &["intel_iommu=on", "iommu=pt"] } else { &[] };
        let said = match (off.is_empty(), add.is_empty()) {
            (false, _) => {
                let have = if off.len() == 1 { "has" } else { "have" };
                Some((
                    "iommu-switched-off",
                    format!("{} on the kernel's command line {have} switched it off", list(&off)),
                ))
            }
            (true, false) => {
                Some(("iommu-parameter-missing", "the kernel was not told to use it (intel_iommu=on)".to_string()))
            }
            (true, true) => None,
        };
        if let Some((reason, message)) = said {
            notes.push((reason, message, change(host, &off, add)));
        }
    }
    if notes.is_empty() {
        notes.push(not_found(kind));
    }
    let reason = notes.first().map_or("iommu-off", |note| note.0);
    let messages: Vec<&str> = notes.iter().map(|note| note.1.as_str()).collect();
    let fixes: Vec<&str> = notes.iter().map(|note| note.2.as_str()).collect();
    Note::setup(reason, format!("it is off: {}", messages.join("; ")), fixes.join("; then "))
}

/// Why the kernel has none to use: firmware or hypervisor give it none.
fn not_offered(host: &HostFacts, kind: Kind) -> Option<(&'static str, String, String)> {
    let table = match kind {
        Kind::Intel => host.dmar,
        Kind::Amd => host.ivrs,
        // Theirs are described in more ways than one; that there is none in use says it.
        Kind::Arm | Kind::Other => Some(false),
    };
    if table != Some(false) {
        return None;
    }
    if let Surroundings::Vm(by) = &host.surroundings {
        let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
        let message = format!("this machine is itself a VM{by}, and its hypervisor gives it no IOMMU");
        let fix = match kind {
            Kind::Intel | Kind::Amd => {
                "give the VM a virtual IOMMU: under libvirt a q35 machine with <iommu model='intel'><driver intremap='on' \
                 caching_mode='on'/></iommu> in <devices> and <ioapic driver='qemu'/> in <features>"
            }
            Kind::Arm => "give the VM a virtual IOMMU: under libvirt <iommu model='smmuv3'/> in <devices>",
            Kind::Other => "give the VM a virtual IOMMU",
        };
        return Some(("no-virtual-iommu", message, fix.into()));
    }
    let (table, fix) = match kind {
        Kind::Intel => {
            ("DMAR", "turn on VT-d (\"Intel Virtualization Technology for Directed I/O\") in the firmware setup")
        }
        Kind::Amd => (
            "IVRS",
            "turn on SVM and IOMMU (\"AMD-Vi\", on some boards below \"AMD CBS\", \"NBIO\") in the firmware setup",
        ),
        Kind::Arm | Kind::Other => return None,
    };
    Some(("no-iommu-table", format!("the firmware describes none (no ACPI table {table})"), fix.into()))
}

/// What is left when nothing keeps it off.
fn not_found(kind: Kind) -> (&'static str, String, String) {
    let (message, fix) = match kind {
        Kind::Arm => (
            "the firmware describes no SMMU that the kernel uses",
            "turn on the SMMU in the firmware setup, or use firmware that describes it; what the kernel found: 'dmesg | grep -i smmu'",
        ),
        Kind::Intel => (
            "the kernel does not use it, and nothing that is known keeps it off",
            "see what the kernel says: 'dmesg | grep -i -e DMAR -e IOMMU'; a firmware update may help",
        ),
        Kind::Amd => (
            "the kernel does not use it, and nothing that is known keeps it off",
            "see what the kernel says: 'dmesg | grep -i -e AMD-Vi -e IOMMU'; a firmware update may help",
        ),
        Kind::Other => ("the kernel uses none", "see what the kernel says: 'dmesg | grep -i iommu'"),
    };
    ("iommu-off", message.into(), fix.into())
}
