//! Writes XML of every kind that this crate produces into a folder, for a check against libvirt's schemas. The options are drawn over their
//! whole range, the same in every run.
//!
//! `VERSION/KIND-N.xml` is a document that libvirt takes from that version on, and an older one's schema must reject; KIND is hostdev,
//! interface, network, nodedev or domain, and the least version is 9.0.0. `broken/KIND-N.xml` every schema must reject, so that the
//! check can fail.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use mdevd_core::domain_xml::metadata_xml;
use mdevd_core::hostdev::{
    HostdevNetworkXml, InterfaceHostdevXml, LibvirtVersion, MdevHostdevXml, PciHostdevXml, nodedev_xml,
};
use mdevd_core::names::MdevUuid;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

#[path = "../tests/options/mod.rs"]
mod options;

use options::{Pairs, borrowed};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The oldest libvirt that is spoken of; its schema must take all that needs no newer one.
const OLDEST: LibvirtVersion = LibvirtVersion::new(9, 0);

/// How many of each kind; a card is as many documents as it has functions.
const PCI: usize = 1400;
const CARDS: usize = 100;
const INTERFACES: usize = 1000;
const MDEVS: usize = 800;
const NETWORKS: usize = 350;
const NODEDEVS: usize = 200;
const DOMAINS: usize = 400;

/// Kind, a text in its documents, and what breaks them when it stands there instead.
const BREAKING: [(&str, &str, &str); 29] = [
    ("hostdev", "type='pci' managed", "type='pcie' managed"),
    ("hostdev", "managed='yes'", "managed='maybe'"),
    ("hostdev", "source>", "sauce>"),
    ("hostdev", "slot='0x", "slot='0x3"),
    ("hostdev", " bus='0x", " bus='0x1"),
    ("hostdev", " function='0x", " function='0x8"),
    ("hostdev", "multifunction='on'", "multifunction='yes'"),
    ("hostdev", "<driver name='vfio'", "<driver name='uio'"),
    ("hostdev", "persistent='", "persistant='"),
    ("hostdev", "<boot order='", "<boot order='0' was='"),
    ("hostdev", "alias name=", "alias nom="),
    ("hostdev", "bar='on'", "bar='yes'"),
    ("hostdev", "enabled='no'", "enabled='off'"),
    ("hostdev", "file='/", "file='./"),
    ("hostdev", "display='on'", "display='vnc'"),
    ("hostdev", "model='vfio-ccw'", "model='ccw'"),
    ("hostdev", "uuid='", "uuid='0"),
    ("interface", "<mac address='", "<mac address='01:"),
    ("interface", "<tag id='", "<tag id='9999' was='"),
    ("interface", "tag", "tags"),
    ("interface", "802.1Qbh", "802.1Q"),
    ("interface", "<address type='pci'", "<address type='pcie'"),
    ("network", "mode='hostdev'", "mode='hostdevs'"),
    ("network", "<pf dev=", "<pf nic="),
    ("network", "<address type='pci'", "<address type='usb'"),
    ("nodedev", "<uuid>", "<uuid>0"),
    ("nodedev", "<attr name=", "<attr nom="),
    ("domain", "<name>vm</name>", ""),
    ("domain", "mode='subsystem'", "mode='system'"),
];

/// How many documents each of these breaks, at most.
const BROKEN: usize = 5;

struct Documents {
    folder: PathBuf,
    runner: TestRunner,
    /// What was written, by kind.
    written: BTreeMap<&'static str, Vec<String>>,
}

impl Documents {
    fn draw<S: Strategy>(&mut self, strategy: &S) -> Result<S::Value> {
        Ok(strategy.new_tree(&mut self.runner).map_err(|reason| reason.to_string())?.current())
    }

    fn write(&mut self, kind: &'static str, needs: Option<(&str, LibvirtVersion)>, xml: String) -> Result<()> {
        let since = needs.map_or(OLDEST, |(_, version)| version.max(OLDEST));
        let written = self.written.entry(kind).or_default();
        save(&self.folder, &since.to_string(), kind, written.len(), &xml)?;
        written.push(xml);
        Ok(())
    }
}

fn save(folder: &std::path::Path, part: &str, kind: &str, number: usize, xml: &str) -> Result<()> {
    let folder = folder.join(part);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(format!("{kind}-{number}.xml")), xml)?)
}

/// The newest of what several elements need.
type Needs = Option<(&'static str, LibvirtVersion)>;

fn newest(a: Needs, b: Needs) -> Needs {
    [a, b].into_iter().flatten().max_by_key(|(_, version)| *version)
}

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: produced-xml FOLDER")?);
    let mut documents = Documents { folder, runner: TestRunner::deterministic(), written: BTreeMap::new() };
    let mut elements: Vec<(Needs, String)> = Vec::new();

    let function = (options::pci_address(), options::pci());
    for _ in 0..PCI {
        let (address, pairs) = documents.draw(&function)?;
        let element = PciHostdevXml::from_options(address, borrowed(&pairs))?;
        elements.push((element.needs(), element.to_xml()));
    }
    let card = options::card();
    for _ in 0..CARDS {
        let (functions, pairs) = documents.draw(&card)?;
        for element in PciHostdevXml::card(&functions, borrowed(&pairs))? {
            elements.push((element.needs(), element.to_xml()));
        }
    }
    let mdev = (any::<u128>(), options::mdev());
    for _ in 0..MDEVS {
        let (uuid, (api, pairs)) = documents.draw(&mdev)?;
        let element = MdevHostdevXml::from_options(MdevUuid(Uuid::from_u128(uuid)), api, borrowed(&pairs))?;
        elements.push((element.needs(), element.to_xml()));
    }
    for (needs, xml) in &elements {
        documents.write("hostdev", *needs, xml.clone())?;
    }
    let interface = (options::pci_address(), options::interface());
    for _ in 0..INTERFACES {
        let (address, pairs) = documents.draw(&interface)?;
        let element = InterfaceHostdevXml::from_options(address, borrowed(&pairs))?;
        documents.write("interface", element.needs(), element.to_xml())?;
        elements.push((element.needs(), element.to_xml()));
    }
    let network = options::network();
    for _ in 0..NETWORKS {
        let (name, source, pairs) = documents.draw(&network)?;
        let network = HostdevNetworkXml::from_options(&name, source, borrowed(&pairs))?;
        documents.write("network", network.needs(), network.to_xml())?;
    }
    nodedevs(&mut documents)?;
    domains(&mut documents, &elements)?;
    broken(&documents)
}

fn nodedevs(documents: &mut Documents) -> Result<()> {
    let parent = prop_oneof![
        options::pci_address().prop_map(|address| address.to_string()),
        "[0-9a-f]{1,2}\\.[0-3]\\.[0-9a-f]{4}",
        "[a-z]{1,8}|matrix",
    ];
    let attributes = prop::collection::vec(("[a-z_]{1,12}|\\PC{1,12}", "(?s).{0,12}"), 0..4);
    let nodedev = (any::<u128>(), parent, "[^/\\p{C}]{3,20}", attributes);
    for _ in 0..NODEDEVS {
        let (uuid, parent, mdev_type, attributes) = documents.draw(&nodedev)?;
        let uuid = MdevUuid(Uuid::from_u128(uuid));
        documents.write("nodedev", None, nodedev_xml(uuid, &parent.parse()?, &mdev_type.parse()?, &attributes))?;
    }
    Ok(())
}

/// Whole domains with several of these elements, and requests.
fn domains(documents: &mut Documents, elements: &[(Needs, String)]) -> Result<()> {
    let requests = prop::collection::vec(options::request(), 1..4);
    let domain = (any::<u128>(), requests, prop::sample::subsequence(elements.to_vec(), 1..5));
    for _ in 0..DOMAINS {
        let (uuid, requests, elements): (u128, Vec<Pairs>, _) = documents.draw(&domain)?;
        let needs = elements.iter().fold(None, |needs, (other, _)| newest(needs, *other));
        let devices: String = elements.into_iter().map(|(_, xml)| xml).collect();
        let (uuid, metadata) = (Uuid::from_u128(uuid), metadata_xml(&requests));
        let domain = format!(
            "<domain type='kvm'>\n<name>vm</name>\n<uuid>{uuid}</uuid>\n{metadata}<memory>1</memory>\n\
             <os><type>hvm</type></os>\n<devices>\n{devices}</devices>\n</domain>\n"
        );
        documents.write("domain", needs, domain)?;
    }
    Ok(())
}

fn broken(documents: &Documents) -> Result<()> {
    let mut number = 0;
    for (kind, good, bad) in BREAKING {
        let hit = documents.written.get(kind).into_iter().flatten().filter(|xml| xml.contains(good)).take(BROKEN);
        let before = number;
        for xml in hit {
            save(&documents.folder, "broken", kind, number, &xml.replace(good, bad))?;
            number += 1;
        }
        if number == before {
            return Err(format!("no {kind} has {good} in it").into());
        }
    }
    Ok(())
}
