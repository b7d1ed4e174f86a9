//! What can be typed: the verbs, their options, and what is checked before anything is sent anywhere.

use clap::{Args, Parser, Subcommand, ValueEnum};
use mdevd_core::hostdev::MdevModel;
use mdevd_core::names::{MdevTypeId, MdevUuid, ParentName, parse_uuid};
use uuid::Uuid;

// A paragraph is one line: clap breaks it to the terminal's width.
const AFTER_HELP: &str = "\
A REQUEST is what a VM asks for, written as in its XML: type=nvidia-63, or name=gpu0,type=nvidia-63,parent=0000:41:00.0. \
Its keys: name, type, parent, uuid, count, numa-node, display, ramfb, guest-address, boot-order. \
A word without '=' is the type; a request without a name is called dev0, dev1, and so on.

Tables fit the terminal; what goes to a pipe or a file is complete, and without colour. \
NO_COLOR and CLICOLOR are honoured. \
With --json the output is for programs: its keys stay as they are, and lists are arrays.

The bus is that of DBUS_SYSTEM_BUS_ADDRESS if it is set, else the system bus.

Exit status:
  0  done
  1  refused, or there is no such thing
  2  wrong usage
  3  mdevd cannot be reached
  4  not authorized";

/// Shows, creates and frees the devices that mdevd gives to VMs.
#[derive(Debug, Parser)]
#[command(name = "hostdevctl", version, after_help = AFTER_HELP, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The parents of this host, and the mdevs on each
    List(Output),
    /// Everything about one thing, and who has it open
    Show(Show),
    /// The mdev types that can be created, and how many more of each
    Types(Types),
    /// Create one mdev, with a claim on it; prints its UUID
    Create(Create),
    /// Remove one mdev
    Remove(Remove),
    /// What is promised to whom
    Claims(Output),
    /// Claim a device for each request; prints the claim's id
    Claim(Claim),
    /// Free all that a claim holds
    Release(Release),
    /// Print the XML that gives a device to a VM, of a device or of requests
    Xml(Xml),
    /// What would be chosen for requests, and why not the others
    Explain(Explain),
    /// mdevd's version, what it counts, and what is wrong at present
    Status(Output),
    /// Compare claims, devices and VMs, and repair what differs
    Reconcile(Reconcile),
    /// Read the whole host again
    Rescan,
    /// Read mdevd's configuration again
    Reload,
}

/// How a reading verb prints.
#[derive(Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `show`.
#[derive(Debug, Args)]
pub struct Show {
    /// A device, parent, claim or VM: a UUID, a sysfs name, or a VM's name
    #[arg(value_name = "DEVICE|PARENT|CLAIM|DOMAIN")]
    pub what: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `types`.
#[derive(Debug, Args)]
pub struct Types {
    /// Only those of this parent
    pub parent: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The mdev type, as in `hostdevctl types`
    #[arg(value_name = "TYPE")]
    pub mdev_type: MdevTypeId,
    /// On this parent; mdevd chooses one otherwise
    #[arg(long, short)]
    pub parent: Option<ParentName>,
    /// With this UUID; when this mdev is yours already nothing is done
    #[arg(long, short)]
    pub uuid: Option<MdevUuid>,
    /// Write VALUE to its attribute NAME; may be repeated, and is done in this order
    #[arg(long = "attr", short, value_name = "NAME=VALUE", value_parser = attribute)]
    pub attrs: Vec<(String, String)>,
    /// A note that says for whom, for people
    #[arg(long, short)]
    pub label: Option<String>,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The mdev
    pub uuid: MdevUuid,
    /// Also when someone else made it, or when it belongs to a VM
    #[arg(long)]
    pub force: bool,
}

/// `claim`.
#[derive(Debug, Args)]
pub struct Claim {
    /// What is needed
    #[arg(value_name = "REQUEST", required = true)]
    pub requests: Vec<String>,
    /// A note that says for whom, for people
    #[arg(long, short)]
    pub label: Option<String>,
}

/// `release`.
#[derive(Debug, Args)]
pub struct Release {
    /// The claim, or the only device that it holds
    #[arg(value_name = "CLAIM|DEVICE")]
    pub what: String,
    /// Also when it is the claim of a VM that may still be starting
    #[arg(long)]
    pub force: bool,
}

/// `xml`.
#[derive(Debug, Args)]
#[command(override_usage = "\
hostdevctl xml [OPTIONS] <DEVICE|CLAIM|DOMAIN>
       hostdevctl xml --domain <UUID> --request <REQUEST>...")]
pub struct Xml {
    /// The device; of a claim or VM all that it holds
    #[arg(value_name = "DEVICE|CLAIM|DOMAIN", required_unless_present = "domain")]
    pub what: Option<String>,
    /// Of a VM with this UUID and these requests, before anything exists: the metadata and the
    /// hostdev elements, ready for `virsh edit`. Does not need mdevd
    #[arg(long, value_name = "UUID", value_parser = domain_uuid, requires = "requests", conflicts_with = "what")]
    pub domain: Option<Uuid>,
    /// What the VM asks for; may be repeated
    #[arg(long = "request", value_name = "REQUEST", requires = "domain")]
    pub requests: Vec<String>,
    /// With --domain: what the devices look like to the VM, if it is not a PCI device
    #[arg(long, value_name = "vfio-pci|vfio-ccw|vfio-ap", requires = "domain")]
    pub model: Option<MdevModel>,
    /// Show the device's picture on the VM's display
    #[arg(long, value_enum, conflicts_with = "domain")]
    pub display: Option<OnOff>,
    /// Give the VM a boot display until its own driver takes over; needs --display on
    #[arg(long, value_enum, conflicts_with = "domain")]
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
    /// Print the device as `virsh nodedev-create` takes it instead
    #[arg(long, conflicts_with_all = ["domain", "display", "ramfb", "alias", "guest_address", "boot_order"])]
    pub nodedev: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// What is needed
    #[arg(value_name = "REQUEST", required = true)]
    pub requests: Vec<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `reconcile`.
#[derive(Debug, Args)]
pub struct Reconcile {
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// A switch of a `<hostdev>`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

impl OnOff {
    /// As in XML and on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must be NAME=VALUE".to_owned()),
    }
}

fn domain_uuid(text: &str) -> Result<Uuid, String> {
    parse_uuid(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn attributes_keep_all_after_the_first_equals_sign() {
        assert_eq!(attribute("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(attribute("a="), Ok(("a".to_owned(), String::new())));
        assert!(attribute("=b").is_err() && attribute("ab").is_err());
    }
}
