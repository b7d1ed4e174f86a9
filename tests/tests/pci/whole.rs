//! Whole functions by address: what is bound, what is only promised, and that all of it is as it was before.

use mdevd_core::claim::{ClaimState, Undo};
use mdevd_dbus::{ErrorName, path, wire};
use mdevd_tests::fakesys::{self, Fault, Op, Point};
use mdevd_tests::harness::{Daemon, Domain, claim_files, eventually, text_dict};

use super::common::*;

/// `(file, value)` of what takes a function from its driver and gives it to another.
fn moved(address: &str, to: &str) -> Vec<(String, String)> {
    [("driver_override", to), ("unbind", address), ("drivers_probe", address)].map(|(f, v)| (f.into(), v.into())).into()
}

fn cleared() -> Vec<(String, String)> {
    vec![("driver_override".into(), String::new())]
}

fn on(driver: &str, only: Option<&str>) -> (Option<String>, Option<String>) {
    (Some(driver.into()), only.map(str::to_owned))
}

#[tokio::test]
async fn an_unmanaged_function_is_bound_and_comes_back() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    let grants = vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(wire::text(&grants[0], "device"), NIC);
    assert_eq!(wire::text(&grants[0], "object"), path::function(NIC).as_str());
    assert_eq!(wire::text(&grants[0], "undo"), "restore");
    assert!(wire::text(&grants[0], "xml").contains("bus='0x03'"), "{grants:?}");
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
    assert_eq!(lab.writes_of(NIC), moved(NIC, "vfio-pci"));

    // The bus says so before the call has returned.
    let nic = lab.function(NIC).await;
    assert_eq!(
        (nic.driver().await.unwrap(), nic.driver_override().await.unwrap()),
        ("vfio-pci".into(), "vfio-pci".into())
    );
    assert_eq!(nic.claim().await.unwrap(), path::claim(vm.uuid));
    assert_eq!(nic.netdevs().await.unwrap(), []);

    lab.host.clear_log();
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!(lab.writes_of(NIC), [moved(NIC, "e1000e"), cleared()].concat());
    assert_eq!(lab.bound(NIC), on("e1000e", None));
    assert_eq!(lab.host.view().netdev_of(NIC).as_deref(), Some("enp3s0"));
    eventually("the bus says so", || async { nic.netdevs().await.unwrap().len() == 1 }).await;
    assert_eq!((nic.driver().await.unwrap(), nic.claim().await.unwrap()), ("e1000e".into(), path::none()));
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_managed_function_is_promised_and_left_to_libvirt() {
    let lab = Lab::start(nics()).await;
    let vm = wants_managed("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(NIC), on("e1000e", None));
    assert_eq!(lab.function(NIC).await.claim().await.unwrap(), path::claim(vm.uuid));
    let grant = &lab.claim(&vm).unwrap().grants[0];
    assert!(grant.function().unwrap().managed);
    assert_refused(wants("vm2", NIC).prepare(&lab.manager).await, ErrorName::InUse, &[NIC, "domain 'vm1'"]);

    // libvirt binds it and gives it back.
    lab.host.set_override(NIC, Some("vfio-pci"));
    lab.host.unbind(NIC);
    lab.host.bind(NIC, "vfio-pci").unwrap();
    let vm_process = qemu(&lab.host, 4242, NIC);
    vm_process.vanish();
    lab.host.unbind(NIC);
    lab.host.set_override(NIC, None);
    lab.host.bind(NIC, "e1000e").unwrap();
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), [], "all of that is libvirt's");
    lab.nothing_left().await;
}

#[tokio::test]
async fn what_libvirt_did_not_give_back_mdevd_does() {
    let lab = Lab::start(nics()).await;
    let vm = wants_managed("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    lab.host.set_override(NIC, Some("vfio-pci"));
    lab.host.unbind(NIC);
    lab.host.bind(NIC, "vfio-pci").unwrap();
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!(lab.bound(NIC), on("e1000e", None));
    lab.nothing_left().await;
}

/// A VM that does not request a function of `manage` starts also when mdevd dies before it has answered, and libvirt binds the function.
#[tokio::test]
async fn a_promise_of_which_nothing_was_begun_takes_nothing_back() {
    let mut lab = Lab::start(nics()).await;
    let vm = wants_managed("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    lab.daemon.kill(&lab.bus).await;
    let file = vm.claim_file(&lab.host);
    let mut claim = lab.claim(&vm).unwrap();
    claim.state = ClaimState::Planned;
    std::fs::write(file, serde_json::to_vec(&claim).unwrap()).unwrap();
    lab.host.set_override(NIC, Some("vfio-pci"));
    lab.host.unbind(NIC);
    lab.host.bind(NIC, "vfio-pci").unwrap();
    lab.daemon = Daemon::start(&lab.host, &lab.bus).await;
    lab.freed(&vm).await;
    assert_eq!((lab.bound(NIC), lab.host.sys_writes()), (on("vfio-pci", Some("vfio-pci")), Vec::new()));
    lab.nothing_left().await;
}

/// The same when the claim is released while its holders are still being looked for.
#[tokio::test]
async fn a_release_before_anything_was_begun_takes_nothing_back() {
    let lab = Lab::start_with(nics(), |host| {
        let _ = host.process(900, "another", &["another"]);
    })
    .await;
    let vm = wants_managed("vm1", NIC);
    let hang = lab.host.fault(Op::List, "proc/900/fd", Fault::Hang);
    let prepare = tokio::spawn({
        let (vm, manager) = (vm.clone(), lab.manager.clone());
        async move { vm.prepare(&manager).await }
    });
    eventually("holders are looked for", || async { lab.claim(&vm).is_some() && hang.hits() > 0 }).await;
    lab.host.set_override(NIC, Some("vfio-pci"));
    lab.host.unbind(NIC);
    lab.host.bind(NIC, "vfio-pci").unwrap();
    let release = tokio::spawn({
        let (vm, manager) = (vm.clone(), lab.manager.clone());
        async move { vm.release(&manager).await }
    });
    let is_ending = || async { lab.claim(&vm).is_none_or(|claim| claim.state == ClaimState::Releasing) };
    eventually("its release is on disk", is_ending).await;
    hang.let_go();
    prepare.await.unwrap().unwrap_err();
    release.await.unwrap().unwrap();
    lab.freed(&vm).await;
    assert_eq!((lab.bound(NIC), lab.host.sys_writes()), (on("vfio-pci", Some("vfio-pci")), Vec::new()));
}

#[tokio::test]
async fn an_override_of_somebody_else_is_put_back() {
    let lab = Lab::start_with(nics(), |host| {
        host.set_override(NIC, Some("e1000e"));
        // This one was kept from every driver.
        host.unbind(PF);
        host.set_override(PF, Some("nosuch"));
    })
    .await;
    for (address, driver, only) in [(NIC, Some("e1000e"), "e1000e"), (PF, None, "nosuch")] {
        let vm = wants("vm1", address);
        vm.prepare(&lab.manager).await.unwrap();
        assert_eq!(lab.bound(address), on("vfio-pci", Some("vfio-pci")));
        assert!(vm.release(&lab.manager).await.unwrap());
        lab.freed(&vm).await;
        assert_eq!(lab.bound(address), (driver.map(str::to_owned), Some(only.into())));
    }
    lab.nothing_left().await;
}

#[tokio::test]
async fn what_was_on_vfio_before_stays_there() {
    let lab = Lab::start_with(nics(), |host| {
        host.unbind(NIC);
        host.set_override(NIC, Some("vfio-pci"));
        host.bind(NIC, "vfio-pci").unwrap();
    })
    .await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), []);
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
}

#[tokio::test]
async fn a_function_without_a_driver_comes_back_without_one() {
    let lab = Lab::start_with(nics(), |host| host.unbind(NIC)).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!(lab.bound(NIC), (None, None));
}

#[tokio::test]
async fn a_variant_driver_is_bound_when_the_request_names_it() {
    let lab = Lab::start(nics().vfio_driver("igb_vfio_pci")).await;
    let vm = wants_with("vm1", NIC, &[("driver", "igb_vfio_pci")]);
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(NIC), on("igb_vfio_pci", Some("igb_vfio_pci")));
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.restored(NIC, Some("e1000e")).await;
    let own = wants_with("vm1", NIC, &[("driver", "e1000e")]);
    assert_refused(own.prepare(&lab.manager).await, ErrorName::InvalidArgument, &["'dev0'", "e1000e", "vfio-pci"]);
}

#[tokio::test]
async fn a_card_goes_as_a_whole() {
    let lab = Lab::start(nics()).await;
    let vm = wants_card("vm1");
    let grants = vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(grants.iter().map(|grant| wire::text(grant, "request")).collect::<Vec<_>>(), ["dev0.0", "dev0.1"]);
    assert_eq!(grants.iter().map(|grant| wire::text(grant, "device")).collect::<Vec<_>>(), CARD);
    for address in CARD {
        assert_eq!(lab.bound(address), on("vfio-pci", Some("vfio-pci")));
    }
    // Held by its group, which both are in.
    let running = qemu(&lab.host, 4242, CARD[0]);
    for address in CARD {
        let holders = lab.function(address).await.get_holders(&none()).await.unwrap();
        assert_eq!(holders, [(4242, "qemu-system-x86".to_owned())]);
    }
    running.vanish();
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.restored(CARD[0], Some("nouveau")).await;
    lab.restored(CARD[1], Some("snd_hda_intel")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn functions_of_one_group_go_together_or_not_at_all() {
    let lab = Lab::start(nics()).await;
    // One of two: the other is the host's.
    let alone = wants("vm1", CARD[0]);
    assert_refused(
        alone.prepare(&lab.manager).await,
        ErrorName::GroupNotIsolated,
        &[CARD[0], CARD[1], "IOMMU group", "snd_hda_intel"],
    );
    assert_eq!(lab.host.sys_writes(), []);
    // Two requests of one domain.
    let both = has(asks(wants("vm1", CARD[0]), CARD[1], &[]), CARD[1], "no");
    let requests = CARD.map(|address| text_dict(&[("name", &address.replace([':', '.'], "-")), ("address", address)]));
    let explained = lab.manager.explain(&requests, &none()).await.unwrap();
    let verdicts: Vec<_> = explained.iter().map(|one| wire::text(one, "verdict")).collect();
    assert_eq!(verdicts, ["chosen", "chosen"], "{explained:?}");
    both.prepare(&lab.manager).await.unwrap();
    let other = wants("vm2", CARD[1]);
    assert_refused(other.prepare(&lab.manager).await, ErrorName::InUse, &[CARD[1], "domain 'vm1'"]);
    assert!(both.release(&lab.manager).await.unwrap());
    lab.restored(CARD[0], Some("nouveau")).await;
    lab.restored(CARD[1], Some("snd_hda_intel")).await;
    // The other has no driver, and nobody can use it: then one may go alone.
    lab.host.unbind(CARD[1]);
    alone.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(CARD[1]), (None, None));
    // Now it cannot go to anybody else.
    assert_refused(other.prepare(&lab.manager).await, ErrorName::GroupNotIsolated, &[CARD[0], "domain 'vm1'"]);
    assert!(alone.release(&lab.manager).await.unwrap());
    lab.restored(CARD[0], Some("nouveau")).await;
}

#[tokio::test]
async fn a_domain_of_more_than_four_digits() {
    let (nvme, far) = ("10000:e1:00.0", "abcdef01:00:1f.7");
    let host = fakesys::host()
        .function(nvme)
        .ids(0x8086, 0x0a54)
        .class(0x01_0802)
        .driver("nvme")
        .function(far)
        .ids(0x8086, 0x0a55)
        .driver("other");
    let lab = Lab::start(host).await;
    for (address, driver) in [(nvme, "nvme"), (far, "other")] {
        let vm = wants("vm1", address);
        let grants = vm.prepare(&lab.manager).await.unwrap();
        assert_eq!(wire::text(&grants[0], "object"), path::function(address).as_str());
        assert_eq!(lab.function(address).await.driver().await.unwrap(), "vfio-pci");
        assert_eq!(lab.manager.find(address).await.unwrap(), [path::function(address)]);
        assert!(vm.release(&lab.manager).await.unwrap());
        lab.restored(address, Some(driver)).await;
    }
    // In any spelling.
    let vm = has(asks(domain("vm1"), "10000:E1:00.0", &[]), nvme, "no");
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.bound(nvme), on("vfio-pci", Some("vfio-pci")));
}

#[tokio::test]
async fn two_domains_for_one_function() {
    let lab = Lab::start(nics()).await;
    let (first, second) = (wants("vm1", NIC), wants("vm2", NIC));
    let (one, other) = tokio::join!(first.prepare(&lab.manager), second.prepare(&lab.manager));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    let (winner, loser, refusal) = if one.is_ok() { (&first, &second, other) } else { (&second, &first, one) };
    assert_refused(refusal, ErrorName::InUse, &[NIC, &winner.name]);
    // libvirt says that the start has failed: that gives nothing back of the other's.
    assert!(!loser.release(&lab.manager).await.unwrap());
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
    assert!(winner.release(&lab.manager).await.unwrap());
    lab.restored(NIC, Some("e1000e")).await;
    loser.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn a_physical_function_and_its_virtual_ones_exclude_each_other() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    let (whole, part) = (wants("whole", PF), wants("part", VFS[0]));
    // Its virtual functions would vanish with its driver.
    assert_refused(whole.prepare(&lab.manager).await, ErrorName::InUse, &[PF, "2 virtual functions", "hostdevctl vfs"]);
    part.prepare(&lab.manager).await.unwrap();
    assert_refused(whole.prepare(&lab.manager).await, ErrorName::InUse, &[VFS[0], "domain 'part'"]);
    let sibling = wants("sibling", VFS[1]);
    sibling.prepare(&lab.manager).await.unwrap();
    for vm in [part, sibling] {
        assert!(vm.release(&lab.manager).await.unwrap());
        lab.freed(&vm).await;
    }
    assert_eq!(lab.bound(VFS[0]), on("igbvf", None));
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
    whole.prepare(&lab.manager).await.unwrap();
    assert_refused(lab.set_num_vfs(PF, 2).await, ErrorName::NotSupported, &[PF, "vfio-pci"]);
    assert!(whole.release(&lab.manager).await.unwrap());
    lab.restored(PF, Some("igb")).await;
    assert!(lab.set_num_vfs(PF, 2).await.unwrap());
    // One that libvirt binds is still on its own driver: what it would make is somebody else's all the same.
    let libvirts = wants_managed("libvirts", PF);
    assert!(lab.set_num_vfs(PF, 0).await.unwrap());
    libvirts.prepare(&lab.manager).await.unwrap();
    assert_refused(lab.set_num_vfs(PF, 2).await, ErrorName::InUse, &[PF, "domain 'libvirts'"]);
    lab.host.set_num_vfs(PF, 1).unwrap();
    eventually("the one that somebody made", || lab.shows(VFS[0])).await;
    let of_it = wants("part", VFS[0]);
    assert_refused(of_it.prepare(&lab.manager).await, ErrorName::InUse, &[PF, "domain 'libvirts'"]);
}

#[tokio::test]
async fn a_function_that_is_held_is_not_given_back_until_it_is_free() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    let running = qemu(&lab.host, 4242, NIC);
    lab.host.clear_log();
    vm.release(&lab.manager).await.unwrap();
    let waits = || async { lab.claim(&vm).is_some_and(|claim| claim.state == ClaimState::Failed) };
    eventually("the release waits", waits).await;
    assert!(lab.claim(&vm).unwrap().problem.contains("qemu-system-x86"), "{:?}", lab.claim(&vm));
    assert_eq!(lab.host.sys_writes(), [], "a held function is not touched");
    let again = vm.prepare_within(&lab.manager, 500).await;
    assert_refused(again, ErrorName::Busy, &["'vm1'", "still held", "4242"]);
    running.vanish();
    lab.restored(NIC, Some("e1000e")).await;
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_function_that_somebody_has_open_is_not_given_away() {
    let lab = Lab::start_with(nics(), |host| {
        host.unbind(NIC);
        host.set_override(NIC, Some("vfio-pci"));
        host.bind(NIC, "vfio-pci").unwrap();
        let _ = qemu(host, 4242, NIC);
    })
    .await;
    assert_refused(wants("vm1", NIC).prepare(&lab.manager).await, ErrorName::InUse, &[NIC, "qemu-system-x86", "4242"]);
    assert_eq!(lab.host.sys_writes(), []);
    lab.nothing_left().await;
    // Whoever cannot be looked into may have it open.
    let _ = lab.host.process(4242, "qemu-system-x86", &["qemu"]).hides_fds();
    assert_refused(wants("vm1", NIC).prepare(&lab.manager).await, ErrorName::Unavailable, &[NIC, "4242"]);
    assert_eq!(lab.host.sys_writes(), []);
}

#[tokio::test]
async fn an_earlier_run_that_still_holds_it_or_may() {
    let lab = Lab::start(nics()).await;
    let vm = wants("vm1", NIC);
    vm.prepare(&lab.manager).await.unwrap();
    let running = qemu(&lab.host, 4242, NIC);
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::InUse, &[NIC, "'vm1'", "qemu-system-x86", "4242"]);
    let _ = running.hides_fds();
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::Unavailable, &[NIC, "'vm1'", "4242"]);
    assert_eq!(lab.claim(&vm).unwrap().state, ClaimState::Ready);
}

#[tokio::test]
async fn by_hand_and_back() {
    let lab = Lab::start(nics()).await;
    let nic = lab.function(NIC).await;
    assert!(!nic.restore(&none()).await.unwrap());
    assert!(nic.bind("vfio-pci", &none()).await.unwrap());
    assert!(!nic.bind("vfio-pci", &none()).await.unwrap());
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
    assert_eq!(claim_files(&lab.host).len(), 1);
    let theirs = wants("vm1", NIC);
    assert_refused(theirs.prepare(&lab.manager).await, ErrorName::InUse, &[NIC, "manual claim", "bind"]);
    assert_refused(nic.bind("e1000e", &none()).await, ErrorName::InvalidArgument, &["e1000e", "hostdevctl restore"]);
    // Not while it is open.
    let user = qemu(&lab.host, 4242, NIC);
    assert_refused(nic.restore(&none()).await, ErrorName::InUse, &[NIC, "4242"]);
    user.vanish();
    assert!(nic.restore(&none()).await.unwrap());
    assert_eq!(lab.bound(NIC), on("e1000e", None));
    assert!(!nic.restore(&none()).await.unwrap());

    theirs.prepare(&lab.manager).await.unwrap();
    assert_refused(nic.restore(&none()).await, ErrorName::Conflict, &["domain 'vm1'"]);
    assert_refused(nic.bind("vfio-pci", &none()).await, ErrorName::InUse, &["domain 'vm1'"]);
    assert_eq!(lab.bound(NIC), on("vfio-pci", Some("vfio-pci")));
}

#[tokio::test]
async fn bound_by_hand_once_is_not_bound_for_ever() {
    let lab = Lab::start(nics()).await;
    let nic = lab.function(NIC).await;
    assert!(nic.bind("vfio-pci", &none()).await.unwrap());
    // Somebody else has taken it away.
    lab.host.unbind(NIC);
    eventually("it is unbound", || async { nic.driver().await.unwrap().is_empty() }).await;
    assert_refused(nic.bind("vfio-pci", &none()).await, ErrorName::InUse, &[NIC, "manual claim"]);
    lab.host.bind(NIC, "vfio-pci").unwrap();
    assert!(!nic.bind("vfio-pci", &none()).await.unwrap());
    // On its way back it is still there for a moment.
    let hang = lab.host.fault_at(Point::in_write("sys/bus/pci/drivers/vfio-pci/unbind"), Fault::Hang);
    let back = lab.function(NIC).await;
    let asked = tokio::spawn(async move { back.restore(&none()).await });
    eventually("it is being given back", || async { hang.hanging() == 1 }).await;
    assert_refused(nic.bind("vfio-pci", &none()).await, ErrorName::InUse, &[NIC, "manual claim"]);
    hang.let_go();
    assert!(asked.await.unwrap().unwrap());
    assert_eq!(lab.bound(NIC), on("e1000e", None));
}

#[tokio::test]
async fn one_of_several_does_not_take_the_others_back_with_it() {
    let lab = Lab::start(nics()).await;
    let requests = [text_dict(&[("name", "card"), ("address", WHOLE_CARD)])];
    let path = lab.manager.acquire(&requests, &none()).await.unwrap();
    let claim = mdevd_dbus::ClaimProxy::builder(&lab.connection).path(path).build().await.unwrap();
    let id = claim.id().await.unwrap();
    lab.host.clear_log();
    for address in CARD {
        let restore = lab.function(address).await.restore(&none()).await;
        let words = [address, "one of 2 devices", "manual claim", "hostdevctl release", &id];
        assert_refused(restore, ErrorName::Conflict, &words);
    }
    assert_eq!(lab.host.sys_writes(), []);
    assert!(claim.release(&none()).await.unwrap());
    assert_eq!((lab.bound(CARD[0]), lab.bound(CARD[1])), (on("nouveau", None), on("snd_hda_intel", None)));
}

#[tokio::test]
async fn what_is_chosen_of_many_is_looked_at_first() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    // No event speaks of it.
    lab.host.set_override(VFS[0], Some("igbvf"));
    let requests = [text_dict(&[("name", "a"), ("kind", "vf"), ("pf", PF)])];
    let path = lab.manager.acquire(&requests, &none()).await.unwrap();
    assert_eq!(lab.bound(VFS[0]).0.as_deref(), Some("vfio-pci"));
    let claim = mdevd_dbus::ClaimProxy::builder(&lab.connection).path(path).build().await.unwrap();
    assert!(claim.release(&none()).await.unwrap());
    assert_eq!(lab.bound(VFS[0]), on("igbvf", Some("igbvf")));
}

#[tokio::test]
async fn any_function_by_what_it_is() {
    let lab = Lab::start_with(nics(), |host| host.set_num_vfs(PF, 2).unwrap()).await;
    let ask = |pairs: &[(&str, &str)]| {
        let requests = [text_dict(pairs)];
        let lab = &lab;
        async move { lab.manager.acquire(&requests, &none()).await }
    };
    let mut claims = Vec::new();
    for (vf, keys) in [(VFS[0], ("pf", PF)), (VFS[1], ("device", "8086:10ca"))] {
        let claim = ask(&[("name", "a"), ("kind", "vf"), keys]).await.unwrap();
        assert_eq!(lab.bound(vf), on("vfio-pci", Some("vfio-pci")));
        claims.push(claim);
    }
    assert_refused(ask(&[("name", "a"), ("kind", "vf"), ("pf", PF)]).await, ErrorName::InUse, &[VFS[0], VFS[1]]);
    // In a domain the address is the guest's: there only one that is named will do.
    let mut vm = domain("vm1");
    vm.requests.push(text_dict(&[("name", "a"), ("kind", "vf"), ("pf", PF)]));
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::InvalidArgument, &["'a'", "address"]);
    for claim in claims {
        let builder = mdevd_dbus::ClaimProxy::builder(&lab.connection).path(claim).build();
        assert!(builder.await.unwrap().release(&none()).await.unwrap());
    }
    assert_eq!((lab.bound(VFS[0]), lab.bound(VFS[1])), (on("igbvf", None), on("igbvf", None)));
}

#[tokio::test]
async fn mdev_virtual_function_and_whole_function_in_one_domain() {
    let parent = "0000:81:00.0";
    let lab = Lab::start_with(nics().parent(parent).mdev_type("nvidia-63", 2), |host| {
        host.set_num_vfs(PF, 1).unwrap();
    })
    .await;
    let mut vm = Domain::wants("vm1", &["nvidia-63"]);
    vm = has(asks(vm, VFS[0], &[]), VFS[0], "no");
    vm = has(asks(vm, NIC, &[]), NIC, "yes");
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.host.mdevs().len(), 1);
    assert_eq!((lab.bound(VFS[0]), lab.bound(NIC)), (on("vfio-pci", Some("vfio-pci")), on("e1000e", None)));
    // What carries a mediated device is not given away.
    assert_refused(wants("vm2", parent).prepare(&lab.manager).await, ErrorName::InUse, &[parent, "domain 'vm1'"]);
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    assert_eq!((lab.host.mdevs().len(), lab.bound(VFS[0])), (0, on("igbvf", None)));
}

#[tokio::test]
async fn a_domain_that_runs_already_is_adopted_and_its_function_left_as_it_is() {
    let lab = Lab::start_with(nics(), |host| {
        host.unbind(NIC);
        host.set_override(NIC, Some("vfio-pci"));
        host.bind(NIC, "vfio-pci").unwrap();
        let _ = qemu(host, 4242, NIC);
    })
    .await;
    let vm = wants("vm1", NIC);
    let (uuid, options) = (vm.uuid.to_string(), none());
    let adopt = lab.manager.adopt_domain(&uuid, &vm.name, &vm.requests, &vm.hostdevs, &options);
    assert!(adopt.await.unwrap());
    assert_eq!(lab.claim(&vm).unwrap().grants[0].undo, Undo::Keep);
    assert_refused(wants("vm2", NIC).prepare(&lab.manager).await, ErrorName::InUse, &["domain 'vm1'"]);
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!((lab.host.sys_writes(), lab.bound(NIC)), (vec![], on("vfio-pci", Some("vfio-pci"))));
}
