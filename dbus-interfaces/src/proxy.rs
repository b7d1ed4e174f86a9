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

    /// Whether the host and its PCI functions are ready for VMs; options: device.
    fn check(&self, options: &Options<'_>) -> Result<Vec<Dict>>;

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

    /// Which libvirt is installed.
    #[zbus(property)]
    fn libvirt_version(&self) -> Result<String>;

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

    /// The PCI function that it is, or `/`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn function(&self) -> Result<OwnedObjectPath>;

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

/// `org.mdevd1.Function`.
#[zbus::proxy(interface = "org.mdevd1.Function", default_service = "org.mdevd1")]
pub trait Function {
    /// Which processes have it open: process id and name.
    fn get_holders(&self, options: &Options<'_>) -> Result<Vec<(u32, String)>>;

    /// Binds it to a VFIO driver under a manual claim; options: force.
    #[zbus(allow_interactive_auth)]
    fn bind(&self, driver: &str, options: &Options<'_>) -> Result<bool>;

    /// Gives it back to its own driver.
    #[zbus(allow_interactive_auth)]
    fn restore(&self, options: &Options<'_>) -> Result<bool>;

    /// Its hostdev or interface element; options: managed, driver, rom-bar, rom-file, boot-order, alias, guest-address, display,
    /// ramfb, interface, mac, vlan.
    fn hostdev_xml(&self, options: &Options<'_>) -> Result<String>;

    /// Its address: '0000:41:00.4'.
    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> Result<String>;

    /// Who made it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vendor_id(&self) -> Result<u16>;

    /// What they call it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn device_id(&self) -> Result<u16>;

    /// Who made the card.
    #[zbus(property(emits_changed_signal = "const"))]
    fn subsystem_vendor_id(&self) -> Result<u16>;

    /// What they call that.
    #[zbus(property(emits_changed_signal = "const"))]
    fn subsystem_device_id(&self) -> Result<u16>;

    /// Its class, 24 bits: 0x030200 is a 3D controller.
    #[zbus(property(emits_changed_signal = "const"))]
    fn class(&self) -> Result<u32>;

    /// What people call it, from the system's pci.ids; '' when that does not know it.
    #[zbus(property)]
    fn name(&self) -> Result<String>;

    /// 'pf' when it can have virtual functions, 'vf' when it is one, else 'pci'.
    #[zbus(property)]
    fn role(&self) -> Result<String>;

    /// The driver bound to it; '' for none.
    #[zbus(property)]
    fn driver(&self) -> Result<String>;

    /// The only driver that may bind to it; '' for any.
    #[zbus(property)]
    fn driver_override(&self) -> Result<String>;

    /// Other VFIO drivers than vfio-pci that the kernel has for it.
    #[zbus(property)]
    fn variant_drivers(&self) -> Result<Vec<String>>;

    /// The number of its IOMMU group, -1 when it has none.
    #[zbus(property)]
    fn iommu_group(&self) -> Result<i32>;

    /// The addresses of all functions of its IOMMU group, its own too.
    #[zbus(property)]
    fn group_members(&self) -> Result<Vec<String>>;

    /// Its NUMA node, -1 when the kernel names none.
    #[zbus(property)]
    fn numa_node(&self) -> Result<i32>;

    /// How the kernel can reset it, in the order it tries.
    #[zbus(property)]
    fn reset_methods(&self) -> Result<Vec<String>>;

    /// Its network interfaces: name and hardware address.
    #[zbus(property)]
    fn netdevs(&self) -> Result<Vec<(String, String)>>;

    /// Why the host itself needs it, a clause each; empty when it does not.
    #[zbus(property)]
    fn host_critical(&self) -> Result<Vec<String>>;

    /// Whether a VM can be given it.
    #[zbus(property)]
    fn verdict(&self) -> Result<String>;

    /// The claim that holds it, '/' for none.
    #[zbus(property)]
    fn claim(&self) -> Result<OwnedObjectPath>;

    /// 'ok'; or 'stuck' while a write to it does not come back from the kernel.
    #[zbus(property)]
    fn state(&self) -> Result<String>;
}

/// `org.mdevd1.PhysicalFunction`.
#[zbus::proxy(interface = "org.mdevd1.PhysicalFunction", default_service = "org.mdevd1")]
pub trait PhysicalFunction {
    /// Gives it so many virtual functions; options: drivers-autoprobe.
    #[zbus(allow_interactive_auth)]
    fn set_num_vfs(&self, count: u32, options: &Options<'_>) -> Result<bool>;

    /// The most virtual functions that it can have.
    #[zbus(property)]
    fn total_vfs(&self) -> Result<u32>;

    /// How many it has.
    #[zbus(property)]
    fn num_vfs(&self) -> Result<u32>;

    /// Its virtual functions, by their number.
    #[zbus(property)]
    fn vfs(&self) -> Result<Vec<OwnedObjectPath>>;

    /// Whether the kernel binds drivers to new virtual functions.
    #[zbus(property)]
    fn drivers_autoprobe(&self) -> Result<bool>;

    /// 'legacy' or 'switchdev', where the driver says; else ''.
    #[zbus(property)]
    fn eswitch_mode(&self) -> Result<String>;
}

/// `org.mdevd1.VirtualFunction`.
#[zbus::proxy(interface = "org.mdevd1.VirtualFunction", default_service = "org.mdevd1")]
pub trait VirtualFunction {
    /// Sets what its physical function does with it; options: mac, vlan, qos, trust, spoof-check, min-rate, max-rate, link-state.
    #[zbus(allow_interactive_auth)]
    fn configure(&self, options: &Options<'_>) -> Result<bool>;

    /// Gives it one of the vendor's vGPU types, 0 for none.
    #[zbus(allow_interactive_auth)]
    fn set_vgpu_type(&self, vgpu_type: u32, options: &Options<'_>) -> Result<bool>;

    /// The physical function.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pf(&self) -> Result<OwnedObjectPath>;

    /// Its number there, from 0 on.
    #[zbus(property(emits_changed_signal = "const"))]
    fn vf_index(&self) -> Result<u32>;

    /// The address that the physical function has given it; '' when that does not say.
    #[zbus(property)]
    fn mac(&self) -> Result<String>;

    /// The VLAN that its packets are put into, 0 for none.
    #[zbus(property)]
    fn vlan(&self) -> Result<u16>;

    /// Whether it may ask for what could harm others.
    #[zbus(property)]
    fn trust(&self) -> Result<bool>;

    /// Whether packets from other addresses than its own are dropped.
    #[zbus(property)]
    fn spoof_check(&self) -> Result<bool>;

    /// The rate that it is sure of in Mbit/s, 0 for none.
    #[zbus(property)]
    fn min_rate(&self) -> Result<u32>;

    /// The rate that it cannot exceed in Mbit/s, 0 for no limit.
    #[zbus(property)]
    fn max_rate(&self) -> Result<u32>;

    /// 'auto', 'enable' or 'disable'; '' when the driver does not say.
    #[zbus(property)]
    fn link_state(&self) -> Result<String>;

    /// The vendor's vGPU type that it has, 0 for none.
    #[zbus(property)]
    fn vgpu_type(&self) -> Result<u32>;

    /// The vendor's vGPU types that it could have now: number and name.
    #[zbus(property)]
    fn creatable_vgpu_types(&self) -> Result<Vec<(u32, String)>>;

    /// The MIG instance that backs its vGPU, or -1.
    #[zbus(property)]
    fn gpu_instance(&self) -> Result<i32>;
}
