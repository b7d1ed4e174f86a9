//! What the kernel says of PCI functions: looks at them on the scan thread, taken into the inventory, with what lives on them and what
//! their physical function's network driver says.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use mdevd_core::check::check_function;
use mdevd_core::claim::{ClaimState, Undo};
use mdevd_core::function::{Function, PciIds, Role};
use mdevd_core::inventory::DeviceState;
use mdevd_core::names::{DeviceKey, PciAddress};
use mdevd_host::facts::{SystemPaths, host_facts};
use mdevd_host::pci::names::PciNames;
use mdevd_host::pci::variants::VariantDrivers;
use mdevd_host::roots::{MODULES, PCI_IDS};

use super::scan::Event;
use super::{Engine, State};
use crate::scanner::JOB_DEADLINE;

/// What PCI functions are called and which VFIO drivers there are for them: files of the distribution, not of the kernel's state.
#[derive(Debug, Default)]
pub struct PciWords {
    names: PciNames,
    variants: VariantDrivers,
}

impl Engine {
    /// Looks at every PCI function.
    pub async fn rescan_functions(self: &Rc<Self>) {
        let roots = self.roots.clone();
        let listed = self.scanner.run(move || mdevd_host::pci::list_functions(&roots)).await;
        let addresses = match listed {
            Ok(Ok((addresses, problems))) => {
                let mut state = self.state.borrow_mut();
                for problem in problems {
                    state.notes.insert(format!("scan {}", problem.path.display()), problem.why);
                }
                addresses
            }
            Ok(Err(error)) => return self.note("pci", format!("the PCI functions cannot be listed: {error}")),
            Err(_) => return self.note("pci", "listing the PCI functions does not come back from the kernel".into()),
        };
        self.state.borrow_mut().notes.remove("pci");
        self.read_pci_words(&addresses).await;
        self.refresh_facts().await;
        // What cannot be found out is listed there.
        let _ = self.refresh_critical().await;
        let gone: Vec<PciAddress> = {
            let state = self.state.borrow();
            let known = state.inventory.functions().map(|function| function.address);
            // Also what went while mdevd was away.
            let claimed =
                state.claims.values().flat_map(|claim| claim.grants.iter().filter_map(|grant| grant.key().pci()));
            known.chain(claimed).filter(|address| !addresses.contains(address)).collect()
        };
        // One that is not in the list may have come since that was made: the look at it itself says.
        for address in gone.into_iter().chain(addresses) {
            // What cannot be read is listed where it is found out.
            let _ = self.refresh_function(address).await;
        }
    }

    async fn read_pci_words(&self, addresses: &[PciAddress]) {
        let (roots, addresses) = (self.roots.clone(), addresses.to_vec());
        let read = self
            .scanner
            .run(move || {
                // One that cannot be read is for the look at the function itself to report.
                let ids =
                    addresses.iter().filter_map(|address| mdevd_host::pci::ids_of(&roots, address).ok().flatten());
                let wanted: BTreeSet<PciIds> = ids.collect();
                let (names, mut problems) = PciNames::load(&PCI_IDS, &wanted);
                let (variants, more) = VariantDrivers::load(&roots, Path::new(MODULES));
                problems.extend(more);
                (PciWords { names, variants }, problems)
            })
            .await;
        if let Ok((words, problems)) = read {
            let mut state = self.state.borrow_mut();
            for problem in problems {
                state.notes.insert(format!("scan {}", problem.path.display()), problem.why);
            }
            state.pci_words = Arc::new(words);
        }
    }

    /// Looks at what the host is made of: its IOMMU, the modules it has.
    async fn refresh_facts(&self) {
        let roots = self.roots.clone();
        if let Ok(facts) = self.scanner.run(move || host_facts(&roots, &SystemPaths::default())).await {
            let mut state = self.state.borrow_mut();
            state.judged = false;
            state.host_facts = facts;
        }
    }

    /// Looks at what of the host lives on which function.
    ///
    /// # Errors
    /// `Stuck` when the look does not come back. What was known before stays and is shown, but says nothing of now: nothing is to be
    /// written then.
    pub async fn refresh_critical(self: &Rc<Self>) -> crate::error::Result<()> {
        let roots = self.roots.clone();
        let looked = self.scanner.run(move || mdevd_host::critical::host_critical(&roots)).await;
        let mut state = self.state.borrow_mut();
        match looked {
            Ok((critical, problems)) => {
                state.critical = critical;
                state.judged = false;
                state.notes.retain(|subject, _| subject != "host" && !subject.starts_with("host "));
                for problem in problems {
                    state.notes.insert(format!("host {}", problem.path.display()), problem.why);
                }
                let changed: Vec<Function> = state
                    .inventory
                    .functions()
                    .filter_map(|function| {
                        let host_critical = state.critical_of(function.address);
                        let same = host_critical == function.host_critical;
                        (!same).then(|| Function { host_critical, ..Function::clone(function) })
                    })
                    .collect();
                for function in changed {
                    state.inventory.insert_function(function);
                }
                Ok(())
            }
            Err(_) => {
                let why = "what the host itself needs is not known: reading it does not come back from the kernel";
                state.notes.insert("host".into(), why.into());
                let message = format!("{why}; until it does no function is changed; try again");
                Err(crate::error::Error::new(mdevd_dbus::ErrorName::Stuck, message))
            }
        }
    }

    /// Looks at one function. One that is stuck is not read at all but stays as it was last seen.
    ///
    /// # Errors
    /// A sentence when it is stuck, or its look does not come back or cannot be made.
    pub async fn refresh_function(self: &Rc<Self>, address: PciAddress) -> Result<(), String> {
        let key = DeviceKey::Pci(address);
        let words = {
            let mut state = self.state.borrow_mut();
            if let Some(why) = state.stuck.get(&key).cloned() {
                state.show_stuck_function(address, &why);
                return Err(format!("{address} is stuck: {why}"));
            }
            // A step is under way: what it has done is for its own read-back to say.
            if state.in_flight.contains(&key) {
                return Ok(());
            }
            state.pci_words.clone()
        };
        let roots = self.roots.clone();
        let look = move || mdevd_host::pci::scan_function(&roots, &address, &words.names, &words.variants);
        match self.scanner.run(look).await {
            Ok(Ok(Some(mut function))) => {
                self.ask_driver(&mut function).await;
                let mut state = self.state.borrow_mut();
                if state.in_flight.contains(&key) {
                    return Ok(());
                }
                function.host_critical = state.critical_of(address);
                state.notes.remove(&format!("function {address}"));
                state.judged = false;
                state.inventory.insert_function(function);
                Ok(())
            }
            Ok(Ok(None)) => {
                self.function_is_gone(address);
                Ok(())
            }
            Ok(Err(error)) => {
                let why = format!("it cannot be read: {error}");
                self.note(&format!("function {address}"), why.clone());
                Err(format!("{address}: {why}"))
            }
            Err(hung) => {
                let why = format!("reading it has not come back from the kernel in {} s", JOB_DEADLINE.as_secs());
                tracing::warn!("{address}: {why}");
                {
                    let mut state = self.state.borrow_mut();
                    // A write that hangs there as well is a reason of its own, and has its own end.
                    let shown = state.stuck.entry(key).or_insert_with(|| why.clone()).clone();
                    state.show_stuck_function(address, &shown);
                }
                let said = format!("{address} is stuck: {why}");
                let engine = self.clone();
                tokio::task::spawn_local(async move {
                    hung.ended().await;
                    let own = engine.state.borrow().stuck.get(&key) == Some(&why);
                    if own {
                        engine.unmark_stuck(key, None).await;
                    }
                });
                Err(said)
            }
        }
    }

    /// What a physical function's network driver says of its virtual functions. One that does not answer is no less usable for what does
    /// not need that. There is no network behind a simulated sysfs.
    async fn ask_driver(&self, function: &mut Function) {
        let address = function.address;
        let Some(netdev) = function.netdevs.first().map(|netdev| netdev.name.clone()) else { return };
        let Role::Pf(physical) = &mut function.role else { return };
        if physical.total_vfs == 0 || !self.roots.is_this_host() {
            return;
        }
        if let Ok(Ok(Some(mode))) = self.scanner.run(move || mdevd_host::netlink::eswitch_mode(address)).await {
            physical.eswitch_mode = mode.into();
        }
        if physical.vfs.is_empty() {
            return;
        }
        match self.scanner.run(move || mdevd_host::netlink::vf_settings(&netdev)).await {
            Ok(Ok(settings)) => physical.vf_settings = settings,
            Ok(Err(error)) => physical.settings_unread = Some(error.to_string()),
            Err(_) => physical.settings_unread = Some("the kernel does not answer".into()),
        }
        if let Some(why) = &mut physical.settings_unread {
            why.insert_str(0, "the settings of its virtual functions are not known: ");
            function.problems.push(why.clone());
        }
    }

    /// A function has left the host: pulled out, or its physical function has dropped it. A claim on it has nothing to give back there any
    /// more, also when another one gets its address.
    fn function_is_gone(&self, address: PciAddress) {
        let key = DeviceKey::Pci(address);
        let claims: Vec<_> = {
            let mut state = self.state.borrow_mut();
            if let Some(Role::Vf { pf, .. }) = state.inventory.function(&address).map(|function| &function.role) {
                // Its link is gone with it. An error means that the daemon is stopping.
                let _ = self.events.send(Event::Function(*pf));
            }
            state.judged = false;
            state.inventory.remove_function(&address);
            state.notes.remove(&format!("function {address}"));
            let lost = |claim: &&Arc<mdevd_core::claim::Claim>| {
                claim.state == ClaimState::Ready && claim.grant(key).is_some_and(|grant| grant.undo != Undo::Keep)
            };
            state.claims.values().filter(lost).map(|claim| claim.id).collect()
        };
        for id in claims {
            let written = self.update_claim(&id, |claim| {
                for grant in claim.grants.iter_mut().filter(|grant| grant.key() == key) {
                    grant.undo = Undo::Keep;
                }
                claim.problem = format!("its device {address} has vanished from the host");
                tracing::warn!("claim {id} of {}: {}", claim.owner, claim.problem);
            });
            if let Err(error) = written {
                tracing::error!("{error}");
            }
        }
    }

    /// Looks at a physical function and at its virtual ones: those that it has, and those that it had.
    pub async fn refresh_card(self: &Rc<Self>, address: PciAddress) {
        let pf = self.pf_of(address);
        // What cannot be read is listed where it is found out.
        let _ = self.refresh_function(pf).await;
        let vfs: Vec<PciAddress> = {
            let state = self.state.borrow();
            let had = state.inventory.vfs_of(pf).map(|vf| vf.address);
            let has = match state.inventory.function(&pf).map(|function| &function.role) {
                Some(Role::Pf(physical)) => physical.vfs.values().copied().collect(),
                _ => Vec::new(),
            };
            let mut all: Vec<PciAddress> = had.chain(has).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        for vf in vfs {
            let _ = self.refresh_function(vf).await;
        }
    }

    /// A function that there is, looked at now.
    ///
    /// # Errors
    /// `NotFound`, or `Stuck`.
    pub async fn function_now(self: &Rc<Self>, address: PciAddress) -> crate::error::Result<Arc<Function>> {
        use mdevd_dbus::ErrorName;
        let error = crate::error::Error::new;
        self.refresh_function(address).await.map_err(|why| error(ErrorName::Stuck, why))?;
        let found = self.state.borrow().inventory.function(&address).cloned();
        let found = found.ok_or_else(|| error(ErrorName::NotFound, format!("there is no PCI function {address}")))?;
        match &found.state {
            DeviceState::Ok => Ok(found),
            DeviceState::Stuck(why) => Err(error(ErrorName::Stuck, format!("{address} is stuck: {why}"))),
        }
    }
}

impl State {
    /// Judges every function anew where something has changed.
    pub fn judge_functions(&mut self) {
        if !std::mem::replace(&mut self.judged, true) {
            let judge = |function: &Arc<Function>| {
                (function.address, check_function(&self.inventory, function, &self.host_facts).verdict.as_str())
            };
            self.verdicts = self.inventory.functions().map(judge).collect();
        }
    }

    /// Why the host itself needs a function.
    fn critical_of(&self, address: PciAddress) -> Vec<String> {
        self.critical.get(&address).cloned().unwrap_or_default()
    }

    /// Marks a function stuck. One that has never been seen, because it already was when the daemon started, is shown without what it is.
    fn show_stuck_function(&mut self, address: PciAddress, why: &str) {
        self.judged = false;
        if self.inventory.function(&address).is_some() {
            return self.inventory.mark_function_stuck(&address, why);
        }
        self.inventory.insert_function(Function {
            address,
            ids: PciIds::default(),
            class: 0,
            name: String::new(),
            driver: None,
            driver_override: None,
            iommu_group: None,
            numa_node: None,
            reset_methods: Vec::new(),
            role: Role::Pci,
            bridge: false,
            netdevs: Vec::new(),
            vgpu: None,
            variant_drivers: Vec::new(),
            host_critical: self.critical_of(address),
            state: DeviceState::Stuck(why.into()),
            problems: Vec::new(),
        });
    }
}
