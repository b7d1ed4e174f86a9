//! PCI functions: the words that say which there are, how one comes and goes, and what its attributes read as.

use rustix::io::Errno;

use super::builder::Builder;
use super::host::FakeHost;
use super::kernel::World;
use super::netdevs::Netdev;
use super::pci;
use super::sriov::{PfSpec, Sriov};
use super::tree::Attr;
use super::vgpu::Vgpu;

/// What a builder says of a function.
#[derive(Debug, Clone)]
pub(super) struct FunctionSpec {
    pub(super) address: String,
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) subsystem: Option<(u16, u16)>,
    pub(super) revision: u8,
    pub(super) class: u32,
    pub(super) driver: Option<String>,
    pub(super) numa: Option<i32>,
    pub(super) group_with: Option<String>,
    pub(super) reset_methods: String,
    /// Name and hardware address of the network interface that its own driver gives it.
    pub(super) netdev: Option<(String, String)>,
    /// The bus behind it.
    pub(super) bridge: Option<u8>,
    pub(super) pf: Option<PfSpec>,
    /// Its physical function, and its number there.
    pub(super) vf_of: Option<(String, u32)>,
}

impl Default for FunctionSpec {
    fn default() -> Self {
        Self {
            address: String::new(),
            vendor: 0x8086,
            device: 0x1000,
            subsystem: None,
            revision: 0xa1,
            class: 0xff_0000,
            driver: None,
            numa: None,
            group_with: None,
            reset_methods: "flr bus".to_owned(),
            netdev: None,
            bridge: None,
            pf: None,
            vf_of: None,
        }
    }
}

impl FunctionSpec {
    /// What stays as long as the host does, unless it is pulled out; a virtual function comes and goes.
    pub(super) fn lasting(&self) -> bool {
        self.vf_of.is_none()
    }

    pub(super) fn subsystem(&self) -> (u16, u16) {
        self.subsystem.unwrap_or((self.vendor, 1))
    }

    pub(super) fn modalias(&self) -> String {
        let Self { vendor, device, class, .. } = self;
        let (subvendor, subdevice) = self.subsystem();
        let (base, sub, interface) = (class >> 16, class >> 8 & 0xff, class & 0xff);
        format!(
            "pci:v{vendor:08X}d{device:08X}sv{subvendor:08X}sd{subdevice:08X}bc{base:02X}sc{sub:02X}i{interface:02X}"
        )
    }
}

/// An attribute of a function that is made up when it is read, or does something when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FunctionAttr {
    Override,
    Enable,
    Uevent,
    NumVfs,
    TotalVfs,
    Autoprobe,
    VgpuCreatable,
    VgpuCurrent,
    VgpuParams,
    VgpuPlacement,
    VgpuInstance,
}

/// A function that is there.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) spec: FunctionSpec,
    /// Its folder below the mount: `sys/devices/…`.
    pub(super) path: String,
    pub(super) group: Option<u32>,
    /// The driver that has it; while an unbind waits it still has it.
    pub(super) driver: Option<String>,
    pub(super) driver_override: Option<String>,
    /// The number of its `vfio-dev`, while a VFIO driver has it.
    pub(super) vfio: Option<u32>,
    pub(super) netdev: Option<Netdev>,
    /// A change is under way, and others wait for it: what the kernel calls the device lock.
    pub(super) locked: bool,
    /// Its driver is being taken away, and waits for whoever has it open.
    pub(super) unbinding: bool,
    /// The driver that the next probe binds, whatever anybody asked for.
    pub(super) next_binds: Option<String>,
    /// Drivers whose probe of it fails.
    pub(super) fails: Vec<(String, Errno)>,
    pub(super) sriov: Option<Sriov>,
    pub(super) vgpu: Option<Vgpu>,
}

impl Function {
    /// What `uevent` reads as, and what every uevent of it says.
    fn uevent(&self) -> String {
        let FunctionSpec { address, vendor, device, class, .. } = &self.spec;
        let (subvendor, subdevice) = self.spec.subsystem();
        format!(
            "{}PCI_CLASS={class:X}\nPCI_ID={vendor:04X}:{device:04X}\nPCI_SUBSYS_ID={subvendor:04X}:{subdevice:04X}\n\
             PCI_SLOT_NAME={address}\nMODALIAS={}\n",
            self.driver.as_ref().map(|driver| format!("DRIVER={driver}\n")).unwrap_or_default(),
            self.spec.modalias(),
        )
    }
}

impl World {
    pub(super) fn function(&self, address: &str) -> Result<&Function, Errno> {
        self.functions.get(address).ok_or(Errno::NODEV)
    }

    pub(super) fn function_mut(&mut self, address: &str) -> Result<&mut Function, Errno> {
        self.functions.get_mut(address).ok_or(Errno::NODEV)
    }

    /// Puts a function that nobody drives yet, with the port above it where there is none.
    pub(super) fn add_function(&mut self, spec: FunctionSpec) {
        let (path, address) = (self.place(&spec), spec.address.clone());
        let group = (!self.without_iommu).then(|| self.group_for(&spec));
        pci::add(&mut self.tree, &path, &spec, group);
        if let (Some(bus), Some(parts)) = (spec.bridge, pci::parse(&address)) {
            self.buses.insert((parts.domain.to_owned(), bus), path.clone());
        }
        let sriov = spec.pf.as_ref().map(|_| Sriov::default());
        let function = Function {
            spec,
            path,
            group,
            driver: None,
            driver_override: None,
            vfio: None,
            netdev: None,
            locked: false,
            unbinding: false,
            next_binds: None,
            fails: Vec::new(),
            sriov,
            vgpu: None,
        };
        self.functions.insert(address.clone(), function);
        self.function_uevent("add", &address, &[]);
    }

    /// Puts a function as a builder names it: its driver bound, its first virtual functions made.
    pub(super) fn plug_function(&mut self, spec: FunctionSpec) {
        let (address, driver) = (spec.address.clone(), spec.driver.clone());
        let vfs = spec.pf.as_ref().map_or(0, |pf| pf.at_first);
        if let Some(driver) = &driver {
            self.add_driver(driver, &[(spec.vendor, spec.device)], false);
        }
        if let Some((pf, vf_driver)) = spec.pf.as_ref().and_then(|pf| Some((pf, pf.driver.as_ref()?))) {
            self.add_driver(vf_driver, &[(pf.vendor, pf.device)], false);
        }
        self.add_function(spec);
        // A driver that is not loaded yet takes it later.
        match driver {
            Some(driver) => _ = self.probe(&address, &driver),
            None => self.attach(&address),
        }
        self.make_vfs(&address, vfs);
    }

    /// The folder of a function: a virtual one is beside its physical one, any other below the bridge to its bus, or on the root bus.
    fn place(&mut self, spec: &FunctionSpec) -> String {
        let address = &spec.address;
        if let Some(pf) = spec.vf_of.as_ref().and_then(|(pf, _)| self.functions.get(pf)) {
            let (above, _) = pf.path.rsplit_once('/').unwrap_or(("", &pf.path));
            return format!("{above}/{address}");
        }
        let Some(parts) = pci::parse(address) else { return format!("sys/devices/virtual/{address}/{address}") };
        let (domain, bus) = (parts.domain.to_owned(), parts.bus);
        let root = format!("sys/devices/pci{domain}:00");
        if bus == 0 {
            return format!("{root}/{address}");
        }
        let key = (domain, bus);
        if !self.buses.contains_key(&key) {
            let port = FunctionSpec {
                address: pci::port(&key.0, bus),
                device: 0x347a,
                class: 0x06_0400,
                numa: spec.numa,
                driver: Some("pcieport".to_owned()),
                bridge: Some(bus),
                ..FunctionSpec::default()
            };
            self.plug_function(port);
        }
        format!("{}/{address}", self.buses.get(&key).unwrap_or(&root))
    }

    fn group_for(&mut self, spec: &FunctionSpec) -> u32 {
        let with = spec.group_with.as_ref().and_then(|other| self.functions.get(other));
        let named_by = || self.functions.values().find(|other| other.spec.group_with.as_ref() == Some(&spec.address));
        match with.or_else(named_by).and_then(|other| other.group) {
            Some(group) => group,
            None => self.take_group(0),
        }
    }

    /// Takes away a function that nobody drives any more.
    pub(super) fn remove_function(&mut self, address: &str) {
        self.function_uevent("remove", address, &[]);
        let Some(Function { path, group, .. }) = self.functions.remove(address) else { return };
        self.buses.retain(|_, bridge| *bridge != path);
        if let Some(group) = group {
            let home = format!("sys/kernel/iommu_groups/{group}");
            self.drop_path(&format!("{home}/devices/{address}"));
            if self.functions.values().all(|other| other.group != Some(group)) {
                self.drop_path(&home);
                self.free_group(group);
            }
        }
        self.drop_path(&format!("sys/bus/pci/devices/{address}"));
        self.drop_path(&path);
    }

    /// Pulls a function out with its virtual functions, whoever has them open.
    pub(super) fn unplug_function(&mut self, address: &str) {
        for vf in self.vfs(address) {
            self.hide_vf(&vf);
            self.unplug_function(&vf);
        }
        self.begin_unbind(address);
        self.finish_unbind(address);
        self.remove_function(address);
    }

    /// A uevent of a function; `keys` are the sender's own.
    pub(super) fn function_uevent(&mut self, action: &str, address: &str, keys: &[(&str, &str)]) {
        let Some(function) = self.functions.get(address) else { return };
        let text = function.uevent();
        // The kernel leaves the alias out of this one, lest udev load the driver again.
        let late = text.lines().filter_map(|line| line.split_once('='));
        let late: Vec<_> = late.filter(|(key, _)| action != "unbind" || *key != "MODALIAS").collect();
        self.uevents.send(action, function.path.trim_start_matches("sys/"), "pci", keys, &late);
    }

    /// What an attribute of a function reads as.
    pub(super) fn function_text(&self, which: FunctionAttr, address: &str) -> Result<String, Errno> {
        let function = self.function(address)?;
        let sriov = function.sriov.as_ref();
        let enabled = function.driver.is_some() && function.vfio.is_none();
        Ok(match which {
            FunctionAttr::Override => format!("{}\n", function.driver_override.as_deref().unwrap_or("(null)")),
            FunctionAttr::Enable => format!("{}\n", u8::from(enabled)),
            FunctionAttr::Uevent => function.uevent(),
            FunctionAttr::NumVfs => format!("{}\n", sriov.map_or(0, |sriov| sriov.num_vfs)),
            FunctionAttr::TotalVfs => format!("{}\n", function.total_vfs()),
            FunctionAttr::Autoprobe => format!("{}\n", u8::from(sriov.is_some_and(|sriov| sriov.autoprobe))),
            FunctionAttr::VgpuCreatable => self.creatable_text(address),
            FunctionAttr::VgpuCurrent => {
                format!("{}\n", function.vgpu.as_ref().and_then(|vgpu| vgpu.current).unwrap_or(0))
            }
            FunctionAttr::VgpuParams => function.vgpu.as_ref().map(|vgpu| vgpu.params.clone()).unwrap_or_default(),
            FunctionAttr::VgpuPlacement => {
                function.vgpu.as_ref().map(|vgpu| vgpu.placement.clone()).unwrap_or_default()
            }
            FunctionAttr::VgpuInstance => function.vgpu.as_ref().map(|vgpu| vgpu.instance.clone()).unwrap_or_default(),
        })
    }

    /// A write to an attribute of a function that never waits.
    pub(super) fn write_function(&mut self, which: FunctionAttr, address: &str, data: &[u8]) -> Result<(), Errno> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::INVAL)?;
        match which {
            FunctionAttr::Override => {
                if data.len() >= 4095 {
                    return Err(Errno::INVAL);
                }
                // All of the first line; an empty one clears it.
                let line = text.split('\n').next().unwrap_or_default();
                self.function_mut(address)?.driver_override = (!line.is_empty()).then(|| line.to_owned());
                Ok(())
            }
            FunctionAttr::Autoprobe => {
                let on = match text.as_bytes() {
                    [b'1' | b'y' | b'Y' | b't' | b'T', ..] => true,
                    [b'0' | b'n' | b'N' | b'f' | b'F', ..] => false,
                    [b'o' | b'O', b'n' | b'N', ..] => true,
                    [b'o' | b'O', b'f' | b'F', ..] => false,
                    _ => return Err(Errno::INVAL),
                };
                self.function_mut(address)?.sriov.as_mut().ok_or(Errno::NODEV)?.autoprobe = on;
                Ok(())
            }
            FunctionAttr::VgpuCurrent => self.set_vgpu_type(address, text),
            FunctionAttr::VgpuParams | FunctionAttr::VgpuPlacement | FunctionAttr::VgpuInstance => {
                self.set_vgpu_text(which, address, text)
            }
            // What is written there only makes the kernel send or do something that nobody here looks at.
            FunctionAttr::Uevent | FunctionAttr::Enable => Ok(()),
            FunctionAttr::NumVfs | FunctionAttr::TotalVfs | FunctionAttr::VgpuCreatable => Err(Errno::IO),
        }
    }

    /// True when a process has open what hangs on the function's driver: its group, or mediated devices that it offers.
    pub(super) fn function_held(&self, address: &str) -> bool {
        let Some(function) = self.functions.get(address) else { return false };
        let open = |group: u32| self.processes.values().any(|process| process.groups.contains(&group));
        let parent = self.parent_at(address);
        (function.vfio.is_some() && function.group.is_some_and(open))
            || self.mdevs.values().any(|mdev| Some(mdev.at.parent) == parent && open(mdev.group))
    }
}

impl Builder {
    pub(super) fn with_function(mut self, change: impl FnOnce(&mut FunctionSpec)) -> Self {
        let function = self.functions.last_mut().filter(|_| self.on_function);
        assert!(function.is_some(), "name a function first");
        if let Some(function) = function {
            change(function);
        }
        self
    }

    /// A PCI function: below the bridge that was named for its bus, or else behind a port of its own.
    #[must_use]
    pub fn function(mut self, address: &str) -> Self {
        assert!(pci::is_address(address), "'{address}' is no PCI address as the kernel writes it");
        self.on_function = true;
        self.functions.push(FunctionSpec { address: address.to_owned(), ..FunctionSpec::default() });
        self
    }

    /// A PCI bridge to bus `bus` of its domain, with the driver `pcieport`.
    #[must_use]
    pub fn bridge(self, address: &str, bus: u8) -> Self {
        self.function(address).ids(0x1b36, 0x000c).class(0x06_0400).driver("pcieport").with_function(|function| {
            function.bridge = Some(bus);
        })
    }

    /// The function's class, 24 bits; without it one that says nothing.
    #[must_use]
    pub fn class(self, class: u32) -> Self {
        self.with_function(|function| function.class = class)
    }

    /// Who made the function's card and what they call it, and its revision; its virtual functions say the same.
    #[must_use]
    pub fn subsystem(self, vendor: u16, device: u16, revision: u8) -> Self {
        self.with_function(|function| (function.subsystem, function.revision) = (Some((vendor, device)), revision))
    }

    /// The function is in the same IOMMU group as this other one, whichever of them is named first.
    #[must_use]
    pub fn group_with(self, address: &str) -> Self {
        self.with_function(|function| function.group_with = Some(address.to_owned()))
    }

    /// How the function can be reset: `flr pm bus`; with no method it cannot. `flr bus` without this word.
    #[must_use]
    pub fn reset_methods(self, methods: &str) -> Self {
        self.with_function(|function| function.reset_methods = methods.to_owned())
    }

    /// There is no IOMMU: no function has a group, and no VFIO driver takes one.
    #[must_use]
    pub fn without_iommu(mut self) -> Self {
        self.without_iommu = true;
        self
    }
}

impl FakeHost {
    /// The path of a function's folder from the mount: `sys/devices/…`.
    pub fn function_path(&self, address: &str) -> String {
        self.with_function(address, |function| function.path.clone())
    }

    /// The IOMMU group of a function.
    pub fn group_of_function(&self, address: &str) -> Option<u32> {
        self.with_function(address, |function| function.group)
    }

    /// Writes a function's `driver_override` as somebody else would; `None` clears it.
    pub fn set_override(&self, address: &str, driver: Option<&str>) {
        self.with_function(address, |function| function.driver_override = driver.map(str::to_owned));
    }

    pub(super) fn with_function<T: Default>(&self, address: &str, change: impl FnOnce(&mut Function) -> T) -> T {
        let result = self.change(|world| world.functions.get_mut(address).map(change));
        assert!(result.is_some(), "this host has no PCI function {address}");
        result.unwrap_or_default()
    }
}

impl World {
    /// An attribute of a function that comes and goes with its driver.
    pub(super) fn own_attr(&mut self, address: &str, name: &str, mode: u16, which: FunctionAttr) {
        let Some(function) = self.functions.get(address) else { return };
        self.tree.attr(&format!("{}/{name}", function.path), mode, false, Attr::Function(which, address.to_owned()));
    }
}
