//! Which of root's rights the programs get that the daemon starts, its writers: none, and those that set up a virtual function one.
//!
//! Under its unit (`SecureBits=noroot`) a program has no rights by being root's, but only those that whoever starts it passes on: its
//! ambient capabilities. systemd passes the daemon what it needs, and the daemon passes on nothing. Root's own files, which all of sysfs
//! is, can be written without any. In a daemon that is started by hand every program of root has every right, and this changes nothing.

use rustix::thread::{CapabilitySet, clear_ambient_capability_set, configure_capability_in_ambient_set};

use crate::error::EffectError;

/// What it takes to set up a virtual function.
pub(crate) const NETWORK: CapabilitySet = CapabilitySet::NET_ADMIN;

/// From now on, programs that this thread starts get none of its rights. To be called before there are other threads.
pub fn keep() -> Result<(), EffectError> {
    clear_ambient_capability_set().map_err(|errno| EffectError::new("keep", "the capabilities of mdevd", errno))
}

/// Calls `start`, and a program that it starts on this thread gets `right`, if there is one that we can give.
pub(crate) fn pass_on<T>(right: Option<CapabilitySet>, start: impl FnOnce() -> T) -> T {
    // It fails where we were not passed it ourselves. Then the program has it because it is root's, or the kernel will tell it that it
    // lacks it.
    let passed = right.filter(|right| configure_capability_in_ambient_set(*right, true).is_ok());
    let started = start();
    if let Some(right) = passed
        && let Err(errno) = configure_capability_in_ambient_set(right, false)
    {
        tracing::error!("a capability that one writer needed cannot be kept from the others: {errno}");
    }
    started
}
