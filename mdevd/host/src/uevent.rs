//! The kernel's own announcements: devices that come, go and change (kernel: `lib/kobject_uevent.c`).
//!
//! They are hints that something is worth looking at, never facts: each leads to a look at sysfs, and whenever one may have been lost,
//! to a look at everything.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;

use mdevd_core::names::{MdevUuid, ParentName, PciAddress};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType, netlink, sockopt};

use crate::error::EffectError;
use crate::pci;
use crate::roots::Roots;

/// Room for events that come while we are busy: a driver that makes thousands of devices at once must not overrun us.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;

/// The kernel builds an event in 2 KiB.
const MESSAGE_LIMIT: usize = 8 * 1024;

/// The multicast group of the kernel's events. Group 2 has udev's, which anyone with the right capability can forge.
const KERNEL_GROUP: u32 = 1;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, `unbind`, …
    pub action: String,
    /// The device's path below the sysfs root, with a leading `/`: `/devices/virtual/mtty/mtty`.
    pub devpath: String,
    /// The device's bus or class: `mdev`, `pci`; empty where the event names none.
    pub subsystem: String,
    /// Everything that the event says, these three included.
    pub properties: BTreeMap<String, String>,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UeventMessage {
    /// An event.
    Event(Uevent),
    /// Events may have been lost, and why: look at everything.
    Lost(String),
}

/// What an event makes worth looking at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The parent, or a device that may be one.
    pub parent: ParentName,
    /// The mediated device on it that the event is about.
    pub mdev: Option<MdevUuid>,
}

impl Uevent {
    /// Reads `ACTION@DEVPATH\0KEY=VALUE\0…`; `None` for anything else.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let head = parts.next()?;
        let (action, devpath) = head.split_once('@')?;
        if action.is_empty() || !devpath.starts_with('/') {
            return None;
        }
        let properties: BTreeMap<String, String> = parts
            .filter_map(|part| part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
            .collect();
        let subsystem = properties.get("SUBSYSTEM").cloned().unwrap_or_default();
        Some(Self { action: action.to_owned(), devpath: devpath.to_owned(), subsystem, properties })
    }

    /// Which parent, and which mediated device on it, is worth a look now; `None` for an event that is not about any.
    pub fn affects(&self) -> Option<Affected> {
        let (folder, name) = self.devpath.strip_prefix("/devices/")?.rsplit_once('/')?;
        let comes_or_goes = matches!(self.action.as_str(), "add" | "remove" | "bind" | "unbind");
        match self.subsystem.as_str() {
            "mdev" if comes_or_goes => {
                let parent = folder.rsplit('/').next()?.parse().ok()?;
                Some(Affected { parent, mdev: Some(name.parse().ok()?) })
            }
            // What every mediated device brings along.
            "mdev" | "vfio" | "vfio-dev" => None,
            _ => {
                // New kernels say it when a device becomes a parent or is none any more; old ones say only that a device came.
                let registered = self.action == "change"
                    && matches!(self.properties.get("MDEV_STATE")?.as_str(), "registered" | "unregistered");
                (registered || comes_or_goes).then_some(())?;
                Some(Affected { parent: name.parse().ok()?, mdev: None })
            }
        }
    }

    /// Which PCI functions are worth a look now: the one that the event is about and, of a virtual one, its physical one as well, whose
    /// links come and go with it. When a virtual function goes, sysfs no longer says whose it was: the last picture does.
    pub fn functions(&self, roots: &Roots) -> Vec<PciAddress> {
        let Some(address) = self.function() else { return Vec::new() };
        // This only looks at a link, which never waits. One that cannot be read is for the look at the function itself to report.
        let physical = pci::physical_function_of(roots, &address).ok().flatten();
        std::iter::once(address).chain(physical).collect()
    }

    /// The PCI function that an event is about: itself, a network interface of its own or of its virtio device, or its VFIO device. The
    /// end of that is all that new kernels say, and old ones say nothing, when a function is taken away while somebody has it open.
    fn function(&self) -> Option<PciAddress> {
        let wanted: &[&str] = match self.subsystem.as_str() {
            "pci" => &["add", "remove", "bind", "unbind", "change"],
            "net" => &["add", "remove", "move", "change"],
            "vfio-dev" => &["add", "remove"],
            _ => return None,
        };
        if !wanted.contains(&self.action.as_str()) {
            return None;
        }
        let mut above = self.devpath.strip_prefix("/devices/")?.rsplit('/');
        if self.subsystem != "pci" {
            above.nth(1).filter(|class| *class == self.subsystem)?;
        }
        let nearest = above.next()?;
        let virtio = self.subsystem == "net" && nearest.starts_with("virtio");
        if virtio { above.next()?.parse().ok() } else { nearest.parse().ok() }
    }
}

/// Where events come from.
pub struct UeventSource {
    socket: OwnedFd,
    /// Whether only what the kernel itself has sent counts.
    kernel_only: bool,
    /// Whether an empty message is the other side's end.
    ends: bool,
}

impl fmt::Debug for UeventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.kernel_only { "UeventSource(kernel)" } else { "UeventSource(fed)" })
    }
}

impl UeventSource {
    /// The kernel's events, and nobody else's: any process of root can send to that socket.
    pub fn netlink() -> Result<Self, EffectError> {
        let fail = |errno| EffectError::new("listen to", "the kernel's uevents", errno);
        let family = AddressFamily::NETLINK;
        let socket =
            rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::KOBJECT_UEVENT))
                .map_err(fail)?;
        // Past the system's limit needs a capability; within it, the kernel gives what it allows.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER).map_err(fail)?;
        }
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP)).map_err(fail)?;
        Ok(Self { socket, kernel_only: true, ends: false })
    }

    /// Events that a test feeds into the other end of a socket pair, one to a message.
    pub fn fed(socket: OwnedFd) -> Self {
        let ends = sockopt::socket_type(&socket).is_ok_and(|kind| kind != SocketType::DGRAM);
        Self { socket, kernel_only: false, ends }
    }

    /// Reads events for ever: for a plain thread. Returns when a feeding test has closed its end, or when the socket does not work.
    pub fn read_all(self, mut on_event: impl FnMut(UeventMessage)) -> Result<(), EffectError> {
        let mut buffer = vec![0; MESSAGE_LIMIT];
        loop {
            // With TRUNC the length is that of the message, though the buffer has less.
            let (length, sender) = match rustix::net::recvfrom(&self.socket, &mut buffer[..], RecvFlags::TRUNC) {
                Ok((_, length, sender)) => (length, sender),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    on_event(UeventMessage::Lost("the kernel sent events faster than they were read".into()));
                    continue;
                }
                Err(errno) => return Err(EffectError::new("listen to", "the kernel's uevents", errno)),
            };
            if length == 0 && self.ends {
                return Ok(());
            }
            if self.kernel_only && !is_kernel(sender) {
                continue;
            }
            match buffer.get(..length) {
                Some(message) => {
                    if let Some(event) = Uevent::parse(message) {
                        on_event(UeventMessage::Event(event));
                    }
                }
                None => on_event(UeventMessage::Lost(format!("an event of {length} bytes is too long"))),
            }
        }
    }
}

/// The kernel's address is port 0, which no process can have.
fn is_kernel(sender: Option<SocketAddrAny>) -> bool {
    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
    sender.is_some_and(|sender| sender.pid() == 0 && sender.groups() == KERNEL_GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{SendFlags, getsockname, sendto, socketpair};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const UUID: &str = "99999999-2222-3333-4444-555555555555";

    fn event(action: &str, devpath: &str, properties: &str) -> Uevent {
        let message = format!("{action}@{devpath}\0ACTION={action}\0DEVPATH={devpath}\0{properties}SEQNUM=1373\0");
        Uevent::parse(message.as_bytes()).unwrap()
    }

    fn affected(action: &str, devpath: &str, properties: &str) -> Option<(String, Option<String>)> {
        event(action, devpath, properties)
            .affects()
            .map(|found| (found.parent.to_string(), found.mdev.map(|uuid| uuid.to_string())))
    }

    #[test]
    fn an_event_is_read_as_the_kernel_sends_it() {
        let event = event("add", "/devices/virtual/mdpy/mdpy", "SUBSYSTEM=mdpy\0EMPTY=\0A=b=c\0");
        assert_eq!(
            (event.action.as_str(), event.devpath.as_str(), event.subsystem.as_str()),
            ("add", "/devices/virtual/mdpy/mdpy", "mdpy")
        );
        assert_eq!((event.properties["EMPTY"].as_str(), event.properties["A"].as_str()), ("", "b=c"));
    }

    #[test]
    fn what_is_no_event_is_none() {
        for message in
            [&b""[..], b"\0", b"libudev\0\xfe\xed\xca\xfe", b"add", b"@/x", b"add@", b"add@x\0A=b\0", b"\xff@\xff\0"]
        {
            assert_eq!(Uevent::parse(message), None, "{message:?}");
        }
    }

    #[test]
    fn a_device_names_its_parent() {
        let devpath = format!("/devices/virtual/mdpy/mdpy/{UUID}");
        for action in ["add", "remove", "bind", "unbind"] {
            assert_eq!(affected(action, &devpath, "SUBSYSTEM=mdev\0"), Some(("mdpy".into(), Some(UUID.into()))));
        }
        assert_eq!(affected("change", &devpath, "SUBSYSTEM=mdev\0"), None);
        assert_eq!(affected("add", &format!("{devpath}/vfio-dev/vfio0"), "SUBSYSTEM=vfio-dev\0"), None);
        assert_eq!(affected("add", "/devices/virtual/vfio/6", "SUBSYSTEM=vfio\0"), None);
        assert_eq!(affected("add", "/devices/virtual/mdpy/mdpy/no-uuid", "SUBSYSTEM=mdev\0"), None);
    }

    #[test]
    fn a_parent_is_affected_when_it_comes_goes_or_says_so() {
        let pci = "/devices/pci0000:40/0000:40:01.1/0000:41:00.0";
        let parent = Some(("0000:41:00.0".into(), None));
        assert_eq!(affected("change", pci, "SUBSYSTEM=pci\0MDEV_STATE=registered\0"), parent);
        assert_eq!(affected("change", pci, "SUBSYSTEM=pci\0MDEV_STATE=unregistered\0"), parent);
        assert_eq!(affected("add", pci, "SUBSYSTEM=pci\0"), parent);
        assert_eq!(affected("remove", pci, ""), parent);
        assert_eq!(affected("change", pci, "SUBSYSTEM=pci\0"), None);
        assert_eq!(affected("change", pci, "SUBSYSTEM=pci\0MDEV_STATE=other\0"), None);
        assert_eq!(affected("add", "/module/mtty", "SUBSYSTEM=module\0"), None);
        assert_eq!(affected("add", "/bus/mdev/drivers/mtty", "SUBSYSTEM=drivers\0"), None);
    }

    /// A host on which `0000:01:10.0` is a virtual function of `0000:01:00.0`.
    fn host() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().into(), ..Roots::default() };
        let function = roots.pci_devices().join("0000:01:10.0");
        std::fs::create_dir_all(&function).unwrap();
        std::os::unix::fs::symlink("../0000:01:00.0", function.join("physfn")).unwrap();
        (dir, roots)
    }

    #[test]
    fn a_function_is_affected_by_its_own_events_and_so_is_its_physical_one() {
        let (_dir, roots) = host();
        let functions = |action: &str, devpath: &str, subsystem: &str| {
            let event = event(action, devpath, &format!("SUBSYSTEM={subsystem}\0"));
            event.functions(&roots).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let (pf, vf) =
            ("/devices/pci0000:00/0000:00:05.0/0000:01:00.0", "/devices/pci0000:00/0000:00:05.0/0000:01:10.0");
        let (only_pf, both) = ("0000:01:00.0", "0000:01:10.0 0000:01:00.0");
        for action in ["add", "remove", "bind", "unbind", "change"] {
            assert_eq!(functions(action, vf, "pci"), both, "{action}");
            assert_eq!(functions(action, pf, "pci"), only_pf, "{action}");
        }
        for action in ["add", "remove", "move", "change"] {
            assert_eq!(functions(action, &format!("{vf}/net/enp1s0v0"), "net"), both, "{action}");
            assert_eq!(functions(action, &format!("{pf}/virtio0/net/eth0"), "net"), only_pf, "{action}");
        }
        for action in ["add", "remove"] {
            assert_eq!(functions(action, &format!("{vf}/vfio-dev/vfio0"), "vfio-dev"), both, "{action}");
        }
        for (action, path, subsystem) in [
            ("online", "", "pci"),
            ("bind", "/net/eth0", "net"),
            ("change", "/vfio-dev/vfio0", "vfio-dev"),
            ("add", "/net/eth0/queues/rx-0", "queues"),
            ("add", "/usb1/1-1/1-1:1.0/net/eth0", "net"),
            ("add", "/11111111-2222-3333-4444-555555555555/vfio-dev/vfio0", "vfio-dev"),
            ("add", "/11111111-2222-3333-4444-555555555555", "mdev"),
            ("add", "/eth0", "net"),
        ] {
            assert_eq!(functions(action, &format!("{pf}{path}"), subsystem), "", "{action} {path}");
        }
        assert_eq!(functions("add", "/devices/virtual/net/br0", "net"), "");
        assert_eq!(functions("add", "/devices/pci10000:00/10000:e1:00.0", "pci"), "10000:e1:00.0");
        assert_eq!(functions("add", "/bus/pci/drivers/igbvf", "drivers"), "");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, action in "[a-z]{0,9}|add", path in "\\PC{0,30}|[0-9a-f:./]{0,30}(/net/[a-z]{1,3})?", properties in "([A-Z_]{0,9}=?\\PC{0,9}\0){0,5}") {
            let _ = Uevent::parse(&bytes).and_then(|event| event.affects());
            for subsystem in ["", "SUBSYSTEM=mdev\0", "MDEV_STATE=registered\0", "SUBSYSTEM=pci\0", "SUBSYSTEM=net\0"] {
                let message = format!("{action}@/devices/{path}\0{subsystem}{properties}");
                let event = Uevent::parse(message.as_bytes());
                prop_assert_eq!(event.is_some(), !action.is_empty());
                let _ = event.as_ref().and_then(Uevent::function);
                let _ = event.and_then(|event| event.affects());
            }
        }
    }

    /// Feeds messages through a socket pair; gives what came out, once the other end is closed.
    fn fed(kind: SocketType, messages: &[&[u8]]) -> Vec<UeventMessage> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        for message in messages {
            rustix::net::send(&theirs, message, SendFlags::empty()).unwrap();
        }
        let mut got = vec![];
        drop(theirs);
        UeventSource::fed(ours).read_all(|message| got.push(message)).unwrap();
        got
    }

    #[test]
    fn a_fed_source_gives_each_event_until_its_end() {
        let long = vec![b'x'; MESSAGE_LIMIT + 1];
        let got = fed(
            SocketType::SEQPACKET,
            &[b"add@/devices/a/b\0SUBSYSTEM=x\0", b"garbage", &long, b"remove@/devices/a/b\0"],
        );
        let shown: Vec<_> = got
            .iter()
            .map(|message| match message {
                UeventMessage::Event(event) => event.action.clone(),
                UeventMessage::Lost(why) => why.clone(),
            })
            .collect();
        assert_eq!(shown, ["add", "an event of 8193 bytes is too long", "remove"]);
    }

    #[test]
    fn an_empty_datagram_is_not_the_end() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        let (tell, told) = channel();
        std::thread::spawn(move || UeventSource::fed(ours).read_all(|message| drop(tell.send(message))));
        for message in [&b""[..], b"add@/devices/a/b\0"] {
            rustix::net::send(&theirs, message, SendFlags::empty()).unwrap();
        }
        assert!(matches!(told.recv_timeout(Duration::from_secs(20)).unwrap(), UeventMessage::Event(_)));
    }

    #[test]
    fn the_kernels_events_come_and_forged_ones_do_not() {
        let source = UeventSource::netlink().unwrap();
        let ours = SocketAddrNetlink::try_from(getsockname(&source.socket).unwrap()).unwrap();
        assert_ne!(ours.pid(), 0);
        let (tell, told) = channel();
        std::thread::spawn(move || source.read_all(|message| drop(tell.send(message))));

        // Only root may send there, and only root can make the kernel send something.
        let forger =
            rustix::net::socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(netlink::KOBJECT_UEVENT)).unwrap();
        let forged = b"add@/devices/virtual/forged/forged\0SUBSYSTEM=forged\0";
        let sent = sendto(&forger, forged, SendFlags::empty(), &SocketAddrNetlink::new(ours.pid(), 0));
        let mark =
            uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{}", std::process::id()).as_bytes()).to_string();
        let asked = std::fs::OpenOptions::new()
            .write(true)
            .open("/sys/devices/virtual/mem/null/uevent")
            .and_then(|mut file| std::io::Write::write_all(&mut file, format!("change {mark}").as_bytes()));
        if let (Err(why), _) | (Ok(_), Err(why)) = (sent.map_err(std::io::Error::from), asked) {
            eprintln!("LEFT OUT: no uevent can be sent here ({why}); run this test as root on a machine of its own");
            return;
        }
        loop {
            let message = told.recv_timeout(Duration::from_secs(20)).unwrap();
            let UeventMessage::Event(event) = message else { continue };
            assert_ne!(event.subsystem, "forged");
            if event.properties.get("SYNTH_UUID") == Some(&mark) {
                assert_eq!((event.action.as_str(), event.devpath.as_str()), ("change", "/devices/virtual/mem/null"));
                return;
            }
        }
    }
}
