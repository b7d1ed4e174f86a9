//! What will be written, as data: steps that can be printed, replayed and undone in reverse.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::claim::{Grant, Undo};
use crate::inventory::Inventory;
use crate::names::{MdevTypeId, MdevUuid, ParentName, printable};

/// One change on the host, small enough to be either done or not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Step {
    /// Writes the UUID to the type's `create`.
    Create {
        /// The parent.
        parent: ParentName,
        /// The type.
        mdev_type: MdevTypeId,
        /// The new device.
        uuid: MdevUuid,
    },
    /// Writes a value to an attribute of the device.
    SetAttribute {
        /// The parent, whose changes are made one at a time.
        parent: ParentName,
        /// The device.
        uuid: MdevUuid,
        /// The attribute's path below the device's folder.
        name: String,
        /// What is written.
        value: String,
    },
    /// Writes `1` to the device's `remove`.
    Remove {
        /// The parent.
        parent: ParentName,
        /// The device.
        uuid: MdevUuid,
    },
}

impl Step {
    /// The parent whose changes this step must not overlap with.
    pub fn parent(&self) -> &ParentName {
        match self {
            Self::Create { parent, .. } | Self::SetAttribute { parent, .. } | Self::Remove { parent, .. } => parent,
        }
    }

    /// The device.
    pub fn uuid(&self) -> MdevUuid {
        match self {
            Self::Create { uuid, .. } | Self::SetAttribute { uuid, .. } | Self::Remove { uuid, .. } => *uuid,
        }
    }

    /// Whether the inventory shows this step's effect, so that replaying it would be wrong. An attribute's value cannot be seen there
    /// and is written again.
    pub fn already_done(&self, inventory: &Inventory) -> bool {
        match self {
            Self::Create { parent, mdev_type, uuid } => {
                inventory.mdev(uuid).is_some_and(|m| m.parent == *parent && m.mdev_type.as_ref() == Some(mdev_type))
            }
            Self::SetAttribute { .. } => false,
            // On another parent it is not the device that this step is about.
            Self::Remove { parent, uuid } => inventory.mdev(uuid).is_none_or(|m| m.parent != *parent),
        }
    }

    /// The file to write, below the sysfs root, and the value. `parent_path` is the parent's folder there.
    pub fn write(&self, parent_path: &str) -> (String, String) {
        use alloc::format;
        match self {
            Self::Create { mdev_type, uuid, .. } => {
                (format!("{parent_path}/mdev_supported_types/{mdev_type}/create"), format!("{uuid}"))
            }
            Self::SetAttribute { uuid, name, value, .. } => (format!("bus/mdev/devices/{uuid}/{name}"), value.clone()),
            Self::Remove { uuid, .. } => (format!("bus/mdev/devices/{uuid}/remove"), "1".into()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { parent, mdev_type, uuid } => write!(f, "create {uuid} of type {mdev_type} on {parent}"),
            Self::SetAttribute { uuid, name, value, .. } => {
                write!(f, "set {} of {uuid} to '{}'", printable(name), printable(value))
            }
            Self::Remove { parent, uuid } => write!(f, "remove {uuid} from {parent}"),
        }
    }
}

/// Steps in the order in which they are made, and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// How many of them, from the front, have had their effect read back.
    pub done: usize,
}

impl Plan {
    /// What it takes to make these grants' devices.
    pub fn prepare(grants: &[Grant]) -> Self {
        let mut steps = Vec::new();
        for grant in grants.iter().filter(|grant| grant.undo == Undo::Remove) {
            let (parent, uuid) = (grant.parent.clone(), grant.uuid());
            steps.push(Step::Create { parent: parent.clone(), mdev_type: grant.mdev_type.clone(), uuid });
            for (name, value) in &grant.attributes {
                steps.push(Step::SetAttribute {
                    parent: parent.clone(),
                    uuid,
                    name: name.clone(),
                    value: value.clone(),
                });
            }
        }
        Self { steps, done: 0 }
    }

    /// What it takes to undo these grants: what was made is removed, last first; what was there before stays.
    pub fn release(grants: &[Grant]) -> Self {
        let made = grants.iter().rev().filter(|grant| grant.undo == Undo::Remove);
        Self {
            steps: made.map(|grant| Step::Remove { parent: grant.parent.clone(), uuid: grant.uuid() }).collect(),
            done: 0,
        }
    }

    /// The next step.
    pub fn next(&self) -> Option<&Step> {
        self.steps.get(self.done)
    }
}

/// Whether `name` may be written as an attribute of a mediated device: a path of plain components below its folder that is not one of
/// the files by which the kernel manages the device.
pub fn attribute_name_is_sound(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    // Links lead out of the device's folder; the rest would change what the device is.
    let reserved = ["remove", "uevent", "driver", "subsystem", "mdev_type", "iommu_group", "power", "vfio-dev"];
    name.split('/').all(plain)
        && name.split('/').next().is_some_and(|first| !reserved.contains(&first))
        && name.len() <= 255
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
