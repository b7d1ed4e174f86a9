//! A bus of one's own, and on it a daemon that looks like mdevd and always has the same devices.
//!
//! It checks what a client must do (that a call which may ask for a password says so), remembers the calls it got, and
//! answers with each kind of error when asked for the right words.

mod answers;
mod bus;
mod functions;
mod host;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use mdevd_dbus::{BUS_NAME, Dict, TextDict, path};
use uuid::Uuid;
use zbus::fdo::ObjectManager;
use zbus::message::{Flags, Header};
use zbus::{Connection, DBusError, OwnedObjectPath, OwnedVariant, Variant, connection, interface};

pub use bus::Bus;
pub use functions::vm;
use functions::{Physical, Virtual};

/// The mdev of a VM that runs.
pub const GPU: &str = "c2177883-f1bb-47f0-914d-32a22e3a8804";
/// An mdev that is promised to the same VM, and does not exist yet.
pub const COMING: &str = "7b1a55a4-3f0c-4c3b-9c44-3b0f2b8d7a10";
/// An mdev that somebody made by hand.
pub const FOREIGN: &str = "0d9e6f3a-1111-4222-8333-444455556666";
/// An mdev that is stuck, in a manual claim.
pub const STUCK: &str = "11d177a5-7e15-4bb0-9dd2-5d0a2c5b1c02";
/// The claim of the VM, and its UUID.
pub const VM: &str = "0f154289-728c-42df-9e56-9b6c1be66e73";
/// The manual claim.
pub const MANUAL: &str = "01935b6e-0000-7000-8000-00000000c1a1";
/// A claim of somebody who does not mean well.
pub const EVIL: &str = "01935b6e-0000-7000-8000-00000000e411";
/// What a new mdev or claim is called.
pub const NEW: &str = "5eed5eed-0000-4000-8000-000000000001";

/// What the daemon was asked to do, one line for each call.
pub type Calls = Arc<Mutex<Vec<String>>>;

/// A bus with a daemon on it.
pub struct Fake {
    /// The bus.
    pub bus: Bus,
    /// What it was asked to do.
    pub calls: Calls,
}

impl Fake {
    /// Starts both; `full` with mdevs, else on a host that has none.
    pub fn start(full: bool) -> Self {
        Self::start_on(if full { Host::Mdevs } else { Host::Empty })
    }

    /// Starts both on a host with many PCI functions.
    pub fn start_big() -> Self {
        Self::start_on(Host::Functions)
    }

    fn start_on(host: Host) -> Self {
        let bus = Bus::start(None);
        let calls = Calls::default();
        let (ready, wait) = mpsc::channel();
        let (address, log) = (bus.address.clone(), calls.clone());
        // Ends with the process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connection = serve(&address, &log, host).await;
                ready.send(()).unwrap();
                std::future::pending::<()>().await;
                drop(connection);
            });
        });
        wait.recv_timeout(Duration::from_secs(30)).expect("the daemon did not come up");
        Self { bus, calls }
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

/// Which host it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// One without devices.
    Empty,
    /// One with mdevs, whose mdevd knows of no PCI functions.
    Mdevs,
    /// One with many PCI functions.
    Functions,
}

async fn serve(address: &str, calls: &Calls, of: Host) -> Connection {
    let mut builder = connection::Builder::address(address)
        .serve_at(path::ROOT, ObjectManager)
        .serve_at(path::ROOT, Manager { calls: calls.clone(), host: of });
    let (parents, mdevs, claims, functions) = match of {
        Host::Empty => (Vec::new(), Vec::new(), Vec::new(), Vec::new()),
        Host::Mdevs => (host::parents(), host::mdevs(calls), host::claims(calls), Vec::new()),
        Host::Functions => (
            host::parents_among_functions(),
            host::mdevs_among_functions(calls),
            host::claims_among_functions(calls),
            functions::functions(calls),
        ),
    };
    for parent in parents {
        builder = builder.serve_at(path::parent(&parent.name), parent);
    }
    for mdev in mdevs {
        builder = builder.serve_at(path::mdev(uuid(mdev.uuid)), mdev);
    }
    for claim in claims {
        builder = builder.serve_at(path::claim(uuid(&claim.id)), claim);
    }
    for function in functions {
        let path = path::function(&function.address);
        if function.pf.is_some() {
            builder = builder.serve_at(path.clone(), Physical(function.clone()));
        }
        if let Some(vf) = &function.vf {
            builder = builder.serve_at(path.clone(), Virtual(function.clone(), vf.clone()));
        }
        builder = builder.serve_at(path, function);
    }
    builder.name(BUS_NAME).build().await.unwrap()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn dict<const N: usize>(pairs: [(&str, Variant<'_>); N]) -> Dict {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), OwnedVariant::try_from(value).unwrap())).collect()
}

/// The errors that are asked for.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.mdevd1.Error")]
enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoCapacity(String),
    NotAuthorized(String),
    NotFound(String),
    InUse(String),
    InvalidArgument(String),
    HostCritical(String),
    Unavailable(String),
}

/// Remembers a call, after a look at whether it said that it can wait for a person.
fn note(calls: &Calls, header: &Header<'_>, what: String, options: &HashMap<String, OwnedVariant>) {
    let mut options: Vec<String> = options.iter().map(|(key, value)| format!("{key}={}", **value)).collect();
    options.sort();
    let patient = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let patient = if patient { "" } else { " (without ALLOW_INTERACTIVE_AUTHORIZATION)" };
    calls.lock().unwrap().push(format!("{what} {{{}}}{patient}", options.join(", ")));
}

fn text_of(requests: &[TextDict]) -> String {
    let each = requests.iter().map(|r| r.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","));
    each.collect::<Vec<_>>().join(" ")
}

struct Manager {
    calls: Calls,
    host: Host,
}

#[interface(name = "org.mdevd1.Manager")]
impl Manager {
    async fn create_mdev(
        &self,
        r#type: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedObjectPath, bool), Error> {
        note(&self.calls, &header, format!("CreateMdev {}", r#type), &options);
        match r#type {
            "full" => Err(Error::NoCapacity(
                "no instance of full is left: 0000:41:00.0 has none; stop a VM or take another type".into(),
            )),
            "forbidden" => Err(Error::NotAuthorized("org.mdevd1.claim is not allowed to uid 1000".into())),
            _ if options.contains_key("uuid") => Ok((path::mdev(uuid(GPU)), false)),
            _ => Ok((path::mdev(uuid(STUCK)), true)),
        }
    }

    async fn acquire(
        &self,
        requests: Vec<TextDict>,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<OwnedObjectPath, Error> {
        note(&self.calls, &header, format!("Acquire {}", text_of(&requests)), &options);
        Ok(path::claim(uuid(if self.host == Host::Empty { NEW } else { MANUAL })))
    }

    async fn explain(&self, requests: Vec<TextDict>, _options: HashMap<String, OwnedVariant>) -> Vec<Dict> {
        match self.host {
            Host::Empty => Vec::new(),
            Host::Mdevs => answers::mdev_candidates(&requests),
            Host::Functions => answers::function_candidates(&self.calls, &requests),
        }
    }

    async fn check(&self, options: HashMap<String, OwnedVariant>) -> Vec<Dict> {
        answers::findings(
            self.host,
            &self.calls,
            Some(mdevd_dbus::wire::text(&options, "device")).filter(|device| !device.is_empty()),
        )
    }

    async fn find(&self, what: &str) -> Vec<OwnedObjectPath> {
        answers::find(self.host, &self.calls, what)
    }

    async fn rescan(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Error> {
        note(&self.calls, &header, "Rescan".into(), &options);
        if self.host == Host::Empty {
            connection.clone().close().await?; // a daemon that dies in mid-call
        }
        Ok(())
    }

    async fn reload(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Error> {
        note(&self.calls, &header, "Reload".into(), &options);
        Err(Error::NotFound("/etc/mdevd/mdevd.toml:3: unknown key 'plicy'; did you mean 'policy'?".into()))
    }

    async fn reconcile(&self, options: HashMap<String, OwnedVariant>, #[zbus(header)] header: Header<'_>) -> Vec<Dict> {
        note(&self.calls, &header, "Reconcile".into(), &options);
        if self.host == Host::Empty {
            return Vec::new();
        }
        let one = |id: &str, device: &str, action: &str, reason: &str| {
            dict([
                ("claim", path::claim(uuid(id)).into_inner().into()),
                ("device", device.into()),
                ("action", action.into()),
                ("reason", reason.into()),
            ])
        };
        vec![
            one(VM, "", "keep", "domain vm1 runs"),
            one(
                MANUAL,
                STUCK,
                "free",
                "its owner has gone, and no process has had it open for two looks that were 30 s apart",
            ),
        ]
    }

    #[zbus(property)]
    fn version(&self) -> &str {
        "0.1.0"
    }

    #[zbus(property)]
    fn libvirt_version(&self) -> &str {
        if self.host == Host::Empty { "" } else { "11.3.0" }
    }

    #[zbus(property)]
    fn problems(&self) -> Vec<Dict> {
        if self.host == Host::Empty {
            return Vec::new();
        }
        vec![dict([
            ("subject", STUCK.into()),
            ("since", 1_700_000_000u64.into()),
            (
                "message",
                "a removal has hung in the kernel since then; it ends when the process that has it open does".into(),
            ),
        ])]
    }
}
