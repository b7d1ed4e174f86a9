//! One undisturbed course, told by the claim file: each of its versions, and the step that comes next. From that come the points to die at.

use std::sync::{Arc, Mutex};

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_core::inventory::Inventory;
use mdevd_core::names::ParentName;
use mdevd_core::plan::{Plan, Step, Write as WriteTo};
use mdevd_tests::fakesys::{Errno, FakeHost, Point};

use super::course::Course;
use super::stage::Stage;

/// The claim files.
pub const CLAIMS: &str = "run/mdevd/claims/*.json";
/// The files under which they are written.
pub const UNFINISHED: &str = "run/mdevd/claims/.*";

/// A version of the claim file, in the order in which they were renamed into place.
#[derive(Debug)]
pub struct Version {
    /// What it says.
    pub claim: Claim,
    /// The write that follows it.
    pub write: Option<Write>,
}

/// A write to sysfs that the plan asks for.
#[derive(Debug)]
pub struct Write {
    /// The step.
    pub step: Step,
    /// The file, from the mount.
    pub path: String,
    /// The how-manieth write to that file in this half of the story.
    pub nth: usize,
    /// What the kernel said.
    pub errno: Option<Errno>,
}

/// The two halves of a course: the versions of the claim while the devices are made, and while they go.
#[derive(Debug)]
pub struct Story {
    pub make: Vec<Version>,
    pub end: Vec<Version>,
}

impl Story {
    /// Lets a course run undisturbed and writes down what happens. What the plan says and what is written to sysfs must be the same.
    pub async fn of(course: &Course, stage: &Stage) -> Self {
        let claims = watch(stage);
        stage.host.clear_log();
        course.make(stage).await.unwrap();
        let make = versions(&stage.host, claims);
        let ready = course.whole_claim(stage);
        let claims = watch(stage);
        stage.host.clear_log();
        course.end(stage, &ready).await.unwrap();
        stage.settled("undisturbed").await;
        assert!(course.claim(stage).is_none());
        let end = versions(&stage.host, claims);
        stage.host.clear_log();

        let (first, last) = (&make[0].claim, &make[make.len() - 1].claim);
        assert_eq!(first.state, ClaimState::Planned);
        assert_eq!(first.plan, Plan::prepare(&first.grants));
        assert_eq!((last, last.state), (&ready, ClaimState::Ready));
        assert_eq!(last.plan.steps, Plan::prepare(&last.grants).steps);
        assert_eq!(end[0].claim.state, ClaimState::Releasing);
        assert_eq!(end[0].claim.plan, Plan::release(&ready.grants));
        Self { make, end }
    }
}

/// Keeps every version of every claim file, as it is at the moment in which it gets its name.
fn watch(stage: &Stage) -> Arc<Mutex<Vec<Claim>>> {
    let claims = Arc::new(Mutex::new(Vec::new()));
    for n in 1..=16 {
        let (view, claims) = (stage.view.clone(), claims.clone());
        stage.host.on(Point::after_rename(CLAIMS).nth(n), move |event| {
            let text = view.text(event.to.as_deref().unwrap()).unwrap();
            claims.lock().unwrap().push(serde_json::from_str(&text).unwrap());
            mdevd_tests::fakesys::Then::Proceed
        });
    }
    claims
}

fn versions(host: &FakeHost, claims: Arc<Mutex<Vec<Claim>>>) -> Vec<Version> {
    host.no_faults();
    let claims = std::mem::take(&mut *claims.lock().unwrap());
    assert!(!claims.is_empty() && claims.len() < 16, "{claims:?}");
    let mut written = host.sys_writes().into_iter();
    let mut paths: Vec<String> = Vec::new();
    let mut versions = Vec::new();
    for claim in claims {
        let write = claim.plan.next().map(|step| {
            let (path, value) = file_of(step, host);
            let (really, what, errno) = written.next().unwrap_or_else(|| panic!("'{step}' was never written"));
            assert_eq!((&really, &what), (&path, &value), "'{step}' is not what was written");
            paths.push(path.clone());
            let nth = paths.iter().filter(|earlier| **earlier == path).count();
            Write { step: step.clone(), path, nth, errno }
        });
        versions.push(Version { claim, write });
    }
    assert_eq!(written.next(), None, "written without a step");
    versions
}

/// Where a step on a mediated device writes, as the fake host calls it, and what.
fn file_of(step: &Step, host: &FakeHost) -> (String, String) {
    let parent = step.parent().map(ParentName::as_str).unwrap();
    if let Step::Create { mdev_type, uuid, .. } = step {
        return (host.type_path(parent, mdev_type.as_str(), "create"), uuid.to_string());
    }
    let uuid = step.device().mdev().unwrap();
    let Ok(WriteTo::File { path, value }) = step.write(&Inventory::default()) else {
        panic!("{step} is no write to a file")
    };
    let rest = path.strip_prefix(&format!("bus/mdev/devices/{uuid}")).unwrap();
    (format!("{}{rest}", host.mdev_path(parent, uuid.0)), value)
}
