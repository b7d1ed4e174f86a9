//! The program `fakehost`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const FAKEHOST: &str = env!("CARGO_BIN_EXE_fakehost");

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(FAKEHOST).args(args).env_remove("DBUS_SYSTEM_BUS_ADDRESS").output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn it_runs_a_command_on_the_host_that_was_asked_for() {
    let script = "ls $FAKEHOST/sys/class/mdev_bus; cd $FAKEHOST/sys/class/mdev_bus/0000:41:00.0; cat numa_node mdev_supported_types/*/available_instances; exit 7";
    let words =
        ["--parent", "0000:41:00.0:nvidia-63=4,nvidia-64=2", "--numa", "1", "--mtty", "--exec", "sh", "-c", script];
    let (code, out, err) = run(&words);
    assert_eq!((code, err.as_str()), (Some(7), ""));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[1..], ["0000:41:00.0", "mtty", "1", "4", "2"]);
    assert!(!fs::exists(lines[0]).unwrap(), "{} is still there", lines[0]);
}

#[test]
fn it_starts_the_daemon_with_the_four_roots() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = folder.path().join("daemon");
    let program = |script: &str| {
        fs::write(&daemon, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&daemon, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // A daemon that says what it was given, and what its first uevent begins with.
    program("echo \"$@\" >$8/mdevd/args; head -c 4 >$8/mdevd/read; mv $8/mdevd/read $8/mdevd/done; exec sleep 1000");
    let script = "cd $FAKEHOST/run/mdevd; until [ -e args ]; do :; done; cat args
        echo 11111111-2222-3333-4444-555555555555 >$FAKEHOST/sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create
        until [ -e done ]; do :; done; cat done";
    let words = ["--mtty", "--daemon", daemon.to_str().unwrap(), "--daemon-arg", "-v", "--exec", "sh", "-c", script];
    let (code, out, err) = run(&words);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let lines: Vec<&str> = out.lines().collect();
    let mount = lines[0];
    let given = format!("--sys {mount}/sys --proc {mount}/proc --etc {mount}/etc --run {mount}/run --uevents stdin -v");
    assert_eq!(lines[1..], [given.as_str(), "add@"]);

    program("exit 3");
    let (code, _, err) = run(&["--mtty", "--daemon", daemon.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (Some(1), "fakehost: the daemon ended by itself: exit status: 3\n"));
}

#[test]
fn it_stays_until_it_is_told_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(FAKEHOST).arg("--mtty").arg(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), fs::canonicalize(folder.path()).unwrap().to_str().unwrap());
    assert!(folder.path().join("sys/class/mdev_bus/mtty").exists());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_wrong_command_line_is_told_what_is_wrong() {
    for (words, why) in [
        (&["--numa", "1"][..], "--numa comes after the parent that it is about"),
        (&["--bogus"], "there is no option '--bogus'"),
        (&["--parent", "x"], "'x' is not NAME:TYPE=COUNT[,TYPE=COUNT]..."),
        (&["--parent", "x:t=many"], "'many' is not a number that fits here"),
        (&["--mtty", "--exec"], "--exec needs a command"),
        (&["--daemon"], "--daemon needs a value"),
    ] {
        let (code, _, err) = run(words);
        assert_eq!((code, err), (Some(2), format!("fakehost: {why}; see fakehost --help\n")));
    }
    assert_eq!(run(&["--exec", "no-such-program"]).0, Some(1));
    assert!(run(&["--help"]).1.starts_with("Usage: fakehost"));
}
