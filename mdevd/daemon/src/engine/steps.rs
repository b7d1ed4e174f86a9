//! One step of a plan: the write, by a process of its own and under the lock of what it changes, and the read-back that decides
//! whether it has had its effect.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::claim::Claim;
use mdevd_core::function::Role;
use mdevd_core::names::{DeviceKey, ParentName, PciAddress};
use mdevd_core::plan::{Plan, Step, Write};
use mdevd_dbus::ErrorName;
use mdevd_host::error::EffectError;
use mdevd_host::write::{InFlight, WriteOutcome};
use rustix::io::Errno;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::Instant;

use super::Engine;
use super::prepare::keep;
use super::scan::Event;
use crate::error::Error;

/// The longest that one write may take before its device counts as stuck; a change of the number of virtual functions has as long as
/// its caller gives it.
pub const STEP_DEADLINE: Duration = Duration::from_secs(5);

/// The least that must be left of a deadline for a write to begin: one that is cut short says nothing of the kernel, and its device would
/// count as stuck.
const LEAST: Duration = Duration::from_millis(200);

/// How long virtual functions that the kernel has been asked for may take to appear when the write itself is through.
const VFS_APPEAR: Duration = Duration::from_secs(10);

/// Why a step has not had its effect.
#[derive(Debug)]
pub enum StepError {
    /// The kernel answered the write with an errno.
    Refused(EffectError),
    /// The write has not come back; it goes on by itself and its device is stuck until then. Or there was no time to begin it.
    TimedOut(String),
    /// An earlier write or read of the device has not come back: it was not tried, or its effect cannot be read back. Another parent would
    /// not help.
    Stuck(String),
    /// It was not tried, because an earlier write or read of the parent has not come back.
    ParentStuck(String),
    /// It was not tried, because the device does not offer it now.
    NotOffered(String),
    /// The write came back, but its effect is not there.
    NoEffect(String),
}

impl From<StepError> for Error {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Refused(error) => error.into(),
            StepError::TimedOut(why) => Self::new(ErrorName::TimedOut, why),
            StepError::Stuck(why) | StepError::ParentStuck(why) => Self::new(ErrorName::Stuck, why),
            StepError::NotOffered(why) => Self::new(ErrorName::NoCapacity, why),
            StepError::NoEffect(why) => Self::new(ErrorName::KernelRefused, why),
        }
    }
}

/// The name of the lock of a step's write. After a restart it tells which device, and for a `create` which parent, is in flight.
fn busy_key(step: &Step) -> String {
    match (step, step.device()) {
        (Step::Create { parent, uuid, .. }, _) => format!("create.{uuid}.{parent}"),
        (_, DeviceKey::Mdev(uuid)) => format!("mdev.{uuid}"),
        (_, DeviceKey::Pci(address)) => format!("pci.{address}"),
    }
}

/// What a lock's name speaks of.
pub fn parse_busy_key(key: &str) -> Option<(DeviceKey, Option<ParentName>)> {
    if let Some(rest) = key.strip_prefix("create.") {
        let (uuid, parent) = rest.split_at_checked(36)?;
        return Some((DeviceKey::Mdev(uuid.parse().ok()?), Some(parent.strip_prefix('.')?.parse().ok()?)));
    }
    if let Some(address) = key.strip_prefix("pci.") {
        return Some((DeviceKey::Pci(address.parse().ok()?), None));
    }
    Some((DeviceKey::Mdev(key.strip_prefix("mdev.")?.parse().ok()?), None))
}

/// The lock of what a step changes, held while it is made. What the kernel says of a parent meanwhile is passed over, and a parent's other
/// types may draw on the same stock, so that its end is an event.
#[derive(Debug)]
pub struct Turn {
    _guard: OwnedMutexGuard<()>,
    parent: Option<(ParentName, mpsc::UnboundedSender<Event>)>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((parent, events)) = self.parent.take() {
            // An error means that the daemon is stopping.
            let _ = events.send(Event::Parent(parent));
        }
    }
}

impl Engine {
    /// Waits for the turn to change what a step changes.
    pub async fn turn_of(&self, step: &Step, deadline: Instant) -> Result<Turn, StepError> {
        let (name, lock) = {
            let mut state = self.state.borrow_mut();
            let name = step.lock(&state.inventory);
            let lock = state.locks.entry(name.clone()).or_default().clone();
            (name, lock)
        };
        match tokio::time::timeout_at(deadline, lock.lock_owned()).await {
            Ok(guard) => {
                let parent = step.parent().map(|parent| (parent.clone(), self.events.clone()));
                Ok(Turn { _guard: guard, parent })
            }
            Err(_) => Err(StepError::TimedOut(format!("another change on {name} did not end in time; try again"))),
        }
    }

    /// Makes one step and reads its effect back, in its turn. Whoever holds a device is looked for in that turn, right before.
    pub async fn run_step(self: &Rc<Self>, _: &Turn, step: &Step, deadline: Instant) -> Result<(), StepError> {
        let outcome = self.run_step_alone(step, deadline).await;
        if let DeviceKey::Pci(address) = step.device() {
            // Its siblings may draw on the same card. An error means that the daemon is stopping.
            let _ = self.events.send(Event::Card(address));
        }
        outcome
    }

    async fn run_step_alone(self: &Rc<Self>, step: &Step, deadline: Instant) -> Result<(), StepError> {
        let device = step.device();
        // Some of these the kernel refuses when they are done already, as taking away a vGPU type that is not there.
        if device.pci().is_some() && self.is_done_now(step).await {
            return Ok(());
        }
        if let Step::SetVgpuType { vgpu_type: Some(_), .. } = step {
            self.vgpu_type_is_offered(step).await?;
        }
        let write = {
            let state = self.state.borrow();
            if let Some(why) = state.stuck.get(&device) {
                return Err(StepError::Stuck(format!("{device} is stuck: {why}")));
            }
            if let (Step::Create { parent, .. }, Some(why)) =
                (step, step.parent().and_then(|parent| state.stuck_parents.get(parent)))
            {
                return Err(StepError::ParentStuck(format!("{parent} is stuck: {why}")));
            }
            step.write(&state.inventory).map_err(StepError::NoEffect)?
        };
        if let (Write::Vf { .. }, false) = (&write, self.roots.is_this_host()) {
            return Err(StepError::NoEffect(format!("cannot {step}: there is no network behind a simulated sysfs")));
        }
        let until = match step {
            Step::SetNumVfs { .. } => deadline,
            _ => deadline.min(Instant::now() + STEP_DEADLINE),
        };
        if until.saturating_duration_since(Instant::now()) < LEAST {
            return Err(StepError::TimedOut(format!("no time is left to {step}; nothing was written; try again")));
        }
        self.state.borrow_mut().in_flight.insert(device);
        tracing::debug!("{step}");
        let (exe, busy, key) = (&self.exe, &self.busy, busy_key(step));
        let outcome = match write {
            Write::File { path, value } => {
                mdevd_host::write::write(exe, busy, &key, &self.roots.sys.join(path), &value, until).await
            }
            Write::Vf { netdev, index, settings } => {
                mdevd_host::write::set_vf(exe, busy, &key, &netdev, index, &settings, until).await
            }
        };
        let outcome = match outcome {
            WriteOutcome::TimedOut(in_flight) => {
                let why = format!("{step} has not come back from the kernel");
                self.mark_stuck(step, &why);
                self.watch_writer(step.clone(), in_flight);
                return Err(StepError::TimedOut(format!("{why} in time; its device is stuck until it does")));
            }
            WriteOutcome::LockTaken => {
                let why = format!("an earlier write to {device} has not come back from the kernel");
                Err(StepError::Stuck(why))
            }
            WriteOutcome::Errno(error) | WriteOutcome::NotStarted(error) => Err(StepError::Refused(error)),
            WriteOutcome::Killed(signal) => {
                Err(StepError::NoEffect(format!("the writer of '{step}' was killed by signal {signal}; try again")))
            }
            WriteOutcome::Done => Ok(()),
        };
        self.state.borrow_mut().in_flight.remove(&device);
        match (outcome, device) {
            (Ok(()), DeviceKey::Mdev(_)) => self.read_back_mdev(step).await,
            (Ok(()), DeviceKey::Pci(_)) => self.read_back_function(step, deadline).await,
            // Somebody else has done it a moment before.
            (Err(StepError::Refused(error)), DeviceKey::Pci(_)) if self.is_done_now(step).await => {
                tracing::info!("{step}: {error}, but it is done");
                Ok(())
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn read_back_mdev(self: &Rc<Self>, step: &Step) -> Result<(), StepError> {
        let (Some(parent), Some(uuid)) = (step.parent(), step.device().mdev()) else { return Ok(()) };
        let mdev_type = match step {
            Step::Create { mdev_type, .. } => Some(mdev_type.clone()),
            _ => self.state.borrow().inventory.mdev(&uuid).and_then(|mdev| mdev.mdev_type.clone()),
        };
        self.refresh_mdevs(&[uuid]).await.map_err(StepError::Stuck)?;
        if let (Step::Create { .. } | Step::Remove { .. }, Some(mdev_type)) = (step, mdev_type) {
            self.refresh_available(parent, mdev_type).await;
        }
        let state = self.state.borrow();
        let seen = state.inventory.mdev(&uuid);
        match (step, seen) {
            (Step::Create { .. }, Some(_)) if step.already_done(&state.inventory) => Ok(()),
            (Step::Create { mdev_type, .. }, Some(mdev)) => {
                let got = mdev.mdev_type.as_ref().map_or("unknown", |t| t.as_str());
                let message = format!(
                    "{uuid} was created with type {mdev_type} on {parent}, but the kernel shows type {got} on {}; see the kernel's log: journalctl -k",
                    mdev.parent
                );
                Err(StepError::NoEffect(message))
            }
            (Step::Create { .. }, None) => Err(StepError::NoEffect(format!(
                "{parent} accepted the creation of {uuid}, but it is not there; see the kernel's log: journalctl -k"
            ))),
            (Step::Remove { .. }, Some(_)) => Err(StepError::NoEffect(format!(
                "the kernel accepted the removal of {uuid}, but it is still there; see the kernel's log: journalctl -k"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the host shows a step's effect, looked at now.
    async fn is_done_now(self: &Rc<Self>, step: &Step) -> bool {
        self.look_at_step(step).await.is_ok() && step.already_done(&self.state.borrow().inventory)
    }

    async fn look_at_step(self: &Rc<Self>, step: &Step) -> Result<(), String> {
        if let Some(address) = step.device().pci() {
            self.refresh_function(address).await?;
        }
        match step {
            Step::SetVf { pf, .. } => self.refresh_function(*pf).await,
            _ => Ok(()),
        }
    }

    async fn read_back_function(self: &Rc<Self>, step: &Step, deadline: Instant) -> Result<(), StepError> {
        if let Step::SetNumVfs { pf, count } = step {
            let until = deadline.min(Instant::now() + VFS_APPEAR);
            return self.vfs_appear(*pf, *count, until).await.map_err(StepError::NoEffect);
        }
        self.look_at_step(step).await.map_err(StepError::Stuck)?;
        let state = self.state.borrow();
        if step.already_done(&state.inventory) {
            return Ok(());
        }
        let now = step.device().pci().and_then(|address| state.inventory.function(&address));
        let bound = match now.map(|now| &now.driver) {
            None => "gone".to_string(),
            Some(None) => "bound to no driver".to_string(),
            Some(Some(driver)) => format!("bound to {driver}"),
        };
        let why = match step {
            Step::SetVf { settings, .. } if settings.mac.is_none() && settings.vlan.is_none() => return Ok(()),
            Step::Probe { address, driver } => format!(
                "{address} is {bound}, not to {driver}: is that driver loaded (modprobe {driver}), and does it take this device?"
            ),
            Step::Unbind { address } => format!("{address} is still {bound}"),
            _ => format!("the kernel accepted '{step}', but does not show it"),
        };
        Err(StepError::NoEffect(format!("{why}; see the kernel's log: journalctl -k")))
    }

    /// The list of types is read right before the choice of one is written: it changes as the siblings fill.
    async fn vgpu_type_is_offered(self: &Rc<Self>, step: &Step) -> Result<(), StepError> {
        let Step::SetVgpuType { address, vgpu_type: Some(id) } = step else { return Ok(()) };
        self.refresh_function(*address).await.map_err(StepError::Stuck)?;
        let state = self.state.borrow();
        let types = state.inventory.function(address).and_then(|function| function.vgpu.as_ref());
        let Some(types) = types else {
            return Err(StepError::NoEffect(format!("{address} has no vGPU types (any more)")));
        };
        if types.current == Some(*id) || types.creatable.iter().any(|known| known.id == *id) {
            return Ok(());
        }
        let list: Vec<String> = types.creatable.iter().map(|known| format!("{} ({})", known.id, known.name)).collect();
        let can = if list.is_empty() { "none: its card is full".to_string() } else { list.join(", ") };
        Err(StepError::NotOffered(format!("{address} cannot have the vGPU type {id} now; it can have {can}")))
    }

    fn mark_stuck(&self, step: &Step, why: &str) {
        let mut state = self.state.borrow_mut();
        let device = step.device();
        state.judged = false;
        state.stuck.insert(device, why.to_string());
        match device {
            DeviceKey::Mdev(uuid) => state.inventory.mark_mdev_stuck(&uuid, why),
            DeviceKey::Pci(address) => state.inventory.mark_function_stuck(&address, why),
        }
        if let Step::Create { parent, .. } = step {
            state.stuck_parents.insert(parent.clone(), why.to_string());
            state.inventory.mark_parent_stuck(parent, why);
        }
        tracing::warn!("{why}");
    }

    /// Forgets that a device, or with it a parent, was stuck, and looks at it again.
    pub async fn unmark_stuck(self: &Rc<Self>, device: DeviceKey, parent: Option<&ParentName>) {
        {
            let mut state = self.state.borrow_mut();
            state.stuck.remove(&device);
            if let Some(parent) = parent {
                state.stuck_parents.remove(parent);
            }
        }
        // What it was last seen with is stale; facts only.
        if let Err(why) = self.refresh(&[device]).await {
            tracing::warn!("{why}");
        }
        if let Some(parent) = parent {
            self.refresh_parent(parent).await;
        }
        if let DeviceKey::Pci(address) = device {
            self.refresh_card(address).await;
        }
        self.changed.notify_waiters();
        self.retry.notify_waiters();
        self.publish().await;
    }

    fn watch_writer(self: &Rc<Self>, step: Step, in_flight: InFlight) {
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = in_flight.ended().await;
            tracing::info!("{step} has come back from the kernel");
            let create = matches!(step, Step::Create { .. });
            if create && matches!(outcome, WriteOutcome::Errno(error) if error.is(Errno::EXIST)) {
                engine.keep_what_was_there(&step);
            }
            engine.state.borrow_mut().in_flight.remove(&step.device());
            let parent = step.parent().filter(|_| create);
            engine.unmark_stuck(step.device(), parent).await;
        });
    }

    /// A `create` that came back late has found a device that somebody else had made: the undo must leave it.
    fn keep_what_was_there(&self, step: &Step) {
        let promised = |claim: &&Arc<Claim>| claim.grant(step.device()).is_some();
        let Some(id) = self.state.borrow().claims.values().find(promised).map(|claim| claim.id) else { return };
        let written = self.update_claim(&id, |claim| {
            keep(claim, step);
            if claim.state.is_ending() {
                claim.plan = Plan::release(&claim.grants);
            }
        });
        if let Err(error) = written {
            tracing::error!("{error}");
        }
    }

    /// The physical function that a virtual one belongs to, or the function itself.
    pub fn pf_of(&self, address: PciAddress) -> PciAddress {
        match self.state.borrow().inventory.function(&address).map(|function| &function.role) {
            Some(Role::Vf { pf, .. }) => *pf,
            _ => address,
        }
    }
}
