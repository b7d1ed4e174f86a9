//! The connection to mdevd, and the calls that more than one verb makes.

use std::time::Duration;

use mdevd_core::names::printable;
use mdevd_core::request::Request;
use mdevd_core::suggest::nearest;
use mdevd_dbus::path::Object;
use mdevd_dbus::{BUS_NAME, ClaimProxy, ManagerProxy, MdevProxy, TextDict, path};
use uuid::Uuid;
use zbus::connection::Builder;
use zbus::fdo::ObjectManagerProxy;
use zbus::proxy::CacheProperties;
use zbus::{Connection, Proxy, proxy};

use crate::error::Error;
use crate::view::Host;

/// How long an answer may take: a person may sit at a polkit prompt, and the kernel may take its time to remove a device.
const PATIENCE: Duration = Duration::from_secs(300);

/// The connection to mdevd.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to the bus; whether mdevd is there shows with the first call, which lets the bus start it.
    pub async fn connect() -> Result<Self, Error> {
        let connection =
            Builder::system().method_timeout(PATIENCE).build().await.map_err(|error| Error::no_bus(&error))?;
        Ok(Self { connection })
    }

    /// `org.mdevd1.Manager`.
    pub async fn manager(&self) -> Result<ManagerProxy<'static>, Error> {
        self.proxy(path::ROOT).await
    }

    /// `org.mdevd1.Mdev` of a device.
    pub async fn mdev(&self, uuid: Uuid) -> Result<MdevProxy<'static>, Error> {
        self.proxy(path::mdev(uuid).as_str()).await
    }

    /// `org.mdevd1.Claim` of a claim.
    pub async fn claim(&self, id: Uuid) -> Result<ClaimProxy<'static>, Error> {
        self.proxy(path::claim(id).as_str()).await
    }

    /// A proxy that asks for a property when it is wanted: one run of a verb is too short for a cache.
    async fn proxy<P>(&self, path: &str) -> Result<P, Error>
    where
        P: From<Proxy<'static>> + proxy::Defaults,
    {
        Ok(proxy::Builder::<P>::new(&self.connection)
            .destination(BUS_NAME)
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
        let paths = self.manager().await?.find(word).await?;
        let objects: Vec<Object> = paths.iter().filter_map(|path| Object::from_path(path.as_str())).collect();
        if objects.is_empty() {
            return Err(Error::Refused(unknown(word, &self.host().await?)));
        }
        Ok(objects)
    }
}

/// A request's keys and values, as they were typed.
pub type Pairs = Vec<(String, String)>;

/// Reads requests as they are typed, and has them checked before they are sent.
pub fn requests(words: &[String]) -> Result<(Vec<Request>, Vec<Pairs>), Error> {
    let pairs: Vec<Pairs> =
        words.iter().enumerate().map(|(index, word)| Request::pairs_from_cli(word, &format!("dev{index}"))).collect();
    Ok((Request::parse_all(pairs.clone())?, pairs))
}

/// Requests as they are sent.
pub fn wire(pairs: Vec<Pairs>) -> Vec<TextDict> {
    pairs.into_iter().map(|pairs| pairs.into_iter().collect()).collect()
}

/// That nothing is called `word`, with what may have been meant.
pub fn unknown(word: &str, host: &Host) -> String {
    let mut names: Vec<&str> = host.parents.iter().map(|parent| parent.name.as_str()).collect();
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
