//! The pure logic of mdevd: types, parsing, choosing, planning, reconciling and XML text.
//!
//! `no_std`, so that reading a file, the clock or the environment does not compile here: everything in this crate is a
//! function of its arguments, and everything worth a property test lives in it.
//!
//! Where to look: what a VM may ask, [`request`]; how a device is chosen, [`choose`]; what will be written, [`plan`]; what is promised
//! to whom, [`claim`]; when a promise ends without being told so, [`reconcile`]; the XML that comes and goes, [`domain_xml`] and
//! [`hostdev`].
#![no_std]

extern crate alloc;

pub mod check;
pub mod choose;
pub mod claim;
pub mod domain_xml;
pub mod function;
pub mod holders;
pub mod hostdev;
pub mod inventory;
pub mod names;
pub mod plan;
pub mod reconcile;
pub mod request;
pub mod suggest;

#[cfg(test)]
mod fixtures;
