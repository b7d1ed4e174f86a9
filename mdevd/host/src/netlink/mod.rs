//! What only netlink says of network devices: what a physical function does with its virtual functions ([`vf_settings`], [`set_vf`]), and
//! which way its switch works ([`eswitch_mode`]).
//!
//! One socket for each question, and one answer. The kernel answers under a lock that it holds while any network device comes or goes, so
//! that each of these can block for long: they belong on a plain thread, and changes into the [writer](mod@crate::write).

mod devlink;
mod message;
mod vf;

pub use devlink::eswitch_mode;
pub(crate) use vf::vf_name;
pub use vf::{set_vf, vf_settings};

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
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    let request = message::message(kind, flags, SEQUENCE, body);
    if sendto(&socket, &request, SendFlags::empty(), &kernel)? != request.len() {
        return Err(Errno::MSGSIZE);
    }
    let mut buffer = vec![0; ANSWER_LIMIT];
    loop {
        // With TRUNC the length is that of the message, though the buffer has less.
        let (length, sender) = match recvfrom(&socket, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((_, length, sender)) => (length, sender),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_none_or(|sender| sender.pid() != 0) {
            continue;
        }
        let bytes = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        if let Some(answer) = message::answer(bytes, SEQUENCE) {
            return answer.map(<[u8]>::to_vec);
        }
    }
}
