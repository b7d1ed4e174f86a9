//! Kernel uevents: one datagram each, in the form that the kernel sends on its netlink socket.

use std::io;
use std::os::unix::net::UnixDatagram;

/// The sending side; the other end is the daemon's standard input.
#[derive(Debug)]
pub(super) struct Uevents {
    listeners: Vec<UnixDatagram>,
    sequence: u64,
    lost: bool,
}

impl Uevents {
    pub(super) fn new() -> Self {
        Self { listeners: Vec::new(), sequence: 1000, lost: false }
    }

    /// A new listener: the end that it reads from.
    pub(super) fn listen(&mut self) -> io::Result<UnixDatagram> {
        let (ours, theirs) = UnixDatagram::pair()?;
        // The kernel does not wait for a listener whose buffer is full; it drops the event.
        ours.set_nonblocking(true)?;
        self.listeners.push(ours);
        Ok(theirs)
    }

    /// From now on events are numbered but not sent, or sent again.
    pub(super) fn lose(&mut self, lost: bool) {
        self.lost = lost;
    }

    /// Sends one event. `path` is below `/sys`, without a leading `/`; `early` are the sender's own keys, `late` the device's.
    pub(super) fn send(
        &mut self,
        action: &str,
        path: &str,
        subsystem: &str,
        early: &[(&str, &str)],
        late: &[(&str, &str)],
    ) {
        self.sequence += 1;
        if self.lost {
            return;
        }
        let mut text = format!("{action}@/{path}\0ACTION={action}\0DEVPATH=/{path}\0SUBSYSTEM={subsystem}\0");
        for (key, value) in early.iter().chain(late) {
            text.push_str(&format!("{key}={value}\0"));
        }
        text.push_str(&format!("SEQNUM={}\0", self.sequence));
        // A listener that is gone or does not read loses the event, as with the kernel.
        self.listeners.retain(|listener| match listener.send(text.as_bytes()) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
    }
}
