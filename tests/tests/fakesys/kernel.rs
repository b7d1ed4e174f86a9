//! As a real 6.12 kernel: listings, errnos, uevents, counts, and a removal that waits.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use mdevd_tests::fakesys::{self, Errno, FakeHost, OfHeld};
use uuid::Uuid;

use crate::common::*;

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
    let text = include_str!("../../golden/mdev-sysfs.txt");
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
