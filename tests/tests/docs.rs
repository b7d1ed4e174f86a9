//! The pages for people, as far as reading them tells: links lead somewhere, excerpts are of their files, every error, key and attribute is
//! explained, and no command is printed that nobody runs. The lab runs them (`tests/lab/scenarios/docs.sh`); the example in Rust runs here.
//! What a page's source may say is in CONTRIBUTING.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // a test that cannot go on must fall down

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mdevd_dbus::ErrorName;
use mdevd_tests::fakesys;
use mdevd_tests::harness::{Bus, Daemon, FakePolkit, Verdict};

const MARKS: [&str; 4] = ["not run", "file", "from", "fails"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands between two fences, with the mark right before it.
#[derive(Debug)]
struct Block {
    line: usize,
    language: String,
    mark: Option<(String, String)>,
    lines: Vec<String>,
}

impl Block {
    fn mark(&self, name: &str) -> Option<&str> {
        self.mark.as_ref().filter(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A page: its name in the repository, its text outside of blocks, and the blocks.
#[derive(Debug)]
struct Page {
    name: String,
    prose: String,
    blocks: Vec<Block>,
}

/// `<!-- NAME: VALUE -->` or `<!-- NAME -->`.
fn mark(line: &str) -> Option<(String, String)> {
    let inner = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (name, value) = inner.split_once(": ").unwrap_or((inner, ""));
    Some((name.to_owned(), value.to_owned()))
}

fn page(name: &str) -> Page {
    parse(name, &read(name))
}

fn parse(name: &str, text: &str) -> Page {
    let mut page = Page { name: name.to_owned(), prose: String::new(), blocks: Vec::new() };
    let (mut open, mut before): (Option<Block>, _) = (None, None);
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => page.blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, Some(language)) => {
                let (language, mark) = (language.trim().to_owned(), before.take());
                open = Some(Block { line: number + 1, language, mark, lines: Vec::new() });
            }
            (None, None) => {
                assert!(before.is_none() || line.is_empty(), "{name}:{number}: a mark stands right before its block");
                if let Some(mark) = mark(line) {
                    assert!(MARKS.contains(&mark.0.as_str()), "{name}:{}: '{}' is no mark", number + 1, mark.0);
                    before = Some(mark);
                } else {
                    writeln!(page.prose, "{line}").unwrap();
                }
            }
        }
    }
    assert!(open.is_none(), "{name}: the last block does not end");
    page
}

fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(".md"));
    let mut names: Vec<String> = docs.map(|name| format!("docs/{name}")).collect();
    names.extend(["README.md".to_owned(), "CONTRIBUTING.md".to_owned()]);
    names.sort();
    names.iter().map(|name| page(name)).collect()
}

/// The words in backquotes, and the text without them.
fn without_code(prose: &str) -> (Vec<String>, String) {
    let (mut code, mut text) = (Vec::new(), String::new());
    for line in prose.lines() {
        for (number, part) in line.split('`').enumerate() {
            if number % 2 == 1 { code.push(part.to_owned()) } else { text.push_str(part) }
        }
        text.push('\n');
    }
    (code, text)
}

/// The anchor that a heading gets where Markdown is shown: lower case, spaces as hyphens, no other punctuation.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = page.prose.lines().filter(|line| line.starts_with('#'));
    let slug = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    let mut links = 0;
    for page in &pages {
        let (_, text) = without_code(&page.prose);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://")) {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let at = if file.is_empty() {
                root().join(&page.name)
            } else {
                root().join(&page.name).parent().unwrap().join(file)
            };
            let Ok(at) = at.canonicalize() else {
                wrong.push(format!("{}: there is no {file}", page.name));
                continue;
            };
            let name = at.strip_prefix(root().canonicalize().unwrap()).unwrap().display().to_string();
            let there = pages.iter().find(|page| page.name == name);
            if !anchor.is_empty() && !there.is_some_and(|page| anchors(page).contains(anchor)) {
                wrong.push(format!("{}: {name} has no heading for #{anchor}", page.name));
            }
        }
    }
    assert!(links > 20, "only {links} links were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How many commands of a page the lab runs, how many it leaves out and why, and what is wrong with the page.
fn commands(page: &Page, scenarios: &str) -> (usize, BTreeMap<String, usize>, Vec<String>) {
    let (mut run, mut left, mut wrong) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for block in &page.blocks {
        let mut complain = |what: &str| wrong.push(format!("{}:{}: {what}", page.name, block.line));
        let command = |line: &String| line.starts_with("$ ") || line.starts_with("# ");
        let commands = block.lines.iter().filter(|line| command(line)).count();
        if !block.language.is_empty() || block.mark("file").is_some() || block.mark("from").is_some() {
            if block.lines.iter().any(|line| line.starts_with("$ ")) {
                complain("a command in a block that is none of commands");
            }
        } else if commands == 0 {
            complain("no command in a block without a language; if it is no terminal, call it ```text");
        } else if !block.lines.first().is_some_and(command) {
            complain("its first line is printed by no command");
        } else if let Some(why) = block.mark("not run") {
            if why.len() < 10 {
                complain("why is it not run?");
            }
            *left.entry(why.to_owned()).or_default() += commands;
        } else {
            run += commands;
        }
    }
    let stem = page.name.trim_start_matches("docs/").trim_end_matches(".md").replace('-', "_").to_lowercase();
    let followed = scenarios.split(&format!("scenario_docs_{stem}() {{")).nth(1).is_some_and(|rest| {
        let body = rest.split("\n}").next().unwrap_or_default();
        body.lines().any(|line| line.trim() == format!("follow {}", page.name))
    });
    if (run > 0) != followed {
        wrong.push(format!("{}: {run} commands, and tests/lab/scenarios/docs.sh follows it: {followed}", page.name));
    }
    (run, left, wrong)
}

#[test]
fn every_command_is_run_or_left_out_with_a_reason() {
    let scenarios = read("tests/lab/scenarios/docs.sh");
    let mut all_wrong = Vec::new();
    // Straight to the terminal: what is left out must be seen also when all is well.
    let mut terminal = std::io::stderr();
    for page in pages() {
        let (run, left, wrong) = commands(&page, &scenarios);
        all_wrong.extend(wrong);
        if run + left.values().sum::<usize>() > 0 {
            writeln!(terminal, "{}: {run} commands are run in the lab", page.name).unwrap();
        }
        for (why, count) in left {
            writeln!(terminal, "{}: {count} NOT RUN: {why}", page.name).unwrap();
        }
    }
    assert!(all_wrong.is_empty(), "{all_wrong:#?}");
}

#[test]
fn what_nobody_runs_is_found() {
    let wrong = |text: &str, scenarios: &str| commands(&parse("docs/a-page.md", text), scenarios).2;
    let follows = "scenario_docs_a_page() {\n  follow docs/a-page.md\n}\n";
    let block = "```\n$ hostdevctl list\nmtty\n```\n";
    assert_eq!(wrong(block, follows), [""; 0]);
    assert!(wrong(block, "scenario_docs_a_page() {\n}\n  follow docs/a-page.md\n")[0].contains("1 commands"));
    assert!(wrong("no command\n", follows)[0].contains("0 commands"));
    assert!(wrong("```\nhostdevctl list\n```\n", "")[0].contains("no command in a block"));
    assert!(wrong("```sh\n$ hostdevctl list\n```\n", "")[0].contains("none of commands"));
    assert!(wrong("```\nmtty\n$ hostdevctl list\n```\n", follows)[0].contains("its first line"));
    assert!(wrong(&format!("<!-- not run:   -->\n{block}"), "")[0].contains("why is it not run"));
    assert_eq!(wrong(&format!("<!-- not run: it needs a card -->\n{block}"), ""), [""; 0]);
}

/// Two `<metadata>` are no domain; libvirt's answer to that helps nobody.
#[test]
fn pages_say_what_to_do_when_the_vm_has_metadata_already() {
    let merge = "put only `<mdevd:devices>` into it; if that is there too, only the `<mdevd:request>`";
    let mut edits = 0;
    for page in pages() {
        let edit = |block: &Block| block.lines.iter().any(|line| line.starts_with("# virsh edit"));
        if page.blocks.iter().any(edit) {
            edits += 1;
            let prose = page.prose.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(prose.contains(merge), "{}: where does a request go in a VM that has a <metadata>?", page.name);
        }
    }
    assert!(edits >= 3, "only {edits} pages with virsh edit were found");
    assert!(read("tests/lab/scenarios/docs.sh").contains(merge), "the lab's editor looks for other words");
}

#[test]
fn a_prompt_lasts_as_long_as_is_told() {
    let minutes = mdevd_dbus::PROMPT_DEADLINE.as_secs() / 60;
    let minutes = format!("Who does not answer within {minutes} minutes is refused");
    let prose = page("docs/authorization.md").prose.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(prose.contains(&minutes), "docs/authorization.md does not say: {minutes}");
}

#[test]
fn excerpts_are_of_their_files() {
    let mut excerpts = 0;
    for page in pages() {
        for block in &page.blocks {
            let Some(file) = block.mark("from") else { continue };
            excerpts += 1;
            let text = read(file);
            let lines: Vec<&str> = text.lines().collect();
            let there = lines.windows(block.lines.len()).any(|window| window == block.lines);
            assert!(there, "{}:{}: these lines are not in {file}", page.name, block.line);
        }
    }
    assert!(excerpts > 0);
}

#[test]
fn every_error_is_explained() {
    let page = page("docs/administrators.md");
    for name in ErrorName::ALL {
        let section = page.prose.split(&format!("\n#### {name}\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("{}: {name} has no section", page.name));
        let section = section.split("\n#").next().unwrap();
        assert!(section.contains("*Do:*"), "{}: {name}: what is to be done?", page.name);
    }
    let sections = page.prose.lines().filter(|line| line.starts_with("#### ")).count();
    assert_eq!(sections, ErrorName::ALL.len(), "{}: a section for an error that there is not", page.name);
}

/// The keys of the configuration file that is installed, commented out or not.
fn configuration_keys() -> Vec<String> {
    let text = read("packaging/mdevd.toml");
    let key = |line: &str| {
        let (key, _) = line.trim_start_matches('#').split_once(" = ")?;
        key.chars().all(|c| c.is_ascii_lowercase() || c == '-').then(|| key.to_owned())
    };
    text.lines().filter_map(key).collect()
}

#[test]
fn every_key_is_explained() {
    let rows = |name: &str| {
        let page = page(name);
        let rows: Vec<&str> = page.prose.lines().filter(|line| line.starts_with("| `")).collect();
        // Of a row the first column counts.
        without_code(&rows.iter().map(|row| row.split(" | ").next().unwrap()).collect::<Vec<_>>().join("\n")).0
    };
    let explained = rows("docs/administrators.md");
    let keys = configuration_keys();
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        assert!(explained.contains(&key), "docs/administrators.md does not explain '{key}' of mdevd.toml");
    }
    let explained = rows("docs/libvirt-users.md");
    for key in mdevd_core::request::KEYS {
        assert!(explained.iter().any(|known| known == key), "docs/libvirt-users.md does not explain '{key}'");
    }
}

#[test]
fn verbs_that_pages_name_exist() {
    let help = read("mdevd/ctl/tests/golden/help.txt");
    let verbs: BTreeSet<&str> =
        help.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  ")).map(|v| v.0).collect();
    for page in pages() {
        let blocks = page.blocks.iter().flat_map(|block| block.lines.iter().cloned());
        for text in without_code(&page.prose).0.into_iter().chain(blocks) {
            let words: Vec<&str> = text.split_whitespace().collect();
            for pair in words.windows(2).filter(|pair| pair[0].ends_with("hostdevctl")) {
                let verb = pair[1].trim_matches(|c: char| !c.is_ascii_alphanumeric());
                // One that is hidden from the help has its file all the same.
                let hidden = root().join(format!("mdevd/ctl/src/verbs/{verb}.rs")).exists();
                assert!(
                    pair[1].starts_with('-') || verbs.contains(verb) || hidden,
                    "{}: there is no '{verb}' in: {text}",
                    page.name
                );
            }
        }
    }
}

/// Every file of the repository that is not made by a build, by its path.
fn files(dir: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let made = ["target", "dist", ".git", "vendor"].iter().any(|made| name == *made);
        if made && dir == root() {
            continue;
        }
        into.push(path.strip_prefix(root()).unwrap().display().to_string());
        if path.is_dir() && !path.is_symlink() {
            files(&path, into);
        }
    }
}

#[test]
fn files_that_pages_name_exist() {
    let mut there = Vec::new();
    files(&root(), &mut there);
    for name in ["CONTRIBUTING.md", "README.md"] {
        for code in without_code(&page(name).prose).0 {
            let source = [".rs", ".sh", ".xml"].iter().any(|end| code.ends_with(end)) || code.starts_with("tests/");
            if source && !code.contains(['*', ' ', '<']) {
                let named = |file: &&String| **file == code || file.ends_with(&format!("/{code}"));
                assert!(there.iter().any(|file| named(&file)), "{name}: there is no {code}");
            }
        }
    }
}

/// The example of the crate of the bus, built as the tests are.
fn example() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let dir = exe.ancestors().find(|dir| dir.ends_with("debug") || dir.ends_with("release")).unwrap().to_owned();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(root()).args(["build", "--quiet", "--workspace", "--example", "acquire", "--target-dir"]);
    build.arg(dir.parent().unwrap());
    if dir.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo runs").success(), "the example does not build");
    dir.join("examples/acquire")
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_example_in_rust_runs() {
    let host = fakesys::host().parent("0000:81:00.0").mdev_type("nvidia-63", 1).mount().unwrap();
    host.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let _daemon = Daemon::start(&host, &bus).await;
    // An ordinary user needs somebody who allows.
    let _polkit = FakePolkit::start(&bus, Verdict::Allow).await;
    let (program, address) = (example(), bus.address().to_owned());
    let acquire = |mdev_type: &str| {
        let mut command = tokio::process::Command::new(&program);
        command.arg(mdev_type).env("DBUS_SYSTEM_BUS_ADDRESS", &address).output()
    };

    let output = acquire("nvidia-63").await.unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("0000:81:00.0: 1 free of type nvidia-63\n"), "{stdout}");
    assert!(stdout.contains("gpu0 is ") && stdout.contains("<hostdev mode='subsystem' type='mdev'"), "{stdout}");
    assert!(stdout.ends_with("given back\n"), "{stdout}");
    assert_eq!(host.mdevs(), []);

    let output = acquire("nvidia-9999").await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).1.starts_with("NotFound: no parent on this host offers the type nvidia-9999"), "{output:?}");
    // The only one is taken by somebody else.
    let manager = bus.manager().await;
    manager.create_mdev("nvidia-63", &Default::default()).await.unwrap();
    let output = acquire("nvidia-63").await.unwrap();
    assert!(said(&output).1.starts_with("all are taken: "), "{output:?}");
}
