//! Looking at sysfs: PCI functions, what they are to SR-IOV, their network interfaces and the vendor's vGPU types of those that take
//! one (kernel: Documentation/ABI/testing/sysfs-bus-pci).
//!
//! A look at one function reads nothing of another one but the links of its physical function. Whatever vanishes while it is being read
//! has simply gone; what cannot be read or parsed is said in `problems`, and makes a function `stuck` where it decides what may be done
//! to it: what cannot be read is not touched.
//!
//! Some attributes keep their reader waiting for as long as somebody else's bind, unbind or change of the number of virtual functions
//! hangs. `sriov_numvfs`, `sriov_vf_total_msix` and `uevent` are therefore never read: the links say how many there are. But nothing else
//! says what `driver_override` does, whose reader waits on Linux 6.1 and no longer on 6.12. So a look belongs on a thread that may hang,
//! one function to a job; that it does not come back is then the answer.

mod lines;
pub mod names;
pub mod variants;
pub mod vgpu;

use std::path::Path;

use mdevd_core::function::{Function, Netdev, PciIds, PhysicalFunction, Role, VgpuTypes};
use mdevd_core::inventory::DeviceState;
use mdevd_core::names::{DriverName, IommuGroupId, PciAddress, printable};
use rustix::io::Errno;

use crate::error::{EffectError, Problem};
use crate::read;
use crate::roots::Roots;
use crate::scan::{Patience, named_link, noted, numa_node};

use self::names::PciNames;
use self::variants::VariantDrivers;

/// The functions in `/sys/bus/pci/devices`, and the names there that are none. A host without PCI has none.
pub fn list_functions(roots: &Roots) -> Result<(Vec<PciAddress>, Vec<Problem>), EffectError> {
    let bus = roots.pci_devices();
    let (mut functions, mut problems) = (Vec::new(), Vec::new());
    for name in read::folder(&bus)?.unwrap_or_default() {
        match name.parse() {
            Ok(address) => functions.push(address),
            Err(error) => problems.push(Problem::new(&bus, format!("{error}; it is left out"))),
        }
    }
    Ok((functions, problems))
}

/// A function's numbers, as they are needed to load [`PciNames`]; `None` when it is gone.
pub fn ids_of(roots: &Roots, address: &PciAddress) -> Result<Option<PciIds>, EffectError> {
    let dir = roots.pci_dir(address);
    let number = |name: &str| {
        let at = dir.join(name);
        let Some(text) = read::optional_attribute(&at)? else { return Ok(None) };
        hexadecimal(&text).and_then(|n| u16::try_from(n).ok()).map(Some).ok_or_else(|| senseless(&at))
    };
    let (Some(vendor), Some(device)) = (number("vendor")?, number("device")?) else { return Ok(None) };
    let subsystem_vendor = number("subsystem_vendor")?.unwrap_or_default();
    let subsystem_device = number("subsystem_device")?.unwrap_or_default();
    Ok(Some(PciIds { vendor, device, subsystem_vendor, subsystem_device }))
}

/// The driver that is bound to a function now; `None` when there is none, or no such function.
pub fn driver_of(roots: &Roots, address: &PciAddress) -> Result<Option<DriverName>, EffectError> {
    parsed_link(&roots.pci_dir(address).join("driver"))
}

/// The only driver that may bind to a function; `None` when any may, or there is no such function. It can keep its caller waiting, as
/// the beginning of this module says.
pub fn driver_override_of(roots: &Roots, address: &PciAddress) -> Result<Option<DriverName>, EffectError> {
    let at = roots.pci_dir(address).join("driver_override");
    match read::optional_attribute(&at)?.as_deref() {
        // The kernel prints no name as C's printf does.
        None | Some("" | "(null)") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| senseless(&at)),
    }
}

/// The physical function of a virtual one, while sysfs says so.
pub fn physical_function_of(roots: &Roots, address: &PciAddress) -> Result<Option<PciAddress>, EffectError> {
    parsed_link(&roots.pci_dir(address).join("physfn"))
}

/// The vendor's vGPU types of a function now; `None` when it takes none, or is gone.
pub fn vgpu_types(roots: &Roots, address: &PciAddress) -> Result<Option<VgpuTypes>, EffectError> {
    vgpu::read_types(&roots.pci_dir(address), &mut Vec::new())
}

/// Looks at one function; `None` when there is no such function (any more). Who needs it on the host, and what its network driver does
/// with its virtual functions, is for others to find out.
pub fn scan_function(
    roots: &Roots,
    address: &PciAddress,
    names: &PciNames,
    variants: &VariantDrivers,
) -> Result<Option<Function>, EffectError> {
    let dir = roots.pci_dir(address);
    let Some(entries) = read::folder(&dir)? else { return Ok(None) };
    // What decides about the function comes first: a problem there makes it stuck.
    let mut problems = Vec::new();
    let ids = noted(ids_of(roots, address), &mut problems);
    let class = noted(class(&dir), &mut problems).unwrap_or_default();
    let driver = noted(driver_of(roots, address), &mut problems).flatten();
    let iommu_group = noted(named_link(&dir.join("iommu_group")), &mut problems).flatten().map(IommuGroupId);
    let role = role(roots, address, &entries, &mut problems);
    let mut lesser = Vec::new();
    let vgpu = noted(vgpu::read_types(&dir, &mut lesser), &mut problems).flatten();
    // One that is half removed would keep us waiting.
    let driver_override =
        if problems.is_empty() { noted(driver_override_of(roots, address), &mut problems).flatten() } else { None };
    let state = problems.first().map_or(DeviceState::Ok, |why| DeviceState::Stuck(why.clone()));

    problems.extend(lesser);
    let reset = noted(read::optional_attribute(&dir.join("reset_method")), &mut problems).flatten().unwrap_or_default();
    let numa_node = noted(numa_node(&dir), &mut problems).flatten();
    let netdevs = netdevs(&dir, &entries, &mut problems);
    // A function without numbers is none; one that went while it was being read has been seen half.
    if ids == Some(None) || !read::exists(&dir.join("vendor"))? {
        return Ok(None);
    }
    let ids = ids.flatten().unwrap_or_default();
    Ok(Some(Function {
        address: *address,
        ids,
        class,
        name: names.name(&ids),
        driver,
        driver_override,
        iommu_group,
        numa_node,
        reset_methods: reset.split_whitespace().map(read::plain).collect(),
        role,
        bridge: is_bridge(class) || has(&entries, "pci_bus"),
        netdevs,
        vgpu,
        variant_drivers: variants.of(&ids, class),
        host_critical: Vec::new(),
        state,
        problems,
    }))
}

/// What a function is to SR-IOV. Where that cannot be told it is said to be neither, with a problem.
fn role(roots: &Roots, address: &PciAddress, entries: &[String], problems: &mut Vec<String>) -> Role {
    let mut patience = Patience::default();
    let why = loop {
        match virtual_role(roots, address, entries) {
            Ok(Virtual::Whole { pf, index }) => return Role::Vf { pf, index },
            Ok(Virtual::No) if has(entries, "sriov_totalvfs") => {
                return Role::Pf(physical_function(&roots.pci_dir(address), entries, problems));
            }
            Ok(Virtual::No) => return Role::Pci,
            Ok(Virtual::Part) if patience.wait() => {}
            Ok(Virtual::Part) => {
                break "half removed (the kernel waits for whoever has it open, and no program can end that wait) or half made: \
                       a virtual function that is not linked to its physical one"
                    .into();
            }
            Err(why) => break why,
        }
    };
    problems.push(why);
    Role::Pci
}

enum Virtual {
    Whole {
        pf: PciAddress,
        index: u32,
    },
    /// The links come after it, and go before the kernel takes its driver away, which can hang.
    Part,
    No,
}

/// Whether a function is a virtual one, and whose.
fn virtual_role(roots: &Roots, address: &PciAddress, entries: &[String]) -> Result<Virtual, String> {
    let Some(pf) = physical_function_of(roots, address).map_err(|error| error.to_string())? else {
        // Only virtual functions have this one, for as long as they are there.
        return Ok(if has(entries, "sriov_vf_msix_count") { Virtual::Part } else { Virtual::No });
    };
    let (dir, wanted) = (roots.pci_dir(&pf), address.to_string());
    for (index, name) in virtfns(&read::folder(&dir).map_err(|error| error.to_string())?.unwrap_or_default()) {
        if read::link_name(&dir.join(name)).is_ok_and(|target| target.as_ref() == Some(&wanted)) {
            return Ok(Virtual::Whole { pf, index });
        }
    }
    Ok(Virtual::Part)
}

/// What a physical function has beyond any other.
fn physical_function(dir: &Path, entries: &[String], problems: &mut Vec<String>) -> PhysicalFunction {
    let mut pf = PhysicalFunction { drivers_autoprobe: true, ..PhysicalFunction::default() };
    if let Some(text) = noted(read::attribute(&dir.join("sriov_totalvfs")), problems) {
        match text.parse() {
            Ok(total) => pf.total_vfs = total,
            Err(_) => problems.push(format!("its sriov_totalvfs is '{}' and not a number", printable(&text))),
        }
    }
    // Kernels that do not ask bind drivers to whatever comes.
    match noted(read::optional_attribute(&dir.join("sriov_drivers_autoprobe")), problems).flatten().as_deref() {
        None | Some("1") => {}
        Some("0") => pf.drivers_autoprobe = false,
        Some(text) => problems.push(format!("its sriov_drivers_autoprobe is '{}' and not 0 or 1", printable(text))),
    }
    for (index, name) in virtfns(entries) {
        if let Some(vf) = noted(named_link(&dir.join(name)), problems).flatten() {
            pf.vfs.insert(index, vf);
        }
    }
    pf
}

/// The links to virtual functions among the names in a folder, with their numbers.
fn virtfns(entries: &[String]) -> impl Iterator<Item = (u32, &String)> {
    entries.iter().filter_map(|name| {
        let digits = name.strip_prefix("virtfn").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        Some((digits.parse().ok()?, name))
    })
}

/// The network interfaces of a function; those of a virtio device are one folder further down.
fn netdevs(dir: &Path, entries: &[String], problems: &mut Vec<String>) -> Vec<Netdev> {
    let mut netdevs = Vec::new();
    for entry in entries.iter().filter(|entry| *entry == "net" || entry.starts_with("virtio")) {
        let folder = if entry == "net" { dir.join(entry) } else { dir.join(entry).join("net") };
        for name in noted(read::folder(&folder), problems).flatten().unwrap_or_default() {
            let at = folder.join(&name).join("address");
            let address = noted(read::optional_attribute(&at), problems).flatten();
            // InfiniBand's are longer.
            let ethernet = address.filter(|text| text.len() == "52:54:00:6d:90:02".len());
            let mac = ethernet
                .and_then(|text| noted(text.parse().map_err(|error| format!("{}: {error}", at.display())), problems));
            netdevs.push(Netdev { name, mac });
        }
    }
    netdevs
}

/// Bridges to other buses: PCI, CardBus and semi-transparent PCI ones. Those to the host's own or to ISA lead to no other function.
fn is_bridge(class: u32) -> bool {
    matches!(class >> 8, 0x0604 | 0x0607 | 0x0609)
}

fn class(dir: &Path) -> Result<u32, String> {
    let text = read::attribute(&dir.join("class")).map_err(|error| error.to_string())?;
    hexadecimal(&text).ok_or_else(|| format!("its class is '{}' and not a hexadecimal number", printable(&text)))
}

/// `0x8086`, as the kernel writes numbers of this kind.
fn hexadecimal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok()
}

/// A link whose last name is what counts.
fn parsed_link<T: std::str::FromStr>(at: &Path) -> Result<Option<T>, EffectError> {
    match read::link_name(at)? {
        None => Ok(None),
        Some(name) => name.parse().map(Some).map_err(|_| senseless(at)),
    }
}

fn senseless(at: &Path) -> EffectError {
    EffectError::new("make sense of", at, Errno::INVAL)
}

fn has(entries: &[String], name: &str) -> bool {
    entries.iter().any(|entry| entry == name)
}
