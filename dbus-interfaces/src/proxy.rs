//! The proxies, one for each interface, written by hand after the XML, which documents the members.
//!
//! A call that may ask a person for a password says so (`allow_interactive_auth`), so that a polkit agent may prompt.

use zbus::{OwnedObjectPath, Result};

use crate::wire::{Dict, Options, TextDict};

/// `org.mdevd1.Manager`.
#[zbus::proxy(interface = "org.mdevd1.Manager", default_service = "org.mdevd1", default_path = "/org/mdevd1")]
pub trait Manager {
    /// Creates one mdev with a manual claim on it; options: parent, uuid, attrs, label. Answers with the mdev and
    /// whether it is new.
    #[zbus(allow_interactive_auth)]
    fn create_mdev(&self, mdev_type: &str, options: &Options<'_>) -> Result<(OwnedObjectPath, bool)>;

    /// Gives a domain that is about to start what it requests; options: timeout-ms, pid, start-time.
    fn prepare_domain(
        &self,
        uuid: &str,
        name: &str,
        requests: &[TextDict],
        hostdevs: &[TextDict],
        options: &Options<'_>,
    ) -> Result<Vec<Dict>>;

    /// Frees what the claim of a run of a domain holds; options: reason, run.
    fn release_domain(&self, uuid: &str, options: &Options<'_>) -> Result<bool>;

    /// Renews or makes the claim of a domain that runs already; options: pid, start-time.
    fn adopt_domain(
        &self,
        uuid: &str,
        name: &str,
        requests: &[TextDict],
        hostdevs: &[TextDict],
        options: &Options<'_>,
    ) -> Result<bool>;

    /// Makes a manual claim that holds a device for each request; options: label.
    #[zbus(allow_interactive_auth)]
    fn acquire(&self, requests: &[TextDict], options: &Options<'_>) -> Result<OwnedObjectPath>;

    /// What would be chosen, and why not the others.
    fn explain(&self, requests: &[TextDict], options: &Options<'_>) -> Result<Vec<Dict>>;

    /// The objects that a person may mean by a word.
    fn find(&self, what: &str) -> Result<Vec<OwnedObjectPath>>;

    /// Reads the whole host again.
    #[zbus(allow_interactive_auth)]
    fn rescan(&self, options: &Options<'_>) -> Result<()>;

    /// Reads the configuration again.
    #[zbus(allow_interactive_auth)]
    fn reload(&self, options: &Options<'_>) -> Result<()>;

    /// Frees, completes or adopts what has to be; options: dry-run.
    #[zbus(allow_interactive_auth)]
    fn reconcile(&self, options: &Options<'_>) -> Result<Vec<Dict>>;

    /// The version of mdevd.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> Result<String>;

    /// What is wrong at present.
    #[zbus(property)]
    fn problems(&self) -> Result<Vec<Dict>>;
}

/// `org.mdevd1.Parent`.
#[zbus::proxy(interface = "org.mdevd1.Parent", default_service = "org.mdevd1")]
pub trait Parent {
    /// Its name in sysfs.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> Result<String>;

    /// Its NUMA node, or -1.
    #[zbus(property)]
    fn numa_node(&self) -> Result<i32>;

    /// The driver bound to it.
    #[zbus(property)]
    fn driver(&self) -> Result<String>;

    /// The mdev types that it offers.
    #[zbus(property)]
    fn types(&self) -> Result<Vec<Dict>>;

    /// The mdevs that exist on it.
    #[zbus(property)]
    fn mdevs(&self) -> Result<Vec<OwnedObjectPath>>;

    /// `ok` or `stuck`.
    #[zbus(property)]
    fn state(&self) -> Result<String>;
}

/// `org.mdevd1.Mdev`.
#[zbus::proxy(interface = "org.mdevd1.Mdev", default_service = "org.mdevd1")]
pub trait Mdev {
    /// Which processes have it open: process id and name.
    fn get_holders(&self, options: &Options<'_>) -> Result<Vec<(u32, String)>>;

    /// Removes it; options: force.
    #[zbus(allow_interactive_auth)]
    fn remove(&self, options: &Options<'_>) -> Result<bool>;

    /// Its hostdev element; options: display, ramfb, alias, guest-address, boot-order.
    fn hostdev_xml(&self, options: &Options<'_>) -> Result<String>;

    /// The device as virsh nodedev-create takes it.
    fn nodedev_xml(&self, options: &Options<'_>) -> Result<String>;

    /// Its UUID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn uuid(&self) -> Result<String>;

    /// The parent it exists on.
    #[zbus(property(emits_changed_signal = "const"))]
    fn parent(&self) -> Result<OwnedObjectPath>;

    /// The id of its mdev type.
    #[zbus(property, name = "Type")]
    fn mdev_type(&self) -> Result<String>;

    /// What it looks like to a VM.
    #[zbus(property)]
    fn device_api(&self) -> Result<String>;

    /// The number of its IOMMU group, or -1.
    #[zbus(property)]
    fn iommu_group(&self) -> Result<i32>;

    /// The NUMA node of its parent, or -1.
    #[zbus(property)]
    fn numa_node(&self) -> Result<i32>;

    /// The driver bound to the mdev itself.
    #[zbus(property)]
    fn driver(&self) -> Result<String>;

    /// The claim that holds it, or `/`.
    #[zbus(property)]
    fn claim(&self) -> Result<OwnedObjectPath>;

    /// `ok` or `stuck`.
    #[zbus(property)]
    fn state(&self) -> Result<String>;

    /// `claim` or `foreign`.
    #[zbus(property)]
    fn origin(&self) -> Result<String>;
}

/// `org.mdevd1.Claim`.
#[zbus::proxy(interface = "org.mdevd1.Claim", default_service = "org.mdevd1")]
pub trait Claim {
    /// Gives everything back; options: force.
    #[zbus(allow_interactive_auth)]
    fn release(&self, options: &Options<'_>) -> Result<bool>;

    /// The hostdev elements of all its grants.
    fn hostdev_xml(&self, options: &Options<'_>) -> Result<String>;

    /// Its id.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> Result<String>;

    /// `domain` or `manual`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_kind(&self) -> Result<String>;

    /// The UUID of the domain.
    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_uuid(&self) -> Result<String>;

    /// The name of the domain, or the label.
    #[zbus(property)]
    fn owner_name(&self) -> Result<String>;

    /// The uid that asked for it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_uid(&self) -> Result<u32>;

    /// `planned`, `preparing`, `ready`, `releasing` or `failed`.
    #[zbus(property)]
    fn state(&self) -> Result<String>;

    /// What is being done for it now.
    #[zbus(property)]
    fn step(&self) -> Result<String>;

    /// What it holds.
    #[zbus(property)]
    fn grants(&self) -> Result<Vec<Dict>>;

    /// When it was made, seconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created(&self) -> Result<u64>;

    /// Which start of the domain it is for.
    #[zbus(property)]
    fn run(&self) -> Result<String>;
}
