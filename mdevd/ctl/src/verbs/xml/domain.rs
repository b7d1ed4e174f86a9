//! The metadata and the hostdev elements of a domain's requests, from the words.

use mdevd_core::domain_xml::metadata_xml;
use mdevd_core::hostdev::{LibvirtVersion, MdevHostdevXml, PciHostdevXml};
use mdevd_core::names::{MdevUuid, PciCard};
use mdevd_core::request::{Request, Wanted, WantedFunction};
use uuid::Uuid;

use super::{Element, card};
use crate::cli::Xml;
use crate::client::{Client, functions, requests};
use crate::error::Error;

/// Where the elements go.
pub const NOTE: &str = "\
the first element goes below <domain>, the others below <devices>: virsh edit DOMAIN
if there is a <metadata> already, put only <mdevd:devices> into it; if that is there too, only the <mdevd:request>";

/// The metadata and the elements. mdevd is asked for what a card consists of and, when it runs, which libvirt is installed.
pub async fn elements(domain: Uuid, args: &Xml) -> Result<(String, Vec<Element>), Error> {
    let (requests, pairs) = requests(&args.requests)?;
    let mut elements = Vec::new();
    let installed = installed().await;
    for request in &requests {
        match &request.wanted {
            Wanted::Function(wanted) => elements.extend(of_function(request, wanted, installed).await?),
            Wanted::Pool(_) | Wanted::Type { .. } | Wanted::Existing => {
                elements.extend(of_mdev(domain, request, args, installed)?)
            }
        }
    }
    Ok((metadata_xml(&pairs), elements))
}

fn wrong(request: &Request, why: &str) -> Error {
    Error::Usage(format!("request '{}': {why}", request.name))
}

/// Which libvirt is installed; `None` where nobody says. Not worth starting mdevd, or waiting for one that hangs.
async fn installed() -> Option<LibvirtVersion> {
    let manager = Client::connect_to_running().await.ok()?.manager().await.ok()?;
    manager.libvirt_version().await.ok()?.parse().ok()
}

fn of_mdev(
    domain: Uuid,
    request: &Request,
    args: &Xml,
    installed: Option<LibvirtVersion>,
) -> Result<Vec<Element>, Error> {
    let mut elements = Vec::new();
    for name in request.instance_names() {
        let uuid = request.uuid.unwrap_or_else(|| MdevUuid::derived(domain, &name));
        let model = args.model.map(|model| ("model", model.as_str()));
        let options = request.xml.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(model);
        let xml =
            MdevHostdevXml::from_options(uuid, "", options).map_err(|error| wrong(request, &error.to_string()))?;
        if let Some(installed) = installed {
            xml.check_version(installed).map_err(|error| wrong(request, &error.to_string()))?;
        }
        elements.push(Element { request: Some(name), uuid: Some(uuid.0), xml: xml.to_xml(), ..Element::default() });
    }
    Ok(elements)
}

async fn of_function(
    request: &Request,
    wanted: &WantedFunction,
    installed: Option<LibvirtVersion>,
) -> Result<Vec<Element>, Error> {
    // A function with a vGPU type stays on its driver: libvirt must not bind another.
    let typed = request.function.vgpu_type.is_some() && request.xml.0.iter().all(|(key, _)| key != "managed");
    let managed = typed.then_some(("managed", "no"));
    let options = request.xml.0.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(managed);
    let xmls = match wanted {
        WantedFunction::Address(address) => {
            vec![PciHostdevXml::from_options(*address, options).map_err(|error| wrong(request, &error.to_string()))?]
        }
        WantedFunction::Card(slot) => of_card(*slot, options).await?,
        WantedFunction::Any { .. } => {
            return Err(wrong(
                request,
                &format!(
                    "it asks for {wanted}, but the XML of a domain names one address\nhostdevctl explain {} lists what would do; then put address=... in its place",
                    wanted.to_cli()
                ),
            ));
        }
    };
    if let Some(installed) = installed {
        let known = xmls.iter().try_for_each(|xml| xml.check_version(installed));
        known.map_err(|error| wrong(request, &error.to_string()))?;
    }
    let name = |xml: &PciHostdevXml| match wanted {
        WantedFunction::Card(_) => format!("{}.{}", request.name, xml.address().function),
        WantedFunction::Address(_) | WantedFunction::Any { .. } => request.name.to_string(),
    };
    let element = |xml: PciHostdevXml| Element {
        request: Some(name(&xml)),
        address: Some(xml.address()),
        xml: xml.to_xml(),
        ..Element::default()
    };
    Ok(xmls.into_iter().map(element).collect())
}

async fn of_card<'a>(
    slot: PciCard,
    options: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<PciHostdevXml>, Error> {
    let client = Client::connect().await?;
    let found = client.find(&slot.to_string()).await?;
    card(&client.host().await?, &functions(&found), options)
}
