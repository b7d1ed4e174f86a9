//! Somebody makes a device by hand, under a UUID that a claim speaks of, while the daemon is dead or was about to die. What the claim had
//! not begun to make, or had already given back, is not its own: it stays.

use mdevd_core::claim::ClaimState;
use mdevd_tests::fakesys::{Errno, Fault, Point, Then};
use mdevd_tests::harness::{Domain, eventually};
use uuid::Uuid;

use super::course::Course;
use super::stage::{FIRST, GPU, Stage, two_cards};
use super::story::{CLAIMS, UNFINISHED};

/// A domain that wants two devices on the first card, and their UUIDs.
fn domain() -> (Course, [Uuid; 2]) {
    let mut domain = Domain::wants("vm", &[GPU, GPU]);
    for request in &mut domain.requests {
        request.insert("parent".into(), FIRST.into());
    }
    let mdevs = [domain.mdevs[0], domain.mdevs[1]];
    (Course::Domain(domain), mdevs)
}

#[tokio::test]
async fn what_was_not_begun_is_somebody_elses() {
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let (course, [_, second]) = domain();
    let died = stage.host.on(Point::after_write("sys/**/create"), stage.victim().killer(Then::Proceed));
    course.make(&stage).await.unwrap_err();
    assert_eq!(died.hits(), 1);
    stage.stranger_makes(FIRST, second);
    stage.restart().await;
    stage.settled("the first device went, the second stayed").await;
    stage.nothing_left("the first device went, the second stayed");
}

#[tokio::test]
async fn nor_is_it_when_the_release_had_come_before() {
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let (course, [_, second]) = domain();
    let hangs = stage.host.fault_at(Point::in_write("sys/**/create"), Fault::Hang);
    let during = async {
        eventually("the first write", || async { hangs.hanging() == 1 }).await;
        let claim = course.whole_claim(&stage);
        // The answer waits for the end of the prepare; that it is on disk is what counts.
        let released = Point::after_rename(CLAIMS);
        let died = stage.host.on(released, stage.victim().killer(Then::Proceed));
        course.end(&stage, &claim).await.unwrap_err();
        assert_eq!(died.hits(), 1);
    };
    let (made, ()) = tokio::join!(course.make(&stage), during);
    made.unwrap_err();
    assert_eq!(course.whole_claim(&stage).state, ClaimState::Releasing);
    stage.stranger_makes(FIRST, second);
    hangs.let_go();
    stage.restart().await;
    stage.settled("the first device went, the second stayed").await;
    stage.nothing_left("the first device went, the second stayed");
}

#[tokio::test]
async fn what_was_given_back_is_somebody_elses() {
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let (course, [_, second]) = domain();
    course.make(&stage).await.unwrap();
    let claim = course.whole_claim(&stage);
    let marked = Point::after_write("sys/**/remove").then(Point::after_rename(CLAIMS));
    let died = stage.host.on(marked, stage.victim().killer(Then::Proceed));
    course.end(&stage, &claim).await.unwrap_err();
    assert_eq!(died.hits(), 1);
    stage.stranger_makes(FIRST, second);
    stage.restart().await;
    stage.settled("the first device went, the second stayed").await;
    stage.nothing_left("the first device went, the second stayed");
}

/// The last write of a claim fails for want of room, and the daemon dies before it has undone it.
#[tokio::test]
async fn a_full_run_and_then_the_end() {
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let (course, _) = domain();
    let full = Point::after_write("sys/**/create").nth(2).then(Point::in_write(UNFINISHED));
    let full = stage.host.fault_at(full, Fault::Errno(Errno::NOSPC));
    let died = stage.host.on(Point::in_write("sys/**/remove"), stage.victim().killer(Then::Fail(Errno::BUSY)));
    course.make(&stage).await.unwrap_err();
    assert_eq!((full.hits(), died.hits()), (1, 1));
    stage.restart().await;
    stage.settled("both went").await;
    stage.nothing_left("both went");
}
