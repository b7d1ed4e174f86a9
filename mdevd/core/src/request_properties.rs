//! No text is too strange to be judged, and what a refusal tells to paste is all it takes.

use super::*;
use crate::domain_xml::{Domain, metadata_xml};
use proptest::prelude::*;

/// Any text, control characters too.
fn text() -> impl Strategy<Value = String> {
    "(?s).{0,12}|[a-z0-9=,. -]{0,30}"
}

/// Requests that are right, as pairs, unique in name and UUID.
fn sound_requests() -> impl Strategy<Value = Vec<Vec<(String, String)>>> {
    let xml = prop_oneof![
        Just(vec![]),
        Just(vec![("display", "on"), ("ramfb", "on")]),
        Just(vec![("display", "off")]),
        Just(vec![("guest-address", "0000:04:00.0")]),
        Just(vec![("guest-address", "fe.0.0002"), ("boot-order", "3")]),
    ];
    let one = ("[A-Za-z0-9_-]{1,32}", any::<Option<u128>>(), 1u32..=3, xml, any::<bool>());
    proptest::collection::vec(one, 1..=5).prop_map(|requests| {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for (name, uuid, count, xml, pool) in requests {
            if !seen.insert(name.clone()) || uuid.is_some_and(|uuid| !seen.insert(uuid.to_string())) {
                continue;
            }
            let wanted = if pool { ("pool", "gold") } else { ("type", "nvidia-63") };
            let mut pairs: Vec<(String, String)> = vec![("name".into(), name), (wanted.0.into(), wanted.1.into())];
            match uuid {
                Some(uuid) => pairs.push(("uuid".into(), Uuid::from_u128(uuid).to_string())),
                None if count > 1 && !xml.iter().any(|(key, _)| ["guest-address", "boot-order"].contains(key)) => {
                    pairs.push(("count".into(), count.to_string()));
                }
                None => {}
            }
            pairs.extend(xml.into_iter().map(|(key, value)| (key.to_string(), value.to_string())));
            all.push(pairs);
        }
        all
    })
}

proptest! {
    #[test]
    fn no_pairs_panic_and_errors_are_one_printable_line(
        pairs in proptest::collection::vec(
            (prop_oneof![proptest::sample::select(KEYS.to_vec()).prop_map(String::from), text()], text()),
            0..6,
        )
    ) {
        let borrowed: Vec<(&str, &str)> = pairs.iter().map(AsPair::as_pair).collect();
        match Request::parse(borrowed) {
            Ok(request) => prop_assert!((1..=MAX_COUNT).contains(&request.count)),
            Err(e) => {
                let message = e.to_string();
                prop_assert!(!message.chars().any(char::is_control), "{message:?}");
                prop_assert!(message.starts_with("request '"), "{message:?}");
            }
        }
    }

    #[test]
    fn no_command_line_panics(text in text()) {
        let pairs = Request::pairs_from_cli(&text, "dev0");
        prop_assert!(pairs.iter().any(|(key, _)| key == "name"));
        // What it makes of the text is then judged like any other request: no second parser.
        let parsed = Request::parse(pairs.iter().map(AsPair::as_pair));
        prop_assert_eq!(parsed, Request::parse_all([&pairs[..]].map(|p| p.iter().cloned())).map(|mut all| all.remove(0)));
    }

    #[test]
    fn what_a_refusal_tells_to_paste_is_all_it_takes(pairs in sound_requests(), domain: u128, stranger: u128) {
        let domain = Uuid::from_u128(domain);
        let requests = Request::parse_all(pairs.iter().cloned()).unwrap();
        let total = requests.iter().map(|r| r.instance_names().len()).sum::<usize>();
        // A hostdev that no request means, as a clone has one.
        let mut devices = MdevHostdevXml::from_options(MdevUuid(Uuid::from_u128(stranger)), "vfio-pci", []).unwrap().to_xml();
        // Paste what the message says, as a person would, until there is nothing left to say.
        for round in 0.. {
            let text = format!(
                "<domain type='kvm'>\n<name>vm</name>\n<uuid>{domain}</uuid>\n{}<devices>\n{devices}</devices>\n</domain>\n",
                metadata_xml(&pairs)
            );
            let read = Domain::parse(&text).unwrap();
            prop_assert_eq!(&read.requests, &pairs);
            match bind(read.uuid, &Request::parse_all(read.requests).unwrap(), &read.hostdevs) {
                Ok(needs) => {
                    let names: Vec<&str> = needs.iter().map(Need::name).collect();
                    let expected: Vec<String> = requests.iter().flat_map(Request::instance_names).collect();
                    prop_assert_eq!(names, expected);
                    prop_assert_eq!(round, total);
                    prop_assert_eq!(uncovered(&needs, &read.hostdevs).len(), 1, "the stranger only");
                    break;
                }
                Err(BindError::MissingHostdev { element, .. }) => {
                    prop_assert!(round < total, "{} rounds are not enough", round);
                    devices.push_str(&element);
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
