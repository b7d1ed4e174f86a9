//! How many virtual functions a physical one has, and functions that are bound by hand.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::choose::function::critical;
use mdevd_core::claim::{Claim, ClaimState, Grant, Owner};
use mdevd_core::function::{Function, PhysicalFunction, Role, VfSettings};
use mdevd_core::names::{DeviceKey, DriverName, ParentName, PciAddress, VgpuTypeId, printable};
use mdevd_core::plan::{Step, is_vfio, settings_of};
use mdevd_core::request::{FunctionNeed, FunctionOptions, Need, WantedFunction, XmlOptions};
use mdevd_dbus::ErrorName;
use tokio::time::Instant;
use uuid::Uuid;

use super::prepare::Draft;
use super::steps::{STEP_DEADLINE, Turn};
use super::{Engine, State};
use crate::error::{Error, Result};

/// How long a change that somebody asks for by hand may take, if they do not say; D-Bus clients usually wait for 25 s.
const DEADLINE: Duration = Duration::from_secs(20);

/// The longest that somebody may give it.
const LONGEST: Duration = Duration::from_secs(600);

/// How long a read of `sriov_numvfs` may take.
const NUMVFS_READ: Duration = Duration::from_secs(1);

/// How long without any event new virtual functions are given to get their drivers and network interfaces, once all of them are there.
/// A driver may first have to be loaded, and nothing says that one will come.
const SETTLED: Duration = Duration::from_secs(1);

impl Engine {
    /// Gives a physical function so many virtual ones. False when it had them already. The kernel has all of `timeout` for it: probing
    /// a driver for each of 64 functions of a network card takes longer than any other write.
    ///
    /// # Errors
    /// More than it can have, virtual functions that are in use, a driver that does not do it.
    pub async fn set_num_vfs(
        self: &Rc<Self>,
        pf: PciAddress,
        count: u32,
        autoprobe: Option<bool>,
        timeout: Option<Duration>,
    ) -> Result<bool> {
        let deadline = Instant::now() + timeout.unwrap_or(DEADLINE).min(LONGEST);
        let turn = self.turn_of(&Step::SetNumVfs { pf, count }, deadline).await.map_err(Error::from)?;
        // Before anybody's claim is looked for: one that comes later is refused, and one that came earlier is seen.
        self.state.borrow_mut().changing.insert(pf);
        let outcome = self.change_num_vfs(&turn, pf, count, autoprobe, deadline).await;
        self.state.borrow_mut().changing.remove(&pf);
        outcome
    }

    async fn change_num_vfs(
        self: &Rc<Self>,
        turn: &Turn,
        pf: PciAddress,
        count: u32,
        autoprobe: Option<bool>,
        deadline: Instant,
    ) -> Result<bool> {
        let function = self.function_now(pf).await?;
        let physical = physical(&function)?;
        if count > physical.total_vfs {
            let message = format!("{pf} can have {} virtual functions, not {count}", physical.total_vfs);
            return Err(Error::invalid(message));
        }
        let rebind = autoprobe.filter(|on| *on != physical.drivers_autoprobe);
        let now = physical.num_vfs();
        if now == count && rebind.is_none() {
            return Ok(false);
        }
        if now != count {
            self.may_change_vfs(&function, physical).await?;
        }
        let mut steps: Vec<Step> = rebind.map(|on| Step::SetAutoprobe { pf, on }).into_iter().collect();
        if now != count {
            // The kernel answers EBUSY to a change from one number to another.
            steps.extend((now > 0).then_some(Step::SetNumVfs { pf, count: 0 }));
            steps.extend((count > 0).then_some(Step::SetNumVfs { pf, count }));
        }
        for step in &steps {
            let Err(error) = self.run_step(turn, step, deadline).await else { continue };
            let mut error = Error::from(error);
            if let (Step::SetNumVfs { .. }, Some(on)) = (step, rebind) {
                // Whoever asked for both has got neither. One that is stuck is not written to.
                let back = Step::SetAutoprobe { pf, on: !on };
                if let Err(why) = self.run_step(turn, &back, Instant::now() + STEP_DEADLINE).await {
                    error.message = format!("{}; besides, cannot {back}: {}", error.message, Error::from(why).message);
                }
            }
            self.refresh_card(pf).await;
            let left = self
                .state
                .borrow()
                .inventory
                .function(&pf)
                .and_then(|pf| self::physical(pf).ok().map(PhysicalFunction::num_vfs));
            if let Some(left) = left.filter(|left| *left != now) {
                error.message = format!("{}; {pf} had {now} virtual functions and has {left} now", error.message);
            }
            self.publish().await;
            return Err(error);
        }
        self.publish().await;
        Ok(true)
    }

    /// Whether nobody loses a virtual function when their number changes.
    async fn may_change_vfs(self: &Rc<Self>, pf: &Function, physical: &PhysicalFunction) -> Result<()> {
        let address = pf.address;
        let refuse = |name, message: String| Err(Error::new(name, message));
        match &pf.driver {
            None => {
                return refuse(
                    ErrorName::NotSupported,
                    format!("{address} has no driver, which would make virtual functions"),
                );
            }
            Some(driver) if is_vfio(driver) => {
                let message = format!(
                    "{address} is bound to {driver}, which makes no virtual functions; give it back to its own driver first"
                );
                return refuse(ErrorName::NotSupported, message);
            }
            Some(_) => {}
        }
        let vfs: Vec<PciAddress> = physical.vfs.values().copied().collect();
        for vf in &vfs {
            self.refresh_function(*vf).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
        }
        self.refresh_critical().await?;
        let keys: Vec<DeviceKey> = vfs.iter().map(|vf| DeviceKey::Pci(*vf)).collect();
        let holders = self.holders(&keys).await;
        let state = self.state.borrow();
        for key in keys.iter().chain([&DeviceKey::Pci(address)]) {
            if let Some(claim) = state.claims.values().find(|claim| claim.grant(*key).is_some()) {
                return refuse(
                    ErrorName::InUse,
                    format!("{key} is promised to {}; stop or release that first", claim.owner),
                );
            }
        }
        for (key, holders) in holders {
            if !holders.none() {
                return refuse(ErrorName::InUse, format!("{key} is in use by {holders}; stop that first"));
            }
        }
        for vf in vfs.iter().filter_map(|vf| state.inventory.function(vf)) {
            if let Some(why) = critical(vf) {
                return refuse(ErrorName::HostCritical, why);
            }
            if let Some(id) = vf.vgpu.as_ref().and_then(|vgpu| vgpu.current) {
                let message = format!("{} has the vGPU type {id}; take that away first", vf.address);
                return refuse(ErrorName::InUse, message);
            }
        }
        for parent in vfs.iter().chain([&address]) {
            let Ok(parent) = parent.to_string().parse::<ParentName>() else { continue };
            let mdevs = state.inventory.mdevs_on(&parent).count();
            if mdevs > 0 {
                return refuse(
                    ErrorName::InUse,
                    format!("{parent} carries {mdevs} mediated devices; remove those first"),
                );
            }
            // Also one that is not made yet.
            let promised =
                |claim: &&Arc<Claim>| claim.grants.iter().filter_map(Grant::mdev).any(|mdev| mdev.parent == parent);
            if let Some(claim) = state.claims.values().find(promised) {
                let message =
                    format!("a mediated device on {parent} is promised to {}; stop or release that first", claim.owner);
                return refuse(ErrorName::InUse, message);
            }
        }
        Ok(())
    }

    /// Waits until a physical function shows so many virtual ones, each with its link back, and then until drivers and network interfaces
    /// have come as far as they do.
    ///
    /// # Errors
    /// A sentence when they do not come.
    pub async fn vfs_appear(
        self: &Rc<Self>,
        pf: PciAddress,
        count: u32,
        until: Instant,
    ) -> std::result::Result<(), String> {
        let mut settled = Instant::now() + SETTLED;
        let mut before = None;
        loop {
            let change = self.changed.notified();
            self.refresh_card(pf).await;
            let now = {
                let state = self.state.borrow();
                let Some(function) = state.inventory.function(&pf) else { return Err(format!("{pf} is gone")) };
                let Role::Pf(physical) = &function.role else { return Err(format!("{pf} makes no virtual functions")) };
                let vfs: Vec<_> = state.inventory.vfs_of(pf).cloned().collect();
                let there = u32::try_from(vfs.len()).unwrap_or(u32::MAX);
                let drivers = vfs.iter().filter(|vf| vf.driver.is_some()).count();
                let netdevs = vfs.iter().filter(|vf| !vf.netdevs.is_empty()).count();
                (
                    physical.num_vfs().min(there),
                    drivers,
                    netdevs,
                    physical.drivers_autoprobe,
                    !function.netdevs.is_empty(),
                )
            };
            let (there, drivers, netdevs, autoprobe, network) = now;
            if before.replace(now) != Some(now) {
                settled = Instant::now() + SETTLED;
            }
            if there == count {
                let complete = |have: usize| u32::try_from(have).is_ok_and(|have| have == count);
                if count == 0 || !autoprobe || (complete(drivers) && (!network || complete(netdevs))) {
                    return Ok(());
                }
                if tokio::time::timeout_at(settled.min(until), change).await.is_err() {
                    return Ok(());
                }
            } else if tokio::time::timeout_at(until, change).await.is_err() {
                // Only by a process of its own: while a change hangs, so does a read of this file.
                let at = self.roots.sys.join(format!("bus/pci/devices/{pf}/sriov_numvfs"));
                let says = mdevd_host::write::read_attribute(&self.exe, &at, Instant::now() + NUMVFS_READ).await;
                let says = match says {
                    Ok(Some(number)) => format!("sriov_numvfs says {}", printable(number.trim())),
                    Ok(None) => "sriov_numvfs is gone".into(),
                    Err(error) => error.to_string(),
                };
                return Err(format!("{pf} was given {count} virtual functions, but shows {there}; {says}"));
            }
        }
    }

    /// Sets what a physical function's network driver does with a virtual one. False when it is so already.
    ///
    /// # Errors
    /// `InUse` when a claim has it.
    pub async fn configure_vf(self: &Rc<Self>, address: PciAddress, settings: VfSettings) -> Result<bool> {
        let function = self.function_now(address).await?;
        let Role::Vf { pf, index } = function.role else {
            return Err(Error::new(ErrorName::NotSupported, format!("{address} is no virtual function")));
        };
        self.function_now(pf).await?;
        self.change_by_hand(address, Step::SetVf { address, pf, index, settings }).await
    }

    /// Gives a function one of the vendor's vGPU types, or takes it away. False when it is so already.
    ///
    /// # Errors
    /// `InUse` when a claim has it, or somebody has it open; `NoCapacity` when its card does not offer the type now.
    pub async fn set_vgpu_type(self: &Rc<Self>, address: PciAddress, vgpu_type: Option<VgpuTypeId>) -> Result<bool> {
        let function = self.function_now(address).await?;
        if function.vgpu.is_none() {
            return Err(Error::new(ErrorName::NotSupported, format!("{address} has no vGPU types")));
        }
        self.change_by_hand(address, Step::SetVgpuType { address, vgpu_type }).await
    }

    fn nobody_has(&self, address: PciAddress) -> Result<()> {
        match self.claim_of(DeviceKey::Pci(address)) {
            None => Ok(()),
            Some(claim) => Err(Error::new(
                ErrorName::InUse,
                format!("{address} is promised to {}; release that first", claim.owner),
            )),
        }
    }

    /// Makes a step on a function that nobody has, and sees to it that nobody gets it meanwhile. False when it is done already.
    async fn change_by_hand(self: &Rc<Self>, address: PciAddress, step: Step) -> Result<bool> {
        let deadline = Instant::now() + DEADLINE;
        let turn = self.turn_of(&step, deadline).await.map_err(Error::from)?;
        // Before anybody's claim is looked for: one that comes later is refused, and one that came earlier is seen.
        self.state.borrow_mut().changing.insert(address);
        let outcome = self.change_in(&turn, address, step, deadline).await;
        self.state.borrow_mut().changing.remove(&address);
        self.publish().await;
        outcome
    }

    async fn change_in(
        self: &Rc<Self>,
        turn: &Turn,
        address: PciAddress,
        step: Step,
        deadline: Instant,
    ) -> Result<bool> {
        if step.already_done(&self.state.borrow().inventory) {
            return Ok(false);
        }
        self.nobody_has(address)?;
        let steps = match step {
            Step::SetVf { pf, index, settings, .. } => {
                // Only what differs: some drivers refuse what is so already.
                let state = self.state.borrow();
                let now = state.inventory.function(&pf).and_then(|pf| settings_of(pf, index)).unwrap_or_default();
                let settings = settings.changed_from(&now);
                if settings.is_empty() {
                    return Ok(false);
                }
                vec![Step::SetVf { address, pf, index, settings }]
            }
            step => {
                match self.holders(&[DeviceKey::Pci(address)]).await.into_iter().next() {
                    Some((_, holders)) if holders.none() => {}
                    Some((_, holders)) => {
                        let message = format!("{address} is in use by {holders}; stop that first");
                        return Err(Error::new(ErrorName::InUse, message));
                    }
                    None => return Err(Error::new(ErrorName::InUse, format!("who holds {address} is not known"))),
                }
                // The list of types that can be had is short until the present one is taken away.
                vec![Step::SetVgpuType { address, vgpu_type: None }, step]
            }
        };
        for step in &steps {
            // Of two that are the same the second is done with the first.
            if !step.already_done(&self.state.borrow().inventory) {
                self.run_step(turn, step, deadline).await?;
            }
        }
        Ok(true)
    }

    /// Binds a function to a driver that gives it to VMs, under a manual claim that remembers what it was. False when it is so already.
    ///
    /// # Errors
    /// What `Acquire` of the function fails with; `HostCritical` unless `force` repeats the address.
    pub async fn bind_function(
        self: &Rc<Self>,
        address: PciAddress,
        driver: DriverName,
        force: bool,
        uid: u32,
    ) -> Result<bool> {
        if !is_vfio(&driver) {
            return Err(Error::invalid(format!(
                "{driver} is not a VFIO driver; a function goes back to its own driver by 'hostdevctl restore {address}'"
            )));
        }
        let function = self.function_now(address).await?;
        let own = self.claim_of(DeviceKey::Pci(address)).is_some_and(|claim| {
            matches!(claim.owner, Owner::Manual { .. }) && claim.owner_uid == uid && claim.state == ClaimState::Ready
        });
        if own && function.driver.as_ref() == Some(&driver) {
            return Ok(false);
        }
        let need = FunctionNeed {
            name: "bind".into(),
            wanted: WantedFunction::Address(address),
            numa_node: None,
            hostdev: None,
            options: FunctionOptions { driver: Some(driver), set: VfSettings::default(), ..FunctionOptions::default() },
            xml: XmlOptions::default(),
        };
        let draft = Draft {
            id: Uuid::now_v7(),
            owner: Owner::Manual { label: format!("bind {address}") },
            owner_uid: uid,
            process: None,
            needs: vec![Need::Function(need)],
            attributes: Vec::new(),
            force,
        };
        self.make_claim(draft, Instant::now() + DEADLINE).await.map(|_| true)
    }

    /// Ends the manual claim that a function is in, and with it brings it back to its driver. False when there is none.
    ///
    /// # Errors
    /// Those of a release; `Conflict` when other devices would go back with it.
    pub async fn restore_function(self: &Rc<Self>, address: PciAddress) -> Result<bool> {
        let Some(claim) = self.claim_of(DeviceKey::Pci(address)) else { return Ok(false) };
        if matches!(claim.owner, Owner::Manual { .. }) && claim.grants.len() > 1 {
            let message = format!(
                "{address} is one of {} devices of {}, which go back together: hostdevctl release {}",
                claim.grants.len(),
                claim.owner,
                claim.id
            );
            return Err(Error::new(ErrorName::Conflict, message));
        }
        self.release_claim(&claim.id, false).await
    }
}

impl State {
    /// Whether a function, or what is on it, may be promised now.
    ///
    /// # Errors
    /// `Busy` while it, or how many virtual functions its physical one has, is being changed by hand.
    pub fn is_not_changing(&self, address: PciAddress) -> Result<()> {
        let pf = match self.inventory.function(&address).map(|function| &function.role) {
            Some(Role::Vf { pf, .. }) => *pf,
            _ => address,
        };
        match [address, pf].into_iter().find(|function| self.changing.contains(function)) {
            Some(function) => Err(Error::new(ErrorName::Busy, format!("{function} is being changed; try again"))),
            None => Ok(()),
        }
    }
}

fn physical(function: &Function) -> Result<&PhysicalFunction> {
    match &function.role {
        Role::Pf(physical) => Ok(physical),
        Role::Vf { pf, .. } => Err(Error::new(
            ErrorName::NotSupported,
            format!("{} is a virtual function of {pf} and has none of its own", function.address),
        )),
        Role::Pci => Err(Error::new(
            ErrorName::NotSupported,
            format!("{} makes no virtual functions: it or its driver knows no SR-IOV", function.address),
        )),
    }
}
