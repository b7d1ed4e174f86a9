//! Two domains are being started, or stopped, at once.

use std::time::Instant;

use mdevd_core::claim::ClaimState;
use mdevd_tests::harness::Domain;

use super::course::Course;
use super::stage::{FIRST, GPU, SECOND, Stage, two_cards};
use super::sweep::Operation;

/// A domain with a device on each card, the cards in this order.
fn domain(name: &str, parents: [&str; 2]) -> Course {
    let mut domain = Domain::wants(name, &[GPU, GPU]);
    for (request, parent) in domain.requests.iter_mut().zip(parents) {
        request.insert("parent".into(), parent.into());
    }
    Course::Domain(domain)
}

/// Both in each other's way: each begins on the card on which the other one ends.
fn both() -> [Course; 2] {
    [domain("one", [FIRST, SECOND]), domain("two", [SECOND, FIRST])]
}

async fn make_both(stage: &Stage, [one, two]: &[Course; 2]) -> [bool; 2] {
    let (one, two) = tokio::join!(one.make(stage), two.make(stage));
    [one.is_ok(), two.is_ok()]
}

async fn end_both(stage: &Stage, [one, two]: &[Course; 2]) -> [bool; 2] {
    let (first, second) = (one.whole_claim(stage), two.whole_claim(stage));
    let (one, two) = tokio::join!(one.end(stage, &first), two.end(stage, &second));
    [one.is_ok(), two.is_ok()]
}

#[tokio::test]
async fn a_domain_that_has_its_answer_keeps_its_devices() {
    let begun = Instant::now();
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let both = both();
    stage.host.clear_log();
    assert_eq!(make_both(&stage, &both).await, [true, true]);
    let changes = Operation::of_log(&stage.host.log());
    assert_eq!(end_both(&stage, &both).await, [true, true]);
    stage.settled("undisturbed").await;
    let mut one_alone = 0;
    for (n, operation) in changes.iter().enumerate() {
        let what = format!("making, {operation:?}");
        let (point, then) = operation.point(n % 2 == 0);
        let rule = stage.host.on(point, stage.victim().killer(then));
        let answers = make_both(&stage, &both).await;
        assert!(stage.died(&rule, &what).await, "{what} never came");
        stage.daemon.gone(&stage.bus).await;
        for (course, answered) in both.iter().zip(answers) {
            if !answered && let Some(claim) = course.claim(&stage) {
                stage.mark_released(&claim);
            }
        }
        stage.restart().await;
        stage.settled(&what).await;
        for (course, answered) in both.iter().zip(answers) {
            if answered {
                one_alone += 1;
                assert_eq!(course.whole_claim(&stage).state, ClaimState::Ready, "{what}");
                course.end_if_there(&stage).await;
            }
        }
        stage.settled(&what).await;
        stage.nothing_left(&what);
        stage.host.clear_log();
    }
    println!("{} deaths, {one_alone} domains that went on, in {:?}", changes.len(), begun.elapsed());
}

#[tokio::test]
async fn both_give_back() {
    let begun = Instant::now();
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let both = both();
    assert_eq!(make_both(&stage, &both).await, [true, true]);
    stage.host.clear_log();
    assert_eq!(end_both(&stage, &both).await, [true, true]);
    let changes = Operation::of_log(&stage.host.log());
    for (n, operation) in changes.iter().enumerate() {
        let what = format!("giving back, {operation:?}");
        assert_eq!(make_both(&stage, &both).await, [true, true], "{what}");
        let (point, then) = operation.point(n % 2 == 1);
        let rule = stage.host.on(point, stage.victim().killer(then));
        end_both(&stage, &both).await;
        assert!(stage.died(&rule, &what).await, "{what} never came");
        stage.daemon.gone(&stage.bus).await;
        for claim in both.iter().filter_map(|course| course.claim(&stage)).filter(|claim| !claim.state.is_ending()) {
            stage.mark_released(&claim);
        }
        stage.restart().await;
        stage.settled(&what).await;
        stage.nothing_left(&what);
        stage.host.clear_log();
    }
    println!("{} deaths in {:?}", changes.len(), begun.elapsed());
}
