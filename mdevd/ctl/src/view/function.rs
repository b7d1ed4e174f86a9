//! A PCI function as mdevd shows it, and what follows from that: what it is, and whether a VM could want it.

use mdevd_core::names::{DriverName, PciAddress};
use mdevd_core::plan::is_vfio;
use mdevd_dbus::Dict;
use mdevd_dbus::path::Object;
use mdevd_dbus::wire::{number, text};
use uuid::Uuid;
use zbus::{OwnedObjectPath, Variant};

use super::{claim_id, list, natural, owned};

/// A PCI function.
#[derive(Debug)]
pub struct Function {
    /// Its address.
    pub address: PciAddress,
    /// Its vendor and device, `10de:26b9`.
    pub ids: String,
    /// The same of the card.
    pub subsystem_ids: String,
    /// Its class, 24 bits.
    pub class: u32,
    /// What people call it, or empty.
    pub name: String,
    /// The driver bound to it, or empty.
    pub driver: String,
    /// The only driver that may bind to it, or empty.
    pub driver_override: String,
    /// Other VFIO drivers than `vfio-pci` that the kernel has for it.
    pub variant_drivers: Vec<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<i32>,
    /// The functions of that group.
    pub group_members: Vec<String>,
    /// Its NUMA node.
    pub numa_node: Option<i32>,
    /// How the kernel can reset it.
    pub reset_methods: Vec<String>,
    /// Its network interfaces, name and hardware address.
    pub netdevs: Vec<(String, String)>,
    /// Why the host itself needs it, a clause each.
    pub host_critical: Vec<String>,
    /// The id of the claim that holds it.
    pub claim: Option<Uuid>,
    /// `ok` or `stuck`.
    pub state: String,
    /// What it is to SR-IOV.
    pub role: Role,
}

/// What a function is to SR-IOV.
#[derive(Debug)]
pub enum Role {
    /// Neither a PF nor a VF.
    Pci,
    /// It can make VFs.
    Pf(Physical),
    /// A PF has made it.
    Vf(Virtual),
}

/// What a PF has beyond any other function.
#[derive(Debug)]
pub struct Physical {
    /// The most VFs that it can have.
    pub total_vfs: u64,
    /// How many it has.
    pub num_vfs: u64,
    /// Those, by number.
    pub vfs: Vec<PciAddress>,
    /// Whether the kernel binds drivers to new ones.
    pub drivers_autoprobe: bool,
    /// `legacy`, `switchdev` or empty.
    pub eswitch_mode: String,
}

/// What a VF has beyond any other function.
#[derive(Debug)]
pub struct Virtual {
    /// Its PF.
    pub pf: Option<PciAddress>,
    /// Its number there.
    pub index: u64,
    /// The address that the PF has given it, or empty.
    pub mac: String,
    /// Its VLAN, 0 for none.
    pub vlan: u64,
    /// Whether it may ask for what could harm others.
    pub trust: bool,
    /// Whether packets from other addresses are dropped.
    pub spoof_check: bool,
    /// The rate that it is sure of, in Mbit/s, 0 for none.
    pub min_rate: u64,
    /// The rate that it cannot exceed, 0 for no limit.
    pub max_rate: u64,
    /// `auto`, `enable`, `disable` or empty.
    pub link_state: String,
    /// The vendor's vGPU type that it has.
    pub vgpu_type: Option<u32>,
    /// Those that it could have now, number and name.
    pub creatable_vgpu_types: Vec<(u32, String)>,
    /// The MIG instance that backs its vGPU.
    pub gpu_instance: Option<u32>,
}

impl Function {
    /// Reads the interfaces of one object; `find` gives the properties of one of them.
    pub(super) fn read(address: PciAddress, dict: &Dict, physical: Option<&Dict>, virtual_: Option<&Dict>) -> Self {
        let ids = |vendor, device| {
            let id = |key| number(dict, key).unwrap_or_default();
            format!("{:04x}:{:04x}", id(vendor), id(device))
        };
        Self {
            address,
            ids: ids("VendorId", "DeviceId"),
            subsystem_ids: ids("SubsystemVendorId", "SubsystemDeviceId"),
            class: number(dict, "Class").and_then(|class| u32::try_from(class).ok()).unwrap_or_default(),
            name: owned(dict, "Name"),
            driver: owned(dict, "Driver"),
            driver_override: owned(dict, "DriverOverride"),
            variant_drivers: list(dict, "VariantDrivers"),
            iommu_group: natural(dict, "IommuGroup"),
            group_members: list(dict, "GroupMembers"),
            numa_node: natural(dict, "NumaNode"),
            reset_methods: list(dict, "ResetMethods"),
            netdevs: list(dict, "Netdevs"),
            host_critical: list(dict, "HostCritical"),
            claim: claim_id(dict, "Claim"),
            state: owned(dict, "State"),
            role: match (virtual_, physical) {
                (Some(dict), _) => Role::Vf(Virtual::read(dict)),
                (None, Some(dict)) => Role::Pf(Physical::read(dict)),
                (None, None) => Role::Pci,
            },
        }
    }

    /// What it has beyond others as a PF.
    pub fn physical(&self) -> Option<&Physical> {
        match &self.role {
            Role::Pf(physical) => Some(physical),
            Role::Pci | Role::Vf(_) => None,
        }
    }

    /// What it has beyond others as a VF.
    pub fn vf(&self) -> Option<&Virtual> {
        match &self.role {
            Role::Vf(vf) => Some(vf),
            Role::Pci | Role::Pf(_) => None,
        }
    }

    /// Its role as D-Bus has it.
    pub fn role(&self) -> &'static str {
        match self.role {
            Role::Pci => "pci",
            Role::Pf(_) => "pf",
            Role::Vf(_) => "vf",
        }
    }

    /// Whether other functions are behind it.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether it is a network card.
    pub fn is_network(&self) -> bool {
        self.class >> 16 == 0x02
    }

    /// Whether a VM could be given it as it is: no bridge, no VF, and no PF that has VFs.
    pub fn is_whole(&self) -> bool {
        let without_vfs = match &self.role {
            Role::Pci => true,
            Role::Pf(physical) => physical.num_vfs == 0,
            Role::Vf(_) => false,
        };
        without_vfs && !self.is_bridge()
    }

    /// Whether a driver that gives it to VMs is bound to it.
    pub fn on_vfio(&self) -> bool {
        self.driver.parse::<DriverName>().is_ok_and(|driver| is_vfio(&driver))
    }

    /// Whether a VM could want one of its class: display, network, storage, sound, USB and other buses, serial ports, accelerators,
    /// cryptography, and what has no class of its own. Not memory, bridges, and what belongs to the mainboard.
    pub fn is_wanted_class(&self) -> bool {
        match self.class >> 8 {
            0x0c05 | 0x0780 => false, // the mainboard's SMBus and management engine
            0x0b40 => true,           // a co-processor
            class => matches!(class >> 8, 0x01..=0x04 | 0x07 | 0x0c | 0x0d | 0x10 | 0x12 | 0xff),
        }
    }

    /// What it is called in a list, in short; or else what it is.
    pub fn what(&self) -> String {
        let chip_and_product = matches!(self.class >> 16, 0x02 | 0x03 | 0x12);
        if self.name.is_empty() {
            return format!("{} {}", self.class_name(), self.ids);
        }
        short_name(&self.name, chip_and_product)
    }

    /// Its class in words.
    pub fn class_name(&self) -> &'static str {
        match (self.class >> 16, self.class >> 8) {
            (_, 0x0104) => "RAID controller",
            (_, 0x0106) => "SATA controller",
            (_, 0x0107) => "SAS controller",
            (_, 0x0108) => "NVMe drive",
            (0x01, _) => "storage controller",
            (_, 0x0200) => "Ethernet controller",
            (_, 0x0207) => "InfiniBand controller",
            (0x02, _) => "network controller",
            (_, 0x0300) => "VGA controller",
            (_, 0x0302) => "3D controller",
            (0x03, _) => "display controller",
            (_, 0x0401 | 0x0403) => "audio device",
            (0x04, _) => "multimedia controller",
            (0x05, _) => "memory controller",
            (_, 0x0600) => "host bridge",
            (_, 0x0601) => "ISA bridge",
            (_, 0x0604) => "PCI bridge",
            (0x06, _) => "bridge",
            (_, 0x0700) => "serial port",
            (0x07, _) => "communication controller",
            (0x08, _) => "system peripheral",
            (0x09, _) => "input device",
            (_, 0x0b40) => "co-processor",
            (_, 0x0c03) => "USB controller",
            (_, 0x0c05) => "SMBus controller",
            (0x0c, _) => "serial bus controller",
            (0x0d, _) => "wireless controller",
            (0x10, _) => "encryption controller",
            (0x11, _) => "signal processing controller",
            (0x12, _) => "processing accelerator",
            _ => "PCI device",
        }
    }
}

impl Physical {
    fn read(dict: &Dict) -> Self {
        Self {
            total_vfs: number(dict, "TotalVfs").unwrap_or_default(),
            num_vfs: number(dict, "NumVfs").unwrap_or_default(),
            vfs: list::<OwnedObjectPath>(dict, "Vfs")
                .iter()
                .filter_map(|path| function_address(path.as_str()))
                .collect(),
            drivers_autoprobe: flag(dict, "DriversAutoprobe"),
            eswitch_mode: owned(dict, "EswitchMode"),
        }
    }
}

impl Virtual {
    fn read(dict: &Dict) -> Self {
        let number = |key| number(dict, key).unwrap_or_default();
        Self {
            pf: function_address(text(dict, "Pf")),
            index: number("VfIndex"),
            mac: owned(dict, "Mac"),
            vlan: number("Vlan"),
            trust: flag(dict, "Trust"),
            spoof_check: flag(dict, "SpoofCheck"),
            min_rate: number("MinRate"),
            max_rate: number("MaxRate"),
            link_state: owned(dict, "LinkState"),
            vgpu_type: u32::try_from(number("VgpuType")).ok().filter(|id| *id != 0),
            creatable_vgpu_types: list(dict, "CreatableVgpuTypes"),
            gpu_instance: dict
                .get("GpuInstance")
                .and_then(|value| i32::try_from(value).ok())
                .and_then(|n| u32::try_from(n).ok()),
        }
    }

    /// Whether it is one of those that have the vendor's vGPU types.
    pub fn has_vgpu_types(&self) -> bool {
        self.vgpu_type.is_some() || !self.creatable_vgpu_types.is_empty()
    }
}

/// A name of `pci.ids` without what all makers are called; where a chip's name is followed by its product's, that one only:
/// `NVIDIA L40S` of `NVIDIA Corporation AD102GL [L40S]`.
fn short_name(name: &str, chip_and_product: bool) -> String {
    const MAKERS: [(&str, &str); 9] = [
        ("Advanced Micro Devices, Inc. [AMD/ATI]", "AMD"),
        ("Advanced Micro Devices, Inc. [AMD]", "AMD"),
        (" Corporation", ""),
        (" Technologies", ""),
        (" Electronics", ""),
        (" Semiconductor", ""),
        (" Co Ltd", ""),
        (", Inc.", ""),
        (" Inc.", ""),
    ];
    let name = MAKERS.iter().fold(name.to_owned(), |name, (long, short)| name.replacen(long, short, 1));
    let product = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    match (product, name.split_once(' ')) {
        (Some((_, product)), Some((maker, _))) if chip_and_product && !maker.contains('[') => {
            format!("{maker} {product}")
        }
        _ => name,
    }
}

/// The address that a path stands for.
pub fn function_address(path: &str) -> Option<PciAddress> {
    match Object::from_path(path) {
        Some(Object::Function(address)) => address.parse().ok(),
        _ => None,
    }
}

fn flag(dict: &Dict, key: &str) -> bool {
    matches!(dict.get(key).map(|value| &**value), Some(Variant::Bool(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_lists_are_short() {
        for (name, short) in [
            ("NVIDIA Corporation AD102GL [L40S]", "NVIDIA L40S"),
            ("Mellanox Technologies MT2892 Family [ConnectX-6 Dx]", "Mellanox ConnectX-6 Dx"),
            ("Advanced Micro Devices, Inc. [AMD/ATI] Navi 21 [Radeon RX 6800]", "AMD Radeon RX 6800"),
            ("Intel Corporation Ethernet Controller E810-C for QSFP", "Intel Ethernet Controller E810-C for QSFP"),
            ("[x]", "[x]"),
            ("", ""),
        ] {
            assert_eq!(short_name(name, true), short);
        }
        let drive = "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1 [980 PRO]";
        assert_eq!(short_name(drive, false), "Samsung NVMe SSD Controller PM9A1 [980 PRO]");
    }
}
