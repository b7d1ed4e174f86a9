//! What a person or a program asks for by hand: a device, a claim over several, a device's removal.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mdevd_core::claim::{Claim, ClaimState, Owner, Undo};
use mdevd_core::names::{DeviceKey, MdevTypeId, MdevUuid, ParentName, printable};
use mdevd_core::plan::{Step, attribute_name_is_sound};
use mdevd_core::request::{MdevNeed, Need, Request, Wanted, XmlOptions, needs_without_domain};
use mdevd_dbus::ErrorName;
use tokio::time::Instant;
use uuid::Uuid;

use super::Engine;
use super::prepare::Draft;
use super::steps::STEP_DEADLINE;
use crate::error::{Error, Result};

/// How long making the devices of a manual claim may take; callers are told to wait for longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// The longest label.
const LONGEST_LABEL: usize = 128;

/// A call of `CreateMdev`.
#[derive(Debug)]
pub struct CreateCall {
    /// The type.
    pub mdev_type: MdevTypeId,
    /// The only parent that will do.
    pub parent: Option<ParentName>,
    /// The UUID, when the caller wants a certain one.
    pub uuid: Option<MdevUuid>,
    /// Attributes to set, in order.
    pub attributes: Vec<(String, String)>,
    /// What the caller calls it.
    pub label: String,
    /// The caller.
    pub uid: u32,
}

impl Engine {
    /// Creates one mediated device under a manual claim. False beside it when it was there already, by the same caller's claim.
    pub async fn create_mdev(self: &Rc<Self>, call: CreateCall) -> Result<(MdevUuid, bool)> {
        check_label(&call.label)?;
        for (name, value) in &call.attributes {
            if !attribute_name_is_sound(name) {
                return Err(Error::invalid(format!(
                    "'{}' is not the name of an attribute that may be set",
                    printable(name)
                )));
            }
            if value.contains('\0') || value.len() > 4096 {
                return Err(Error::invalid(format!(
                    "the value of the attribute {name} holds a NUL or is longer than 4096 bytes"
                )));
            }
        }
        let uuid = call.uuid.unwrap_or_else(|| MdevUuid(Uuid::new_v4()));
        if call.uuid.is_some() {
            self.refresh_mdevs(&[uuid]).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
            let existing = self.existing(&call, &uuid).transpose();
            if let Some(existing) = existing {
                // The look may have found something new.
                self.publish().await;
                return existing.map(|uuid| (uuid, false));
            }
        }
        let need = Need::Mdev(MdevNeed {
            name: "mdev".into(),
            uuid,
            wanted: Wanted::Type { mdev_type: call.mdev_type, parent: call.parent },
            numa_node: None,
            model: None,
            xml: XmlOptions::default(),
        });
        let draft = Draft {
            id: Uuid::now_v7(),
            owner: Owner::Manual { label: call.label },
            owner_uid: call.uid,
            process: None,
            needs: vec![need],
            attributes: call.attributes,
            force: false,
        };
        let made = self.make_claim(draft, Instant::now() + DEADLINE).await;
        made.map_err(|error| match error.name {
            // Somebody else has asked for the same UUID a moment before.
            ErrorName::InUse => Error::new(ErrorName::AlreadyExists, error.message),
            _ => error,
        })?;
        Ok((uuid, true))
    }

    fn existing(&self, call: &CreateCall, uuid: &MdevUuid) -> Result<Option<MdevUuid>> {
        let state = self.state.borrow();
        let owner = self.claim_of(DeviceKey::Mdev(*uuid));
        let Some(mdev) = state.inventory.mdev(uuid) else {
            let Some(owner) = owner else { return Ok(None) };
            let message = format!("the mediated device {uuid} is promised to {} and is being made", owner.owner);
            return Err(Error::new(ErrorName::AlreadyExists, message));
        };
        let same = mdev.mdev_type.as_ref() == Some(&call.mdev_type)
            && call.parent.as_ref().is_none_or(|parent| *parent == mdev.parent);
        let own = owner.as_ref().is_some_and(|claim| {
            matches!(claim.owner, Owner::Manual { .. })
                && claim.owner_uid == call.uid
                && claim.state == ClaimState::Ready
        });
        if same && own {
            return Ok(Some(*uuid));
        }
        let whose =
            owner.map_or_else(|| "nobody's as far as mdevd knows".into(), |claim| format!("of {}", claim.owner));
        let what = mdev.mdev_type.as_ref().map_or("unknown type", |t| t.as_str());
        let message = format!("the mediated device {uuid} exists already: {what} on {}, {whose}", mdev.parent);
        Err(Error::new(ErrorName::AlreadyExists, message))
    }

    /// Makes a manual claim over a device for each request.
    pub async fn acquire(
        self: &Rc<Self>,
        requests: Vec<Vec<(String, String)>>,
        label: String,
        uid: u32,
    ) -> Result<Arc<Claim>> {
        check_label(&label)?;
        let requests = Request::parse_all(requests)?;
        if requests.is_empty() {
            return Err(Error::invalid("there is no request; a claim holds at least one device"));
        }
        let draft = Draft {
            id: Uuid::now_v7(),
            owner: Owner::Manual { label },
            owner_uid: uid,
            process: None,
            needs: needs_without_domain(&requests, || MdevUuid(Uuid::new_v4())),
            attributes: Vec::new(),
            force: false,
        };
        self.make_claim(draft, Instant::now() + DEADLINE).await
    }

    /// The claim that a device is in.
    pub fn claim_of(&self, device: DeviceKey) -> Option<Arc<Claim>> {
        let state = self.state.borrow();
        let mut claims = state.claims.values().filter(|claim| claim.grant(device).is_some());
        // The one that made it, when a domain has borrowed it from a manual claim.
        let made = claims.clone().find(|claim| claim.grant(device).is_some_and(|grant| grant.undo == Undo::Remove));
        made.or_else(|| claims.next()).cloned()
    }

    /// Removes a device: one that mdevd made by ending its claim, a foreign one only with `force`. One that somebody holds is never
    /// removed: the kernel would block the write until the holder closes it. `shown` is the claim that the caller saw it in, by which
    /// it was authorized. False when it was gone already.
    pub async fn remove_mdev(self: &Rc<Self>, uuid: MdevUuid, shown: Option<Uuid>, force: bool) -> Result<bool> {
        self.refresh_mdevs(&[uuid]).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
        let device = DeviceKey::Mdev(uuid);
        let claim = self.claim_of(device);
        let mdev = self.state.borrow().inventory.mdev(&uuid).cloned();
        let changed_hands = || {
            let message = format!("{uuid} has got another owner meanwhile; look at it again");
            Error::new(ErrorName::Conflict, message)
        };
        let mdev = match (claim, mdev) {
            (None, None) => {
                self.publish().await;
                return Ok(false);
            }
            (claim, _) if claim.as_ref().map(|claim| claim.id) != shown => return Err(changed_hands()),
            (Some(claim), _) if claim.grants.len() > 1 => {
                let message = format!(
                    "{uuid} is one of {} devices of {}; release that claim ({})",
                    claim.grants.len(),
                    claim.owner,
                    claim.id
                );
                return Err(Error::new(ErrorName::Conflict, message));
            }
            (Some(claim), _) if claim.grants.iter().any(|grant| grant.undo == Undo::Keep) => {
                let message = format!(
                    "{uuid} was there before {} and is not removed with it; release the claim ({}) first",
                    claim.owner, claim.id
                );
                return Err(Error::new(ErrorName::Conflict, message));
            }
            (Some(claim), _) => return self.release_claim(&claim.id, force).await,
            (None, Some(mdev)) => mdev,
        };
        if !force {
            let message = format!("{uuid} on {} was not made by mdevd; --force removes it all the same", mdev.parent);
            return Err(Error::new(ErrorName::Conflict, message));
        }
        let step = Step::Remove { parent: mdev.parent.clone(), uuid };
        // Its turn may be long in coming; what is looked at before may be otherwise then.
        let turn = self.turn_of(&step, Instant::now() + STEP_DEADLINE).await?;
        self.refresh_mdevs(&[uuid]).await.map_err(|why| Error::new(ErrorName::Stuck, why))?;
        match self.holders(&[device]).await.into_iter().next() {
            Some((_, holders)) if holders.none() => {}
            Some((_, holders)) => {
                return Err(Error::new(ErrorName::InUse, format!("{uuid} is in use by {holders}; stop that first")));
            }
            None => return Err(Error::new(ErrorName::InUse, format!("who holds {uuid} is not known"))),
        }
        let now = self.state.borrow().inventory.mdev(&uuid).map(|now| now.parent.clone());
        if self.claim_of(device).is_some() || now.as_ref().is_some_and(|parent| *parent != mdev.parent) {
            return Err(changed_hands());
        }
        if now.is_none() {
            self.publish().await;
            return Ok(false);
        }
        tracing::info!("removing the foreign {uuid} by force");
        let outcome = self.run_step(&turn, &step, Instant::now() + STEP_DEADLINE).await;
        drop(turn);
        self.publish().await;
        outcome.map(|()| true).map_err(Error::from)
    }
}

fn check_label(label: &str) -> Result<()> {
    if label.chars().count() > LONGEST_LABEL || label.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "the label must have at most {LONGEST_LABEL} characters and no control characters"
        )));
    }
    Ok(())
}
