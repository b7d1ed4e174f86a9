//! Looking at sysfs: mdev parents, the types they offer and the mediated devices on them (kernel:
//! Documentation/ABI/testing/sysfs-bus-vfio-mdev).
//!
//! A look at one parent reads nothing that belongs to another one. Whatever vanishes while it is being read has simply gone; what
//! cannot be read or parsed is said in `problems` and costs the rest nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use mdevd_core::inventory::{DeviceState, Mdev, MdevType, Parent, ParentScan};
use mdevd_core::names::{DriverName, IommuGroupId, MdevTypeId, MdevUuid, NumaNode, ParentName, printable};

use crate::error::{EffectError, Problem};
use crate::read;
use crate::roots::Roots;

/// How long one look waits for the kernel to finish making or removing a device. Its `add` and `bind` events come before the device
/// has its `mdev_type` link, and its `remove` event before its folder is gone; both follow within microseconds, without an event.
const PATIENCE: Duration = Duration::from_millis(20);

/// The pause between two looks at such a device.
const PAUSE: Duration = Duration::from_millis(1);

/// One look at every parent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostScan {
    /// Each parent that could be looked at.
    pub scans: Vec<ParentScan>,
    /// What could not.
    pub problems: Vec<Problem>,
}

/// The parents in `/sys/class/mdev_bus`, and the names there that are none. A kernel without mdev support has no parents.
pub fn list_parents(roots: &Roots) -> Result<(Vec<ParentName>, Vec<Problem>), EffectError> {
    let class = roots.mdev_bus_class();
    let (mut parents, mut problems) = (Vec::new(), Vec::new());
    for name in read::folder(&class)?.unwrap_or_default() {
        match ParentName::from_str(&name) {
            Ok(parent) => parents.push(parent),
            Err(error) => problems.push(Problem::new(&class, error.to_string())),
        }
    }
    Ok((parents, problems))
}

/// Looks at every parent. Devices for which `skip` says true are not read; see [`scan_parent`].
pub fn scan_all(roots: &Roots, skip: &dyn Fn(&MdevUuid) -> bool) -> Result<HostScan, EffectError> {
    let (parents, problems) = list_parents(roots)?;
    let mut all = HostScan { scans: Vec::with_capacity(parents.len()), problems };
    for parent in parents {
        match scan_parent(roots, &parent, skip) {
            Ok(found) => all.scans.extend(found),
            Err(error) => all.problems.push(error.into()),
        }
    }
    Ok(all)
}

/// Looks at one parent; `None` when there is no such parent (any more). A device for which `skip` says true, because a write to it is
/// in flight and a read could hang on it, is left out: the caller has its last picture.
pub fn scan_parent(
    roots: &Roots,
    name: &ParentName,
    skip: &dyn Fn(&MdevUuid) -> bool,
) -> Result<Option<ParentScan>, EffectError> {
    let Some(path) = parent_path(roots, name)? else { return Ok(None) };
    let dir = roots.sys.join(&path);
    let mut problems = Vec::new();
    let types = read_types(&dir, &mut problems);
    let numa_node = noted(numa_node(&dir), &mut problems).flatten();
    let driver = noted(named_link::<DriverName>(&dir.join("driver")), &mut problems).flatten();

    let Some(children) = read::folder(&dir)? else { return Ok(None) };
    let mut patience = Patience::default();
    let mut mdevs = Vec::new();
    for child in children {
        // The kernel writes these names itself, hyphenated and in lower case; anything else is another kind of child.
        let Some(uuid) = MdevUuid::from_str(&child).ok().filter(|uuid| uuid.to_string() == child) else { continue };
        if skip(&uuid) {
            continue;
        }
        let Some(mut mdev) = read_mdev(&dir.join(&child), uuid, name, &mut || patience.wait()) else { continue };
        mdev.numa_node = numa_node;
        if let Some(known) = mdev.mdev_type.as_ref().and_then(|id| types.get(id)) {
            mdev.device_api.clone_from(&known.device_api);
        }
        mdevs.push(mdev);
    }
    let path = path.to_string_lossy().into_owned();
    let parent = Parent { name: name.clone(), path, numa_node, driver, types, state: DeviceState::Ok, problems };
    Ok(Some(ParentScan { parent, mdevs }))
}

/// Looks at one mediated device in a few system calls, as after a write to `create` or `remove`; `None` when the kernel has no device
/// of this UUID. One whose removal hangs is no longer found by its UUID: [`scan_parent`] finds it on its parent.
pub fn scan_mdev(roots: &Roots, uuid: &MdevUuid) -> Result<Option<Mdev>, EffectError> {
    let by_uuid = roots.mdev_dir(uuid);
    let Some(link) = read::link(&by_uuid)? else { return Ok(None) };
    let outside = || EffectError::new("follow the link", &by_uuid, rustix::io::Errno::INVAL);
    let path = read::resolve(Path::new("bus/mdev/devices"), &link).ok_or_else(outside)?;
    let parent_dir = path.parent().ok_or_else(outside)?;
    let parent =
        parent_dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).ok_or_else(outside)?;
    let dir = roots.sys.join(&path);
    let mut patience = Patience::default();
    let Some(mut mdev) = read_mdev(&dir, *uuid, &parent, &mut || patience.wait()) else { return Ok(None) };
    // Neither decides whether the device is the right one; a parent that does not say is for `scan_parent` to report.
    mdev.numa_node = numa_node(&roots.sys.join(parent_dir)).ok().flatten();
    mdev.device_api = read::optional_attribute(&dir.join("mdev_type/device_api")).ok().flatten().unwrap_or_default();
    Ok(Some(mdev))
}

/// How many of one type a parent has left, in one read; `None` when it does not say. `parent` is its folder below the sysfs root.
pub fn available(roots: &Roots, parent: &str, mdev_type: &MdevTypeId) -> Option<u32> {
    let at = roots.sys.join(parent).join("mdev_supported_types").join(mdev_type.as_str()).join("available_instances");
    read::optional_attribute(&at).ok()??.trim().parse().ok()
}

/// A parent's folder below the sysfs root.
fn parent_path(roots: &Roots, name: &ParentName) -> Result<Option<std::path::PathBuf>, EffectError> {
    let at = roots.parent_dir(name);
    let Some(link) = read::link(&at)? else { return Ok(None) };
    match read::resolve(Path::new("class/mdev_bus"), &link) {
        Some(path) => Ok(Some(path)),
        None => Err(EffectError::new("follow the link", at, rustix::io::Errno::INVAL)),
    }
}

/// The types that a parent offers. They can come later than the parent itself, so that none at all is no problem.
fn read_types(parent: &Path, problems: &mut Vec<String>) -> BTreeMap<MdevTypeId, MdevType> {
    let dir = parent.join("mdev_supported_types");
    let mut types = BTreeMap::new();
    for name in noted(read::folder(&dir), problems).flatten().unwrap_or_default() {
        let at = dir.join(&name);
        match read_type(&at, &name, problems) {
            Ok(found) => {
                types.insert(found.id.clone(), found);
            }
            // With its folder gone it is not a type that does not parse, but none.
            Err(_) if matches!(read::exists(&at), Ok(false)) => {}
            Err(why) => problems.push(format!("type {}: {why}; it is not offered", printable(&name))),
        }
    }
    types
}

/// One type. `Err` is why it cannot be offered; what only describes it may be missing or unreadable.
fn read_type(at: &Path, name: &str, problems: &mut Vec<String>) -> Result<MdevType, String> {
    let id = MdevTypeId::from_str(name).map_err(|error| error.to_string())?;
    let required = |attribute: &str| read::attribute(&at.join(attribute)).map_err(|error| error.to_string());
    let device_api = required("device_api")?;
    if device_api.is_empty() || device_api.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("its device_api is '{}' and not one word", printable(&device_api)));
    }
    let available = required("available_instances")?;
    let available = available
        .trim()
        .parse()
        .map_err(|_| format!("its available_instances is '{}' and not a number", printable(&available)))?;
    let mut optional =
        |attribute: &str| noted(read::optional_attribute(&at.join(attribute)), problems).flatten().unwrap_or_default();
    let human = optional("name");
    let description =
        optional("description").lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ");
    let (name, description) = (read::plain(human.trim()), read::plain(&description));
    Ok(MdevType { id, name, description, device_api, available })
}

/// A device's NUMA node; virtual devices have no such attribute, and `-1` is the kernel's "none".
pub(crate) fn numa_node(dir: &Path) -> Result<Option<NumaNode>, String> {
    let at = dir.join("numa_node");
    match read::optional_attribute(&at).map_err(|error| error.to_string())?.as_deref() {
        None | Some("-1") => Ok(None),
        Some(text) => match text.parse() {
            Ok(node) => Ok(Some(NumaNode(node))),
            Err(_) => Err(format!("{} is '{}' and not a node", at.display(), printable(text))),
        },
    }
}

/// A link whose last name is what counts.
pub(crate) fn named_link<T: FromStr<Err: std::fmt::Display>>(at: &Path) -> Result<Option<T>, String> {
    match read::link_name(at).map_err(|error| error.to_string())? {
        None => Ok(None),
        Some(name) => name.parse().map(Some).map_err(|error| format!("{}: {error}", at.display())),
    }
}

/// A mediated device, without what its parent knows; `None` when it is gone or none. `wait` says whether to look again at one that is
/// half made or half removed.
fn read_mdev(at: &Path, uuid: MdevUuid, parent: &ParentName, wait: &mut dyn FnMut() -> bool) -> Option<Mdev> {
    loop {
        match look(at, uuid, parent) {
            Ok(Look::Whole(mdev)) => return Some(mdev),
            Ok(Look::Nothing) => return None,
            Ok(Look::Part(_)) if wait() => {}
            Ok(Look::Part(mdev)) => return Some(mdev),
            // What cannot be read is not touched.
            Err(why) => return Some(Mdev { state: DeviceState::Stuck(why), ..blank(uuid, parent) }),
        }
    }
}

enum Look {
    Whole(Mdev),
    /// Half made or half removed.
    Part(Mdev),
    Nothing,
}

/// One look. Removing takes away `mdev_type` first, `subsystem` and the link on the bus next, then waits, possibly for ever, for
/// whoever has it open; only then goes the folder. Making ends with `mdev_type`.
fn look(at: &Path, uuid: MdevUuid, parent: &ParentName) -> Result<Look, String> {
    let subsystem = read::link_name(&at.join("subsystem")).map_err(|error| error.to_string())?;
    if subsystem.as_deref().is_some_and(|subsystem| subsystem != "mdev") {
        return Ok(Look::Nothing);
    }
    let mut mdev = blank(uuid, parent);
    mdev.mdev_type = named_link(&at.join("mdev_type"))?;
    mdev.driver = named_link(&at.join("driver"))?;
    mdev.iommu_group = named_link(&at.join("iommu_group"))?.map(IommuGroupId);
    if subsystem.is_some() && mdev.mdev_type.is_some() {
        return Ok(Look::Whole(mdev));
    }
    if !read::exists(at).map_err(|error| error.to_string())? {
        return Ok(Look::Nothing);
    }
    mdev.state = DeviceState::Stuck(
        if subsystem.is_none() {
            "half removed: the kernel waits for whoever has it open, and no program can end that wait"
        } else {
            "half removed or half made: it has no mdev_type link"
        }
        .into(),
    );
    Ok(Look::Part(mdev))
}

fn blank(uuid: MdevUuid, parent: &ParentName) -> Mdev {
    Mdev {
        uuid,
        parent: parent.clone(),
        mdev_type: None,
        device_api: String::new(),
        iommu_group: None,
        numa_node: None,
        driver: None,
        state: DeviceState::Ok,
    }
}

/// Takes what could be read and notes what could not.
pub(crate) fn noted<T, E: std::fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

/// What is left of [`PATIENCE`]: one budget for all devices of one look, so that many stuck ones cost no more than one.
#[derive(Default)]
pub(crate) struct Patience {
    until: Option<Instant>,
}

impl Patience {
    /// Waits a little; false when there is nothing left.
    pub(crate) fn wait(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        let left = Instant::now() < until;
        if left {
            std::thread::sleep(PAUSE);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    fn device(dir: &Path) -> std::path::PathBuf {
        let at = dir.join(UUID);
        fs::create_dir(&at).unwrap();
        symlink("../bus/mdev", at.join("subsystem")).unwrap();
        at
    }

    fn read(at: &Path, wait: &mut dyn FnMut() -> bool) -> Option<Mdev> {
        read_mdev(at, UUID.parse().unwrap(), &"mtty".parse().unwrap(), wait)
    }

    #[test]
    fn a_device_that_is_being_made_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = device(dir.path());
        let mut waits = 0;
        let mdev = read(&at, &mut || {
            waits += 1;
            symlink("../mdev_supported_types/mtty-1", at.join("mdev_type")).unwrap();
            true
        });
        let mdev = mdev.unwrap();
        assert_eq!((mdev.state, waits), (DeviceState::Ok, 1));
        assert_eq!(mdev.mdev_type.unwrap().as_str(), "mtty-1");
    }

    #[test]
    fn a_device_that_is_going_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = device(dir.path());
        let gone = read(&at, &mut || {
            fs::remove_dir_all(&at).unwrap();
            true
        });
        assert_eq!(gone, None);
    }

    #[test]
    fn the_wait_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = device(dir.path());
        let mut patience = Patience::default();
        let mdev = read(&at, &mut || patience.wait()).unwrap();
        assert!(matches!(mdev.state, DeviceState::Stuck(_)));
        assert!(!patience.wait(), "one budget for all devices of a look");
    }
}
