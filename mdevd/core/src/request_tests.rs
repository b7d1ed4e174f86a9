//! What a request may say, word for word: these sentences are read by people, through `virsh start`.

use super::*;
use crate::fixtures::{domain_uuid, uuid};
use crate::hostdev::{Hostdev, HostdevSource};
use alloc::vec;

const U: &str = "c2177883-f1bb-47f0-914d-32a22e3a8804";

fn request(pairs: &[(&str, &str)]) -> Request {
    Request::parse(pairs.iter().copied()).unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
}

fn error(pairs: &[(&str, &str)]) -> String {
    match Request::parse(pairs.iter().copied()) {
        Ok(request) => panic!("{pairs:?} was taken as {request:?}"),
        Err(e) => e.to_string(),
    }
}

fn all(requests: &[&[(&str, &str)]]) -> Result<Vec<Request>, RequestError> {
    Request::parse_all(requests.iter().map(|pairs| pairs.iter().copied()))
}

#[test]
fn every_key_has_its_place() {
    let full = request(&[
        ("name", "gpu_0-A"),
        ("type", "nvidia-63"),
        ("parent", "0000:41:00.0"),
        ("kind", "mdev"),
        ("count", "1"),
        ("numa-node", "1"),
        ("uuid", "C2177883-F1BB-47F0-914D-32A22E3A8804"),
        ("display", "on"),
        ("ramfb", "on"),
        ("guest-address", "0000:04:00.0"),
    ]);
    let xml = [("display", "on"), ("ramfb", "on"), ("guest-address", "0000:04:00.0")];
    assert_eq!(
        full,
        Request {
            name: "gpu_0-A".parse().unwrap(),
            wanted: Wanted::Type {
                mdev_type: "nvidia-63".parse().unwrap(),
                parent: Some("0000:41:00.0".parse().unwrap())
            },
            numa_node: Some(NumaNode(1)),
            count: 1,
            uuid: Some(U.parse().unwrap()),
            function: FunctionOptions::default(),
            xml: XmlOptions(xml.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
        }
    );

    let least = request(&[("name", "a"), ("type", "mtty-1")]);
    assert_eq!(least.wanted, Wanted::Type { mdev_type: "mtty-1".parse().unwrap(), parent: None });
    assert_eq!((least.numa_node, least.count, least.uuid, least.xml), (None, 1, None, XmlOptions::default()));

    assert_eq!(request(&[("name", "a"), ("pool", "gold")]).wanted, Wanted::Pool("gold".into()));
    assert_eq!(request(&[("name", "a"), ("pool", "gold"), ("uuid", U)]).wanted, Wanted::Pool("gold".into()));
    assert_eq!(request(&[("name", "a"), ("uuid", U)]).wanted, Wanted::Existing);
    assert_eq!(request(&[("name", "a"), ("type", "t"), ("count", "64")]).count, 64);
    // Of the options for the XML, these go with s390's channel devices only.
    assert_eq!(
        request(&[("name", "a"), ("type", "vfio_ccw-io"), ("boot-order", "1")]).xml.0,
        [("boot-order".into(), "1".into())]
    );
    assert_eq!(request(&[("name", "a"), ("type", "vfio_ccw-io"), ("guest-address", "fe.0.0001")]).xml.0.len(), 1);

    let tried = [
        "name",
        "type",
        "parent",
        "kind",
        "count",
        "numa-node",
        "uuid",
        "display",
        "ramfb",
        "guest-address",
        "pool",
        "boot-order",
    ];
    for key in KEYS.into_iter().filter(|key| !OF_FUNCTIONS.contains(key)) {
        assert!(tried.contains(&key), "the key {key} is not tried here");
    }
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let mut pairs = [("name", "a"), ("type", "t"), ("parent", "p"), ("ramfb", "on"), ("display", "on")];
    let first = request(&pairs);
    for _ in 0..pairs.len() {
        pairs.rotate_left(1);
        assert_eq!(request(&pairs), first, "{pairs:?}");
    }
}

#[test]
fn errors_of_one_request_word_for_word() {
    let long = "x".repeat(100);
    let shown = ["x".repeat(80).as_str(), "…"].concat();
    let table: &[(&[(&str, &str)], &str)] = &[
        // unknown keys
        (&[("name", "gpu0"), ("tpye", "x")], "request 'gpu0': unknown key 'tpye'; did you mean 'type'?"),
        (&[("name", "gpu0"), ("numa_node", "1")], "request 'gpu0': unknown key 'numa_node'; did you mean 'numa-node'?"),
        (&[("name", "gpu0"), ("Type", "x")], "request 'gpu0': unknown key 'Type'; did you mean 'type'?"),
        (&[("nmae", "gpu0")], "request '?': unknown key 'nmae'; did you mean 'name'?"),
        (&[("name", "gpu0"), ("type ", "x")], "request 'gpu0': unknown key 'type '; did you mean 'type'?"),
        (&[("name", "gpu0"), ("", "x")], "request 'gpu0': unknown key ''; it is empty"),
        (
            &[("name", "gpu0"), ("colour", "red")],
            "request 'gpu0': unknown key 'colour'; the keys are name, type, parent, pool, kind, count, numa-node, uuid, display, ramfb, \
             guest-address, boot-order, address, device, pf, vgpu-type, driver, managed, mac, vlan, qos, trust, spoof-check, min-rate, \
             max-rate, link-state, rom-bar, rom-file",
        ),
        (
            &[("name", "a"), ("k\u{1b}[2J\n", "red")],
            "request 'a': unknown key 'k\\u{1b}[2J\\n'; the keys are name, type, parent, pool, kind, count, numa-node, uuid, display, \
             ramfb, guest-address, boot-order, address, device, pf, vgpu-type, driver, managed, mac, vlan, qos, trust, spoof-check, \
             min-rate, max-rate, link-state, rom-bar, rom-file",
        ),
        // twice
        (&[("name", "gpu0"), ("type", "a"), ("type", "a")], "request 'gpu0': the key 'type' is given twice"),
        (&[("name", "gpu0"), ("name", "gpu1"), ("type", "a")], "request 'gpu0': the key 'name' is given twice"),
        // name
        (&[], "request '?': it has no name"),
        (&[("type", "a")], "request '?': it has no name"),
        (&[("name", ""), ("type", "a")], "request '': name: '' is not a request name: it must have 1 to 32 characters"),
        (
            &[("name", "a b"), ("type", "a")],
            "request 'a b': name: 'a b' is not a request name: only letters, digits, '_' and '-' are allowed",
        ),
        (
            &[("name", "gpu0.1"), ("type", "a")],
            "request 'gpu0.1': name: 'gpu0.1' is not a request name: only letters, digits, '_' and '-' are allowed",
        ),
        (
            &[("name", "grün"), ("type", "a")],
            "request 'grün': name: 'grün' is not a request name: only letters, digits, '_' and '-' are allowed",
        ),
        (
            &[("name", &long), ("type", "a")],
            &format!("request '{shown}': name: '{shown}' is not a request name: it must have 1 to 32 characters"),
        ),
        (
            &[("name", "a\nb"), ("type", "a")],
            "request 'a\\nb': name: 'a\\nb' is not a request name: only letters, digits, '_' and '-' are allowed",
        ),
        // kind
        (
            &[("name", "g"), ("kind", "disk"), ("type", "a")],
            "request 'g': kind: 'disk' is not a kind of device; the kinds are mdev, vf and pci",
        ),
        (
            &[("name", "g"), ("kind", ""), ("type", "a")],
            "request 'g': kind: '' is not a kind of device; the kinds are mdev, vf and pci",
        ),
        // type and parent
        (&[("name", "g"), ("type", "")], "request 'g': type: '' is not an mdev type id: it is empty"),
        (&[("name", "g"), ("type", "../x")], "request 'g': type: '../x' is not an mdev type id: it contains '/'"),
        (&[("name", "g"), ("type", "..")], "request 'g': type: '..' is not an mdev type id: it is a relative folder"),
        (
            &[("name", "g"), ("type", "a\tb")],
            "request 'g': type: 'a\\tb' is not an mdev type id: it contains a control character",
        ),
        (
            &[("name", "g"), ("type", "a"), ("parent", "a/b")],
            "request 'g': parent: 'a/b' is not the name of an mdev parent: it contains '/'",
        ),
        (
            &[("name", "g"), ("type", "a"), ("parent", "")],
            "request 'g': parent: '' is not the name of an mdev parent: it is empty",
        ),
        // uuid
        (
            &[("name", "g"), ("uuid", "c2177883f1bb47f0914d32a22e3a8804")],
            "request 'g': uuid: 'c2177883f1bb47f0914d32a22e3a8804' is not a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804): it must \
             have 36 characters",
        ),
        (
            &[("name", "g"), ("uuid", "c2177883-f1bb-47f0-914d-32a22e3a880g")],
            "request 'g': uuid: 'c2177883-f1bb-47f0-914d-32a22e3a880g' is not a UUID (like c2177883-f1bb-47f0-914d-32a22e3a8804): it \
             must be hexadecimal digits in groups of 8-4-4-4-12",
        ),
        // numbers
        (&[("name", "g"), ("type", "a"), ("numa-node", "-1")], "request 'g': numa-node: '-1' is not a whole number"),
        (&[("name", "g"), ("type", "a"), ("numa-node", "")], "request 'g': numa-node: '' is not a whole number"),
        (
            &[("name", "g"), ("type", "a"), ("numa-node", "99999999999")],
            "request 'g': numa-node: '99999999999' is too large",
        ),
        (&[("name", "g"), ("type", "a"), ("count", "two")], "request 'g': count: 'two' is not a whole number"),
        (&[("name", "g"), ("type", "a"), ("count", "+2")], "request 'g': count: '+2' is not a whole number"),
        (&[("name", "g"), ("type", "a"), ("count", "٣")], "request 'g': count: '٣' is not a whole number"),
        (&[("name", "g"), ("type", "a"), ("count", "0")], "request 'g': count: 0 is not between 1 and 64"),
        (&[("name", "g"), ("type", "a"), ("count", "65")], "request 'g': count: 65 is not between 1 and 64"),
        (&[("name", "g"), ("type", "a"), ("count", "4294967296")], "request 'g': count: '4294967296' is too large"),
        // what does not go together
        (
            &[("name", "g"), ("type", "a"), ("pool", "gold")],
            "request 'g': it has both a pool and a type; one of them decides",
        ),
        (
            &[("name", "g"), ("type", "a"), ("pool", "")],
            "request 'g': it has both a pool and a type; one of them decides",
        ),
        (&[("name", "g"), ("pool", "")], "request 'g': pool: it is empty"),
        (
            &[("name", "g")],
            "request 'g': it says neither type nor pool nor uuid nor address: what should the device be?",
        ),
        (
            &[("name", "g"), ("parent", "p"), ("kind", "mdev")],
            "request 'g': it says neither type nor pool nor uuid nor address: what should the device be?",
        ),
        (&[("name", "g"), ("pool", "gold"), ("parent", "p")], "request 'g': a parent goes with a type"),
        (&[("name", "g"), ("uuid", U), ("parent", "p")], "request 'g': a parent goes with a type"),
        (
            &[("name", "g"), ("type", "a"), ("uuid", U), ("count", "2")],
            "request 'g': uuid is for one device, but the count is 2",
        ),
        (
            &[("name", "g"), ("type", "a"), ("guest-address", "0000:04:00.0"), ("count", "2")],
            "request 'g': guest-address is for one device, but the count is 2",
        ),
        (
            &[("name", "g"), ("type", "a"), ("boot-order", "1"), ("count", "3")],
            "request 'g': boot-order is for one device, but the count is 3",
        ),
        // the options for the XML
        (&[("name", "g"), ("type", "a"), ("display", "yes")], "request 'g': display='yes': it must be on or off"),
        (&[("name", "g"), ("type", "a"), ("ramfb", "on")], "request 'g': ramfb='on' needs display='on'"),
        (
            &[("name", "g"), ("type", "a"), ("boot-order", "0")],
            "request 'g': boot-order='0': it must be a number from 1 on",
        ),
        (
            &[("name", "g"), ("type", "a"), ("guest-address", "04:00.0")],
            "request 'g': guest-address: '04:00.0' is not a PCI address (like 0000:41:00.4): no ':' between bus and device",
        ),
    ];
    for (pairs, message) in table {
        assert_eq!(error(pairs), *message, "{pairs:?}");
    }
}

#[test]
fn requests_of_one_domain_differ() {
    let a: &[_] = &[("name", "a"), ("type", "t"), ("uuid", U)];
    let b: &[_] = &[("name", "b"), ("type", "t")];
    let names = |requests: Vec<Request>| requests.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
    assert_eq!(all(&[]), Ok(vec![]));
    assert_eq!(all(&[a, b]).map(names), Ok(vec!["a".into(), "b".into()]));

    let error = |requests: &[&[(&str, &str)]]| all(requests).unwrap_err().to_string();
    assert_eq!(error(&[a, b, &[("name", "a"), ("pool", "p")]]), "two requests have the name 'a'; each needs its own");
    let upper = U.to_uppercase();
    assert_eq!(
        error(&[a, b, &[("name", "c"), ("uuid", &upper)]]),
        "the requests 'a' and 'c' name the same UUID c2177883-f1bb-47f0-914d-32a22e3a8804"
    );
    assert_eq!(error(&[b, &[("name", "x"), ("typ", "t")]]), "request 'x': unknown key 'typ'; did you mean 'type'?");
    assert_eq!(
        error(&[&[("name", "a"), ("type", "t"), ("count", "64")], b]),
        "the requests ask for 65 devices together; the most is 64"
    );
    assert!(all(&[&[("name", "a"), ("type", "t"), ("count", "63")], b]).is_ok());
}

#[test]
fn a_hundred_thousand_requests_are_refused_without_delay() {
    // Compared one with another this would be five thousand million comparisons.
    let names: Vec<String> = (0..100_000).map(|i| format!("n{i}")).collect();
    let requests = names.iter().map(|name| [("name", name.as_str()), ("type", "t")]);
    assert_eq!(Request::parse_all(requests), Err(RequestError::TooMany(100_000)));
}

#[test]
fn the_command_line_form() {
    let table: &[(&str, &[(&str, &str)])] = &[
        ("name=gpu0,type=nvidia-63", &[("name", "gpu0"), ("type", "nvidia-63")]),
        ("nvidia-63", &[("name", "dev0"), ("type", "nvidia-63")]),
        ("nvidia-63,parent=0000:41:00.0", &[("name", "dev0"), ("type", "nvidia-63"), ("parent", "0000:41:00.0")]),
        (" name = gpu0 , pool = gold ", &[("name", "gpu0"), ("pool", "gold")]),
        ("type=a,,", &[("name", "dev0"), ("type", "a")]),
        ("type=a=b", &[("name", "dev0"), ("type", "a=b")]),
        ("", &[("name", "dev0")]),
        ("=x", &[("name", "dev0"), ("", "x")]),
        ("a,b", &[("name", "dev0"), ("type", "a"), ("type", "b")]),
    ];
    for (text, pairs) in table {
        let split = Request::pairs_from_cli(text, "dev0");
        let split: Vec<(&str, &str)> = split.iter().map(AsPair::as_pair).collect();
        assert_eq!(split, *pairs, "{text}");
    }
    assert_eq!(
        error(&[("name", "dev0"), ("type", "a"), ("type", "b")]),
        "request 'dev0': the key 'type' is given twice"
    );
}

#[test]
fn what_is_wanted_in_words() {
    let shown = |pairs: &[(&str, &str)]| request(pairs).wanted.to_string();
    assert_eq!(shown(&[("name", "a"), ("type", "t")]), "type t");
    assert_eq!(shown(&[("name", "a"), ("type", "t"), ("parent", "p")]), "type t on p");
    assert_eq!(shown(&[("name", "a"), ("pool", "gold\n")]), "pool gold\\n");
    assert_eq!(shown(&[("name", "a"), ("uuid", U)]), "an existing device");
}

fn hostdev(uuid: MdevUuid, alias: Option<&str>) -> Hostdev {
    Hostdev {
        source: HostdevSource::Mdev(uuid),
        model: "vfio-pci".into(),
        managed: false,
        alias: alias.map(Into::into),
        interface: false,
        mac: None,
        vlan: None,
    }
}

#[test]
fn a_hostdev_is_found_by_uuid_then_alias_then_derived_uuid() {
    let domain = domain_uuid(1);
    let derived = MdevUuid::derived(domain, "gpu0");
    let plain = [request(&[("name", "gpu0"), ("type", "t"), ("numa-node", "1"), ("display", "on")])];
    let uuid_text = uuid(7).to_string();
    let with_uuid = [request(&[("name", "gpu0"), ("type", "t"), ("uuid", &uuid_text)])];

    let by_uuid = [hostdev(derived, Some("ua-mdevd-gpu0")), hostdev(uuid(7), None)];
    assert_eq!(bind(domain, &with_uuid, &by_uuid).unwrap()[0].mdev().unwrap().uuid, uuid(7));
    let by_alias = [hostdev(derived, None), hostdev(uuid(8), Some("ua-mdevd-gpu0"))];
    assert_eq!(bind(domain, &plain, &by_alias).unwrap()[0].mdev().unwrap().uuid, uuid(8));
    let by_derived = [hostdev(uuid(9), Some("ua-mdevd-gpu1")), hostdev(derived, Some("hostdev0"))];
    let needs = bind(domain, &plain, &by_derived).unwrap();
    assert_eq!(
        needs,
        [Need::Mdev(MdevNeed {
            name: "gpu0".into(),
            uuid: derived,
            wanted: plain[0].wanted.clone(),
            numa_node: Some(NumaNode(1)),
            model: Some("vfio-pci".into()),
            xml: XmlOptions(vec![("display".into(), "on".into())]),
        })]
    );
    assert_eq!(uncovered(&needs, &by_derived), [uuid(9)]);

    // A request's own UUID is the only way to it, whatever aliases there are.
    assert!(matches!(bind(domain, &with_uuid, &by_alias), Err(BindError::MissingHostdev { .. })));
    // A PCI hostdev is never a request's, and says nothing about a clone.
    let pci = Hostdev {
        source: HostdevSource::Pci("0000:41:00.4".parse().unwrap()),
        model: String::new(),
        managed: true,
        alias: Some("ua-mdevd-gpu0".into()),
        interface: false,
        mac: None,
        vlan: None,
    };
    let Err(BindError::MissingHostdev { hint, .. }) = bind(domain, &plain, core::slice::from_ref(&pci)) else {
        panic!("bound to PCI")
    };
    assert_eq!(hint, "");
    assert_eq!(uncovered(&[], &[pci]), []);
    // A model that the reader did not find expects nothing.
    let unknown = [Hostdev { model: String::new(), ..hostdev(derived, None) }];
    assert_eq!(bind(domain, &plain, &unknown).unwrap()[0].mdev().unwrap().model, None);
    assert_eq!(bind(domain, &[], &by_derived), Ok(vec![]));
}

#[test]
fn a_missing_hostdev_is_printed_ready_to_paste() {
    let domain = crate::names::parse_uuid("0f154289-728c-42df-9e56-9b6c1be66e73").unwrap();
    let requests = [
        request(&[("name", "gpu0"), ("type", "nvidia-63"), ("display", "on")]),
        request(&[("name", "gpu1"), ("type", "nvidia-63")]),
    ];
    let present = [hostdev(MdevUuid::derived(domain, "gpu1"), None)];
    // The hostdev of the other request is no sign of a clone.
    assert_eq!(
        bind(domain, &requests, &present).unwrap_err().to_string(),
        "request 'gpu0' has no <hostdev> in this domain; add to <devices>:\n\
         <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci' display='on'>\n  \
         <source>\n    <address uuid='95dfa89f-59f0-54a0-83f4-c665e1e9868b'/>\n  </source>\n</hostdev>\n"
    );
    let ccw =
        [request(&[("name", "gpu0"), ("type", "vfio_ccw-io"), ("guest-address", "fe.0.0001"), ("boot-order", "2")])];
    assert_eq!(
        bind(domain, &ccw, &[]).unwrap_err().to_string(),
        "request 'gpu0' has no <hostdev> in this domain; add to <devices>:\n\
         <hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ccw'>\n  \
         <source>\n    <address uuid='95dfa89f-59f0-54a0-83f4-c665e1e9868b'/>\n  </source>\n  <boot order='2'/>\n  \
         <address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0001'/>\n</hostdev>\n"
    );
}

#[test]
fn a_cloned_domain_is_recognized() {
    let (original, clone) = (domain_uuid(1), domain_uuid(2));
    let requests = [request(&[("name", "gpu0"), ("type", "t")]), request(&[("name", "gpu1"), ("type", "t")])];
    let hostdevs =
        [hostdev(MdevUuid::derived(original, "gpu0"), None), hostdev(MdevUuid::derived(clone, "gpu1"), None)];
    let (old, new) = (MdevUuid::derived(original, "gpu0"), MdevUuid::derived(clone, "gpu0"));
    assert_eq!(
        bind(clone, &requests, &hostdevs).unwrap_err().to_string(),
        format!(
            "request 'gpu0' has no <hostdev> in this domain (was the domain cloned? no request leads to its <hostdev> {old}; then put \
             this one in its place); add to <devices>:\n<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n  \
             <source>\n    <address uuid='{new}'/>\n  </source>\n</hostdev>\n"
        )
    );
    // Many are cut.
    let many: Vec<Hostdev> = (0..9).map(|n| hostdev(uuid(n), None)).collect();
    let Err(BindError::MissingHostdev { hint, .. }) = bind(clone, &requests, &many) else { panic!("bound") };
    assert_eq!(hint.matches("00000000-").count(), 4, "{hint}");
}

#[test]
fn two_requests_never_share_a_hostdev() {
    let domain = domain_uuid(1);
    let uuid_text = uuid(7).to_string();
    let requests =
        [request(&[("name", "a"), ("type", "t")]), request(&[("name", "b"), ("type", "t"), ("uuid", &uuid_text)])];
    assert_eq!(
        bind(domain, &requests, &[hostdev(uuid(7), Some("ua-mdevd-a"))]).unwrap_err().to_string(),
        format!("the requests 'a' and 'b' lead to the same <hostdev> {}; each needs its own", uuid(7))
    );
}

#[test]
fn a_count_names_its_instances() {
    let three = request(&[("name", "gpu0"), ("type", "t"), ("count", "3")]);
    assert_eq!(three.instance_names(), ["gpu0.1", "gpu0.2", "gpu0.3"]);
    assert_eq!(request(&[("name", "gpu0"), ("type", "t"), ("count", "1")]).instance_names(), ["gpu0"]);

    let domain = domain_uuid(1);
    let hostdevs: Vec<Hostdev> =
        [3, 1, 2].iter().map(|i| hostdev(MdevUuid::derived(domain, &format!("gpu0.{i}")), None)).collect();
    let needs = bind(domain, core::slice::from_ref(&three), &hostdevs).unwrap();
    let got: Vec<(&str, MdevUuid)> =
        needs.iter().filter_map(Need::mdev).map(|need| (need.name.as_str(), need.uuid)).collect();
    let expected: Vec<(&str, MdevUuid)> =
        ["gpu0.1", "gpu0.2", "gpu0.3"].into_iter().map(|name| (name, MdevUuid::derived(domain, name))).collect();
    assert_eq!(got, expected);

    let mut next = 0;
    let free = needs_without_domain(&[three, request(&[("name", "x"), ("uuid", U)])], || {
        next += 1;
        uuid(next)
    });
    let free: Vec<&MdevNeed> = free.iter().filter_map(Need::mdev).collect();
    let got: Vec<(&str, String)> = free.iter().map(|need| (need.name.as_str(), need.uuid.to_string())).collect();
    let u = |n| uuid(n).to_string();
    assert_eq!(got, [("gpu0.1", u(1)), ("gpu0.2", u(2)), ("gpu0.3", u(3)), ("x", U.to_string())]);
    assert!(free.iter().all(|need| need.model.is_none()));
}

#[test]
fn the_request_to_paste_has_a_free_name() {
    let domain = domain_uuid(1);
    assert_eq!(
        request_to_paste(&uuid(9), &[]),
        format!("<mdevd:request name=\"dev0\" type=\"TYPE\" uuid=\"{}\"/>", uuid(9))
    );
    let requests =
        [request(&[("name", "dev0"), ("type", "t"), ("count", "2")]), request(&[("name", "dev1"), ("type", "t")])];
    let hostdevs: Vec<Hostdev> =
        ["dev0.1", "dev0.2", "dev1"].iter().map(|name| hostdev(MdevUuid::derived(domain, name), None)).collect();
    let needs = bind(domain, &requests, &hostdevs).unwrap();
    assert_eq!(
        request_to_paste(&uuid(9), &needs),
        format!("<mdevd:request name=\"dev2\" type=\"TYPE\" uuid=\"{}\"/>", uuid(9))
    );
}

#[path = "request_properties.rs"]
mod properties;
