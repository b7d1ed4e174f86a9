//! Giving back: a claim's devices are removed, last first, each only when nobody holds it and it is what the claim says. What fails
//! stays in the claim and is tried again.

use std::rc::Rc;
use std::time::Duration;

use mdevd_core::claim::{Claim, ClaimState, Grant, Undo};
use mdevd_core::names::RunId;
use mdevd_core::plan::{Plan, Step};
use mdevd_dbus::ErrorName;
use tokio::time::Instant;
use uuid::Uuid;

use super::Engine;
use super::steps::StepError;
use crate::error::{Error, Result};

/// How long a release waits for the removal before it answers and lets it go on behind.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How long after a removal that failed the next is tried; doubled each time up to the last.
const RETRY: std::ops::RangeInclusive<u64> = 1..=30;

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
                claim.state = ClaimState::Releasing;
                claim.problem = why.to_string();
                if !working {
                    claim.plan = Plan::release(&claim.grants);
                }
            });
            if let Err(error) = written {
                tracing::error!("{error}");
            }
        }
        self.finish_behind(*id);
        self.wait_gone(id, claim.run, answer_by).await;
        self.publish().await;
        Ok(true)
    }

    /// Waits until a run's claim is gone. False when `until` came first.
    pub async fn wait_gone(&self, id: &Uuid, run: RunId, until: Instant) -> bool {
        loop {
            // Asked for before the look, so that a change between the two is not missed.
            let change = self.changed.notified();
            if self.claim(id).is_none_or(|claim| claim.run != run) {
                return true;
            }
            if tokio::time::timeout_at(until, change).await.is_err() {
                return false;
            }
        }
    }

    /// Undoes a claim whose prepare has failed, and waits for that until the deadline.
    pub async fn undo(self: &Rc<Self>, id: &Uuid, why: &str, deadline: Instant) {
        let Some(run) = self.claim(id).map(|claim| claim.run) else { return };
        let written = self.update_claim(id, |claim| {
            forget_what_was_not_begun(claim);
            claim.state = ClaimState::Releasing;
            claim.problem = why.to_string();
            claim.plan = Plan::release(&claim.grants);
        });
        if let Err(error) = written {
            tracing::error!("{error}");
        }
        self.finish_behind(*id);
        self.wait_gone(id, run, deadline).await;
    }

    /// Starts the removal of a claim's devices, unless somebody is at it already.
    pub fn finish_behind(self: &Rc<Self>, id: Uuid) {
        if !self.state.borrow_mut().working.insert(id) {
            return;
        }
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let mut wait = *RETRY.start();
            while !engine.give_back(&id).await {
                engine.publish().await;
                // A change (a write that came back, a claim that ended) may be what it waits for; else the time.
                engine.change_before(Instant::now() + Duration::from_secs(wait)).await;
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
        // Last first, and on past failures.
        for grant in claim.grants.iter().rev() {
            match self.give_back_one(&claim, grant).await {
                Given::Back => {}
                Given::Not(why) => {
                    problems.push(why);
                    left.insert(0, grant.clone());
                }
            }
        }
        if left.is_empty() {
            tracing::info!("claim {id} of {}: all given back", claim.owner);
            self.drop_claim(id);
            return true;
        }
        let problem = problems.join("; ");
        if claim.state != ClaimState::Failed || claim.problem != problem || claim.grants != left {
            tracing::warn!("claim {id} of {}: {problem}", claim.owner);
            let written = self.update_claim(id, |claim| {
                claim.state = ClaimState::Failed;
                claim.problem = problem;
                claim.plan = Plan::release(&left);
                claim.grants = left;
            });
            if let Err(error) = written {
                tracing::error!("{error}");
            }
        }
        false
    }

    async fn give_back_one(self: &Rc<Self>, claim: &Claim, grant: &Grant) -> Given {
        if grant.undo == Undo::Keep {
            return Given::Back;
        }
        let uuid = grant.uuid();
        if let Some(why) = self.state.borrow().stuck_mdevs.get(&uuid) {
            return Given::Not(format!("{uuid} is stuck: {why}"));
        }
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
            let borrower = state.claims.values().find(|other| other.id != claim.id && other.grant(&uuid).is_some());
            if let Some(other) = borrower {
                return Given::Not(format!("{uuid} is used by {}", other.owner));
            }
        }
        // Right before the write: a removal of a held device would block until its user closes it.
        match self.holders(&[uuid]).await.into_iter().next() {
            Some((_, holders)) if holders.none() => {}
            Some((_, holders)) => return Given::Not(format!("{uuid} is still held by {holders}")),
            None => return Given::Not(format!("who holds {uuid} is not known")),
        }
        let step = Step::Remove { parent: grant.parent.clone(), uuid };
        match self.run_step(&step, Instant::now() + super::steps::STEP_DEADLINE).await {
            Ok(()) => Given::Back,
            Err(StepError::Refused(error)) if error.is_gone() => match self.refresh_mdevs(&[uuid]).await {
                Ok(()) if self.state.borrow().inventory.mdev(&uuid).is_none() => Given::Back,
                _ => Given::Not(error.to_string()),
            },
            Err(error) => Given::Not(Error::from(error).message),
        }
    }

    /// Ends a manual claim, or a domain's that is certainly not running.
    ///
    /// # Errors
    /// `InUse` when somebody uses one of its devices, or may; `Conflict` for a domain's claim without `force`.
    pub async fn release_claim(self: &Rc<Self>, id: &Uuid, force: bool) -> Result<bool> {
        let Some(claim) = self.claim(id) else {
            return Err(Error::new(ErrorName::NotFound, format!("there is no claim {id}")));
        };
        if matches!(claim.owner, mdevd_core::claim::Owner::Domain { .. }) && !force && !claim.state.is_ending() {
            let message = format!(
                "this claim belongs to {}, which gives it back when it stops; --force takes it from a domain that is not running",
                claim.owner
            );
            return Err(Error::new(ErrorName::Conflict, message));
        }
        let uuids: Vec<_> = claim.grants.iter().map(Grant::uuid).collect();
        for (uuid, holders) in self.holders(&uuids).await {
            if !holders.none() {
                return Err(Error::new(ErrorName::InUse, format!("{uuid} is in use by {holders}; stop that first")));
            }
        }
        for uuid in &uuids {
            let state = self.state.borrow();
            if let Some(other) = state.claims.values().find(|other| other.id != *id && other.grant(uuid).is_some()) {
                return Err(Error::new(ErrorName::InUse, format!("{uuid} is in use by {}", other.owner)));
            }
        }
        self.release(id, Some(claim.run), "released by hand", Instant::now() + ANSWER_WITHIN).await?;
        match self.claim(id).filter(|left| left.run == claim.run) {
            Some(left) if left.state == ClaimState::Failed => {
                Err(Error::new(ErrorName::Busy, format!("not given back yet: {}", left.problem)))
            }
            _ => Ok(true),
        }
    }
}

/// Drops the grants whose device was not being made yet when the work stopped: there is nothing of them to undo, and a device that has
/// their UUID is somebody else's.
pub fn forget_what_was_not_begun(claim: &mut Claim) {
    let begun: Vec<_> = claim.plan.steps.iter().take(claim.plan.done + 1).map(Step::uuid).collect();
    claim.grants.retain(|grant| grant.undo == Undo::Keep || begun.contains(&grant.uuid()));
}
