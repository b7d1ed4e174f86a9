//! What libvirt gives on stdin: the domain's XML, or something that cannot be read as such.

use std::io::Read;

use mdevd_core::domain_xml::{Domain, DomainXmlError, MAX_BYTES, NAMESPACE, mentions_requests};

/// What was on stdin.
#[derive(Debug)]
pub enum Input {
    /// A domain.
    Domain(Box<Domain>),
    /// Something else.
    Unreadable {
        /// Whether our namespace is in it, so that it may hold a request. A domain without is none of our business,
        /// whatever else is wrong with its XML.
        ours: bool,
        /// What is wrong with it.
        why: String,
    },
}

impl Input {
    /// Reads a domain that is about to start: all there is. Of what is too much nothing is kept, but it is searched to
    /// its end: our namespace may be in the last bytes.
    pub fn read(stdin: impl Read) -> Self {
        Self::read_as(Domain::from_bytes, stdin)
    }

    /// The same for a domain that was started before: a mistake made in its requests since does not make it unknown.
    pub fn read_once_started(stdin: impl Read) -> Self {
        Self::read_as(Domain::from_bytes_once_started, stdin)
    }

    fn read_as(parse: fn(&[u8]) -> Result<Domain, DomainXmlError>, mut stdin: impl Read) -> Self {
        let mut bytes = Vec::with_capacity(16 << 10);
        if let Err(error) = stdin.by_ref().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes) {
            let why = format!("the domain XML could not be read from libvirt: {error}");
            return Self::Unreadable { ours: mentions_requests(&bytes), why };
        }
        match parse(&bytes) {
            Ok(domain) => Self::Domain(Box::new(domain)),
            Err(error) => {
                let ours =
                    mentions_requests(&bytes) || (bytes.len() > MAX_BYTES && rest_mentions_requests(bytes, stdin));
                Self::Unreadable { ours, why: error.to_string() }
            }
        }
    }
}

/// The same for what has not been read yet, and for what lies across.
fn rest_mentions_requests(mut seen: Vec<u8>, mut rest: impl Read) -> bool {
    let mut chunk = vec![0; 64 << 10];
    while let Ok(length @ 1..) = rest.read(&mut chunk) {
        seen.drain(..seen.len().saturating_sub(NAMESPACE.len()));
        seen.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if mentions_requests(&seen) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(input: impl Read) -> bool {
        match Input::read(input) {
            Input::Unreadable { ours, .. } => ours,
            Input::Domain(domain) => panic!("{domain:?}"),
        }
    }

    #[test]
    fn what_is_too_much_is_searched_to_its_end() {
        // Wherever the namespace lies, also across the limit and across what is read at a time.
        for before in [
            0,
            MAX_BYTES - 30,
            MAX_BYTES - 9,
            MAX_BYTES,
            MAX_BYTES + 5,
            MAX_BYTES + (64 << 10) - 9,
            MAX_BYTES + (1 << 20),
        ] {
            let text = [vec![b' '; before], NAMESPACE.as_bytes().to_vec(), vec![b' '; MAX_BYTES + 1]].concat();
            assert!(ours(text.as_slice()), "{before}");
        }
        assert!(!ours(vec![b' '; MAX_BYTES + (1 << 20)].as_slice()));
        assert!(!ours([vec![b' '; MAX_BYTES], NAMESPACE.as_bytes()[1..].to_vec()].concat().as_slice()));
    }

    #[test]
    fn what_is_not_text_or_not_xml_is_searched_too() {
        assert!(!ours(&b""[..]));
        assert!(!ours(&b"\xff\xfe"[..]));
        assert!(ours(&b"\xffurn:mdevd:domain:1"[..]));
        assert!(ours(&b"<domain xmlns:m='urn:mdevd:domain:1'>"[..]));
    }
}
