//! A host with many PCI functions: two GPUs with 32 VFs each, two network cards with 64, four whole cards, a drive behind a controller
//! with a PCI domain of its own, and what belongs to every mainboard.

use std::collections::HashMap;

use mdevd_dbus::path;
use zbus::message::Header;
use zbus::{OwnedObjectPath, OwnedVariant, interface};

use super::{Calls, Error, MANUAL, note, uuid};

/// A PCI function.
#[derive(Clone)]
pub struct Function {
    calls: Calls,
    /// Its address.
    pub address: String,
    ids: [u16; 4],
    /// Its class.
    pub class: u32,
    name: &'static str,
    driver: &'static str,
    /// Its IOMMU group.
    pub group: i32,
    /// The functions of that group.
    pub members: Vec<String>,
    numa_node: i32,
    resets: Vec<&'static str>,
    netdev: Option<(String, String)>,
    /// Why the host needs it.
    pub critical: Vec<&'static str>,
    /// The id of its claim.
    pub claim: Option<String>,
    /// As a PF: the most VFs, and how many.
    pub pf: Option<(u32, u32)>,
    /// As a VF.
    pub vf: Option<Vf>,
}

/// What a VF has beyond other functions.
#[derive(Clone, Default)]
pub struct Vf {
    pf: String,
    index: u32,
    mac: String,
    vlan: u16,
    vgpu_type: u32,
    vgpu_types: Vec<(u32, String)>,
}

/// The vendor's vGPU types of the GPUs.
const TYPES: [(u32, &str); 4] =
    [(1140, "NVIDIA L40S-1B"), (1145, "NVIDIA L40S-4Q"), (1148, "NVIDIA L40S-8Q"), (1155, "NVIDIA L40S-48C")];

impl Function {
    fn new(calls: &Calls, address: &str, class: u32, name: &'static str, driver: &'static str) -> Self {
        Self {
            calls: calls.clone(),
            address: address.to_owned(),
            ids: [0x8086, 0x1234, 0x8086, 0x0001],
            class,
            name,
            driver,
            group: 0,
            members: Vec::new(),
            numa_node: 0,
            resets: vec!["flr", "bus"],
            netdev: None,
            critical: Vec::new(),
            claim: None,
            pf: None,
            vf: None,
        }
    }
}

/// Whose claim: `vm01` has this id.
pub fn vm(number: usize) -> String {
    format!("00000000-0000-4000-8000-0000000000{number:02}")
}

/// All of them, with their IOMMU groups.
pub fn functions(calls: &Calls) -> Vec<Function> {
    let new = |address: &str, class, name, driver| Function::new(calls, address, class, name, driver);
    let critical = |function: Function, why| Function { critical: vec![why], ..function };
    let mut all = vec![
        critical(
            new("0000:00:00.0", 0x060000, "Intel Corporation Ice Lake Memory Map/VT-d", ""),
            "belongs to the mainboard",
        ),
        critical(new("0000:00:02.0", 0x030000, "Intel Corporation HD Graphics 530", "i915"), "is the boot display"),
        new("0000:00:1f.0", 0x060100, "Intel Corporation C621A LPC/eSPI Controller", ""),
        critical(
            new("0000:00:1f.2", 0x010601, "Intel Corporation C621A SATA Controller [AHCI]", "ahci"),
            "carries /boot on sda1",
        ),
        new("0000:00:1f.4", 0x0c0500, "Intel Corporation C621A SMBus Controller", "i801_smbus"),
        new("0000:40:01.0", 0x060400, "Intel Corporation Xeon PCI Express Root Port", "pcieport"),
        new("0000:c0:01.0", 0x060400, "Intel Corporation Xeon PCI Express Root Port", "pcieport"),
    ];
    gpu(&mut all, calls, "0000:41", 0);
    gpu(&mut all, calls, "0000:c1", 1);
    nics(&mut all, calls);
    // Four whole cards: one that a VM has, one that is free, a drive in a manual claim, and the drive of the host.
    for (card, claim) in [("0000:81:00", Some(vm(20))), ("0000:82:00", None)] {
        let driver = |own| if claim.is_some() { "vfio-pci" } else { own };
        for (function, class, name, own) in [
            (0, 0x030000, "NVIDIA Corporation GA102 [GeForce RTX 3090]", "nouveau"),
            (1, 0x040300, "NVIDIA Corporation GA102 High Definition Audio Controller", "snd_hda_intel"),
        ] {
            let function = new(&format!("{card}.{function}"), class, name, driver(own));
            let ids = [0x10de, 0x2204, 0x10de, 0x1454];
            all.push(Function { claim: claim.clone(), ids, numa_node: 1, resets: vec!["bus"], ..function });
        }
    }
    let claim = Some(MANUAL.to_owned());
    all.push(Function {
        claim,
        ..new("0000:a1:00.0", 0x010802, "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1/PM9A3/980PRO", "vfio-pci")
    });
    all.push(critical(
        new("0000:a2:00.0", 0x010802, "Samsung Electronics Co Ltd NVMe SSD Controller PM9A1/PM9A3/980PRO", "nvme"),
        "carries / on nvme0n1p2",
    ));
    all.push(Function { numa_node: -1, resets: Vec::new(), ..new("10000:e1:00.0", 0x010802, "", "nvme") });
    group(&mut all);
    all
}

/// A GPU with 32 VFs: of the first one twelve are used, of the second one by nobody that is known.
fn gpu(all: &mut Vec<Function>, calls: &Calls, bus: &str, numa_node: i32) {
    let name = "NVIDIA Corporation AD102GL [L40S]";
    let pf = format!("{bus}:00.0");
    let function = |address: &str| Function {
        ids: [0x10de, 0x26b9, 0x10de, 0x1851],
        numa_node,
        ..Function::new(calls, address, 0x030200, name, "nvidia")
    };
    all.push(Function { pf: Some((32, 32)), ..function(&pf) });
    for index in 0..32 {
        let used = if numa_node == 0 { index < 11 || index == 20 } else { index == 3 };
        // A list is short while there is a type, and of a card that has types of one size no others fit.
        let types = TYPES.iter().filter(|(id, _)| numa_node == 1 || *id == 1145);
        let vf = Vf {
            pf: pf.clone(),
            index,
            vgpu_type: if used { 1145 } else { 0 },
            vgpu_types: types.map(|(id, name)| (*id, (*name).to_owned())).collect(),
            ..Vf::default()
        };
        let number = usize::try_from(index).unwrap();
        let claim = (used && numa_node == 0).then(|| vm(if index == 20 { 12 } else { number + 1 }));
        let address = format!("{bus}:{:02x}.{}", (4 + index) / 8, (4 + index) % 8);
        all.push(Function { vf: Some(vf), claim, resets: Vec::new(), ..function(&address) });
    }
}

/// Two network cards: one with two ports, of which one has 64 VFs and one none; one whose port the host itself uses, with 64.
fn nics(all: &mut Vec<Function>, calls: &Calls) {
    for (pf, vfs, name, driver, ids, netdev) in [
        ("0000:3b:00.0", 64, "Intel Corporation Ethernet Controller E810-C for QSFP", "ice", 0x1592, "enp59s0f0"),
        ("0000:3b:00.1", 0, "Intel Corporation Ethernet Controller E810-C for QSFP", "ice", 0x1592, "enp59s0f1"),
        ("0000:5e:00.0", 64, "Mellanox Technologies MT2892 Family [ConnectX-6 Dx]", "mlx5_core", 0x101d, "enp94s0np0"),
    ] {
        let intel = driver == "ice";
        let function = |address: &str, name, driver, device| Function {
            ids: [if intel { 0x8086 } else { 0x15b3 }, device, 0x1028, 0x0001],
            ..Function::new(calls, address, 0x020000, name, driver)
        };
        let port = u8::from(pf.ends_with('1'));
        all.push(Function {
            pf: Some((64, vfs)),
            netdev: Some((netdev.to_owned(), format!("b4:96:91:00:00:0{port}"))),
            critical: if intel { Vec::new() } else { vec!["has the default route (enp94s0np0)"] },
            ..function(pf, name, driver, ids)
        });
        for index in 0..vfs {
            let bus = &pf[..7];
            let address = format!("{bus}:{:02x}.{}", 1 + index / 8, index % 8);
            let claim = (intel && [0, 1, 40].contains(&index)).then(|| vm(if index == 40 { 14 } else { 13 }));
            let vf_driver = if intel { "iavf" } else { "mlx5_core" };
            let driver = if claim.is_some() { "vfio-pci" } else { vf_driver };
            let mac = if claim.is_some() { format!("52:54:00:6d:90:{index:02x}") } else { "00:00:00:00:00:00".into() };
            let vf = Vf { pf: pf.into(), index, mac, vlan: if claim.is_some() { 42 } else { 0 }, ..Vf::default() };
            let name = if intel {
                "Intel Corporation Ethernet Adaptive Virtual Function"
            } else {
                "Mellanox Technologies ConnectX Family mlx5Gen VF"
            };
            let netdev = claim.is_none().then(|| (format!("{netdev}v{index}"), String::new()));
            all.push(Function { vf: Some(vf), claim, netdev, ..function(&address, name, driver, ids + 1) });
        }
    }
}

/// Every function has a group of its own, but for those of the mainboard and of the card that is free.
fn group(all: &mut [Function]) {
    let shares = |address: &str| match address {
        _ if address.starts_with("0000:00:1f") => Some(1000),
        _ if address.starts_with("0000:82:00") => Some(1001),
        _ => None,
    };
    for (index, function) in all.iter_mut().enumerate() {
        function.group = shares(&function.address).unwrap_or(i32::try_from(index).unwrap());
    }
    let groups: Vec<(i32, String)> = all.iter().map(|function| (function.group, function.address.clone())).collect();
    for function in all {
        let same = groups.iter().filter(|(group, _)| *group == function.group);
        function.members = same.map(|(_, address)| address.clone()).collect();
    }
}

#[interface(name = "org.mdevd1.Function")]
impl Function {
    async fn get_holders(&self, _options: HashMap<String, OwnedVariant>) -> Result<Vec<(u32, String)>, Error> {
        match &self.claim {
            Some(claim) if claim == MANUAL => {
                Err(Error::Unavailable("who holds it is not known: cannot read /proc/812/fd: EACCES".into()))
            }
            Some(_) => Ok(vec![(4711, "qemu-system-x86".into())]),
            None => Ok(Vec::new()),
        }
    }
    async fn bind(
        &self,
        driver: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Bind {} {driver}", self.address), &options);
        match self.critical.first() {
            Some(why) if !options.contains_key("force") => {
                Err(Error::HostCritical(format!("the host itself needs {}: {why}", self.address)))
            }
            _ => Ok(self.driver != driver),
        }
    }
    async fn restore(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Restore {}", self.address), &options);
        Ok(self.claim.is_some())
    }
    async fn hostdev_xml(&self, options: HashMap<String, OwnedVariant>, #[zbus(header)] header: Header<'_>) -> String {
        note(&self.calls, &header, format!("HostdevXml {}", self.address), &options);
        hostdev(&self.address)
    }
    #[zbus(property)]
    fn address(&self) -> &str {
        &self.address
    }
    #[zbus(property)]
    fn vendor_id(&self) -> u16 {
        self.ids[0]
    }
    #[zbus(property)]
    fn device_id(&self) -> u16 {
        self.ids[1]
    }
    #[zbus(property)]
    fn subsystem_vendor_id(&self) -> u16 {
        self.ids[2]
    }
    #[zbus(property)]
    fn subsystem_device_id(&self) -> u16 {
        self.ids[3]
    }
    #[zbus(property)]
    fn class(&self) -> u32 {
        self.class
    }
    #[zbus(property)]
    fn name(&self) -> &str {
        self.name
    }
    #[zbus(property)]
    fn role(&self) -> &str {
        match (&self.vf, &self.pf) {
            (Some(_), _) => "vf",
            (None, Some(_)) => "pf",
            (None, None) => "pci",
        }
    }
    #[zbus(property)]
    fn driver(&self) -> &str {
        self.driver
    }
    #[zbus(property)]
    fn driver_override(&self) -> &str {
        if self.driver == "vfio-pci" { "vfio-pci" } else { "" }
    }
    #[zbus(property)]
    fn variant_drivers(&self) -> Vec<String> {
        if self.driver == "mlx5_core" { vec!["mlx5_vfio_pci".into()] } else { Vec::new() }
    }
    #[zbus(property)]
    fn iommu_group(&self) -> i32 {
        self.group
    }
    #[zbus(property)]
    fn group_members(&self) -> Vec<String> {
        self.members.clone()
    }
    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.numa_node
    }
    #[zbus(property)]
    fn reset_methods(&self) -> Vec<&str> {
        self.resets.clone()
    }
    #[zbus(property)]
    fn netdevs(&self) -> Vec<(String, String)> {
        self.netdev.iter().cloned().collect()
    }
    #[zbus(property)]
    fn host_critical(&self) -> Vec<&str> {
        self.critical.clone()
    }
    #[zbus(property)]
    fn claim(&self) -> OwnedObjectPath {
        self.claim.as_ref().map_or_else(path::none, |id| path::claim(uuid(id)))
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        if self.address == "0000:41:04.3" { "stuck" } else { "ok" }
    }
}

/// The hostdev of a function, in short.
pub fn hostdev(address: &str) -> String {
    format!("<hostdev type='pci'>\n  <!-- {address} -->\n</hostdev>\n")
}

/// What a PF has beyond other functions.
pub struct Physical(pub Function);

#[interface(name = "org.mdevd1.PhysicalFunction")]
impl Physical {
    async fn set_num_vfs(
        &self,
        count: u32,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.0.calls, &header, format!("SetNumVfs {} {count}", self.0.address), &options);
        if count > self.total_vfs() {
            let message = format!("{} can have {} virtual functions, not {count}", self.0.address, self.total_vfs());
            return Err(Error::InvalidArgument(message));
        }
        Ok(count != self.num_vfs() || options.contains_key("drivers-autoprobe"))
    }
    #[zbus(property)]
    fn total_vfs(&self) -> u32 {
        self.0.pf.unwrap().0
    }
    #[zbus(property)]
    fn num_vfs(&self) -> u32 {
        self.0.pf.unwrap().1
    }
    #[zbus(property)]
    fn vfs(&self) -> Vec<OwnedObjectPath> {
        let all = functions(&self.0.calls);
        let of = |function: &&Function| function.vf.as_ref().is_some_and(|vf| vf.pf == self.0.address);
        all.iter().filter(of).map(|function| path::function(&function.address)).collect()
    }
    #[zbus(property)]
    fn drivers_autoprobe(&self) -> bool {
        self.0.driver != "nvidia"
    }
    #[zbus(property)]
    fn eswitch_mode(&self) -> &str {
        if self.0.driver == "mlx5_core" { "legacy" } else { "" }
    }
}

/// What a VF has beyond other functions, on the bus.
pub struct Virtual(pub Function, pub Vf);

#[interface(name = "org.mdevd1.VirtualFunction")]
impl Virtual {
    async fn configure(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.0.calls, &header, format!("Configure {}", self.0.address), &options);
        Ok(!options.contains_key("vlan"))
    }
    async fn set_vgpu_type(
        &self,
        r#type: u32,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.0.calls, &header, format!("SetVgpuType {} {type}", self.0.address), &options);
        Ok(r#type != self.1.vgpu_type)
    }
    #[zbus(property)]
    fn pf(&self) -> OwnedObjectPath {
        path::function(&self.1.pf)
    }
    #[zbus(property)]
    fn vf_index(&self) -> u32 {
        self.1.index
    }
    #[zbus(property)]
    fn mac(&self) -> &str {
        &self.1.mac
    }
    #[zbus(property)]
    fn vlan(&self) -> u16 {
        self.1.vlan
    }
    #[zbus(property)]
    fn trust(&self) -> bool {
        false
    }
    #[zbus(property)]
    fn spoof_check(&self) -> bool {
        !self.1.mac.is_empty()
    }
    #[zbus(property)]
    fn min_rate(&self) -> u32 {
        0
    }
    #[zbus(property)]
    fn max_rate(&self) -> u32 {
        if self.1.vlan == 0 { 0 } else { 10_000 }
    }
    #[zbus(property)]
    fn link_state(&self) -> &str {
        if self.1.mac.is_empty() { "" } else { "auto" }
    }
    #[zbus(property)]
    fn vgpu_type(&self) -> u32 {
        self.1.vgpu_type
    }
    #[zbus(property)]
    fn creatable_vgpu_types(&self) -> Vec<(u32, String)> {
        self.1.vgpu_types.clone()
    }
}
