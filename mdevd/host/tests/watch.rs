//! Folders are watched, also those that come later, go, and come again.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mdevd_host::watch::Watch;

fn watch(folders: &[&Path]) -> Receiver<PathBuf> {
    let watch = Watch::new(folders.iter().map(|path| path.to_path_buf())).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || watch.read_all(|path| drop(tell.send(path.to_owned()))));
    told
}

fn next(told: &Receiver<PathBuf>) -> PathBuf {
    told.recv_timeout(Duration::from_secs(20)).unwrap()
}

/// Waits until the folder is reported for this file; earlier reports may still be on their way.
fn until_file_is_seen(told: &Receiver<PathBuf>, folder: &Path) {
    while told.try_recv().is_ok() {}
    fs::write(folder.join("x"), "x").unwrap();
    assert_eq!(next(told), folder);
}

#[test]
fn a_file_that_comes_goes_or_is_written_is_reported_and_a_temporary_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::create_dir(&a).unwrap();
    fs::create_dir(&b).unwrap();
    let told = watch(&[&a, &b]);
    fs::write(a.join(".x.tmp"), "x").unwrap();
    fs::remove_file(a.join(".x.tmp")).unwrap();
    fs::write(b.join("x"), "x").unwrap();
    assert_eq!(next(&told), b, "what is hidden in a was not reported before");
    fs::write(a.join(".y"), "y").unwrap();
    fs::rename(a.join(".y"), a.join("y")).unwrap();
    // The file in b came and was then written, which may be told in two, the second beside that for a.
    while next(&told) != a {}
    fs::remove_file(a.join("y")).unwrap();
    while next(&told) != a {}
}

#[test]
fn a_folder_that_does_not_exist_is_seen_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("libvirt/qemu");
    let told = watch(&[&folder]);
    fs::create_dir(dir.path().join("unrelated")).unwrap();
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(next(&told), folder);
    until_file_is_seen(&told, &folder);
}

#[test]
fn a_folder_that_goes_is_seen_when_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("libvirt/qemu");
    fs::create_dir_all(&folder).unwrap();
    let told = watch(&[&folder]);
    for _ in 0..20 {
        fs::remove_dir_all(dir.path().join("libvirt")).unwrap();
        assert_eq!(next(&told), folder);
        fs::create_dir_all(&folder).unwrap();
        // Its going and its coming may be told in one.
        fs::write(folder.join("a.xml"), "x").unwrap();
        assert_eq!(next(&told), folder);
        while told.recv_timeout(Duration::from_millis(1)).is_ok() {}
        until_file_is_seen(&told, &folder);
    }
    fs::rename(dir.path().join("libvirt"), dir.path().join("old")).unwrap();
    fs::create_dir_all(&folder).unwrap();
}

#[test]
fn a_file_in_the_place_of_a_folder_is_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("libvirt"), "").unwrap();
    let folder = dir.path().join("libvirt/qemu");
    let told = watch(&[&folder]);
    fs::remove_file(dir.path().join("libvirt")).unwrap();
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(next(&told), folder);
}
