//! Options of every kind of element, over their whole range, for the property tests and for the check against libvirt's schemas.

#![allow(dead_code)] // no user needs all of them
use mdevd_core::hostdev::NetworkSource;
use mdevd_core::names::PciAddress;
use proptest::option::of;
use proptest::prelude::*;

/// Keys and values.
pub type Pairs = Vec<(String, String)>;

/// Some keys and values, or none, that go together.
type Part = BoxedStrategy<Pairs>;

/// `pairs` as the code under test takes them.
pub fn borrowed(pairs: &Pairs) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

fn pair(key: &'static str, value: impl Strategy<Value = String> + 'static) -> Part {
    value.prop_map(move |value| vec![(key.to_owned(), value)]).boxed()
}

fn maybe(key: &'static str, value: impl Strategy<Value = String> + 'static) -> Part {
    prop_oneof![Just(Vec::new()), pair(key, value)].boxed()
}

fn all(parts: Vec<Part>) -> Part {
    parts.prop_map(|pairs| pairs.concat()).boxed()
}

fn word(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(words).prop_map(str::to_owned)
}

fn on_off() -> impl Strategy<Value = String> {
    word(&["on", "off"])
}

fn yes_no() -> impl Strategy<Value = String> {
    word(&["yes", "no"])
}

fn alias(key: &'static str) -> Part {
    maybe(key, "ua-[A-Za-z0-9_-]{1,40}")
}

fn boot_order() -> Part {
    maybe("boot-order", prop_oneof![1u32..9, 1u32..].prop_map(|n| n.to_string()))
}

fn driver() -> Part {
    maybe("driver", prop_oneof![Just("vfio-pci".to_owned()), "[a-zA-Z0-9_+-]{0,12}vfio[_-]pci"])
}

fn display() -> Part {
    prop_oneof![
        Just(Vec::new()),
        pair("display", on_off()),
        pair("ramfb", word(&["off"])),
        all(vec![pair("display", word(&["on"])), pair("ramfb", on_off())]),
    ]
    .boxed()
}

fn rom() -> Part {
    let file = "(/[^/\\p{C}]{1,12}){1,3}";
    prop_oneof![
        pair("rom-enabled", word(&["no"])),
        all(vec![maybe("rom-enabled", word(&["yes"])), maybe("rom-bar", on_off()), maybe("rom-file", file)]),
    ]
    .boxed()
}

/// Any address on a host.
pub fn pci_address() -> impl Strategy<Value = PciAddress> {
    let domain = prop_oneof![Just(0u32), 0u32..=0x1ffff, any::<u32>()];
    (domain, any::<u8>(), 0u8..=0x1f, 0u8..=7).prop_map(|(domain, bus, device, function)| PciAddress {
        domain,
        bus,
        device,
        function,
    })
}

/// Any address in a guest.
fn guest_pci() -> impl Strategy<Value = PciAddress> {
    let address = |(bus, device, function)| PciAddress { domain: 0, bus, device, function };
    (any::<u8>(), 0u8..=0x1f, 0u8..=7)
        .prop_filter("the host bridge is there", |(bus, device, _)| (*bus, *device) != (0, 0))
        .prop_map(address)
}

fn guest_address() -> Part {
    let address = || pair("guest-address", guest_pci().prop_map(|address| address.to_string()));
    prop_oneof![Just(Vec::new()), all(vec![address(), maybe("multifunction", on_off())])].boxed()
}

/// What both elements for a PCI function take.
fn passthrough() -> Vec<Part> {
    vec![maybe("managed", yes_no()), driver(), alias("teaming"), boot_order(), alias("alias"), rom()]
}

/// Options of a `<hostdev>` for a PCI function.
pub fn pci() -> impl Strategy<Value = Pairs> {
    let mut parts = passthrough();
    parts.extend([display(), guest_address()]);
    all(parts)
}

/// The functions of a card, function 0 among them, and their options.
pub fn card() -> impl Strategy<Value = (Vec<PciAddress>, Pairs)> {
    let mut parts = passthrough();
    let slot = guest_pci().prop_map(|address| PciAddress { function: 0, ..address }.to_string());
    parts.extend([display(), maybe("guest-address", slot)]);
    let others = prop::sample::subsequence((1u8..8).collect::<Vec<_>>(), 0..8);
    let functions = (pci_address(), others).prop_map(|(address, others)| {
        std::iter::once(0).chain(others).map(|function| PciAddress { function, ..address }).collect()
    });
    (functions, all(parts))
}

/// Options of an `<interface>`.
pub fn interface() -> impl Strategy<Value = Pairs> {
    let mac = any::<[u8; 6]>().prop_filter_map("a group's, or none", |[first, a, b, c, d, e]| {
        let bytes = [first & !1, a, b, c, d, e];
        bytes.iter().any(|byte| *byte != 0).then(|| bytes.map(|byte| format!("{byte:02x}")).join(":"))
    });
    let profile = "[^\\p{C}<>&'\"]{1,39}".prop_filter("too many bytes", |text| text.len() <= 39);
    let tagging = prop_oneof![
        Just(Vec::new()),
        pair("vlan", (1u16..=4094).prop_map(|id| id.to_string())),
        all(vec![pair("virtualport-type", word(&["802.1Qbh"])), pair("profile-id", profile)]),
    ];
    let mut parts = passthrough();
    parts.extend([maybe("mac", mac), tagging.boxed(), guest_address()]);
    all(parts)
}

/// Name, source and options of a `<network>`.
pub fn network() -> impl Strategy<Value = (String, NetworkSource, Pairs)> {
    let name = "[^/\\p{C}]{1,30}".prop_filter("only spaces", |name| !name.trim().is_empty());
    let netdev = "[a-zA-Z0-9_.-]{1,15}".prop_filter("a folder", |name| !matches!(name.as_str(), "." | ".."));
    let source = prop_oneof![
        netdev.prop_map(NetworkSource::Pf),
        prop::collection::btree_set(pci_address(), 1..9).prop_map(|vfs| NetworkSource::Vfs(vfs.into_iter().collect())),
    ];
    (name, source, all(vec![maybe("managed", yes_no()), driver()]))
}

/// Device API and options of a `<hostdev>` for a mediated device.
pub fn mdev() -> impl Strategy<Value = (&'static str, Pairs)> {
    let pci_address = maybe("guest-address", guest_pci().prop_map(|address| address.to_string()));
    let pci = all(vec![display(), alias("alias"), pci_address]).prop_map(|pairs| ("vfio-pci", pairs));
    let ccw_address = (0u8..=0xfe, 0u8..=3, any::<u16>()).prop_map(|(c, s, d)| format!("{c:x}.{s:x}.{d:04x}"));
    let ccw = all(vec![alias("alias"), maybe("guest-address", ccw_address), boot_order()]);
    let ccw = ccw.prop_map(|pairs| ("vfio-ccw", pairs));
    prop_oneof![pci, ccw, alias("alias").prop_map(|pairs| ("vfio-ap", pairs))]
}

/// The attributes of a request in a domain's metadata, with any text in them.
pub fn request() -> impl Strategy<Value = Pairs> {
    let keys = vec!["name", "type", "parent", "address", "pool", "mac", "vlan", "colour"];
    let keys = prop::sample::subsequence(keys, 1..8);
    (keys, prop::collection::vec(of("(?s).{0,20}").prop_map(Option::unwrap_or_default), 8))
        .prop_map(|(keys, values)| keys.into_iter().map(str::to_owned).zip(values).collect())
}
