//! Vendor-typed virtual functions, as NVIDIA's driver has them on kernels since 6.8: the folder `nvidia` of each, with the type that it has
//! and those that it could have. What it refuses, and how, is what that driver does.

use rustix::io::Errno;

use super::builder::Builder;
use super::functions::FunctionAttr;
use super::host::FakeHost;
use super::kernel::World;

/// What a builder says of a card.
#[derive(Debug, Clone, Default)]
pub(super) struct Card {
    /// Its framebuffer, in GB.
    framebuffer: u32,
    /// Types of different sizes may be there at once.
    mixed: bool,
    /// A function that has a type lists that one, and not nothing.
    lists_current: bool,
    /// What `gpu_instance_id` says, on a card that has one.
    instance: Option<String>,
    types: Vec<VgpuType>,
}

#[derive(Debug, Clone)]
struct VgpuType {
    id: u32,
    name: String,
    framebuffer: u32,
}

/// What a virtual function of such a card has while its driver is bound.
#[derive(Debug, Default)]
pub(super) struct Vgpu {
    pub(super) current: Option<u32>,
    /// The vendor's manager has not let go of it yet, although nobody has it open.
    lingers: bool,
    pub(super) params: String,
    pub(super) placement: String,
    pub(super) instance: String,
}

/// The files in the folder besides `gpu_instance_id`.
const FILES: [(&str, u16, FunctionAttr); 4] = [
    ("creatable_vgpu_types", 0o444, FunctionAttr::VgpuCreatable),
    ("current_vgpu_type", 0o644, FunctionAttr::VgpuCurrent),
    ("placement_id", 0o644, FunctionAttr::VgpuPlacement),
    ("vgpu_params", 0o644, FunctionAttr::VgpuParams),
];

impl World {
    /// The card that a function is a virtual one of.
    pub(super) fn card_of(&self, address: &str) -> Option<&Card> {
        let (pf, _) = self.functions.get(address)?.spec.vf_of.as_ref()?;
        self.functions.get(pf)?.spec.pf.as_ref()?.card.as_ref()
    }

    /// The driver gives a function of a card its folder.
    pub(super) fn add_vgpu(&mut self, address: &str) {
        let Some(instance) = self.card_of(address).map(|card| card.instance.clone()) else { return };
        for (name, mode, which) in FILES {
            self.own_attr(address, &format!("nvidia/{name}"), mode, which);
        }
        if instance.is_some() {
            self.own_attr(address, "nvidia/gpu_instance_id", 0o644, FunctionAttr::VgpuInstance);
        }
        if let Some(function) = self.functions.get_mut(address) {
            let instance = instance.map(|text| format!("{text}\n")).unwrap_or_default();
            function.vgpu = Some(Vgpu { instance, placement: "0\n".to_owned(), ..Vgpu::default() });
        }
    }

    /// The driver goes, and with it the type.
    pub(super) fn remove_vgpu(&mut self, address: &str) {
        let Some(function) = self.functions.get_mut(address) else { return };
        if function.vgpu.take().is_some() {
            let path = format!("{}/nvidia", function.path);
            self.tree.remove_path(&path);
        }
    }

    /// The types that a function without one could have, as its siblings leave room for them.
    fn creatable(&self, address: &str) -> Vec<&VgpuType> {
        let Some(card) = self.card_of(address) else { return Vec::new() };
        let pf = self.functions.get(address).and_then(|function| function.spec.vf_of.as_ref()).map(|(pf, _)| pf);
        let siblings = self.functions.values().filter(|it| it.spec.vf_of.as_ref().map(|(pf, _)| pf) == pf);
        let size = |id: u32| card.types.iter().find(|known| known.id == id).map_or(0, |known| known.framebuffer);
        let taken: Vec<u32> = siblings.filter_map(|it| it.vgpu.as_ref()?.current).map(size).collect();
        let free = card.framebuffer.saturating_sub(taken.iter().sum());
        let fits = |this: &&VgpuType| {
            this.framebuffer <= free && (card.mixed || taken.iter().all(|size| *size == this.framebuffer))
        };
        card.types.iter().filter(fits).collect()
    }

    /// What `creatable_vgpu_types` reads as: short while the function has a type.
    pub(super) fn creatable_text(&self, address: &str) -> String {
        let current = self.functions.get(address).and_then(|function| function.vgpu.as_ref()?.current);
        let types = match (current, self.card_of(address)) {
            (Some(id), Some(card)) if card.lists_current => card.types.iter().filter(|known| known.id == id).collect(),
            (Some(_), _) => Vec::new(),
            (None, _) => self.creatable(address),
        };
        let line = |known: &VgpuType| format!("{:<5} : {}\n", known.id, known.name);
        "ID    : vGPU Name\n"
            .chars()
            .chain(types.into_iter().flat_map(|it| line(it).chars().collect::<Vec<_>>()))
            .collect()
    }

    /// A write to `current_vgpu_type`.
    pub(super) fn set_vgpu_type(&mut self, address: &str, text: &str) -> Result<(), Errno> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let id: i64 = text.parse().map_err(|_| Errno::INVAL)?;
        let held = self.function_held(address);
        let fits = self.creatable(address).iter().any(|known| i64::from(known.id) == id);
        let vgpu = self.function_mut(address)?.vgpu.as_mut().ok_or(Errno::NODEV)?;
        match (id, vgpu.current) {
            // There is nothing to take away.
            (0, None) => Err(Errno::PERM),
            (0, Some(_)) if held => Err(Errno::PERM),
            (0, Some(_)) if vgpu.lingers => Err(Errno::BUSY),
            (0, Some(_)) => {
                vgpu.current = None;
                vgpu.params.clear();
                Ok(())
            }
            (_, Some(_)) => Err(Errno::PERM),
            (_, None) if !fits => Err(Errno::IO),
            (_, None) => {
                vgpu.current = u32::try_from(id).ok();
                Ok(())
            }
        }
    }

    /// A write to one of the files that keep what is written; the parameters are those of a type.
    pub(super) fn set_vgpu_text(&mut self, which: FunctionAttr, address: &str, text: &str) -> Result<(), Errno> {
        let vgpu = self.function_mut(address)?.vgpu.as_mut().ok_or(Errno::NODEV)?;
        let place = match which {
            FunctionAttr::VgpuParams if vgpu.current.is_none() => return Err(Errno::PERM),
            FunctionAttr::VgpuParams => &mut vgpu.params,
            FunctionAttr::VgpuPlacement => &mut vgpu.placement,
            _ => &mut vgpu.instance,
        };
        *place = format!("{}\n", text.strip_suffix('\n').unwrap_or(text));
        Ok(())
    }
}

impl Builder {
    /// A GPU whose `vfs` virtual functions, all there from the start, take vGPU types: 48 GB of framebuffer, and on one card types of one
    /// size only, until other words say otherwise.
    #[must_use]
    pub fn vgpu_card(self, address: &str, vfs: u16) -> Self {
        let card = Card { framebuffer: 48, ..Card::default() };
        self.pf(address, vfs)
            .ids(0x10de, 0x26b9)
            .class(0x03_0200)
            .driver("nvidia")
            .vf_ids(0x10de, 0x26b9)
            .vf_driver("nvidia")
            .offset_stride(4, 1)
            .vfs(vfs)
            .on_pf(|pf| pf.card = Some(card))
    }

    fn on_card(self, change: impl FnOnce(&mut Card)) -> Self {
        self.on_pf(|pf| {
            assert!(pf.card.is_some(), "name a vGPU card first");
            if let Some(card) = &mut pf.card {
                change(card);
            }
        })
    }

    /// The card's framebuffer, in GB.
    #[must_use]
    pub fn framebuffer(self, gb: u32) -> Self {
        self.on_card(|card| card.framebuffer = gb)
    }

    /// A vGPU type of the card, with its share of the framebuffer in GB: `1152, "NVIDIA L40S-8Q", 8`.
    #[must_use]
    pub fn vgpu_type(self, id: u32, name: &str, gb: u32) -> Self {
        self.on_card(|card| card.types.push(VgpuType { id, name: name.to_owned(), framebuffer: gb }))
    }

    /// Types of different sizes may be on the card at once, for as long as they fit.
    #[must_use]
    pub fn mixed(self) -> Self {
        self.on_card(|card| card.mixed = true)
    }

    /// While a virtual function has a type it lists that one as creatable, and not nothing.
    #[must_use]
    pub fn lists_current(self) -> Self {
        self.on_card(|card| card.lists_current = true)
    }

    /// The card's virtual functions have `nvidia/gpu_instance_id`, which says this until somebody writes another.
    #[must_use]
    pub fn gpu_instance_id(self, text: &str) -> Self {
        self.on_card(|card| card.instance = Some(text.to_owned()))
    }
}

impl FakeHost {
    /// Gives a virtual function a vGPU type as somebody else would, or takes it away with 0.
    pub fn set_vgpu_type(&self, vf: &str, id: u32) -> Result<(), Errno> {
        self.change(|world| world.set_vgpu_type(vf, &id.to_string()))
    }

    /// From now on the vendor's manager does not let go of this function when nobody has it open: its type cannot be taken away
    /// (`EBUSY`) until this says `false`.
    pub fn vgpu_lingers(&self, vf: &str, lingers: bool) {
        let known = self.with_function(vf, |it| it.vgpu.as_mut().map(|vgpu| vgpu.lingers = lingers).is_some());
        assert!(known, "{vf} takes no vGPU type");
    }
}
