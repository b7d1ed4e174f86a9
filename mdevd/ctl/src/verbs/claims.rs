//! `claims`, `claim` and `release`: what is promised to whom, and promising it by hand.

use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use uuid::Uuid;

use crate::cli::{Claim as ClaimArgs, Output, Release};
use crate::client::{Client, functions, requests, wire};
use crate::error::Error;
use crate::json;
use crate::table::{BOLD, Cell, Fit, Table, terminal_width};
use crate::verbs::{Said, not_one, or_dash, owner, rows, state};
use crate::view::{Grant, Host};

/// Runs `claims`.
pub async fn list(output: &Output) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    if output.json {
        return Ok(json::document(&host.claims.iter().map(|claim| json::claim(claim, &host)).collect()).into());
    }
    let mut said = Said::from(text(&host, terminal_width()));
    if host.claims.is_empty() {
        said.notes.push("no claims: nothing is promised to anybody".to_owned());
    }
    Ok(said)
}

fn text(host: &Host, width: Option<usize>) -> String {
    let mut claims = Table::new(0, &[Fit::Keep, Fit::Shorten, Fit::Keep, Fit::Shorten]);
    let mut grants = Table::new(2, &[Fit::Keep, Fit::Keep, Fit::Shorten]);
    for claim in &host.claims {
        claims.row([
            Cell::styled(&claim.id.to_string(), BOLD),
            owner(claim).into(),
            state(&claim.state),
            claim.step.as_str().into(),
        ]);
        for grant in &claim.grants {
            grants.row([grant.request.as_str().into(), or_dash(&grant.device).into(), what_of(grant, host).into()]);
        }
    }
    let mut grants = grants.rows(width).into_iter();
    let mut text = String::new();
    for (claim, row) in host.claims.iter().zip(claims.rows(width)) {
        text += &row;
        text.extend(grants.by_ref().take(claim.grants.len()));
    }
    text
}

/// What a granted device is.
pub fn what_of(grant: &Grant, host: &Host) -> String {
    if let Some(function) = grant.address.and_then(|address| host.function(address)) {
        return rows::role_of(function);
    }
    match grant.uuid.and_then(|uuid| host.mdev(uuid)) {
        Some(mdev) => format!("{} on {}", or_dash(&mdev.mdev_type), or_dash(&mdev.parent)),
        None => "does not exist".to_owned(),
    }
}

/// Runs `claim`.
pub async fn acquire(args: &ClaimArgs) -> Result<Said, Error> {
    let (_, pairs) = requests(&args.requests)?;
    let mut options = Options::new();
    if let Some(label) = &args.label {
        options.insert("label", label.as_str().into());
    }
    let client = Client::connect().await?;
    let path = client.manager().await?.acquire(&wire(pairs), &options).await?;
    let Some(Object::Claim(id)) = Object::from_path(path.as_str()) else {
        return Err(Error::Refused(format!(
            "mdevd answered with {path}, which is no claim; hostdevctl claims shows what happened"
        )));
    };
    let mut notes = Vec::new();
    // For people only: the claim is made, whatever can still be said about it.
    if let Ok(host) = client.host().await
        && let Some(claim) = host.claim(id)
    {
        notes.extend(
            claim.grants.iter().map(|grant| format!("{}: {} ({})", grant.request, grant.device, what_of(grant, &host))),
        );
    }
    notes.push(format!("for the XML of a VM: hostdevctl xml {id}; to give it back: hostdevctl release {id}"));
    Ok(Said { out: format!("{id}\n"), notes, code: 0 })
}

/// Runs `release`.
pub async fn release(args: &Release) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let id = claim_to_release(&client, &args.what).await?;
    let mut options = Options::new();
    if args.force {
        options.insert("force", true.into());
    }
    let changed = client.claim(id).await?.release(&options).await?;
    let notes = if changed { Vec::new() } else { vec!["nothing to do: it is being released already".to_owned()] };
    Ok(Said { notes, ..Said::default() })
}

/// The claim that a word names, or that holds the device it names, and no other: whoever names a device means that device.
async fn claim_to_release(client: &Client, word: &str) -> Result<Uuid, Error> {
    let found = client.find(word).await?;
    let claims: Vec<Uuid> =
        found.iter().filter_map(|object| if let Object::Claim(id) = object { Some(*id) } else { None }).collect();
    if let [id] = claims.as_slice() {
        return Ok(*id);
    }
    let host = client.host().await?;
    let gone = |name: &str| Error::Refused(format!("{name} is gone already"));
    // A parent may be the same function.
    let devices: Vec<&Object> = found.iter().filter(|object| !matches!(object, Object::Parent(_))).collect();
    let (name, claim, otherwise) = match devices.as_slice() {
        [Object::Mdev(uuid)] => {
            let mdev = host.mdev(*uuid).ok_or_else(|| gone(&uuid.to_string()))?;
            (uuid.to_string(), mdev.claim, Some(format!("hostdevctl remove {uuid}")))
        }
        [Object::Function(address)] => {
            let function = address.parse().ok().and_then(|address| host.function(address));
            (address.clone(), function.ok_or_else(|| gone(address))?.claim, None)
        }
        // All functions of a card, in one claim.
        [Object::Function(_), ..] => {
            let all: Vec<_> =
                functions(&found).into_iter().filter_map(|address| host.function(address)?.claim).collect();
            match all.as_slice() {
                [id, rest @ ..] if rest.iter().all(|other| other == id) => return Ok(*id),
                _ => return Err(not_one(word, "held by one claim", &found)),
            }
        }
        _ => return Err(not_one(word, "one claim", &found)),
    };
    let Some(id) = claim else {
        let instead = otherwise.map_or_else(String::new, |verb| format!("\nto remove it: {verb}"));
        return Err(Error::Refused(format!("no claim holds {name}, so there is nothing to release{instead}")));
    };
    let Some(claim) = host.claim(id).filter(|claim| claim.grants.len() > 1) else { return Ok(id) };
    let only = otherwise.map_or_else(String::new, |verb| format!("\nto remove this one only: {verb}"));
    Err(Error::Refused(format!(
        "the claim that holds {name} ({}) holds {} devices\nto free them all: hostdevctl release {id}{only}",
        owner(claim),
        claim.grants.len(),
    )))
}
