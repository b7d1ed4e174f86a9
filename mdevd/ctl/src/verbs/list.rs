//! `list`: a line for each card and each other parent, and beneath it its mdevs.

use crate::card::Card;
use crate::cli::{DeviceKind, List};
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::outline::Outline;
use crate::table::terminal_width;
use crate::verbs::{NO_DEVICES, Said, rows};
use crate::view::{Host, Parent};

/// Runs the verb.
pub async fn run(args: &List) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    let shown = Shown::of(&host, args.all, args.kind);
    if args.output.json {
        return Ok(json::document(&json::list(&shown.cards, &shown.parents, args.kind, &host)).into());
    }
    let mut lines = Outline::default();
    for card in &shown.cards {
        rows::card(&mut lines, card, &host, true);
        for mdev in card.parents(&host).iter().flat_map(|parent| host.mdevs_on(&parent.name)) {
            rows::mdev(&mut lines, 2, mdev, &host);
        }
    }
    for parent in &shown.parents {
        rows::parent(&mut lines, parent, &host);
        for mdev in host.mdevs_on(&parent.name) {
            rows::mdev(&mut lines, 2, mdev, &host);
        }
    }
    Ok(Said { out: lines.render(terminal_width()), notes: shown.notes(&host, "list"), code: 0 })
}

/// What of a host is shown.
pub struct Shown<'a> {
    /// By address.
    pub cards: Vec<Card<'a>>,
    /// Those that are no PCI functions, by name.
    pub parents: Vec<&'a Parent>,
    /// How many functions are on cards that are not shown, although of the kind.
    hidden: usize,
}

impl<'a> Shown<'a> {
    /// The cards and parents that have a device of this kind, if one is given; `all` also those that no VM could want.
    pub fn of(host: &'a Host, all: bool, kind: Option<DeviceKind>) -> Self {
        let mut cards = Card::all(host);
        cards.retain(|card| kind.is_none_or(|kind| has_kind(card, kind, host)));
        let (cards, hidden): (Vec<_>, Vec<_>) = cards.into_iter().partition(|card| all || card.is_shown(host));
        let parents = host.parents.iter().filter(|parent| host.function_of(parent).is_none());
        Self {
            cards,
            parents: parents.filter(|_| kind.is_none_or(|kind| kind == DeviceKind::Mdev)).collect(),
            hidden: hidden.iter().map(|card| card.functions.len()).sum(),
        }
    }

    /// What is for people only: that there is nothing, or more.
    pub fn notes(&self, host: &Host, verb: &str) -> Vec<String> {
        if host.functions.is_empty() && host.parents.is_empty() {
            return vec![NO_DEVICES.to_owned()];
        }
        let mut notes = Vec::new();
        if !host.functions.is_empty() && host.functions.iter().all(|function| function.iommu_group.is_none()) {
            notes.push("without an IOMMU no PCI function can be given to a VM: hostdevctl doctor".to_owned());
        }
        let are = match self.hidden {
            0 => return notes,
            1 => "1 more function is a bridge or the host's own".to_owned(),
            n => format!("{n} more functions are bridges or the host's own"),
        };
        notes.push(format!("{are}: hostdevctl {verb} --all"));
        notes
    }
}

fn has_kind(card: &Card<'_>, kind: DeviceKind, host: &Host) -> bool {
    match kind {
        DeviceKind::Mdev => !card.parents(host).is_empty(),
        DeviceKind::Vf => card.functions.iter().any(|function| function.physical().is_some_and(|pf| pf.total_vfs > 0)),
        DeviceKind::Pci => card.functions.iter().any(|function| function.is_whole()),
    }
}
