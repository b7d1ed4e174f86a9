//! The numbers for Prometheus: what they are, that they can be read by the rules of its text format, and what becomes of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::fake::{Bus, Fake};
use crate::{golden, hostdevctl, run, stderr, stdout};

const DOWN: &str = "# HELP mdevd_up Whether mdevd answers.\n# TYPE mdevd_up gauge\nmdevd_up 0\n";

/// A document by the rules of the text format 0.0.4, and the conventions for names: the value of each series.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut series, mut metrics) = (BTreeMap::new(), BTreeSet::new());
    assert!(text.ends_with('\n'), "the last line has to end as the others do");
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, help) = help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(help);
        assert!(!help.is_empty() && !help.contains('\\') && help.ends_with('.'), "{name}: {help}");
        assert_eq!(lines.next(), Some(format!("# TYPE {name} gauge").as_str()));
        assert!(name.starts_with("mdevd_") && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'_')), "{name}");
        assert!(!["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)), "{name} is no counter");
        assert!(metrics.insert(name.to_owned()), "{name} is there twice");
        let before = series.len();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let rest = line.strip_prefix(name).unwrap_or_else(|| panic!("{line} stands below {name}"));
            let rest = if let Some(rest) = rest.strip_prefix('{') { labels(rest) } else { rest };
            let value: f64 = rest.strip_prefix(' ').expect(line).parse().expect(line);
            let key = line.strip_suffix(rest).unwrap_or(line);
            assert!(series.insert(key.to_owned(), value).is_none(), "{line} is there twice");
        }
        assert!(series.len() > before, "{name} has no series");
    }
    series
}

/// Reads `name="value",…}`, and gives what is left.
fn labels(mut text: &str) -> &str {
    loop {
        let (name, rest) = text.split_once("=\"").unwrap_or_else(|| panic!("no label: {text}"));
        assert!(!name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'_')), "{name}");
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => assert!(matches!(chars.next(), Some((_, '\\' | '"' | 'n'))), "{rest}"),
                Some((_, c)) => assert!(!c.is_control(), "{rest:?}"),
                None => panic!("no end: {rest}"),
            }
        };
        match rest[end + 1..].split_at(1) {
            (",", rest) => text = rest,
            ("}", rest) => return rest,
            _ => panic!("what follows a label: {rest}"),
        }
    }
}

fn printed(output: &Output) -> BTreeMap<String, f64> {
    assert_eq!((output.status.code(), stderr(output)), (Some(0), ""));
    parse(stdout(output))
}

#[test]
fn numbers_are_what_they_were() {
    for (name, fake) in
        [("metrics", Fake::start(true)), ("big-metrics", Fake::start_big()), ("metrics-of-nothing", Fake::start(false))]
    {
        let output = run(&fake, &["metrics"]);
        let series = printed(&output);
        assert_eq!(series["mdevd_up"], 1.0, "{name}");
        golden(&format!("{name}.txt"), stdout(&output));
    }
}

/// They agree with what `list`, `types` and `vfs` say of the same host.
#[test]
fn numbers_add_up() {
    let fake = Fake::start_big();
    let series = printed(&run(&fake, &["metrics"]));
    let sum = |prefix: &str| series.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(_, n)| n).sum::<f64>();
    let count = |words: &[&str], key: &str| {
        let json: serde_json::Value = serde_json::from_slice(&run(&fake, words).stdout).unwrap();
        json[key].as_f64().unwrap()
    };
    let status = ["status", "--json"];
    let (functions, mdevs) = (count(&status, "functions"), count(&status, "mdevs"));
    assert!(functions > 200.0 && mdevs > 1.0);
    assert_eq!(sum("mdevd_devices{"), functions + mdevs);
    assert_eq!(sum("mdevd_devices{kind=\"mdev\""), mdevs);
    assert_eq!(sum("mdevd_claims{"), count(&status, "claims"));
    let vfs = sum("mdevd_devices{kind=\"vf\"");
    assert_eq!(sum("mdevd_pf_vfs{"), vfs);
    let free = series["mdevd_devices{kind=\"vf\",use=\"free\"}"];
    assert!(free > 0.0 && free < vfs);
    assert_eq!(sum("mdevd_pf_vfs_used{"), vfs - free);
}

#[test]
fn the_file_is_replaced_whole_and_for_all_to_read() {
    let fake = Fake::start(true);
    let folder = fake.bus.directory().join("collector");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("mdevd.prom");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let words = ["metrics", "--output", file.to_str().unwrap()];
    let output = run(&fake, &words);
    assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "", ""));
    assert_eq!(fs::read_to_string(&file).unwrap(), stdout(&run(&fake, &["metrics"])));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something else is left in the folder");

    // Without mdevd it is replaced as well: the old numbers are not true any more.
    let nobody = Bus::start(None);
    let output = hostdevctl(&nobody.address, &words).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(3), ""));
    assert!(stderr(&output).starts_with("hostdevctl: mdevd is not running\n"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&file).unwrap(), DOWN);

    let nowhere = folder.join("no/mdevd.prom");
    for (to, expected) in
        [(nowhere.to_str().unwrap(), "No such file or directory"), ("/", "this is not the name of a file")]
    {
        let output = run(&fake, &["metrics", "--output", to]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
        let expected = format!("hostdevctl: cannot write {to}: {expected}");
        assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), DOWN);
}

#[test]
fn asking_for_numbers_starts_nothing() {
    let started = tempfile::tempdir().unwrap();
    let mark = started.path().join("started");
    let bus = Bus::start(Some(&format!("/usr/bin/touch {}", mark.display())));
    let output = hostdevctl(&bus.address, &["metrics"]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(3), DOWN));
    parse(stdout(&output));
    assert!(!mark.exists(), "the bus was asked to start mdevd");
    // The same bus does start it for other verbs.
    let output = hostdevctl(&bus.address, &["list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(mark.exists());

    let away = format!("unix:path={}/nothing", started.path().display());
    let output = hostdevctl(&away, &["metrics"]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(3), DOWN));
    assert!(stderr(&output).contains("cannot reach the bus of DBUS_SYSTEM_BUS_ADDRESS"), "{}", stderr(&output));
}
