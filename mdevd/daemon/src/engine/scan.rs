//! What the kernel says: looks at parents and devices on the scan thread, taken into the inventory; and kernel events, which say where
//! to look again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;

use mdevd_core::holders::Holders;
use mdevd_core::inventory::{DeviceState, Mdev, Parent, ParentScan};
use mdevd_core::names::{DeviceKey, MdevTypeId, MdevUuid, ParentName, PciAddress};
use mdevd_host::error::EffectError;
use tokio::sync::mpsc;

use super::{Engine, State};
use crate::scanner::{Hung, JOB_DEADLINE};

/// What a plain thread, or the engine itself, tells the engine.
#[derive(Debug)]
pub enum Event {
    /// The kernel says that something on this parent has changed, or a step on it is done.
    Parent(ParentName),
    /// The kernel says that something on this PCI function has changed.
    Function(PciAddress),
    /// A step on this PCI function is done: its physical function and that one's other virtual functions may have changed too.
    Card(PciAddress),
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
            let (mut parents, mut functions, mut cards) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let (mut lost, mut released, mut domains) = (None, false, false);
            let mut looked = false;
            let mut next = Some(first);
            while let Some(event) = next {
                match event {
                    Event::Parent(parent) => {
                        parents.insert(parent);
                    }
                    Event::Function(address) => {
                        functions.insert(address);
                    }
                    Event::Card(address) => {
                        cards.insert(self.pf_of(address));
                    }
                    Event::Lost(why) => lost = Some(why),
                    Event::Released => released = true,
                    Event::Domains => domains = true,
                    Event::WriteEnded(key) => {
                        self.write_ended(&key).await;
                        looked = true;
                    }
                }
                next = events.try_recv().ok();
            }
            if let Some(why) = lost {
                tracing::warn!("kernel events were lost ({why}); looking at everything again");
                self.rescan().await;
                looked = true;
            } else {
                for parent in &parents {
                    // A step under way there is what the kernel speaks of: its read-back does not wait for a look at the whole parent.
                    // The step's end is an event as well.
                    if !self.is_changing(parent) {
                        self.refresh_parent(parent).await;
                        looked = true;
                    }
                }
                looked |= !cards.is_empty() || !functions.is_empty();
                for pf in cards {
                    self.refresh_card(pf).await;
                }
                for address in functions {
                    // What cannot be read is listed where it is found out.
                    let _ = self.refresh_function(address).await;
                }
            }
            self.changed.notify_waiters();
            if released {
                self.take_released_marks().await;
            }
            if domains {
                self.look_wanted.notify_one();
            }
            // A step that is under way publishes what it has done itself.
            if looked || released {
                self.publish().await;
            }
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
            Err(hung) => {
                let engine = self.clone();
                tokio::task::spawn_local(async move {
                    hung.ended().await;
                    engine.rescan_boxed().await;
                    engine.publish().await;
                });
                return self.note("scan", "listing the mdev parents does not come back from the kernel".into());
            }
        };
        let gone: Vec<ParentName> = {
            let state = self.state.borrow();
            let listed: BTreeSet<&ParentName> = parents.iter().collect();
            let known = state.inventory.parents().map(|parent| parent.name.clone());
            // One that could never be read is known by that alone.
            let noted = state.notes.keys().filter_map(|subject| subject.strip_prefix("parent ")?.parse().ok());
            known.chain(noted).filter(|name| !listed.contains(name)).collect()
        };
        for parent in gone {
            self.state.borrow_mut().parent_is_gone(&parent);
        }
        for (i, parent) in parents.iter().enumerate() {
            self.refresh_parent(parent).await;
            if i % LOOKS_PER_PUBLICATION == LOOKS_PER_PUBLICATION - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.state.borrow_mut().notes.remove("scan");
        self.rescan_functions().await;
    }

    /// [`Self::rescan`] for a task that it starts itself.
    fn rescan_boxed(self: &Rc<Self>) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.rescan())
    }

    /// Lists something that is wrong.
    pub fn note(&self, subject: &str, message: String) {
        tracing::warn!("{subject}: {message}");
        self.state.borrow_mut().notes.insert(subject.into(), message);
    }

    /// Looks at one parent. One that is stuck is not read at all but stays as it was last seen.
    pub async fn refresh_parent(self: &Rc<Self>, name: &ParentName) {
        let skip: BTreeSet<MdevUuid> = {
            let mut state = self.state.borrow_mut();
            if let Some(why) = state.stuck_parents.get(name).cloned() {
                return state.show_stuck_parent(name, &why);
            }
            state.in_flight.iter().chain(state.stuck.keys()).filter_map(DeviceKey::mdev).collect()
        };
        let (roots, parent, skipped) = (self.roots.clone(), name.clone(), skip.clone());
        let scan = self
            .scanner
            .run(move || {
                let passed_over = RefCell::new(Vec::new());
                let skip = |uuid: &MdevUuid| {
                    let skip = skipped.contains(uuid);
                    passed_over.borrow_mut().extend(skip.then_some(*uuid));
                    skip
                };
                let scan = mdevd_host::scan::scan_parent(&roots, &parent, &skip);
                scan.map(|scan| scan.map(|scan| (scan, passed_over.into_inner())))
            })
            .await;
        match scan {
            Ok(Ok(Some((mut scan, passed_over)))) => {
                let changing = self.is_changing(name);
                let mut state = self.state.borrow_mut();
                // A write began while the look was under way: what the look saw of its device is a moment in the middle.
                let also = state.in_flight.clone();
                let also = |uuid: &MdevUuid| also.contains(&DeviceKey::Mdev(*uuid));
                scan.mdevs.retain(|mdev| !also(&mdev.uuid));
                let kept: Vec<Mdev> = state
                    .inventory
                    .mdevs_on(name)
                    .filter(|mdev| skip.contains(&mdev.uuid) || also(&mdev.uuid))
                    .map(|mdev| (**mdev).clone())
                    .collect();
                for mdev in kept {
                    if scan.mdevs.iter().all(|seen| seen.uuid != mdev.uuid) {
                        scan.mdevs.push(mdev);
                    }
                }
                // Stuck since before this daemon: there is no earlier picture of it.
                for uuid in passed_over {
                    if let Some(why) = state.stuck.get(&DeviceKey::Mdev(uuid))
                        && scan.mdevs.iter().all(|seen| seen.uuid != uuid)
                    {
                        let mdev = state.stuck_mdev(uuid, name, why);
                        scan.mdevs.push(mdev);
                    }
                }
                // What is being made may be counted by the kernel already, and is counted as promised as long as it is not there. The
                // step's end has the whole parent looked at once more.
                let known = state.inventory.parent(name).filter(|_| changing);
                for (id, known) in known.iter().flat_map(|parent| &parent.types) {
                    if let Some(seen) = scan.parent.types.get_mut(id) {
                        seen.available = known.available;
                    }
                }
                state.notes.remove(&format!("parent {name}"));
                state.inventory.update(scan);
            }
            Ok(Ok(None)) => self.state.borrow_mut().parent_is_gone(name),
            Ok(Err(error)) => self.note(&format!("parent {name}"), format!("it cannot be read: {error}")),
            Err(hung) => self.parent_hangs(name, hung),
        }
    }

    fn parent_hangs(self: &Rc<Self>, name: &ParentName, hung: Hung) {
        let why = format!("reading it has not come back from the kernel in {} s", JOB_DEADLINE.as_secs());
        tracing::warn!("{name}: {why}");
        {
            let mut state = self.state.borrow_mut();
            // A write that hangs there as well is a reason of its own, and has its own end.
            let shown = state.stuck_parents.entry(name.clone()).or_insert_with(|| why.clone()).clone();
            state.show_stuck_parent(name, &shown);
        }
        let (engine, name) = (self.clone(), name.clone());
        tokio::task::spawn_local(async move {
            hung.ended().await;
            if engine.state.borrow().stuck_parents.get(&name) != Some(&why) {
                return;
            }
            engine.state.borrow_mut().stuck_parents.remove(&name);
            engine.refresh_parent(&name).await;
            engine.changed.notify_waiters();
            engine.retry.notify_waiters();
            engine.publish().await;
        });
    }

    /// Whether a step is under way on a parent.
    fn is_changing(&self, parent: &ParentName) -> bool {
        self.state.borrow().locks.get(parent.as_str()).is_some_and(|lock| lock.try_lock().is_err())
    }

    /// Looks at how many of one type a parent has left. One that does not say, or does not come back, is found out by the look at the
    /// whole parent that follows.
    pub async fn refresh_available(self: &Rc<Self>, parent: &ParentName, mdev_type: MdevTypeId) {
        let Some(path) = self.state.borrow().inventory.parent(parent).map(|parent| parent.path.clone()) else { return };
        let (roots, id) = (self.roots.clone(), mdev_type.clone());
        let look = self.scanner.run(move || mdevd_host::scan::available(&roots, &path, &id)).await;
        if let Ok(Some(available)) = look {
            self.state.borrow_mut().inventory.set_available(parent, &mdev_type, available);
        }
    }

    /// Looks at single devices, whether they exist and as what. One that is stuck is not read, nor one with a write in flight: what that
    /// has done is for its own read-back to say.
    ///
    /// # Errors
    /// A sentence when one is stuck, or its look does not come back or cannot be made; what is known of it is then as it was.
    pub async fn refresh_mdevs(self: &Rc<Self>, uuids: &[MdevUuid]) -> Result<(), String> {
        for uuid in uuids {
            if let Some(why) = self.state.borrow().stuck.get(&DeviceKey::Mdev(*uuid)) {
                return Err(format!("{uuid} is stuck: {why}"));
            }
            let in_flight = || self.state.borrow().in_flight.contains(&DeviceKey::Mdev(*uuid));
            if in_flight() {
                continue;
            }
            let half_removed = self.half_removed(uuid);
            let folder = half_removed.as_ref().map(|(folder, _)| folder.clone());
            // Each is a job of its own, so that it is known which one hangs.
            let (roots, looked_at) = (self.roots.clone(), *uuid);
            let look = move || {
                let seen = mdevd_host::scan::scan_mdev(&roots, &looked_at)?;
                Ok::<_, EffectError>((seen, folder.is_some_and(|folder| folder.exists())))
            };
            match self.scanner.run(look).await {
                // It began while the look was under way: what that saw is a moment in the middle.
                Ok(_) if in_flight() => {}
                Ok(Ok((Some(mdev), _))) => self.state.borrow_mut().inventory.insert_mdev(mdev),
                Ok(Ok((None, true))) => {
                    let why = half_removed.map(|(_, why)| why).unwrap_or_default();
                    return Err(format!("{uuid} is stuck: {why}"));
                }
                Ok(Ok((None, false))) => self.state.borrow_mut().inventory.remove_mdev(uuid),
                Ok(Err(error)) => return Err(error.to_string()),
                Err(hung) => return Err(self.mdev_hangs(*uuid, hung)),
            }
        }
        Ok(())
    }

    /// The folder of a device that was half removed when it was last seen, and why: it can no longer be found by its UUID.
    fn half_removed(&self, uuid: &MdevUuid) -> Option<(PathBuf, String)> {
        let state = self.state.borrow();
        let mdev = state.inventory.mdev(uuid)?;
        let DeviceState::Stuck(why) = &mdev.state else { return None };
        let parent = state.inventory.parent(&mdev.parent)?;
        Some((self.roots.sys.join(&parent.path).join(uuid.to_string()), why.clone()))
    }

    fn mdev_hangs(self: &Rc<Self>, uuid: MdevUuid, hung: Hung) -> String {
        let why = format!("reading it has not come back from the kernel in {} s", JOB_DEADLINE.as_secs());
        tracing::warn!("{uuid}: {why}");
        {
            let mut state = self.state.borrow_mut();
            // A write that hangs there as well is a reason of its own, and has its own end.
            let shown = state.stuck.entry(DeviceKey::Mdev(uuid)).or_insert_with(|| why.clone()).clone();
            state.inventory.mark_mdev_stuck(&uuid, &shown);
        }
        let said = format!("{uuid} is stuck: {why}");
        let engine = self.clone();
        tokio::task::spawn_local(async move {
            hung.ended().await;
            let own = engine.state.borrow().stuck.get(&DeviceKey::Mdev(uuid)) == Some(&why);
            if own {
                engine.unmark_stuck(DeviceKey::Mdev(uuid), None).await;
            }
        });
        said
    }

    /// Looks at single devices of either kind.
    ///
    /// # Errors
    /// A sentence when one is stuck, or its look does not come back or cannot be made; what is known of it is then as it was.
    pub async fn refresh(self: &Rc<Self>, devices: &[DeviceKey]) -> Result<(), String> {
        for device in devices {
            match device {
                DeviceKey::Mdev(uuid) => self.refresh_mdevs(&[*uuid]).await?,
                DeviceKey::Pci(address) => self.refresh_function(*address).await?,
            }
        }
        Ok(())
    }

    /// Who holds each of these devices, read now.
    pub async fn holders(&self, keys: &[DeviceKey]) -> Vec<(DeviceKey, Holders)> {
        let devices: Vec<_> = {
            let state = self.state.borrow();
            let group = |key: &DeviceKey| match key {
                DeviceKey::Mdev(uuid) => state.inventory.mdev(uuid).and_then(|mdev| mdev.iommu_group),
                DeviceKey::Pci(address) => state.inventory.function(address).and_then(|found| found.iommu_group),
            };
            keys.iter().map(|key| (*key, group(key))).collect()
        };
        let roots = self.roots.clone();
        let unknown = |why: &str| keys.iter().map(|key| (*key, Holders::Unknown(why.into()))).collect();
        match self.scanner.run(move || mdevd_host::holders::holders(&roots, &devices)).await {
            Ok(mut found) => {
                let unnamed = || Holders::Unknown("the look at /proc left it out".into());
                keys.iter().map(|key| (*key, found.remove(key).unwrap_or_else(unnamed))).collect()
            }
            Err(_) => unknown("reading /proc does not come back"),
        }
    }
}

impl State {
    /// A parent has left the host, and what was wrong with it has too.
    fn parent_is_gone(&mut self, name: &ParentName) {
        self.notes.remove(&format!("parent {name}"));
        self.inventory.remove_parent(name);
    }

    /// Marks a parent stuck. One that has never been seen, because it already was when the daemon started, is shown without types.
    fn show_stuck_parent(&mut self, name: &ParentName, why: &str) {
        if self.inventory.parent(name).is_some() {
            return self.inventory.mark_parent_stuck(name, why);
        }
        let mdevs = self.inventory.mdevs_on(name).map(|mdev| (**mdev).clone()).collect();
        let parent = Parent {
            name: name.clone(),
            path: String::new(),
            numa_node: None,
            driver: None,
            types: BTreeMap::new(),
            state: DeviceState::Stuck(why.into()),
            problems: Vec::new(),
        };
        self.inventory.update(ParentScan { parent, mdevs });
    }

    /// A device that must not be read, as the claim on it says it is.
    fn stuck_mdev(&self, uuid: MdevUuid, parent: &ParentName, why: &str) -> Mdev {
        let key = DeviceKey::Mdev(uuid);
        let grant = self.claims.values().find_map(|claim| claim.grant(key)?.mdev());
        Mdev {
            uuid,
            parent: parent.clone(),
            mdev_type: grant.map(|grant| grant.mdev_type.clone()),
            device_api: grant.map(|grant| grant.device_api.clone()).unwrap_or_default(),
            iommu_group: None,
            numa_node: self.inventory.parent(parent).and_then(|parent| parent.numa_node),
            driver: None,
            state: DeviceState::Stuck(why.into()),
        }
    }
}
