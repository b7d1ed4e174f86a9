//! What a start finds: claims of the daemon before, writes of its writers that are still in flight, and what was half done. Facts
//! decide: devices are not touched unless a claim says that its making had not been finished.

use std::rc::Rc;
use std::sync::Arc;

use mdevd_core::claim::{Claim, ClaimState};
use tokio::sync::mpsc;

use super::Engine;
use super::release::{begin_end, is_of_end};
use super::scan::Event;
use super::steps::parse_busy_key;

impl Engine {
    /// Loads the claims and looks at the host. Nothing is written to a device yet.
    pub async fn load(self: &Rc<Self>, events: &mpsc::UnboundedSender<Event>) {
        self.find_writes_in_flight(events);
        self.tell_hook();
        let (claims, problems) = self.claim_files.load();
        {
            let mut state = self.state.borrow_mut();
            for problem in problems {
                tracing::error!("{problem}");
                state.notes.insert(format!("claim file {}", problem.path.display()), problem.why);
            }
            for (id, claim) in claims {
                if id != claim.id {
                    let problem = self.claim_files.set_aside(&id, &format!("it holds the claim {}", claim.id));
                    tracing::error!("{problem}");
                    state.notes.insert(format!("claim file {}", problem.path.display()), problem.why);
                    continue;
                }
                tracing::info!("claim {} of {}: {}", claim.id, claim.owner, claim.state.as_str());
                state.claims.insert(claim.id, Arc::new(claim));
            }
        }
        self.rescan().await;
    }

    /// Ends what was half done, reads the marks of runs that ended meanwhile, and adopts what runs.
    pub async fn recover(self: &Rc<Self>) {
        let claims: Vec<Arc<Claim>> = self.state.borrow().claims.values().cloned().collect();
        for claim in claims {
            match claim.state {
                ClaimState::Ready => {}
                // A call that came as soon as the bus had our name.
                _ if self.state.borrow().working.contains(&claim.id) => {}
                ClaimState::Releasing | ClaimState::Failed if is_of_end(&claim.plan) => self.finish_behind(claim.id),
                // Being prepared, and perhaps its release had come already. Whoever asked got no answer, so no VM starts with what was
                // begun for it.
                ClaimState::Planned | ClaimState::Preparing | ClaimState::Releasing | ClaimState::Failed => {
                    let why = "mdevd was stopped while preparing it";
                    let written = self.update_claim(&claim.id, |claim| begin_end(claim, why));
                    if let Err(error) = written {
                        tracing::error!("{error}");
                    }
                    self.finish_behind(claim.id);
                }
            }
        }
        self.take_released_marks().await;
        self.reconcile(false).await;
    }

    /// A lock that is taken is a write that has not come back: its device is stuck until it does.
    fn find_writes_in_flight(self: &Rc<Self>, events: &mpsc::UnboundedSender<Event>) {
        let keys = self.busy.in_flight().unwrap_or_else(|error| {
            tracing::error!("the locks of writes in flight cannot be read: {error}");
            self.state
                .borrow_mut()
                .notes
                .insert("busy".into(), format!("the locks of writes in flight cannot be read: {error}"));
            Vec::new()
        });
        for key in keys {
            let Some((device, parent)) = parse_busy_key(&key) else {
                tracing::warn!("a write under the unknown lock '{key}' is in flight");
                continue;
            };
            let why = "a write that began before mdevd was restarted has not come back from the kernel".to_string();
            tracing::warn!("{device}: {why}");
            let mut state = self.state.borrow_mut();
            state.stuck.insert(device, why.clone());
            if let Some(parent) = parent {
                state.stuck_parents.insert(parent, why);
            }
            drop(state);
            let (busy, events) = (self.busy.clone(), events.clone());
            let waiter = std::thread::Builder::new().name("busy".into()).spawn(move || {
                if let Err(error) = busy.wait_free(&key) {
                    tracing::error!("cannot wait for the write under {key}: {error}");
                    return;
                }
                // An error means that the daemon is stopping.
                let _ = events.send(Event::WriteEnded(key));
            });
            if let Err(error) = waiter {
                tracing::error!("cannot wait for {device}: {error}");
            }
        }
    }

    /// A write of the daemon before has come back: the facts are final now.
    pub async fn write_ended(self: &Rc<Self>, key: &str) {
        let Some((device, parent)) = parse_busy_key(key) else { return };
        tracing::info!("{device}: the write of the daemon before has come back from the kernel");
        self.unmark_stuck(device, parent.as_ref()).await;
    }
}
