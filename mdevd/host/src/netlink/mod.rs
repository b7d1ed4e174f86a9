//! What only netlink says of network devices: what a physical function does with its virtual functions ([`vf_settings`], [`set_vf`]),
//! which way its switch works ([`eswitch_mode`]), and through which a default route leads.
//!
//! One socket for each question. The kernel answers under a lock that it holds while any network device comes or goes, so
//! that each of these can block for long: they belong on a plain thread, and changes into the [writer](mod@crate::write).

mod devlink;
mod message;
mod route;
mod vf;

pub use devlink::eswitch_mode;
pub(crate) use route::default_interfaces;
pub(crate) use vf::vf_name;
pub use vf::{set_vf, vf_settings};

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, sendto};

use message::flags;

/// The most that an answer has. An attribute has no more than 64 KiB, and the virtual functions are one.
const ANSWER_LIMIT: usize = 128 * 1024;

/// The one request of a socket.
const SEQUENCE: u32 = 1;

/// A socket to one part of the kernel, and the one question that it is for.
fn ask(protocol: Option<Protocol>, kind: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
    talk(protocol, kind, flags::REQUEST, body)
}

/// The same for what is to be done: the kernel answers when it is.
fn tell(protocol: Option<Protocol>, kind: u16, body: &[u8]) -> Result<(), Errno> {
    talk(protocol, kind, flags::REQUEST | flags::ACK, body).map(drop)
}

fn talk(protocol: Option<Protocol>, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let socket = send(protocol, kind, flags, body)?;
    let mut buffer = vec![0; ANSWER_LIMIT];
    loop {
        if let Some(answer) = message::answer(receive(&socket, &mut buffer)?, SEQUENCE) {
            return answer.map(<[u8]>::to_vec);
        }
    }
}

/// Asks for everything of a kind: `each` gets one after the other.
fn list(protocol: Option<Protocol>, kind: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
    let socket = send(protocol, kind, flags::REQUEST | flags::DUMP, body)?;
    let mut buffer = vec![0; ANSWER_LIMIT];
    loop {
        for part in message::parts(receive(&socket, &mut buffer)?, SEQUENCE) {
            match part? {
                Some(body) => each(body),
                None => return Ok(()),
            }
        }
    }
}

fn send(protocol: Option<Protocol>, kind: u16, flags: u16, body: &[u8]) -> Result<OwnedFd, Errno> {
    let socket = socket(protocol)?;
    let request = message::message(kind, flags, SEQUENCE, body);
    if sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))? != request.len() {
        return Err(Errno::MSGSIZE);
    }
    Ok(socket)
}

fn socket(protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
}

/// What the kernel sends next.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    loop {
        // With TRUNC the length is that of the message, though the buffer has less.
        let (length, sender) = match recvfrom(socket, &mut *buffer, RecvFlags::TRUNC) {
            Ok((_, length, sender)) => (length, sender),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_some_and(|sender| sender.pid() == 0) {
            return buffer.get(..length).ok_or(Errno::MSGSIZE);
        }
    }
}
