//! Faults, points, and what a host does when it is told to.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{self, Errno, Fault, Op, Point, Then};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::common::*;

#[test]
fn a_write_that_hangs_holds_up_nobody_and_outlives_sigkill() {
    let host = two_cards();
    let create = host.path().join(host.type_path("0000:41:00.0", "nvidia-63", "create"));
    let hang = host.fault_times(1, Op::Write, host.type_path("0000:41:00.0", "nvidia-63", "create"), Fault::Hang);
    let mut child = writer(&create, A);
    hang.wait_hits(1);
    // Another writer of the same file, a reader beside it, another parent.
    let other = Uuid::new_v4();
    assert_eq!(write(&create, &other.to_string()), Ok(36));
    assert_eq!(read(create.with_file_name("available_instances")).unwrap(), "3\n");
    assert_eq!(
        write(host.path().join(host.type_path("0000:c1:00.0", "nvidia-63", "create")), &Uuid::new_v4().to_string()),
        Ok(36)
    );

    kill(&child);
    wait_stuck(&child);
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(hang.hanging(), 1);
    assert_eq!(host.mdevs().len(), 2);
    hang.let_go();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    // What the kernel had begun it finishes, whoever asked for it.
    host.wait_mdevs("the device that was asked for", |all| all.contains(&uuid(A)));
}

#[test]
fn a_read_that_hangs_holds_up_nobody() {
    let host = two_cards();
    let path = host.type_path("0000:41:00.0", "nvidia-63", "available_instances");
    let hang = host.fault(Op::Read, path.as_str(), Fault::Hang);
    let child = reader(&host.path().join(&path));
    let second = reader(&host.path().join(&path));
    hang.wait_hits(2);
    assert_eq!(
        read(host.path().join(host.type_path("0000:41:00.0", "nvidia-64", "available_instances"))).unwrap(),
        "2\n"
    );
    assert_eq!(read(host.path().join(host.type_path("0000:41:00.0", "nvidia-63", "name"))).unwrap(), "nvidia-63\n");
    assert_eq!(fs::read_dir(host.sys().join("class/mdev_bus/0000:41:00.0/mdev_supported_types")).unwrap().count(), 2);
    hang.let_go();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"4\n");
    assert_eq!(second.wait_with_output().unwrap().stdout, b"4\n");

    let hang = host.fault(Op::Read, path.as_str(), Fault::Hang);
    let child = reader(&host.path().join(&path));
    hang.wait_hits(1);
    hang.let_go_with(Errno::IO);
    assert!(!child.wait_with_output().unwrap().status.success());
}

#[test]
fn what_hangs_is_let_go_when_the_host_goes() {
    let host = two_cards();
    let path = host.type_path("0000:41:00.0", "nvidia-63", "create");
    let hang = host.fault(Op::Write, path.as_str(), Fault::Hang);
    host.create_mdev("0000:41:00.0", "nvidia-64", uuid(A)).unwrap();
    let _qemu = host.process(4242, "qemu", &["qemu"]).opens_group_of(uuid(A));
    let mut create = writer(&host.path().join(&path), &Uuid::new_v4().to_string());
    let mut remove = writer(&host.sys().join(format!("bus/mdev/devices/{A}/remove")), "1");
    hang.wait_hits(1);
    host.wait_removal_begun(uuid(A));
    host.unmount().unwrap();
    assert!(!create.wait().unwrap().success());
    assert!(!remove.wait().unwrap().success());
}

#[test]
fn faults_come_as_errnos_and_delays_and_end() {
    let host = two_cards();
    let create = host.type_path("0000:41:00.0", "nvidia-63", "create");
    for errno in
        [Errno::EXIST, Errno::NOSPC, Errno::INVAL, Errno::BUSY, Errno::PERM, Errno::NODEV, Errno::USERS, Errno::AGAIN]
    {
        let fault = host.fault(Op::Write, "sys/**/nvidia-63/create", Fault::Errno(errno));
        assert_eq!(write(host.path().join(&create), A), Err(errno));
        fault.let_go();
        assert_eq!(fault.hits(), 1);
    }
    assert!(host.mdevs().is_empty());
    let fault = host.fault_times(2, Op::Write, create.as_str(), Fault::Errno(Errno::BUSY));
    assert_eq!(write(host.path().join(&create), A), Err(Errno::BUSY));
    assert_eq!(write(host.path().join(&create), A), Err(Errno::BUSY));
    assert_eq!(write(host.path().join(&create), A), Ok(36));
    assert_eq!(fault.hits(), 2);
    host.fault(Op::Open, "sys/**/nvidia-64/*", Fault::Errno(Errno::ACCESS));
    assert_eq!(read(host.path().join(host.type_path("0000:41:00.0", "nvidia-64", "name"))), Err(Errno::ACCESS));
    host.no_faults();
    assert_eq!(read(host.path().join(host.type_path("0000:41:00.0", "nvidia-64", "name"))).unwrap(), "nvidia-64\n");
    host.fault(Op::Read, "sys/**/name", Fault::Delay(Duration::from_millis(50)));
    let begin = Instant::now();
    read(host.path().join(host.type_path("0000:41:00.0", "nvidia-64", "name"))).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(50));
    let writes: Vec<_> = host.sys_writes();
    assert_eq!(writes.len(), 11);
    assert_eq!(writes[10], (create.clone(), A.to_owned(), None));
    assert_eq!(writes[0], (create, A.to_owned(), Some(Errno::EXIST)));
    assert!(host.log().iter().all(|entry| entry.pid != 0));
}

#[test]
fn attributes_vanish_and_lie_and_types_come_late() {
    let host = fakesys::host()
        .parent("0000:41:00.0")
        .driver("nvidia")
        .mdev_type("nvidia-63", 4)
        .mdev_type("nvidia-64", 2)
        .parent("0000:42:00.0")
        .driver("nvidia")
        .types_late()
        .mdev_type("nvidia-63", 4)
        .mount()
        .unwrap();
    let types = host.sys().join("class/mdev_bus/0000:41:00.0/mdev_supported_types");
    // It is listed and there, and cannot be opened a moment later.
    host.fault(Op::Open, "sys/**/nvidia-63/description", Fault::Errno(Errno::NOENT));
    host.fault(Op::Open, "sys/**/nvidia-63/name", Fault::Errno(Errno::NOENT));
    assert!(types.join("nvidia-63/name").exists());
    assert_eq!(read(types.join("nvidia-63/name")), Err(Errno::NOENT));
    assert!(read(types.join("nvidia-64/name")).is_ok());
    host.drop_path(&host.type_path("0000:41:00.0", "nvidia-64", "name"));
    assert!(!types.join("nvidia-64/name").exists());

    host.says_available("0000:41:00.0", "nvidia-63", "0");
    assert_eq!(read(types.join("nvidia-63/available_instances")).unwrap(), "0\n");
    host.next_create_makes("0000:41:00.0", "nvidia-63", "nvidia-64");
    assert_eq!(write(types.join("nvidia-63/create"), A), Ok(36));
    assert_eq!(
        fs::read_link(host.sys().join(format!("bus/mdev/devices/{A}/mdev_type"))).unwrap(),
        Path::new("../mdev_supported_types/nvidia-64")
    );
    host.create_mdev("0000:41:00.0", "nvidia-64", Uuid::new_v4()).unwrap();
    host.says_available("0000:41:00.0", "nvidia-64", "4");
    assert_eq!(read(types.join("nvidia-64/available_instances")).unwrap(), "4\n");
    assert_eq!(write(types.join("nvidia-64/create"), &Uuid::new_v4().to_string()), Err(Errno::NOSPC));
    host.set_text(&host.type_path("0000:41:00.0", "nvidia-64", "device_api"), "\u{0}junk");
    assert_eq!(read(types.join("nvidia-64/device_api")).unwrap(), "\u{0}junk");
    host.loses_type_link(uuid(A));
    assert!(host.sys().join(format!("bus/mdev/devices/{A}/remove")).exists());
    assert!(fs::symlink_metadata(host.sys().join(format!("bus/mdev/devices/{A}/mdev_type"))).is_err());

    let socket = host.uevents().unwrap();
    assert!(!host.sys().join("class/mdev_bus/0000:42:00.0").exists());
    assert!(host.sys().join("bus/pci/devices/0000:42:00.0").exists());
    host.types_appear("0000:42:00.0");
    assert_eq!(
        read(host.sys().join("class/mdev_bus/0000:42:00.0/mdev_supported_types/nvidia-63/available_instances"))
            .unwrap(),
        "4\n"
    );
    let events = received(&socket);
    assert_eq!(heads(&events), ["change@/devices/pci0000:00/0000:00:08.2/0000:42:00.0"]);
    assert_eq!(events[0][3..5], ["SUBSYSTEM=pci", "MDEV_STATE=registered"]);

    host.unplug("0000:41:00.0");
    assert!(host.mdevs().is_empty());
    assert!(!host.sys().join("class/mdev_bus/0000:41:00.0").exists());
    assert!(!types.exists());
    assert!(!host.sys().join("devices/pci0000:00/0000:00:08.1/0000:41:00.0").exists());
    let events = received(&socket);
    assert!(events[0].contains(&"MDEV_STATE=unregistered".to_owned()));
    assert!(heads(&events).last().unwrap().starts_with("remove@/devices/pci0000:00/"));
    host.plug(fakesys::host().parent("0000:43:00.0").mdev_type("t", 1));
    assert_eq!(
        read(host.sys().join("class/mdev_bus/0000:43:00.0/mdev_supported_types/t/available_instances")).unwrap(),
        "1\n"
    );
}

#[test]
fn points_are_passed_once_and_in_turn() {
    let host = two_cards();
    let create = host.path().join(host.type_path("0000:41:00.0", "nvidia-63", "create"));
    let (temporary, file) = (host.run().join("mdevd/.c.tmp"), host.run().join("mdevd/c.json"));
    let save = |text: &str| fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &file));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |word: &'static str, then: Then| {
        let (seen, view) = (seen.clone(), host.view());
        move |event: &fakesys::Event| {
            let text = view.text("run/mdevd/c.json").unwrap_or_default();
            seen.lock().unwrap().push((word, text, event.pid));
            then
        }
    };
    let words = || seen.lock().unwrap().drain(..).map(|(word, text, _)| format!("{word}:{text}")).collect::<Vec<_>>();

    // Before and after a rename, and only the first.
    let before = host.on(Point::before_rename("run/mdevd/*.json"), note("before", Then::Proceed));
    let after = host.on(Point::after_rename("run/mdevd/*.json"), note("after", Then::Proceed));
    save("one").unwrap();
    save("two").unwrap();
    assert_eq!(words(), ["before:", "after:one"]);
    assert_eq!((before.hits(), after.hits()), (1, 1));

    // Not carried out, and carried out but said to have failed.
    host.on(Point::before_rename("run/mdevd/*.json"), note("no", Then::Fail(Errno::IO)));
    assert!(save("three").is_err());
    assert_eq!(read(&file).unwrap(), "two");
    host.on(Point::after_rename("run/mdevd/*.json").nth(2), note("second", Then::Fail(Errno::IO)));
    save("four").unwrap();
    assert!(save("five").is_err());
    assert_eq!(read(&file).unwrap(), "five");
    assert_eq!(words(), ["no:two", "second:five"]);

    // In the write and after it.
    let mdevs = Arc::new(Mutex::new(Vec::new()));
    let count = || {
        let (mdevs, sys, view) = (mdevs.clone(), host.sys(), host.view());
        move |_: &fakesys::Event| {
            // In a write to sysfs the mount can be looked at.
            let listed = fs::read_dir(sys.join("bus/mdev/devices")).unwrap().count();
            assert_eq!(view.names("sys/bus/mdev/devices").len(), listed);
            mdevs.lock().unwrap().push(listed);
            Then::Proceed
        }
    };
    host.on(Point::in_write("sys/**/create"), count());
    host.on(Point::after_write("sys/**/create"), count());
    write(&create, A).unwrap();
    assert_eq!(*mdevs.lock().unwrap(), [0, 1]);

    // One after the other: the first file made after the type of the second device was read back.
    host.on(
        Point::after_write("sys/**/create")
            .then(Point::after_readlink("sys/**/mdev_type"))
            .then(Point::before_create("run/mdevd/.*")),
        note("mark", Then::Fail(Errno::ROFS)),
    );
    save("six").unwrap();
    let _ = fs::read_link(host.sys().join(format!("bus/mdev/devices/{A}/mdev_type"))).unwrap();
    save("seven").unwrap();
    write(&create, &Uuid::new_v4().to_string()).unwrap();
    save("eight").unwrap();
    let _ = fs::read_link(host.sys().join(format!("bus/mdev/devices/{A}/mdev_type"))).unwrap();
    assert!(save("nine").is_err());
    assert_eq!(words(), ["mark:eight"]);

    // To die at a point: the process that writes is killed while its write is carried out.
    host.on(Point::after_write("sys/**/remove"), |event| {
        kill_process(Pid::from_raw(event.pid as i32).unwrap(), Signal::KILL).unwrap();
        Then::Proceed
    });
    let mut child = writer(&host.sys().join(format!("bus/mdev/devices/{A}/remove")), "1");
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!host.mdevs().iter().any(|(uuid, ..)| uuid.to_string() == A));
    let last = host.log().pop().unwrap();
    assert_eq!((last.op, last.value.as_str(), last.pid, last.errno), (Op::Write, "1", child.id(), None));
}
