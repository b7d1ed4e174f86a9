//! Processes of the fake host: their `/proc/PID`, and who holds which device.

use uuid::Uuid;

use super::host::Shared;
use super::kernel::World;
use super::rules::lock;
use super::tree::Attr;
use std::sync::Arc;

/// What is mounted: the root of the fake host is on no device of it.
pub(super) const MOUNTS: &str = "22 1 0:21 / / rw,relatime shared:1 - tmpfs tmpfs rw\n";

/// What the fake host knows of a process.
#[derive(Debug, Default)]
pub(super) struct Process {
    /// The IOMMU groups that it has open.
    pub(super) groups: Vec<u32>,
    /// True when its file descriptors cannot be read.
    pub(super) closed_fds: bool,
    comm: String,
    start: u64,
    fds: u32,
}

impl World {
    /// Puts a process; one with that pid that was there is gone.
    pub(super) fn add_process(&mut self, pid: u32, comm: &str, cmdline: &[&str]) {
        self.remove_process(pid);
        let start = 1000 + u64::from(pid);
        self.processes.insert(pid, Process { comm: comm.to_owned(), start, ..Process::default() });
        let mut line = cmdline.join("\0");
        line.push('\0');
        self.tree.attr(&format!("proc/{pid}/cmdline"), 0o444, false, Attr::Text(line));
        self.tree.attr(&format!("proc/{pid}/mountinfo"), 0o444, false, Attr::Text(MOUNTS.to_owned()));
        self.tree.attr(&format!("proc/{pid}/comm"), 0o644, false, Attr::Text(format!("{comm}\n")));
        let status = format!(
            "Name:\t{comm}\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\nPPid:\t1\nTracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"
        );
        self.tree.attr(&format!("proc/{pid}/status"), 0o444, false, Attr::Text(status));
        self.put_stat(pid);
        let fds = self.tree.dir(&format!("proc/{pid}/fd"), false);
        if let Some(node) = self.tree.get_mut(fds) {
            node.mode = 0o500;
        }
        for target in ["/dev/null", "socket:[4242]", "socket:[4242]"] {
            self.open(pid, target);
        }
    }

    fn put_stat(&mut self, pid: u32) {
        let Some(Process { comm, start, .. }) = self.processes.get(&pid) else { return };
        // Fields 3 to 52 of proc(5); the 22nd is the start time.
        let text = format!(
            "{pid} ({comm}) S 1 {pid} {pid} 0 -1 4194560 2100 0 12 0 33 8 0 0 20 0 5 0 {start} 14209024 2040 18446744073709551615 \
             1 1 0 0 0 0 0 16781318 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        );
        self.tree.attr(&format!("proc/{pid}/stat"), 0o444, false, Attr::Text(text));
    }

    pub(super) fn set_start(&mut self, pid: u32, start: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.start = start;
        }
        self.put_stat(pid);
    }

    fn open(&mut self, pid: u32, target: &str) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let fd = process.fds;
        process.fds += 1;
        self.tree.link(&format!("proc/{pid}/fd/{fd}"), target, false);
    }

    /// The process opens the device's group, as QEMU does; false when there is no such device.
    pub(super) fn open_group(&mut self, pid: u32, uuid: Uuid) -> bool {
        let (Some(mdev), Some(process)) = (self.mdevs.get(&uuid), self.processes.get_mut(&pid)) else { return false };
        let group = mdev.group;
        process.groups.push(group);
        self.open_vfio(pid, group);
        true
    }

    fn open_vfio(&mut self, pid: u32, group: u32) {
        for target in ["/dev/vfio/vfio", &format!("/dev/vfio/{group}"), "anon_inode:[vfio-device]"] {
            self.open(pid, target);
        }
    }

    /// The process opens a group that a VFIO driver offers; false when there is none of that number.
    fn open_numbered(&mut self, pid: u32, group: u32) -> bool {
        let offered = self.tree.find(&format!("sys/class/vfio/{group}")).is_some();
        let Some(process) = self.processes.get_mut(&pid).filter(|_| offered) else { return false };
        process.groups.push(group);
        self.open_vfio(pid, group);
        true
    }

    /// The process opens a function; false when no driver offers it, or it has no vGPU type and needs one.
    fn open_function(&mut self, pid: u32, address: &str) -> bool {
        let Some(function) = self.functions.get(address).filter(|function| function.vfio.is_some()) else {
            return false;
        };
        let whole = function.vgpu.as_ref().is_none_or(|vgpu| vgpu.current.is_some());
        function.group.filter(|_| whole && !function.unbinding).is_some_and(|group| self.open_numbered(pid, group))
    }

    /// The process closes every group.
    pub(super) fn close_groups(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.groups.clear();
        let fds = process.fds;
        for fd in 0..fds {
            let path = format!("proc/{pid}/fd/{fd}");
            let vfio = self.tree.find(&path).and_then(|ino| self.tree.get(ino)).is_some_and(|node| match &node.body {
                super::tree::Body::Link(to) => to.contains("vfio"),
                _ => false,
            });
            if vfio {
                self.tree.remove_path(&path);
            }
        }
    }

    pub(super) fn remove_process(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.tree.remove_path(&format!("proc/{pid}"));
    }

    /// Gives a real process a place in the fake `/proc` by number.
    pub(super) fn mirror_process(&mut self, pid: u32) {
        for name in ["stat", "status", "comm", "cmdline"] {
            self.tree.attr(&format!("proc/{pid}/{name}"), 0o444, false, Attr::RealProc(pid, name));
        }
    }
}

/// A process of the fake host. It stays when this is dropped; see [`FakeProcess::vanish`].
#[derive(Debug, Clone)]
pub struct FakeProcess {
    pub(super) shared: Arc<Shared>,
    pub(super) pid: u32,
}

impl FakeProcess {
    fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut lock(&self.shared.world));
        self.shared.changed.notify_all();
        result
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its start time, field 22 of `stat`, in clock ticks since boot.
    #[must_use]
    pub fn started(self, ticks: u64) -> Self {
        self.with(|world| world.set_start(self.pid, ticks));
        self
    }

    /// It opens the group of a mediated device, as QEMU does; panics when there is no such device.
    #[must_use]
    pub fn opens_group_of(self, uuid: Uuid) -> Self {
        let opened = self.with(|world| world.open_group(self.pid, uuid));
        assert!(opened, "there is no mdev {uuid} that pid {} could open", self.pid);
        self
    }

    /// It opens this IOMMU group; panics when no VFIO driver offers it.
    #[must_use]
    pub fn opens_group(self, group: u32) -> Self {
        let opened = self.with(|world| world.open_numbered(self.pid, group));
        assert!(opened, "there is no /dev/vfio/{group} that pid {} could open", self.pid);
        self
    }

    /// It opens a PCI function, and with that its whole group, as QEMU does; panics when no VFIO driver offers the function, or it still
    /// needs a vGPU type.
    #[must_use]
    pub fn opens_function(self, address: &str) -> Self {
        let opened = self.with(|world| world.open_function(self.pid, address));
        assert!(opened, "pid {} cannot open {address}", self.pid);
        self
    }

    /// Its file descriptors cannot be read: listing `/proc/PID/fd` is `EACCES`.
    #[must_use]
    pub fn hides_fds(self) -> Self {
        self.with(|world| {
            if let Some(process) = world.processes.get_mut(&self.pid) {
                process.closed_fds = true;
            }
        });
        self
    }

    /// It closes all groups; a removal that waited for that goes on.
    pub fn closes_groups(&self) {
        self.with(|world| world.close_groups(self.pid));
    }

    /// It ends.
    pub fn vanish(&self) {
        self.with(|world| world.remove_process(self.pid));
    }
}
