//! Writes every kind of XML that this crate produces into a folder, one file each, for a check against libvirt's schemas:
//! `hostdev-*.xml`, `nodedev-*.xml`, `domain-*.xml`, and `bad-hostdev-*.xml`, which the schema must reject (so that the check can fail).

use std::error::Error;
use std::fs;
use std::path::Path;

use mdevd_core::domain_xml::metadata_xml;
use mdevd_core::hostdev::{MdevHostdevXml, nodedev_xml};
use mdevd_core::names::MdevUuid;

const HOSTDEVS: [(&str, &str); 9] = [
    ("vfio-pci", ""),
    ("vfio-pci", "alias=ua-mdevd-gpu0"),
    ("vfio-pci", "display=off"),
    ("vfio-pci", "display=on ramfb=on alias=ua-a_b-C guest-address=0000:04:00.0"),
    ("vfio-pci", "display=on ramfb=off guest-address=10000:ff:1f.7"),
    ("vfio-ccw", ""),
    ("vfio-ccw", "alias=ua-mdevd-dasd guest-address=fe.0.0001 boot-order=1"),
    ("vfio-ccw", "guest-address=0.3.ffff boot-order=4294967295"),
    ("vfio-ap", "alias=ua-mdevd-crypto"),
];

const PARENTS: [&str; 5] = ["0000:41:00.4", "10000:e1:00.0", "0.0.26ab", "matrix", "mtty"];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: produced-xml FOLDER")?;
    let write = |name: String, text: &str| fs::write(Path::new(&folder).join(name), text);
    let uuid: MdevUuid = "c2177883-f1bb-47f0-914d-32a22e3a8804".parse()?;
    for (n, (api, options)) in HOSTDEVS.iter().enumerate() {
        let options = options.split_whitespace().filter_map(|option| option.split_once('='));
        let hostdev = MdevHostdevXml::from_options(uuid, api, options)?.to_xml();
        write(format!("hostdev-{n}.xml"), &hostdev)?;
        let request: Vec<(String, String)> =
            [("name", "gpu0"), ("type", "a<b>&\"c'")].map(|(k, v)| (k.into(), v.into())).into();
        let metadata = metadata_xml(&[request.clone(), request]);
        let domain = format!(
            "<domain type='kvm'><name>vm</name><uuid>{uuid}</uuid>{metadata}<memory>1</memory>\
             <os><type>hvm</type></os><devices>{hostdev}</devices></domain>"
        );
        write(format!("domain-{n}.xml"), &domain)?;
        for (kind, good, bad) in [
            ("model", "model='vfio-", "model='no-"),
            ("uuid", "c2177883-", "c217788-"),
            ("source", "source>", "sauce>"),
        ] {
            write(format!("bad-hostdev-{n}-{kind}.xml"), &hostdev.replace(good, bad))?;
        }
    }
    let attrs: Vec<(String, String)> = [("assign_adapter", "5"), ("assign_adapter", "6"), ("a&b", "'\"<>\t")]
        .map(|(k, v)| (k.into(), v.into()))
        .into();
    for (n, parent) in PARENTS.iter().enumerate() {
        for (kind, attrs) in [("plain", &[][..]), ("attrs", &attrs)] {
            write(
                format!("nodedev-{n}-{kind}.xml"),
                &nodedev_xml(uuid, &parent.parse()?, &"nvidia-63".parse()?, attrs),
            )?;
        }
    }
    Ok(())
}
