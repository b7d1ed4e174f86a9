//! Requests for PCI functions and their meeting with a domain's elements, word for word: people read this through `virsh start`.

use super::*;
use crate::fixtures::{address, domain_uuid, driver};
use crate::hostdev::HostdevSource;
use crate::names::NumaNode;
use crate::request::{
    BindError, FunctionNeed, KEYS, MAX_COUNT, Need, OF_FUNCTIONS, RequestError, Wanted, bind, needs_without_domain,
};
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

const A: &str = "0000:41:00.0";
const MAC: &str = "52:54:00:6d:90:02";

fn parse(pairs: Pairs<'_>) -> Result<Request, RequestError> {
    Request::parse([("name", "g")].iter().chain(pairs).copied())
}

fn request(pairs: Pairs<'_>) -> Request {
    parse(pairs).unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
}

fn wanted(pairs: Pairs<'_>) -> WantedFunction {
    match request(pairs).wanted {
        Wanted::Function(wanted) => wanted,
        other => panic!("{pairs:?}: {other:?}"),
    }
}

#[test]
fn every_key_has_its_place() {
    let pairs = [
        ("address", "0000:41:00.A"),
        ("kind", "vf"),
        ("count", "1"),
        ("numa-node", "1"),
        ("managed", "no"),
        ("driver", "mlx5_vfio_pci"),
        ("mac", "52:54:00:6D:90:02"),
        ("vlan", "42"),
        ("qos", "3"),
        ("trust", "on"),
        ("spoof-check", "off"),
        ("min-rate", "100"),
        ("max-rate", "1000"),
        ("link-state", "enable"),
        ("rom-bar", "off"),
        ("rom-file", "/usr/share/x.rom"),
        ("guest-address", "0000:04:00.0"),
        ("boot-order", "1"),
        ("display", "on"),
        ("ramfb", "on"),
    ];
    assert!(parse(&pairs).is_err(), "functions have numbers up to 7");
    let pairs: Vec<(&str, &str)> =
        pairs.iter().map(|(k, v)| (*k, if *k == "address" { "0000:41:00.4" } else { *v })).collect();
    let full = request(&pairs);
    assert_eq!(full.wanted, Wanted::Function(WantedFunction::Address(address("0000:41:00.4"))));
    assert_eq!((full.numa_node, full.count, full.uuid), (Some(NumaNode(1)), 1, None));
    let set = VfSettings {
        mac: MAC.parse().ok(),
        vlan: Some(42),
        qos: Some(3),
        trust: Some(true),
        spoof_check: Some(false),
        min_rate: Some(100),
        max_rate: Some(1000),
        link_state: Some(LinkState::Enable),
    };
    let driver = Some(driver("mlx5_vfio_pci"));
    assert_eq!(full.function, FunctionOptions { set, vgpu_type: None, driver, managed: Some(false) });
    // What the printed XML says, in one order whatever that of the request.
    let keys: Vec<&str> = full.xml.0.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["display", "ramfb", "guest-address", "boot-order", "rom-bar", "rom-file", "managed", "driver"]);

    let other = [("device", "8086:10ca"), ("pf", "0000:01:00.0"), ("vgpu-type", "1145")];
    for key in KEYS.into_iter().filter(|key| OF_FUNCTIONS.contains(key)) {
        assert!(pairs.iter().chain(&other).any(|(tried, _)| *tried == key), "the key {key} is not tried here");
    }
}

#[test]
fn which_function_would_do() {
    let (pf, none) = (Some(address("0000:01:00.0")), FunctionOptions::default());
    let any = |kind, ids, pf| WantedFunction::Any { kind, ids, pf };
    let (vf, pci) = (Some(FunctionKind::Vf), Some(FunctionKind::Pci));
    let ids = Some((0x8086, 0x10ca));
    // (the request, what it wants, in words, on the command line)
    let table: [(Pairs<'_>, WantedFunction, &str, &str); 11] = [
        (
            &[("address", A)],
            WantedFunction::Address(address(A)),
            "the PCI function 0000:41:00.0",
            "address=0000:41:00.0",
        ),
        (
            &[("address", "10000:E1:1f.7"), ("kind", "vf")],
            WantedFunction::Address(address("10000:e1:1f.7")),
            "the PCI function 10000:e1:1f.7",
            "address=10000:e1:1f.7",
        ),
        (
            &[("address", "41:00")],
            WantedFunction::Card("0000:41:00".parse().unwrap()),
            "all functions of the PCI card 0000:41:00",
            "address=0000:41:00",
        ),
        (
            &[("address", "10000:e1:00")],
            WantedFunction::Card("10000:e1:00".parse().unwrap()),
            "all functions of the PCI card 10000:e1:00",
            "address=10000:e1:00",
        ),
        (&[("kind", "vf")], any(vf, None, None), "any virtual function", "kind=vf"),
        (&[("kind", "pci")], any(pci, None, None), "any PCI function", "kind=pci"),
        (&[("device", "8086:10CA")], any(None, ids, None), "any PCI function 8086:10ca", "device=8086:10ca"),
        (&[("pf", "0000:01:00.0")], any(None, None, pf), "any virtual function of 0000:01:00.0", "pf=0000:01:00.0"),
        (
            &[("kind", "vf"), ("device", "8086:10ca"), ("pf", "0000:01:00.0")],
            any(vf, ids, pf),
            "any virtual function 8086:10ca of 0000:01:00.0",
            "kind=vf,device=8086:10ca,pf=0000:01:00.0",
        ),
        (
            &[("kind", "pci"), ("device", "000a:0b00")],
            any(pci, Some((10, 0xb00)), None),
            "any PCI function 000a:0b00",
            "kind=pci,device=000a:0b00",
        ),
        (&[("vgpu-type", "1145")], any(None, None, None), "any PCI function", ""),
    ];
    for (pairs, expected, words, cli) in table {
        let found = wanted(pairs);
        assert_eq!((&found, found.to_string().as_str(), found.to_cli().as_str()), (&expected, words, cli), "{pairs:?}");
        let typed = pairs.iter().any(|(key, _)| *key == "vgpu-type");
        assert_eq!(request(pairs).function == none, !typed);
    }
    let fits =
        |device| wanted(&[("device", "8086:10ca")]).ids_fit(PciIds { vendor: 0x8086, device, ..PciIds::default() });
    assert!(fits(0x10ca) && !fits(0x10c9) && wanted(&[("kind", "vf")]).ids_fit(PciIds::default()));
}

#[test]
fn errors_of_one_request_word_for_word() {
    let a = ("address", A);
    let vf = ("kind", "vf");
    let digits = "must have 2 hexadecimal digits";
    let table: &[(Pairs<'_>, &str)] = &[
        // which
        (&[("kind", "nic")], "kind: 'nic' is not a kind of device; the kinds are mdev, vf and pci"),
        (&[("address", "")], "address: '' is not a PCI card (like 0000:41:00): no ':' after the domain"),
        (
            &[("address", "41:00.0")],
            "address: '41:00.0' is not a PCI address (like 0000:41:00.4): no ':' between bus and device",
        ),
        (
            &[("address", "0000:41:00.8")],
            "address: '0000:41:00.8' is not a PCI address (like 0000:41:00.4): the function is above 7",
        ),
        (
            &[("address", "0000:41")],
            &format!("address: '0000:41' is not a PCI card (like 0000:41:00): the bus '0000' {digits}"),
        ),
        (
            &[("address", "0000:41:*")],
            &format!("address: '0000:41:*' is not a PCI card (like 0000:41:00): the device '*' {digits}"),
        ),
        (&[("pf", "41:00.0")], "pf: '41:00.0' is not a PCI address (like 0000:41:00.4): no ':' between bus and device"),
        (&[a, ("device", "8086:10ca")], "device: the address says already which function it is"),
        (&[a, ("pf", A)], "pf: the address says already which function it is"),
        (&[("device", "8086")], "device: '8086' is not a vendor and a device (like 8086:10ca)"),
        (&[("device", "8086:*")], "device: '8086:*' is not a vendor and a device (like 8086:10ca)"),
        (&[("device", "0x8086:10ca")], "device: '0x8086:10ca' is not a vendor and a device (like 8086:10ca)"),
        (&[("device", "+086:10ca")], "device: '+086:10ca' is not a vendor and a device (like 8086:10ca)"),
        (&[("device", "8086:10ca:1")], "device: '8086:10ca:1' is not a vendor and a device (like 8086:10ca)"),
        (&[("kind", "pci"), ("pf", A)], "pf goes with virtual functions, but the kind is pci"),
        // what does not go with it
        (&[a, ("type", "nvidia-63")], "the key 'type' does not go with a PCI function"),
        (&[vf, ("uuid", "x")], "the key 'uuid' does not go with a PCI function"),
        (&[vf, ("parent", "x")], "the key 'parent' does not go with a PCI function"),
        (&[vf, ("pool", "gold")], "the key 'pool' does not go with a PCI function"),
        (&[("kind", "mdev"), a], "the key 'address' does not go with a mediated device"),
        (&[("type", "t"), ("mac", MAC)], "the key 'mac' does not go with a mediated device"),
        (&[("mac", MAC)], "the key 'mac' does not go with a mediated device"),
        (&[a, ("count", "2")], "address is for one device, but the count is 2"),
        (&[vf, ("mac", MAC), ("count", "2")], "mac is for one device, but the count is 2"),
        // what becomes of it
        (&[vf, ("mac", "52:54")], "mac: '52:54' is not a MAC address: it must be like 52:54:00:6d:90:02"),
        (&[vf, ("mac", "00:00:00:00:00:00")], "mac: 00:00:00:00:00:00 is not an address that one interface can have"),
        (&[vf, ("mac", "01:00:5E:00:00:01")], "mac: 01:00:5e:00:00:01 is not an address that one interface can have"),
        (&[vf, ("vlan", "4095")], "vlan: 4095 is above 4094"),
        (&[vf, ("vlan", "-1")], "vlan: '-1' is not a whole number"),
        (&[vf, ("vlan", "99999999999")], "vlan: '99999999999' is too large"),
        (&[vf, ("qos", "8"), ("vlan", "1")], "qos: 8 is above 7"),
        (&[vf, ("qos", "3")], "qos is a priority in a VLAN and needs one"),
        (&[vf, ("qos", "3"), ("vlan", "0")], "qos is a priority in a VLAN and needs one"),
        (&[vf, ("trust", "yes")], "trust: 'yes' is neither on nor off"),
        (&[vf, ("spoof-check", "")], "spoof-check: '' is neither on nor off"),
        (&[vf, ("min-rate", "fast")], "min-rate: 'fast' is not a whole number"),
        (&[vf, ("max-rate", "4294967296")], "max-rate: '4294967296' is too large"),
        (&[vf, ("min-rate", "2"), ("max-rate", "1")], "min-rate 2 is above max-rate 1"),
        (&[vf, ("link-state", "up")], "link-state: 'up' is not auto, enable or disable"),
        (&[vf, ("managed", "true")], "managed: 'true' is neither yes nor no"),
        (
            &[vf, ("driver", "igbvf")],
            "driver: igbvf is not a VFIO driver, which a VM needs: vfio-pci or a variant of it",
        ),
        (&[vf, ("driver", "../vfio-pci")], "driver: '../vfio-pci' is not a driver name: it contains '/'"),
        (
            &[vf, ("driver", "a b-vfio-pci")],
            "driver='a b-vfio-pci': it must be a VFIO driver, vfio-pci or a variant (like mlx5_vfio_pci)",
        ),
        (&[vf, ("vgpu-type", "")], "vgpu-type: it is empty"),
        (
            &[vf, ("vgpu-type", "0")],
            "vgpu-type: '0' is not the number of a vGPU type: it must be a whole number from 1 on",
        ),
        (
            &[vf, ("vgpu-type", "1145"), ("managed", "yes")],
            "a function with a vgpu-type stays on its driver: neither managed=yes nor a driver goes with it",
        ),
        (
            &[vf, ("vgpu-type", "1145"), ("driver", "vfio-pci")],
            "a function with a vgpu-type stays on its driver: neither managed=yes nor a driver goes with it",
        ),
        (&[("address", "41:00"), ("vlan", "42")], "what is set of a virtual function does not go with a whole card"),
        (
            &[("address", "41:00"), ("vgpu-type", "5")],
            "what is set of a virtual function does not go with a whole card",
        ),
        // the options for the XML
        (&[a, ("rom-bar", "yes")], "rom-bar='yes': it must be on or off"),
        (
            &[a, ("rom-file", "x.rom")],
            "rom-file='x.rom': it must be the absolute path of a file, without control characters",
        ),
        (&[a, ("ramfb", "on")], "ramfb='on' needs display='on'"),
        (&[a, ("boot-order", "0")], "boot-order='0': it must be a number from 1 on"),
        (
            &[a, ("guest-address", "fe.0.0001")],
            "guest-address='fe.0.0001': a PCI function has a PCI address (like 0000:04:00.0)",
        ),
    ];
    for (pairs, message) in table {
        let whole = format!("request 'g': {message}");
        assert_eq!(parse(pairs).map_err(|e| e.to_string()), Err(whole), "{pairs:?}");
    }
    // The edges of what is right.
    for pairs in [
        &[vf, ("vlan", "4094"), ("qos", "7")] as Pairs<'_>,
        &[vf, ("vlan", "0"), ("qos", "0")],
        &[vf, ("min-rate", "5"), ("max-rate", "5")],
        &[vf, ("min-rate", "5"), ("max-rate", "0")],
        &[vf, ("vgpu-type", "1145"), ("managed", "no")],
        &[vf, ("count", "64"), ("vlan", "42")],
        &[("address", "41:00"), ("managed", "no"), ("driver", "vfio-pci")],
    ] {
        request(pairs);
    }
}

#[test]
fn requests_of_one_domain_name_different_functions() {
    let all = |addresses: &[&str]| {
        let names: Vec<String> = (0..addresses.len()).map(|i| format!("r{i}")).collect();
        let requests = names.iter().zip(addresses).map(|(name, at)| [("name", name.as_str()), ("address", *at)]);
        Request::parse_all(requests).map(|all| all.len()).map_err(|e| e.to_string())
    };
    let same = |a, b, at| Err(format!("the requests '{a}' and '{b}' name the same PCI function {at}"));
    assert_eq!(all(&[A, "0000:41:00.1", "0000:42:00.0", "43:00"]), Ok(4));
    assert_eq!(all(&[A, "0000:42:00.0", A]), same("r0", "r2", A));
    // One of them its card, in either order, or both a card.
    assert_eq!(all(&["0000:41:00.7", "41:00"]), same("r0", "r1", "0000:41:00.7"));
    assert_eq!(all(&["41:00", "0000:41:00.7"]), same("r0", "r1", "0000:41:00.7"));
    assert_eq!(all(&["41:00", "0000:41:00"]), same("r0", "r1", A));
    assert_eq!(all(&["41:00", "41:01", "0001:41:00", "0000:40:1f.7"]), Ok(4));
}

#[path = "bind_tests.rs"]
mod bound;

/// Values that are right, nearly right, and anything.
fn values() -> impl Strategy<Value = String> {
    let known = [
        "pci",
        "vf",
        "on",
        "off",
        "yes",
        "no",
        "0",
        "1",
        "42",
        "4095",
        "auto",
        "vfio-pci",
        "8086:10ca",
        "41:00",
        A,
        MAC,
        "1145",
        "NVIDIA L40S-8Q",
        "/x.rom",
        "0000:04:00.0",
    ];
    prop_oneof![3 => proptest::sample::select(known.to_vec()).prop_map(String::from), 1 => "(?s).{0,12}|[0-9a-f:.]{0,14}"]
}

fn keys() -> impl Strategy<Value = String> {
    let of_functions = KEYS.into_iter().filter(|key| !["name", "type", "parent", "pool", "uuid"].contains(key));
    prop_oneof![9 => proptest::sample::select(of_functions.collect::<Vec<_>>()).prop_map(String::from), 1 => "(?s).{0,6}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn no_pairs_panic_and_errors_are_one_printable_line(pairs in proptest::collection::btree_map(keys(), values(), 0..6)) {
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        match parse(&pairs) {
            Err(e) => {
                let message = e.to_string();
                prop_assert!(message.starts_with("request 'g': ") && !message.chars().any(char::is_control), "{message:?}");
            }
            Ok(request) => {
                prop_assert!((1..=MAX_COUNT).contains(&request.count));
                prop_assert!(!request.wanted.to_string().chars().any(char::is_control));
                let Wanted::Function(wanted) = &request.wanted else { return Ok(()) };
                // Whoever asks for it on the command line gets the same.
                let cli = Request::pairs_from_cli(&wanted.to_cli(), "g");
                let again = Request::parse(cli.iter().map(AsPair::as_pair)).map(|request| request.wanted);
                let said = !matches!(wanted, WantedFunction::Any { kind: None, ids: None, pf: None });
                prop_assert_eq!(again.ok() == Some(request.wanted.clone()), said);
                // What its refusal tells to paste is all it takes.
                let (domain, requests) = (domain_uuid(1), [request.clone()]);
                if let Err(BindError::MissingHostdev { element, .. }) = bind(domain, &requests, &[]) {
                    let text = format!("<domain type='kvm'><name>vm</name><uuid>{domain}</uuid><devices>{element}</devices></domain>");
                    let read = crate::domain_xml::Domain::parse(&text).unwrap();
                    let needs = bind(domain, &requests, &read.hostdevs);
                    prop_assert_eq!(needs.map(|needs| needs.len()), Ok(1), "{}", element);
                }
            }
        }
    }
}
