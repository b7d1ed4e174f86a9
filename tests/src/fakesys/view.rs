//! The fake host seen past its file system.

use std::sync::Arc;

use uuid::Uuid;

use super::functions::Function;
use super::host::Shared;
use super::rules::lock;
use super::tree::{Body, TypeRef};

/// Looks at the host's files and devices without asking the kernel, so that it never waits for an operation that is pending. Cheap to
/// clone; made for the closures at a [`Point`](super::Point).
#[derive(Debug, Clone)]
pub struct View(pub(super) Arc<Shared>);

impl View {
    /// The text of the file at `path` (from the mount: `run/mdevd/claims/….json`), if there is one.
    pub fn text(&self, path: &str) -> Option<String> {
        let world = lock(&self.0.world);
        match &world.tree.get(world.tree.find(path)?)?.body {
            Body::File(data) => Some(String::from_utf8_lossy(data).into_owned()),
            Body::Link(to) => Some(to.clone()),
            Body::Attr(_) | Body::Dir(_) => None,
        }
    }

    /// The names in the folder at `path`, sorted; none when there is no such folder.
    pub fn names(&self, path: &str) -> Vec<String> {
        let world = lock(&self.0.world);
        let entries = world.tree.find(path).and_then(|ino| world.tree.entries(ino).ok());
        entries.map(|entries| entries.keys().cloned().collect()).unwrap_or_default()
    }

    /// The mediated devices that there are, with parent and type; one whose removal waits is among them.
    pub fn mdevs(&self) -> Vec<(Uuid, String, String)> {
        let world = lock(&self.0.world);
        let named = |at: TypeRef| {
            let parent = world.parents.get(at.parent)?;
            Some((parent.spec.name.clone(), parent.types.get(at.index)?.spec.id.clone()))
        };
        world.mdevs.iter().filter_map(|(uuid, mdev)| named(mdev.at).map(|(parent, id)| (*uuid, parent, id))).collect()
    }

    /// The addresses of the PCI functions that there are, ports and bridges among them; one whose removal waits is still there.
    pub fn functions(&self) -> Vec<String> {
        lock(&self.0.world).functions.keys().cloned().collect()
    }

    fn function<T>(&self, address: &str, get: impl FnOnce(&Function) -> Option<T>) -> Option<T> {
        lock(&self.0.world).functions.get(address).and_then(get)
    }

    /// The driver of a function; one that is being taken away still counts.
    pub fn driver_of(&self, address: &str) -> Option<String> {
        self.function(address, |function| function.driver.clone())
    }

    /// The driver in a function's `driver_override`.
    pub fn override_of(&self, address: &str) -> Option<String> {
        self.function(address, |function| function.driver_override.clone())
    }

    /// The network interface of a function.
    pub fn netdev_of(&self, address: &str) -> Option<String> {
        self.function(address, |function| function.netdev.as_ref().map(|netdev| netdev.name.clone()))
    }

    /// How many virtual functions a physical one says it has.
    pub fn num_vfs(&self, pf: &str) -> Option<u16> {
        self.function(pf, |function| function.sriov.as_ref().map(|sriov| sriov.num_vfs))
    }

    /// The virtual functions of a physical one, in the order of their numbers.
    pub fn vfs(&self, pf: &str) -> Vec<String> {
        lock(&self.0.world).vfs(pf)
    }

    /// The vGPU type of a virtual function.
    pub fn vgpu_type(&self, vf: &str) -> Option<u32> {
        self.function(vf, |function| function.vgpu.as_ref()?.current)
    }
}
