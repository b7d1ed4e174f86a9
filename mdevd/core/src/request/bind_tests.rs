//! The meeting of requests for PCI functions with a domain's elements, word for word.

use super::*;

fn hostdev(at: &str) -> Hostdev {
    Hostdev {
        source: HostdevSource::Pci(address(at)),
        model: String::new(),
        managed: true,
        alias: None,
        interface: false,
        mac: None,
        vlan: None,
    }
}

fn interface(at: &str, vlan: Option<u16>) -> Hostdev {
    Hostdev { interface: true, mac: MAC.parse().ok(), vlan, ..hostdev(at) }
}

/// The needs of one request in a domain, or what is printed.
fn bound(pairs: Pairs<'_>, hostdevs: &[Hostdev]) -> Result<Vec<FunctionNeed>, String> {
    let needs = bind(domain_uuid(1), &[request(pairs)], hostdevs).map_err(|e| e.to_string())?;
    let function = |need| match need {
        Need::Function(need) => need,
        Need::Mdev(need) => panic!("{need:?}"),
    };
    Ok(needs.into_iter().map(function).collect())
}

#[test]
fn an_element_is_found_by_its_address() {
    let pairs: Pairs<'_> = &[("address", A), ("numa-node", "1"), ("rom-bar", "off")];
    let others = [hostdev("0000:42:00.0"), Hostdev { alias: Some("ua-mdevd-g".into()), ..hostdev("0000:43:00.0") }];
    for element in [hostdev(A), interface(A, None), Hostdev { managed: false, ..hostdev(A) }] {
        let hostdevs = [&others[..], core::slice::from_ref(&element)].concat();
        let expected = FunctionNeed {
            name: "g".into(),
            wanted: WantedFunction::Address(address(A)),
            numa_node: Some(NumaNode(1)),
            hostdev: Some(element),
            options: FunctionOptions::default(),
            xml: XmlOptions(vec![("rom-bar".into(), "off".into())]),
        };
        assert_eq!(bound(pairs, &hostdevs), Ok(vec![expected]));
    }
    // An alias leads to mediated devices only.
    assert!(bound(pairs, &others).is_err());
}

#[test]
fn a_card_has_an_element_for_each_function() {
    let hostdevs = [hostdev("0000:41:00.1"), hostdev("0000:42:00.0"), hostdev(A), hostdev("0000:41:01.0")];
    let needs = bound(&[("address", "41:00")], &hostdevs).unwrap();
    let got: Vec<(&str, &WantedFunction)> = needs.iter().map(|need| (need.name.as_str(), &need.wanted)).collect();
    let (one, zero) = (WantedFunction::Address(address("0000:41:00.1")), WantedFunction::Address(address(A)));
    assert_eq!(got, [("g.1", &one), ("g.0", &zero)]);
    // Without a domain it stands for itself.
    let free =
        needs_without_domain(&[request(&[("address", "41:00")])], || unreachable!("that is for mediated devices"));
    assert!(matches!(&free[..], [Need::Function(FunctionNeed { wanted: WantedFunction::Card(_), hostdev: None, .. })]));
    let free = needs_without_domain(&[request(&[("kind", "vf"), ("count", "2")])], || unreachable!());
    assert_eq!(free.iter().map(Need::name).collect::<Vec<_>>(), ["g.1", "g.2"]);
}

#[test]
fn a_missing_element_is_printed_ready_to_paste() {
    let element = |at: &str, managed: &str, more: &str| {
        let (bus, function) = (&at[5..7], &at[11..]);
        format!(
            "<hostdev mode='subsystem' type='pci' managed='{managed}'>\n  <source>\n    <address domain='0x0000' bus='0x{bus}' slot='0x00' \
             function='0x{function}'/>\n  </source>\n{more}</hostdev>\n"
        )
    };
    let missing = |at: &str, element: String| {
        Err(format!(
            "request 'g' has no <hostdev> or <interface type='hostdev'> with the address {at} in this domain; add to <devices>:\n{element}"
        ))
    };
    assert_eq!(bound(&[("address", A)], &[hostdev("0000:42:00.0")]), missing(A, element(A, "yes", "")));
    assert_eq!(
        bound(&[("address", A), ("managed", "no"), ("boot-order", "2")], &[]),
        missing(A, element(A, "no", "  <boot order='2'/>\n"))
    );
    assert_eq!(bound(&[("address", "41:00")], &[]), missing(A, element(A, "yes", "")));
    // What is printed is what is taken then.
    assert_eq!(bound(&[("address", A), ("vgpu-type", "1145")], &[]), missing(A, element(A, "no", "")));
    let pasted = Hostdev { managed: false, ..hostdev(A) };
    assert_eq!(bound(&[("address", A), ("vgpu-type", "1145")], &[pasted]).map(|needs| needs.len()), Ok(1));
}

#[test]
fn what_differs_is_named() {
    let differ =
        |element: &str, why: &str| Err(format!("request 'g' and its <{element}> {A} differ: {why}; make them equal"));
    let with = |pairs: Pairs<'_>, element: Hostdev| {
        let pairs: Vec<(&str, &str)> = [("address", A)].iter().chain(pairs).copied().collect();
        bound(&pairs, &[element]).map(|needs| needs.len())
    };
    let unmanaged = || Hostdev { managed: false, ..hostdev(A) };
    assert_eq!(
        with(&[("managed", "no")], hostdev(A)),
        differ("hostdev", "managed is 'yes' there, 'no' in the request")
    );
    assert_eq!(
        with(&[("managed", "yes")], unmanaged()),
        differ("hostdev", "managed is 'no' there, 'yes' in the request")
    );
    assert_eq!(
        with(&[("vgpu-type", "1145")], hostdev(A)),
        differ("hostdev", "with a vgpu-type it must have managed='no': libvirt would bind another driver and reset it")
    );
    let other = "52:54:00:6d:90:03";
    assert_eq!(
        with(&[("mac", other)], interface(A, None)),
        differ("interface", &format!("its MAC is {MAC}, the request's {other}"))
    );
    let no_mac = Hostdev { mac: None, ..interface(A, None) };
    assert_eq!(with(&[("mac", MAC)], no_mac), differ("interface", &format!("its MAC is none, the request's {MAC}")));
    assert_eq!(
        with(&[("vlan", "42")], interface(A, Some(43))),
        differ("interface", "its VLAN is 43, the request's 42")
    );
    assert_eq!(with(&[("vlan", "42")], interface(A, None)), differ("interface", "its VLAN is none, the request's 42"));
    assert_eq!(with(&[("vlan", "0")], interface(A, Some(43))), differ("interface", "its VLAN is 43, the request's 0"));
    assert_eq!(
        with(&[("vlan", "42"), ("qos", "3")], interface(A, Some(42))),
        differ(
            "interface",
            "libvirt gives an interface's VLAN no priority, the request has qos 3; take a <hostdev> for that"
        )
    );
    // In a card the function is named.
    assert_eq!(
        bound(&[("address", "41:00"), ("managed", "no")], &[unmanaged(), hostdev("0000:41:00.1")]),
        Err("request 'g.1' and its <hostdev> 0000:41:00.1 differ: managed is 'yes' there, 'no' in the request; make them equal".into())
    );
    // What is equal, or said in one place only, fits.
    for (pairs, element) in [
        (&[("mac", MAC), ("vlan", "42")] as Pairs<'_>, interface(A, Some(42))),
        (&[("vlan", "0")], interface(A, None)),
        (&[("vlan", "42"), ("qos", "0")], interface(A, Some(42))),
        (&[("trust", "on")], interface(A, Some(42))),
        (&[], interface(A, Some(42))),
        // libvirt sets none of it for a plain one: mdevd does.
        (&[("mac", MAC), ("vlan", "42"), ("qos", "3")], hostdev(A)),
        (&[("managed", "no")], unmanaged()),
        (&[("vgpu-type", "L40S-8Q")], unmanaged()),
    ] {
        assert_eq!(with(pairs, element), Ok(1), "{pairs:?}");
    }
}

#[test]
fn a_domain_s_request_names_its_function() {
    let table: [(Pairs<'_>, &str, &str); 5] = [
        (&[("kind", "vf")], "any virtual function", "kind=vf"),
        (&[("device", "10de:26b9")], "any PCI function 10de:26b9", "device=10de:26b9"),
        (&[("vgpu-type", "1145")], "any PCI function with the vGPU type 1145", "vgpu-type=1145"),
        (
            &[("kind", "vf"), ("vgpu-type", "L40S-8Q")],
            "any virtual function with the vGPU type 'L40S-8Q'",
            "kind=vf,\"vgpu-type=L40S-8Q\"",
        ),
        (&[("pf", "0000:01:00.0"), ("count", "2")], "any virtual function of 0000:01:00.0", "pf=0000:01:00.0"),
    ];
    for (pairs, wanted, cli) in table {
        let message = format!(
            "request 'g' asks for {wanted}, but the XML of a domain names one address, which mdevd cannot change when the VM starts; put \
             address=\"…\" in its place, as its <hostdev> has it ('hostdevctl explain {cli}' lists what would do)"
        );
        assert_eq!(bound(pairs, &[hostdev(A)]), Err(message));
        // What it says to type is a request.
        let parsed = Request::pairs_from_cli(&cli.replace('"', ""), "g");
        assert!(Request::parse(parsed.iter().map(AsPair::as_pair)).is_ok(), "{cli}");
    }
}

#[test]
fn two_requests_never_share_an_element() {
    // As only requests that were not read together can.
    let one = Request { name: "a".parse().unwrap(), ..request(&[("address", A)]) };
    let card = Request { name: "b".parse().unwrap(), ..request(&[("address", "41:00")]) };
    let error = bind(domain_uuid(1), &[one, card], &[hostdev(A)]).unwrap_err();
    assert_eq!(error, BindError::SharedHostdev("a".into(), "b".into(), A.into()));
    assert_eq!(
        error.to_string(),
        "the requests 'a' and 'b' lead to the same <hostdev> 0000:41:00.0; each needs its own"
    );
}
