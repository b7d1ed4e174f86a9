//! Every point of a change of the number of virtual functions, and of a type that is set by hand. There is no claim to undo these by: the
//! next daemon shows what has become of it, and the same call brings it to its end.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use mdevd_dbus::Options;
use mdevd_tests::fakesys::FakeHost;
use mdevd_tests::harness::eventually;

use super::super::common::*;
use super::super::vgpu::typed;
use super::death::Death;
use super::stage::Stage;
use super::story::Write;

/// A change without a claim.
trait Change {
    /// Makes it.
    async fn make(&self, lab: &Lab) -> zbus::Result<bool>;
    /// How far it has come.
    fn now(&self, lab: &Lab) -> u32;
    /// What it ends with, and how it is before.
    fn ends(&self) -> (u32, u32);
    /// Brings the host to where it was, as somebody else.
    fn reset(&self, host: &FakeHost);
}

struct NumVfs {
    from: u16,
    to: u16,
}

impl Change for NumVfs {
    async fn make(&self, lab: &Lab) -> zbus::Result<bool> {
        lab.set_num_vfs(PF, u32::from(self.to)).await
    }
    fn now(&self, lab: &Lab) -> u32 {
        u32::try_from(lab.host.view().vfs(PF).len()).unwrap()
    }
    fn ends(&self) -> (u32, u32) {
        (self.to.into(), self.from.into())
    }
    fn reset(&self, host: &FakeHost) {
        host.set_num_vfs(PF, 0).unwrap();
        host.set_num_vfs(PF, self.from).unwrap();
    }
}

/// The switch alone: [`NumVfs`] has a write of its own.
struct Autoprobe;

impl Autoprobe {
    fn file(host: &FakeHost) -> PathBuf {
        host.sys().join("bus/pci/devices").join(PF).join("sriov_drivers_autoprobe")
    }
}

impl Change for Autoprobe {
    async fn make(&self, lab: &Lab) -> zbus::Result<bool> {
        let off = Options::from([("drivers-autoprobe", false.into())]);
        lab.physical(PF).await.set_num_vfs(2, &off).await
    }
    fn now(&self, lab: &Lab) -> u32 {
        let text = fs::read_to_string(Self::file(&lab.host)).unwrap();
        text.trim().parse().unwrap()
    }
    fn ends(&self) -> (u32, u32) {
        (0, 1)
    }
    fn reset(&self, host: &FakeHost) {
        fs::OpenOptions::new().write(true).open(Self::file(host)).unwrap().write_all(b"1").unwrap();
    }
}

struct Vgpu {
    vf: String,
    from: u32,
    to: u32,
}

impl Change for Vgpu {
    async fn make(&self, lab: &Lab) -> zbus::Result<bool> {
        lab.virtual_function(&self.vf).await.set_vgpu_type(self.to, &none()).await
    }
    fn now(&self, lab: &Lab) -> u32 {
        lab.host.view().vgpu_type(&self.vf).unwrap_or(0)
    }
    fn ends(&self) -> (u32, u32) {
        (self.to, self.from)
    }
    fn reset(&self, host: &FakeHost) {
        // Where it has none there is nothing to take away.
        let _ = host.set_vgpu_type(&self.vf, 0);
        if self.from > 0 {
            host.set_vgpu_type(&self.vf, self.from).unwrap();
        }
    }
}

/// The writes of a change that nothing disturbs.
async fn undisturbed(stage: &Stage, change: &impl Change) -> Vec<Write> {
    stage.lab.host.clear_log();
    assert!(change.make(&stage.lab).await.unwrap());
    assert_eq!(change.now(&stage.lab), change.ends().0);
    let mut writes: Vec<Write> = Vec::new();
    for (path, value, errno) in stage.lab.host.sys_writes() {
        assert_eq!(errno, None);
        let nth = 1 + writes.iter().filter(|write| write.path == path && write.value == value).count();
        writes.push(Write { name: format!("write '{value}' to {path}"), path, value, nth, marked: false });
    }
    back_to_where_it_was(stage, change).await;
    writes
}

async fn back_to_where_it_was(stage: &Stage, change: &impl Change) {
    stage.lab.host.no_faults();
    change.reset(&stage.lab.host);
    // No event speaks of a type that somebody else has changed.
    stage.lab.manager.rescan(&none()).await.unwrap();
    stage.settled("where it was").await;
    stage.lab.host.clear_log();
}

async fn everywhere(mut stage: Stage, change: impl Change, values: &[&str]) {
    let begun = Instant::now();
    let writes = undisturbed(&stage, &change).await;
    assert_eq!(writes.iter().map(|write| write.value.as_str()).collect::<Vec<_>>(), values);
    let deaths: Vec<Death> = writes.iter().flat_map(Death::of_write).collect();
    let (to, from) = change.ends();
    for death in &deaths {
        let what = &death.name;
        let call = async { change.make(&stage.lab).await.map(drop) };
        let (answer, hangs) = death.kill_in(&stage, what, call).await;
        assert!(answer.is_err(), "{what}: it was answered, and then the daemon died");
        stage.lab.daemon.gone(&stage.lab.bus).await;
        stage.restart().await;
        if let Some(hangs) = hangs {
            let listed = || async {
                stage.lab.problems().await.iter().any(|problem| problem.contains("before mdevd was restarted"))
            };
            eventually(&format!("{what}: what hangs is listed"), listed).await;
            assert!(change.make(&stage.lab).await.is_err(), "{what}: not while it hangs");
            death.let_go(&hangs);
        }
        stage.settled(what).await;
        let now = change.now(&stage.lab);
        assert!([0, from, to].contains(&now), "{what}: {now}");
        let changed = change.make(&stage.lab).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((changed, change.now(&stage.lab)), (now != to, to), "{what}");
        stage.settled(what).await;
        back_to_where_it_was(&stage, &change).await;
    }
    println!("{} deaths in {:?}", deaths.len(), begun.elapsed());
}

/// A host on which [`NIC`] is held by a domain all the time.
async fn with_nics(vfs: u16) -> Stage {
    Stage::start(nics(), |host| host.set_num_vfs(PF, vfs).unwrap(), wants("running", NIC), NIC).await
}

#[tokio::test]
async fn in_making_virtual_functions() {
    everywhere(with_nics(0).await, NumVfs { from: 0, to: 2 }, &["2"]).await;
}

#[tokio::test]
async fn in_going_from_one_number_to_another() {
    everywhere(with_nics(2).await, NumVfs { from: 2, to: 3 }, &["0", "3"]).await;
}

#[tokio::test]
async fn in_taking_virtual_functions_away() {
    everywhere(with_nics(2).await, NumVfs { from: 2, to: 0 }, &["0"]).await;
}

#[tokio::test]
async fn in_leaving_their_drivers_out() {
    everywhere(with_nics(2).await, Autoprobe, &["0"]).await;
}

#[tokio::test]
async fn in_changing_a_type_by_hand() {
    let vfs: Vec<String> = gpu().mount().unwrap().view().vfs(GPU);
    let mixed = gpu().mixed();
    let dirty = vfs[0].clone();
    let before = |host: &FakeHost| host.set_vgpu_type(&dirty, 1148).unwrap();
    let stage = Stage::start(mixed, before, typed("running", &vfs[1], "1152"), &vfs[1]).await;
    everywhere(stage, Vgpu { vf: vfs[0].clone(), from: 1148, to: 1152 }, &["0", "1152"]).await;
}
