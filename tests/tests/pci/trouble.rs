//! Bad luck with drivers: what hangs is stuck and holds up nobody else, what fails is rolled back, what others did meanwhile stays.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mdevd_core::claim::ClaimState;
use mdevd_dbus::ErrorName;
use mdevd_tests::fakesys::{Errno, Fault, Op, Point};
use mdevd_tests::harness::{Domain, eventually};

use super::common::*;

/// The write that takes this function from its driver.
fn unbind_of(address: &str) -> Point {
    Point::in_write("sys/bus/pci/drivers/*/unbind").writing(address)
}

/// The write that lets a driver take this function.
fn probe_of(address: &str) -> Point {
    Point::in_write("sys/bus/pci/drivers_probe").writing(address)
}

impl Lab {
    async fn state(&self, address: &str) -> String {
        self.function(address).await.state().await.unwrap()
    }

    async fn wait_state(&self, address: &str, state: &str) {
        eventually(&format!("{address} is {state}"), || async { self.state(address).await == state }).await;
    }

    /// Others are served meanwhile: a look at everything, and another function taken and given back.
    async fn goes_on_with(&self, other: &str) {
        assert!(self.objects().await.len() > 4);
        let vm = wants("meanwhile", other);
        vm.prepare(&self.manager).await.unwrap();
        assert!(vm.release(&self.manager).await.unwrap());
        self.freed(&vm).await;
    }

    /// The start fails with these words, and the function is as it was.
    async fn fails_and_is_rolled_back(&self, vm: &Domain, words: &[&str]) {
        assert_refused(vm.prepare(&self.manager).await, ErrorName::KernelRefused, words);
        self.freed(vm).await;
    }
}

#[tokio::test]
async fn an_unbind_that_hangs_makes_its_function_stuck_and_others_go_on() {
    let lab = Lab::start(nics()).await;
    let hang = lab.host.fault_at(unbind_of(NIC), Fault::Hang);
    let vm = wants("vm1", NIC);
    let begun = Instant::now();
    let late = vm.prepare_within(&lab.manager, 1500).await;
    assert_refused(late, ErrorName::TimedOut, &["unbind 0000:03:00.0", "stuck"]);
    assert!(begun.elapsed() < Duration::from_millis(1500), "libvirt's patience is not used up: {:?}", begun.elapsed());
    lab.wait_state(NIC, "stuck").await;
    lab.goes_on_with(PF).await;
    assert_refused(wants("vm2", NIC).prepare(&lab.manager).await, ErrorName::Stuck, &[NIC, "stuck"]);
    let hand = lab.function(NIC).await;
    assert_refused(hand.bind("vfio-pci", &none()).await, ErrorName::Stuck, &[NIC]);
    let claim = lab.claim(&vm).unwrap();
    assert!(claim.state == ClaimState::Failed && claim.problem.contains("stuck"), "{claim:?}");
    assert!(lab.problems().await.iter().any(|problem| problem.starts_with(&format!("{NIC}: unbind"))));
    hang.let_go();
    lab.wait_state(NIC, "ok").await;
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn an_unbind_that_hangs_outlives_the_daemon() {
    let mut lab = Lab::start(nics()).await;
    let hang = lab.host.fault_at(unbind_of(NIC), Fault::Hang);
    let vm = wants("vm1", NIC);
    assert_refused(vm.prepare_within(&lab.manager, 1000).await, ErrorName::TimedOut, &[]);
    for _ in 0..2 {
        lab.restart().await;
        assert_eq!(lab.state(NIC).await, "stuck");
        lab.goes_on_with(PF).await;
        assert_refused(
            wants("vm2", NIC).prepare(&lab.manager).await,
            ErrorName::Stuck,
            &["before mdevd was restarted"],
        );
    }
    hang.let_go();
    lab.wait_state(NIC, "ok").await;
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
}

/// Nobody had it open when mdevd looked; right before the write somebody has.
#[tokio::test]
async fn a_function_that_is_opened_in_the_last_moment_comes_back_when_it_is_closed() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    let process = lab.host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]);
    let opened = process.clone();
    lab.host.on(Point::before(Op::Open, "sys/bus/pci/drivers/vfio-pci/unbind"), move |_| {
        let _ = opened.clone().opens_function(NIC);
        mdevd_tests::fakesys::Then::Proceed
    });
    vm.release(&lab.manager).await.unwrap();
    lab.wait_state(NIC, "stuck").await;
    lab.goes_on_with(PF).await;
    process.vanish();
    lab.restored(NIC, Some("e1000e")).await;
    lab.freed(&vm).await;
    lab.wait_state(NIC, "ok").await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_function_that_is_opened_while_it_is_prepared_is_not_taken_from_its_driver() {
    let lab = Lab::start_with(nics().vfio_driver("mlx5_vfio_pci"), |host| {
        host.unbind(NIC);
        host.bind(NIC, "vfio-pci").unwrap();
    })
    .await;
    let vm = wants_with("vm1", NIC, &[("driver", "mlx5_vfio_pci")]);
    let process = lab.host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]);
    let opened = process.clone();
    lab.host.on(Point::after_write("sys/**/driver_override"), move |_| {
        let _ = opened.clone().opens_function(NIC);
        mdevd_tests::fakesys::Then::Proceed
    });
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::InUse, &[NIC, "qemu-system-x86", "4242"]);
    assert!(!lab.writes_of(NIC).iter().any(|(file, _)| file == "unbind"), "{:?}", lab.writes_of(NIC));
    process.vanish();
    lab.freed(&vm).await;
    assert_eq!(lab.bound(NIC), (Some("vfio-pci".into()), None));
}

#[tokio::test]
async fn a_probe_that_binds_another_driver_is_rolled_back() {
    let lab = Lab::start(nics().pci_driver("thief", &[])).await;
    let vm = wants("vm1", NIC);
    // Its own one is quicker.
    lab.host.probe_binds(NIC, "e1000e");
    lab.fails_and_is_rolled_back(&vm, &[NIC, "bound to e1000e, not to vfio-pci", "journalctl -k"]).await;
    lab.restored(NIC, Some("e1000e")).await;
    // Somebody else's is: mdevd did not bind that, and leaves it.
    lab.host.probe_binds(NIC, "thief");
    lab.fails_and_is_rolled_back(&vm, &["bound to thief, not to vfio-pci"]).await;
    lab.restored(NIC, Some("thief")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_probe_that_fails_is_rolled_back() {
    let lab = Lab::start(nics()).await;
    lab.host.probe_fails(NIC, "vfio-pci", Errno::INVAL);
    let vm = wants("vm1", NIC);
    lab.fails_and_is_rolled_back(&vm, &[NIC, "bound to no driver, not to vfio-pci", "modprobe vfio-pci"]).await;
    lab.restored(NIC, Some("e1000e")).await;
    assert_eq!(lab.host.view().netdev_of(NIC).as_deref(), Some("enp3s0"));
    lab.host.probe_works(NIC, "vfio-pci");
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn each_write_that_the_kernel_refuses_is_rolled_back() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    let override_of = Point::in_write(format!("{}/driver_override", lab.host.function_path(NIC)));
    for (point, what) in
        [(override_of, "driver_override"), (unbind_of(NIC), "unbind"), (probe_of(NIC), "drivers_probe")]
    {
        lab.host.fault_at(point, Fault::Errno(Errno::ACCESS));
        lab.fails_and_is_rolled_back(&vm, &[what, "EACCES"]).await;
        lab.restored(NIC, Some("e1000e")).await;
        lab.nothing_left().await;
    }
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn a_card_of_which_one_function_fails_comes_back_whole() {
    let lab = Lab::start(nics()).await;
    let vm = wants_card("vm1");
    lab.host.probe_fails(CARD[1], "vfio-pci", Errno::INVAL);
    lab.fails_and_is_rolled_back(&vm, &[CARD[1], "not to vfio-pci"]).await;
    lab.restored(CARD[0], Some("nouveau")).await;
    lab.restored(CARD[1], Some("snd_hda_intel")).await;
    // The first one was there already when the second failed.
    assert!(lab.writes_of(CARD[0]).len() > 3, "{:?}", lab.writes_of(CARD[0]));
    // The first fails: the second is not touched at all.
    lab.host.probe_works(CARD[1], "vfio-pci");
    lab.host.probe_fails(CARD[0], "vfio-pci", Errno::INVAL);
    lab.host.clear_log();
    lab.fails_and_is_rolled_back(&vm, &[CARD[0], "not to vfio-pci"]).await;
    assert_eq!(lab.writes_of(CARD[1]), []);
    lab.restored(CARD[0], Some("nouveau")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_restore_that_fails_is_tried_again() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.probe_fails(NIC, "e1000e", Errno::NOMEM);
    vm.release(&lab.manager).await.unwrap();
    let failed = || async { lab.claim(&vm).is_some_and(|claim| claim.state == ClaimState::Failed) };
    eventually("the try has failed", failed).await;
    let problems = lab.problems().await.concat();
    assert!(problems.contains("domain 'vm1'") && problems.contains("not to e1000e"), "{problems}");
    assert_refused(wants("vm2", NIC).prepare(&lab.manager).await, ErrorName::InUse, &["domain 'vm1'"]);
    lab.host.probe_works(NIC, "e1000e");
    lab.manager.reconcile(&HashMap::new()).await.unwrap();
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_driver_whose_module_is_gone_at_the_end_is_waited_for() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    let hang = lab.host.fault_at(probe_of(NIC), Fault::Hang);
    vm.release(&lab.manager).await.unwrap();
    lab.wait_state(NIC, "stuck").await;
    lab.goes_on_with(PF).await;
    hang.let_go_with(Errno::NODEV);
    lab.wait_state(NIC, "ok").await;
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn what_somebody_did_to_a_claimed_function_stays() {
    let lab = Lab::start(nics().pci_driver("theirs", &[])).await;
    let vm = wants("vm1", NIC);
    // Given to another driver, with an override for it.
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unbind(NIC);
    lab.host.set_override(NIC, Some("theirs"));
    lab.host.bind(NIC, "theirs").unwrap();
    lab.host.clear_log();
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), []);
    assert_eq!(lab.bound(NIC), (Some("theirs".into()), Some("theirs".into())));

    // Given back already, as mdevd would have.
    lab.host.unbind(NIC);
    lab.host.set_override(NIC, None);
    lab.host.bind(NIC, "e1000e").unwrap();
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unbind(NIC);
    lab.host.set_override(NIC, None);
    lab.host.bind(NIC, "e1000e").unwrap();
    lab.host.clear_log();
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), []);

    // Taken from vfio-pci by somebody who put it nowhere.
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unbind(NIC);
    vm.release(&lab.manager).await.unwrap();
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn an_override_that_changes_in_the_last_moment_is_not_lost() {
    let lab = Lab::start(nics()).await;
    // No event speaks of it, and the daemon has looked long ago.
    lab.host.set_override(NIC, Some("e1000e"));
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.claim(&vm).unwrap().grants[0].function().unwrap().override_was.as_ref().unwrap().as_str(), "e1000e");
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!(lab.bound(NIC), (Some("e1000e".into()), Some("e1000e".into())));
}

#[tokio::test]
async fn a_read_that_hangs_makes_one_function_stuck() {
    let lab = Lab::start(nics()).await;
    let hang = lab.host.fault(Op::Read, format!("{}/driver_override", lab.host.function_path(NIC)), Fault::Hang);
    let (manager, asked) = (lab.manager.clone(), hang.clone());
    let rescan = tokio::spawn(async move { manager.rescan(&none()).await });
    eventually("the look hangs", || async { asked.hanging() == 1 }).await;
    lab.wait_state(NIC, "stuck").await;
    rescan.await.unwrap().unwrap();
    assert_eq!(lab.state(PF).await, "ok");
    lab.goes_on_with(PF).await;
    assert_refused(wants("vm1", NIC).prepare(&lab.manager).await, ErrorName::Stuck, &[NIC]);
    hang.let_go();
    lab.wait_state(NIC, "ok").await;
    wants("vm1", NIC).prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn attributes_that_vanish_in_mid_scan_cost_the_rest_nothing() {
    let lab = Lab::start(nics()).await;
    let home = lab.host.function_path(NIC);
    for attribute in ["vendor", "device", "class", "driver_override", "reset_method", "numa_node"] {
        for errno in [Errno::NOENT, Errno::NODEV] {
            let gone = lab.host.fault(Op::Read, format!("{home}/{attribute}"), Fault::Errno(errno));
            lab.manager.rescan(&none()).await.unwrap();
            assert!(gone.hits() > 0, "{attribute} is not read");
            gone.let_go();
            for other in [PF, CARD[0], CARD[1]] {
                assert_eq!(lab.state(other).await, "ok", "{attribute}, {errno:?}");
            }
            // It is whole again at the next look.
            lab.manager.rescan(&none()).await.unwrap();
            assert_eq!(lab.state(NIC).await, "ok", "{attribute}, {errno:?}");
            assert_eq!(lab.function(NIC).await.driver_override().await.unwrap(), "");
            lab.nothing_left().await;
        }
    }
    // What can only be guessed at is not given away.
    let senseless = lab.host.fault(Op::Read, format!("{home}/class"), Fault::Errno(Errno::IO));
    assert_refused(wants("vm1", NIC).prepare(&lab.manager).await, ErrorName::Stuck, &[NIC, "EIO"]);
    senseless.let_go();
    wants("vm1", NIC).prepare(&lab.manager).await.unwrap();
}
