//! Functions that are pulled out, and what comes in their place: a claim on one that is gone says so, and gives nothing back there.

use mdevd_core::claim::{ClaimState, Undo};
use mdevd_dbus::ErrorName;
use mdevd_tests::fakesys::{self, Builder, Errno, Fault, Op};
use mdevd_tests::harness::{Domain, eventually};

use super::common::*;

/// Another card for the place of [`NIC`].
fn another() -> Builder {
    fakesys::host()
        .function(NIC)
        .ids(0x15b3, 0x1017)
        .class(0x02_0000)
        .driver("mlx5_core")
        .netdev("enp3s0f0", "52:54:00:00:00:09")
}

/// [`NIC`] as it was.
fn the_same() -> Builder {
    fakesys::host()
        .function(NIC)
        .ids(0x8086, 0x10d3)
        .class(0x02_0000)
        .driver("e1000e")
        .netdev("enp3s0", "52:54:00:00:00:02")
}

impl Lab {
    /// Waits until the claim of `vm` says that this function has vanished.
    async fn says_gone(&self, vm: &Domain, address: &str) {
        let why = format!("its device {address} has vanished");
        let says = || async { self.claim(vm).is_some_and(|claim| claim.problem.contains(&why)) };
        eventually(&format!("the claim of {} on {address} says that it has vanished", vm.name), says).await;
        let claim = self.claim(vm).unwrap();
        assert_eq!(claim.state, ClaimState::Ready, "its domain may still run");
        let key = mdevd_core::names::DeviceKey::Pci(address.parse().unwrap());
        assert_eq!(claim.grant(key).unwrap().undo, Undo::Keep);
        let listed = || async { self.problems().await.iter().any(|problem| problem.contains(&why)) };
        eventually("it is listed", listed).await;
    }

    /// The end of `vm` changes nothing on the host.
    async fn ends_without_a_write(&self, vm: &Domain) {
        self.host.clear_log();
        vm.release(&self.manager).await.unwrap();
        self.freed(vm).await;
        assert_eq!(self.host.sys_writes(), []);
        assert!(!vm.release(&self.manager).await.unwrap(), "it is freed once");
        self.nothing_left().await;
    }
}

#[tokio::test]
async fn a_claimed_function_that_is_pulled_out() {
    let lab = Lab::start(nics()).await;
    for vm in [wants("vm1", NIC), wants_managed("vm2", NIC)] {
        vm.prepare(&lab.manager).await.unwrap();
        lab.host.unplug(NIC);
        lab.says_gone(&vm, NIC).await;
        assert!(!lab.shows(NIC).await);
        assert_refused(wants("vm3", NIC).prepare(&lab.manager).await, ErrorName::NotFound, &[NIC]);
        lab.ends_without_a_write(&vm).await;
        lab.host.plug(another());
        eventually("the next one", || lab.shows(NIC)).await;
    }
}

#[tokio::test]
async fn what_comes_in_its_place_is_somebody_elses() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unplug(NIC);
    lab.says_gone(&vm, NIC).await;
    lab.host.plug(another());
    eventually("the next one", || lab.shows(NIC)).await;
    // It is not the one that was promised; but whose start that was may still be at it.
    assert_refused(wants("vm2", NIC).prepare(&lab.manager).await, ErrorName::InUse, &["domain 'vm1'"]);
    // One without a driver would be given to the old one's, were it that.
    lab.host.unbind(NIC);
    lab.ends_without_a_write(&vm).await;
    assert_eq!(lab.bound(NIC), (None, None));
    lab.host.bind(NIC, "mlx5_core").unwrap();
    let next = wants("vm2", NIC);
    next.prepare(&lab.manager).await.unwrap();
    next.release(&lab.manager).await.unwrap();
    lab.restored(NIC, Some("mlx5_core")).await;
}

#[tokio::test]
async fn one_that_is_pulled_out_while_mdevd_is_away() {
    let mut lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    lab.daemon.kill(&lab.bus).await;
    lab.host.unplug(NIC);
    lab.restart().await;
    lab.says_gone(&vm, NIC).await;
    lab.host.plug(another());
    eventually("the next one", || lab.shows(NIC)).await;
    lab.host.unbind(NIC);
    lab.ends_without_a_write(&vm).await;
    assert_eq!(lab.bound(NIC), (None, None));
}

#[tokio::test]
async fn one_that_is_pulled_out_while_it_is_being_bound() {
    let lab = Lab::start(nics()).await;
    for file in ["sys/**/driver_override", "sys/bus/pci/drivers/*/unbind", "sys/bus/pci/drivers_probe"] {
        let hang = lab.host.fault_times(1, Op::Write, file, Fault::Hang);
        let vm = wants("vm1", NIC);
        let out = async {
            eventually(file, || async { hang.hanging() == 1 }).await;
            lab.host.unplug(NIC);
            hang.let_go();
        };
        let (answer, ()) = tokio::join!(vm.prepare(&lab.manager), out);
        assert!(answer.is_err(), "{file}: {answer:?}");
        lab.freed(&vm).await;
        assert!(!lab.shows(NIC).await);
        lab.nothing_left().await;
        lab.host.plug(the_same());
        eventually("it is back", || lab.shows(NIC)).await;
        vm.prepare(&lab.manager).await.unwrap();
        vm.release(&lab.manager).await.unwrap();
        lab.restored(NIC, Some("e1000e")).await;
        lab.freed(&vm).await;
    }
}

#[tokio::test]
async fn one_that_goes_in_the_middle_of_a_look_is_gone() {
    let lab = Lab::start(nics()).await;
    for attribute in ["vendor", "class", "driver_override", "numa_node"] {
        let hang =
            lab.host.fault_times(1, Op::Read, format!("{}/{attribute}", lab.host.function_path(NIC)), Fault::Hang);
        let manager = lab.manager.clone();
        let rescan = tokio::spawn(async move { manager.rescan(&none()).await });
        eventually(attribute, || async { hang.hanging() == 1 }).await;
        lab.host.unplug(NIC);
        hang.let_go();
        rescan.await.unwrap().unwrap();
        eventually("it is gone", || async { !lab.shows(NIC).await }).await;
        assert!(lab.shows(PF).await && lab.shows(CARD[1]).await);
        lab.nothing_left().await;
        lab.host.plug(the_same());
        eventually("and back", || lab.shows(NIC)).await;
        assert_eq!(lab.function(NIC).await.driver().await.unwrap(), "e1000e");
    }
}

#[tokio::test]
async fn what_was_wrong_with_a_function_goes_with_it() {
    let lab = Lab::start(nics()).await;
    let unread = lab.host.fault(Op::List, lab.host.function_path(NIC), Fault::Errno(Errno::IO));
    lab.manager.rescan(&none()).await.unwrap();
    let problems = lab.problems().await.concat();
    assert!(problems.contains(NIC) && problems.contains("EIO"), "{problems}");
    unread.let_go();
    lab.host.unplug(NIC);
    eventually("it is gone", || async { !lab.shows(NIC).await }).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_physical_function_takes_its_virtual_ones_along() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 3).unwrap()).await;
    let (bound, libvirts) = (wants("vm1", VFS[0]), wants_managed("vm2", VFS[1]));
    for vm in [&bound, &libvirts] {
        vm.prepare(&lab.manager).await.unwrap();
    }
    let running = qemu(&lab.host, 4242, VFS[0]);
    lab.host.unplug(PF);
    lab.says_gone(&bound, VFS[0]).await;
    lab.says_gone(&libvirts, VFS[1]).await;
    for address in [PF, VFS[0], VFS[1], VFS[2]] {
        eventually(address, || async { !lab.shows(address).await }).await;
    }
    wants("vm3", NIC).prepare(&lab.manager).await.unwrap();
    running.vanish();
    lab.host.clear_log();
    for vm in [&bound, &libvirts] {
        vm.release(&lab.manager).await.unwrap();
        lab.freed(vm).await;
    }
    assert_eq!(lab.host.sys_writes(), []);
}

#[tokio::test]
async fn a_function_of_a_card_goes_and_the_other_comes_back() {
    let lab = Lab::start(nics()).await;
    let vm = wants_card("vm1");
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unplug(CARD[1]);
    lab.says_gone(&vm, CARD[1]).await;
    vm.release(&lab.manager).await.unwrap();
    lab.restored(CARD[0], Some("nouveau")).await;
    lab.nothing_left().await;
}
