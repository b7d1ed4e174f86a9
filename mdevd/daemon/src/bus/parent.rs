//! `org.mdevd1.Parent`: a device that offers mdev types.

use std::sync::Arc;

use mdevd_dbus::Dict;
use zbus::OwnedObjectPath;

use crate::engine::Handle;
use crate::views::{ParentView, Slot};

/// One parent on the bus.
#[derive(Debug)]
pub struct ParentObject {
    view: Arc<Slot<ParentView>>,
}

impl ParentObject {
    /// The object that shows this view.
    pub fn new(_: Handle, view: Arc<Slot<ParentView>>) -> Self {
        Self { view }
    }
}

#[zbus::interface(name = "org.mdevd1.Parent", introspection_docs = false)]
impl ParentObject {
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.view.get().parent.name.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn function(&self) -> OwnedObjectPath {
        self.view.get().function()
    }

    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.view.get().numa_node()
    }

    #[zbus(property)]
    fn driver(&self) -> String {
        self.view.get().driver()
    }

    #[zbus(property)]
    fn types(&self) -> Vec<Dict> {
        self.view.get().types()
    }

    #[zbus(property)]
    fn mdevs(&self) -> Vec<OwnedObjectPath> {
        self.view.get().mdevs()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.view.get().state().into()
    }
}
