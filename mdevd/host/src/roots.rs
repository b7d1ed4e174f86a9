//! Where the host is: the four folders that everything else is found in.

use std::path::PathBuf;

use mdevd_core::names::{MdevTypeId, MdevUuid, ParentName};
use uuid::Uuid;

/// The host that the daemon looks at. A test fills it with other folders; nothing else in this crate knows an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// sysfs, `/sys`.
    pub sys: PathBuf,
    /// procfs, `/proc`.
    pub proc: PathBuf,
    /// Configuration, `/etc`.
    pub etc: PathBuf,
    /// State that lasts until the next boot, `/run`.
    pub run: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into(), etc: "/etc".into(), run: "/run".into() }
    }
}

impl Roots {
    /// The folder with a link for each mdev parent.
    pub fn mdev_bus_class(&self) -> PathBuf {
        self.sys.join("class/mdev_bus")
    }

    /// A parent's folder, by its link in the class.
    pub fn parent_dir(&self, parent: &ParentName) -> PathBuf {
        self.mdev_bus_class().join(parent.as_str())
    }

    /// The folder of a type that a parent offers.
    pub fn type_dir(&self, parent: &ParentName, mdev_type: &MdevTypeId) -> PathBuf {
        self.parent_dir(parent).join("mdev_supported_types").join(mdev_type.as_str())
    }

    /// The attribute that makes a mediated device of this type when a UUID is written to it.
    pub fn create_file(&self, parent: &ParentName, mdev_type: &MdevTypeId) -> PathBuf {
        self.type_dir(parent, mdev_type).join("create")
    }

    /// The link to a mediated device.
    pub fn mdev_dir(&self, uuid: &MdevUuid) -> PathBuf {
        self.sys.join("bus/mdev/devices").join(uuid.to_string())
    }

    /// The attribute that removes a mediated device when `1` is written to it.
    pub fn remove_file(&self, uuid: &MdevUuid) -> PathBuf {
        self.mdev_dir(uuid).join("remove")
    }

    /// The folder of a process.
    pub fn process_dir(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    /// mdevd's own folder in `/run`.
    pub fn state_dir(&self) -> PathBuf {
        self.run.join("mdevd")
    }

    /// The claims, one `<id>.json` each.
    pub fn claims_dir(&self) -> PathBuf {
        self.state_dir().join("claims")
    }

    /// The locks of writes in flight.
    pub fn busy_dir(&self) -> PathBuf {
        self.state_dir().join("busy")
    }

    /// The marks that the hook leaves when the daemon does not answer a `release`.
    pub fn released_dir(&self) -> PathBuf {
        self.state_dir().join("released")
    }

    /// One such mark.
    pub fn released_file(&self, domain: &Uuid) -> PathBuf {
        self.released_dir().join(domain.as_hyphenated().to_string())
    }

    /// State files that could not be read, moved out of the way.
    pub fn quarantine_dir(&self) -> PathBuf {
        self.state_dir().join("quarantine")
    }

    /// The lock that one daemon holds.
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir().join("lock")
    }

    /// libvirt's status files, one `NAME.xml` for each running domain.
    pub fn libvirt_status_dir(&self) -> PathBuf {
        self.run.join("libvirt/qemu")
    }
}
