//! Each reason for a refusal, the order in which parents are tried, and the sentences that name who stands in the way.

use super::*;
use crate::fixtures::{Host, claim, domain, grant, manual, mdev_type, need, parent, uuid};
use crate::names::NumaNode;
use alloc::vec;

/// Everything that a choice is made from, owned.
#[derive(Debug, Clone, Default)]
struct Setting {
    inventory: Inventory,
    claims: Vec<Claim>,
    excluded: BTreeSet<ParentName>,
    placement: Placement,
    refused: Vec<(ParentName, String)>,
}

impl Setting {
    fn of(host: Host) -> Self {
        Self { inventory: host.inventory(), ..Self::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&Context<'_>) -> T) -> T {
        let claims: Vec<&Claim> = self.claims.iter().collect();
        f(&Context {
            inventory: &self.inventory,
            claims: &claims,
            excluded: &self.excluded,
            placement: self.placement,
            refused: &self.refused,
        })
    }

    fn choose(&self, need: &MdevNeed) -> Choice {
        self.with(|context| choose(context, need))
    }

    fn take(&self, need: &MdevNeed, by_domain: bool) -> Result<Option<Grant>, Refusal> {
        self.with(|context| take_existing(context, need, by_domain))
    }
}

/// Parents in the order they would be tried, and for each that is not simply possible the code of its reason; `?` marks a last resort.
fn ranking(choice: &Choice) -> Vec<String> {
    let line = |candidate: &Candidate| match &candidate.verdict {
        Verdict::Possible => candidate.parent.to_string(),
        Verdict::LastResort(refusal) => format!("{} {}?", candidate.parent, refusal.reason.as_str()),
        Verdict::Refused(refusal) => format!("{} {}", candidate.parent, refusal.reason.as_str()),
    };
    choice.candidates.iter().map(line).collect()
}

fn message_of(choice: &Choice, parent: &str) -> String {
    let candidate = choice.candidates.iter().find(|c| c.parent.as_str() == parent).unwrap();
    candidate.refusal().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn each_reason_for_refusing_a_candidate() {
    let host = Host::default()
        .parent("a-none")
        .offers("other", 1)
        .parent("b-excluded")
        .offers("t", 1)
        .parent("c-stuck")
        .offers("t", 1)
        .stuck("a write to create has not come back for 7 s")
        .parent("d-refused")
        .offers("t", 1)
        .parent("e-api")
        .offers_api("t", 1, "vfio-ccw")
        .numa(1)
        .parent("f-node")
        .offers("t", 1)
        .numa(0)
        .parent("g-node-unknown")
        .offers("t", 1)
        .parent("h-full")
        .offers("t", 0)
        .numa(1)
        .parent("i-promised")
        .offers("t", 2)
        .numa(1)
        .parent("j-good")
        .offers("t", 1)
        .numa(1);
    let mut setting = Setting::of(host);
    setting.excluded.insert(parent("b-excluded"));
    setting.refused.push((parent("d-refused"), "create on d-refused: ENOSPC".into()));
    let planned = |n| grant(n, "i-promised", "t", Undo::Remove);
    setting.claims.push(claim(domain(1, "vm1"), ClaimState::Planned, [planned(11), planned(12)]));
    let mut wanted = need(1, "t");
    wanted.model = Some("vfio-pci".into());
    wanted.numa_node = Some(NumaNode(1));

    let choice = setting.choose(&wanted);
    assert_eq!(
        ranking(&choice),
        [
            "j-good",
            "h-full no-instance?",
            "a-none no-such-type",
            "b-excluded excluded",
            "c-stuck stuck",
            "d-refused kernel-refused",
            "e-api wrong-device-api",
            "f-node wrong-numa-node",
            "g-node-unknown wrong-numa-node",
            "i-promised no-instance",
        ]
    );
    assert_eq!(choice.chosen().map(|c| (c.parent.as_str(), c.device_api.as_str())), Some(("j-good", "vfio-pci")));
    assert_eq!(choice.refusal, None);
    for (parent, message) in [
        ("a-none", "a-none does not offer the type t"),
        ("b-excluded", "b-excluded is excluded by configuration"),
        ("c-stuck", "c-stuck is stuck: a write to create has not come back for 7 s"),
        ("d-refused", "create on d-refused: ENOSPC"),
        ("e-api", "t on e-api is a vfio-ccw device, but the domain's hostdev has model='vfio-pci'"),
        ("f-node", "f-node is on NUMA node 0, not 1"),
        ("g-node-unknown", "the NUMA node of g-node-unknown is not known; asked for was node 1"),
        ("h-full", "no instance of t is left on h-full"),
        ("i-promised", "the last instance of t on i-promised is promised, in use by domain 'vm1'"),
        ("j-good", ""),
    ] {
        assert_eq!(message_of(&choice, parent), message);
    }

    wanted.wanted = Wanted::Type { mdev_type: mdev_type("t"), parent: Some(parent("h-full")) };
    let choice = setting.choose(&wanted);
    assert_eq!(message_of(&choice, "j-good"), "the request names the parent h-full");
    assert_eq!(choice.chosen().map(|c| c.parent.as_str()), Some("h-full"), "the last resort, as nothing else would do");
    assert!(
        choice
            .candidates
            .iter()
            .all(|c| c.parent.as_str() == "h-full" || c.refusal().unwrap().reason == Reason::OtherParent)
    );
}

#[test]
fn the_codes_of_reasons_are_stable() {
    use Reason as R;
    let table = [
        (R::NoSuchType, "no-such-type"),
        (R::NotFound, "not-found"),
        (R::NoInstance, "no-instance"),
        (R::WrongDeviceApi, "wrong-device-api"),
        (R::Excluded, "excluded"),
        (R::OtherParent, "other-parent"),
        (R::WrongNumaNode, "wrong-numa-node"),
        (R::Stuck, "stuck"),
        (R::KernelRefused, "kernel-refused"),
        (R::InUse, "in-use"),
        (R::Conflict, "conflict"),
    ];
    for (reason, code) in table {
        assert_eq!(reason.as_str(), code);
    }
}

#[test]
fn pack_takes_the_fullest_and_spread_the_emptiest() {
    let host = || {
        Host::default()
            .parent("c")
            .offers("t", 4)
            .parent("a")
            .offers("t", 2)
            .parent("b")
            .offers("t", 2)
            .parent("d")
            .offers("t", 3)
    };
    let mut setting = Setting::of(host());
    assert_eq!(ranking(&setting.choose(&need(1, "t"))), ["a", "b", "d", "c"]);
    setting.placement = Placement::Spread;
    assert_eq!(ranking(&setting.choose(&need(1, "t"))), ["c", "d", "a", "b"]);
    // What is promised counts as taken.
    let promised = (0..3).map(|n| grant(20 + n, "c", "t", Undo::Remove));
    setting.claims.push(claim(domain(1, "vm"), ClaimState::Preparing, promised));
    assert_eq!(ranking(&setting.choose(&need(1, "t"))), ["d", "a", "b", "c"]);
    setting.placement = Placement::Pack;
    assert_eq!(ranking(&setting.choose(&need(1, "t"))), ["c", "a", "b", "d"]);
}

#[test]
fn only_what_is_promised_and_not_made_is_subtracted() {
    // (state, undo, type, made already) and whether the one instance that is left is still to be had
    let table = [
        (ClaimState::Planned, Undo::Remove, "t", false, false),
        (ClaimState::Preparing, Undo::Remove, "t", false, false),
        (ClaimState::Preparing, Undo::Remove, "t", true, true),
        (ClaimState::Ready, Undo::Remove, "t", true, true),
        (ClaimState::Releasing, Undo::Remove, "t", false, true),
        (ClaimState::Failed, Undo::Remove, "t", false, true),
        (ClaimState::Planned, Undo::Keep, "t", false, true),
        (ClaimState::Planned, Undo::Remove, "other", false, true),
    ];
    for row @ (state, undo, id, made, possible) in table {
        let mut host = Host::default().parent("p").offers("t", 1).offers("other", 1);
        if made {
            host = host.mdev(5, id);
        }
        let mut setting = Setting::of(host.parent("elsewhere"));
        setting.claims.push(claim(domain(1, "vm"), state, [grant(5, "p", id, undo)]));
        assert_eq!(setting.choose(&need(1, "t")).chosen().is_some(), possible, "{row:?}");
    }
}

#[test]
fn two_domains_and_one_instance() {
    let mut setting = Setting::of(Host::default().parent("0000:41:00.0").offers("nvidia-63", 1));
    assert!(setting.choose(&need(1, "nvidia-63")).chosen().is_some());
    setting.claims.push(claim(
        domain(1, "render"),
        ClaimState::Planned,
        [grant(1, "0000:41:00.0", "nvidia-63", Undo::Remove)],
    ));
    let second = setting.choose(&need(2, "nvidia-63"));
    assert_eq!(second.chosen(), None);
    assert_eq!(
        second.refusal.unwrap(),
        Refusal::new(
            Reason::NoInstance,
            "no device for 'gpu0' (type nvidia-63): the last instance of nvidia-63 on 0000:41:00.0 is promised, in use by domain 'render'"
        )
    );
    // Once it is made the kernel says 0: a last resort, and after its refusal the message names the owner just the same.
    setting.inventory = Host::default().parent("0000:41:00.0").offers("nvidia-63", 0).mdev(1, "nvidia-63").inventory();
    setting.refused = vec![(parent("0000:41:00.0"), "create failed: ENOSPC".into())];
    assert_eq!(
        setting.choose(&need(2, "nvidia-63")).refusal.unwrap(),
        Refusal::new(
            Reason::NoInstance,
            "no device for 'gpu0' (type nvidia-63): no instance of nvidia-63 is left on 0000:41:00.0, in use by domain 'render'"
        )
    );
}

#[test]
fn last_resorts_are_tried_last_once_each_and_at_most_eight() {
    let mut host = Host::default().parent("zz").offers("t", 1);
    for i in 0..12 {
        host = host.parent(&format!("full{i:02}")).offers("t", 0);
    }
    let mut setting = Setting::of(host);
    let mut tried = Vec::new();
    let refusal = loop {
        let choice = setting.choose(&need(1, "t"));
        assert_eq!(choice.chosen().is_none(), choice.refusal.is_some());
        let Some(chosen) = choice.chosen() else { break choice.refusal.unwrap() };
        tried.push(chosen.parent.to_string());
        setting.refused.push((chosen.parent.clone(), format!("create on {}: ENOSPC", chosen.parent)));
    };
    assert_eq!(tried, ["zz", "full00", "full01", "full02", "full03", "full04", "full05", "full06"]);
    assert_eq!(refusal.reason, Reason::NoInstance);
    assert_eq!(
        refusal.message,
        "no device for 'gpu0' (type t): no instance of t is left on full07; no instance of t is left on full08; no instance of t is left \
         on full09; no instance of t is left on full10; and 9 more; 'hostdevctl explain' lists them"
    );
}

#[test]
fn summaries_word_for_word() {
    let cards =
        || Host::default().parent("0000:41:00.0").offers("nvidia-63", 0).parent("0000:42:00.0").offers("nvidia-63", 0);
    let on = |id: &str, name: &str| MdevNeed {
        wanted: Wanted::Type { mdev_type: mdev_type(id), parent: Some(parent(name)) },
        ..need(1, id)
    };
    let many = || (0..13).fold(Host::default().parent("p"), |host, i| host.offers(&format!("nvidia-{}", 100 + i), 1));
    let refused = |setting: &mut Setting| {
        setting.refused =
            setting.inventory.parents().map(|p| (p.name.clone(), format!("create on {}: ENOSPC", p.name))).collect();
    };

    let table: Vec<(Setting, MdevNeed, Reason, &str)> = vec![
        (
            Setting::default(),
            need(1, "nvidia-63"),
            Reason::NotFound,
            "no device on this host offers mdev types; is the vendor's driver loaded?",
        ),
        (
            Setting::of(cards()),
            on("nvidia-63", "0000:43:00.0"),
            Reason::NotFound,
            "there is no mdev parent '0000:43:00.0' on this host",
        ),
        (
            Setting::of(cards()),
            need(1, "nvidia-36"),
            Reason::NoSuchType,
            "no parent on this host offers the type nvidia-36; did you mean 'nvidia-63'?",
        ),
        (
            Setting::of(cards().parent("mtty").offers("mtty-1", 4)),
            need(1, "i915-GVTg_V5_4"),
            Reason::NoSuchType,
            "no parent on this host offers the type i915-GVTg_V5_4; on offer: mtty-1, nvidia-63",
        ),
        (
            Setting::of(cards().parent("mtty").offers("mtty-1", 4)),
            on("mtty-1", "0000:41:00.0"),
            Reason::NoSuchType,
            "0000:41:00.0 does not offer the type mtty-1; on offer: nvidia-63",
        ),
        (
            Setting::of(many()),
            need(1, "x"),
            Reason::NoSuchType,
            "no parent on this host offers the type x; 'hostdevctl types' lists what there is",
        ),
        (
            Setting::of(Host::default().parent("matrix")),
            need(1, "vfio_ap-passthrough"),
            Reason::NoSuchType,
            "no parent on this host offers the type vfio_ap-passthrough; no type could be read",
        ),
        (
            Setting {
                excluded: [parent("0000:41:00.0"), parent("0000:42:00.0")].into(),
                ..Setting::of(cards().parent("mtty"))
            },
            need(1, "nvidia-63"),
            Reason::Excluded,
            "no device for 'gpu0' (type nvidia-63): 0000:41:00.0 is excluded by configuration; 0000:42:00.0 is excluded by configuration",
        ),
        (
            Setting::of(cards().stuck("a write to create has not come back").parent("mtty")),
            MdevNeed { numa_node: Some(NumaNode(3)), ..on("nvidia-63", "0000:42:00.0") },
            Reason::Stuck,
            "no device for 'gpu0' (type nvidia-63 on 0000:42:00.0): 0000:42:00.0 is stuck: a write to create has not come back",
        ),
        (
            {
                let mut setting = Setting::of(cards());
                refused(&mut setting);
                setting
            },
            need(1, "nvidia-63"),
            Reason::NoInstance,
            "no device for 'gpu0' (type nvidia-63): no instance of nvidia-63 is left on 0000:41:00.0; no instance of nvidia-63 is left on 0000:42:00.0",
        ),
        (
            {
                let card = |host: Host, name| host.parent(name).offers("nvidia-63", 1);
                let mut setting = Setting::of(card(card(Host::default(), "0000:41:00.0"), "0000:42:00.0"));
                refused(&mut setting);
                setting
            },
            need(1, "nvidia-63"),
            Reason::KernelRefused,
            "no device for 'gpu0' (type nvidia-63): create on 0000:41:00.0: ENOSPC; create on 0000:42:00.0: ENOSPC",
        ),
        (
            Setting::default(),
            MdevNeed { wanted: Wanted::Pool("gold\u{7}".into()), ..need(1, "x") },
            Reason::NotFound,
            "there is no pool 'gold\\u{7}' on this host",
        ),
        (
            Setting::of(cards()),
            MdevNeed { wanted: Wanted::Existing, ..need(1, "x") },
            Reason::NotFound,
            "there is no mediated device 00000000-0000-4000-8000-000000000001; say which type to make",
        ),
    ];
    for (setting, need, reason, message) in table {
        let choice = setting.choose(&need);
        assert_eq!(choice.chosen(), None, "{message}");
        assert_eq!(choice.refusal, Some(Refusal::new(reason, message)));
    }
}

#[test]
fn a_full_parent_names_who_has_it() {
    let owners = |claims: &[(&str, u32)], foreign: u32| {
        let mut host = Host::default().parent("p").offers("t", 0);
        for n in 0..foreign {
            host = host.mdev(900 + n, "t");
        }
        let mut setting = Setting::of(host.parent("elsewhere").offers("t", 0).mdev(999, "t"));
        for (name, n) in claims {
            let owner = if name.contains("hand") { manual(name) } else { domain(*n, name) };
            let grants = [grant(*n, "p", "t", Undo::Remove), grant(100 + *n, "p", "t", Undo::Remove)];
            setting.claims.push(claim(owner, ClaimState::Releasing, grants));
        }
        setting.claims.push(claim(
            domain(77, "not here"),
            ClaimState::Ready,
            [grant(77, "elsewhere", "t", Undo::Remove)],
        ));
        message_of(&setting.choose(&need(1, "t")), "p")
    };
    let left = "no instance of t is left on p";
    assert_eq!(owners(&[], 0), left);
    assert_eq!(owners(&[("a", 1)], 0), format!("{left}, in use by domain 'a'"));
    assert_eq!(
        owners(&[("a", 1), ("by hand", 2)], 1),
        format!("{left}, in use by domain 'a', manual claim 'by hand', 1 mdev that mdevd did not make")
    );
    assert_eq!(owners(&[], 2), format!("{left}, in use by 2 mdevs that mdevd did not make"));
    assert_eq!(
        owners(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)], 3),
        format!("{left}, in use by domain 'a', domain 'b', domain 'c' and 3 more")
    );
}

#[test]
fn a_hostile_model_does_not_reach_the_terminal() {
    let setting = Setting::of(Host::default().parent("p").offers("t", 1).mdev(1, "t"));
    let hostile = MdevNeed { model: Some("x\n\u{1b}[2J".into()), ..need(1, "t") };
    for message in
        [setting.choose(&hostile).refusal.unwrap().message, setting.take(&hostile, true).unwrap_err().message]
    {
        assert!(message.contains("x\\n\\u{1b}[2J"), "{message}");
        assert!(!message.chars().any(char::is_control), "{message}");
    }
}

#[test]
fn what_exists_is_taken_as_it_is() {
    let host = || {
        Host::default().parent("p").numa(1).offers("t", 0).mdev(1, "t").parent("q").offers("t", 4).offers("other", 4)
    };
    let setting = Setting::of(host());
    let mut wanted = need(1, "t");
    wanted.xml = crate::request::XmlOptions(vec![("display".into(), "on".into())]);
    let taken = Grant { request: "gpu0".into(), xml: wanted.xml.clone(), ..grant(1, "p", "t", Undo::Keep) };
    for by_domain in [true, false] {
        assert_eq!(setting.take(&wanted, by_domain), Ok(Some(taken.clone())));
    }
    assert_eq!(setting.take(&MdevNeed { wanted: Wanted::Existing, ..wanted.clone() }, true), Ok(Some(taken.clone())));
    let on = |name| MdevNeed {
        wanted: Wanted::Type { mdev_type: mdev_type("t"), parent: Some(parent(name)) },
        ..wanted.clone()
    };
    assert_eq!(setting.take(&on("p"), true), Ok(Some(taken.clone())));
    assert_eq!(setting.take(&MdevNeed { numa_node: Some(NumaNode(1)), ..wanted.clone() }, true), Ok(Some(taken)));
    // Configuration keeps new devices off a parent; one that is there was somebody's decision.
    let excluded = Setting { excluded: [parent("p")].into(), ..setting.clone() };
    assert!(excluded.take(&wanted, true).unwrap().is_some());
    assert_eq!(setting.take(&need(2, "t"), true), Ok(None), "the UUID is free");

    let u = "the mediated device 00000000-0000-4000-8000-000000000001";
    let change = "remove it or change the request";
    let table: Vec<(MdevNeed, Reason, String)> = vec![
        (
            need(1, "other"),
            Reason::Conflict,
            format!("{u} for 'gpu0' exists already, but its type is t, not other; {change}"),
        ),
        (on("q"), Reason::Conflict, format!("{u} for 'gpu0' exists already, but it is on p, not q; {change}")),
        (
            MdevNeed { numa_node: Some(NumaNode(0)), ..need(1, "t") },
            Reason::Conflict,
            format!("{u} for 'gpu0' exists already, but it is on NUMA node 1, not 0; {change}"),
        ),
        (
            MdevNeed { model: Some("vfio-ccw".into()), ..need(1, "t") },
            Reason::Conflict,
            format!(
                "{u} for 'gpu0' exists already, but it is a vfio-pci device, not vfio-ccw as the hostdev says; {change}"
            ),
        ),
        (
            MdevNeed { wanted: Wanted::Pool("gold".into()), ..need(1, "t") },
            Reason::NotFound,
            "there is no pool 'gold' on this host".into(),
        ),
    ];
    for (need, reason, message) in table {
        assert_eq!(setting.take(&need, true), Err(Refusal::new(reason, message)));
    }

    let half_removed = Setting::of(host().parent("r").mdev(3, "t").mdev_is(|mdev| mdev.mdev_type = None));
    assert_eq!(
        half_removed.take(&need(3, "t"), true),
        Err(Refusal::new(
            Reason::Stuck,
            "the mediated device 00000000-0000-4000-8000-000000000003 for 'gpu0' is half removed"
        ))
    );
    let hanging = host()
        .parent("r")
        .mdev(3, "t")
        .mdev_is(|mdev| mdev.state = DeviceState::Stuck("its removal has not come back".into()));
    assert_eq!(
        Setting::of(hanging).take(&need(3, "t"), true),
        Err(Refusal::new(
            Reason::Stuck,
            "the mediated device 00000000-0000-4000-8000-000000000003 for 'gpu0' is stuck: its removal has not come back"
        ))
    );
    let no_node = Setting::of(host().parent("r").mdev(3, "t"));
    assert_eq!(
        no_node.take(&MdevNeed { numa_node: Some(NumaNode(0)), ..need(3, "t") }, true).unwrap_err().message,
        "the mediated device 00000000-0000-4000-8000-000000000003 for 'gpu0' exists already, but its NUMA node is not known; asked for \
         was node 0; remove it or change the request"
    );
    // A type that could not be read has no device API to compare.
    assert!(no_node.take(&MdevNeed { model: Some("vfio-ap".into()), ..need(3, "t") }, true).unwrap().is_some());
}

#[test]
fn what_is_promised_is_lent_only_by_a_ready_manual_claim_to_a_domain() {
    use ClaimState::{Failed, Planned, Preparing, Ready, Releasing};
    for state in [Planned, Preparing, Ready, Releasing, Failed] {
        for (owner, shown) in [(domain(9, "other"), "domain 'other'"), (manual("bench"), "manual claim 'bench'")] {
            for undo in [Undo::Remove, Undo::Keep] {
                for exists in [true, false] {
                    for by_domain in [true, false] {
                        let host = Host::default().parent("p").offers("t", 4);
                        let mut setting = Setting::of(if exists { host.mdev(1, "t") } else { host });
                        setting.claims.push(claim(domain(8, "bystander"), Ready, [grant(7, "p", "t", Undo::Remove)]));
                        setting.claims.push(claim(owner.clone(), state, [grant(1, "p", "t", undo)]));
                        let taken = setting.take(&need(1, "t"), by_domain);
                        if exists && by_domain && state == Ready && owner.kind() == "manual" {
                            assert_eq!(taken.unwrap().map(|grant| grant.undo), Some(Undo::Keep));
                        } else {
                            let message = format!(
                                "the mediated device {} for 'gpu0' is already promised to {shown}; release that, or use another UUID ('hostdevctl xml --domain' prints a domain's own)",
                                uuid(1)
                            );
                            assert_eq!(
                                taken,
                                Err(Refusal::new(Reason::InUse, message)),
                                "{state:?} {owner:?} {exists} {by_domain}"
                            );
                        }
                    }
                }
            }
        }
    }
    // Lent to one domain, it is not lent to the next.
    let mut setting = Setting::of(Host::default().parent("p").offers("t", 4).mdev(1, "t"));
    setting.claims.push(claim(manual("bench"), Ready, [grant(1, "p", "t", Undo::Remove)]));
    let lent = setting.take(&need(1, "t"), true).unwrap().unwrap();
    setting.claims.push(claim(domain(1, "first"), ClaimState::Planned, [lent]));
    assert_eq!(
        setting.take(&need(1, "t"), true).unwrap_err().message,
        format!(
            "the mediated device {} for 'gpu0' is already promised to domain 'first'; release that, or use another UUID ('hostdevctl xml --domain' prints a domain's own)",
            uuid(1)
        )
    );
}

#[test]
fn a_host_with_512_parents_and_20_types() {
    let mut host = Host::default();
    for p in 0..512 {
        host = host.parent(&format!("0000:{:02x}:{:02x}.0", p / 32, p % 32));
        for t in 0..20 {
            host = host.offers(&format!("nvidia-{t}"), 1 + (p * 7 + 3) % 512);
        }
    }
    let setting = Setting::of(host);
    let choice = setting.choose(&need(1, "nvidia-19"));
    assert_eq!(choice.candidates.len(), 512);
    // 7p + 3 = 0 (mod 512) for p = 219: one instance left, the fullest.
    assert_eq!(choice.chosen().map(|c| c.parent.as_str()), Some("0000:06:1b.0"));
}

#[path = "choose_properties.rs"]
mod properties;
