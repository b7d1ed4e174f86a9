//! The words in which a test says what the fake host has.

use std::io;

use super::binding::DriverSpec;
use super::functions::FunctionSpec;
use super::host::FakeHost;

/// A fake host that nobody has mounted yet. Words about a parent, a type, a PCI function or a vGPU type mean the one named last.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    pub(super) parents: Vec<ParentSpec>,
    pub(super) functions: Vec<FunctionSpec>,
    pub(super) drivers: Vec<DriverSpec>,
    /// What was named last is a function and no parent.
    pub(super) on_function: bool,
    pub(super) without_vfio_pci: bool,
    pub(super) without_iommu: bool,
    pub(super) first_group: Option<u32>,
    pub(super) real_processes: bool,
    pub(super) mountpoint: Option<std::path::PathBuf>,
}

/// How the types of a parent limit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sharing {
    /// Each type counts for itself.
    #[default]
    None,
    /// All draw on so many units; a type costs units divided by its number of instances.
    Units(u32),
    /// While one type is in use the others offer nothing.
    Exclusive,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ParentSpec {
    pub(super) name: String,
    pub(super) path: Option<String>,
    pub(super) numa: Option<i32>,
    pub(super) driver: Option<String>,
    pub(super) mdev_driver: Option<String>,
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) sharing: Sharing,
    pub(super) late: bool,
    pub(super) types: Vec<TypeSpec>,
    pub(super) mdev_attrs: Vec<(String, u16, String)>,
}

#[derive(Debug, Clone)]
pub(super) struct TypeSpec {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) device_api: String,
    pub(super) available: u32,
}

/// Begins a fake host: [`Builder::parent`] and the other words add to it, [`Builder::mount`] brings it up.
pub fn host() -> Builder {
    Builder::default()
}

impl Builder {
    /// A device that offers mdev types. A PCI address (`0000:41:00.0`) is a PCI function behind a port, any other name a virtual device
    /// (`devices/virtual/NAME/NAME`) as the kernel's sample drivers have them.
    #[must_use]
    pub fn parent(mut self, name: &str) -> Self {
        self.on_function = false;
        self.parents.push(ParentSpec {
            name: name.to_owned(),
            vendor: 0x10de,
            device: 0x2236,
            ..ParentSpec::default()
        });
        self
    }

    fn on_parent(mut self, change: impl FnOnce(&mut ParentSpec)) -> Self {
        let parent = self.parents.last_mut().filter(|_| !self.on_function);
        assert!(parent.is_some(), "name a parent first");
        if let Some(parent) = parent {
            change(parent);
        }
        self
    }

    fn on_type(self, change: impl FnOnce(&mut TypeSpec)) -> Self {
        self.on_parent(|parent| {
            let last = parent.types.last_mut();
            assert!(last.is_some(), "name a type of {} first", parent.name);
            if let Some(last) = last {
                change(last);
            }
        })
    }

    /// The parent's folder below `/sys`, for one that is neither PCI nor under `devices/virtual`: `devices/vfio_ap/matrix`.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        self.on_parent(|parent| parent.path = Some(path.trim_matches('/').to_owned()))
    }

    /// The NUMA node that the parent or function is near to; PCI functions say `-1` without it.
    #[must_use]
    pub fn numa(self, node: i32) -> Self {
        match self.on_function {
            true => self.with_function(|function| function.numa = Some(node)),
            false => self.on_parent(|parent| parent.numa = Some(node)),
        }
    }

    /// The driver of the parent or function, for whose ids the host then has it. Virtual parents have none.
    #[must_use]
    pub fn driver(self, name: &str) -> Self {
        match self.on_function {
            true => self.with_function(|function| function.driver = Some(name.to_owned())),
            false => self.on_parent(|parent| parent.driver = Some(name.to_owned())),
        }
    }

    /// The driver of the parent's mediated devices; otherwise `nvidia-vgpu-vfio` under `nvidia`, `vfio_mdev` under another PCI parent, and
    /// the parent's own name under a virtual one.
    #[must_use]
    pub fn mdev_driver(self, name: &str) -> Self {
        self.on_parent(|parent| parent.mdev_driver = Some(name.to_owned()))
    }

    /// PCI vendor and device id of the parent or function.
    #[must_use]
    pub fn ids(self, vendor: u16, device: u16) -> Self {
        match self.on_function {
            true => self.with_function(|function| (function.vendor, function.device) = (vendor, device)),
            false => self.on_parent(|parent| (parent.vendor, parent.device) = (vendor, device)),
        }
    }

    /// The parent's types draw on one stock of `units`: a type of which 12 fit costs `units / 12`.
    #[must_use]
    pub fn shared_units(self, units: u32) -> Self {
        self.on_parent(|parent| parent.sharing = Sharing::Units(units))
    }

    /// While a device of one type exists the parent's other types offer nothing.
    #[must_use]
    pub fn exclusive(self) -> Self {
        self.on_parent(|parent| parent.sharing = Sharing::Exclusive)
    }

    /// The parent's types are not there yet; see [`FakeHost::types_appear`].
    #[must_use]
    pub fn types_late(self) -> Self {
        self.on_parent(|parent| parent.late = true)
    }

    /// An attribute that each mediated device of the parent has: `vendor/sample_mdev_dev`. `{uuid}` in the text is the device's UUID.
    #[must_use]
    pub fn mdev_attr(self, path: &str, mode: u16, text: &str) -> Self {
        self.on_parent(|parent| parent.mdev_attrs.push((path.to_owned(), mode, text.to_owned())))
    }

    /// A type of the parent, of which `available` can be made. Its name is its id, it has no description and its device API is `vfio-pci`
    /// until other words say otherwise.
    #[must_use]
    pub fn mdev_type(self, id: &str, available: u32) -> Self {
        let (name, device_api) = (Some(id.to_owned()), "vfio-pci".to_owned());
        self.on_parent(|parent| {
            parent.types.push(TypeSpec { id: id.to_owned(), name, description: None, device_api, available })
        })
    }

    /// The type's `name` attribute.
    #[must_use]
    pub fn named(self, text: &str) -> Self {
        self.on_type(|last| last.name = Some(text.to_owned()))
    }

    /// The type has no `name` attribute.
    #[must_use]
    pub fn nameless(self) -> Self {
        self.on_type(|last| last.name = None)
    }

    /// The type's `description` attribute.
    #[must_use]
    pub fn described(self, text: &str) -> Self {
        self.on_type(|last| last.description = Some(text.to_owned()))
    }

    /// The type's device API.
    #[must_use]
    pub fn device_api(self, api: &str) -> Self {
        self.on_type(|last| last.device_api = api.to_owned())
    }

    /// The kernel's sample parent `mtty`: types that share 24 ports.
    #[must_use]
    pub fn mtty(self) -> Self {
        self.parent("mtty")
            .shared_units(24)
            .mdev_attr("vendor/sample_mdev_dev", 0o444, "This is MDEV {uuid}")
            .mdev_type("mtty-1", 24)
            .named("Single port serial")
            .mdev_type("mtty-2", 12)
            .named("Dual port serial")
    }

    /// The kernel's sample parent `mdpy`: four displays in all.
    #[must_use]
    pub fn mdpy(self) -> Self {
        let display = |host: Self, id: &str, size: &str| {
            host.mdev_type(id, 4).described(&format!("virtual display, {size} framebuffer"))
        };
        let host = self.parent("mdpy").shared_units(4);
        let host = display(host, "mdpy-hd", "1920x1080");
        let host = display(host, "mdpy-vga", "640x480");
        display(host, "mdpy-xga", "1024x768")
    }

    /// The kernel's sample parent `mbochs`: types that share 256 MB.
    #[must_use]
    pub fn mbochs(self) -> Self {
        let display = |host: Self, id: &str, mb: u32| {
            host.mdev_type(id, 256 / mb).described(&format!("virtual display, {mb} MB video memory"))
        };
        let host = self.parent("mbochs").shared_units(256);
        let host = display(host, "mbochs-large", 64);
        let host = display(host, "mbochs-medium", 16);
        display(host, "mbochs-small", 4)
    }

    /// The number of the first IOMMU group that a mediated device gets; otherwise the first after those of the PCI functions.
    #[must_use]
    pub fn first_group(mut self, group: u32) -> Self {
        self.first_group = Some(group);
        self
    }

    /// `/proc/PID` of every real process is there too, not listed but readable by number: for tests in which real libvirt hooks or shells
    /// call.
    #[must_use]
    pub fn real_processes(mut self) -> Self {
        self.real_processes = true;
        self
    }

    /// Mounts at `path`, which must be an empty folder, instead of a temporary one.
    #[must_use]
    pub fn mount_at(mut self, path: impl Into<std::path::PathBuf>) -> Self {
        self.mountpoint = Some(path.into());
        self
    }

    /// Brings the host up. The error says what is missing and how to get it.
    pub fn mount(self) -> io::Result<FakeHost> {
        FakeHost::mount(self)
    }
}
