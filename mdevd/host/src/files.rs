//! mdevd's own files in `/run/mdevd`: claims, the hook's `released` marks, and the lock that keeps a second daemon out.
//!
//! All of it lives exactly as long as the devices that it speaks of, until reboot. A file is written under a temporary name and renamed,
//! so that a reader, and a daemon that starts after a SIGKILL, sees the old content or the new. There is no `fsync`: it would order
//! writes for a crash of the machine, and `/run` is memory, which no such crash outlives.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{Read, Seek, Write};
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mdevd_core::names::parse_uuid;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::{EffectError, Problem, describe_errno};
use crate::read;
use crate::roots::Roots;

/// The longest state file that is read. A claim of a hundred devices has some 50 KiB.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// Makes mdevd's folders in `/run`, each for us alone. One that is a link or belongs to someone else is refused: what stands there
/// decides what root does.
pub fn ensure_state_dirs(roots: &Roots) -> Result<(), Problem> {
    for dir in [roots.state_dir(), roots.claims_dir(), roots.busy_dir(), roots.released_dir(), roots.quarantine_dir()] {
        ensure_dir(&dir)?;
    }
    Ok(())
}

fn ensure_dir(dir: &Path) -> Result<(), Problem> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(EffectError::io("make", dir, &error).into()),
    }
    let found = std::fs::symlink_metadata(dir).map_err(|error| EffectError::io("look at", dir, &error))?;
    if !found.is_dir() {
        let what = if found.is_symlink() { "a symbolic link" } else { "no folder" };
        return Err(Problem::new(dir, format!("it is {what}; remove it, then start mdevd again")));
    }
    is_ours(&found).map_err(|why| Problem::new(dir, format!("{why}; remove it, then start mdevd again")))?;
    if found.mode() & 0o7777 != 0o700 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| EffectError::io("set the mode of", dir, &error))?;
    }
    Ok(())
}

/// Takes the lock of the one daemon and notes our pid in it. It is held until the file that is returned is closed.
pub fn instance_lock(roots: &Roots) -> Result<File, Problem> {
    let path = roots.lock_file();
    let fail = |error: std::io::Error| EffectError::io("open", &path, &error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(fail)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let pid = match (&file).take(32).read_to_string(&mut pid).map(|_| pid.trim().parse::<u32>()) {
                Ok(Ok(pid)) => format!(" (pid {pid})"),
                _ => String::new(),
            };
            return Err(Problem::new(
                &path,
                format!("another mdevd{pid} holds this lock; stop it first: systemctl stop mdevd"),
            ));
        }
        Err(errno) => return Err(EffectError::new("lock", &path, errno).into()),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(file)
}

/// The claims, `<id>.json` each.
#[derive(Debug)]
pub struct ClaimFiles<T> {
    dir: PathBuf,
    quarantine: PathBuf,
    claim: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> ClaimFiles<T> {
    /// The claims of this host.
    pub fn new(roots: &Roots) -> Self {
        Self { dir: roots.claims_dir(), quarantine: roots.quarantine_dir(), claim: PhantomData }
    }

    /// Reads all claims, each with the id that is its file's name. One that cannot be read is moved aside and reported; temporary files
    /// of a daemon that was killed are removed.
    pub fn load(&self) -> (Vec<(Uuid, T)>, Vec<Problem>) {
        let (mut claims, mut problems) = (Vec::new(), Vec::new());
        let names = match read::folder(&self.dir) {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => return (claims, vec![error.into()]),
        };
        for name in names {
            let path = self.dir.join(&name);
            if name.starts_with('.') {
                if let Err(error) = std::fs::remove_file(&path) {
                    problems.push(EffectError::io("remove", path, &error).into());
                }
                continue;
            }
            match self.read(&path, &name) {
                Ok(claim) => claims.push(claim),
                Err(why) => problems.push(set_aside(&path, &self.quarantine, &why)),
            }
        }
        (claims, problems)
    }

    fn read(&self, path: &Path, name: &str) -> Result<(Uuid, T), String> {
        let id = name.strip_suffix(".json").ok_or("its name does not end in .json")?;
        let id = parse_uuid(id).map_err(|error| error.to_string())?;
        let bytes = read_file(path)?;
        Ok((id, serde_json::from_slice(&bytes).map_err(|error| error.to_string())?))
    }

    /// Writes a claim, over the one of this id that may be there.
    pub fn save(&self, id: &Uuid, claim: &T) -> Result<(), EffectError> {
        let path = self.path(id);
        let bytes = serde_json::to_vec_pretty(claim).map_err(|error| {
            let error = std::io::Error::from(error);
            EffectError::io("write", &path, &error)
        })?;
        write_atomically(&path, &bytes)
    }

    /// Removes a claim; one that is not there is no error.
    pub fn remove(&self, id: &Uuid) -> Result<(), EffectError> {
        remove_file(&self.path(id))
    }

    /// Moves a claim aside that was read but makes no sense, and says so.
    pub fn set_aside(&self, id: &Uuid, why: &str) -> Problem {
        set_aside(&self.path(id), &self.quarantine, why)
    }

    fn path(&self, id: &Uuid) -> PathBuf {
        self.dir.join(format!("{}.json", id.as_hyphenated()))
    }
}

/// What the hook left when the daemon did not answer a `release`: a run of this domain has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleasedMark {
    /// The domain.
    pub domain: Uuid,
    /// What the hook wrote: `run` and `reason`.
    pub content: serde_json::Value,
    file: PathBuf,
}

/// Reads all marks. Each is renamed first and stays under its new name until [`forget_released`]: so a mark that the hook writes
/// meanwhile is another one, and a daemon that is killed in between finds the old one again.
pub fn take_released(roots: &Roots) -> (Vec<ReleasedMark>, Vec<Problem>) {
    let dir = roots.released_dir();
    let (mut marks, mut problems) = (Vec::new(), Vec::new());
    let names = match read::folder(&dir) {
        Ok(names) => names.unwrap_or_default(),
        Err(error) => return (marks, vec![error.into()]),
    };
    for name in &names {
        let mut path = dir.join(name);
        let domain = match name.strip_prefix(TAKEN) {
            Some(rest) => rest.rsplit_once('.').map_or(rest, |(domain, _)| domain),
            // The hook's temporary files begin with a dot.
            None if name.starts_with('.') => continue,
            None => name,
        };
        let domain = match parse_uuid(domain) {
            Ok(domain) => domain,
            Err(error) => {
                problems.push(set_aside(&path, &roots.quarantine_dir(), &error.to_string()));
                continue;
            }
        };
        if !name.starts_with(TAKEN) {
            let taken = match free_name(&dir, &format!("{TAKEN}{domain}")) {
                Ok(taken) => taken,
                Err(error) => {
                    problems.push(error.into());
                    continue;
                }
            };
            if let Err(error) = std::fs::rename(&path, &taken) {
                problems.push(EffectError::io("rename", path, &error).into());
                continue;
            }
            path = taken;
        }
        match read_file(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(content) => marks.push(ReleasedMark { domain, content, file: path }),
                Err(error) => problems.push(set_aside(&path, &roots.quarantine_dir(), &error.to_string())),
            },
            Err(why) => problems.push(set_aside(&path, &roots.quarantine_dir(), &why)),
        }
    }
    (marks, problems)
}

/// Before the names of marks that have been read and not yet handled.
const TAKEN: &str = ".taken.";

/// Removes a mark that has been handled.
pub fn forget_released(mark: &ReleasedMark) -> Result<(), EffectError> {
    remove_file(&mark.file)
}

/// Writes a file of mode 0600 so that a reader sees all of the new content or all of the old. Its temporary name begins with a dot.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), EffectError> {
    let fail = |error: std::io::Error| EffectError::io("write", path, &error);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(EffectError::new("write", path, Errno::INVAL));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let temporary = dir.join(temporary);
    // There is one daemon, so that a temporary file of this name is one that an earlier daemon left.
    remove_file(&temporary)?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(fail(error));
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), EffectError> {
    read::unless_gone(std::fs::remove_file(path).map_err(|error| EffectError::io("remove", path, &error))).map(|_| ())
}

/// Reads a regular file of ours whole, or says why not; never through a link, and without waiting where a pipe stands instead.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let why = |error: std::io::Error| describe_errno(EffectError::io("read", path, &error).errno);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(why)?;
    let found = file.metadata().map_err(why)?;
    if !found.is_file() {
        return Err(describe_errno(Errno::INVAL.raw_os_error()));
    }
    is_ours(&found)?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(describe_errno(Errno::FBIG.raw_os_error()));
    }
    Ok(bytes)
}

fn is_ours(found: &Metadata) -> Result<(), String> {
    let (theirs, ours) = (found.uid(), rustix::process::geteuid().as_raw());
    if theirs == ours { Ok(()) } else { Err(format!("it belongs to uid {theirs}, not to uid {ours}")) }
}

/// Moves a file that makes no sense out of the way, where a person can look at it, and says so.
fn set_aside(path: &Path, quarantine: &Path, why: &str) -> Problem {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let moved = free_name(quarantine, name.trim_start_matches('.')).and_then(|to| {
        std::fs::rename(path, &to).map(|()| to).map_err(|error| EffectError::io("move aside", path, &error))
    });
    match moved {
        Ok(to) => Problem::new(path, format!("it could not be read and was moved to {}: {why}", to.display())),
        Err(error) => Problem::new(path, format!("it could not be read: {why}; and {error}")),
    }
}

/// A name that is not taken, by a number behind it.
fn free_name(dir: &Path, name: &str) -> Result<PathBuf, EffectError> {
    for n in 1..10_000 {
        let path = dir.join(format!("{name}.{n}"));
        if !read::exists(&path)? {
            return Ok(path);
        }
    }
    Err(EffectError::new("find a free name in", dir, Errno::EXIST))
}
