//! `explain`: which device each request would get now, and why not another.

use std::collections::BTreeSet;

use mdevd_dbus::Options;

use crate::cli::Explain;
use crate::client::{Client, requests, wire};
use crate::error::Error;
use crate::json;
use crate::table::{BAD, BOLD, Cell, DIM, Fit, GOOD, PLAIN, Table, safe, terminal_width};
use crate::verbs::{NO_TYPES, Said};
use crate::view::Candidate;

/// Runs the verb.
pub async fn run(args: &Explain) -> Result<Said, Error> {
    let (requests, pairs) = requests(&args.requests)?;
    let client = Client::connect().await?;
    let answer = client.manager().await?.explain(&wire(pairs), &Options::new()).await?;
    let candidates: Vec<Candidate> = answer.iter().map(Candidate::read).collect();
    let mut names: Vec<String> = requests.iter().flat_map(|request| request.instance_names()).collect();
    // Whatever mdevd speaks of is shown, under whatever name.
    names.extend(
        candidates.iter().filter(|c| !names.contains(&c.request)).map(|c| c.request.clone()).collect::<BTreeSet<_>>(),
    );
    let candidates = ordered(candidates, &names);
    if args.output.json {
        return Ok(json::document(&candidates.iter().map(json::candidate).collect()).into());
    }
    let mut said = Said::from(text(&names, &candidates, terminal_width()));
    if candidates.is_empty() {
        said.notes.push(NO_TYPES.to_owned());
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
    let lines = lines(candidates);
    for (candidate, place) in &lines {
        let style = match candidate.verdict.as_str() {
            "chosen" => GOOD,
            "refused" => DIM,
            _ => PLAIN,
        };
        let why = if place == &candidate.device || place == &candidate.parent {
            reason(candidate)
        } else {
            reason(candidate).replace(&candidate.device, "it")
        };
        table.row([Cell::styled(&candidate.verdict, style), place.as_str().into(), why.into()]);
    }
    let rows = table.rows(width);
    let mut text = String::new();
    for name in names {
        text += &format!("{BOLD}{}{BOLD:#}\n", safe(name));
        let of_name = || lines.iter().zip(&rows).filter(|((candidate, _), _)| candidate.request == *name);
        text.extend(of_name().map(|(_, row)| row.as_str()));
        if !of_name().any(|((candidate, _), _)| candidate.verdict == "chosen") {
            text += &format!("  {BAD}nothing would be chosen: this request would be refused{BAD:#}\n");
        }
    }
    text
}

/// The candidates that get a line, with the place that it names. PCI functions of which the same is said share one.
fn lines(candidates: &[Candidate]) -> Vec<(&Candidate, String)> {
    let said = |candidate: &Candidate| {
        let function = candidate.device.contains(':').then_some(candidate.device.as_str())?;
        let message = candidate.message.replace(function, "it");
        (candidate.verdict != "chosen").then(|| (candidate.request.clone(), candidate.verdict.clone(), message))
    };
    let alike = |a: &Candidate, b: &Candidate| said(a).is_some_and(|what| said(b) == Some(what));
    let mut lines = Vec::new();
    for chunk in candidates.chunk_by(alike) {
        match chunk {
            [first, .., last] => {
                lines.push((first, format!("{} … {} ({})", first.device, last.device, chunk.len())));
            }
            _ => lines.extend(chunk.iter().map(|candidate| {
                let of_mdev = !candidate.parent.is_empty() && !candidate.device.contains(':');
                (candidate, if of_mdev { candidate.parent.clone() } else { candidate.device.clone() })
            })),
        }
    }
    lines
}

/// Why, for people.
fn reason(candidate: &Candidate) -> String {
    if !candidate.message.is_empty() {
        // The kernel's counts are hints: where nothing better is left, what says that it is full is tried.
        let tried = if candidate.verdict == "chosen" { "would be tried, as nothing better is left: " } else { "" };
        return format!("{tried}{}", candidate.message);
    }
    match (candidate.verdict.as_str(), candidate.device.as_str()) {
        ("chosen", "") => "would be created here".to_owned(),
        ("possible", _) => "would do as well".to_owned(),
        ("chosen", device) if device.contains(':') => "would be taken".to_owned(),
        (_, "") => candidate.reason.clone(),
        (_, device) => format!("{device}, which exists already"),
    }
}
