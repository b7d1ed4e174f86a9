//! What a client asks and nothing changes: what would be chosen and why, and which objects a word means.

use std::collections::BTreeSet;
use std::rc::Rc;

use mdevd_core::check::{Finding, check_function, check_host};
use mdevd_core::choose::function::{choose_function, grant_function};
use mdevd_core::choose::{Verdict, choose, take_existing};
use mdevd_core::claim::{Claim, ClaimState, Owner};
use mdevd_core::function::Role;
use mdevd_core::hostdev::LibvirtVersion;
use mdevd_core::names::{MdevUuid, ParentName, PciAddress, PciCard, RunId, parse_uuid};
use mdevd_core::plan::Plan;
use mdevd_core::request::{Need, Request, needs_without_domain};
use mdevd_dbus::{ErrorName, path};
use mdevd_host::facts::{SystemPaths, host_facts};
use uuid::Uuid;
use zbus::OwnedObjectPath;

use super::Engine;
use super::prepare::{fixed_function, new_device};
use crate::error::{Error, Result};

/// What is thought of one candidate for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The request.
    pub request: String,
    /// The device, when it exists already; else empty.
    pub device: String,
    /// The parent.
    pub parent: String,
    /// `chosen`, `possible`, `last-resort` or `refused`.
    pub verdict: &'static str,
    /// Why not simply possible, as a stable code.
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

impl Engine {
    /// What would be chosen for these requests now, and why not the others.
    pub fn explain(self: &Rc<Self>, requests: Vec<Vec<(String, String)>>) -> Result<Vec<Explained>> {
        let requests = Request::parse_all(requests)?;
        let needs = needs_without_domain(&requests, || MdevUuid(Uuid::new_v4()));
        let state = self.state.borrow();
        let mut explained = Vec::new();
        // What one request would get the next cannot have.
        let mut draft = Claim {
            id: Uuid::nil(),
            owner: Owner::Manual { label: "an earlier request of this call".into() },
            owner_uid: 0,
            run: RunId(Uuid::nil()),
            state: ClaimState::Planned,
            created: 0,
            process: None,
            seen: false,
            grants: Vec::new(),
            plan: Plan::default(),
            problem: String::new(),
        };
        // What goes to the same VM may share an IOMMU group.
        let together: BTreeSet<PciAddress> = needs.iter().filter_map(fixed_function).collect();
        for need in &needs {
            let claims: Vec<&Claim> = state.claims.values().map(|claim| &**claim).chain([&draft]).collect();
            let context = state.context(&claims, &[]);
            let name = need.name().to_string();
            let say =
                |device: String, parent: String, verdict, refusal: Option<&mdevd_core::choose::Refusal>| Explained {
                    request: name.clone(),
                    device,
                    parent,
                    verdict,
                    reason: refusal.map_or("", |refusal| refusal.reason.as_str()),
                    message: refusal.map_or_else(String::new, |refusal| refusal.message.clone()),
                };
            let need = match need {
                Need::Mdev(need) => need,
                Need::Function(need) => {
                    let choice = choose_function(&context, need, &together);
                    let chosen = choice.chosen(&need.wanted);
                    if choice.candidates.is_empty() {
                        explained.push(say(String::new(), String::new(), "refused", choice.refusal.as_ref()));
                    }
                    for candidate in &choice.candidates {
                        let (verdict, refusal) = match &candidate.verdict {
                            _ if chosen.contains(&candidate.address) => ("chosen", None),
                            Verdict::Possible => ("possible", None),
                            Verdict::LastResort(refusal) => ("last-resort", Some(refusal)),
                            Verdict::Refused(refusal) => ("refused", Some(refusal)),
                        };
                        let parent = match state.inventory.function(&candidate.address).map(|f| &f.role) {
                            Some(Role::Vf { pf, .. }) => pf.to_string(),
                            _ => String::new(),
                        };
                        explained.push(say(candidate.address.to_string(), parent, verdict, refusal));
                    }
                    let functions = chosen.iter().filter_map(|address| state.inventory.function(address));
                    let grants: Vec<_> =
                        functions.map(|f| grant_function(&state.inventory, need, &need.name, f)).collect();
                    draft.grants.extend(grants);
                    continue;
                }
            };
            match take_existing(&context, need, true) {
                Ok(Some(grant)) => {
                    explained.push(say(
                        need.uuid.to_string(),
                        grant.mdev().map(|mdev| mdev.parent.to_string()).unwrap_or_default(),
                        "chosen",
                        None,
                    ));
                    draft.grants.push(grant);
                    continue;
                }
                Err(refusal) => {
                    explained.push(say(need.uuid.to_string(), String::new(), "refused", Some(&refusal)));
                    continue;
                }
                Ok(None) => {}
            }
            let choice = choose(&context, need);
            let chosen = choice.chosen().map(|candidate| candidate.parent.clone());
            if choice.candidates.is_empty() {
                explained.push(say(String::new(), String::new(), "refused", choice.refusal.as_ref()));
            }
            for candidate in &choice.candidates {
                let verdict = match &candidate.verdict {
                    _ if chosen.as_ref() == Some(&candidate.parent) => "chosen",
                    Verdict::Possible => "possible",
                    Verdict::LastResort(_) => "last-resort",
                    Verdict::Refused(_) => "refused",
                };
                explained.push(say(String::new(), candidate.parent.to_string(), verdict, candidate.refusal()));
            }
            draft.grants.extend(choice.chosen().and_then(|candidate| new_device(need, candidate)));
        }
        Ok(explained)
    }

    /// Which libvirt is installed, for the XML that it must understand.
    pub fn libvirt_version(self: &Rc<Self>) -> Option<LibvirtVersion> {
        self.state.borrow().host_facts.libvirt_version
    }

    /// Whether the host and its PCI functions, or the one named, are ready for VMs.
    ///
    /// # Errors
    /// `NotFound` for a function that there is not.
    pub async fn check(self: &Rc<Self>, only: Option<PciAddress>) -> Result<Vec<Finding>> {
        let roots = self.roots.clone();
        let facts = self.scanner.run(move || host_facts(&roots, &SystemPaths::default())).await.map_err(|_| {
            Error::new(ErrorName::Unavailable, "reading what the host is made of does not come back from the kernel")
        })?;
        self.refresh_critical().await?;
        if let Some(address) = only {
            self.function_now(address).await?;
        }
        {
            let mut state = self.state.borrow_mut();
            state.judged = false;
            state.host_facts = facts.clone();
        }
        self.publish().await;
        let state = self.state.borrow();
        let mut findings = check_host(&facts);
        let functions = state.inventory.functions().filter(|function| only.is_none_or(|only| only == function.address));
        findings.extend(functions.map(|function| check_function(&state.inventory, function, &facts)));
        Ok(findings)
    }

    /// The objects that a person may mean by a word.
    pub fn find(self: &Rc<Self>, what: &str) -> Vec<OwnedObjectPath> {
        let state = self.state.borrow();
        let mut found = Vec::new();
        if let Ok(name) = what.parse::<ParentName>()
            && state.inventory.parent(&name).is_some()
        {
            found.push(path::parent(name.as_str()));
        }
        let function = |address: &PciAddress| state.inventory.function(address).is_some();
        found.extend(what.parse().ok().filter(function).map(|address| path::function(&address.to_string())));
        // `41:00` and `0000:41:00` mean every function of the card.
        if let Ok(card) = what.parse::<PciCard>() {
            let of_card = state.inventory.functions().filter(|function| function.address.card() == card);
            found.extend(of_card.map(|function| path::function(&function.address.to_string())));
        }
        if let Ok(uuid) = parse_uuid(what) {
            if state.inventory.mdev(&MdevUuid(uuid)).is_some() {
                found.push(path::mdev(uuid));
            }
            // A domain's claim has the domain's UUID.
            if state.claims.contains_key(&uuid) {
                found.push(path::claim(uuid));
            }
        }
        for claim in state.claims.values() {
            let named = match &claim.owner {
                Owner::Domain { name, .. } => name == what,
                Owner::Manual { label } => !label.is_empty() && label == what,
            };
            // A domain may be called by its own UUID.
            if named && !found.contains(&path::claim(claim.id)) {
                found.push(path::claim(claim.id));
            }
        }
        let ours = match path::Object::from_path(what) {
            Some(path::Object::Parent(name)) => {
                name.parse::<ParentName>().is_ok_and(|name| state.inventory.parent(&name).is_some())
            }
            Some(path::Object::Mdev(uuid)) => state.inventory.mdev(&MdevUuid(uuid)).is_some(),
            Some(path::Object::Claim(id)) => state.claims.contains_key(&id),
            Some(path::Object::Function(address)) => address.parse().is_ok_and(|address| function(&address)),
            _ => false,
        };
        if ours && let Ok(path) = OwnedObjectPath::try_from(what) {
            found.push(path);
        }
        found
    }
}
