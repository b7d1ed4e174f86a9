//! How many virtual functions there are: what `SetNumVfs` does, and what it refuses.

use mdevd_dbus::{ErrorName, Options, path};
use mdevd_tests::fakesys::{Errno, Fault, Op, Point};
use mdevd_tests::harness::{Domain, eventually};

use super::common::*;

impl Lab {
    /// The numbers that were written, as long as they went through.
    fn numbers(&self) -> Vec<String> {
        let writes = self.host.sys_writes().into_iter();
        writes.filter(|(path, ..)| path.ends_with("/sriov_numvfs")).map(|(_, value, _)| value).collect()
    }

    /// The change is refused, and nothing is written.
    async fn refuses_vfs(&self, count: u32, name: ErrorName, words: &[&str]) {
        let before = (self.host.sys_writes(), self.host.view().vfs(PF));
        assert_refused(self.set_num_vfs(PF, count).await, name, words);
        assert_eq!((self.host.sys_writes(), self.host.view().vfs(PF)), before);
    }
}

fn autoprobe(on: bool) -> Options<'static> {
    Options::from([("drivers-autoprobe", on.into())])
}

#[tokio::test]
async fn virtual_functions_are_there_when_the_call_returns() {
    let lab = Lab::start(nics()).await;
    let pf = lab.physical(PF).await;
    assert_eq!((pf.total_vfs().await.unwrap(), pf.num_vfs().await.unwrap()), (7, 0));
    assert!(lab.set_num_vfs(PF, 2).await.unwrap());
    let vfs = pf.vfs().await.unwrap();
    assert_eq!(vfs, [path::function(VFS[0]), path::function(VFS[1])]);
    for (index, vf) in (0..).zip(&VFS[..2]) {
        let function = lab.function(vf).await;
        assert_eq!((function.role().await.unwrap(), function.driver().await.unwrap()), ("vf".into(), "igbvf".into()));
        assert_eq!(function.netdevs().await.unwrap()[0].0, format!("enp1s0v{index}"));
        let vf = lab.virtual_function(vf).await;
        assert_eq!((vf.pf().await.unwrap(), vf.vf_index().await.unwrap()), (path::function(PF), index));
    }
    assert_eq!(lab.numbers(), ["2"]);

    // The same number once more is nothing to do.
    assert!(!lab.set_num_vfs(PF, 2).await.unwrap());
    assert_eq!(lab.numbers(), ["2"]);
    // From one number to another the way leads through none; to none it does not.
    assert!(lab.set_num_vfs(PF, 3).await.unwrap());
    assert_eq!((lab.numbers(), pf.num_vfs().await.unwrap()), (vec!["2".into(), "0".into(), "3".into()], 3));
    lab.host.clear_log();
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
    assert_eq!((lab.numbers(), pf.num_vfs().await.unwrap()), (vec!["0".to_owned()], 0));
    assert!(!lab.shows(VFS[0]).await);
    assert!(!lab.set_num_vfs(PF, 0).await.unwrap());
    lab.nothing_left().await;
}

#[tokio::test]
async fn more_than_it_can_have_is_refused_with_the_number() {
    let lab = Lab::start(nics()).await;
    for count in [8, 65_536, u32::MAX] {
        lab.refuses_vfs(count, ErrorName::InvalidArgument, &[PF, "7 virtual functions", &count.to_string()]).await;
    }
    assert!(lab.set_num_vfs(PF, 7).await.unwrap());
    assert_eq!(lab.host.view().vfs(PF).len(), 7);
}

#[tokio::test]
async fn not_while_a_virtual_function_is_promised() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    for vm in [wants("vm1", VFS[1]), wants_managed("vm1", VFS[1])] {
        vm.prepare(&lab.manager).await.unwrap();
        for count in [0, 1, 3] {
            lab.refuses_vfs(count, ErrorName::InUse, &[VFS[1], "domain 'vm1'"]).await;
        }
        assert!(!lab.set_num_vfs(PF, 2).await.unwrap(), "that many there are");
        vm.release(&lab.manager).await.unwrap();
        lab.freed(&vm).await;
    }
    lab.function(VFS[0]).await.bind("vfio-pci", &none()).await.unwrap();
    lab.refuses_vfs(0, ErrorName::InUse, &[VFS[0], "manual claim"]).await;
    lab.function(VFS[0]).await.restore(&none()).await.unwrap();
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
}

#[tokio::test]
async fn not_while_a_virtual_function_is_open() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_num_vfs(PF, 2).unwrap();
        host.unbind(VFS[0]);
        host.set_override(VFS[0], Some("vfio-pci"));
        host.bind(VFS[0], "vfio-pci").unwrap();
    })
    .await;
    // By somebody of whom mdevd knows nothing.
    let running = qemu(&lab.host, 4242, VFS[0]);
    lab.refuses_vfs(0, ErrorName::InUse, &[VFS[0], "qemu-system-x86", "4242"]).await;
    lab.refuses_vfs(3, ErrorName::InUse, &[VFS[0]]).await;
    running.closes_groups();
    // Or by one who does not let anybody see it.
    let _ = running.hides_fds();
    lab.refuses_vfs(0, ErrorName::InUse, &[VFS[0], "4242"]).await;
    lab.host.process(4242, "other", &["other"]).vanish();
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
}

#[tokio::test]
async fn not_on_a_card_with_vgpus() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.host.view().vfs(GPU);
    lab.host.set_vgpu_type(&vfs[5], 1148).unwrap();
    for count in [0, 16] {
        let refused = lab.set_num_vfs(GPU, count).await;
        assert_refused(refused, ErrorName::InUse, &[&vfs[5], "vGPU type 1148"]);
    }
    assert_eq!((lab.host.sys_writes(), lab.host.view().vfs(GPU).len()), (vec![], 32));
    // Nor below mediated devices.
    let mdev_card = "0000:81:00.0";
    let lab = Lab::start(mdevd_tests::fakesys::host().parent(mdev_card).mdev_type("nvidia-63", 2)).await;
    Domain::wants("vm1", &["nvidia-63"]).prepare(&lab.manager).await.unwrap();
    let physical = lab.physical(mdev_card).await.set_num_vfs(1, &none()).await.unwrap_err();
    assert!(physical.to_string().contains("nknown"), "it makes none: {physical}");
}

/// One that is promised is not there yet, and would be made on what is about to go.
#[tokio::test]
async fn neither_comes_between_the_other_s_promise_and_its_write() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_num_vfs(PF, 1).unwrap();
        host.plug(mdevd_tests::fakesys::host().parent(VFS[0]).mdev_type("nvidia-63", 2));
    })
    .await;
    let vm = Domain::wants("vm1", &["nvidia-63"]);
    let creates = lab.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let making = async {
        eventually("the device is being made", || async { creates.hanging() == 1 }).await;
        lab.refuses_vfs(2, ErrorName::InUse, &[VFS[0], "mediated device", "domain 'vm1'"]).await;
        creates.let_go();
    };
    tokio::join!(async { vm.prepare(&lab.manager).await.unwrap() }, making);
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    let changes = lab.host.fault(Op::Write, "sys/**/sriov_numvfs", Fault::Hang);
    let changing = async {
        eventually("the number is being changed", || async { changes.hanging() == 1 }).await;
        assert_refused(vm.prepare(&lab.manager).await, ErrorName::Busy, &[PF, "try again"]);
        changes.let_go_with(Errno::NOMEM);
    };
    let (refused, ()) = tokio::join!(lab.set_num_vfs(PF, 2), changing);
    assert_refused(refused, ErrorName::KernelRefused, &["ENOMEM"]);
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn not_by_one_that_makes_none() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_num_vfs(PF, 1).unwrap();
        host.plug(mdevd_tests::fakesys::host().pf("0000:0b:00.0", 4).driver("bnxt_en").hardware_vfs(6));
        host.unbind("0000:0b:00.0");
    })
    .await;
    // Neither a function without SR-IOV nor a virtual one has the method.
    for address in [NIC, VFS[0]] {
        let error = lab.set_num_vfs(address, 1).await.unwrap_err();
        assert!(error.to_string().contains("Unknown") || error.to_string().contains("nknown"), "{error}");
    }
    let orphan = "0000:0b:00.0";
    assert_refused(lab.set_num_vfs(orphan, 2).await, ErrorName::NotSupported, &[orphan, "has no driver"]);
    lab.function(orphan).await.bind("vfio-pci", &none()).await.unwrap();
    assert_refused(lab.set_num_vfs(orphan, 2).await, ErrorName::NotSupported, &[orphan, "vfio-pci"]);
    lab.function(orphan).await.restore(&none()).await.unwrap();
    lab.host.bind(orphan, "bnxt_en").unwrap();
    assert!(lab.set_num_vfs(orphan, 4).await.unwrap());
    // The driver has lowered what the hardware can.
    assert_refused(lab.set_num_vfs(orphan, 6).await, ErrorName::InvalidArgument, &["4 virtual functions, not 6"]);
}

#[tokio::test]
async fn what_the_kernel_answers_is_passed_on() {
    let lab = Lab::start(nics()).await;
    for (errno, name) in [(Errno::BUSY, "EBUSY"), (Errno::NOMEM, "ENOMEM"), (Errno::NOENT, "ENOENT")] {
        let fault = lab.host.fault_times(1, Op::Write, "sys/**/sriov_numvfs", Fault::Errno(errno));
        assert_refused(lab.set_num_vfs(PF, 2).await, ErrorName::KernelRefused, &[PF, "sriov_numvfs", name]);
        assert_eq!((fault.hits(), lab.host.view().vfs(PF).len()), (1, 0));
    }
    assert!(lab.set_num_vfs(PF, 2).await.unwrap());
    // The way through none was gone half: what there is now is what is shown.
    let fault = lab.host.fault_at(Point::in_write("sys/**/sriov_numvfs").writing("3"), Fault::Errno(Errno::NOMEM));
    let words = ["ENOMEM", "0000:01:00.0 had 2 virtual functions and has 0 now"];
    assert_refused(lab.set_num_vfs(PF, 3).await, ErrorName::KernelRefused, &words);
    assert_eq!(fault.hits(), 1);
    assert_eq!(lab.physical(PF).await.num_vfs().await.unwrap(), 0);
    assert!(lab.set_num_vfs(PF, 3).await.unwrap());
}

#[tokio::test]
async fn drivers_are_left_out_on_request() {
    let lab = Lab::start(nics()).await;
    let pf = lab.physical(PF).await;
    assert!(pf.set_num_vfs(2, &autoprobe(false)).await.unwrap());
    assert!(!pf.drivers_autoprobe().await.unwrap());
    for vf in &VFS[..2] {
        assert_eq!(lab.bound(vf), (None, None));
    }
    let order: Vec<String> =
        lab.host.sys_writes().iter().map(|(path, ..)| path.rsplit('/').next().unwrap().into()).collect();
    assert_eq!(order, ["sriov_drivers_autoprobe", "sriov_numvfs"]);
    assert!(!pf.set_num_vfs(2, &autoprobe(false)).await.unwrap());
    // Such a function is taken and given back as any.
    let vm = wants("vm1", VFS[0]);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(VFS[0]).0.as_deref(), Some("vfio-pci"));
    vm.release(&lab.manager).await.unwrap();
    lab.restored(VFS[0], None).await;
    lab.freed(&vm).await;
    // Only the switch: the functions that there are stay, and stay as they are.
    lab.host.clear_log();
    assert!(pf.set_num_vfs(2, &autoprobe(true)).await.unwrap());
    assert_eq!((lab.host.sys_writes().len(), lab.bound(VFS[1])), (1, (None, None)));
    assert!(pf.drivers_autoprobe().await.unwrap());
    assert!(pf.set_num_vfs(3, &none()).await.unwrap());
    assert_eq!(lab.bound(VFS[1]).0.as_deref(), Some("igbvf"));
    for bad in [Options::from([("autoprobe", true.into())]), Options::from([("drivers-autoprobe", "off".into())])] {
        assert_refused(pf.set_num_vfs(3, &bad).await, ErrorName::InvalidOption, &["autoprobe"]);
    }
}

#[tokio::test]
async fn whoever_asks_for_a_number_and_the_switch_gets_both_or_neither() {
    let lab = Lab::start(nics()).await;
    let pf = lab.physical(PF).await;
    let _ = lab.host.fault(Op::Write, "sys/**/sriov_numvfs", Fault::Errno(Errno::NOMEM));
    assert_refused(pf.set_num_vfs(2, &autoprobe(false)).await, ErrorName::KernelRefused, &["sriov_numvfs", "ENOMEM"]);
    assert_eq!((pf.num_vfs().await.unwrap(), pf.drivers_autoprobe().await.unwrap()), (0, true));
    // Where not even that can be put back it is said.
    let back = Point::in_write("sys/**/sriov_drivers_autoprobe").writing("1");
    lab.host.fault_at(back, Fault::Errno(Errno::IO));
    let words = ["ENOMEM", "besides, cannot turn driver binding of new virtual functions of 0000:01:00.0 on", "EIO"];
    assert_refused(pf.set_num_vfs(2, &autoprobe(false)).await, ErrorName::KernelRefused, &words);
}

#[tokio::test]
async fn two_changes_come_one_after_the_other() {
    let lab = Lab::start(nics()).await;
    let (first, second) = (lab.physical(PF).await, lab.physical(PF).await);
    let (options, same) = (none(), none());
    let (one, other) = tokio::join!(first.set_num_vfs(2, &options), second.set_num_vfs(5, &same));
    assert_eq!((one.unwrap(), other.unwrap()), (true, true));
    let numbers = lab.numbers();
    assert!(numbers == ["2", "0", "5"] || numbers == ["5", "0", "2"], "{numbers:?}");
    assert_eq!(lab.host.view().vfs(PF).len().to_string(), numbers[2]);
    eventually("the bus says so", || async {
        lab.physical(PF).await.num_vfs().await.unwrap().to_string() == numbers[2]
    })
    .await;
}

#[tokio::test]
async fn an_interface_that_is_renamed_keeps_its_function() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    lab.host.rename_netdev("enp1s0v0", "guest0");
    let vf = lab.function(VFS[0]).await;
    eventually("its new name", || async { vf.netdevs().await.unwrap()[0].0 == "guest0" }).await;
    let vm = wants("vm1", VFS[0]);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(vf.netdevs().await.unwrap(), []);
    vm.release(&lab.manager).await.unwrap();
    lab.restored(VFS[0], Some("igbvf")).await;
    // So does the physical one's.
    lab.host.rename_netdev("enp1s0", "uplink");
    let pf = lab.function(PF).await;
    eventually("its new name", || async { pf.netdevs().await.unwrap()[0].0 == "uplink" }).await;
    assert!(lab.set_num_vfs(PF, 3).await.unwrap());
    lab.nothing_left().await;
}
