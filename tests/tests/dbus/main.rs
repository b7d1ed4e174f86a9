//! The D-Bus layer, end to end: the daemon on a bus of the test's own over a fake host, held against the interface XML.

// These lints spare the bodies of tests, and everything here is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod authorization;
mod common;
mod create;
mod fuzz;
mod holding;
mod input;
mod introspection;
mod load;
mod policy;
mod questions;
mod reload;
mod signals;
