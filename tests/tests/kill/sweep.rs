//! Death at one file operation after the other of a whole course, whatever it is for.

use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{Errno, Fault, LogEntry, Op, Point, Then};
use mdevd_tests::harness::Domain;

use super::course::Course;
use super::stage::{FIRST, GPU, Stage, two_cards};

/// A file operation by its number among those of its kind.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub op: Op,
    pub nth: usize,
}

impl Operation {
    /// Those of a record: every one that changes something.
    pub fn of_log(log: &[LogEntry]) -> Vec<Self> {
        let nth = |n: usize, op: Op| log[..=n].iter().filter(|entry| entry.op == op).count();
        log.iter().enumerate().map(|(n, entry)| Self { op: entry.op, nth: nth(n, entry.op) }).collect()
    }

    /// Where the daemon dies: the operation is carried out and not answered, or not carried out.
    pub fn point(self, carried_out: bool) -> (Point, Then) {
        if carried_out {
            (Point::after(self.op, "**").nth(self.nth), Then::Proceed)
        } else {
            (Point::before(self.op, "**").nth(self.nth), Then::Fail(Errno::IO))
        }
    }
}

/// What a course does on a host that is as it should be: the operations that change something, and how many of those that only look.
async fn undisturbed(stage: &Stage, course: &Course) -> (Vec<Operation>, Vec<(Op, usize)>) {
    let looks = [Op::Open, Op::Read, Op::Readlink, Op::List];
    let counters = looks.map(|op| (op, stage.host.fault(op, "**", Fault::Delay(Duration::ZERO))));
    stage.host.clear_log();
    course.make(stage).await.unwrap();
    course.end(stage, &course.whole_claim(stage)).await.unwrap();
    let changes = Operation::of_log(&stage.host.log());
    let counts = counters.map(|(op, counter)| (op, counter.hits()));
    stage.host.no_faults();
    stage.settled("undisturbed").await;
    stage.host.clear_log();
    (changes, counts.to_vec())
}

/// Goes through a course whose daemon dies somewhere, and judges the next one. False when it did not die.
async fn through(stage: &mut Stage, course: &Course, operation: Operation, carried_out: bool) -> bool {
    let what = format!("{operation:?}, carried out: {carried_out}");
    let (point, then) = operation.point(carried_out);
    let rule = stage.host.on(point, stage.victim().killer(then));
    let made = course.make(stage).await;
    // A start that has failed is followed by the hook's word that it is over; so is one that has not, some time later.
    let claim = course.claim(stage);
    if let (Ok(()), Some(claim)) = (&made, &claim) {
        let _ = course.end(stage, claim).await;
    }
    let died = stage.died(&rule, &what).await;
    if died {
        stage.daemon.gone(&stage.bus).await;
        if let Some(claim) = course.claim(stage).filter(|claim| !claim.state.is_ending()) {
            stage.mark_released(&claim);
        }
        stage.restart().await;
    }
    stage.settled(&what).await;
    stage.nothing_left(&what);
    stage.host.clear_log();
    died
}

fn two_requests() -> Course {
    Course::Domain(Domain::wants("vm", &[GPU, GPU]))
}

#[tokio::test]
async fn at_every_change() {
    let begun = Instant::now();
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let course = two_requests();
    let (changes, _) = undisturbed(&stage, &course).await;
    for operation in &changes {
        for carried_out in [false, true] {
            let died = through(&mut stage, &course, *operation, carried_out).await;
            assert!(died, "{operation:?} never came");
        }
    }
    stage.gives("in the end", &course).await;
    println!("{} changes in {:?}", changes.len(), begun.elapsed());
}

/// How many of the looks are tried; the same ones in every run.
const LOOKS: usize = 32;

#[tokio::test]
async fn at_some_of_the_looks() {
    let begun = Instant::now();
    let mut stage = Stage::start(two_cards(), FIRST).await;
    let course = two_requests();
    let (_, counts) = undisturbed(&stage, &course).await;
    let mut seed: u64 = 0x6d64_6576_6421;
    let mut deaths = 0;
    for n in 0..LOOKS {
        let (op, count) = counts[n % counts.len()];
        // Knuth's generator; its high bits are the good ones.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let nth = 1 + (seed >> 33) as usize % count;
        deaths += usize::from(through(&mut stage, &course, Operation { op, nth }, n % 2 == 0).await);
    }
    stage.gives("in the end", &course).await;
    println!("{deaths} deaths at looks of {counts:?} in {:?}", begun.elapsed());
    // How often one looks depends on how the kernel's events come together, so the last few may not come.
    assert!(deaths * 4 >= LOOKS * 3, "only {deaths} of {LOOKS} looks came");
}
