//! The kernel's VFIO drivers for particular devices, which can do what `vfio-pci` cannot (`mlx5_vfio_pci`: live migration). They are
//! bound by name alone, and modules tell by an alias which devices they are for: `alias vfio_pci:v…d… MODULE` in `modules.alias`.

use std::path::Path;

use mdevd_core::function::PciIds;
use mdevd_core::names::DriverName;

use crate::error::{EffectError, Problem};
use crate::read;
use crate::roots::Roots;

use super::lines::each_line;

/// The driver for all devices, which is no variant.
const PLAIN: &str = "vfio_pci";

/// Which modules have a VFIO driver for which devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VariantDrivers {
    aliases: Vec<(String, DriverName)>,
}

impl VariantDrivers {
    /// Those of the running kernel. `modules` is the folder with a folder for each kernel, `/lib/modules`; a kernel without one has none.
    pub fn load(roots: &Roots, modules: &Path) -> (Self, Vec<Problem>) {
        let release = match read::optional_attribute(&roots.kernel_release_file()) {
            Ok(Some(release)) => release,
            Ok(None) => return Self::none(vec![]),
            Err(error) => return Self::none(vec![error.into()]),
        };
        // It is one component of a path, and so is what a driver's name may be.
        if release.parse::<DriverName>().is_err() {
            let error = EffectError::new("make sense of", roots.kernel_release_file(), rustix::io::Errno::INVAL);
            return Self::none(vec![error.into()]);
        }
        let mut found = Self::default();
        match each_line(&modules.join(release).join("modules.alias"), |line| found.aliases.extend(alias(line))) {
            Ok(_) => (found, vec![]),
            Err(problem) => Self::none(vec![problem]),
        }
    }

    /// The text of a `modules.alias`.
    pub fn parse(text: &str) -> Self {
        Self { aliases: text.lines().filter_map(alias).collect() }
    }

    fn none(problems: Vec<Problem>) -> (Self, Vec<Problem>) {
        (Self::default(), problems)
    }

    /// The drivers for a device, the most particular first.
    pub fn of(&self, ids: &PciIds, class: u32) -> Vec<DriverName> {
        let device = format!(
            "v{:08X}d{:08X}sv{:08X}sd{:08X}bc{:02X}sc{:02X}i{:02X}",
            ids.vendor,
            ids.device,
            ids.subsystem_vendor,
            ids.subsystem_device,
            class >> 16 & 0xff,
            class >> 8 & 0xff,
            class & 0xff
        );
        let fits = self.aliases.iter().filter(|(pattern, _)| matches(pattern, &device));
        let mut drivers: Vec<(usize, &DriverName)> =
            fits.map(|(pattern, driver)| (pattern.matches('*').count(), driver)).collect();
        drivers.sort_unstable();
        let mut names: Vec<DriverName> = Vec::new();
        for (_, driver) in drivers {
            if !names.contains(driver) {
                names.push(driver.clone());
            }
        }
        names
    }
}

/// What a line says for which devices.
fn alias(line: &str) -> Option<(String, DriverName)> {
    let (pattern, module) = line.strip_prefix("alias vfio_pci:")?.split_once(' ')?;
    let driver: DriverName = module.trim().parse().ok().filter(|driver: &DriverName| driver.as_str() != PLAIN)?;
    Some((pattern.to_owned(), driver))
}

/// Whether a pattern, in which `*` stands for any text, is the whole of `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*');
    let last = parts.next_back().unwrap_or_default();
    for part in parts {
        // The first place is as good as any later one: it leaves the most to the rest.
        let Some((_, after)) = text.split_once(part) else { return false };
        text = after;
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "\
# Aliases extracted from modules themselves.
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:v000015B3d*sv*sd*bc02sc00i* any_vfio_pci
alias vfio_pci:v000015B3d0000101Esv000015B3sd00000001bc*sc*i* exact_vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* ../evil
alias vfio_pci:v000015B3d0000101Esv000015B3sd00000001bc02sc00i00 any_vfio_pci
";

    fn of(device: u16, subsystem_device: u16, class: u32) -> Vec<String> {
        let ids = PciIds { vendor: 0x15b3, device, subsystem_vendor: 0x15b3, subsystem_device };
        VariantDrivers::parse(FILE).of(&ids, class).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_most_particular_driver_comes_first_and_each_once() {
        assert_eq!(of(0x101e, 1, 0x02_00_00), ["any_vfio_pci", "exact_vfio_pci", "mlx5_vfio_pci"]);
        assert_eq!(of(0x101e, 2, 0x02_00_00), ["any_vfio_pci", "mlx5_vfio_pci"]);
        assert_eq!(of(0x101e, 2, 0x02_07_00), ["mlx5_vfio_pci"]);
        assert_eq!(of(0x1021, 2, 0x02_00_00), ["any_vfio_pci"]);
        assert_eq!(of(0x1021, 2, 0x01_08_02), [""; 0]);
    }

    #[test]
    fn the_running_kernels_list_is_the_one_that_counts() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), ..Roots::default() };
        let modules = dir.path().join("modules");
        assert_eq!(VariantDrivers::load(&roots, &modules), (VariantDrivers::default(), vec![]));
        let release = roots.kernel_release_file();
        std::fs::create_dir_all(release.parent().unwrap()).unwrap();
        std::fs::write(&release, "6.12.1-amd64\n").unwrap();
        assert_eq!(VariantDrivers::load(&roots, &modules), (VariantDrivers::default(), vec![]));
        for (kernel, content) in [("6.12.1-amd64", FILE), ("6.1.0-amd64", "")] {
            std::fs::create_dir_all(modules.join(kernel)).unwrap();
            std::fs::write(modules.join(kernel).join("modules.alias"), content).unwrap();
        }
        assert_eq!(VariantDrivers::load(&roots, &modules), (VariantDrivers::parse(FILE), vec![]));
        std::fs::write(&release, "../x\n").unwrap();
        let (none, problems) = VariantDrivers::load(&roots, &modules);
        assert_eq!((none, problems.len()), (VariantDrivers::default(), 1));
        assert!(problems[0].to_string().contains("osrelease: cannot make sense of it"), "{problems:?}");
    }

    /// The meaning of a pattern, said in the simplest way.
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|n| fits(rest, &text[n..])),
            Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && fits(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_means_what_it_says(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), fits(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn a_device_fits_its_own_alias_and_no_text_panics(vendor: u16, device: u16, class in 0u32..0x0100_0000, text in "(alias vfio_pci:\\PC*\n|\\PC*\n){0,5}") {
            let ids = PciIds { vendor, device, subsystem_vendor: vendor, subsystem_device: device };
            let own = format!("alias vfio_pci:v{vendor:08X}d{device:08X}sv*sd*bc*sc*i* own\n{text}");
            prop_assert!(VariantDrivers::parse(&own).of(&ids, class).iter().any(|driver| driver.as_str() == "own"));
        }
    }
}
