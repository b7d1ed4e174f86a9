//! fakesys against the kernel: the listings, errnos, uevents and blocking of a real 6.12, and the faults and points that tests set.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{self, Errno, FakeHost, Fault, OfHeld, Op, Point, Then};
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

const A: &str = "11111111-2222-3333-4444-555555555555";

fn uuid(text: &str) -> Uuid {
    Uuid::try_parse(text).unwrap()
}

fn two_cards() -> FakeHost {
    fakesys::host()
        .parent("0000:41:00.0")
        .numa(0)
        .driver("nvidia")
        .mdev_type("nvidia-63", 4)
        .mdev_type("nvidia-64", 2)
        .parent("0000:c1:00.0")
        .numa(1)
        .driver("nvidia")
        .mdev_type("nvidia-63", 4)
        .mount()
        .unwrap()
}

fn samples() -> FakeHost {
    fakesys::host().mbochs().mdpy().mtty().first_group(6).mount().unwrap()
}

/// Opens write-only without making the file and does one `write()`, as the daemon's writer does.
fn write(path: impl AsRef<Path>, text: &str) -> Result<usize, Errno> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    file.write(text.as_bytes()).map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn read(path: impl AsRef<Path>) -> Result<String, Errno> {
    fs::read_to_string(path).map_err(|error| Errno::from_io_error(&error).unwrap())
}

/// A process of its own that writes, for writes that hang: a thread of ours that hangs would keep the test from ending.
fn writer(path: &Path, text: &str) -> Child {
    Command::new("sh").args(["-c", "printf %s \"$0\" > \"$1\"", text]).arg(path).stderr(Stdio::null()).spawn().unwrap()
}

fn reader(path: &Path) -> Child {
    Command::new("cat").arg(path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn kill(child: &Child) {
    kill_process(Pid::from_child(child), Signal::KILL).unwrap();
}

/// Waits until the process is in uninterruptible sleep.
fn wait_stuck(child: &Child) {
    let stat = format!("/proc/{}/stat", child.id());
    let end = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&stat).unwrap().contains(") D ") {
        assert!(Instant::now() < end, "{}", fs::read_to_string(&stat).unwrap());
        std::thread::yield_now();
    }
}

/// Lists a folder as the golden file does.
fn list(sys: &Path, dir: &str) -> Vec<String> {
    fn walk(at: &Path, name: &str, lines: &mut Vec<String>) {
        let meta = fs::symlink_metadata(at).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        assert_eq!(
            (meta.uid(), meta.gid()),
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            "{name}"
        );
        if meta.is_symlink() {
            assert_eq!(mode, 0o777, "{name}");
            lines.push(format!("{name} -> {}", fs::read_link(at).unwrap().display()));
        } else if meta.is_dir() {
            assert_eq!(mode, 0o755, "{name}");
            lines.push(format!("{name}/"));
            for entry in fs::read_dir(at).unwrap() {
                let entry = entry.unwrap().file_name().into_string().unwrap();
                walk(&at.join(&entry), &format!("{name}/{entry}"), lines);
            }
        } else {
            assert_eq!(meta.len(), 4096, "{name}");
            let text = if mode & 0o444 == 0 { String::new() } else { fs::read_to_string(at).unwrap() };
            lines.push(format!("{name} [{mode:03o}] = {}", text.trim_end()).trim_end().to_owned());
        }
    }
    let mut lines = Vec::new();
    // A folder may be named through a link.
    walk(&fs::canonicalize(sys.join(dir.trim_start_matches("/sys/"))).unwrap(), dir, &mut lines);
    lines.sort();
    lines
}

fn golden() -> BTreeMap<&'static str, Vec<String>> {
    let text = include_str!("../golden/mdev-sysfs.txt");
    text.split("\n## ")
        .skip(1)
        .map(|part| part.split_once('\n').unwrap())
        .map(|(title, lines)| {
            let mut lines: Vec<String> = lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
            lines.sort();
            (title, lines)
        })
        .collect()
}

#[track_caller]
fn same(golden: &BTreeMap<&str, Vec<String>>, title: &str, host: &FakeHost, dir: &str) {
    let (want, have) = (&golden[title], list(&host.sys(), dir));
    assert_eq!(want.join("\n"), have.join("\n"), "{title}");
}

#[test]
fn the_listings_are_the_kernels() {
    let golden = golden();
    let host = samples();
    same(&golden, "parents", &host, "/sys/class/mdev_bus");
    same(&golden, "mtty", &host, "/sys/devices/virtual/mtty");
    same(&golden, "bus", &host, "/sys/bus/mdev");
    same(&golden, "mdpy types", &host, "/sys/class/mdev_bus/mdpy/mdev_supported_types");
    same(&golden, "mbochs types", &host, "/sys/class/mdev_bus/mbochs/mdev_supported_types");

    let types = host.sys().join("class/mdev_bus/mtty/mdev_supported_types");
    write(types.join("mtty-2/create"), &format!("{A}\n")).unwrap();
    assert_eq!(read(types.join("mtty-1/available_instances")).unwrap(), "22\n");
    assert_eq!(read(types.join("mtty-2/available_instances")).unwrap(), "11\n");
    assert_eq!(fs::read_link(types.join(format!("mtty-2/devices/{A}"))).unwrap(), Path::new(&format!("../../../{A}")));
    same(&golden, "device", &host, &format!("/sys/bus/mdev/devices/{A}"));
    same(&golden, "group", &host, "/sys/kernel/iommu_groups/6");
    same(&golden, "bus with a device", &host, "/sys/bus/mdev");
    for (link, end) in
        [("driver", "bus/mdev/drivers/mtty"), ("iommu_group", "kernel/iommu_groups/6"), ("subsystem", "bus/mdev")]
    {
        let full = fs::canonicalize(host.sys().join(format!("bus/mdev/devices/{A}/{link}"))).unwrap();
        assert_eq!(full, host.sys().join(end));
    }

    let qemu = host.process(4242, "qemu-system-x86", &["qemu-system-x86_64"]).opens_group_of(uuid(A));
    let mut remove = writer(&host.sys().join(format!("bus/mdev/devices/{A}/remove")), "1");
    host.wait_removal_begun(uuid(A));
    same(&golden, "device whose removal waits", &host, &format!("/sys/devices/virtual/mtty/mtty/{A}"));
    same(&golden, "bus while a removal waits", &host, "/sys/bus/mdev");
    same(&golden, "group while a removal waits", &host, "/sys/kernel/iommu_groups/6");
    assert_eq!(read(types.join("mtty-2/available_instances")).unwrap(), "11\n");
    assert_eq!(write(types.join("mtty-2/create"), A), Err(Errno::EXIST));
    qemu.vanish();
    assert!(remove.wait().unwrap().success());
    same(&golden, "mtty", &host, "/sys/devices/virtual/mtty");
    same(&golden, "bus", &host, "/sys/bus/mdev");
    assert!(!host.sys().join("kernel/iommu_groups/6").exists());
    host.unmount().unwrap();
}

#[test]
fn each_errno_is_the_kernels() {
    let host = samples();
    let parent = host.sys().join("devices/virtual/mtty/mtty");
    let types = parent.join("mdev_supported_types");
    let kind = types.join("mtty-2");
    let create = kind.join("create");
    let errno = |result: std::io::Result<()>| Errno::from_io_error(&result.unwrap_err()).unwrap();

    assert_eq!(write(kind.join("name"), "x"), Err(Errno::ACCESS));
    assert_eq!(read(&create), Err(Errno::ACCESS));
    assert_eq!(errno(OpenOptions::new().read(true).write(true).open(kind.join("name")).map(|_| ())), Errno::ACCESS);
    assert_eq!(errno(fs::write(parent.join("new"), "x")), Errno::ACCESS);
    assert_eq!(write(parent.join("new"), "x"), Err(Errno::NOENT));
    assert_eq!(errno(fs::create_dir(parent.join("new"))), Errno::PERM);
    assert_eq!(errno(fs::remove_file(kind.join("name"))), Errno::PERM);
    assert_eq!(errno(fs::remove_dir(kind.join("devices"))), Errno::PERM);
    assert_eq!(errno(fs::rename(kind.join("name"), kind.join("new"))), Errno::PERM);
    assert_eq!(errno(symlink("x", kind.join("new"))), Errno::PERM);
    assert_eq!(errno(fs::hard_link(kind.join("name"), kind.join("new"))), Errno::PERM);

    fs::write(&create, A).unwrap();
    assert_eq!(write(&create, A), Err(Errno::EXIST));
    assert_eq!(write(types.join("mtty-1/create"), A), Err(Errno::EXIST));
    assert_eq!(write(&create, &format!("{}7x", &A[..35])), Ok(37));
    for bad in ["", "\n", "junk", &A[..35], &A.replace('-', ""), &format!("{{{A}}}"), &format!("{}8\n\n", &A[..35])] {
        let want = if bad.is_empty() { Ok(0) } else { Err(Errno::INVAL) };
        assert_eq!(write(&create, bad), want, "{bad:?}");
    }
    assert_eq!(write(&create, "AAAAAAAA-2222-3333-4444-555555555555\n"), Ok(37));
    assert_eq!(write(&create, "aaaaaaaa-2222-3333-4444-555555555555"), Err(Errno::EXIST));
    let mut names: Vec<_> =
        fs::read_dir(host.sys().join("bus/mdev/devices")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [A, &format!("{}7", &A[..35]), "aaaaaaaa-2222-3333-4444-555555555555"]);
    let file = OpenOptions::new().write(true).open(&create).unwrap();
    assert_eq!(file.write_at(b"bbbbbbbb-2222-3333-4444-555555555555", 5).unwrap(), 36);

    let remove = host.sys().join(format!("bus/mdev/devices/{A}/remove"));
    for (text, want) in [("0", Ok(1)), ("0x0", Ok(3)), ("", Ok(0))] {
        assert_eq!(write(&remove, text), want, "{text:?}");
    }
    for text in ["\n", "x", "-1", " 1", "1x", "99999999999999999999999"] {
        assert_eq!(write(&remove, text), Err(Errno::INVAL), "{text:?}");
    }
    let mut file = OpenOptions::new().write(true).open(&remove).unwrap();
    let mut attribute = File::open(remove.with_file_name("uevent")).unwrap();
    assert_eq!(file.write(b"0x10\n").unwrap(), 5);
    assert_eq!(Errno::from_io_error(&file.write(b"1").unwrap_err()), Some(Errno::NODEV));
    assert_eq!(Errno::from_io_error(&attribute.read(&mut [0; 9]).unwrap_err()), Some(Errno::NODEV));
    assert_eq!(write(&remove, "1"), Err(Errno::NOENT));

    while write(&create, &Uuid::new_v4().to_string()).is_ok() {}
    assert_eq!(write(&create, A), Err(Errno::NOSPC));
    assert_eq!(read(kind.join("available_instances")).unwrap(), "0\n");
    assert_eq!(host.mdevs().len(), 12);
}

/// All uevents so far, each as its lines.
fn received(socket: &UnixDatagram) -> Vec<Vec<String>> {
    socket.set_nonblocking(true).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => all.push(
                String::from_utf8(buffer[..len].to_vec()).unwrap().split_terminator('\0').map(str::to_owned).collect(),
            ),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

fn heads(events: &[Vec<String>]) -> Vec<&str> {
    events.iter().map(|lines| lines[0].as_str()).collect()
}

#[test]
fn uevents_come_in_the_kernels_form_and_order() {
    let host = fakesys::host().mdpy().first_group(6).mount().unwrap();
    let socket = host.uevents().unwrap();
    let dev = format!("/devices/virtual/mdpy/mdpy/{A}");
    let create = host.path().join(host.type_path("mdpy", "mdpy-hd", "create"));
    write(&create, A).unwrap();
    let events = received(&socket);
    let vfio_dev = format!("{dev}/vfio-dev/vfio0");
    let want = [
        format!("add@{dev}"),
        "add@/devices/virtual/vfio/6".to_owned(),
        format!("add@{vfio_dev}"),
        format!("bind@{dev}"),
    ];
    assert_eq!(heads(&events), want);
    let number: u64 = events[0].last().unwrap().strip_prefix("SEQNUM=").unwrap().parse().unwrap();
    assert_eq!(events[0][1..4], ["ACTION=add".to_owned(), format!("DEVPATH={dev}"), "SUBSYSTEM=mdev".to_owned()]);
    assert_eq!(events[1][3..6], ["SUBSYSTEM=vfio", "MAJOR=244", "MINOR=6"]);
    assert_eq!(
        events[3][1..],
        [
            "ACTION=bind".to_owned(),
            format!("DEVPATH={dev}"),
            "SUBSYSTEM=mdev".to_owned(),
            "DRIVER=mdpy".to_owned(),
            format!("SEQNUM={}", number + 3)
        ]
    );

    for _ in 0..3 {
        write(&create, &Uuid::new_v4().to_string()).unwrap();
    }
    received(&socket);
    let full = Uuid::new_v4();
    assert_eq!(write(&create, &full.to_string()), Err(Errno::NOSPC));
    assert_eq!(
        heads(&received(&socket)),
        [format!("add@/devices/virtual/mdpy/mdpy/{full}"), format!("remove@/devices/virtual/mdpy/mdpy/{full}")]
    );

    write(host.sys().join(format!("bus/mdev/devices/{A}/remove")), "1").unwrap();
    let events = received(&socket);
    let want = [
        format!("remove@{vfio_dev}"),
        "remove@/devices/virtual/vfio/6".to_owned(),
        format!("unbind@{dev}"),
        format!("remove@{dev}"),
    ];
    assert_eq!(heads(&events), want);

    host.lose_uevents(true);
    write(&create, A).unwrap();
    assert!(received(&socket).is_empty());
    host.lose_uevents(false);
    host.remove_mdev(uuid(A)).unwrap();
    assert_eq!(received(&socket).len(), 4);
    drop(host);
    assert_eq!(socket.recv(&mut [0; 9]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_pci_parent_has_its_place_and_links() {
    let host = two_cards();
    let function = host.sys().join("bus/pci/devices/0000:41:00.0");
    let real = host.sys().join("devices/pci0000:00/0000:00:08.1/0000:41:00.0");
    assert_eq!(fs::canonicalize(&function).unwrap(), real);
    assert_eq!(fs::canonicalize(host.sys().join("class/mdev_bus/0000:41:00.0")).unwrap(), real);
    assert_eq!(
        fs::read_link(host.sys().join("class/mdev_bus/0000:41:00.0")).unwrap(),
        Path::new("../../devices/pci0000:00/0000:00:08.1/0000:41:00.0")
    );
    assert_eq!(fs::canonicalize(function.join("driver")).unwrap(), host.sys().join("bus/pci/drivers/nvidia"));
    assert_eq!(fs::canonicalize(function.join("subsystem")).unwrap(), host.sys().join("bus/pci"));
    assert_eq!(fs::canonicalize(function.join("iommu_group/devices/0000:41:00.0")).unwrap(), real);
    assert_eq!(
        fs::canonicalize(host.sys().join("bus/pci/drivers/nvidia/0000:c1:00.0")).unwrap(),
        fs::canonicalize(host.sys().join("bus/pci/devices/0000:c1:00.0")).unwrap()
    );
    for (name, text) in
        [("numa_node", "0\n"), ("vendor", "0x10de\n"), ("class", "0x030200\n"), ("driver_override", "(null)\n")]
    {
        assert_eq!(read(function.join(name)).unwrap(), text);
    }
    assert_eq!(read(host.sys().join("class/mdev_bus/0000:c1:00.0/numa_node")).unwrap(), "1\n");
    let uevent = read(function.join("uevent")).unwrap();
    assert!(uevent.starts_with("DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:2236\n"), "{uevent}");
    write(function.join("mdev_supported_types/nvidia-63/create"), A).unwrap();
    assert_eq!(fs::canonicalize(host.sys().join(format!("bus/mdev/devices/{A}"))).unwrap(), real.join(A));
    assert_eq!(
        fs::canonicalize(host.sys().join(format!("bus/mdev/devices/{A}/driver"))).unwrap(),
        host.sys().join("bus/mdev/drivers/nvidia-vgpu-vfio")
    );
    assert_eq!(host.mdevs(), [(uuid(A), "0000:41:00.0".to_owned(), "nvidia-63".to_owned())]);
}

#[test]
fn types_limit_each_other_as_the_parent_says() {
    let host = fakesys::host()
        .parent("0000:41:00.0")
        .driver("nvidia")
        .exclusive()
        .mdev_type("a", 4)
        .mdev_type("b", 2)
        .mbochs()
        .mount()
        .unwrap();
    let of = |id| host.available("0000:41:00.0", id);
    host.create_mdev("0000:41:00.0", "a", Uuid::new_v4()).unwrap();
    assert_eq!((of("a"), of("b")), (3, 0));
    assert_eq!(host.create_mdev("0000:41:00.0", "b", Uuid::new_v4()), Err(Errno::NOSPC));
    let medium = Uuid::new_v4();
    host.create_mdev("mbochs", "mbochs-medium", medium).unwrap();
    assert_eq!((host.available("mbochs", "mbochs-large"), host.available("mbochs", "mbochs-small")), (3, 60));
    host.remove_mdev(medium).unwrap();
    assert_eq!(host.available("mbochs", "mbochs-large"), 4);
}

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
fn a_removal_waits_for_the_holder() {
    let host = samples();
    host.create_mdev("mtty", "mtty-1", uuid(A)).unwrap();
    let remove = host.sys().join(format!("bus/mdev/devices/{A}/remove"));
    let qemu = host.process(4242, "qemu", &["qemu", "-name", "vm"]).opens_group_of(uuid(A));
    host.remove_of_held(OfHeld::Fails(Errno::BUSY));
    assert_eq!(write(&remove, "1"), Err(Errno::BUSY));
    host.remove_of_held(OfHeld::Waits);
    assert_eq!(write(&remove, "0"), Ok(1));
    let mut child = writer(&remove, "1");
    host.wait_removal_begun(uuid(A));
    kill(&child);
    wait_stuck(&child);
    // Neither another device nor the rest of the parent waits with it.
    let other = Uuid::new_v4();
    host.create_mdev("mtty", "mtty-1", other).unwrap();
    assert_eq!(write(host.sys().join(format!("bus/mdev/devices/{other}/remove")), "1"), Ok(1));
    assert_eq!(read(host.path().join(host.type_path("mtty", "mtty-1", "available_instances"))).unwrap(), "23\n");
    qemu.closes_groups();
    child.wait().unwrap();
    host.wait_mdevs("no device", |all| all.is_empty());
    assert_eq!(fs::read_dir(host.proc().join("4242/fd")).unwrap().count(), 3);
    host.create_mdev("mtty", "mtty-1", uuid(A)).unwrap();
    host.half_remove(uuid(A));
    assert!(!remove.exists());
    assert!(host.path().join(host.mdev_path("mtty", uuid(A))).join("iommu_group").exists());
}

#[test]
fn processes_are_as_procfs_shows_them() {
    let host = samples();
    host.create_mdev("mtty", "mtty-1", uuid(A)).unwrap();
    let group = host.group_of(uuid(A)).unwrap();
    let qemu = host.process(4242, "qemu (vm 1)", &["qemu", "-name", "vm"]).started(777).opens_group_of(uuid(A));
    let stat = read(host.proc().join("4242/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    assert_eq!((fields.len(), fields[0], fields[19]), (50, "S", "777"));
    assert_eq!(read(host.proc().join("4242/comm")).unwrap(), "qemu (vm 1)\n");
    assert_eq!(read(host.proc().join("4242/cmdline")).unwrap(), "qemu\0-name\0vm\0");
    let links: Vec<PathBuf> = fs::read_dir(host.proc().join("4242/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(links.contains(&PathBuf::from(format!("/dev/vfio/{group}"))), "{links:?}");
    let _hidden = host.process(4343, "other", &["other"]).hides_fds();
    assert_eq!(
        fs::read_dir(host.proc().join("4343/fd")).map(|_| ()).map_err(|error| error.kind()),
        Err(ErrorKind::PermissionDenied)
    );
    qemu.vanish();
    assert!(!host.proc().join("4242").exists());
    assert_eq!(write(host.sys().join(format!("bus/mdev/devices/{A}/remove")), "1"), Ok(1));

    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    host.mirror_process(child.id());
    let here = read(host.proc().join(format!("{}/stat", child.id()))).unwrap();
    assert!(here.starts_with(&format!("{} (", child.id())), "{here}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(read(host.proc().join(format!("{}/stat", child.id()))), Err(Errno::NOENT));
    let other = fakesys::host().real_processes().mount().unwrap();
    assert!(read(other.proc().join(format!("{}/stat", std::process::id()))).unwrap().contains("fakesys"));
    assert!(!fs::read_dir(other.proc()).unwrap().any(|entry| entry.unwrap().file_name() == "1"));
}

#[test]
fn run_and_etc_are_ordinary() {
    let host = samples();
    let dir = host.run().join("mdevd/claims");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let (temporary, file) = (dir.join(".x.tmp"), dir.join("x.json"));
    fs::write(&temporary, "one").unwrap();
    File::open(&temporary).unwrap().sync_all().unwrap();
    fs::rename(&temporary, &file).unwrap();
    File::open(&dir).unwrap().sync_all().unwrap();
    assert_eq!(read(&file).unwrap(), "one");
    assert!(!temporary.exists());
    let mut open = File::open(&file).unwrap();
    fs::write(&temporary, "two").unwrap();
    fs::rename(&temporary, &file).unwrap();
    assert_eq!(read(&file).unwrap(), "two");
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, "one");
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b" and more").unwrap();
    let mut both = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    assert_eq!(both.metadata().unwrap().len(), 12);
    both.write_all(b"TWO").unwrap();
    both.rewind().unwrap();
    let mut text = String::new();
    both.read_to_string(&mut text).unwrap();
    assert_eq!(text, "TWO and more");
    both.set_len(3).unwrap();
    assert_eq!(read(&file).unwrap(), "TWO");
    fs::write(&file, "").unwrap();
    assert_eq!(read(&file).unwrap(), "");
    let lock = File::create(host.run().join("mdevd/lock")).unwrap();
    lock.try_lock().unwrap();
    assert!(File::open(host.run().join("mdevd/lock")).unwrap().try_lock().is_err());
    let exclusive = OpenOptions::new().write(true).create_new(true).open(&file);
    assert_eq!(exclusive.unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::write(&temporary, "three").unwrap();
    let no = rustix::fs::renameat_with(
        rustix::fs::CWD,
        &temporary,
        rustix::fs::CWD,
        &file,
        rustix::fs::RenameFlags::NOREPLACE,
    );
    assert_eq!(no, Err(Errno::EXIST));
    assert_eq!(fs::remove_dir(&dir).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_file(&temporary).unwrap();
    fs::remove_file(&file).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert!(!dir.exists());
    fs::create_dir_all(host.etc().join("mdevd/conf.d")).unwrap();
    fs::write(host.etc().join("mdevd/conf.d/1.toml"), "a = 1\n").unwrap();
    symlink("1.toml", host.etc().join("mdevd/conf.d/2.toml")).unwrap();
    assert_eq!(read(host.etc().join("mdevd/conf.d/2.toml")).unwrap(), "a = 1\n");
    let many: Vec<String> = (0..500).map(|n| format!("file-with-a-rather-long-name-{n}")).collect();
    for name in &many {
        File::create(host.run().join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(host.run()).unwrap().count(), 502);
    for entry in fs::read_dir(host.run()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(fs::read_dir(host.run()).unwrap().count(), 2);
    assert_eq!(fs::create_dir(host.path().join("new")).map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));

    let path = host.domain_runs("vm 1", 4242, "<domain type='kvm' id='1'><name>vm 1</name></domain>").unwrap();
    assert_eq!(path, host.run().join("libvirt/qemu/vm 1.xml"));
    let text = read(&path).unwrap();
    assert!(
        text.contains("<domstatus state='running' reason='booted' pid='4242'>")
            && text.ends_with("</domain>\n</domstatus>\n"),
        "{text}"
    );
    assert_eq!(fs::read_dir(host.run().join("libvirt/qemu")).unwrap().count(), 2);
    host.domain_stops("vm 1").unwrap();
    assert_eq!(fs::read_dir(host.run().join("libvirt/qemu")).unwrap().count(), 0);
}

#[test]
fn points_are_passed_once_and_in_turn() {
    let host = two_cards();
    let create = host.path().join(host.type_path("0000:41:00.0", "nvidia-63", "create"));
    let (temporary, file) = (host.run().join("mdevd/.c.tmp"), host.run().join("mdevd/c.json"));
    let save = |text: &str| fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &file));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |word: &'static str, then: Then| {
        let (seen, file) = (seen.clone(), file.clone());
        move |event: &fakesys::Event| {
            seen.lock().unwrap().push((word, fs::read_to_string(&file).unwrap_or_default(), event.pid));
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
    let sys = host.sys();
    let count = || {
        let (mdevs, sys) = (mdevs.clone(), sys.clone());
        move |_: &fakesys::Event| {
            mdevs.lock().unwrap().push(fs::read_dir(sys.join("bus/mdev/devices")).unwrap().count());
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

#[test]
fn a_host_of_512_parents_is_up_at_once() {
    let begin = Instant::now();
    let mut builder = fakesys::host();
    for n in 0..512 {
        builder = builder.parent(&format!("{:04x}:{:02x}:00.0", n / 255, n % 255 + 1)).driver("nvidia").numa(n % 2);
        for id in 0..20 {
            builder = builder.mdev_type(&format!("nvidia-{}", 200 + id), 4).described("num_heads=4, frl_config=45");
        }
    }
    let host = builder.mount().unwrap();
    let built = begin.elapsed();
    assert_eq!(fs::read_dir(host.sys().join("class/mdev_bus")).unwrap().count(), 512);
    let types = host.sys().join("class/mdev_bus/0002:02:00.0/mdev_supported_types");
    assert_eq!(fs::read_dir(&types).unwrap().count(), 20);
    assert_eq!(read(types.join("nvidia-219/available_instances")).unwrap(), "4\n");
    assert_eq!(write(types.join("nvidia-219/create"), A), Ok(36));
    assert!(built < Duration::from_secs(10), "{built:?}");
}
