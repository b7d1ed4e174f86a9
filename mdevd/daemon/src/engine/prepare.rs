//! A claim from need to ready: choose and reserve in one turn, the claim on disk before the first write, each step marked after its
//! effect has been read back, and everything undone when one of them fails.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use std::collections::BTreeSet;

use mdevd_core::choose::function::{choose_function, grant_function};
use mdevd_core::choose::{Candidate, Reason, Refusal, Verdict, choose, take_existing};
use mdevd_core::claim::{Claim, ClaimState, Grant, Granted, GrantedMdev, Owner, ProcessRef, Undo};
use mdevd_core::holders::Holders;
use mdevd_core::names::{DeviceKey, MdevUuid, ParentName, PciAddress, RunId};
use mdevd_core::plan::{Plan, Step};
use mdevd_core::request::{FunctionNeed, MdevNeed, Need, Wanted, WantedFunction};
use mdevd_dbus::ErrorName;
use rustix::io::Errno;
use tokio::time::Instant;
use uuid::Uuid;

use super::steps::StepError;
use super::{Engine, unix_now};
use crate::error::{Error, Result};

/// What a new claim is made from.
#[derive(Debug)]
pub struct Draft {
    /// Its id.
    pub id: Uuid,
    /// Whom it will belong to.
    pub owner: Owner,
    /// The uid that asks.
    pub owner_uid: u32,
    /// The libvirt daemon that asks.
    pub process: Option<ProcessRef>,
    /// The devices it needs.
    pub needs: Vec<Need>,
    /// Attributes to set on a new device.
    pub attributes: Vec<(String, String)>,
    /// Whether also what the host itself needs is given: only by hand, to one who has typed its address twice.
    pub force: bool,
}

/// The answers of `create` that mean "not here": another parent is tried. Everything else is the same everywhere.
const TRY_ELSEWHERE: [Errno; 4] = [Errno::NOSPC, Errno::BUSY, Errno::AGAIN, Errno::USERS];

impl Engine {
    /// Makes a claim and its devices, or leaves nothing behind. Past the deadline nobody waits for the answer any more, so that a claim
    /// would be kept for nobody.
    pub async fn make_claim(self: &Rc<Self>, draft: Draft, deadline: Instant) -> Result<Arc<Claim>> {
        self.look_at_needs(&draft.needs).await?;
        self.look_at_choice(&draft).await?;
        let id = draft.id;
        let in_time = in_time(deadline, "looking at the host took longer than the caller waits; nothing is promised");
        if let Err(error) = in_time.and_then(|()| self.reserve(&draft)) {
            // The look may have found something new.
            self.publish().await;
            return Err(error);
        }
        let quick = self.publish_unless_quick();
        let outcome = match self.nobody_holds_what_was_there(&id).await {
            Ok(()) => self.carry_out(&id, &draft.needs, deadline).await,
            Err(error) => {
                // Nothing was begun, and what others have open is none of ours to bring back.
                self.drop_claim(&id);
                Err(error)
            }
        };
        drop(quick);
        self.state.borrow_mut().working.remove(&id);
        self.changed.notify_waiters();
        let Err(error) = outcome else {
            self.publish().await;
            return self
                .claim(&id)
                .ok_or_else(|| Error::new(ErrorName::Conflict, "the claim was released as soon as it was made"));
        };
        tracing::warn!("claim {id}: {error}");
        self.undo(&id, &error.message, deadline).await;
        self.publish().await;
        Err(error)
    }

    /// Somebody may have made one of the devices by hand a moment ago, or changed it, before the kernel's event has come.
    async fn look_at_needs(self: &Rc<Self>, needs: &[Need]) -> Result<()> {
        let stuck = |why| Error::new(ErrorName::Stuck, why);
        let uuids: Vec<MdevUuid> = needs.iter().filter_map(Need::mdev).map(|need| need.uuid).collect();
        self.refresh_mdevs(&uuids).await.map_err(stuck)?;
        let functions = needs.iter().filter_map(|need| match need {
            Need::Function(need) => Some(&need.wanted),
            Need::Mdev(_) => None,
        });
        let mut meant: BTreeSet<PciAddress> = BTreeSet::new();
        let mut any = false;
        for wanted in functions {
            any = true;
            match wanted {
                WantedFunction::Address(address) => {
                    meant.insert(*address);
                }
                WantedFunction::Card(card) => meant.extend((0..8).map(|number| card.function(number))),
                // What is chosen of many is looked at once it is known.
                WantedFunction::Any { .. } => {}
            }
        }
        if !any {
            return Ok(());
        }
        self.refresh_critical().await?;
        let mut around: BTreeSet<PciAddress> = BTreeSet::new();
        for address in &meant {
            self.refresh_function(*address).await.map_err(stuck)?;
            around.insert(self.pf_of(*address));
            // What shares its IOMMU group decides as well.
            let state = self.state.borrow();
            let group = state.inventory.function(address).and_then(|function| function.iommu_group);
            let members = group.into_iter().flat_map(|group| state.inventory.group_members(group));
            around.extend(members.map(|member| member.address));
        }
        for address in around.difference(&meant) {
            self.refresh_function(*address).await.map_err(stuck)?;
        }
        Ok(())
    }

    /// The kernel speaks neither of an override, nor of a vGPU type, nor of what is set of a virtual function: what would be chosen of many
    /// is looked at before it is, as often as the look makes it another.
    async fn look_at_choice(self: &Rc<Self>, draft: &Draft) -> Result<()> {
        let of_many = |need: &FunctionNeed| matches!(need.wanted, WantedFunction::Any { .. });
        if !draft.needs.iter().any(|need| matches!(need, Need::Function(need) if of_many(need))) {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        // Why nothing can be chosen is said when it is.
        while let Ok(claim) = self.choose_all(draft) {
            let functions = claim.grants.iter().filter_map(Grant::function).map(|function| function.address);
            let new: Vec<PciAddress> = functions.filter(|address| seen.insert(*address)).collect();
            if new.is_empty() {
                break;
            }
            for address in new {
                for function in [self.pf_of(address), address] {
                    self.refresh_function(function).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
                }
            }
        }
        Ok(())
    }

    /// Chooses for every need and puts the claim on disk, without a wait in between: nobody else can choose meanwhile.
    fn reserve(&self, draft: &Draft) -> Result<()> {
        let claim = self.choose_all(draft)?;
        if self.state.borrow().claims.contains_key(&claim.id) {
            return Err(Error::new(
                ErrorName::Busy,
                format!("{}: its devices are being prepared by another call; try again", claim.owner),
            ));
        }
        let saved = self.save_claim(&claim);
        let mut state = self.state.borrow_mut();
        if let Err(error) = saved {
            // Whoever asked is told; there is no claim that would have a problem.
            state.notes.remove(&format!("claim {}", claim.id));
            return Err(error);
        }
        state.working.insert(claim.id);
        state.claims.insert(claim.id, Arc::new(claim));
        Ok(())
    }

    /// The claim as it would be now.
    fn choose_all(&self, draft: &Draft) -> Result<Claim> {
        let mut claim = Claim {
            id: draft.id,
            owner: draft.owner.clone(),
            owner_uid: draft.owner_uid,
            run: RunId(Uuid::new_v4()),
            state: ClaimState::Planned,
            created: unix_now(),
            process: draft.process,
            seen: false,
            grants: Vec::new(),
            plan: Plan::default(),
            problem: String::new(),
        };
        // What goes to the same VM may share an IOMMU group.
        let together: BTreeSet<PciAddress> = draft.needs.iter().filter_map(fixed_function).collect();
        let mut refused = None;
        for need in &draft.needs {
            let chosen = match need {
                Need::Mdev(need) => self.choose_grant(need, &claim, &[]).map(|mut grant| {
                    if grant.undo == Undo::Remove
                        && let Some(mdev) = grant.mdev_mut()
                    {
                        mdev.attributes.clone_from(&draft.attributes);
                    }
                    vec![grant]
                }),
                Need::Function(need) => self.choose_functions(need, &claim, &together, draft.force),
            };
            match chosen {
                Ok(grants) => claim.grants.extend(grants),
                // That somebody else has one is said before all else: the hook lets a domain start over less.
                Err(error) if error.name == ErrorName::InUse => return Err(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        claim.plan = Plan::prepare(&claim.grants);
        Ok(claim)
    }

    fn choose_grant(&self, need: &MdevNeed, draft: &Claim, refused: &[(ParentName, String)]) -> Result<Grant> {
        let state = self.state.borrow();
        let others = state.claims.values().filter(|claim| claim.id != draft.id).map(|claim| &**claim);
        let claims: Vec<&Claim> = others.chain([draft]).collect();
        let context = state.context(&claims, refused);
        let by_domain = matches!(draft.owner, Owner::Domain { .. });
        if let Some(grant) = take_existing(&context, need, by_domain)? {
            // It may be gone in a moment.
            if state.in_flight.contains(&grant.key()) {
                let message = format!("{} for '{}' is being changed; try again", grant.key(), need.name);
                return Err(Error::new(ErrorName::Busy, message));
            }
            return Ok(grant);
        }
        let choice = choose(&context, need);
        if let Some(refusal) = choice.refusal {
            return Err(refusal.into());
        }
        let grant = choice.candidates.first().and_then(|candidate| new_device(need, candidate));
        let grant =
            grant.ok_or_else(|| Error::new(ErrorName::NoCandidate, format!("no device for '{}'", need.name)))?;
        if let Some(parent) = grant.mdev().and_then(|mdev| mdev.parent.as_str().parse().ok()) {
            state.is_not_changing(parent)?;
        }
        Ok(grant)
    }

    fn choose_functions(
        &self,
        need: &FunctionNeed,
        draft: &Claim,
        together: &BTreeSet<PciAddress>,
        force: bool,
    ) -> Result<Vec<Grant>> {
        let state = self.state.borrow();
        let others = state.claims.values().filter(|claim| claim.id != draft.id).map(|claim| &**claim);
        let claims: Vec<&Claim> = others.chain([draft]).collect();
        let context = state.context(&claims, &[]);
        let choice = choose_function(&context, need, together);
        let chosen = choice.chosen(&need.wanted);
        let mut grants = Vec::new();
        let forced = choice.candidates.iter().filter(|candidate| {
            let critical = |refusal: &Refusal| force && refusal.reason == Reason::HostCritical;
            matches!(&candidate.verdict, Verdict::Refused(refusal) if critical(refusal))
        });
        let forced: Vec<PciAddress> = forced.map(|candidate| candidate.address).collect();
        match choice.refusal {
            Some(refusal) if forced.is_empty() || forced.len() < choice.candidates.len() => return Err(refusal.into()),
            _ => {}
        }
        for address in chosen.iter().chain(&forced) {
            let Some(function) = state.inventory.function(address) else { continue };
            state.is_not_changing(*address)?;
            let name = match need.wanted {
                WantedFunction::Card(_) => format!("{}.{}", need.name, address.function),
                _ => need.name.clone(),
            };
            grants.push(grant_function(&state.inventory, need, &name, function));
        }
        Ok(grants)
    }

    async fn carry_out(self: &Rc<Self>, id: &Uuid, needs: &[Need], deadline: Instant) -> Result<()> {
        // What undoing takes must fit before the caller's patience ends.
        let steps_until = Instant::now() + deadline.saturating_duration_since(Instant::now()).mul_f32(0.75);
        let mut refused: BTreeMap<String, Vec<(ParentName, String)>> = BTreeMap::new();
        loop {
            let Some(claim) = self.claim(id) else { return Err(cancelled()) };
            if claim.state.is_ending() {
                return Err(cancelled());
            }
            let Some(step) = claim.plan.next().cloned() else { break };
            if let Some(claim) = self.state.borrow_mut().claims.get_mut(id) {
                Arc::make_mut(claim).state = ClaimState::Preparing;
            }
            let outcome = match self.turn_of(&step, steps_until).await {
                Ok(turn) => {
                    // Read again right before: whoever has opened it since would lose it, or keep the write waiting.
                    if matches!(step, Step::Unbind { .. } | Step::SetVgpuType { vgpu_type: None, .. })
                        && !step.already_done(&self.state.borrow().inventory)
                        && let Err(error) = self.nobody_holds(&[step.device()]).await
                    {
                        // Of a type nothing has been changed yet: the undo must leave it to whoever uses it.
                        if matches!(step, Step::SetVgpuType { .. }) {
                            self.update_claim(id, |claim| keep(claim, &step))?;
                        }
                        return Err(error);
                    }
                    self.run_step(&turn, &step, steps_until).await
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    let last = claim.plan.done + 1 == claim.plan.steps.len();
                    // The last mark and `ready` are one write, below.
                    if !last {
                        self.update_claim(id, |claim| claim.plan.done += 1)?;
                    } else if let Some(claim) = self.state.borrow_mut().claims.get_mut(id) {
                        Arc::make_mut(claim).plan.done += 1;
                    }
                }
                Err(error) if step.device().pci().is_some() => return Err(error.into()),
                Err(StepError::Refused(error)) if matches!(step, Step::Create { .. }) && error.is(Errno::EXIST) => {
                    // Not ours, whoever made it: the undo must leave it.
                    self.update_claim(id, |claim| keep(claim, &step))?;
                    let message =
                        format!("{error}: somebody else has just made this device; remove it or change the request");
                    return Err(Error::new(ErrorName::Conflict, message));
                }
                Err(error) => {
                    if matches!(error, StepError::NoEffect(_)) {
                        self.own_what_was_made(id, &step)?;
                    }
                    // What the parent said to have left may have been old.
                    if let (StepError::Refused(_), Some(parent)) = (&error, step.parent()) {
                        self.refresh_parent(parent).await;
                        // That keeps the old number while somebody else changes the parent, who may have waited for this to end.
                        if let Step::Create { mdev_type, .. } = &step {
                            self.refresh_available(parent, mdev_type.clone()).await;
                        }
                    }
                    self.choose_again(id, needs, &step, error, &mut refused)?;
                }
            }
        }
        self.nobody_released(id)?;
        in_time(deadline, "its devices were ready later than the caller waits; they are given back")?;
        self.update_claim(id, |claim| claim.state = ClaimState::Ready).inspect_err(|_| {
            // On disk it is not.
            if let Some(claim) = self.state.borrow_mut().claims.get_mut(id) {
                Arc::make_mut(claim).state = ClaimState::Preparing;
            }
        })
    }

    /// The kernel took the write, and what it has made is of another type than it should be. It is this claim's all the same: the undo
    /// must remove it.
    fn own_what_was_made(&self, id: &Uuid, step: &Step) -> Result<()> {
        let Step::Create { parent, uuid, .. } = step else { return Ok(()) };
        let seen = self.state.borrow().inventory.mdev(uuid).cloned().filter(|mdev| mdev.parent == *parent);
        let Some(mdev_type) = seen.and_then(|mdev| mdev.mdev_type.clone()) else { return Ok(()) };
        self.update_claim(id, |claim| {
            let mdevs = claim.grants.iter_mut().filter_map(Grant::mdev_mut);
            for mdev in mdevs.filter(|mdev| mdev.uuid == *uuid) {
                mdev.mdev_type = mdev_type.clone();
            }
        })
    }

    fn nobody_released(&self, id: &Uuid) -> Result<()> {
        match self.claim(id) {
            Some(claim) if !claim.state.is_ending() => Ok(()),
            _ => Err(cancelled()),
        }
    }

    /// A device that was there before may be in use by somebody whom mdevd knows nothing of.
    async fn nobody_holds_what_was_there(&self, id: &Uuid) -> Result<()> {
        let Some(claim) = self.claim(id) else { return Err(cancelled()) };
        let there = claim.grants.iter().filter(|grant| grant.undo != Undo::Remove);
        let there: Vec<DeviceKey> = there.map(Grant::key).collect();
        if there.is_empty() {
            return Ok(());
        }
        self.nobody_holds(&there).await?;
        self.drivers_are_there(&claim).await
    }

    async fn nobody_holds(&self, keys: &[DeviceKey]) -> Result<()> {
        // Unknown counts as held, but is no owner: that one is there, and who it is, is said before all else.
        let mut unknown = None;
        for (key, holders) in self.holders(keys).await {
            let what = match key {
                DeviceKey::Mdev(_) => "the mediated device",
                DeviceKey::Pci(_) => "the PCI function",
            };
            match holders {
                Holders::Known(list) if list.is_empty() => {}
                Holders::Known(_) => {
                    return Err(Error::new(ErrorName::InUse, format!("{what} {key} is in use by {holders}")));
                }
                Holders::Unknown(why) => {
                    let message = format!("who holds {what} {key} is not known, and it may be in use: {why}");
                    unknown = Some(Error::new(ErrorName::Unavailable, message));
                }
            }
        }
        unknown.map_or(Ok(()), Err)
    }

    /// A driver that is to be bound must be loaded: mdevd loads no modules.
    async fn drivers_are_there(&self, claim: &Claim) -> Result<()> {
        let drivers: BTreeSet<_> = claim
            .grants
            .iter()
            .filter_map(Grant::function)
            .filter_map(|function| {
                function.driver.clone().filter(|driver| function.driver_was.as_ref() != Some(driver))
            })
            .collect();
        for driver in drivers {
            let at = self.roots.sys.join("bus/pci/drivers").join(driver.as_str());
            let there = self.scanner.run(move || at.exists()).await;
            if matches!(there, Ok(false)) {
                let message = format!(
                    "the driver {driver} is not loaded: modprobe {driver}; for every boot: echo {driver} >/etc/modules-load.d/{driver}.conf"
                );
                return Err(Error::new(ErrorName::NotSupported, message));
            }
        }
        Ok(())
    }

    /// After a `create` that was refused: another parent, on disk before the next write; or the error, when that would not help.
    fn choose_again(
        &self,
        id: &Uuid,
        needs: &[Need],
        step: &Step,
        error: StepError,
        refused: &mut BTreeMap<String, Vec<(ParentName, String)>>,
    ) -> Result<()> {
        let Step::Create { parent, uuid, .. } = step else { return Err(error.into()) };
        let why = match &error {
            StepError::Refused(effect) if TRY_ELSEWHERE.iter().any(|errno| effect.is(*errno)) => effect.to_string(),
            StepError::ParentStuck(why) => why.clone(),
            _ => return Err(error.into()),
        };
        let Some(claim) = self.claim(id) else { return Err(cancelled()) };
        let key = DeviceKey::Mdev(*uuid);
        let Some(position) = claim.grants.iter().position(|grant| grant.key() == key) else {
            return Err(error.into());
        };
        let Some(need) = needs.iter().filter_map(Need::mdev).find(|need| need.uuid == *uuid) else {
            return Err(error.into());
        };
        tracing::info!("{parent} refused {uuid}: {why}; choosing again");
        let list = refused.entry(need.name.clone()).or_default();
        list.push((parent.clone(), why));
        let mut draft = (*claim).clone();
        let old = draft.grants.remove(position);
        // The refused device must not count as reserved while the next parent is looked for, nor be undone when there is none.
        let mut grant = self.choose_grant(need, &draft, list)?;
        if let (Undo::Remove, Some(mdev), Some(old)) = (grant.undo, grant.mdev_mut(), old.mdev()) {
            mdev.attributes.clone_from(&old.attributes);
        }
        draft.grants.insert(position, grant);
        let plan = Plan::prepare(&draft.grants);
        self.update_claim(id, |claim| {
            claim.grants = draft.grants;
            claim.plan = Plan { steps: plan.steps, done: claim.plan.done };
        })
    }
}

/// The function that a need names by its address.
pub fn fixed_function(need: &Need) -> Option<PciAddress> {
    match need {
        Need::Function(FunctionNeed { wanted: WantedFunction::Address(address), .. }) => Some(*address),
        _ => None,
    }
}

/// The promise of a device that is to be made on this candidate; `None` when the need is for one that exists.
pub fn new_device(need: &MdevNeed, candidate: &Candidate) -> Option<Grant> {
    let Wanted::Type { mdev_type, .. } = &need.wanted else { return None };
    let device = GrantedMdev {
        uuid: need.uuid,
        parent: candidate.parent.clone(),
        mdev_type: mdev_type.clone(),
        device_api: candidate.device_api.clone(),
        attributes: Vec::new(),
    };
    Some(Grant { request: need.name.clone(), device: Granted::Mdev(device), undo: Undo::Remove, xml: need.xml.clone() })
}

/// The device of this step was not made by this claim.
pub fn keep(claim: &mut Claim, step: &Step) {
    for grant in claim.grants.iter_mut().filter(|grant| grant.key() == step.device()) {
        grant.undo = Undo::Keep;
    }
}

fn in_time(deadline: Instant, otherwise: &str) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Error::new(ErrorName::TimedOut, format!("{otherwise}; try again")))
}

fn cancelled() -> Error {
    Error::new(ErrorName::Conflict, "its release came while it was being prepared")
}
