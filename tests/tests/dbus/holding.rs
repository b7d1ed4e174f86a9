//! Who has a device and who may take it away: releasing claims, removing devices, borrowing and lending.

use mdevd_dbus::wire::text;
use mdevd_dbus::{ErrorName, path};
use mdevd_tests::fakesys::{Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, eventually, hostdev, text_dict};
use uuid::Uuid;

use super::common::{CARD, GPU, Lab, assert_refused, claim_id, error_name, force, mdev_uuid, none, one_card, options};

/// The values written to this file so far, without those that failed.
fn written(lab: &Lab, file: &str) -> Vec<String> {
    let writes = lab.host.sys_writes().into_iter();
    writes.filter(|(path, _, errno)| path.ends_with(file) && errno.is_none()).map(|(path, ..)| path).collect()
}

#[tokio::test]
async fn a_manual_claim_is_released_once() {
    let lab = Lab::start(one_card()).await;
    let uuid = lab.create("mine").await;
    let id = lab.claim_of(uuid).await;
    let claim = lab.claim(id).await;
    assert_eq!(claim.owner_kind().await.unwrap(), "manual");
    assert_eq!(claim.owner_uuid().await.unwrap(), "");
    assert_eq!(claim.owner_name().await.unwrap(), "mine");
    assert_eq!(claim.owner_uid().await.unwrap(), rustix::process::geteuid().as_raw());
    assert_eq!(claim.state().await.unwrap(), "ready");
    assert_eq!(claim.run().await.unwrap(), "", "a manual claim has no runs");
    assert_eq!(claim_files(&lab.host), [format!("{id}.json")].into());
    assert!(claim.release(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
    assert!(claim_files(&lab.host).is_empty());
    let gone = claim.release(&none()).await.unwrap_err();
    assert_eq!(error_name(&gone), "org.freedesktop.DBus.Error.UnknownObject");
    assert_eq!(written(&lab, "/remove").len(), 1);
}

#[tokio::test]
async fn several_devices_of_one_claim_go_together_last_first() {
    let lab = Lab::start(one_card().mtty()).await;
    let requests =
        [text_dict(&[("name", "a"), ("type", GPU), ("count", "2")]), text_dict(&[("name", "b"), ("type", "mtty-1")])];
    let claim = lab.manager.acquire(&requests, &options([("label", "three")])).await.unwrap();
    let claim = lab.claim(claim_id(claim.as_str())).await;
    let grants = claim.grants().await.unwrap();
    assert_eq!(grants.iter().map(|grant| text(grant, "request")).collect::<Vec<_>>(), ["a.1", "a.2", "b"]);
    let uuids: Vec<Uuid> = grants.iter().map(|grant| mdev_uuid(text(grant, "object"))).collect();
    let xml = claim.hostdev_xml(&none()).await.unwrap();
    for (grant, uuid) in grants.iter().zip(&uuids) {
        assert_eq!(text(grant, "undo"), "remove");
        assert_eq!(text(grant, "uuid"), uuid.to_string());
        assert_eq!(text(grant, "device"), uuid.to_string());
        assert!(xml.contains(text(grant, "xml")), "{xml}");
        let id = claim.id().await.unwrap();
        let message = [uuid.to_string(), "one of 3 devices".into(), "manual claim 'three'".into(), id];
        let words: Vec<&str> = message.iter().map(String::as_str).collect();
        assert_refused(lab.mdev(*uuid).await.remove(&none()).await, ErrorName::Conflict, &words);
        assert_refused(lab.mdev(*uuid).await.remove(&force()).await, ErrorName::Conflict, &words);
    }
    assert_eq!(xml.matches("<hostdev").count(), 3);
    assert_eq!(lab.host.mdevs().len(), 3);
    assert!(claim.release(&none()).await.unwrap());
    let removed: Vec<bool> = written(&lab, "/remove")
        .iter()
        .zip(uuids.iter().rev())
        .map(|(path, uuid)| path.contains(&uuid.to_string()))
        .collect();
    assert_eq!(removed, [true; 3]);
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn a_domains_claim_is_only_taken_with_force_and_never_from_one_that_runs() {
    let lab = Lab::start(one_card()).await;
    let domain = Domain::wants("vm1", &[GPU]);
    let take = || async {
        let by_claim = lab.claim(domain.uuid).await.release(&force()).await;
        let by_device = lab.mdev(domain.mdevs[0]).await.remove(&force()).await;
        [by_claim, by_device]
    };
    domain.prepare(&lab.manager).await.unwrap();
    let held = written(&lab, "/remove");
    for refused in
        [lab.claim(domain.uuid).await.release(&none()).await, lab.mdev(domain.mdevs[0]).await.remove(&none()).await]
    {
        assert_refused(refused, ErrorName::Conflict, &["domain 'vm1'", "force"]);
    }

    // libvirt says that it runs; it has not opened the device yet.
    let xml = format!("<domain type='kvm'><name>vm1</name><uuid>{}</uuid></domain>", domain.uuid);
    let qemu = lab.host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]);
    lab.host.domain_runs("vm1", 4242, &xml).unwrap();
    for refused in take().await {
        assert_refused(refused, ErrorName::InUse, &["domain 'vm1'", "running"]);
    }
    // It has opened it, and its status file is gone.
    let qemu = qemu.opens_group_of(domain.mdevs[0]);
    lab.host.domain_stops("vm1").unwrap();
    for refused in take().await {
        assert_refused(refused, ErrorName::InUse, &[&domain.mdevs[0].to_string(), "4242", "qemu-system-x86"]);
    }
    // Its file descriptors cannot be read: that counts as held.
    qemu.closes_groups();
    let qemu = qemu.hides_fds();
    for refused in take().await {
        assert_refused(refused, ErrorName::InUse, &[&domain.mdevs[0].to_string()]);
    }
    assert_eq!(written(&lab, "/remove"), held);
    qemu.vanish();
    assert!(lab.claim(domain.uuid).await.release(&force()).await.unwrap());
    assert!(lab.host.mdevs().is_empty() && claim_files(&lab.host).is_empty());

    domain.prepare(&lab.manager).await.unwrap();
    assert!(lab.mdev(domain.mdevs[0]).await.remove(&force()).await.unwrap());
    assert!(lab.host.mdevs().is_empty() && claim_files(&lab.host).is_empty());
}

#[tokio::test]
async fn what_is_open_is_never_removed() {
    let lab = Lab::start(one_card()).await;
    let uuid = lab.create("mine").await;
    let id = lab.claim_of(uuid).await;
    let holder = lab.host.process(77, "dd", &["dd", "if=/dev/vfio/9"]).opens_group_of(uuid);
    let (mdev, claim) = (lab.mdev(uuid).await, lab.claim(id).await);
    assert_eq!(mdev.get_holders(&none()).await.unwrap(), [(77, "dd".to_string())]);
    let words = [uuid.to_string(), "77".into(), "dd".into()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for options in [none(), force()] {
        assert_refused(mdev.remove(&options).await, ErrorName::InUse, &words);
        assert_refused(claim.release(&options).await, ErrorName::InUse, &words);
    }
    assert_eq!(claim.state().await.unwrap(), "ready");
    let holder = holder.hides_fds();
    assert_refused(mdev.get_holders(&none()).await, ErrorName::Unavailable, &[&uuid.to_string()]);
    assert_refused(mdev.remove(&force()).await, ErrorName::InUse, &[]);
    assert!(written(&lab, "/remove").is_empty());
    holder.vanish();
    assert_eq!(mdev.get_holders(&none()).await.unwrap(), []);
    assert!(mdev.remove(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn a_foreign_device_takes_force_and_nobody_who_has_it_open() {
    let uuid = Uuid::new_v4();
    let lab = Lab::start_with(one_card(), |host| host.create_mdev(CARD, GPU, uuid).unwrap()).await;
    let mdev = lab.mdev(uuid).await;
    assert_eq!(mdev.origin().await.unwrap(), "foreign");
    assert_eq!(mdev.claim().await.unwrap().as_str(), path::NONE);
    assert_refused(mdev.remove(&none()).await, ErrorName::Conflict, &[&uuid.to_string(), CARD, "force"]);
    let holder = lab.host.process(77, "dd", &["dd"]).opens_group_of(uuid);
    assert_refused(mdev.remove(&force()).await, ErrorName::InUse, &["77", "dd"]);
    let holder = holder.hides_fds();
    assert_refused(mdev.remove(&force()).await, ErrorName::InUse, &[]);
    holder.vanish();
    assert!(lab.host.sys_writes().is_empty());
    assert!(mdev.remove(&force()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
    assert_eq!(lab.host.sys_writes().len(), 1);
}

#[tokio::test]
async fn a_claim_on_a_foreign_device_leaves_it_when_it_ends() {
    let uuid = Uuid::new_v4();
    let lab = Lab::start_with(one_card(), |host| host.create_mdev(CARD, GPU, uuid).unwrap()).await;
    let requests = [text_dict(&[("name", "old"), ("uuid", &uuid.to_string())])];
    let claim = lab.manager.acquire(&requests, &none()).await.unwrap();
    let (claim, mdev) = (lab.claim(claim_id(claim.as_str())).await, lab.mdev(uuid).await);
    assert_eq!(mdev.claim().await.unwrap().as_str(), path::claim(claim.id().await.unwrap().parse().unwrap()).as_str());
    assert_eq!(mdev.origin().await.unwrap(), "foreign", "who made it does not change");
    assert_eq!(text(&claim.grants().await.unwrap()[0], "undo"), "keep");
    // Nobody else is promised it, and it is not removed from under the claim.
    assert_refused(lab.manager.acquire(&requests, &none()).await, ErrorName::InUse, &[&uuid.to_string()]);
    assert_refused(mdev.remove(&force()).await, ErrorName::Conflict, &["release the claim"]);
    assert!(claim.release(&none()).await.unwrap());
    assert_eq!(lab.host.mdevs().len(), 1);
    assert_eq!(mdev.claim().await.unwrap().as_str(), path::NONE);
    assert!(lab.host.sys_writes().is_empty());
}

#[tokio::test]
async fn a_domain_borrows_what_was_made_by_hand() {
    let lab = Lab::start(one_card()).await;
    let uuid = lab.create("for vm1").await;
    let manual = lab.claim_of(uuid).await;
    let mut domain = Domain::wants("vm1", &[]);
    domain.requests.push(text_dict(&[("name", "gpu0"), ("type", GPU), ("uuid", &uuid.to_string())]));
    domain.hostdevs.push(hostdev(uuid));

    let grants = domain.prepare(&lab.manager).await.unwrap();
    assert_eq!(text(&grants[0], "undo"), "keep");
    assert_eq!(text(&grants[0], "claim"), path::claim(domain.uuid).as_str());
    let mdev = lab.mdev(uuid).await;
    assert_eq!(mdev.claim().await.unwrap().as_str(), path::claim(manual).as_str(), "it stays its owner's");
    assert_eq!(mdev.origin().await.unwrap(), "claim");
    // It is not taken away from under the domain, and no other gets it.
    for options in [none(), force()] {
        assert_refused(mdev.remove(&options).await, ErrorName::InUse, &["domain 'vm1'"]);
        assert_refused(lab.claim(manual).await.release(&options).await, ErrorName::InUse, &["domain 'vm1'"]);
    }
    let mut other = Domain::wants("vm2", &[]);
    other.requests.push(text_dict(&[("name", "gpu0"), ("type", GPU), ("uuid", &uuid.to_string())]));
    other.hostdevs.push(hostdev(uuid));
    assert_refused(other.prepare(&lab.manager).await, ErrorName::InUse, &[&uuid.to_string(), "domain 'vm1'"]);
    // What is only lent is given back with the domain's claim, by force too.
    assert!(lab.claim(domain.uuid).await.release(&force()).await.unwrap());
    other.prepare(&lab.manager).await.unwrap();
    assert!(other.release(&lab.manager).await.unwrap());
    assert_eq!(lab.host.mdevs(), [(uuid, CARD.into(), GPU.into())]);
    assert_eq!(lab.claim(manual).await.state().await.unwrap(), "ready");
    assert!(written(&lab, "/remove").is_empty());
    assert!(mdev.remove(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn what_has_vanished_by_itself_is_no_trouble() {
    let foreign = Uuid::new_v4();
    let lab = Lab::start_with(one_card(), |host| host.create_mdev(CARD, GPU, foreign).unwrap()).await;
    let (by_device, by_claim) = (lab.create("a").await, lab.create("b").await);
    let claim = lab.claim_of(by_claim).await;
    // The daemon has not heard of it: the objects are still there.
    lab.settle().await;
    lab.host.lose_uevents(true);
    for uuid in [foreign, by_device, by_claim] {
        lab.host.remove_mdev(uuid).unwrap();
    }
    let holders = lab.mdev(foreign).await.get_holders(&none()).await.unwrap();
    assert_eq!(holders, []);
    assert!(!lab.mdev(foreign).await.remove(&force()).await.unwrap(), "nothing had to be done");
    assert!(lab.mdev(by_device).await.remove(&none()).await.unwrap(), "its claim had to end");
    assert!(lab.claim(claim).await.release(&none()).await.unwrap());
    assert!(lab.paths("mdev").await.is_empty() && lab.paths("claim").await.is_empty());
    assert!(claim_files(&lab.host).is_empty());
    assert!(written(&lab, "/remove").is_empty());
}

#[tokio::test]
async fn what_somebody_else_made_under_the_same_uuid_stays() {
    let lab = Lab::start(one_card().parent("0000:c1:00.0").mdev_type(GPU, 4)).await;
    let (mdev, _) = lab.manager.create_mdev(GPU, &options([("parent", CARD)])).await.unwrap();
    let uuid = mdev_uuid(mdev.as_str());
    let id = lab.claim_of(uuid).await;
    lab.settle().await;
    lab.host.lose_uevents(true);
    lab.host.remove_mdev(uuid).unwrap();
    lab.host.create_mdev("0000:c1:00.0", GPU, uuid).unwrap();
    assert!(lab.claim(id).await.release(&none()).await.unwrap());
    assert_eq!(lab.host.mdevs(), [(uuid, "0000:c1:00.0".into(), GPU.into())]);
    assert_eq!(lab.mdev(uuid).await.origin().await.unwrap(), "foreign");
}

#[tokio::test]
async fn a_release_that_is_under_way_is_not_done_twice() {
    let lab = Lab::start(one_card()).await;
    let uuid = lab.create("mine").await;
    let id = lab.claim_of(uuid).await;
    let hang = lab.host.fault(Op::Write, "sys/**/remove", Fault::Hang);
    let (first, second, third) = (lab.claim(id).await, lab.claim(id).await, lab.mdev(uuid).await);
    let first = tokio::spawn(async move { first.release(&none()).await });
    eventually("the removal", || async { hang.hits() == 1 }).await;
    // Each of the others has been taken in when it looks who holds the device.
    let looks = lab.host.fault(Op::List, "proc", Fault::Delay(std::time::Duration::ZERO));
    let second = tokio::spawn(async move { second.release(&none()).await });
    eventually("the second call", || async { looks.hits() == 1 }).await;
    let third = tokio::spawn(async move { third.remove(&none()).await });
    eventually("the third call", || async { looks.hits() == 2 }).await;
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    hang.let_go();
    assert!(first.await.unwrap().unwrap());
    assert!(!second.await.unwrap().unwrap(), "it was being released already");
    assert!(!third.await.unwrap().unwrap());
    assert_eq!(written(&lab, "/remove").len(), 1);
    assert!(lab.host.mdevs().is_empty());
}

#[tokio::test]
async fn a_claim_that_is_being_made_can_be_released() {
    let lab = Lab::start(one_card()).await;
    let hang = lab.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let manager = lab.manager.clone();
    let creating = tokio::spawn(async move { manager.create_mdev(GPU, &none()).await });
    eventually("the creation", || async { hang.hits() == 1 }).await;
    eventually("its claim", || async { !lab.paths("claim").await.is_empty() }).await;
    let claim = lab.claim(claim_id(&lab.paths("claim").await[0])).await;
    let releasing = tokio::spawn(async move { claim.release(&none()).await });
    eventually("the release", || async {
        lab.objects().await.values().filter_map(|o| o.get("org.mdevd1.Claim")).any(|c| c["State"] == "\"releasing\"")
    })
    .await;
    hang.let_go();
    assert!(releasing.await.unwrap().unwrap());
    assert_refused(creating.await.unwrap(), ErrorName::Conflict, &["release"]);
    assert!(lab.host.mdevs().is_empty() && claim_files(&lab.host).is_empty());
}
