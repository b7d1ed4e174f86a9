//! `xml`: the elements that give a device to a VM; of what exists, or of requests before anything does.

mod domain;

use mdevd_core::hostdev::{HostdevNetworkXml, NetworkSource, PciHostdevXml};
use mdevd_core::names::PciAddress;
use mdevd_dbus::Options;
use mdevd_dbus::path::Object;
use serde_json::json;
use uuid::Uuid;

use crate::cli::Xml;
use crate::client::{Client, functions};
use crate::error::Error;
use crate::json;
use crate::verbs::{Said, not_one};
use crate::view::{Function, Grant, Host};

/// One element, and what it is for.
#[derive(Debug, Default)]
struct Element {
    request: Option<String>,
    uuid: Option<Uuid>,
    address: Option<PciAddress>,
    xml: String,
}

/// Runs the verb.
pub async fn run(args: &Xml) -> Result<Said, Error> {
    let mut notes = Vec::new();
    let (metadata, elements) = match (&args.domain, &args.what) {
        (Some(domain), _) => {
            notes.push(domain::NOTE.to_owned());
            let (metadata, elements) = domain::elements(*domain, args).await?;
            (Some(metadata), elements)
        }
        (None, Some(what)) => (None, of_object(what, args, &mut notes).await?),
        (None, None) => return Err(Error::Usage("say of which device, claim or VM, or --domain".to_owned())),
    };
    if args.output.json {
        let of = |element: &Element| {
            json!({
                "request": element.request,
                "uuid": element.uuid,
                "address": element.address.map(|address| address.to_string()),
                "xml": element.xml,
            })
        };
        let devices: Vec<_> = elements.iter().map(of).collect();
        return Ok(json::document(&json!({ "metadata": metadata, "devices": devices })).into());
    }
    let mut out = metadata.unwrap_or_default();
    for element in &elements {
        out += element.xml.trim_end();
        out.push('\n');
    }
    Ok(Said { out, notes, code: 0 })
}

/// The element of a device that exists, or those of all functions of a card or of all that a claim holds.
async fn of_object(word: &str, args: &Xml, notes: &mut Vec<String>) -> Result<Vec<Element>, Error> {
    let client = Client::connect().await?;
    let found = client.find(word).await?;
    // A VM may be called as a parent is; of a parent there is no XML.
    let devices: Vec<&Object> = found.iter().filter(|object| !matches!(object, Object::Parent(_))).collect();
    let options = pairs(args);
    if args.network.is_some() && functions(&found).is_empty() {
        return Err(Error::Usage(format!("{word} is no PF: --network makes a network of a PF's VFs")));
    }
    match devices.as_slice() {
        [Object::Mdev(uuid)] => {
            if let Some(key) = only_for_functions(args) {
                return Err(Error::Usage(format!("{word} is an mdev: {key} goes with a PCI function")));
            }
            let mdev = client.mdev(*uuid).await?;
            let xml = if args.nodedev {
                mdev.nodedev_xml(&Options::new()).await?
            } else {
                mdev.hostdev_xml(&dbus(args, &options)).await?
            };
            Ok(vec![Element { uuid: Some(*uuid), xml, ..Element::default() }])
        }
        [Object::Function(_), ..] if args.nodedev => {
            Err(Error::Usage(format!("{word} is a PCI function: nodedev-create makes mdevs only")))
        }
        [Object::Function(_), ..] => of_functions(&client, &functions(&found), args, &options, notes).await,
        [Object::Claim(id)] => {
            if args.nodedev || args.interface || !options.is_empty() {
                return Err(Error::Usage(format!(
                    "{word} is a claim: its elements are as its requests say, and these options are for one device\nhostdevctl show {word} names its devices"
                )));
            }
            let host = client.host().await?;
            let claim = host.claim(*id).ok_or_else(|| Error::Refused(format!("claim {id} went away just now")))?;
            let of = |grant: &Grant| Element {
                request: Some(grant.request.clone()),
                uuid: grant.uuid,
                address: grant.address,
                xml: grant.xml.clone(),
            };
            Ok(claim.grants.iter().map(of).collect())
        }
        _ => Err(not_one(word, "one device or claim", &found)),
    }
}

/// Of one function as mdevd says it; of several, those of a card, together; of a PF the network of its VFs.
async fn of_functions(
    client: &Client,
    addresses: &[PciAddress],
    args: &Xml,
    options: &[(&'static str, String)],
    notes: &mut Vec<String>,
) -> Result<Vec<Element>, Error> {
    if let Some(name) = &args.network {
        let host = client.host().await?;
        let mut pfs = addresses.iter().filter_map(|address| host.function(*address)).filter(|f| f.physical().is_some());
        let pf = match (pfs.next(), pfs.next()) {
            (Some(pf), None) => pf,
            (None, _) => {
                return Err(Error::Refused("there is no PF: --network makes a network of a PF's VFs".to_owned()));
            }
            (Some(a), Some(b)) => {
                return Err(Error::Refused(format!("{} and {} are both PFs: name one of them", a.address, b.address)));
            }
        };
        return network(name, pf, &host, options, notes).map(|element| vec![element]);
    }
    if let [only] = addresses {
        let xml = client.function(*only).await?.hostdev_xml(&dbus(args, options)).await?;
        return Ok(vec![Element { address: Some(*only), xml, ..Element::default() }]);
    }
    if args.interface {
        return Err(Error::Usage("--interface is for one VF, and this is a card of several functions".to_owned()));
    }
    let xmls = card(&client.host().await?, addresses, options.iter().map(|(key, text)| (*key, text.as_str())))?;
    Ok(xmls
        .into_iter()
        .map(|xml| Element { address: Some(xml.address()), xml: xml.to_xml(), ..Element::default() })
        .collect())
}

/// The elements for all functions of a card but its bridges.
fn card<'a>(
    host: &Host,
    addresses: &[PciAddress],
    options: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<PciHostdevXml>, Error> {
    let functions = host.without_own_vfs(addresses).into_iter().filter_map(|address| host.function(address));
    let functions: Vec<&Function> = functions.filter(|function| !function.is_bridge()).collect();
    let mut options: Vec<(&str, &str)> = options.collect();
    // The vendor's vGPUs stay on the vendor's driver.
    let typed = functions.iter().any(|function| function.vf().is_some_and(|vf| vf.has_vgpu_types()));
    if typed && options.iter().all(|(key, _)| *key != "managed") {
        options.push(("managed", "no"));
    }
    let addresses: Vec<PciAddress> = functions.iter().map(|function| function.address).collect();
    PciHostdevXml::card(&addresses, options).map_err(|error| Error::Usage(error.to_string()))
}

/// The network over a PF: over its network interface, or else over the VFs that it has.
fn network(
    name: &str,
    pf: &Function,
    host: &Host,
    options: &[(&'static str, String)],
    notes: &mut Vec<String>,
) -> Result<Element, Error> {
    if !pf.is_network() {
        let what = pf.what();
        return Err(Error::Refused(format!(
            "{} ({what}) is no network card: a network cannot give VMs its VFs",
            pf.address
        )));
    }
    let vfs = host.vfs_of(pf.address);
    let source = match pf.netdevs.first() {
        Some((netdev, _)) => NetworkSource::Pf(netdev.clone()),
        None => NetworkSource::Vfs(vfs.iter().map(|vf| vf.address).collect()),
    };
    let pairs = options.iter().map(|(key, text)| (*key, text.as_str()));
    let xml = HostdevNetworkXml::from_options(name, source, pairs).map_err(|error| Error::Usage(error.to_string()))?;
    if vfs.is_empty() {
        notes.push(format!("there must be VFs when the network starts: hostdevctl vfs {} COUNT", pf.address));
    }
    let claimed = vfs.iter().filter(|vf| vf.claim.is_some()).count();
    if claimed > 0 {
        notes.push(format!(
            "{claimed} of its VFs are claimed here: libvirt does not know of that and may give them to another VM; leave a PF to one of the two"
        ));
    }
    Ok(Element { address: Some(pf.address), xml: xml.to_xml(), ..Element::default() })
}

/// An option that was given and that an mdev has not.
fn only_for_functions(args: &Xml) -> Option<&'static str> {
    [
        (args.interface, "--interface"),
        (args.rom_bar.is_some(), "--rom-bar"),
        (args.rom_file.is_some(), "--rom-file"),
        (args.managed.is_some(), "--managed"),
        (args.driver.is_some(), "--driver"),
        (args.network.is_some(), "--network"),
    ]
    .into_iter()
    .find(|(given, _)| *given)
    .map(|(_, key)| key)
}

/// The options as core takes them, but for those of an interface.
fn pairs(args: &Xml) -> Vec<(&'static str, String)> {
    [
        ("managed", args.managed.map(|managed| managed.as_str().to_owned())),
        ("driver", args.driver.clone()),
        ("display", args.display.map(|display| display.as_str().to_owned())),
        ("ramfb", args.ramfb.map(|ramfb| ramfb.as_str().to_owned())),
        ("alias", args.alias.clone()),
        ("guest-address", args.guest_address.clone()),
        ("boot-order", args.boot_order.map(|order| order.to_string())),
        ("rom-bar", args.rom_bar.map(|bar| bar.as_str().to_owned())),
        ("rom-file", args.rom_file.clone()),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

/// The options of `HostdevXml`.
fn dbus<'a>(args: &'a Xml, pairs: &'a [(&'static str, String)]) -> Options<'a> {
    let mut options: Options<'a> = pairs.iter().map(|(key, text)| (*key, text.as_str().into())).collect();
    if let Some(order) = args.boot_order {
        options.insert("boot-order", order.into());
    }
    if args.interface {
        options.insert("interface", true.into());
    }
    if let Some(mac) = &args.mac {
        options.insert("mac", mac.as_str().into());
    }
    if let Some(vlan) = args.vlan {
        options.insert("vlan", vlan.into());
    }
    options
}
