//! The FUSE side: turns the kernel's requests into operations on the tree, and lets the rules of the host have their say.
//!
//! What a rule concerns, and a `remove` that has to wait, is done on a thread of its own, so that it never keeps others waiting.
//! An operation that hangs cannot be ended by a signal: requests to interrupt it are refused, and then the kernel waits for the answer
//! even when the process that asked is being killed, as it does in vfio's `remove`.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::host::Shared;
use super::kernel::OfHeld;
use super::log::worth_it;
use super::ops::{Entry, entry_of, kind, ordinary, text};
use super::rules::{Event, Op, When, lock};
use super::tree::{Body, Ino, Node};

const APPEND: i32 = 0o2000;
pub(super) struct Fs(pub(super) Arc<Shared>);

/// The fuser error for an errno.
fn err(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn answer_entry(reply: ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok((attr, attr_ttl, entry_ttl)) => reply.entry_with_ttls(&attr_ttl, &entry_ttl, &attr, Generation(0)),
        Err(errno) => reply.error(err(errno)),
    }
}

fn answer_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(err(errno)),
    }
}

impl Fs {
    fn event(&self, op: Op, ino: Ino, name: Option<&OsStr>, req: &Request) -> Event {
        let mut path = lock(&self.0.world).tree.path(ino);
        if let Some(name) = name {
            path = format!("{path}/{}", name.to_string_lossy());
        }
        Event { op, path, to: None, value: String::new(), pid: req.pid() }
    }

    /// True when the operation needs no event made for it.
    fn plain(&self, op: Op) -> bool {
        !worth_it(op) && self.0.rules.none()
    }

    /// Carries out an operation with what the rules say about it, writes it down, and answers; on another thread when it may take long.
    fn perform<T: Send + 'static>(
        &self,
        event: Event,
        may_wait: bool,
        work: impl FnOnce(&Shared) -> Result<T, Errno> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        if !may_wait && !self.0.rules.concern(&event) {
            let result = work(&self.0);
            self.0.record(&event, result.as_ref().err());
            return answer(result);
        }
        let shared = self.0.clone();
        std::thread::spawn(move || {
            let mut result = shared.rules.apply(&event, When::Before).and_then(|()| work(&shared));
            if let Err(errno) = shared.rules.apply(&event, When::After) {
                result = Err(errno);
            }
            shared.record(&event, result.as_ref().err());
            answer(result);
        });
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without this one lookup that is slow holds up all others in its folder. Every kernel since 4.7 has it; an older one is only slower.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut world = lock(&self.0.world);
        let found = text(name).and_then(|name| {
            Shared::real_process(&mut world, parent.0, name);
            world.tree.child(parent.0, name)
        });
        let result = found.map_err(|_| Errno::NOENT).and_then(|ino| entry_of(&world, ino));
        drop(world);
        answer_entry(reply, result);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        lock(&self.0.world).tree.forget(ino.0);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let result = entry_of(&lock(&self.0.world), ino.0);
        match result {
            Ok((attr, ttl, _)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(err(errno)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut world = lock(&self.0.world);
        let Some(node) = world.tree.get_mut(ino.0) else { return reply.error(err(Errno::NOENT)) };
        if let Some(mode) = mode {
            node.mode = (mode & 0o7777) as u16;
        }
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        if let (Some(size), Body::File(data)) = (size, &mut node.body) {
            let Some(size) = usize::try_from(size).ok().filter(|size| *size <= 64 << 20) else {
                return reply.error(err(Errno::FBIG));
            };
            data.resize(size, 0);
            node.modified = SystemTime::now();
        }
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => node.modified = time,
            Some(TimeOrNow::Now) => node.modified = SystemTime::now(),
            None => {}
        }
        let result = entry_of(&world, ino.0);
        drop(world);
        match result {
            Ok((attr, ttl, _)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(err(errno)),
        }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let work = move |shared: &Shared| match lock(&shared.world).tree.get(ino.0) {
            Some(Node { body: Body::Link(to), .. }) => Ok(to.clone()),
            Some(_) => Err(Errno::INVAL),
            None => Err(Errno::NOENT),
        };
        let answer = |result: Result<String, Errno>| match result {
            Ok(to) => reply.data(to.as_bytes()),
            Err(errno) => reply.error(err(errno)),
        };
        if self.plain(Op::Readlink) {
            return answer(work(&self.0));
        }
        self.perform(self.event(Op::Readlink, ino.0, None, req), false, work, answer);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let event = self.event(Op::Mkdir, parent.0, Some(name), req);
        let (name, uid, gid) = (name.to_owned(), req.uid(), req.gid());
        self.perform(
            event,
            false,
            move |shared| shared.make(parent.0, &name, mode, (uid, gid), true),
            |result| answer_entry(reply, result),
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & 0o170_000 != 0o100_000 {
            return reply.error(err(Errno::PERM));
        }
        let event = self.event(Op::Create, parent.0, Some(name), req);
        let (name, uid, gid) = (name.to_owned(), req.uid(), req.gid());
        self.perform(
            event,
            false,
            move |shared| shared.make(parent.0, &name, mode, (uid, gid), false),
            |result| answer_entry(reply, result),
        );
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let mut world = lock(&self.0.world);
        let result = ordinary(&world, parent.0, Errno::PERM).and_then(|()| {
            let (name, target) = (text(name)?, target.to_str().ok_or(Errno::INVAL)?);
            let ino = world.tree.add(parent.0, name, 0o777, false, Body::Link(target.to_owned()))?;
            entry_of(&world, ino)
        });
        drop(world);
        answer_entry(reply, result);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let event = self.event(Op::Unlink, parent.0, Some(name), req);
        let name = name.to_owned();
        let work = move |shared: &Shared| {
            let mut world = lock(&shared.world);
            ordinary(&world, parent.0, Errno::PERM)?;
            world.tree.remove(parent.0, text(&name)?).map(|_| ()).ok_or(Errno::NOENT)
        };
        self.perform(event, false, work, |result| answer_empty(reply, result));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut world = lock(&self.0.world);
        let result = ordinary(&world, parent.0, Errno::PERM).and_then(|()| {
            let ino = world.tree.child(parent.0, text(name)?)?;
            if !world.tree.entries(ino)?.is_empty() {
                return Err(Errno::NOTEMPTY);
            }
            world.tree.remove(parent.0, text(name)?);
            Ok(())
        });
        drop(world);
        answer_empty(reply, result);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut event = self.event(Op::Rename, parent.0, Some(name), req);
        event.to = Some(self.event(Op::Rename, newparent.0, Some(newname), req).path);
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let work = move |shared: &Shared| {
            let mut world = lock(&shared.world);
            ordinary(&world, parent.0, Errno::PERM)?;
            ordinary(&world, newparent.0, Errno::PERM)?;
            if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
                return Err(Errno::INVAL);
            }
            let (name, newname) = (text(&name)?, text(&newname)?);
            let old = world.tree.child(newparent.0, newname).ok();
            if old.is_some() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EXIST);
            }
            if old.is_some_and(|old| world.tree.entries(old).is_ok_and(|entries| !entries.is_empty())) {
                return Err(Errno::NOTEMPTY);
            }
            world.tree.rename(parent.0, name, newparent.0, newname)
        };
        self.perform(event, false, work, |result| answer_empty(reply, result));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = move |shared: &Shared| {
            let world = lock(&shared.world);
            let node = world.tree.get(ino.0).ok_or(Errno::NOENT)?;
            let mut how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
            if matches!(node.body, Body::Attr(_)) {
                // kernfs checks these even for root, and lets writers of one attribute run side by side.
                let (reads, writes) = match flags.acc_mode() {
                    OpenAccMode::O_RDONLY => (true, false),
                    OpenAccMode::O_WRONLY => (false, true),
                    OpenAccMode::O_RDWR => (true, true),
                };
                if (writes && node.mode & 0o222 == 0) || (reads && node.mode & 0o444 == 0) {
                    return Err(Errno::ACCESS);
                }
                how |= FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
            }
            Ok(how)
        };
        let answer = |result: Result<FopenFlags, Errno>| match result {
            Ok(how) => reply.opened(FileHandle(0), how),
            Err(errno) => reply.error(err(errno)),
        };
        if self.plain(Op::Open) {
            return answer(work(&self.0));
        }
        self.perform(self.event(Op::Open, ino.0, None, req), false, work, answer);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Readers go on until they get nothing; only their first read is the one that is meant, and the one that waits.
        let first = offset == 0;
        let work = move |shared: &Shared| shared.read(ino.0, first);
        let answer = move |result: Result<Vec<u8>, Errno>| match result {
            Ok(data) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
                let to = from.saturating_add(size as usize).min(data.len());
                reply.data(data.get(from..to).unwrap_or_default());
            }
            Err(errno) => reply.error(err(errno)),
        };
        let may_wait = first && lock(&self.0.world).tree.get(ino.0).is_some_and(|node| node.body.read_waits());
        if !first || (!may_wait && self.plain(Op::Read)) {
            return answer(work(&self.0));
        }
        self.perform(self.event(Op::Read, ino.0, None, req), may_wait, work, answer);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut event = self.event(Op::Write, ino.0, None, req);
        event.value = String::from_utf8_lossy(data.get(..data.len().min(4096)).unwrap_or_default()).into_owned();
        let (is_file, may_wait) = {
            let world = lock(&self.0.world);
            match world.tree.get(ino.0).map(|node| &node.body) {
                Some(Body::File(_)) => (true, false),
                Some(Body::Attr(super::tree::Attr::Remove(uuid))) => {
                    (false, world.of_held == OfHeld::Waits && world.held(*uuid))
                }
                Some(Body::Attr(attr)) => (false, attr.waits()),
                _ => (false, false),
            }
        };
        let (data, size, append) = (data.to_vec(), data.len() as u32, flags.0 & APPEND != 0);
        let work = move |shared: &Shared| match is_file {
            true => shared.write_file(ino.0, offset, append, &data),
            false => shared.write_attr(ino.0, &data),
        };
        let answer = move |result: Result<(), Errno>| match result {
            Ok(()) => reply.written(size),
            Err(errno) => reply.error(err(errno)),
        };
        self.perform(event, may_wait, work, answer);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if self.plain(Op::Fsync) {
            return reply.ok();
        }
        self.perform(self.event(Op::Fsync, ino.0, None, req), false, |_| Ok(()), |result| answer_empty(reply, result));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let work = move |shared: &Shared| {
            let world = lock(&shared.world);
            let path = world.tree.path(ino.0);
            if let Some(pid) =
                path.strip_prefix("proc/").and_then(|path| path.strip_suffix("/fd")).and_then(|pid| pid.parse().ok())
                && world.processes.get(&pid).is_some_and(|process| process.closed_fds)
            {
                return Err(Errno::ACCESS);
            }
            let up = world.tree.get(ino.0).ok_or(Errno::NOENT)?.parent;
            let mut list =
                vec![(ino.0, FileType::Directory, ".".to_owned()), (up, FileType::Directory, "..".to_owned())];
            for (name, child) in world.tree.entries(ino.0)? {
                list.extend(world.tree.get(*child).map(|node| (*child, kind(node), name.clone())));
            }
            let fh = shared.next_dir.fetch_add(1, Ordering::Relaxed);
            lock(&shared.dirs).insert(fh, list);
            Ok(fh)
        };
        let answer = |result: Result<u64, Errno>| match result {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(errno) => reply.error(err(errno)),
        };
        if self.plain(Op::List) {
            return answer(work(&self.0));
        }
        self.perform(self.event(Op::List, ino.0, None, req), false, work, answer);
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let dirs = lock(&self.0.dirs);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (ino, kind, name)) in dirs.get(&fh.0).into_iter().flatten().enumerate().skip(skip) {
            if reply.add(INodeNo(*ino), index as u64 + 1, *kind, name) {
                break;
            }
        }
        drop(dirs);
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        lock(&self.0.dirs).remove(&fh.0);
        reply.ok();
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let event = self.event(Op::Create, parent.0, Some(name), req);
        let (name, uid, gid) = (name.to_owned(), req.uid(), req.gid());
        let work = move |shared: &Shared| shared.make(parent.0, &name, mode, (uid, gid), false);
        let answer = |result: Result<Entry, Errno>| match result {
            Ok((attr, ttl, _)) => {
                reply.created(
                    &ttl,
                    &attr,
                    Generation(0),
                    FileHandle(0),
                    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
                );
            }
            Err(errno) => reply.error(err(errno)),
        };
        self.perform(event, false, work, answer);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Tells the kernel not to ask again.
        reply.error(err(Errno::NOSYS));
    }

    // The kernel asks each of these once, and not again after this answer.

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(err(Errno::NOSYS));
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: fuser::ReplyXattr) {
        reply.error(err(Errno::NOSYS));
    }
}
