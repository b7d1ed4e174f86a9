//! The daemon is killed with SIGKILL at every point of every step of giving a domain its devices and taking them back. After a restart
//! no device is lost, doubled or leaked.
//!
//! The steps come from the plan: [`story`] watches one undisturbed course and takes from the claim file which step comes when, holds that
//! against the plan as `mdevd-core` makes it and against what was really written to sysfs, and lays a [`death`] at every point of each.
//! The points, of which one that is never reached fails its test:
//!
//! | point | as |
//! |---|---|
//! | before the claim is renamed | the rename is pending; after the daemon's end it is carried out, or it is not |
//! | after it | it was carried out, the daemon does not know |
//! | writer in the write | it is carried out or refused after the daemon's end: before the next start, or only behind it |
//! | after the write | it was carried out, the writer does not know |
//! | answered | the writer has ended, its lock is gone |
//! | after read-back | the device's type was read. A removal leaves nothing to be read: *before the mark* is the same point there |
//! | before the mark | the mark's file is being made, or filled. The mark of the last removal is that the claim is deleted |
//! | before the reply | after the last rename, or after the claim was deleted |
//!
//! [`sweep`] knows no points: it lets the daemon die at one file operation after the other, whatever that is for; [`again`] kills the next
//! daemon too, while it recovers; in [`hangs`] a write outlives two of them; [`together`] has two domains under way; in [`strangers`]
//! somebody makes devices by hand meanwhile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // what tests share falls down when something is not as it must be

mod again;
mod course;
mod death;
mod hangs;
mod points;
mod stage;
mod story;
mod strangers;
mod sweep;
mod together;
