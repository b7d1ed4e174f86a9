//! PCI functions, SR-IOV and vendor-typed vGPUs, end to end: the daemon on a bus of the test's own over a fake host.

// These lints spare the bodies of tests, and everything here is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod authorization;
mod common;
mod hotplug;
mod kill;
mod numvfs;
mod numvfs_trouble;
mod refusals;
mod trouble;
mod vgpu;
mod vgpu_dirty;
mod whole;
