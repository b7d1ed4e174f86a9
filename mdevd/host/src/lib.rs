//! Every effect of mdevd on the host: sysfs, procfs, netlink, state files.
//!
//! Nothing here decides anything; it looks ([`scan`], [`pci`], [`holders`], [`process`], [`domains`]), writes ([`write`](mod@write), [`busy`],
//! [`rights`]), keeps state files ([`files`]) and listens ([`uevent`], [`watch`]). Where the host is, is one struct, [`roots::Roots`], so
//! that a test shows the same code another host. Functions that are not `async` block, and may block for as long as the kernel likes:
//! they belong on a plain thread.

pub mod busy;
pub mod critical;
pub mod domains;
pub mod error;
pub mod facts;
pub mod files;
pub mod holders;
pub mod netlink;
pub mod pci;
pub mod process;
pub mod read;
pub mod rights;
pub mod roots;
pub mod scan;
pub mod uevent;
pub mod watch;
pub mod write;
