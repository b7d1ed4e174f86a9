//! One undisturbed course, told by the claim file and by what was written to sysfs. From that come the points to die at.

use std::sync::{Arc, Mutex};

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_core::inventory::Inventory;
use mdevd_core::plan::{Plan, Step, Write as WriteTo};
use mdevd_tests::fakesys::{Point, Then};

use super::functions::Course;
use super::stage::Stage;

/// The claim files.
pub const CLAIMS: &str = "run/mdevd/claims/*.json";
/// The files under which they are written.
pub const UNFINISHED: &str = "run/mdevd/claims/.*";

/// A write to sysfs.
#[derive(Debug, Clone)]
pub struct Write {
    /// What it is for.
    pub name: String,
    /// The file, from the mount.
    pub path: String,
    /// What was written.
    pub value: String,
    /// The how-manieth of its kind in this half of the story.
    pub nth: usize,
    /// Whether a version of the claim file follows it.
    pub marked: bool,
}

/// One half of a course: how often the claim file was written, and what was written to sysfs.
#[derive(Debug, Default)]
pub struct Half {
    pub renames: usize,
    pub writes: Vec<Write>,
}

/// The two halves of a course: while the functions are taken, and while they go back.
#[derive(Debug)]
pub struct Story {
    pub make: Half,
    pub end: Half,
}

impl Story {
    /// Lets a course run undisturbed and writes down what happens. What the plan says and what is written to sysfs must be the same.
    pub async fn of(course: &Course, stage: &Stage) -> Self {
        let claims = watch(stage);
        course.make(stage).await.unwrap();
        let (versions, mut writes) = taken(stage, &claims);
        let ready = stage.claim().unwrap();
        assert_eq!(
            versions.first().map(|claim| (claim.state, &claim.plan)),
            Some((ClaimState::Planned, &Plan::prepare(&ready.grants)))
        );
        assert_eq!(versions.last(), Some(&ready));
        assert_eq!((ready.state, ready.plan.done), (ClaimState::Ready, ready.plan.steps.len()));
        // Each step is one write, in that order; one whose effect was there before is none.
        let mut left = writes.iter_mut();
        let mut skipped = Vec::new();
        let mut next = left.next();
        for step in &ready.plan.steps {
            let (path, value) = file_of(step);
            match next.take() {
                Some(write) if write.path.ends_with(&path) && write.value == value => {
                    write.name = step.to_string();
                    next = left.next();
                }
                other => {
                    skipped.push(step.to_string());
                    next = other;
                }
            }
        }
        assert!(next.is_none(), "written without a step: {next:?}");
        assert_eq!(skipped, course.skipped, "steps without a write");
        let make = Half { renames: versions.len(), writes };

        let claims = watch(stage);
        course.end(stage, &ready).await.unwrap();
        stage.as_at_first("undisturbed").await;
        let (versions, writes) = taken(stage, &claims);
        assert_eq!(versions.first().map(|claim| claim.state), Some(ClaimState::Releasing));
        Self { make, end: Half { renames: versions.len(), writes } }
    }
}

/// Keeps every version of every claim file, as it is at the moment in which it gets its name.
fn watch(stage: &Stage) -> Arc<Mutex<Vec<Claim>>> {
    stage.lab.host.clear_log();
    let claims = Arc::new(Mutex::new(Vec::new()));
    for n in 1..=16 {
        let (view, claims) = (stage.view.clone(), claims.clone());
        stage.lab.host.on(Point::after_rename(CLAIMS).nth(n), move |event| {
            let text = view.text(event.to.as_deref().unwrap()).unwrap();
            claims.lock().unwrap().push(serde_json::from_str(&text).unwrap());
            Then::Proceed
        });
    }
    claims
}

/// What was seen since, and forgets it.
fn taken(stage: &Stage, claims: &Mutex<Vec<Claim>>) -> (Vec<Claim>, Vec<Write>) {
    stage.lab.host.no_faults();
    let claims = std::mem::take(&mut *claims.lock().unwrap());
    assert!(!claims.is_empty() && claims.len() < 16, "{claims:?}");
    let log = stage.lab.host.log();
    let mut writes: Vec<Write> = Vec::new();
    for (n, entry) in log.iter().enumerate().filter(|(_, entry)| entry.is_sys_write()) {
        assert_eq!(entry.errno, None, "{entry:?}");
        let same = |write: &&Write| write.path == entry.path && write.value == entry.value;
        let rest = &log[n + 1..];
        let until = rest.iter().position(|later| later.is_sys_write()).unwrap_or(rest.len());
        writes.push(Write {
            name: format!("write '{}' to {}", entry.value, entry.path),
            path: entry.path.clone(),
            value: entry.value.clone(),
            nth: 1 + writes.iter().filter(same).count(),
            marked: rest[..until].iter().any(|later| later.to.is_some()),
        });
    }
    stage.lab.host.clear_log();
    (claims, writes)
}

/// The end of the file that a step writes, and what.
fn file_of(step: &Step) -> (String, String) {
    let Ok(WriteTo::File { path, value }) = step.write(&Inventory::default()) else {
        panic!("{step} is no write to a file")
    };
    // The links on the bus and to the driver lead elsewhere; the name of the file is the same there.
    let name = match step {
        Step::SetVgpuType { address, .. } => format!("/{address}/nvidia/current_vgpu_type"),
        Step::SetOverride { address, .. } => format!("/{address}/driver_override"),
        _ => path.rsplit_once('/').map_or(path.clone(), |(_, name)| format!("/{name}")),
    };
    (name, value.trim_end().to_owned())
}
