//! Where a daemon is killed and its successors are judged: a host with a device that is nobody's business, a bus, and what has to be true
//! whenever mdevd is idle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_core::names::{DeviceKey, MdevUuid};
use mdevd_dbus::path::{self, Object};
use mdevd_dbus::{BUS_NAME, Dict, ManagerProxy, interface, wire};
use mdevd_tests::fakesys::{self, Builder, Errno, Event, FakeHost, Rule, Then, View};
use mdevd_tests::harness::{Bus, Daemon, Domain, PATIENCE, claim_json, manager};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;
use zbus::fdo::ObjectManagerProxy;
use zbus::{Connection, OwnedObjectPath};

use super::course::Course;

/// A mediated device with parent and type.
pub type Device = (Uuid, String, String);

/// A card that has the usual type only.
pub const FIRST: &str = "0000:41:00.0";
/// A card that has both types.
pub const SECOND: &str = "0000:c1:00.0";
/// The usual type.
pub const GPU: &str = "nvidia-63";
/// Another one.
pub const OTHER: &str = "nvidia-64";
/// A device that is nobody's business.
pub const FOREIGN: Uuid = Uuid::from_u128(0x0000_0000_dead_4bee_8000_0000_0000_0001);

/// Two cards with room for four of each type.
pub fn two_cards() -> Builder {
    let cards = fakesys::host().parent(FIRST).numa(0).mdev_type(GPU, 4);
    cards.parent(SECOND).numa(1).mdev_type(GPU, 4).mdev_type(OTHER, 4)
}

/// The libvirt daemon of the host: `(pid, start time)`.
pub const LIBVIRT: (u32, u64) = (1000, 2000);

/// Everything that a case needs. The daemon goes first when this is dropped.
pub struct Stage {
    pub daemon: Daemon,
    // Kept for its log, which is printed when a test fails.
    dead: Option<Daemon>,
    victim: Victim,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub bus: Bus,
    pub host: FakeHost,
    pub view: View,
    foreign: BTreeSet<Device>,
    running: Claim,
}

/// The daemon that a closure at a point kills. Held while the next one is being started, so that it cannot outrun its own death.
#[derive(Clone, Default)]
pub struct Victim(Arc<Mutex<Option<Pid>>>);

impl Victim {
    /// Ends it, and the operation that is pending as `then` says.
    pub fn killer(&self, then: Then) -> impl FnMut(&Event) -> Then + Send + 'static {
        let victim = self.clone();
        move |_| {
            victim.kill();
            then
        }
    }

    fn kill(&self) {
        // Gone already when another rule was faster.
        let _ = kill_process(self.0.lock().unwrap().unwrap(), Signal::KILL);
    }
}

impl Stage {
    /// Starts the daemon over this host, where somebody has made [`FOREIGN`] by hand on this parent, and a domain runs all the time.
    pub async fn start(builder: Builder, foreign_on: &str) -> Self {
        let host = builder.mount().unwrap();
        host.process(1, "systemd", &["/sbin/init"]);
        let _ = host.process(LIBVIRT.0, "libvirtd", &["/usr/sbin/libvirtd"]).started(LIBVIRT.1);
        host.create_mdev(foreign_on, GPU, FOREIGN).unwrap();
        let bus = Bus::start();
        let daemon = Daemon::start(&host, &bus).await;
        let victim = Victim(Arc::new(Mutex::new(Some(pid(&daemon)))));
        let connection = bus.connect().await;
        let manager = manager(&connection).await;
        let (view, foreign) = (host.view(), host.mdevs().into_iter().collect());
        let running = runs(&host, &manager).await;
        Self { daemon, dead: None, victim, manager, connection, bus, host, view, foreign, running }
    }

    /// What a closure at a point kills.
    pub fn victim(&self) -> Victim {
        self.victim.clone()
    }

    /// Kills the daemon from outside.
    pub fn kill(&self) {
        self.victim.kill();
    }

    /// Waits for the daemon's end and starts the next one, waiting for nothing.
    pub async fn spawn_next(&mut self) {
        self.daemon.gone(&self.bus).await;
        let next = {
            let mut victim = self.victim.0.lock().unwrap();
            let next = Daemon::spawn(&self.host, &self.bus);
            *victim = Some(pid(&next));
            next
        };
        self.dead = Some(std::mem::replace(&mut self.daemon, next));
    }

    /// Waits for the daemon's end, starts the next one and waits until it has its bus name.
    pub async fn restart(&mut self) {
        self.spawn_next().await;
        self.bus.wait_owned(BUS_NAME, true).await;
    }

    /// Waits until no writer of a daemon that is dead is left.
    pub async fn writers_ended(&self) {
        let free = |name: &String| {
            let lock = std::fs::File::open(self.host.run().join("mdevd/busy").join(name)).unwrap();
            lock.try_lock().is_ok()
        };
        let busy = || self.view.names("run/mdevd/busy");
        until(|| format!("the writers of {:?} end", busy()), || async { busy().iter().all(free) }).await;
    }

    /// The claims on disk. Each can be read at any moment, whoever was killed when.
    pub fn claims(&self) -> Vec<Claim> {
        let names = self.view.names("run/mdevd/claims").into_iter().filter(|name| !name.starts_with('.'));
        let texts = names.filter_map(|name| self.view.text(&format!("run/mdevd/claims/{name}")));
        texts.map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
    }

    /// Nothing is under way, and nothing is left of what was.
    pub fn idle(&self) -> bool {
        let left =
            ["busy", "released", "quarantine"].iter().flat_map(|dir| self.view.names(&format!("run/mdevd/{dir}")));
        let unfinished = self.view.names("run/mdevd/claims").into_iter().filter(|name| name.starts_with('.'));
        left.chain(unfinished).next().is_none() && self.claims().iter().all(|claim| claim.state == ClaimState::Ready)
    }

    /// Waits until the daemon has died by this rule, or has done everything without meeting it. False for the latter.
    pub async fn died(&self, rule: &Rule, what: &str) -> bool {
        until(|| format!("{what}: dead or idle"), || async { rule.hits() == 1 || self.idle() }).await;
        // A late event may have it look once more, and the rule be at work in that right now: the scan thread answers only after it.
        self.host.no_faults();
        let died = self.manager.rescan(&HashMap::new()).await.is_err();
        if died {
            until(|| format!("{what}: who killed it"), || async { rule.hits() == 1 }).await;
        }
        assert_eq!(rule.hits(), usize::from(died), "{what}");
        died
    }

    /// Waits until nothing is under way and nothing is left of what was: every claim is ready, and no temporary file, taken lock or mark
    /// remains. Then checks that the host has exactly what the claims say and what was there before, and that the bus says the same.
    pub async fn settled(&self, what: &str) {
        let left = || format!("{what}: idle; {:?}, {:?}", self.claims(), self.view.names("run/mdevd/busy"));
        until(left, || async { self.idle() }).await;
        let claims = self.claims();
        let mut want: Vec<Device> = self.foreign.iter().cloned().collect();
        for claim in &claims {
            assert_eq!(claim.plan.done, claim.plan.steps.len(), "{what}: ready before its steps were made: {claim:?}");
            for grant in &claim.grants {
                let Some(mdev) = grant.mdev() else { continue };
                let device = (mdev.uuid.0, mdev.parent.to_string(), mdev.mdev_type.to_string());
                if !self.foreign.contains(&device) {
                    want.push(device);
                }
            }
        }
        want.sort();
        let mut have = self.host.mdevs();
        have.sort();
        assert_eq!(have, want, "{what}: the host's devices and what the claims {claims:?} say");
        self.bus_says(what, &want, &claims).await;
        let touched = |path: &str| self.foreign.iter().any(|(uuid, ..)| path.contains(&uuid.to_string()));
        let writes = self.host.sys_writes();
        assert!(!writes.iter().any(|(path, ..)| touched(path)), "{what}: what is nobody's business: {writes:?}");
        let twice = writes.iter().find(|(.., errno)| *errno == Some(Errno::EXIST));
        assert_eq!(twice, None, "{what}: made a second time");
    }

    /// Somebody makes a device by hand: from now on it is nobody's business.
    pub fn stranger_makes(&mut self, parent: &str, uuid: Uuid) {
        self.host.create_mdev(parent, GPU, uuid).unwrap();
        self.foreign.insert((uuid, parent.into(), GPU.into()));
        // What was written to an earlier device of this UUID is no matter.
        self.host.clear_log();
    }

    /// A course and another domain get exactly the devices that they ask for, and give them back.
    pub async fn gives(&self, what: &str, course: &Course) {
        let other = Course::Domain(Domain::wants("other", &[GPU, OTHER]));
        for course in [course, &other] {
            course.make(self).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        self.settled(what).await;
        for course in [course, &other] {
            let claim = course.whole_claim(self);
            course.end(self, &claim).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        self.settled(what).await;
        self.nothing_left(what);
    }

    /// No claim is left but that of the domain that runs all the time, and that is as it was.
    pub fn nothing_left(&self, what: &str) {
        assert_eq!(self.claims(), std::slice::from_ref(&self.running), "{what}");
    }

    /// Waits until the objects on the bus are these devices and claims, and no problem is listed.
    async fn bus_says(&self, what: &str, devices: &[Device], claims: &[Claim]) {
        let objects = ObjectManagerProxy::new(&self.connection, BUS_NAME, path::ROOT).await.unwrap();
        let mut want = BTreeMap::new();
        for (uuid, ..) in devices {
            let owner = claims.iter().find(|claim| claim.grant(DeviceKey::Mdev(MdevUuid(*uuid))).is_some());
            want.insert(*uuid, owner.map_or_else(path::none, |claim| path::claim(claim.id)));
        }
        let wanted_claims: BTreeSet<Uuid> = claims.iter().map(|claim| claim.id).collect();
        until(
            || format!("{what}: the bus shows {want:?}, {wanted_claims:?} and what else can be made, and no problem"),
            || async {
                let (mut mdevs, mut claims, mut free) = (BTreeMap::new(), BTreeSet::new(), true);
                for (path, interfaces) in objects.get_managed_objects().await.unwrap() {
                    match Object::from_path(path.as_str()) {
                        Some(Object::Mdev(uuid)) => {
                            let Some(mdev) = interfaces.get(interface::MDEV) else { continue };
                            let claim: OwnedObjectPath = mdev["Claim"].clone().try_into().unwrap();
                            mdevs.insert(uuid, claim);
                        }
                        Some(Object::Claim(id)) if interfaces.contains_key(interface::CLAIM) => {
                            claims.insert(id);
                        }
                        Some(Object::Parent(name)) => {
                            let Some(parent) = interfaces.get(interface::PARENT) else { continue };
                            let types: Vec<Dict> = parent["Types"].clone().try_into().unwrap();
                            free &= types.iter().all(|offer| self.offers(&name, offer));
                        }
                        _ => {}
                    }
                }
                free && mdevs == want && claims == wanted_claims && self.manager.problems().await.unwrap().is_empty()
            },
        )
        .await;
    }

    /// Whether as many of this type are offered as the parent itself says.
    fn offers(&self, parent: &str, offer: &Dict) -> bool {
        let file = self.host.type_path(parent, wire::text(offer, "id"), "available_instances");
        let text = std::fs::read_to_string(self.host.path().join(file)).unwrap();
        wire::number(offer, "available") == text.trim().parse().ok()
    }

    /// What mdevd lists under Problems.
    pub async fn problems(&self) -> Vec<String> {
        let problems = self.manager.problems().await.unwrap();
        problems
            .iter()
            .map(|problem| format!("{}: {}", wire::text(problem, "subject"), wire::text(problem, "message")))
            .collect()
    }

    /// Leaves word as the hook does whose call nobody answered.
    pub fn mark_released(&self, claim: &Claim) {
        let dir = self.host.run().join("mdevd/released");
        let unfinished = dir.join(format!(".{}.1", claim.id));
        let text = serde_json::json!({"run": claim.run.to_string(), "reason": "failed"});
        std::fs::write(&unfinished, text.to_string()).unwrap();
        std::fs::rename(unfinished, dir.join(claim.id.to_string())).unwrap();
    }

    /// The options by which the hook says whose start it is.
    pub fn options(&self) -> HashMap<&'static str, zbus::Variant<'static>> {
        HashMap::from([("timeout-ms", 20_000u32.into()), ("pid", LIBVIRT.0.into()), ("start-time", LIBVIRT.1.into())])
    }
}

/// A domain is started and has its device open. Gives its claim as it then stays.
async fn runs(host: &FakeHost, manager: &ManagerProxy<'_>) -> Claim {
    let domain = Domain::wants("running", &[OTHER]);
    domain.prepare(manager).await.unwrap();
    let _ = host.process(4000, "qemu-system-x86", &["qemu-system-x86_64"]).opens_group_of(domain.mdevs[0]);
    let claim = || serde_json::from_value::<Claim>(claim_json(&domain.claim_file(host))).unwrap();
    let seen = || async {
        manager.reconcile(&HashMap::new()).await.unwrap();
        claim().seen
    };
    until(|| "the domain is seen to run".into(), seen).await;
    claim()
}

fn pid(daemon: &Daemon) -> Pid {
    Pid::from_raw(daemon.pid().cast_signed()).unwrap()
}

/// [`eventually`](mdevd_tests::harness::eventually), with words that are put together when it did not come true.
async fn until<F: Future<Output = bool>>(what: impl Fn() -> String, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain for: {}", what());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
