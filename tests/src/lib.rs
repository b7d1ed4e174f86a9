//! fakesys and the end-to-end tests of mdevd.

pub mod fakesys;
pub mod harness;
