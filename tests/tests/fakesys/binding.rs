//! PCI functions and their drivers.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use mdevd_tests::fakesys::{self, Errno, Fault, Op, Point, Then};

use crate::common::*;

#[test]
fn each_write_is_answered_as_the_kernel_does() {
    let host = igb().pci_driver("other", &[]).mount().unwrap();
    let view = host.view();
    let over = at(&host, NIC, "driver_override");
    let (bind, unbind) = (|driver| of_driver(&host, driver, "bind"), |driver| of_driver(&host, driver, "unbind"));

    assert_eq!(read(&over).unwrap(), "(null)\n");
    for (text, want) in [
        ("vfio-pci", "vfio-pci\n"),
        ("", "vfio-pci\n"),
        ("e1000e\nrest", "e1000e\n"),
        ("\n", "(null)\n"),
        ("two words", "two words\n"),
        ("\nrest", "(null)\n"),
    ] {
        assert_eq!(write(&over, text), Ok(text.len()), "{text:?}");
        assert_eq!(read(&over).unwrap(), want, "{text:?}");
    }
    assert_eq!(write(&over, &"x".repeat(4095)), Err(Errno::INVAL));
    assert_eq!(view.override_of(NIC), None);

    // What has a driver keeps it, and another driver cannot take it away.
    assert_eq!(probe(&host, NIC), Ok(12));
    assert_eq!(write(unbind("igb"), NIC), Err(Errno::NODEV));
    assert_eq!(write(unbind("e1000e"), "0000:aa:00.0"), Err(Errno::NODEV));
    assert_eq!(write(bind("e1000e"), NIC), Err(Errno::BUSY));
    assert_eq!(write(bind("vfio-pci"), NIC), Err(Errno::NODEV));
    assert_eq!(probe(&host, "0000:aa:00.0"), Err(Errno::NODEV));
    assert_eq!(write(at(&host, NIC, "driver/unbind"), &format!("{NIC}\n")), Ok(13));
    assert_eq!(view.driver_of(NIC), None);
    assert!(!at(&host, NIC, "driver").exists());
    assert!(fs::symlink_metadata(of_driver(&host, "e1000e", NIC)).is_err());
    assert_eq!(read(at(&host, NIC, "enable")).unwrap(), "0\n");
    assert_eq!(write(unbind("e1000e"), NIC), Err(Errno::NODEV));
    assert_eq!(write(bind("other"), NIC), Err(Errno::NODEV));

    // With an override only that driver; one that is not there binds nothing, and nobody is told.
    write(&over, "vfio-pci").unwrap();
    assert_eq!(write(bind("e1000e"), NIC), Err(Errno::NODEV));
    assert_eq!(probe(&host, NIC), Ok(12));
    assert_eq!(view.driver_of(NIC).unwrap(), "vfio-pci");
    assert_eq!(fs::canonicalize(at(&host, NIC, "driver")).unwrap(), host.sys().join("bus/pci/drivers/vfio-pci"));
    assert_eq!(write(bind("vfio-pci"), NIC), Err(Errno::BUSY));
    // An override that changes does not change what is bound.
    write(&over, "nosuch").unwrap();
    assert_eq!(view.driver_of(NIC).unwrap(), "vfio-pci");
    write(unbind("vfio-pci"), NIC).unwrap();
    assert_eq!(probe(&host, NIC), Ok(12));
    assert_eq!(view.driver_of(NIC), None);
    write(&over, "other").unwrap();
    assert_eq!(write(bind("other"), NIC), Ok(12));
    write(unbind("other"), NIC).unwrap();
    write(&over, "\n").unwrap();
    probe(&host, NIC).unwrap();
    assert_eq!(view.driver_of(NIC).unwrap(), "e1000e");
    // Every one of these writes is in the record, under the path that the driver's folder really has.
    let log = host.sys_writes();
    assert!(log.contains(&("sys/bus/pci/drivers/e1000e/unbind".to_owned(), NIC.to_owned(), None)), "{log:?}");
    assert!(log.contains(&("sys/bus/pci/drivers_probe".to_owned(), "0000:aa:00.0".to_owned(), Some(Errno::NODEV))));
}

#[test]
fn uevents_and_interfaces_come_and_go_with_the_driver() {
    let host = igb().mount().unwrap();
    let socket = host.uevents().unwrap();
    let net = host.sys().join("class/net/enp3s0");
    assert_eq!(read(net.join("address")).unwrap(), "52:54:00:00:00:02\n");
    assert_eq!(fs::canonicalize(net.join("device")).unwrap(), fs::canonicalize(at(&host, NIC, "")).unwrap());
    let index = read(net.join("ifindex")).unwrap();
    to_vfio(&host, NIC);
    assert!(!net.exists() && !at(&host, NIC, "net").exists());
    let events = received(&socket);
    let path = "/devices/pci0000:00/0000:00:00.3/0000:03:00.0";
    let group = host.group_of_function(NIC).unwrap();
    assert_eq!(
        heads(&events),
        [
            &format!("remove@{path}/net/enp3s0"),
            &format!("unbind@{path}"),
            &format!("add@/devices/virtual/vfio/{group}"),
            &format!("add@{path}/vfio-dev/vfio0"),
            &format!("bind@{path}"),
        ]
    );
    assert_eq!(events[0][3..5], ["SUBSYSTEM=net", "INTERFACE=enp3s0"]);
    // The first word of the driver's own keys, and no alias where the driver has gone.
    assert_eq!(events[1][3..5], ["SUBSYSTEM=pci", "PCI_CLASS=20000"]);
    assert!(!events[1].iter().any(|line| line.starts_with("MODALIAS=") || line.starts_with("DRIVER=")));
    assert_eq!(events[2][3..6], ["SUBSYSTEM=vfio".to_owned(), "MAJOR=244".into(), format!("MINOR={group}")]);
    assert_eq!(events[4][4], "DRIVER=vfio-pci");
    assert!(events[4].contains(&"MODALIAS=pci:v00008086d000010D3sv00008086sd00000001bc02sc00i00".to_owned()));
    assert!(host.sys().join(format!("class/vfio/{group}/dev")).exists());

    host.set_override(NIC, None);
    write(of_driver(&host, "vfio-pci", "unbind"), NIC).unwrap();
    assert!(!host.sys().join(format!("class/vfio/{group}")).exists());
    assert_eq!(fs::read_dir(host.sys().join("class/vfio-dev")).unwrap().count(), 0);
    probe(&host, NIC).unwrap();
    // The same name, another number, as after any rebind.
    assert_ne!(read(net.join("ifindex")).unwrap(), index);
    let names = short(&socket);
    let want = ["remove vfio0", &format!("remove {group}"), "unbind 0000:03:00.0", "add enp3s0", "bind 0000:03:00.0"];
    assert_eq!(names, want);

    host.rename_netdev("enp3s0", "lan0");
    let events = received(&socket);
    assert_eq!(heads(&events), [&format!("move@{path}/net/lan0")]);
    let want = ["SUBSYSTEM=net".to_owned(), format!("DEVPATH_OLD={path}/net/enp3s0"), "INTERFACE=lan0".into()];
    assert_eq!(events[0][3..6], want);
    assert!(!net.exists());
    assert!(read(host.sys().join("class/net/lan0/uevent")).unwrap().starts_with("INTERFACE=lan0\n"));
    assert_eq!(host.view().netdev_of(NIC).unwrap(), "lan0");
}

#[test]
fn an_unbind_waits_for_the_holder() {
    let host = igb().mount().unwrap();
    to_vfio(&host, NIC);
    let group = host.group_of_function(NIC).unwrap();
    let qemu = host.process(4242, "qemu-system-x86", &["qemu"]).opens_function(NIC);
    let fds = fs::read_dir(host.proc().join("4242/fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    assert!(fds.collect::<Vec<_>>().contains(&Path::new(&format!("/dev/vfio/{group}")).to_owned()));
    let mut child = writer(&of_driver(&host, "vfio-pci", "unbind"), NIC);
    host.wait_unbind_begun(NIC);
    kill(&child);
    wait_stuck(&child);
    // What can be seen of it: the links have gone, the group and the kernel's own idea of the driver are still there.
    assert!(!at(&host, NIC, "driver").exists() && !at(&host, NIC, "vfio-dev").exists());
    assert!(fs::symlink_metadata(of_driver(&host, "vfio-pci", NIC)).is_err());
    assert!(host.sys().join(format!("class/vfio/{group}")).exists());
    assert!(read(at(&host, NIC, "uevent")).unwrap().starts_with("DRIVER=vfio-pci\n"));
    assert_eq!(read(at(&host, NIC, "driver_override")).unwrap(), "vfio-pci\n");
    assert_eq!(probe(&host, NIC), Ok(12));
    // Others go on, also through the same files.
    to_vfio(&host, PF);
    let asked = host.on(Point::in_write("sys/bus/pci/drivers/vfio-pci/unbind"), |_| Then::Proceed);
    let mut second = second_writer(&of_driver(&host, "vfio-pci", "unbind"), NIC);
    asked.wait_hits(1);
    assert!(second.try_wait().unwrap().is_none());
    qemu.closes_groups();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    second.wait().unwrap();
    // It found the driver and waited, or came when that had just gone.
    let errno = host.sys_writes().last().unwrap().2;
    assert!([None, Some(Errno::NODEV)].contains(&errno), "{errno:?}");
    host.wait_driver(NIC, None);
    assert!(!host.sys().join(format!("class/vfio/{group}")).exists());

    // Held by one member, the whole group waits.
    let host = fakesys::host()
        .function("0000:04:00.0")
        .function("0000:04:00.1")
        .group_with("0000:04:00.0")
        .function("0000:04:00.2")
        .group_with("0000:04:00.3")
        .function("0000:04:00.3")
        .mount()
        .unwrap();
    let group = |function| host.group_of_function(&format!("0000:04:00.{function}")).unwrap();
    assert_eq!((group(0), group(2)), (group(1), group(3)));
    assert_ne!(group(0), group(2));
    to_vfio(&host, "0000:04:00.0");
    to_vfio(&host, "0000:04:00.1");
    let _qemu = host.process(4242, "qemu", &["qemu"]).opens_group(group(0));
    host.unbind("0000:04:00.0");
    assert!(host.sys().join(format!("class/vfio/{}", group(1))).exists());
    let mut child = writer(&of_driver(&host, "vfio-pci", "unbind"), "0000:04:00.1");
    host.wait_unbind_begun("0000:04:00.1");
    host.unmount().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn probes_fail_and_go_astray_and_writes_hang() {
    let host = igb().pci_driver("late", &[(0x8086, 0x10d3)]).driver_late("late").mount().unwrap();
    let view = host.view();
    host.unbind(NIC);
    host.probe_fails(NIC, "e1000e", Errno::NOMEM);
    assert_eq!(write(of_driver(&host, "e1000e", "bind"), NIC), Err(Errno::NOMEM));
    assert_eq!(probe(&host, NIC), Ok(12));
    assert_eq!(view.driver_of(NIC), None);
    assert!(!of_driver(&host, "late", "bind").exists());
    // A driver that comes takes what it may have and nobody has.
    host.load_driver("late");
    assert_eq!(view.driver_of(NIC).unwrap(), "late");
    assert_eq!(host.bind(NIC, "igb"), Err(Errno::BUSY));
    host.unbind(NIC);
    host.probe_works(NIC, "e1000e");
    probe(&host, NIC).unwrap();
    // The one that was named first.
    assert_eq!(view.driver_of(NIC).unwrap(), "late");
    host.unbind(NIC);
    host.set_override(NIC, Some("vfio-pci"));
    host.probe_binds(NIC, "e1000e");
    probe(&host, NIC).unwrap();
    assert_eq!(view.driver_of(NIC).unwrap(), "e1000e");

    // A fault for one function in a file that all share.
    let to = |address| Point::before(Op::Write, "sys/bus/pci/drivers/*/unbind").writing(address);
    let hang = host.fault_at(to(NIC), Fault::Hang);
    write(at(&host, PF, "driver/unbind"), PF).unwrap();
    let mut child = writer(&at(&host, NIC, "driver/unbind"), &format!("{NIC}\n"));
    hang.wait_hits(1);
    assert_eq!(view.driver_of(NIC).unwrap(), "e1000e");
    hang.let_go();
    assert!(child.wait().unwrap().success());
    assert_eq!(view.driver_of(NIC), None);
}

#[test]
fn vfio_needs_its_module_and_an_iommu() {
    let host = igb().without_vfio_pci().mount().unwrap();
    assert!(!of_driver(&host, "vfio-pci", "bind").exists());
    host.unbind(NIC);
    host.set_override(NIC, Some("vfio-pci"));
    probe(&host, NIC).unwrap();
    assert_eq!(host.view().driver_of(NIC), None);
    host.load_driver("vfio-pci");
    assert_eq!(host.view().driver_of(NIC).unwrap(), "vfio-pci");
    assert!(host.sys().join("module/vfio_pci").exists());

    let host = igb().vfio_driver("mlx5_vfio_pci").mount().unwrap();
    host.unbind(NIC);
    host.set_override(NIC, Some("mlx5_vfio_pci"));
    probe(&host, NIC).unwrap();
    let _ = host.process(1, "qemu", &["qemu"]).opens_function(NIC);

    let host = igb().without_iommu().mount().unwrap();
    assert_eq!(host.group_of_function(NIC), None);
    assert!(fs::symlink_metadata(at(&host, NIC, "iommu_group")).is_err());
    assert_eq!(fs::read_dir(host.sys().join("class/iommu")).unwrap().count(), 0);
    host.unbind(NIC);
    host.set_override(NIC, Some("vfio-pci"));
    assert_eq!(write(of_driver(&host, "vfio-pci", "bind"), NIC), Err(Errno::INVAL));
}

#[test]
fn functions_are_where_they_belong() {
    let host = fakesys::host()
        .function("10000:e1:00.0")
        .numa(1)
        .reset_methods("")
        .bridge("0000:00:1c.0", 7)
        .function("0000:07:00.0")
        .class(0x01_0802)
        .driver("nvme")
        .function("0000:00:1f.2")
        .parent("0000:41:00.0")
        .ids(0x10de, 0x2236)
        .driver("nvidia")
        .mdev_type("nvidia-63", 2)
        .function("0000:41:00.1")
        .group_with("0000:41:00.0")
        .mount()
        .unwrap();
    let place = |address: &str| host.function_path(address);
    assert_eq!(place("10000:e1:00.0"), "sys/devices/pci10000:00/10000:00:1c.1/10000:e1:00.0");
    assert_eq!(place("0000:07:00.0"), "sys/devices/pci0000:00/0000:00:1c.0/0000:07:00.0");
    assert_eq!(place("0000:00:1f.2"), "sys/devices/pci0000:00/0000:00:1f.2");
    assert!(host.sys().join("bus/pci/devices/0000:00:1c.0/pci_bus/0000:07").exists());
    assert_eq!(read(at(&host, "10000:e1:00.0", "numa_node")).unwrap(), "1\n");
    assert!(!at(&host, "10000:e1:00.0", "reset").exists() && !at(&host, "10000:e1:00.0", "reset_method").exists());
    assert_eq!(read(at(&host, "0000:07:00.0", "class")).unwrap(), "0x010802\n");
    assert_eq!(host.group_of_function("0000:41:00.1"), host.group_of_function("0000:41:00.0"));

    // A parent is a function too: its types come and go with its driver, and unbinding waits for those who have its devices open.
    let types = host.sys().join("class/mdev_bus/0000:41:00.0/mdev_supported_types");
    host.create_mdev("0000:41:00.0", "nvidia-63", uuid(A)).unwrap();
    let qemu = host.process(4242, "qemu", &["qemu"]).opens_group_of(uuid(A));
    let mut child = writer(&of_driver(&host, "nvidia", "unbind"), "0000:41:00.0");
    host.wait_unbind_begun("0000:41:00.0");
    assert_eq!(host.mdevs().len(), 1);
    qemu.vanish();
    assert!(child.wait().unwrap().success());
    assert!(host.mdevs().is_empty() && !types.exists());
    let socket = host.uevents().unwrap();
    probe(&host, "0000:41:00.0").unwrap();
    assert_eq!(read(types.join("nvidia-63/available_instances")).unwrap(), "2\n");
    assert_eq!(short(&socket), ["bind 0000:41:00.0", "change 0000:41:00.0"]);

    host.unplug("0000:07:00.0");
    assert!(!host.path().join("sys/devices/pci0000:00/0000:00:1c.0/0000:07:00.0").exists());
    assert!(fs::symlink_metadata(of_driver(&host, "nvme", "0000:07:00.0")).is_err());
    assert_eq!(short(&socket), ["unbind 0000:07:00.0", "remove 0000:07:00.0"]);
    host.plug(fakesys::host().function("0000:07:00.0").driver("nvme"));
    assert_eq!(short(&socket), ["add 0000:07:00.0", "bind 0000:07:00.0"]);
    assert!(at(&host, "0000:07:00.0", "driver/bind").exists());
    host.unplug("0000:41:00.0");
    host.plug(fakesys::host().parent("0000:41:00.0").driver("nvidia").mdev_type("nvidia-64", 1));
    assert_eq!(
        fs::read_dir(&types).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(),
        ["nvidia-64"]
    );
}
