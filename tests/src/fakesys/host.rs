//! A mounted fake host, and what a test can ask of it and do to it.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use fuser::{BackgroundSession, Config, FileType, MountOption, Notifier, SessionACL};
use rustix::io::Errno;
use uuid::Uuid;

use super::builder::Builder;
use super::fs::Fs;
use super::kernel::{OfHeld, Removal, World};
use super::libvirt;
use super::log::LogEntry;
use super::process::FakeProcess;
use super::rules::{Event, Fault, Op, Point, Rule, Rules, Then, lock, wait_until};
use super::tree::{Attr, Body, Ino, TypeRef};
use super::view::View;

/// One line of a listing: inode, kind and name.
pub(super) type Entry = (Ino, FileType, String);

/// What the FUSE threads and the test share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) world: Mutex<World>,
    /// Told of every change of the world.
    pub(super) changed: Condvar,
    pub(super) rules: Arc<Rules>,
    /// The host is going away.
    pub(super) over: AtomicBool,
    pub(super) dirs: Mutex<HashMap<u64, Vec<Entry>>>,
    pub(super) next_dir: AtomicU64,
    /// The way to tell the kernel what it must forget.
    notifier: OnceLock<Notifier>,
}

impl Shared {
    /// The world has changed: whoever waits looks again, and the kernel forgets the names that are gone although they were to last. Not to
    /// be called with the world held.
    pub(super) fn tell(&self) {
        let gone = std::mem::take(&mut lock(&self.world).gone);
        self.changed.notify_all();
        for (dir, name) in gone {
            // The kernel may not know the name, and then has nothing to forget.
            let _ = self.notifier.get().map(|it| it.inval_entry(fuser::INodeNo(dir), std::ffi::OsStr::new(&name)));
        }
    }
}

/// A fake host that is mounted; unmounted when dropped, after everything that hung was let go.
#[derive(Debug)]
pub struct FakeHost {
    pub(super) shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    path: PathBuf,
    own_folder: Option<tempfile::TempDir>,
}

/// Why there is no FUSE here, with what to do about it.
fn no_fuse(error: &io::Error) -> io::Error {
    let root = rustix::process::geteuid().is_root();
    let help = if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)"
    } else if !root && std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        "only root may open /dev/fuse here: run the tests as root, or let everybody open it as most systems do (chmod 0666 /dev/fuse)"
    } else if root {
        "root needs CAP_SYS_ADMIN to mount: give the container --cap-add SYS_ADMIN --device /dev/fuse"
    } else {
        "an ordinary user needs the program fusermount3: apt install fuse3, or dnf install fuse3; or run the tests as root"
    };
    io::Error::new(
        error.kind(),
        format!("the simulated host cannot be mounted with FUSE: {}; {help}", error.to_string().trim_end()),
    )
}

impl FakeHost {
    pub(super) fn mount(builder: Builder) -> io::Result<Self> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let own_folder = if builder.mountpoint.is_none() {
            Some(tempfile::Builder::new().prefix("fakesys-").tempdir()?)
        } else {
            None
        };
        let path = match (&own_folder, &builder.mountpoint) {
            (Some(folder), _) => folder.path().to_owned(),
            (None, Some(path)) => path.canonicalize()?,
            (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(World::new(&builder, uid.as_raw(), gid.as_raw())),
            changed: Condvar::new(),
            rules: Arc::default(),
            over: AtomicBool::new(false),
            dirs: Mutex::default(),
            next_dir: AtomicU64::new(1),
            notifier: OnceLock::new(),
        });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("fakesys".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
        ];
        // Others than the one who mounts may look too where that can be had: as root.
        config.acl = if uid.is_root() { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(Fs(shared.clone()), &path, &config).map_err(|error| no_fuse(&error))?;
        shared.notifier.get_or_init(|| session.notifier());
        Ok(Self { shared, session: Some(session), path, own_folder })
    }

    /// The mount point; below it are `sys`, `proc`, `etc` and `run`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The fake `/sys`.
    pub fn sys(&self) -> PathBuf {
        self.path.join("sys")
    }

    /// The fake `/proc`.
    pub fn proc(&self) -> PathBuf {
        self.path.join("proc")
    }

    /// The fake `/etc`.
    pub fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// The fake `/run`.
    pub fn run(&self) -> PathBuf {
        self.path.join("run")
    }

    /// The daemon's four options, in the order in which it documents them: `--sys M/sys --proc M/proc --etc M/etc --run M/run`.
    pub fn root_args(&self) -> Vec<std::ffi::OsString> {
        let pairs = [("--sys", self.sys()), ("--proc", self.proc()), ("--etc", self.etc()), ("--run", self.run())];
        pairs.into_iter().flat_map(|(name, path)| [name.into(), path.into_os_string()]).collect()
    }

    /// A new listener of kernel uevents: the end to read from, made to be the daemon's standard input.
    pub fn uevents(&self) -> io::Result<UnixDatagram> {
        lock(&self.shared.world).uevents.listen()
    }

    /// From now on uevents are lost, or, with `false`, sent again.
    pub fn lose_uevents(&self, lost: bool) {
        lock(&self.shared.world).uevents.lose(lost);
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut lock(&self.shared.world));
        self.shared.tell();
        result
    }

    // ---- parents, types and devices ----

    /// Puts more into the running host: a builder's parents and functions, with the uevents for them.
    pub fn plug(&self, more: Builder) {
        self.change(|world| world.plug(&more));
    }

    /// Pulls a parent or a PCI function out, its devices and virtual functions with it, whoever has them open.
    pub fn unplug(&self, name: &str) {
        let (parent, function) = {
            let world = lock(&self.shared.world);
            (world.parent_named(name), world.functions.contains_key(name))
        };
        assert!(parent.is_some() || function, "this host has no parent and no PCI function {name}");
        self.change(|world| match parent {
            Some(parent) => world.unplug(parent),
            None => world.unplug_function(name),
        });
    }

    /// The types of a parent that was built with [`Builder::types_late`] appear, with the uevent that says so.
    pub fn types_appear(&self, parent: &str) {
        let index = self.parent(parent);
        self.change(|world| world.register(index));
    }

    fn parent(&self, name: &str) -> usize {
        let found = lock(&self.shared.world).parent_named(name);
        assert!(found.is_some(), "this host has no parent {name}");
        found.unwrap_or_default()
    }

    fn mdev_type(&self, parent: &str, id: &str) -> TypeRef {
        let found = lock(&self.shared.world).type_named(parent, id);
        assert!(found.is_some(), "this host has no parent {parent} with a type {id}");
        found.unwrap_or(TypeRef { parent: 0, index: 0 })
    }

    /// The path of a parent from the mount: `sys/devices/…`.
    pub fn parent_path(&self, parent: &str) -> String {
        let index = self.parent(parent);
        lock(&self.shared.world).parents.get(index).map(|parent| parent.path.clone()).unwrap_or_default()
    }

    /// The path of a type's file from the mount: for faults on `create`, `available_instances`, `name`, ….
    pub fn type_path(&self, parent: &str, id: &str, file: &str) -> String {
        self.mdev_type(parent, id);
        format!("{}/mdev_supported_types/{id}/{file}", self.parent_path(parent))
    }

    /// The path of a mediated device's folder from the mount, whether it exists or not.
    pub fn mdev_path(&self, parent: &str, uuid: Uuid) -> String {
        format!("{}/{uuid}", self.parent_path(parent))
    }

    /// Makes a mediated device as somebody else would by hand, uevents and all.
    pub fn create_mdev(&self, parent: &str, id: &str, uuid: Uuid) -> Result<(), Errno> {
        let at = self.mdev_type(parent, id);
        self.change(|world| world.create(at, uuid.to_string().as_bytes()))
    }

    /// Removes a mediated device as somebody else would by hand; one that is held is taken away all the same.
    pub fn remove_mdev(&self, uuid: Uuid) -> Result<(), Errno> {
        self.change(|world| match world.remove(uuid, b"1") {
            Ok(Removal::Waits) => {
                world.finish_removal(uuid);
                Ok(())
            }
            other => other.map(|_| ()),
        })
    }

    /// Leaves a mediated device half removed, as it stays while its removal waits: its folder with `iommu_group` only, and its group.
    pub fn half_remove(&self, uuid: Uuid) {
        let began = self.change(|world| world.begin_removal(uuid));
        assert!(began, "there is no whole mdev {uuid}");
    }

    /// Only the link to its type goes; all the rest of the device stays.
    pub fn loses_type_link(&self, uuid: Uuid) {
        let gone = self.change(|world| {
            let mdev = world.mdevs.get(&uuid)?;
            let path = format!("{}/{uuid}/mdev_type", world.parents.get(mdev.at.parent)?.path);
            world.tree.remove_path(&path)
        });
        assert!(gone.is_some(), "there is no whole mdev {uuid}");
    }

    /// The mediated devices that there are, with parent and type; one whose removal waits is among them.
    pub fn mdevs(&self) -> Vec<(Uuid, String, String)> {
        self.view().mdevs()
    }

    /// What the host has, seen past the file system; see [`View`].
    pub fn view(&self) -> View {
        View(self.shared.clone())
    }

    /// The IOMMU group of a mediated device.
    pub fn group_of(&self, uuid: Uuid) -> Option<u32> {
        lock(&self.shared.world).mdevs.get(&uuid).map(|mdev| mdev.group)
    }

    /// How many more of a type there really can be.
    pub fn available(&self, parent: &str, id: &str) -> u32 {
        let at = self.mdev_type(parent, id);
        lock(&self.shared.world).available(at)
    }

    /// `available_instances` says this from now on, whatever is true: `"0"` while `create` works, `"4"` while it does not, or no number.
    pub fn says_available(&self, parent: &str, id: &str, text: &str) {
        let at = self.mdev_type(parent, id);
        self.with_type(at, |this| this.says = Some(format!("{text}\n")));
    }

    /// The next `create` of this type makes a device of `other` instead.
    pub fn next_create_makes(&self, parent: &str, id: &str, other: &str) {
        let (at, other) = (self.mdev_type(parent, id), self.mdev_type(parent, other));
        self.with_type(at, |this| this.makes = Some(other.index));
    }

    fn with_type(&self, at: TypeRef, change: impl FnOnce(&mut super::kernel::Type)) {
        self.change(|world| {
            if let Some(this) = world.parents.get_mut(at.parent).and_then(|parent| parent.types.get_mut(at.index)) {
                change(this);
            }
        });
    }

    /// Replaces what an attribute reads as; a path that was not there is made. For files that do not parse.
    pub fn set_text(&self, path: &str, text: &str) {
        self.change(|world| match world.tree.find(path).and_then(|ino| world.tree.get_mut(ino)) {
            Some(node) => node.body = Body::Attr(Attr::Text(text.to_owned())),
            None => world.tree.attr(path, 0o444, false, Attr::Text(text.to_owned())),
        });
    }

    /// Takes a path away for good.
    pub fn drop_path(&self, path: &str) {
        self.change(|world| world.drop_path(path));
    }

    /// What `remove` does with a device that a process has open; it waits unless this says otherwise.
    pub fn remove_of_held(&self, how: OfHeld) {
        self.change(|world| world.of_held = how);
    }

    /// Waits until a removal of this device has begun and waits for those who hold it.
    pub fn wait_removal_begun(&self, uuid: Uuid) {
        let begun = |world: &mut World| world.mdevs.get(&uuid).is_none_or(|mdev| mdev.removing);
        wait_until(&self.shared.changed, &self.shared.world, begun, || format!("a removal of {uuid}"));
    }

    /// Waits until the host's devices are as `done` wants them.
    pub fn wait_mdevs(&self, what: &str, mut done: impl FnMut(&[Uuid]) -> bool) {
        let check = |world: &mut World| done(&world.mdevs.keys().copied().collect::<Vec<_>>());
        wait_until(&self.shared.changed, &self.shared.world, check, || what.to_owned());
    }

    // ---- processes and libvirt ----

    /// Adds a process with `/proc/PID/{stat,status,comm,cmdline,fd}`.
    pub fn process(&self, pid: u32, comm: &str, cmdline: &[&str]) -> FakeProcess {
        self.change(|world| world.add_process(pid, comm, cmdline));
        FakeProcess { shared: self.shared.clone(), pid }
    }

    /// A real process is to be found in the fake `/proc` as long as it lives: its `stat`, `status`, `comm` and `cmdline`.
    pub fn mirror_process(&self, pid: u32) {
        self.change(|world| world.mirror_process(pid));
    }

    /// libvirt's status file of a running domain: `/run/libvirt/qemu/NAME.xml` with the domain's own XML, and `NAME.pid`.
    pub fn domain_runs(&self, name: &str, pid: u32, domain_xml: &str) -> io::Result<PathBuf> {
        libvirt::write(&self.run(), name, pid, domain_xml)
    }

    /// libvirt's status file goes, as when the domain has stopped.
    pub fn domain_stops(&self, name: &str) -> io::Result<()> {
        libvirt::remove(&self.run(), name)
    }

    // ---- faults and points ----

    /// From now on `op` on the paths that `glob` means (from the mount: `sys/**/create`) does this, until the rule is let go.
    pub fn fault(&self, op: Op, glob: impl Into<String>, fault: Fault) -> Rule {
        self.shared.rules.fault(Point::before(op, glob), fault, None)
    }

    /// As [`Self::fault`], for so many operations.
    pub fn fault_times(&self, times: usize, op: Op, glob: impl Into<String>, fault: Fault) -> Rule {
        self.shared.rules.fault(Point::before(op, glob), fault, Some(times))
    }

    /// A fault at a point: a hang after a write was carried out, an errno for the third read.
    pub fn fault_at(&self, point: Point, fault: Fault) -> Rule {
        self.shared.rules.fault(point, fault, Some(1))
    }

    /// Runs `action` once, when the point is passed, while the operation is pending; it decides whether the operation goes on. It runs on a
    /// thread of the file system. While a name is made, changed or deleted the kernel lets nobody look into that folder: there the action
    /// must not use the mount, but a [`View`].
    pub fn on(&self, point: Point, action: impl FnMut(&Event) -> Then + Send + 'static) -> Rule {
        self.shared.rules.run(point, action)
    }

    /// Ends all faults and points; what hangs goes on.
    pub fn no_faults(&self) {
        self.shared.rules.let_all_go();
    }

    /// Everything that was written, made, renamed and deleted so far, in order of completion.
    pub fn log(&self) -> Vec<LogEntry> {
        lock(&self.shared.world).log.clone()
    }

    /// The writes to sysfs so far as `(path, value, errno)`.
    pub fn sys_writes(&self) -> Vec<(String, String, Option<Errno>)> {
        let world = lock(&self.shared.world);
        world
            .log
            .iter()
            .filter(|entry| entry.is_sys_write())
            .map(|entry| (entry.path.clone(), entry.value.clone(), entry.errno))
            .collect()
    }

    /// Forgets the record.
    pub fn clear_log(&self) {
        lock(&self.shared.world).log.clear();
    }

    /// Waits until the record is as `done` wants it; panics after half a minute with `what`.
    pub fn wait_log(&self, what: &str, mut done: impl FnMut(&[LogEntry]) -> bool) {
        wait_until(&self.shared.changed, &self.shared.world, |world| done(&world.log), || what.to_owned());
    }

    /// Lets everything go on and unmounts; dropping does the same without a word.
    pub fn unmount(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.shared.over.store(true, Ordering::Release);
        self.shared.rules.end();
        self.shared.changed.notify_all();
        let result = if rustix::process::geteuid().is_root() {
            // The name is free at once, and whoever still waits for an answer gets an error.
            let how = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::FORCE;
            rustix::mount::unmount(&self.path, how).map_err(io::Error::from)
        } else {
            Ok(())
        };
        // As an ordinary user this calls fusermount3. It does not wait: a process that still has a file open must not hold up the test.
        drop(session);
        if let Some(folder) = self.own_folder.take() {
            folder.close()?;
        }
        result
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{}: cannot unmount the simulated host: {error}", self.path.display());
        }
    }
}
