//! What the objects of PCI functions show.

use std::sync::Arc;

use mdevd_core::function::{Function, PhysicalFunction, Role, VfSettings};
use mdevd_core::names::PciAddress;
use mdevd_dbus::{interface, path};
use uuid::Uuid;
use zbus::{OwnedObjectPath, OwnedVariant};

use super::{View, owned};

/// `org.mdevd1.Function` of `/org/mdevd1/function/…`.
#[derive(Debug, PartialEq)]
pub struct FunctionView {
    /// The function.
    pub function: Arc<Function>,
    /// The functions of its IOMMU group.
    pub members: Arc<[PciAddress]>,
    /// Its claim.
    pub claim: Option<Uuid>,
    /// Whether a VM can be given it; empty before that has been looked at.
    pub verdict: &'static str,
}

impl FunctionView {
    /// `Driver`.
    pub fn driver(&self) -> String {
        self.function.driver.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// `DriverOverride`.
    pub fn driver_override(&self) -> String {
        self.function.driver_override.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// `VariantDrivers`.
    pub fn variant_drivers(&self) -> Vec<String> {
        self.function.variant_drivers.iter().map(ToString::to_string).collect()
    }

    /// `IommuGroup`.
    pub fn iommu_group(&self) -> i32 {
        self.function.iommu_group.map_or(-1, |group| i32::try_from(group.0).unwrap_or(-1))
    }

    /// `GroupMembers`.
    pub fn group_members(&self) -> Vec<String> {
        self.members.iter().map(ToString::to_string).collect()
    }

    /// `NumaNode`.
    pub fn numa_node(&self) -> i32 {
        self.function.numa_node.map_or(-1, |node| i32::try_from(node.0).unwrap_or(-1))
    }

    /// `Netdevs`.
    pub fn netdevs(&self) -> Vec<(String, String)> {
        let mac = |netdev: &mdevd_core::function::Netdev| netdev.mac.map(|mac| mac.to_string()).unwrap_or_default();
        self.function.netdevs.iter().map(|netdev| (netdev.name.clone(), mac(netdev))).collect()
    }

    /// `Claim`.
    pub fn claim(&self) -> OwnedObjectPath {
        self.claim.map_or_else(path::none, path::claim)
    }
}

impl View for FunctionView {
    const INTERFACE: &'static str = interface::FUNCTION;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("Name", owned(self.function.name.as_str())),
            ("Role", owned(self.function.role.as_str())),
            ("Driver", owned(self.driver())),
            ("DriverOverride", owned(self.driver_override())),
            ("VariantDrivers", owned(self.variant_drivers())),
            ("IommuGroup", owned(self.iommu_group())),
            ("GroupMembers", owned(self.group_members())),
            ("NumaNode", owned(self.numa_node())),
            ("ResetMethods", owned(self.function.reset_methods.clone())),
            ("Netdevs", owned(self.netdevs())),
            ("HostCritical", owned(self.function.host_critical.clone())),
            ("Verdict", owned(self.verdict)),
            ("Claim", owned(self.claim().into_inner())),
            ("State", owned(self.function.state.as_str())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        let (a, b) = (&self.function, &next.function);
        a.address == b.address && a.ids == b.ids && a.class == b.class
    }
}

/// `org.mdevd1.PhysicalFunction`.
#[derive(Debug, PartialEq)]
pub struct PhysicalView {
    /// The function.
    pub function: Arc<Function>,
}

impl PhysicalView {
    fn physical(&self) -> Option<&PhysicalFunction> {
        match &self.function.role {
            Role::Pf(physical) => Some(physical),
            Role::Pci | Role::Vf { .. } => None,
        }
    }

    /// `TotalVfs`.
    pub fn total_vfs(&self) -> u32 {
        self.physical().map_or(0, |physical| physical.total_vfs)
    }

    /// `NumVfs`.
    pub fn num_vfs(&self) -> u32 {
        self.physical().map_or(0, PhysicalFunction::num_vfs)
    }

    /// `Vfs`.
    pub fn vfs(&self) -> Vec<OwnedObjectPath> {
        let vfs = self.physical().into_iter().flat_map(|physical| physical.vfs.values());
        vfs.map(|vf| path::function(&vf.to_string())).collect()
    }

    /// `DriversAutoprobe`.
    pub fn drivers_autoprobe(&self) -> bool {
        self.physical().is_some_and(|physical| physical.drivers_autoprobe)
    }

    /// `EswitchMode`.
    pub fn eswitch_mode(&self) -> String {
        self.physical().map(|physical| physical.eswitch_mode.clone()).unwrap_or_default()
    }
}

impl View for PhysicalView {
    const INTERFACE: &'static str = interface::PHYSICAL_FUNCTION;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("TotalVfs", owned(self.total_vfs())),
            ("NumVfs", owned(self.num_vfs())),
            ("Vfs", owned(self.vfs())),
            ("DriversAutoprobe", owned(self.drivers_autoprobe())),
            ("EswitchMode", owned(self.eswitch_mode())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        self.function.address == next.function.address
    }
}

/// `org.mdevd1.VirtualFunction`.
#[derive(Debug, PartialEq)]
pub struct VirtualView {
    /// The function.
    pub function: Arc<Function>,
    /// Its physical function.
    pub pf: PciAddress,
    /// Its number there.
    pub index: u32,
    /// What that one's network driver says.
    pub settings: VfSettings,
}

impl VirtualView {
    /// `Pf`.
    pub fn pf(&self) -> OwnedObjectPath {
        path::function(&self.pf.to_string())
    }

    /// `Mac`.
    pub fn mac(&self) -> String {
        self.settings.mac.map(|mac| mac.to_string()).unwrap_or_default()
    }

    /// `LinkState`.
    pub fn link_state(&self) -> String {
        self.settings.link_state.map_or_else(String::new, |state| state.as_str().into())
    }

    /// `VgpuType`.
    pub fn vgpu_type(&self) -> u32 {
        self.function.vgpu.as_ref().and_then(|vgpu| vgpu.current).map_or(0, |id| id.0.get())
    }

    /// `GpuInstance`.
    pub fn gpu_instance(&self) -> i32 {
        let instance = self.function.vgpu.as_ref().and_then(|vgpu| vgpu.gpu_instance);
        instance.map_or(-1, |instance| i32::try_from(instance).unwrap_or(-1))
    }

    /// `CreatableVgpuTypes`.
    pub fn creatable_vgpu_types(&self) -> Vec<(u32, String)> {
        let types = self.function.vgpu.as_ref().map(|vgpu| vgpu.creatable.as_slice()).unwrap_or_default();
        types.iter().map(|known| (known.id.0.get(), known.name.clone())).collect()
    }
}

impl View for VirtualView {
    const INTERFACE: &'static str = interface::VIRTUAL_FUNCTION;
    fn changeable(&self) -> Vec<(&'static str, OwnedVariant)> {
        vec![
            ("Mac", owned(self.mac())),
            ("Vlan", owned(self.settings.vlan.unwrap_or_default())),
            ("Trust", owned(self.settings.trust.unwrap_or_default())),
            ("SpoofCheck", owned(self.settings.spoof_check.unwrap_or_default())),
            ("MinRate", owned(self.settings.min_rate.unwrap_or_default())),
            ("MaxRate", owned(self.settings.max_rate.unwrap_or_default())),
            ("LinkState", owned(self.link_state())),
            ("VgpuType", owned(self.vgpu_type())),
            ("CreatableVgpuTypes", owned(self.creatable_vgpu_types())),
            ("GpuInstance", owned(self.gpu_instance())),
        ]
    }
    fn is_same_object(&self, next: &Self) -> bool {
        self.function.address == next.function.address && self.pf == next.pf && self.index == next.index
    }
}
