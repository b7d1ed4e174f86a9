//! The locks of writes in flight: `/run/mdevd/busy/<key>`, taken by the daemon, held by the writer as its standard input until the write
//! has ended, however long that takes and whether or not the daemon still lives.
//!
//! A lock is a `flock`, which belongs to the open file and thus to whoever has inherited it. A lock that is taken means that the kernel
//! is still at it; a free one that what sysfs says is final. A lock's file is removed as soon as it is free.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::error::EffectError;
use crate::read;
use crate::roots::Roots;

/// The folder of locks.
#[derive(Debug, Clone)]
pub struct BusyLocks {
    dir: PathBuf,
}

impl BusyLocks {
    /// The locks of this host.
    pub fn new(roots: &Roots) -> Self {
        Self { dir: roots.busy_dir() }
    }

    /// Takes a lock; `None` when it is taken. Whoever holds a duplicate of the file holds the lock.
    pub fn try_take(&self, key: &str) -> Result<Option<File>, EffectError> {
        let path = self.path(key)?;
        loop {
            let file = open(&path, true)?;
            if !lock(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
                return Ok(None);
            }
            // The file may have been removed, by whoever had the lock before, between our opening and locking it.
            if is_at(&file, &path)? {
                return Ok(Some(file));
            }
        }
    }

    /// The keys whose lock is taken. The files of free ones, left by a daemon that was killed, are removed.
    pub fn in_flight(&self) -> Result<Vec<String>, EffectError> {
        let mut keys = Vec::new();
        for key in read::folder(&self.dir)?.unwrap_or_default() {
            if !self.clear(&key)? {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Removes the file of a lock that is free; false when it is taken.
    pub fn clear(&self, key: &str) -> Result<bool, EffectError> {
        let path = self.path(key)?;
        let Some(file) = read::unless_gone(open(&path, false))? else { return Ok(true) };
        if !lock(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(false);
        }
        remove(&file, &path)?;
        Ok(true)
    }

    /// Blocks until a lock is free, which can take for ever: for a plain thread.
    pub fn wait_free(&self, key: &str) -> Result<(), EffectError> {
        let path = self.path(key)?;
        let Some(file) = read::unless_gone(open(&path, false))? else { return Ok(()) };
        lock(&file, &path, FlockOperation::LockExclusive)?;
        remove(&file, &path)
    }

    fn path(&self, key: &str) -> Result<PathBuf, EffectError> {
        let path = self.dir.join(key);
        if key.is_empty() || key == "." || key == ".." || key.contains(['/', '\0']) {
            return Err(EffectError::new("lock", path, Errno::INVAL));
        }
        Ok(path)
    }
}

fn open(path: &Path, create: bool) -> Result<File, EffectError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| EffectError::io("open the lock", path, &error))
}

/// False when another one has it.
fn lock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool, EffectError> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(EffectError::new("lock", path, errno)),
        }
    }
}

/// Removes the file of a lock that we hold, unless another file stands there by now.
fn remove(file: &File, path: &Path) -> Result<(), EffectError> {
    if is_at(file, path)? {
        read::unless_gone(std::fs::remove_file(path).map_err(|error| EffectError::io("remove", path, &error)))?;
    }
    Ok(())
}

fn is_at(file: &File, path: &Path) -> Result<bool, EffectError> {
    let fail = |error: std::io::Error| EffectError::io("look at", path, &error);
    let ours = file.metadata().map_err(fail)?;
    let there = read::unless_gone(std::fs::symlink_metadata(path).map_err(fail))?;
    Ok(there.is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks(dir: &Path) -> BusyLocks {
        BusyLocks { dir: dir.to_owned() }
    }

    #[test]
    fn a_lock_is_taken_once_and_its_file_goes_when_it_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let locks = locks(dir.path());
        let held = locks.try_take("a").unwrap().unwrap();
        assert!(locks.try_take("a").unwrap().is_none());
        assert!(locks.try_take("b").unwrap().is_some(), "another key is another lock");
        assert_eq!(locks.in_flight().unwrap(), ["a"]);
        assert!(!dir.path().join("b").exists(), "a free lock's file is removed");
        drop(held);
        assert_eq!(locks.in_flight().unwrap(), [""; 0]);
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_duplicate_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let locks = locks(dir.path());
        let held = locks.try_take("a").unwrap().unwrap();
        let duplicate = held.try_clone().unwrap();
        drop(held);
        assert_eq!(locks.in_flight().unwrap(), ["a"]);
        drop(duplicate);
        assert!(locks.clear("a").unwrap());
    }

    #[test]
    fn waiting_ends_when_the_lock_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let locks = locks(dir.path());
        let held = locks.try_take("a").unwrap().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let waiter = {
            let locks = locks.clone();
            std::thread::spawn(move || {
                tell.send(()).unwrap();
                locks.wait_free("a").unwrap();
                tell.send(()).unwrap();
            })
        };
        told.recv().unwrap();
        assert_eq!(told.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty));
        drop(held);
        waiter.join().unwrap();
        told.recv().unwrap();
        assert!(locks.try_take("a").unwrap().is_some(), "and it can be taken again");
        locks.wait_free("never there").unwrap();
    }

    #[test]
    fn a_file_that_replaced_the_locked_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let locks = locks(dir.path());
        let old = locks.try_take("a").unwrap().unwrap();
        std::fs::remove_file(dir.path().join("a")).unwrap();
        let new = locks.try_take("a").unwrap().unwrap();
        remove(&old, &dir.path().join("a")).unwrap();
        drop(old);
        assert_eq!(locks.in_flight().unwrap(), ["a"]);
        drop(new);
    }

    #[test]
    fn keys_stay_in_their_folder_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let locks = locks(dir.path());
        for key in ["", ".", "..", "../x", "a/b", "a\0"] {
            assert_eq!(locks.try_take(key).unwrap_err().errno_name(), "EINVAL", "{key:?}");
        }
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        assert_eq!(locks.try_take("link").unwrap_err().errno_name(), "ELOOP");
    }
}
