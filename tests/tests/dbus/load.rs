//! Many callers at once, and callers that go away.

use std::collections::BTreeSet;

use mdevd_dbus::wire::text;
use mdevd_dbus::{ErrorName, path};
use mdevd_tests::fakesys::{self, Fault, Op};
use mdevd_tests::harness::{Domain, claim_files, claim_json, eventually, manager};
use uuid::Uuid;

use super::common::{CARD, GPU, Lab, Listener, mdev_uuid, none, one_card, options, refused};

#[tokio::test]
async fn two_hundred_calls_at_once_are_all_answered() {
    let lab = Lab::start(fakesys::host().parent(CARD).mdev_type(GPU, 7).parent("0000:c1:00.0").mdev_type(GPU, 6)).await;
    let mut listener = Listener::open(&lab.bus).await;
    let mut managers = Vec::new();
    for _ in 0..8 {
        managers.push(manager(&lab.bus.connect().await).await);
    }
    let (mut creates, mut reads) = (Vec::new(), Vec::new());
    for i in 0..200usize {
        let manager = managers[i % managers.len()].clone();
        if i % 3 == 0 {
            let label = format!("caller {i}");
            creates.push(tokio::spawn(async move { manager.create_mdev(GPU, &options([("label", &label)])).await }));
        } else {
            reads.push(tokio::spawn(async move {
                match i % 4 {
                    // The parent, and the PCI function that it is.
                    0 => manager.find(CARD).await.map(|found| assert_eq!(found.len(), 2)),
                    1 => manager.version().await.map(|version| assert!(!version.is_empty())),
                    2 => {
                        let request = [mdevd_tests::harness::text_dict(&[("name", "a"), ("type", GPU)])];
                        manager.explain(&request, &none()).await.map(|said| assert_eq!(said.len(), 2))
                    }
                    _ => manager.problems().await.map(|problems| assert_eq!(problems.len(), 0)),
                }
            }));
        }
    }
    for read in reads {
        read.await.unwrap().unwrap();
    }
    let mut made = BTreeSet::new();
    for create in creates {
        match create.await.unwrap() {
            Ok((mdev, changed)) => {
                assert!(changed);
                assert!(made.insert(mdev_uuid(mdev.as_str())), "{mdev} was given twice");
            }
            answer => {
                let (name, message) = refused(answer);
                assert_eq!(name, ErrorName::NoCapacity, "{message}");
            }
        }
    }
    assert_eq!(made.len(), 13);
    assert_eq!(lab.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect::<BTreeSet<_>>(), made);
    assert_eq!(claim_files(&lab.host).len(), 13);
    listener.check().await;
    assert_eq!(lab.paths("claim").await.len(), 13);

    // And back, all at once.
    let mut removing = Vec::new();
    for uuid in made {
        let mdev = lab.mdev(uuid).await;
        removing.push(tokio::spawn(async move { mdev.remove(&none()).await }));
    }
    for removed in removing {
        assert!(removed.await.unwrap().unwrap());
    }
    assert!(lab.host.mdevs().is_empty() && claim_files(&lab.host).is_empty());
    listener.check().await;
}

#[tokio::test]
async fn a_hundred_domains_at_once_share_what_there_is() {
    let host = fakesys::host().parent(CARD).mdev_type(GPU, 8).parent("0000:c1:00.0").mdev_type("nvidia-64", 6);
    let lab = Lab::start(host).await;
    let domains: Vec<Domain> = (0..100).map(|i| Domain::wants(&format!("vm{i}"), &[GPU, "nvidia-64"])).collect();
    let mut starting = Vec::new();
    for domain in domains.clone() {
        let manager = lab.manager.clone();
        starting.push(tokio::spawn(async move { domain.prepare_within(&manager, 60_000).await }));
    }
    let mut started = Vec::new();
    for (domain, start) in domains.iter().zip(starting) {
        match start.await.unwrap() {
            Ok(grants) => {
                assert_eq!(grants.iter().map(|g| text(g, "request")).collect::<Vec<_>>(), ["dev0", "dev1"]);
                started.push(domain);
            }
            answer => {
                let (name, message) = refused(answer);
                assert_eq!(name, ErrorName::NoCapacity, "{message}");
            }
        }
    }
    assert_eq!(started.len(), 6, "a start that cannot have both takes nothing from one that can");
    let devices: BTreeSet<Uuid> = started.iter().flat_map(|domain| domain.mdevs.clone()).collect();
    assert_eq!(lab.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect::<BTreeSet<_>>(), devices);
    assert_eq!(claim_files(&lab.host).len(), started.len());
    for domain in started {
        assert!(domain.release(&lab.manager).await.unwrap());
    }
    assert!(lab.host.mdevs().is_empty() && claim_files(&lab.host).is_empty());
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_nothing() {
    let lab = Lab::start(one_card().mtty()).await;
    let hang = lab.host.fault(Op::Write, "sys/**/create", Fault::Hang);
    let uuid = Uuid::new_v4();
    let domain = Domain::wants("vm1", &["mtty-1"]);
    let caller = lab.bus.connect().await;
    let name = caller.unique_name().unwrap().to_owned();
    let (by_hand, for_domain) = (manager(&caller).await, domain.clone());
    let text = uuid.to_string();
    let prepare = manager(&caller).await;
    let calls = [
        tokio::spawn(async move { by_hand.create_mdev(GPU, &options([("uuid", &text)])).await.map(drop) }),
        tokio::spawn(async move { for_domain.prepare(&prepare).await.map(drop) }),
    ];
    eventually("both writes", || async { hang.hits() == 2 }).await;
    for call in calls {
        call.abort();
        let _ = call.await;
    }
    caller.close().await.unwrap();
    let bus = zbus::fdo::DBusProxy::new(&lab.connection).await.unwrap();
    eventually("the bus to miss the caller", || async { !bus.name_has_owner(name.clone().into()).await.unwrap() })
        .await;
    // The daemon has heard of it as well: what it is told after that, it does after that.
    lab.manager.version().await.unwrap();
    hang.let_go();
    eventually("both claims ready", || async {
        let objects = lab.objects().await;
        let claims: Vec<_> = objects.values().filter_map(|interfaces| interfaces.get("org.mdevd1.Claim")).collect();
        claims.len() == 2 && claims.iter().all(|claim| claim["State"] == "\"ready\"")
    })
    .await;
    let made: BTreeSet<Uuid> = lab.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
    assert_eq!(made, [uuid, domain.mdevs[0]].into());
    assert_eq!(claim_json(&domain.claim_file(&lab.host))["state"], "ready");
    // The claims are like any other.
    assert_eq!(
        lab.manager.create_mdev(GPU, &options([("uuid", &uuid.to_string())])).await.unwrap(),
        (path::mdev(uuid), false)
    );
    assert!(domain.release(&lab.manager).await.unwrap());
    assert!(lab.mdev(uuid).await.remove(&none()).await.unwrap());
    assert!(lab.host.mdevs().is_empty());
}
