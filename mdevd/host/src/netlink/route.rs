//! Through which interfaces a default route leads, of any routing table and with every next hop.

use std::collections::BTreeSet;

use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;

use super::message::{aligned, attributes, half, word};
use crate::error::EffectError;

/// The question, and the families that are asked for: IPv4 and IPv6.
const GET_ROUTE: u16 = 26;
const FAMILIES: [u8; 2] = [2, 10];

/// What question and parts of the answer begin with: family, lengths of destination and source, service, table, origin, scope, type, and
/// four bytes of flags.
const HEADER: usize = 12;

/// The type of a route that leads somewhere.
const UNICAST: u8 = 1;

/// A route's attributes: its interface, or a list of next hops with one each.
const INTERFACE: u16 = 4;
const NEXT_HOPS: u16 = 9;

/// The least that a next hop has: its length, two bytes without a meaning here, and its interface.
const NEXT_HOP: usize = 8;

/// The names of the interfaces that default routes lead through. Blocks.
pub fn default_interfaces() -> Result<BTreeSet<String>, EffectError> {
    ask().map_err(|errno| EffectError::new("list", "the default routes", errno))
}

fn ask() -> Result<BTreeSet<String>, Errno> {
    let mut indexes = BTreeSet::new();
    let mut nowhere = false;
    for family in FAMILIES {
        let body = [&[family][..], &[0; HEADER - 1]].concat();
        let listed = super::list(None, GET_ROUTE, &body, |route| {
            if let Some(found) = default_route(route) {
                nowhere |= found.is_empty();
                indexes.extend(found);
            }
        });
        match listed {
            // A kernel without that family.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => {}
            Err(errno) => return Err(errno),
        }
    }
    // It has a next hop of which the kernel has been told to give no more than a number.
    if nowhere {
        return Err(Errno::PROTO);
    }
    let socket = super::socket(None)?;
    let name = |index| match index_to_name(&socket, index) {
        Err(Errno::NODEV) => None, // It has gone meanwhile.
        name => Some(name),
    };
    indexes.into_iter().filter_map(name).collect()
}

/// The interfaces of a default route; `None` when it is another one.
fn default_route(route: &[u8]) -> Option<Vec<u32>> {
    let [family, 0, _, _, _, _, _, UNICAST, ..] = route.first_chunk::<HEADER>()? else { return None };
    FAMILIES.contains(family).then_some(())?;
    let mut interfaces = Vec::new();
    for (kind, payload) in attributes(route.get(HEADER..)?) {
        match kind {
            INTERFACE => interfaces.extend(word(payload, 0)),
            NEXT_HOPS => interfaces.extend(next_hops(payload)),
            _ => {}
        }
    }
    Some(interfaces)
}

fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?).max(NEXT_HOP);
        let interface = word(bytes, 4)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(interface)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::attribute;
    use proptest::prelude::*;

    fn route(family: u8, length: u8, kind: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        [&[family, length, 0, 0, 52, 4, 0, kind, 0, 0, 0, 0][..], &attributes.concat()].concat()
    }

    fn hop(interface: u32, gateway: &[u8]) -> Vec<u8> {
        let length = u16::try_from(NEXT_HOP + gateway.len()).unwrap();
        [&length.to_ne_bytes()[..], &[0, 0], &interface.to_ne_bytes(), gateway].concat()
    }

    #[test]
    fn a_default_route_names_an_interface_for_each_way() {
        let through = |interface: u32| attribute(INTERFACE, &interface.to_ne_bytes());
        let gateway = attribute(5, &[192, 0, 2, 1]);
        for family in FAMILIES {
            let one = route(family, 0, UNICAST, &[attribute(15, &[52, 0, 0, 0]), gateway.clone(), through(3)]);
            assert_eq!(default_route(&one), Some(vec![3]));
            let hops = [hop(3, &gateway), hop(7, &[]), hop(9, &gateway)].concat();
            let many = route(family, 0, UNICAST, &[attribute(NEXT_HOPS, &hops)]);
            assert_eq!(default_route(&many), Some(vec![3, 7, 9]));
            assert_eq!(default_route(&route(family, 0, UNICAST, &[attribute(30, &[1; 4])])), Some(vec![]));
            // To one network, to nowhere, and of another family.
            assert_eq!(default_route(&route(family, 8, UNICAST, &[through(3)])), None);
            assert_eq!(default_route(&route(family, 0, 7, &[through(3)])), None);
        }
        assert_eq!(default_route(&route(128, 0, UNICAST, &[through(3)])), None);
    }

    #[test]
    fn the_kernel_lists_its_default_routes() {
        let found = default_interfaces().unwrap();
        // Those of the main table are in procfs too, the first way of each.
        let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [interface, "00000000", _, "0003", _, _, _, "00000000", ..] = fields.as_slice() {
                assert!(found.contains(*interface), "{interface} is not in {found:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_route_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let route = [&[2, 0, 0, 0, 0, 0, 0, UNICAST, 0, 0, 0, 0][..], &attribute(NEXT_HOPS, &bytes)].concat();
            prop_assert!(default_route(&route).unwrap().len() <= bytes.len());
            let _ = default_route(&bytes);
        }
    }
}
