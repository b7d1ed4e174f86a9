//! What a VM may ask for. One flat form, text keys and values, so that attributes in the domain's XML, `a{ss}` on D-Bus and `k=v` on the
//! command line all go through the one [`Request::parse`]; and the meeting of a domain's requests with its hostdevs, [`bind`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::domain_xml::request_element;
use crate::hostdev::{Hostdev, HostdevSource, MdevHostdevXml};
use crate::names::{MdevTypeId, MdevUuid, NumaNode, ParentName, RequestName, printable};
use crate::suggest::nearest;

/// The keys of a request.
pub const KEYS: [&str; 12] = [
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
];

/// The most devices that one request may ask for.
pub const MAX_COUNT: u32 = 64;

/// Which device would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// `display`, `ramfb`, `guest-address`, `boot-order`, for the XML that is printed.
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
        let [name, mdev_type, parent, pool, kind, count, numa_node, uuid, display, ramfb, guest_address, boot_order] =
            values;
        let bad = |key, why: String| RequestError::BadValue { name: name_of(), key, why };
        let contradiction = |why: &str| RequestError::Contradiction { name: name_of(), why: why.into() };

        let name =
            name.ok_or_else(|| contradiction("it has no name"))?.parse().map_err(|e| bad("name", format!("{e}")))?;
        if let Some(kind) = kind.filter(|kind| *kind != "mdev") {
            return Err(bad("kind", format!("'{}' is not a kind of device; the kind is mdev", printable(kind))));
        }
        let mdev_type = mdev_type.map(str::parse).transpose().map_err(|e| bad("type", format!("{e}")))?;
        let parent = parent.map(str::parse).transpose().map_err(|e| bad("parent", format!("{e}")))?;
        let uuid: Option<MdevUuid> = uuid.map(str::parse).transpose().map_err(|e| bad("uuid", format!("{e}")))?;
        let numa_node =
            numa_node.map(|text| number(text).map(NumaNode)).transpose().map_err(|why| bad("numa-node", why))?;
        let count = count.map_or(Ok(1), number).map_err(|why| bad("count", why))?;
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(bad("count", format!("{count} is not between 1 and {MAX_COUNT}")));
        }
        let wanted = match (pool, mdev_type) {
            (Some(_), Some(_)) => return Err(contradiction("it has both a pool and a type; one of them decides")),
            (Some(""), None) => return Err(bad("pool", "it is empty".into())),
            (Some(pool), None) => Wanted::Pool(pool.into()),
            (None, Some(mdev_type)) => Wanted::Type { mdev_type, parent: parent.clone() },
            (None, None) if uuid.is_some() => Wanted::Existing,
            (None, None) => {
                return Err(contradiction("it says neither type nor pool nor uuid: what should the device be?"));
            }
        };
        if parent.is_some() && !matches!(wanted, Wanted::Type { .. }) {
            return Err(contradiction("a parent goes with a type"));
        }
        for (key, value) in [("uuid", uuid.map(|_| "")), ("guest-address", guest_address), ("boot-order", boot_order)] {
            if count > 1 && value.is_some() {
                return Err(contradiction(&format!("{key} is for one device, but the count is {count}")));
            }
        }
        let xml =
            [("display", display), ("ramfb", ramfb), ("guest-address", guest_address), ("boot-order", boot_order)];
        let xml: Vec<_> =
            xml.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?.to_string()))).collect();
        // Any UUID will do to find out whether the options themselves are sound; the device API is not known before a type is chosen.
        MdevHostdevXml::from_options(MdevUuid(Uuid::nil()), "", xml.iter().map(AsPair::as_pair))
            .map_err(|e| contradiction(&e.to_string()))?;
        Ok(Self { name, wanted, numa_node, count, uuid, xml: XmlOptions(xml) })
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

impl Wanted {
    /// The mdev type asked for; empty where none is.
    pub fn type_name(&self) -> String {
        match self {
            Self::Type { mdev_type, .. } => mdev_type.to_string(),
            Self::Pool(_) | Self::Existing => String::new(),
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

/// One device that is needed: an instance of a request, and the UUID it will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The request's name, with `.N` where its count is above one.
    pub name: String,
    /// The UUID that the device has or will have.
    pub uuid: MdevUuid,
    /// Which device would do.
    pub wanted: Wanted,
    /// The NUMA node that it must be near to.
    pub numa_node: Option<NumaNode>,
    /// The device API that the domain's hostdev expects; `None` where there is no hostdev yet.
    pub model: Option<String>,
    /// What the printed XML says beside the device.
    pub xml: XmlOptions,
}

/// Why a domain's requests and hostdevs do not fit together. Each names the element to paste.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BindError {
    /// A request without its hostdev.
    #[error("request '{request}' has no <hostdev> in this domain{hint}; add to <devices>:\n{element}")]
    MissingHostdev {
        /// The request's name.
        request: String,
        /// What may have happened, or empty.
        hint: String,
        /// The element.
        element: String,
    },
    /// Two requests lead to one hostdev.
    #[error("the requests '{0}' and '{1}' lead to the same <hostdev> {2}; each needs its own")]
    SharedHostdev(String, String, MdevUuid),
}

/// Finds each request's hostdev: by the request's `uuid`, else by the alias `ua-mdevd-NAME`, else by the derived UUID.
///
/// # Errors
/// [`BindError`] where a request has no hostdev, or two have the same.
pub fn bind(domain: Uuid, requests: &[Request], hostdevs: &[Hostdev]) -> Result<Vec<Need>, BindError> {
    let mdevs: Vec<(&Hostdev, MdevUuid)> = hostdevs
        .iter()
        .filter_map(|hostdev| match hostdev.source {
            HostdevSource::Mdev(uuid) => Some((hostdev, uuid)),
            HostdevSource::Pci(_) => None,
        })
        .collect();
    let find = |request: &Request, name: &str| match request.uuid {
        Some(uuid) => mdevs.iter().find(|(_, u)| *u == uuid),
        None => {
            let alias = format!("ua-mdevd-{name}");
            let derived = MdevUuid::derived(domain, name);
            // libvirt drops an alias with a dot in it: the instances of a count are found by their derived UUIDs.
            mdevs
                .iter()
                .find(|(hostdev, _)| hostdev.alias.as_deref() == Some(alias.as_str()))
                .or_else(|| mdevs.iter().find(|(_, u)| *u == derived))
        }
    };
    let mut needs: Vec<Need> = Vec::new();
    for request in requests {
        for name in request.instance_names() {
            let Some((hostdev, uuid)) = find(request, &name) else {
                let uuid = request.uuid.unwrap_or_else(|| MdevUuid::derived(domain, &name));
                let mut spare: BTreeSet<MdevUuid> = mdevs.iter().map(|(_, uuid)| *uuid).collect();
                for (_, led_to) in
                    requests.iter().flat_map(|r| r.instance_names().into_iter().filter_map(|name| find(r, &name)))
                {
                    spare.remove(led_to);
                }
                return Err(missing_hostdev(request, name, uuid, &spare));
            };
            if let Some(other) = needs.iter().find(|need| need.uuid == *uuid) {
                return Err(BindError::SharedHostdev(other.name.clone(), name, *uuid));
            }
            needs.push(Need {
                model: Some(hostdev.model.clone()).filter(|m| !m.is_empty()),
                ..need(request, name, *uuid)
            });
        }
    }
    Ok(needs)
}

/// `spare` are the mdev hostdevs that no request leads to.
fn missing_hostdev(request: &Request, name: String, uuid: MdevUuid, spare: &BTreeSet<MdevUuid>) -> BindError {
    let hint = if spare.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = spare.iter().take(4).map(|uuid| uuid.to_string()).collect();
        // virt-clone and `virsh dumpxml | virsh define` give a new domain UUID but keep the hostdev's.
        format!(
            " (was the domain cloned? no request leads to its <hostdev> {}; then put this one in its place)",
            list.join(", ")
        )
    };
    let element = MdevHostdevXml::from_options(uuid, "", request.xml.0.iter().map(AsPair::as_pair))
        .map(|xml| xml.to_xml())
        .unwrap_or_default();
    BindError::MissingHostdev { request: name, hint, element }
}

/// The devices that requests without a domain need: `uuid` makes the UUID where the request names none.
pub fn needs_without_domain(requests: &[Request], mut uuid: impl FnMut() -> MdevUuid) -> Vec<Need> {
    let mut needs = Vec::new();
    for request in requests {
        for name in request.instance_names() {
            let uuid = request.uuid.unwrap_or_else(&mut uuid);
            needs.push(need(request, name, uuid));
        }
    }
    needs
}

fn need(request: &Request, name: String, uuid: MdevUuid) -> Need {
    Need {
        name,
        uuid,
        wanted: request.wanted.clone(),
        numa_node: request.numa_node,
        model: None,
        xml: request.xml.clone(),
    }
}

/// The mdev hostdevs that no need covers.
pub fn uncovered(needs: &[Need], hostdevs: &[Hostdev]) -> Vec<MdevUuid> {
    hostdevs
        .iter()
        .filter_map(|hostdev| match hostdev.source {
            HostdevSource::Mdev(uuid) => Some(uuid),
            HostdevSource::Pci(_) => None,
        })
        .filter(|uuid| needs.iter().all(|need| need.uuid != *uuid))
        .collect()
}

/// The request to paste for a hostdev that no request covers and whose device does not exist.
pub fn request_to_paste(uuid: &MdevUuid, taken: &[Need]) -> String {
    // A request with a count has taken its own name too, not only NAME.1, NAME.2, ….
    let free = |name: &String| taken.iter().all(|need| need.name.split('.').next() != Some(name));
    let name = (0..).map(|i| format!("dev{i}")).find(free).unwrap_or_default();
    request_element(&[("name".into(), name), ("type".into(), "TYPE".into()), ("uuid".into(), uuid.to_string())])
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
