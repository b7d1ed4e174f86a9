//! fakesys against the kernel, and the faults and points that tests set in it.

// These lints spare the bodies of tests, and everything here is one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod binding;
mod common;
mod faults;
mod files;
mod kernel;
mod listings;
mod program;
mod sriov;
mod vgpu;
