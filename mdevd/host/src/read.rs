//! Reading what the kernel says: attributes, links and folders, with limits, checked, and with errors that name the path.
//!
//! The length that sysfs gives for an attribute is always 4096, so a file is read to its end, and never past its limit.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::error::EffectError;

/// The most that an attribute holds: sysfs gives a driver one page.
pub const ATTRIBUTE_LIMIT: usize = 4096;

/// For the longer lists that some drivers give.
pub const LIST_LIMIT: usize = 64 * 1024;

/// Reads a text file to its end; longer than `limit` is `EFBIG`, not UTF-8 is `EILSEQ`.
pub fn text(path: &Path, limit: usize) -> Result<String, EffectError> {
    let fail = |errno| EffectError::new("read", path, errno);
    let mut file = File::open(path).map_err(|error| EffectError::io("read", path, &error))?;
    let mut bytes = Vec::new();
    // One buffer of the whole size, because a driver answers a page at a time and a read in small pieces would call it again.
    let mut buffer = vec![0; limit.min(LIST_LIMIT) + 1];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(EffectError::io("read", path, &error)),
        }
        if bytes.len() > limit {
            return Err(fail(Errno::FBIG));
        }
    }
    String::from_utf8(bytes).map_err(|_| fail(Errno::ILSEQ))
}

/// Reads an attribute, without its last newline.
pub fn attribute(path: &Path) -> Result<String, EffectError> {
    let mut value = text(path, ATTRIBUTE_LIMIT)?;
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(value)
}

/// Reads an attribute that may not be there.
pub fn optional_attribute(path: &Path) -> Result<Option<String>, EffectError> {
    unless_gone(attribute(path))
}

/// Free text of a driver, fit to be passed on: a control character, of which D-Bus takes not every one, becomes `\u{fffd}`.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Where a link points to, as it is written there; `None` when there is none.
pub fn link(path: &Path) -> Result<Option<PathBuf>, EffectError> {
    unless_gone(std::fs::read_link(path).map_err(|error| EffectError::io("read the link", path, &error)))
}

/// The last name of what a link points to: how sysfs says driver, type and IOMMU group.
pub fn link_name(path: &Path) -> Result<Option<String>, EffectError> {
    let Some(target) = link(path)? else { return Ok(None) };
    match target.file_name().map(|name| name.to_str()) {
        Some(Some(name)) => Ok(Some(name.to_owned())),
        _ => Err(EffectError::new("read the link", path, Errno::ILSEQ)),
    }
}

/// Whether there is something of this name, a link that leads nowhere too.
pub fn exists(path: &Path) -> Result<bool, EffectError> {
    unless_gone(std::fs::symlink_metadata(path).map_err(|error| EffectError::io("look at", path, &error)))
        .map(|found| found.is_some())
}

/// The names in a folder, sorted; `None` when it is not there. A name that is not UTF-8 comes with replacement characters and then
/// parses as nothing of ours.
pub fn folder(path: &Path) -> Result<Option<Vec<String>>, EffectError> {
    let fail = |error: std::io::Error| EffectError::io("list", path, &error);
    let Some(entries) = unless_gone(std::fs::read_dir(path).map_err(fail))? else { return Ok(None) };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_string_lossy().into_owned()),
            Err(error) => return unless_gone(Err(fail(error))),
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// `None` for a thing that is not there.
pub fn unless_gone<T>(result: Result<T, EffectError>) -> Result<Option<T>, EffectError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Resolves a relative link found in `folder`, both below one root, by its text alone: `class/mdev_bus` and
/// `../../devices/virtual/mtty/mtty` give `devices/virtual/mtty/mtty`. `None` when it leads out of the root.
pub(crate) fn resolve(folder: &Path, link: &Path) -> Option<PathBuf> {
    let mut path = folder.to_owned();
    for part in link.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir if path.pop() => {}
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lose_one_newline_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for (content, value) in [("vfio-pci\n", "vfio-pci"), ("x\n\n", "x\n"), ("", ""), ("0", "0")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(attribute(&path).as_deref(), Ok(value));
        }
    }

    #[test]
    fn what_is_too_long_or_not_text_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "x".repeat(ATTRIBUTE_LIMIT)).unwrap();
        assert_eq!(attribute(&path).unwrap().len(), ATTRIBUTE_LIMIT);
        std::fs::write(&path, "x".repeat(ATTRIBUTE_LIMIT + 1)).unwrap();
        assert_eq!(attribute(&path).unwrap_err().errno_name(), "EFBIG");
        std::fs::write(&path, b"\xff\xfe").unwrap();
        let error = attribute(&path).unwrap_err();
        assert_eq!((error.errno_name().as_ref(), &error.path), ("EILSEQ", &path));
    }

    #[test]
    fn absent_is_none_and_unreadable_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert_eq!(optional_attribute(&missing), Ok(None));
        assert_eq!(link_name(&missing), Ok(None));
        assert_eq!(folder(&missing), Ok(None));
        assert_eq!(exists(&missing), Ok(false));
        assert_eq!(optional_attribute(dir.path()).unwrap_err().errno_name(), "EISDIR");
        assert_eq!(link_name(dir.path()).unwrap_err().errno_name(), "EINVAL");
    }

    #[test]
    fn links_resolve_by_their_text_and_stay_below_the_root() {
        let class = Path::new("class/mdev_bus");
        assert_eq!(
            resolve(class, Path::new("../../devices/virtual/mtty/mtty")),
            Some("devices/virtual/mtty/mtty".into())
        );
        assert_eq!(resolve(class, Path::new("../../../etc")), None);
        assert_eq!(resolve(class, Path::new("/etc")), None);
    }
}
