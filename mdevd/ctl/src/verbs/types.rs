//! `types`: what can be created, and how often still.

use crate::cli::Types;
use crate::client::{Client, unknown};
use crate::error::Error;
use crate::json;
use crate::table::{BOLD, Cell, DIM, Fit, PLAIN, Table, terminal_width};
use crate::verbs::{NO_PARENTS, Said, number, or_dash};
use crate::view::{Host, Parent};

/// Runs the verb.
pub async fn run(args: &Types) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    let parents: Vec<&Parent> = match &args.parent {
        None => host.parents.iter().collect(),
        Some(name) => match host.parents.iter().find(|parent| parent.name == *name) {
            Some(parent) => vec![parent],
            None => return Err(Error::Refused(unknown(name, &host))),
        },
    };
    if args.output.json {
        let types: Vec<_> = parents.iter().flat_map(|p| p.types.iter().map(|t| json::mdev_type(p, t, &host))).collect();
        return Ok(json::document(&types.into()).into());
    }
    let mut said = Said::default();
    if parents.is_empty() {
        said.notes.push(NO_PARENTS.to_owned());
    } else if parents.iter().all(|parent| parent.types.is_empty()) {
        said.notes.push(
            "no types: the driver offers none at present; hostdevctl status shows what could not be read".to_owned(),
        );
    } else {
        said.out = table(0, &parents, &host).render(terminal_width());
    }
    Ok(said)
}

/// One row for each type of these parents, under a line of column names.
pub fn table(indent: usize, parents: &[&Parent], host: &Host) -> Table {
    let mut table =
        Table::new(indent, &[Fit::Keep, Fit::Keep, Fit::Keep, Fit::Keep, Fit::Keep, Fit::Shorten, Fit::Shorten]);
    table.header(&["PARENT", "TYPE", "FREE", "USED", "API", "NAME", "DESCRIPTION"]);
    for parent in parents {
        for t in &parent.types {
            let free = if t.available == Some(0) { DIM } else { PLAIN };
            table.row([
                parent.name.as_str().into(),
                Cell::styled(&t.id, BOLD),
                Cell::styled(&number(t.available), free),
                json::used(parent, &t.id, host).to_string().into(),
                or_dash(&t.device_api).into(),
                or_dash(&t.name).into(),
                or_dash(&t.description).into(),
            ]);
        }
    }
    table
}
