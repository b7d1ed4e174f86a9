//! What is not given to a VM, and what is said about it: nothing is written, and nothing is promised.

use mdevd_dbus::{ErrorName, Options, wire};
use mdevd_tests::fakesys::{self, Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, text_dict};

use super::common::*;

/// A disk with the host's controller for it, and one beside it.
const DISKS: [&str; 2] = ["0000:05:00.0", "0000:06:00.0"];
/// The port above the first one.
const PORT: &str = "0000:00:00.5";

impl Lab {
    /// This start is refused, and nothing of it is left.
    async fn refuses(&self, vm: &Domain, name: ErrorName, words: &[&str]) {
        let writes = self.host.sys_writes();
        let claims = claim_files(&self.host);
        assert_refused(vm.prepare(&self.manager).await, name, words);
        assert_eq!((self.host.sys_writes(), claim_files(&self.host)), (writes, claims), "{words:?}");
    }
}

fn forced(text: &str) -> Options<'_> {
    Options::from([("force", text.into())])
}

#[tokio::test]
async fn the_controller_of_the_root_disk() {
    let controller =
        |host: fakesys::Builder, address| host.function(address).ids(0x144d, 0xa808).class(0x01_0802).driver("nvme");
    let lab = Lab::start_with(controller(controller(nics(), DISKS[0]), DISKS[1]), |host| {
        host.disk(DISKS[0], "nvme0n1", "259:0");
        host.set_text("proc/1/mountinfo", "22 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n");
    })
    .await;
    lab.refuses(&wants("vm1", DISKS[0]), ErrorName::HostCritical, &[DISKS[0], "the host itself needs", "/ on nvme0n1"])
        .await;
    lab.refuses(&wants_managed("vm1", DISKS[0]), ErrorName::HostCritical, &[DISKS[0], "/ on nvme0n1"]).await;
    assert!(lab.function(DISKS[0]).await.host_critical().await.unwrap()[0].contains("/ on nvme0n1"));
    let above = lab.function(PORT).await.host_critical().await.unwrap();
    assert!(above[0].contains(DISKS[0]), "{above:?}");

    // By hand only for one who types the address twice.
    let disk = lab.function(DISKS[0]).await;
    assert_refused(disk.bind("vfio-pci", &none()).await, ErrorName::HostCritical, &["nvme0n1"]);
    for slip in ["yes", "", "0000:05:00.1", DISKS[1]] {
        assert_refused(disk.bind("vfio-pci", &forced(slip)).await, ErrorName::InvalidArgument, &["force", DISKS[0]]);
    }
    assert_eq!(lab.host.sys_writes(), []);
    assert!(disk.bind("vfio-pci", &forced(DISKS[0])).await.unwrap());
    assert!(disk.restore(&none()).await.unwrap());
    assert_eq!(lab.bound(DISKS[0]), (Some("nvme".into()), None));

    // The other one carries nothing.
    wants("vm1", DISKS[1]).prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn what_is_mounted_now_counts_and_not_what_was_at_first() {
    let lab = Lab::start_with(nics().function(DISKS[0]).class(0x01_0802).driver("nvme"), |host| {
        host.disk(DISKS[0], "nvme0n1", "259:0");
    })
    .await;
    // No event says that something is mounted.
    lab.host.set_text("proc/1/mountinfo", "22 1 259:0 / /srv rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n");
    let vm = wants("vm1", DISKS[0]);
    lab.refuses(&vm, ErrorName::HostCritical, &["/srv on nvme0n1"]).await;
    // When that cannot be read, any storage may be mounted.
    lab.host.drop_path("proc/1/mountinfo");
    lab.refuses(&vm, ErrorName::HostCritical, &[DISKS[0], "may carry", "ENOENT"]).await;
    lab.host.set_text("proc/1/mountinfo", "22 1 0:21 / / rw,relatime shared:1 - tmpfs tmpfs rw\n");
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn while_a_look_at_what_the_host_needs_hangs_nothing_is_written() {
    let disk = nics().function(DISKS[0]).class(0x01_0802).driver("nvme");
    let mut hang = None;
    let lab = Lab::start_with(disk, |host| {
        host.set_num_vfs(PF, 1).unwrap();
        host.disk(DISKS[0], "nvme0n1", "259:0");
        host.set_text("proc/1/mountinfo", "22 1 259:0 / / rw,relatime shared:1 - ext4 /dev/nvme0n1 rw\n");
        hang = Some(host.fault(Op::Read, "proc/1/mountinfo", Fault::Hang));
    })
    .await;
    let words = ["what the host itself needs", "does not come back"];
    let (vm, disk) = (wants("vm1", DISKS[0]), lab.function(DISKS[0]).await);
    lab.refuses(&vm, ErrorName::Stuck, &words).await;
    assert_refused(disk.bind("vfio-pci", &none()).await, ErrorName::Stuck, &words);
    assert_refused(lab.set_num_vfs(PF, 0).await, ErrorName::Stuck, &words);
    assert_eq!((lab.host.sys_writes(), lab.bound(DISKS[0]).0.as_deref()), (vec![], Some("nvme")));
    let listed = |problems: &[String]| problems.iter().any(|problem| problem.starts_with("host: what the host itself"));
    assert!(listed(&lab.problems().await), "{:?}", lab.problems().await);
    hang.unwrap().let_go();
    lab.refuses(&vm, ErrorName::HostCritical, &["/ on nvme0n1"]).await;
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
    lab.nothing_left().await;
}

#[tokio::test]
async fn the_card_with_the_default_route() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_num_vfs(PF, 2).unwrap();
        host.set_text("proc/net/route", &default_route("enp3s0"));
    })
    .await;
    lab.refuses(&wants("vm1", NIC), ErrorName::HostCritical, &[NIC, "the default route through enp3s0"]).await;
    let nic = lab.function(NIC).await;
    assert_refused(nic.bind("vfio-pci", &none()).await, ErrorName::HostCritical, &["default route"]);

    // Through a virtual function: the physical one is needed too, and so is their number.
    lab.host.set_text("proc/net/route", &default_route("enp1s0v1"));
    lab.refuses(&wants("vm1", VFS[1]), ErrorName::HostCritical, &[VFS[1], "the default route through enp1s0v1"]).await;
    lab.refuses(&wants("vm1", PF), ErrorName::InUse, &[PF, VFS[1], "2 virtual functions"]).await;
    assert_refused(lab.set_num_vfs(PF, 3).await, ErrorName::HostCritical, &[VFS[1], "enp1s0v1"]);
    assert_eq!(lab.host.sys_writes(), []);
    for free in [NIC, VFS[0]] {
        wants("vm1", free).prepare(&lab.manager).await.unwrap();
        assert!(lab.function(free).await.host_critical().await.unwrap().is_empty());
    }
}

/// libvirt's hook lets a domain start with a function that it does not request, unless somebody else has it.
#[tokio::test]
async fn that_somebody_else_has_one_of_them_is_said_first() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_text("proc/net/route", &default_route("enp3s0"));
    })
    .await;
    let both = has(asks(wants("vm1", NIC), PF, &[]), PF, "no");
    lab.refuses(&both, ErrorName::HostCritical, &[NIC]).await;
    wants("vm2", PF).prepare(&lab.manager).await.unwrap();
    lab.refuses(&both, ErrorName::InUse, &[PF, "domain 'vm2'"]).await;
}

#[tokio::test]
async fn the_boot_display_and_what_comes_with_it() {
    let lab = Lab::start_with(nics(), |host| {
        let boot = format!("{}/boot_vga", host.function_path(CARD[0]));
        host.set_text(&boot, "1\n");
    })
    .await;
    lab.refuses(&wants_card("vm1"), ErrorName::HostCritical, &[CARD[0], "boot display"]).await;
    lab.host.unbind(CARD[1]);
    lab.refuses(&wants("vm1", CARD[1]), ErrorName::GroupNotIsolated, &[CARD[1], CARD[0], "boot display"]).await;
    // Who forces it takes it from the host and from nobody else.
    wants("vm1", NIC).prepare(&lab.manager).await.unwrap();
    lab.host.set_text("proc/net/route", &default_route("enp3s0"));
    let nic = lab.function(NIC).await;
    assert_refused(nic.bind("vfio-pci", &forced(NIC)).await, ErrorName::InUse, &["domain 'vm1'"]);
}

#[tokio::test]
async fn bridges_and_chipset() {
    let (bridge, behind, isa) = ("0000:00:1c.0", "0000:07:00.0", "0000:00:1f.0");
    let host = nics().bridge(bridge, 7).function(behind).driver("other").group_with(bridge);
    let lab = Lab::start(host.function(isa).class(0x06_0100)).await;
    lab.refuses(&wants("vm1", bridge), ErrorName::NotSupported, &[bridge, "is a bridge"]).await;
    lab.refuses(&wants("vm1", isa), ErrorName::NotSupported, &[isa, "chipset"]).await;
    let whole = has(asks(domain("vm1"), "0000:00:1c", &[]), bridge, "no");
    lab.refuses(&whole, ErrorName::NotSupported, &[bridge, "is a bridge"]).await;
    let object = lab.function(bridge).await;
    assert_refused(object.bind("vfio-pci", &forced(bridge)).await, ErrorName::NotSupported, &["is a bridge"]);
    assert_refused(object.hostdev_xml(&none()).await, ErrorName::NotSupported, &["is a bridge"]);
    assert_eq!(lab.host.sys_writes(), []);
    // What is behind it is given although they share a group.
    assert_eq!(lab.host.group_of_function(behind), lab.host.group_of_function(bridge));
    let vm = wants("vm1", behind);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(bridge), (Some("pcieport".into()), None));
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.restored(behind, Some("other")).await;
}

#[tokio::test]
async fn a_host_without_an_iommu() {
    let lab = Lab::start(nics().without_iommu()).await;
    lab.refuses(&wants("vm1", NIC), ErrorName::NotSupported, &[NIC, "IOMMU", "hostdevctl doctor"]).await;
    lab.refuses(&wants_managed("vm1", NIC), ErrorName::NotSupported, &[NIC, "IOMMU"]).await;
    let bind = lab.function(NIC).await.bind("vfio-pci", &none()).await;
    assert_refused(bind, ErrorName::NotSupported, &["IOMMU"]);
    assert_eq!((lab.function(NIC).await.iommu_group().await.unwrap(), lab.host.sys_writes()), (-1, vec![]));
}

#[tokio::test]
async fn a_driver_that_is_not_loaded() {
    let lab = Lab::start(nics().without_vfio_pci()).await;
    let vm = wants("vm1", NIC);
    lab.refuses(&vm, ErrorName::NotSupported, &["vfio-pci", "modprobe vfio-pci", "modules-load.d"]).await;
    lab.nothing_left().await;
    // libvirt loads it by itself.
    let libvirts = wants_managed("vm2", NIC);
    libvirts.prepare(&lab.manager).await.unwrap();
    assert!(libvirts.release(&lab.manager).await.unwrap());
    lab.host.load_driver("vfio-pci");
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_is_said_with_the_way_out() {
    let lab = Lab::start(nics().function("0000:0a:00.0").numa(1)).await;
    let vf = |name: &str| has(asks(domain(name), VFS[0], &[("mac", "52:54:00:6d:90:02")]), VFS[0], "no");
    for (vm, name, words) in [
        (wants("vm1", "0000:0f:00.0"), ErrorName::NotFound, vec!["0000:0f:00.0", "hostdevctl list"]),
        // Not made yet.
        (vf("vm1"), ErrorName::NotFound, vec![VFS[0], "hostdevctl vfs 0000:01:00.0 COUNT"]),
        (asks(domain("vm1"), NIC, &[]), ErrorName::InvalidArgument, vec!["'dev0'", "<hostdev", "bus='0x03'"]),
        (has(asks(domain("vm1"), NIC, &[]), PF, "no"), ErrorName::InvalidArgument, vec!["'dev0'", NIC]),
        (
            has(asks(domain("vm1"), NIC, &[("managed", "yes")]), NIC, "no"),
            ErrorName::InvalidArgument,
            vec!["'dev0'", "managed", NIC],
        ),
        (wants_with("vm1", NIC, &[("vlan", "42")]), ErrorName::NotSupported, vec![NIC, "is no virtual function"]),
        (wants_with("vm1", NIC, &[("vgpu-type", "1152")]), ErrorName::NotSupported, vec![NIC, "no vGPU types"]),
        (wants_with("vm1", "0000:0a:00.0", &[("numa-node", "0")]), ErrorName::NoCandidate, vec!["NUMA node 1, not 0"]),
        (wants_with("vm1", NIC, &[("numa-node", "0")]), ErrorName::NoCandidate, vec!["NUMA node", "not known"]),
        (asks(wants("vm1", NIC), NIC, &[]), ErrorName::InvalidArgument, vec!["'dev0'", "'dev1'", NIC]),
        (asks(wants("vm1", NIC), "0000:03:00", &[]), ErrorName::InvalidArgument, vec!["'dev0'", "'dev1'", NIC]),
        (wants_with("vm1", NIC, &[("adress", NIC)]), ErrorName::InvalidArgument, vec!["did you mean 'address'?"]),
        (wants("vm1", "0000:03:00.8"), ErrorName::InvalidArgument, vec!["0000:03:00.8"]),
        (wants("vm1", "0000:03:20.0"), ErrorName::InvalidArgument, vec!["0000:03:20.0"]),
        // One of them can be had, and all are given or none.
        (
            has(asks(wants("vm1", NIC), "0000:0f:00.0", &[]), "0000:0f:00.0", "no"),
            ErrorName::NotFound,
            vec!["0000:0f:00.0"],
        ),
    ] {
        lab.refuses(&vm, name, &words).await;
    }
    lab.nothing_left().await;
    // The same words without a domain.
    let requests = [text_dict(&[("name", "a"), ("address", CARD[0])])];
    let explained = lab.manager.explain(&requests, &none()).await.unwrap();
    assert_eq!((explained.len(), wire::text(&explained[0], "verdict")), (1, "refused"));
    assert_eq!(wire::text(&explained[0], "reason"), "group-not-isolated");
    assert!(wire::text(&explained[0], "message").contains(CARD[1]));
    assert_refused(lab.manager.acquire(&requests, &none()).await, ErrorName::GroupNotIsolated, &[CARD[1]]);
    assert_eq!(lab.host.sys_writes(), []);
}

#[tokio::test]
async fn a_start_whose_settings_cannot_be_made_leaves_the_function_as_it_was() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 1).unwrap()).await;
    // There is no network behind this sysfs, and none of another host may be taken for it.
    let vm = wants_with("vm1", VFS[0], &[("mac", "52:54:00:6d:90:02")]);
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::KernelRefused, &["mac 52:54:00:6d:90:02", VFS[0]]);
    lab.restored(VFS[0], Some("igbvf")).await;
    assert_eq!(lab.host.sys_writes(), []);
    lab.nothing_left().await;
    let configure = lab.virtual_function(VFS[0]).await.configure(&Options::from([("vlan", 42u32.into())])).await;
    assert_refused(configure, ErrorName::KernelRefused, &["vlan 42"]);
}
