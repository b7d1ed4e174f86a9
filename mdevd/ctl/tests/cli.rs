//! hostdevctl as a person and a script see it: what it prints, where, and how it exits, against a daemon that always has the same
//! devices. The expected output is in `golden/`; `UPDATE_GOLDEN=1 cargo test -p hostdevctl` writes it anew, to be read in the diff.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // A test fails by panicking.

mod big;
mod fake;
mod metrics;
mod terminal;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::{Bus, EVIL, FOREIGN, Fake, GPU, MANUAL, NEW, STUCK, VM};
use serde_json::Value;

/// hostdevctl with a bus, and with nothing in the environment that changes what it prints.
fn hostdevctl(bus: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostdevctl"));
    command
        .env_clear()
        .env("DBUS_SYSTEM_BUS_ADDRESS", bus)
        .env("TERM", "xterm-256color")
        .args(args)
        .stdin(Stdio::null());
    command
}

fn run(fake: &Fake, args: &[&str]) -> Output {
    hostdevctl(&fake.bus.address, args).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Compares with a file of `golden/`.
fn golden(name: &str, actual: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert!(expected == actual, "{name} has changed\n--- expected\n{expected}\n--- actual\n{actual}");
}

/// What the tests of reading verbs run: the golden file's name, and the words.
const READING: [(&str, &[&str]); 16] = [
    ("list", &["list"]),
    ("tree", &["tree"]),
    ("show-parent", &["show", "0000:41:00.0"]),
    ("show-mdev", &["show", GPU]),
    ("show-foreign", &["show", FOREIGN]),
    ("show-unknown-holders", &["show", STUCK]),
    ("show-domain", &["show", "vm1"]),
    ("show-several", &["show", "both"]),
    ("types", &["types"]),
    ("types-of-parent", &["types", "mtty"]),
    ("claims", &["claims"]),
    ("xml-mdev", &["xml", GPU]),
    ("xml-claim", &["xml", "vm1"]),
    ("explain", &["explain", "nvidia-63", "name=big,type=nvidia-64,count=2", "mtty-2"]),
    ("status", &["status"]),
    ("reconcile", &["reconcile", "--dry-run"]),
];

#[test]
fn reading_verbs_print_what_they_printed() {
    let fake = Fake::start(true);
    for (name, words) in READING {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{name}");
        assert!(!stdout(&output).contains('\u{1b}'), "{name}: colour, or worse, in what goes to a pipe");
        golden(&format!("{name}.txt"), stdout(&output));

        let output = hostdevctl(&fake.bus.address, words).arg("--json").output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{name} --json");
        golden(&format!("{name}.json"), stdout(&output));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json.is_array(), !["status", "xml-mdev", "xml-claim"].contains(&name), "{name} --json");
    }
    assert_eq!(fake.calls().iter().filter(|call| call.starts_with("Reconcile")).count(), 2);
}

#[test]
fn json_has_text_as_it_is_and_its_keys_are_documented() {
    let fake = Fake::start(true);
    let claims: Value = serde_json::from_slice(&run(&fake, &["claims", "--json"]).stdout).unwrap();
    let evil = claims.as_array().unwrap().iter().find(|claim| claim["id"] == EVIL).unwrap();
    assert_eq!(evil["owner_name"], "harm\u{1b}[2J\u{202e}less");

    let mut all = BTreeSet::new();
    for (_, words) in READING {
        let output = hostdevctl(&fake.bus.address, words).arg("--json").output().unwrap();
        keys(&serde_json::from_slice(&output.stdout).unwrap(), &mut all);
    }
    assert!(all.len() > 30);
    are_documented(&all);
}

fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            into.insert(key.clone());
            keys(value, into);
        }),
        _ => {}
    }
}

fn are_documented(keys: &BTreeSet<String>) {
    let documented = include_str!("../../../docs/json.md");
    for key in keys {
        assert!(documented.contains(&format!("`{key}`")), "{key} is not documented in docs/json.md");
    }
}

#[test]
fn a_host_without_devices_gets_a_sentence() {
    let fake = Fake::start(false);
    let no_devices = "hostdevctl: mdevd sees neither PCI functions nor mdev parents on this host; hostdevctl doctor says what is missing\n";
    let no_types = "hostdevctl: neither mdev parents nor VFs with vGPU types: is the vendor's driver loaded? (the kernel lists the parents in /sys/class/mdev_bus)\n";
    for (words, expected) in [
        (&["list"][..], no_devices),
        (&["tree"], no_devices),
        (&["types"], no_types),
        (&["claims"], "hostdevctl: no claims: nothing is promised to anybody\n"),
        (&["reconcile"], "hostdevctl: nothing to do: claims, devices and VMs agree\n"),
    ] {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "", expected), "{words:?}");
        let output = hostdevctl(&fake.bus.address, words).arg("--json").output().unwrap();
        assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "[]\n", ""), "{words:?}");
    }
    let output = run(&fake, &["status"]);
    assert_eq!(stdout(&output), "mdevd 0.1.0  0 PCI functions, 0 parents, 0 types, 0 mdevs, 0 claims\nno problems\n");
    assert_eq!(stderr(&output), no_devices);
    let output = run(&fake, &["explain", "nvidia-63"]);
    assert_eq!(stdout(&output), "dev0\n  nothing would be chosen: this request would be refused\n");
}

#[test]
fn changing_verbs_say_what_they_mean_and_can_wait_for_a_password() {
    let fake = Fake::start(true);
    let done = |words: &[&str], out: &str, notes: &str, call: &str| {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), out, notes), "{words:?}");
        assert_eq!(fake.calls(), [call], "{words:?}");
    };
    done(
        &["create", "mtty-2", "--parent", "mtty", "--attr", "a=1", "--attr", "a=x=y", "--label", "for a test"],
        &format!("{STUCK}\n"),
        &format!("hostdevctl: created on mtty; for the XML of a VM: hostdevctl xml {STUCK}\n"),
        "CreateMdev mtty-2 {attrs=[(\"a\", \"1\"), (\"a\", \"x=y\")], label=\"for a test\", parent=\"mtty\"}",
    );
    done(
        &["create", "nvidia-63", "--uuid", &GPU.to_uppercase()],
        &format!("{GPU}\n"),
        "hostdevctl: nothing to do: it is there already, and yours\n",
        &format!("CreateMdev nvidia-63 {{uuid=\"{GPU}\"}}"),
    );
    done(&["remove", FOREIGN, "--force"], "", "", &format!("Remove {FOREIGN} {{force=true}}"));
    done(&["remove", STUCK], "", "hostdevctl: nothing to do: it was gone already\n", &format!("Remove {STUCK} {{}}"));
    done(
        &["claim", "mtty-2", "name=gpu,type=nvidia-63,numa-node=1", "--label", "me"],
        &format!("{MANUAL}\n"),
        &format!(
            "hostdevctl: dev0: {STUCK} (mtty-2 on mtty)\nhostdevctl: for the XML of a VM: hostdevctl xml {MANUAL}; to give it back: hostdevctl release {MANUAL}\n"
        ),
        "Acquire name=dev0,type=mtty-2 name=gpu,numa-node=1,type=nvidia-63 {label=\"me\"}",
    );
    done(&["release", MANUAL], "", "", &format!("Release {MANUAL} {{}}"));
    done(&["release", STUCK, "--force"], "", "", &format!("Release {MANUAL} {{force=true}}"));
    done(&["rescan"], "", "", "Rescan {}");
    let nothing = "hostdevctl: nothing to do: claims, devices and VMs agree\n";
    let empty = Fake::start(false);
    let output = run(&empty, &["reconcile", "--dry-run"]);
    assert_eq!(stderr(&output), nothing);
    assert_eq!(empty.calls(), ["Reconcile {dry-run=true}"]);
    // A claim that is not listed (any more) by the time one looks is a claim all the same.
    let output = run(&empty, &["claim", "mtty-2"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{NEW}\n").as_str()));
}

#[test]
fn xml_passes_its_options_on() {
    let fake = Fake::start(true);
    let words = [
        "xml",
        GPU,
        "--display",
        "on",
        "--ramfb",
        "off",
        "--alias",
        "ua-gpu",
        "--guest-address",
        "0000:04:00.0",
        "--boot-order",
        "1",
    ];
    let output = run(&fake, &words);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let options =
        "alias=\"ua-gpu\", boot-order=uint32 1, display=\"on\", guest-address=\"0000:04:00.0\", ramfb=\"off\"";
    assert_eq!(fake.calls(), [format!("HostdevXml {{{options}}} (without ALLOW_INTERACTIVE_AUTHORIZATION)")]);
    let output = run(&fake, &["xml", GPU, "--nodedev"]);
    assert_eq!(stdout(&output), format!("<device>\n  <name>mdev_{}</name>\n</device>\n", GPU.replace('-', "_")));
}

#[test]
fn xml_of_requests_needs_no_daemon() {
    let words = [
        "xml",
        "--domain",
        VM,
        "--request",
        "name=gpu0,type=nvidia-63,display=on",
        "--request",
        "name=tty,type=mtty-1,count=2",
        "--request",
        &format!("name=own,type=mtty-1,uuid={GPU}"),
    ];
    let output = hostdevctl("unix:path=/nonexistent", &words).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stderr(&output),
        "hostdevctl: the first element goes below <domain>, the others below <devices>: virsh edit DOMAIN\n\
         if there is a <metadata> already, put only <mdevd:devices> into it; if that is there too, only the <mdevd:request>\n"
    );
    // What `uuidgen --sha1 -n 0f154289-728c-42df-9e56-9b6c1be66e73 -N gpu0` prints.
    assert!(stdout(&output).contains("95dfa89f-59f0-54a0-83f4-c665e1e9868b"));
    golden("xml-domain.txt", stdout(&output));
    let output = hostdevctl("unix:path=/nonexistent", &words).arg("--json").output().unwrap();
    golden("xml-domain.json", stdout(&output));
    let output = hostdevctl(
        "unix:path=/nonexistent",
        &["xml", "--domain", VM, "--request", "vfio_ccw-io", "--model", "vfio-ccw"],
    )
    .output()
    .unwrap();
    assert!(stdout(&output).contains("model='vfio-ccw'"), "{}", stdout(&output));

    let started = tempfile::tempdir().unwrap();
    let mark = started.path().join("started");
    let bus = Bus::start(Some(&format!("/usr/bin/touch {}", mark.display())));
    let output = hostdevctl(&bus.address, &words).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    golden("xml-domain.txt", stdout(&output));
    assert!(!mark.exists(), "the bus was asked to start mdevd");
}

#[test]
fn refusals_are_printed_as_they_come_and_exit_1() {
    let fake = Fake::start(true);
    for (words, expected) in [
        (&["create", "full"][..], "no instance of full is left: 0000:41:00.0 has none; stop a VM or take another type"),
        (&["remove", GPU], &format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first")),
        (&["remove", GPU, "--force"], &format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first")),
        (&["reload"], "/etc/mdevd/mdevd.toml:3: unknown key 'plicy'; did you mean 'policy'?"),
        (
            &["remove", VM],
            &format!(
                "'{VM}' is not a device; it is claim {VM}\nto free all that a claim holds: hostdevctl release {VM}"
            ),
        ),
        (&["release", "mtty"], "'mtty' is not one claim; it is parent mtty"),
        (
            &["release", GPU],
            &format!(
                "the claim that holds {GPU} (domain vm1) holds 2 devices\nto free them all: hostdevctl release {VM}\nto remove this one only: hostdevctl remove {GPU}"
            ),
        ),
        (
            &["release", FOREIGN],
            &format!(
                "no claim holds {FOREIGN}, so there is nothing to release\nto remove it: hostdevctl remove {FOREIGN}"
            ),
        ),
        (&["xml", "mtty"], "'mtty' is not one device or claim; it is parent mtty"),
        (
            &["show", "vm2"],
            "there is no device, parent or claim 'vm2', and no VM of this name has a claim\ndid you mean 'vm1'?",
        ),
        (
            &["show", "c2177"],
            &format!(
                "there is no device, parent or claim 'c2177', and no VM of this name has a claim\ndid you mean '{GPU}'?"
            ),
        ),
        (
            &["show", "\u{1b}[2J"],
            "there is no device, parent or claim '\\u{1b}[2J', and no VM of this name has a claim\nhostdevctl list and hostdevctl claims show what there is",
        ),
        (
            &["types", "0000:41:00.1"],
            "there is no device, parent or claim '0000:41:00.1', and no VM of this name has a claim\ndid you mean '0000:41:00.0'?",
        ),
    ] {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{words:?}");
        assert_eq!(stderr(&output), format!("hostdevctl: {expected}\n"), "{words:?}");
    }
}

#[test]
fn wrong_usage_exits_2_and_reaches_nobody() {
    let fake = Fake::start(true);
    for (words, expected) in [
        (&["lst"][..], "unrecognized subcommand 'lst'"),
        (&["create"], "the following required arguments were not provided"),
        (&["create", "a/b"], "invalid value 'a/b' for '<TYPE>': 'a/b' is not an mdev type id: it contains '/'"),
        (&["create", "mtty-2", "--uuid", "xyz"], "'xyz' is not a UUID"),
        (&["create", "mtty-2", "--attr", "x"], "it must be NAME=VALUE"),
        (&["remove", "mtty"], "'mtty' is not a UUID"),
        (&["claim", "name=a,tpye=mtty-2"], "request 'a': unknown key 'tpye'"),
        (&["claim", "name=a,type=mtty-2", "name=a,type=mtty-2"], "two requests have the name 'a'"),
        (&["explain", "name=a"], "request 'a': it says neither type nor pool nor uuid"),
        (&["xml"], "the following required arguments were not provided"),
        (&["xml", "--domain", VM], "the following required arguments were not provided"),
        (&["xml", "--domain", "vm1", "--request", "mtty-1"], "'vm1' is not a UUID"),
        (&["xml", GPU, "--domain", VM, "--request", "mtty-1"], "cannot be used with"),
        (&["xml", GPU, "--display", "maybe"], "invalid value 'maybe' for '--display [<on|off>]'"),
        (&["xml", "--domain", VM, "--request", "type=mtty-1,ramfb=on"], "ramfb='on' needs display='on'"),
        (&["xml", VM, "--nodedev"], "is a claim: its elements are as its requests say"),
    ] {
        let output = run(&fake, words);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("hostdevctl: "), "{words:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{words:?}: {}", stderr(&output));
    }
    assert_eq!(fake.calls(), [""; 0]);
    let output = run(&fake, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: hostdevctl"));
}

#[test]
fn without_a_daemon_it_exits_3_and_says_how_to_start_it() {
    let hint = "\nstart it with: systemctl start mdevd (and see: journalctl -u mdevd)\n";
    let nobody = Bus::start(None);
    for words in [&["list"][..], &["status"], &["create", "mtty-2"], &["show", "vm1"]] {
        let output = hostdevctl(&nobody.address, words).output().unwrap();
        assert_eq!((output.status.code(), stdout(&output)), (Some(3), ""), "{words:?}");
        assert_eq!(stderr(&output), format!("hostdevctl: mdevd is not running{hint}"));
    }
    let failing = Bus::start(Some("/bin/false"));
    let output = hostdevctl(&failing.address, &["list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).starts_with("hostdevctl: mdevd is not running and could not be started: "),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).ends_with(hint), "{}", stderr(&output));

    let dying = Fake::start(false);
    let output = run(&dying, &["rescan"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).starts_with("hostdevctl: mdevd went away before it answered"), "{}", stderr(&output));

    let address = format!("unix:path={}/nothing", nobody.directory().display());
    let output = hostdevctl(&address, &["list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let expected = "hostdevctl: cannot reach the bus of DBUS_SYSTEM_BUS_ADDRESS: ";
    assert!(stderr(&output).starts_with(expected) && stderr(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn who_may_not_exits_4_and_learns_how_to() {
    let fake = Fake::start(true);
    let output = run(&fake, &["create", "forbidden"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(4), ""));
    assert_eq!(
        stderr(&output),
        "hostdevctl: org.mdevd1.claim is not allowed to uid 1000\nrun it as root (sudo hostdevctl ...), or let a polkit rule allow it\n"
    );
}

#[test]
fn a_terminal_gets_colour_and_lines_that_fit() {
    let fake = Fake::start(true);
    let (colour, code) = terminal::run(80, &mut hostdevctl(&fake.bus.address, &["list"]));
    assert_eq!(code, Some(0));
    assert!(colour.contains("\u{1b}[1m0000:41:00.0\u{1b}[0m"), "{colour:?}");
    for (name, value) in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
        let (plain, _) = terminal::run(80, hostdevctl(&fake.bus.address, &["list"]).env(name, value));
        assert!(!plain.contains('\u{1b}'), "{name}: {plain:?}");
    }
    let output = hostdevctl(&fake.bus.address, &["list"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(stdout(&output).contains("\u{1b}[1m"));

    for columns in [60, 80, 100, 250] {
        for (name, words) in READING {
            if name.starts_with("xml") {
                continue; // not a table: it is there to be copied
            }
            let (text, _) = terminal::run(columns, hostdevctl(&fake.bus.address, words).env("NO_COLOR", "1"));
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(columns), "{name} at {columns}: {line}");
            }
            if columns == 80 {
                golden(&format!("{name}.80-columns.txt"), &text);
            }
        }
    }
    // The reason of a refusal is never cut, only wrapped.
    let (text, _) = terminal::run(70, hostdevctl(&fake.bus.address, &["explain", "nvidia-64"]).env("NO_COLOR", "1"));
    assert!(text.contains('\n') && !text.contains('…'), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.join(" ").contains(&format!("somebody else has made {FOREIGN}")), "{text}");
}

#[test]
fn help_reads_as_it_did() {
    for (name, words) in [
        ("help", &["--help"][..]),
        ("help-create", &["create", "--help"]),
        ("help-xml", &["xml", "--help"]),
        ("help-claim", &["claim", "--help"]),
        ("help-metrics", &["metrics", "--help"]),
    ] {
        let output = hostdevctl("unix:path=/nonexistent", words).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{name}");
        golden(&format!("{name}.txt"), stdout(&output));
    }
    let output = hostdevctl("unix:path=/nonexistent", &["--version"]).output().unwrap();
    assert_eq!(stdout(&output), format!("hostdevctl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fake = Fake::start(true);
    let mut child =
        hostdevctl(&fake.bus.address, &["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    // Any other failure to write is one.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = hostdevctl(&fake.bus.address, &["list"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("hostdevctl: cannot write the output: No space left on device"),
        "{}",
        stderr(&output)
    );
}
