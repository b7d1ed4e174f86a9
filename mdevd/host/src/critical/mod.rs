//! What of the host lives on a PCI function, so that no virtual machine is given it: mounted file systems and swap, the default route and
//! bonds, the boot display and the console; and the bridges above those.
//!
//! What cannot be read is a [`Problem`]. Without the list of mounts or swap every disk may be needed, and without the routes every network
//! interface: then all of them are.

mod network;
mod storage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mdevd_core::names::PciAddress;

use crate::error::{EffectError, Problem};
use crate::read;
use crate::roots::Roots;

/// The most that is said of one function.
const CLAUSES: usize = 8;

/// PCI's class of displays, the highest of the class's three bytes.
const DISPLAY: &str = "0x03";

/// Which functions the host needs, and why: clauses that follow on the function's address, like `carries / on nvme0n1p2`. Blocks.
pub fn host_critical(roots: &Roots) -> (BTreeMap<PciAddress, Vec<String>>, Vec<Problem>) {
    let mut search = Search { roots, found: BTreeMap::new(), problems: Vec::new() };
    let network = network::Network::read(&mut search);
    storage::look(&mut search, &network);
    network.look(&mut search);
    displays(&mut search);
    consoles(&mut search);
    search.finish()
}

/// The display that the firmware has used, and the first screen of the text console. Others are a driver's, which it makes for every
/// card that it finds.
fn displays(search: &mut Search<'_>) {
    let devices = search.roots.sys.join("bus/pci/devices");
    for name in search.folder(&devices) {
        let device = devices.join(name);
        let is = |search: &mut Search<'_>, attribute: &str, value: &str| {
            search.optional(read::optional_attribute(&device.join(attribute))).is_some_and(|is| is.starts_with(value))
        };
        if is(search, "class", DISPLAY) && (is(search, "boot_vga", "1") || is(search, "boot_display", "1")) {
            search.note_at(&device, "is the boot display");
        }
    }
    let screen = search.roots.sys.join("class/graphics/fb0/device");
    if search.exists(&screen) {
        search.note_at(&screen, "is the display of the text console (fb0)");
    }
}

/// The serial ports that the kernel writes its messages to.
fn consoles(search: &mut Search<'_>) {
    let class = search.roots.sys.join("class/tty");
    let active = search.optional(read::optional_attribute(&class.join("console/active"))).unwrap_or_default();
    for name in active.split_whitespace().filter(|name| is_name(name)) {
        search.note_at(&class.join(name), &format!("is the console ({name})"));
    }
}

/// What is known of a function.
#[derive(Default)]
struct Found {
    /// Why it is needed.
    clauses: Vec<String>,
    /// What is above it, from the top.
    above: Vec<PciAddress>,
}

/// What has been found so far.
struct Search<'a> {
    roots: &'a Roots,
    found: BTreeMap<PciAddress, Found>,
    problems: Vec<Problem>,
}

impl Search<'_> {
    /// Says of the function that this device is, or is on, why it is needed; of a virtual function's physical one too. False when it is on
    /// none. `device` is a resolved path: the functions on it, from the top, are bridges and, at last, the function.
    fn note(&mut self, device: &Path, clause: &str) -> bool {
        let Some((function, folder)) = self.add(device, clause) else { return false };
        if let Some(physfn) = self.optional(read::link(&folder.join("physfn")))
            && let Some(physical) = self.real(&folder.join(physfn))
        {
            self.add(&physical, &format!("has the virtual function {function}, which {clause}"));
        }
        true
    }

    /// The same for a path that is not resolved.
    fn note_at(&mut self, path: &Path, clause: &str) {
        if let Some(device) = self.real(path) {
            self.note(&device, clause);
        }
    }

    /// The function and its folder.
    fn add(&mut self, device: &Path, clause: &str) -> Option<(PciAddress, PathBuf)> {
        let mut above: Vec<PciAddress> = Vec::new();
        let mut function = None;
        let mut path = PathBuf::new();
        for part in device.components() {
            path.push(part);
            if let Some(address) = part.as_os_str().to_str().and_then(|name| name.parse().ok()) {
                above.extend(function.replace((address, path.clone())).map(|(bridge, _)| bridge));
            }
        }
        let (address, folder) = function?;
        let found = self.found.entry(address).or_default();
        found.above = above;
        if !found.clauses.iter().any(|known| known == clause) {
            found.clauses.push(clause.to_owned());
        }
        Some((address, folder))
    }

    fn finish(self) -> (BTreeMap<PciAddress, Vec<String>>, Vec<Problem>) {
        let mut critical: BTreeMap<PciAddress, Vec<String>> = BTreeMap::new();
        for (address, found) in &self.found {
            for bridge in &found.above {
                let why = match found.clauses.as_slice() {
                    [one] => one.clone(),
                    [first, ..] => format!("{first}, among other things"),
                    [] => continue,
                };
                critical.entry(*bridge).or_default().push(format!("is the bridge above {address}, which {why}"));
            }
        }
        for (address, found) in self.found {
            // What a bridge is needed for itself comes first.
            let said = critical.entry(address).or_default();
            said.splice(..0, found.clauses);
        }
        for said in critical.values_mut().filter(|said| said.len() > CLAUSES) {
            let more = said.len() - CLAUSES;
            said.truncate(CLAUSES);
            said.push(format!("is needed for {more} more such things"));
        }
        (critical, self.problems)
    }

    /// Where a path leads to.
    fn real(&mut self, path: &Path) -> Option<PathBuf> {
        let real = std::fs::canonicalize(path).map_err(|error| EffectError::io("resolve", path, &error));
        self.optional(real.map(Some))
    }

    /// The names in a folder, none where there is no such folder.
    fn folder(&mut self, path: &Path) -> Vec<String> {
        self.optional(read::folder(path)).unwrap_or_default()
    }

    fn exists(&mut self, path: &Path) -> bool {
        self.optional(read::exists(path).map(Some)).unwrap_or(false)
    }

    /// What was read; what could not be is a problem.
    fn optional<T>(&mut self, result: Result<Option<T>, EffectError>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.problem(error.into());
            None
        })
    }

    /// The same for what says which devices the host needs; `unread` becomes why it is not known of all.
    fn needed<T>(&mut self, result: Result<T, impl Into<Problem>>, unread: &mut Option<String>) -> Option<T> {
        let problem = match result {
            Ok(value) => return Some(value),
            Err(error) => error.into(),
        };
        *unread = Some(format!("which does is not known: {problem}"));
        self.problem(problem);
        None
    }

    fn problem(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Whether this is one name, and so stays in the folder that it is looked for in.
fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains(['/', '\0'])
}
