//! `xml`: the elements that give a device to a VM; of what exists, or of requests before anything does.

use mdevd_core::domain_xml::metadata_xml;
use mdevd_core::hostdev::MdevHostdevXml;
use mdevd_core::names::MdevUuid;
use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use serde_json::json;
use uuid::Uuid;

use crate::cli::Xml;
use crate::client::{Client, requests};
use crate::error::Error;
use crate::json;
use crate::verbs::{Said, not_one};

/// One element, and what it is for.
struct Element {
    request: Option<String>,
    uuid: Option<Uuid>,
    xml: String,
}

/// Runs the verb.
pub async fn run(args: &Xml) -> Result<Said, Error> {
    let (metadata, elements) = match (&args.domain, &args.what) {
        (Some(domain), _) => {
            let (metadata, elements) = of_domain(*domain, args)?;
            (Some(metadata), elements)
        }
        (None, Some(what)) => (None, of_object(what, args).await?),
        (None, None) => return Err(Error::Usage("say of which device, claim or VM, or --domain".to_owned())),
    };
    if args.output.json {
        let devices: Vec<_> =
            elements.iter().map(|e| json!({ "request": e.request, "uuid": e.uuid, "xml": e.xml })).collect();
        return Ok(json::document(&json!({ "metadata": metadata, "devices": devices })).into());
    }
    let mut said = Said::from(metadata.unwrap_or_default());
    for element in &elements {
        said.out += element.xml.trim_end();
        said.out.push('\n');
    }
    if args.domain.is_some() {
        said.notes
            .push("the first element goes below <domain>, the others below <devices>: virsh edit DOMAIN".to_owned());
    }
    Ok(said)
}

/// The metadata and the hostdev elements of a domain's requests, from nothing but the words.
fn of_domain(domain: Uuid, args: &Xml) -> Result<(String, Vec<Element>), Error> {
    let (requests, pairs) = requests(&args.requests)?;
    let mut elements = Vec::new();
    for request in &requests {
        for name in request.instance_names() {
            let uuid = request.uuid.unwrap_or_else(|| MdevUuid::derived(domain, &name));
            let model = args.model.map(|model| ("model", model.as_str()));
            let options = request.xml.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(model);
            let xml = MdevHostdevXml::from_options(uuid, "", options)
                .map_err(|error| Error::Usage(format!("request '{}': {error}", request.name)))?;
            elements.push(Element { request: Some(name), uuid: Some(uuid.0), xml: xml.to_xml() });
        }
    }
    Ok((metadata_xml(&pairs), elements))
}

/// The element of a device that exists, or those of all that a claim holds.
async fn of_object(word: &str, args: &Xml) -> Result<Vec<Element>, Error> {
    let client = Client::connect().await?;
    let found = client.find(word).await?;
    // A VM may be called as a parent is; of a parent there is no XML.
    let devices: Vec<&Object> = found.iter().filter(|object| !matches!(object, Object::Parent(_))).collect();
    let options = options(args);
    match devices.as_slice() {
        [Object::Mdev(uuid)] => {
            let mdev = client.mdev(*uuid).await?;
            let xml = if args.nodedev {
                mdev.nodedev_xml(&Options::new()).await?
            } else {
                mdev.hostdev_xml(&options).await?
            };
            Ok(vec![Element { request: None, uuid: Some(*uuid), xml }])
        }
        [Object::Claim(id)] => {
            if args.nodedev || !options.is_empty() {
                return Err(Error::Usage(format!(
                    "{word} is a claim: its elements are as its requests say, and these options are for one device\nhostdevctl show {word} names its devices"
                )));
            }
            let host = client.host().await?;
            let claim = host.claim(*id).ok_or_else(|| Error::Refused(format!("claim {id} went away just now")))?;
            let of = |grant: &crate::view::Grant| Element {
                request: Some(grant.request.clone()),
                uuid: grant.uuid,
                xml: grant.xml.clone(),
            };
            Ok(claim.grants.iter().map(of).collect())
        }
        _ => Err(not_one(word, "one device or claim", &found)),
    }
}

/// The options of `HostdevXml`.
fn options(args: &Xml) -> Options<'_> {
    let mut options = Options::new();
    if let Some(display) = args.display {
        options.insert("display", display.as_str().into());
    }
    if let Some(ramfb) = args.ramfb {
        options.insert("ramfb", ramfb.as_str().into());
    }
    if let Some(alias) = &args.alias {
        options.insert("alias", alias.as_str().into());
    }
    if let Some(address) = &args.guest_address {
        options.insert("guest-address", address.as_str().into());
    }
    if let Some(order) = args.boot_order {
        options.insert("boot-order", order.into());
    }
    options
}
