//! What the doctor knows of a host: plain data, and for each thing a way to say that it is not known.

use crate::hostdev::LibvirtVersion;
use alloc::string::String;
use alloc::vec::Vec;

/// What is known of a host. The default knows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// Who made the processor.
    pub cpu: CpuVendor,
    /// What the machine itself is in.
    pub surroundings: Surroundings,
    /// Whose way of doing things the system follows.
    pub distribution: Distribution,
    /// What has booted it.
    pub boot_loader: Option<BootLoader>,
    /// What the kernel was booted with.
    pub command_line: Option<CommandLine>,
    /// The IOMMUs that are in use, by name: `dmar0`, `ivhd0`, `smmu3.0x…`.
    pub iommu_units: Option<Vec<String>>,
    /// How many groups of devices an IOMMU keeps apart.
    pub iommu_groups: Option<usize>,
    /// Whether the firmware describes an IOMMU of Intel's kind (the ACPI table DMAR).
    pub dmar: Option<bool>,
    /// Whether the firmware describes an IOMMU of AMD's kind (the ACPI table IVRS).
    pub ivrs: Option<bool>,
    /// Whether devices' interrupts go through the IOMMU too.
    pub interrupt_remapping: Option<bool>,
    /// Whether VFIO has been told to do without that (`allow_unsafe_interrupts`).
    pub unsafe_interrupts: Option<bool>,
    /// The kernel's module `vfio`.
    pub vfio: Module,
    /// The kernel's module `vfio-pci`.
    pub vfio_pci: Module,
    /// The kernel's module `vfio_iommu_type1`.
    pub vfio_iommu_type1: Module,
    /// The device file `/dev/vfio/vfio`.
    pub vfio_file: Option<VfioFile>,
    /// libvirt's daemon.
    pub libvirt: Option<Libvirt>,
    /// Which libvirt is installed.
    pub libvirt_version: Option<LibvirtVersion>,
    /// How much memory a VM can have locked; known of a running daemon only.
    pub memlock: Option<Memlock>,
    /// mdevd's entry among libvirt's hooks.
    pub hook: Option<HookEntry>,
    /// The other hooks, by their path below `/etc/libvirt/hooks`.
    pub other_hooks: Vec<String>,
    /// The vendors' services that are installed.
    pub vendor_services: Vec<VendorService>,
    /// How many devices offer mdev types; none known where the kernel's part for that is not loaded.
    pub mdev_parents: Option<usize>,
    /// What could not be read, one sentence each.
    pub problems: Vec<String>,
}

/// Who made the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuVendor {
    /// Intel.
    Intel,
    /// AMD, or Hygon, which builds on its design.
    Amd,
    /// Somebody who builds Arm processors.
    Arm,
    /// Somebody else.
    Other,
    /// Not known.
    #[default]
    Unknown,
}

/// What a machine itself is in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Surroundings {
    /// Hardware.
    Hardware,
    /// A VM, with the name that its virtual hardware has; empty where it has none.
    Vm(String),
    /// A container, with its manager's name; empty where that is not known.
    Container(String),
    /// Not known.
    #[default]
    Unknown,
}

/// Whose way of doing things a system follows, where it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Debian, Ubuntu, Proxmox VE and their like.
    Debian,
    /// Fedora, Red Hat Enterprise Linux and their like.
    Fedora,
    /// openSUSE, SUSE Linux Enterprise and their like.
    Suse,
    /// Arch Linux and its like.
    Arch,
    /// NixOS.
    Nixos,
    /// Another, or not known.
    #[default]
    Other,
}

impl Distribution {
    /// The one that the text of `os-release` means: by `ID`, else by the first of `ID_LIKE` that is known.
    pub fn parse(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).split_whitespace()
        };
        value("ID").chain(value("ID_LIKE")).find_map(Self::by_id).unwrap_or_default()
    }

    fn by_id(id: &str) -> Option<Self> {
        match id {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            "suse" | "opensuse" | "sles" => Some(Self::Suse),
            "arch" => Some(Self::Arch),
            "nixos" => Some(Self::Nixos),
            _ => None,
        }
    }
}

/// What has booted a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootLoader {
    /// GRUB.
    Grub,
    /// systemd-boot; and whether `/etc/kernel/cmdline` is there, from which its entries are made.
    SystemdBoot {
        /// Whether that file is there.
        command_line_file: bool,
    },
    /// systemd-boot with entries that `proxmox-boot-tool` makes.
    ProxmoxBootTool,
    /// Any of them, with entries that `rpm-ostree` makes.
    Ostree,
}

/// The kernel's command line, as parameters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine(Vec<String>);

impl CommandLine {
    /// The parameters of a line: those that are the kernel's, not those after `--`, which are for init.
    pub fn parse(line: &str) -> Self {
        let mut quoted = false;
        let words = line.trim().split(|c: char| {
            quoted ^= c == '"';
            !quoted && c.is_whitespace()
        });
        let ours = words.filter(|word| !word.is_empty()).take_while(|word| *word != "--");
        Self(ours.map(|word| word.replace(char::is_control, "?")).collect())
    }

    /// The parameters.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter<'_>> {
        self.0.iter().map(|text| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            Parameter { text, name: name.replace('-', "_"), value: value.trim_matches('"') }
        })
    }

    /// The last parameter of a name, which mostly counts.
    pub fn last(&self, name: &str) -> Option<Parameter<'_>> {
        self.parameters().filter(|parameter| parameter.name == name).last()
    }
}

/// A parameter of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// The whole of it as it stands there, with `?` for control characters.
    pub text: &'a str,
    /// Its name, with `_` for `-`: to the kernel they are the same.
    pub name: String,
    value: &'a str,
}

impl Parameter<'_> {
    /// Its values, which commas separate.
    pub fn values(&self) -> impl Iterator<Item = &str> {
        self.value.split(',')
    }

    /// Whether this is one of its values.
    pub fn has(&self, value: &str) -> bool {
        self.values().any(|part| part == value)
    }
}

/// How a module of the kernel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Module {
    /// It is loaded, or a part of the kernel.
    Present,
    /// It can be loaded.
    Loadable,
    /// This kernel does not have it.
    Missing,
    /// Not known.
    #[default]
    Unknown,
}

/// The device file that QEMU opens before any device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfioFile {
    /// It is not there.
    Absent,
    /// It is, with these permissions.
    Mode(u32),
}

/// libvirt's daemon, by name: `virtqemud`, or `libvirtd` where it is still one for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libvirt {
    /// It is not installed.
    Absent,
    /// It is installed, and nothing answers for it.
    Stopped(&'static str),
    /// It is not running and starts when somebody calls.
    OnDemand(&'static str),
    /// It is running.
    Running(&'static str),
}

impl Libvirt {
    /// The daemon's name.
    pub fn daemon(self) -> Option<&'static str> {
        match self {
            Self::Absent => None,
            Self::Stopped(daemon) | Self::OnDemand(daemon) | Self::Running(daemon) => Some(daemon),
        }
    }
}

/// How much memory the daemon can have locked for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memlock {
    /// Its own limit in bytes; none is no limit.
    pub limit: Option<u64>,
    /// Whether it may raise it (CAP_SYS_RESOURCE), as libvirt does for each VM.
    pub may_raise: bool,
}

/// mdevd's entry among libvirt's hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEntry {
    /// As it was installed.
    Installed,
    /// It is not there.
    Absent,
    /// It is there, and libvirt passes over it.
    NotExecutable,
    /// It is not what mdevd installs.
    Changed,
    /// It is there, but not the program that it runs.
    NoProgram,
}

/// A vendor's service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VendorService {
    /// Its unit, without `.service`.
    pub name: &'static str,
    /// Whether it is running.
    pub running: Option<bool>,
}
