//! What the kernel says: looks at parents and devices on the scan thread, taken into the inventory; and kernel events, which say where
//! to look again.

use std::collections::BTreeSet;
use std::rc::Rc;

use mdevd_core::holders::Holders;
use mdevd_core::inventory::Mdev;
use mdevd_core::names::{DeviceKey, MdevUuid, ParentName};
use mdevd_host::error::EffectError;
use tokio::sync::mpsc;

use super::Engine;
use crate::scanner::{Hung, JOB_DEADLINE};

/// What a plain thread tells the engine.
#[derive(Debug)]
pub enum Event {
    /// The kernel says that something on this parent has changed.
    Parent(ParentName),
    /// Events were lost: only a look at everything helps. The text says why.
    Lost(String),
    /// A mark of an ended run has appeared.
    Released,
    /// libvirt has written or deleted a status file.
    Domains,
    /// A lock of a write that was in flight before this daemon started is free.
    WriteEnded(String),
}

/// How many looks one full rescan asks for before it lets other work see the result.
const LOOKS_PER_PUBLICATION: usize = 64;

impl Engine {
    /// Takes events in as they come. Those that have piled up while a look was under way are one look.
    pub async fn serve_events(self: Rc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(first) = events.recv().await {
            let mut parents = BTreeSet::new();
            let (mut lost, mut released, mut domains) = (None, false, false);
            let mut next = Some(first);
            while let Some(event) = next {
                match event {
                    Event::Parent(parent) => {
                        parents.insert(parent);
                    }
                    Event::Lost(why) => lost = Some(why),
                    Event::Released => released = true,
                    Event::Domains => domains = true,
                    Event::WriteEnded(key) => self.write_ended(&key).await,
                }
                next = events.try_recv().ok();
            }
            if let Some(why) = lost {
                tracing::warn!("kernel events were lost ({why}); looking at everything again");
                self.rescan().await;
            } else {
                for parent in &parents {
                    self.refresh_parent(parent).await;
                }
            }
            if released {
                self.take_released_marks().await;
            }
            if domains {
                // A look of its own task: it waits for /proc, and events go on.
                let engine = self.clone();
                tokio::task::spawn_local(async move { engine.reconcile(false).await });
            }
            self.publish().await;
        }
    }

    /// Looks at every parent.
    pub async fn rescan(self: &Rc<Self>) {
        let roots = self.roots.clone();
        let listed = self.scanner.run(move || mdevd_host::scan::list_parents(&roots)).await;
        let parents = match listed {
            Ok(Ok((parents, problems))) => {
                let mut state = self.state.borrow_mut();
                state.notes.retain(|subject, _| !subject.starts_with("scan "));
                for problem in problems {
                    state.notes.insert(format!("scan {}", problem.path.display()), problem.why);
                }
                parents
            }
            Ok(Err(error)) => return self.note("scan", format!("the mdev parents cannot be listed: {error}")),
            Err(_) => return self.note("scan", "listing the mdev parents does not come back from the kernel".into()),
        };
        let gone: Vec<ParentName> = {
            let state = self.state.borrow();
            let listed: BTreeSet<&ParentName> = parents.iter().collect();
            state
                .inventory
                .parents()
                .map(|parent| &parent.name)
                .filter(|name| !listed.contains(name))
                .cloned()
                .collect()
        };
        for parent in gone {
            self.state.borrow_mut().inventory.remove_parent(&parent);
        }
        for (i, parent) in parents.iter().enumerate() {
            self.refresh_parent(parent).await;
            if i % LOOKS_PER_PUBLICATION == LOOKS_PER_PUBLICATION - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.state.borrow_mut().notes.remove("scan");
    }

    fn note(&self, subject: &str, message: String) {
        tracing::warn!("{subject}: {message}");
        self.state.borrow_mut().notes.insert(subject.into(), message);
    }

    /// Looks at one parent. One that is stuck is not read at all but stays as it was last seen.
    pub async fn refresh_parent(self: &Rc<Self>, name: &ParentName) {
        let skip: BTreeSet<MdevUuid> = {
            let state = self.state.borrow();
            if state.stuck_parents.contains_key(name) {
                return;
            }
            state.in_flight.iter().chain(state.stuck_mdevs.keys()).copied().collect()
        };
        let (roots, parent, skipped) = (self.roots.clone(), name.clone(), skip.clone());
        let scan = self
            .scanner
            .run(move || mdevd_host::scan::scan_parent(&roots, &parent, &|uuid| skipped.contains(uuid)))
            .await;
        match scan {
            Ok(Ok(Some(mut scan))) => {
                let mut state = self.state.borrow_mut();
                // A write began while the look was under way: what the look saw of its device is a moment in the middle.
                let also = state.in_flight.clone();
                scan.mdevs.retain(|mdev| !also.contains(&mdev.uuid));
                let kept: Vec<Mdev> = state
                    .inventory
                    .mdevs_on(name)
                    .filter(|mdev| skip.contains(&mdev.uuid) || also.contains(&mdev.uuid))
                    .map(|mdev| (**mdev).clone())
                    .collect();
                for mdev in kept {
                    if scan.mdevs.iter().all(|seen| seen.uuid != mdev.uuid) {
                        scan.mdevs.push(mdev);
                    }
                }
                state.notes.remove(&format!("parent {name}"));
                state.inventory.update(scan);
            }
            Ok(Ok(None)) => self.state.borrow_mut().inventory.remove_parent(name),
            Ok(Err(error)) => self.note(&format!("parent {name}"), format!("it cannot be read: {error}")),
            Err(hung) => self.parent_hangs(name, hung),
        }
    }

    fn parent_hangs(self: &Rc<Self>, name: &ParentName, hung: Hung) {
        let why = format!("reading it has not come back from the kernel in {} s", JOB_DEADLINE.as_secs());
        tracing::warn!("{name}: {why}");
        {
            let mut state = self.state.borrow_mut();
            state.stuck_parents.insert(name.clone(), why.clone());
            state.inventory.mark_parent_stuck(name, &why);
        }
        let (engine, name) = (self.clone(), name.clone());
        tokio::task::spawn_local(async move {
            hung.ended().await;
            engine.state.borrow_mut().stuck_parents.remove(&name);
            engine.refresh_parent(&name).await;
            engine.changed.notify_waiters();
            engine.publish().await;
        });
    }

    /// Looks at single devices, whether they exist and as what.
    ///
    /// # Errors
    /// A sentence when the look does not come back or cannot be made; the inventory is then as it was.
    pub async fn refresh_mdevs(self: &Rc<Self>, uuids: &[MdevUuid]) -> Result<(), String> {
        let (roots, list) = (self.roots.clone(), uuids.to_vec());
        let looks = self
            .scanner
            .run(move || {
                let look = |uuid: &MdevUuid| Ok((*uuid, mdevd_host::scan::scan_mdev(&roots, uuid)?));
                list.iter().map(look).collect::<Result<Vec<(MdevUuid, Option<Mdev>)>, EffectError>>()
            })
            .await
            .map_err(|_| "looking at the device does not come back from the kernel".to_string())?
            .map_err(|error| error.to_string())?;
        let mut state = self.state.borrow_mut();
        for (uuid, seen) in looks {
            if let Some(why) = state.stuck_mdevs.get(&uuid).cloned() {
                state.inventory.mark_mdev_stuck(&uuid, &why);
                continue;
            }
            match seen {
                Some(mdev) => state.inventory.insert_mdev(mdev),
                None => state.inventory.remove_mdev(&uuid),
            }
        }
        Ok(())
    }

    /// Who holds each of these devices, read now.
    pub async fn holders(&self, uuids: &[MdevUuid]) -> Vec<(MdevUuid, Holders)> {
        let devices: Vec<_> = {
            let state = self.state.borrow();
            let group = |uuid: &MdevUuid| state.inventory.mdev(uuid).and_then(|mdev| mdev.iommu_group);
            uuids.iter().map(|uuid| (DeviceKey::Mdev(*uuid), group(uuid))).collect()
        };
        let roots = self.roots.clone();
        let unknown = |why: &str| uuids.iter().map(|uuid| (*uuid, Holders::Unknown(why.into()))).collect();
        match self.scanner.run(move || mdevd_host::holders::holders(&roots, &devices)).await {
            Ok(mut found) => {
                let unnamed = || Holders::Unknown("the look at /proc left it out".into());
                uuids
                    .iter()
                    .map(|uuid| (*uuid, found.remove(&DeviceKey::Mdev(*uuid)).unwrap_or_else(unnamed)))
                    .collect()
            }
            Err(_) => unknown("reading /proc does not come back"),
        }
    }
}
