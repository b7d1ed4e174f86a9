//! `create` and `remove`: one mdev by hand.

use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use zbus::Variant;

use crate::cli::{Create, Remove};
use crate::client::Client;
use crate::error::Error;
use crate::verbs::{Said, not_one};

/// Runs `create`.
pub async fn create(args: Create) -> Result<Said, Error> {
    let mut options = Options::new();
    if let Some(parent) = &args.parent {
        options.insert("parent", parent.as_str().into());
    }
    if let Some(uuid) = args.uuid {
        options.insert("uuid", uuid.to_string().into());
    }
    if !args.attrs.is_empty() {
        options.insert("attrs", Variant::from(args.attrs));
    }
    if let Some(label) = args.label {
        options.insert("label", label.into());
    }
    let client = Client::connect().await?;
    let (path, changed) = client.manager().await?.create_mdev(args.mdev_type.as_str(), &options).await?;
    let Some(Object::Mdev(uuid)) = Object::from_path(path.as_str()) else {
        return Err(Error::Refused(format!(
            "mdevd answered with {path}, which is no device; hostdevctl list shows what happened"
        )));
    };
    let note = if changed {
        // For people only: the device is there, wherever it is.
        let parent = client.mdev(uuid).await?.parent().await.ok().and_then(|path| Object::from_path(path.as_str()));
        let place = match parent {
            Some(Object::Parent(name)) => format!(" on {name}"),
            _ => String::new(),
        };
        format!("created{place}; for the XML of a VM: hostdevctl xml {uuid}")
    } else {
        "nothing to do: it is there already, and yours".to_owned()
    };
    Ok(Said { out: format!("{uuid}\n"), notes: vec![note], code: 0 })
}

/// Runs `remove`.
pub async fn remove(args: &Remove) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let word = args.uuid.to_string();
    let found = client.find(&word).await?;
    if !found.contains(&Object::Mdev(args.uuid.0)) {
        return Err(Error::Refused(format!(
            "{}\nto free all that a claim holds: hostdevctl release {word}",
            not_one(&word, "a device", &found)
        )));
    }
    let mut options = Options::new();
    if args.force {
        options.insert("force", true.into());
    }
    let changed = client.mdev(args.uuid.0).await?.remove(&options).await?;
    let notes = if changed { Vec::new() } else { vec!["nothing to do: it was gone already".to_owned()] };
    Ok(Said { notes, ..Said::default() })
}
