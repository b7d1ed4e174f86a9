//! What people call PCI devices, from the system's `pci.ids`, which `lspci` reads as well. It is read at run time, so that it is as new as
//! the administrator keeps it, and only the few names that this host needs are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mdevd_core::function::PciIds;

use crate::error::Problem;

use super::lines::each_line;

/// The longest name that is kept, in characters.
const LONGEST: usize = 120;

/// The names of some vendors, devices and subsystems; by default of none.
#[derive(Debug, Default)]
pub struct PciNames {
    paths: Vec<PathBuf>,
    known: Mutex<BTreeMap<PciIds, Named>>,
}

#[derive(Debug, Clone, Default)]
struct Named {
    name: String,
    subsystem: String,
}

impl PciNames {
    /// Reads the names of these devices from the first of the files that is there and can be read, and says what is wrong with those
    /// before it. Without any, every name is empty.
    pub fn load(paths: &[impl AsRef<Path>], wanted: &BTreeSet<PciIds>) -> (Self, Vec<Problem>) {
        let paths: Vec<PathBuf> = paths.iter().map(|path| path.as_ref().to_owned()).collect();
        let (found, problems) = look_up(&paths, wanted);
        (Self { paths, known: Mutex::new(found) }, problems)
    }

    /// Vendor and device: `NVIDIA Corporation AD102GL [L40S]`; a device that is not known has its number for its name, as with `lspci`:
    /// `NVIDIA Corporation Device 26b9`. Empty where the vendor is not known. A device that was not among those wanted, as one that was
    /// plugged in later, costs one reading of the file.
    pub fn name(&self, ids: &PciIds) -> String {
        self.named(ids).name
    }

    /// Who made the card and what they call it, in the same way: `Red Hat, Inc. QEMU Virtual Machine`.
    pub fn subsystem(&self, ids: &PciIds) -> String {
        self.named(ids).subsystem
    }

    fn named(&self, ids: &PciIds) -> Named {
        // Nothing that runs under this lock panics, and a map is whole after each insertion.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(ids) {
            known.extend(look_up(&self.paths, &BTreeSet::from([*ids])).0);
        }
        known.get(ids).cloned().unwrap_or_default()
    }
}

fn look_up(paths: &[PathBuf], wanted: &BTreeSet<PciIds>) -> (BTreeMap<PciIds, Named>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut found = Found::wanting(wanted);
    for path in paths {
        let mut reader = Reader::default();
        match each_line(path, |line| reader.take(line, &mut found)) {
            Ok(true) => break,
            Ok(false) => {}
            Err(problem) => {
                problems.push(problem);
                found = Found::wanting(wanted);
            }
        }
    }
    (wanted.iter().map(|ids| (*ids, found.named(ids))).collect(), problems)
}

/// What is looked for, each with its name once that has been found.
struct Found {
    vendors: BTreeMap<u16, Option<String>>,
    devices: BTreeMap<(u16, u16), Option<String>>,
    subsystems: BTreeMap<PciIds, Option<String>>,
}

impl Found {
    fn wanting(wanted: &BTreeSet<PciIds>) -> Self {
        Self {
            vendors: wanted.iter().flat_map(|ids| [(ids.vendor, None), (ids.subsystem_vendor, None)]).collect(),
            devices: wanted.iter().map(|ids| ((ids.vendor, ids.device), None)).collect(),
            subsystems: wanted.iter().map(|ids| (*ids, None)).collect(),
        }
    }

    fn named(&self, ids: &PciIds) -> Named {
        let full = |vendor: u16, device: u16, name: Option<&String>| match self.vendors.get(&vendor) {
            Some(Some(vendor)) => match name {
                Some(name) => format!("{vendor} {name}"),
                None => format!("{vendor} Device {device:04x}"),
            },
            _ => String::new(),
        };
        let device = self.devices.get(&(ids.vendor, ids.device)).and_then(Option::as_ref);
        // Makers that sell their own cards often repeat the device's numbers.
        let repeated = (ids.subsystem_vendor, ids.subsystem_device) == (ids.vendor, ids.device);
        let subsystem = self.subsystems.get(ids).and_then(Option::as_ref).or(if repeated { device } else { None });
        Named {
            name: full(ids.vendor, ids.device, device),
            subsystem: full(ids.subsystem_vendor, ids.subsystem_device, subsystem),
        }
    }
}

/// Where in the file it is: a vendor at the beginning of a line, its devices after a tab, their subsystems after two.
#[derive(Default)]
struct Reader {
    vendor: Option<u16>,
    device: Option<u16>,
}

impl Reader {
    fn take(&mut self, line: &str, found: &mut Found) {
        if line.is_empty() || line.starts_with('#') {
            return;
        }
        if let Some(rest) = line.strip_prefix("\t\t") {
            let (Some(vendor), Some(device)) = (self.vendor, self.device) else { return };
            let Some((subsystem_vendor, rest)) = number(rest) else { return };
            let Some((subsystem_device, name)) = number(rest) else { return };
            keep(found.subsystems.get_mut(&PciIds { vendor, device, subsystem_vendor, subsystem_device }), name);
        } else if let Some(rest) = line.strip_prefix('\t') {
            self.device = None;
            let (Some(vendor), Some((device, name))) = (self.vendor, number(rest)) else { return };
            self.device = Some(device);
            keep(found.devices.get_mut(&(vendor, device)), name);
        } else {
            // Classes follow the vendors, in lines that begin with a letter and a blank.
            (self.vendor, self.device) = (None, None);
            let Some((vendor, name)) = number(line) else { return };
            let slot = found.vendors.get_mut(&vendor);
            // Most lines belong to vendors that nobody asks for, and are passed over.
            self.vendor = slot.is_some().then_some(vendor);
            keep(slot, name);
        }
    }
}

/// Four hexadecimal digits and what follows them after a blank.
fn number(text: &str) -> Option<(u16, &str)> {
    let (digits, rest) = text.split_once(' ')?;
    let digits = Some(digits).filter(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some((u16::from_str_radix(digits, 16).ok()?, rest.trim_start()))
}

/// The first name counts. It reaches a terminal.
fn keep(slot: Option<&mut Option<String>>, name: &str) {
    let Some(slot @ None) = slot else { return };
    let name: String = name.trim().chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    if !name.is_empty() {
        *slot = Some(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "\
# A comment
10de  NVIDIA Corporation
\t26b9  AD102GL [L40S]
\t\t10de 1851  L40S card
1af4  Red Hat, Inc.
\t1001  Virtio block device
8086  Intel Corporation
\t10c9  82576 Gigabit Network Connection
\t\t1af4 1100  QEMU Virtual Machine
\t\t8086 a01c  Gigabit ET Dual Port Server Adapter
C 02  Network controller
\t00  Ethernet controller
\t10c9  No device
";

    fn ids(vendor: u16, device: u16, subsystem_vendor: u16, subsystem_device: u16) -> PciIds {
        PciIds { vendor, device, subsystem_vendor, subsystem_device }
    }

    fn file(content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pci.ids");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn names(content: impl AsRef<[u8]>, wanted: &[PciIds]) -> Vec<(String, String)> {
        let (_dir, path) = file(content);
        let (names, problems) = PciNames::load(&[path], &wanted.iter().copied().collect());
        assert_eq!(problems, []);
        wanted.iter().map(|ids| (names.name(ids), names.subsystem(ids))).collect()
    }

    #[test]
    fn a_device_has_the_name_that_lspci_gives_it() {
        let table = [
            (ids(0x10de, 0x26b9, 0x10de, 0x1851), "NVIDIA Corporation AD102GL [L40S]", "NVIDIA Corporation L40S card"),
            (ids(0x10de, 0x2bb5, 0x10de, 0x204e), "NVIDIA Corporation Device 2bb5", "NVIDIA Corporation Device 204e"),
            (
                ids(0x8086, 0x10c9, 0x1af4, 0x1100),
                "Intel Corporation 82576 Gigabit Network Connection",
                "Red Hat, Inc. QEMU Virtual Machine",
            ),
            (
                ids(0x1af4, 0x1001, 0x1af4, 0x1001),
                "Red Hat, Inc. Virtio block device",
                "Red Hat, Inc. Virtio block device",
            ),
            (ids(0x1234, 0x11e8, 0x1af4, 0x1100), "", "Red Hat, Inc. Device 1100"),
            (ids(0x8086, 0x10c9, 0, 0), "Intel Corporation 82576 Gigabit Network Connection", ""),
            (ids(0x8086, 0x0000, 0x5678, 0), "Intel Corporation Device 0000", ""),
        ];
        let shown = names(FILE, &table.map(|(ids, ..)| ids));
        let expected = table.map(|(_, name, subsystem)| (name.to_owned(), subsystem.to_owned()));
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_device_that_comes_later_is_looked_up_then() {
        let (dir, path) = file(FILE);
        let (names, _) = PciNames::load(&[path], &BTreeSet::new());
        let igb = ids(0x8086, 0x10c9, 0, 0);
        assert_eq!(names.name(&igb), "Intel Corporation 82576 Gigabit Network Connection");
        // And kept.
        drop(dir);
        assert_eq!(names.name(&igb), "Intel Corporation 82576 Gigabit Network Connection");
        assert_eq!(names.name(&ids(0x10de, 0x26b9, 0, 0)), "");
    }

    #[test]
    fn the_first_file_that_can_be_read_counts_and_none_is_no_error() {
        let (dir, path) = file(FILE);
        let nvidia = ids(0x10de, 0x26b9, 0, 0);
        let wanted = BTreeSet::from([nvidia]);
        let (missing, broken) = (dir.path().join("missing"), dir.path().to_owned());
        let (names, problems) = PciNames::load(&[&missing, &broken, &path], &wanted);
        assert_eq!(names.name(&nvidia), "NVIDIA Corporation AD102GL [L40S]");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().contains("not a plain file"), "{problems:?}");
        let (names, problems) = PciNames::load(&[&missing], &wanted);
        assert_eq!((names.name(&nvidia), problems), (String::new(), vec![]));
    }

    #[test]
    fn a_broken_file_gives_what_is_whole_in_it() {
        let nvidia = ids(0x10de, 0x26b9, 0x10de, 0x1851);
        let content = b"\xff\xfe\n\t26b9  orphan\n10de  NVIDIA \xff\x1b[2JCorporation\r\n\t26b9\n\t26bx  y\n\t26b9  AD102GL\n\t26b9  twice\n\t\t10de  z\n10de";
        assert_eq!(
            names(content, &[nvidia]),
            [("NVIDIA \u{fffd}[2JCorporation AD102GL".into(), "NVIDIA \u{fffd}[2JCorporation Device 1851".into())]
        );
        let long = format!("10de  {}\n", "x".repeat(100_000));
        assert_eq!(names(long, &[nvidia])[0].0.len(), LONGEST + " Device 26b9".len());
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read() {
        let (_dir, path) = file(FILE);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(64 * 1024 * 1024).unwrap();
        let nvidia = ids(0x10de, 0x26b9, 0, 0);
        let (names, problems) = PciNames::load(&[path], &BTreeSet::from([nvidia]));
        assert_eq!(names.name(&nvidia), "");
        assert!(problems[0].to_string().contains("longer than 8 MiB"), "{problems:?}");
    }

    proptest! {
        #[test]
        fn no_file_panics(content in "([0-9a-f]{4}  \\PC{0,9}|\t{0,3}[0-9a-f ]{0,12}\\PC{0,9}|C 02|\\PC{0,20}|\n|\r|\0){0,30}", raw: Vec<u8>) {
            let wanted = [ids(0, 0, 0, 0), ids(0x10de, 0x26b9, 0x10de, 1)];
            for content in [content.as_bytes(), &raw] {
                for (name, subsystem) in names(content, &wanted) {
                    prop_assert!(!name.contains(char::is_control) && !subsystem.contains(char::is_control));
                }
            }
        }

        #[test]
        fn every_device_in_a_file_has_its_name(list in prop::collection::btree_map(1u16.., prop::collection::btree_map(any::<u16>(), "[!-~]{1,9}", 0..5), 1..5)) {
            let mut content = String::new();
            for (vendor, devices) in &list {
                content += &format!("{vendor:04x}  V{vendor:x}\n");
                for (device, name) in devices {
                    content += &format!("\t{device:04x}  {name}\n\t\t0001 0002  other\n");
                }
            }
            let wanted: Vec<PciIds> =
                list.iter().flat_map(|(v, devices)| devices.keys().map(|d| ids(*v, *d, 0, 0))).collect();
            let expected: Vec<_> = list
                .iter()
                .flat_map(|(v, devices)| devices.values().map(move |name| (format!("V{v:x} {name}"), String::new())))
                .collect();
            prop_assert_eq!(names(content, &wanted), expected);
        }
    }
}
