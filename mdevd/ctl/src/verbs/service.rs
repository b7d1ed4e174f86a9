//! `status`, `reconcile`, `rescan` and `reload`: mdevd itself.

use std::collections::BTreeSet;

use mdevd_dbus::Options;
use serde_json::json;

use crate::cli::{Output, Reconcile};
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::table::{BAD, BOLD, Cell, Fit, GOOD, Table, terminal_width, time};
use crate::verbs::{NO_DEVICES, Said, counted, or_dash};
use crate::view::{Action, Host, Problem};

/// Runs `status`.
pub async fn status(output: &Output) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let manager = client.manager().await?;
    let version = manager.version().await?;
    let problems: Vec<Problem> = manager.problems().await?.iter().map(Problem::read).collect();
    let host = client.host().await?;
    if output.json {
        let status = json!({
            "version": version,
            "functions": host.functions.len(),
            "parents": host.parents.len(),
            "types": distinct_types(&host),
            "mdevs": host.mdevs.len(),
            "claims": host.claims.len(),
            "problems": problems.iter().map(json::problem).collect::<Vec<_>>(),
        });
        return Ok(json::document(&status).into());
    }
    let mut said = Said::from(text(&version, &host, &problems, terminal_width()));
    if host.parents.is_empty() && host.functions.is_empty() {
        said.notes.push(NO_DEVICES.to_owned());
    }
    Ok(said)
}

/// How many different types there are: the same type on two parents is one.
fn distinct_types(host: &Host) -> usize {
    host.parents.iter().flat_map(|parent| &parent.types).map(|t| t.id.as_str()).collect::<BTreeSet<_>>().len()
}

fn text(version: &str, host: &Host, problems: &[Problem], width: Option<usize>) -> String {
    let mut heading = Table::new(0, &[Fit::Shorten, Fit::Wrap]);
    let counts = [
        counted(host.functions.len(), "PCI function"),
        counted(host.parents.len(), "parent"),
        counted(distinct_types(host), "type"),
        counted(host.mdevs.len(), "mdev"),
        counted(host.claims.len(), "claim"),
    ];
    heading.row([Cell::styled(&format!("mdevd {version}"), BOLD), counts.join(", ").into()]);
    let mut text = heading.render(width);
    if problems.is_empty() {
        return text + &format!("{GOOD}no problems{GOOD:#}\n");
    }
    text += &format!("{BAD}{}{BAD:#}\n", counted(problems.len(), "problem"));
    let mut subjects = Table::new(2, &[Fit::Keep, Fit::Keep]);
    let mut messages = Table::new(4, &[Fit::Wrap]);
    for problem in problems {
        let since = problem.since.map_or_else(String::new, |since| format!("since {}", time(since)));
        subjects.row([Cell::styled(or_dash(&problem.subject), BOLD), since.into()]);
        messages.row([problem.message.as_str().into()]);
    }
    for (subject, message) in subjects.rows(width).into_iter().zip(messages.rows(width)) {
        text += &subject;
        text += &message;
    }
    text
}

/// Runs `reconcile`.
pub async fn reconcile(args: &Reconcile) -> Result<Said, Error> {
    let mut options = Options::new();
    if args.dry_run {
        options.insert("dry-run", true.into());
    }
    let answer = Client::connect().await?.manager().await?.reconcile(&options).await?;
    let actions: Vec<Action> = answer.iter().map(Action::read).collect();
    if args.output.json {
        return Ok(json::document(&actions.iter().map(json::action).collect()).into());
    }
    if actions.is_empty() {
        return Ok(Said { notes: vec!["nothing to do: claims, devices and VMs agree".to_owned()], ..Said::default() });
    }
    let mut table = Table::new(0, &[Fit::Keep, Fit::Keep, Fit::Wrap]);
    for action in &actions {
        let claim = action.claim.map_or_else(String::new, |id| id.to_string());
        let subject = if action.device.is_empty() { claim } else { action.device.clone() };
        table.row([Cell::styled(&action.action, BOLD), or_dash(&subject).into(), action.reason.as_str().into()]);
    }
    Ok(table.render(terminal_width()).into())
}

/// Runs `rescan`.
pub async fn rescan() -> Result<Said, Error> {
    Client::connect().await?.manager().await?.rescan(&Options::new()).await?;
    Ok(Said::default())
}

/// Runs `reload`.
pub async fn reload() -> Result<Said, Error> {
    Client::connect().await?.manager().await?.reload(&Options::new()).await?;
    Ok(Said::default())
}
