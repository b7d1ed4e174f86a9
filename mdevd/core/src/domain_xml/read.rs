//! The reading: one pass over the parser's events, with a stack that remembers of each open element only what it means to us.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use quick_xml::XmlVersion;
use quick_xml::errors::Error as XmlError;
use quick_xml::escape::EscapeError;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::reader::NsReader;
use uuid::Uuid;

use super::device::{Attributes, Draft, get};
use super::words::{UNKNOWN_ENTITY, attribute_words, parser_words, tag};
use super::{Domain, DomainStatus, DomainXmlError, NAMESPACE, check_size};
use crate::hostdev::Hostdev;
use crate::names::{parse_uuid, printable};

/// How deep a document with requests may nest.
const MAX_DEPTH: usize = 64;
/// How many levels of `<backingStore>` do not count: libvirt refuses chains of more than 200 images.
const MAX_CHAIN: usize = 256;
/// How many namespace declarations may be in force at once; each name with a prefix is looked up among them.
const MAX_BINDINGS: usize = 4096;

type Result<T> = core::result::Result<T, DomainXmlError>;

pub(super) fn domain(text: &str) -> Result<Domain> {
    let mut walk = Walk::new(text, "domain");
    walk.run()?;
    match walk.unfit.take() {
        Some(unfit) => Err(unfit),
        None => walk.domain(),
    }
}

pub(super) fn once_started(text: &str) -> Result<Domain> {
    let mut walk = Walk { strict: false, ..Walk::new(text, "domain") };
    walk.run()?;
    walk.domain()
}

pub(super) fn status(text: &str) -> Result<DomainStatus> {
    let mut walk = Walk { strict: false, ..Walk::new(text, "domstatus") };
    walk.run()?;
    let (pid, state) = (walk.pid, core::mem::take(&mut walk.state));
    Ok(DomainStatus { domain: walk.domain()?, pid, state })
}

/// What an open element means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Status,
    Domain,
    Name,
    Uuid,
    Metadata,
    /// `<devices>` of our namespace.
    Ours,
    Request,
    /// libvirt's `<devices>`.
    Devices,
    /// A `<hostdev>` or `<interface>` that is kept.
    Hostdev,
    /// Its `<source>`.
    Source,
    /// Its `<vlan>`.
    Vlan,
    /// `<backingStore>`.
    Chain,
    Other,
}

/// Which namespace an element is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ns {
    None,
    Ours,
    Other,
}

struct Walk<'t> {
    text: &'t str,
    /// The name of the root element.
    root: &'static str,
    /// Whether the document mentions us, and the domain is about to start; only then are we strict beyond what XML demands.
    strict: bool,
    /// Where the current event begins.
    at: usize,
    places: Vec<Place>,
    root_seen: bool,
    ours_seen: bool,
    /// The text of the `<name>` or `<uuid>` that is open.
    content: String,
    name: Option<String>,
    uuid: Option<Uuid>,
    pid: Option<u32>,
    state: String,
    requests: Vec<Vec<(String, String)>>,
    draft: Option<Draft>,
    hostdevs: Vec<Hostdev>,
    /// The first hostdev that could not be understood.
    bad_hostdev: Option<DomainXmlError>,
    /// Why the requests, which are not where they belong or are for such a hostdev, cannot be taken.
    unfit: Option<DomainXmlError>,
}

impl<'t> Walk<'t> {
    fn new(text: &'t str, root: &'static str) -> Self {
        Self {
            text,
            root,
            strict: text.contains(NAMESPACE),
            at: 0,
            places: Vec::new(),
            root_seen: false,
            ours_seen: false,
            content: String::new(),
            name: None,
            uuid: None,
            pid: None,
            state: String::new(),
            requests: Vec::new(),
            draft: None,
            hostdevs: Vec::new(),
            bad_hostdev: None,
            unfit: None,
        }
    }

    fn error(&self, what: impl Into<String>) -> DomainXmlError {
        DomainXmlError::at(self.text, self.at, what)
    }

    fn run(&mut self) -> Result<()> {
        check_size(self.text.len())?;
        if self.text.trim().is_empty() {
            return Err(DomainXmlError::nowhere("it is empty"));
        }
        if let Some((at, byte)) = self.text.bytes().enumerate().find(|(_, b)| forbidden(*b)) {
            let what = if byte == 0 { "a NUL byte".to_owned() } else { format!("the control character 0x{byte:02x}") };
            return Err(DomainXmlError::at(self.text, at, what));
        }
        let mut reader = NsReader::from_str(self.text);
        reader.config_mut().expand_empty_elements = true;
        reader.resolver_mut().set_max_namespace_bindings(MAX_BINDINGS);
        loop {
            self.at = usize::try_from(reader.buffer_position()).unwrap_or(0);
            let (namespace, event) = match reader.read_resolved_event() {
                Ok((ResolveResult::Unbound, event)) => (Ns::None, event),
                Ok((ResolveResult::Bound(Namespace(NAMESPACE)), event)) => (Ns::Ours, event),
                Ok((_, event)) => (Ns::Other, event),
                Err(e) => {
                    let at = usize::try_from(reader.error_position()).unwrap_or(0).max(self.at);
                    return Err(DomainXmlError::at(self.text, at, parser_words(&e)));
                }
            };
            match event {
                Event::Start(element) => self.start(namespace, &element)?,
                Event::End(_) => self.end()?,
                Event::Text(text) => self.characters(&text.xml10_content())?,
                Event::CData(text) => self.characters(&text.xml10_content())?,
                Event::GeneralRef(reference) => {
                    let resolved = match reference.resolve_char_ref() {
                        Ok(Some(c)) if !c.is_ascii() || !forbidden(c as u8) => c,
                        Ok(None) => match quick_xml::escape::resolve_predefined_entity(&reference)
                            .and_then(|s| s.chars().next())
                        {
                            Some(c) => c,
                            None => return Err(self.error(UNKNOWN_ENTITY)),
                        },
                        _ => return Err(self.error("a reference to a character that XML does not have")),
                    };
                    self.characters(resolved.encode_utf8(&mut [0; 4]))?;
                }
                Event::DocType(_) => {
                    return Err(self.error("a DOCTYPE, which is not read here; take it out"));
                }
                Event::Empty(_) | Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
                Event::Eof => break,
            }
        }
        if !self.places.is_empty() {
            return Err(self.error(format!("it ends in the middle; elements still open: {}", self.places.len())));
        }
        if !self.root_seen {
            return Err(self.error(format!("there is no <{}> in it", self.root)));
        }
        if !self.requests.is_empty() {
            self.unfit = self.unfit.take().or(self.bad_hostdev.take());
        }
        if self.unfit.is_some() {
            self.requests.clear();
        }
        Ok(())
    }

    /// What the walk has found, once it is over.
    fn domain(self) -> Result<Domain> {
        let uuid = self.uuid.ok_or_else(|| DomainXmlError::nowhere("the domain has no <uuid>"))?;
        let name = self.name.ok_or_else(|| DomainXmlError::nowhere("the domain has no <name>"))?;
        Ok(Domain { uuid, name, requests: self.requests, hostdevs: self.hostdevs })
    }

    fn start(&mut self, namespace: Ns, element: &BytesStart<'_>) -> Result<()> {
        let attributes = self.attributes(element)?;
        let full_name = element.name();
        let name = full_name.local_name().into_inner();
        let place = match (self.places.last(), namespace, name) {
            (None, ..) => self.root(namespace, full_name.0, &attributes)?,
            (Some(Place::Status), Ns::None, "domain") => Place::Domain,
            (Some(Place::Domain), Ns::None, "name") => self.collect(Place::Name),
            (Some(Place::Domain), Ns::None, "uuid") => self.collect(Place::Uuid),
            (Some(Place::Domain), Ns::None, "metadata") => Place::Metadata,
            (Some(Place::Domain), Ns::None, "devices") => Place::Devices,
            (Some(Place::Metadata), Ns::Ours, _) => self.ours(full_name.0, name),
            (Some(Place::Ours), Ns::Ours, "request") => self.request(attributes),
            (Some(place @ (Place::Ours | Place::Request)), Ns::Ours | Ns::None, _) => {
                let why = self.stray(*place, namespace, full_name.0);
                self.unfit(why)
            }
            (Some(Place::Devices), Ns::None, "hostdev" | "interface") => {
                self.draft = Draft::begin(name == "interface", &attributes, self.at);
                if self.draft.is_some() { Place::Hostdev } else { Place::Other }
            }
            (Some(Place::Hostdev), Ns::None, "source") => Place::Source,
            (Some(Place::Hostdev), Ns::None, "alias") => self.detail(Place::Other, Draft::alias, &attributes),
            (Some(Place::Hostdev), Ns::None, "mac") => self.detail(Place::Other, Draft::mac, &attributes),
            (Some(Place::Hostdev), Ns::None, "vlan") => self.detail(Place::Vlan, Draft::vlan, &attributes),
            (Some(Place::Vlan), Ns::None, "tag") => self.detail(Place::Other, Draft::tag, &attributes),
            (Some(Place::Source), Ns::None, "address") => {
                self.draft = self.draft.take().and_then(|draft| draft.source(&attributes));
                Place::Other
            }
            (_, Ns::None, "backingStore") => Place::Chain,
            _ => Place::Other,
        };
        self.places.push(place);
        if self.strict && self.places.len() > MAX_DEPTH {
            let chain = self.places.iter().filter(|place| **place == Place::Chain).count();
            if self.places.len() - chain > MAX_DEPTH || chain > MAX_CHAIN {
                return Err(self.error(format!("elements nested more than {MAX_DEPTH} deep")));
            }
        }
        Ok(())
    }

    /// Hands an element inside a host device to its draft.
    fn detail(&mut self, place: Place, take: fn(&mut Draft, &Attributes<'_>), attributes: &Attributes<'_>) -> Place {
        if let Some(draft) = &mut self.draft {
            take(draft, attributes);
        }
        place
    }

    /// All attributes of an element, which must be well-formed even where nobody asks for them.
    fn attributes<'e>(&self, element: &'e BytesStart<'_>) -> Result<Attributes<'e>> {
        let mut attributes = Vec::new();
        for attribute in element.attributes() {
            let attribute = attribute.map_err(|e| self.error(attribute_words(element, &e)))?;
            let key = attribute.key.0;
            let of = || format!("the attribute '{}' of {}", printable(key), tag(element.name().0));
            if attribute.value.contains('<') {
                return Err(self.error(format!("{} has a '<' in it", of())));
            }
            let value = attribute.normalized_value(XmlVersion::Explicit1_0).map_err(|e| match e {
                XmlError::Escape(EscapeError::UnrecognizedEntity(..)) => {
                    self.error(format!("{}: {UNKNOWN_ENTITY}", of()))
                }
                e => self.error(format!("{}: {}", of(), parser_words(&e))),
            })?;
            if value.bytes().any(forbidden) {
                return Err(self.error(format!("{} has a control character in it", of())));
            }
            attributes.push((key, value));
        }
        Ok(attributes)
    }

    fn root(&mut self, namespace: Ns, name: &str, attributes: &Attributes<'_>) -> Result<Place> {
        if self.root_seen {
            return Err(self.error(format!("a second root element, {}", tag(name))));
        }
        self.root_seen = true;
        if namespace != Ns::None || name != self.root {
            return Err(self.error(format!("the root element is {}, not libvirt's <{}>", tag(name), self.root)));
        }
        if self.root == "domain" {
            return Ok(Place::Domain);
        }
        get(attributes, "state").unwrap_or("").clone_into(&mut self.state);
        if let Some(text) = get(attributes, "pid") {
            let pid: i64 = text.parse().map_err(|_| self.error(format!("pid='{}' is no number", printable(text))))?;
            // libvirt writes 0 or -1 while there is no QEMU
            self.pid = u32::try_from(pid).ok().filter(|pid| *pid > 0);
        }
        Ok(Place::Status)
    }

    /// Begins to collect an element's text.
    fn collect(&mut self, place: Place) -> Place {
        self.content.clear();
        place
    }

    /// An element of our namespace right below `<metadata>`.
    fn ours(&mut self, full_name: &str, name: &str) -> Place {
        if name != "devices" {
            return self.unfit(format!(
                "{} in the metadata: of namespace {NAMESPACE} only <devices> belongs there",
                tag(full_name)
            ));
        }
        if self.ours_seen {
            return self.unfit(format!(
                "a second {} of namespace {NAMESPACE} in the metadata, which libvirt would silently drop: put all requests into one",
                tag(full_name)
            ));
        }
        self.ours_seen = true;
        Place::Ours
    }

    /// An element that spoils the requests, and not what else is read: which domain it is must be known even then.
    fn unfit(&mut self, why: String) -> Place {
        if self.unfit.is_none() {
            self.unfit = Some(self.error(why));
        }
        Place::Other
    }

    fn request(&mut self, attributes: Attributes<'_>) -> Place {
        let kept = attributes.into_iter().filter(|(key, _)| *key != "xmlns" && !key.starts_with("xmlns:"));
        self.requests.push(kept.map(|(key, value)| (key.to_owned(), value.into_owned())).collect());
        Place::Request
    }

    /// What to say of an element that has no business inside ours.
    fn stray(&self, place: Place, namespace: Ns, full_name: &str) -> String {
        let name = tag(full_name);
        match (place, namespace) {
            (Place::Request, _) => {
                format!("{name} inside a request: a request has attributes only")
            }
            (_, Ns::None) => {
                format!("{name} among the requests is not in namespace {NAMESPACE}: does it lack the prefix?")
            }
            _ => format!("{name} among the requests: only <request> belongs there"),
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.places.pop() {
            Some(Place::Name) if self.name.is_none() && !self.content.is_empty() => {
                self.name = Some(core::mem::take(&mut self.content));
            }
            Some(Place::Uuid) if self.uuid.is_none() => {
                let uuid =
                    parse_uuid(self.content.trim()).map_err(|e| self.error(format!("the domain's <uuid>: {e}")))?;
                self.uuid = Some(uuid);
            }
            Some(Place::Hostdev) => match self.draft.take().map(Draft::finish) {
                Some(Ok(hostdev)) => self.hostdevs.push(hostdev),
                Some(Err((at, why))) => {
                    let bad = DomainXmlError::at(self.text, at, why);
                    self.bad_hostdev.get_or_insert(bad);
                }
                None => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn characters(&mut self, text: &str) -> Result<()> {
        match self.places.last() {
            Some(Place::Name | Place::Uuid) => self.content.push_str(text),
            None if !text.trim().is_empty() => {
                return Err(self.error("text outside the root element"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether XML 1.0 has no such character.
fn forbidden(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r')
}
