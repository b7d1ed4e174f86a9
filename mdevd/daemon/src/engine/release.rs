//! Giving back: a claim's devices are removed, last first, each only when nobody holds it and it is what the claim says. What fails
//! stays in the claim and is tried again.

use std::rc::Rc;
use std::time::Duration;

use mdevd_core::claim::{Claim, ClaimState, Grant, Granted, GrantedFunction, GrantedMdev, Owner, Undo};
use mdevd_core::names::{DeviceKey, MdevUuid, RunId};
use mdevd_core::plan::{Plan, Step, restore, settings_unknown};
use mdevd_core::reconcile::Known;
use mdevd_dbus::ErrorName;
use tokio::time::Instant;
use uuid::Uuid;

use super::Engine;
use super::steps::{STEP_DEADLINE, StepError};
use crate::error::{Error, Result};

/// How long a release waits for the removal before it answers and lets it go on behind.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long after a removal that failed the next is tried; doubled each time up to the last.
const RETRY: std::ops::RangeInclusive<u64> = 1..=30;

/// NVIDIA's mdev driver removes the mdev by itself shortly after its VM has ended; removing it first leaves state behind that only a
/// reboot clears. So it gets this long, which is less than the hook of the next start waits.
const SELF_REMOVAL: Duration = Duration::from_secs(6);
/// The driver that does.
const SELF_REMOVING_DRIVER: &str = "nvidia";

/// How long one try at bringing a function back to its driver may take.
const RESTORE_WITHIN: Duration = Duration::from_secs(20);
/// The most steps of such a try: vGPU type or settings; twice unbind, override, probe, override; and one that somebody else made necessary.
const MOST_STEPS: usize = 10;

/// How one device's giving back went.
enum Given {
    /// It is gone, or it is not ours to remove.
    Back,
    /// It is still there, and why.
    Not(String),
}

impl Engine {
    /// Ends a claim: durably `releasing` at once, its devices removed behind; waits for that until `answer_by`. False when there is no
    /// such claim, or it is of another run.
    ///
    /// # Errors
    /// None of its own: a claim that cannot be written is freed all the same and shows up under Problems.
    pub async fn release(
        self: &Rc<Self>,
        id: &Uuid,
        run: Option<RunId>,
        why: &str,
        answer_by: Instant,
    ) -> Result<bool> {
        let Some(claim) = self.claim(id) else { return Ok(false) };
        if run.is_some_and(|run| run != claim.run) {
            tracing::info!(
                "claim {id}: a late word of the run {} changes nothing",
                run.map(|r| r.to_string()).unwrap_or_default()
            );
            return Ok(false);
        }
        if !claim.state.is_ending() {
            tracing::info!("claim {id} of {}: giving back ({why})", claim.owner);
            let working = self.state.borrow().working.contains(id);
            // A prepare that is at work sees the state after its current step, and undoes.
            let written = self.update_claim(id, |claim| {
                if working {
                    // Where there is nothing to do nothing was begun, and a plan without steps says no more later.
                    if claim.plan.steps.is_empty() {
                        claim.grants.retain(|grant| grant.undo == Undo::Keep);
                    }
                    claim.state = ClaimState::Releasing;
                    claim.problem = why.to_string();
                } else {
                    begin_end(claim, why);
                }
            });
            if let Err(error) = written {
                tracing::error!("{error}");
            }
        } else {
            // Where a try has failed already, the next does not wait for its time.
            self.retry.notify_waiters();
        }
        self.finish_behind(*id);
        let quick = self.publish_unless_quick();
        self.wait_tried(id, claim.run, answer_by).await;
        drop(quick);
        self.publish().await;
        Ok(true)
    }

    /// Waits until a run's claim is gone, or a try at that has failed and it goes on behind; at most until `until`.
    async fn wait_tried(&self, id: &Uuid, run: RunId, until: Instant) {
        loop {
            // Asked for before the look, so that a change between the two is not missed.
            let change = self.changed.notified();
            if self.claim(id).is_none_or(|claim| claim.run != run || claim.state == ClaimState::Failed) {
                return;
            }
            if tokio::time::timeout_at(until, change).await.is_err() {
                return;
            }
        }
    }

    /// Undoes a claim whose prepare has failed, and waits for the first try at that until the deadline.
    pub async fn undo(self: &Rc<Self>, id: &Uuid, why: &str, deadline: Instant) {
        let Some(run) = self.claim(id).map(|claim| claim.run) else { return };
        let written = self.update_claim(id, |claim| begin_end(claim, why));
        if let Err(error) = written {
            tracing::error!("{error}");
        }
        self.finish_behind(*id);
        self.wait_tried(id, run, deadline).await;
    }

    /// Starts the removal of a claim's devices, unless somebody is at it already.
    pub fn finish_behind(self: &Rc<Self>, id: Uuid) {
        if !self.state.borrow_mut().working.insert(id) {
            return;
        }
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let mut wait = *RETRY.start();
            loop {
                // Asked for before the try, so that a reason for the next one that comes meanwhile is not missed.
                let retry = engine.retry.notified();
                if engine.give_back(&id).await {
                    break;
                }
                engine.publish().await;
                let _ = tokio::time::timeout(Duration::from_secs(wait), retry).await;
                wait = (wait * 2).min(*RETRY.end());
            }
            engine.state.borrow_mut().working.remove(&id);
            engine.changed.notify_waiters();
            engine.publish().await;
        });
    }

    /// One try at removing what is left of a claim. True when nothing is, and the claim is gone.
    async fn give_back(self: &Rc<Self>, id: &Uuid) -> bool {
        let Some(claim) = self.claim(id) else { return true };
        let mut problems = Vec::new();
        let mut left = Vec::new();
        // For all devices together: the next start waits for no more.
        let self_removal_by = Instant::now() + SELF_REMOVAL;
        // Last first, and on past failures.
        for key in claim.grants.iter().rev().map(Grant::key) {
            // A write that came back late may have said meanwhile that the device is not ours.
            let Some(grant) = self.claim(id).and_then(|now| now.grant(key).cloned()) else { continue };
            match self.give_back_one(&claim, &grant, self_removal_by).await {
                Given::Back => self.mark_given_back(id, &grant),
                Given::Not(why) => {
                    problems.push(why);
                    left.push(key);
                }
            }
        }
        if left.is_empty() {
            tracing::info!("claim {id} of {}: all given back", claim.owner);
            self.drop_claim(id);
            return true;
        }
        let problem = problems.join("; ");
        if claim.state != ClaimState::Failed || claim.problem != problem || claim.grants.len() != left.len() {
            tracing::warn!("claim {id} of {}: {problem}", claim.owner);
            let written = self.update_claim(id, |claim| {
                claim.state = ClaimState::Failed;
                claim.problem = problem;
                claim.grants.retain(|grant| left.contains(&grant.key()));
                claim.plan = Plan::release(&claim.grants);
            });
            if let Err(error) = written {
                tracing::error!("{error}");
            }
        }
        false
    }

    /// The mark of a removal: the claim no longer speaks of the device, so that after a restart a new one of that UUID is somebody
    /// else's. That of the last one is that the claim goes.
    fn mark_given_back(&self, id: &Uuid, grant: &Grant) {
        let Some(claim) = self.claim(id) else { return };
        let left: Vec<Grant> = claim.grants.iter().filter(|other| *other != grant).cloned().collect();
        let plan = Plan::release(&left);
        if grant.undo == Undo::Keep || left.iter().all(|grant| grant.undo == Undo::Keep) {
            return;
        }
        let written = self.update_claim(id, |claim| {
            claim.grants = left;
            claim.plan = plan;
        });
        if let Err(error) = written {
            tracing::error!("{error}");
        }
    }

    async fn give_back_one(self: &Rc<Self>, claim: &Claim, grant: &Grant, self_removal_by: Instant) -> Given {
        if grant.undo == Undo::Keep {
            return Given::Back;
        }
        let key = grant.key();
        if let Some(why) = self.state.borrow().stuck.get(&key) {
            return Given::Not(format!("{key} is stuck: {why}"));
        }
        match &grant.device {
            Granted::Mdev(mdev) => self.remove_granted(claim, mdev, self_removal_by).await,
            Granted::Pci(function) => self.restore_granted(function).await,
        }
    }

    /// Brings a function back to what it was, step by step from what it is. A step that would take it from somebody is not made.
    async fn restore_granted(self: &Rc<Self>, was: &GrantedFunction) -> Given {
        let address = was.address;
        let mut was = was.clone();
        let deadline = Instant::now() + RESTORE_WITHIN;
        for _ in 0..MOST_STEPS {
            if let Err(why) = self.refresh_function(address).await {
                return Given::Not(why);
            }
            if let Some(pf) = was.changed_vf().map(|vf| vf.pf) {
                // One that is gone has taken the virtual one with it. While one does not say what it does, that may be what it was set.
                if let Err(why) = self.refresh_function(pf).await {
                    return Given::Not(why);
                }
                if let Some(why) = self.state.borrow().inventory.function(&pf).and_then(|pf| settings_unknown(pf)) {
                    return Given::Not(format!("{address} may still have what it was given: {why}"));
                }
            }
            let Some(step) = restore(&was, &self.state.borrow().inventory) else { return Given::Back };
            // Its turn may be long in coming, and the look is to be right before the write.
            let turn = match self.turn_of(&step, deadline).await {
                Ok(turn) => turn,
                Err(error) => return Given::Not(Error::from(error).message),
            };
            // Taking a held function from its driver would block until its user closes it.
            match self.holders(&[DeviceKey::Pci(address)]).await.into_iter().next() {
                Some((_, holders)) if holders.none() => {}
                Some((_, holders)) => return Given::Not(format!("{address} is still held by {holders}")),
                None => return Given::Not(format!("who holds {address} is not known")),
            }
            match (self.run_step(&turn, &step, deadline).await, &step) {
                (Ok(()), _) => {}
                // Some drivers do not take back an address that was given once. All else goes back, and the function is free.
                (Err(StepError::Refused(_)), Step::SetVf { pf, index, settings, .. }) => {
                    for settings in settings.one_by_one() {
                        let one = Step::SetVf { address, pf: *pf, index: *index, settings };
                        match self.run_step(&turn, &one, deadline).await {
                            Ok(()) => {}
                            Err(StepError::Refused(error)) => {
                                tracing::warn!("{address} keeps what it was given, instead of {settings}: {error}");
                            }
                            Err(error) => return Given::Not(Error::from(error).message),
                        }
                    }
                    was.vf = None;
                }
                (Err(error), _) => return Given::Not(Error::from(error).message),
            }
        }
        Given::Not(format!("{address} does not come back to what it was; see the kernel's log: journalctl -k"))
    }

    async fn remove_granted(self: &Rc<Self>, claim: &Claim, grant: &GrantedMdev, self_removal_by: Instant) -> Given {
        let (uuid, key) = (grant.uuid, DeviceKey::Mdev(grant.uuid));
        if let Err(why) = self.refresh_mdevs(&[uuid]).await {
            return Given::Not(why);
        }
        {
            let state = self.state.borrow();
            let Some(mdev) = state.inventory.mdev(&uuid) else { return Given::Back };
            // Somebody has removed ours and made another under the same UUID.
            if mdev.parent != grant.parent || mdev.mdev_type.as_ref().is_some_and(|t| *t != grant.mdev_type) {
                tracing::warn!("{uuid} is no longer what the claim of {} made; it stays", claim.owner);
                return Given::Back;
            }
            let borrower = state.claims.values().find(|other| other.id != claim.id && other.grant(key).is_some());
            if let Some(other) = borrower {
                return Given::Not(format!("{uuid} is used by {}", other.owner));
            }
        }
        if claim.seen && self.removes_itself(&uuid, self_removal_by).await {
            return Given::Back;
        }
        let step = Step::Remove { parent: grant.parent.clone(), uuid };
        // Its turn may be long in coming, and the look is to be right before the write.
        let turn = match self.turn_of(&step, Instant::now() + STEP_DEADLINE).await {
            Ok(turn) => turn,
            Err(error) => return Given::Not(Error::from(error).message),
        };
        // A removal of a held device would block until its user closes it.
        match self.holders(&[key]).await.into_iter().next() {
            Some((_, holders)) if holders.none() => {}
            Some((_, holders)) => return Given::Not(format!("{uuid} is still held by {holders}")),
            None => return Given::Not(format!("who holds {uuid} is not known")),
        }
        match self.run_step(&turn, &step, Instant::now() + STEP_DEADLINE).await {
            Ok(()) => Given::Back,
            Err(StepError::Refused(error)) if error.is_gone() => match self.refresh_mdevs(&[uuid]).await {
                Ok(()) if self.state.borrow().inventory.mdev(&uuid).is_none() => Given::Back,
                _ => Given::Not(format!("{error}, but it is still there; see the kernel's log: journalctl -k")),
            },
            Err(error) => Given::Not(Error::from(error).message),
        }
    }

    /// Waits for a driver that removes a device by itself once its VM has ended. True when it is gone.
    async fn removes_itself(self: &Rc<Self>, uuid: &MdevUuid, deadline: Instant) -> bool {
        loop {
            let change = self.changed.notified();
            {
                let state = self.state.borrow();
                let Some(mdev) = state.inventory.mdev(uuid) else { return true };
                let driver = state.inventory.parent(&mdev.parent).and_then(|parent| parent.driver.as_ref());
                if driver.is_none_or(|driver| driver.as_str() != SELF_REMOVING_DRIVER) {
                    return false;
                }
            }
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                return false;
            }
        }
    }

    /// Ends a manual claim, or a domain's that is certainly not running. False when it was ending already.
    ///
    /// # Errors
    /// `InUse` when somebody uses one of its devices, or may; `Conflict` for a domain's claim without `force`.
    pub async fn release_claim(self: &Rc<Self>, id: &Uuid, force: bool) -> Result<bool> {
        let Some(claim) = self.claim(id) else {
            return Err(Error::new(ErrorName::NotFound, format!("there is no claim {id}")));
        };
        if matches!(claim.owner, Owner::Domain { .. }) && !force && !claim.state.is_ending() {
            let message = format!(
                "this claim belongs to {}, which gives it back when it stops; --force takes it from a domain that is not running",
                claim.owner
            );
            return Err(Error::new(ErrorName::Conflict, message));
        }
        let keys: Vec<_> = claim.grants.iter().map(Grant::key).collect();
        for (key, holders) in self.holders(&keys).await {
            if !holders.none() {
                return Err(Error::new(ErrorName::InUse, format!("{key} is in use by {holders}; stop that first")));
            }
        }
        if matches!(claim.owner, Owner::Domain { .. }) && !claim.state.is_ending() {
            // It may run and not have opened its device yet.
            let why = match self.domain_runs(id).await {
                Known::Known(false) => None,
                Known::Known(true) => Some("libvirt says that it is running; stop it first".to_string()),
                Known::Unknown(why) => Some(format!("whether it is running is not known: {why}")),
            };
            if let Some(why) = why {
                return Err(Error::new(ErrorName::InUse, format!("{}: {why}", claim.owner)));
            }
        }
        // Nobody loses what is only lent: just what this claim made goes with it.
        for grant in claim.grants.iter().filter(|grant| grant.undo == Undo::Remove) {
            let (state, key) = (self.state.borrow(), grant.key());
            if let Some(other) = state.claims.values().find(|other| other.id != *id && other.grant(key).is_some()) {
                return Err(Error::new(ErrorName::InUse, format!("{key} is in use by {}", other.owner)));
            }
        }
        self.release(id, Some(claim.run), "released by hand", Instant::now()).await?;
        // A person wants to know how it ended. Every try ends: a write that hangs makes its device stuck, and the try a failed one.
        loop {
            let change = self.changed.notified();
            match self.claim(id).filter(|left| left.run == claim.run) {
                None => break,
                Some(left) if left.state == ClaimState::Failed => {
                    let message = format!("not given back yet: {}; it is tried again until it succeeds", left.problem);
                    return Err(Error::new(ErrorName::Busy, message));
                }
                Some(_) => change.await,
            }
        }
        self.publish().await;
        Ok(!claim.state.is_ending())
    }
}

/// Turns a claim from being prepared, or from being ready, to its end. The grants of which nothing was begun when the work stopped go
/// at once: there is nothing of them to undo. A device that has their UUID is somebody else's, and a function that libvirt binds may be
/// on its way into a VM, which the hook lets start without an answer when it does not request the function.
pub fn begin_end(claim: &mut Claim, why: &str) {
    let was_preparing = match claim.state {
        ClaimState::Planned | ClaimState::Preparing => true,
        ClaimState::Ready => false,
        ClaimState::Releasing | ClaimState::Failed => !is_of_end(&claim.plan),
    };
    if was_preparing {
        let begun: Vec<_> = claim.plan.steps.iter().take(claim.plan.done + 1).map(Step::device).collect();
        claim.grants.retain(|grant| grant.undo == Undo::Keep || begun.contains(&grant.key()));
    }
    claim.state = ClaimState::Releasing;
    claim.problem = why.to_string();
    claim.plan = Plan::release(&claim.grants);
}

/// Whether a plan gives back; one without steps does.
pub fn is_of_end(plan: &Plan) -> bool {
    plan.steps.iter().all(|step| matches!(step, Step::Remove { .. }))
}
