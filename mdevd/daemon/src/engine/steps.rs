//! One step of a plan: the write, by a process of its own and under the parent's lock, and the read-back that decides whether it has
//! had its effect.

use std::rc::Rc;
use std::time::Duration;

use mdevd_core::names::{MdevUuid, ParentName};
use mdevd_core::plan::Step;
use mdevd_dbus::ErrorName;
use mdevd_host::error::EffectError;
use mdevd_host::write::{InFlight, WriteOutcome};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::Engine;
use super::scan::Event;
use crate::error::Error;

/// The longest that one write may take before its device counts as stuck.
pub const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a step has not had its effect.
#[derive(Debug)]
pub enum StepError {
    /// The kernel answered the write with an errno.
    Refused(EffectError),
    /// The write has not come back; it goes on by itself and its device is stuck until then.
    TimedOut(String),
    /// An earlier write or read of the device has not come back: it was not tried, or its effect cannot be read back. Another parent would
    /// not help.
    Stuck(String),
    /// It was not tried, because an earlier write or read of the parent has not come back.
    ParentStuck(String),
    /// The write came back, but its effect is not there.
    NoEffect(String),
}

impl From<StepError> for Error {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Refused(error) => error.into(),
            StepError::TimedOut(why) => Self::new(ErrorName::TimedOut, why),
            StepError::Stuck(why) | StepError::ParentStuck(why) => Self::new(ErrorName::Stuck, why),
            StepError::NoEffect(why) => Self::new(ErrorName::KernelRefused, why),
        }
    }
}

/// The name of the lock of a step's write. After a restart it tells which device, and for a `create` which parent, is in flight.
fn busy_key(step: &Step) -> String {
    match step {
        Step::Create { parent, uuid, .. } => format!("create.{uuid}.{parent}"),
        Step::SetAttribute { uuid, .. } | Step::Remove { uuid, .. } => format!("mdev.{uuid}"),
    }
}

/// What a lock's name speaks of.
pub fn parse_busy_key(key: &str) -> Option<(MdevUuid, Option<ParentName>)> {
    if let Some(rest) = key.strip_prefix("create.") {
        let (uuid, parent) = rest.split_at_checked(36)?;
        return Some((uuid.parse().ok()?, Some(parent.strip_prefix('.')?.parse().ok()?)));
    }
    Some((key.strip_prefix("mdev.")?.parse().ok()?, None))
}

impl Engine {
    /// Makes one step and reads its effect back.
    pub async fn run_step(self: &Rc<Self>, step: &Step, deadline: Instant) -> Result<(), StepError> {
        let turn = self.lock_parent(step.parent(), deadline).await?;
        let outcome = self.run_step_alone(step, deadline).await;
        drop(turn);
        // The parent's other types may draw on the same stock. An error means that the daemon is stopping.
        let _ = self.events.send(Event::Parent(step.parent().clone()));
        outcome
    }

    async fn run_step_alone(self: &Rc<Self>, step: &Step, deadline: Instant) -> Result<(), StepError> {
        let uuid = step.uuid();
        let parent_path = {
            let state = self.state.borrow();
            if let Some(why) = state.stuck_mdevs.get(&uuid) {
                return Err(StepError::Stuck(format!("{uuid} is stuck: {why}")));
            }
            if let (Step::Create { parent, .. }, Some(why)) = (step, state.stuck_parents.get(step.parent())) {
                return Err(StepError::ParentStuck(format!("{parent} is stuck: {why}")));
            }
            match (step, state.inventory.parent(step.parent())) {
                (_, Some(parent)) => parent.path.clone(),
                (Step::Create { parent, .. }, None) => {
                    return Err(StepError::NoEffect(format!("the parent {parent} is gone")));
                }
                (_, None) => String::new(),
            }
        };
        let (file, value) = step.write(&parent_path);
        let path = self.roots.sys.join(file);
        let until = deadline.min(Instant::now() + STEP_DEADLINE);
        self.state.borrow_mut().in_flight.insert(uuid);
        tracing::debug!("{step}");
        let outcome = mdevd_host::write::write(&self.exe, &self.busy, &busy_key(step), &path, &value, until).await;
        let outcome = match outcome {
            WriteOutcome::TimedOut(in_flight) => {
                let why = format!("{step} has not come back from the kernel");
                self.mark_stuck(step, &why);
                self.watch_writer(step.clone(), in_flight);
                return Err(StepError::TimedOut(format!("{why} in time; its device is stuck until it does")));
            }
            WriteOutcome::LockTaken => {
                let why = format!("an earlier write to {uuid} has not come back from the kernel");
                Err(StepError::Stuck(why))
            }
            WriteOutcome::Errno(error) | WriteOutcome::NotStarted(error) => Err(StepError::Refused(error)),
            WriteOutcome::Killed(signal) => {
                Err(StepError::NoEffect(format!("the writer of '{step}' was killed by signal {signal}; try again")))
            }
            WriteOutcome::Done => Ok(()),
        };
        self.state.borrow_mut().in_flight.remove(&uuid);
        outcome?;
        self.read_back(step).await
    }

    async fn read_back(self: &Rc<Self>, step: &Step) -> Result<(), StepError> {
        let uuid = step.uuid();
        let mdev_type = match step {
            Step::Create { mdev_type, .. } => Some(mdev_type.clone()),
            _ => self.state.borrow().inventory.mdev(&uuid).and_then(|mdev| mdev.mdev_type.clone()),
        };
        self.refresh_mdevs(&[uuid]).await.map_err(StepError::Stuck)?;
        if let (Step::Create { .. } | Step::Remove { .. }, Some(mdev_type)) = (step, mdev_type) {
            self.refresh_available(step.parent(), mdev_type).await;
        }
        let state = self.state.borrow();
        let seen = state.inventory.mdev(&uuid);
        match (step, seen) {
            (Step::Create { .. }, Some(_)) if step.already_done(&state.inventory) => Ok(()),
            (Step::Create { mdev_type, parent, .. }, Some(mdev)) => {
                let got = mdev.mdev_type.as_ref().map_or("unknown", |t| t.as_str());
                let message = format!(
                    "{uuid} was created with type {mdev_type} on {parent}, but the kernel shows type {got} on {}; see the kernel's log: journalctl -k",
                    mdev.parent
                );
                Err(StepError::NoEffect(message))
            }
            (Step::Create { parent, .. }, None) => Err(StepError::NoEffect(format!(
                "{parent} accepted the creation of {uuid}, but it is not there; see the kernel's log: journalctl -k"
            ))),
            (Step::Remove { .. }, Some(_)) => Err(StepError::NoEffect(format!(
                "the kernel accepted the removal of {uuid}, but it is still there; see the kernel's log: journalctl -k"
            ))),
            (Step::Remove { .. }, None) | (Step::SetAttribute { .. }, _) => Ok(()),
        }
    }

    async fn lock_parent(&self, parent: &ParentName, deadline: Instant) -> Result<OwnedMutexGuard<()>, StepError> {
        let lock = self.state.borrow_mut().parent_locks.entry(parent.clone()).or_default().clone();
        tokio::time::timeout_at(deadline, lock.lock_owned())
            .await
            .map_err(|_| StepError::TimedOut(format!("another change on {parent} did not end in time; try again")))
    }

    fn mark_stuck(&self, step: &Step, why: &str) {
        let mut state = self.state.borrow_mut();
        state.stuck_mdevs.insert(step.uuid(), why.to_string());
        state.inventory.mark_mdev_stuck(&step.uuid(), why);
        if let Step::Create { parent, .. } = step {
            state.stuck_parents.insert(parent.clone(), why.to_string());
            state.inventory.mark_parent_stuck(parent, why);
        }
        tracing::warn!("{why}");
    }

    /// Forgets that a device, or with it a parent, was stuck, and looks at the parent again.
    pub async fn unmark_stuck(self: &Rc<Self>, uuid: &MdevUuid, parent: Option<&ParentName>) {
        {
            let mut state = self.state.borrow_mut();
            state.stuck_mdevs.remove(uuid);
            state.in_flight.remove(uuid);
            if let Some(parent) = parent {
                state.stuck_parents.remove(parent);
            }
        }
        // What it was last seen with is stale; facts only.
        if let Err(why) = self.refresh_mdevs(&[*uuid]).await {
            tracing::warn!("{why}");
        }
        if let Some(parent) = parent {
            self.refresh_parent(parent).await;
        }
        self.changed.notify_waiters();
        self.publish().await;
    }

    fn watch_writer(self: &Rc<Self>, step: Step, in_flight: InFlight) {
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            in_flight.ended().await;
            tracing::info!("{step} has come back from the kernel");
            let parent = matches!(step, Step::Create { .. }).then(|| step.parent().clone());
            engine.unmark_stuck(&step.uuid(), parent.as_ref()).await;
        });
    }
}
