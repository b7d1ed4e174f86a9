//! The nodes of the fake host's file system: directories, links, sysfs attributes and ordinary files, each under an inode number that is
//! never used twice. Knows nothing about FUSE, and of devices only how
//! their attributes are told apart.

use std::collections::{BTreeMap, HashMap};

use rustix::io::Errno;
use uuid::Uuid;

use super::binding::DriverAttr;
use super::functions::FunctionAttr;

/// An inode number; the root is 1.
pub(super) type Ino = u64;

/// The mount's root.
pub(super) const ROOT: Ino = 1;

/// What an attribute reads as, and what a write to it does.
#[derive(Debug, Clone)]
pub(super) enum Attr {
    /// A text that stays as it is; a write is refused with `EIO`, as the kernel does for an attribute without a store function.
    Text(String),
    /// A text that a write replaces, or swallows when the second field is false (`uevent`, `drivers_probe`).
    Store(String, bool),
    /// `available_instances` of a type.
    Available(TypeRef),
    /// `create` of a type.
    Create(TypeRef),
    /// `remove` of a mediated device.
    Remove(Uuid),
    /// What depends on a PCI function, by its address.
    Function(FunctionAttr, String),
    /// A file of a PCI driver, by its name.
    Driver(DriverAttr, String),
    /// `drivers_probe` of the PCI bus.
    Probe,
    /// A file of a real process: its pid and the file's name below `/proc/PID`.
    RealProc(u32, &'static str),
}

impl Attr {
    /// True when a write to it may have to wait for somebody to close a device, or for such a write to end.
    pub(super) fn waits(&self) -> bool {
        matches!(self, Self::Driver(..) | Self::Probe | Self::Function(FunctionAttr::NumVfs, _))
    }
}

/// A type of a parent, by their places in the host's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeRef {
    pub(super) parent: usize,
    pub(super) index: usize,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// A directory: its entries.
    Dir(BTreeMap<String, Ino>),
    /// A symbolic link: its target.
    Link(String),
    /// A sysfs or procfs file.
    Attr(Attr),
    /// An ordinary file.
    File(Vec<u8>),
}

impl Body {
    /// True when a read has to wait for a write to the same attribute to end.
    pub(super) fn read_waits(&self) -> bool {
        matches!(self, Self::Attr(Attr::Function(FunctionAttr::NumVfs, _)))
    }
}

/// One file, link or directory.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) parent: Ino,
    pub(super) name: String,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: std::time::SystemTime,
    /// True for what stays as long as the host does, so that the kernel may remember the name.
    pub(super) lasting: bool,
    /// False once it has no name any more but is still open somewhere.
    pub(super) linked: bool,
    pub(super) body: Body,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<Ino, Node>,
    next: Ino,
    uid: u32,
    gid: u32,
    born: std::time::SystemTime,
}

impl Tree {
    /// An empty root directory; what is added belongs to `uid` and `gid`.
    pub(super) fn new(uid: u32, gid: u32) -> Self {
        let mut tree = Self { nodes: HashMap::new(), next: ROOT + 1, uid, gid, born: std::time::SystemTime::now() };
        let root = tree.node(ROOT, "", 0o755, true, Body::Dir(BTreeMap::new()));
        tree.nodes.insert(ROOT, root);
        tree
    }

    fn node(&self, parent: Ino, name: &str, mode: u16, lasting: bool, body: Body) -> Node {
        Node {
            parent,
            name: name.to_owned(),
            mode,
            uid: self.uid,
            gid: self.gid,
            modified: self.born,
            lasting,
            linked: true,
            body,
        }
    }

    /// The node under an inode number.
    pub(super) fn get(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The node under an inode number, to change it.
    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.nodes.get_mut(&ino)
    }

    /// The entries of a directory.
    pub(super) fn entries(&self, dir: Ino) -> Result<&BTreeMap<String, Ino>, Errno> {
        match &self.nodes.get(&dir).ok_or(Errno::NOENT)?.body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn entries_mut(&mut self, dir: Ino) -> Result<&mut BTreeMap<String, Ino>, Errno> {
        match &mut self.nodes.get_mut(&dir).ok_or(Errno::NOENT)?.body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// The entry `name` of a directory.
    pub(super) fn child(&self, dir: Ino, name: &str) -> Result<Ino, Errno> {
        self.entries(dir)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Adds a node; what was there under that name loses it.
    pub(super) fn add(&mut self, dir: Ino, name: &str, mode: u16, lasting: bool, body: Body) -> Result<Ino, Errno> {
        let ino = self.next;
        let old = self.entries_mut(dir)?.insert(name.to_owned(), ino);
        self.next += 1;
        let node = self.node(dir, name, mode, lasting, body);
        self.nodes.insert(ino, node);
        if let Some(old) = old {
            self.forget_name(old);
        }
        Ok(ino)
    }

    /// The inode of `path`, walked from the root without following links.
    pub(super) fn find(&self, path: &str) -> Option<Ino> {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.child(at, part).ok()?;
        }
        Some(at)
    }

    /// The directory `path`, made with its parents where it is missing.
    pub(super) fn dir(&mut self, path: &str, lasting: bool) -> Ino {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = match self.child(at, part) {
                Ok(ino) => ino,
                Err(_) => self.add(at, part, 0o755, lasting, Body::Dir(BTreeMap::new())).unwrap_or(at),
            };
        }
        at
    }

    /// A link at `path`, with the folders above it.
    pub(super) fn link(&mut self, path: &str, target: &str, lasting: bool) {
        self.put(path, 0o777, lasting, Body::Link(target.to_owned()));
    }

    /// An attribute at `path`, with the folders above it.
    pub(super) fn attr(&mut self, path: &str, mode: u16, lasting: bool, attr: Attr) {
        self.put(path, mode, lasting, Body::Attr(attr));
    }

    fn put(&mut self, path: &str, mode: u16, lasting: bool, body: Body) {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.dir(above, lasting);
        // The only failure is a file where a folder should be: the builder's own mistake, seen at once by the listing tests.
        let added = self.add(dir, name, mode, lasting, body);
        debug_assert!(added.is_ok(), "{path}: {added:?}");
    }

    /// Takes a name away: an attribute or a folder is gone with all below it, an ordinary file lives on while it is open.
    pub(super) fn remove(&mut self, dir: Ino, name: &str) -> Option<Ino> {
        let ino = self.entries_mut(dir).ok()?.remove(name)?;
        self.forget_name(ino);
        Some(ino)
    }

    /// [`Self::remove`] by path.
    pub(super) fn remove_path(&mut self, path: &str) -> Option<(Ino, Ino)> {
        let ino = self.find(path)?;
        let (dir, name) = self.nodes.get(&ino).map(|node| (node.parent, node.name.clone()))?;
        self.remove(dir, &name)?;
        Some((dir, ino))
    }

    fn forget_name(&mut self, ino: Ino) {
        let children: Vec<Ino> = match self.nodes.get_mut(&ino) {
            Some(Node { body: Body::File(_), linked, .. }) => {
                *linked = false;
                return;
            }
            Some(Node { body: Body::Dir(entries), .. }) => entries.values().copied().collect(),
            _ => Vec::new(),
        };
        for child in children {
            self.forget_name(child);
        }
        self.nodes.remove(&ino);
    }

    /// Gives a node another name and place; what had that name loses it.
    pub(super) fn rename(&mut self, dir: Ino, name: &str, to: Ino, new: &str) -> Result<(), Errno> {
        let ino = self.child(dir, name)?;
        if self.child(to, new) == Ok(ino) {
            return Ok(());
        }
        self.entries_mut(to)?;
        self.entries_mut(dir)?.remove(name);
        let old = self.entries_mut(to)?.insert(new.to_owned(), ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.parent = to;
            node.name = new.to_owned();
        }
        if let Some(old) = old {
            self.forget_name(old);
        }
        Ok(())
    }

    /// The kernel has forgotten this inode: an ordinary file without a name goes for good.
    pub(super) fn forget(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|node| !node.linked) {
            self.nodes.remove(&ino);
        }
    }

    /// The path of a node from the root, without a leading `/`.
    pub(super) fn path(&self, ino: Ino) -> String {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { break };
            parts.push(node.name.as_str());
            at = node.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// The relative link text from the folder that holds the link to a node, both given as paths from the same root. As in kernfs, the
    /// last part is always a name: a link to a folder above itself goes up one more and names it.
    pub(super) fn relative(from_dir: &str, to: &str) -> String {
        let from: Vec<&str> = from_dir.split('/').filter(|part| !part.is_empty()).collect();
        let to: Vec<&str> = to.split('/').filter(|part| !part.is_empty()).collect();
        let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count().min(to.len().saturating_sub(1));
        let mut parts = vec![".."; from.len() - same];
        parts.extend(to.iter().skip(same));
        parts.join("/")
    }
}
