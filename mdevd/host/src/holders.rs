//! Who has a device open, found by reading the links in `/proc/*/fd`.
//!
//! That sees libvirt's QEMU, whose `/dev` is its own, and needs no open of `/dev/vfio/N`, which would itself hold the device or disturb
//! a guest. It needs to see every process: one that cannot be read may hold anything, and then the answer is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mdevd_core::holders::{Holder, Holders};
use mdevd_core::names::{DeviceKey, IommuGroupId};

use crate::error::{EffectError, describe_errno};
use crate::roots::Roots;
use crate::{process, read};

/// Who has these devices open, in one pass over all processes. The IOMMU group is the one that the caller knows of; the one that
/// sysfs says now counts as well.
pub fn holders(roots: &Roots, devices: &[(DeviceKey, Option<IommuGroupId>)]) -> BTreeMap<DeviceKey, Holders> {
    match search(roots, devices) {
        Ok(found) => found.into_iter().map(|(key, list)| (key, Holders::Known(list.into_iter().collect()))).collect(),
        Err(why) => devices.iter().map(|(key, _)| (*key, Holders::Unknown(why.clone()))).collect(),
    }
}

type Found = BTreeMap<DeviceKey, BTreeSet<Holder>>;

/// The devices behind each node. Functions of one IOMMU group share theirs, and are all held while it is open.
type Nodes = BTreeMap<String, BTreeSet<DeviceKey>>;

fn search(roots: &Roots, devices: &[(DeviceKey, Option<IommuGroupId>)]) -> Result<Found, String> {
    let mut found = Found::new();
    let mut nodes = Nodes::new();
    for (key, group) in devices {
        found.entry(*key).or_default();
        for node in device_nodes(roots, key, *group).map_err(|error| error.to_string())? {
            nodes.entry(node).or_default().insert(*key);
        }
    }
    let devices: BTreeMap<String, DeviceKey> = found.keys().map(|key| (key.to_string(), *key)).collect();
    let mut whole = false;
    for name in read::folder(&roots.proc).map_err(|error| error.to_string())?.unwrap_or_default() {
        let Ok(pid) = name.parse::<u32>() else { continue };
        whole |= pid == 1;
        match open_files(roots, pid, &nodes, &devices) {
            Ok(held) => {
                for key in held {
                    found.entry(key).or_default().insert(Holder { pid, command: process::command(roots, pid) });
                }
            }
            Err(Unreadable::Gone) => {}
            Err(Unreadable::Why(why)) => return Err(why),
        }
    }
    // Where processes are hidden from us, one that holds a device is not there at all, and so is the first, which always is.
    if !whole {
        return Err(format!(
            "{} does not list process 1; is procfs mounted there? Where it hides processes (hidepid=), mdevd needs CAP_SYS_PTRACE",
            roots.proc.display()
        ));
    }
    Ok(found)
}

/// The names below `/dev/vfio` under which a device can be opened.
fn device_nodes(roots: &Roots, key: &DeviceKey, group: Option<IommuGroupId>) -> Result<Vec<String>, EffectError> {
    let dir = match key {
        DeviceKey::Mdev(uuid) => roots.mdev_dir(uuid),
        // A vendor's vGPU function is a VFIO device as well, with the vendor's driver in place of `vfio-pci`.
        DeviceKey::Pci(address) => roots.pci_dir(address),
    };
    let mut groups: BTreeSet<String> = group.map(|group| group.to_string()).into_iter().collect();
    groups.extend(read::link_name(&dir.join("iommu_group"))?);
    let mut nodes = Vec::new();
    for group in groups {
        nodes.push(format!("/vfio/noiommu-{group}"));
        nodes.push(format!("/vfio/{group}"));
    }
    // The device's own node, which newer kernels give beside that of its group.
    for name in read::folder(&dir.join("vfio-dev"))?.unwrap_or_default() {
        nodes.push(format!("/vfio/devices/{name}"));
    }
    Ok(nodes)
}

enum Unreadable {
    /// The process has ended meanwhile.
    Gone,
    /// Its open files cannot be known.
    Why(String),
}

/// Which of the devices one process has open. `devices` are all that are asked for, by the names of their folders.
fn open_files(
    roots: &Roots,
    pid: u32,
    nodes: &Nodes,
    devices: &BTreeMap<String, DeviceKey>,
) -> Result<BTreeSet<DeviceKey>, Unreadable> {
    let dir = roots.process_dir(pid).join("fd");
    let fail = |error: EffectError| {
        if error.is_gone() {
            return Unreadable::Gone;
        }
        let errno = describe_errno(error.errno);
        Unreadable::Why(format!(
            "the open files of {} (pid {pid}) cannot be read: {errno}",
            process::command(roots, pid)
        ))
    };
    let entries = std::fs::read_dir(&dir).map_err(|error| fail(EffectError::io("list", &dir, &error)))?;
    let mut held = BTreeSet::new();
    // Fds of devices themselves, got from a group's: their links do not say of which.
    let (mut anonymous, mut groups) = (Vec::new(), false);
    for entry in entries {
        let entry = entry.map_err(|error| fail(EffectError::io("list", &dir, &error)))?;
        let at = entry.path();
        let link = match read::link(&at) {
            Ok(Some(link)) => link,
            Ok(None) => continue, // Closed meanwhile.
            Err(error) => return Err(fail(error)),
        };
        let link = link.to_string_lossy();
        // The device's node is removed with the device, while those who have it open keep it.
        let link = link.strip_suffix(" (deleted)").unwrap_or(&link);
        if link == "anon_inode:[vfio-device]" {
            anonymous.push(at);
        } else if let Some(node) = vfio_node(link)
            && node != "/vfio/vfio"
            && is_device(&at)
        {
            groups = true;
            held.extend(nodes.get(node).into_iter().flatten());
        }
    }
    for fd in anonymous {
        match device_of(&fd) {
            Some(path) => held.extend(path.file_name().and_then(|name| devices.get(name.to_str()?))),
            // The kernel does not say; programs keep the group open as long as its device, and then the link of that says it.
            None if groups => {}
            None => {
                let command = process::command(roots, pid);
                return Err(Unreadable::Why(format!(
                    "{command} (pid {pid}) has a VFIO device open, and nothing tells which: it has closed the device's group"
                )));
            }
        }
    }
    Ok(held)
}

/// `/vfio/N` or `/vfio/devices/vfioN` at the end of a link. What stands before is usually `/dev`; a container may have it elsewhere.
fn vfio_node(link: &str) -> Option<&str> {
    let at = link.rfind("/vfio/")?;
    link.get(at..)
}

/// Whether an open file is a device node, and not some file to which a user gave such a name to keep us from freeing a device. Looking
/// at it through the link opens nothing. When that cannot be told it counts as one.
fn is_device(fd: &Path) -> bool {
    std::fs::metadata(fd).map_or(true, |file| file.file_type().is_char_device())
}

/// The sysfs folder of the device behind an anonymous fd, which kernels from 6.17 on say.
fn device_of(fd: &Path) -> Option<PathBuf> {
    let number = fd.file_name()?;
    let info = fd.parent()?.parent()?.join("fdinfo").join(number);
    let text = read::text(&info, read::LIST_LIMIT).ok()?;
    text.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:")).map(|path| PathBuf::from(path.trim()))
}
