//! `show`: everything about what a word stands for, with who has it open right now.

mod function;

use std::collections::HashMap;

use mdevd_core::names::{DeviceKey, MdevUuid};
use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use uuid::Uuid;

use crate::card::mdevs_on;
use crate::cli::Show;
use crate::client::{Client, functions};
use crate::error::Error;
use crate::json::{self, Holders};
use crate::table::{self, BAD, BOLD, Cell, Fit, Table, terminal_width};
use crate::verbs::claims::what_of;
use crate::verbs::{Said, describe, holder_of, number, or_dash, owner, state, types};
use crate::view::{Claim, Function, Grant, Host, Mdev, Parent};

/// Who has each of the devices open that are spoken of.
type AllHolders = HashMap<DeviceKey, Holders>;

/// What is shown.
enum Shown<'a> {
    Parent(&'a Parent),
    Mdev(&'a Mdev),
    Function(&'a Function),
    Claim(&'a Claim),
}

impl<'a> Shown<'a> {
    fn find(object: &Object, host: &'a Host) -> Result<Self, Error> {
        let shown = match object {
            Object::Parent(name) => host.parents.iter().find(|parent| parent.name == *name).map(Self::Parent),
            Object::Mdev(uuid) => host.mdev(*uuid).map(Self::Mdev),
            Object::Claim(id) => host.claim(*id).map(Self::Claim),
            Object::Function(address) => {
                address.parse().ok().and_then(|address| host.function(address)).map(Self::Function)
            }
        };
        shown.ok_or_else(|| Error::Refused(format!("{} went away just now; see: hostdevctl list", describe(object))))
    }

    /// The mdevs that belong to it.
    fn mdevs(&self, host: &'a Host) -> Vec<&'a Mdev> {
        match self {
            Self::Parent(parent) => host.mdevs_on(&parent.name).collect(),
            Self::Mdev(mdev) => vec![mdev],
            Self::Function(function) => mdevs_on(function, host).collect(),
            Self::Claim(claim) => claim.grants.iter().filter_map(|grant| host.mdev(grant.uuid?)).collect(),
        }
    }

    /// The functions that belong to it.
    fn functions(&self, host: &'a Host) -> Vec<&'a Function> {
        match self {
            Self::Parent(_) | Self::Mdev(_) => Vec::new(),
            Self::Function(function) => vec![function],
            Self::Claim(claim) => claim.grants.iter().filter_map(|grant| host.function(grant.address?)).collect(),
        }
    }

    /// Whether another one says the same of it, and more: the function that a parent is.
    fn is_said_by(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Parent(parent), Self::Function(function)) => parent.name == function.address.to_string(),
            _ => false,
        }
    }
}

/// The key of an mdev.
fn mdev_key(mdev: &Mdev) -> DeviceKey {
    DeviceKey::Mdev(MdevUuid(mdev.uuid))
}

/// Runs the verb.
pub async fn run(args: &Show) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let found = client.find(&args.what).await?;
    let host = client.host().await?;
    let own: Vec<_> = host.without_own_vfs(&functions(&found)).into_iter().map(|address| address.to_string()).collect();
    let meant = found.iter().filter(|object| !matches!(object, Object::Function(address) if !own.contains(address)));
    let shown = meant.map(|object| Shown::find(object, &host)).collect::<Result<Vec<_>, _>>()?;
    let mut holders = AllHolders::new();
    for one in &shown {
        let mdevs = one.mdevs(&host).into_iter().map(mdev_key);
        let keys: Vec<_> = one.functions(&host).into_iter().map(|f| DeviceKey::Pci(f.address)).chain(mdevs).collect();
        for key in keys {
            holders.insert(key, holders_of(&client, key).await?);
        }
    }
    if args.output.json {
        let all: Vec<_> = shown.iter().map(|shown| to_json(shown, &host, &holders)).collect();
        return Ok(json::document(&all.into()).into());
    }
    let width = terminal_width();
    let own = shown.iter().filter(|one| shown.iter().all(|other| !one.is_said_by(other)));
    let texts: Vec<String> = own.map(|shown| text(shown, &host, &holders, width)).collect();
    Ok(texts.join("\n").into())
}

/// Asks who has a device open. That it cannot be known is an answer too; that mdevd is away is none.
async fn holders_of(client: &Client, key: DeviceKey) -> Result<Holders, Error> {
    let options = Options::new();
    let answer = match key {
        DeviceKey::Mdev(uuid) => client.mdev(uuid.0).await?.get_holders(&options).await,
        DeviceKey::Pci(address) => client.function(address).await?.get_holders(&options).await,
    };
    match answer.map_err(Error::from) {
        Ok(holders) => Ok(Ok(holders)),
        Err(Error::Refused(why)) => Ok(Err(why)),
        Err(error) => Err(error),
    }
}

fn to_json(shown: &Shown<'_>, host: &Host, holders: &AllHolders) -> serde_json::Value {
    let with_holders = |device, key| match holders.get(&key) {
        Some(holders) => json::with_holders(device, holders),
        None => device,
    };
    let of_mdev = |mdev: &Mdev| with_holders(json::mdev(mdev, host), mdev_key(mdev));
    let of_function = |own: &Function| with_holders(json::function(own, host), DeviceKey::Pci(own.address));
    let mdevs = || shown.mdevs(host).into_iter().map(of_mdev).collect::<Vec<_>>().into();
    match shown {
        Shown::Parent(parent) => json::shown("parent", json::with(json::parent(parent, host), "mdevs", mdevs())),
        Shown::Mdev(mdev) => json::shown("mdev", of_mdev(mdev)),
        Shown::Function(function) => json::shown("function", of_function(function)),
        Shown::Claim(claim) => {
            let functions = shown.functions(host).into_iter().map(of_function).collect::<Vec<_>>().into();
            let claim = json::with(json::claim(claim, host), "mdevs", mdevs());
            json::shown("claim", json::with(claim, "functions", functions))
        }
    }
}

fn text(shown: &Shown<'_>, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    match shown {
        Shown::Parent(parent) => parent_text(parent, host, holders, width),
        Shown::Mdev(mdev) => mdev_text(mdev, host, holders, width),
        Shown::Function(own) => function::text(own, host, holders, width),
        Shown::Claim(claim) => claim_text(claim, host, holders, width),
    }
}

/// A heading with facts below it.
struct Facts {
    heading: Table,
    facts: Table,
}

impl Facts {
    fn of(kind: &str, name: &str) -> Self {
        let mut heading = Table::new(0, &[Fit::Keep]);
        heading.row([Cell::styled(&format!("{kind} {name}"), BOLD)]);
        Self { heading, facts: Table::new(2, &[Fit::Keep, Fit::Wrap]) }
    }

    fn add(&mut self, what: &str, value: impl Into<Cell>) {
        self.facts.row([what.into(), value.into()]);
    }

    fn render(&self, width: Option<usize>) -> String {
        self.heading.render(width) + &self.facts.render(width)
    }
}

fn parent_text(parent: &Parent, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    let mut facts = Facts::of("parent", &parent.name);
    facts.add("driver", or_dash(&parent.driver));
    facts.add("NUMA node", number(parent.numa_node));
    facts.add("state", state(&parent.state));
    add_mdevs(&mut facts, parent, host, holders);
    facts.render(width) + &types_of(parent, host, width)
}

fn add_mdevs(facts: &mut Facts, parent: &Parent, host: &Host, holders: &AllHolders) {
    for mdev in host.mdevs_on(&parent.name) {
        facts.add("mdev", format!("{}, {}, {}", mdev.uuid, or_dash(&mdev.mdev_type), holder_of(mdev, host)));
        facts.add("held by", open_in(holders.get(&mdev_key(mdev))));
    }
}

fn types_of(parent: &Parent, host: &Host, width: Option<usize>) -> String {
    if parent.types.is_empty() { String::new() } else { types::table(2, &[parent], host).render(width) }
}

fn mdev_text(mdev: &Mdev, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    let mut facts = Facts::of("mdev", &mdev.uuid.to_string());
    facts.add("type", or_dash(&mdev.mdev_type));
    facts.add("parent", or_dash(&mdev.parent));
    facts.add("NUMA node", number(mdev.numa_node));
    facts.add("device API", or_dash(&mdev.device_api));
    facts.add("IOMMU group", number(mdev.iommu_group));
    facts.add("driver", or_dash(&mdev.driver));
    facts.add("state", state(&mdev.state));
    facts.add("origin", or_dash(&mdev.origin));
    facts.add("claim", claim_of(mdev.claim, |grant| grant.uuid == Some(mdev.uuid), host));
    facts.add("held by", open_in(holders.get(&mdev_key(mdev))));
    facts.render(width)
}

/// A device's claim, and the request in it that the device answers.
fn claim_of(id: Option<Uuid>, is_it: impl Fn(&Grant) -> bool, host: &Host) -> String {
    let Some(id) = id else { return "-".to_owned() };
    let Some(claim) = host.claim(id) else { return id.to_string() };
    let grant = claim.grants.iter().find(|grant| is_it(grant));
    let request = grant.map_or_else(String::new, |grant| format!(", request {}", grant.request));
    format!("{id} of {}{request}", owner(claim))
}

fn claim_text(claim: &Claim, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    let mut facts = Facts::of("claim", &claim.id.to_string());
    facts.add("owner", owner(claim));
    if !claim.owner_uuid.is_empty() {
        facts.add("VM's UUID", claim.owner_uuid.as_str());
    }
    facts.add("asked by", format!("uid {}", number(claim.owner_uid)));
    facts.add("since", claim.created.map_or_else(|| "-".to_owned(), table::time));
    facts.add("state", state(&claim.state));
    if !claim.step.is_empty() {
        facts.add("step", claim.step.as_str());
    }
    for grant in &claim.grants {
        let undo = match grant.undo.as_str() {
            "remove" => ", removed at release",
            "restore" => ", given back as it was",
            "keep" => ", stays after release",
            _ => "",
        };
        facts.add(&grant.request, format!("{} ({}){undo}", grant.device, what_of(grant, host)));
        let mdev = grant.uuid.filter(|uuid| host.mdev(*uuid).is_some()).map(|uuid| DeviceKey::Mdev(MdevUuid(uuid)));
        let function = grant.address.filter(|address| host.function(*address).is_some()).map(DeviceKey::Pci);
        if let Some(key) = mdev.or(function) {
            facts.add("held by", open_in(holders.get(&key)));
        }
    }
    facts.render(width)
}

/// Who has a device open, in words.
fn open_in(holders: Option<&Holders>) -> Cell {
    match holders {
        Some(Ok(holders)) if holders.is_empty() => "nobody".into(),
        Some(Ok(holders)) => {
            let list: Vec<String> = holders.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect();
            list.join(", ").into()
        }
        Some(Err(why)) => Cell::styled(&format!("counts as held: {why}"), BAD),
        None => "not asked".into(),
    }
}
