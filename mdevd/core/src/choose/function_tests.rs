//! Each reason for which a function is not given to a VM, word for word: these sentences are read by people, through `virsh start`.

use super::*;
use crate::claim::{ClaimState, Owner};
use crate::fixtures::{
    Host, address, claim, domain, driver, function, function_need, grant, manual, physical, vgpu_types,
    virtual_function,
};
use crate::function::{Netdev, PciIds};
use crate::hostdev::{Hostdev, HostdevSource};
use crate::names::{MacAddress, NumaNode};
use alloc::vec;

/// Everything that a choice is made from, owned.
#[derive(Debug, Clone, Default)]
struct Setting {
    inventory: Inventory,
    claims: Vec<Claim>,
    placement: Placement,
}

impl Setting {
    fn of(functions: impl IntoIterator<Item = Function>) -> Self {
        let mut inventory = Inventory::default();
        for function in functions {
            inventory.insert_function(function);
        }
        Self { inventory, ..Self::default() }
    }

    fn choose(&self, need: &FunctionNeed, together: &BTreeSet<PciAddress>) -> FunctionChoice {
        let claims: Vec<&Claim> = self.claims.iter().collect();
        let context = Context {
            inventory: &self.inventory,
            claims: &claims,
            excluded: &BTreeSet::new(),
            placement: self.placement,
            refused: &[],
        };
        choose_function(&context, need, together)
    }

    fn chosen(&self, need: &FunctionNeed) -> Vec<String> {
        self.choose(need, &BTreeSet::new()).chosen(&need.wanted).iter().map(ToString::to_string).collect()
    }

    /// Promises functions to somebody, as they are.
    fn promise(mut self, owner: Owner, addresses: &[&str]) -> Self {
        let grants = addresses.iter().map(|at| {
            let function = self.inventory.function(&address(at)).unwrap();
            grant_function(&self.inventory, &this(at), "dev0", function)
        });
        let claim = claim(owner, ClaimState::Ready, grants.collect::<Vec<_>>());
        self.claims.push(claim);
        self
    }
}

/// The need of the function with this address.
fn this(at: &str) -> FunctionNeed {
    function_need(WantedFunction::Address(address(at)))
}

/// The need of something that these pairs say.
fn need(pairs: &[(&str, &str)]) -> FunctionNeed {
    let pairs = [("name", "dev0")].iter().chain(pairs).copied();
    let request = crate::request::Request::parse(pairs).unwrap();
    let crate::request::Wanted::Function(wanted) = request.wanted else { panic!("a mediated device") };
    FunctionNeed { numa_node: request.numa_node, options: request.function, ..function_need(wanted) }
}

fn refusal(choice: &FunctionChoice) -> (Reason, &str) {
    choice.refusal.as_ref().map(|refusal| (refusal.reason, refusal.message.as_str())).unwrap()
}

const A: &str = "0000:41:00.0";
const B: &str = "0000:42:00.0";
const PF: &str = "0000:01:00.0";
const VF0: &str = "0000:01:10.0";
const VF1: &str = "0000:01:10.2";

fn named_as(name: &str, function: Function) -> Function {
    Function { name: name.into(), ..function }
}

fn critical_for(why: &[&str], function: Function) -> Function {
    Function { host_critical: why.iter().map(ToString::to_string).collect(), ..function }
}

/// A card with two virtual functions, each in a group of its own.
fn network_card() -> [Function; 3] {
    let netdevs = vec![Netdev { name: "enp1s0".into(), mac: None }];
    [
        Function { netdevs, ..physical(PF, 12, &[VF0, VF1]) },
        virtual_function(VF0, 15, PF, 0),
        virtual_function(VF1, 16, PF, 1),
    ]
}

/// What its physical function did with it before would be lost.
#[test]
fn nothing_is_set_of_a_function_whose_settings_are_not_known() {
    let [mut pf, vf, other] = network_card();
    let Role::Pf(card) = &mut pf.role else { unreachable!() };
    card.settings_unread = Some("the kernel does not answer".into());
    let setting = Setting::of([pf, vf, other]);
    let hostdev = |interface| Hostdev {
        source: HostdevSource::Pci(address(VF0)),
        model: String::new(),
        managed: true,
        alias: None,
        interface,
        mac: None,
        vlan: None,
    };
    let with = |interface| FunctionNeed { hostdev: Some(hostdev(interface)), ..this(VF0) };
    for need in [need(&[("address", VF0), ("trust", "on")]), with(true)] {
        let choice = setting.choose(&need, &BTreeSet::new());
        let message = "no device for 'dev0': what 0000:01:10.0 is given now could not be taken back later: 0000:01:00.0: the kernel does \
                       not answer";
        assert_eq!(refusal(&choice), (Reason::Stuck, message));
    }
    for need in [this(VF0), with(false)] {
        assert_eq!(setting.chosen(&need), [VF0]);
    }
}

/// Two functions in one group.
fn pair(change: impl FnOnce(&mut Function)) -> Setting {
    let mut other = named_as("Audio", Function { driver: Some(driver("snd_hda_intel")), ..function(B, 7) });
    change(&mut other);
    Setting::of([function(A, 7), other])
}

#[test]
fn a_function_alone_in_its_group_is_given() {
    let setting = Setting::of([function(A, 7), function(B, 8)]);
    let choice = setting.choose(&this(A), &BTreeSet::new());
    assert_eq!(choice.candidates, [FunctionCandidate { address: address(A), verdict: Verdict::Possible }]);
    assert_eq!((choice.refusal.clone(), choice.chosen(&this(A).wanted)), (None, vec![address(A)]));
}

#[test]
fn each_reason_for_refusing_a_function_word_for_word() {
    use Reason as R;
    let lone = |change: &dyn Fn(&mut Function)| {
        let mut function = function(A, 7);
        change(&mut function);
        Setting::of([function])
    };
    let mdevs = |n: u32| {
        let host = (0..n).fold(Host::default().parent(A).offers("t", 9), |host, i| host.mdev(i, "t"));
        let mut inventory = host.inventory();
        inventory.insert_function(function(A, 7));
        Setting { inventory, ..Setting::default() }
    };
    let vm1 = || domain(1, "vm1");
    let root = critical_for(&["carries / on nvme0n1p2", "carries swap on nvme0n1p3"], function(A, 7));
    let hostdev = |managed| Hostdev {
        source: HostdevSource::Pci(address(A)),
        model: String::new(),
        managed,
        alias: None,
        interface: false,
        mac: None,
        vlan: None,
    };
    let table: Vec<(Setting, FunctionNeed, Reason, &str)> = vec![
        (
            lone(&|f| (f.bridge, f.name) = (true, "PCIe Root port".into())),
            this(A),
            R::Bridge,
            "0000:41:00.0 is a bridge (PCIe Root port); what is behind it can be given to a VM",
        ),
        (
            lone(&|f| (f.class, f.name) = (0x06_01_00, "LPC Interface Controller".into())),
            this(A),
            R::Bridge,
            "0000:41:00.0 is part of the chipset (LPC Interface Controller)",
        ),
        (
            Setting::of([root.clone()]),
            this(A),
            R::HostCritical,
            "the host itself needs 0000:41:00.0: carries / on nvme0n1p2, carries swap on nvme0n1p3",
        ),
        (
            lone(&|f| f.state = DeviceState::Stuck("a write to unbind has not come back".into())),
            this(A),
            R::Stuck,
            "0000:41:00.0 is stuck: a write to unbind has not come back",
        ),
        (
            {
                let [pf, vf, _] = network_card();
                let state = DeviceState::Stuck("a write to sriov_numvfs has not come back".into());
                Setting::of([Function { state, ..pf }, vf])
            },
            this(VF0),
            R::Stuck,
            "0000:01:00.0, which 0000:01:10.0 is a part of, is stuck: a write to sriov_numvfs has not come back",
        ),
        (lone(&|_| {}).promise(vm1(), &[A]), this(A), R::InUse, "0000:41:00.0 is already promised to domain 'vm1'"),
        (
            lone(&|_| {}).promise(manual("bench"), &[A]),
            this(A),
            R::InUse,
            "0000:41:00.0 is already promised to manual claim 'bench'",
        ),
        (
            Setting::of(network_card()).promise(vm1(), &[VF1]),
            this(PF),
            R::InUse,
            "its virtual function 0000:01:10.2 is promised to domain 'vm1'",
        ),
        (
            // Its link to the virtual function is not there yet, or no longer.
            {
                let [_, vf, _] = network_card();
                Setting::of([physical(PF, 12, &[]), vf]).promise(vm1(), &[VF0])
            },
            this(PF),
            R::InUse,
            "its virtual function 0000:01:10.0 is promised to domain 'vm1'",
        ),
        (
            Setting::of(network_card()).promise(vm1(), &[PF]),
            this(VF0),
            R::InUse,
            "0000:01:00.0, which 0000:01:10.0 is a part of, is promised to domain 'vm1'",
        ),
        (
            Setting::of(network_card()),
            this(PF),
            R::InUse,
            "0000:01:00.0 has 2 virtual functions, which would vanish with its driver; remove them first: hostdevctl vfs 0000:01:00.0 0",
        ),
        (
            Setting::of([physical(PF, 12, &[VF0])]),
            this(PF),
            R::InUse,
            "0000:01:00.0 has 1 virtual function, which would vanish with its driver; remove it first: hostdevctl vfs 0000:01:00.0 0",
        ),
        (mdevs(1), this(A), R::InUse, "0000:41:00.0 carries a mediated device"),
        (mdevs(3), this(A), R::InUse, "0000:41:00.0 carries 3 mediated devices"),
        (
            {
                let claim = claim(vm1(), ClaimState::Planned, [grant(1, A, "t", Undo::Remove)]);
                Setting { claims: vec![claim], ..mdevs(0) }
            },
            this(A),
            R::InUse,
            "a mediated device on 0000:41:00.0 is promised to domain 'vm1'",
        ),
        (
            lone(&|f| f.iommu_group = None),
            this(A),
            R::NoIommu,
            "0000:41:00.0 has no IOMMU group: the IOMMU is off, and without it a VM's device could write anywhere; 'hostdevctl doctor' \
             says how to turn it on",
        ),
        (
            pair(|_| {}),
            this(A),
            R::GroupNotIsolated,
            "0000:41:00.0 shares IOMMU group 7 with 0000:42:00.0 (Audio), which the host uses (driver snd_hda_intel); give the VM both, or \
             unbind that one",
        ),
        (
            pair(|other| (other.driver, other.host_critical) = (None, vec!["carries /boot on sda1".into()])),
            this(A),
            R::GroupNotIsolated,
            "0000:41:00.0 shares IOMMU group 7 with 0000:42:00.0 (Audio), which the host itself needs: carries /boot on sda1",
        ),
        (
            pair(|other| other.driver = Some(driver("vfio-pci"))).promise(vm1(), &[B]),
            this(A),
            R::GroupNotIsolated,
            "0000:41:00.0 shares IOMMU group 7 with 0000:42:00.0 (Audio), which is promised to domain 'vm1'",
        ),
        (
            lone(&|f| f.numa_node = Some(NumaNode(0))),
            need(&[("address", A), ("numa-node", "1")]),
            R::WrongNumaNode,
            "0000:41:00.0 is on NUMA node 0, not 1",
        ),
        (
            lone(&|_| {}),
            need(&[("address", A), ("numa-node", "1")]),
            R::WrongNumaNode,
            "the NUMA node of 0000:41:00.0 is not known; asked for was node 1",
        ),
        (
            lone(&|_| {}),
            need(&[("address", A), ("vlan", "42")]),
            R::WrongKind,
            "0000:41:00.0 is no virtual function: MAC, VLAN and the like are set of those only",
        ),
        (
            Setting::of([physical(PF, 12, &[VF0]), virtual_function(VF0, 15, PF, 0)]),
            need(&[("address", VF0), ("mac", "52:54:00:6d:90:02")]),
            R::WrongKind,
            "MAC, VLAN and the like of 0000:01:10.0 are set through a network interface of 0000:01:00.0, which has none",
        ),
        (lone(&|_| {}), need(&[("address", A), ("vgpu-type", "1145")]), R::WrongKind, "0000:41:00.0 has no vGPU types"),
        (
            lone(&|f| f.vgpu = vgpu_types(None, &[(1145, "NVIDIA L40S-1B"), (1155, "NVIDIA L40S-8Q")])),
            this(A),
            R::WrongKind,
            "0000:41:00.0 needs a vgpu-type before a VM can use it; it can have: 1145 (NVIDIA L40S-1B), 1155 (NVIDIA L40S-8Q)",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(None, &[])),
            this(A),
            R::WrongKind,
            "0000:41:00.0 needs a vgpu-type before a VM can use it; it can have: none now",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(Some(1145), &[])),
            FunctionNeed { hostdev: Some(hostdev(true)), ..this(A) },
            R::WrongKind,
            "0000:41:00.0 has a vGPU type in a VM and needs managed='no' there: libvirt would bind another driver",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(Some(1145), &[])),
            need(&[("address", A), ("driver", "vfio-pci")]),
            R::WrongKind,
            "0000:41:00.0 has a vGPU type in a VM and stays on its driver: neither managed=yes nor a driver goes with it",
        ),
        (
            // Numbers are matched exactly, never by their beginning.
            lone(&|f| f.vgpu = vgpu_types(None, &[(1145, "NVIDIA L40S-1B")])),
            need(&[("address", A), ("vgpu-type", "114")]),
            R::NoInstance,
            "0000:41:00.0 cannot have the vGPU type 114 now; it can have: 1145 (NVIDIA L40S-1B)",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(None, &[(1145, "NVIDIA L40S-1B")])),
            need(&[("address", A), ("vgpu-type", "NVIDIA L40S-1")]),
            R::NoInstance,
            "0000:41:00.0 cannot have the vGPU type 'NVIDIA L40S-1' now; it can have: 1145 (NVIDIA L40S-1B)",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(None, &[])),
            need(&[("address", A), ("vgpu-type", "1145")]),
            R::NoInstance,
            "0000:41:00.0 cannot have the vGPU type 1145 now; it can have: none now",
        ),
        (
            lone(&|f| f.vgpu = vgpu_types(Some(1155), &[])),
            need(&[("address", A), ("vgpu-type", "NVIDIA L40S-1B")]),
            R::NoInstance,
            "0000:41:00.0 has the vGPU type 1155, which nobody has claimed, and does not tell while it has that which number 'NVIDIA \
             L40S-1B' is: give the number, or take the type away: hostdevctl vgpu-type 0000:41:00.0 none",
        ),
    ];
    for (setting, need, reason, message) in table {
        let choice = setting.choose(&need, &BTreeSet::new());
        assert_eq!(choice.chosen(&need.wanted), [], "{message}");
        let whole = format!("no device for 'dev0': {message}");
        assert_eq!(refusal(&choice), (reason, whole.as_str()));
        let candidate = Verdict::Refused(Refusal::new(reason, message));
        assert_eq!(choice.candidates.iter().map(|c| &c.verdict).collect::<Vec<_>>(), [&candidate]);
    }
}

#[test]
fn the_reason_host_critical_means_that_nothing_else_stands_in_the_way() {
    // Who forces it takes the function from the host, never from another VM.
    let root = || critical_for(&["carries /"], function(A, 7));
    let table = [
        (
            Setting::of([root()]).promise(domain(1, "vm1"), &[A]),
            Reason::InUse,
            "the host itself needs 0000:41:00.0: carries /; besides, 0000:41:00.0 is already promised to domain 'vm1'",
        ),
        (
            Setting::of([Function { iommu_group: None, ..root() }]),
            Reason::NoIommu,
            "the host itself needs 0000:41:00.0: carries /; besides, 0000:41:00.0 has no IOMMU group: the IOMMU is off, and without it a \
             VM's device could write anywhere; 'hostdevctl doctor' says how to turn it on",
        ),
        (
            Setting::of([root(), function(B, 7)]).promise(domain(1, "vm1"), &[B]),
            Reason::GroupNotIsolated,
            "the host itself needs 0000:41:00.0: carries /; besides, 0000:41:00.0 shares IOMMU group 7 with 0000:42:00.0, which is \
             promised to domain 'vm1'",
        ),
        (Setting::of([root()]), Reason::HostCritical, "the host itself needs 0000:41:00.0: carries /"),
    ];
    for (setting, reason, message) in table {
        let whole = format!("no device for 'dev0': {message}");
        assert_eq!(refusal(&setting.choose(&this(A), &BTreeSet::new())), (reason, whole.as_str()));
    }
    // A physical function whose virtual ones are in VMs.
    let [pf, vf0, vf1] = network_card();
    let setting =
        Setting::of([critical_for(&["has the default route"], pf), vf0, vf1]).promise(domain(1, "vm1"), &[VF0]);
    assert_eq!(refusal(&setting.choose(&this(PF), &BTreeSet::new())).0, Reason::InUse);
}

#[test]
fn what_in_a_group_does_not_stand_in_the_way() {
    type Change = fn(&mut Function);
    let table: [(&str, Change); 6] = [
        ("unbound", |other| other.driver = None),
        ("for VMs", |other| other.driver = Some(driver("vfio-pci"))),
        ("for VMs, by a variant", |other| other.driver = Some(driver("mlx5_vfio_pci"))),
        ("harmless", |other| other.driver = Some(driver("pci-stub"))),
        ("a port", |other| other.driver = Some(driver("pcieport"))),
        ("a bridge that the host needs", |other| {
            (other.bridge, other.host_critical) = (true, vec!["the root disk is behind it".into()]);
        }),
    ];
    for (what, change) in table {
        assert_eq!(pair(change).chosen(&this(A)), [A], "{what}");
    }
    // Neither does another group, nor what has none.
    assert_eq!(pair(|other| other.iommu_group = None).chosen(&this(A)), [A]);
}

#[test]
fn what_goes_to_the_same_vm_shares_a_group() {
    let together: BTreeSet<PciAddress> = [address(A), address(B)].into();
    let alone = BTreeSet::from([address(A)]);
    assert!(pair(|_| {}).choose(&this(A), &alone).refusal.is_some());
    for at in [A, B] {
        assert_eq!(pair(|_| {}).choose(&this(at), &together).refusal, None, "{at}");
    }
    // Also once the first of them has been promised to it.
    let half = pair(|_| {}).promise(domain(1, "vm1"), &[A]);
    assert_eq!(half.choose(&this(B), &together).refusal, None);
    assert_eq!(refusal(&half.choose(&this(A), &together)).0, Reason::InUse);
    // What the host needs is refused for itself, which refuses all that goes with it.
    let boot = pair(|other| other.host_critical = vec!["carries /boot".into()]);
    assert_eq!(boot.choose(&this(A), &together).refusal, None);
    assert_eq!(refusal(&boot.choose(&this(B), &together)).0, Reason::HostCritical);
}

#[test]
fn what_is_not_there_says_what_to_do() {
    let setting = Setting::of([
        physical(PF, 12, &[]),
        physical("0000:02:00.0", 13, &["0000:02:10.0"]),
        Function { vgpu: vgpu_types(None, &[]), ..virtual_function("0000:02:10.0", 14, "0000:02:00.0", 0) },
    ]);
    let list = "'hostdevctl list' shows what there is";
    let table: [(&[(&str, &str)], String); 9] = [
        (
            &[("address", VF0)],
            "this host does not have the PCI function 0000:01:10.0; if it is a virtual function of 0000:01:00.0, make those first: \
             hostdevctl vfs 0000:01:00.0 COUNT"
                .into(),
        ),
        // Of a physical function that has some already, or on another bus, it is none.
        (&[("address", "0000:02:11.0")], format!("this host does not have the PCI function 0000:02:11.0; {list}")),
        (&[("address", "10000:01:10.0")], format!("this host does not have the PCI function 10000:01:10.0; {list}")),
        (&[("kind", "pci")], format!("this host does not have any PCI function; {list}")),
        (&[("device", "10de:26b9")], format!("this host does not have any PCI function 10de:26b9; {list}")),
        (
            &[("device", "8086:10c9")],
            format!(
                "this host does not have any PCI function 8086:10c9; {PF} is a physical function, which is given away only to those who \
                 ask for it with kind=pci or its address"
            ),
        ),
        (
            &[("pf", PF)],
            format!("this host does not have any virtual function of {PF}; make them first: hostdevctl vfs {PF} COUNT"),
        ),
        (
            &[("pf", "0000:09:00.0"), ("device", "8086:10ca")],
            format!("this host does not have any virtual function 8086:10ca of 0000:09:00.0; {list}"),
        ),
        (
            &[("kind", "pci"), ("vgpu-type", "1145")],
            format!("this host does not have any PCI function with vGPU types; {list}"),
        ),
    ];
    for (pairs, message) in table {
        let choice = setting.choose(&need(pairs), &BTreeSet::new());
        assert_eq!((refusal(&choice), choice.candidates.len()), ((Reason::NotFound, message.as_str()), 0));
    }
}

#[path = "function_ranking_tests.rs"]
mod ranking;

#[path = "function_properties.rs"]
mod properties;
