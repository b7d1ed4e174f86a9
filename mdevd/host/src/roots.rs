//! Where the host is: the four folders that everything else is found in.

use std::path::PathBuf;

use mdevd_core::names::{MdevTypeId, MdevUuid, ParentName, PciAddress};
use uuid::Uuid;

/// Where distributions keep the names of PCI vendors and devices; the first that is there counts.
pub const PCI_IDS: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];

/// The folder with a folder for each kernel's modules.
pub const MODULES: &str = "/lib/modules";

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
    /// Whether sysfs is that of the running kernel, so that its network is the one that sysfs speaks of.
    pub fn is_this_host(&self) -> bool {
        self.sys == std::path::Path::new("/sys")
    }

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

    /// The folder with a link for each PCI function.
    pub fn pci_devices(&self) -> PathBuf {
        self.sys.join("bus/pci/devices")
    }

    /// A PCI function's folder, by its link on the bus.
    pub fn pci_dir(&self, address: &PciAddress) -> PathBuf {
        self.pci_devices().join(address.to_string())
    }

    /// The release of the running kernel, as `uname -r` prints it.
    pub fn kernel_release_file(&self) -> PathBuf {
        self.proc.join("sys/kernel/osrelease")
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

    /// The PCI functions that are claimed also without a request, for the hook: an address or a card a line.
    pub fn manage_file(&self) -> PathBuf {
        self.state_dir().join("manage")
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
