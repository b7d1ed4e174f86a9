//! The operations themselves, without FUSE: reading and writing attributes and files, making them, and what the kernel may remember.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::io::Errno;

use super::functions::FunctionAttr;
use super::host::Shared;
use super::kernel::{Removal, World};
use super::log::{LogEntry, worth_it};
use super::rules::{Event, lock};
use super::tree::{Attr, Body, Ino, Node, ROOT};

/// A node's attributes, and how long the kernel may remember them and its name.
pub(super) type Entry = (FileAttr, Duration, Duration);

/// How long the kernel may remember what lasts.
const LONG: Duration = Duration::from_secs(3600);
/// As in sysfs.
const ATTRIBUTE_SIZE: u64 = 4096;

pub(super) fn text(name: &OsStr) -> Result<&str, Errno> {
    name.to_str().ok_or(Errno::INVAL)
}

pub(super) fn kind(node: &Node) -> FileType {
    match node.body {
        Body::Dir(_) => FileType::Directory,
        Body::Link(_) => FileType::Symlink,
        Body::Attr(_) | Body::File(_) => FileType::RegularFile,
    }
}

fn attr_of(ino: Ino, node: &Node) -> FileAttr {
    let size = match &node.body {
        Body::Dir(_) | Body::Link(_) => 0,
        Body::Attr(_) => ATTRIBUTE_SIZE,
        Body::File(data) => data.len() as u64,
    };
    let (time, nlink) = (node.modified, if matches!(node.body, Body::Dir(_)) { 2 } else { 1 });
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(node),
        perm: node.mode,
        nlink: if node.linked { nlink } else { 0 },
        uid: node.uid,
        gid: node.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Which of the four roots a node is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    Mount,
    Sys,
    Proc,
    Ordinary,
}

fn area(world: &World, ino: Ino) -> Area {
    match world.tree.path(ino).split('/').next() {
        Some("sys") => Area::Sys,
        Some("proc") => Area::Proc,
        Some("etc" | "run") => Area::Ordinary,
        _ => Area::Mount,
    }
}

/// Only below `etc` and `run` are there files that come and go by the hand of programs; elsewhere that is `refusal`.
pub(super) fn ordinary(world: &World, dir: Ino, refusal: Errno) -> Result<(), Errno> {
    if area(world, dir) == Area::Ordinary { Ok(()) } else { Err(refusal) }
}

/// How long the kernel may remember a node's attributes and its name.
fn lifetimes(world: &World, ino: Ino, node: &Node) -> (Duration, Duration) {
    if node.lasting {
        (LONG, LONG)
    } else if matches!(node.body, Body::Dir(_)) && area(world, ino) == Area::Ordinary {
        // Nobody but the kernel itself takes a folder away there. A file it is not told to remember: a rule may have a rename fail.
        (Duration::ZERO, LONG)
    } else {
        (Duration::ZERO, Duration::ZERO)
    }
}

pub(super) fn entry_of(world: &World, ino: Ino) -> Result<Entry, Errno> {
    let node = world.tree.get(ino).ok_or(Errno::NOENT)?;
    let (attr_ttl, entry_ttl) = lifetimes(world, ino, node);
    Ok((attr_of(ino, node), attr_ttl, entry_ttl))
}

impl Shared {
    pub(super) fn record(&self, event: &Event, errno: Option<&Errno>) {
        if worth_it(event.op) {
            lock(&self.world).log.push(LogEntry::new(event, errno.copied()));
            self.changed.notify_all();
        }
    }

    /// What a file reads as; `patient` when the read may wait for a write that is under way.
    pub(super) fn read(&self, ino: Ino, patient: bool) -> Result<Vec<u8>, Errno> {
        let real = {
            let world = lock(&self.world);
            match &world.tree.get(ino).ok_or(Errno::NODEV)?.body {
                Body::File(data) => return Ok(data.clone()),
                Body::Attr(Attr::Text(text) | Attr::Store(text, _)) => {
                    return Ok(text.clone().into_bytes());
                }
                Body::Attr(Attr::Available(at)) => return Ok(world.available_text(*at).into_bytes()),
                Body::Attr(Attr::Function(which, address)) => {
                    let (which, address) = (*which, address.clone());
                    let busy = |world: &World| world.function(&address).is_ok_and(|function| function.locked);
                    let world = match (which, patient) {
                        (FunctionAttr::NumVfs, true) => self.wait_while(world, busy)?,
                        _ => world,
                    };
                    return world.function_text(which, &address).map(String::into_bytes);
                }
                Body::Attr(Attr::RealProc(pid, name)) => (*pid, *name),
                Body::Attr(_) => return Err(Errno::IO),
                Body::Dir(_) => return Err(Errno::ISDIR),
                Body::Link(_) => return Err(Errno::INVAL),
            }
        };
        std::fs::read(format!("/proc/{}/{}", real.0, real.1))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    pub(super) fn write_attr(&self, ino: Ino, data: &[u8]) -> Result<(), Errno> {
        let result = self.carry_out(ino, data);
        self.tell();
        result
    }

    fn carry_out(&self, ino: Ino, data: &[u8]) -> Result<(), Errno> {
        let mut world = lock(&self.world);
        let Body::Attr(attr) = &mut world.tree.get_mut(ino).ok_or(Errno::NODEV)?.body else { return Err(Errno::IO) };
        match attr {
            Attr::Text(_) | Attr::Available(_) | Attr::RealProc(..) => return Err(Errno::IO),
            Attr::Store(text, keeps) => {
                if *keeps {
                    *text = String::from_utf8(data.to_vec()).map_err(|_| Errno::INVAL)?;
                }
            }
            Attr::Create(at) => {
                let at = *at;
                world.create(at, data)?;
            }
            Attr::Remove(uuid) => {
                let uuid = *uuid;
                if world.remove(uuid, data)? == Removal::Waits {
                    world = self.wait_while(world, |world| world.held(uuid))?;
                    world.finish_removal(uuid);
                }
            }
            Attr::Function(which, address) => {
                let (which, address) = (*which, address.clone());
                match which {
                    FunctionAttr::NumVfs => drop(self.set_num_vfs(world, &address, data, true)?),
                    _ => world.write_function(which, &address, data)?,
                }
            }
            Attr::Driver(which, driver) => {
                let (which, driver) = (*which, driver.clone());
                self.write_driver(world, which, &driver, data)?;
            }
            Attr::Probe => self.write_probe(world, data)?,
        }
        Ok(())
    }

    pub(super) fn write_file(&self, ino: Ino, offset: u64, append: bool, data: &[u8]) -> Result<(), Errno> {
        let mut world = lock(&self.world);
        let node = world.tree.get_mut(ino).ok_or(Errno::NODEV)?;
        let Body::File(content) = &mut node.body else { return Err(Errno::IO) };
        let at = if append { content.len() } else { usize::try_from(offset).map_err(|_| Errno::FBIG)? };
        let end = at.checked_add(data.len()).filter(|end| *end <= 64 << 20).ok_or(Errno::FBIG)?;
        if content.len() < end {
            content.resize(end, 0);
        }
        if let Some(target) = content.get_mut(at..end) {
            target.copy_from_slice(data);
        }
        node.modified = SystemTime::now();
        Ok(())
    }

    /// A process that ended must not be found any more, one that is not the fake's own is looked for among the real ones.
    pub(super) fn real_process(world: &mut World, dir: Ino, name: &str) {
        let is_proc = world.tree.get(dir).is_some_and(|node| node.name == "proc" && node.parent == ROOT);
        let Some(pid) = name.parse::<u32>().ok().filter(|pid| is_proc && !world.processes.contains_key(pid)) else {
            return;
        };
        let known = world.tree.child(dir, name).is_ok();
        match Path::new(&format!("/proc/{pid}")).exists() {
            true if !known && world.real_processes => world.mirror_process(pid),
            false if known => world.remove_process(pid),
            _ => {}
        }
    }
}

impl Shared {
    /// Makes a file or folder below `etc` or `run`.
    pub(super) fn make(
        &self,
        dir: Ino,
        name: &OsStr,
        mode: u32,
        owner: (u32, u32),
        folder: bool,
    ) -> Result<Entry, Errno> {
        let mut world = lock(&self.world);
        ordinary(&world, dir, if folder { Errno::PERM } else { Errno::ACCESS })?;
        let name = text(name)?;
        if world.tree.child(dir, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let body = if folder { Body::Dir(BTreeMap::new()) } else { Body::File(Vec::new()) };
        let ino = world.tree.add(dir, name, (mode & 0o7777) as u16, false, body)?;
        if let Some(node) = world.tree.get_mut(ino) {
            (node.uid, node.gid) = owner;
            node.modified = SystemTime::now();
        }
        entry_of(&world, ino)
    }
}
