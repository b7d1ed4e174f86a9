//! `explain`: which device each request would get now, and why not another.

use mdevd_dbus::Options;

use crate::cli::Explain;
use crate::client::{Client, requests, wire};
use crate::error::Error;
use crate::json;
use crate::table::{BAD, BOLD, Cell, DIM, Fit, GOOD, PLAIN, Table, terminal_width};
use crate::verbs::{NO_PARENTS, Said};
use crate::view::Candidate;

/// Runs the verb.
pub async fn run(args: &Explain) -> Result<Said, Error> {
    let (requests, pairs) = requests(&args.requests)?;
    let client = Client::connect().await?;
    let answer = client.manager().await?.explain(&wire(pairs), &Options::new()).await?;
    let names: Vec<String> = requests.iter().flat_map(|request| request.instance_names()).collect();
    let candidates = ordered(answer.iter().map(Candidate::read).collect(), &names);
    if args.output.json {
        return Ok(json::document(&candidates.iter().map(json::candidate).collect()).into());
    }
    let mut said = Said::from(text(&names, &candidates, terminal_width()));
    if candidates.is_empty() {
        said.notes.push(NO_PARENTS.to_owned());
    }
    Ok(said)
}

/// In the order of the requests, what is chosen first; otherwise as mdevd ranks them.
fn ordered(mut candidates: Vec<Candidate>, names: &[String]) -> Vec<Candidate> {
    candidates.sort_by_key(|candidate| {
        (names.iter().position(|name| *name == candidate.request), candidate.verdict != "chosen")
    });
    candidates
}

fn text(names: &[String], candidates: &[Candidate], width: Option<usize>) -> String {
    let mut table = Table::new(2, &[Fit::Keep, Fit::Keep, Fit::Wrap]);
    for candidate in candidates {
        let style = match candidate.verdict.as_str() {
            "chosen" => GOOD,
            "refused" => DIM,
            _ => PLAIN,
        };
        let place = if candidate.parent.is_empty() { &candidate.device } else { &candidate.parent };
        table.row([Cell::styled(&candidate.verdict, style), place.as_str().into(), reason(candidate).into()]);
    }
    let mut rows = candidates.iter().zip(table.rows(width)).peekable();
    let mut text = String::new();
    for name in names {
        text += &format!("{BOLD}{name}{BOLD:#}\n");
        let mut chosen = false;
        while let Some((candidate, row)) = rows.next_if(|(candidate, _)| candidate.request == *name) {
            chosen |= candidate.verdict == "chosen";
            text += &row;
        }
        if !chosen {
            text += &format!("  {BAD}nothing would be chosen: this request would be refused{BAD:#}\n");
        }
    }
    text.extend(rows.map(|(_, row)| row)); // of names that we did not ask about
    text
}

/// Why, for people.
fn reason(candidate: &Candidate) -> String {
    if !candidate.message.is_empty() {
        return candidate.message.clone();
    }
    match (candidate.verdict.as_str(), candidate.device.as_str()) {
        ("chosen", "") => "would be created here".to_owned(),
        (_, "") => candidate.reason.clone(),
        (_, device) => format!("{device}, which exists already"),
    }
}
