//! Reconcile: looks at domains, holders and the libvirt daemon, has core decide about each claim, and carries it out.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::claim::{Claim, ClaimState, Grant, Owner};
use mdevd_core::names::{DeviceKey, RunId, printable};
use mdevd_core::reconcile::{Action, Known, Look, decide, to_adopt};
use mdevd_host::domains::DomainStatusView;
use mdevd_host::process::Alive;
use tokio::time::Instant;
use uuid::Uuid;

use super::Engine;
use super::domain::DomainCall;

/// How often claims are compared with the host when nothing asks for it.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// One line of what reconcile did or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The claim; for an adoption the id that it gets.
    pub claim: Uuid,
    /// `keep`, `look-again`, `free`, `retry` or `adopt`.
    pub action: &'static str,
    /// Why.
    pub reason: String,
}

impl Engine {
    /// Whether libvirt has a status file of this domain with a live QEMU.
    pub async fn domain_runs(&self, uuid: &Uuid) -> Known<bool> {
        runs(&self.domains().await, uuid)
    }

    /// The domains that have a status file, or why it is not known which.
    async fn domains(&self) -> Result<Vec<DomainStatusView>, String> {
        let roots = self.roots.clone();
        let read = self.scanner.run(move || mdevd_host::domains::domains(&roots)).await;
        read.unwrap_or_else(|_| Err("reading libvirt's status files does not come back".into()))
    }

    /// Looks every now and then, and when libvirt's status files have changed. One look at a time: each reads all of `/proc`, and what
    /// changes meanwhile is one more look.
    pub async fn keep_looking(self: Rc<Self>) {
        loop {
            let _ = tokio::time::timeout(LOOK_EVERY, self.look_wanted.notified()).await;
            self.reconcile(false).await;
        }
    }

    /// Compares claims, devices and domains, and frees, retries or adopts what has to be.
    pub async fn reconcile(self: &Rc<Self>, dry_run: bool) -> Vec<Done> {
        let claims: Vec<Arc<Claim>> = self.state.borrow().claims.values().cloned().collect();
        let domains = self.domains().await;
        let of_domains = claims
            .iter()
            .filter(|claim| claim.state == ClaimState::Ready && matches!(claim.owner, Owner::Domain { .. }));
        let devices: Vec<DeviceKey> = of_domains.flat_map(|claim| claim.grants.iter().map(Grant::key)).collect();
        let holders: BTreeMap<_, _> =
            if devices.is_empty() { BTreeMap::new() } else { self.holders(&devices).await.into_iter().collect() };
        let (mut done, mut retry) = (Vec::new(), false);
        for claim in &claims {
            let libvirt_alive = match claim.process {
                Some(process) => self.process_alive(process).await,
                None => Known::Known(false),
            };
            let own = claim.grants.iter().map(Grant::key);
            let look = Look {
                running: runs(&domains, &claim.id),
                holders: own.filter_map(|key| Some((key, holders.get(&key)?.clone()))).collect(),
                libvirt_alive,
                absent_since: self.state.borrow().absent_since.get(&claim.id).copied(),
                now: self.uptime(),
            };
            // The claim may have changed during the look; what was seen is then of no use.
            if self.claim(&claim.id).is_none_or(|now| !Arc::ptr_eq(&now, claim)) {
                continue;
            }
            let action = decide(claim, &self.state.borrow().inventory, &look);
            done.push(Done { claim: claim.id, action: action.as_str(), reason: action.reason().to_string() });
            if !dry_run {
                self.act(claim, &action).await;
                retry |= matches!(action, Action::Retry(_));
            }
        }
        // Where a try has failed already, the next does not wait for its time.
        if retry {
            self.retry.notify_waiters();
        }
        if let Ok(domains) = &domains {
            done.extend(self.adopt_running(domains, dry_run).await);
        }
        if !dry_run {
            self.publish().await;
        }
        done
    }

    async fn act(self: &Rc<Self>, claim: &Claim, action: &Action) {
        let note = note_of(&claim.id);
        {
            let mut state = self.state.borrow_mut();
            state.notes.remove(&note);
            match action {
                Action::LookAgain(_) => {
                    let now = self.uptime();
                    state.absent_since.entry(claim.id).or_insert(now);
                }
                Action::KeepUnknown(why) => {
                    state.absent_since.remove(&claim.id);
                    state.notes.insert(note, format!("{}: {why}", claim.owner));
                }
                _ => {
                    state.absent_since.remove(&claim.id);
                }
            }
        }
        match action {
            Action::Seen(_) if !claim.seen => {
                if let Err(error) = self.update_claim(&claim.id, |claim| claim.seen = true) {
                    tracing::error!("{error}");
                }
            }
            Action::Free(why) => {
                // The answer's errors are logged and listed where they happen.
                let _ = self.release(&claim.id, Some(claim.run), why, Instant::now()).await;
            }
            Action::Retry(_) => self.finish_behind(claim.id),
            _ => {}
        }
    }

    async fn adopt_running(self: &Rc<Self>, domains: &[DomainStatusView], dry_run: bool) -> Vec<Done> {
        let running = domains
            .iter()
            .filter(|d| d.alive == Alive::Known(true))
            .map(|d| (&d.status.domain.uuid, !d.status.domain.requests.is_empty()));
        let adopt = to_adopt(running, |uuid| self.state.borrow().claims.contains_key(uuid));
        let mut done = Vec::new();
        if !dry_run {
            // What could not be adopted is tried again, or does not run any more.
            self.state.borrow_mut().notes.retain(|subject, _| !subject.starts_with(RUNNING));
        }
        for domain in domains.iter().map(|view| &view.status.domain).filter(|domain| adopt.contains(&domain.uuid)) {
            let uuid = domain.uuid;
            let call = DomainCall {
                uuid,
                name: domain.name.clone(),
                requests: domain.requests.clone(),
                hostdevs: domain.hostdevs.iter().map(|hostdev| hostdev.to_pairs()).collect(),
                process: None,
            };
            let reason = if dry_run {
                "it runs with requests and has no claim".to_string()
            } else {
                // It may have stopped, and its claim be gone for that, since the files were read.
                if !matches!(self.domain_runs(&uuid).await, Known::Known(true)) {
                    continue;
                }
                match self.adopt_unclaimed(&call).await {
                    Ok(true) => "it runs with requests and had no claim".to_string(),
                    Ok(false) => continue,
                    Err(error) => {
                        let message =
                            format!("the running domain '{}' cannot be adopted: {error}", printable(&call.name));
                        self.state.borrow_mut().notes.insert(format!("{RUNNING}{uuid}"), message.clone());
                        message
                    }
                }
            };
            done.push(Done { claim: uuid, action: "adopt", reason });
        }
        done
    }

    /// Reads the marks that the hook left when nobody answered it, and ends the runs that they speak of.
    pub async fn take_released_marks(self: &Rc<Self>) {
        let (marks, problems) = mdevd_host::files::take_released(&self.roots);
        for problem in problems {
            self.state.borrow_mut().notes.insert(format!("mark {}", problem.path.display()), problem.why);
        }
        for mark in marks {
            let text = |key: &str| mark.content.get(key).and_then(|value| value.as_str());
            let run = text("run").and_then(|run| run.parse::<RunId>().ok());
            let why = format!("the domain ended while mdevd was away: {}", printable(text("reason").unwrap_or("-")));
            // A mark without a run cannot be told from one of a later run: only the facts decide then.
            if let Some(run) = run {
                // Its errors are logged and listed where they happen.
                let _ = self.release(&mark.domain, Some(run), &why, Instant::now()).await;
            }
            if let Err(error) = mdevd_host::files::forget_released(&mark) {
                tracing::error!("the mark of {} cannot be deleted: {error}", mark.domain);
            }
        }
    }
}

/// Before the UUID of a running domain that cannot be adopted, as the subject of a problem.
const RUNNING: &str = "running domain ";

/// The subject under which it is listed that not everything is known about a claim.
pub fn note_of(claim: &Uuid) -> String {
    format!("domain of claim {claim}")
}

/// Whether one of these domains has a live QEMU.
fn runs(domains: &Result<Vec<DomainStatusView>, String>, uuid: &Uuid) -> Known<bool> {
    match domains {
        Err(why) => Known::Unknown(why.clone()),
        Ok(domains) => match domains.iter().find(|view| view.status.domain.uuid == *uuid).map(|view| &view.alive) {
            None => Known::Known(false),
            Some(Alive::Known(alive)) => Known::Known(*alive),
            Some(Alive::Unknown(why)) => Known::Unknown(why.clone()),
        },
    }
}
