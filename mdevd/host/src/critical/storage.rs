//! The functions behind a mounted file system or swap: from a block device down through LVM, LUKS, RAID and the like to disks, and from
//! disks to their controllers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::network::{self, Network};
use super::{Search, is_name};
use crate::error::Problem;
use crate::read;

/// The longest list of mounts that is read: some hundred thousand.
const MOUNTS_LIMIT: usize = 16 * 1024 * 1024;

/// The most block devices that one can be made of.
const DEVICES_LIMIT: usize = 1024;

/// Notes what carries a mounted file system or swap.
pub fn look(search: &mut Search<'_>, network: &Network) {
    let mut unread = None;
    let mounts = mounts(search, &mut unread);
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
    for pool in mounts.iter().filter_map(Mount::pool).collect::<BTreeSet<_>>() {
        let why = format!("which disks the ZFS pool {pool} is on cannot be seen; give none of their controllers away");
        search.problem(Problem::new(&search.roots.proc.join("1/mountinfo"), why));
        note_all(search, network, &format!("may carry the ZFS pool {pool}"));
    }
    if let Some(why) = unread {
        let what = format!("may carry the host's file systems ({why})");
        note_all(search, network, &what);
        network::note_all(search, &what);
    }
    let mut unread = None;
    for device in swaps(search, &mut unread) {
        if let Some(device) = node(search, &device) {
            disks(search, network, device, "carries swap");
        }
    }
    if let Some(why) = unread {
        note_all(search, network, &format!("may carry swap ({why})"));
    }
}

/// Notes every disk, where it could not be read which of them the host needs.
fn note_all(search: &mut Search<'_>, network: &Network, what: &str) {
    let class = search.roots.sys.join("class/block");
    for name in search.folder(&class) {
        let Some(device) = search.real(&class.join(&name)) else { continue };
        // What another is a part of, or is made of, is there itself.
        if !search.exists(&device.join("partition")) && search.folder(&device.join("slaves")).is_empty() {
            let clause = format!("{what} on {}", shown(search, &device));
            disk(search, network, &device, &clause);
        }
    }
}

fn look_at_mount(search: &mut Search<'_>, network: &Network, mount: &Mount) {
    let what = format!("carries {}", mount.point);
    if !mount.device.starts_with("0:") {
        let device = search.roots.sys.join("dev/block").join(&mount.device);
        if let Some(device) = search.real(&device) {
            disks(search, network, device, &what);
        }
    } else if mount.source.starts_with("/dev/") {
        // File systems over more than one device (btrfs, bcachefs) have a number of their own.
        for source in mount.source.replace(":/dev/", "\0/dev/").split('\0') {
            let Some(device) = node(search, source) else { continue };
            for device in btrfs_siblings(search, device) {
                disks(search, network, device, &what);
            }
        }
    } else if let Some(server) = mount.server() {
        network.note_way_to(search, server, &format!("{what} from {server}"));
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

    /// The ZFS pool that it is in.
    fn pool(&self) -> Option<&str> {
        self.source.split('/').next().filter(|_| self.kind == "zfs")
    }

    /// The host that it comes from, in the words of NFS and CIFS.
    fn server(&self) -> Option<IpAddr> {
        self.options.split(',').find_map(|option| option.strip_prefix("addr=")?.parse().ok())
    }
}

/// The mounts of the first process: the daemon's own may be fewer.
fn mounts(search: &mut Search<'_>, unread: &mut Option<String>) -> Vec<Mount> {
    let text = |who: &str| {
        let path = search.roots.proc.join(who).join("mountinfo");
        read::text(&path, MOUNTS_LIMIT).map(|text| (path, text))
    };
    let found = text("1").or_else(|_| text("self"));
    let Some((path, text)) = search.needed(found, unread) else { return Vec::new() };
    let parse = |line| {
        let no_mount = || Problem::new(&path, "a line in it is no mount, so that a mount may be missing");
        search.needed(Mount::parse(line).ok_or_else(no_mount), unread)
    };
    text.lines().filter_map(parse).collect()
}

/// The block devices that are swap. Swap in a file is on a mounted file system.
fn swaps(search: &mut Search<'_>, unread: &mut Option<String>) -> Vec<String> {
    let path = search.roots.proc.join("swaps");
    let text = search.needed(read::unless_gone(read::text(&path, read::LIST_LIMIT)), unread);
    let text = text.flatten().unwrap_or_default();
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

/// Notes the controllers of all disks that a block device is made of. `what` is a clause: `carries /`.
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
            let clause = format!("{what} on {on}");
            // Of the kernel's own devices these are in memory, or in a file that is on a mounted file system.
            let is_plain = ["loop", "ram", "zram"].iter().any(|kind| is_numbered(&whole, kind));
            if !disk(search, network, &whole, &clause) && !is_plain && is_elsewhere(&whole) {
                let why =
                    format!("it {clause}, and which device it is behind cannot be seen; give none away that it is");
                search.problem(Problem::new(&whole, why));
            }
        }
        next.extend(below.iter().filter_map(|name| search.real(&slaves.join(name))));
    }
}

/// Notes the controllers of a disk, or the way to it; false when none is found.
fn disk(search: &mut Search<'_>, network: &Network, disk: &Path, clause: &str) -> bool {
    if search.note(disk, clause) {
        return true;
    }
    let mut found = false;
    let names = || disk.components().filter_map(|part| part.as_os_str().to_str());
    // An NVMe disk that may have more than one way to it is below none of them: its subsystem has links to all.
    if names().any(|name| name == "nvme-subsystem")
        && let Some(subsystem) = disk.parent()
    {
        for name in search.folder(subsystem) {
            let controller = subsystem.join(name);
            if matches!(read::link(&controller), Ok(Some(_)))
                && let Some(controller) = search.real(&controller)
            {
                found |= search.note(&controller, clause) || fabric(search, network, &controller, clause);
            }
        }
    } else if names().any(|name| name == "nvme-fabrics")
        && let Some(controller) = disk.parent()
    {
        found |= fabric(search, network, controller, clause);
    }
    // An iSCSI disk is as far as its server.
    for session in names().filter_map(|name| name.strip_prefix("session")) {
        let connection = search.roots.sys.join(format!("class/iscsi_connection/connection{session}:0/address"));
        if let Some(Ok(server)) = search.optional(read::optional_attribute(&connection)).map(|text| text.parse()) {
            found |= network.note_way_to(search, server, clause);
        }
    }
    found
}

/// Notes the way to the server of an NVMe controller over TCP or RDMA, which says `traddr=10.0.0.5,trsvcid=4420`.
fn fabric(search: &mut Search<'_>, network: &Network, controller: &Path, clause: &str) -> bool {
    let address = search.optional(read::optional_attribute(&controller.join("address"))).unwrap_or_default();
    let server = address.split(',').find_map(|part| part.strip_prefix("traddr=")?.trim().parse().ok());
    server.is_some_and(|server| network.note_way_to(search, server, clause))
}

/// Whether a disk is on no hardware that sysfs shows: made up by the kernel, as is Ceph's, or at the end of an iSCSI session.
fn is_elsewhere(disk: &Path) -> bool {
    let mut names = disk.components().filter_map(|part| part.as_os_str().to_str());
    names.any(|name| name == "virtual" || name == "rbd" || name.starts_with("session"))
}

/// Whether a disk is called this and a number.
fn is_numbered(disk: &Path, kind: &str) -> bool {
    let name = disk.file_name().and_then(|name| name.to_str());
    let digits = name.and_then(|name| name.strip_prefix(kind));
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
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
