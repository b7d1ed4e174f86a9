//! PCI drivers: which the host has, and what `bind`, `unbind` and `drivers_probe` do, in the order and with the errnos that a 6.12 kernel
//! was seen to have.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::builder::Builder;
use super::functions::Function;
use super::host::{FakeHost, Shared};
use super::kernel::World;
use super::rules::{lock, wait_until};
use super::tree::{Attr, Tree};

/// What a builder says of a driver.
#[derive(Debug, Clone)]
pub(super) struct DriverSpec {
    name: String,
    /// Vendor and device of the functions that it takes by itself.
    ids: Vec<(u16, u16)>,
    vfio: bool,
    late: bool,
}

/// A driver of the host; the first one that takes a function gets it.
#[derive(Debug)]
pub(super) struct Driver {
    name: String,
    ids: Vec<(u16, u16)>,
    /// It gives functions to programs, and takes one only when it was named in `driver_override`.
    vfio: bool,
    loaded: bool,
}

/// A file of a driver that does something when it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DriverAttr {
    Bind,
    Unbind,
}

impl World {
    /// The host has a driver for these ids; one that is known gets them too.
    pub(super) fn add_driver(&mut self, name: &str, ids: &[(u16, u16)], vfio: bool) {
        let at = self.drivers.iter().position(|driver| driver.name == name).unwrap_or_else(|| {
            self.drivers.push(Driver { name: name.to_owned(), ids: Vec::new(), vfio, loaded: false });
            self.drivers.len() - 1
        });
        if let Some(driver) = self.drivers.get_mut(at) {
            driver.ids.extend(ids.iter().filter(|_| !vfio));
        }
        if !self.late_drivers.iter().any(|late| late == name) {
            self.show_driver(at);
        }
    }

    /// The drivers that a builder names, with `vfio-pci`.
    pub(super) fn add_drivers(&mut self, builder: &Builder) {
        self.late_drivers.extend(builder.drivers.iter().filter(|spec| spec.late).map(|spec| spec.name.clone()));
        if builder.without_vfio_pci {
            self.late_drivers.push("vfio-pci".to_owned());
        }
        self.add_driver("vfio-pci", &[], true);
        for spec in &builder.drivers {
            self.add_driver(&spec.name, &spec.ids, spec.vfio);
        }
    }

    /// The driver's module is there: its folder appears.
    fn show_driver(&mut self, at: usize) {
        let Some(driver) = self.drivers.get_mut(at).filter(|driver| !driver.loaded) else { return };
        driver.loaded = true;
        let (home, module) =
            (format!("sys/bus/pci/drivers/{}", driver.name), format!("sys/module/{}", driver.name.replace('-', "_")));
        self.tree.dir(&module, true);
        self.tree.link(&format!("{home}/module"), &Tree::relative(&home, &module), true);
        for (file, which) in [("bind", DriverAttr::Bind), ("unbind", DriverAttr::Unbind)] {
            self.tree.attr(&format!("{home}/{file}"), 0o200, true, Attr::Driver(which, driver.name.clone()));
        }
        for file in ["new_id", "remove_id", "uevent"] {
            self.tree.attr(&format!("{home}/{file}"), 0o200, true, Attr::Store(String::new(), false));
        }
    }

    /// A module is loaded: its driver takes every function that nobody has and that it may have.
    fn load_driver(&mut self, name: &str) -> bool {
        self.late_drivers.retain(|late| late != name);
        let Some(at) = self.drivers.iter().position(|driver| driver.name == name) else { return false };
        self.show_driver(at);
        let unbound = self.functions.values().filter(|function| function.driver.is_none());
        let unbound: Vec<String> = unbound.map(|function| function.spec.address.clone()).collect();
        for address in unbound {
            if self.matches(&address, name) {
                _ = self.probe(&address, name);
            }
        }
        true
    }

    /// True when the driver may take the function: the one in its override, or else one that knows its ids.
    fn matches(&self, address: &str, name: &str) -> bool {
        let Some(Function { spec, driver_override, .. }) = self.functions.get(address) else { return false };
        let Some(driver) = self.drivers.iter().find(|driver| driver.name == name && driver.loaded) else {
            return false;
        };
        match driver_override {
            Some(wanted) => wanted == name,
            None => driver.ids.contains(&(spec.vendor, spec.device)),
        }
    }

    /// Lets the first driver that may have the function, and whose probe goes well, take it. As in the kernel nobody is told of failures.
    pub(super) fn attach(&mut self, address: &str) {
        let other = self.functions.get_mut(address).and_then(|function| function.next_binds.take());
        let candidates: Vec<String> = match other {
            Some(other) => vec![other],
            None => {
                let names = self.drivers.iter().map(|driver| driver.name.clone());
                names.filter(|name| self.matches(address, name)).collect()
            }
        };
        for driver in candidates {
            if self.probe(address, &driver).is_ok() {
                return;
            }
        }
    }

    /// A driver takes a function.
    pub(super) fn probe(&mut self, address: &str, name: &str) -> Result<(), Errno> {
        let vfio = self.drivers.iter().find(|driver| driver.name == name && driver.loaded).ok_or(Errno::NODEV)?.vfio;
        let function = self.function(address)?;
        if let Some((_, errno)) = function.fails.iter().find(|(driver, _)| driver == name) {
            return Err(*errno);
        }
        let own = function.spec.driver.as_ref().map_or(!vfio, |own| own == name);
        let card = self.card_of(address).is_some();
        if let Some(pf) = function.spec.vf_of.as_ref().and_then(|(pf, _)| self.functions.get(pf)) {
            let autoprobe = pf.sriov.as_ref().is_none_or(|sriov| sriov.autoprobe);
            // Not even `bind` gets round this; an override does.
            if !autoprobe && function.driver_override.is_none() {
                return Err(Errno::NODEV);
            }
        }
        if vfio && (function.group.is_none() || card) {
            return Err(Errno::INVAL);
        }
        let (home, path) = (format!("sys/bus/pci/drivers/{name}"), function.path.clone());
        self.tree.link(&format!("{path}/driver"), &Tree::relative(&path, &home), false);
        self.tree.link(&format!("{home}/{address}"), &Tree::relative(&home, &path), false);
        self.function_mut(address)?.driver = Some(name.to_owned());
        if vfio || (own && card) {
            self.add_vfio(address);
        }
        if own {
            self.add_netdev(address);
            self.add_vgpu(address);
        }
        self.function_uevent("bind", address, &[]);
        if let Some(parent) = self.parent_at(address).filter(|_| own)
            && self.parents.get(parent).is_some_and(|parent| !parent.spec.late)
        {
            self.register(parent);
        }
        Ok(())
    }

    /// The function can be opened: it gets its `vfio-dev`, and its group a device node unless another function has brought that.
    fn add_vfio(&mut self, address: &str) {
        let number = self.take_vfio();
        let Some(function) = self.functions.get_mut(address) else { return };
        let (Some(group), path) = (function.group, function.path.clone()) else { return };
        function.vfio = Some(number);
        let (node, home) = (format!("sys/devices/virtual/vfio/{group}"), format!("{path}/vfio-dev/vfio{number}"));
        if self.tree.find(&node).is_none() {
            let text = format!("MAJOR=244\nMINOR={group}\nDEVNAME=vfio/{group}\n");
            self.tree.attr(&format!("{node}/dev"), 0o444, false, Attr::Text(format!("244:{group}\n")));
            self.tree.attr(&format!("{node}/uevent"), 0o644, false, Attr::Store(text, false));
            self.tree.link(&format!("{node}/subsystem"), &Tree::relative(&node, "sys/class/vfio"), false);
            self.tree.link(&format!("sys/class/vfio/{group}"), &Tree::relative("sys/class/vfio", &node), false);
            self.vfio_uevent("add", group);
        }
        self.tree.attr(&format!("{home}/uevent"), 0o644, false, Attr::Store(String::new(), false));
        self.tree.link(&format!("{home}/device"), &Tree::relative(&home, &path), false);
        self.tree.link(&format!("{home}/subsystem"), &Tree::relative(&home, "sys/class/vfio-dev"), false);
        let class = format!("sys/class/vfio-dev/vfio{number}");
        self.tree.link(&class, &Tree::relative("sys/class/vfio-dev", &home), false);
        self.uevents.send("add", home.trim_start_matches("sys/"), "vfio-dev", &[], &[]);
    }

    /// A uevent of a group's device node.
    pub(super) fn vfio_uevent(&mut self, action: &str, group: u32) {
        let (number, name) = (group.to_string(), format!("vfio/{group}"));
        let late = [("MAJOR", "244"), ("MINOR", number.as_str()), ("DEVNAME", name.as_str())];
        self.uevents.send(action, &format!("devices/virtual/vfio/{group}"), "vfio", &[], &late);
    }

    /// The first half of an unbind: the links to the driver go, and what a program could open the function by.
    pub(super) fn begin_unbind(&mut self, address: &str) {
        let Some(function) = self.functions.get_mut(address) else { return };
        let Some(driver) = function.driver.clone().filter(|_| !function.unbinding) else { return };
        function.unbinding = true;
        let (path, vfio) = (function.path.clone(), function.vfio);
        self.tree.remove_path(&format!("{path}/driver"));
        self.tree.remove_path(&format!("sys/bus/pci/drivers/{driver}/{address}"));
        if let Some(number) = vfio {
            self.tree.remove_path(&format!("{path}/vfio-dev"));
            self.tree.remove_path(&format!("sys/class/vfio-dev/vfio{number}"));
            let home = format!("{}/vfio-dev/vfio{number}", path.trim_start_matches("sys/"));
            self.uevents.send("remove", &home, "vfio-dev", &[], &[]);
        }
    }

    /// The second half: nobody has it open any more.
    pub(super) fn finish_unbind(&mut self, address: &str) {
        let Some(function) = self.functions.get_mut(address) else { return };
        if !std::mem::replace(&mut function.unbinding, false) {
            return;
        }
        let (group, vfio) = (function.group, function.vfio.take());
        if let (Some(group), Some(number)) = (group, vfio) {
            self.free_vfio(number);
            if self.functions.values().all(|other| other.group != Some(group) || other.vfio.is_none()) {
                self.tree.remove_path(&format!("sys/devices/virtual/vfio/{group}"));
                self.tree.remove_path(&format!("sys/class/vfio/{group}"));
                self.vfio_uevent("remove", group);
            }
        }
        self.remove_vgpu(address);
        self.remove_netdev(address);
        if let Some(parent) = self.parent_at(address) {
            self.unregister(parent);
        }
        if let Some(function) = self.functions.get_mut(address) {
            function.driver = None;
        }
        self.function_uevent("unbind", address, &[]);
    }
}

/// The host's state, held.
pub(super) type Held<'a> = MutexGuard<'a, World>;

impl Shared {
    /// Waits while this is so; an error when the host goes away meanwhile.
    pub(super) fn wait_while<'a>(
        &'a self,
        mut world: Held<'a>,
        so: impl Fn(&World) -> bool,
    ) -> Result<Held<'a>, Errno> {
        self.changed.notify_all();
        while so(&world) {
            if self.over.load(std::sync::atomic::Ordering::Acquire) {
                return Err(Errno::IO);
            }
            let waited = self.changed.wait_timeout(world, Duration::from_millis(100));
            world = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(world)
    }

    /// Waits until no other change of the function is under way, and lets others wait for this one.
    pub(super) fn lock_function<'a>(&'a self, world: Held<'a>, address: &str) -> Result<Held<'a>, Errno> {
        let mut world =
            self.wait_while(world, |world| world.function(address).is_ok_and(|function| function.locked))?;
        world.function_mut(address)?.locked = true;
        Ok(world)
    }

    /// The change is over. A function that is gone has nobody waiting for it who would not see that.
    pub(super) fn unlock_function(&self, world: &mut World, address: &str) {
        if let Ok(function) = world.function_mut(address) {
            function.locked = false;
        }
        self.changed.notify_all();
    }

    /// Takes a function's driver away, and first its virtual functions; waits for whoever has it open unless told not to.
    pub(super) fn unbind<'a>(&'a self, world: Held<'a>, address: &str, patient: bool) -> Result<Held<'a>, Errno> {
        let mut world = world;
        world.begin_unbind(address);
        world = self.remove_vfs(world, address, patient)?;
        if patient {
            world = self.wait_while(world, |world| world.function_held(address))?;
        }
        world.finish_unbind(address);
        Ok(world)
    }

    /// A write to `bind` or `unbind` of a driver.
    pub(super) fn write_driver(
        &self,
        world: Held<'_>,
        which: DriverAttr,
        driver: &str,
        data: &[u8],
    ) -> Result<(), Errno> {
        let address = address_in(data)?;
        let function = world.function(address)?;
        match which {
            DriverAttr::Unbind => {
                if function.driver.as_deref() != Some(driver) {
                    return Err(Errno::NODEV);
                }
                let mut world = self.lock_function(world, address)?;
                // Whoever came first has done it.
                if world.function(address)?.driver.as_deref() == Some(driver) {
                    world = self.unbind(world, address, true)?;
                }
                self.unlock_function(&mut world, address);
                Ok(())
            }
            DriverAttr::Bind => {
                if !world.matches(address, driver) {
                    return Err(Errno::NODEV);
                }
                let mut world = self.lock_function(world, address)?;
                let bound = world.function(address)?.driver.is_some();
                let result = if bound { Err(Errno::BUSY) } else { world.probe(address, driver) };
                self.unlock_function(&mut world, address);
                result
            }
        }
    }

    /// A write to `drivers_probe`: nothing happens to a function that has a driver, and failures are not told.
    pub(super) fn write_probe(&self, world: Held<'_>, data: &[u8]) -> Result<(), Errno> {
        let address = address_in(data)?;
        if world.function(address)?.driver.is_some() {
            return Ok(());
        }
        let mut world = self.lock_function(world, address)?;
        if world.function(address)?.driver.is_none() {
            world.attach(address);
        }
        self.unlock_function(&mut world, address);
        Ok(())
    }
}

/// The name that was written, which the kernel compares but for a newline at its end.
fn address_in(data: &[u8]) -> Result<&str, Errno> {
    let text = std::str::from_utf8(data).map_err(|_| Errno::NODEV)?;
    Ok(text.strip_suffix('\n').unwrap_or(text))
}

impl Builder {
    fn named_driver(mut self, name: &str, ids: &[(u16, u16)], vfio: bool, late: bool) -> Self {
        self.drivers.push(DriverSpec { name: name.to_owned(), ids: ids.to_vec(), vfio, late });
        self
    }

    /// A PCI driver that the host has, and the vendor and device ids that it takes by itself; the one named first comes first. A driver
    /// that only a function names takes that function's ids.
    #[must_use]
    pub fn pci_driver(self, name: &str, ids: &[(u16, u16)]) -> Self {
        self.named_driver(name, ids, false, false)
    }

    /// A VFIO driver beside `vfio-pci` (`mlx5_vfio_pci`); like that one it takes a function only when it was named in its override.
    #[must_use]
    pub fn vfio_driver(self, name: &str) -> Self {
        self.named_driver(name, &[], true, false)
    }

    /// This driver's module is not loaded yet; see [`FakeHost::load_driver`].
    #[must_use]
    pub fn driver_late(self, name: &str) -> Self {
        self.named_driver(name, &[], false, true)
    }

    /// `vfio-pci` is not loaded; see [`FakeHost::load_driver`].
    #[must_use]
    pub fn without_vfio_pci(mut self) -> Self {
        self.without_vfio_pci = true;
        self
    }
}

impl FakeHost {
    /// A module is loaded: its driver takes the functions that it may have and nobody has. Panics when the host has no such driver.
    pub fn load_driver(&self, name: &str) {
        assert!(self.change(|world| world.load_driver(name)), "this host has no PCI driver {name}");
    }

    /// Lets a driver take a function as somebody else would with its `bind`, ids or not.
    pub fn bind(&self, address: &str, driver: &str) -> Result<(), Errno> {
        self.change(|world| match world.function(address)?.driver {
            Some(_) => Err(Errno::BUSY),
            None => world.probe(address, driver),
        })
    }

    /// Takes a function's driver away as somebody else would, whoever has it open.
    pub fn unbind(&self, address: &str) {
        self.function_path(address);
        // It does not wait, and so it does not fail.
        let _ = self.shared.unbind(lock(&self.shared.world), address, false).map(drop);
        self.shared.tell();
    }

    /// The next probe of this function binds `other`, whatever was asked for.
    pub fn probe_binds(&self, address: &str, other: &str) {
        self.with_function(address, |function| function.next_binds = Some(other.to_owned()));
    }

    /// From now on the driver's probe of this function fails: `bind` says so, `drivers_probe` leaves it unbound and says nothing.
    pub fn probe_fails(&self, address: &str, driver: &str, errno: Errno) {
        self.with_function(address, |function| function.fails.push((driver.to_owned(), errno)));
    }

    /// The driver's probe of this function goes well again.
    pub fn probe_works(&self, address: &str, driver: &str) {
        self.with_function(address, |function| function.fails.retain(|(failing, _)| failing != driver));
    }

    /// Waits until the function's driver is being taken away, or has been.
    pub fn wait_unbind_begun(&self, address: &str) {
        let begun = |world: &mut World| world.function(address).is_ok_and(|it| it.unbinding || it.driver.is_none());
        wait_until(&self.shared.changed, &self.shared.world, begun, || format!("an unbind of {address}"));
    }

    /// Waits until the function's driver is this one; with `None`, until it has none.
    pub fn wait_driver(&self, address: &str, driver: Option<&str>) {
        let bound = |world: &mut World| world.function(address).is_ok_and(|it| it.driver.as_deref() == driver);
        wait_until(&self.shared.changed, &self.shared.world, bound, || format!("driver {driver:?} at {address}"));
    }
}
