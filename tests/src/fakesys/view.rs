//! The fake host seen past its file system.

use std::sync::Arc;

use uuid::Uuid;

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
}
