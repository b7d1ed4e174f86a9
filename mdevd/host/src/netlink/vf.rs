//! What a physical function's network driver does with its virtual functions: the `vf` lines of `ip link show`, read and set.

use std::collections::BTreeMap;

use mdevd_core::function::{LinkState, VfSettings};
use mdevd_core::names::MacAddress;
use rustix::io::Errno;

use super::message::{attribute, attributes, text_attribute, word};
use crate::error::EffectError;

/// Messages about a network device: one asks for it, one changes it. Both begin with 16 bytes that name it by number; ours name it by its
/// name, and have only zeros there.
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const LINK_HEADER: usize = 16;

/// The longest name of a network device.
const NAME_LIMIT: usize = 15;

/// Attributes of a network device: its name, what else is to be told, and its virtual functions.
const NAME: u16 = 3;
const VF_LIST: u16 = 22;
const ALSO_TELL: u16 = 29;

/// To be told of virtual functions too, but without their counters, which would leave room for a third of them only.
const WITH_VFS_WITHOUT_COUNTERS: u32 = 1 | 1 << 3;

/// One virtual function in the list, and the attributes of it. Each begins with its number.
const VF: u16 = 1;
const MAC: u16 = 1;
const VLAN: u16 = 2;
const MAX_RATE: u16 = 3;
const SPOOF_CHECK: u16 = 4;
const LINK_STATE: u16 = 5;
const RATES: u16 = 6;
const TRUST: u16 = 9;
const VLAN_LIST: u16 = 12;

/// The room for a hardware address.
const MAC_ROOM: usize = 32;

/// What a driver does with each virtual function of its device, by number; empty for a device without any. Blocks.
pub fn vf_settings(netdev: &str) -> Result<BTreeMap<u32, VfSettings>, EffectError> {
    let fail = |errno| EffectError::new("read the virtual functions of", netdev, errno);
    let mut body = link(netdev).map_err(fail)?;
    body.extend(attribute(ALSO_TELL, &WITH_VFS_WITHOUT_COUNTERS.to_ne_bytes()));
    let answer = super::ask(None, GET_LINK, &body).map_err(fail)?;
    Ok(parse(answer.get(LINK_HEADER..).unwrap_or_default()))
}

/// Sets what these settings say, one after the other, and stops at the first that is refused: the error's value is that one. Blocks.
pub fn set_vf(netdev: &str, index: u32, settings: &VfSettings) -> Result<(), EffectError> {
    let link = link(netdev).map_err(|errno| EffectError::new("set up", vf_name(netdev, index), errno))?;
    set_each(
        (netdev, index),
        settings,
        || Ok(vf_settings(netdev)?.remove(&index).unwrap_or_default()),
        |vf| super::tell(None, SET_LINK, &[link.clone(), attribute(VF_LIST, &attribute(VF, vf))].concat()),
    )
}

/// A virtual function in a message.
pub(crate) fn vf_name(netdev: &str, index: u32) -> String {
    format!("virtual function {index} of {netdev}")
}

/// What a message about a network device begins with, with its name.
fn link(netdev: &str) -> Result<Vec<u8>, Errno> {
    if netdev.is_empty() || netdev.len() > NAME_LIMIT || netdev.contains(['/', '\0']) {
        return Err(Errno::INVAL);
    }
    Ok([vec![0; LINK_HEADER], text_attribute(NAME, netdev)].concat())
}

/// Sets one thing after the other by `tell`. `now` is what the virtual function has; it is asked for only where it matters.
fn set_each(
    (netdev, index): (&str, u32),
    settings: &VfSettings,
    now: impl Fn() -> Result<VfSettings, EffectError>,
    mut tell: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), EffectError> {
    for one in settings.one_by_one() {
        let one = whole(one, &now)?;
        if one.is_empty() {
            continue;
        }
        let Err(errno) = tell(&encode(index, &one)) else { continue };
        // Some drivers refuse to take away a VLAN where there is none.
        let no_vlan = one.vlan == Some(0) && one.qos.unwrap_or(0) == 0;
        if no_vlan && matches!(errno, Errno::PERM | Errno::OPNOTSUPP) && now()?.vlan == Some(0) {
            continue;
        }
        let mut error = EffectError::new("give", vf_name(netdev, index), errno);
        error.value = Some(one.to_string());
        return Err(error);
    }
    Ok(())
}

/// With the other half of a pair that the kernel takes as one, as it is now; empty where both are what they should be already.
fn whole(one: VfSettings, now: impl Fn() -> Result<VfSettings, EffectError>) -> Result<VfSettings, EffectError> {
    let half = one.vlan.is_some() != one.qos.is_some() || one.min_rate.is_some() != one.max_rate.is_some();
    // Without a VLAN there is no priority in it.
    if half && one.vlan != Some(0) { Ok(one.changed_from(&now()?)) } else { Ok(one) }
}

/// The attributes of these settings.
fn encode(index: u32, settings: &VfSettings) -> Vec<u8> {
    let words = |kind, words: &[u32]| {
        let numbers = std::iter::once(&index).chain(words);
        attribute(kind, &numbers.flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())
    };
    let mut bytes = Vec::new();
    if let Some(MacAddress(mac)) = settings.mac {
        let mut room = [index.to_ne_bytes().as_slice(), &mac].concat();
        room.resize(size_of::<u32>() + MAC_ROOM, 0);
        bytes.extend(attribute(MAC, &room));
    }
    if settings.vlan.is_some() || settings.qos.is_some() {
        bytes.extend(words(VLAN, &[settings.vlan.unwrap_or(0).into(), settings.qos.unwrap_or(0).into()]));
    }
    if let Some(on) = settings.spoof_check {
        bytes.extend(words(SPOOF_CHECK, &[on.into()]));
    }
    if let Some(on) = settings.trust {
        bytes.extend(words(TRUST, &[on.into()]));
    }
    if settings.min_rate.is_some() || settings.max_rate.is_some() {
        bytes.extend(words(RATES, &[settings.min_rate.unwrap_or(0), settings.max_rate.unwrap_or(0)]));
    }
    if let Some(state) = settings.link_state {
        bytes.extend(words(LINK_STATE, &[link_state_number(state)]));
    }
    bytes
}

/// The virtual functions in the attributes of a network device.
fn parse(bytes: &[u8]) -> BTreeMap<u32, VfSettings> {
    let of = |kind| move |(found, payload)| (found == kind).then_some(payload);
    attributes(bytes).filter_map(of(VF_LIST)).flat_map(attributes).filter_map(of(VF)).filter_map(parse_one).collect()
}

fn parse_one(bytes: &[u8]) -> Option<(u32, VfSettings)> {
    let mut index = None;
    let mut settings = VfSettings::default();
    for (kind, payload) in attributes(bytes) {
        match kind {
            MAC => {
                index = word(payload, 0);
                settings.mac = payload.get(4..).and_then(<[u8]>::first_chunk).map(|mac| MacAddress(*mac));
            }
            VLAN => (settings.vlan, settings.qos) = vlan(payload),
            // Newer, and the same again: with the protocol, which settings do not have.
            VLAN_LIST if settings.vlan.is_none() => {
                if let Some((_, first)) = attributes(payload).next() {
                    (settings.vlan, settings.qos) = vlan(first);
                }
            }
            SPOOF_CHECK => settings.spoof_check = switch(payload),
            TRUST => settings.trust = switch(payload),
            RATES => (settings.min_rate, settings.max_rate) = (word(payload, 4), word(payload, 8)),
            MAX_RATE => settings.max_rate = settings.max_rate.or(word(payload, 4)),
            LINK_STATE => {
                let number = word(payload, 4);
                settings.link_state = [LinkState::Auto, LinkState::Enable, LinkState::Disable]
                    .into_iter()
                    .find(|state| number == Some(link_state_number(*state)));
            }
            _ => {}
        }
    }
    Some((index?, settings))
}

/// VLAN and priority.
fn vlan(payload: &[u8]) -> (Option<u16>, Option<u8>) {
    let small = |at, most| word(payload, at).filter(|number| *number <= most);
    (small(4, 4095).and_then(|vlan| vlan.try_into().ok()), small(8, 7).and_then(|qos| qos.try_into().ok()))
}

/// On or off; what a driver does not say is neither.
fn switch(payload: &[u8]) -> Option<bool> {
    match word(payload, 4)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn link_state_number(state: LinkState) -> u32 {
    match state {
        LinkState::Auto => 0,
        LinkState::Enable => 1,
        LinkState::Disable => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    /// One virtual function as a kernel of today tells it, but for what we do not read.
    fn told(index: u32, trust: u32) -> Vec<u8> {
        let words = |kind: u16, words: &[u32]| {
            let bytes: Vec<u8> = [&[index], words].concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
            attribute(kind, &bytes)
        };
        let mut mac = index.to_ne_bytes().to_vec();
        mac.extend([0x52, 0x54, 0, 0x6d, 0x90, 2]);
        mac.resize(36, 0);
        let mut tagged: Vec<u8> = [index, 42, 3].iter().flat_map(|word| word.to_ne_bytes()).collect();
        tagged.extend([0x81, 0, 0, 0]);
        [
            attribute(MAC, &mac),
            attribute(13, &[0xff; 32]),
            words(VLAN, &[42, 3]),
            words(RATES, &[100, 1000]),
            words(MAX_RATE, &[1000]),
            words(SPOOF_CHECK, &[u32::MAX]),
            words(LINK_STATE, &[2]),
            words(7, &[u32::MAX]),
            words(TRUST, &[trust]),
            attribute(VLAN_LIST, &attribute(1, &tagged)),
        ]
        .concat()
    }

    fn settings() -> VfSettings {
        VfSettings {
            mac: Some("52:54:00:6d:90:02".parse().unwrap()),
            vlan: Some(42),
            qos: Some(3),
            trust: Some(true),
            spoof_check: None,
            min_rate: Some(100),
            max_rate: Some(1000),
            link_state: Some(LinkState::Disable),
        }
    }

    #[test]
    fn a_list_of_virtual_functions_is_read() {
        let list = attribute(VF_LIST, &[attribute(VF, &told(0, 1)), attribute(VF, &told(7, u32::MAX))].concat());
        let answer = [text_attribute(NAME, "enp1s0"), attribute(21, &2_u32.to_ne_bytes()), list].concat();
        let wanted = BTreeMap::from([(0, settings()), (7, VfSettings { trust: None, ..settings() })]);
        assert_eq!(parse(&answer), wanted);
        assert_eq!(parse(&text_attribute(NAME, "enp1s0")), BTreeMap::new());
    }

    #[test]
    fn what_is_told_otherwise_or_not_at_all() {
        let one = |bytes: &[u8]| parse(&attribute(VF_LIST, &attribute(VF, bytes))).remove(&4);
        let mac = [&4_u32.to_ne_bytes()[..], &[0; 32]].concat();
        let mac = attribute(MAC, &mac);
        let tagged: Vec<u8> = [4_u32, 42, 3, 0x81].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let nothing = VfSettings { mac: Some(MacAddress::ZERO), ..VfSettings::default() };
        assert_eq!(one(&mac), Some(nothing));
        let listed = [mac.clone(), attribute(VLAN_LIST, &attribute(1, &tagged))].concat();
        assert_eq!(one(&listed), Some(VfSettings { vlan: Some(42), qos: Some(3), ..nothing }));
        let strange =
            [mac, encode(4, &VfSettings { vlan: Some(4096), qos: Some(8), ..VfSettings::default() })].concat();
        assert_eq!(one(&strange), Some(nothing));
        assert_eq!(one(&[]), None, "without a number it is nobody's");
    }

    #[test]
    fn each_setting_is_a_message_of_its_own_in_the_right_order() {
        let told = RefCell::new(Vec::new());
        let all = VfSettings { spoof_check: Some(false), ..settings() };
        let unasked = || panic!("nothing is missing");
        let tell = |bytes: &[u8]| {
            told.borrow_mut().push(bytes.to_vec());
            Ok(())
        };
        set_each(("enp1s0", 7), &all, unasked, tell).unwrap();
        let words = |kind: u16, words: &[u32]| {
            attribute(kind, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())
        };
        let mut mac = vec![40, 0, 1, 0];
        mac.extend(7_u32.to_ne_bytes());
        mac.extend([0x52, 0x54, 0, 0x6d, 0x90, 2]);
        mac.resize(40, 0);
        if cfg!(target_endian = "little") {
            assert_eq!(told.borrow()[0], mac);
        }
        assert_eq!(
            told.borrow()[1..],
            [
                words(VLAN, &[7, 42, 3]),
                words(SPOOF_CHECK, &[7, 0]),
                words(TRUST, &[7, 1]),
                words(RATES, &[7, 100, 1000]),
                words(LINK_STATE, &[7, 2]),
            ]
        );
    }

    /// Sets this on a virtual function that has [`settings`] and whose driver answers with `errno`; returns what it was told.
    fn set(wanted: VfSettings, now: VfSettings, errno: Option<Errno>) -> Result<Vec<VfSettings>, String> {
        let told = RefCell::new(Vec::new());
        let result = set_each(
            ("enp1s0", 0),
            &wanted,
            || Ok(now),
            |bytes| {
                // The number of the virtual function comes with its address only.
                let mac = attribute(MAC, &[0; 4]);
                told.borrow_mut().push(parse_one(&[bytes, &mac[..]].concat()).unwrap().1);
                errno.map_or(Ok(()), Err)
            },
        );
        result.map(|()| told.into_inner()).map_err(|error| error.to_string())
    }

    #[test]
    fn half_a_pair_keeps_the_other_half() {
        let none = VfSettings::default();
        let set = |wanted| set(wanted, settings(), None).unwrap();
        let pair = |vlan, qos| [VfSettings { vlan: Some(vlan), qos: Some(qos), ..none }];
        assert_eq!(set(VfSettings { vlan: Some(43), ..none }), pair(43, 3));
        assert_eq!(set(VfSettings { qos: Some(5), ..none }), pair(42, 5));
        assert_eq!(set(VfSettings { vlan: Some(0), ..none }), pair(0, 0));
        let pair = |min, max| [VfSettings { min_rate: Some(min), max_rate: Some(max), ..none }];
        assert_eq!(set(VfSettings { max_rate: Some(500), ..none }), pair(100, 500));
        assert_eq!(set(VfSettings { min_rate: Some(0), ..none }), pair(0, 1000));
        assert_eq!(set(VfSettings { max_rate: Some(1000), ..none }), [], "as it is");
        assert_eq!(set(none), []);
    }

    #[test]
    fn the_first_refusal_is_named_and_ends_it() {
        let wanted = VfSettings { vlan: Some(5), qos: Some(1), trust: Some(true), ..VfSettings::default() };
        assert_eq!(
            set(wanted, settings(), Some(Errno::PERM)),
            Err("cannot give 'vlan 5, qos 1' to virtual function 0 of enp1s0: EPERM (Operation not permitted)".into())
        );
    }

    #[test]
    fn no_vlan_may_stay_no_vlan() {
        let off = VfSettings { vlan: Some(0), ..VfSettings::default() };
        let without = VfSettings { vlan: Some(0), qos: Some(0), ..settings() };
        for errno in [Errno::PERM, Errno::OPNOTSUPP] {
            assert_eq!(set(off, without, Some(errno)).unwrap().len(), 1);
            assert!(set(off, settings(), Some(errno)).is_err(), "it has one");
            assert!(set(VfSettings { qos: Some(3), ..off }, without, Some(errno)).is_err(), "a priority was asked for");
        }
        assert!(set(off, without, Some(Errno::BUSY)).is_err());
        assert!(set(off, VfSettings::default(), Some(Errno::PERM)).is_err(), "nobody knows what it has");
    }

    #[test]
    fn the_kernel_answers() {
        assert_eq!(vf_settings("lo"), Ok(BTreeMap::new()));
        let error = vf_settings("mdevd-none").unwrap_err().to_string();
        assert_eq!(error, "cannot read the virtual functions of mdevd-none: ENODEV (No such device)");
        for wrong in ["", "a/b", "a\0", "sixteen-letters-"] {
            assert_eq!(vf_settings(wrong).unwrap_err().errno_name(), "EINVAL", "{wrong:?}");
        }
        let trust = VfSettings { trust: Some(true), ..VfSettings::default() };
        let error = set_vf("lo", 3, &trust).unwrap_err();
        let (op, value) = (error.op, error.value.as_deref());
        assert_eq!((op, error.path.to_str(), value), ("give", Some("virtual function 3 of lo"), Some("trust on")));
        // To be root is to be refused by the device, and not to be is to be refused.
        let wanted = if rustix::process::geteuid().is_root() { "EOPNOTSUPP" } else { "EPERM" };
        assert_eq!(error.errno_name(), wanted);
    }

    fn any_settings() -> impl Strategy<Value = VfSettings> {
        let states = vec![LinkState::Auto, LinkState::Enable, LinkState::Disable];
        (
            any::<Option<[u8; 6]>>(),
            proptest::option::of((0..4096_u16, 0..8_u8)),
            any::<[Option<bool>; 2]>(),
            any::<Option<(u32, u32)>>(),
            proptest::option::of(proptest::sample::select(states)),
        )
            .prop_map(|(mac, vlan, [trust, spoof_check], rates, link_state)| VfSettings {
                mac: mac.map(MacAddress),
                vlan: vlan.map(|(vlan, _)| vlan),
                qos: vlan.map(|(_, qos)| qos),
                trust,
                spoof_check,
                min_rate: rates.map(|(min, _)| min),
                max_rate: rates.map(|(_, max)| max),
                link_state,
            })
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(&attribute(VF_LIST, &attribute(VF, &bytes)));
            for kind in [MAC, VLAN, MAX_RATE, SPOOF_CHECK, LINK_STATE, RATES, TRUST, VLAN_LIST] {
                let _ = parse_one(&attribute(kind, &bytes));
            }
        }

        #[test]
        fn what_is_set_is_what_would_be_read(index in any::<u32>(), settings in any_settings()) {
            let settings = VfSettings { mac: settings.mac.or(Some(MacAddress::ZERO)), ..settings };
            prop_assert_eq!(parse_one(&encode(index, &settings)), Some((index, settings)));
        }
    }
}
