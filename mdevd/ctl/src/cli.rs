//! What can be typed: the verbs, their options, and what is checked before anything is sent anywhere.

mod function;
mod xml;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use mdevd_core::names::{MdevTypeId, MdevUuid, ParentName, parse_uuid};
use uuid::Uuid;

pub use function::{Bind, Configure, DeviceKind, Doctor, List, Restore, Tree, Vfs, VgpuType};
pub use xml::Xml;

// A paragraph is one line: clap breaks it to the terminal's width.
const AFTER_HELP: &str = "\
A DEVICE is named as you know it: an mdev by its UUID; a PCI function by its address, 0000:41:00.4 or 41:00.4, or its network \
interface; 0000:41:00 means all functions of that card.

A REQUEST is what a VM asks for, written as in its XML: type=nvidia-63, or name=gpu0,type=nvidia-63,parent=0000:41:00.0, \
or address=0000:41:00.4,vgpu-type=1145. \
Of an mdev: type, parent, uuid. Of a PCI function: address, or kind (pci, vf), device (as 8086:10ca), pf; and managed, driver, \
vgpu-type, rom-bar, rom-file; of a VF of a network card also mac, vlan, qos, trust, spoof-check, min-rate, max-rate, link-state. \
Of each: name, count, numa-node, display, ramfb, guest-address, boot-order. \
A word without '=' is the type, or an address; a request without a name is called dev0, dev1, and so on.

Tables fit the terminal; what goes to a pipe or a file is complete, and without colour. \
NO_COLOR and CLICOLOR are honoured. \
With --json the output is for programs: its keys stay as they are, and lists are arrays.

The bus is that of DBUS_SYSTEM_BUS_ADDRESS if it is set, else the system bus.

Exit status:
  0  done
  1  refused, or there is no such thing; of doctor: the host or the device asked for is not ready
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
    /// The cards and mdev parents of this host: how much of each is used, and by whom
    List(List),
    /// The same as a tree, down to each VF and mdev
    Tree(Tree),
    /// Everything about one thing, and who has it open
    Show(Show),
    /// The mdev and vGPU types that there are, and how many more of each
    Types(Types),
    /// Whether this host and its devices can give VMs what they need, and what to do
    Doctor(Doctor),
    /// Create one mdev, with a claim on it; prints its UUID
    Create(Create),
    /// Remove one mdev
    Remove(Remove),
    /// The VFs of a PF, or give it so many
    Vfs(Vfs),
    /// Bind a PCI function to the driver that gives it to VMs, with a claim on it
    Bind(Bind),
    /// End what `bind` began: the function gets its own driver back
    Restore(Restore),
    /// Set MAC, VLAN and the like of a network card's VF
    Configure(Configure),
    /// The vendor's vGPU types that a VF can have, or give it one
    VgpuType(VgpuType),
    /// What is promised to whom
    Claims(Output),
    /// Claim a device for each request; prints the claim's id
    Claim(Claim),
    /// Free all that a claim holds
    Release(Release),
    /// Print the XML that gives a device to a VM, of a device or of requests
    Xml(Box<Xml>),
    /// What would be chosen for requests, and why not the others
    Explain(Explain),
    /// mdevd's version, what it counts, and what is wrong at present
    Status(Output),
    /// Numbers for Prometheus, as text for node_exporter's textfile collector
    Metrics(Metrics),
    /// Compare claims, devices and VMs, and repair what differs
    Reconcile(Reconcile),
    /// Read the whole host again
    Rescan,
    /// Read mdevd's configuration again
    Reload,
    /// For packagers: completions, and parts of man pages, made from the definitions in this program
    #[command(hide = true)]
    Generate(Generate),
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
    /// A device, card, parent, claim or VM: a UUID, an address, a sysfs name, or a VM's name
    #[arg(value_name = "DEVICE|CARD|PARENT|CLAIM|DOMAIN")]
    pub what: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `types`.
#[derive(Debug, Args)]
pub struct Types {
    /// Only those of this parent or PF
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

/// `metrics`.
#[derive(Debug, Args)]
pub struct Metrics {
    /// Replace this file, whole or not at all, instead of printing
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// `generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// What
    pub what: Generated,
}

/// What can be generated.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Generated {
    /// The verbs, for hostdevctl(1).
    Verbs,
    /// The interfaces, for org.mdevd1(5).
    Interfaces,
    /// Completions.
    Bash,
    /// Completions.
    Zsh,
    /// Completions.
    Fish,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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

/// An answer.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum YesNo {
    Yes,
    No,
}

impl YesNo {
    /// As in XML and on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
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
