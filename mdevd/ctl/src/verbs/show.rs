//! `show`: everything about what a word stands for, with who has it open right now.

use std::collections::HashMap;

use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use uuid::Uuid;

use crate::cli::Show;
use crate::client::Client;
use crate::error::Error;
use crate::json::{self, Holders};
use crate::table::{self, BAD, BOLD, Cell, Fit, Table, terminal_width};
use crate::verbs::claims::what_of;
use crate::verbs::{Said, describe, holder_of, number, or_dash, owner, state, types};
use crate::view::{Claim, Host, Mdev, Parent};

/// Who has each of the mdevs open that are spoken of.
type AllHolders = HashMap<Uuid, Holders>;

/// What is shown.
enum Shown<'a> {
    Parent(&'a Parent),
    Mdev(&'a Mdev),
    Claim(&'a Claim),
}

impl<'a> Shown<'a> {
    fn find(object: &Object, host: &'a Host) -> Result<Self, Error> {
        let shown = match object {
            Object::Parent(name) => host.parents.iter().find(|parent| parent.name == *name).map(Self::Parent),
            Object::Mdev(uuid) => host.mdev(*uuid).map(Self::Mdev),
            Object::Claim(id) => host.claim(*id).map(Self::Claim),
        };
        shown.ok_or_else(|| Error::Refused(format!("{} went away just now; see: hostdevctl list", describe(object))))
    }

    /// The mdevs that belong to it.
    fn mdevs(&self, host: &'a Host) -> Vec<&'a Mdev> {
        match self {
            Self::Parent(parent) => host.mdevs_on(&parent.name).collect(),
            Self::Mdev(mdev) => vec![mdev],
            Self::Claim(claim) => claim.grants.iter().filter_map(|grant| host.mdev(grant.uuid?)).collect(),
        }
    }
}

/// Runs the verb.
pub async fn run(args: &Show) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let found = client.find(&args.what).await?;
    let host = client.host().await?;
    let shown = found.iter().map(|object| Shown::find(object, &host)).collect::<Result<Vec<_>, _>>()?;
    let mut holders = AllHolders::new();
    for mdev in shown.iter().flat_map(|shown| shown.mdevs(&host)) {
        holders.insert(mdev.uuid, holders_of(&client, mdev.uuid).await?);
    }
    if args.output.json {
        let all: Vec<_> = shown.iter().map(|shown| to_json(shown, &host, &holders)).collect();
        return Ok(json::document(&all.into()).into());
    }
    let width = terminal_width();
    let texts: Vec<String> = shown.iter().map(|shown| text(shown, &host, &holders, width)).collect();
    Ok(texts.join("\n").into())
}

/// Asks who has an mdev open. That it cannot be known is an answer too; that mdevd is away is none.
async fn holders_of(client: &Client, uuid: Uuid) -> Result<Holders, Error> {
    match client.mdev(uuid).await?.get_holders(&Options::new()).await.map_err(Error::from) {
        Ok(holders) => Ok(Ok(holders)),
        Err(Error::Refused(why)) => Ok(Err(why)),
        Err(error) => Err(error),
    }
}

fn to_json(shown: &Shown<'_>, host: &Host, holders: &AllHolders) -> serde_json::Value {
    let with_holders = |mdev: &Mdev| match holders.get(&mdev.uuid) {
        Some(holders) => json::with_holders(json::mdev(mdev, host), holders),
        None => json::mdev(mdev, host),
    };
    let mdevs = || shown.mdevs(host).into_iter().map(with_holders).collect::<Vec<_>>().into();
    match shown {
        Shown::Parent(parent) => json::shown("parent", json::with(json::parent(parent, host), "mdevs", mdevs())),
        Shown::Mdev(mdev) => json::shown("mdev", with_holders(mdev)),
        Shown::Claim(claim) => json::shown("claim", json::with(json::claim(claim), "mdevs", mdevs())),
    }
}

fn text(shown: &Shown<'_>, host: &Host, holders: &AllHolders, width: Option<usize>) -> String {
    match shown {
        Shown::Parent(parent) => parent_text(parent, host, holders, width),
        Shown::Mdev(mdev) => mdev_text(mdev, host, holders, width),
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
    for mdev in host.mdevs_on(&parent.name) {
        facts.add("mdev", format!("{}, {}, {}", mdev.uuid, or_dash(&mdev.mdev_type), holder_of(mdev, host)));
        facts.add("held by", open_in(holders.get(&mdev.uuid)));
    }
    let mut text = facts.render(width);
    if !parent.types.is_empty() {
        text += &types::table(2, &[parent], host).render(width);
    }
    text
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
    match (host.claim_of(mdev), mdev.claim) {
        (Some(claim), _) => {
            let grant = claim.grants.iter().find(|grant| grant.uuid == Some(mdev.uuid));
            let request = grant.map_or_else(String::new, |grant| format!(", request {}", grant.request));
            facts.add("claim", format!("{} of {}{request}", claim.id, owner(claim)));
        }
        (None, Some(id)) => facts.add("claim", id.to_string()),
        (None, None) => facts.add("claim", "-"),
    }
    facts.add("held by", open_in(holders.get(&mdev.uuid)));
    facts.render(width)
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
            "keep" => ", stays after release",
            _ => "",
        };
        facts.add(&grant.request, format!("{} ({}){undo}", grant.device, what_of(grant, host)));
        if let Some(mdev) = grant.uuid.and_then(|uuid| host.mdev(uuid)) {
            facts.add("held by", open_in(holders.get(&mdev.uuid)));
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
