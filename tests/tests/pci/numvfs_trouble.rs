//! Bad luck with the number of virtual functions: those that come late or not at all, changes that hang, and changes by somebody else.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mdevd_core::claim::ClaimState;
use mdevd_dbus::{ErrorName, ManagerProxy, Options};
use mdevd_tests::fakesys::{Errno, FakeHost, Fault, Point, Rule};
use mdevd_tests::harness::{PATIENCE, eventually};

use super::common::*;

/// Somebody writes, in a process of its own: a thread of ours that hangs would keep the test from ending.
fn somebody_writes(path: &Path, text: &str) -> Child {
    let script = "printf %s \"$0\" > \"$1\"";
    Command::new("sh").args(["-c", script, text]).arg(path).stderr(Stdio::null()).spawn().unwrap()
}

impl Lab {
    async fn state_of(&self, address: &str) -> String {
        self.function(address).await.state().await.unwrap()
    }

    /// The bus answers, quickly, and other functions are given and taken back.
    async fn answers_on(&self) {
        let begun = Instant::now();
        assert!(self.shows(PF).await);
        assert!(!self.manager.find(NIC).await.unwrap().is_empty());
        let vm = wants("meanwhile", NIC);
        vm.prepare(&self.manager).await.unwrap();
        vm.release(&self.manager).await.unwrap();
        self.freed(&vm).await;
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    }

    /// Waits until the physical function is well and shows as many virtual ones as there are.
    async fn recovers(&self, vfs: u32) {
        let pf = self.physical(PF).await;
        let well = || async { self.state_of(PF).await == "ok" && pf.num_vfs().await.unwrap() == vfs };
        eventually(&format!("{PF} is well with {vfs}"), well).await;
        assert_eq!(self.host.view().vfs(PF).len(), vfs as usize);
        for vf in self.host.view().vfs(PF) {
            eventually(&vf, || self.shows(&vf)).await;
            assert_eq!(self.state_of(&vf).await, "ok");
        }
        assert_eq!(self.problems().await, Vec::<String>::new());
    }
}

fn hanging_change(host: &FakeHost) -> Rule {
    host.fault_at(Point::in_write("sys/**/sriov_numvfs"), Fault::Hang)
}

#[tokio::test]
async fn fewer_than_were_asked_for_is_an_error() {
    let lab = Lab::start(nics()).await;
    lab.host.at_most_vfs(PF, 1);
    let refused = lab.set_num_vfs(PF, 3).await;
    assert_refused(refused, ErrorName::KernelRefused, &[PF, "given 3 virtual functions, but shows 1"]);
    // What there is can be seen and used.
    assert_eq!(lab.physical(PF).await.num_vfs().await.unwrap(), 1);
    let vm = wants("vm1", VFS[0]);
    vm.prepare(&lab.manager).await.unwrap();
    lab.nothing_wrong().await;
}

impl Lab {
    async fn nothing_wrong(&self) {
        assert_eq!(self.problems().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn late_ones_are_waited_for() {
    let lab = Lab::start(nics()).await;
    lab.host.vfs_late(PF);
    let pf = lab.physical(PF).await;
    let asked = tokio::spawn(async move { pf.set_num_vfs(3, &none()).await });
    eventually("the number is written", || async { lab.host.sys_writes().len() == 1 }).await;
    lab.answers_on().await;
    assert!(!asked.is_finished(), "it does not return before they are there");
    lab.host.vfs_appear(PF);
    let begun = Instant::now();
    assert!(asked.await.unwrap().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(5), "events say so, and not a clock: {:?}", begun.elapsed());
    lab.recovers(3).await;
}

#[tokio::test]
async fn late_interfaces_are_waited_for_but_not_for_ever() {
    let lab = Lab::start(nics()).await;
    lab.host.netdevs_late();
    // Nothing tells that some will come.
    assert!(lab.set_num_vfs(PF, 2).await.unwrap());
    assert_eq!(lab.function(VFS[0]).await.netdevs().await.unwrap(), []);
    lab.host.netdevs_appear();
    let vf = lab.function(VFS[1]).await;
    eventually("its interface", || async { vf.netdevs().await.unwrap().len() == 1 }).await;
    lab.recovers(2).await;
}

#[tokio::test]
async fn a_change_that_hangs_makes_the_physical_function_stuck_and_the_bus_answers_on() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 1).unwrap()).await;
    let hang = hanging_change(&lab.host);
    let pf = lab.physical(PF).await;
    let soon = Options::from([("timeout-ms", 2000_u32.into())]);
    let asked = tokio::spawn(async move { pf.set_num_vfs(3, &soon).await });
    eventually("the change hangs", || async { hang.hanging() == 1 }).await;
    lab.answers_on().await;
    assert_refused(asked.await.unwrap(), ErrorName::TimedOut, &[PF, "virtual functions", "stuck"]);
    assert_eq!(lab.state_of(PF).await, "stuck");
    assert!(lab.problems().await.iter().any(|problem| problem.starts_with(PF)), "{:?}", lab.problems().await);
    lab.answers_on().await;
    // What belongs to it waits too.
    assert_refused(lab.set_num_vfs(PF, 2).await, ErrorName::Stuck, &[PF]);
    assert_refused(wants("vm1", VFS[0]).prepare(&lab.manager).await, ErrorName::Stuck, &[PF, "stuck"]);
    assert_refused(wants("vm1", PF).prepare(&lab.manager).await, ErrorName::Stuck, &[PF]);
    hang.let_go();
    // The first of two writes has come back; nobody goes on with the second.
    lab.recovers(0).await;
    assert!(lab.set_num_vfs(PF, 3).await.unwrap());
    lab.recovers(3).await;
}

#[tokio::test]
async fn a_change_that_hangs_outlives_the_daemon() {
    for (answer, vfs) in [(None, 3), (Some(Errno::NOMEM), 0)] {
        let mut lab = Lab::start(nics()).await;
        let hang = hanging_change(&lab.host);
        let pf = lab.physical(PF).await;
        let asked = tokio::spawn(async move { pf.set_num_vfs(3, &none()).await });
        eventually("the change hangs", || async { hang.hanging() == 1 }).await;
        for _ in 0..2 {
            lab.restart().await;
            assert_eq!(lab.state_of(PF).await, "stuck");
            lab.answers_on().await;
        }
        assert!(asked.await.unwrap().is_err());
        assert!(lab.problems().await.iter().any(|problem| problem.contains("before mdevd was restarted")));
        assert_refused(wants("vm1", PF).prepare(&lab.manager).await, ErrorName::Stuck, &[PF]);
        match answer {
            None => hang.let_go(),
            Some(errno) => hang.let_go_with(errno),
        }
        let there = || async { lab.host.view().vfs(PF).len() == vfs };
        eventually("the write has come back", there).await;
        eventually("it is well", || async { lab.shows(PF).await && lab.state_of(PF).await == "ok" }).await;
        if vfs > 0 {
            lab.recovers(3).await;
        }
        lab.set_num_vfs(PF, 3).await.unwrap();
        lab.recovers(3).await;
    }
}

/// `echo 0 > sriov_numvfs` under a running VM: the kernel waits for the VM, and so does everybody who reads that file.
#[tokio::test]
async fn a_change_from_outside_that_waits_for_a_running_domain() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    let vm = wants("vm1", VFS[0]);
    vm.prepare(&lab.manager).await.unwrap();
    let running = qemu(&lab.host, 4242, VFS[0]);
    let file = lab.host.sys().join("bus/pci/devices").join(PF).join("sriov_numvfs");
    let mut child = somebody_writes(&file, "0");
    lab.host.wait_unbind_begun(VFS[0]);
    lab.answers_on().await;
    lab.manager.rescan(&none()).await.unwrap();
    lab.answers_on().await;
    // Nothing is made of what is on its way out.
    assert!(lab.set_num_vfs(PF, 3).await.is_err());
    assert!(wants("vm2", VFS[0]).prepare(&lab.manager).await.is_err());
    assert_eq!(lab.host.sys_writes().iter().filter(|(path, ..)| path.ends_with("sriov_numvfs")).count(), 0);
    // The release finds it held, as long as it is.
    vm.release(&lab.manager).await.unwrap();
    eventually("the claim waits", || async { lab.claim(&vm).is_some_and(|claim| claim.state == ClaimState::Failed) })
        .await;
    running.vanish();
    assert!(child.wait().unwrap().success());
    lab.freed(&vm).await;
    lab.recovers(0).await;
    assert!(lab.set_num_vfs(PF, 2).await.unwrap());
    let again = wants("vm1", VFS[0]);
    again.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(VFS[0]).0.as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn a_change_from_outside_under_claims_frees_nothing_twice() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 3).unwrap()).await;
    let (bound, libvirts) = (wants("vm1", VFS[0]), wants_managed("vm2", VFS[1]));
    for vm in [&bound, &libvirts] {
        vm.prepare(&lab.manager).await.unwrap();
    }
    // Who listens is told: this one looks at what it has heard only.
    let ear = ManagerProxy::new(&lab.connection).await.unwrap();
    assert_eq!(ear.problems().await.unwrap().len(), 0);
    lab.host.set_num_vfs(PF, 0).unwrap();
    for (vm, address) in [(&bound, VFS[0]), (&libvirts, VFS[1])] {
        let lost = || async { lab.claim(vm).is_some_and(|claim| claim.problem.contains("vanished")) };
        eventually(&format!("the claim on {address} is marked lost"), lost).await;
    }
    eventually("it is said", || async { ear.problems().await.unwrap().len() == 2 }).await;
    let problems = lab.problems().await.concat();
    assert!(problems.contains("domain 'vm1'") && problems.contains("domain 'vm2'"), "{problems}");
    // Somebody makes them anew: those are not the ones that were promised.
    lab.host.set_num_vfs(PF, 3).unwrap();
    eventually("the new ones", || lab.shows(VFS[2])).await;
    lab.host.unbind(VFS[0]);
    lab.host.clear_log();
    for vm in [&bound, &libvirts] {
        vm.release(&lab.manager).await.unwrap();
        lab.freed(vm).await;
        assert!(!vm.release(&lab.manager).await.unwrap());
    }
    assert_eq!(lab.host.sys_writes(), []);
    assert_eq!((lab.bound(VFS[0]), lab.bound(VFS[1])), ((None, None), (Some("igbvf".into()), None)));
    lab.recovers(3).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_start_during_a_change_is_refused_and_served_after_it() {
    for to in [0, 3] {
        let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
        let hang = hanging_change(&lab.host);
        let (pf, vm) = (lab.physical(PF).await, wants("vm1", VFS[0]));
        let change = tokio::spawn(async move { pf.set_num_vfs(to, &none()).await });
        eventually("the change has begun", || async { hang.hanging() == 1 }).await;
        // Nobody is promised what is about to go.
        assert_refused(vm.prepare(&lab.manager).await, ErrorName::Busy, &[PF, "try again"]);
        assert!(lab.claim(&vm).is_none());
        hang.let_go();
        assert!(change.await.unwrap().unwrap());
        if to == 3 {
            vm.prepare(&lab.manager).await.unwrap();
            assert_eq!(lab.bound(VFS[0]).0.as_deref(), Some("vfio-pci"));
            vm.release(&lab.manager).await.unwrap();
            lab.restored(VFS[0], Some("igbvf")).await;
        }
        lab.nothing_left().await;
        lab.recovers(to).await;
    }
}

#[tokio::test]
async fn a_driver_that_drops_its_virtual_functions() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    let vm = wants("vm1", VFS[0]);
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.unbind(PF);
    let lost = || async { lab.claim(&vm).is_some_and(|claim| claim.problem.contains("vanished")) };
    eventually("the claim is marked lost", lost).await;
    lab.host.bind(PF, "igb").unwrap();
    lab.host.clear_log();
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), []);
    lab.recovers(0).await;
}

/// A write by the test itself, which does not hang.
#[tokio::test]
async fn a_change_by_hand_is_seen() {
    let lab = Lab::start(nics()).await;
    let home = lab.host.sys().join("bus/pci/devices").join(PF);
    for (file, text) in
        [("sriov_numvfs", "2"), ("sriov_numvfs", "0"), ("sriov_drivers_autoprobe", "0"), ("sriov_numvfs", "1")]
    {
        OpenOptions::new().write(true).open(home.join(file)).unwrap().write_all(text.as_bytes()).unwrap();
        if file == "sriov_numvfs" {
            lab.recovers(text.parse().unwrap()).await;
        }
    }
    let pf = lab.physical(PF).await;
    eventually("the switch too", || async { !pf.drivers_autoprobe().await.unwrap() }).await;
    assert_eq!(lab.function(VFS[0]).await.driver().await.unwrap(), "");
}
