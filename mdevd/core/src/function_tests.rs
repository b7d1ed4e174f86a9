//! What is set of a virtual function: what differs, what belongs together, and how it is said.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;
use proptest::sample::select;

const NONE: VfSettings = VfSettings {
    mac: None,
    vlan: None,
    qos: None,
    trust: None,
    spoof_check: None,
    min_rate: None,
    max_rate: None,
    link_state: None,
};

fn mac(last: u8) -> Option<MacAddress> {
    Some(MacAddress([0x52, 0x54, 0, 0, 0, last]))
}

fn vlan(vlan: u16, qos: u8) -> VfSettings {
    VfSettings { vlan: Some(vlan), qos: Some(qos), ..NONE }
}

fn rates(min: u32, max: u32) -> VfSettings {
    VfSettings { min_rate: Some(min), max_rate: Some(max), ..NONE }
}

#[test]
fn what_changes() {
    let only_vlan = |id| VfSettings { vlan: Some(id), ..NONE };
    let only_qos = |qos| VfSettings { qos: Some(qos), ..NONE };
    let trust = |on| VfSettings { trust: Some(on), ..NONE };
    // (what is wanted, what is so now, what changes)
    let table = [
        (NONE, NONE, NONE),
        (NONE, vlan(42, 3), NONE),
        (trust(true), trust(false), trust(true)),
        (trust(true), trust(true), NONE),
        // What the driver does not say may be anything.
        (trust(false), NONE, trust(false)),
        (VfSettings { mac: mac(1), ..trust(true) }, VfSettings { mac: mac(1), ..NONE }, trust(true)),
        // A VLAN and its priority go together.
        (only_vlan(42), vlan(0, 0), vlan(42, 0)),
        (only_vlan(43), vlan(42, 3), vlan(43, 3)),
        (only_qos(5), vlan(42, 3), vlan(42, 5)),
        (only_vlan(42), vlan(42, 3), NONE),
        (only_qos(5), NONE, only_qos(5)),
        (only_vlan(42), only_vlan(0), only_vlan(42)),
        // Without a VLAN there is no priority in it.
        (only_vlan(0), vlan(42, 3), vlan(0, 0)),
        (only_vlan(0), only_vlan(42), only_vlan(0)),
        (vlan(0, 0), vlan(42, 3), vlan(0, 0)),
        // So do the two rates.
        (VfSettings { max_rate: Some(100), ..NONE }, rates(10, 0), rates(10, 100)),
        (VfSettings { min_rate: Some(5), ..NONE }, rates(10, 50), rates(5, 50)),
        (VfSettings { max_rate: Some(50), ..NONE }, rates(10, 50), NONE),
        (rates(1, 2), NONE, rates(1, 2)),
        (
            VfSettings { link_state: Some(LinkState::Enable), spoof_check: Some(false), ..NONE },
            VfSettings { link_state: Some(LinkState::Auto), spoof_check: Some(false), ..NONE },
            VfSettings { link_state: Some(LinkState::Enable), ..NONE },
        ),
    ];
    for (wanted, now, changes) in table {
        assert_eq!(wanted.changed_from(&now), changes, "{wanted} from {now}");
    }
}

#[test]
fn only_what_another_one_speaks_of() {
    let all = VfSettings {
        mac: mac(1),
        trust: Some(true),
        spoof_check: Some(true),
        min_rate: Some(1),
        max_rate: Some(2),
        link_state: Some(LinkState::Auto),
        ..vlan(42, 3)
    };
    let table = [
        (NONE, NONE),
        (all, all),
        (VfSettings { mac: mac(9), ..NONE }, VfSettings { mac: mac(1), ..NONE }),
        (VfSettings { vlan: Some(9), ..NONE }, vlan(42, 3)),
        (VfSettings { qos: Some(0), ..NONE }, vlan(42, 3)),
        (VfSettings { max_rate: Some(0), ..NONE }, rates(1, 2)),
        (VfSettings { min_rate: Some(0), ..NONE }, rates(1, 2)),
        (
            VfSettings { trust: Some(false), spoof_check: Some(false), ..NONE },
            VfSettings { trust: Some(true), spoof_check: Some(true), ..NONE },
        ),
        (
            VfSettings { link_state: Some(LinkState::Disable), ..NONE },
            VfSettings { link_state: Some(LinkState::Auto), ..NONE },
        ),
    ];
    for (of, only) in table {
        assert_eq!(all.only(&of), only, "{of}");
    }
    assert_eq!(NONE.only(&all), NONE);
    // What libvirt sets of an interface.
    assert_eq!(NONE.with_mac_and_vlan(), VfSettings { mac: Some(MacAddress::ZERO), vlan: Some(0), ..NONE });
    assert_eq!(all.with_mac_and_vlan(), all);
    assert_eq!(all.only(&NONE.with_mac_and_vlan()), VfSettings { mac: mac(1), ..vlan(42, 3) });
}

#[test]
fn one_by_one_as_the_kernel_takes_it() {
    let all = VfSettings {
        mac: mac(1),
        trust: Some(true),
        spoof_check: Some(false),
        min_rate: Some(1),
        max_rate: Some(2),
        link_state: Some(LinkState::Auto),
        ..vlan(42, 3)
    };
    let words: Vec<String> = all.one_by_one().map(|one| one.to_string()).collect();
    let wanted = [
        "mac 52:54:00:00:00:01",
        "vlan 42, qos 3",
        "spoofchk off",
        "trust on",
        "min_tx_rate 1, max_tx_rate 2",
        "state auto",
    ];
    assert_eq!(words, wanted);
    let trust = VfSettings { trust: Some(false), ..NONE };
    assert_eq!(trust.one_by_one().collect::<Vec<_>>(), [trust]);
    assert_eq!(NONE.one_by_one().count(), 0);
}

#[test]
fn in_the_words_of_ip_link() {
    let table = [
        (NONE, "nothing"),
        (VfSettings { mac: mac(2), ..vlan(42, 3) }, "mac 52:54:00:00:00:02, vlan 42, qos 3"),
        (VfSettings { trust: Some(true), spoof_check: Some(false), ..NONE }, "trust on, spoofchk off"),
        (
            VfSettings { link_state: Some(LinkState::Disable), ..rates(0, 100) },
            "min_tx_rate 0, max_tx_rate 100, state disable",
        ),
    ];
    for (settings, words) in table {
        assert_eq!(settings.to_string(), words);
        assert_eq!(settings.is_empty(), words == "nothing");
    }
    for state in [LinkState::Auto, LinkState::Enable, LinkState::Disable] {
        assert_eq!(state.as_str().parse(), Ok(state));
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.as_str()), "the file says the same");
    }
    assert_eq!("up\n".parse::<LinkState>(), Err("'up\\n' is not auto, enable or disable".into()));
}

#[test]
fn roles_and_numbers_in_words() {
    let pf = "0000:01:00.0".parse().unwrap();
    let mut physical = PhysicalFunction { vfs: [(0, pf), (6, pf)].into(), ..PhysicalFunction::default() };
    assert_eq!(physical.num_vfs(), 2, "as many as there are links, whatever their numbers");
    physical.vfs.clear();
    assert_eq!(physical.num_vfs(), 0);
    assert_eq!(Role::Pci.as_str(), "pci");
    assert_eq!(Role::Pf(physical).as_str(), "pf");
    assert_eq!(Role::Vf { pf, index: 0 }.as_str(), "vf");
    assert_eq!(PciIds { vendor: 0x10de, device: 0x6b9, ..PciIds::default() }.to_string(), "10de:06b9");
}

fn settings() -> impl Strategy<Value = VfSettings> {
    use proptest::option::of;
    let link_state = of(select(vec![LinkState::Auto, LinkState::Enable, LinkState::Disable]));
    // Few values, so that some are equal.
    (of(0u8..3), of(0u16..3), of(0u8..3), any::<[Option<bool>; 2]>(), of(0u32..3), of(0u32..3), link_state).prop_map(
        |(last, vlan, qos, [trust, spoof_check], min_rate, max_rate, link_state)| VfSettings {
            mac: last.and_then(mac),
            vlan,
            qos,
            trust,
            spoof_check,
            min_rate,
            max_rate,
            link_state,
        },
    )
}

/// What holds after a change: what it says, and else what was.
fn after(now: &VfSettings, change: &VfSettings) -> VfSettings {
    VfSettings {
        mac: change.mac.or(now.mac),
        vlan: change.vlan.or(now.vlan),
        qos: change.qos.or(now.qos),
        trust: change.trust.or(now.trust),
        spoof_check: change.spoof_check.or(now.spoof_check),
        min_rate: change.min_rate.or(now.min_rate),
        max_rate: change.max_rate.or(now.max_rate),
        link_state: change.link_state.or(now.link_state),
    }
}

proptest! {
    #[test]
    fn a_change_leads_to_what_is_wanted_and_touches_nothing_else(wanted in settings(), now in settings()) {
        let change = wanted.changed_from(&now);
        let then = after(&now, &change);
        // All that is wanted is so, and a second look changes nothing.
        prop_assert_eq!(after(&then, &wanted), then);
        prop_assert_eq!(wanted.changed_from(&then), VfSettings::default());
        prop_assert_eq!(change.changed_from(&then), VfSettings::default());
        // What was not asked for stays; only the priority goes with its VLAN.
        let mut expected = after(&now, &wanted);
        if wanted.vlan == Some(0) && now.vlan != Some(0) && wanted.qos.is_none() {
            expected.qos = now.qos.map(|_| 0);
        }
        prop_assert_eq!(then, expected);
        // Nothing is written where nothing differs.
        prop_assert_eq!(change.is_empty(), after(&now, &wanted) == now);
        // The kernel takes these as pairs: a half is sent only where the other is not known.
        prop_assert!(change.vlan.is_none() || change.qos.is_some() || now.qos.is_none() && wanted.qos.is_none());
        prop_assert!(change.max_rate.is_none() || change.min_rate.is_some() || now.min_rate.is_none() && wanted.min_rate.is_none());
    }

    #[test]
    fn what_was_set_is_put_back_and_nothing_else(was in settings(), set in settings(), else_set in settings()) {
        // Where the driver says all, as a real one does of what can be set.
        let was = after(&VfSettings { mac: mac(0), trust: Some(false), spoof_check: Some(true), link_state: Some(LinkState::Auto), ..after(&vlan(0, 0), &rates(0, 0)) }, &was);
        let now = after(&was, &set.changed_from(&was));
        let back = was.changed_from(&now).only(&set);
        prop_assert_eq!(after(&now, &back), was);
        // Others have set other things meanwhile: those stay.
        let others = VfSettings {
            mac: else_set.mac.filter(|_| set.mac.is_none()),
            trust: else_set.trust.filter(|_| set.trust.is_none()),
            spoof_check: else_set.spoof_check.filter(|_| set.spoof_check.is_none()),
            link_state: else_set.link_state.filter(|_| set.link_state.is_none()),
            ..NONE
        };
        let now = after(&now, &others);
        prop_assert_eq!(after(&now, &was.changed_from(&now).only(&set)), after(&was, &others));
    }

    #[test]
    fn only_and_the_file(settings in settings(), of in settings()) {
        prop_assert_eq!(settings.only(&settings), settings);
        prop_assert_eq!(settings.only(&of).only(&of), settings.only(&of));
        prop_assert_eq!(after(&settings, &settings.only(&of)), settings);
        let text = serde_json::to_string(&settings).unwrap();
        prop_assert_eq!(serde_json::from_str::<VfSettings>(&text).unwrap(), settings);
        prop_assert_eq!(text == "{}", settings.is_empty());
    }
}
