//! SIGKILL, and SIGKILL again while the next daemon recovers: at every operation by which it changes something.

use std::time::Instant;

use mdevd_tests::fakesys::{Point, Then};
use mdevd_tests::harness::Domain;

use super::course::Course;
use super::stage::{FIRST, GPU, Stage, two_cards};
use super::story::CLAIMS;
use super::sweep::Operation;

/// The first death: a point of `make`, or, where that goes well, of `end`.
async fn dies_at(stage: &mut Stage, course: &Course, point: Point) {
    let rule = stage.host.on(point, stage.victim().killer(Then::Proceed));
    if course.make(stage).await.is_ok() {
        let claim = course.whole_claim(stage);
        course.end(stage, &claim).await.unwrap_err();
    }
    assert_eq!(rule.hits(), 1);
    stage.daemon.gone(&stage.bus).await;
    // What a recovery does depends on whether one is left.
    stage.writers_ended().await;
    if let Some(claim) = course.claim(stage).filter(|claim| !claim.state.is_ending()) {
        stage.mark_released(&claim);
    }
    stage.host.clear_log();
}

async fn and_again(first: Point) {
    let begun = Instant::now();
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let course = Course::Domain(Domain::wants("vm", &[GPU, GPU]));
    dies_at(&mut stage, &course, first.clone()).await;
    stage.restart().await;
    stage.settled("killed once").await;
    let recovery = Operation::of_log(&stage.host.log());
    assert!(recovery.len() > 5, "{recovery:?}");
    let mut deaths = 0;
    for (n, operation) in recovery.iter().enumerate() {
        dies_at(&mut stage, &course, first.clone()).await;
        let (point, then) = operation.point(n % 2 == 0);
        let rule = stage.host.on(point, stage.victim().killer(then));
        stage.spawn_next().await;
        let what = format!("killed in the recovery, {operation:?}, {then:?}");
        // A daemon that was too slow for its own deadlines may have done more in the first recovery than in this one.
        if stage.died(&rule, &what).await {
            deaths += 1;
            stage.restart().await;
        }
        stage.settled(&what).await;
        stage.nothing_left(&what);
    }
    stage.gives("in the end", &course).await;
    println!("{deaths} second deaths at {} changes in {:?}", recovery.len(), begun.elapsed());
    assert!(deaths * 4 >= recovery.len() * 3, "only {deaths} of {} changes came", recovery.len());
}

#[tokio::test]
async fn after_a_death_in_the_second_create() {
    and_again(Point::after_write("sys/**/create").nth(2)).await;
}

#[tokio::test]
async fn after_a_death_before_the_reply_of_prepare() {
    and_again(Point::after_rename(CLAIMS).nth(3)).await;
}

#[tokio::test]
async fn after_a_death_at_the_beginning_of_release() {
    and_again(Point::after_rename(CLAIMS).nth(4)).await;
}
