//! Netlink messages as bytes: headers and attributes, put together and taken apart.

use rustix::io::Errno;

/// Length, type, flags, sequence number and sender.
const HEADER: usize = 16;

/// The least that an attribute has: its length and type.
const ATTRIBUTE_HEADER: usize = 4;

/// The two bits of an attribute's type that say how to read it, not what it is.
const TYPE_MASK: u16 = 0x3fff;

/// A message of the kernel that says how a request ended, and one that says how a list did.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The highest errno that the kernel answers with.
const ERRNO_LIMIT: i32 = 4095;

/// What the kernel calls "not supported" in itself (`ENOTSUPP`); it should never leave it, but some drivers answer with it.
const KERNEL_NOTSUPP: i32 = 524;

/// What flags a request can have.
pub mod flags {
    /// It is a request.
    pub const REQUEST: u16 = 1;
    /// The kernel is to say how it ended, also when it ended well.
    pub const ACK: u16 = 4;
    /// It asks for everything of a kind.
    pub const DUMP: u16 = 0x300;
}

/// A message to the kernel, with the sequence number that its answer will have.
pub fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // The sender's port: the kernel knows it.
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// An attribute, filled up to where the next one begins.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(aligned(ATTRIBUTE_HEADER + payload.len()));
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// An attribute that is a text, with the zero byte that the kernel ends it with.
pub fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// The attributes in these bytes, type and payload. Ends at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & TYPE_MASK;
        let payload = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// What the kernel says to the request with this sequence number: the body of its answer, which is empty where it only says that all is
/// done, or its errno. `None` when these bytes have no answer to it.
pub fn answer(bytes: &[u8], sequence: u32) -> Option<Result<&[u8], Errno>> {
    let (kind, body) = messages(bytes, sequence).next()?;
    if kind != ERROR {
        return Some(Ok(body));
    }
    Some(match word(body, 0)?.cast_signed() {
        0 => Ok(&[]),
        code => Err(errno(code)),
    })
}

/// What the kernel says to a request for a list: the bodies of its parts, and at its end nothing more, or an errno.
pub fn parts(bytes: &[u8], sequence: u32) -> impl Iterator<Item = Result<Option<&[u8]>, Errno>> {
    messages(bytes, sequence).map(|(kind, body)| match kind {
        ERROR | DONE => match word(body, 0).unwrap_or_default().cast_signed() {
            0 => Ok(None),
            code => Err(errno(code)),
        },
        _ => Ok(Some(body)),
    })
}

/// The messages with this sequence number, type and body. Ends at the first that does not fit.
fn messages(mut bytes: &[u8], sequence: u32) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let length = usize::try_from(word(bytes, 0)?).ok()?;
            let (kind, of) = (half(bytes, 4)?, word(bytes, 8)?);
            let body = bytes.get(HEADER..length)?;
            bytes = bytes.get(aligned(length)..).unwrap_or_default();
            if of == sequence {
                return Some((kind, body));
            }
        }
    })
}

/// The errno of a negative answer.
fn errno(code: i32) -> Errno {
    match code.checked_neg() {
        Some(KERNEL_NOTSUPP) => Errno::OPNOTSUPP,
        Some(errno) if (1..=ERRNO_LIMIT).contains(&errno) => Errno::from_raw_os_error(errno),
        _ => Errno::PROTO,
    }
}

/// The 16-bit number at this place.
pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32-bit number at this place.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Everything begins at a multiple of four.
pub fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_as_the_kernel_defines_it() {
        let bytes = message(18, flags::REQUEST | flags::ACK, 7, &attribute(3, b"lo\0"));
        let wanted: Vec<u8> = [
            &24_u32.to_ne_bytes()[..],
            &18_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &0_u32.to_ne_bytes(),
            // The length is without the filling.
            &7_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            b"lo\0\0",
        ]
        .concat();
        assert_eq!(bytes, wanted);
        assert_eq!(text_attribute(3, "lo"), attribute(3, b"lo\0"));
    }

    #[test]
    fn attributes_come_one_by_one_until_one_does_not_fit() {
        let bytes = [attribute(3, b"lo\0"), attribute(0x8000 | 22, b""), attribute(5, &[1, 2, 3, 4])].concat();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(3, &b"lo\0"[..]), (22, &[]), (5, &[1, 2, 3, 4])]);
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 2);
        assert_eq!(attributes(&[3, 0, 0, 0]).count(), 0, "shorter than its own header");
        assert_eq!(attributes(&[0; 8]).count(), 0);
    }

    #[test]
    fn an_answer_is_a_body_a_yes_or_an_errno() {
        let error = |code: i32, sequence| message(ERROR, 0, sequence, &code.to_ne_bytes());
        let other = message(16, 0, 6, b"late");
        let ours = [other.clone(), message(16, 0, 7, b"body")].concat();
        assert_eq!(answer(&ours, 7), Some(Ok(&b"body"[..])));
        assert_eq!(answer(&error(0, 7), 7), Some(Ok(&[][..])));
        assert_eq!(answer(&error(-19, 7), 7), Some(Err(Errno::NODEV)));
        assert_eq!(answer(&error(-524, 7), 7), Some(Err(Errno::OPNOTSUPP)));
        for strange in [1, i32::MIN, -4096] {
            assert_eq!(answer(&error(strange, 7), 7), Some(Err(Errno::PROTO)), "{strange}");
        }
        assert_eq!(answer(&error(-19, 6), 7), None);
        assert_eq!(answer(&other, 7), None);
        assert_eq!(answer(&ours[..ours.len() - 1], 7), None, "cut");
        assert_eq!(answer(&message(ERROR, 0, 7, &[]), 7), None, "an error without its number");
    }

    #[test]
    fn a_list_has_parts_and_an_end() {
        let part = |kind, body: &[u8]| message(kind, 2, 7, body);
        let bytes = [part(24, b"one."), message(24, 2, 6, b"late"), part(24, b"two."), part(DONE, &[0; 4])].concat();
        let found: Vec<_> = parts(&bytes, 7).collect();
        assert_eq!(found, [Ok(Some(&b"one."[..])), Ok(Some(b"two.")), Ok(None)]);
        for kind in [ERROR, DONE] {
            let end = part(kind, &(-95_i32).to_ne_bytes());
            assert_eq!(parts(&end, 7).collect::<Vec<_>>(), [Err(Errno::OPNOTSUPP)]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), sequence in 0..3_u32) {
            let _ = answer(&bytes, sequence);
            prop_assert!(parts(&bytes, sequence).count() <= bytes.len());
            for (_, payload) in attributes(&bytes) {
                prop_assert!(payload.len() <= bytes.len());
            }
        }

        #[test]
        fn what_is_put_together_comes_apart(
            parts in proptest::collection::vec((0..100_u16, proptest::collection::vec(any::<u8>(), 0..20)), 0..5),
        ) {
            let bytes = parts.iter().flat_map(|(kind, payload)| attribute(*kind, payload)).collect::<Vec<u8>>();
            let found: Vec<_> = attributes(&bytes).map(|(kind, payload)| (kind, payload.to_vec())).collect();
            prop_assert_eq!(found, parts);
            let message = message(16, 0, 9, &bytes);
            prop_assert_eq!(answer(&message, 9), Some(Ok(&bytes[..])));
        }
    }
}
