//! Hostdevs as text pairs, and the XML of mediated devices: exact errors, libvirt's own text, and round trips.

#![allow(clippy::unwrap_used)] // outside #[test] functions as well: all of this file is tests
use mdevd_core::domain_xml::Domain;
use mdevd_core::hostdev::{
    Hostdev, HostdevSource, MdevHostdevXml, MdevModel, nodedev_function, nodedev_parent, nodedev_xml,
};
use mdevd_core::names::{MacAddress, MdevUuid};
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

mod options;

use options::borrowed;

const UUID: &str = "c2177883-f1bb-47f0-914d-32a22e3a8804";

fn uuid() -> MdevUuid {
    UUID.parse().unwrap()
}

fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect()
}

fn xml(api: &str, options: &str) -> Result<String, String> {
    MdevHostdevXml::from_options(uuid(), api, pairs(options)).map(|xml| xml.to_xml()).map_err(|e| e.to_string())
}

#[test]
fn pairs_that_are_right() {
    let text = format!("kind=mdev uuid={} model=vfio-pci managed=no alias=ua-mdevd-gpu0", UUID.to_uppercase());
    let hostdev = Hostdev::from_pairs(pairs(&text)).unwrap();
    let expected = Hostdev {
        source: HostdevSource::Mdev(uuid()),
        model: "vfio-pci".into(),
        managed: false,
        alias: Some("ua-mdevd-gpu0".into()),
        interface: false,
        mac: None,
        vlan: None,
    };
    assert_eq!(hostdev, expected);
    let owned = |text: &str| pairs(text).into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<Vec<_>>();
    let text = "kind=pci address=0000:01:10.0 managed=yes interface=yes mac=52:54:00:6d:90:02 vlan=42";
    assert_eq!(Hostdev::from_pairs(pairs(text)).unwrap().to_pairs(), owned(text));
    // as absent values come over D-Bus
    let text = "kind=pci address=0000:01:10.0 managed=no mac= vlan=0";
    assert_eq!(Hostdev::from_pairs(pairs(text)).unwrap().to_pairs(), owned("kind=pci address=0000:01:10.0 managed=no"));
}

#[test]
fn pairs_that_are_wrong_say_why() {
    for (text, error) in [
        ("", "a hostdev needs 'kind', mdev or pci"),
        ("kind=usb", "kind='usb': it must be mdev or pci"),
        ("kind=mdev", "a hostdev of kind mdev needs 'uuid' and has no 'address'"),
        ("kind=mdev uuid=1 address=0000:01:10.0", "a hostdev of kind mdev needs 'uuid' and has no 'address'"),
        ("kind=pci uuid=1", "a hostdev of kind pci needs 'address' and has no 'uuid'"),
        (
            "kind=mdev uuid=1",
            "uuid: '1' is not a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804): it must have 36 characters",
        ),
        ("kind=pci address=1", "address: '1' is not a PCI address (like 0000:41:00.4): no ':' after the domain"),
        ("kind=pci address=0000:01:10.0 model=vfio-pci", "'model' goes with kind mdev only"),
        (&format!("kind=mdev uuid={UUID} interface=yes"), "'interface' goes with kind pci only"),
        (&format!("kind=mdev uuid={UUID} managed=1"), "managed='1': it must be yes or no"),
        ("kind=mdev kind=mdev", "'kind' is given twice"),
        ("kind=mdev uid=1", "unknown hostdev key 'uid': did you mean 'uuid'?"),
        ("kind=pci address=0000:01:10.0 vlan=42", "'vlan' goes with interface='yes' only"),
        ("kind=pci address=0000:01:10.0 mac=52:54:00:6d:90:02", "'mac' goes with interface='yes' only"),
        (
            "kind=pci address=0000:01:10.0 interface=yes mac=1",
            "mac: '1' is not a MAC address: it must be like 52:54:00:6d:90:02",
        ),
        ("kind=pci address=0000:01:10.0 interface=yes vlan=4096", "vlan='4096': it must be a number up to 4095"),
        ("kind=pci address=0000:01:10.0 interface=yes vlan=+1", "vlan='+1': it must be a number up to 4095"),
        (
            "colour=red",
            "unknown hostdev key 'colour': known are kind, uuid, address, model, managed, alias, interface, mac, vlan",
        ),
    ] {
        assert_eq!(Hostdev::from_pairs(pairs(text)).unwrap_err().to_string(), error, "{text}");
    }
}

#[test]
fn the_element_is_what_libvirt_prints() {
    // each recorded domain has two mdev hostdevs; with libvirt's own values we must print them letter for letter
    for version in ["9.0", "11.3"] {
        let recorded =
            std::fs::read_to_string(format!("{}/tests/data/hook-prepare-{version}.xml", env!("CARGO_MANIFEST_DIR")))
                .unwrap();
        for (n, bus, extra) in [(1, "03", ""), (2, "04", " ramfb=off")] {
            let uuid: MdevUuid = format!("aaaaaaaa-0000-4000-8000-00000000000{n}").parse().unwrap();
            let options = format!("display=off{extra} alias=ua-mdevd-tty{} guest-address=0000:{bus}:00.0", n - 1);
            let printed = MdevHostdevXml::from_options(uuid, "vfio-pci", pairs(&options)).unwrap().to_xml();
            let indented: String = printed.lines().map(|line| format!("    {line}\n")).collect();
            assert!(recorded.contains(&indented), "libvirt {version} does not print\n{indented}\nbut\n{recorded}");
        }
    }
}

#[test]
fn the_element_with_everything() {
    assert_eq!(
        xml("vfio-pci", "display=on ramfb=on alias=ua-mdevd-gpu0 guest-address=0000:04:00.0").unwrap(),
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci' display='on' ramfb='on'>\n  \
           <source>\n    \
             <address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/>\n  \
           </source>\n  \
           <alias name='ua-mdevd-gpu0'/>\n  \
           <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>\n\
         </hostdev>\n"
    );
    assert_eq!(
        xml("vfio-ccw", "boot-order=1 guest-address=fe.0.0001").unwrap(),
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ccw'>\n  \
           <source>\n    \
             <address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/>\n  \
           </source>\n  \
           <boot order='1'/>\n  \
           <address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0001'/>\n\
         </hostdev>\n"
    );
    assert!(
        xml("vfio-ap", "")
            .unwrap()
            .starts_with("<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ap'>\n")
    );
}

#[test]
fn options_that_are_wrong_say_why() {
    for (api, options, error) in [
        ("vfio-pci", "dislpay=on", "unknown hostdev option 'dislpay': did you mean 'display'?"),
        (
            "vfio-pci",
            "colour=on",
            "unknown hostdev option 'colour': known are model, display, ramfb, alias, guest-address, boot-order",
        ),
        ("vfio-pci", "display=on display=on", "'display' is given twice"),
        ("vfio-pci", "display=yes", "display='yes': it must be on or off"),
        ("vfio-pci", "ramfb=1", "ramfb='1': it must be on or off"),
        ("vfio-pci", "ramfb=on", "ramfb='on' needs display='on'"),
        ("vfio-pci", "display=off ramfb=on", "ramfb='on' needs display='on'"),
        ("vfio-ap", "display=off", "'display' goes with model vfio-pci only, and this device's model is vfio-ap"),
        ("vfio-ccw", "ramfb=off", "'ramfb' goes with model vfio-pci only, and this device's model is vfio-ccw"),
        ("vfio-pci", "boot-order=1", "'boot-order' goes with model vfio-ccw only, and this device's model is vfio-pci"),
        ("vfio-ccw", "boot-order=0", "boot-order='0': it must be a number from 1 on"),
        ("vfio-ccw", "boot-order=+1", "boot-order='+1': it must be a number from 1 on"),
        ("vfio-pci", "alias=gpu0", "alias='gpu0': it must be 'ua-' followed by letters, digits, '-' and '_'"),
        ("vfio-pci", "alias=ua-", "alias='ua-': it must be 'ua-' followed by letters, digits, '-' and '_'"),
        ("vfio-pci", "alias=ua-a.b", "alias='ua-a.b': it must be 'ua-' followed by letters, digits, '-' and '_'"),
        (
            "vfio-pci",
            "guest-address=fe.0.0001",
            "guest-address='fe.0.0001': a device of model vfio-pci has a PCI address (like 0000:04:00.0)",
        ),
        (
            "vfio-ccw",
            "guest-address=0000:04:00.0",
            "guest-address='0000:04:00.0': a device of model vfio-ccw has a CCW address (like fe.0.0001)",
        ),
        ("vfio-ap", "guest-address=0000:04:00.0", "a device of model vfio-ap has no guest-address"),
        (
            "vfio-ccw",
            "guest-address=ff.0.0001",
            "guest-address='ff.0.0001': it must be a PCI address (like 0000:04:00.0) or a CCW address (like fe.0.0001)",
        ),
        (
            "vfio-ccw",
            "guest-address=fe.4.0001",
            "guest-address='fe.4.0001': it must be a PCI address (like 0000:04:00.0) or a CCW address (like fe.0.0001)",
        ),
        (
            "vfio-ccw",
            "guest-address=fe.0.0001.1",
            "guest-address='fe.0.0001.1': it must be a PCI address (like 0000:04:00.0) or a CCW address (like fe.0.0001)",
        ),
        (
            "vfio-pci",
            "guest-address=04:00.0",
            "guest-address: '04:00.0' is not a PCI address (like 0000:41:00.4): no ':' between bus and device",
        ),
        ("vfio-pci", "guest-address=0001:04:00.0", "guest-address='0001:04:00.0': a guest has only PCI domain 0000"),
        (
            "vfio-pci",
            "guest-address=0000:00:00.1",
            "guest-address='0000:00:00.1': the guest's host bridge is there; on bus 00 the devices begin with 01",
        ),
        ("vfio-pci", "model=vfio-ap", "model='vfio-ap' does not fit: the device's API is vfio-pci"),
        (
            "vfio-platform",
            "",
            "device API 'vfio-platform': libvirt can give a VM only mediated devices of vfio-pci, vfio-ccw or vfio-ap",
        ),
    ] {
        assert_eq!(xml(api, options).unwrap_err(), error, "{api} {options}");
    }
}

#[test]
fn an_unknown_api_is_guessed_from_the_options() {
    let model = |options: &str| MdevHostdevXml::from_options(uuid(), "", pairs(options)).map(|xml| xml.model());
    assert_eq!(model(""), Ok(MdevModel::VfioPci));
    assert_eq!(model("display=on"), Ok(MdevModel::VfioPci));
    assert_eq!(model("guest-address=fe.0.0001"), Ok(MdevModel::VfioCcw));
    assert_eq!(model("boot-order=2"), Ok(MdevModel::VfioCcw));
    assert_eq!(model("model=vfio-ap"), Ok(MdevModel::VfioAp));
    assert!(model("boot-order=2 display=on").is_err());
}

#[test]
fn node_devices_have_the_names_libvirt_gives_them() {
    for (parent, name) in [
        ("0000:41:00.4", "pci_0000_41_00_4"),
        ("10000:e1:00.0", "pci_10000_e1_00_0"),
        ("0.0.26ab", "css_0_0_26ab"),
        ("matrix", "ap_matrix"),
        ("mtty", "mtty_mtty"),
    ] {
        assert_eq!(nodedev_parent(&parent.parse().unwrap()), name);
        if let Ok(function) = parent.parse() {
            assert_eq!(nodedev_function(function), name);
        }
    }
    assert_eq!(
        nodedev_xml(uuid(), &"mtty".parse().unwrap(), &"mtty-1".parse().unwrap(), &[]),
        "<device>\n  \
           <name>mdev_c2177883_f1bb_47f0_914d_32a22e3a8804_mtty</name>\n  \
           <parent>mtty_mtty</parent>\n  \
           <capability type='mdev'>\n    \
             <type id='mtty-1'/>\n    \
             <uuid>c2177883-f1bb-47f0-914d-32a22e3a8804</uuid>\n  \
           </capability>\n\
         </device>\n"
    );
}

#[test]
fn what_is_printed_is_escaped() {
    let attrs = [("assign_adapter".to_owned(), "5".to_owned()), ("a<b".to_owned(), "'\"&>\n\u{1}".to_owned())];
    let xml = nodedev_xml(uuid(), &"a&b".parse().unwrap(), &"i915<GVTg>".parse().unwrap(), &attrs);
    assert!(
        xml.contains("<name>mdev_c2177883_f1bb_47f0_914d_32a22e3a8804_a_b</name>\n  <parent>a_b_a_b</parent>"),
        "{xml}"
    );
    assert!(xml.contains("<type id='i915&lt;GVTg&gt;'/>"), "{xml}");
    let tail = "    <attr name='assign_adapter' value='5'/>\n    \
                    <attr name='a&lt;b' value='&apos;&quot;&amp;&gt;&#10;\u{fffd}'/>\n  </capability>\n";
    assert!(xml.contains(tail), "{xml}");
}

fn hostdev() -> impl Strategy<Value = Hostdev> {
    let mdev =
        any::<u128>().prop_map(|n| (HostdevSource::Mdev(MdevUuid(Uuid::from_u128(n))), "vfio-pci", false, None, None));
    let mac = option::of(any::<[u8; 6]>().prop_map(MacAddress));
    let pci = (options::pci_address(), any::<bool>(), mac, option::of(1u16..=4095)).prop_map(
        |(address, interface, mac, vlan)| {
            (HostdevSource::Pci(address), "", interface, mac.filter(|_| interface), vlan.filter(|_| interface))
        },
    );
    (prop_oneof![mdev, pci], any::<bool>(), option::of("\\PC{1,20}")).prop_map(
        |((source, model, interface, mac, vlan), managed, alias)| Hostdev {
            source,
            model: model.into(),
            managed,
            alias,
            interface,
            mac,
            vlan,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn pairs_survive(hostdev in hostdev()) {
        let pairs = hostdev.to_pairs();
        prop_assert_eq!(Hostdev::from_pairs(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))), Ok(hostdev));
    }

    #[test]
    fn what_is_printed_is_read_back((api, options) in options::mdev(), n: u128) {
        let uuid = MdevUuid(Uuid::from_u128(n));
        let xml = MdevHostdevXml::from_options(uuid, api, borrowed(&options)).unwrap();
        prop_assert_eq!(xml.model().as_str(), api);
        let domain = format!(
            "<domain><name>d</name><uuid>{UUID}</uuid>\
             <metadata><devices xmlns='urn:mdevd:domain:1'><request/></devices></metadata>\
             <devices>{}</devices></domain>",
            xml.to_xml()
        );
        let expected = Hostdev {
            source: HostdevSource::Mdev(uuid),
            model: api.into(),
            managed: false,
            alias: xml.alias().map(Into::into),
            interface: false,
            mac: None,
            vlan: None,
        };
        prop_assert_eq!(Domain::parse(&domain).unwrap().hostdevs, [expected]);
        for (key, value) in &options {
            let printed = match key.as_str() {
                "display" | "ramfb" => format!(" {key}='{value}'"),
                "alias" => format!("<alias name='{value}'/>"),
                "boot-order" => format!("<boot order='{value}'/>"),
                _ => continue,
            };
            prop_assert!(xml.to_xml().contains(&printed));
        }
    }

    #[test]
    fn no_option_panics(api in "vfio-(pci|ccw|ap)|", key in "model|display|ramfb|alias|guest-address|boot-order|\\PC*", value in "on|off|[0-9a-f.:]{0,14}|ua-\\PC*|\\PC*") {
        // whatever it says, it says it without control characters
        if let Err(e) = MdevHostdevXml::from_options(uuid(), &api, [(key.as_str(), value.as_str())]) {
            prop_assert!(!e.to_string().chars().any(char::is_control));
        }
    }
}
