//! What can be typed of PCI functions, their VFs and vGPU types.

use clap::{Args, ValueEnum};

use super::{OnOff, Output, attribute};

/// Which kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    Pci,
    Vf,
    Mdev,
}

impl DeviceKind {
    /// As in a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Vf => "vf",
            Self::Mdev => "mdev",
        }
    }
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// Also bridges and what only the host can use
    #[arg(long, short)]
    pub all: bool,
    /// Only cards with such devices: whole functions, VFs (or PFs that can have some), or mdevs
    #[arg(long, short, value_enum, value_name = "pci|vf|mdev", hide_possible_values = true)]
    pub kind: Option<DeviceKind>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `tree`.
#[derive(Debug, Args)]
pub struct Tree {
    /// Also bridges and what only the host can use, and a line for each free VF
    #[arg(long, short)]
    pub all: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Only the host and this device or card
    pub device: Option<String>,
    /// A line for each device, also where many are alike
    #[arg(long, short)]
    pub all: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `vfs`.
#[derive(Debug, Args)]
pub struct Vfs {
    /// The PF: its address, card or network interface
    pub pf: String,
    /// Give it so many VFs; all of them are made anew
    pub count: Option<u32>,
    /// Whether the kernel binds drivers to new VFs, from now on
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, requires = "count")]
    pub drivers_autoprobe: Option<OnOff>,
    /// A line for each free VF
    #[arg(long, short)]
    pub all: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `bind`.
#[derive(Debug, Args)]
pub struct Bind {
    /// The function
    pub address: String,
    /// vfio-pci, or a variant of it as in `hostdevctl show`
    #[arg(default_value = "vfio-pci")]
    pub driver: String,
    /// Also when the host itself needs it: type its address once more
    #[arg(long, value_name = "ADDRESS")]
    pub force: Option<String>,
}

/// `restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The function
    pub address: String,
}

/// `configure`.
#[derive(Debug, Args)]
pub struct Configure {
    /// The VF
    pub vf: String,
    /// What to set: mac, vlan (0 for none), qos, trust, spoof-check, min-rate, max-rate (Mbit/s, 0 for none), link-state
    #[arg(value_name = "NAME=VALUE", required = true, value_parser = attribute)]
    pub settings: Vec<(String, String)>,
}

/// `vgpu-type`.
#[derive(Debug, Args)]
pub struct VgpuType {
    /// The VF
    pub vf: String,
    /// Give it this type, by name or number; 'none' takes it away
    #[arg(value_name = "TYPE|none")]
    pub vgpu_type: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}
