//! `tree`: cards, their functions, what is made of those, and at the leaves who has it.

use crate::card::mdevs_on;
use crate::cli::Tree;
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::outline::Outline;
use crate::table::terminal_width;
use crate::verbs::list::Shown;
use crate::verbs::{Said, rows};
use crate::view::{Function, Host};

/// Runs the verb.
pub async fn run(args: &Tree) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    let shown = Shown::of(&host, args.all, None);
    if args.output.json {
        return Ok(json::document(&json::tree(&shown.cards, &shown.parents, &host)).into());
    }
    let mut lines = Outline::default();
    for card in &shown.cards {
        rows::card(&mut lines, card, &host, false);
        if let [only] = card.functions.as_slice() {
            below(&mut lines, 2, only, &host, args.all);
            continue;
        }
        for function in &card.functions {
            rows::function(&mut lines, 2, function, &host);
            below(&mut lines, 4, function, &host, args.all);
        }
    }
    for parent in &shown.parents {
        rows::parent(&mut lines, parent, &host);
        for mdev in host.mdevs_on(&parent.name) {
            rows::mdev(&mut lines, 2, mdev, &host);
        }
    }
    Ok(Said { out: lines.render(terminal_width()), notes: shown.notes(&host, "tree"), code: 0 })
}

/// What is made of a function.
fn below(lines: &mut Outline, indent: usize, function: &Function, host: &Host, all: bool) {
    for mdev in mdevs_on(function, host) {
        rows::mdev(lines, indent, mdev, host);
    }
    rows::vfs(lines, indent, &host.vfs_of(function.address), host, all);
}
