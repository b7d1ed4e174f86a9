//! Who has a device open, found by reading the links in `/proc/*/fd`.
//!
//! That sees libvirt's QEMU, whose `/dev` is its own, and needs no open of `/dev/vfio/N`, which would itself hold the device or disturb
//! a guest. It needs to see every process: one that cannot be read may hold anything, and then the answer is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mdevd_core::holders::{Holder, Holders};
use mdevd_core::names::{DeviceKey, IommuGroupId};
use rustix::fs::{AtFlags, CWD, FileType, FsWord, OFlags, StatxFlags, statfs, statx};

use crate::error::{EffectError, describe_errno};
use crate::roots::Roots;
use crate::{process, read};

/// What the kernel calls a file system that a program makes (`FUSE_SUPER_MAGIC` in its `fs/fuse/fuse_i.h`).
const FUSE: FsWord = 0x6573_5546;

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
    let dir = roots.process_dir(pid);
    let mut held = BTreeSet::new();
    if listed_files(roots, pid, &dir, nodes, devices, &mut held)? {
        return Ok(held);
    }
    // Of a first thread that has ended nothing is listed, while the others still have the process's files.
    if process::outlived(roots, pid).map_err(|error| unreadable(roots, pid, &error))? {
        let threads = dir.join("task");
        let names = read::folder(&threads).map_err(|error| unreadable(roots, pid, &error))?;
        for thread in names.unwrap_or_default() {
            match listed_files(roots, pid, &threads.join(thread), nodes, devices, &mut held) {
                Ok(_) | Err(Unreadable::Gone) => {}
                Err(why) => return Err(why),
            }
        }
    }
    Ok(held)
}

fn unreadable(roots: &Roots, pid: u32, error: &EffectError) -> Unreadable {
    if error.is_gone() {
        return Unreadable::Gone;
    }
    let errno = describe_errno(error.errno);
    Unreadable::Why(format!("the open files of {} (pid {pid}) cannot be read: {errno}", process::command(roots, pid)))
}

/// Adds the devices that are open by the list of a process or a thread of it, the folder `of`. False when that list may be short,
/// because its files went while it was read or it has none.
fn listed_files(
    roots: &Roots,
    pid: u32,
    of: &Path,
    nodes: &Nodes,
    devices: &BTreeMap<String, DeviceKey>,
    held: &mut BTreeSet<DeviceKey>,
) -> Result<bool, Unreadable> {
    let dir = of.join("fd");
    let fail = |error: EffectError| unreadable(roots, pid, &error);
    // The whole list before the first link: as long as a link can be read, the list before it was not cut short.
    let entries = std::fs::read_dir(&dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(|error| fail(EffectError::io("list", &dir, &error)))?;
    let mut whole = !entries.is_empty();
    // Fds of devices themselves, got from a group's: their links do not say of which.
    let (mut anonymous, mut groups) = (Vec::new(), false);
    for entry in entries {
        let at = entry.path();
        let link = match read::link(&at) {
            Ok(Some(link)) => link,
            Ok(None) => {
                whole = false; // Closed meanwhile.
                continue;
            }
            Err(error) => return Err(fail(error)),
        };
        let link = link.to_string_lossy();
        // The device's node is removed with the device, while those who have it open keep it.
        let link = link.strip_suffix(" (deleted)").unwrap_or(&link);
        if link == "anon_inode:[vfio-device]" {
            anonymous.push(at);
        } else if let Some(node) = vfio_node(link)
            && node != "/vfio/vfio"
            && is_open_node(roots, &at, node)
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
    Ok(whole)
}

/// `/vfio/N` or `/vfio/devices/vfioN` at the end of a link. What stands before is usually `/dev`; a container may have it elsewhere.
fn vfio_node(link: &str) -> Option<&str> {
    let at = link.rfind("/vfio/")?;
    link.get(at..)
}

/// Whether an open file is that node, and not something to which a user gave such a name to keep us from freeing a device. Looking at it
/// through the link opens nothing. What cannot be told counts as the node.
fn is_open_node(roots: &Roots, fd: &Path, node: &str) -> bool {
    // Anybody may open a node as a mere place in the file system: that needs no right to it and does not reach the driver.
    let flags = info(fd, "flags:").and_then(|flags| u32::from_str_radix(&flags, 8).ok());
    if flags.is_some_and(|flags| flags & OFlags::PATH.bits() != 0) {
        return false;
    }
    // What the kernel knows already: asking a file system that is a user's own, or whose server is gone, could take for ever.
    let Ok(file) = statx(CWD, fd, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) else {
        // Only a FUSE file system of a user's own lets nobody else look, and on such a one the kernel opens no devices.
        return statfs(fd).map_or(true, |system| system.f_type != FUSE);
    };
    FileType::from_raw_mode(file.stx_mode.into()) == FileType::CharacterDevice
        && number_of(roots, node).is_none_or(|number| number == (file.stx_rdev_major, file.stx_rdev_minor))
}

/// The number of a node below `/dev`, `511:0`, by its link in sysfs.
fn number_of(roots: &Roots, node: &str) -> Option<(u32, u32)> {
    let name = node.rsplit('/').next()?;
    let class = if node.starts_with("/vfio/devices/") { "class/vfio-dev" } else { "class/vfio" };
    let text = read::attribute(&roots.sys.join(class).join(name).join("dev")).ok()?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The sysfs folder of the device behind an anonymous fd, which kernels from 6.17 on say.
fn device_of(fd: &Path) -> Option<PathBuf> {
    info(fd, "vfio-device-syspath:").map(PathBuf::from)
}

/// What the kernel says of an open file in the line that begins so.
fn info(fd: &Path, key: &str) -> Option<String> {
    let number = fd.file_name()?;
    let info = fd.parent()?.parent()?.join("fdinfo").join(number);
    let text = read::text(&info, read::LIST_LIMIT).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}
