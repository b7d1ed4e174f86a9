//! When a claim ends without its `release`, from facts alone: claims, running domains, holders, and whether the libvirtd that asked is
//! still there. Anything that cannot be read means *unknown*, and unknown means keep.
//!
//! Between `prepare` and QEMU's first open of the device there is neither a status file nor a holder, for a time without an upper
//! bound. So a run that was never seen is kept as long as the libvirtd that prepared it lives.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use uuid::Uuid;

use crate::claim::{Claim, ClaimState, Owner};
use crate::holders::Holders;
use crate::inventory::Inventory;
use crate::names::DeviceKey;

/// How long status file and holders must have been absent, over two looks, before a claim is freed. In seconds.
pub const ABSENT_SECONDS: u64 = 30;

/// An answer that may not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known<T> {
    /// The answer.
    Known(T),
    /// Why there is none.
    Unknown(String),
}

/// What one look at the host found out about one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Whether libvirt has a status file of the domain with a live QEMU.
    pub running: Known<bool>,
    /// Who holds each of the claim's devices.
    pub holders: Vec<(DeviceKey, Holders)>,
    /// Whether the libvirtd that asked is still there; `Known(false)` when the claim has none.
    pub libvirt_alive: Known<bool>,
    /// Since when (on the clock of `now`) status file and holders have been absent on every look; `None` at the first.
    pub absent_since: Option<u64>,
    /// Seconds on a clock that never steps back.
    pub now: u64,
}

/// What to do about one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing; the sentence says why it is kept.
    Keep(String),
    /// Nothing, because something could not be found out: listed under Problems.
    KeepUnknown(String),
    /// Nothing, but this run has now been seen alive.
    Seen(String),
    /// Nothing yet: it looks abandoned, and another look decides.
    LookAgain(String),
    /// Give its devices back.
    Free(String),
    /// It is already being given back: try again what failed.
    Retry(String),
}

impl Action {
    /// The action's word as on D-Bus.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Keep(_) | Self::KeepUnknown(_) | Self::Seen(_) => "keep",
            Self::LookAgain(_) => "look-again",
            Self::Free(_) => "free",
            Self::Retry(_) => "retry",
        }
    }

    /// Why, as one sentence.
    pub fn reason(&self) -> &str {
        match self {
            Self::Keep(why)
            | Self::KeepUnknown(why)
            | Self::Seen(why)
            | Self::LookAgain(why)
            | Self::Free(why)
            | Self::Retry(why) => why,
        }
    }
}

/// What to do about `claim`, given what one look found.
pub fn decide(claim: &Claim, inventory: &Inventory, look: &Look) -> Action {
    match claim.state {
        ClaimState::Releasing | ClaimState::Failed if claim.problem.is_empty() => {
            return Action::Retry("being given back".into());
        }
        ClaimState::Releasing | ClaimState::Failed => {
            return Action::Retry(format!("being given back: {}", claim.problem));
        }
        ClaimState::Planned | ClaimState::Preparing => return Action::Keep("being prepared".into()),
        ClaimState::Ready => {}
    }
    let Owner::Domain { .. } = claim.owner else {
        let gone: Vec<String> = claim
            .grants
            .iter()
            .filter(|grant| !inventory.has(grant.key()))
            .map(|grant| grant.key().to_string())
            .collect();
        return if gone.is_empty() {
            Action::Keep("a manual claim stays until it is released".into())
        } else {
            Action::KeepUnknown(format!("its device {} is gone; release the claim", gone.join(", ")))
        };
    };
    // What proves that the run is alive comes first: it stays proven when something else could not be read.
    if let Some((device, holders)) =
        look.holders.iter().find(|(_, holders)| matches!(holders, Holders::Known(list) if !list.is_empty()))
    {
        return Action::Seen(format!("{device} is held by {holders}"));
    }
    match &look.running {
        Known::Known(true) => return Action::Seen("the domain is running".into()),
        Known::Unknown(why) => return Action::KeepUnknown(format!("whether the domain runs is not known: {why}")),
        Known::Known(false) => {}
    }
    for grant in &claim.grants {
        let device = grant.key();
        match look.holders.iter().find(|(looked_at, _)| *looked_at == device) {
            Some((_, Holders::Unknown(why))) => {
                return Action::KeepUnknown(format!("whether {device} is held is not known: {why}"));
            }
            // Nobody can hold a device that is not there.
            None if inventory.has(device) => {
                return Action::KeepUnknown(format!("whether {device} is held was not looked at"));
            }
            _ => {}
        }
    }
    if !claim.seen {
        match &look.libvirt_alive {
            Known::Known(true) => {
                return Action::Keep("the domain is starting: the libvirt daemon that asked is there".into());
            }
            Known::Unknown(why) => {
                return Action::KeepUnknown(format!("whether the libvirt daemon that asked lives is not known: {why}"));
            }
            Known::Known(false) => {}
        }
    }
    match look.absent_since {
        Some(since) if look.now.saturating_sub(since) >= ABSENT_SECONDS => {
            Action::Free("the domain is not running and nobody holds its devices".into())
        }
        _ => {
            Action::LookAgain(format!("the domain is not running; freed if that is still so after {ABSENT_SECONDS} s"))
        }
    }
}

/// The running domains that have requests but no claim: mdevd was installed, or lost its claims, while they ran.
pub fn to_adopt<'a>(running: impl IntoIterator<Item = (&'a Uuid, bool)>, claimed: impl Fn(&Uuid) -> bool) -> Vec<Uuid> {
    running.into_iter().filter(|(uuid, has_requests)| *has_requests && !claimed(uuid)).map(|(uuid, _)| *uuid).collect()
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
