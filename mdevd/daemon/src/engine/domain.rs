//! What libvirt's hook says of a domain: it is about to start, it has ended, it still runs after libvirt was restarted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::choose::function::grant_function;
use mdevd_core::choose::{Context, take_existing};
use mdevd_core::claim::{Claim, ClaimState, Grant, Owner, ProcessRef, Undo};
use mdevd_core::holders::Holders;
use mdevd_core::hostdev::Hostdev;
use mdevd_core::names::{DeviceKey, MdevUuid, RunId, printable};
use mdevd_core::plan::Plan;
use mdevd_core::reconcile::Known;
use mdevd_core::request::{
    FunctionNeed, MdevNeed, Need, Request, Wanted, WantedFunction, XmlOptions, bind, request_to_paste, uncovered,
};
use mdevd_dbus::ErrorName;
use mdevd_host::process::Alive;
use tokio::time::Instant;
use uuid::Uuid;

use super::prepare::Draft;
use super::release::ANSWER_WITHIN;
use super::{Engine, unix_now};
use crate::error::{Error, Result};

/// How long a caller waits when it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(8000);
/// The longest that is believed.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);
/// What is kept back of the caller's time for the answer's way.
const MARGIN: Duration = Duration::from_millis(250);

/// A domain as the hook describes it.
#[derive(Debug)]
pub struct DomainCall {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its requests, keys and values.
    pub requests: Vec<Vec<(String, String)>>,
    /// Its hostdevs, keys and values.
    pub hostdevs: Vec<Vec<(String, String)>>,
    /// The libvirt daemon that runs it.
    pub process: Option<ProcessRef>,
}

impl DomainCall {
    fn parse(&self) -> Result<(Vec<Need>, Vec<Hostdev>)> {
        let requests = Request::parse_all(self.requests.iter().cloned())?;
        let hostdevs: Vec<Hostdev> = self
            .hostdevs
            .iter()
            .map(|pairs| Hostdev::from_pairs(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
            .collect::<std::result::Result<_, _>>()?;
        let needs = bind(self.uuid, &requests, &hostdevs)?;
        Ok((needs, hostdevs))
    }
}

impl Engine {
    /// Gives a domain that is about to start what it requests, or leaves nothing behind. `None` when it requests nothing (any more):
    /// then this only ends an earlier run.
    pub async fn prepare_domain(
        self: &Rc<Self>,
        call: DomainCall,
        timeout: Option<Duration>,
    ) -> Result<Option<Arc<Claim>>> {
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT).min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout.saturating_sub(MARGIN);
        let (mut needs, hostdevs) = call.parse()?;
        self.caller_lives(&call).await?;
        self.take_released_marks().await;
        self.end_earlier_run(&call, deadline).await?;
        // That may have taken long enough for the libvirt daemon to be restarted and to ask again.
        self.caller_lives(&call).await?;
        if needs.is_empty() {
            return Ok(None);
        }
        needs.extend(self.needs_without_request(&needs, &hostdevs).await?);
        let draft = Draft {
            id: call.uuid,
            owner: Owner::Domain { uuid: call.uuid, name: call.name },
            owner_uid: 0,
            process: call.process,
            needs,
            attributes: Vec::new(),
            force: false,
        };
        self.make_claim(draft, deadline).await.map(Some)
    }

    /// An orphaned hook speaks for a start that no longer is.
    async fn caller_lives(self: &Rc<Self>, call: &DomainCall) -> Result<()> {
        let Some(process) = call.process else { return Ok(()) };
        match self.process_alive(process).await {
            Known::Known(false) => {
                let message =
                    format!("the libvirt daemon that starts '{}' (pid {}) is gone", printable(&call.name), process.pid);
                Err(Error::new(ErrorName::Unavailable, message))
            }
            Known::Known(true) | Known::Unknown(_) => Ok(()),
        }
    }

    /// Whether a process is still the one that was meant.
    pub async fn process_alive(&self, process: ProcessRef) -> Known<bool> {
        let roots = self.roots.clone();
        match self.scanner.run(move || mdevd_host::process::alive(&roots, process.pid, Some(process.start_time))).await
        {
            Ok(Alive::Known(alive)) => Known::Known(alive),
            Ok(Alive::Unknown(why)) => Known::Unknown(why),
            Err(_) => Known::Unknown("reading /proc does not come back".into()),
        }
    }

    /// libvirt starts a domain only when it is off, so a claim that is still there is of a run that has ended: its release is waited
    /// for, or made up for.
    async fn end_earlier_run(self: &Rc<Self>, call: &DomainCall, deadline: Instant) -> Result<()> {
        if self.claim(&call.uuid).is_some_and(|claim| claim.state == ClaimState::Failed) {
            // The next try may be further away than this caller's patience lasts.
            self.retry.notify_waiters();
        }
        loop {
            let change = self.changed.notified();
            let Some(claim) = self.claim(&call.uuid) else { return Ok(()) };
            if claim.state == ClaimState::Ready {
                let keys: Vec<DeviceKey> = claim.grants.iter().map(Grant::key).collect();
                for (key, holders) in self.holders(&keys).await {
                    if !holders.none() {
                        let message = format!(
                            "{key} of an earlier run of '{}' is still held by {holders}",
                            printable(&call.name)
                        );
                        let name = match holders {
                            Holders::Known(_) => ErrorName::InUse,
                            Holders::Unknown(_) => ErrorName::Unavailable,
                        };
                        return Err(Error::new(name, message));
                    }
                }
                match self.domain_runs(&call.uuid).await {
                    Known::Known(false) => {}
                    Known::Known(true) => {
                        return Err(Error::new(
                            ErrorName::InUse,
                            format!("libvirt says that '{}' is running", printable(&call.name)),
                        ));
                    }
                    Known::Unknown(why) => {
                        let message = format!(
                            "'{}' has a claim of an earlier run, and whether that runs is not known: {why}",
                            printable(&call.name)
                        );
                        return Err(Error::new(ErrorName::Unavailable, message));
                    }
                }
                // Its libvirt daemon may have ended during the looks, and the next have begun the run whose claim this is.
                self.caller_lives(call).await?;
                self.release(&call.uuid, Some(claim.run), "a new run begins", Instant::now()).await?;
                continue;
            }
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                let doing = match claim.state {
                    ClaimState::Planned | ClaimState::Preparing => "its devices are being prepared by another call",
                    _ => "the devices of its last run are still being given back",
                };
                let problem = if claim.problem.is_empty() { String::new() } else { format!(" ({})", claim.problem) };
                return Err(Error::new(
                    ErrorName::Busy,
                    format!("'{}': {doing}{problem}; try again", printable(&call.name)),
                ));
            }
        }
    }

    /// The mdev hostdevs that no request covers: each must exist, and nobody else may have been promised it.
    async fn needs_without_request(self: &Rc<Self>, needs: &[Need], hostdevs: &[Hostdev]) -> Result<Vec<Need>> {
        let left = uncovered(needs, hostdevs);
        if left.is_empty() {
            return Ok(Vec::new());
        }
        self.refresh_mdevs(&left).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
        let state = self.state.borrow();
        let mut more = Vec::new();
        for uuid in left {
            if state.inventory.mdev(&uuid).is_none() {
                let message = format!(
                    "the domain's <hostdev> {uuid} has no request and its device does not exist; make the device, or add to the requests:\n{}",
                    request_to_paste(&uuid, needs)
                );
                return Err(Error::invalid(message));
            }
            let name = uuid.to_string();
            more.push(Need::Mdev(MdevNeed {
                name,
                uuid,
                wanted: Wanted::Existing,
                numa_node: None,
                model: None,
                xml: XmlOptions::default(),
            }));
        }
        Ok(more)
    }

    /// A run of a domain has ended. False when that changes nothing.
    pub async fn release_domain(self: &Rc<Self>, uuid: &Uuid, run: Option<RunId>, reason: &str) -> Result<bool> {
        let why = format!("the domain ended: {}", printable(reason));
        self.release(uuid, run, &why, Instant::now() + ANSWER_WITHIN).await
    }

    /// A domain runs, and its libvirt daemon was restarted: renews the process in its claim, or makes a claim on the devices it has.
    pub async fn adopt_domain(self: &Rc<Self>, call: DomainCall) -> Result<bool> {
        let changed = match self.claim(&call.uuid) {
            Some(claim) if claim.process == call.process => false,
            Some(_) => {
                self.update_claim(&call.uuid, |claim| claim.process = call.process)?;
                true
            }
            None => self.adopt_unclaimed(&call).await?,
        };
        self.publish().await;
        Ok(changed)
    }

    /// Makes a claim for a domain that runs without one: mdevd was installed, or lost its claims, while it ran. A device under the
    /// derived UUID can only have been made for this request, and is removed when the domain ends; any other may be somebody's and
    /// stays.
    pub async fn adopt_unclaimed(self: &Rc<Self>, call: &DomainCall) -> Result<bool> {
        let (needs, _) = call.parse()?;
        let keys: Vec<DeviceKey> = needs.iter().filter_map(key_of).collect();
        self.refresh(&keys).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
        let mut grants = Vec::new();
        {
            let state = self.state.borrow();
            // Its next run may have begun while the host was looked at.
            if state.claims.contains_key(&call.uuid) {
                return Ok(false);
            }
            let claims: Vec<&Claim> = state.claims.values().map(|claim| &**claim).collect();
            let context = state.context(&claims, &[]);
            for need in &needs {
                match need {
                    Need::Mdev(need) => {
                        // What the request says matters at the start; a device that a running VM has is its own as it is.
                        let has = MdevNeed { wanted: Wanted::Existing, numa_node: None, model: None, ..need.clone() };
                        if let Some(mut grant) = take_existing(&context, &has, true)? {
                            // What it borrows of a claim made by hand goes with that one.
                            let is_lent = claims.iter().any(|claim| claim.grant(grant.key()).is_some());
                            if need.uuid == MdevUuid::derived(call.uuid, &need.name) && !is_lent {
                                grant.undo = Undo::Remove;
                            }
                            grants.push(grant);
                        }
                    }
                    Need::Function(need) => grants.extend(adopt_function(&context, need)?),
                }
            }
        }
        if grants.is_empty() {
            return Ok(false);
        }
        let claim = Claim {
            id: call.uuid,
            owner: Owner::Domain { uuid: call.uuid, name: call.name.clone() },
            owner_uid: 0,
            run: RunId(Uuid::new_v4()),
            state: ClaimState::Ready,
            created: unix_now(),
            process: call.process,
            seen: true,
            plan: Plan { done: 0, steps: Vec::new() },
            grants,
            problem: String::new(),
        };
        let devices: Vec<String> = claim.grants.iter().map(|grant| grant.key().to_string()).collect();
        tracing::info!("adopted the running {} with {}", claim.owner, devices.join(", "));
        self.save_claim(&claim)?;
        self.state.borrow_mut().claims.insert(claim.id, Arc::new(claim));
        self.changed.notify_waiters();
        Ok(true)
    }
}

/// The device that a domain's need names.
fn key_of(need: &Need) -> Option<DeviceKey> {
    match need {
        Need::Mdev(need) => Some(DeviceKey::Mdev(need.uuid)),
        Need::Function(need) => match need.wanted {
            WantedFunction::Address(address) => Some(DeviceKey::Pci(address)),
            WantedFunction::Card(_) | WantedFunction::Any { .. } => None,
        },
    }
}

/// The promise of a function to a domain that has it already. What it was before is not known, so nothing is put back but by libvirt.
fn adopt_function(context: &Context<'_>, need: &FunctionNeed) -> Result<Option<Grant>> {
    let WantedFunction::Address(address) = need.wanted else { return Ok(None) };
    let key = DeviceKey::Pci(address);
    if let Some(claim) = context.claims.iter().find(|claim| claim.grant(key).is_some()) {
        return Err(Error::new(ErrorName::InUse, format!("{address} is promised to {}", claim.owner)));
    }
    let Some(function) = context.inventory.function(&address) else { return Ok(None) };
    let mut grant = grant_function(context.inventory, need, &need.name, function);
    grant.undo = Undo::Keep;
    Ok(Some(grant))
}
