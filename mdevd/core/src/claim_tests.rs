//! The claim's file: what is written today is read by tomorrow's mdevd, and what is not a claim is an error, never half a claim.

use super::*;
use crate::fixtures::{address, claim, domain, grant, grant_with, manual, mdev_type, uuid};
use crate::function::LinkState;
use crate::inventory::Inventory;
use crate::names::MacAddress;
use crate::plan::{Step, Write};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

const GOLDEN: &str = include_str!("../tests/golden/claim.json");

/// A claim that uses every field.
fn full() -> Claim {
    let attributes = vec![("nvidia/vgpu_params".into(), "frame_rate_limiter=0".into())];
    let first = Grant {
        xml: XmlOptions(vec![("display".into(), "on".into()), ("ramfb".into(), "on".into())]),
        ..grant_with(1, "0000:41:00.0", "nvidia-63", attributes)
    };
    let vf = Grant {
        request: "nic0".into(),
        device: Granted::Pci(GrantedFunction {
            address: address("10000:e1:10.2"),
            managed: false,
            interface: false,
            driver: "vfio-pci".parse().ok(),
            vgpu_type: "1145".parse().ok(),
            vf: Some(GrantedVf {
                pf: address("10000:e1:00.0"),
                index: 1,
                set: VfSettings { mac: "52:54:00:6d:90:02".parse().ok(), vlan: Some(42), ..VfSettings::default() },
                was: VfSettings {
                    mac: Some(MacAddress::ZERO),
                    vlan: Some(0),
                    qos: Some(0),
                    trust: Some(false),
                    spoof_check: Some(true),
                    min_rate: Some(0),
                    max_rate: Some(0),
                    link_state: Some(LinkState::Auto),
                },
                netdev_mac_was: "16:17:1d:5d:40:5c".parse().ok(),
            }),
            driver_was: "igbvf".parse().ok(),
            override_was: "igbvf".parse().ok(),
        }),
        undo: Undo::Restore,
        xml: XmlOptions::default(),
    };
    let mut claim =
        claim(domain(1, "render \"01\"\n"), ClaimState::Preparing, [first, grant(2, "mtty", "mtty-1", Undo::Keep), vf]);
    claim.process = Some(ProcessRef { pid: 812, start_time: 4242 });
    claim.seen = true;
    claim.plan.done = 1;
    claim.problem = "create on 0000:42:00.0: ENOSPC".into();
    claim
}

#[test]
fn the_file_word_for_word() {
    assert_eq!(serde_json::to_string_pretty(&full()).unwrap() + "\n", GOLDEN);
    assert_eq!(serde_json::from_str::<Claim>(GOLDEN).unwrap(), full());
}

#[test]
fn what_may_be_absent_and_what_may_not() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let keys: Vec<String> = golden.as_object().unwrap().keys().cloned().collect();
    for key in keys {
        let mut cut = golden.clone();
        cut.as_object_mut().unwrap().remove(&key);
        let read = serde_json::from_value::<Claim>(cut);
        let may_be_absent = ["process", "seen", "problem"].contains(&key.as_str());
        assert_eq!(read.is_ok(), may_be_absent, "{key}: {read:?}");
        if let Err(e) = read {
            assert_eq!(e.to_string(), format!("missing field `{key}`"));
        }
    }
    let mut cut = golden.clone();
    for key in ["process", "seen", "problem"] {
        cut.as_object_mut().unwrap().remove(key);
    }
    let read: Claim = serde_json::from_value(cut).unwrap();
    assert_eq!((read.process, read.seen, read.problem.as_str()), (None, false, ""));
}

#[test]
fn a_later_version_s_fields_do_not_cost_the_claim() {
    // A claim lives until reboot and may meet an older mdevd after a downgrade. Dropping it would lose devices that a VM uses.
    let later = GOLDEN.replacen('{', "{ \"colour\": \"red\",", 1);
    assert_eq!(serde_json::from_str::<Claim>(&later).unwrap(), full());
}

#[test]
fn what_is_not_a_claim_is_an_error_that_says_what() {
    let swap = |from: &str, to: &str| {
        assert!(GOLDEN.contains(from), "{from}");
        GOLDEN.replacen(from, to, 1)
    };
    let table = [
        (String::new(), "EOF while parsing a value"),
        ("{}".into(), "missing field `id`"),
        ("[]".into(), "invalid length 0"),
        ("null".into(), "invalid type: null"),
        (GOLDEN.trim_end().trim_end_matches('}').into(), "EOF while parsing an object"),
        ([GOLDEN, "x"].concat(), "trailing characters"),
        (swap("\"preparing\"", "\"resting\""), "unknown variant `resting`"),
        (swap("\"undo\": \"remove\"", "\"undo\": \"destroy\""), "unknown variant `destroy`"),
        (swap("\"op\": \"create\"", "\"op\": \"format\""), "unknown variant `format`"),
        (swap("\"domain\"", "\"alien\""), "unknown variant `alien`"),
        (swap("\"mdev\": {", "\"disk\": {"), "unknown variant `disk`"),
        (swap("\"address\": \"10000:e1:10.2\"", "\"address\": \"../e1\""), "'../e1' is not a PCI address"),
        (swap("\"mac\": \"52:", "\"mac\": \"5:"), "is not a MAC address"),
        (
            swap("\"parent\": \"0000:41:00.0\"", "\"parent\": \"../../etc\""),
            "'../../etc' is not the name of an mdev parent: it contains '/'",
        ),
        (swap("\"type\": \"nvidia-63\"", "\"type\": \"..\""), "'..' is not an mdev type id: it is a relative folder"),
        (swap("\"uuid\": \"00000000-0000-4000", "\"uuid\": \"0000000-0000-4000"), "is not a UUID"),
        (swap("\"pid\": 812", "\"pid\": -1"), "invalid value: integer `-1`"),
        (swap("\"created\": 1763700000", "\"created\": \"today\""), "invalid type: string"),
        (swap("\"seen\": true", "\"seen\": true, \"seen\": false"), "duplicate field `seen`"),
    ];
    for (text, message) in table {
        let error = serde_json::from_str::<Claim>(&text).map_err(|e| e.to_string()).expect_err(message);
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn owners_and_states_in_words() {
    let table = [
        (domain(1, "vm1"), "domain", "domain 'vm1'"),
        (domain(1, "a\n\u{1b}[2J"), "domain", "domain 'a\\n\\u{1b}[2J'"),
        (manual("bench"), "manual", "manual claim 'bench'"),
        (manual(""), "manual", "a manual claim"),
    ];
    for (owner, kind, shown) in table {
        assert_eq!((owner.kind(), owner.to_string().as_str()), (kind, shown));
    }
    use ClaimState::{Failed, Planned, Preparing, Ready, Releasing};
    let states = [
        (Planned, "planned"),
        (Preparing, "preparing"),
        (Ready, "ready"),
        (Releasing, "releasing"),
        (Failed, "failed"),
    ];
    for (state, word) in states {
        assert_eq!(state.as_str(), word);
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{word}\""), "D-Bus and the file say the same");
        assert_eq!(state.is_ending(), matches!(state, Releasing | Failed));
    }
    for undo in [Undo::Remove, Undo::Restore, Undo::Keep] {
        assert_eq!(serde_json::to_string(&undo).unwrap(), format!("\"{}\"", undo.as_str()));
    }
}

#[test]
fn a_claim_says_what_it_is_doing() {
    let mut claim = full();
    let (one, two) = (uuid(1), uuid(2));
    assert_eq!(claim.step(), format!("set nvidia/vgpu_params of {one} to 'frame_rate_limiter=0'"));
    claim.plan.done = 2;
    assert_eq!(claim.step(), "take the vGPU type from 10000:e1:10.2");
    claim.plan.done = usize::MAX;
    assert_eq!(claim.step(), "");
    claim.state = ClaimState::Releasing;
    claim.plan = Plan::release(&claim.grants);
    assert_eq!(claim.step(), format!("remove {one} from 0000:41:00.0"));
    claim.state = ClaimState::Ready;
    assert_eq!(claim.step(), "");

    let of = |uuid| claim.grant(DeviceKey::Mdev(uuid));
    assert_eq!(of(one).and_then(Grant::mdev).map(|mdev| mdev.mdev_type.clone()), Some(mdev_type("nvidia-63")));
    assert_eq!(of(two).map(|g| g.undo), Some(Undo::Keep));
    assert_eq!(of(uuid(3)), None);
    let vf = claim.grant(DeviceKey::Pci(address("10000:e1:10.2")));
    assert_eq!(vf.and_then(Grant::function).map(|f| f.managed), Some(false));
}

fn sysfs_name<T: core::str::FromStr<Err: core::fmt::Debug> + core::fmt::Debug>() -> impl Strategy<Value = T> {
    "[a-zA-Z0-9:._-]{1,20}[a-z0-9]|[^/\\p{C}]{2,9}x".prop_map(|name| name.parse().unwrap())
}

/// Any text, control characters too.
fn text() -> impl Strategy<Value = String> {
    "(?s).{0,12}"
}

fn any_uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn addresses() -> impl Strategy<Value = PciAddress> {
    (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8).prop_map(|(domain, bus, device, function)| PciAddress {
        domain,
        bus,
        device,
        function,
    })
}

fn vf_settings() -> impl Strategy<Value = VfSettings> {
    let link =
        proptest::option::of(proptest::sample::select(vec![LinkState::Auto, LinkState::Enable, LinkState::Disable]));
    (any::<(Option<[u8; 6]>, Option<u16>, Option<u8>, Option<bool>, Option<bool>)>(), any::<[Option<u32>; 2]>(), link)
        .prop_map(|((mac, vlan, qos, trust, spoof_check), [min_rate, max_rate], link_state)| VfSettings {
            mac: mac.map(MacAddress),
            vlan,
            qos,
            trust,
            spoof_check,
            min_rate,
            max_rate,
            link_state,
        })
}

fn functions() -> impl Strategy<Value = Grant> {
    let vf = proptest::option::of((addresses(), any::<u32>(), vf_settings(), vf_settings()));
    let drivers = [(); 3].map(|()| proptest::option::of(sysfs_name()));
    (text(), addresses(), any::<[bool; 2]>(), drivers, any::<Option<core::num::NonZeroU32>>(), vf).prop_map(
        |(request, address, [managed, interface], [driver, driver_was, override_was], vgpu, vf)| Grant {
            request,
            device: Granted::Pci(GrantedFunction {
                address,
                managed,
                interface,
                driver,
                vgpu_type: vgpu.map(VgpuTypeId),
                vf: vf.map(|(pf, index, set, was)| GrantedVf { pf, index, set, was, netdev_mac_was: was.mac }),
                driver_was,
                override_was,
            }),
            undo: Undo::Restore,
            xml: XmlOptions::default(),
        },
    )
}

fn claims() -> impl Strategy<Value = Claim> {
    let owner = prop_oneof![
        (any_uuid(), text()).prop_map(|(uuid, name)| Owner::Domain { uuid, name }),
        text().prop_map(|label| Owner::Manual { label }),
    ];
    let state = proptest::sample::select(vec![
        ClaimState::Planned,
        ClaimState::Preparing,
        ClaimState::Ready,
        ClaimState::Releasing,
        ClaimState::Failed,
    ]);
    let pairs = || proptest::collection::vec((text(), text()), 0..3);
    let undo = proptest::sample::select(vec![Undo::Remove, Undo::Keep]);
    let grant = (text(), any_uuid(), sysfs_name(), sysfs_name(), text(), undo, pairs(), pairs()).prop_map(
        |(request, uuid, parent, mdev_type, device_api, undo, attributes, xml)| {
            let device = GrantedMdev { uuid: MdevUuid(uuid), parent, mdev_type, device_api, attributes };
            Grant { request, device: Granted::Mdev(device), undo, xml: XmlOptions(xml) }
        },
    );
    let grant = prop_oneof![grant, functions()];
    let process =
        proptest::option::of((any::<u32>(), any::<u64>()).prop_map(|(pid, start_time)| ProcessRef { pid, start_time }));
    let first = (any_uuid(), owner, any::<u32>(), any_uuid(), state, any::<u64>());
    let second = (process, any::<bool>(), proptest::collection::vec(grant, 0..4), any::<(bool, usize)>(), text());
    (first, second).prop_map(
        |((id, owner, owner_uid, run, state, created), (process, seen, grants, (release, done), problem))| {
            let mut plan = if release { Plan::release(&grants) } else { Plan::prepare(&grants) };
            plan.done = done % (plan.steps.len() + 1);
            Claim { id, owner, owner_uid, run: RunId(run), state, created, process, seen, grants, plan, problem }
        },
    )
}

proptest! {
    #[test]
    fn every_claim_survives_its_file(claim in claims()) {
        let text = serde_json::to_string_pretty(&claim).unwrap();
        prop_assert_eq!(serde_json::from_str::<Claim>(&text).unwrap(), claim.clone());
        // Also a second time: what was read is written the same.
        let again = serde_json::to_string_pretty(&serde_json::from_str::<Claim>(&text).unwrap()).unwrap();
        prop_assert_eq!(again, text);
        prop_assert!(!claim.step().chars().any(char::is_control), "{:?}", claim.step());
    }

    #[test]
    fn a_damaged_file_never_panics_and_never_escapes(at: prop::sample::Index, byte: u8, cut: bool) {
        let mut bytes = GOLDEN.trim_end().as_bytes().to_vec();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
            prop_assert!(serde_json::from_slice::<Claim>(&bytes).is_err(), "half a claim was taken for one");
        } else {
            bytes[at] = byte;
            if let Ok(claim) = serde_json::from_slice::<Claim>(&bytes) {
                for step in &claim.plan.steps {
                    if let Ok(Write::File { path, .. }) = step.write(&Inventory::default())
                        && !matches!(step, Step::SetAttribute { .. })
                    {
                        prop_assert!(!path.split('/').any(|part| part == ".." || part.is_empty()), "{path}");
                    }
                }
            }
        }
    }
}
