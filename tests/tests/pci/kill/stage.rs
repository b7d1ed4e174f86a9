//! Where a daemon is killed and its successors are judged: a host, a domain that runs on it all the time, and what has to be true whenever
//! mdevd is idle.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_dbus::path::{self, Object};
use mdevd_dbus::{BUS_NAME, interface};
use mdevd_tests::fakesys::{Builder, Event, FakeHost, Rule, Then, View};
use mdevd_tests::harness::{Daemon, Domain, eventually};
use rustix::process::{Pid, Signal, kill_process};

use super::super::common::*;

/// What the daemon can change of a function: its driver, its override and its vGPU type.
pub type Bound = (Option<String>, Option<String>, Option<u32>);

/// The libvirt daemon of the host: `(pid, start time)`.
const LIBVIRT: (u32, u64) = (1000, 2000);

/// The daemon that a closure at a point kills. Held while the next one is being started, so that it cannot outrun its own death.
#[derive(Clone)]
pub struct Victim(Arc<Mutex<Pid>>);

impl Victim {
    /// Ends it, and the operation that is pending as `then` says.
    pub fn killer(&self, then: Then) -> impl FnMut(&Event) -> Then + Send + 'static {
        let victim = self.clone();
        move |_| {
            victim.kill();
            then
        }
    }

    /// Ends it.
    pub fn kill(&self) {
        // Gone already when another rule was faster.
        let _ = kill_process(*self.0.lock().unwrap(), Signal::KILL);
    }
}

/// Everything that a case needs.
pub struct Stage {
    pub lab: Lab,
    pub view: View,
    pub victim: Victim,
    /// How each function was at first; the one that runs as it is while it does.
    first: BTreeMap<String, Bound>,
    /// The claim of the domain that runs all the time.
    running: Claim,
}

impl Stage {
    /// Starts the daemon over this host, on which a domain runs with this function all the time.
    pub async fn start(builder: Builder, before: impl FnOnce(&FakeHost), running: Domain, held: &str) -> Self {
        let lab = Lab::start_with(builder, |host| {
            let _ = host.process(LIBVIRT.0, "libvirtd", &["/usr/sbin/libvirtd"]).started(LIBVIRT.1);
            before(host);
        })
        .await;
        running.prepare(&lab.manager).await.unwrap();
        let _ = qemu(&lab.host, 4000, held);
        let seen = || async {
            lab.manager.reconcile(&HashMap::new()).await.unwrap();
            lab.claim(&running).unwrap().seen
        };
        eventually("the domain is seen to run", seen).await;
        let victim = Victim(Arc::new(Mutex::new(pid(&lab.daemon))));
        let (view, running) = (lab.host.view(), lab.claim(&running).unwrap());
        let first = all_bound(&view);
        lab.host.clear_log();
        Self { lab, view, victim, first, running }
    }

    /// Waits for the daemon's end, starts the next one and waits until it has its bus name.
    pub async fn restart(&mut self) {
        self.lab.daemon.gone(&self.lab.bus).await;
        let next = {
            let mut victim = self.victim.0.lock().unwrap();
            let next = Daemon::spawn(&self.lab.host, &self.lab.bus);
            *victim = pid(&next);
            next
        };
        self.lab.daemon = next;
        self.lab.bus.wait_owned(BUS_NAME, true).await;
    }

    /// The claims on disk. Each can be read at any moment, whoever was killed when.
    pub fn claims(&self) -> Vec<Claim> {
        let names = self.view.names("run/mdevd/claims").into_iter().filter(|name| !name.starts_with('.'));
        let texts = names.filter_map(|name| self.view.text(&format!("run/mdevd/claims/{name}")));
        texts.map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
    }

    /// The claim on disk that is not the one of the domain that runs all the time.
    pub fn claim(&self) -> Option<Claim> {
        self.claims().into_iter().find(|claim| claim.id != self.running.id)
    }

    /// Nothing is under way, and nothing is left of what was.
    pub fn idle(&self) -> bool {
        let left =
            ["busy", "released", "quarantine"].iter().flat_map(|dir| self.view.names(&format!("run/mdevd/{dir}")));
        let unfinished = self.view.names("run/mdevd/claims").into_iter().filter(|name| name.starts_with('.'));
        left.chain(unfinished).next().is_none() && self.claims().iter().all(|claim| claim.state == ClaimState::Ready)
    }

    /// Waits until nothing is under way and no claim is left but that of the domain that runs all the time. Then every function is as it was
    /// at first, the bus says the same, no problem is listed, and nothing that is held was touched.
    pub async fn as_at_first(&self, what: &str) {
        self.settled(what).await;
        assert_eq!(self.claims(), std::slice::from_ref(&self.running), "{what}: the claims that are left");
        assert_eq!(all_bound(&self.view), self.first, "{what}: drivers, overrides and vGPU types");
    }

    /// The same but for functions that come and go, and claims that are ready.
    pub async fn settled(&self, what: &str) {
        let idle = format!("{what}: idle");
        eventually(&idle, || async { self.idle() }).await;
        eventually(&format!("{what}: the bus says what is"), || self.bus_says_what_is()).await;
        for grant in &self.running.grants {
            let address = grant.function().unwrap().address.to_string();
            let writes = self.lab.writes_of(&address);
            assert!(writes.is_empty(), "{what}: what is held was touched: {writes:?}");
        }
    }

    async fn bus_says_what_is(&self) -> bool {
        let mut shown = BTreeMap::new();
        for (path, interfaces) in self.lab.objects().await {
            let Some(Object::Function(address)) = Object::from_path(path.as_str()) else { continue };
            let Some(function) = interfaces.get(interface::FUNCTION) else { return false };
            let text = |name: &str| String::try_from(function[name].clone()).unwrap();
            let some = |text: String| (!text.is_empty()).then_some(text);
            if text("State") != "ok" {
                return false;
            }
            let typed = interfaces.get(interface::VIRTUAL_FUNCTION);
            let id = typed.map_or(0, |vf| u32::try_from(vf["VgpuType"].clone()).unwrap());
            // An override is not announced; what was written by mdevd is known all the same.
            shown.insert(address, (some(text("Driver")), some(text("DriverOverride")), Some(id).filter(|id| *id > 0)));
        }
        let claims = self.claims();
        for claim in &claims {
            for grant in &claim.grants {
                let address = grant.function().unwrap().address.to_string();
                if self.lab.function(&address).await.claim().await.ok() != Some(path::claim(claim.id)) {
                    return false;
                }
            }
        }
        shown == all_bound(&self.view) && self.lab.problems().await.is_empty()
    }

    /// Leaves word as the hook does whose call nobody answered.
    pub fn mark_released(&self, claim: &Claim) {
        let dir = self.lab.host.run().join("mdevd/released");
        let unfinished = dir.join(format!(".{}.1", claim.id));
        let text = serde_json::json!({"run": claim.run.to_string(), "reason": "failed"});
        std::fs::write(&unfinished, text.to_string()).unwrap();
        std::fs::rename(unfinished, dir.join(claim.id.to_string())).unwrap();
    }

    /// The options by which the hook says whose start it is.
    pub fn options(&self) -> HashMap<&'static str, zbus::Variant<'static>> {
        HashMap::from([("timeout-ms", 20_000u32.into()), ("pid", LIBVIRT.0.into()), ("start-time", LIBVIRT.1.into())])
    }

    /// Waits until this rule has been met, and kills the daemon if that is for us to do.
    pub async fn met(&self, what: &str, rule: &Rule, kill: bool) {
        eventually(&format!("{what}: never reached"), || async { rule.hits() == 1 }).await;
        if kill {
            self.victim.kill();
        }
    }
}

fn all_bound(view: &View) -> BTreeMap<String, Bound> {
    let bound = |address: &String| (view.driver_of(address), view.override_of(address), view.vgpu_type(address));
    view.functions().into_iter().map(|address| (address.clone(), bound(&address))).collect()
}

fn pid(daemon: &Daemon) -> Pid {
    Pid::from_raw(daemon.pid().cast_signed()).unwrap()
}
