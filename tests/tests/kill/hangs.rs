//! SIGKILL while a write hangs in the kernel, and the write is let go only behind the next daemon, and the one after that.

use mdevd_core::claim::ClaimState;
use mdevd_dbus::{ErrorName, ParentProxy, error, path};
use mdevd_tests::fakesys::{Fault, Op, Point, Rule, Then};
use mdevd_tests::harness::{Domain, eventually};
use zbus::proxy::CacheProperties;

use super::course::Course;
use super::stage::{FIRST, GPU, SECOND, Stage, two_cards};

/// A domain with two devices on the first card.
fn domain() -> Domain {
    let mut domain = Domain::wants("vm", &[GPU, GPU]);
    for request in &mut domain.requests {
        request.insert("parent".into(), FIRST.into());
    }
    domain
}

/// Kills the daemon in a call whose write hangs, and starts the next one.
async fn killed_in(stage: &mut Stage, hangs: &Rule, call: impl AsyncFnOnce(&Stage) -> zbus::Result<()>) {
    let kill = async {
        eventually("a write that hangs", || async { hangs.hanging() == 1 }).await;
        stage.kill();
    };
    let (answer, ()) = tokio::join!(call(stage), kill);
    answer.unwrap_err();
    stage.restart().await;
}

/// What the parent's object says of its state.
async fn state_of(stage: &Stage, parent: &str) -> String {
    let proxy = ParentProxy::builder(&stage.connection).path(path::parent(parent));
    proxy.cache_properties(CacheProperties::No).build().await.unwrap().state().await.unwrap()
}

/// Waits until the claim of `domain` waits for the write.
async fn waits_for_it(stage: &Stage, course: &Course) {
    let failed = || async { course.claim(stage).is_some_and(|claim| claim.state == ClaimState::Failed) };
    eventually("the claim waits for the write", failed).await;
    let claim = course.claim(stage).unwrap();
    assert!(claim.problem.contains("is stuck: a write that began before mdevd was restarted"), "{}", claim.problem);
}

/// Another domain starts and stops meanwhile; the same one is told what it waits for.
async fn meanwhile(stage: &Stage, domain: &Domain) {
    let other = Domain::wants("other", &[GPU]);
    other.prepare(&stage.manager).await.unwrap();
    assert_eq!(state_of(stage, SECOND).await, "ok");
    other.release(&stage.manager).await.unwrap();

    let refusal = domain.prepare_within(&stage.manager, 600).await.unwrap_err();
    let (name, message) = error::split(&refusal);
    assert_eq!(name, Some(ErrorName::Busy), "{message}");
    assert!(message.contains("still being given back") && message.contains("is stuck"), "{message}");
}

#[tokio::test]
async fn in_create() {
    let mut stage = Stage::start(two_cards(), SECOND).await;
    let domain = domain();
    let course = Course::Domain(domain.clone());
    let hangs = stage.host.fault_at(Point::in_write("sys/**/create").nth(2), Fault::Hang);
    killed_in(&mut stage, &hangs, async |stage| course.make(stage).await).await;
    for _ in 0..2 {
        waits_for_it(&stage, &course).await;
        assert_eq!(state_of(&stage, FIRST).await, "stuck");
        meanwhile(&stage, &domain).await;
        // The first device was whole, and went at once; the claim speaks of the second only.
        let devices: Vec<_> = stage.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
        assert!(!devices.contains(&domain.mdevs[0]), "{devices:?}");
        stage.kill();
        stage.restart().await;
    }
    waits_for_it(&stage, &course).await;
    hangs.let_go();
    course.make(&stage).await.unwrap();
    stage.settled("let go").await;
    assert_eq!(state_of(&stage, FIRST).await, "ok");
    course.end_if_there(&stage).await;
    stage.gives("let go", &course).await;
}

#[tokio::test]
async fn in_remove() {
    let mut stage = Stage::start(two_cards(), SECOND).await;
    let domain = domain();
    let course = Course::Domain(domain.clone());
    course.make(&stage).await.unwrap();
    let claim = course.whole_claim(&stage);
    let hangs = stage.host.fault_at(Point::in_write("sys/**/remove"), Fault::Hang);
    killed_in(&mut stage, &hangs, async |stage| course.end(stage, &claim).await).await;
    for _ in 0..2 {
        waits_for_it(&stage, &course).await;
        meanwhile(&stage, &domain).await;
        let devices: Vec<_> = stage.host.mdevs().into_iter().map(|(uuid, ..)| uuid).collect();
        assert!(devices.contains(&domain.mdevs[1]) && !devices.contains(&domain.mdevs[0]), "{devices:?}");
        stage.kill();
        stage.restart().await;
    }
    waits_for_it(&stage, &course).await;
    hangs.let_go();
    stage.settled("let go").await;
    stage.nothing_left("let go");
    stage.gives("let go", &course).await;
}

/// A removal waits in the kernel for one who has opened the device behind mdevd's back.
#[tokio::test]
async fn in_remove_of_a_device_that_was_opened_meanwhile() {
    let mut stage = Stage::start(two_cards(), SECOND).await;
    let course = Course::Domain(domain());
    course.make(&stage).await.unwrap();
    let claim = course.whole_claim(&stage);
    let second = claim.grants[1].mdev().unwrap().uuid.0;
    let qemu = stage.host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]);
    let opened = qemu.clone();
    // Nobody had it open when mdevd looked; right before the write somebody has.
    let race = stage.host.on(Point::before(Op::Open, "sys/**/remove"), move |_| {
        let _ = opened.clone().opens_group_of(second);
        Then::Proceed
    });
    let call = course.end(&stage, &claim);
    let kill = async {
        eventually("the removal has begun", || async { race.hits() == 1 }).await;
        let half_gone = || async { !stage.host.sys().join("bus/mdev/devices").join(second.to_string()).exists() };
        eventually("the removal waits", half_gone).await;
        stage.kill();
    };
    let (answer, ()) = tokio::join!(call, kill);
    answer.unwrap_err();
    stage.restart().await;
    waits_for_it(&stage, &course).await;
    qemu.vanish();
    stage.settled("closed").await;
    stage.nothing_left("closed");
    stage.gives("closed", &course).await;
}
