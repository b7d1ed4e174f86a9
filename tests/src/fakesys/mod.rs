//! fakesys: a host that is not there. A FUSE file system with the four roots that the daemon looks at, `sys`, `proc`, `etc` and `run`,
//! which behaves as the kernel does with mediated devices, PCI drivers and virtual functions: `create` and `remove`, `bind` and `unbind`,
//! `sriov_numvfs` and `current_vgpu_type` really do what they say with links, attributes and uevents, and answer with the kernel's errnos.
//! Its listings are held against those of a real 6.12 (`golden/`).
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
//! PCI functions are named in the same way; a parent with an address is one of them:
//!
//! ```no_run
//! use mdevd_tests::fakesys::{self, Errno, Fault, Op, Point};
//!
//! let host = fakesys::host()
//!     .bridge("0000:00:1c.0", 3)                // else each bus has a port that nobody named
//!     .function("0000:03:00.0").ids(0x8086, 0x10d3).class(0x020000).driver("e1000e").numa(0)
//!         .reset_methods("flr pm bus").netdev("enp3s0", "52:54:00:00:00:02")
//!     .function("0000:03:00.1").group_with("0000:03:00.0")
//!     .pci_driver("ahci", &[(0x8086, 0x2922)])  // drivers that functions name are there by themselves, and vfio-pci always
//!     .pf("0000:01:00.0", 7).ids(0x8086, 0x10c9).class(0x020000).driver("igb")
//!         .vf_ids(0x8086, 0x10ca).vf_driver("igbvf").vf_netdevs("enp1s0v").offset_stride(128, 2)
//!     .vgpu_card("0000:41:00.0", 32).framebuffer(48)
//!         .vgpu_type(1148, "NVIDIA L40S-2Q", 2).vgpu_type(1152, "NVIDIA L40S-8Q", 8)
//!     .mount()?;
//!
//! // Bad luck. `unbind` and `drivers_probe` are files of all functions: what is written tells which one is meant.
//! let unbind = Point::before(Op::Write, "sys/bus/pci/drivers/*/unbind").writing("0000:03:00.0");
//! host.fault_at(unbind, Fault::Hang);
//! host.probe_fails("0000:03:00.0", "vfio-pci", Errno::INVAL);
//! host.probe_binds("0000:03:00.0", "e1000e");   // the next probe, whatever was asked for
//! host.at_most_vfs("0000:01:00.0", 1);
//! host.vfs_late("0000:01:00.0");                // … until host.vfs_appear(…)
//!
//! // Others do things too: they take whatever they want, also from under a holder.
//! host.set_num_vfs("0000:01:00.0", 2).ok();
//! host.set_override("0000:03:00.0", Some("nosuch"));
//! host.rename_netdev("enp3s0", "lan0");
//! host.unplug("0000:01:00.0");
//!
//! // A holder: `unbind` waits for it, `sriov_numvfs` waits for it, `current_vgpu_type` refuses.
//! host.set_vgpu_type("0000:41:00.4", 1152).ok();
//! let qemu = host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]).opens_function("0000:41:00.4");
//! host.vgpu_lingers("0000:41:00.4", true);      // … and goes on refusing for a while
//! qemu.vanish();
//! assert_eq!(host.view().vgpu_type("0000:41:00.4"), Some(1152));
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
//! - A function whose unbind waits has lost its links to the driver and its `vfio-dev`, and keeps its group's device node; its `uevent`
//!   still names the driver, and a probe of it does nothing. A virtual function that has to go loses its links to and from the physical
//!   one before that, and others after it wait their turn whole. Only `sriov_numvfs` cannot be read meanwhile. A second change of the same
//!   function waits for the first.
//! - Probes that fail are told to `bind` alone. A virtual function of a physical one that says `sriov_drivers_autoprobe` 0 is bound only
//!   with an override. A physical function that loses its driver loses its virtual ones; only its own driver makes any.
//! - Whoever opens a group has all its functions open. What udev and `modprobe` do is left out: an interface has its last name at once,
//!   and a module is loaded when the test says so. Hardware addresses of virtual functions are made up from their PCI addresses.
//! - `current_vgpu_type` answers as NVIDIA's driver does: 0 where there is no type `EPERM`, a type where there is one `EPERM`, 0 while it is
//!   open `EPERM`, while the vendor's manager still has it `EBUSY`, a type that is not in the list `EIO`, no number `EINVAL`. On a card that
//!   is not [`mixed`](Builder::mixed) all types have the size of the first. Such functions stay on `nvidia`, which offers them to VFIO by
//!   itself; `vfio-pci` takes none of them (`EINVAL`).
//! - Files in `sys` belong to whoever mounts, root in the real thing; `power/` folders are left out.
//! - `etc` and `run` are ordinary: files, folders, links, rename, append, flock; no hard links, sockets or `O_TMPFILE`.
//! - The pid in [`Event`] and [`LogEntry`] is that of the thread that calls.
//! - The kernel is told to remember the names that last, so that a look at a large host does not cost a question for each folder on the
//!   way; everything that can come and go is asked for every time.

mod binding;
mod builder;
mod disks;
mod fs;
mod functions;
mod glob;
mod host;
mod kernel;
mod libvirt;
mod log;
mod netdevs;
mod ops;
mod parents;
mod pci;
mod process;
mod rules;
mod sriov;
mod tree;
mod uevent;
mod vgpu;
mod view;

pub use builder::{Builder, host};
pub use host::FakeHost;
pub use kernel::OfHeld;
pub use log::LogEntry;
pub use process::FakeProcess;
pub use rules::{Event, Fault, Op, Point, Rule, Then};
pub use rustix::io::Errno;
pub use view::View;
