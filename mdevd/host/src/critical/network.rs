//! The functions behind a route: from an interface down through VLANs, bridges and bonds to the devices that carry it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Search, is_name};
use crate::error::Problem;
use crate::{netlink, read};

/// The longest table of routes that is read: some hundred thousand.
const TABLE_LIMIT: usize = 32 * 1024 * 1024;

/// A route that is up, and one that says that there is none.
const UP: u32 = 1;
const REJECT: u32 = 0x200;

/// The device to which routes lead that lead to nowhere.
const LOOPBACK: &str = "lo";

/// The device below which Open vSwitch has the real ones: its own have nothing below them.
const OPEN_VSWITCH: &str = "ovs-system";

/// The routes of the host.
pub struct Network {
    routes: Vec<Route>,
    /// The interfaces that a default route leads through.
    default: BTreeSet<String>,
    /// Why some of them may be missing.
    unread: Option<String>,
}

struct Route {
    interface: String,
    to: IpAddr,
    prefix: u32,
}

/// Reads a line of a table: a route and its flags.
type Parser = fn(&str) -> Option<(Route, u32)>;

impl Route {
    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        let differ = bits(self.to) ^ bits(address);
        self.to.is_ipv4() == address.is_ipv4() && differ.leading_zeros() >= self.prefix
    }

    /// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses as the number that their bytes are in memory.
    fn v4(line: &str) -> Option<(Self, u32)> {
        let [interface, to, _, flags, _, _, _, mask] = fields(line)?;
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let to = Ipv4Addr::from(hex(to)?.to_ne_bytes());
        Some((Self { interface: interface.into(), to: to.into(), prefix: hex(mask)?.count_ones() }, hex(flags)?))
    }

    /// `destination prefix source prefix gateway metric refcnt use flags interface`, all but the last in hexadecimal.
    fn v6(line: &str) -> Option<(Self, u32)> {
        let [to, prefix, _, _, _, _, _, _, flags, interface] = fields(line)?;
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let to = Ipv6Addr::from(u128::from_str_radix(to, 16).ok()?);
        Some((Self { interface: interface.into(), to: to.into(), prefix: hex(prefix)? }, hex(flags)?))
    }
}

fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    line.split_whitespace().take(N).collect::<Vec<_>>().try_into().ok()
}

impl Network {
    /// Reads the tables. A kernel without one of the protocols has none of its.
    pub fn read(search: &mut Search<'_>) -> Self {
        let mut routes: Vec<Route> = Vec::new();
        let mut unread = None;
        for (table, header, parse) in [("net/route", 1, Route::v4 as Parser), ("net/ipv6_route", 0, Route::v6)] {
            let path = search.roots.proc.join(table);
            let text = search.needed(read::unless_gone(read::text(&path, TABLE_LIMIT)), &mut unread);
            for line in text.flatten().unwrap_or_default().lines().skip(header) {
                match parse(line) {
                    Some((route, flags)) if flags & UP != 0 && flags & REJECT == 0 => routes.push(route),
                    Some(_) => {}
                    None => {
                        let why = Problem::new(&path, "a line in it is no route, so that a route may be missing");
                        search.needed(Err::<(), _>(why), &mut unread);
                    }
                }
            }
        }
        routes.retain(|route| route.interface != LOOPBACK);
        let mut default: BTreeSet<String> =
            routes.iter().filter(|route| route.prefix == 0).map(|route| route.interface.clone()).collect();
        // The files have of IPv4 the main table alone, and of each route only the first way.
        if search.roots.is_this_host() {
            let more = search.needed(netlink::default_interfaces(), &mut unread).unwrap_or_default();
            default.extend(more.into_iter().filter(|interface| interface != LOOPBACK));
        }
        Self { routes, default, unread }
    }

    /// Notes what the default route goes through, every one of them, and what is in a bond.
    pub fn look(&self, search: &mut Search<'_>) {
        let mut seen = BTreeSet::new();
        for interface in &self.default {
            seen.extend(carriers(search, interface, "carries the default route"));
        }
        if let Some(why) = &self.unread {
            note_all(search, &format!("may carry the default route ({why})"));
        }
        let class = search.roots.sys.join("class/net");
        for name in search.folder(&class).iter().filter(|name| !seen.contains(*name)) {
            let interface = class.join(name);
            if search.exists(&interface.join("bonding_slave"))
                && let Some(bond) = search.optional(read::link_name(&interface.join("master")))
            {
                search.note_at(&interface, &format!("is part of {bond}"));
            }
        }
    }

    /// Notes what the way to another host goes through; false when there is none. `what` is a clause: `carries /`.
    pub fn note_way_to(&self, search: &mut Search<'_>, address: IpAddr, what: &str) -> bool {
        let ways = self.routes.iter().filter(|route| route.contains(address));
        let Some(best) = ways.clone().map(|route| route.prefix).max() else { return false };
        for route in ways.filter(|route| route.prefix == best) {
            carriers(search, &route.interface, what);
        }
        true
    }
}

/// Notes every interface, where it could not be read which of them the host needs.
pub fn note_all(search: &mut Search<'_>, what: &str) {
    let class = search.roots.sys.join("class/net");
    for name in search.folder(&class) {
        search.note_at(&class.join(&name), &format!("{what} through {name}"));
    }
}

/// Notes each function that an interface sends through, and returns the interfaces that were looked at.
fn carriers(search: &mut Search<'_>, top: &str, what: &str) -> BTreeSet<String> {
    let class = search.roots.sys.join("class/net");
    let mut seen = BTreeSet::new();
    let mut found = false;
    let mut next = vec![top.to_owned()];
    while let Some(name) = next.pop() {
        if is_name(&name) && seen.insert(name.clone()) {
            let through = if name == top { name.clone() } else { format!("{name} ({top})") };
            let Some(interface) = search.real(&class.join(&name)) else { continue };
            // A real device that is on no PCI function is one too.
            found |= search.note(&interface, &format!("{what} through {through}"))
                || search.exists(&interface.join("device"));
            let lower = search.folder(&interface);
            next.extend(lower.iter().filter_map(|entry| entry.strip_prefix("lower_")).map(str::to_owned));
        }
        if next.is_empty() && !found && !seen.contains(OPEN_VSWITCH) && search.exists(&class.join(OPEN_VSWITCH)) {
            next.push(OPEN_VSWITCH.into());
        }
    }
    if !found {
        let why = format!("it {what}, and which device it sends through cannot be seen; give none away that does");
        search.problem(Problem::new(&class.join(top), why));
    }
    seen
}
