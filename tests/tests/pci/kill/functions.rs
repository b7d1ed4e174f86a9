//! Every point of taking functions for a domain, or by hand, and of giving them back.

use std::collections::HashMap;
use std::time::Instant;

use mdevd_core::claim::{Claim, ClaimState};
use mdevd_tests::fakesys::{FakeHost, Rule};
use mdevd_tests::harness::{Domain, eventually};

use super::super::common::*;
use super::super::vgpu::typed;
use super::death::Death;
use super::stage::Stage;
use super::story::Story;

/// What is being done when the daemon dies.
#[derive(Debug, Clone)]
pub struct Course {
    who: Who,
    /// Steps of the plan whose effect is there before.
    pub skipped: Vec<String>,
}

#[derive(Debug, Clone)]
enum Who {
    /// `PrepareDomain` and `ReleaseDomain`, as libvirt's hook calls them.
    Domain(Domain),
    /// `Bind` and `Restore` of a function.
    ByHand(&'static str),
}

impl Course {
    fn domain(domain: Domain) -> Self {
        Self { who: Who::Domain(domain), skipped: Vec::new() }
    }

    /// Asks for the functions.
    pub async fn make(&self, stage: &Stage) -> zbus::Result<()> {
        match &self.who {
            Who::Domain(domain) => {
                let (uuid, options) = (domain.uuid.to_string(), stage.options());
                let manager = &stage.lab.manager;
                manager
                    .prepare_domain(&uuid, &domain.name, &domain.requests, &domain.hostdevs, &options)
                    .await
                    .map(drop)
            }
            Who::ByHand(address) => stage.lab.function(address).await.bind("vfio-pci", &none()).await.map(drop),
        }
    }

    /// Gives them back, as the one whose claim this is.
    pub async fn end(&self, stage: &Stage, claim: &Claim) -> zbus::Result<()> {
        match &self.who {
            Who::Domain(domain) => {
                let options = HashMap::from([("reason", "destroyed".into()), ("run", claim.run.to_string().into())]);
                stage.lab.manager.release_domain(&domain.uuid.to_string(), &options).await.map(drop)
            }
            Who::ByHand(address) => stage.lab.function(address).await.restore(&none()).await.map(drop),
        }
    }

    async fn end_if_there(&self, stage: &Stage) {
        if let Some(claim) = stage.claim() {
            self.end(stage, &claim).await.unwrap();
        }
    }

    fn is_domain(&self) -> bool {
        matches!(self.who, Who::Domain(_))
    }
}

/// What libvirt does about a start that has failed because mdevd was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The hook's `release` reaches the next daemon as soon as that is up.
    Releases,
    /// It reaches nobody, and the hook has left its mark.
    LeavesMark,
    /// The domain is started again as soon as the next daemon is up.
    AsksAgain,
}

/// What libvirt does after a death, one of them after each.
const AFTERS: [After; 3] = [After::Releases, After::LeavesMark, After::AsksAgain];

/// The next daemon is up and the write of the one before still hangs: its function is stuck and the claim is kept. Then lets it go.
async fn let_go_behind(stage: &Stage, death: &Death, what: &str, hangs: &Rule) {
    let stuck = |claim: Claim| claim.state == ClaimState::Failed && claim.problem.contains("stuck");
    let waits = format!("{what}: the claim waits for the write");
    eventually(&waits, || async { stage.claim().is_some_and(stuck) }).await;
    death.let_go(hangs);
}

async fn dies_while_making(stage: &mut Stage, course: &Course, death: &Death, after: After) {
    let what = format!("taking, {}, {after:?}", death.name);
    let (answer, hangs) = death.kill_in(stage, &what, course.make(stage)).await;
    assert!(answer.is_err(), "{what}: it was answered, and then the daemon died");
    stage.lab.daemon.gone(&stage.lab.bus).await;
    let claim = stage.claim();
    if let Some(claim) = claim.as_ref().filter(|_| after == After::LeavesMark && course.is_domain()) {
        stage.mark_released(claim);
    }
    stage.restart().await;
    if let Some(hangs) = hangs {
        let_go_behind(stage, death, &what, &hangs).await;
    }
    match (after, &claim) {
        (After::AsksAgain, _) if course.is_domain() => {
            course.make(stage).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            stage.settled(&what).await;
            course.end_if_there(stage).await;
        }
        (After::Releases, Some(claim)) if course.is_domain() => course.end(stage, claim).await.unwrap(),
        (After::LeavesMark, _) if course.is_domain() => {}
        // Nobody tells mdevd that a call by hand has failed: what was ready is found and given back by a person.
        _ => {
            stage.settled(&what).await;
            course.end_if_there(stage).await;
        }
    }
    stage.as_at_first(&what).await;
}

async fn dies_while_ending(stage: &mut Stage, course: &Course, death: &Death) {
    let what = format!("giving back, {}", death.name);
    course.make(stage).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let claim = stage.claim().unwrap();
    // A release that takes long is answered before it is over.
    let (_, hangs) = death.kill_in(stage, &what, course.end(stage, &claim)).await;
    stage.lab.daemon.gone(&stage.lab.bus).await;
    // Once the claim says `releasing` nobody has to ask again; before that the hook that got no answer leaves its mark.
    let durable = stage.claim().is_none_or(|claim| claim.state.is_ending());
    if !durable && course.is_domain() {
        stage.mark_released(&claim);
    }
    stage.restart().await;
    if let Some(hangs) = hangs {
        let_go_behind(stage, death, &what, &hangs).await;
    }
    if !durable && !course.is_domain() {
        course.end_if_there(stage).await;
    }
    stage.as_at_first(&what).await;
}

/// Dies at every point of the course, one after the other on the same host, which is as at first after each.
async fn everywhere(mut stage: Stage, course: Course) -> Story {
    let begun = Instant::now();
    let story = Story::of(&course, &stage).await;
    let (make, end) = (Death::of_make(&story.make), Death::of_end(&story.end));
    for (n, death) in make.iter().enumerate() {
        // In turn, and not the same one at the same point of each step. What hangs would be in the way of the next start.
        let after = if death.late { After::LeavesMark } else { AFTERS[(n + n / AFTERS.len()) % AFTERS.len()] };
        dies_while_making(&mut stage, &course, death, after).await;
        stage.lab.host.no_faults();
        stage.lab.host.clear_log();
    }
    for death in &end {
        dies_while_ending(&mut stage, &course, death).await;
        stage.lab.host.no_faults();
        stage.lab.host.clear_log();
    }
    println!("{} deaths while taking, {} while giving back, in {:?}", make.len(), end.len(), begun.elapsed());
    story
}

/// A host on which the second virtual function of the network card is held by a domain all the time.
async fn with_nics(before: impl FnOnce(&FakeHost)) -> Stage {
    let set = |host: &FakeHost| {
        host.set_num_vfs(PF, 2).unwrap();
        before(host);
    };
    Stage::start(nics(), set, wants("running", VFS[1]), VFS[1]).await
}

fn values(writes: &[super::story::Write]) -> Vec<&str> {
    writes.iter().map(|write| write.value.as_str()).collect()
}

#[tokio::test]
async fn in_the_life_of_a_whole_function() {
    let story = everywhere(with_nics(|_| {}).await, Course::domain(wants("vm", NIC))).await;
    assert_eq!(values(&story.make.writes), ["vfio-pci", NIC, NIC]);
    assert_eq!(values(&story.end.writes), ["e1000e", NIC, NIC, ""]);
}

#[tokio::test]
async fn in_the_life_of_a_function_with_an_override_of_somebody_else() {
    let stage = with_nics(|host| host.set_override(NIC, Some("e1000e"))).await;
    let story = everywhere(stage, Course::domain(wants("vm", NIC))).await;
    assert_eq!(values(&story.end.writes), ["e1000e", NIC, NIC]);
}

#[tokio::test]
async fn in_the_life_of_a_virtual_function() {
    let story = everywhere(with_nics(|_| {}).await, Course::domain(wants("vm", VFS[0]))).await;
    assert_eq!(values(&story.make.writes), ["vfio-pci", VFS[0], VFS[0]]);
}

/// Nothing is written for one that libvirt binds: the claim is all there is.
#[tokio::test]
async fn in_the_life_of_a_function_that_libvirt_binds() {
    let story = everywhere(with_nics(|_| {}).await, Course::domain(wants_managed("vm", NIC))).await;
    assert_eq!((values(&story.make.writes), values(&story.end.writes)), (vec![], vec![]));
}

#[tokio::test]
async fn in_the_life_of_a_card() {
    let story = everywhere(with_nics(|_| {}).await, Course::domain(wants_card("vm"))).await;
    assert_eq!((story.make.writes.len(), story.end.writes.len()), (6, 8));
}

#[tokio::test]
async fn in_binding_and_restoring_by_hand() {
    let course = Course { who: Who::ByHand(NIC), skipped: Vec::new() };
    everywhere(with_nics(|_| {}).await, course).await;
}

/// A card on which another function runs with a type all the time.
async fn with_vgpus() -> (Stage, Vec<String>) {
    let vfs: Vec<String> = gpu().mount().unwrap().view().vfs(GPU);
    let stage = Stage::start(gpu(), |_| {}, typed("running", &vfs[1], "1152"), &vfs[1]).await;
    (stage, vfs)
}

#[tokio::test]
async fn in_the_life_of_a_vgpu() {
    let (stage, vfs) = with_vgpus().await;
    let mut course = Course::domain(typed("vm", &vfs[0], "1152"));
    course.skipped.push(format!("take the vGPU type from {}", vfs[0]));
    let story = everywhere(stage, course).await;
    assert_eq!((values(&story.make.writes), values(&story.end.writes)), (vec!["1152"], vec!["0"]));
}

#[tokio::test]
async fn in_the_life_of_two_vgpus_of_one_domain() {
    let (stage, vfs) = with_vgpus().await;
    let both = typed("vm", &vfs[0], "1152");
    let both = has(asks(both, &vfs[2], &[("vgpu-type", "NVIDIA L40S-8Q")]), &vfs[2], "no");
    let mut course = Course::domain(both);
    course.skipped.extend([&vfs[0], &vfs[2]].map(|vf| format!("take the vGPU type from {vf}")));
    let story = everywhere(stage, course).await;
    assert_eq!((story.make.writes.len(), story.end.writes.len()), (2, 2));
}
