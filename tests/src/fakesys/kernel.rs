//! The kernel's side of mediated devices: parents, types, and what `create` and `remove` do, with the order of links, uevents and errnos
//! that a 6.12 kernel was seen to have.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;
use uuid::Uuid;

use super::binding::Driver;
use super::builder::{Builder, ParentSpec, Sharing, TypeSpec};
use super::functions::Function;
use super::log::LogEntry;
use super::pci;
use super::process::{MOUNTS, Process};
use super::tree::{Attr, Ino, Tree, TypeRef};
use super::uevent::Uevents;

/// Everything that the fake host has.
#[derive(Debug)]
pub(super) struct World {
    pub(super) tree: Tree,
    pub(super) parents: Vec<Parent>,
    pub(super) mdevs: BTreeMap<Uuid, Mdev>,
    /// The PCI functions by address, parents that are such among them.
    pub(super) functions: BTreeMap<String, Function>,
    /// The folder of the bridge to each bus, by domain and number.
    pub(super) buses: BTreeMap<(String, u8), String>,
    pub(super) drivers: Vec<Driver>,
    /// Drivers that are not loaded yet.
    pub(super) late_drivers: Vec<String>,
    pub(super) without_iommu: bool,
    pub(super) netdevs_late: bool,
    /// The number of the last network interface.
    pub(super) last_ifindex: u32,
    pub(super) processes: BTreeMap<u32, Process>,
    pub(super) uevents: Uevents,
    pub(super) log: Vec<LogEntry>,
    pub(super) of_held: OfHeld,
    pub(super) real_processes: bool,
    first_group: u32,
    groups: BTreeSet<u32>,
    vfio: BTreeSet<u32>,
    /// Names that are gone although the kernel was told that they would last.
    pub(super) gone: Vec<(Ino, String)>,
}

/// What a `remove` of a device does that a process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OfHeld {
    /// It waits until nobody has it open any more, as vfio does.
    #[default]
    Waits,
    /// It fails.
    Fails(Errno),
    /// It takes the device away under the process.
    Removes,
}

#[derive(Debug)]
pub(super) struct Parent {
    pub(super) spec: ParentSpec,
    /// Its folder below the mount: `sys/devices/…`.
    pub(super) path: String,
    /// False once it was pulled out.
    pub(super) plugged: bool,
    pub(super) registered: bool,
    pub(super) types: Vec<Type>,
}

#[derive(Debug)]
pub(super) struct Type {
    pub(super) spec: TypeSpec,
    /// What `available_instances` says, when that is not the truth.
    pub(super) says: Option<String>,
    /// The type that the next `create` really makes.
    pub(super) makes: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Mdev {
    pub(super) at: TypeRef,
    pub(super) group: u32,
    vfio: u32,
    pub(super) removing: bool,
}

/// Whether a removal is through or waits for those who have the device open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Done,
    Waits,
}

impl World {
    pub(super) fn new(builder: &Builder, uid: u32, gid: u32) -> Self {
        let mut tree = Tree::new(uid, gid);
        for dir in [
            "sys/class/iommu",
            "sys/class/mdev_bus",
            "sys/class/net",
            "sys/class/vfio",
            "sys/class/vfio-dev",
            "sys/bus/mdev/devices",
            "sys/bus/mdev/drivers",
            "sys/bus/pci/devices",
            "sys/bus/pci/drivers",
            "sys/kernel/iommu_groups",
            "sys/devices/virtual/vfio",
            "sys/module",
            "proc",
            "etc/mdevd",
            "etc/mdevctl.d",
            "run/mdevd",
            "run/libvirt/qemu",
        ] {
            tree.dir(dir, true);
        }
        // As systemd makes it for the service.
        let state = tree.dir("run/mdevd", true);
        if let Some(node) = tree.get_mut(state) {
            node.mode = 0o700;
        }
        tree.attr("sys/bus/mdev/drivers_autoprobe", 0o644, true, Attr::Store("1\n".to_owned(), true));
        tree.attr("sys/bus/mdev/drivers_probe", 0o200, true, Attr::Store(String::new(), false));
        tree.attr("sys/bus/mdev/uevent", 0o200, true, Attr::Store(String::new(), false));
        tree.attr("sys/bus/pci/drivers_autoprobe", 0o644, true, Attr::Store("1\n".to_owned(), true));
        tree.attr("sys/bus/pci/drivers_probe", 0o200, true, Attr::Probe);
        if !builder.without_iommu {
            tree.dir("sys/devices/virtual/iommu/dmar0", true);
            tree.link("sys/class/iommu/dmar0", "../../devices/virtual/iommu/dmar0", true);
        }
        // There as long as no test names a process 1 of its own.
        tree.attr("proc/1/mountinfo", 0o444, false, Attr::Text(MOUNTS.to_owned()));
        tree.attr("proc/stat", 0o444, true, Attr::Text("btime 1700000000\n".to_owned()));
        let mut world = Self {
            tree,
            parents: Vec::new(),
            mdevs: BTreeMap::new(),
            functions: BTreeMap::new(),
            buses: BTreeMap::new(),
            drivers: Vec::new(),
            late_drivers: Vec::new(),
            without_iommu: builder.without_iommu,
            netdevs_late: false,
            // The loopback interface is the first.
            last_ifindex: 1,
            processes: BTreeMap::new(),
            uevents: Uevents::new(),
            log: Vec::new(),
            of_held: OfHeld::default(),
            real_processes: builder.real_processes,
            first_group: builder.first_group.unwrap_or(0),
            groups: BTreeSet::new(),
            vfio: BTreeSet::new(),
            gone: Vec::new(),
        };
        world.add_drivers(builder);
        world.plug(builder);
        world
    }

    /// Puts what a builder names: bridges, then parents, then all other functions.
    pub(super) fn plug(&mut self, builder: &Builder) {
        let (bridges, others): (Vec<_>, Vec<_>) =
            builder.functions.iter().cloned().partition(|spec| spec.bridge.is_some());
        bridges.into_iter().for_each(|spec| self.plug_function(spec));
        builder.parents.iter().cloned().for_each(|spec| self.add_parent(spec));
        others.into_iter().for_each(|spec| self.plug_function(spec));
    }

    /// Removes a name, also one that was to last.
    pub(super) fn drop_path(&mut self, path: &str) {
        let lasting = self.tree.find(path).and_then(|ino| self.tree.get(ino)).is_some_and(|node| node.lasting);
        if let Some((dir, _)) = self.tree.remove_path(path).filter(|_| lasting) {
            let (_, name) = path.rsplit_once('/').unwrap_or(("", path));
            self.gone.push((dir, name.to_owned()));
        }
    }

    pub(super) fn parent_named(&self, name: &str) -> Option<usize> {
        self.parents.iter().rposition(|parent| parent.spec.name == name)
    }

    /// The parent that a PCI function is.
    pub(super) fn parent_at(&self, address: &str) -> Option<usize> {
        self.parents.iter().rposition(|parent| parent.spec.name == address && parent.plugged)
    }

    pub(super) fn type_named(&self, parent: &str, id: &str) -> Option<TypeRef> {
        let parent = self.parent_named(parent)?;
        let index = self.parents.get(parent)?.types.iter().position(|this| this.spec.id == id)?;
        Some(TypeRef { parent, index })
    }

    pub(super) fn take_group(&mut self, first: u32) -> u32 {
        take(&mut self.groups, first)
    }

    pub(super) fn free_group(&mut self, group: u32) {
        self.groups.remove(&group);
    }

    pub(super) fn take_vfio(&mut self) -> u32 {
        take(&mut self.vfio, 0)
    }

    pub(super) fn free_vfio(&mut self, number: u32) {
        self.vfio.remove(&number);
    }

    /// How many more of a type there really can be.
    pub(super) fn available(&self, at: TypeRef) -> u32 {
        let Some(parent) = self.parents.get(at.parent) else { return 0 };
        let fits = |index: usize| parent.types.get(index).map_or(0, |this| this.spec.available);
        let used = |index: usize| {
            self.mdevs.values().filter(|mdev| mdev.at == TypeRef { parent: at.parent, index }).count() as u32
        };
        match parent.spec.sharing {
            Sharing::None => fits(at.index).saturating_sub(used(at.index)),
            Sharing::Units(units) => {
                let cost = |index: usize| units / fits(index).max(1);
                let spent: u32 = (0..parent.types.len()).map(|index| used(index) * cost(index)).sum();
                units.saturating_sub(spent).checked_div(cost(at.index)).unwrap_or(0)
            }
            Sharing::Exclusive if (0..parent.types.len()).any(|index| index != at.index && used(index) > 0) => 0,
            Sharing::Exclusive => fits(at.index).saturating_sub(used(at.index)),
        }
    }

    /// What `available_instances` reads as.
    pub(super) fn available_text(&self, at: TypeRef) -> String {
        let says = self
            .parents
            .get(at.parent)
            .and_then(|parent| parent.types.get(at.index))
            .and_then(|this| this.says.clone());
        says.unwrap_or_else(|| format!("{}\n", self.available(at)))
    }

    /// A write to `create`.
    pub(super) fn create(&mut self, at: TypeRef, text: &[u8]) -> Result<(), Errno> {
        let uuid = parse_uuid(text).ok_or(Errno::INVAL)?;
        if self.mdevs.contains_key(&uuid) {
            return Err(Errno::EXIST);
        }
        let parent = self.parents.get_mut(at.parent).filter(|parent| parent.registered).ok_or(Errno::NODEV)?;
        let makes = parent.types.get_mut(at.index).and_then(|this| this.makes.take());
        let at = TypeRef { index: makes.unwrap_or(at.index), ..at };
        let (above, spec) = (parent.path.clone(), parent.spec.clone());
        let dev = format!("{}/{uuid}", above.trim_start_matches("sys/"));
        self.uevents.send("add", &dev, "mdev", &[], &[]);
        if self.available(at) == 0 {
            // The device is made, its driver has no room for it, and it is unmade.
            self.uevents.send("remove", &dev, "mdev", &[], &[]);
            return Err(Errno::NOSPC);
        }
        let group = take(&mut self.groups, self.first_group);
        let vfio = take(&mut self.vfio, 0);
        self.mdevs.insert(uuid, Mdev { at, group, vfio, removing: false });
        self.add_nodes(uuid, at, &spec, group, vfio);
        self.vfio_uevent("add", group);
        self.uevents.send("add", &format!("{dev}/vfio-dev/vfio{vfio}"), "vfio-dev", &[], &[]);
        self.uevents.send("bind", &dev, "mdev", &[], &[("DRIVER", mdev_driver(&spec))]);
        Ok(())
    }

    fn add_nodes(&mut self, uuid: Uuid, at: TypeRef, spec: &ParentSpec, group: u32, vfio: u32) {
        let Some(parent) = self.parents.get(at.parent) else { return };
        let Some(id) = parent.types.get(at.index).map(|this| this.spec.id.as_str()) else { return };
        let above = &parent.path;
        let home = format!("{above}/{uuid}");
        let driver = mdev_driver(spec);
        let tree = &mut self.tree;
        let mut link = |at: String, to: &str| {
            let (dir, _) = at.rsplit_once('/').unwrap_or((&at, ""));
            let text = Tree::relative(dir, to);
            tree.link(&at, &text, false);
        };
        let iommu = format!("sys/kernel/iommu_groups/{group}");
        let cdev = format!("sys/devices/virtual/vfio/{group}");
        let vfio_dev = format!("{home}/vfio-dev/vfio{vfio}");
        link(format!("{home}/driver"), &format!("sys/bus/mdev/drivers/{driver}"));
        link(format!("{home}/iommu_group"), &iommu);
        link(format!("{home}/mdev_type"), &format!("{above}/mdev_supported_types/{id}"));
        link(format!("{home}/subsystem"), "sys/bus/mdev");
        link(format!("{vfio_dev}/device"), &home);
        link(format!("{vfio_dev}/subsystem"), "sys/class/vfio-dev");
        link(format!("{above}/mdev_supported_types/{id}/devices/{uuid}"), &home);
        link(format!("sys/bus/mdev/devices/{uuid}"), &home);
        link(format!("sys/bus/mdev/drivers/{driver}/{uuid}"), &home);
        link(format!("{iommu}/devices/{uuid}"), &home);
        link(format!("sys/class/vfio-dev/vfio{vfio}"), &vfio_dev);
        link(format!("sys/class/vfio/{group}"), &cdev);
        link(format!("{cdev}/subsystem"), "sys/class/vfio");
        let mut attr = |path: String, mode: u16, attr: Attr| tree.attr(&path, mode, false, attr);
        attr(format!("{home}/remove"), 0o200, Attr::Remove(uuid));
        attr(format!("{home}/uevent"), 0o644, Attr::Store(format!("DRIVER={driver}\n"), false));
        attr(format!("{vfio_dev}/uevent"), 0o644, Attr::Store(String::new(), false));
        attr(format!("{cdev}/dev"), 0o444, Attr::Text(format!("244:{group}\n")));
        attr(
            format!("{cdev}/uevent"),
            0o644,
            Attr::Store(format!("MAJOR=244\nMINOR={group}\nDEVNAME=vfio/{group}\n"), false),
        );
        attr(format!("{iommu}/name"), 0o444, Attr::Text("vfio-noiommu\n".to_owned()));
        for (path, mode, text) in &spec.mdev_attrs {
            let text = format!("{}\n", text.replace("{uuid}", &uuid.to_string()));
            attr(
                format!("{home}/{path}"),
                *mode,
                if mode & 0o200 == 0 { Attr::Text(text) } else { Attr::Store(text, true) },
            );
        }
        pci::group_files(tree, group, "unknown", "", false);
    }

    /// The first half of a removal: the device leaves its bus, its type and its driver, and keeps its folder with `iommu_group`, its group
    /// and its place in the parent's stock until nobody has it open.
    pub(super) fn begin_removal(&mut self, uuid: Uuid) -> bool {
        let Some(mdev) = self.mdevs.get_mut(&uuid).filter(|mdev| !mdev.removing) else { return false };
        mdev.removing = true;
        let (at, vfio) = (mdev.at, mdev.vfio);
        let Some(parent) = self.parents.get(at.parent) else { return false };
        let home = format!("{}/{uuid}", parent.path);
        let driver = mdev_driver(&parent.spec);
        let id = parent.types.get(at.index).map_or("", |this| this.spec.id.as_str());
        let names = self
            .tree
            .find(&home)
            .and_then(|ino| self.tree.entries(ino).ok())
            .map(|entries| entries.keys().cloned().collect::<Vec<_>>());
        let mut paths: Vec<String> = names
            .unwrap_or_default()
            .into_iter()
            .filter(|name| name != "iommu_group")
            .map(|name| format!("{home}/{name}"))
            .collect();
        paths.extend([
            format!("{}/mdev_supported_types/{id}/devices/{uuid}", parent.path),
            format!("sys/bus/mdev/devices/{uuid}"),
            format!("sys/bus/mdev/drivers/{driver}/{uuid}"),
            format!("sys/class/vfio-dev/vfio{vfio}"),
        ]);
        for path in paths {
            self.tree.remove_path(&path);
        }
        self.uevents.send(
            "remove",
            &format!("{}/vfio-dev/vfio{vfio}", home.trim_start_matches("sys/")),
            "vfio-dev",
            &[],
            &[],
        );
        true
    }

    /// The second half: what was kept goes too.
    pub(super) fn finish_removal(&mut self, uuid: Uuid) {
        let Some(Mdev { at, group, vfio, .. }) = self.mdevs.remove(&uuid) else { return };
        let Some(parent) = self.parents.get(at.parent) else { return };
        let home = format!("{}/{uuid}", parent.path);
        let cdev = format!("sys/devices/virtual/vfio/{group}");
        for path in
            [home.as_str(), &cdev, &format!("sys/class/vfio/{group}"), &format!("sys/kernel/iommu_groups/{group}")]
        {
            self.tree.remove_path(path);
        }
        self.groups.remove(&group);
        self.vfio.remove(&vfio);
        let dev = home.trim_start_matches("sys/");
        self.vfio_uevent("remove", group);
        self.uevents.send("unbind", dev, "mdev", &[], &[]);
        self.uevents.send("remove", dev, "mdev", &[], &[]);
    }

    /// A write to `remove`.
    pub(super) fn remove(&mut self, uuid: Uuid, text: &[u8]) -> Result<Removal, Errno> {
        if !is_true(text)? {
            return Ok(Removal::Done);
        }
        let held = self.held(uuid);
        if let (true, OfHeld::Fails(errno)) = (held, self.of_held) {
            return Err(errno);
        }
        if !self.begin_removal(uuid) {
            return Err(Errno::NODEV);
        }
        if held && self.of_held == OfHeld::Waits {
            return Ok(Removal::Waits);
        }
        self.finish_removal(uuid);
        Ok(Removal::Done)
    }

    /// True when a process has the device's group open.
    pub(super) fn held(&self, uuid: Uuid) -> bool {
        let Some(mdev) = self.mdevs.get(&uuid) else { return false };
        self.processes.values().any(|process| process.groups.contains(&mdev.group))
    }
}

/// The driver of the parent's mediated devices.
pub(super) fn mdev_driver(spec: &ParentSpec) -> &str {
    match (&spec.mdev_driver, &spec.driver) {
        (Some(driver), _) => driver,
        (None, Some(driver)) if driver == "nvidia" => "nvidia-vgpu-vfio",
        (None, _) if pci::is_address(&spec.name) => "vfio_mdev",
        (None, _) => &spec.name,
    }
}

/// The lowest number from `first` that is not in use.
fn take(used: &mut BTreeSet<u32>, first: u32) -> u32 {
    let free = (first..).find(|number| !used.contains(number)).unwrap_or(first);
    used.insert(free);
    free
}

/// As the kernel does: 36 or 37 bytes, of which the first 36 are a hyphenated UUID in either case.
fn parse_uuid(text: &[u8]) -> Option<Uuid> {
    if !(36..=37).contains(&text.len()) {
        return None;
    }
    let text = std::str::from_utf8(text.get(..36)?).ok()?;
    Uuid::try_parse(text).ok()
}

fn is_true(text: &[u8]) -> Result<bool, Errno> {
    number(text).map(|number| number != 0)
}

/// As the kernel's `kstrtoul(buf, 0, …)`: a decimal, `0x` or octal number, one newline allowed.
pub(super) fn number(text: &[u8]) -> Result<u64, Errno> {
    let text = std::str::from_utf8(text).map_err(|_| Errno::INVAL)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.starts_with('0') && text.len() > 1 => (text, 8),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return Err(Errno::INVAL);
    }
    u64::from_str_radix(digits, radix).map_err(|_| Errno::INVAL)
}
