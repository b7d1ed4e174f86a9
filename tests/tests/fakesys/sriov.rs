//! Virtual functions: how they are made, found, bound and taken away.

use std::fs;
use std::path::Path;

use mdevd_tests::fakesys::{self, Builder, Errno, FakeHost, Op, Point, Then};

use crate::common::*;

fn num_vfs(host: &FakeHost, text: &str) -> Result<usize, Errno> {
    write(at(host, PF, "sriov_numvfs"), text)
}

#[test]
fn each_count_is_answered_as_the_kernel_does() {
    let host = igb().mount().unwrap();
    for (text, want) in [
        ("8", Err(Errno::RANGE)),
        ("65536", Err(Errno::INVAL)),
        ("x", Err(Errno::INVAL)),
        (" 2", Err(Errno::INVAL)),
        ("-1", Err(Errno::INVAL)),
        ("0", Ok(1)),
        ("2\n", Ok(2)),
        ("0x2", Ok(3)),
        ("3", Err(Errno::BUSY)),
        ("8", Err(Errno::RANGE)),
        ("0", Ok(1)),
        ("7", Ok(1)),
        ("0", Ok(1)),
    ] {
        let want = want.map(|_| text.len());
        assert_eq!(num_vfs(&host, text), want, "{text:?}");
    }
    assert_eq!(read(at(&host, PF, "sriov_totalvfs")).unwrap(), "7\n");
    assert_eq!(write(at(&host, PF, "sriov_totalvfs"), "9"), Err(Errno::ACCESS));
    let auto = at(&host, PF, "sriov_drivers_autoprobe");
    for (text, want) in
        [("2", Err(Errno::INVAL)), ("x", Err(Errno::INVAL)), ("n", Ok(1)), ("on\n", Ok(3)), ("0", Ok(1))]
    {
        assert_eq!(write(&auto, text), want, "{text:?}");
    }
    assert_eq!(read(&auto).unwrap(), "0\n");

    // Only its own driver knows how, and that one lowered the total.
    host.set_num_vfs(PF, 2).unwrap();
    write(at(&host, PF, "driver/unbind"), PF).unwrap();
    assert!(host.view().vfs(PF).is_empty());
    assert_eq!(read(at(&host, PF, "sriov_totalvfs")).unwrap(), "8\n");
    assert_eq!((num_vfs(&host, "2"), num_vfs(&host, "8")), (Err(Errno::NOENT), Err(Errno::NOENT)));
    assert_eq!((num_vfs(&host, "0"), num_vfs(&host, "9")), (Ok(1), Err(Errno::RANGE)));
    to_vfio(&host, PF);
    assert_eq!(num_vfs(&host, "2"), Err(Errno::NOENT));
}

#[test]
fn virtual_functions_come_and_go_in_the_kernels_order() {
    let host = igb().mount().unwrap();
    let socket = host.uevents().unwrap();
    let (first, second) = (VFS[0], VFS[1]);
    num_vfs(&host, "2").unwrap();
    let made = |n: usize| {
        let (vf, net) = (VFS[n], format!("enp1s0v{n}"));
        [format!("add {vf}"), format!("change {vf}"), format!("add {net}"), format!("bind {vf}")]
    };
    let want: Vec<_> = made(0).into_iter().chain(made(1)).chain([format!("change {PF}")]).collect();
    assert_eq!(short(&socket), want);
    assert_eq!(host.view().vfs(PF), VFS);
    for (n, vf) in VFS.iter().enumerate() {
        assert_eq!(fs::read_link(at(&host, PF, &format!("virtfn{n}"))).unwrap(), Path::new(&format!("../{vf}")));
        assert_eq!(fs::read_link(at(&host, vf, "physfn")).unwrap(), Path::new("../0000:01:00.0"));
        assert_eq!(host.view().driver_of(vf).unwrap(), "igbvf");
        assert_eq!(read(host.sys().join(format!("class/net/enp1s0v{n}/address"))).unwrap().len(), 18);
    }
    assert_ne!(host.group_of_function(first), host.group_of_function(second));
    let group = host.group_of_function(first).unwrap();
    num_vfs(&host, "0").unwrap();
    let gone = |n: usize| [format!("remove enp1s0v{n}"), format!("unbind {}", VFS[n]), format!("remove {}", VFS[n])];
    assert_eq!(short(&socket), gone(0).into_iter().chain(gone(1)).collect::<Vec<_>>());
    assert!(!at(&host, first, "").exists() && fs::symlink_metadata(at(&host, PF, "virtfn0")).is_err());
    assert!(!host.sys().join(format!("kernel/iommu_groups/{group}")).exists());
    assert_eq!(fs::read_dir(host.sys().join("class/net")).unwrap().count(), 2);

    // Without drivers. Neither `bind` nor `drivers_probe` gets round that, an override does.
    write(at(&host, PF, "sriov_drivers_autoprobe"), "0").unwrap();
    num_vfs(&host, "1").unwrap();
    assert_eq!(short(&socket), [format!("add {first}"), format!("change {first}"), format!("change {PF}")]);
    assert_eq!(probe(&host, first), Ok(12));
    assert_eq!(write(of_driver(&host, "igbvf", "bind"), first), Err(Errno::NODEV));
    assert_eq!(host.view().driver_of(first), None);
    write(at(&host, first, "driver_override"), "igbvf").unwrap();
    probe(&host, first).unwrap();
    assert_eq!(host.view().driver_of(first).unwrap(), "igbvf");
    // An override goes with its function.
    num_vfs(&host, "0").unwrap();
    num_vfs(&host, "1").unwrap();
    assert_eq!(read(at(&host, first, "driver_override")).unwrap(), "(null)\n");
}

#[test]
fn a_count_that_waits_for_a_holder_stops_only_what_the_kernel_stops() {
    let host = igb().mount().unwrap();
    num_vfs(&host, "2").unwrap();
    to_vfio(&host, VFS[0]);
    let qemu = host.process(4242, "qemu", &["qemu"]).opens_function(VFS[0]);
    let mut zero = writer(&at(&host, PF, "sriov_numvfs"), "0");
    host.wait_unbind_begun(VFS[0]);
    kill(&zero);
    wait_stuck(&zero);
    let asked = host.on(Point::before(Op::Read, "sys/**/sriov_numvfs"), |_| Then::Proceed);
    let mut count = reader(&at(&host, PF, "sriov_numvfs"));
    asked.wait_hits(1);
    let asked = host.on(Point::in_write("sys/**/sriov_numvfs"), |_| Then::Proceed);
    let mut again = second_writer(&at(&host, PF, "sriov_numvfs"), "1");
    asked.wait_hits(1);
    // Half removed: it is still on the bus, with its group and files, and without its links and its driver's.
    assert!(at(&host, VFS[0], "sriov_vf_msix_count").exists() && at(&host, VFS[0], "iommu_group").exists());
    for gone in ["physfn", "driver", "vfio-dev"] {
        assert!(fs::symlink_metadata(at(&host, VFS[0], gone)).is_err(), "{gone}");
    }
    assert!(fs::symlink_metadata(at(&host, PF, "virtfn0")).is_err());
    // The other one waits its turn whole.
    assert!(at(&host, PF, "virtfn1").exists() && at(&host, VFS[1], "physfn").exists());
    assert_eq!(host.view().driver_of(VFS[1]).unwrap(), "igbvf");
    for (file, text) in [("sriov_totalvfs", "7\n"), ("sriov_drivers_autoprobe", "1\n"), ("driver_override", "(null)\n")]
    {
        assert_eq!(read(at(&host, PF, file)).unwrap(), text);
    }
    assert_eq!(read(at(&host, VFS[0], "driver_override")).unwrap(), "vfio-pci\n");
    to_vfio(&host, NIC);
    assert!(again.try_wait().unwrap().is_none() && count.try_wait().unwrap().is_none());
    qemu.vanish();
    zero.wait().unwrap();
    // Whoever waited comes next, in whatever order.
    assert!(again.wait().unwrap().success());
    let said = String::from_utf8(count.wait_with_output().unwrap().stdout).unwrap();
    assert!(["0\n", "1\n"].contains(&said.as_str()), "{said}");
    assert_eq!(host.view().vfs(PF), [VFS[0]]);
    assert_eq!(host.view().num_vfs(PF), Some(1));

    // From outside it is taken away under the holder, and with the whole card.
    to_vfio(&host, VFS[0]);
    let _qemu = host.process(4243, "qemu", &["qemu"]).opens_function(VFS[0]);
    host.set_num_vfs(PF, 0).unwrap();
    host.set_num_vfs(PF, 2).unwrap();
    assert_eq!(host.set_num_vfs(PF, 3), Err(Errno::BUSY));
    let socket = host.uevents().unwrap();
    host.unplug(PF);
    let names = short(&socket);
    assert_eq!(names.iter().filter(|name| name.starts_with("remove 0000:")).count(), 3, "{names:?}");
    assert_eq!(names.last().unwrap(), &format!("remove {PF}"));
    assert!(!at(&host, PF, "").exists() && !at(&host, VFS[1], "").exists());
    assert_eq!(host.view().functions().iter().filter(|address| address.starts_with("0000:01:")).count(), 0);
}

#[test]
fn fewer_come_and_late_ones_and_late_drivers_and_interfaces() {
    let host = igb().driver_late("igbvf").mount().unwrap();
    let view = host.view();
    host.at_most_vfs(PF, 1);
    assert_eq!(num_vfs(&host, "2"), Ok(1));
    assert_eq!((read(at(&host, PF, "sriov_numvfs")).unwrap().as_str(), view.vfs(PF).len()), ("1\n", 1));
    num_vfs(&host, "0").unwrap();
    host.at_most_vfs(PF, 7);

    host.vfs_late(PF);
    let socket = host.uevents().unwrap();
    assert_eq!(num_vfs(&host, "2"), Ok(1));
    assert_eq!(read(at(&host, PF, "sriov_numvfs")).unwrap(), "2\n");
    assert!(!at(&host, PF, "virtfn0").exists() && short(&socket).is_empty());
    host.vfs_appear(PF);
    assert!(at(&host, PF, "virtfn1/physfn").exists());
    assert_eq!(view.driver_of(VFS[0]), None);
    host.netdevs_late();
    host.load_driver("igbvf");
    assert_eq!(view.driver_of(VFS[0]).unwrap(), "igbvf");
    assert_eq!(view.netdev_of(VFS[0]), None);
    received(&socket);
    host.netdevs_appear();
    assert_eq!(short(&socket), ["add enp1s0v0", "add enp1s0v1"]);
    assert_eq!(view.netdev_of(VFS[0]).unwrap(), "enp1s0v0");
    host.rename_netdev("enp1s0v0", "guest0");
    write(at(&host, VFS[0], "driver/unbind"), VFS[0]).unwrap();
    probe(&host, VFS[0]).unwrap();
    assert_eq!(view.netdev_of(VFS[0]).unwrap(), "enp1s0v0");

    // A point in the change, from which the host can be looked at.
    let seen = view.clone();
    let point = host.on(Point::after_write("sys/**/sriov_numvfs"), move |event| {
        assert_eq!((event.value.as_str(), seen.vfs(PF).len()), ("0", 0));
        Then::Proceed
    });
    num_vfs(&host, "0").unwrap();
    point.wait_hits(1);
    assert_eq!(host.sys_writes().last().unwrap().1, "0");
    // Some are there from the start, with numbers that go on on the next bus.
    let host = with_many().mount().unwrap();
    assert_eq!(host.view().vfs("0000:01:00.0").last().unwrap(), "0000:02:00.1");
    assert!(host.function_path("0000:02:00.1").starts_with("sys/devices/pci0000:00/0000:00:00.1/"));
}

fn with_many() -> Builder {
    fakesys::host().pf(PF, 130).driver("mlx5_core").offset_stride(128, 1).vfs(130)
}
