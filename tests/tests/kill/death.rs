//! A point to die at, and what is true afterwards.

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_core::plan::Step;
use mdevd_tests::fakesys::{Errno, Fault, Point, Rule, Then};
use mdevd_tests::harness::eventually;

use super::course::Course;
use super::stage::Stage;
use super::story::{CLAIMS, UNFINISHED, Version};

/// How what is said of the second half begins.
const ENDING: &str = "giving back";

/// Which half of a course the daemon dies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// While the devices are made.
    Make,
    /// While they are given back.
    End,
}

/// A point to die at.
#[derive(Debug, Clone)]
pub struct Death {
    /// Which one, for people.
    pub name: String,
    point: Point,
    how: How,
}

/// What becomes of the operation in which the daemon dies.
#[derive(Debug, Clone, Copy)]
enum How {
    /// It is carried out, or not, as soon as the daemon is dead.
    Now(Then),
    /// It hangs until the next daemon is up, and then is carried out or not.
    Late(Then),
}

/// What libvirt does about a start that has failed because mdevd was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The hook's `release` reaches the next daemon as soon as that is up.
    Releases,
    /// It reaches nobody, and the hook has left its mark.
    LeavesMark,
    /// The hook calls `prepare` again, as soon as the next daemon is up; and another domain starts as well.
    AsksAgain,
}

impl Death {
    fn new(name: impl Into<String>, point: Point, how: How) -> Self {
        Self { name: name.into(), point, how }
    }

    /// Every point of one half of a story.
    pub fn all(versions: &[Version], half: Half) -> Vec<Self> {
        let mut all = Vec::new();
        for (n, version) in (1..).zip(versions) {
            all.extend(Self::of_claim(n));
            let Some(write) = &version.write else { continue };
            let name = |point: &str| format!("step {n} ({}), {point}", write.step);
            let in_write = Point::in_write(&write.path).nth(write.nth);
            let after_write = Point::after_write(&write.path).nth(write.nth);
            for (done, then) in [("carried out", Then::Proceed), ("refused", Then::Fail(Errno::BUSY))] {
                all.push(Self::new(name(&format!("in the write, {done} at once")), in_write.clone(), How::Now(then)));
                all.push(Self::new(name(&format!("in the write, {done} later")), in_write.clone(), How::Late(then)));
            }
            let now = How::Now(Then::Proceed);
            all.push(Self::new(name("after the write"), after_write.clone(), now));
            let answered = after_write.clone().then(Point::after_unlink("run/mdevd/busy/*"));
            all.push(Self::new(name("answered"), answered, now));
            if write.errno.is_none() && !matches!(write.step, Step::Remove { .. }) {
                let read = Point::after_readlink(format!("sys/**/{}/mdev_type", write.step.device()));
                all.push(Self::new(name("after read-back"), after_write.clone().then(read), now));
            }
            if half == Half::Make || n < versions.len() {
                let mark = after_write.clone().then(Point::before_create(UNFINISHED));
                all.push(Self::new(name("before the mark"), mark, now));
                let mark = after_write.then(Point::in_write(UNFINISHED));
                all.push(Self::new(name("in the mark"), mark, How::Now(Then::Fail(Errno::NOSPC))));
            }
        }
        if half == Half::End {
            let before = Point::before_unlink(CLAIMS);
            all.push(Self::new("before the last mark, which comes", before.clone(), How::Now(Then::Proceed)));
            all.push(Self::new("before the last mark, which does not", before, How::Now(Then::Fail(Errno::IO))));
            all.push(Self::new("before the reply", Point::after_unlink(CLAIMS), How::Now(Then::Proceed)));
        }
        all
    }

    /// Around the `n`th rename of the claim. The last of a prepare is the last thing before the reply.
    fn of_claim(n: usize) -> [Self; 3] {
        let (before, after) = (Point::before_rename(CLAIMS).nth(n), Point::after_rename(CLAIMS).nth(n));
        [
            Self::new(format!("before rename {n}, which comes"), before.clone(), How::Now(Then::Proceed)),
            Self::new(format!("before rename {n}, which does not"), before, How::Now(Then::Fail(Errno::IO))),
            Self::new(format!("after rename {n}"), after, How::Now(Then::Proceed)),
        ]
    }

    /// Whether the operation hangs beyond the next start.
    pub fn is_late(&self) -> bool {
        matches!(self.how, How::Late(_))
    }

    /// Lets the daemon die here while it makes the course's devices, and judges the next one.
    pub async fn while_making(&self, course: &Course, stage: &mut Stage, then: After) {
        let what = format!("making, {}, {then:?}", self.name);
        let late = self.kill_in(stage, &what, course.make(stage)).await;
        stage.daemon.gone(&stage.bus).await;
        let claim = course.claim(stage);
        if let Some(claim) = claim.as_ref().filter(|_| then == After::LeavesMark && course.is_domain()) {
            stage.mark_released(claim);
        }
        stage.restart().await;
        if let Some(late) = late {
            self.let_go_behind(stage, course, &what, late).await;
        }
        match then {
            After::LeavesMark => {}
            After::Releases if course.is_domain() => {
                if let Some(claim) = &claim {
                    course.end(stage, claim).await.unwrap();
                }
            }
            // Nobody tells mdevd that a call by hand has failed: a device that was ready is found and released by a person.
            After::Releases => {
                stage.settled(&what).await;
                course.end_if_there(stage).await;
            }
            After::AsksAgain => stage.gives(&what, course).await,
        }
        stage.settled(&what).await;
        stage.nothing_left(&what);
    }

    /// Lets the daemon die here while the course's devices are given back, and judges the next one.
    pub async fn while_ending(&self, course: &Course, stage: &mut Stage) {
        let what = format!("{ENDING}, {}", self.name);
        course.make(stage).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let claim = course.whole_claim(stage);
        let late = self.kill_in(stage, &what, course.end(stage, &claim)).await;
        stage.daemon.gone(&stage.bus).await;
        // Once the claim says `releasing` nobody has to ask again; before that the hook that got no answer leaves its mark.
        let durable = course.claim(stage).is_none_or(|claim| claim.state.is_ending());
        if !durable && course.is_domain() {
            stage.mark_released(&claim);
        }
        stage.restart().await;
        if let Some(late) = late {
            self.let_go_behind(stage, course, &what, late).await;
        }
        if !durable && !course.is_domain() {
            course.end_if_there(stage).await;
        }
        stage.settled(&what).await;
        stage.nothing_left(&what);
    }

    /// Kills the daemon at this point of a call. Gives the rule in which a write still hangs.
    async fn kill_in(&self, stage: &Stage, what: &str, call: impl Future<Output = zbus::Result<()>>) -> Option<Rule> {
        let rule = match self.how {
            How::Now(then) => stage.host.on(self.point.clone(), stage.victim().killer(then)),
            How::Late(_) => stage.host.fault_at(self.point.clone(), Fault::Hang),
        };
        let met = async {
            eventually(&format!("{what}: never reached"), || async { rule.hits() == 1 }).await;
            if self.is_late() {
                stage.kill();
            }
        };
        // A release that takes long is answered before it is over.
        let (answer, ()) = tokio::join!(call, met);
        assert!(answer.is_err() || what.starts_with(ENDING), "{what}: it was answered, and then the daemon died");
        self.is_late().then_some(rule)
    }

    /// The next daemon is up and the write of the one before still hangs: its device is stuck and the claim is kept. Then lets it go.
    async fn let_go_behind(&self, stage: &Stage, course: &Course, what: &str, hangs: Rule) {
        let stuck = |claim: &Claim| claim.state == ClaimState::Failed && claim.problem.contains("is stuck");
        let why = format!("{what}: the claim waits for the write");
        eventually(&why, || async { course.claim(stage).is_some_and(|claim| stuck(&claim)) }).await;
        let listed = || async { stage.problems().await.iter().any(|problem| problem.contains("is stuck")) };
        eventually(&format!("{what}: it is listed"), listed).await;
        match self.how {
            How::Late(Then::Fail(errno)) => hangs.let_go_with(errno),
            _ => hangs.let_go(),
        }
    }
}
