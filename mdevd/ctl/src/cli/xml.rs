//! What can be typed of XML.

use clap::Args;
use mdevd_core::hostdev::MdevModel;
use uuid::Uuid;

use super::{OnOff, Output, YesNo, domain_uuid};

/// `xml`.
#[derive(Debug, Args)]
#[command(override_usage = "\
hostdevctl xml [OPTIONS] <DEVICE|CARD|CLAIM|DOMAIN>
       hostdevctl xml --network <NAME> <PF>
       hostdevctl xml --domain <UUID> --request <REQUEST>...")]
pub struct Xml {
    /// The device; of a card all its functions, of a claim or VM all that it holds
    #[arg(value_name = "DEVICE|CARD|CLAIM|DOMAIN", required_unless_present = "domain")]
    pub what: Option<String>,
    /// Of a VM with this UUID and these requests, before anything exists: the metadata and the
    /// hostdev elements, ready for `virsh edit`. Starts no mdevd, but for the functions of a card; one
    /// that runs says what the installed libvirt understands
    #[arg(long, value_name = "UUID", value_parser = domain_uuid, requires = "requests", conflicts_with = "what")]
    pub domain: Option<Uuid>,
    /// What the VM asks for; may be repeated
    #[arg(long = "request", value_name = "REQUEST", requires = "domain")]
    pub requests: Vec<String>,
    /// With --domain: what the mdevs look like to the VM, if they are not PCI devices
    #[arg(long, value_name = "vfio-pci|vfio-ccw|vfio-ap", requires = "domain")]
    pub model: Option<MdevModel>,
    /// Of a PF: a libvirt network of this name that gives VMs its VFs
    #[arg(long, value_name = "NAME", conflicts_with_all = ["domain", "interface", "display", "ramfb", "alias", "guest_address", "boot_order", "rom_bar", "rom_file", "nodedev"])]
    pub network: Option<String>,
    /// Of a network card's VF: an interface element, for which libvirt sets MAC and VLAN
    #[arg(long, conflicts_with_all = ["domain", "display", "ramfb", "nodedev"])]
    pub interface: bool,
    /// With --interface: its MAC address
    #[arg(long, value_name = "MAC", requires = "interface")]
    pub mac: Option<String>,
    /// With --interface: its VLAN, from 1
    #[arg(long, value_name = "N", requires = "interface", value_parser = clap::value_parser!(u32).range(1..=4094))]
    pub vlan: Option<u32>,
    /// Show the device's picture on the VM's display
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, conflicts_with = "domain", num_args = 0..=1, default_missing_value = "on")]
    pub display: Option<OnOff>,
    /// Give the VM a boot display until its own driver takes over; needs --display
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, conflicts_with = "domain", num_args = 0..=1, default_missing_value = "on")]
    pub ramfb: Option<OnOff>,
    /// A name for the element; begins with 'ua-'
    #[arg(long, conflicts_with = "domain")]
    pub alias: Option<String>,
    /// The PCI address in the VM, for instance 0000:04:00.0
    #[arg(long, value_name = "ADDRESS", conflicts_with = "domain")]
    pub guest_address: Option<String>,
    /// The place in the VM's boot order, from 1
    #[arg(long, value_name = "N", conflicts_with = "domain", value_parser = clap::value_parser!(u32).range(1..))]
    pub boot_order: Option<u32>,
    /// Whether the VM sees the function's ROM
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, conflicts_with = "domain")]
    pub rom_bar: Option<OnOff>,
    /// A file with a ROM to show to the VM instead of the function's own
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    pub rom_file: Option<String>,
    /// Whether libvirt binds the function to its driver and back
    #[arg(long, value_enum, value_name = "yes|no", hide_possible_values = true, conflicts_with = "domain")]
    pub managed: Option<YesNo>,
    /// The VFIO driver to bind it to: vfio-pci or a variant of it
    #[arg(long, conflicts_with = "domain")]
    pub driver: Option<String>,
    /// Print the mdev as `virsh nodedev-create` takes it instead
    #[arg(long, conflicts_with_all = ["domain", "display", "ramfb", "alias", "guest_address", "boot_order"])]
    pub nodedev: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}
