//! State files: folders, the lock, claims and marks, also when what stands there is not ours.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use mdevd_host::files::{
    ClaimFiles, ensure_state_dirs, forget_released, instance_lock, take_released, write_atomically,
};
use mdevd_host::roots::Roots;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Claim {
    state: String,
}

const ID: Uuid = Uuid::from_u128(0x0f154289_728c_42df_9e56_9b6c1be66e73);
const OTHER: Uuid = Uuid::from_u128(0x1f154289_728c_42df_9e56_9b6c1be66e73);

fn claim(state: &str) -> Claim {
    Claim { state: state.into() }
}

fn host() -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { run: dir.path().into(), ..Roots::default() };
    ensure_state_dirs(&roots).unwrap();
    (dir, roots)
}

fn names(dir: std::path::PathBuf) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folders_are_ours_alone() {
    let (_dir, roots) = host();
    for dir in [roots.state_dir(), roots.claims_dir(), roots.busy_dir(), roots.released_dir(), roots.quarantine_dir()] {
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700, "{dir:?}");
    }
    fs::set_permissions(roots.claims_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    ensure_state_dirs(&roots).unwrap();
    assert_eq!(fs::metadata(roots.claims_dir()).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_folder_that_is_none_or_not_ours_is_refused() {
    let (dir, roots) = host();
    fs::remove_dir(roots.claims_dir()).unwrap();
    symlink(dir.path(), roots.claims_dir()).unwrap();
    let error = ensure_state_dirs(&roots).unwrap_err().to_string();
    assert!(error.contains("/mdevd/claims: it is a symbolic link; remove it"), "{error}");
    fs::remove_file(roots.claims_dir()).unwrap();
    fs::write(roots.claims_dir(), "").unwrap();
    assert!(ensure_state_dirs(&roots).unwrap_err().to_string().contains("it is no folder"));
    fs::remove_file(roots.claims_dir()).unwrap();
    fs::create_dir(roots.claims_dir()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(roots.claims_dir(), Some(65534), None).unwrap();
        let error = ensure_state_dirs(&roots).unwrap_err().to_string();
        assert!(error.contains("it belongs to uid 65534, not to uid 0"), "{error}");
    } else {
        let root = Roots { run: "/proc/1".into(), ..Roots::default() };
        assert!(ensure_state_dirs(&root).is_err());
    }
}

#[test]
fn one_daemon() {
    let (_dir, roots) = host();
    let lock = instance_lock(&roots).unwrap();
    let error = instance_lock(&roots).unwrap_err().to_string();
    assert!(error.contains(&format!("another mdevd (pid {}) holds this lock", std::process::id())), "{error}");
    drop(lock);
    // What an earlier daemon with a longer pid left must not show through.
    fs::write(roots.lock_file(), "99999999999\nx\n").unwrap();
    let _lock = instance_lock(&roots).unwrap();
    assert_eq!(fs::read_to_string(roots.lock_file()).unwrap(), format!("{}\n", std::process::id()));
}

#[test]
fn claims_are_written_whole_and_read_back() {
    let (_dir, roots) = host();
    let files = ClaimFiles::<Claim>::new(&roots);
    files.save(&ID, &claim("planned")).unwrap();
    files.save(&ID, &claim("ready")).unwrap();
    files.save(&OTHER, &claim("failed")).unwrap();
    assert_eq!(names(roots.claims_dir()), [format!("{ID}.json"), format!("{OTHER}.json")]);
    assert_eq!(fs::metadata(roots.claims_dir().join(format!("{ID}.json"))).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(files.load(), (vec![(ID, claim("ready")), (OTHER, claim("failed"))], vec![]));
    files.remove(&ID).unwrap();
    files.remove(&ID).unwrap();
    assert_eq!(files.load().0.len(), 1);
}

#[test]
fn an_old_claim_survives_a_write_that_fails() {
    let (_dir, roots) = host();
    let files = ClaimFiles::<Claim>::new(&roots);
    files.save(&ID, &claim("ready")).unwrap();
    // The rename cannot replace a folder; nothing temporary is left.
    fs::create_dir(roots.claims_dir().join(format!("{OTHER}.json"))).unwrap();
    let error = files.save(&OTHER, &claim("x")).unwrap_err();
    assert_eq!(error.errno_name(), "EISDIR");
    assert_eq!(names(roots.claims_dir()), [format!("{ID}.json"), format!("{OTHER}.json")]);
    assert_eq!(files.load().0, [(ID, claim("ready"))]);
}

#[test]
fn what_cannot_be_read_is_moved_aside_and_said_and_costs_nothing_else() {
    let (dir, roots) = host();
    let files = ClaimFiles::<Claim>::new(&roots);
    files.save(&ID, &claim("ready")).unwrap();
    let claims = roots.claims_dir();
    for (name, content) in [
        (format!("{OTHER}.json"), "{\"state\":"),
        ("2f154289-728c-42df-9e56-9b6c1be66e73.json".into(), ""),
        ("3f154289-728c-42df-9e56-9b6c1be66e73.json".into(), "{\"stat\":\"x\"}"),
        ("notes.json".into(), "{\"state\":\"x\"}"),
        ("README".into(), ""),
    ] {
        fs::write(claims.join(name), content).unwrap();
    }
    symlink(dir.path().join("elsewhere"), claims.join("4f154289-728c-42df-9e56-9b6c1be66e73.json")).unwrap();
    let fifo = claims.join("5f154289-728c-42df-9e56-9b6c1be66e73.json");
    rustix::fs::mkfifoat(rustix::fs::CWD, fifo, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    fs::write(claims.join(".0f154289-728c-42df-9e56-9b6c1be66e73.json.tmp"), "{").unwrap();

    let (loaded, problems) = files.load();
    assert_eq!(loaded, [(ID, claim("ready"))]);
    assert_eq!(problems.len(), 7, "{problems:?}");
    assert_eq!(names(roots.quarantine_dir()).len(), 7);
    assert_eq!(names(claims.clone()), [format!("{ID}.json")]);
    let said = problems.iter().find(|problem| problem.path.ends_with(format!("{OTHER}.json"))).unwrap().to_string();
    assert!(said.contains("was moved to ") && said.contains("EOF while parsing"), "{said}");

    // The same name again gets another number.
    fs::write(claims.join(format!("{OTHER}.json")), "x").unwrap();
    files.load();
    assert!(roots.quarantine_dir().join(format!("{OTHER}.json.2")).exists());
    assert!(files.set_aside(&ID, "its id is another one").why.contains("its id is another one"));
    assert_eq!(files.load(), (vec![], vec![]));
}

#[test]
fn a_mark_is_there_until_it_is_forgotten() {
    let (_dir, roots) = host();
    write_atomically(&roots.released_file(&ID), b"{\"run\":\"r1\",\"reason\":\"destroyed\"}").unwrap();
    fs::write(roots.released_dir().join(format!(".{OTHER}.tmp")), "{").unwrap();
    let (marks, problems) = take_released(&roots);
    assert_eq!((marks.len(), problems), (1, vec![]));
    assert_eq!((marks[0].domain, marks[0].content["run"].as_str()), (ID, Some("r1")));
    // A daemon that was killed before it handled the mark.
    assert_eq!(take_released(&roots).0, marks);
    // The hook leaves another one while the first is being handled.
    write_atomically(&roots.released_file(&ID), b"{\"run\":\"r2\"}").unwrap();
    forget_released(&marks[0]).unwrap();
    let (later, _) = take_released(&roots);
    assert_eq!((later.len(), later[0].content["run"].as_str()), (1, Some("r2")));
    forget_released(&later[0]).unwrap();
    assert_eq!(take_released(&roots), (vec![], vec![]));
    assert_eq!(names(roots.released_dir()), [format!(".{OTHER}.tmp")], "the hook's own temporary file is its own");
}

#[test]
fn marks_that_make_no_sense_are_moved_aside() {
    let (_dir, roots) = host();
    fs::write(roots.released_dir().join("vm"), "{}").unwrap();
    fs::write(roots.released_file(&ID), "not json").unwrap();
    symlink("/etc/hostname", roots.released_file(&OTHER)).unwrap();
    let (marks, problems) = take_released(&roots);
    assert_eq!((marks.len(), problems.len()), (0, 3), "{problems:?}");
    assert_eq!(names(roots.released_dir()), [""; 0]);
    assert_eq!(names(roots.quarantine_dir()).len(), 3);
}

/// What root finds in its folder may have been put there by somebody whom a mistake let in.
#[test]
fn a_file_of_another_user_is_moved_aside() {
    if !rustix::process::geteuid().is_root() {
        // Not by the test's own output, which is only shown when it fails.
        let _ = writeln!(std::io::stderr(), "LEFT OUT: a file of another user; only root can make one");
        return;
    }
    let (_dir, roots) = host();
    let files = ClaimFiles::<Claim>::new(&roots);
    files.save(&ID, &claim("ready")).unwrap();
    write_atomically(&roots.released_file(&ID), b"{\"run\":\"r1\"}").unwrap();
    for path in [roots.claims_dir().join(format!("{ID}.json")), roots.released_file(&ID)] {
        std::os::unix::fs::chown(path, Some(65534), None).unwrap();
    }
    let (claims, problems) = files.load();
    assert_eq!((claims.len(), problems.len()), (0, 1), "{problems:?}");
    assert!(problems[0].why.contains("it belongs to uid 65534, not to uid 0"), "{problems:?}");
    let (marks, problems) = take_released(&roots);
    assert_eq!((marks.len(), problems.len()), (0, 1), "{problems:?}");
    assert_eq!(names(roots.quarantine_dir()), [format!("{ID}.json.1"), format!("taken.{ID}.1.1")]);
}

#[test]
fn a_write_follows_no_link() {
    let (dir, roots) = host();
    let files = ClaimFiles::<Claim>::new(&roots);
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    let path = roots.claims_dir().join(format!("{ID}.json"));
    for link in [path.clone(), roots.claims_dir().join(format!(".{ID}.json.tmp"))] {
        symlink(&elsewhere, link).unwrap();
    }
    files.save(&ID, &claim("ready")).unwrap();
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
    assert!(fs::symlink_metadata(path).unwrap().is_file());
    assert_eq!(names(roots.claims_dir()), [format!("{ID}.json")]);
}
