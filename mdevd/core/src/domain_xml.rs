//! A domain's XML, as libvirt hands it to a hook, keeps it in its status files, or `virsh dumpxml` prints it: its identity, its requests
//! to us, its host devices. And the other way, the metadata that carries the requests.
//!
//! The text may come from anyone who can define a VM, and is read by root. Nothing in it is expanded, no level of it costs a stack
//! frame, and what is not needed is looked at only so far that it is well-formed.

mod device;
mod read;
mod words;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;
use uuid::Uuid;

use crate::hostdev::{Hostdev, escape};

/// The XML namespace of the requests in a domain's metadata.
pub const NAMESPACE: &str = "urn:mdevd:domain:1";

/// The largest document that is read. libvirt itself carries no domain XML over 4 MiB.
pub const MAX_BYTES: usize = 8 << 20;

/// Why a text was not taken for a domain's XML, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct DomainXmlError {
    /// What is wrong; text from the document in it is fit to be printed.
    pub what: String,
    /// Line and column, from 1 on, where one place is to blame.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for DomainXmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the domain XML is refused")?;
        if let Some((line, column)) = self.position {
            write!(f, " at line {line}, column {column}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl DomainXmlError {
    fn nowhere(what: impl Into<String>) -> Self {
        Self { what: what.into(), position: None }
    }

    /// Something wrong at byte `at` of `text`.
    fn at(text: &str, at: usize, what: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
        Self { what: what.into(), position: Some((line, column)) }
    }
}

/// What we need to know of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, any text without control characters.
    pub name: String,
    /// The attributes of every request in its metadata, in order, not yet judged.
    pub requests: Vec<Vec<(String, String)>>,
    /// Its host devices of the kinds mdev and pci, in order.
    pub hostdevs: Vec<Hostdev>,
}

impl Domain {
    /// Reads `<domain>`.
    ///
    /// A document that does not mention our [`NAMESPACE`] is refused only where it is not well-formed XML, has a DOCTYPE (libvirt writes
    /// none), or is no domain; one that does, also where its requests are not where they belong, it nests deeper than 64 levels (the
    /// images of a disk's backing chain, at most 256, not counted), or a hostdev is ill-formed while there are requests.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, DomainXmlError> {
        read::domain(text)
    }

    /// As [`Domain::parse`], from bytes.
    ///
    /// # Errors
    /// Also more than [`MAX_BYTES`], and bytes that are not UTF-8.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DomainXmlError> {
        Self::parse(utf8(bytes)?)
    }

    /// As [`Domain::from_bytes`], of a domain that has been started: what its requests have come to since (`virsh metadata` changes
    /// them under a running domain) must not keep it from being known. If they are not where they belong, or a hostdev is ill-formed,
    /// it has none; and it may nest deeper.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn from_bytes_once_started(bytes: &[u8]) -> Result<Self, DomainXmlError> {
        read::once_started(utf8(bytes)?)
    }
}

/// What libvirt keeps of a running domain in `/run/libvirt/qemu/NAME.xml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainStatus {
    /// The domain.
    pub domain: Domain,
    /// The process of its QEMU, once there is one.
    pub pid: Option<u32>,
    /// `running`, `paused`, `shutdown`, …
    pub state: String,
}

impl DomainStatus {
    /// Reads `<domstatus>`; the domain inside as by [`Domain::from_bytes_once_started`].
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, DomainXmlError> {
        read::status(text)
    }

    /// As [`DomainStatus::parse`], from bytes.
    ///
    /// # Errors
    /// Also more than [`MAX_BYTES`], and bytes that are not UTF-8.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DomainXmlError> {
        Self::parse(utf8(bytes)?)
    }
}

/// Whether a document can hold a request at all. For one that could not be read: when this says no, it is none of our business.
pub fn mentions_requests(bytes: &[u8]) -> bool {
    bytes.windows(NAMESPACE.len()).any(|window| window == NAMESPACE.as_bytes())
}

fn utf8(bytes: &[u8]) -> Result<&str, DomainXmlError> {
    check_size(bytes.len())?;
    core::str::from_utf8(bytes).map_err(|e| {
        let (valid, rest) = bytes.split_at(e.valid_up_to());
        let valid = core::str::from_utf8(valid).unwrap_or("");
        let byte = rest.first().copied().unwrap_or(0);
        DomainXmlError::at(valid, valid.len(), format!("it is not UTF-8 (byte 0x{byte:02x})"))
    })
}

fn check_size(len: usize) -> Result<(), DomainXmlError> {
    if len > MAX_BYTES {
        return Err(DomainXmlError::nowhere(format!("it has {len} bytes, more than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(())
}

/// `<mdevd:request name="…" …/>`, without a newline. A key that could not be an attribute's name is made one.
pub fn request_element(pairs: &[(String, String)]) -> String {
    let mut out = String::from("<mdevd:request");
    for (key, value) in pairs {
        out.push(' ');
        for (i, c) in key.chars().enumerate() {
            let fits = c.is_ascii_alphabetic() || c == '_' || (i > 0 && (c.is_ascii_digit() || c == '-' || c == '.'));
            out.push(if fits { c } else { '_' });
        }
        out.extend(["=\"", &escape(value), "\""]);
    }
    out.push_str("/>");
    out
}

/// The `<metadata>` block that carries these requests, ready for `virsh edit`, quoted as libvirt prints metadata.
pub fn metadata_xml(requests: &[Vec<(String, String)>]) -> String {
    let mut out = format!("<metadata>\n  <mdevd:devices xmlns:mdevd=\"{NAMESPACE}\">\n");
    for request in requests {
        out.extend(["    ", &request_element(request), "\n"]);
    }
    out.push_str("  </mdevd:devices>\n</metadata>\n");
    out
}
