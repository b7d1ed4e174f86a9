//! Parents: how one comes into the host with its place, links and types, and how it leaves.

use uuid::Uuid;

use super::builder::ParentSpec;
use super::functions::FunctionSpec;
use super::kernel::{Parent, Type, World, mdev_driver};
use super::pci;
use super::tree::{Attr, Tree, TypeRef};

impl World {
    /// Puts a parent, its types unless they are late, and the uevents for it.
    pub(super) fn add_parent(&mut self, spec: ParentSpec) {
        let is_pci = pci::is_address(&spec.name) && spec.path.is_none();
        let path = spec.path.as_ref().map_or_else(|| format!("devices/virtual/{0}/{0}", spec.name), Clone::clone);
        let mut path = format!("sys/{path}");
        if is_pci {
            // One that makes virtual functions as well is there already.
            if !self.functions.contains_key(&spec.name) {
                self.plug_function(FunctionSpec {
                    address: spec.name.clone(),
                    vendor: spec.vendor,
                    device: spec.device,
                    class: 0x03_0200,
                    numa: spec.numa,
                    driver: spec.driver.clone(),
                    ..FunctionSpec::default()
                });
            }
            path = self.functions.get(&spec.name).map(|function| function.path.clone()).unwrap_or(path);
        } else {
            let (above, _) = path.rsplit_once('/').unwrap_or((&path, ""));
            let class = above.rsplit('/').next().unwrap_or(&spec.name);
            let home = format!("sys/class/{class}");
            self.tree.dir(&home, true);
            self.tree.link(&format!("{home}/{}", spec.name), &Tree::relative(&home, &path), true);
            self.tree.link(&format!("{path}/subsystem"), &Tree::relative(&path, &home), true);
            self.tree.attr(&format!("{path}/uevent"), 0o644, true, Attr::Store(String::new(), false));
            if let Some(numa) = spec.numa {
                self.tree.attr(&format!("{path}/numa_node"), 0o444, true, Attr::Text(format!("{numa}\n")));
            }
            if let Some(driver) = &spec.driver {
                let home = format!("sys/bus/{class}/drivers/{driver}");
                self.tree.dir(&home, true);
                self.tree.link(&format!("{path}/driver"), &Tree::relative(&path, &home), true);
            }
        }
        let driver = mdev_driver(&spec).to_owned();
        let home = format!("sys/bus/mdev/drivers/{driver}");
        if self.tree.find(&home).is_none() {
            self.tree.dir(&format!("sys/module/{driver}"), true);
            self.tree.link(&format!("{home}/module"), &Tree::relative(&home, &format!("sys/module/{driver}")), true);
            for name in ["bind", "unbind", "uevent"] {
                self.tree.attr(&format!("{home}/{name}"), 0o200, true, Attr::Store(String::new(), false));
            }
        }
        let types = spec.types.iter().map(|spec| Type { spec: spec.clone(), says: None, makes: None }).collect();
        let late = spec.late;
        self.parents.push(Parent { spec, path, plugged: true, registered: false, types });
        let parent = self.parents.len() - 1;
        if !is_pci {
            self.parent_uevent(parent, "add", &[]);
        }
        if !late {
            self.register(parent);
        }
    }

    fn parent_uevent(&mut self, parent: usize, action: &str, keys: &[(&str, &str)]) {
        let Some(Parent { spec, path, .. }) = self.parents.get(parent) else { return };
        let (name, path) = (spec.name.clone(), path.trim_start_matches("sys/"));
        if self.functions.contains_key(&name) {
            return self.function_uevent(action, &name, keys);
        }
        let class = path.rsplit('/').nth(1).unwrap_or(&name);
        self.uevents.send(action, path, class, keys, &[]);
    }

    /// The parent offers its types from now on.
    pub(super) fn register(&mut self, parent: usize) {
        let Some(Parent { spec, path, registered, types, .. }) = self.parents.get_mut(parent) else { return };
        if std::mem::replace(registered, true) {
            return;
        }
        for (index, Type { spec, .. }) in types.iter().enumerate() {
            let home = format!("{path}/mdev_supported_types/{}", spec.id);
            let at = TypeRef { parent, index };
            self.tree.attr(&format!("{home}/create"), 0o200, true, Attr::Create(at));
            self.tree.attr(&format!("{home}/available_instances"), 0o444, true, Attr::Available(at));
            self.tree.attr(&format!("{home}/device_api"), 0o444, true, Attr::Text(format!("{}\n", spec.device_api)));
            for (name, text) in [("name", &spec.name), ("description", &spec.description)] {
                if let Some(text) = text {
                    self.tree.attr(&format!("{home}/{name}"), 0o444, true, Attr::Text(format!("{text}\n")));
                }
            }
            self.tree.dir(&format!("{home}/devices"), true);
        }
        self.tree.dir(&format!("{path}/mdev_supported_types"), true);
        self.tree.link(&format!("sys/class/mdev_bus/{}", spec.name), &Tree::relative("sys/class/mdev_bus", path), true);
        self.parent_uevent(parent, "change", &[("MDEV_STATE", "registered")]);
    }

    /// The parent's driver goes: its devices that nobody holds, its types, its place among the parents.
    pub(super) fn unregister(&mut self, parent: usize) {
        let Some(Parent { spec, path, registered, .. }) = self.parents.get_mut(parent) else { return };
        if !std::mem::replace(registered, false) {
            return;
        }
        let (name, types) = (spec.name.clone(), format!("{path}/mdev_supported_types"));
        let mdevs: Vec<Uuid> =
            self.mdevs.iter().filter(|(_, mdev)| mdev.at.parent == parent).map(|(uuid, _)| *uuid).collect();
        self.parent_uevent(parent, "change", &[("MDEV_STATE", "unregistered")]);
        self.drop_path(&format!("sys/class/mdev_bus/{name}"));
        for uuid in mdevs {
            self.begin_removal(uuid);
            self.finish_removal(uuid);
        }
        self.drop_path(&types);
    }

    /// The parent is pulled out of the host.
    pub(super) fn unplug(&mut self, parent: usize) {
        self.unregister(parent);
        let Some(Parent { spec, path, plugged, .. }) = self.parents.get_mut(parent) else { return };
        if !std::mem::replace(plugged, false) {
            return;
        }
        let (name, path) = (spec.name.clone(), path.clone());
        if self.functions.contains_key(&name) {
            return self.unplug_function(&name);
        }
        let class = path.rsplit('/').nth(1).unwrap_or_default();
        self.drop_path(&format!("sys/class/{class}/{name}"));
        self.parent_uevent(parent, "remove", &[]);
        self.drop_path(&path);
    }
}
