//! A point to die at, and what becomes of the operation that is pending there.

use mdevd_tests::fakesys::{Errno, Fault, Point, Rule, Then};

use super::stage::Stage;
use super::story::{CLAIMS, Half, UNFINISHED, Write};

/// A point to die at.
#[derive(Debug, Clone)]
pub struct Death {
    /// Which one, for people.
    pub name: String,
    point: Point,
    /// What becomes of the operation in which the daemon dies.
    pub then: Then,
    /// It becomes that only when the next daemon is up, and hangs until then.
    pub late: bool,
}

impl Death {
    fn new(name: impl Into<String>, point: Point, then: Then) -> Self {
        Self { name: name.into(), point, then, late: false }
    }

    /// Every point of taking functions.
    pub fn of_make(half: &Half) -> Vec<Self> {
        let renames = (1..=half.renames).flat_map(Self::of_claim);
        renames.chain(half.writes.iter().flat_map(Self::of_write)).collect()
    }

    /// Every point of giving them back. Whose last mark is that the claim is deleted.
    pub fn of_end(half: &Half) -> Vec<Self> {
        let before = Point::before_unlink(CLAIMS);
        let last = [
            Self::new("before the last mark, which comes", before.clone(), Then::Proceed),
            Self::new("before the last mark, which does not", before, Then::Fail(Errno::IO)),
            Self::new("before the reply", Point::after_unlink(CLAIMS), Then::Proceed),
        ];
        Self::of_make(half).into_iter().chain(last).collect()
    }

    /// Around the `n`th rename of the claim.
    fn of_claim(n: usize) -> [Self; 3] {
        let (before, after) = (Point::before_rename(CLAIMS).nth(n), Point::after_rename(CLAIMS).nth(n));
        [
            Self::new(format!("before rename {n}, which comes"), before.clone(), Then::Proceed),
            Self::new(format!("before rename {n}, which does not"), before, Then::Fail(Errno::IO)),
            Self::new(format!("after rename {n}"), after, Then::Proceed),
        ]
    }

    /// In and around a write.
    pub fn of_write(write: &Write) -> Vec<Self> {
        let name = |point: &str| format!("{} ({}), {point}", write.name, write.nth);
        let at = |point: Point| point.writing(&write.value).nth(write.nth);
        let (within, after) = (at(Point::in_write(&write.path)), at(Point::after_write(&write.path)));
        let mut all = Vec::new();
        for (done, then) in [("carried out", Then::Proceed), ("refused", Then::Fail(Errno::BUSY))] {
            all.push(Self::new(name(&format!("in the write, {done} at once")), within.clone(), then));
            let late = Self::new(name(&format!("in the write, {done} later")), within.clone(), then);
            all.push(Self { late: true, ..late });
        }
        let answered = after.clone().then(Point::after_unlink("run/mdevd/busy/*"));
        all.push(Self::new(name("answered"), answered, Then::Proceed));
        if write.marked {
            let mark = after.clone().then(Point::before_create(UNFINISHED));
            all.push(Self::new(name("before the mark"), mark, Then::Proceed));
            let mark = after.clone().then(Point::in_write(UNFINISHED));
            all.push(Self::new(name("in the mark"), mark, Then::Fail(Errno::NOSPC)));
        }
        all.push(Self::new(name("after the write"), after, Then::Proceed));
        all
    }

    /// Kills the daemon at this point of a call. Gives the call's answer, and the rule in which a write still hangs.
    pub async fn kill_in(
        &self,
        stage: &Stage,
        what: &str,
        call: impl Future<Output = zbus::Result<()>>,
    ) -> (zbus::Result<()>, Option<Rule>) {
        let rule = match self.late {
            true => stage.lab.host.fault_at(self.point.clone(), Fault::Hang),
            false => stage.lab.host.on(self.point.clone(), stage.victim.killer(self.then)),
        };
        let (answer, ()) = tokio::join!(call, stage.met(what, &rule, self.late));
        (answer, self.late.then_some(rule))
    }

    /// Lets what hangs come back.
    pub fn let_go(&self, hangs: &Rule) {
        match self.then {
            Then::Fail(errno) => hangs.let_go_with(errno),
            Then::Proceed => hangs.let_go(),
        }
    }
}
