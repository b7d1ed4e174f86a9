//! What the daemon answers to those who ask: candidates, findings, and what a word means.

use mdevd_dbus::{Dict, TextDict, path};
use zbus::OwnedObjectPath;

use super::functions::{self, Function, vm};
use super::{Calls, FOREIGN, GPU, Host, MANUAL, STUCK, VM, dict, uuid};

fn candidate(request: &str, device: &str, parent: &str, [verdict, reason, message]: [&str; 3]) -> Dict {
    dict([
        ("request", request.into()),
        ("device", device.into()),
        ("parent", parent.into()),
        ("verdict", verdict.into()),
        ("reason", reason.into()),
        ("message", message.into()),
    ])
}

/// The names of what a request stands for.
fn names(request: &TextDict) -> Vec<String> {
    match request.get("count") {
        None => vec![request["name"].clone()],
        Some(count) => (1..=count.parse().unwrap()).map(|n: u32| format!("{}.{n}", request["name"])).collect(),
    }
}

pub fn mdev_candidates(requests: &[TextDict]) -> Vec<Dict> {
    let mut candidates = Vec::new();
    for (request, name) in
        requests.iter().flat_map(|request| names(request).into_iter().map(move |name| (request, name)))
    {
        let mut one = |parent: &str, said: [&str; 3]| candidates.push(candidate(&name, "", parent, said));
        match request.get("type").map(String::as_str) {
            Some("mtty-2") => one("mtty", ["chosen", "no-instance", "no instance of mtty-2 is left on mtty"]),
            Some("nvidia-63") => {
                one("0000:42:00.0", ["possible", "", ""]);
                one("0000:41:00.0", ["chosen", "", ""]);
                one("mtty", ["refused", "no-such-type", "mtty does not offer nvidia-63"]);
            }
            _ => one(
                "0000:41:00.0",
                [
                    "refused",
                    "no-instance",
                    "0000:41:00.0 says that it has no instance of this type left: domain vm1 has gpu0, and somebody else has made 0d9e6f3a-1111-4222-8333-444455556666",
                ],
            ),
        }
    }
    candidates
}

/// All VFs of the GPU that is free in part: the first that is free is chosen, those of VMs are refused.
pub fn function_candidates(calls: &Calls, requests: &[TextDict]) -> Vec<Dict> {
    let vfs: Vec<Function> = functions::functions(calls).into_iter().filter(|f| f.vf.is_some()).collect();
    let of_gpu = vfs.iter().filter(|vf| vf.address.starts_with("0000:41"));
    let (used, free): (Vec<&Function>, Vec<&Function>) = of_gpu.partition(|vf| vf.claim.is_some());
    let mut candidates = Vec::new();
    for name in requests.iter().flat_map(names) {
        for (index, vf) in free.iter().enumerate() {
            let verdict = if index == 0 { "chosen" } else { "possible" };
            candidates.push(candidate(&name, &vf.address, "0000:41:00.0", [verdict, "", ""]));
        }
        for vf in &used {
            let message = format!("{} is already promised to a domain", vf.address);
            candidates.push(candidate(&name, &vf.address, "0000:41:00.0", ["refused", "in-use", &message]));
        }
    }
    candidates
}

fn finding(subject: &str, verdict: &str, reason: &str, message: &str, fix: &str) -> Dict {
    dict([
        ("subject", subject.into()),
        ("verdict", verdict.into()),
        ("reason", reason.into()),
        ("message", message.into()),
        ("fix", fix.into()),
    ])
}

/// What the doctor finds: of a host without devices that nothing is set up, of the others that all is well but for a few of the devices.
pub fn findings(host: Host, calls: &Calls, device: Option<&str>) -> Vec<Dict> {
    if host == Host::Empty {
        return vec![
            finding(
                "iommu",
                "needs-setup",
                "iommu-off",
                "the IOMMU is off: no PCI function can be given to a VM",
                "add 'intel_iommu=on iommu=pt' to GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub, run 'update-grub' and reboot",
            ),
            finding(
                "vfio",
                "needs-setup",
                "module-missing",
                "vfio-pci is not loaded",
                "modprobe vfio-pci\necho vfio-pci > /etc/modules-load.d/vfio-pci.conf",
            ),
        ];
    }
    let mut findings = vec![
        finding("iommu", "ready", "ok", "dmar0 to dmar3 are in use", ""),
        finding(
            "libvirt hook",
            "ready-with-warning",
            "no-hook",
            "libvirt does not call mdevd when a VM starts",
            "systemctl reload libvirtd",
        ),
    ];
    let all = functions::functions(calls);
    for function in all.iter().filter(|function| device.is_none_or(|device| device == function.address)) {
        let address = function.address.as_str();
        let group = function.group;
        let others: Vec<&str> =
            function.members.iter().map(String::as_str).filter(|member| *member != address).collect();
        let vfs = format!("before it is given away itself: hostdevctl vfs {address} 0");
        findings.push(match (function.class >> 16, function.critical.first(), function.pf) {
            (0x06, ..) => finding(
                address,
                "refused",
                "bridge",
                "it is a bridge, and what is behind it can be given to a VM in its place",
                "",
            ),
            (_, Some(why), _) => {
                finding(address, "refused", "host-critical", &format!("the host itself needs it: it {why}"), "")
            }
            (.., Some((_, 1..))) => {
                finding(address, "ready-with-warning", "has-vfs", "its VFs vanish when it is given away itself", &vfs)
            }
            _ if !others.is_empty() => finding(
                address,
                "ready-with-warning",
                "shared-group",
                &format!(
                    "it shares IOMMU group {group} with {}: one VM gets all of them, or nobody any",
                    others.join(" and ")
                ),
                "",
            ),
            _ => finding(address, "ready", "ok", &format!("it can be given to a VM, alone in IOMMU group {group}"), ""),
        });
    }
    findings
}

pub fn find(host: Host, calls: &Calls, what: &str) -> Vec<OwnedObjectPath> {
    let claim = |id: &str| vec![path::claim(uuid(id))];
    match (host, what) {
        (Host::Empty, _) => Vec::new(),
        (_, "mtty") => vec![path::parent(what)],
        (_, STUCK | GPU) => vec![path::mdev(uuid(what))],
        (_, "vm1" | VM) => claim(VM),
        (_, MANUAL) => claim(MANUAL),
        (_, "both") => vec![path::parent("mtty"), path::mdev(uuid(STUCK))],
        (Host::Mdevs, "0000:41:00.0" | "0000:42:00.0") => vec![path::parent(what)],
        (Host::Mdevs, FOREIGN) => vec![path::mdev(uuid(what))],
        (Host::Mdevs, _) => Vec::new(),
        (Host::Functions, _) => {
            let number = what.strip_prefix("vm").and_then(|number| number.parse().ok());
            if let Some(number) = number {
                return claim(&vm(number));
            }
            let parent = (what == "0000:00:02.0").then(|| path::parent(what));
            let card = format!("{}{what}.", if what.matches(':').count() == 1 { "0000:" } else { "" });
            let all = functions::functions(calls).into_iter().map(|function| function.address);
            let found = all.filter(|address| address == what || address.starts_with(&card));
            parent.into_iter().chain(found.map(|address| path::function(&address))).collect()
        }
    }
}
