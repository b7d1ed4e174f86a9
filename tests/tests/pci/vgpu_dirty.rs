//! vGPU types that somebody has left behind, drivers that do not let go at once, and words that come late.

use std::collections::HashMap;
use std::time::Duration;

use mdevd_core::claim::ClaimState;
use mdevd_dbus::{ErrorName, wire};
use mdevd_tests::fakesys::{Errno, Fault, Op, Point, Then};
use mdevd_tests::harness::{Domain, eventually, text_dict};

use super::common::*;
use super::vgpu::typed;

#[tokio::test]
async fn dirty_functions_are_taken_last_and_cleaned() {
    let small = mdevd_tests::fakesys::host().vgpu_card(GPU, 3).vgpu_type(1148, "NVIDIA L40S-2Q", 2).mixed();
    let lab = Lab::start_with(small.vgpu_type(1152, "NVIDIA L40S-8Q", 8), |host| {
        // The first one would be taken first.
        host.set_vgpu_type(&host.view().vfs(GPU)[0], 1152).unwrap();
    })
    .await;
    let vfs = lab.vgpus();
    let any = [text_dict(&[("name", "any"), ("vgpu-type", "1148")])];
    let mut taken = Vec::new();
    for _ in 0..3 {
        let explained = lab.manager.explain(&any, &none()).await.unwrap();
        let dirty = explained.iter().find(|candidate| wire::text(candidate, "device") == vfs[0]).unwrap();
        match taken.len() {
            2 => assert_eq!(wire::text(dirty, "verdict"), "chosen"),
            _ => assert_eq!(wire::text(dirty, "verdict"), "last-resort"),
        }
        assert!(taken.len() == 2 || wire::text(dirty, "message").contains("1152"), "{explained:?}");
        let before: Vec<_> = vfs.iter().map(|vf| lab.host.view().vgpu_type(vf)).collect();
        lab.manager.acquire(&any, &none()).await.unwrap();
        let after: Vec<_> = vfs.iter().map(|vf| lab.host.view().vgpu_type(vf)).collect();
        taken.extend((0..3).filter(|n| before[*n] != after[*n]));
    }
    assert_eq!(taken, [1, 2, 0]);
    assert!(vfs.iter().all(|vf| lab.host.view().vgpu_type(vf) == Some(1148)));
    assert_refused(lab.manager.acquire(&any, &none()).await, ErrorName::InUse, &["'any'"]);
    lab.only_types_were_written();
}

#[tokio::test]
async fn a_dirty_function_is_cleaned_only_when_nobody_holds_it() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    lab.host.set_vgpu_type(&vfs[0], 1152).unwrap();
    let running = qemu(&lab.host, 4242, &vfs[0]);
    let vm = typed("vm1", &vfs[0], "1148");
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::InUse, &[&vfs[0], "qemu-system-x86", "4242"]);
    assert_eq!((lab.host.sys_writes(), lab.host.view().vgpu_type(&vfs[0])), (vec![], Some(1152)));
    // Whoever hides what it has open may have this one.
    running.closes_groups();
    let _ = running.clone().hides_fds();
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::Unavailable, &[&vfs[0], "4242"]);
    assert_eq!(lab.host.sys_writes(), []);
    running.vanish();
    vm.prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.host.view().vgpu_type(&vfs[0]), Some(1148));
    lab.only_types_were_written();
    lab.nothing_wrong_with(&vm).await;
}

#[tokio::test]
async fn a_dirty_function_that_is_opened_while_its_sibling_is_prepared_keeps_its_type() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    lab.host.set_vgpu_type(&vfs[1], 1148).unwrap();
    let process = lab.host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]);
    let (opened, second) = (process.clone(), vfs[1].clone());
    let first = format!("{}/nvidia/current_vgpu_type", lab.host.function_path(&vfs[0]));
    lab.host.on(Point::after_write(first).writing("1148"), move |_| {
        let _ = opened.clone().opens_function(&second);
        Then::Proceed
    });
    let vm = has(asks(typed("vm1", &vfs[0], "1148"), &vfs[1], &[("vgpu-type", "1148")]), &vfs[1], "no");
    assert_refused(vm.prepare(&lab.manager).await, ErrorName::InUse, &[&vfs[1], "qemu-system-x86", "4242"]);
    lab.freed(&vm).await;
    assert_eq!((lab.host.view().vgpu_type(&vfs[0]), lab.host.view().vgpu_type(&vfs[1])), (None, Some(1148)));
    process.vanish();
    vm.prepare(&lab.manager).await.unwrap();
}

impl Lab {
    async fn nothing_wrong_with(&self, vm: &Domain) {
        assert_eq!(self.claim(vm).unwrap().state, ClaimState::Ready);
        assert_eq!(self.problems().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_dirty_function_that_does_not_let_go_fails_the_start_and_keeps_its_type() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    lab.host.set_vgpu_type(vf, 1152).unwrap();
    lab.host.vgpu_lingers(vf, true);
    let vm = typed("vm1", vf, "1148");
    let refused = vm.prepare_within(&lab.manager, 3000).await;
    assert_refused(refused, ErrorName::KernelRefused, &[vf, "current_vgpu_type", "EBUSY"]);
    assert_eq!(lab.host.view().vgpu_type(vf), Some(1152));
    lab.host.vgpu_lingers(vf, false);
    // What was begun is brought to its end: clean.
    lab.manager.reconcile(&HashMap::new()).await.unwrap();
    lab.freed(&vm).await;
    eventually("it is clean", || async { lab.host.view().vgpu_type(vf).is_none() }).await;
    vm.prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn a_type_whose_number_only_others_know() {
    let lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    lab.host.set_vgpu_type(&vfs[0], 1152).unwrap();
    // While it has one its own list is empty: its siblings' say which number that name is.
    typed("vm1", &vfs[0], "NVIDIA L40S-8Q").prepare(&lab.manager).await.unwrap();
    assert_eq!(lab.host.view().vgpu_type(&vfs[0]), Some(1152));
    // When all have one there is nobody to ask.
    let lab = Lab::start(mdevd_tests::fakesys::host().vgpu_card(GPU, 1).vgpu_type(1148, "NVIDIA L40S-2Q", 2)).await;
    let vf = &lab.vgpus()[0];
    lab.host.set_vgpu_type(vf, 1148).unwrap();
    let by_name = typed("vm1", vf, "NVIDIA L40S-2Q");
    assert_refused(
        by_name.prepare(&lab.manager).await,
        ErrorName::NoCapacity,
        &[vf, "give the number", "hostdevctl vgpu-type"],
    );
    typed("vm1", vf, "1148").prepare(&lab.manager).await.unwrap();
}

#[tokio::test]
async fn a_type_that_the_vendor_holds_on_to_is_taken_away_when_that_ends() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    let vm = typed("vm1", vf, "1152");
    vm.prepare(&lab.manager).await.unwrap();
    let running = qemu(&lab.host, 4242, vf);
    running.vanish();
    lab.host.vgpu_lingers(vf, true);
    vm.release(&lab.manager).await.unwrap();
    let failed = || async { lab.claim(&vm).is_some_and(|claim| claim.state == ClaimState::Failed) };
    eventually("the first try has failed", failed).await;
    assert!(lab.claim(&vm).unwrap().problem.contains("EBUSY"));
    assert_eq!(lab.host.view().vgpu_type(vf), Some(1152));
    // Nobody else gets it before it is clean.
    assert_refused(typed("vm2", vf, "1152").prepare(&lab.manager).await, ErrorName::InUse, &["domain 'vm1'"]);
    lab.host.vgpu_lingers(vf, false);
    // It is tried again by itself.
    lab.freed(&vm).await;
    assert_eq!(lab.host.view().vgpu_type(vf), None);
    lab.only_types_were_written();
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_late_word_of_an_earlier_run_clears_nothing() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    let vm = typed("vm1", vf, "1152");
    vm.prepare(&lab.manager).await.unwrap();
    let run = lab.claim(&vm).unwrap().run.to_string();
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    // The next run of the same domain, with the same function.
    vm.prepare(&lab.manager).await.unwrap();
    let release = |run: String| {
        let (manager, uuid) = (lab.manager.clone(), vm.uuid.to_string());
        async move {
            let options = HashMap::from([("run", run.into()), ("reason", "destroyed".into())]);
            manager.release_domain(&uuid, &options).await.unwrap()
        }
    };
    assert!(!release(run.clone()).await);
    assert_eq!(lab.host.view().vgpu_type(vf), Some(1152));
    // Another domain has the function by now, and the word is of one that has ended.
    assert!(vm.release(&lab.manager).await.unwrap());
    lab.freed(&vm).await;
    let next = typed("vm2", vf, "1148");
    next.prepare(&lab.manager).await.unwrap();
    assert!(!release(run).await);
    assert!(!vm.release(&lab.manager).await.unwrap());
    assert_eq!(lab.host.view().vgpu_type(vf), Some(1148));
    assert_eq!(lab.claim(&next).unwrap().state, ClaimState::Ready);
}

#[tokio::test]
async fn a_change_from_outside_is_not_believed_to_be_ours() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    let vm = typed("vm1", vf, "1152");
    vm.prepare(&lab.manager).await.unwrap();
    // Somebody has taken it away already.
    lab.host.set_vgpu_type(vf, 0).unwrap();
    lab.host.clear_log();
    vm.release(&lab.manager).await.unwrap();
    lab.freed(&vm).await;
    assert_eq!(lab.host.sys_writes(), []);
}

#[tokio::test]
async fn a_write_of_a_type_that_hangs_makes_its_function_stuck() {
    let mut lab = Lab::start(gpu()).await;
    let vfs = lab.vgpus();
    let file = format!("{}/nvidia/current_vgpu_type", lab.host.function_path(&vfs[0]));
    let hang = lab.host.fault_at(mdevd_tests::fakesys::Point::in_write(file).writing("1152"), Fault::Hang);
    let vm = typed("vm1", &vfs[0], "1152");
    assert_refused(vm.prepare_within(&lab.manager, 1500).await, ErrorName::TimedOut, &[&vfs[0], "1152", "stuck"]);
    for _ in 0..2 {
        assert_eq!(lab.function(&vfs[0]).await.state().await.unwrap(), "stuck");
        // Its siblings go on.
        let other = typed("vm2", &vfs[1], "1152");
        other.prepare(&lab.manager).await.unwrap();
        other.release(&lab.manager).await.unwrap();
        lab.freed(&other).await;
        lab.restart().await;
    }
    hang.let_go();
    lab.freed(&vm).await;
    eventually("it is clean", || async { lab.host.view().vgpu_type(&vfs[0]).is_none() }).await;
    let well = || async { lab.function(&vfs[0]).await.state().await.unwrap() == "ok" };
    eventually("it is well", well).await;
    lab.only_types_were_written();
    lab.nothing_left().await;
}

#[tokio::test]
async fn a_type_that_is_not_there_after_the_write_fails_the_start() {
    let lab = Lab::start(gpu()).await;
    let vf = &lab.vgpus()[0];
    let file = format!("{}/nvidia/current_vgpu_type", lab.host.function_path(vf));
    for errno in [Errno::IO, Errno::BUSY, Errno::NOSPC] {
        let refuse = mdevd_tests::fakesys::Point::in_write(&file).writing("1152");
        lab.host.fault_at(refuse, Fault::Errno(errno));
        let vm = typed("vm1", vf, "1152");
        let refused = vm.prepare(&lab.manager).await;
        assert_refused(refused, ErrorName::KernelRefused, &[vf, "current_vgpu_type"]);
        lab.freed(&vm).await;
        assert_eq!(lab.host.view().vgpu_type(vf), None);
    }
    let lies = lab.host.fault(Op::Read, &file, Fault::Delay(Duration::ZERO));
    typed("vm1", vf, "1152").prepare(&lab.manager).await.unwrap();
    assert!(lies.hits() > 0, "what was written is read back");
}
