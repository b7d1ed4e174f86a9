//! What the tests of bad luck stand on: a fake host with the daemon over it, and what they ask of both.
#![allow(dead_code)] // each test program uses its own part

use std::collections::HashMap;
use std::io::Write;
use std::process::{Output, Stdio};

use mdevd_dbus::wire::text;
use mdevd_dbus::{ClaimProxy, Dict, ErrorName, ManagerProxy, MdevProxy, ParentProxy, error, path};
use mdevd_tests::fakesys::{self, Builder, FakeHost, Rule};
use mdevd_tests::harness::{Bus, Daemon, Domain, PATIENCE, claim_files, claim_json, eventually, program};
use uuid::Uuid;
use zbus::Connection;
use zbus::proxy::CacheProperties;

/// Two cards of the same kind, and a third that nothing is ever asked of.
pub const A: &str = "0000:41:00.0";
/// The second card.
pub const B: &str = "0000:c1:00.0";
/// The type that both cards offer.
pub const GOLD: &str = "i915-gold";
/// Another that both offer.
pub const TIN: &str = "i915-tin";

/// Two cards with the same two types, four of each.
pub fn two_cards() -> Builder {
    let card = |host: Builder, name| {
        host.parent(name).driver("i915").mdev_attr("tuning/depth", 0o644, "0").mdev_type(GOLD, 4).mdev_type(TIN, 4)
    };
    card(card(fakesys::host(), A), B)
}

/// A host, a bus, and the daemon between them. Dropped in this order: what hangs in the host is let go before the daemon is waited for.
#[derive(Debug)]
pub struct Stage {
    /// The host.
    pub host: FakeHost,
    /// The daemon's root object.
    pub manager: ManagerProxy<'static>,
    connection: Connection,
    /// The daemon.
    pub daemon: Daemon,
    /// The bus.
    pub bus: Bus,
}

impl Stage {
    /// Starts the daemon over a host.
    pub async fn start(host: Builder) -> Self {
        Self::over(host.mount().unwrap()).await
    }

    /// Starts the daemon over a host to which something was done before.
    pub async fn over(host: FakeHost) -> Self {
        let _init = host.process(1, "systemd", &["/sbin/init"]);
        let bus = Bus::start();
        let daemon = Daemon::start(&host, &bus).await;
        let connection = bus.connect().await;
        let manager = mdevd_tests::harness::manager(&connection).await;
        Self { host, manager, connection, daemon, bus }
    }

    /// Kills the daemon with SIGKILL; a new one is [`Stage::again`].
    pub async fn kill(&mut self) {
        self.daemon.kill(&self.bus).await;
    }

    /// Starts a new daemon.
    pub async fn again(&mut self) {
        self.daemon = Daemon::start(&self.host, &self.bus).await;
    }

    /// A host where nothing is left of anybody: no device, claim, write in flight or problem.
    pub async fn wait_clean(&self) {
        eventually("a host without devices", || async { self.host.mdevs().is_empty() }).await;
        self.wait_no_claims().await;
        self.wait_no_problems().await;
    }

    /// Until no claim is left, in a file or on the bus, and no write is in flight.
    pub async fn wait_no_claims(&self) {
        eventually("no claim left", || async { claim_files(&self.host).is_empty() }).await;
        eventually("no lock left", || async { self.host.view().names("run/mdevd/busy").is_empty() }).await;
    }

    /// Until nothing is listed as a problem.
    pub async fn wait_no_problems(&self) {
        eventually("no problems", || async {
            let problems = self.problems().await;
            if !problems.is_empty() {
                tokio::task::yield_now().await;
            }
            problems.is_empty()
        })
        .await;
    }

    /// What is wrong: subject and message.
    pub async fn problems(&self) -> Vec<(String, String)> {
        let problems = self.manager.problems().await.unwrap();
        problems.iter().map(|one| (text(one, "subject").to_owned(), text(one, "message").to_owned())).collect()
    }

    /// Until a problem is listed whose subject is, and whose message contains, this. Answers with the message.
    pub async fn wait_problem(&self, subject: &str, part: &str) -> String {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let problems = self.problems().await;
            if let Some((_, message)) = problems.iter().find(|(s, message)| s == subject && message.contains(part)) {
                return message.clone();
            }
            let late = std::time::Instant::now() > deadline;
            assert!(!late, "no problem of '{subject}' that says '{part}', but {problems:?}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// A parent's object.
    pub async fn parent(&self, name: &str) -> ParentProxy<'static> {
        let builder = ParentProxy::builder(&self.connection).path(path::parent(name));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    /// A mediated device's object.
    pub async fn mdev(&self, uuid: Uuid) -> MdevProxy<'static> {
        let builder = MdevProxy::builder(&self.connection).path(path::mdev(uuid));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    /// A claim's object.
    pub async fn claim(&self, id: Uuid) -> ClaimProxy<'static> {
        let builder = ClaimProxy::builder(&self.connection).path(path::claim(id));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    /// Until a parent's state is this; `gone` for one that is not there.
    pub async fn wait_parent(&self, name: &str, state: &str) {
        let parent = self.parent(name).await;
        eventually(&format!("{name} {state}"), || async {
            parent.state().await.map_or(state == "gone", |now| now == state)
        })
        .await;
    }

    /// Until a mediated device's state is this; `gone` for one that is not there.
    pub async fn wait_mdev(&self, uuid: Uuid, state: &str) {
        let mdev = self.mdev(uuid).await;
        eventually(&format!("{uuid} {state}"), || async {
            mdev.state().await.map_or(state == "gone", |now| now == state)
        })
        .await;
    }

    /// Until a claim's state is this.
    pub async fn wait_claim(&self, id: Uuid, state: &str) {
        let claim = self.claim(id).await;
        eventually(&format!("claim {id} {state}"), || async { claim.state().await.is_ok_and(|now| now == state) })
            .await;
    }

    /// The ids of the types that a parent offers.
    pub async fn types(&self, parent: &str) -> Vec<String> {
        let types = self.parent(parent).await.types().await.unwrap_or_default();
        types.iter().map(|one| text(one, "id").to_owned()).collect()
    }

    /// `Reconcile`: what was done, as action and reason of each claim.
    pub async fn reconcile(&self) -> Vec<(Uuid, String, String)> {
        let done = self.manager.reconcile(&HashMap::new()).await.unwrap();
        let id = |one: &Dict| match path::Object::from_path(text(one, "claim")) {
            Some(path::Object::Claim(id)) => id,
            other => panic!("{other:?} is no claim"),
        };
        done.iter().map(|one| (id(one), text(one, "action").to_owned(), text(one, "reason").to_owned())).collect()
    }

    /// The run of a domain's claim, from its file.
    pub fn run_of(&self, domain: &Domain) -> String {
        claim_json(&domain.claim_file(&self.host))["run"].as_str().unwrap().to_owned()
    }

    /// The writes to `create` and `remove` so far, as `(parent or device, verb, errno's name or empty)`.
    pub fn writes(&self) -> Vec<(String, &'static str, Option<fakesys::Errno>)> {
        let named = |path: &str| {
            let mut parts = path.rsplit('/');
            match parts.next() {
                Some("create") => (parts.nth(2).unwrap().to_owned(), "create"),
                Some("remove") => (parts.next().unwrap().to_owned(), "remove"),
                _ => (path.to_owned(), "set"),
            }
        };
        let writes = self.host.sys_writes().into_iter();
        writes
            .map(|(path, _, errno)| {
                let (on, verb) = named(&path);
                (on, verb, errno)
            })
            .collect()
    }

    /// Runs the hook as libvirt does: this process is the libvirt daemon.
    pub async fn hook(&self, domain: &Domain, op: &str, sub: &str, extra: &str) -> Output {
        self.hook_started(domain, op, sub, extra).await.unwrap()
    }

    /// The same, without waiting for its end.
    pub fn hook_started(&self, domain: &Domain, op: &str, sub: &str, extra: &str) -> tokio::task::JoinHandle<Output> {
        let mut command = std::process::Command::new(program("mdevd-hook"));
        command.args([domain.name.as_str(), op, sub, extra]).env_clear().current_dir("/");
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).env("MDEVD_RUN_DIR", self.host.run());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let xml = domain_xml(domain);
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            // One that does not read its input may be gone already.
            let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
            child.wait_with_output().unwrap()
        })
    }
}

/// The error of a call that must have failed with one of ours.
pub fn refused<T: std::fmt::Debug>(answer: zbus::Result<T>) -> (ErrorName, String) {
    let error = answer.expect_err("the call was to be refused");
    match error::split(&error) {
        (Some(name), message) => (name, message),
        (None, message) => panic!("not one of ours: {message}"),
    }
}

/// Waits until a fault or point has met so many operations.
pub async fn met(rule: &Rule, n: usize) {
    eventually(&format!("{n} operations at {rule:?}"), || async { rule.hits() >= n }).await;
}

/// `PrepareDomain` as a task, so that something else can happen meanwhile.
pub fn preparing(stage: &Stage, domain: &Domain, ms: u32) -> tokio::task::JoinHandle<zbus::Result<Vec<Dict>>> {
    let (manager, domain) = (stage.manager.clone(), domain.clone());
    tokio::spawn(async move { domain.prepare_within(&manager, ms).await })
}

/// `ReleaseDomain` as a task.
pub fn releasing(stage: &Stage, domain: &Domain) -> tokio::task::JoinHandle<zbus::Result<bool>> {
    let (manager, domain) = (stage.manager.clone(), domain.clone());
    tokio::spawn(async move { domain.release(&manager).await })
}

/// The domain's XML as libvirt hands it to a hook.
pub fn domain_xml(domain: &Domain) -> String {
    let mut requests = String::new();
    for request in &domain.requests {
        requests.push_str("      <mdevd:request");
        for (key, value) in request {
            requests.push_str(&format!(" {key}='{value}'"));
        }
        requests.push_str("/>\n");
    }
    let mut metadata = String::new();
    if !requests.is_empty() {
        metadata = format!(
            "  <metadata>\n    <mdevd:devices xmlns:mdevd='urn:mdevd:domain:1'>\n{requests}    </mdevd:devices>\n  </metadata>\n"
        );
    }
    let mut devices = String::new();
    for hostdev in &domain.hostdevs {
        if let Some(address) = hostdev.get("address") {
            let source = mdevd_core::hostdev::PciHostdevXml::from_options(address.parse().unwrap(), []).unwrap();
            devices.push_str(&source.to_xml());
            continue;
        }
        let uuid = &hostdev["uuid"];
        devices.push_str(&format!(
            "    <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n      <source><address uuid='{uuid}'/></source>\n    </hostdev>\n"
        ));
    }
    format!(
        "<domain type='kvm'>\n  <name>{}</name>\n  <uuid>{}</uuid>\n{metadata}  <memory unit='KiB'>524288</memory>\n  \
         <os><type arch='x86_64' machine='q35'>hvm</type></os>\n  <devices>\n{devices}  </devices>\n</domain>\n",
        domain.name, domain.uuid
    )
}

/// What a program said on stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
