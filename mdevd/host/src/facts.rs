//! What the doctor is told of the host: IOMMU, firmware, boot loader, modules, libvirt and its hooks, vendors' services.
//!
//! Everything is read from files and nothing is run. What is not there says so; what cannot be read is unknown, with the reason.

mod boot;
mod services;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mdevd_core::check::facts::{CommandLine, CpuVendor, Distribution, HostFacts, Module, Surroundings, VfioFile};
use mdevd_core::names::{DriverName, printable};

use crate::error::EffectError;
use crate::read;
use crate::roots::{MODULES, Roots};

/// The longest list of modules that is read; a distribution's is below 1 MB.
const MODULES_LIMIT: usize = 16 * 1024 * 1024;

/// How much of `/proc/cpuinfo` and `/proc/interrupts` is read: their beginning says it, and on a large machine the whole is megabytes.
const BEGINNING: u64 = 256 * 1024;

/// The number that the kernel gives to the first PID namespace; a process in another one is in a container.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The parts of the system that are in no [`Roots`]: what is installed, and the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemPaths {
    /// What the machine boots from, `/boot`.
    pub boot: PathBuf,
    /// Device files, the host's `/dev`.
    pub dev: PathBuf,
    /// The folder with a folder for each kernel's modules, `/lib/modules`.
    pub modules: PathBuf,
    /// Programs, `/usr/bin`.
    pub usr_bin: PathBuf,
    /// What programs need, `/usr/lib`.
    pub usr_lib: PathBuf,
}

impl Default for SystemPaths {
    fn default() -> Self {
        Self {
            boot: "/boot".into(),
            dev: dev(),
            modules: MODULES.into(),
            usr_bin: "/usr/bin".into(),
            usr_lib: "/usr/lib".into(),
        }
    }
}

/// Device files as the first process has them: those of a service may be its own, without any of a real device. Only who may look at
/// that process sees them.
fn dev() -> PathBuf {
    let host = Path::new("/proc/1/root/dev");
    if host.is_dir() { host.to_owned() } else { "/dev".into() }
}

/// Reads what is known of the host. Blocks, but not for long: nothing is read that waits for a device.
pub fn host_facts(roots: &Roots, system: &SystemPaths) -> HostFacts {
    let mut look = Look { roots, system, problems: Vec::new() };
    let cpuinfo = look.beginning(&roots.proc.join("cpuinfo")).unwrap_or_default();
    let tables = look.folder(&roots.sys.join("firmware/acpi/tables"));
    let has_table = |name: &str| Some(tables.as_ref()?.iter().any(|table| table == name));
    let modules = look.modules();
    let libvirt = services::libvirt(&mut look);
    let mut facts = HostFacts {
        cpu: cpu_vendor(&cpuinfo),
        surroundings: look.surroundings(&cpuinfo),
        distribution: look.distribution(),
        boot_loader: boot::loader(&mut look),
        command_line: look.text(&roots.proc.join("cmdline")).map(|line| CommandLine::parse(&line)),
        iommu_units: look.folder_of_sysfs("class/iommu"),
        iommu_groups: look.iommu_groups(),
        dmar: has_table("DMAR"),
        ivrs: has_table("IVRS"),
        interrupt_remapping: flags(&cpuinfo).and_then(|_| look.interrupt_remapping()),
        unsafe_interrupts: look.unsafe_interrupts(),
        vfio: modules.state(&mut look, "vfio"),
        vfio_pci: modules.state(&mut look, "vfio-pci"),
        vfio_iommu_type1: modules.state(&mut look, "vfio_iommu_type1"),
        vfio_file: look.vfio_file(),
        libvirt: libvirt.as_ref().map(|(state, _)| *state),
        libvirt_version: services::libvirt_version(&mut look),
        memlock: libvirt.and_then(|(_, pid)| services::memlock(&mut look, pid?)),
        hook: services::hook(&mut look),
        other_hooks: services::other_hooks(&mut look),
        vendor_services: services::vendor_services(&mut look),
        mdev_parents: look.folder_of_sysfs("class/mdev_bus").map(|parents| parents.len()),
        problems: vec![],
    };
    facts.problems = look.problems;
    facts
}

/// One look at the host, and what could not be read.
struct Look<'a> {
    roots: &'a Roots,
    system: &'a SystemPaths,
    problems: Vec<String>,
}

impl Look<'_> {
    /// What was read; what could not be is a problem.
    fn known<T>(&mut self, result: Result<T, EffectError>) -> Option<T> {
        result
            .map_err(|error| {
                let problem = error.to_string();
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
            })
            .ok()
    }

    /// A text file that may not be there.
    fn text(&mut self, path: &Path) -> Option<String> {
        self.known(read::unless_gone(read::text(path, read::LIST_LIMIT))).flatten()
    }

    /// How a text file begins; what is no text in it comes with replacement characters.
    fn beginning(&mut self, path: &Path) -> Option<String> {
        let mut bytes = Vec::new();
        let result = File::open(path).and_then(|file| file.take(BEGINNING).read_to_end(&mut bytes));
        let result = result.map_err(|error| EffectError::io("read", path, &error));
        self.known(read::unless_gone(result)).flatten()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a folder that may not be there.
    fn folder(&mut self, path: &Path) -> Option<Vec<String>> {
        self.known(read::folder(path)).flatten()
    }

    /// The names in a folder of sysfs; none where there is no such folder, and unknown where there is no sysfs.
    fn folder_of_sysfs(&mut self, path: &str) -> Option<Vec<String>> {
        if !self.exists(&self.roots.sys.join("class")) {
            return None;
        }
        self.known(read::folder(&self.roots.sys.join(path))).map(Option::unwrap_or_default)
    }

    /// Whether there is something of this name; not, where that cannot be found out.
    fn exists(&mut self, path: &Path) -> bool {
        self.known(read::exists(path)).unwrap_or(false)
    }

    /// The permissions of what a path leads to; none where there is nothing.
    fn mode(&mut self, path: &Path) -> Option<Option<u32>> {
        let metadata = std::fs::metadata(path).map_err(|error| EffectError::io("look at", path, &error));
        self.known(read::unless_gone(metadata)).map(|metadata| metadata.map(|metadata| metadata.permissions().mode()))
    }

    fn surroundings(&mut self, cpuinfo: &str) -> Surroundings {
        let run = &self.roots.run;
        for mark in [run.join("systemd/container"), run.join("host/container-manager")] {
            if let Some(manager) = self.text(&mark) {
                return Surroundings::Container(printable(manager.trim()));
            }
        }
        if self.exists(&run.join(".containerenv")) {
            return Surroundings::Container("podman".into());
        }
        let namespace = self.known(read::link(&self.roots.proc.join("self/ns/pid"))).flatten();
        if namespace.is_some_and(|namespace| namespace != Path::new(FIRST_PID_NAMESPACE)) {
            return Surroundings::Container(String::new());
        }
        let hypervisor = self.roots.sys.join("hypervisor/type");
        let hypervisor = self.text(&hypervisor).map(|name| printable(name.trim())).filter(|name| !name.is_empty());
        let virtual_cpu = flags(cpuinfo).map(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
        let described = self.exists(&self.roots.proc.join("device-tree/hypervisor"));
        match (hypervisor, virtual_cpu) {
            (None, Some(false)) => Surroundings::Hardware,
            (None, None) if !described => Surroundings::Unknown,
            (hypervisor, _) => {
                let maker = self.text(&self.roots.sys.join("class/dmi/id/sys_vendor"));
                let maker = maker.map(|maker| printable(maker.trim())).filter(|maker| !maker.is_empty());
                Surroundings::Vm(maker.or(hypervisor).unwrap_or_default())
            }
        }
    }

    fn distribution(&mut self) -> Distribution {
        let text = self.text(&self.roots.etc.join("os-release"));
        let text = text.or_else(|| self.text(&self.system.usr_lib.join("os-release")));
        text.map(|text| Distribution::parse(&text)).unwrap_or_default()
    }

    /// The groups that an IOMMU keeps apart: VFIO makes others, which it names so.
    fn iommu_groups(&mut self) -> Option<usize> {
        let groups = self.folder_of_sysfs("kernel/iommu_groups")?;
        let folder = self.roots.sys.join("kernel/iommu_groups");
        let real = |group: &&String| {
            let name = self.text(&folder.join(group).join("name")).unwrap_or_default();
            name.trim() != "vfio-noiommu"
        };
        Some(groups.iter().filter(real).count())
    }

    /// On x86 the kernel puts `IR-` before the names of interrupt controllers that go through the IOMMU. Elsewhere the same names mean
    /// other things.
    fn interrupt_remapping(&mut self) -> Option<bool> {
        let interrupts = self.beginning(&self.roots.proc.join("interrupts"))?;
        let on = |word: &str| {
            let (on, name) = word.strip_prefix("IR-").map_or((false, word), |name| (true, name));
            ["IO-APIC", "PCI-MSI"].iter().any(|controller| name.starts_with(controller)).then_some(on)
        };
        interrupts.split_whitespace().find_map(on)
    }

    fn unsafe_interrupts(&mut self) -> Option<bool> {
        let path = self.roots.sys.join("module/vfio_iommu_type1/parameters/allow_unsafe_interrupts");
        self.text(&path).map(|value| matches!(value.trim(), "Y" | "1"))
    }

    fn vfio_file(&mut self) -> Option<VfioFile> {
        let mode = self.mode(&self.system.dev.join("vfio/vfio"))?;
        Some(mode.map_or(VfioFile::Absent, VfioFile::Mode))
    }

    /// The running kernel's modules.
    fn modules(&mut self) -> Modules {
        let folder = self.text(&self.roots.kernel_release_file()).and_then(|release| {
            // It is one component of a path, and so is what a driver's name may be.
            let release: DriverName = release.trim().parse().ok()?;
            Some(self.system.modules.join(release.as_str()))
        });
        let mut names = |file: &str| {
            let text = read::unless_gone(read::text(&folder.as_ref()?.join(file), MODULES_LIMIT));
            self.known(text).flatten().map(|text| text.lines().filter_map(module_name).collect())
        };
        Modules { loadable: names("modules.dep"), builtin: names("modules.builtin") }
    }
}

/// The modules of a kernel, by name; unknown where it has no lists of them.
struct Modules {
    loadable: Option<Vec<String>>,
    builtin: Option<Vec<String>>,
}

impl Modules {
    fn state(&self, look: &mut Look<'_>, name: &str) -> Module {
        let name = name.replace('-', "_");
        let has = |modules: &Option<Vec<String>>| Some(modules.as_ref()?.contains(&name));
        let present = look.exists(&look.roots.sys.join("module").join(&name));
        match (present, has(&self.builtin), has(&self.loadable)) {
            (true, ..) | (_, Some(true), _) => Module::Present,
            (.., Some(true)) => Module::Loadable,
            (_, Some(false), Some(false)) => Module::Missing,
            _ => Module::Unknown,
        }
    }
}

/// The module of a line of `modules.dep` or `modules.builtin`: `kernel/drivers/vfio/pci/vfio-pci.ko.xz: …`.
fn module_name(line: &str) -> Option<String> {
    let file = line.split(':').next()?.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    // All others would only take memory.
    name.starts_with("vfio").then(|| name.replace('-', "_"))
}

/// What x86 processors can do.
fn flags(cpuinfo: &str) -> Option<&str> {
    field(cpuinfo, "flags")
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn cpu_vendor(cpuinfo: &str) -> CpuVendor {
    match field(cpuinfo, "vendor_id") {
        Some("GenuineIntel") => CpuVendor::Intel,
        Some("AuthenticAMD" | "HygonGenuine") => CpuVendor::Amd,
        Some(_) => CpuVendor::Other,
        None if field(cpuinfo, "CPU implementer").is_some() => CpuVendor::Arm,
        None if cpuinfo.is_empty() => CpuVendor::Unknown,
        None => CpuVendor::Other,
    }
}
