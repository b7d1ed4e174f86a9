//! Faults and points: what shall happen to which operation. One mechanism serves both. A [`Point`] says which operation is meant and
//! whether before or after it is carried out; the effect is an errno, a delay, a wait without end, or a closure of the test.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::glob;

/// How long the waiting functions wait before they panic: longer than any deadline of the daemon.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// An operation on the fake host's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A file that exists is opened.
    Open,
    /// A file is read from its start.
    Read,
    /// A link is read.
    Readlink,
    /// A folder is opened to list it.
    List,
    /// A file is written.
    Write,
    /// A file is made (`O_CREAT` and not there yet).
    Create,
    /// A file gets another name; the glob is held against the **new** path.
    Rename,
    /// A file is deleted.
    Unlink,
    /// A folder is made.
    Mkdir,
    /// A file is flushed to disk.
    Fsync,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

/// One operation as it happens.
#[derive(Debug, Clone)]
pub struct Event {
    /// What is done.
    pub op: Op,
    /// On which path, from the mount: `sys/…`, `run/…`.
    pub path: String,
    /// The new path of a rename.
    pub to: Option<String>,
    /// What is written, as text.
    pub value: String,
    /// The process that does it.
    pub pid: u32,
}

impl Event {
    fn subject(&self) -> &str {
        self.to.as_deref().unwrap_or(&self.path)
    }
}

/// A point in an operation: which one, before or after it is carried out, and the how-manieth of its kind.
///
/// `Point::after_write("sys/**/create").then(Point::before_create("run/mdevd/claims/**"))` is the first claim file made after a device.
#[derive(Debug, Clone)]
pub struct Point {
    op: Op,
    when: When,
    glob: String,
    value: Option<String>,
    nth: usize,
    then: Option<Box<Self>>,
}

impl Point {
    /// Before `op` on a path that `glob` means is carried out.
    pub fn before(op: Op, glob: impl Into<String>) -> Self {
        Self { op, when: When::Before, glob: glob.into(), value: None, nth: 1, then: None }
    }

    /// After `op` on a path that `glob` means was carried out, and before it is answered.
    pub fn after(op: Op, glob: impl Into<String>) -> Self {
        Self { when: When::After, ..Self::before(op, glob) }
    }

    /// Before a file gets its final name `glob`.
    pub fn before_rename(glob: impl Into<String>) -> Self {
        Self::before(Op::Rename, glob)
    }

    /// After a file got its final name `glob`.
    pub fn after_rename(glob: impl Into<String>) -> Self {
        Self::after(Op::Rename, glob)
    }

    /// In a write: the writer has called `write()`, nothing has been done yet.
    pub fn in_write(glob: impl Into<String>) -> Self {
        Self::before(Op::Write, glob)
    }

    /// After a write was carried out; the writer does not know it yet.
    pub fn after_write(glob: impl Into<String>) -> Self {
        Self::after(Op::Write, glob)
    }

    /// Before a file is made under a name that `glob` means.
    pub fn before_create(glob: impl Into<String>) -> Self {
        Self::before(Op::Create, glob)
    }

    /// After a file was read from its start.
    pub fn after_read(glob: impl Into<String>) -> Self {
        Self::after(Op::Read, glob)
    }

    /// After a link was read.
    pub fn after_readlink(glob: impl Into<String>) -> Self {
        Self::after(Op::Readlink, glob)
    }

    /// Before a file is deleted.
    pub fn before_unlink(glob: impl Into<String>) -> Self {
        Self::before(Op::Unlink, glob)
    }

    /// After a file was deleted.
    pub fn after_unlink(glob: impl Into<String>) -> Self {
        Self::after(Op::Unlink, glob)
    }

    /// Only a write of this, but for a newline at its end: `unbind` and `drivers_probe` are files that all functions share.
    #[must_use]
    pub fn writing(mut self, value: impl Into<String>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// The `n`th such operation instead of the first.
    #[must_use]
    pub fn nth(mut self, n: usize) -> Self {
        self.nth = n.max(1);
        self
    }

    /// The next point is looked for only once this one has been passed.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        match self.then {
            Some(then) => self.then = Some(Box::new(then.then(next))),
            None => self.then = Some(Box::new(next)),
        }
        self
    }

    fn means(&self, event: &Event) -> bool {
        let written = event.value.strip_suffix('\n').unwrap_or(&event.value);
        self.op == event.op
            && self.value.as_deref().is_none_or(|value| value == written)
            && glob::matches(&self.glob, event.subject())
    }
}

/// What becomes of an operation after a closure at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is carried out, or, at a point after it, answered as it is.
    Proceed,
    /// It is not carried out (at a point after it: it was), and fails with this.
    Fail(Errno),
}

/// What a fault does to the operations that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They fail with this and are not carried out.
    Errno(Errno),
    /// They take this much longer.
    Delay(Duration),
    /// They do not return until [`Rule::let_go`]; not even SIGKILL ends the process that waits.
    Hang,
}

type Action = Arc<Mutex<dyn FnMut(&Event) -> Then + Send>>;

#[derive(Clone)]
enum Effect {
    Fault(Fault),
    Run(Action),
}

#[derive(Debug, Default)]
struct Gate {
    hits: usize,
    waiting: usize,
    answer: Option<Then>,
}

struct State {
    id: u64,
    stages: Vec<Point>,
    stage: usize,
    seen: usize,
    left: Option<usize>,
    effect: Effect,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

/// All rules of a host.
#[derive(Default)]
pub(super) struct Rules {
    list: Mutex<(u64, Vec<State>)>,
    over: std::sync::atomic::AtomicBool,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test's closure that panicked must not make every later operation hang.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fault or a point that was set; it stays when this is dropped.
#[derive(Clone)]
pub struct Rule {
    id: u64,
    rules: Arc<Rules>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("id", &self.id).field("hits", &self.hits()).finish()
    }
}

impl Rule {
    /// How many operations it has met.
    pub fn hits(&self) -> usize {
        lock(&self.gate.0).hits
    }

    /// How many operations hang in it now.
    pub fn hanging(&self) -> usize {
        lock(&self.gate.0).waiting
    }

    /// Waits until it has met `n` operations; panics after half a minute.
    pub fn wait_hits(&self, n: usize) {
        wait_until(&self.gate.1, &self.gate.0, |gate| gate.hits >= n, || format!("{n} operations at a point or fault"));
    }

    /// Ends it, and lets what hangs in it go on as if nothing had been.
    pub fn let_go(&self) {
        self.end(Then::Proceed);
    }

    /// Ends it, and lets what hangs in it fail with `errno`.
    pub fn let_go_with(&self, errno: Errno) {
        self.end(Then::Fail(errno));
    }

    /// Ends it for operations to come; what hangs in it goes on hanging.
    pub fn clear(&self) {
        lock(&self.rules.list).1.retain(|state| state.id != self.id);
    }

    fn end(&self, answer: Then) {
        self.clear();
        lock(&self.gate.0).answer = Some(answer);
        self.gate.1.notify_all();
    }
}

/// Waits on `condvar` until `done`; panics after [`PATIENCE`] saying what did not come.
pub(super) fn wait_until<T>(
    condvar: &Condvar,
    mutex: &Mutex<T>,
    mut done: impl FnMut(&mut T) -> bool,
    what: impl Fn() -> String,
) {
    let end = Instant::now() + PATIENCE;
    let mut guard = lock(mutex);
    while !done(&mut guard) {
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited {} s in vain for: {}", PATIENCE.as_secs(), what());
        guard = condvar.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Rules {
    /// Sets a fault; `left` bounds how many operations it is for.
    pub(super) fn fault(self: &Arc<Self>, point: Point, fault: Fault, left: Option<usize>) -> Rule {
        self.add(point, Effect::Fault(fault), left)
    }

    /// Sets a closure for one pass of a point.
    pub(super) fn run(self: &Arc<Self>, point: Point, action: impl FnMut(&Event) -> Then + Send + 'static) -> Rule {
        self.add(point, Effect::Run(Arc::new(Mutex::new(action))), Some(1))
    }

    fn add(self: &Arc<Self>, point: Point, effect: Effect, left: Option<usize>) -> Rule {
        let mut stages = Vec::new();
        let mut next = Some(Box::new(point));
        while let Some(mut point) = next {
            next = point.then.take();
            stages.push(*point);
        }
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let mut list = lock(&self.list);
        list.0 += 1;
        let id = list.0;
        list.1.push(State { id, stages, stage: 0, seen: 0, left, effect, gate: gate.clone() });
        Rule { id, rules: self.clone(), gate }
    }

    /// True when some rule may have something to do with this operation, so that it must not run where others wait for it.
    pub(super) fn concern(&self, event: &Event) -> bool {
        lock(&self.list).1.iter().any(|state| state.stages.iter().any(|point| point.means(event)))
    }

    /// True when there is no rule at all.
    pub(super) fn none(&self) -> bool {
        lock(&self.list).1.is_empty()
    }

    /// Does to an operation what the rules say for this moment of it; an error is its answer.
    pub(super) fn apply(&self, event: &Event, when: When) -> Result<(), Errno> {
        let mut due = Vec::new();
        let mut list = lock(&self.list);
        for state in &mut list.1 {
            let Some(point) = state.stages.get(state.stage).filter(|point| point.when == when && point.means(event))
            else {
                continue;
            };
            state.seen += 1;
            if state.seen < point.nth {
                continue;
            }
            if state.stage + 1 < state.stages.len() {
                state.stage += 1;
                state.seen = 0;
                continue;
            }
            if let Some(left) = &mut state.left {
                *left = left.saturating_sub(1);
            }
            due.push((state.effect.clone(), state.gate.clone()));
        }
        list.1.retain(|state| state.left != Some(0));
        drop(list);
        for (effect, gate) in due {
            let then = self.effect(event, &effect, &gate);
            if let Then::Fail(errno) = then {
                return Err(errno);
            }
        }
        Ok(())
    }

    fn effect(&self, event: &Event, effect: &Effect, gate: &(Mutex<Gate>, Condvar)) -> Then {
        let met = |waiting: usize| {
            let mut gate_now = lock(&gate.0);
            gate_now.hits += 1;
            gate_now.waiting += waiting;
            gate.1.notify_all();
        };
        match effect {
            Effect::Fault(Fault::Errno(errno)) => {
                met(0);
                Then::Fail(*errno)
            }
            Effect::Fault(Fault::Delay(time)) => {
                met(0);
                // The one place where time itself is what is asked for.
                std::thread::sleep(*time);
                Then::Proceed
            }
            Effect::Fault(Fault::Hang) => {
                met(1);
                let mut now = lock(&gate.0);
                loop {
                    if self.over.load(std::sync::atomic::Ordering::Acquire) {
                        return Then::Fail(Errno::IO);
                    }
                    if let Some(answer) = now.answer {
                        now.waiting -= 1;
                        return answer;
                    }
                    now =
                        gate.1.wait_timeout(now, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
            Effect::Run(action) => {
                let then = lock(action)(event);
                met(0);
                then
            }
        }
    }

    /// Ends all rules; what hangs goes on.
    pub(super) fn let_all_go(&self) {
        let list = std::mem::take(&mut lock(&self.list).1);
        for state in list {
            lock(&state.gate.0).answer = Some(Then::Proceed);
            state.gate.1.notify_all();
        }
    }

    /// The host goes away: nothing may hang any longer.
    pub(super) fn end(&self) {
        self.over.store(true, std::sync::atomic::Ordering::Release);
        let mut list = lock(&self.list);
        for state in &list.1 {
            state.gate.1.notify_all();
        }
        list.1.clear();
    }
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("count", &lock(&self.list).1.len()).finish()
    }
}
