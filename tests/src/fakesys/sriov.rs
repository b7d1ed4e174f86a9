//! SR-IOV: what a write to `sriov_numvfs` does, and how virtual functions come and go, as a 6.12 kernel was seen to do it.

use rustix::io::Errno;

use super::binding::Held;
use super::builder::Builder;
use super::functions::{Function, FunctionSpec};
use super::host::{FakeHost, Shared};
use super::kernel::{World, number};
use super::pci;
use super::rules::lock;
use super::tree::Tree;
use super::vgpu::Card;

/// What a builder says of a physical function.
#[derive(Debug, Clone)]
pub(super) struct PfSpec {
    total: u16,
    /// How many the hardware could have, when the driver has lowered that.
    hardware: u16,
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) driver: Option<String>,
    /// What the names of the virtual functions' network interfaces begin with.
    netdev: Option<String>,
    pub(super) offset: u16,
    pub(super) stride: u16,
    /// How many virtual functions there are from the start.
    pub(super) at_first: u16,
    pub(super) card: Option<Card>,
}

/// What a physical function has beyond any other.
#[derive(Debug)]
pub(super) struct Sriov {
    /// As `sriov_numvfs` says it.
    pub(super) num_vfs: u16,
    pub(super) autoprobe: bool,
    /// The driver makes no more than this, whatever was asked for.
    at_most: Option<u16>,
    /// Virtual functions do not appear with the write that makes them.
    late: bool,
}

impl Default for Sriov {
    fn default() -> Self {
        Self { num_vfs: 0, autoprobe: true, at_most: None, late: false }
    }
}

impl Function {
    /// What `sriov_totalvfs` says: the driver's number while it is bound.
    pub(super) fn total_vfs(&self) -> u16 {
        let own = self.driver.is_some() && self.driver == self.spec.driver;
        self.spec.pf.as_ref().map_or(0, |pf| if own { pf.total } else { pf.hardware })
    }
}

impl World {
    /// The virtual functions of a physical one, in the order of their numbers.
    pub(super) fn vfs(&self, pf: &str) -> Vec<String> {
        let index = |function: &Function| match &function.spec.vf_of {
            Some((of, index)) if of == pf => Some((*index, function.spec.address.clone())),
            _ => None,
        };
        let mut vfs: Vec<_> = self.functions.values().filter_map(index).collect();
        vfs.sort_unstable();
        vfs.into_iter().map(|(_, address)| address).collect()
    }

    /// The driver of a physical function that has none makes virtual functions.
    pub(super) fn make_vfs(&mut self, pf: &str, count: u16) {
        let Some(sriov) = self.functions.get_mut(pf).and_then(|function| function.sriov.as_mut()) else { return };
        sriov.num_vfs = sriov.at_most.map_or(count, |most| most.min(count));
        if !sriov.late && sriov.num_vfs > 0 {
            self.add_vfs(pf);
        }
    }

    /// The virtual functions that there ought to be appear: each with its uevents, links and driver, and the physical one says so at last.
    fn add_vfs(&mut self, pf: &str) {
        let Some(function) = self.functions.get(pf) else { return };
        let (Some(sriov), Some(spec)) = (&function.sriov, &function.spec.pf) else { return };
        let (count, spec, own, path) = (sriov.num_vfs, spec.clone(), function.spec.clone(), function.path.clone());
        for index in 0..u32::from(count) {
            let Some(address) = pci::after(pf, u32::from(spec.offset) + u32::from(spec.stride) * index) else { break };
            if self.functions.contains_key(&address) {
                continue;
            }
            self.add_function(FunctionSpec {
                address: address.clone(),
                vendor: spec.vendor,
                device: spec.device,
                subsystem: Some(own.subsystem()),
                revision: own.revision,
                class: own.class,
                driver: spec.driver.clone(),
                numa: own.numa,
                group_with: None,
                reset_methods: "flr".to_owned(),
                netdev: spec.netdev.as_ref().map(|name| (format!("{name}{index}"), mac(&address))),
                bridge: None,
                pf: None,
                vf_of: Some((pf.to_owned(), index)),
            });
            let home = self.functions.get(&address).map(|vf| vf.path.clone()).unwrap_or_default();
            self.tree.link(&format!("{path}/virtfn{index}"), &Tree::relative(&path, &home), false);
            self.tree.link(&format!("{home}/physfn"), &Tree::relative(&home, &path), false);
            self.function_uevent("change", &address, &[]);
            self.attach(&address);
        }
        self.function_uevent("change", pf, &[]);
    }

    /// The links between a virtual function and its physical one go; that is the first thing that happens to it.
    pub(super) fn hide_vf(&mut self, vf: &str) {
        let Some(Function { spec, path, .. }) = self.functions.get(vf) else { return };
        let Some((pf, index)) = &spec.vf_of else { return };
        let above = self.functions.get(pf).map(|pf| pf.path.as_str()).unwrap_or_default();
        for path in [format!("{above}/virtfn{index}"), format!("{path}/physfn")] {
            self.tree.remove_path(&path);
        }
    }

    fn with_pf(&mut self, pf: &str, change: impl FnOnce(&mut Sriov)) -> bool {
        self.functions.get_mut(pf).and_then(|function| function.sriov.as_mut()).map(change).is_some()
    }
}

impl Shared {
    /// A write to `sriov_numvfs`; waits for whoever has a virtual function open that has to go, unless told not to.
    pub(super) fn set_num_vfs<'a>(
        &'a self,
        world: Held<'a>,
        pf: &str,
        data: &[u8],
        patient: bool,
    ) -> Result<Held<'a>, Errno> {
        let mut world = world;
        let count = number(data).ok().and_then(|count| u16::try_from(count).ok()).ok_or(Errno::INVAL)?;
        if count > world.function(pf)?.total_vfs() {
            return Err(Errno::RANGE);
        }
        if patient {
            world = self.lock_function(world, pf)?;
        }
        let result = match world.may_change_vfs(pf, count) {
            Ok(true) if count == 0 => {
                world = self.remove_vfs(world, pf, patient)?;
                Ok(())
            }
            Ok(true) => {
                world.make_vfs(pf, count);
                Ok(())
            }
            other => other.map(|_| ()),
        };
        if patient {
            self.unlock_function(&mut world, pf);
        }
        result.map(|()| world)
    }

    /// Removes the virtual functions of a function, if it has any, one after the other.
    pub(super) fn remove_vfs<'a>(&'a self, world: Held<'a>, pf: &str, patient: bool) -> Result<Held<'a>, Errno> {
        let mut world = world;
        for vf in world.vfs(pf) {
            world.hide_vf(&vf);
            if patient {
                world = self.lock_function(world, &vf)?;
            }
            world = self.unbind(world, &vf, patient)?;
            world.remove_function(&vf);
        }
        world.with_pf(pf, |sriov| sriov.num_vfs = 0);
        Ok(world)
    }
}

impl World {
    /// Whether a change to `count` has something to do, or why it cannot be made.
    fn may_change_vfs(&self, pf: &str, count: u16) -> Result<bool, Errno> {
        let function = self.function(pf)?;
        let now = function.sriov.as_ref().ok_or(Errno::NOENT)?.num_vfs;
        if count == now {
            return Ok(false);
        }
        // Only the function's own driver knows how.
        if function.driver.is_none() || function.driver != function.spec.driver {
            return Err(Errno::NOENT);
        }
        if count != 0 && now != 0 {
            return Err(Errno::BUSY);
        }
        Ok(true)
    }
}

/// The hardware address of a virtual function's interface: made up from its place, so that it can be told.
fn mac(address: &str) -> String {
    let parts = pci::parse(address).map(|parts| (parts.bus, parts.device, parts.function));
    let (bus, device, function) = parts.unwrap_or_default();
    format!("02:00:00:{bus:02x}:{device:02x}:{function:02x}")
}

impl Builder {
    /// A PCI function that can have up to `total` virtual ones. Those are its neighbours, have its own ids and no driver until other words
    /// say otherwise.
    #[must_use]
    pub fn pf(self, address: &str, total: u16) -> Self {
        self.function(address).with_function(|function| {
            function.pf = Some(PfSpec {
                total,
                hardware: total,
                vendor: function.vendor,
                device: function.device,
                driver: None,
                netdev: None,
                offset: 1,
                stride: 1,
                at_first: 0,
                card: None,
            });
        })
    }

    pub(super) fn on_pf(self, change: impl FnOnce(&mut PfSpec)) -> Self {
        self.with_function(|function| {
            assert!(function.pf.is_some(), "{} is no physical function", function.address);
            if let Some(pf) = &mut function.pf {
                change(pf);
            }
        })
    }

    /// How many virtual functions there could be without the physical one's driver, which lowers that.
    #[must_use]
    pub fn hardware_vfs(self, total: u16) -> Self {
        self.on_pf(|pf| pf.hardware = total)
    }

    /// Vendor and device id of the virtual functions.
    #[must_use]
    pub fn vf_ids(self, vendor: u16, device: u16) -> Self {
        self.on_pf(|pf| (pf.vendor, pf.device) = (vendor, device))
    }

    /// The driver of the virtual functions, for whose ids the host then has it.
    #[must_use]
    pub fn vf_driver(self, name: &str) -> Self {
        self.on_pf(|pf| pf.driver = Some(name.to_owned()))
    }

    /// The driver gives each virtual function a network interface: `enp1s0v` makes `enp1s0v0`, `enp1s0v1`, ….
    #[must_use]
    pub fn vf_netdevs(self, prefix: &str) -> Self {
        self.on_pf(|pf| pf.netdev = Some(prefix.to_owned()))
    }

    /// Where the first virtual function is, counted from the physical one, and how far the next ones are from each other.
    #[must_use]
    pub fn offset_stride(self, offset: u16, stride: u16) -> Self {
        self.on_pf(|pf| (pf.offset, pf.stride) = (offset, stride))
    }

    /// There are so many virtual functions from the start.
    #[must_use]
    pub fn vfs(self, count: u16) -> Self {
        self.on_pf(|pf| pf.at_first = count)
    }
}

impl FakeHost {
    /// Changes the number of virtual functions as somebody else would; those that are held are taken away all the same.
    pub fn set_num_vfs(&self, pf: &str, count: u16) -> Result<(), Errno> {
        let count = count.to_string();
        let result = self.shared.set_num_vfs(lock(&self.shared.world), pf, count.as_bytes(), false).map(drop);
        self.shared.tell();
        result
    }

    fn with_sriov(&self, pf: &str, change: impl FnOnce(&mut Sriov)) {
        assert!(self.change(|world| world.with_pf(pf, change)), "this host has no physical function {pf}");
    }

    /// The driver makes no more than `most` virtual functions, and says so only in `sriov_numvfs`.
    pub fn at_most_vfs(&self, pf: &str, most: u16) {
        self.with_sriov(pf, |sriov| sriov.at_most = Some(most));
    }

    /// From now on virtual functions do not appear when they are made; see [`Self::vfs_appear`].
    pub fn vfs_late(&self, pf: &str) {
        self.with_sriov(pf, |sriov| sriov.late = true);
    }

    /// The virtual functions that were made late appear, and later ones appear at once.
    pub fn vfs_appear(&self, pf: &str) {
        self.with_sriov(pf, |sriov| sriov.late = false);
        self.change(|world| world.add_vfs(pf));
    }
}
