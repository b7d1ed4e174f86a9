//! `org.mdevd1.Function`, `PhysicalFunction` and `VirtualFunction`: a PCI function, and what some of them have beyond any other.

use std::sync::Arc;
use std::time::Duration;

use mdevd_core::function::{LinkState, VfSettings};
use mdevd_core::hostdev::{HostdevError, InterfaceHostdevXml, PciHostdevXml};
use mdevd_core::names::{DeviceKey, DriverName, MacAddress, VgpuTypeId};
use mdevd_dbus::{Dict, ErrorName};
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath};

use super::{holders_of, no_options};
use crate::auth::authorize;
use crate::engine::Handle;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::views::{FunctionView, PhysicalView, Slot, VirtualView};

/// A PCI function on the bus.
#[derive(Debug)]
pub struct FunctionObject {
    engine: Handle,
    view: Arc<Slot<FunctionView>>,
}

impl FunctionObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<FunctionView>>) -> Self {
        Self { engine, view }
    }
}

#[zbus::interface(name = "org.mdevd1.Function", introspection_docs = false)]
impl FunctionObject {
    #[zbus(out_args("holders"))]
    async fn get_holders(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(u32, String)>> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        holders_of(&self.engine, DeviceKey::Pci(self.view.get().function.address)).await
    }

    #[zbus(out_args("changed"))]
    async fn bind(
        &self,
        driver: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let driver = driver.parse::<DriverName>()?;
        let address = self.view.get().function.address;
        let details = [("device", address.to_string()), ("driver", driver.to_string())];
        let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let uid = authorize(connection, &header, None, &details).await?;
        let mut options = Options::new(options);
        let force: Option<String> = options.take("force", "the function's address (s)")?;
        options.finish()?;
        // Typed again by the person who means it: a slip must not take the host's root disk.
        if let Some(force) = force.as_ref().filter(|force| **force != address.to_string()) {
            return Err(Error::invalid(format!(
                "force is '{}', not the address {address} once more",
                mdevd_core::names::printable(force)
            )));
        }
        let force = force.is_some();
        self.engine.call(move |engine| async move { engine.bind_function(address, driver, force, uid).await }).await
    }

    #[zbus(out_args("changed"))]
    async fn restore(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let address = self.view.get().function.address;
        authorize(connection, &header, None, &[("device", &address.to_string())]).await?;
        no_options(options)?;
        self.engine.call(move |engine| async move { engine.restore_function(address).await }).await
    }

    #[zbus(out_args("xml"))]
    async fn hostdev_xml(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        authorize(connection, &header, None, &[]).await?;
        let function = self.view.get().function.clone();
        let mut options = Options::new(options);
        let interface = options.take("interface", "a boolean")?.unwrap_or(false);
        let mut pairs: Vec<(&str, String)> = Vec::new();
        for key in ["managed", "driver", "rom-bar", "rom-file", "alias", "guest-address", "display", "ramfb", "mac"] {
            pairs.extend(options.take::<String>(key, "a string")?.map(|text| (key, text)));
        }
        for key in ["boot-order", "vlan"] {
            pairs.extend(options.take::<u32>(key, "a number (u)")?.map(|number| (key, number.to_string())));
        }
        options.finish()?;
        if function.bridge {
            let message = format!("{} is a bridge, which no VM can be given", function.address);
            return Err(Error::new(ErrorName::NotSupported, message));
        }
        // The vendor's vGPUs stay on the vendor's driver.
        if function.vgpu.is_some() && !pairs.iter().any(|(key, _)| *key == "managed") {
            pairs.push(("managed", "no".into()));
        }
        let pairs = pairs.iter().map(|(key, text)| (*key, text.as_str()));
        let installed = self.engine.call(|engine| async move { Ok(engine.libvirt_version()) }).await?;
        let unknown = |error: HostdevError| Error::new(ErrorName::NotSupported, error.to_string());
        Ok(if interface {
            let xml = InterfaceHostdevXml::from_options(function.address, pairs)?;
            installed.map_or(Ok(()), |installed| xml.check_version(installed)).map_err(unknown)?;
            xml.to_xml()
        } else {
            let xml = PciHostdevXml::from_options(function.address, pairs)?;
            installed.map_or(Ok(()), |installed| xml.check_version(installed)).map_err(unknown)?;
            xml.to_xml()
        })
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn address(&self) -> String {
        self.view.get().function.address.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn vendor_id(&self) -> u16 {
        self.view.get().function.ids.vendor
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn device_id(&self) -> u16 {
        self.view.get().function.ids.device
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn subsystem_vendor_id(&self) -> u16 {
        self.view.get().function.ids.subsystem_vendor
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn subsystem_device_id(&self) -> u16 {
        self.view.get().function.ids.subsystem_device
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn class(&self) -> u32 {
        self.view.get().function.class
    }

    #[zbus(property)]
    fn name(&self) -> String {
        self.view.get().function.name.clone()
    }

    #[zbus(property)]
    fn role(&self) -> String {
        self.view.get().function.role.as_str().into()
    }

    #[zbus(property)]
    fn driver(&self) -> String {
        self.view.get().driver()
    }

    #[zbus(property)]
    fn driver_override(&self) -> String {
        self.view.get().driver_override()
    }

    #[zbus(property)]
    fn variant_drivers(&self) -> Vec<String> {
        self.view.get().variant_drivers()
    }

    #[zbus(property)]
    fn iommu_group(&self) -> i32 {
        self.view.get().iommu_group()
    }

    #[zbus(property)]
    fn group_members(&self) -> Vec<String> {
        self.view.get().group_members()
    }

    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.view.get().numa_node()
    }

    #[zbus(property)]
    fn reset_methods(&self) -> Vec<String> {
        self.view.get().function.reset_methods.clone()
    }

    #[zbus(property)]
    fn netdevs(&self) -> Vec<(String, String)> {
        self.view.get().netdevs()
    }

    #[zbus(property)]
    fn host_critical(&self) -> Vec<String> {
        self.view.get().function.host_critical.clone()
    }

    #[zbus(property)]
    fn verdict(&self) -> String {
        self.view.get().verdict.into()
    }

    #[zbus(property)]
    fn claim(&self) -> OwnedObjectPath {
        self.view.get().claim()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.view.get().function.state.as_str().into()
    }
}

/// What a physical function has beyond any other, on the bus.
#[derive(Debug)]
pub struct PhysicalObject {
    engine: Handle,
    view: Arc<Slot<PhysicalView>>,
}

impl PhysicalObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<PhysicalView>>) -> Self {
        Self { engine, view }
    }
}

#[zbus::interface(name = "org.mdevd1.PhysicalFunction", introspection_docs = false)]
impl PhysicalObject {
    #[zbus(out_args("changed"))]
    async fn set_num_vfs(
        &self,
        count: u32,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let address = self.view.get().function.address;
        let details = [("device", address.to_string()), ("count", count.to_string())];
        let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        authorize(connection, &header, None, &details).await?;
        let mut options = Options::new(options);
        let autoprobe = options.take("drivers-autoprobe", "a boolean")?;
        let timeout: Option<u32> = options.take("timeout-ms", "a number (u)")?;
        options.finish()?;
        let timeout = timeout.map(|ms| Duration::from_millis(ms.into()));
        self.engine
            .call(move |engine| async move { engine.set_num_vfs(address, count, autoprobe, timeout).await })
            .await
    }

    #[zbus(property)]
    fn total_vfs(&self) -> u32 {
        self.view.get().total_vfs()
    }

    #[zbus(property)]
    fn num_vfs(&self) -> u32 {
        self.view.get().num_vfs()
    }

    #[zbus(property)]
    fn vfs(&self) -> Vec<OwnedObjectPath> {
        self.view.get().vfs()
    }

    #[zbus(property)]
    fn drivers_autoprobe(&self) -> bool {
        self.view.get().drivers_autoprobe()
    }

    #[zbus(property)]
    fn eswitch_mode(&self) -> String {
        self.view.get().eswitch_mode()
    }
}

/// What a virtual function has beyond any other, on the bus.
#[derive(Debug)]
pub struct VirtualObject {
    engine: Handle,
    view: Arc<Slot<VirtualView>>,
}

impl VirtualObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<VirtualView>>) -> Self {
        Self { engine, view }
    }
}

#[zbus::interface(name = "org.mdevd1.VirtualFunction", introspection_docs = false)]
impl VirtualObject {
    #[zbus(out_args("changed"))]
    async fn configure(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let address = self.view.get().function.address;
        authorize(connection, &header, None, &[("device", &address.to_string())]).await?;
        let mut options = Options::new(options);
        let mac: Option<String> = options.take("mac", "a string")?;
        let vlan: Option<u32> = options.take("vlan", "a number (u)")?;
        let qos: Option<u32> = options.take("qos", "a number (u)")?;
        let link_state: Option<String> = options.take("link-state", "a string")?;
        let settings = VfSettings {
            mac: mac.map(|mac| mac.parse::<MacAddress>()).transpose()?,
            vlan: vlan.map(|vlan| small(vlan, 4094, "vlan")).transpose()?,
            qos: qos.map(|qos| small(qos, 7, "qos")).transpose()?,
            trust: options.take("trust", "a boolean")?,
            spoof_check: options.take("spoof-check", "a boolean")?,
            min_rate: options.take("min-rate", "a number (u)")?,
            max_rate: options.take("max-rate", "a number (u)")?,
            link_state: link_state.map(|state| state.parse::<LinkState>()).transpose().map_err(Error::invalid)?,
        };
        options.finish()?;
        if let Some(mac) = settings.mac.filter(|mac| mac.is_multicast()) {
            return Err(Error::invalid(format!("mac: {mac} is not an address that one interface can have")));
        }
        self.engine.call(move |engine| async move { engine.configure_vf(address, settings).await }).await
    }

    #[zbus(out_args("changed"))]
    async fn set_vgpu_type(
        &self,
        r#type: u32,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let address = self.view.get().function.address;
        let details = [("device", address.to_string()), ("type", r#type.to_string())];
        let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        authorize(connection, &header, None, &details).await?;
        no_options(options)?;
        let vgpu_type = std::num::NonZeroU32::new(r#type).map(VgpuTypeId);
        self.engine.call(move |engine| async move { engine.set_vgpu_type(address, vgpu_type).await }).await
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn pf(&self) -> OwnedObjectPath {
        self.view.get().pf()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn vf_index(&self) -> u32 {
        self.view.get().index
    }

    #[zbus(property)]
    fn mac(&self) -> String {
        self.view.get().mac()
    }

    #[zbus(property)]
    fn vlan(&self) -> u16 {
        self.view.get().settings.vlan.unwrap_or_default()
    }

    #[zbus(property)]
    fn trust(&self) -> bool {
        self.view.get().settings.trust.unwrap_or_default()
    }

    #[zbus(property)]
    fn spoof_check(&self) -> bool {
        self.view.get().settings.spoof_check.unwrap_or_default()
    }

    #[zbus(property)]
    fn min_rate(&self) -> u32 {
        self.view.get().settings.min_rate.unwrap_or_default()
    }

    #[zbus(property)]
    fn max_rate(&self) -> u32 {
        self.view.get().settings.max_rate.unwrap_or_default()
    }

    #[zbus(property)]
    fn link_state(&self) -> String {
        self.view.get().link_state()
    }

    #[zbus(property)]
    fn vgpu_type(&self) -> u32 {
        self.view.get().vgpu_type()
    }

    #[zbus(property)]
    fn creatable_vgpu_types(&self) -> Vec<(u32, String)> {
        self.view.get().creatable_vgpu_types()
    }

    #[zbus(property)]
    fn gpu_instance(&self) -> i32 {
        self.view.get().gpu_instance()
    }
}

fn small<T: TryFrom<u32>>(value: u32, most: u32, key: &str) -> Result<T> {
    let small = Some(value).filter(|value| *value <= most).and_then(|value| T::try_from(value).ok());
    small.ok_or_else(|| Error::invalid(format!("{key}: {value} is above {most}")))
}
