//! The functions behind a mounted file system or swap: from a block device down through LVM, LUKS, RAID and the like to disks, and from
//! disks to their controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::network::Network;
use super::{Search, is_name};
use crate::error::Problem;
use crate::read;

/// The longest list of mounts that is read: some hundred thousand.
const MOUNTS_LIMIT: usize = 16 * 1024 * 1024;

/// The most block devices that one can be made of.
const DEVICES_LIMIT: usize = 1024;

/// Notes what carries a mounted file system or swap.
pub fn look(search: &mut Search<'_>, network: &Network) {
    let mounts = mounts(search);
    // Of many places where one is mounted, and of bind mounts of its parts, the shortest says the most, and / before all.
    let mut places: BTreeMap<(&str, &str), &Mount> = BTreeMap::new();
    for mount in &mounts {
        let source = if mount.device.starts_with("0:") { mount.source.as_str() } else { "" };
        let place = places.entry((if source.is_empty() { &mount.device } else { "" }, source)).or_insert(mount);
        if (mount.is_part, mount.point.len()) < (place.is_part, place.point.len()) {
            *place = mount;
        }
    }
    let mut places: Vec<&Mount> = places.into_values().collect();
    places.sort_by_key(|mount| &mount.point);
    for mount in places {
        look_at_mount(search, network, mount);
    }
    for device in swaps(search) {
        if let Some(device) = node(search, &device) {
            disks(search, network, device, "swap");
        }
    }
}

fn look_at_mount(search: &mut Search<'_>, network: &Network, mount: &Mount) {
    if !mount.device.starts_with("0:") {
        let device = search.roots.sys.join("dev/block").join(&mount.device);
        if let Some(device) = search.real(&device) {
            disks(search, network, device, &mount.point);
        }
    } else if mount.source.starts_with("/dev/") {
        // File systems over more than one device (btrfs, bcachefs) have a number of their own.
        for source in mount.source.replace(":/dev/", "\0/dev/").split('\0') {
            let Some(device) = node(search, source) else { continue };
            for device in btrfs_siblings(search, device) {
                disks(search, network, device, &mount.point);
            }
        }
    } else if mount.kind == "zfs" {
        let pool = mount.source.split('/').next().unwrap_or_default();
        let why = format!("which disks the ZFS pool {pool} is on cannot be seen; give none of their controllers away");
        search.problem(Problem::new(&search.roots.proc.join("1/mountinfo"), why));
    } else if let Some(server) = mount.server() {
        network.note_way_to(search, server, &format!("{} from {server}", mount.point));
    }
}

/// One line of the list of mounts.
struct Mount {
    /// Major and minor number; major 0 is a file system that is not on one block device.
    device: String,
    /// Whether only a part of the file system is seen there.
    is_part: bool,
    point: String,
    kind: String,
    source: String,
    options: String,
}

impl Mount {
    /// `36 35 98:0 /root /point options [more …] - type source options`
    fn parse(line: &str) -> Option<Self> {
        let (first, last) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(2);
        let (device, root, point) = (first.next()?, first.next()?, first.next()?);
        let mut last = last.split(' ');
        let (kind, source, options) = (last.next()?, last.next()?, last.next().unwrap_or_default());
        let (major, minor) = device.split_once(':')?;
        let (_, _): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some(Self {
            device: device.into(),
            is_part: root != "/",
            point: unescaped(point),
            kind: kind.into(),
            source: unescaped(source),
            options: options.into(),
        })
    }

    /// The host that it comes from, in the words of NFS and CIFS.
    fn server(&self) -> Option<IpAddr> {
        self.options.split(',').find_map(|option| option.strip_prefix("addr=")?.parse().ok())
    }
}

/// The mounts of the first process: the daemon's own may be fewer.
fn mounts(search: &mut Search<'_>) -> Vec<Mount> {
    let text = |who: &str| {
        let path = search.roots.proc.join(who).join("mountinfo");
        read::text(&path, MOUNTS_LIMIT).map(|text| (path, text))
    };
    let (path, text) = match text("1").or_else(|_| text("self")) {
        Ok(found) => found,
        Err(error) => {
            search.problem(error.into());
            return Vec::new();
        }
    };
    let mut mounts = Vec::new();
    for line in text.lines() {
        match Mount::parse(line) {
            Some(mount) => mounts.push(mount),
            None => search.problem(Problem::new(&path, "a line in it is no mount; a mount may be missing")),
        }
    }
    mounts
}

/// The block devices that are swap. Swap in a file is on a mounted file system.
fn swaps(search: &mut Search<'_>) -> Vec<String> {
    let path = search.roots.proc.join("swaps");
    let text = search.optional(read::unless_gone(read::text(&path, read::LIST_LIMIT))).unwrap_or_default();
    let lines = text.lines().skip(1).map(|line| line.split_whitespace());
    lines
        .filter_map(|mut fields| Some((fields.next()?, fields.next()?)))
        .filter(|(_, kind)| *kind == "partition")
        .map(|(device, _)| unescaped(device))
        .collect()
}

/// The folder of the block device that a path below `/dev` is.
fn node(search: &mut Search<'_>, path: &str) -> Option<PathBuf> {
    let class = search.roots.sys.join("class/block");
    let name = path.strip_prefix("/dev/").unwrap_or(path);
    let name = match name.strip_prefix("mapper/") {
        Some(mapped) => {
            let all = search.folder(&class);
            all.into_iter().find(|name| mapped_name(search, &class.join(name)).as_deref() == Some(mapped))
        }
        None => Some(name.replace('/', "!")),
    };
    match name.filter(|name| is_name(name)) {
        Some(name) => search.real(&class.join(name)),
        None => {
            search.problem(Problem::new(Path::new(path), "it is in use, and which block device it is cannot be seen"));
            None
        }
    }
}

/// The name of a device of the device mapper.
fn mapped_name(search: &mut Search<'_>, device: &Path) -> Option<String> {
    search.optional(read::optional_attribute(&device.join("dm/name")))
}

/// All devices of the btrfs that this one belongs to; of another file system this one alone.
fn btrfs_siblings(search: &mut Search<'_>, device: PathBuf) -> Vec<PathBuf> {
    let all = search.roots.sys.join("fs/btrfs");
    for uuid in search.folder(&all) {
        let devices = all.join(uuid).join("devices");
        let names = search.folder(&devices);
        if device.file_name().is_some_and(|device| names.iter().any(|name| device == name.as_str())) {
            return names.iter().filter_map(|name| search.real(&devices.join(name))).collect();
        }
    }
    vec![device]
}

/// Notes the controllers of all disks that a block device is made of.
fn disks(search: &mut Search<'_>, network: &Network, top: PathBuf, what: &str) {
    let of = shown(search, &top);
    let mut seen = BTreeSet::new();
    let mut next = vec![top];
    while let Some(device) = next.pop() {
        if seen.len() > DEVICES_LIMIT {
            let why = format!("it is made of more than {DEVICES_LIMIT} devices; the rest was not looked at");
            return search.problem(Problem::new(&device, why));
        }
        if !seen.insert(device.clone()) {
            continue;
        }
        // What it is made of is said of the whole device, of which this may be a partition.
        let is_partition = search.exists(&device.join("partition"));
        let whole = device.parent().filter(|_| is_partition).unwrap_or(&device).to_owned();
        let slaves = whole.join("slaves");
        let below = search.folder(&slaves);
        if below.is_empty() {
            let name = shown(search, &device);
            let on = if name == of { name } else { format!("{name} ({of})") };
            disk(search, network, &whole, &format!("{what} on {on}"));
        }
        next.extend(below.iter().filter_map(|name| search.real(&slaves.join(name))));
    }
}

/// Notes the controllers of a disk.
fn disk(search: &mut Search<'_>, network: &Network, disk: &Path, what: &str) {
    let clause = format!("carries {what}");
    if search.note(disk, &clause) {
        return;
    }
    let names = || disk.components().filter_map(|part| part.as_os_str().to_str());
    // An NVMe disk that may have more than one way to it is below none of them: its subsystem has links to all.
    if names().any(|name| name == "nvme-subsystem")
        && let Some(subsystem) = disk.parent()
    {
        for name in search.folder(subsystem) {
            let controller = subsystem.join(name);
            if matches!(read::link(&controller), Ok(Some(_))) {
                search.note_at(&controller, &clause);
            }
        }
    }
    // An iSCSI disk is as far as its server.
    for session in names().filter_map(|name| name.strip_prefix("session")) {
        let connection = search.roots.sys.join(format!("class/iscsi_connection/connection{session}:0/address"));
        if let Some(Ok(server)) = search.optional(read::optional_attribute(&connection)).map(|text| text.parse()) {
            network.note_way_to(search, server, what);
        }
    }
}

/// What people call a block device.
fn shown(search: &mut Search<'_>, device: &Path) -> String {
    let name = device.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
    mapped_name(search, device).unwrap_or(name)
}

/// Text of procfs, in which `\040` is a space.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split('\\');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        match part.split_at_checked(3).and_then(|(code, rest)| Some((u8::from_str_radix(code, 8).ok()?, rest))) {
            Some((byte, rest)) if byte.is_ascii() => {
                out.push(char::from(byte));
                out.push_str(rest);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}
