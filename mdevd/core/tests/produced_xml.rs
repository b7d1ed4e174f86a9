//! The XML for PCI functions, virtual functions and networks: libvirt's own text, exact errors, versions, and what is read back.

#![allow(clippy::unwrap_used)] // outside #[test] functions as well: all of this file is tests
use mdevd_core::domain_xml::Domain;
use mdevd_core::hostdev::{
    Hostdev, HostdevNetworkXml, HostdevSource, InterfaceHostdevXml, LibvirtVersion, MdevHostdevXml, NetworkSource,
    PciHostdevXml,
};
use mdevd_core::names::PciAddress;
use proptest::prelude::*;

mod options;

use options::borrowed;

const UUID: &str = "c2177883-f1bb-47f0-914d-32a22e3a8804";

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn pairs(text: &str) -> Vec<(&str, &str)> {
    text.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect()
}

fn pci(options: &str) -> Result<PciHostdevXml, String> {
    PciHostdevXml::from_options(address("0000:3b:02.1"), pairs(options)).map_err(|e| e.to_string())
}

fn card(functions: &str, options: &str) -> Result<String, String> {
    let functions: Vec<PciAddress> = functions.split_whitespace().map(address).collect();
    let elements = PciHostdevXml::card(&functions, pairs(options)).map_err(|e| e.to_string())?;
    Ok(elements.iter().map(PciHostdevXml::to_xml).collect())
}

fn interface(options: &str) -> Result<InterfaceHostdevXml, String> {
    InterfaceHostdevXml::from_options(address("0000:3b:02.1"), pairs(options)).map_err(|e| e.to_string())
}

fn network(name: &str, source: NetworkSource, options: &str) -> Result<HostdevNetworkXml, String> {
    HostdevNetworkXml::from_options(name, source, pairs(options)).map_err(|e| e.to_string())
}

fn pf(netdev: &str) -> NetworkSource {
    NetworkSource::Pf(netdev.into())
}

#[test]
fn the_elements_are_what_libvirt_prints() {
    // with libvirt's own values we must print the recorded domain's elements letter for letter, but for the driver, which it fills in
    // when it starts a VM
    for version in ["9.0", "11.3"] {
        let recorded =
            std::fs::read_to_string(format!("{}/tests/data/hook-prepare-{version}.xml", env!("CARGO_MANIFEST_DIR")))
                .unwrap();
        let hostdev = PciHostdevXml::from_options(address("0000:03:00.0"), pairs("guest-address=0000:05:00.0"));
        let options = "mac=52:54:00:6d:90:02 guest-address=0000:02:00.0";
        let interface = InterfaceHostdevXml::from_options(address("0000:01:10.0"), pairs(options));
        for printed in [hostdev.unwrap().to_xml(), interface.unwrap().to_xml()] {
            let indented: String = printed.lines().map(|line| format!("    {line}\n")).collect();
            assert!(recorded.contains(&indented), "libvirt {version} does not print\n{indented}\nbut\n{recorded}");
        }
    }
}

#[test]
fn a_hostdev_with_everything() {
    let options = "managed=yes driver=mlx5_vfio_pci teaming=ua-backup0 alias=ua-mdevd-vf0 boot-order=1 rom-bar=on rom-file=/usr/a'b.rom \
                   guest-address=0000:04:00.0 multifunction=on display=on ramfb=off";
    assert_eq!(
        pci(options).unwrap().to_xml(),
        "<hostdev mode='subsystem' type='pci' managed='yes' display='on' ramfb='off'>\n  \
           <driver name='vfio' model='mlx5_vfio_pci'/>\n  \
           <source>\n    \
             <address domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>\n  \
           </source>\n  \
           <teaming type='transient' persistent='ua-backup0'/>\n  \
           <boot order='1'/>\n  \
           <alias name='ua-mdevd-vf0'/>\n  \
           <rom bar='on' file='/usr/a&apos;b.rom'/>\n  \
           <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0' multifunction='on'/>\n\
         </hostdev>\n"
    );
    let vgpu = PciHostdevXml::from_options(address("10000:41:00.4"), pairs("managed=no rom-enabled=no")).unwrap();
    assert!(!vgpu.managed());
    assert_eq!(
        vgpu.to_xml(),
        "<hostdev mode='subsystem' type='pci' managed='no'>\n  \
           <source>\n    \
             <address domain='0x10000' bus='0x41' slot='0x00' function='0x4'/>\n  \
           </source>\n  \
           <rom enabled='no'/>\n\
         </hostdev>\n"
    );
}

#[test]
fn a_card_at_one_guest_slot() {
    let options = "alias=ua-gpu boot-order=1 rom-file=/a.rom rom-bar=on driver=x_vfio_pci guest-address=0000:05:00.0";
    let common = "mode='subsystem' type='pci' managed='yes'>\n  <driver name='vfio' model='x_vfio_pci'/>";
    let host = "domain='0x0000' bus='0x41' slot='0x00'";
    let guest = "type='pci' domain='0x0000' bus='0x05' slot='0x00'";
    assert_eq!(
        card("0000:41:00.3 0000:41:00.0", options).unwrap(),
        format!(
            "<hostdev {common}\n  \
               <source>\n    \
                 <address {host} function='0x0'/>\n  \
               </source>\n  \
               <boot order='1'/>\n  \
               <alias name='ua-gpu-0'/>\n  \
               <rom bar='on' file='/a.rom'/>\n  \
               <address {guest} function='0x0' multifunction='on'/>\n\
             </hostdev>\n\
             <hostdev {common}\n  \
               <source>\n    \
                 <address {host} function='0x3'/>\n  \
               </source>\n  \
               <alias name='ua-gpu-3'/>\n  \
               <rom bar='on'/>\n  \
               <address {guest} function='0x3'/>\n\
             </hostdev>\n"
        )
    );
    // one function alone needs no company announced, and functions without a slot are placed by libvirt
    assert!(!card("0000:41:00.0", "guest-address=0000:05:00.0").unwrap().contains("multifunction"));
    let placed = card("0000:41:00.2 0000:41:00.1", "display=on ramfb=on teaming=ua-b").unwrap();
    assert!(!placed.contains("type='pci' domain"), "{placed}");
    for once in ["function='0x1'", "function='0x2'", "display='on'", "ramfb='on'", "ua-b"] {
        assert_eq!(placed.matches(once).count(), 1, "{once} in\n{placed}");
    }
    assert!(placed.starts_with("<hostdev mode='subsystem' type='pci' managed='yes' display='on' ramfb='on'>"));
}

#[test]
fn an_interface_with_everything() {
    let options = "mac=52:54:00:6D:90:02 driver=vfio-pci vlan=42 teaming=ua-backup0 boot-order=2 alias=ua-mdevd-nic0 rom-enabled=yes \
                   rom-bar=off guest-address=0000:00:1f.7 multifunction=off";
    assert_eq!(
        interface(options).unwrap().to_xml(),
        "<interface type='hostdev' managed='yes'>\n  \
           <mac address='52:54:00:6d:90:02'/>\n  \
           <driver name='vfio' model='vfio-pci'/>\n  \
           <source>\n    \
             <address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>\n  \
           </source>\n  \
           <vlan>\n    \
             <tag id='42'/>\n  \
           </vlan>\n  \
           <teaming type='transient' persistent='ua-backup0'/>\n  \
           <boot order='2'/>\n  \
           <alias name='ua-mdevd-nic0'/>\n  \
           <rom enabled='yes' bar='off'/>\n  \
           <address type='pci' domain='0x0000' bus='0x00' slot='0x1f' function='0x7' multifunction='off'/>\n\
         </interface>\n"
    );
    assert_eq!(
        interface("managed=no virtualport-type=802.1Qbh profile-id=finance").unwrap().to_xml(),
        "<interface type='hostdev'>\n  \
           <source>\n    \
             <address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>\n  \
           </source>\n  \
           <virtualport type='802.1Qbh'>\n    \
             <parameters profileid='finance'/>\n  \
           </virtualport>\n\
         </interface>\n"
    );
}

#[test]
fn networks() {
    assert_eq!(
        network("vfpool", pf("enp59s0f0"), "").unwrap().to_xml(),
        "<network>\n  \
           <name>vfpool</name>\n  \
           <forward mode='hostdev' managed='yes'>\n    \
             <driver name='vfio'/>\n    \
             <pf dev='enp59s0f0'/>\n  \
           </forward>\n\
         </network>\n"
    );
    let vfs = NetworkSource::Vfs(vec![address("0000:3b:02.1"), address("10000:3b:02.0")]);
    assert_eq!(
        network("a & b", vfs, "managed=no driver=mlx5_vfio_pci").unwrap().to_xml(),
        "<network>\n  \
           <name>a &amp; b</name>\n  \
           <forward mode='hostdev' managed='no'>\n    \
             <driver name='vfio' model='mlx5_vfio_pci'/>\n    \
             <address type='pci' domain='0x0000' bus='0x3b' slot='0x02' function='0x1'/>\n    \
             <address type='pci' domain='0x10000' bus='0x3b' slot='0x02' function='0x0'/>\n  \
           </forward>\n\
         </network>\n"
    );
}

#[test]
fn options_that_are_wrong_say_why() {
    let path = "it must be the absolute path of a file, without control characters";
    let vfio = "it must be a VFIO driver, vfio-pci or a variant (like mlx5_vfio_pci)";
    for (options, error) in [
        ("rombar=off", "unknown hostdev option 'rombar': did you mean 'rom-bar'?".to_owned()),
        (
            "x-vga=1",
            "unknown hostdev option 'x-vga': known are managed, driver, display, ramfb, teaming, boot-order, alias, rom-enabled, \
             rom-bar, rom-file, guest-address, multifunction"
                .to_owned(),
        ),
        ("managed=yes managed=no", "'managed' is given twice".to_owned()),
        ("managed=on", "managed='on': it must be yes or no".to_owned()),
        ("driver=nvidia", format!("driver='nvidia': {vfio}")),
        ("driver=a'b_vfio_pci", format!("driver='a'b_vfio_pci': {vfio}")),
        ("display=1", "display='1': it must be on or off".to_owned()),
        ("ramfb=on", "ramfb='on' needs display='on'".to_owned()),
        ("ramfb=on display=off", "ramfb='on' needs display='on'".to_owned()),
        ("teaming=net0", "teaming='net0': it must be 'ua-' followed by letters, digits, '-' and '_'".to_owned()),
        ("alias=gpu0", "alias='gpu0': it must be 'ua-' followed by letters, digits, '-' and '_'".to_owned()),
        ("boot-order=0", "boot-order='0': it must be a number from 1 on".to_owned()),
        ("rom-bar=1", "rom-bar='1': it must be on or off".to_owned()),
        ("rom-file=a.rom", format!("rom-file='a.rom': {path}")),
        ("rom-file=/", format!("rom-file='/': {path}")),
        ("rom-file=/a\u{7}", format!("rom-file='/a\\u{{7}}': {path}")),
        ("rom-file=/a\u{ffff}", format!("rom-file='/a\u{ffff}': {path}")),
        ("rom-enabled=off", "rom-enabled='off': it must be yes or no".to_owned()),
        ("rom-enabled=no rom-bar=off", "'rom-bar' does not go with rom-enabled='no'".to_owned()),
        ("rom-enabled=no rom-file=/a", "'rom-file' does not go with rom-enabled='no'".to_owned()),
        (
            "guest-address=0001:04:00.0",
            "guest-address='0001:04:00.0': a guest has only PCI domain 0000".to_owned(),
        ),
        (
            "guest-address=fe.0.0001",
            "guest-address='fe.0.0001': a PCI function has a PCI address (like 0000:04:00.0)".to_owned(),
        ),
        ("multifunction=on", "'multifunction' needs a guest-address".to_owned()),
    ] {
        assert_eq!(pci(options).unwrap_err(), error, "{options}");
        // what the other element has as well, it refuses with the same words
        let words = error.replace("hostdev option", "interface option");
        if !["display", "ramfb", "x-vga"].iter().any(|key| options.contains(key)) {
            assert_eq!(interface(options).unwrap_err(), words, "{options}");
        }
    }
}

#[test]
fn what_an_interface_cannot_have() {
    let plain = "it must be 1 to 39 bytes of text, without control characters and < > & ' \"";
    let long = "ä".repeat(20);
    for (options, error) in [
        ("vlna=1".to_owned(), "unknown interface option 'vlna': did you mean 'vlan'?".to_owned()),
        ("mac=1".to_owned(), "mac: '1' is not a MAC address: it must be like 52:54:00:6d:90:02".to_owned()),
        (
            "mac=01:00:00:00:00:01".to_owned(),
            "mac='01:00:00:00:00:01': it is not an address that one interface can have".to_owned(),
        ),
        (
            "mac=00:00:00:00:00:00".to_owned(),
            "mac='00:00:00:00:00:00': it is not an address that one interface can have".to_owned(),
        ),
        ("vlan=0".to_owned(), "vlan='0': it must be a number from 1 to 4094".to_owned()),
        ("vlan=4095".to_owned(), "vlan='4095': it must be a number from 1 to 4094".to_owned()),
        ("vlan=+1".to_owned(), "vlan='+1': it must be a number from 1 to 4094".to_owned()),
        ("vlan=99999999999".to_owned(), "vlan='99999999999': it must be a number from 1 to 4094".to_owned()),
        (
            "virtualport-type=802.1Qbg".to_owned(),
            "virtualport-type='802.1Qbg': it must be 802.1Qbh, the only one that libvirt sets up on a virtual function"
                .to_owned(),
        ),
        ("virtualport-type=802.1Qbh".to_owned(), "virtualport-type='802.1Qbh' needs a profile-id".to_owned()),
        ("profile-id=a".to_owned(), "'profile-id' needs virtualport-type='802.1Qbh'".to_owned()),
        (
            "virtualport-type=802.1Qbh profile-id=a vlan=1".to_owned(),
            "'vlan' does not go with a virtualport-type: the switch decides on the VLAN".to_owned(),
        ),
        ("virtualport-type=802.1Qbh profile-id=".to_owned(), format!("profile-id='': {plain}")),
        ("virtualport-type=802.1Qbh profile-id=a&b".to_owned(), format!("profile-id='a&b': {plain}")),
        (format!("virtualport-type=802.1Qbh profile-id={long}"), format!("profile-id='{long}': {plain}")),
    ] {
        assert_eq!(interface(&options).unwrap_err(), error, "{options}");
    }
}

#[test]
fn cards_and_networks_that_cannot_be() {
    for (functions, options, error) in [
        ("", "", "a card without functions has no XML"),
        ("0000:41:00.0 0000:41:01.0", "", "0000:41:00.0 and 0000:41:01.0 are not functions of one card"),
        ("0000:41:00.1 0000:41:00.0 0000:41:00.1", "", "the function 0000:41:00.1 is given twice"),
        (
            "0000:41:00.0",
            "guest-address=0000:05:00.0 multifunction=on",
            "'multifunction' is for one function; for a card it follows from its functions",
        ),
        ("0000:41:00.0", "guest-address=0000:05:00.1", "guest-address='0000:05:00.1': that of a card ends in .0"),
        (
            "0000:41:00.1 0000:41:00.2",
            "guest-address=0000:05:00.0",
            "guest-address='0000:05:00.0': a guest finds a card only by its function 0, but the first one here is 0000:41:00.1",
        ),
    ] {
        assert_eq!(card(functions, options).unwrap_err(), error, "{functions} {options}");
    }
    let twice = NetworkSource::Vfs(vec![address("0000:3b:02.1"), address("0000:3b:02.0"), address("0000:3b:02.1")]);
    let netdev = |name: &str| format!("pf='{name}': it must be the name of a network interface (like enp59s0f0)");
    for (name, source, options, error) in [
        ("a/b", pf("e0"), "", "name='a/b': it must be a name without '/' and control characters".to_owned()),
        (" ", pf("e0"), "", "name=' ': it must be a name without '/' and control characters".to_owned()),
        ("a\n", pf("e0"), "", "name='a\\n': it must be a name without '/' and control characters".to_owned()),
        ("a", pf(""), "", netdev("")),
        ("a", pf(".."), "", netdev("..")),
        ("a", pf("e0/x"), "", netdev("e0/x")),
        ("a", pf("sixteen-letters-"), "", netdev("sixteen-letters-")),
        ("a", NetworkSource::Vfs(vec![]), "", "a network over no virtual function has nothing to give".to_owned()),
        ("a", twice, "", "the function 0000:3b:02.1 is given twice".to_owned()),
        ("a", pf("e0"), "mangaed=no", "unknown network option 'mangaed': did you mean 'managed'?".to_owned()),
        ("a", pf("e0"), "managed=1", "managed='1': it must be yes or no".to_owned()),
    ] {
        assert_eq!(network(name, source, options).unwrap_err(), error);
    }
}

#[test]
fn versions_are_read_and_compared() {
    let version = |text: &str| text.parse::<LibvirtVersion>().map_err(|e| e.to_string());
    assert_eq!(version("11.3.0"), Ok(LibvirtVersion::new(11, 3)));
    assert_eq!(version("9.0.12").unwrap().to_string(), "9.0.12");
    assert!(version("9.10.0").unwrap() > version("9.9.9").unwrap());
    for bad in ["", "11", "11.3", "11.3.0.1", "11.3.x", "+1.0.0", "11..0", "99999999999.0.0"] {
        assert_eq!(version(bad).unwrap_err(), format!("'{bad}' is not a version of libvirt: it must be like 11.3.0"));
    }
}

#[test]
fn what_an_older_libvirt_would_drop_is_refused() {
    let installed = LibvirtVersion::new(9, 0);
    for (options, needs) in [
        ("", None),
        ("managed=no driver=vfio-pci", None),
        ("rom-bar=off rom-file=/a boot-order=1 alias=ua-a guest-address=0000:04:00.0", None),
        ("rom-enabled=no", Some(("rom-enabled", 4, 3))),
        ("teaming=ua-a rom-enabled=no", Some(("teaming", 7, 1))),
        ("driver=vfio-pci teaming=ua-a", Some(("driver", 10, 0))),
        ("managed=no driver=mlx5_vfio_pci", Some(("driver", 10, 0))),
        ("display=off driver=mlx5_vfio_pci", Some(("display", 10, 3))),
        ("ramfb=off", Some(("ramfb", 10, 3))),
    ] {
        let needs = needs.map(|(option, major, minor)| (option, LibvirtVersion::new(major, minor)));
        let element = pci(options).unwrap();
        assert_eq!(element.needs(), needs, "{options}");
        let refusal = needs.filter(|(_, since)| *since > installed).map(|(option, since)| {
            format!(
                "'{option}' needs libvirt {}.{}, but 9.0.0 is installed: leave it out, or install a newer libvirt",
                since.major, since.minor
            )
        });
        assert_eq!(element.check_version(installed).err().map(|e| e.to_string()), refusal, "{options}");
        assert_eq!(element.check_version(LibvirtVersion::new(10, 3)), Ok(()));
    }
    let driver = Some(("driver", LibvirtVersion::new(10, 0)));
    assert_eq!(interface("driver=mlx5_vfio_pci vlan=1 mac=52:54:00:6d:90:02").unwrap().needs(), driver);
    assert!(interface("driver=mlx5_vfio_pci").unwrap().check_version(installed).is_err());
    assert_eq!(network("a", pf("e0"), "").unwrap().needs(), None);
    assert_eq!(network("a", pf("e0"), "driver=mlx5_vfio_pci").unwrap().needs(), driver);
    assert!(network("a", pf("e0"), "driver=mlx5_vfio_pci").unwrap().check_version(installed).is_err());
    let mdev = |options| MdevHostdevXml::from_options(UUID.parse().unwrap(), "vfio-pci", pairs(options)).unwrap();
    assert_eq!(mdev("").needs(), None);
    assert_eq!(mdev("display=on ramfb=on").needs(), Some(("ramfb", LibvirtVersion::new(5, 10))));
    assert!(mdev("display=on").check_version(LibvirtVersion::new(4, 5)).is_err());
    assert_eq!(mdev("display=on").check_version(LibvirtVersion::new(4, 6)), Ok(()));
}

/// The only hostdev of a domain with this element and a request.
fn read_back(element: &str) -> Hostdev {
    let domain = format!(
        "<domain><name>d</name><uuid>{UUID}</uuid>\
         <metadata><devices xmlns='urn:mdevd:domain:1'><request/></devices></metadata>\
         <devices>{element}</devices></domain>"
    );
    let [hostdev] = Domain::parse(&domain).unwrap().hostdevs.try_into().unwrap();
    hostdev
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_hostdev_is_read_back(address in options::pci_address(), options in options::pci()) {
        let xml = PciHostdevXml::from_options(address, borrowed(&options)).unwrap();
        let expected = Hostdev {
            source: HostdevSource::Pci(address),
            model: String::new(),
            managed: xml.managed(),
            alias: xml.alias().map(Into::into),
            interface: false,
            mac: None,
            vlan: None,
        };
        prop_assert_eq!(read_back(&xml.to_xml()), expected);
    }

    #[test]
    fn an_interface_is_read_back(address in options::pci_address(), options in options::interface()) {
        let get = |key: &str| options.iter().find(|(given, _)| given == key).map(|(_, value)| value.as_str());
        let xml = InterfaceHostdevXml::from_options(address, borrowed(&options)).unwrap();
        let expected = Hostdev {
            source: HostdevSource::Pci(address),
            model: String::new(),
            managed: get("managed") != Some("no"),
            alias: get("alias").map(Into::into),
            interface: true,
            mac: get("mac").map(|mac| mac.parse().unwrap()),
            vlan: get("vlan").map(|vlan| vlan.parse().unwrap()),
        };
        prop_assert_eq!(read_back(&xml.to_xml()), expected);
    }

    #[test]
    fn a_card_is_its_functions((functions, options) in options::card()) {
        let elements = PciHostdevXml::card(&functions, borrowed(&options)).unwrap();
        let addresses: Vec<PciAddress> = elements.iter().map(PciHostdevXml::address).collect();
        prop_assert_eq!(&addresses, &functions);
        let texts: Vec<String> = elements.iter().map(PciHostdevXml::to_xml).collect();
        let count = |part: &str| texts.iter().filter(|text| text.contains(part)).count();
        // once in a guest
        for part in ["<boot ", "<teaming ", " file=", " display=", " ramfb=", " multifunction="] {
            prop_assert!(count(part) <= 1, "{part} in {texts:?}");
        }
        // for each function or for none
        for part in ["managed='yes'", "<driver ", "<alias ", "<address type='pci'", " bar="] {
            prop_assert!([0, texts.len()].contains(&count(part)), "{part} in {texts:?}");
        }
        let mut aliases: Vec<_> = elements.iter().filter_map(PciHostdevXml::alias).collect();
        aliases.dedup();
        prop_assert!([0, elements.len()].contains(&aliases.len()));
    }

    #[test]
    fn no_option_panics(key in "[a-z-]{4,16}|driver|rom-(file|bar|enabled)|mac|vlan|profile-id|guest-address|\\PC*", value in "(?s).*|on|off|yes|no|[0-9a-f.:]{0,20}|/.*") {
        let options = || [(key.as_str(), value.as_str())];
        let address = address("0000:3b:02.1");
        let errors = [
            PciHostdevXml::from_options(address, options()).err(),
            PciHostdevXml::card(&[address], options()).err(),
            InterfaceHostdevXml::from_options(address, options()).err(),
            HostdevNetworkXml::from_options(&key, pf(&value), options()).err(),
            HostdevNetworkXml::from_options(&value, pf(&key), []).err(),
        ];
        // whatever it says, it says it without control characters
        for error in errors.into_iter().flatten() {
            prop_assert!(!error.to_string().chars().any(char::is_control));
        }
    }
}
