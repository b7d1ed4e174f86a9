//! `org.mdevd1.Claim`: devices promised to one owner.

use std::sync::Arc;

use mdevd_dbus::Dict;
use zbus::Connection;
use zbus::message::Header;

use super::no_options;
use crate::auth::authorize;
use crate::engine::Handle;
use crate::error::Result;
use crate::options::Options;
use crate::views::{ClaimView, Slot, grant_xml};

/// One claim on the bus.
#[derive(Debug)]
pub struct ClaimObject {
    engine: Handle,
    view: Arc<Slot<ClaimView>>,
}

impl ClaimObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<ClaimView>>) -> Self {
        Self { engine, view }
    }
}

#[zbus::interface(name = "org.mdevd1.Claim", introspection_docs = false)]
impl ClaimObject {
    #[zbus(out_args("changed"))]
    async fn release(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        let view = self.view.get();
        let id = view.claim.id;
        let details = [("claim", id.to_string()), ("owner", view.owner_name())];
        let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
        authorize(connection, &header, Some(view.claim.owner_uid), &details).await?;
        let mut options = Options::new(options);
        let force = options.take("force", "a boolean")?.unwrap_or(false);
        options.finish()?;
        self.engine.call(move |engine| async move { engine.release_claim(&id, force).await }).await
    }

    #[zbus(out_args("xml"))]
    async fn hostdev_xml(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<String> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        Ok(self.view.get().claim.grants.iter().map(grant_xml).collect())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.view.get().claim.id.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_kind(&self) -> String {
        self.view.get().claim.owner.kind().into()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_uuid(&self) -> String {
        self.view.get().owner_uuid()
    }

    #[zbus(property)]
    fn owner_name(&self) -> String {
        self.view.get().owner_name()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn owner_uid(&self) -> u32 {
        self.view.get().claim.owner_uid
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.view.get().claim.state.as_str().into()
    }

    #[zbus(property)]
    fn step(&self) -> String {
        self.view.get().claim.step()
    }

    #[zbus(property)]
    fn grants(&self) -> Vec<Dict> {
        self.view.get().grants()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn created(&self) -> u64 {
        self.view.get().claim.created
    }

    #[zbus(property)]
    fn run(&self) -> String {
        self.view.get().run()
    }
}
