//! A card whose virtual functions take vGPU types.

use std::collections::BTreeSet;

use mdevd_tests::fakesys::{self, Builder, Errno, FakeHost};

use crate::common::*;

const CARD: &str = "0000:41:00.0";
const HEADER: &str = "ID    : vGPU Name\n";

fn card() -> Builder {
    fakesys::host()
        .vgpu_card(CARD, 32)
        .framebuffer(48)
        .vgpu_type(1145, "NVIDIA L40S-1B", 1)
        .vgpu_type(1148, "NVIDIA L40S-2Q", 2)
        .vgpu_type(1152, "NVIDIA L40S-8Q", 8)
        .vgpu_type(1162, "NVIDIA L40S-8A", 8)
        .vgpu_type(1156, "NVIDIA L40S-48Q", 48)
}

fn set(host: &FakeHost, vf: &str, text: &str) -> Result<usize, Errno> {
    write(at(host, vf, "nvidia/current_vgpu_type"), text)
}

fn creatable(host: &FakeHost, vf: &str) -> Vec<u32> {
    let text = read(at(host, vf, "nvidia/creatable_vgpu_types")).unwrap();
    let rows = text.strip_prefix(HEADER).unwrap().lines();
    rows.map(|row| row.split_once(" : ").unwrap().0.trim_end().parse().unwrap()).collect()
}

#[test]
fn every_function_of_the_card_has_its_folder() {
    let host = card().mount().unwrap();
    let vfs = host.view().vfs(CARD);
    assert_eq!((vfs.len(), vfs[0].as_str(), vfs[31].as_str()), (32, "0000:41:00.4", "0000:41:04.3"));
    let groups: BTreeSet<_> = vfs.iter().map(|vf| host.group_of_function(vf).unwrap()).collect();
    assert_eq!(groups.len(), 32);
    let vf = &vfs[3];
    assert_eq!(host.view().driver_of(vf).unwrap(), "nvidia");
    let want = ["creatable_vgpu_types", "current_vgpu_type", "placement_id", "vgpu_params"];
    assert_eq!(host.view().names(&format!("{}/nvidia", host.function_path(vf))), want);
    assert!(!at(&host, CARD, "nvidia").exists());
    assert_eq!(
        read(at(&host, vf, "nvidia/creatable_vgpu_types")).unwrap(),
        format!(
            "{HEADER}1145  : NVIDIA L40S-1B\n1148  : NVIDIA L40S-2Q\n1152  : NVIDIA L40S-8Q\n1162  : NVIDIA L40S-8A\n1156  : NVIDIA L40S-48Q\n"
        )
    );
    assert_eq!(read(at(&host, vf, "nvidia/current_vgpu_type")).unwrap(), "0\n");
    assert_eq!(read(host.sys().join("bus/pci/devices/0000:41:00.4/class")).unwrap(), "0x030200\n");
}

#[test]
fn types_are_taken_and_refused_as_the_driver_does() {
    let host = card().mount().unwrap();
    let vfs = host.view().vfs(CARD);
    let vf = &vfs[0];
    // Nothing to take away, no number, no such type.
    assert_eq!(set(&host, vf, "0"), Err(Errno::PERM));
    for text in ["x", "", " 1", "0x10", "1152 ", "99999999999999999999"] {
        let want = if text.is_empty() { Ok(0) } else { Err(Errno::INVAL) };
        assert_eq!(set(&host, vf, text), want, "{text:?}");
    }
    for text in ["115", "11520", "-1"] {
        assert_eq!(set(&host, vf, text), Err(Errno::IO), "{text:?}");
    }
    assert_eq!(write(at(&host, vf, "nvidia/vgpu_params"), "frame_rate_limiter=0"), Err(Errno::PERM));
    assert_eq!(set(&host, vf, "1152\n"), Ok(5));
    assert_eq!((host.view().vgpu_type(vf), host.view().vgpu_type(&vfs[1])), (Some(1152), None));
    assert_eq!(read(at(&host, vf, "nvidia/current_vgpu_type")).unwrap(), "1152\n");
    // It has one, and its list is short until that is gone; one of the same size is as little possible as another.
    assert_eq!(creatable(&host, vf), [0; 0]);
    assert_eq!((set(&host, vf, "1152"), set(&host, vf, "1162")), (Err(Errno::PERM), Err(Errno::PERM)));
    assert_eq!(write(at(&host, vf, "nvidia/vgpu_params"), "frame_rate_limiter=0"), Ok(20));
    assert_eq!(read(at(&host, vf, "nvidia/vgpu_params")).unwrap(), "frame_rate_limiter=0\n");
    // Its siblings list what has the same size, for as long as there is room.
    assert_eq!(creatable(&host, &vfs[1]), [1152, 1162]);
    assert_eq!(set(&host, &vfs[1], "1145"), Err(Errno::IO));
    for (n, vf) in vfs[1..6].iter().enumerate() {
        assert_eq!(set(&host, vf, if n % 2 == 0 { "1152" } else { "1162" }), Ok(4));
    }
    assert_eq!(creatable(&host, &vfs[6]), [0; 0]);
    assert_eq!(set(&host, &vfs[6], "1152"), Err(Errno::IO));
    assert_eq!(set(&host, vf, "0"), Ok(1));
    assert_eq!(read(at(&host, vf, "nvidia/vgpu_params")).unwrap(), "");
    assert_eq!((creatable(&host, vf), creatable(&host, &vfs[31])), (vec![1152, 1162], vec![1152, 1162]));
    for vf in &vfs[1..6] {
        host.set_vgpu_type(vf, 0).unwrap();
    }
    assert_eq!(creatable(&host, vf).len(), 5);

    // All of the card at once, one per function.
    for vf in &vfs {
        assert_eq!(set(&host, vf, "1145"), Ok(4));
    }
    assert!(vfs.iter().all(|vf| host.view().vgpu_type(vf) == Some(1145)));

    let host = card().mixed().lists_current().gpu_instance_id("4294967295").mount().unwrap();
    assert_eq!(
        (set(&host, &vfs[0], "1152"), set(&host, &vfs[1], "1148"), set(&host, &vfs[2], "1145")),
        (Ok(4), Ok(4), Ok(4))
    );
    assert_eq!((creatable(&host, &vfs[0]), creatable(&host, &vfs[9])), (vec![1152], vec![1145, 1148, 1152, 1162]));
    assert_eq!(set(&host, &vfs[3], "1156"), Err(Errno::IO));
    let instance = at(&host, &vfs[3], "nvidia/gpu_instance_id");
    assert_eq!(read(&instance).unwrap(), "4294967295\n");
    write(&instance, "3").unwrap();
    assert_eq!(read(&instance).unwrap(), "3\n");
}

#[test]
fn a_type_stays_while_it_is_held_and_goes_with_the_driver() {
    let host = card().mount().unwrap();
    let vfs = host.view().vfs(CARD);
    let vf = &vfs[0];
    host.set_vgpu_type(vf, 1152).unwrap();
    // It is opened as it is: on its own driver, which offers it.
    let group = host.group_of_function(vf).unwrap();
    let socket = host.uevents().unwrap();
    let qemu = host.process(4242, "qemu", &["qemu"]).opens_function(vf);
    assert!(host.sys().join(format!("class/vfio/{group}")).exists());
    assert_eq!(set(&host, vf, "0"), Err(Errno::PERM));
    host.vgpu_lingers(vf, true);
    qemu.vanish();
    assert_eq!(set(&host, vf, "0"), Err(Errno::BUSY));
    host.vgpu_lingers(vf, false);
    assert_eq!(set(&host, vf, "0"), Ok(1));
    assert!(received(&socket).is_empty());

    // `vfio-pci` does not take it, and the function has lost its driver then.
    host.set_vgpu_type(vf, 1152).unwrap();
    write(at(&host, vf, "driver_override"), "vfio-pci").unwrap();
    write(at(&host, vf, "driver/unbind"), vf).unwrap();
    assert!(!at(&host, vf, "nvidia").exists());
    assert_eq!(write(of_driver(&host, "vfio-pci", "bind"), vf), Err(Errno::INVAL));
    probe(&host, vf).unwrap();
    assert_eq!(host.view().driver_of(vf), None);
    write(at(&host, vf, "driver_override"), "\n").unwrap();
    probe(&host, vf).unwrap();
    assert_eq!(read(at(&host, vf, "nvidia/current_vgpu_type")).unwrap(), "0\n");

    // Functions that come before the driver have no folder yet.
    let host = card().driver_late("nvidia").mount().unwrap();
    assert_eq!(host.view().vfs(CARD).len(), 32);
    assert!(!at(&host, vf, "nvidia").exists());
    host.load_driver("nvidia");
    assert_eq!(creatable(&host, vf).len(), 5);
    host.unplug(CARD);
    assert!(!at(&host, vf, "").exists());
}
