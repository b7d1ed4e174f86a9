//! The publisher: makes the bus objects equal to the engine's state, and announces each difference before the call that caused it is
//! answered.
//!
//! Publications run one after the other. One that waits for its turn takes the state as it is when the turn comes, so a call that has
//! returned from [`Publisher::publish`] knows that its change has been announced, by itself or by a later publication.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use mdevd_core::names::PciAddress;
use mdevd_dbus::path;
use tokio::sync::Mutex;
use uuid::Uuid;
use zbus::object_server::Interface;
use zbus::{Connection, OwnedObjectPath, Variant};

use crate::bus::{ClaimObject, FunctionObject, ManagerObject, MdevObject, ParentObject, PhysicalObject, VirtualObject};
use crate::engine::{Engine, Handle};
use crate::views::{
    ClaimView, FunctionView, ManagerView, MdevView, ParentView, PhysicalView, Slot, Snapshot, View, VirtualView,
};

/// What is on the bus.
#[derive(Debug)]
pub struct Publisher {
    connection: Connection,
    handle: Handle,
    manager: Arc<Slot<ManagerView>>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    parents: BTreeMap<String, Arc<Slot<ParentView>>>,
    mdevs: BTreeMap<Uuid, Arc<Slot<MdevView>>>,
    functions: BTreeMap<PciAddress, Arc<Slot<FunctionView>>>,
    physical: BTreeMap<PciAddress, Arc<Slot<PhysicalView>>>,
    virtuals: BTreeMap<PciAddress, Arc<Slot<VirtualView>>>,
    claims: BTreeMap<Uuid, Arc<Slot<ClaimView>>>,
}

impl Publisher {
    /// Puts the root object on the connection, which must not have the bus name yet.
    ///
    /// # Errors
    /// zbus's, when the objects cannot be served.
    pub async fn new(connection: Connection, handle: Handle) -> zbus::Result<Self> {
        let manager = Slot::new(ManagerView::default());
        let server = connection.object_server();
        server.at(path::ROOT, zbus::fdo::ObjectManager).await?;
        server.at(path::ROOT, ManagerObject::new(handle.clone(), manager.clone())).await?;
        Ok(Self { connection, handle, manager, shown: Mutex::default() })
    }

    /// Tells the bus what has changed since the last time.
    pub async fn publish(&self, engine: &Rc<Engine>) {
        let mut shown = self.shown.lock().await;
        let problems = engine.current_problems();
        let snapshot = {
            let mut state = engine.state.borrow_mut();
            state.judge_functions();
            let libvirt = state.host_facts.libvirt_version.map(|version| version.to_string()).unwrap_or_default();
            Snapshot::of(&state.inventory, &state.claims, problems, &state.verdicts, libvirt)
        };
        if let Err(error) = self.show(&mut shown, snapshot).await {
            // The bus went away, and with it everybody who could have been told.
            tracing::error!("cannot publish: {error}");
        }
    }

    async fn show(&self, shown: &mut Shown, snapshot: Snapshot) -> zbus::Result<()> {
        // What an object points to is there before it, and goes after it.
        let of = |address: &PciAddress| path::function(&address.to_string());
        let physical = |handle: &Handle, slot| PhysicalObject::new(handle.clone(), slot);
        let physical_gone = self.add_or_change(&mut shown.physical, snapshot.physical, of, physical).await?;
        let virtuals = |handle: &Handle, slot| VirtualObject::new(handle.clone(), slot);
        let virtuals_gone = self.add_or_change(&mut shown.virtuals, snapshot.virtuals, of, virtuals).await?;
        // The main interface of an object comes last, and goes first.
        let function = |handle: &Handle, slot| FunctionObject::new(handle.clone(), slot);
        let functions_gone = self.add_or_change(&mut shown.functions, snapshot.functions, of, function).await?;
        let parent = |handle: &Handle, slot| ParentObject::new(handle.clone(), slot);
        let parents_gone =
            self.add_or_change(&mut shown.parents, snapshot.parents, |name| path::parent(name), parent).await?;
        let mdev = |handle: &Handle, slot| MdevObject::new(handle.clone(), slot);
        let gone = self.add_or_change(&mut shown.mdevs, snapshot.mdevs, |uuid| path::mdev(*uuid), mdev).await?;
        let claim = |handle: &Handle, slot| ClaimObject::new(handle.clone(), slot);
        let ended = self.add_or_change(&mut shown.claims, snapshot.claims, |id| path::claim(*id), claim).await?;
        for id in ended {
            shown.claims.remove(&id);
            self.connection.object_server().remove::<ClaimObject, _>(path::claim(id)).await?;
        }
        for uuid in gone {
            shown.mdevs.remove(&uuid);
            self.connection.object_server().remove::<MdevObject, _>(path::mdev(uuid)).await?;
        }
        for name in parents_gone {
            shown.parents.remove(&name);
            self.connection.object_server().remove::<ParentObject, _>(path::parent(&name)).await?;
        }
        let server = self.connection.object_server();
        for address in functions_gone {
            shown.functions.remove(&address);
            server.remove::<FunctionObject, _>(of(&address)).await?;
        }
        for address in physical_gone {
            shown.physical.remove(&address);
            server.remove::<PhysicalObject, _>(of(&address)).await?;
        }
        for address in virtuals_gone {
            shown.virtuals.remove(&address);
            server.remove::<VirtualObject, _>(of(&address)).await?;
        }
        self.change(&path::root(), &self.manager, snapshot.manager).await
    }

    /// Adds what is new and changes what is different. Answers with the keys of what is no longer there.
    async fn add_or_change<K, V, I>(
        &self,
        shown: &mut BTreeMap<K, Arc<Slot<V>>>,
        views: BTreeMap<K, V>,
        path_of: impl Fn(&K) -> OwnedObjectPath,
        object: impl Fn(&Handle, Arc<Slot<V>>) -> I,
    ) -> zbus::Result<Vec<K>>
    where
        K: Ord + Clone,
        V: View,
        I: Interface,
    {
        let gone = shown.keys().filter(|key| !views.contains_key(key)).cloned().collect();
        for (key, view) in views {
            match shown.get(&key) {
                Some(slot) if slot.get().is_same_object(&view) => self.change(&path_of(&key), slot, view).await?,
                other => {
                    // The same name, but another thing: what is `const` would be a lie.
                    if other.is_some() {
                        self.connection.object_server().remove::<I, _>(path_of(&key)).await?;
                    }
                    let slot = Slot::new(view);
                    self.connection.object_server().at(path_of(&key), object(&self.handle, slot.clone())).await?;
                    shown.insert(key, slot);
                }
            }
        }
        Ok(gone)
    }

    /// Replaces a view, and right after it announces the properties whose values differ, in one signal.
    async fn change<V: View>(&self, path: &OwnedObjectPath, slot: &Slot<V>, view: V) -> zbus::Result<()> {
        let old = slot.get();
        if *old == view {
            return Ok(());
        }
        let before = old.changeable();
        let after = view.changeable();
        slot.set(view);
        let changed: HashMap<&str, &Variant<'_>> = before
            .iter()
            .zip(&after)
            .filter(|(old, new)| old.1 != new.1)
            .map(|(_, (name, value))| (*name, &**value))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let invalidated: &[&str] = &[];
        let body = (V::INTERFACE, changed, invalidated);
        self.connection
            .emit_signal(None::<()>, path, "org.freedesktop.DBus.Properties", "PropertiesChanged", &body)
            .await
    }
}
