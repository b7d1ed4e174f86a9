//! What the hook has to do with `/run/mdevd`: it reads the claim of its domain, and leaves a mark when the end of a run
//! could not be told.
//!
//! | file | |
//! |---|---|
//! | `claims/UUID.json` | the daemon's; read for `run` only |
//! | `manage` | the daemon's; the PCI functions that are claimed also without a request, an address or a card a line |
//! | `released/UUID` | written here, whole or not at all: JSON with `run` and `reason`; gone when the daemon knows |

use std::{
    env,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    process,
};

use mdevd_core::names::PciSelector;
use rustix::process::geteuid;
use serde_json::{Value, json};
use uuid::Uuid;

/// `/run/mdevd`.
#[derive(Debug)]
pub struct State(PathBuf);

/// As much of a claim as the hook needs.
#[derive(Debug)]
pub struct Claim {
    /// Which start of the domain it is for; `None` when that cannot be read.
    pub run: Option<String>,
}

impl State {
    /// Where the state of the system's mdevd is; `None` for an ordinary user, whose `qemu:///session` runs the same
    /// hooks but has no devices to give. libvirt passes no variable of ours on: `MDEVD_RUN_DIR` is for tests.
    pub fn of_system() -> Option<Self> {
        match env::var_os("MDEVD_RUN_DIR") {
            Some(run) => Some(Self(PathBuf::from(run).join("mdevd"))),
            None if geteuid().is_root() => Some(Self(PathBuf::from("/run/mdevd"))),
            None => None,
        }
    }

    /// The claim of a domain, whose id is the domain's UUID; `None` when there is none.
    pub fn claim(&self, domain: Uuid) -> Option<Claim> {
        let path = self.0.join("claims").join(format!("{domain}.json"));
        match fs::read(path) {
            Ok(text) => {
                let claim: Option<Value> = serde_json::from_slice(&text).ok();
                let run = claim.as_ref().and_then(|claim| claim.get("run")).and_then(Value::as_str);
                Some(Claim { run: run.map(str::to_owned) })
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            // There is one, for all that can be known.
            Err(_) => Some(Claim { run: None }),
        }
    }

    /// The PCI functions that the daemon claims also for a domain that has no request.
    pub fn managed(&self) -> Vec<PciSelector> {
        // Whatever else is there, a start does not fail over it.
        let text = fs::read_to_string(self.0.join("manage")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Leaves word for a daemon that does not answer: this run has ended. The name of the unfinished file begins with a
    /// dot, and is no UUID.
    pub fn mark_released(&self, domain: Uuid, run: &str, reason: &str) -> io::Result<()> {
        let dir = self.0.join("released");
        let unfinished = dir.join(format!(".{domain}.{}", process::id()));
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        let written = writeln!(file, "{}", json!({"run": run, "reason": reason}))
            .and_then(|()| fs::rename(&unfinished, self.mark(domain)));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }

    /// The daemon has heard of it after all.
    pub fn unmark_released(&self, domain: Uuid) {
        let _ = fs::remove_file(self.mark(domain));
    }

    fn mark(&self, domain: Uuid) -> PathBuf {
        self.0.join("released").join(domain.to_string())
    }
}
