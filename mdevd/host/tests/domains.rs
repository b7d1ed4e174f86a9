//! Which domains run, from libvirt's status files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;

use mdevd_host::domains::domains;
use mdevd_host::process::Alive;
use mdevd_host::roots::Roots;

fn host() -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { run: dir.path().join("run"), proc: dir.path().join("proc"), ..Roots::default() };
    (dir, roots)
}

fn status(roots: &Roots, name: &str, pid: &str) {
    fs::create_dir_all(roots.libvirt_status_dir()).unwrap();
    let uuid = "0f154289-728c-42df-9e56-9b6c1be66e73";
    let text = format!(
        "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE\n-->\n<domstatus state='running' reason='booted'{pid}>\n\
         <taint flag='x'/>\n<domain type='qemu' id='1'>\n<name>{name}</name>\n<uuid>{uuid}</uuid>\n<devices/></domain>\n</domstatus>\n"
    );
    fs::write(roots.libvirt_status_dir().join(format!("{name}.xml")), text).unwrap();
}

fn process(roots: &Roots, pid: u32) {
    let dir = roots.process_dir(pid);
    fs::create_dir_all(&dir).unwrap();
    let line = format!("{pid} (qemu-system-x86) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 4711 2293760 210 1\n");
    fs::write(dir.join("stat"), line).unwrap();
}

#[test]
fn no_libvirt_no_domains() {
    let (_dir, roots) = host();
    assert!(domains(&roots).unwrap().is_empty());
}

#[test]
fn each_status_file_is_a_domain_alive_or_not() {
    let (_dir, roots) = host();
    process(&roots, 77);
    status(&roots, "a", " pid='77'");
    status(&roots, "b with spaces", " pid='78'");
    status(&roots, "c", "");
    for other in ["a.pid", "a.xml.new", "driver.pid"] {
        fs::write(roots.libvirt_status_dir().join(other), "77").unwrap();
    }
    fs::create_dir(roots.libvirt_status_dir().join("autostarted")).unwrap();
    let found = domains(&roots).unwrap();
    let seen: Vec<_> = found.iter().map(|view| (view.status.domain.name.as_str(), view.status.pid)).collect();
    assert_eq!(seen, [("a", Some(77)), ("b with spaces", Some(78)), ("c", None)]);
    assert_eq!((&found[0].alive, &found[1].alive), (&Alive::Known(true), &Alive::Known(false)));
    assert!(
        matches!(&found[2].alive, Alive::Unknown(why) if why.ends_with("c.xml names no process")),
        "{:?}",
        found[2].alive
    );
}

#[test]
fn one_file_that_makes_no_sense_makes_the_whole_unknown() {
    let (_dir, roots) = host();
    process(&roots, 77);
    for (broken, part) in [(&b""[..], "refused"), (b"<domstatus", "refused"), (b"\xff\xfe", "EILSEQ")] {
        status(&roots, "a", " pid='77'");
        fs::write(roots.libvirt_status_dir().join("b.xml"), broken).unwrap();
        let why = domains(&roots).unwrap_err();
        assert!(why.contains("b.xml") && why.contains(part), "{why}");
    }
    fs::remove_file(roots.libvirt_status_dir().join("b.xml")).unwrap();
    assert_eq!(domains(&roots).unwrap().len(), 1);
    fs::create_dir(roots.libvirt_status_dir().join("b.xml")).unwrap();
    assert!(domains(&roots).unwrap_err().contains("EISDIR"));
}

#[test]
fn a_file_that_vanishes_is_a_domain_that_stopped() {
    let (_dir, roots) = host();
    fs::create_dir_all(roots.libvirt_status_dir()).unwrap();
    std::os::unix::fs::symlink("gone", roots.libvirt_status_dir().join("a.xml")).unwrap();
    assert!(domains(&roots).unwrap().is_empty());
}
