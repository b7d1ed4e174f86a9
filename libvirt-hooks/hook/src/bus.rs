//! The calls to mdevd: one connection, one call, all within a deadline.
//!
//! The common case is a running daemon, and one round trip. A daemon that is away is started by name and called again,
//! so that it is told how much time there really is, and not how much there was before it started. One that goes away
//! in mid-call, restarted by its administrator, is called again as well.

use std::{
    io,
    time::{Duration, Instant},
};

use mdevd_core::domain_xml::Domain;
use mdevd_dbus::{BUS_NAME, Dict, Options, TextDict, error, interface, path};
use serde::Serialize;
use tokio::{runtime, time::timeout};
use zbus::{
    Connection, DynamicType, Proxy, Variant,
    proxy::{CacheProperties, MethodFlags},
    wire::DynamicDeserialize,
};

use crate::caller::Caller;

/// How long before the hook gives up the daemon has to be done: it says better than the hook can what took so long.
const MARGIN: Duration = Duration::from_millis(500);

/// Why mdevd did not do it.
#[derive(Debug)]
pub enum Failure {
    /// It answered with an error, or could not be reached.
    Call(zbus::Error),
    /// It did not answer in time.
    TimedOut,
    /// This process could not even begin.
    Runtime(io::Error),
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Self::Call(error)
    }
}

/// A domain, as mdevd is told of it: requests and hostdevs as they are, so that one place judges them.
#[derive(Debug)]
pub struct Subject {
    uuid: String,
    name: String,
    requests: Vec<TextDict>,
    hostdevs: Vec<TextDict>,
}

impl Subject {
    /// Takes from the XML what mdevd wants to know.
    pub fn of(domain: &Domain) -> Self {
        Self {
            uuid: domain.uuid.to_string(),
            name: domain.name.clone(),
            requests: domain.requests.iter().map(|request| request.iter().cloned().collect()).collect(),
            hostdevs: domain.hostdevs.iter().map(|hostdev| hostdev.to_pairs().into_iter().collect()).collect(),
        }
    }
}

/// The domain is about to start: waits until it has its devices.
pub fn prepare(subject: &Subject, caller: Caller, deadline: Instant) -> Result<(), Failure> {
    let body = || {
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(MARGIN).as_millis();
        let mut options = process(caller);
        options.insert("timeout-ms", Variant::U32(u32::try_from(left).unwrap_or(u32::MAX)));
        (&subject.uuid, &subject.name, &subject.requests, &subject.hostdevs, options)
    };
    block_on(deadline, async { Manager::connect().await?.call::<_, Vec<Dict>>("PrepareDomain", body).await.map(drop) })
}

/// The same of a daemon that is there; nothing is started.
pub fn prepare_without_start(subject: &Subject, caller: Caller, deadline: Instant) -> Result<(), Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Of a short wait not that much is kept back.
    let left = left.saturating_sub(MARGIN.min(left / 8)).as_millis();
    let mut options = process(caller);
    options.insert("timeout-ms", Variant::U32(u32::try_from(left).unwrap_or(u32::MAX)));
    let body = (&subject.uuid, &subject.name, &subject.requests, &subject.hostdevs, options);
    block_on(deadline, async {
        Manager::connect().await?.attempt::<_, Vec<Dict>>("PrepareDomain", &body).await?;
        Ok(())
    })
}

/// The domain was found running by a new libvirt daemon.
pub fn adopt(subject: &Subject, caller: Caller, deadline: Instant) -> Result<(), Failure> {
    let body = || (&subject.uuid, &subject.name, &subject.requests, &subject.hostdevs, process(caller));
    block_on(deadline, async { Manager::connect().await?.call::<_, bool>("AdoptDomain", body).await.map(drop) })
}

/// The run of the domain has ended: says so to a daemon that is there. Nothing is started.
pub fn release(uuid: &str, run: &str, reason: &str, deadline: Instant) -> Result<(), Failure> {
    let body = (uuid, ended(run, reason));
    block_on(deadline, async {
        Manager::connect().await?.attempt::<_, bool>("ReleaseDomain", &body).await?;
        Ok(())
    })
}

/// The same, and starts the daemon if need be.
pub fn release_with_start(uuid: &str, run: &str, reason: &str, deadline: Instant) -> Result<(), Failure> {
    let body = || (uuid, ended(run, reason));
    block_on(deadline, async { Manager::connect().await?.call::<_, bool>("ReleaseDomain", body).await.map(drop) })
}

/// The options that say which process the domain belongs to.
fn process(caller: Caller) -> Options<'static> {
    Options::from([("pid", Variant::U32(caller.pid)), ("start-time", Variant::U64(caller.start_time))])
}

/// The options that say which run has ended, and why.
fn ended<'a>(run: &'a str, reason: &'a str) -> Options<'a> {
    Options::from([("reason", Variant::from(reason)), ("run", Variant::from(run))])
}

/// Waits for a call, but no longer than until the deadline.
fn block_on<T>(deadline: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = runtime.block_on(async { timeout(left, call).await.unwrap_or(Err(Failure::TimedOut)) });
    // Not waiting for a thread that may still try to reach a bus that hangs.
    runtime.shutdown_background();
    answer
}

/// mdevd's root object.
struct Manager(Proxy<'static>);

impl Manager {
    async fn connect() -> Result<Self, Failure> {
        let connection = Connection::system().await?;
        let builder = zbus::proxy::Builder::new(&connection).destination(BUS_NAME).path(path::ROOT);
        Ok(Self(builder.interface(interface::MANAGER).cache_properties(CacheProperties::No).build().await?))
    }

    /// Calls a daemon that is there. What is sent is made up at the last moment, because it says how much time is left.
    async fn call<B, R>(&self, method: &'static str, body: impl Fn() -> B) -> Result<R, Failure>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        match self.attempt(method, &body()).await {
            Err(error) if error::is_unreachable(&error) => {
                self.start().await?;
                Ok(self.attempt(method, &body()).await?)
            }
            answer => Ok(answer?),
        }
    }

    async fn attempt<B, R>(&self, method: &'static str, body: &B) -> zbus::Result<R>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let answer = self.0.call_with_flags(method, MethodFlags::NO_AUTO_START, body).await?;
        answer.ok_or(zbus::Error::InvalidReply)
    }

    /// Has the bus start the daemon, and waits until it is there.
    async fn start(&self) -> zbus::Result<()> {
        let bus = "org.freedesktop.DBus";
        let body = (BUS_NAME, 0u32);
        let connection = self.0.connection();
        connection.call_method(Some(bus), "/org/freedesktop/DBus", Some(bus), "StartServiceByName", &body).await?;
        Ok(())
    }
}
