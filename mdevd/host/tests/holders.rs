//! Who has a device open: on a procfs of plain folders, and on the real one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use mdevd_core::holders::{Holder, Holders};
use mdevd_core::names::{DeviceKey, IommuGroupId, MdevUuid};
use mdevd_host::holders::holders;
use mdevd_host::roots::Roots;

const A: &str = "11111111-2222-3333-4444-555555555555";
const B: &str = "22222222-2222-3333-4444-555555555555";

struct Host {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Host {
    /// A host with one process that has nothing of ours open.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc"), ..Roots::default() };
        let host = Self { dir, roots };
        host.process(1, "init", &["/dev/null", "socket:[123]", "/dev/vfio/vfio"]);
        // A kernel thread, and what else procfs has.
        host.process(2, "kthreadd", &[]);
        fs::create_dir_all(host.roots.proc.join("sys")).unwrap();
        host
    }

    fn process(&self, pid: u32, command: &str, files: &[&str]) {
        let dir = self.roots.proc.join(pid.to_string());
        fs::create_dir_all(dir.join("fd")).unwrap();
        fs::create_dir_all(dir.join("fdinfo")).unwrap();
        fs::write(dir.join("comm"), format!("{command}\n")).unwrap();
        for (fd, target) in files.iter().enumerate() {
            symlink(target, dir.join("fd").join(fd.to_string())).unwrap();
        }
    }

    fn mdev_dir(&self, uuid: &str) -> PathBuf {
        let dir = self.roots.mdev_dir(&uuid.parse().unwrap());
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A PCI function that sysfs has, in this group.
    fn function(&self, address: &str, group: &str) -> PathBuf {
        let dir = self.roots.pci_dir(&address.parse().unwrap());
        fs::create_dir_all(&dir).unwrap();
        symlink(format!("../../../../kernel/iommu_groups/{group}"), dir.join("iommu_group")).unwrap();
        dir
    }

    fn of(&self, device: &str, group: Option<u32>) -> Holders {
        let key = key(device);
        holders(&self.roots, &[(key, group.map(IommuGroupId))]).remove(&key).unwrap()
    }
}

fn key(device: &str) -> DeviceKey {
    match device.parse::<MdevUuid>() {
        Ok(uuid) => DeviceKey::Mdev(uuid),
        Err(_) => DeviceKey::Pci(device.parse().unwrap()),
    }
}

fn known(list: &[(u32, &str)]) -> Holders {
    Holders::Known(list.iter().map(|(pid, command)| Holder { pid: *pid, command: (*command).into() }).collect())
}

#[test]
fn a_group_that_is_open_names_its_process() {
    let host = Host::new();
    assert!(host.of(A, Some(6_000_006)).none());
    host.process(
        77,
        "qemu-system-x86",
        &["/dev/kvm", "/dev/vfio/vfio", "/dev/vfio/6000006", "anon_inode:[vfio-device]"],
    );
    assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "qemu-system-x86")]));
    // The numbers are compared as a whole.
    for other in [6, 600_000, 60_000_066] {
        assert!(host.of(A, Some(other)).none());
    }
}

#[test]
fn one_pass_tells_all_devices_apart() {
    let host = Host::new();
    host.process(77, "qemu-a", &["/dev/vfio/6000006", "/dev/vfio/6000006"]);
    host.process(78, "qemu-b", &["/dev/vfio/6000006 (deleted)", "/dev/vfio/6000007"]);
    let found =
        holders(&host.roots, &[(key(A), Some(IommuGroupId(6_000_006))), (key(B), Some(IommuGroupId(6_000_007)))]);
    assert_eq!(found[&key(A)], known(&[(77, "qemu-a"), (78, "qemu-b")]));
    assert_eq!(found[&key(B)], known(&[(78, "qemu-b")]));
    assert_eq!(found.len(), 2);
}

#[test]
fn the_group_that_sysfs_says_counts_too_and_so_does_the_devices_own_node() {
    let host = Host::new();
    let dir = host.mdev_dir(A);
    symlink("../../../kernel/iommu_groups/6000009", dir.join("iommu_group")).unwrap();
    fs::create_dir_all(dir.join("vfio-dev/vfio6000003")).unwrap();
    host.process(77, "by-group", &["/dev/vfio/6000009"]);
    host.process(78, "by-node", &["/dev/vfio/devices/vfio6000003"]);
    host.process(79, "other", &["/dev/vfio/devices/vfio6000004"]);
    // In a container, /dev may be found elsewhere.
    host.process(80, "container", &["/var/lib/c/rootfs/dev/vfio/noiommu-6000009"]);
    assert_eq!(host.of(A, None), known(&[(77, "by-group"), (78, "by-node"), (80, "container")]));
}

#[test]
fn functions_of_one_group_are_held_together() {
    let host = Host::new();
    let (gpu, sound, other) = ("0000:41:00.0", "0000:41:00.1", "0000:42:00.0");
    let dir = host.function(gpu, "6000021");
    host.function(sound, "6000021");
    host.function(other, "6000022");
    host.process(77, "qemu-a", &["/dev/vfio/6000021", "anon_inode:[vfio-device]"]);
    let found = holders(&host.roots, &[(key(gpu), None), (key(sound), None), (key(other), None), (key(A), None)]);
    assert_eq!((&found[&key(gpu)], &found[&key(sound)]), (&known(&[(77, "qemu-a")]), &known(&[(77, "qemu-a")])));
    assert!(found[&key(other)].none() && found[&key(A)].none());
    // A node of its own is nobody else's.
    fs::create_dir_all(dir.join("vfio-dev/vfio6000003")).unwrap();
    host.process(78, "qemu-b", &["/dev/vfio/devices/vfio6000003"]);
    assert_eq!(host.of(gpu, None), known(&[(77, "qemu-a"), (78, "qemu-b")]));
    assert_eq!(host.of(sound, None), known(&[(77, "qemu-a")]));
}

#[test]
fn a_function_without_a_group_is_found_by_what_the_kernel_says_of_the_open_file() {
    let host = Host::new();
    host.process(77, "odd", &["/dev/vfio/vfio", "anon_inode:[vfio-device]"]);
    assert!(matches!(host.of("0000:41:00.4", None), Holders::Unknown(_)));
    let info = host.roots.proc.join("77/fdinfo/1");
    fs::write(&info, "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:40/0000:40:01.1/0000:41:00.4\n").unwrap();
    assert_eq!(host.of("0000:41:00.4", None), known(&[(77, "odd")]));
    assert!(host.of("0000:40:01.1", None).none());
}

#[test]
fn a_plain_file_of_such_a_name_holds_nothing() {
    let host = Host::new();
    fs::create_dir(host.dir.path().join("vfio")).unwrap();
    let file = host.dir.path().join("vfio/6000006");
    fs::write(&file, "").unwrap();
    host.process(77, "user", &[file.to_str().unwrap()]);
    assert!(host.of(A, Some(6_000_006)).none());
}

#[test]
fn a_node_that_is_open_as_a_mere_place_holds_nothing() {
    let host = Host::new();
    host.process(77, "user", &["/dev/vfio/6000006"]);
    let info = |text: &str| fs::write(host.roots.proc.join("77/fdinfo/0"), text).unwrap();
    info("pos:\t0\nflags:\t012000000\nmnt_id:\t26\n");
    assert!(host.of(A, Some(6_000_006)).none());
    for other in ["pos:\t0\nflags:\t02000002\n", "flags:\tx\n", ""] {
        info(other);
        assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "user")]), "{other:?}");
    }
}

#[test]
fn another_device_of_such_a_name_holds_nothing() {
    let host = Host::new();
    // As who has mounts of his own can show any device under any name.
    fs::create_dir_all(host.dir.path().join("vfio/devices")).unwrap();
    for (node, class) in [("6000006", "vfio"), ("devices/vfio6000003", "vfio-dev")] {
        let file = host.dir.path().join("vfio").join(node);
        symlink("/dev/null", &file).unwrap();
        host.process(77, "user", &[file.to_str().unwrap()]);
        fs::create_dir_all(host.mdev_dir(A).join("vfio-dev/vfio6000003")).unwrap();
        assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "user")]), "sysfs does not say the node's number");
        let number = host.roots.sys.join("class").join(class).join(node.rsplit('/').next().unwrap()).join("dev");
        fs::create_dir_all(number.parent().unwrap()).unwrap();
        fs::write(&number, "511:0\n").unwrap();
        assert!(host.of(A, Some(6_000_006)).none());
        fs::write(&number, "1:3\n").unwrap();
        assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "user")]));
        fs::remove_dir_all(host.roots.proc.join("77")).unwrap();
    }
}

#[test]
fn a_process_whose_first_thread_has_ended_has_what_its_other_threads_have() {
    let host = Host::new();
    let stat = |state: char, threads: u32| {
        let text = format!("77 (qemu a) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 9 2293760 210\n");
        fs::write(host.roots.proc.join("77/stat"), text).unwrap();
    };
    // The kernel lists nothing for the first thread then.
    host.process(77, "qemu", &[]);
    stat('Z', 3);
    let threads = host.roots.proc.join("77/task");
    for thread in ["77", "78", "79"] {
        fs::create_dir_all(threads.join(thread).join("fd")).unwrap();
    }
    assert!(host.of(A, Some(6_000_006)).none());
    symlink("/dev/vfio/6000006", threads.join("79/fd/12")).unwrap();
    assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "qemu")]));
    // A thread that ends meanwhile is no reason for doubt; one that refuses is.
    fs::remove_dir(threads.join("78/fd")).unwrap();
    assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "qemu")]));
    fs::remove_dir(threads.join("77/fd")).unwrap();
    fs::write(threads.join("77/fd"), "").unwrap();
    assert!(matches!(host.of(A, Some(6_000_006)), Holders::Unknown(why) if why.contains("qemu (pid 77)")));
    // What has ended as a whole, or has not ended and no files, holds nothing.
    for (state, threads) in [('Z', 1), ('S', 3)] {
        stat(state, threads);
        assert!(host.of(A, Some(6_000_006)).none(), "{state} {threads}");
    }
}

#[test]
fn a_device_whose_group_is_closed_is_unknown_unless_the_kernel_says_which() {
    let host = Host::new();
    host.process(77, "odd", &["/dev/vfio/vfio", "anon_inode:[vfio-device]"]);
    match host.of(A, Some(6_000_006)) {
        Holders::Unknown(why) => assert!(why.starts_with("odd (pid 77) has a VFIO device open"), "{why}"),
        other => panic!("{other:?}"),
    }
    let info = host.roots.proc.join("77/fdinfo/1");
    fs::write(&info, format!("pos:\t0\nflags:\t02000002\nvfio-device-syspath: /sys/devices/virtual/mtty/mtty/{A}\n"))
        .unwrap();
    assert_eq!(host.of(A, Some(6_000_006)), known(&[(77, "odd")]));
    assert!(host.of(B, Some(6_000_007)).none());
}

#[test]
fn a_process_that_has_just_ended_is_no_reason_for_doubt() {
    let host = Host::new();
    fs::remove_dir_all(host.roots.proc.join("2/fd")).unwrap();
    assert!(host.of(A, Some(6_000_006)).none());
}

#[test]
fn what_cannot_be_read_is_unknown_for_every_device() {
    let host = Host::new();
    // A process whose fds are no folder stands for one that refuses, which root cannot be shown with plain folders.
    fs::remove_dir_all(host.roots.proc.join("2/fd")).unwrap();
    fs::write(host.roots.proc.join("2/fd"), "").unwrap();
    let unknown =
        Holders::Unknown("the open files of kthreadd (pid 2) cannot be read: ENOTDIR (Not a directory)".into());
    let found = holders(&host.roots, &[(key(A), None), (key(B), None)]);
    assert_eq!(found.into_values().collect::<Vec<_>>(), [unknown.clone(), unknown]);
}

#[test]
fn no_process_at_all_is_no_answer() {
    let host = Host::new();
    fs::remove_dir_all(&host.roots.proc).unwrap();
    assert!(matches!(host.of(A, None), Holders::Unknown(why) if why.contains("is procfs mounted there?")));
    fs::create_dir(&host.roots.proc).unwrap();
    assert!(matches!(host.of(A, None), Holders::Unknown(_)));
    // Others are hidden from a process that may not look at them: it sees itself, and so nobody who holds anything.
    host.process(77, "mdevd", &["/dev/null"]);
    assert!(matches!(host.of(A, None), Holders::Unknown(why) if why.contains("CAP_SYS_PTRACE")));
}

/// On the real procfs: root sees everyone's files and can tell; anyone else must not think that he can.
#[test]
fn only_who_can_read_every_process_knows_that_nobody_holds_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let exe = dir.path().join("exe");
    fs::copy(env!("CARGO_BIN_EXE_mdevd-host-writer"), &exe).unwrap();
    for path in [dir.path(), &exe] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let ask = |user: Option<u32>| {
        let mut command = Command::new(&exe);
        command.arg("holders").current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let refused = |answer: &str| {
        answer.starts_with("unknown (the open files of ")
            && answer.ends_with(" cannot be read: EACCES (Permission denied))\n")
    };
    // In a container root, too, may lack the capability for the first process, and then fails at the links.
    let readable =
        fs::read_dir("/proc/1/fd").is_ok_and(|mut files| files.all(|file| fs::read_link(file.unwrap().path()).is_ok()));
    let ours = ask(None);
    assert!(if readable { ours == "nobody\n" } else { refused(&ours) }, "{ours}");
    if rustix::process::geteuid().is_root() {
        let theirs = ask(Some(65534));
        assert!(refused(&theirs), "{theirs}");
    }
}
