//! `org.mdevd1.Mdev`: a mediated device.

use std::sync::Arc;

use mdevd_core::hostdev::{MdevHostdevXml, nodedev_xml};
use mdevd_core::names::DeviceKey;
use mdevd_dbus::{Dict, ErrorName};
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath};

use super::{holders_of, no_options};
use crate::auth::authorize;
use crate::engine::Handle;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::views::{MdevView, Slot};

/// One mediated device on the bus.
#[derive(Debug)]
pub struct MdevObject {
    engine: Handle,
    view: Arc<Slot<MdevView>>,
}

impl MdevObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<MdevView>>) -> Self {
        Self { engine, view }
    }
}

#[zbus::interface(name = "org.mdevd1.Mdev", introspection_docs = false)]
impl MdevObject {
    #[zbus(out_args("holders"))]
    async fn get_holders(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(u32, String)>> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        holders_of(&self.engine, DeviceKey::Mdev(self.view.get().mdev.uuid)).await
    }

    #[zbus(out_args("changed"))]
    async fn remove(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let view = self.view.get();
        let uuid = view.mdev.uuid;
        let details = [("device", uuid.to_string()), ("type", view.mdev_type())];
        let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        authorize(connection, &header, view.claim.map(|(_, uid)| uid), &details).await?;
        let mut options = Options::new(options);
        let force = options.take("force", "a boolean")?.unwrap_or(false);
        options.finish()?;
        let claim = view.claim.map(|(id, _)| id);
        self.engine.call(move |engine| async move { engine.remove_mdev(uuid, claim, force).await }).await
    }

    #[zbus(out_args("xml"))]
    async fn hostdev_xml(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        authorize(connection, &header, None, &[]).await?;
        let mdev = &self.view.get().mdev;
        let mut options = Options::new(options);
        let mut pairs: Vec<(&str, String)> = Vec::new();
        for key in ["display", "ramfb", "alias", "guest-address"] {
            pairs.extend(options.take::<String>(key, "a string")?.map(|text| (key, text)));
        }
        let boot_order = options.take::<u32>("boot-order", "a number (u)")?;
        pairs.extend(boot_order.map(|order| ("boot-order", order.to_string())));
        options.finish()?;
        // What no device could have is the caller's mistake; what only this one cannot have is not.
        let of_api =
            |api| MdevHostdevXml::from_options(mdev.uuid, api, pairs.iter().map(|(key, text)| (*key, text.as_str())));
        of_api("")?;
        let xml = of_api(&mdev.device_api).map_err(|error| Error::new(ErrorName::NotSupported, error.to_string()))?;
        Ok(xml.to_xml())
    }

    #[zbus(out_args("xml"))]
    async fn nodedev_xml(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        let view = self.view.get();
        let mdev = &view.mdev;
        let Some(mdev_type) = &mdev.mdev_type else {
            return Err(Error::new(
                ErrorName::NotSupported,
                format!("the type of {} is not known: it is half removed", mdev.uuid),
            ));
        };
        Ok(nodedev_xml(mdev.uuid, &mdev.parent, mdev_type, &view.attributes))
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn uuid(&self) -> String {
        self.view.get().mdev.uuid.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn parent(&self) -> OwnedObjectPath {
        self.view.get().parent()
    }

    #[zbus(property, name = "Type")]
    fn mdev_type(&self) -> String {
        self.view.get().mdev_type()
    }

    #[zbus(property)]
    fn device_api(&self) -> String {
        self.view.get().mdev.device_api.clone()
    }

    #[zbus(property)]
    fn iommu_group(&self) -> i32 {
        self.view.get().iommu_group()
    }

    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.view.get().numa_node()
    }

    #[zbus(property)]
    fn driver(&self) -> String {
        self.view.get().driver()
    }

    #[zbus(property)]
    fn claim(&self) -> OwnedObjectPath {
        self.view.get().claim()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.view.get().state().into()
    }

    #[zbus(property)]
    fn origin(&self) -> String {
        self.view.get().origin().into()
    }
}
