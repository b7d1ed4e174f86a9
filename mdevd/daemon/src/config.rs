//! Configuration: `/etc/mdevd/mdevd.toml` and drop-ins, each key optional, an unknown one an error with file, line and the nearest key.
//!
//! Read in this order, a later file overriding single keys of an earlier: `/usr/lib/mdevd/conf.d/*.toml`, `/etc/mdevd/mdevd.toml`,
//! `/etc/mdevd/conf.d/*.toml`, the drop-ins by file name; a drop-in in `/etc` hides one of the same name in `/usr/lib`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mdevd_core::choose::Placement;
use mdevd_core::names::{ParentName, PciSelector};
use mdevd_core::suggest::nearest;
use serde::Deserialize;

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What is logged: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: tracing::Level,
    /// Parents that are never chosen.
    pub excluded: BTreeSet<ParentName>,
    /// Which of several parents is taken.
    pub placement: Placement,
    /// PCI functions, and cards, that are claimed for a domain that has them in its XML without a request.
    pub manage: BTreeSet<PciSelector>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: tracing::Level::INFO,
            excluded: BTreeSet::new(),
            placement: Placement::default(),
            manage: BTreeSet::new(),
        }
    }
}

/// Why the configuration cannot be used: `FILE:LINE: what is wrong`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{at}: {why}", file = file.display(), at = line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub why: String,
}

/// One file. Every key is optional; what is absent keeps the value of an earlier file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Fragment {
    log_level: Option<LogLevel>,
    mdev: Option<MdevFragment>,
    pci: Option<PciFragment>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MdevFragment {
    exclude_parents: Option<Vec<ParentName>>,
    placement: Option<PlacementWord>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PciFragment {
    manage: Option<Vec<PciSelector>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PlacementWord {
    Pack,
    Spread,
}

const KEYS: [&str; 6] = ["log-level", "mdev", "exclude-parents", "placement", "pci", "manage"];

/// Where a key of [`KEYS`] belongs.
fn place(key: &str) -> Option<&'static str> {
    match key {
        "log-level" => Some("belongs above the first [table]"),
        "exclude-parents" | "placement" => Some("belongs below [mdev]"),
        "manage" => Some("belongs below [pci]"),
        "mdev" => Some("is a table of its own: [mdev]"),
        "pci" => Some("is a table of its own: [pci]"),
        _ => None,
    }
}

/// Reads the configuration below `etc` and `usr_lib` (`/etc`, `/usr/lib`). Files that do not exist are no error.
///
/// # Errors
/// The first [`ConfigError`].
pub fn load(etc: &Path, usr_lib: &Path) -> Result<Config, ConfigError> {
    let mut drop_ins: BTreeMap<_, PathBuf> = BTreeMap::new();
    let mut vendor: BTreeMap<_, PathBuf> = BTreeMap::new();
    for path in toml_files(&usr_lib.join("mdevd/conf.d"))? {
        vendor.insert(path.file_name().map(ToOwned::to_owned), path);
    }
    for path in toml_files(&etc.join("mdevd/conf.d"))? {
        vendor.remove(&path.file_name().map(ToOwned::to_owned));
        drop_ins.insert(path.file_name().map(ToOwned::to_owned), path);
    }
    let main = etc.join("mdevd/mdevd.toml");
    let mut config = Config::default();
    for path in vendor.into_values().chain([main]).chain(drop_ins.into_values()) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ConfigError { file: path, line: None, why: format!("cannot be read: {error}") }),
        };
        let fragment = parse(&text).map_err(|(line, why)| ConfigError { file: path, line, why })?;
        apply(&mut config, fragment);
    }
    Ok(config)
}

fn toml_files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |error: std::io::Error| ConfigError {
        file: dir.to_owned(),
        line: None,
        why: format!("cannot be read: {error}"),
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    Ok(paths.map_err(unreadable)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "toml")).collect())
}

fn parse(text: &str) -> Result<Fragment, (Option<usize>, String)> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        let message = error.message();
        // toml names the unknown key in backquotes, first in the message.
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let why = match unknown {
            // One that there is stands in the wrong place.
            Some(key) => match (place(key), nearest(key, KEYS)) {
                (Some(place), _) => format!("'{key}' {place}"),
                (None, Some(known)) => format!("unknown key '{key}'; did you mean '{known}'?"),
                (None, None) => format!("unknown key '{key}'; the keys are {}", KEYS.join(", ")),
            },
            None => match line.and_then(|line| key_at(text, line)) {
                Some(key) => format!("'{key}': {message}"),
                None => message.to_string(),
            },
        };
        (line, why)
    })
}

/// The key whose value a line is part of, which it names itself or one above it does. None where the text is no TOML, and for a table.
fn key_at(text: &str, line: usize) -> Option<&'static str> {
    toml::from_str::<toml::Table>(text).ok()?;
    let lines: Vec<&str> = text.lines().take(line).filter(|line| !line.trim_start().starts_with('#')).collect();
    let line = lines.into_iter().rev().find(|line| line.contains('=') || line.trim_start().starts_with('['))?;
    let (key, _) = line.split_once('=')?;
    let key = key.rsplit('.').next()?.trim_matches([' ', '\t', '"', '\'']);
    KEYS.into_iter().find(|known| *known == key)
}

fn apply(config: &mut Config, fragment: Fragment) {
    if let Some(level) = fragment.log_level {
        config.log_level = match level {
            LogLevel::Error => tracing::Level::ERROR,
            LogLevel::Warn => tracing::Level::WARN,
            LogLevel::Info => tracing::Level::INFO,
            LogLevel::Debug => tracing::Level::DEBUG,
            LogLevel::Trace => tracing::Level::TRACE,
        };
    }
    let mdev = fragment.mdev.unwrap_or_default();
    if let Some(parents) = mdev.exclude_parents {
        config.excluded = parents.into_iter().collect();
    }
    if let Some(placement) = mdev.placement {
        config.placement = match placement {
            PlacementWord::Pack => Placement::Pack,
            PlacementWord::Spread => Placement::Spread,
        };
    }
    if let Some(manage) = fragment.pci.unwrap_or_default().manage {
        config.manage = manage.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_from(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        load(&root.path().join("etc"), &root.path().join("usr/lib"))
    }

    #[test]
    fn nothing_is_a_configuration() {
        assert_eq!(load_from(&[]), Ok(Config::default()));
    }

    #[test]
    fn later_files_override_single_keys() {
        let config = load_from(&[
            ("usr/lib/mdevd/conf.d/50-site.toml", "log-level = 'error'\n"),
            ("usr/lib/mdevd/conf.d/60-hidden.toml", "log-level = 'trace'\n"),
            ("etc/mdevd/mdevd.toml", "[mdev]\nplacement = 'spread'\nexclude-parents = ['0000:41:00.0']\n"),
            ("etc/mdevd/conf.d/60-hidden.toml", ""),
            (
                "etc/mdevd/conf.d/70-last.toml",
                "[mdev]\nexclude-parents = ['mtty']\n[pci]\nmanage = ['0000:41:00.0', '81:00']\n",
            ),
            ("etc/mdevd/conf.d/README", "not read"),
        ])
        .unwrap();
        assert_eq!(config.log_level, tracing::Level::ERROR);
        assert_eq!(config.placement, Placement::Spread);
        assert_eq!(config.excluded, BTreeSet::from(["mtty".parse().unwrap()]));
        assert_eq!(config.manage, ["0000:41:00.0", "0000:81:00"].iter().map(|text| text.parse().unwrap()).collect());
    }

    /// The keys that serde names when it meets one that it does not know.
    fn keys_of(table: &str) -> Vec<String> {
        let (_, why) = toml::from_str::<Fragment>(&format!("{table}no-such-key = 1\n"))
            .map_err(|error| error.message().split_once(", expected ").map(|(a, b)| (a.to_owned(), b.to_owned())))
            .unwrap_err()
            .unwrap();
        why.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_installed_file_has_every_key_with_its_default() {
        let installed = include_str!("../../../packaging/mdevd.toml");
        assert_eq!(load_from(&[("etc/mdevd/mdevd.toml", installed)]), Ok(Config::default()));
        // A comment has a blank after its sign, a key has none.
        let uncomment = |line: &str| {
            let key = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            format!("{}\n", key.unwrap_or(line))
        };
        let set: String = installed.lines().map(uncomment).collect();
        assert_eq!(load_from(&[("etc/mdevd/mdevd.toml", &set)]), Ok(Config::default()));

        let (mut there, mut known) = (BTreeSet::new(), BTreeSet::from_iter(keys_of("")));
        for (key, value) in toml::from_str::<toml::Table>(&set).unwrap() {
            if let Some(table) = value.as_table() {
                assert_eq!(place(&key).unwrap(), format!("is a table of its own: [{key}]"));
                for inner in table.keys() {
                    assert_eq!(place(inner).unwrap(), format!("belongs below [{key}]"));
                }
                there.extend(table.keys().cloned());
                known.extend(keys_of(&format!("[{key}]\n")));
            } else {
                assert_eq!(place(&key).unwrap(), "belongs above the first [table]");
            }
            there.insert(key);
        }
        assert_eq!(there, known);
        assert_eq!(there, KEYS.map(str::to_owned).into());
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let error = |text| {
            let error = load_from(&[("etc/mdevd/mdevd.toml", text)]).unwrap_err();
            assert!(error.file.ends_with("etc/mdevd/mdevd.toml"));
            format!("{}: {}", error.line.unwrap_or(0), error.why)
        };
        assert_eq!(
            error("\n[mdev]\nexclude-parent = []\n"),
            "3: unknown key 'exclude-parent'; did you mean 'exclude-parents'?"
        );
        assert_eq!(
            error("colour = 1\n"),
            "1: unknown key 'colour'; the keys are log-level, mdev, exclude-parents, placement, pci, manage"
        );
        assert_eq!(error("placement = 'pack'\n"), "1: 'placement' belongs below [mdev]");
        assert_eq!(error("[pci]\nplacement = 'pack'\n"), "2: 'placement' belongs below [mdev]");
        assert_eq!(error("[mdev]\nlog-level = 'debug'\n"), "2: 'log-level' belongs above the first [table]");
        assert_eq!(error("[mdev]\npci = []\n"), "2: 'pci' is a table of its own: [pci]");
        // A value that is wrong, where it stands and of which key.
        for (text, place, word) in [
            ("[mdev]\nplacement = 'tight'\n", "2: 'placement': ", "unknown variant `tight`"),
            ("mdev.\"placement\" = 'tight'\n", "1: 'placement': ", "unknown variant `tight`"),
            ("[mdev]\nexclude-parents = ['a/b']\n", "2: 'exclude-parents': ", "contains '/'"),
            ("[mdev]\nexclude-parents = 7\n", "2: 'exclude-parents': ", "invalid type"),
            (
                "[mdev]\nplacement = 'pack'\nexclude-parents = [\n  'mtty',\n# a = b\n  'a/b',\n]\n",
                "3: 'exclude-parents': ",
                "/",
            ),
            ("[pci]\nmanage = [\n# a = b\n  7,\n]\n", "4: 'manage': ", "invalid type"),
            ("[pci]\nmanage = ['0000:41:0']\n", "2: 'manage': ", "'0000:41:0' is not a PCI card"),
        ] {
            let error = error(text);
            assert!(error.starts_with(place) && error.contains(word), "{text}: {error}");
        }
        // What is no TOML has no keys, and a table is none of the keys above it.
        for text in ["log-level = 'info'\nx =\n", "log-level = 'info'\n[[mdev]]\nplacement = 'pack'\n"] {
            let error = error(text);
            assert!(error.starts_with("2: ") && !error.contains("log-level"), "{error}");
        }
    }
}
