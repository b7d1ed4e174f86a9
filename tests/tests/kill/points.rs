//! Every point of every step, for several courses.

use std::collections::HashMap;
use std::time::Instant;

use mdevd_tests::fakesys::{self, Errno};
use mdevd_tests::harness::{Domain, hostdev, text_dict};
use uuid::Uuid;

use super::course::Course;
use super::death::{After, Death, Half};
use super::stage::{FIRST, FOREIGN, GPU, OTHER, SECOND, Stage, two_cards};
use super::story::Story;

/// What libvirt does after a death, one of them after each unless a test is about one.
const AFTERS: [After; 3] = [After::Releases, After::LeavesMark, After::AsksAgain];

/// Dies at every point of one half of the course, one after the other on the same host, which is clean again after each.
async fn everywhere(mut stage: Stage, course: Course, half: Half, after: Option<After>) -> Story {
    let story = Story::of(&course, &stage).await;
    let begun = Instant::now();
    let deaths = match half {
        Half::Make => Death::all(&story.make, half),
        Half::End => Death::all(&story.end, half),
    };
    for (n, death) in deaths.iter().enumerate() {
        // In turn, and not the same one at the same point of each step.
        let in_turn = AFTERS[(n + n / AFTERS.len()) % AFTERS.len()];
        let after = match half {
            // What hangs would be in the way of the next prepare.
            Half::Make if death.is_late() => After::LeavesMark,
            // Nobody tells mdevd that a call by hand has failed.
            Half::Make if !course.is_domain() => After::Releases,
            _ => after.unwrap_or(in_turn),
        };
        match half {
            Half::Make => death.while_making(&course, &mut stage, after).await,
            Half::End => death.while_ending(&course, &mut stage).await,
        }
        stage.host.no_faults();
        stage.host.clear_log();
        if n % 4 == 0 {
            stage.gives(&death.name, &course).await;
        }
    }
    println!("{half:?}: {} deaths in {:?}", deaths.len(), begun.elapsed());
    story
}

fn two_requests() -> Course {
    Course::Domain(Domain::wants("vm", &[GPU, GPU]))
}

async fn in_prepare_of_two_requests(after: After) {
    let stage = Stage::start(two_cards(), FIRST).await;
    let story = everywhere(stage, two_requests(), Half::Make, Some(after)).await;
    assert_eq!(story.make.len(), 3, "planned, the first step's mark, ready");
}

#[tokio::test]
async fn in_prepare_and_libvirt_releases() {
    in_prepare_of_two_requests(After::Releases).await;
}

#[tokio::test]
async fn in_prepare_and_libvirt_leaves_a_mark() {
    in_prepare_of_two_requests(After::LeavesMark).await;
}

#[tokio::test]
async fn in_prepare_and_libvirt_asks_again() {
    in_prepare_of_two_requests(After::AsksAgain).await;
}

#[tokio::test]
async fn in_release_of_two_requests() {
    let stage = Stage::start(two_cards(), FIRST).await;
    let story = everywhere(stage, two_requests(), Half::End, None).await;
    assert_eq!(story.end.len(), 2, "releasing, the first step's mark");
}

/// One device is made; the other was there before and is only promised.
fn made_and_kept() -> Course {
    let mut domain = Domain::wants("vm", &[OTHER]);
    domain.requests.push(text_dict(&[("name", "kept"), ("uuid", &FOREIGN.to_string())]));
    domain.hostdevs.push(hostdev(FOREIGN));
    domain.mdevs.push(FOREIGN);
    Course::Domain(domain)
}

#[tokio::test]
async fn in_prepare_with_a_device_that_was_there() {
    let stage = Stage::start(two_cards(), FIRST).await;
    everywhere(stage, made_and_kept(), Half::Make, None).await;
}

#[tokio::test]
async fn in_release_with_a_device_that_was_there() {
    let stage = Stage::start(two_cards(), FIRST).await;
    everywhere(stage, made_and_kept(), Half::End, None).await;
}

/// The first card says that it has room, and has none: every device is tried there first, and the claim is written anew.
#[tokio::test]
async fn in_prepare_that_is_refused_by_the_first_parent() {
    let cards = fakesys::host().parent(FIRST).mdev_type(GPU, 0).parent(SECOND).mdev_type(GPU, 5).mdev_type(OTHER, 4);
    let stage = Stage::start(cards, SECOND).await;
    stage.host.says_available(FIRST, GPU, "2");
    stage.manager.rescan(&HashMap::new()).await.unwrap();
    let story = everywhere(stage, two_requests(), Half::Make, None).await;
    let tries = story.make.iter().filter_map(|version| Some(version.write.as_ref()?.errno));
    assert_eq!(tries.collect::<Vec<_>>(), [Some(Errno::NOSPC), None, Some(Errno::NOSPC), None]);
}

/// Each device on another parent.
fn on_two_parents() -> Course {
    let mut domain = Domain::wants("vm", &[GPU, GPU]);
    for (request, parent) in domain.requests.iter_mut().zip([FIRST, SECOND]) {
        request.insert("parent".into(), parent.into());
    }
    Course::Domain(domain)
}

#[tokio::test]
async fn in_prepare_on_two_parents() {
    let stage = Stage::start(two_cards(), SECOND).await;
    everywhere(stage, on_two_parents(), Half::Make, None).await;
}

#[tokio::test]
async fn in_release_on_two_parents() {
    let stage = Stage::start(two_cards(), SECOND).await;
    everywhere(stage, on_two_parents(), Half::End, None).await;
}

/// A device with two attributes, made by hand.
async fn with_attributes(half: Half) {
    let attributes = vec![("vendor/frames", "60"), ("vendor/depth", "8")];
    let course = Course::ByHand { uuid: Uuid::new_v4(), mdev_type: GPU, attributes };
    let cards = two_cards().mdev_attr("vendor/frames", 0o644, "0").mdev_attr("vendor/depth", 0o644, "0");
    // Only the second card's devices have them.
    let stage = Stage::start(cards, SECOND).await;
    let story = everywhere(stage, course, half, None).await;
    assert_eq!(story.make.len(), 4, "planned, two marks, ready");
}

#[tokio::test]
async fn in_making_a_device_with_attributes() {
    with_attributes(Half::Make).await;
}

#[tokio::test]
async fn in_releasing_a_device_with_attributes() {
    with_attributes(Half::End).await;
}
