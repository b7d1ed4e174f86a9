//! fakesys: a host that is not there. A FUSE file system with the four roots that the daemon looks at, `sys`, `proc`, `etc` and `run`,
//! which behaves as the kernel does with mediated devices: `create` and `remove` really make and unmake a device with its links,
//! attributes and uevents, and answer with the kernel's errnos. Its listings are held against those of a real 6.12 (`golden/`).
//!
//! ```no_run
//! use std::process::Command;
//! use mdevd_tests::fakesys::{self, Errno, Fault, Op, Point, Then};
//!
//! // Built with the words of the field. A PCI address is a PCI function, any other name a virtual device.
//! let host = fakesys::host()
//!     .parent("0000:41:00.0").numa(0).driver("nvidia")
//!         .mdev_type("nvidia-63", 4).described("num_heads=4, framebuffer=1024M")
//!         .mdev_type("nvidia-64", 2)
//!     .parent("0000:c1:00.0").numa(1).driver("nvidia").exclusive().mdev_type("nvidia-63", 4)
//!     .mtty()                                   // the kernel's sample parent, types sharing 24 ports
//!     .mount()?;
//!
//! // The daemon looks at it with its four options, and has uevents on its standard input.
//! let mut daemon = Command::new("target/debug/mdevd")
//!     .args(host.root_args())
//!     .args(["--uevents", "stdin"])
//!     .stdin(std::os::fd::OwnedFd::from(host.uevents()?))
//!     .spawn()?;
//!
//! // Bad luck. Paths and globs are from the mount, `*` within a folder, `**` across folders.
//! let full = host.fault(Op::Write, host.type_path("0000:41:00.0", "nvidia-63", "create"), Fault::Errno(Errno::NOSPC));
//! full.let_go();
//! let hang = host.fault(Op::Write, "sys/**/create", Fault::Hang);
//! hang.wait_hits(1);                            // a writer is in it now; no signal gets it out
//! hang.let_go();                                // and now its write is carried out
//!
//! // A holder: `remove` waits for it.
//! let uuid = host.mdevs()[0].0;
//! let qemu = host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]).opens_group_of(uuid);
//! host.wait_removal_begun(uuid);
//! qemu.vanish();
//!
//! // To die at a point: when the second claim file is about to get its name.
//! let pid = rustix::process::Pid::from_child(&daemon);
//! let died = host.on(Point::before_rename("run/mdevd/claims/*.json").nth(2), move |_| {
//!     rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
//!     Then::Proceed                             // the rename is carried out all the same; Then::Fail(errno) is: it is not
//! });
//! died.wait_hits(1);
//! daemon.wait()?;
//! assert_eq!(host.sys_writes(), []);            // (path, value, errno) of every write to sysfs
//! # std::io::Result::Ok(())
//! ```
//!
//! The points of an operation on a device, for one who kills the daemon in it (`C` = `run/mdevd/claims/*.json`):
//!
//! | point | as |
//! |---|---|
//! | before the claim is renamed, after it | `Point::before_rename(C)`, `Point::after_rename(C)` |
//! | writer in the write, after the write | `Point::in_write("sys/**/create")`, `Point::after_write("sys/**/create")` (`remove` likewise) |
//! | after read-back, before the mark | `Point::after_write("sys/**/create").then(Point::after_readlink("sys/**/mdev_type"))`, `Point::after_write(…).then(Point::before_create("run/mdevd/claims/*"))` |
//! | before the reply | `Point::after_rename(C).nth(n)`, with the n of the last one |
//! | the n-th such moment | `.nth(n)` on any of them |
//!
//! What is as on a real host and what is not:
//! - An operation that hangs cannot be killed: a process that gets SIGKILL in it stays in state D until the rule is let go or the host is
//!   dropped, as in vfio's `remove`. So let **processes** hang, never a thread of the test itself: when a test process is killed while
//!   one of its own threads hangs in its own file system, nothing is left to answer that thread. (`umount -f MOUNTPOINT` helps then.)
//! - A device whose removal waits has left `bus/mdev/devices`, its type and its driver; its folder under the parent, with `iommu_group`
//!   only, its group and its place in `available_instances` remain until nobody holds it. That is what 6.12 shows.
//! - Files in `sys` belong to whoever mounts, root in the real thing; `power/` folders are left out.
//! - `etc` and `run` are ordinary: files, folders, links, rename, append, flock; no hard links, sockets or `O_TMPFILE`.
//! - The pid in [`Event`] and [`LogEntry`] is that of the thread that calls.
//! - The kernel is told to remember the names that last, so that a look at a large host does not cost a question for each folder on the
//!   way; everything that can come and go is asked for every time.

mod builder;
mod fs;
mod glob;
mod host;
mod kernel;
mod libvirt;
mod log;
mod ops;
mod parents;
mod pci;
mod process;
mod rules;
mod tree;
mod uevent;
mod view;

pub use builder::{Builder, host};
pub use host::FakeHost;
pub use kernel::OfHeld;
pub use log::LogEntry;
pub use process::FakeProcess;
pub use rules::{Event, Fault, Op, Point, Rule, Then};
pub use rustix::io::Errno;
pub use view::View;
