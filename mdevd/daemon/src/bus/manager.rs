//! `org.mdevd1.Manager`, on the root object: asking for devices, and what belongs to no single device.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::claim::ProcessRef;
use mdevd_core::names::{MdevTypeId, MdevUuid, ParentName, PciAddress, RunId, parse_uuid, printable};
use mdevd_core::request::{Request, Wanted, WantedFunction, WantedVgpu};
use mdevd_dbus::{Dict, path};
use zbus::message::Header;
use zbus::{Connection, ObjectPath, OwnedObjectPath};

use super::no_options;
use crate::auth::authorize;
use crate::engine::Handle;
use crate::engine::domain::DomainCall;
use crate::engine::manual::CreateCall;
use crate::error::Result;
use crate::options::Options;
use crate::views::{ManagerView, Slot, dict, grant_dict};

type Texts = Vec<HashMap<String, String>>;

/// The root object.
#[derive(Debug)]
pub struct ManagerObject {
    engine: Handle,
    view: Arc<Slot<ManagerView>>,
}

impl ManagerObject {
    /// The object that shows this view.
    pub fn new(engine: Handle, view: Arc<Slot<ManagerView>>) -> Self {
        Self { engine, view }
    }
}

/// Keys and values in an order that does not depend on the hash.
fn pairs(texts: Texts) -> Vec<Vec<(String, String)>> {
    texts
        .into_iter()
        .map(|text| {
            let mut pairs: Vec<_> = text.into_iter().collect();
            pairs.sort();
            pairs
        })
        .collect()
}

/// What polkit is told of a call, by which its rules can decide.
type Details = BTreeMap<&'static str, String>;

fn details_of(request: &Request) -> Details {
    let mut details = Details::from([("request", request.wanted.to_string())]);
    let which = match &request.wanted {
        Wanted::Pool(pool) => Some(("pool", printable(pool))),
        Wanted::Type { mdev_type, .. } => Some(("type", mdev_type.to_string())),
        Wanted::Existing => request.uuid.map(|uuid| ("device", uuid.to_string())),
        Wanted::Function(WantedFunction::Address(address)) => Some(("device", address.to_string())),
        Wanted::Function(WantedFunction::Card(card)) => Some(("device", card.to_string())),
        Wanted::Function(WantedFunction::Any { .. }) => None,
    };
    details.extend(which);
    // Not `type`: a rule that opens an mdev type must not open a function.
    details.extend(request.function.vgpu_type.as_ref().map(|vgpu| match vgpu {
        WantedVgpu::Id(id) => ("vgpu-type", id.to_string()),
        WantedVgpu::Name(name) => ("vgpu-type", printable(name)),
    }));
    details
}

fn take_process(options: &mut Options) -> Result<Option<ProcessRef>> {
    let pid: Option<u32> = options.take("pid", "a number (u)")?;
    let start_time: Option<u64> = options.take("start-time", "a number (t)")?;
    match (pid, start_time) {
        (Some(pid), Some(start_time)) => Ok(Some(ProcessRef { pid, start_time })),
        (None, None) => Ok(None),
        _ => Err(crate::error::Error::invalid("the options pid and start-time go together")),
    }
}

#[zbus::interface(name = "org.mdevd1.Manager", introspection_docs = false)]
impl ManagerObject {
    #[zbus(out_args("mdev", "changed"))]
    async fn create_mdev(
        &self,
        r#type: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(OwnedObjectPath, bool)> {
        // First, so that nobody is asked to decide over nonsense.
        let mdev_type = r#type.parse::<MdevTypeId>()?;
        let uid = authorize(connection, &header, None, &[("type", mdev_type.as_str())]).await?;
        let mut options = Options::new(options);
        let parent: Option<String> = options.take("parent", "a string")?;
        let uuid: Option<String> = options.take("uuid", "a string")?;
        let attributes = options.take_pairs("attrs")?;
        let label: Option<String> = options.take("label", "a string")?;
        options.finish()?;
        let call = CreateCall {
            mdev_type,
            parent: parent.map(|name| name.parse::<ParentName>()).transpose()?,
            uuid: uuid.map(|uuid| uuid.parse::<MdevUuid>()).transpose()?,
            attributes,
            label: label.unwrap_or_default(),
            uid,
        };
        let (uuid, changed) = self.engine.call(move |engine| async move { engine.create_mdev(call).await }).await?;
        Ok((path::mdev(uuid.0), changed))
    }

    #[zbus(out_args("grants"))]
    #[allow(clippy::too_many_arguments)]
    async fn prepare_domain(
        &self,
        uuid: String,
        name: String,
        requests: Texts,
        hostdevs: Texts,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Dict>> {
        authorize(connection, &header, None, &[]).await?;
        let mut options = Options::new(options);
        let timeout: Option<u32> = options.take("timeout-ms", "a number (u)")?;
        let process = take_process(&mut options)?;
        options.finish()?;
        let call = DomainCall {
            uuid: parse_uuid(&uuid)?,
            name,
            requests: pairs(requests),
            hostdevs: pairs(hostdevs),
            process,
        };
        let timeout = timeout.map(|ms| Duration::from_millis(ms.into()));
        let claim = self.engine.call(move |engine| async move { engine.prepare_domain(call, timeout).await }).await?;
        Ok(claim.iter().flat_map(|claim| claim.grants.iter().map(|grant| grant_dict(claim, grant))).collect())
    }

    #[zbus(out_args("changed"))]
    async fn release_domain(
        &self,
        uuid: String,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        authorize(connection, &header, None, &[]).await?;
        let mut options = Options::new(options);
        let reason: Option<String> = options.take("reason", "a string")?;
        let run: Option<String> = options.take("run", "a string")?;
        options.finish()?;
        let uuid = parse_uuid(&uuid)?;
        let run = run.filter(|run| !run.is_empty()).map(|run| run.parse::<RunId>()).transpose()?;
        let reason = reason.unwrap_or_else(|| "-".into());
        self.engine.call(move |engine| async move { engine.release_domain(&uuid, run, &reason).await }).await
    }

    #[zbus(out_args("changed"))]
    #[allow(clippy::too_many_arguments)]
    async fn adopt_domain(
        &self,
        uuid: String,
        name: String,
        requests: Texts,
        hostdevs: Texts,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<bool> {
        authorize(connection, &header, None, &[]).await?;
        let mut options = Options::new(options);
        let process = take_process(&mut options)?;
        options.finish()?;
        let call = DomainCall {
            uuid: parse_uuid(&uuid)?,
            name,
            requests: pairs(requests),
            hostdevs: pairs(hostdevs),
            process,
        };
        self.engine.call(move |engine| async move { engine.adopt_domain(call).await }).await
    }

    #[zbus(out_args("claim"))]
    async fn acquire(
        &self,
        requests: Texts,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath> {
        let requests = pairs(requests);
        // One check for each distinct thing, so that a rule by type or device cannot be got round by asking for two.
        let mut asked: BTreeSet<Details> =
            Request::parse_all(requests.iter().cloned())?.iter().map(details_of).collect();
        if asked.is_empty() {
            asked.insert(Details::from([("request", "nothing".into())]));
        }
        let mut uid = 0;
        for details in &asked {
            let details: Vec<(&str, &str)> = details.iter().map(|(key, value)| (*key, value.as_str())).collect();
            uid = authorize(connection, &header, None, &details).await?;
        }
        let mut options = Options::new(options);
        let label: Option<String> = options.take("label", "a string")?;
        options.finish()?;
        let label = label.unwrap_or_default();
        let claim = self.engine.call(move |engine| async move { engine.acquire(requests, label, uid).await }).await?;
        Ok(path::claim(claim.id))
    }

    #[zbus(out_args("candidates"))]
    async fn explain(
        &self,
        requests: Texts,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Dict>> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        let requests = pairs(requests);
        let candidates = self.engine.call(move |engine| async move { engine.explain(requests) }).await?;
        let one = |c: &crate::engine::ask::Explained| {
            dict([
                ("request", c.request.as_str().into()),
                ("device", c.device.as_str().into()),
                ("parent", c.parent.as_str().into()),
                ("verdict", c.verdict.into()),
                ("reason", c.reason.into()),
                ("message", c.message.as_str().into()),
            ])
        };
        Ok(candidates.iter().map(one).collect())
    }

    #[zbus(out_args("findings"))]
    async fn check(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Dict>> {
        authorize(connection, &header, None, &[]).await?;
        let mut options = Options::new(options);
        let device: Option<String> = options.take("device", "a string")?;
        options.finish()?;
        let device = device.map(|address| address.parse::<PciAddress>()).transpose()?;
        let findings = self.engine.call(move |engine| async move { engine.check(device).await }).await?;
        let one = |finding: &mdevd_core::check::Finding| {
            dict([
                ("subject", finding.subject.as_str().into()),
                ("verdict", finding.verdict.as_str().into()),
                ("reason", finding.reason.into()),
                ("message", finding.message.as_str().into()),
                ("fix", finding.fix.as_str().into()),
            ])
        };
        Ok(findings.iter().map(one).collect())
    }

    #[zbus(out_args("objects"))]
    async fn find(
        &self,
        what: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<OwnedObjectPath>> {
        authorize(connection, &header, None, &[]).await?;
        self.engine.call(move |engine| async move { Ok(engine.find(&what)) }).await
    }

    async fn rescan(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        let rescan = |engine: std::rc::Rc<crate::engine::Engine>| async move {
            engine.rescan().await;
            engine.publish().await;
            Ok(())
        };
        self.engine.call(rescan).await
    }

    async fn reload(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<()> {
        authorize(connection, &header, None, &[]).await?;
        no_options(options)?;
        self.engine.call(|engine| async move { engine.reload().await }).await
    }

    #[zbus(out_args("actions"))]
    async fn reconcile(
        &self,
        options: Dict,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Dict>> {
        authorize(connection, &header, None, &[]).await?;
        let mut options = Options::new(options);
        let dry_run = options.take("dry-run", "a boolean")?.unwrap_or(false);
        options.finish()?;
        let done = self.engine.call(move |engine| async move { Ok(engine.reconcile(dry_run).await) }).await?;
        let one = |done: &crate::engine::look::Done| {
            dict([
                ("claim", ObjectPath::from(path::claim(done.claim)).into()),
                ("device", "".into()),
                ("action", done.action.into()),
                ("reason", done.reason.as_str().into()),
            ])
        };
        Ok(done.iter().map(one).collect())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    #[zbus(property)]
    fn libvirt_version(&self) -> String {
        self.view.get().libvirt.clone()
    }

    #[zbus(property)]
    fn problems(&self) -> Vec<Dict> {
        self.view.get().problems()
    }
}
