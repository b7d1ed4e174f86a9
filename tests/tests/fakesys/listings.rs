//! What a real 6.12 shows of an igb and its virtual functions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mdevd_tests::fakesys::{self, FakeHost};

use crate::common::*;

/// Lists a folder as the golden file does, `deep` or one level.
fn list(host: &FakeHost, dir: &str, deep: bool) -> Vec<String> {
    fn walk(at: &Path, name: &str, depth: usize, lines: &mut Vec<String>) {
        let meta = fs::symlink_metadata(at).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(at).unwrap().display()));
        } else if meta.is_dir() {
            lines.push(format!("{name}/"));
            for entry in fs::read_dir(at).unwrap().filter(|_| depth > 0) {
                let entry = entry.unwrap().file_name().into_string().unwrap();
                walk(&at.join(&entry), &format!("{name}/{entry}"), depth - 1, lines);
            }
        } else {
            let text = if mode & 0o444 == 0 { String::new() } else { fs::read_to_string(at).unwrap() };
            let text = text.trim_end().replace('\n', " | ");
            lines.push(format!("{name} [{mode:03o}] = {text}").trim_end().to_owned());
        }
    }
    let mut lines = Vec::new();
    let start = fs::canonicalize(host.path().join(&dir[1..])).unwrap();
    walk(&start, dir, if deep { 9 } else { 1 }, &mut lines);
    lines.sort();
    lines
}

#[track_caller]
fn same(title: &str, host: &FakeHost, dir: &str, deep: bool) {
    let text = include_str!("../../golden/pci-sysfs.txt");
    let parts: BTreeMap<_, _> = text.split("\n## ").skip(1).map(|part| part.split_once('\n').unwrap()).collect();
    let mut want: Vec<_> = parts[title].lines().filter(|line| !line.is_empty()).collect();
    want.sort_unstable();
    assert_eq!(want.join("\n"), list(host, dir, deep).join("\n"), "{title}");
}

#[test]
fn the_listings_are_the_kernels() {
    // The groups are numbered as on the machine that was listed.
    let mut host = fakesys::host().bridge("0000:00:05.0", 1).bridge("0000:00:06.0", 2).bridge("0000:00:07.0", 3);
    for n in 0..9 {
        host = host.function(&format!("0000:00:{:02x}.0", 0x10 + n));
    }
    let host = with_igb(host).function("0000:02:00.0").mount().unwrap();
    same("igb PF", &host, "/sys/bus/pci/devices/0000:01:00.0", false);
    write(at(&host, PF, "sriov_numvfs"), "2").unwrap();
    same("igb PF with 2 VFs", &host, "/sys/bus/pci/devices/0000:01:00.0", false);
    same("igb VF", &host, "/sys/bus/pci/devices/0000:01:10.0", false);
    to_vfio(&host, VFS[0]);
    same("vfio-dev", &host, "/sys/bus/pci/devices/0000:01:10.0/vfio-dev", true);
    same("vfio-pci", &host, "/sys/bus/pci/devices/0000:01:10.0/driver", true);
    same("group", &host, "/sys/kernel/iommu_groups/15", true);
}
