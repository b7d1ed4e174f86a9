//! The JSON of `--json`: which keys there are, in one place. They are documented in `docs/json.md` and stay: new ones may
//! be added, none is renamed, removed or given another type.
//!
//! Text is as the kernel and libvirt have it, unlike in tables, where what could steer a terminal is escaped. What is
//! absent is `null`.

mod function;

use std::fmt::Write as _;

use serde_json::{Value, json};

use uuid::Uuid;

use crate::table::steers;
use crate::view::{Action, Candidate, Claim, Grant, Host, Mdev, MdevType, Parent, Problem};

pub use function::{finding, function, list, tree, vfs, vgpu_type, vgpu_types};

/// Who has a device open: process ids and names, or why that cannot be known.
pub type Holders = Result<Vec<(u32, String)>, String>;

/// A document as it is printed. What could steer a terminal stands escaped, which for a JSON parser is the same text.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    for c in format!("{value:#}").chars() {
        if c != '\n' && steers(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c)); // only inside of strings, and all of these have four digits
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    out
}

/// A parent with its types and mdevs.
pub fn parent(parent: &Parent, host: &Host) -> Value {
    json!({
        "name": parent.name,
        "driver": text(&parent.driver),
        "numa_node": parent.numa_node,
        "state": text(&parent.state),
        "types": parent.types.iter().map(|t| mdev_type(parent, t, host)).collect::<Vec<_>>(),
        "mdevs": host.mdevs_on(&parent.name).map(|m| mdev(m, host)).collect::<Vec<_>>(),
    })
}

/// A type of a parent.
pub fn mdev_type(parent: &Parent, mdev_type: &MdevType, host: &Host) -> Value {
    json!({
        "kind": "mdev",
        "parent": parent.name,
        "id": mdev_type.id,
        "name": text(&mdev_type.name),
        "description": text(&mdev_type.description),
        "device_api": text(&mdev_type.device_api),
        "available": mdev_type.available,
        "used": used(parent, &mdev_type.id, host),
    })
}

/// An mdev, with the claim that holds it in short.
pub fn mdev(mdev: &Mdev, host: &Host) -> Value {
    json!({
        "uuid": mdev.uuid,
        "parent": text(&mdev.parent),
        "type": text(&mdev.mdev_type),
        "device_api": text(&mdev.device_api),
        "iommu_group": mdev.iommu_group,
        "numa_node": mdev.numa_node,
        "driver": text(&mdev.driver),
        "state": text(&mdev.state),
        "origin": text(&mdev.origin),
        "claim": mdev.claim.map(|id| claim_in_short(id, host)),
    })
}

fn claim_in_short(id: Uuid, host: &Host) -> Value {
    match host.claim(id) {
        Some(claim) => json!({
            "id": id,
            "owner_kind": text(&claim.owner_kind),
            "owner_uuid": text(&claim.owner_uuid),
            "owner_name": text(&claim.owner_name),
            "state": text(&claim.state),
        }),
        None => json!({ "id": id, "owner_kind": null, "owner_uuid": null, "owner_name": null, "state": null }),
    }
}

/// A claim.
pub fn claim(claim: &Claim, host: &Host) -> Value {
    let exists = |grant: &Grant| {
        grant.uuid.is_some_and(|uuid| host.mdev(uuid).is_some())
            || grant.address.is_some_and(|address| host.function(address).is_some())
    };
    let grants: Vec<Value> = claim
        .grants
        .iter()
        .map(|grant| {
            json!({
                "request": text(&grant.request),
                "device": text(&grant.device),
                "uuid": grant.uuid,
                "address": grant.address.map(|address| address.to_string()),
                "exists": exists(grant),
                "undo": text(&grant.undo),
                "xml": text(&grant.xml),
            })
        })
        .collect();
    json!({
        "id": claim.id,
        "owner_kind": text(&claim.owner_kind),
        "owner_uuid": text(&claim.owner_uuid),
        "owner_name": text(&claim.owner_name),
        "owner_uid": claim.owner_uid,
        "state": text(&claim.state),
        "step": text(&claim.step),
        "created": claim.created,
        "run": text(&claim.run),
        "grants": grants,
    })
}

/// One thing that `show` shows: `kind` goes first.
pub fn shown(kind: &str, value: Value) -> Value {
    let mut object = serde_json::Map::from_iter([("kind".to_owned(), kind.into())]);
    if let Value::Object(rest) = value {
        object.extend(rest);
    }
    object.into()
}

/// `value`, an object, with one more key.
pub fn with(mut value: Value, key: &str, more: Value) -> Value {
    if let Value::Object(object) = &mut value {
        object.insert(key.to_owned(), more);
    }
    value
}

/// A device with who has it open.
pub fn with_holders(device: Value, holders: &Holders) -> Value {
    let list = |list: &Vec<(u32, String)>| list.iter().map(|(pid, name)| json!({ "pid": pid, "name": name })).collect();
    let device = with(device, "holders", holders.as_ref().map_or(Value::Null, list));
    with(device, "holders_unknown", holders.as_ref().err().map_or(Value::Null, |why| why.as_str().into()))
}

/// A candidate of `explain`.
pub fn candidate(candidate: &Candidate) -> Value {
    json!({
        "request": text(&candidate.request),
        "device": text(&candidate.device),
        "parent": text(&candidate.parent),
        "verdict": text(&candidate.verdict),
        "reason": text(&candidate.reason),
        "message": text(&candidate.message),
    })
}

/// An action of `reconcile`.
pub fn action(action: &Action) -> Value {
    json!({
        "claim": action.claim,
        "device": text(&action.device),
        "action": text(&action.action),
        "reason": text(&action.reason),
    })
}

/// A problem of `status`.
pub fn problem(problem: &Problem) -> Value {
    json!({ "subject": text(&problem.subject), "since": problem.since, "message": text(&problem.message) })
}

/// How many mdevs of a type exist on a parent.
pub fn used(parent: &Parent, id: &str, host: &Host) -> usize {
    host.mdevs_on(&parent.name).filter(|mdev| mdev.mdev_type == id).count()
}

fn text(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_the_same_text_and_harmless() {
        let hostile = json!({ "name": "a\u{1b}[2J\u{7f}\u{9b}2J\u{202e}\n\"ä" });
        let printed = document(&hostile);
        assert!(!printed.trim_end().chars().any(|c| c != '\n' && steers(c)), "{printed:?}");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), hostile);
    }
}
