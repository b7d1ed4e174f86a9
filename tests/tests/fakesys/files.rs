//! `/proc`, and the ordinary files below `/run` and `/etc`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mdevd_tests::fakesys::{self, Errno};

use crate::common::*;

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
    let stat = |proc: &Path| read(proc.join(format!("{}/stat", std::process::id()))).unwrap();
    let start = |stat: String| stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().to_owned();
    assert_eq!(start(stat(&other.proc())), start(stat(Path::new("/proc"))));
    let parent = std::os::unix::process::parent_id().to_string();
    assert!(!fs::read_dir(other.proc()).unwrap().any(|entry| *entry.unwrap().file_name() == *parent));
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
