//! The engine: the one owner of all state. Everything runs on one thread; each call is a task of its own that borrows the state only
//! between two waits, so choosing and reserving happen in one turn and no lock is needed.
//!
//! Files: [`ask`] what a client asks and nothing changes; [`prepare`] a claim from need to ready; [`release`] and back; [`steps`] one
//! write with its read-back; [`scan`] what the kernel says of mediated devices, [`functions`] of PCI functions; [`vfs`] how many
//! virtual functions there are; [`look`] reconcile; [`recover`] what a start finds.

pub mod ask;
pub mod domain;
pub mod functions;
pub mod look;
pub mod manual;
pub mod prepare;
pub mod recover;
pub mod release;
pub mod reload;
pub mod scan;
pub mod steps;
pub mod vfs;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mdevd_core::check::facts::HostFacts;
use mdevd_core::choose::Context;
use mdevd_core::claim::{Claim, ClaimState, Grant};
use mdevd_core::inventory::{DeviceState, Inventory};
use mdevd_core::names::{DeviceKey, ParentName, PciAddress};
use mdevd_dbus::ErrorName;
use mdevd_host::busy::BusyLocks;
use mdevd_host::files::ClaimFiles;
use mdevd_host::roots::Roots;
use rustix::io::Errno;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use self::scan::Event;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::publish::Publisher;
use crate::scanner::Scanner;

/// How long something may be under way before those who look on are told.
const SOON: Duration = Duration::from_millis(100);

/// All state. Borrowed within one turn, never across a wait.
#[derive(Debug, Default)]
pub struct State {
    /// What the kernel says, with what is stuck marked.
    pub inventory: Inventory,
    /// Every claim, by id.
    pub claims: BTreeMap<Uuid, Arc<Claim>>,
    /// Claims that a prepare or a release is working on.
    pub working: BTreeSet<Uuid>,
    /// Parents that a write or read has not come back from, and why.
    pub stuck_parents: BTreeMap<ParentName, String>,
    /// Devices that a write or read has not come back from, and why.
    pub stuck: BTreeMap<DeviceKey, String>,
    /// Devices with a write in flight, which are shown as they were.
    pub in_flight: BTreeSet<DeviceKey>,
    /// One change at a time per parent, per physical function and per other function, by its name in sysfs.
    pub locks: BTreeMap<String, Arc<Mutex<()>>>,
    /// Functions that are being changed by hand, and physical ones whose number of virtual ones is: nobody is promised one of those
    /// meanwhile, nor what is on it.
    pub changing: BTreeSet<PciAddress>,
    /// Why the host itself needs a PCI function, a clause each.
    pub critical: BTreeMap<PciAddress, Vec<String>>,
    /// What the host is made of, as it was at the last full look.
    pub host_facts: HostFacts,
    /// Whether each function can be given to a VM, when `judged` is true.
    pub verdicts: BTreeMap<PciAddress, &'static str>,
    /// Whether nothing has changed that the verdicts depend on.
    pub judged: bool,
    /// What PCI functions are called, and which drivers there are for them; read with each full look.
    pub pci_words: Arc<functions::PciWords>,
    /// Since when (seconds of [`Engine::uptime`]) a claim's domain has looked gone.
    pub absent_since: BTreeMap<Uuid, u64>,
    /// What is wrong and is not said by a device or claim itself: subject, message.
    pub notes: BTreeMap<String, String>,
    /// When each problem (subject, message) was first seen, in seconds since 1970.
    pub problems: BTreeMap<(String, String), u64>,
    /// What is in force.
    pub config: Config,
}

/// The one owner of all state.
#[derive(Debug)]
pub struct Engine {
    /// The host.
    pub roots: Roots,
    /// The daemon's own executable, which is its writer as well.
    pub exe: PathBuf,
    /// The scan thread.
    pub scanner: Scanner,
    /// The locks of writes in flight.
    pub busy: BusyLocks,
    /// The claims on disk.
    pub claim_files: ClaimFiles<Claim>,
    /// What the bus sees.
    pub publisher: Publisher,
    /// Everything else.
    pub state: RefCell<State>,
    /// Changes what is logged.
    pub set_log_level: fn(tracing::Level),
    /// Fires when a claim has changed state or something is no longer stuck.
    pub changed: Notify,
    /// Fires when what could not be given back perhaps can be now, or when somebody asks for the next try. That a step has ended is no
    /// such reason: each try that fails would begin the next.
    pub retry: Notify,
    /// Asks for a look at claims, domains and holders before its time.
    pub look_wanted: Notify,
    /// What the plain threads tell the engine, and the engine itself: where to look.
    pub events: mpsc::UnboundedSender<Event>,
    started: Instant,
}

type Job = Box<dyn FnOnce(Rc<Engine>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The engine as the bus objects see it: a bounded queue of calls.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Job>);

/// The other end of a [`Handle`].
#[derive(Debug)]
pub struct Jobs(mpsc::Receiver<Job>);

/// How many calls wait in the queue before further callers wait for a place.
const QUEUE: usize = 64;

/// A queue of calls and its two ends.
pub fn queue() -> (Handle, Jobs) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Handle(sender), Jobs(receiver))
}

impl Handle {
    /// Runs a call on the engine. The call goes on when the caller goes away.
    ///
    /// # Errors
    /// Those of the call; `Unavailable` when the daemon is stopping.
    pub async fn call<T, F, R>(&self, call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>) -> R + Send + 'static,
        R: Future<Output = Result<T>> + 'static,
    {
        let stopping = || Error::new(ErrorName::Unavailable, "mdevd is stopping; try again");
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            Box::pin(async move {
                // The caller may have gone away; the call was carried out all the same.
                let _ = reply.send(call(engine).await);
            })
        });
        self.0.send(job).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

impl Jobs {
    /// Starts each call as a task of its own, until every handle is gone.
    pub async fn serve(mut self, engine: Rc<Engine>) {
        while let Some(job) = self.0.recv().await {
            tokio::task::spawn_local(job(engine.clone()));
        }
    }
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(
        roots: Roots,
        exe: PathBuf,
        publisher: Publisher,
        config: Config,
        set_log_level: fn(tracing::Level),
        events: mpsc::UnboundedSender<Event>,
    ) -> Rc<Self> {
        Rc::new(Self {
            busy: BusyLocks::new(&roots),
            claim_files: ClaimFiles::new(&roots),
            roots,
            exe,
            scanner: Scanner::new(),
            publisher,
            state: RefCell::new(State { config, ..State::default() }),
            set_log_level,
            changed: Notify::new(),
            retry: Notify::new(),
            look_wanted: Notify::new(),
            events,
            started: Instant::now(),
        })
    }

    /// Seconds since the daemon started, on a clock that never steps back.
    pub fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// A claim by id.
    pub fn claim(&self, id: &Uuid) -> Option<Arc<Claim>> {
        self.state.borrow().claims.get(id).cloned()
    }

    /// Changes a claim in memory and on disk; nothing when it is gone.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be written; it is changed in memory all the same.
    pub fn update_claim(&self, id: &Uuid, change: impl FnOnce(&mut Claim)) -> Result<()> {
        let claim = {
            let mut state = self.state.borrow_mut();
            let Some(claim) = state.claims.get_mut(id) else { return Ok(()) };
            change(Arc::make_mut(claim));
            claim.clone()
        };
        self.changed.notify_waiters();
        self.save_claim(&claim)
    }

    /// Writes a claim to disk.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be written.
    pub fn save_claim(&self, claim: &Claim) -> Result<()> {
        let note = format!("claim {}", claim.id);
        match self.claim_files.save(&claim.id, claim) {
            Ok(()) => {
                self.state.borrow_mut().notes.remove(&note);
                Ok(())
            }
            Err(error) => {
                let message = format!("the claim of {} cannot be written: {error}", claim.owner);
                self.state.borrow_mut().notes.insert(note, message.clone());
                let full = [Errno::NOSPC, Errno::DQUOT].iter().any(|errno| error.is(*errno));
                let advice = if full { "make room in /run" } else { "mdevd must be able to write there" };
                Err(Error::new(ErrorName::Unavailable, format!("{message}; {advice}")))
            }
        }
    }

    /// Forgets a claim, in memory and on disk.
    pub fn drop_claim(&self, id: &Uuid) {
        if let Err(error) = self.claim_files.remove(id) {
            tracing::error!("the claim {id} cannot be deleted: {error}");
            self.state.borrow_mut().notes.insert(format!("claim {id}"), format!("its file cannot be deleted: {error}"));
        } else {
            self.state.borrow_mut().notes.remove(&format!("claim {id}"));
        }
        let mut state = self.state.borrow_mut();
        let ended = state.claims.remove(id);
        state.absent_since.remove(id);
        state.notes.remove(&look::note_of(id));
        let keys: Vec<DeviceKey> = ended.iter().flat_map(|claim| claim.grants.iter().map(Grant::key)).collect();
        let lent = keys.iter().any(|key| state.claims.values().any(|other| other.grant(*key).is_some()));
        drop(state);
        self.changed.notify_waiters();
        // Whose device it had borrowed can give that back now.
        if lent {
            self.retry.notify_waiters();
        }
    }

    /// Waits for the next change of a claim or of what is stuck, at most until `deadline`. False when the deadline came first.
    pub async fn change_before(&self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.changed.notified()).await.is_ok()
    }

    /// Tells the bus what has changed since the last time, and returns when it has been told.
    pub async fn publish(self: &Rc<Self>) {
        self.publisher.publish(self).await;
    }

    /// Tells the bus how far something has come, unless what this returns is dropped within [`SOON`]: what is quick has nothing to show
    /// on its way, and those who look on are not worth that a VM starts later.
    #[must_use]
    pub fn publish_unless_quick(self: &Rc<Self>) -> oneshot::Sender<()> {
        let (quick, through) = oneshot::channel();
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            if tokio::time::timeout(SOON, through).await.is_err() {
                engine.publish().await;
            }
        });
        quick
    }

    /// What is wrong at present: subject, since (seconds since 1970), message.
    pub fn current_problems(&self) -> Vec<(String, u64, String)> {
        let mut state = self.state.borrow_mut();
        let mut now: BTreeSet<(String, String)> = state.notes.iter().map(|(s, m)| (s.clone(), m.clone())).collect();
        for parent in state.inventory.parents() {
            now.extend(parent.problems.iter().map(|problem| (parent.name.to_string(), problem.clone())));
        }
        for (parent, why) in &state.stuck_parents {
            now.insert((parent.to_string(), why.clone()));
        }
        for mdev in state.inventory.mdevs() {
            if let DeviceState::Stuck(why) = &mdev.state {
                now.insert((mdev.uuid.to_string(), why.clone()));
            }
        }
        for function in state.inventory.functions() {
            let subject = function.address.to_string();
            now.extend(function.problems.iter().map(|problem| (subject.clone(), problem.clone())));
            if let DeviceState::Stuck(why) = &function.state {
                now.insert((subject, why.clone()));
            }
        }
        for claim in state.claims.values() {
            // One that is ready has a problem when a device of it has vanished.
            let wrong = matches!(claim.state, ClaimState::Failed | ClaimState::Ready) && !claim.problem.is_empty();
            if wrong {
                now.insert((format!("claim {}", claim.id), format!("{}: {}", claim.owner, claim.problem)));
            }
        }
        let unix = unix_now();
        let known = std::mem::take(&mut state.problems);
        state.problems = now
            .into_iter()
            .map(|key| {
                let since = known.get(&key).copied().unwrap_or(unix);
                (key, since)
            })
            .collect();
        state.problems.iter().map(|((subject, message), since)| (subject.clone(), *since, message.clone())).collect()
    }
}

impl State {
    /// What a choice is made from, over the given claims.
    pub fn context<'a>(&'a self, claims: &'a [&'a Claim], refused: &'a [(ParentName, String)]) -> Context<'a> {
        Context {
            inventory: &self.inventory,
            claims,
            excluded: &self.config.excluded,
            placement: self.config.placement,
            refused,
        }
    }
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
