//! The findings about the host: what all of its devices depend on.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use super::boot::change;
use super::facts::{
    CommandLine, Distribution, HookEntry, HostFacts, Libvirt, Memlock, Module, Parameter, Surroundings, VfioFile,
};
use super::{Finding, Note, iommu, list};

/// A limit of locked memory below which there is hardly a VM that starts with a device.
const SMALLEST_VM: u64 = 1 << 30;

/// The parameters that have to do with devices for VMs.
const OURS: [&str; 8] =
    ["intel_iommu", "amd_iommu", "iommu", "intremap", "nointremap", "pcie_acs_override", "nomodule", "acpi"];

/// The findings about the host, in the order in which things are put right. Of what is not known nothing is said, but that it could not
/// be read.
pub fn check_host(host: &HostFacts) -> Vec<Finding> {
    let subjects: [(&str, Vec<Note>); 13] = [
        ("container", container(host).into_iter().collect()),
        ("iommu", iommu::check(host).into_iter().collect()),
        ("interrupt remapping", interrupts(host)),
        ("isolation", isolation(host).into_iter().collect()),
        ("kernel command line", command_line(host)),
        ("vfio", vfio(host)),
        ("/dev/vfio", vfio_file(host).into_iter().collect()),
        ("libvirt", libvirt(host).into_iter().collect()),
        ("libvirt hook", hook(host).into_iter().collect()),
        ("memlock", memlock(host).into_iter().collect()),
        ("mdev", mdev(host).into_iter().collect()),
        ("vendor services", vendor_services(host)),
        ("facts", unread(host).into_iter().collect()),
    ];
    let finding = |(subject, notes): (&str, Vec<Note>)| {
        let mut notes = notes.into_iter();
        Some(Finding::of(subject, notes.next()?, notes))
    };
    subjects.into_iter().filter_map(finding).collect()
}

fn container(host: &HostFacts) -> Option<Note> {
    let Surroundings::Container(by) = &host.surroundings else { return None };
    let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
    let message =
        format!("this is a container{by}: who has a device open, and how the host boots, cannot be seen from inside");
    Some(Note::setup("container", message, "run mdevd on the host itself"))
}

/// What stands in the way of giving any device to a VM while interrupts are not remapped.
pub(super) fn interrupts(host: &HostFacts) -> Vec<Note> {
    // Without an IOMMU there is no interrupt remapping either, and that has been said.
    if iommu::is_on(host) != Some(true) {
        return vec![];
    }
    let unsafe_ones = host.unsafe_interrupts == Some(true);
    match host.interrupt_remapping {
        None => vec![],
        Some(true) if unsafe_ones => {
            let message = "it is on, and VFIO is told to do without it all the same (allow_unsafe_interrupts)";
            vec![Note::warning("unsafe-interrupts", message, unsafe_interrupts_off(host))]
        }
        Some(true) => vec![Note::ready("it is on")],
        Some(false) if unsafe_ones => {
            let message = "it is off, and VFIO is told to do without it (allow_unsafe_interrupts): a VM with a device can send the host \
                           any interrupt; trust each such VM as the host itself";
            vec![Note::warning("unsafe-interrupts", message, remapping_on(host))]
        }
        Some(false) => {
            let message =
                "it is off: VFIO gives no VM a device, and its start fails with EPERM (Operation not permitted)";
            vec![Note::setup("no-interrupt-remapping", message, remapping_on(host))]
        }
    }
}

fn remapping_on(host: &HostFacts) -> String {
    let line = host.command_line.iter().flat_map(CommandLine::parameters);
    let off: Vec<String> = line.filter(turns_remapping_off).map(|parameter| parameter.text.into()).collect();
    if !off.is_empty() {
        return change(host, &off, &[]);
    }
    match host.surroundings {
        Surroundings::Vm(_) => {
            "give the VM's virtual IOMMU <driver intremap='on'/>, and the VM <ioapic driver='qemu'/> in <features>"
        }
        _ => "turn on interrupt remapping (on some boards \"x2APIC\") in the firmware setup, or update the firmware",
    }
    .into()
}

fn turns_remapping_off(parameter: &Parameter<'_>) -> bool {
    parameter.name == "nointremap" || parameter.name == "intremap" && parameter.has("off")
}

fn unsafe_interrupts_off(host: &HostFacts) -> String {
    let line = host.command_line.iter().flat_map(CommandLine::parameters);
    let given: Vec<String> = line
        .filter(|parameter| parameter.name == "vfio_iommu_type1.allow_unsafe_interrupts")
        .map(|parameter| parameter.text.into())
        .collect();
    if given.is_empty() {
        "remove it from the file that 'grep -rl allow_unsafe_interrupts /etc/modprobe.d' prints, and reboot".into()
    } else {
        change(host, &given, &[])
    }
}

fn isolation(host: &HostFacts) -> Option<Note> {
    if iommu::is_on(host) != Some(true) {
        return None;
    }
    let Some(given) = host.command_line.as_ref()?.last("pcie_acs_override") else {
        return Some(Note::ready("IOMMU groups are as the hardware isolates them"));
    };
    let message = format!(
        "{} makes IOMMU groups smaller than what the hardware isolates: a VM's device can reach the memory of others that were of its \
         group, the host's too",
        given.text
    );
    Some(Note::warning("acs-override", message, change(host, &[given.text.into()], &[])))
}

fn command_line(host: &HostFacts) -> Vec<Note> {
    let Some(line) = &host.command_line else { return vec![] };
    let mut notes = vec![];
    let off: Vec<String> = if iommu::is_on(host) == Some(false) { iommu::switched_off_by(line) } else { vec![] };
    if !off.is_empty() {
        notes.push(Note::setup("iommu-switched-off", format!("{} keeps the IOMMU off", list(&off)), "see iommu"));
    }
    if host.vfio_pci != Module::Present {
        notes.extend(line.parameters().filter_map(|parameter| keeps_out(host, &parameter)));
    }
    if notes.is_empty() {
        let ours = |parameter: &Parameter<'_>| {
            OURS.contains(&parameter.name.as_str())
                || parameter.name.starts_with("vfio")
                || parameter.name.starts_with("iommu.")
        };
        let given: Vec<String> = line.parameters().filter(ours).map(|parameter| parameter.text.into()).collect();
        notes.push(Note::ready(match given.as_slice() {
            [] => "it says nothing about the IOMMU or VFIO".to_string(),
            given => format!("it says {}", given.join(" ")),
        }));
    }
    notes
}

/// What a parameter says against `vfio-pci`. (`modprobe.blacklist` says nothing to those who load it by name.)
fn keeps_out(host: &HostFacts, parameter: &Parameter<'_>) -> Option<Note> {
    let ours = |module: &&str| matches!(*module, "vfio_pci" | "vfio-pci");
    let fix = match parameter.name.as_str() {
        "nomodule" => change(host, &[parameter.text.into()], &[]),
        "module_blacklist" if parameter.values().any(|module| ours(&module)) => {
            let others: Vec<&str> = parameter.values().filter(|module| !ours(module)).collect();
            let instead = format!("module_blacklist={}", others.join(","));
            let add = [instead.as_str()];
            change(host, &[parameter.text.into()], if others.is_empty() { &[] } else { &add })
        }
        _ => return None,
    };
    Some(Note::setup("module-blocked", format!("{} keeps vfio-pci from being loaded", parameter.text), fix))
}

/// What stands in the way of binding any device to `vfio-pci`.
pub(super) fn vfio(host: &HostFacts) -> Vec<Note> {
    let all = [("vfio", host.vfio), ("vfio-pci", host.vfio_pci), ("vfio_iommu_type1", host.vfio_iommu_type1)];
    let those = |state: Module| all.iter().filter(|(_, is)| *is == state).map(|(name, _)| *name).collect::<Vec<_>>();
    let mut notes = vec![];
    let missing = those(Module::Missing);
    if !missing.is_empty() {
        let fix = match host.distribution {
            Distribution::Debian => {
                "install the rest of the kernel's modules: on Ubuntu 'apt install linux-modules-extra-$(uname -r)', on Debian \
                 'apt install linux-image-amd64' in place of the kernel for clouds"
            }
            Distribution::Fedora => {
                "install the rest of the kernel's modules: 'dnf install kernel-modules-$(uname -r)'"
            }
            Distribution::Suse => {
                "install the whole kernel in place of kernel-default-base: 'zypper install kernel-default'"
            }
            Distribution::Arch | Distribution::Nixos | Distribution::Other => {
                "use a kernel that is built with CONFIG_VFIO_PCI and CONFIG_VFIO_IOMMU_TYPE1"
            }
        };
        notes.push(Note::setup("module-missing", format!("this kernel does not have {}", list(&missing)), fix));
    }
    let loadable = those(Module::Loadable);
    if loadable.contains(&"vfio-pci") {
        // It takes the others along.
        let fix = "run 'modprobe vfio-pci'; for each later boot: 'echo vfio-pci > /etc/modules-load.d/vfio-pci.conf'";
        let message = format!("{} {} not loaded", list(&loadable), if loadable.len() == 1 { "is" } else { "are" });
        notes.push(Note::setup("module-not-loaded", message, fix));
    } else if !loadable.is_empty() && missing.is_empty() {
        let fix = format!("run 'modprobe -a {}'", loadable.join(" "));
        notes.push(Note::setup(
            "module-not-loaded",
            format!("{} not loaded: vfio-pci is of no use alone", list(&loadable)),
            fix,
        ));
    }
    let present = those(Module::Present);
    if notes.is_empty() && !present.is_empty() {
        notes.push(Note::ready(format!("{} {} there", list(&present), if present.len() == 1 { "is" } else { "are" })));
    }
    notes
}

fn vfio_file(host: &HostFacts) -> Option<Note> {
    // Without the module, what is there says nothing of how it will be.
    if host.vfio != Module::Present {
        return None;
    }
    Some(match host.vfio_file? {
        VfioFile::Absent => Note::setup(
            "no-vfio-file",
            "the kernel has VFIO, but there is no /dev/vfio/vfio, which QEMU needs for any device",
            "run 'udevadm trigger --action=add /sys/class/misc/vfio'; without that folder, use a kernel that is built with \
             CONFIG_VFIO_CONTAINER",
        ),
        VfioFile::Mode(mode) if mode & 0o006 != 0o006 => Note::warning(
            "vfio-file-mode",
            format!("/dev/vfio/vfio has mode {:04o}, and QEMU, which is not root, may not open it", mode & 0o7777),
            "run 'chmod 0666 /dev/vfio/vfio', and remove the rule that 'grep -rl vfio /etc/udev/rules.d' prints; access to a device is \
             guarded by /dev/vfio/GROUP, not by this file",
        ),
        VfioFile::Mode(mode) => Note::ready(format!("/dev/vfio/vfio has mode {:04o}", mode & 0o7777)),
    })
}

fn libvirt(host: &HostFacts) -> Option<Note> {
    Some(match host.libvirt? {
        Libvirt::Running(daemon) => Note::ready(format!("{daemon} is running")),
        Libvirt::OnDemand(daemon) => Note::ready(format!("{daemon} is not running and starts when it is called")),
        Libvirt::Stopped(daemon) => Note::setup(
            "libvirt-stopped",
            format!("{daemon} is installed, but it is not running and does not start when it is called"),
            format!("run 'systemctl enable --now {daemon}.socket'"),
        ),
        Libvirt::Absent => {
            let fix = match host.distribution {
                Distribution::Debian => "run 'apt install libvirt-daemon-system'",
                Distribution::Fedora => "run 'dnf install libvirt-daemon-kvm'",
                Distribution::Suse => "run 'zypper install libvirt-daemon-qemu'",
                Distribution::Arch => "run 'pacman -S libvirt qemu-base'",
                Distribution::Nixos => "set virtualisation.libvirtd.enable = true; and run 'nixos-rebuild switch'",
                Distribution::Other => "install libvirt with its QEMU driver",
            };
            let message = "neither libvirtd nor virtqemud is installed: devices can be claimed by hand, but no VM asks for its own";
            Note::setup("no-libvirt", message, fix)
        }
    })
}

fn hook(host: &HostFacts) -> Option<Note> {
    // Without libvirt nobody runs hooks.
    let daemon = host.libvirt.map_or(Some("libvirtd"), Libvirt::daemon)?;
    let entry = "/etc/libvirt/hooks/qemu.d/mdevd";
    // A plain reload fails where the daemon is started on demand and does not run now.
    let again = format!(
        "install mdevd again (its package, or 'make install prefix=/usr'), then run 'systemctl try-reload-or-restart {daemon}'"
    );
    Some(match host.hook? {
        HookEntry::Installed => {
            let beside = match host.other_hooks.as_slice() {
                [] => String::new(),
                others => format!("; beside it there are {}", list(others)),
            };
            Note::ready(format!("{entry} is as it was installed{beside}"))
        }
        HookEntry::Absent => {
            Note::setup("no-hook", format!("there is no {entry}: libvirt does not ask mdevd when a VM starts"), again)
        }
        HookEntry::NotExecutable => Note::setup(
            "hook-not-executable",
            format!("{entry} is not executable: libvirt passes over it and does not ask mdevd when a VM starts"),
            format!("run 'chmod 755 {entry}' and 'systemctl try-reload-or-restart {daemon}'"),
        ),
        HookEntry::Changed => Note::setup(
            "hook-changed",
            format!(
                "{entry} is not what mdevd installs: an entry that fails stops each VM's start, and kills running VMs when {daemon} is \
                 restarted"
            ),
            again,
        ),
        HookEntry::NoProgram => Note::setup(
            "no-hook-program",
            format!(
                "{entry} runs /usr/bin/mdevd-hook, which is not there: libvirt does not ask mdevd when a VM starts"
            ),
            again,
        ),
    })
}

fn memlock(host: &HostFacts) -> Option<Note> {
    let daemon = host.libvirt?.daemon()?;
    Some(match host.memlock? {
        // What libvirt raises for each VM need not be high for itself.
        Memlock { may_raise: true, .. } => {
            Note::ready(format!("{daemon} can raise the limit of locked memory for each VM"))
        }
        Memlock { limit: None, .. } => Note::ready(format!("{daemon} has no limit of locked memory")),
        Memlock { limit: Some(limit), .. } => {
            let size = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{limit} bytes") };
            let message = format!(
                "{daemon} has a limit of {size} of locked memory and may not raise it: a VM with a PCI device and more memory than that \
                 does not start (ENOMEM)"
            );
            let fix = format!(
                "run 'systemctl edit {daemon}', add the lines '[Service]' and 'LimitMEMLOCK=infinity', and run 'systemctl restart {daemon}'"
            );
            if limit < SMALLEST_VM {
                Note::setup("memlock", message, fix)
            } else {
                Note::warning("memlock", message, fix)
            }
        }
    })
}

fn mdev(host: &HostFacts) -> Option<Note> {
    Some(Note::ready(match host.mdev_parents? {
        0 => "no device offers mediated devices".to_string(),
        1 => "one device offers mediated devices".to_string(),
        parents => format!("{parents} devices offer mediated devices"),
    }))
}

/// The service without which no VM with a vGPU of NVIDIA's starts.
const VGPU_MANAGER: &str = "nvidia-vgpu-mgr";

/// What stands in the way of using a vendor's vGPU types.
pub(super) fn vgpu_manager(host: &HostFacts) -> Option<Note> {
    let manager = host.vendor_services.iter().find(|service| service.name == VGPU_MANAGER)?;
    (manager.running == Some(false)).then(|| {
        let message = format!("{VGPU_MANAGER} is not running: no VM with an NVIDIA vGPU starts");
        // The other one makes the types known, once at each boot.
        Note::setup(
            "vgpu-manager-stopped",
            message,
            format!("run 'systemctl enable --now nvidia-vgpud {VGPU_MANAGER}'"),
        )
    })
}

fn vendor_services(host: &HostFacts) -> Vec<Note> {
    let running: Vec<&str> = host
        .vendor_services
        .iter()
        .filter(|service| service.running == Some(true))
        .map(|service| service.name)
        .collect();
    let mut notes: Vec<Note> = vgpu_manager(host).into_iter().collect();
    if running.contains(&"nvidia-persistenced") {
        let message = "nvidia-persistenced is running: it keeps NVIDIA's cards open, so that none can be taken from the host whole";
        let fix = "before a whole card is given to a VM run 'systemctl stop nvidia-persistenced'";
        notes.push(Note::warning("holds-cards", message, fix));
    }
    if notes.is_empty() && !running.is_empty() {
        notes.push(Note::ready(format!(
            "{} {} running",
            list(&running),
            if running.len() == 1 { "is" } else { "are" }
        )));
    }
    notes
}

fn unread(host: &HostFacts) -> Option<Note> {
    let message = format!("this report lacks what could not be read: {}", host.problems.join("; "));
    let fix = "see that mdevd runs as root and is not kept from reading it";
    (!host.problems.is_empty()).then(|| Note::warning("unread", message, fix))
}
