//! Watching folders: the hook's marks, and libvirt's status files, whose folder does not exist before libvirt has run.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::EffectError;

/// Folders that are being watched.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    folders: Vec<PathBuf>,
    /// What each watch is on: the folder itself, or the nearest one above it that exists.
    watched: BTreeMap<i32, PathBuf>,
}

impl Watch {
    /// Begins to watch. What changes from here on is reported, once [`Self::read_all`] runs.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Result<Self, EffectError> {
        let inotify =
            inotify::init(CreateFlags::CLOEXEC).map_err(|errno| EffectError::new("start", "inotify", errno))?;
        let mut watch = Self { inotify, folders: folders.into_iter().collect(), watched: BTreeMap::new() };
        watch.arm()?;
        Ok(watch)
    }

    /// Calls with the folder in which something has changed, for ever: for a plain thread. Names that begin with a dot, as temporary
    /// files have, do not count.
    pub fn read_all(mut self, mut on_change: impl FnMut(&Path)) -> Result<(), EffectError> {
        loop {
            for folder in self.read_some()? {
                on_change(&folder);
            }
        }
    }

    /// Waits for events, takes in all that are there, and says which of the folders they are about.
    fn read_some(&mut self) -> Result<Vec<PathBuf>, EffectError> {
        let mut changed = Vec::new();
        let mut moved = false;
        for (id, flags, hidden) in self.events()? {
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                changed.extend(self.folders.iter().cloned());
                moved = true;
            }
            match self.watched.get(&id) {
                Some(path) if self.folders.contains(path) => {
                    if !hidden {
                        changed.push(path.clone());
                    }
                    moved |= flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED);
                }
                Some(_) => moved = true,
                None => {}
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.watched.remove(&id);
            }
        }
        if moved {
            changed.extend(self.arm()?);
        }
        changed.sort_unstable();
        changed.dedup();
        Ok(changed)
    }

    /// The events that are there, at least one: watch, flags, and whether the name begins with a dot.
    fn events(&self) -> Result<Vec<(i32, ReadFlags, bool)>, EffectError> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let hidden = event.file_name().is_some_and(|name| name.to_bytes().starts_with(b"."));
                    events.push((event.wd(), event.events(), hidden));
                }
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(EffectError::new("read", "inotify", errno)),
            }
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }

    /// Puts a watch on each folder, or on the nearest one above it that exists, so that its coming is seen; takes away those that are
    /// of no more use. Returns the folders that are newly watched, in which something may have changed before.
    fn arm(&mut self) -> Result<Vec<PathBuf>, EffectError> {
        let mut watched = BTreeMap::new();
        for folder in &self.folders {
            let (id, path) = self.nearest(folder)?;
            watched.insert(id, path);
        }
        let before = std::mem::replace(&mut self.watched, watched);
        for id in before.keys().filter(|id| !self.watched.contains_key(id)) {
            // One that the kernel has dropped by itself is EINVAL here, and just as well.
            let _ = inotify::remove_watch(&self.inotify, *id);
        }
        let new = self.watched.iter().filter(|(id, path)| !before.contains_key(id) && self.folders.contains(path));
        Ok(new.map(|(_, path)| path.clone()).collect())
    }

    fn nearest(&self, folder: &Path) -> Result<(i32, PathBuf), EffectError> {
        loop {
            let mut missing = None;
            let mut found = None;
            for path in folder.ancestors() {
                match inotify::add_watch(&self.inotify, path, EVENTS) {
                    Ok(id) => {
                        found = Some((id, path.to_owned()));
                        break;
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => missing = Some(path),
                    Err(errno) => return Err(EffectError::new("watch", path, errno)),
                }
            }
            match found {
                // It may have come between the two calls, and then nothing would tell.
                Some(_) if missing.is_some_and(Path::is_dir) => {}
                Some(found) => return Ok(found),
                None => return Err(EffectError::new("watch", folder, Errno::NOENT)),
            }
        }
    }
}

/// Files that come, go or are written, and the folder itself going away.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
