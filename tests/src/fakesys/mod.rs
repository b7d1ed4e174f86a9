//! fakesys: a host that is not there.
mod builder;
mod fs;
mod glob;
mod host;
mod kernel;
mod libvirt;
mod log;
mod pci;
mod process;
mod rules;
mod tree;
mod uevent;

pub use builder::{Builder, host};
pub use host::FakeHost;
pub use kernel::OfHeld;
pub use log::LogEntry;
pub use process::FakeProcess;
pub use rules::{Event, Fault, Op, Point, Rule, Then};
pub use rustix::io::Errno;
