//! Network interfaces: they come and go with the driver of their function.

use super::builder::Builder;
use super::functions::Function;
use super::host::FakeHost;
use super::kernel::World;
use super::tree::{Attr, Tree};

/// A network interface that is there.
#[derive(Debug, Clone)]
pub(super) struct Netdev {
    pub(super) name: String,
    index: u32,
}

impl World {
    /// The function's own driver gives it its interface, under the name that udev would give it.
    pub(super) fn add_netdev(&mut self, address: &str) {
        let Some(function) = self.functions.get_mut(address) else { return };
        let Some((name, mac)) = function.spec.netdev.clone() else { return };
        if self.netdevs_late || function.netdev.is_some() {
            return;
        }
        self.last_ifindex += 1;
        let index = self.last_ifindex;
        function.netdev = Some(Netdev { name: name.clone(), index });
        let home = format!("{}/net/{name}", function.path);
        let number = index.to_string();
        for (file, mode, text) in [
            ("addr_assign_type", 0o444, "0"),
            ("addr_len", 0o444, "6"),
            ("address", 0o444, mac.as_str()),
            ("dev_id", 0o444, "0x0"),
            ("dev_port", 0o444, "0"),
            ("flags", 0o644, "0x1002"),
            ("ifindex", 0o444, &number),
            ("iflink", 0o444, &number),
            ("mtu", 0o644, "1500"),
            ("operstate", 0o444, "down"),
            ("type", 0o444, "1"),
        ] {
            self.tree.attr(&format!("{home}/{file}"), mode, false, Attr::Text(format!("{text}\n")));
        }
        let device = function.path.clone();
        self.tree.link(&format!("{home}/device"), &Tree::relative(&home, &device), false);
        self.tree.link(&format!("{home}/subsystem"), &Tree::relative(&home, "sys/class/net"), false);
        self.link_netdev(&home, &name, &number);
        self.netdev_uevent("add", &home, &name, &number, &[]);
    }

    /// What of an interface carries its name.
    fn link_netdev(&mut self, home: &str, name: &str, index: &str) {
        let text = format!("INTERFACE={name}\nIFINDEX={index}\n");
        self.tree.attr(&format!("{home}/uevent"), 0o644, false, Attr::Store(text, false));
        self.tree.link(&format!("sys/class/net/{name}"), &Tree::relative("sys/class/net", home), false);
    }

    fn netdev_uevent(&mut self, action: &str, home: &str, name: &str, index: &str, keys: &[(&str, &str)]) {
        let late = [("INTERFACE", name), ("IFINDEX", index)];
        self.uevents.send(action, home.trim_start_matches("sys/"), "net", keys, &late);
    }

    /// The driver goes, and the interface with it.
    pub(super) fn remove_netdev(&mut self, address: &str) {
        let Some(function) = self.functions.get_mut(address) else { return };
        let Some(Netdev { name, index }) = function.netdev.take() else { return };
        let net = format!("{}/net", function.path);
        self.tree.remove_path(&net);
        self.tree.remove_path(&format!("sys/class/net/{name}"));
        self.netdev_uevent("remove", &format!("{net}/{name}"), &name, &index.to_string(), &[]);
    }

    /// Somebody gives an interface another name.
    fn rename_netdev(&mut self, old: &str, new: &str) -> bool {
        let named = |function: &&mut Function| function.netdev.as_ref().is_some_and(|netdev| netdev.name == old);
        let Some(function) = self.functions.values_mut().find(named) else { return false };
        let Some(netdev) = &mut function.netdev else { return false };
        netdev.name = new.to_owned();
        let (net, index) = (format!("{}/net", function.path), netdev.index.to_string());
        let Some(dir) = self.tree.find(&net) else { return false };
        self.tree.remove_path(&format!("sys/class/net/{old}"));
        let renamed = self.tree.rename(dir, old, dir, new).is_ok();
        self.link_netdev(&format!("{net}/{new}"), new, &index);
        let before = format!("/{}/{old}", net.trim_start_matches("sys/"));
        self.netdev_uevent("move", &format!("{net}/{new}"), new, &index, &[("DEVPATH_OLD", &before)]);
        renamed
    }

    /// The drivers of all functions give them the interfaces that they have not got yet.
    fn add_netdevs(&mut self) {
        self.netdevs_late = false;
        let driven = |function: &&Function| function.driver.is_some() && function.vfio.is_none();
        let addresses: Vec<String> =
            self.functions.values().filter(driven).map(|function| function.spec.address.clone()).collect();
        for address in addresses {
            self.add_netdev(&address);
        }
    }
}

impl Builder {
    /// The network interface that the function's own driver gives it.
    #[must_use]
    pub fn netdev(self, name: &str, mac: &str) -> Self {
        self.with_function(|function| function.netdev = Some((name.to_owned(), mac.to_owned())))
    }
}

impl FakeHost {
    /// Gives a network interface another name, with the uevent that says so; panics when there is none of that name.
    pub fn rename_netdev(&self, old: &str, new: &str) {
        let renamed = self.change(|world| world.rename_netdev(old, new));
        assert!(renamed, "this host has no network interface {old}");
    }

    /// From now on drivers bind without giving their functions network interfaces; see [`Self::netdevs_appear`].
    pub fn netdevs_late(&self) {
        self.change(|world| world.netdevs_late = true);
    }

    /// The network interfaces that did not come with their drivers appear, and later ones come with theirs.
    pub fn netdevs_appear(&self) {
        self.change(World::add_netdevs);
    }
}
