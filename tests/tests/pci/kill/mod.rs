//! The daemon is killed with SIGKILL at every point of every step of giving a domain a PCI function and taking it back, and of changing
//! the number of virtual functions. Whatever comes of it, the next daemon brings the host to where it was.
//!
//! The steps come from the plan: [`story`] watches one undisturbed course and holds the plan in the claim file against what was really
//! written to sysfs; [`death`] lies at every point of each write and of each version of the claim file; [`stage`] says what is true after.
//! A function on its way back has no plan: there the writes themselves are what the points come from.

mod death;
mod functions;
mod numvfs;
mod stage;
mod story;
