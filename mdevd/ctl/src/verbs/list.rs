//! `list`: the parents, and beneath each its mdevs.

use crate::cli::Output;
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::table::{BAD, BOLD, Cell, Fit, ODD, PLAIN, Table, terminal_width};
use crate::verbs::{NO_PARENTS, Said, counted, holder_of, number, or_dash, state};
use crate::view::{Host, Mdev, Parent};

/// Runs the verb.
pub async fn run(output: &Output) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    if output.json {
        let parents: Vec<_> = host.parents.iter().map(|parent| json::parent(parent, &host)).collect();
        return Ok(json::document(&parents.into()).into());
    }
    let mut said = Said::from(text(&host, terminal_width()));
    if host.parents.is_empty() {
        said.notes.push(NO_PARENTS.to_owned());
    }
    Ok(said)
}

/// The rows of both tables in one another: columns line up among parents and among mdevs.
fn text(host: &Host, width: Option<usize>) -> String {
    let mut parents = Table::new(0, &[Fit::Keep, Fit::Shorten, Fit::Keep, Fit::Wrap]);
    for parent in &host.parents {
        let style = if parent.state == "ok" { PLAIN } else { BAD };
        parents.row([
            Cell::styled(or_dash(&parent.name), BOLD),
            or_dash(&parent.driver).into(),
            format!("NUMA {}", number(parent.numa_node)).into(),
            Cell::styled(&usage(parent, host), style),
        ]);
    }
    let rows = mdev_rows(host.mdevs.iter(), host).rows(width);
    let mut mdevs = host.mdevs.iter().zip(rows).peekable();
    let mut text = String::new();
    for (parent, row) in host.parents.iter().zip(parents.rows(width)) {
        text += &row;
        while let Some((_, row)) = mdevs.next_if(|(mdev, _)| mdev.parent == parent.name) {
            text += &row;
        }
    }
    text
}

/// One row for each mdev.
pub fn mdev_rows<'a>(mdevs: impl Iterator<Item = &'a Mdev>, host: &Host) -> Table {
    let mut table = Table::new(2, &[Fit::Keep, Fit::Shorten, Fit::Keep, Fit::Shorten]);
    for mdev in mdevs {
        let style = if mdev.claim.is_some() { PLAIN } else { ODD };
        table.row([
            mdev.uuid.to_string().into(),
            or_dash(&mdev.mdev_type).into(),
            state(&mdev.state),
            Cell::styled(&holder_of(mdev, host), style),
        ]);
    }
    table
}

/// How much of a parent is used, for each type that is.
fn usage(parent: &Parent, host: &Host) -> String {
    if parent.state == "gone" {
        return "gone: the kernel has these mdevs still, but not their parent".to_owned();
    }
    let mut parts: Vec<String> = Vec::new();
    if parent.state != "ok" {
        parts.push(parent.state.clone());
    }
    let used = parent.types.iter().map(|t| (t, json::used(parent, &t.id, host))).filter(|(_, used)| *used > 0);
    let before = parts.len();
    parts.extend(used.map(|(t, used)| format!("{} {used} used, {} free", t.id, number(t.available))));
    if parts.len() == before {
        parts.push(match parent.types.len() {
            0 => "no types".to_owned(),
            n => format!("{}, none used", counted(n, "type")),
        });
    }
    parts.join("; ")
}
