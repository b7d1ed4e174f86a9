//! The connection to mdevd, and the calls that more than one verb makes.

use std::time::Duration;

use mdevd_core::names::{PciAddress, PciCard, printable};
use mdevd_core::request::Request;
use mdevd_core::suggest::nearest;
use mdevd_dbus::path::Object;
use mdevd_dbus::{
    BUS_NAME, ClaimProxy, FunctionProxy, ManagerProxy, MdevProxy, Options, PROMPT_DEADLINE, PhysicalFunctionProxy,
    TextDict, VirtualFunctionProxy, path,
};
use uuid::Uuid;
use zbus::connection::Builder;
use zbus::fdo::{DBusProxy, ObjectManagerProxy};
use zbus::names::{BusName, WellKnownName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, Proxy, proxy};

use crate::error::Error;
use crate::verbs::not_one;
use crate::view::{Finding, Host};

/// How many milliseconds the kernel is given to change the number of VFs; nothing takes it longer.
pub const VFS_PATIENCE: u32 = 290_000;
/// How long an answer may take: a person may sit at a polkit prompt, and then the kernel may take its time. Both end before this
/// does, so that it is mdevd who says what happened.
const PATIENCE: Duration = PROMPT_DEADLINE
    .saturating_add(Duration::from_millis(1).saturating_mul(VFS_PATIENCE))
    .saturating_add(SHORT_PATIENCE);
/// How long for what asks again a minute later: reading waits neither for a person nor for the kernel.
const SHORT_PATIENCE: Duration = Duration::from_secs(10);

/// The connection to mdevd.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// Whom it calls.
    daemon: BusName<'static>,
}

impl Client {
    /// Connects to the bus; whether mdevd is there shows with the first call, which lets the bus start it.
    pub async fn connect() -> Result<Self, Error> {
        let connection =
            Builder::system().method_timeout(PATIENCE).build().await.map_err(|error| Error::no_bus(&error))?;
        Ok(Self { connection, daemon: WellKnownName::from_static_str_unchecked(BUS_NAME).into() })
    }

    /// Connects to an mdevd that is there: nothing starts one, now or later.
    pub async fn connect_to_running() -> Result<Self, Error> {
        let connection =
            Builder::system().method_timeout(SHORT_PATIENCE).build().await.map_err(|error| Error::no_bus(&error))?;
        let bus = DBusProxy::new(&connection).await?;
        let name = WellKnownName::from_static_str_unchecked(BUS_NAME);
        // A name that belongs to one process only, and dies with it.
        let daemon = bus.get_name_owner(name.into()).await?;
        Ok(Self { connection, daemon: daemon.into_inner().into() })
    }

    /// `org.mdevd1.Manager`.
    pub async fn manager(&self) -> Result<ManagerProxy<'static>, Error> {
        self.proxy(path::ROOT).await
    }

    /// What the doctor finds; of the whole host, or of it and one device.
    pub async fn check(&self, device: Option<&str>) -> Result<Vec<Finding>, Error> {
        let mut options = Options::new();
        if let Some(device) = device {
            options.insert("device", device.into());
        }
        let findings = self.manager().await?.check(&options).await?;
        Ok(findings.iter().map(Finding::read).collect())
    }

    /// `org.mdevd1.Mdev` of a device.
    pub async fn mdev(&self, uuid: Uuid) -> Result<MdevProxy<'static>, Error> {
        self.proxy(path::mdev(uuid).as_str()).await
    }

    /// `org.mdevd1.Claim` of a claim.
    pub async fn claim(&self, id: Uuid) -> Result<ClaimProxy<'static>, Error> {
        self.proxy(path::claim(id).as_str()).await
    }

    /// `org.mdevd1.Function` of a PCI function.
    pub async fn function(&self, address: PciAddress) -> Result<FunctionProxy<'static>, Error> {
        self.proxy(path::function(&address.to_string()).as_str()).await
    }

    /// `org.mdevd1.PhysicalFunction` of a PF.
    pub async fn physical(&self, address: PciAddress) -> Result<PhysicalFunctionProxy<'static>, Error> {
        self.proxy(path::function(&address.to_string()).as_str()).await
    }

    /// `org.mdevd1.VirtualFunction` of a VF.
    pub async fn vf(&self, address: PciAddress) -> Result<VirtualFunctionProxy<'static>, Error> {
        self.proxy(path::function(&address.to_string()).as_str()).await
    }

    /// A proxy that asks for a property when it is wanted: one run of a verb is too short for a cache.
    async fn proxy<P>(&self, path: &str) -> Result<P, Error>
    where
        P: From<Proxy<'static>> + proxy::Defaults,
    {
        Ok(proxy::Builder::<P>::new(&self.connection)
            .destination(self.daemon.clone())
            .path(path.to_owned())
            .cache_properties(CacheProperties::No)
            .build()
            .await?)
    }

    /// Everything that mdevd lists, in one call.
    pub async fn host(&self) -> Result<Host, Error> {
        let objects: ObjectManagerProxy<'static> = self.proxy(path::ROOT).await?;
        Ok(Host::read(&objects.get_managed_objects().await?))
    }

    /// The objects that a word of a person stands for; at least one.
    pub async fn find(&self, word: &str) -> Result<Vec<Object>, Error> {
        let manager = self.manager().await?;
        let mut paths = manager.find(word).await?;
        if paths.is_empty()
            && let Some(address) = address(word)
        {
            paths = manager.find(&address.to_string()).await?;
        }
        let objects: Vec<Object> = paths.iter().filter_map(|path| Object::from_path(path.as_str())).collect();
        if !objects.is_empty() {
            return Ok(objects);
        }
        let host = self.host().await?;
        let with_netdev = host.functions.iter().filter(|f| f.netdevs.iter().any(|(name, _)| name == word));
        let objects: Vec<Object> = with_netdev.map(|f| Object::Function(f.address.to_string())).collect();
        if objects.is_empty() { Err(Error::Refused(unknown(word, &host))) } else { Ok(objects) }
    }

    /// The one function that a word stands for.
    pub async fn find_function(&self, word: &str) -> Result<PciAddress, Error> {
        let found = self.find(word).await?;
        match functions(&found).as_slice() {
            [only] => Ok(*only),
            _ => Err(not_one(word, "one PCI function", &found)),
        }
    }
}

/// The functions among these objects.
pub fn functions(objects: &[Object]) -> Vec<PciAddress> {
    let address = |object: &Object| if let Object::Function(address) = object { address.parse().ok() } else { None };
    objects.iter().filter_map(address).collect()
}

/// An address as people type it, of either case and without the domain where that is 0: `41:00.4`.
pub fn address(word: &str) -> Option<PciAddress> {
    let domain = if word.matches(':').count() == 1 { "0000:" } else { "" };
    format!("{domain}{word}").parse().ok()
}

/// A request's keys and values, as they were typed.
pub type Pairs = Vec<(String, String)>;

/// Reads requests as they are typed, and has them checked before they are sent. Addresses may be short, and stand alone.
pub fn requests(words: &[String]) -> Result<(Vec<Request>, Vec<Pairs>), Error> {
    let pairs = |(index, word): (usize, &String)| {
        let mut pairs = Request::pairs_from_cli(word, &format!("dev{index}"));
        for (key, value) in &mut pairs {
            let full = address(value).map(|address| address.to_string());
            let full = full.or_else(|| value.parse::<PciCard>().ok().map(|card| card.to_string()));
            match (key.as_str(), full) {
                ("type", Some(full)) => (*key, *value) = ("address".to_owned(), full),
                ("address" | "pf", Some(full)) => *value = full,
                _ => {}
            }
        }
        pairs
    };
    let pairs: Vec<Pairs> = words.iter().enumerate().map(pairs).collect();
    Ok((Request::parse_all(pairs.clone())?, pairs))
}

/// Requests as they are sent.
pub fn wire(pairs: Vec<Pairs>) -> Vec<TextDict> {
    pairs.into_iter().map(|pairs| pairs.into_iter().collect()).collect()
}

/// That nothing is called `word`, with what may have been meant.
pub fn unknown(word: &str, host: &Host) -> String {
    let mut names: Vec<&str> = host.parents.iter().map(|parent| parent.name.as_str()).collect();
    names.extend(host.functions.iter().flat_map(|f| &f.netdevs).map(|(name, _)| name.as_str()));
    let addresses: Vec<String> = host.functions.iter().map(|function| function.address.to_string()).collect();
    names.extend(addresses.iter().map(String::as_str));
    let uuids = host.mdevs.iter().map(|mdev| mdev.uuid).chain(host.claims.iter().map(|claim| claim.id));
    let uuids: Vec<String> = uuids.map(|uuid| uuid.to_string()).collect();
    names.extend(uuids.iter().map(String::as_str));
    for claim in &host.claims {
        names.extend([claim.owner_uuid.as_str(), claim.owner_name.as_str()]);
    }
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    // The beginning of a name is no slip, but whoever types it means that name.
    let beginning = names.iter().copied().find(|name| word.len() >= 2 && name.starts_with(word));
    let hint = match beginning.or_else(|| nearest(word, names.iter().copied())) {
        Some(name) => format!("did you mean '{}'?", printable(name)),
        None => "hostdevctl list and hostdevctl claims show what there is".to_owned(),
    };
    format!("there is no device, parent or claim '{}', and no VM of this name has a claim\n{hint}", printable(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_mdevd_who_gives_up_first() {
        assert!(PATIENCE > PROMPT_DEADLINE + Duration::from_millis(VFS_PATIENCE.into()));
    }

    fn typed(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (_, pairs) = requests(&words).unwrap();
        let text =
            |pairs: Pairs| pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        pairs.into_iter().map(text).collect()
    }

    #[test]
    fn addresses_may_be_short() {
        for (word, full) in [
            ("41:00.4", Some("0000:41:00.4")),
            ("0000:41:00.4", Some("0000:41:00.4")),
            ("10000:E1:00.0", Some("10000:e1:00.0")),
            ("41:00", None),
            ("41:20.0", None),
            ("vm1", None),
            ("", None),
        ] {
            assert_eq!(address(word).map(|address| address.to_string()).as_deref(), full, "{word}");
        }
    }

    #[test]
    fn requests_may_name_short_addresses_and_cards_alone() {
        assert_eq!(typed(&["41:00.4"]), ["name=dev0,address=0000:41:00.4"]);
        assert_eq!(typed(&["name=gpu,82:00"]), ["name=gpu,address=0000:82:00"]);
        assert_eq!(
            typed(&["address=E1:00.0", "kind=vf,pf=3b:00.1"]),
            ["name=dev0,address=0000:e1:00.0", "name=dev1,kind=vf,pf=0000:3b:00.1"]
        );
        // A parent and a type are what they are.
        assert_eq!(typed(&["nvidia-63,parent=0000:41:00.0"]), ["name=dev0,type=nvidia-63,parent=0000:41:00.0"]);
    }
}
