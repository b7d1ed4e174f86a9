//! A hook that outlives its libvirt daemon: it is of a run that nobody waits for, and must change nothing.
//!
//! A shell stands for the libvirt daemon. It starts the hook behind itself and ends when it is told to.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, dead_code)] // A test fails by panicking.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{ChildStdout, Stdio},
};

use common::{Call, Host, Mood, entry, requesting_xml};
use tokio::{process::Child, task::spawn_blocking};

/// Starts a shell script whose output, and that of all it starts, is read together.
fn start(host: &Host, script: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = host.command(Path::new("/bin/sh"));
    command.arg("-c").arg(format!("exec 2>&1\n{script}")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = child.stdout.take().unwrap().into_owned_fd().unwrap();
    (child, BufReader::new(ChildStdout::from(output)))
}

/// What is printed until everything that was started has ended.
async fn rest(mut output: BufReader<ChildStdout>) -> String {
    spawn_blocking(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        text
    })
    .await
    .unwrap()
}

/// Writes into a named pipe; comes back when most of it has been read, because a pipe holds 64 KiB.
async fn write(mut fifo: File, text: String) -> File {
    spawn_blocking(move || {
        fifo.write_all(text.as_bytes()).unwrap();
        fifo
    })
    .await
    .unwrap()
}

/// Waits until someone reads from a named pipe.
async fn open(host: &Host, name: &str) -> File {
    let path = host.path(name);
    spawn_blocking(move || OpenOptions::new().write(true).open(path).unwrap()).await.unwrap()
}

/// Runs the hook under a libvirt daemon that ends after the hook has begun, and before it has all of the XML, or not.
async fn run(op: &str, through_entry: bool, daemon_ends: bool) -> (Host, String) {
    let host = Host::with_bus();
    let daemon = host.daemon(Mood::Willing).await;
    host.claim_of_run();
    host.fifo("xml");
    host.fifo("go");
    let program = if through_entry { entry(&host) } else { host.path("mdevd-hook") };
    let (xml, go) = (host.path("xml"), host.path("go"));
    let script = format!("{} vm {op} < {} &\nread go < {}", program.display(), xml.display(), go.display());
    let (mut libvirt, output) = start(&host, &script);

    let xml = open(&host, "xml").await;
    let xml = write(xml, format!("<!--{}-->", " ".repeat(256 << 10))).await;
    let go = open(&host, "go").await;
    let go = if daemon_ends {
        drop(go);
        libvirt.wait().await.unwrap();
        None
    } else {
        Some(go)
    };
    drop(write(xml, requesting_xml()).await);
    if go.is_some() {
        // The daemon ends last: its end of the output would keep the test waiting.
        while host.calls().is_empty() {
            tokio::task::yield_now().await;
        }
    }
    drop(go);
    let output = rest(output).await;
    drop(daemon);
    (host, output)
}

#[tokio::test]
async fn one_that_is_waited_for_is_heard() {
    for through_entry in [false, true] {
        let (host, output) = run("release end destroyed", through_entry, false).await;
        assert_eq!(output, "");
        assert!(matches!(host.calls().as_slice(), [Call::Release { .. }]), "{:?}", host.calls());
        let (host, output) = run("prepare begin -", through_entry, false).await;
        assert_eq!(output, "");
        assert!(matches!(host.calls().as_slice(), [Call::Prepare { .. }]), "{:?}", host.calls());
    }
}

#[tokio::test]
async fn one_whose_libvirt_daemon_ends_meanwhile_changes_nothing() {
    for through_entry in [false, true] {
        for op in ["release end destroyed", "prepare begin -"] {
            let (host, output) = run(op, through_entry, true).await;
            assert_eq!(output, "", "{op}");
            assert_eq!(host.calls(), [], "{op}");
            assert_eq!(host.mark(), None, "{op}");
        }
    }
}

#[tokio::test]
async fn one_that_begins_as_an_orphan_changes_nothing() {
    for op in ["release end destroyed", "prepare begin -", "reconnect begin -"] {
        let host = Host::with_bus();
        let _daemon = host.daemon(Mood::Willing).await;
        host.claim_of_run();
        host.fifo("go");
        fs::write(host.path("xml"), requesting_xml()).unwrap();
        let (hook, xml, go) = (host.path("mdevd-hook"), host.path("xml"), host.path("go"));
        let script = format!(
            "(read go < {}; {} vm {op} < {}; echo \"exit $?\") &\necho $!",
            go.display(),
            hook.display(),
            xml.display()
        );
        // The shell in between is one of the hook scripts: its last words are those of the hook.
        let words: Vec<&str> = op.split(' ').collect();
        let mut command = host.command(Path::new("/bin/sh"));
        command.arg("-c").arg(script).arg("script").arg("vm").args(words).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut libvirt = command.spawn().unwrap();
        let output = libvirt.stdout.take().unwrap().into_owned_fd().unwrap();
        let mut output = BufReader::new(ChildStdout::from(output));
        libvirt.wait().await.unwrap();
        let mut pid = String::new();
        output.read_line(&mut pid).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap();
        let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
        if parent != "1" {
            // Not by the test's own output, which is only shown when it fails.
            let _ = writeln!(std::io::stderr(), "LEFT OUT: orphans go here to process {parent}, not to 1");
            return;
        }
        drop(open(&host, "go").await);
        let code = if op.starts_with("prepare") { 1 } else { 0 };
        assert_eq!(rest(output).await, format!("exit {code}\n"), "{op}");
        assert_eq!(host.calls(), [], "{op}");
        assert_eq!(host.mark(), None, "{op}");
    }
}
