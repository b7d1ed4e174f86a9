//! What is installed for the bus and for polkit, and what the page on authorization says, against the interface XML: nothing of the
//! contract is missing there, and nothing else is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mdevd_dbus::xml;
use zbus_xml::Node;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every `Interface.Method` of the contract, and the actions that it needs.
fn methods() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for (interface, text) in xml::ALL {
        let node = Node::from_reader(text.as_bytes()).unwrap();
        for method in node.interfaces()[0].methods() {
            let action = method.annotations().iter().find(|a| a.name() == xml::ACTION).unwrap();
            let name = format!("{}.{}", interface.trim_start_matches("org.mdevd1."), method.name());
            found.insert(name, action.value().split(' ').map(str::to_owned).collect());
        }
    }
    found
}

/// What stands between each `start` and the next `end`.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    text.split(start).skip(1).map(|rest| rest.split(end).next().unwrap()).collect()
}

#[test]
fn the_bus_policy_opens_our_interfaces_one_by_one_and_no_other() {
    let policy = read("packaging/dbus-1/system.d/org.mdevd1.conf");
    let (head, rest) = policy.split_once("<policy context=\"default\">").unwrap();
    assert_eq!(between(head, "<allow ", "/>"), ["own=\"org.mdevd1\""], "only root owns the name");
    assert!(head.contains("<policy user=\"root\">"));
    let standard =
        ["ObjectManager", "Properties", "Introspectable", "Peer"].map(|n| format!("org.freedesktop.DBus.{n}"));
    let ours = xml::ALL.iter().map(|(interface, _)| interface.to_string());
    let rule = |interface: String| format!("send_destination=\"org.mdevd1\" send_interface=\"{interface}\"");
    let wanted: BTreeSet<String> = ours.chain(standard).map(rule).collect();
    let open: Vec<&str> = between(rest, "<allow ", "/>");
    assert_eq!(open.len(), wanted.len(), "one twice");
    assert_eq!(open.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn polkit_knows_every_action_and_denies_by_default() {
    let policy = read("packaging/polkit-1/actions/org.mdevd1.policy");
    let wanted: BTreeSet<String> = methods().into_values().flatten().filter(|a| a != xml::NONE_ROOT_ONLY).collect();
    let mut found = BTreeSet::new();
    for action in between(&policy, "<action id=\"", "</action>") {
        let id = action.split('"').next().unwrap();
        let default = if id == "org.mdevd1.inspect" { "yes" } else { "auth_admin" };
        for whose in ["any", "inactive", "active"] {
            let element = format!("allow_{whose}>");
            assert_eq!(between(action, &format!("<{element}"), "<"), [default], "{id}");
        }
        assert_eq!(between(action, "<description>", "<").len(), 1, "{id}");
        let message = between(action, "<message>", "<");
        assert!(message.len() == 1 && message[0].starts_with("Authentication is required to "), "{id}");
        found.insert(id.to_owned());
    }
    assert_eq!(found, wanted);
}

/// The lab finds out that the page's tables are true; this, that no method is missing there, and that they are what the contract says.
#[test]
fn the_page_on_authorization_has_every_method() {
    let page = read("docs/authorization.md");
    let methods = methods();
    let tables = between(&page, "\n### When ", "\n### When ");
    assert_eq!(tables.len(), 4);
    for (number, table) in tables.into_iter().enumerate() {
        let mut rows = table.lines().filter(|line| line.starts_with("| "));
        assert!(rows.next().unwrap().starts_with("| method | root | "), "{table}");
        let mut seen = BTreeSet::new();
        for row in rows {
            let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
            let name = cells[0].split(", ").next().unwrap();
            if name == "reading properties" {
                assert!(cells[1..].iter().all(|cell| *cell == "yes"), "{row}");
                continue;
            }
            let needs = methods.get(name).unwrap_or_else(|| panic!("{name} is not in the contract"));
            let for_all = number == 0 && needs[0] == "org.mdevd1.inspect";
            let anybody = if for_all { "yes" } else { "no" };
            assert_eq!((cells[1], *cells.last().unwrap()), ("yes", anybody), "{row}");
            let prompt = number == 0 && !for_all && needs[0] != xml::NONE_ROOT_ONLY;
            assert_eq!(cells.contains(&"password"), prompt, "{row}");
            seen.insert(name.to_owned());
        }
        assert_eq!(seen, methods.keys().cloned().collect::<BTreeSet<_>>(), "a table lacks a method");
    }
    for action in methods.values().flatten().filter(|action| *action != xml::NONE_ROOT_ONLY) {
        assert!(page.contains(&format!("| `{action}` | ")), "{action} has no row");
    }
}

/// Who writes a rule looks into the example for what there is to ask for.
#[test]
fn the_example_rule_lists_every_action_and_method_that_needs_one() {
    let rule = read("packaging/polkit-1/rules.d/50-mdevd.rules");
    for (name, actions) in methods() {
        for action in actions.iter().filter(|action| *action != xml::NONE_ROOT_ONLY) {
            assert!(rule.contains(&format!("//   {action} ")), "{action} is not in the example");
            let method = name.split('.').nth(1).unwrap();
            assert!(action == "org.mdevd1.inspect" || rule.contains(method), "{method} is not in the example");
        }
    }
}
