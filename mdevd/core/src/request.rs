//! What a VM may ask for. One flat form, text keys and values, so that attributes in the domain's XML, `a{ss}` on D-Bus and `k=v` on the
//! command line all go through the one [`Request::parse`]; and the meeting of a domain's requests with its hostdevs, [`bind()`].

mod bind;
mod function;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::hostdev::MdevHostdevXml;
use crate::names::{MdevTypeId, MdevUuid, NumaNode, ParentName, PciAddress, PciCard, RequestName, printable};
use crate::suggest::nearest;

pub use bind::{BindError, FunctionNeed, MdevNeed, Need, bind, needs_without_domain, request_to_paste, uncovered};
pub use function::{FunctionKind, FunctionOptions, WantedFunction, WantedVgpu};

/// The keys of a request.
pub const KEYS: [&str; 28] = [
    "name",
    "type",
    "parent",
    "pool",
    "kind",
    "count",
    "numa-node",
    "uuid",
    "display",
    "ramfb",
    "guest-address",
    "boot-order",
    "address",
    "device",
    "pf",
    "vgpu-type",
    "driver",
    "managed",
    "mac",
    "vlan",
    "qos",
    "trust",
    "spoof-check",
    "min-rate",
    "max-rate",
    "link-state",
    "rom-bar",
    "rom-file",
];

/// The keys that only a request for a PCI function has. Each of the first four says which one.
const OF_FUNCTIONS: [&str; 16] = [
    "address",
    "device",
    "pf",
    "vgpu-type",
    "driver",
    "managed",
    "mac",
    "vlan",
    "qos",
    "trust",
    "spoof-check",
    "min-rate",
    "max-rate",
    "link-state",
    "rom-bar",
    "rom-file",
];

/// The keys that only a request for a mediated device, or for a member of a pool, has.
const OF_MDEVS: [&str; 4] = ["type", "parent", "pool", "uuid"];

/// The keys that go into the printed XML, of either kind of device.
const OF_XML: [&str; 8] =
    ["display", "ramfb", "guest-address", "boot-order", "rom-bar", "rom-file", "managed", "driver"];

/// The most devices that one request may ask for.
pub const MAX_COUNT: u32 = 64;

/// Which device would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Any member of a configured pool.
    Pool(String),
    /// A new mediated device of this type, on any parent or on the one named.
    Type {
        /// The type.
        mdev_type: MdevTypeId,
        /// The only parent that will do.
        parent: Option<ParentName>,
    },
    /// The mediated device that already exists under the request's UUID.
    Existing,
    /// A PCI function.
    Function(WantedFunction),
}

/// What goes into the `<hostdev>` element beside the device, as the request says it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct XmlOptions(pub Vec<(String, String)>);

/// One request of a domain, or of a person at the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name, unique in its domain.
    pub name: RequestName,
    /// Which device would do.
    pub wanted: Wanted,
    /// The NUMA node that the device must be near to. A parent whose node is not known does not do.
    pub numa_node: Option<NumaNode>,
    /// How many devices. With more than one the names are `NAME.1`, `NAME.2`, ….
    pub count: u32,
    /// The UUID of the mediated device.
    pub uuid: Option<MdevUuid>,
    /// What becomes of a PCI function.
    pub function: FunctionOptions,
    /// What the printed XML says beside the device, by the request's keys.
    pub xml: XmlOptions,
}

/// Why a text is no request. Each prints as one sentence that names the key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// A key that is not one of [`KEYS`].
    #[error("request '{name}': unknown key '{key}'{}", did_you_mean(key, .nearest))]
    UnknownKey {
        /// The request's name as given, or `?`.
        name: String,
        /// The key.
        key: String,
        /// The known key nearest to it.
        nearest: Option<&'static str>,
    },
    /// A key given twice.
    #[error("request '{name}': the key '{key}' is given twice")]
    DuplicateKey {
        /// The request's name as given, or `?`.
        name: String,
        /// The key.
        key: String,
    },
    /// A value that is not what its key wants.
    #[error("request '{name}': {key}: {why}")]
    BadValue {
        /// The request's name as given, or `?`.
        name: String,
        /// The key.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Keys that do not go together, or that are missing.
    #[error("request '{name}': {why}")]
    Contradiction {
        /// The request's name as given, or `?`.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Two requests of one domain have the same name.
    #[error("two requests have the name '{0}'; each needs its own")]
    DuplicateName(RequestName),
    /// Two requests of one domain have the same UUID.
    #[error("the requests '{0}' and '{1}' name the same UUID {2}")]
    DuplicateUuid(RequestName, RequestName, MdevUuid),
    /// Two requests of one domain name the same PCI function, or one of them its card.
    #[error("the requests '{0}' and '{1}' name the same PCI function {2}")]
    DuplicateAddress(RequestName, RequestName, PciAddress),
    /// More devices than one domain may have.
    #[error("the requests ask for {0} devices together; the most is {MAX_COUNT}")]
    TooMany(u64),
}

fn did_you_mean(key: &str, nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(known) => format!("; did you mean '{known}'?"),
        None if key.is_empty() => "; it is empty".into(),
        None => format!("; the keys are {}", KEYS.join(", ")),
    }
}

impl Request {
    /// Reads one request from its keys and values.
    ///
    /// # Errors
    /// A [`RequestError`] that names the key and, for an unknown one, the nearest known.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, RequestError> {
        let pairs: Vec<(&str, &str)> = pairs.into_iter().collect();
        let shown =
            pairs.iter().find(|(key, _)| *key == "name").map_or_else(|| "?".into(), |(_, value)| printable(value));
        let name_of = || shown.clone();
        let mut values: [Option<&str>; KEYS.len()] = [None; KEYS.len()];
        for (key, value) in &pairs {
            let slot = KEYS.iter().zip(values.iter_mut()).find(|(known, _)| *known == key).map(|(_, slot)| slot);
            match slot {
                None => {
                    return Err(RequestError::UnknownKey {
                        name: name_of(),
                        key: printable(key),
                        nearest: nearest(key, KEYS),
                    });
                }
                Some(Some(_)) => return Err(RequestError::DuplicateKey { name: name_of(), key: printable(key) }),
                Some(slot) => *slot = Some(value),
            }
        }
        let get = |key: &str| KEYS.iter().zip(&values).find(|(known, _)| **known == key).and_then(|(_, value)| *value);
        let bad = |key, why: String| RequestError::BadValue { name: name_of(), key, why };
        let contradiction = |why: &str| RequestError::Contradiction { name: name_of(), why: why.into() };

        let name = get("name")
            .ok_or_else(|| contradiction("it has no name"))?
            .parse()
            .map_err(|e| bad("name", format!("{e}")))?;
        let kind = get("kind");
        let of_function = match kind {
            Some("pci" | "vf") => true,
            Some("mdev") => false,
            None => OF_FUNCTIONS.iter().take(4).any(|key| get(key).is_some()),
            Some(kind) => {
                let why = format!("'{}' is not a kind of device; the kinds are mdev, vf and pci", printable(kind));
                return Err(bad("kind", why));
            }
        };
        let (others, what) =
            if of_function { (&OF_MDEVS[..], "a PCI function") } else { (&OF_FUNCTIONS[..], "a mediated device") };
        if let Some(key) = others.iter().find(|key| get(key).is_some()) {
            return Err(contradiction(&format!("the key '{key}' does not go with {what}")));
        }
        let numa_node =
            get("numa-node").map(|text| number(text).map(NumaNode)).transpose().map_err(|why| bad("numa-node", why))?;
        let count = get("count").map_or(Ok(1), number).map_err(|why| bad("count", why))?;
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(bad("count", format!("{count} is not between 1 and {MAX_COUNT}")));
        }
        for key in ["uuid", "address", "mac", "guest-address", "boot-order"] {
            if count > 1 && get(key).is_some() {
                return Err(contradiction(&format!("{key} is for one device, but the count is {count}")));
            }
        }
        let xml: Vec<_> = OF_XML.iter().filter_map(|key| Some((key.to_string(), get(key)?.to_string()))).collect();
        let mut request = Self {
            name,
            wanted: Wanted::Existing,
            numa_node,
            count,
            uuid: None,
            function: FunctionOptions::default(),
            xml: XmlOptions(xml),
        };
        if of_function {
            let wanted = WantedFunction::parse(&get).map_err(|(key, why)| bad(key, why))?;
            request.function = FunctionOptions::parse(&get).map_err(|(key, why)| bad(key, why))?;
            function::check(&wanted, &request.function, &request.xml).map_err(|why| contradiction(&why))?;
            request.wanted = Wanted::Function(wanted);
            return Ok(request);
        }

        let mdev_type = get("type").map(str::parse).transpose().map_err(|e| bad("type", format!("{e}")))?;
        let parent = get("parent").map(str::parse).transpose().map_err(|e| bad("parent", format!("{e}")))?;
        request.uuid = get("uuid").map(str::parse).transpose().map_err(|e| bad("uuid", format!("{e}")))?;
        request.wanted = match (get("pool"), mdev_type) {
            (Some(_), Some(_)) => return Err(contradiction("it has both a pool and a type; one of them decides")),
            (Some(""), None) => return Err(bad("pool", "it is empty".into())),
            (Some(pool), None) => Wanted::Pool(pool.into()),
            (None, Some(mdev_type)) => Wanted::Type { mdev_type, parent: parent.clone() },
            (None, None) if request.uuid.is_some() => Wanted::Existing,
            (None, None) => {
                return Err(contradiction(
                    "it says neither type nor pool nor uuid nor address: what should the device be?",
                ));
            }
        };
        if parent.is_some() && !matches!(request.wanted, Wanted::Type { .. }) {
            return Err(contradiction("a parent goes with a type"));
        }
        // Any UUID will do to find out whether the options themselves are sound; the device API is not known before a type is chosen.
        MdevHostdevXml::from_options(MdevUuid(Uuid::nil()), "", request.xml.0.iter().map(AsPair::as_pair))
            .map_err(|e| contradiction(&e.to_string()))?;
        Ok(request)
    }

    /// Reads all requests of one domain (or of one call), which must differ in name and UUID.
    ///
    /// # Errors
    /// The first [`RequestError`].
    pub fn parse_all<R, P>(requests: R) -> Result<Vec<Self>, RequestError>
    where
        R: IntoIterator,
        R::Item: IntoIterator<Item = P>,
        P: AsPair,
    {
        let mut parsed: Vec<Self> = Vec::new();
        // Looked up, not compared one with another: who may ask on D-Bus may send a hundred thousand.
        let mut names: BTreeSet<RequestName> = BTreeSet::new();
        let mut uuids: BTreeMap<MdevUuid, RequestName> = BTreeMap::new();
        let mut addresses: BTreeMap<PciAddress, RequestName> = BTreeMap::new();
        let mut cards: BTreeMap<PciCard, RequestName> = BTreeMap::new();
        for pairs in requests {
            let pairs: Vec<P> = pairs.into_iter().collect();
            let request = Self::parse(pairs.iter().map(AsPair::as_pair))?;
            if !names.insert(request.name.clone()) {
                return Err(RequestError::DuplicateName(request.name));
            }
            if let Some(uuid) = request.uuid
                && let Some(other) = uuids.insert(uuid, request.name.clone())
            {
                return Err(RequestError::DuplicateUuid(other, request.name, uuid));
            }
            let other = match request.wanted {
                Wanted::Function(WantedFunction::Address(address)) => {
                    let same = addresses.insert(address, request.name.clone());
                    same.or_else(|| cards.get(&address.card()).cloned()).map(|other| (other, address))
                }
                Wanted::Function(WantedFunction::Card(card)) => {
                    let same = cards.insert(card, request.name.clone()).map(|other| (other, card.function(0)));
                    let mut of_it = addresses.range(card.function(0)..=card.function(7));
                    same.or_else(|| of_it.next().map(|(address, other)| (other.clone(), *address)))
                }
                _ => None,
            };
            if let Some((other, address)) = other {
                return Err(RequestError::DuplicateAddress(other, request.name, address));
            }
            parsed.push(request);
        }
        let total: u64 = parsed.iter().map(|request| u64::from(request.count)).sum();
        if total > u64::from(MAX_COUNT) {
            return Err(RequestError::TooMany(total));
        }
        Ok(parsed)
    }

    /// Splits the command line's form, `name=gpu0,type=nvidia-63`, into keys and values for [`Request::parse`]. A word without `=` is
    /// a type, so that `nvidia-63` alone is enough; a request without a name is called `default_name`.
    pub fn pairs_from_cli(text: &str, default_name: &str) -> Vec<(String, String)> {
        let mut pairs: Vec<(String, String)> = text
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| part.split_once('=').unwrap_or(("type", part)))
            .map(|(key, value)| (key.trim().into(), value.trim().into()))
            .collect();
        if !pairs.iter().any(|(key, _)| key == "name") {
            pairs.insert(0, ("name".into(), default_name.into()));
        }
        pairs
    }

    /// The names of the devices that this request stands for.
    pub fn instance_names(&self) -> Vec<String> {
        if self.count == 1 {
            [self.name.to_string()].into()
        } else {
            (1..=self.count).map(|i| format!("{}.{i}", self.name)).collect()
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(pool) => write!(f, "pool {}", printable(pool)),
            Self::Type { mdev_type, parent: None } => write!(f, "type {mdev_type}"),
            Self::Type { mdev_type, parent: Some(parent) } => write!(f, "type {mdev_type} on {parent}"),
            Self::Existing => f.write_str("an existing device"),
            Self::Function(wanted) => wanted.fmt(f),
        }
    }
}

/// A key and a value, borrowed from whatever form the caller has.
pub trait AsPair {
    /// The key and the value.
    fn as_pair(&self) -> (&str, &str);
}

impl AsPair for (String, String) {
    fn as_pair(&self) -> (&str, &str) {
        (&self.0, &self.1)
    }
}

impl AsPair for (&str, &str) {
    fn as_pair(&self) -> (&str, &str) {
        *self
    }
}

fn number(text: &str) -> Result<u32, String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_err(|_| format!("'{}' is too large", printable(text)))
    } else {
        Err(format!("'{}' is not a whole number", printable(text)))
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
