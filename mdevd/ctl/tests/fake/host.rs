//! The objects: two cards of which one is in use, and a parent that is no card; a VM that runs and still waits for its second device; and
//! somebody who gave a claim a hostile name.

use std::collections::HashMap;

use mdevd_dbus::{Dict, path};
use zbus::message::Header;
use zbus::{OwnedObjectPath, OwnedVariant, interface};

use super::functions::{self, vm};
use super::{COMING, Calls, EVIL, Error, FOREIGN, GPU, MANUAL, STUCK, VM, dict, note, uuid};

pub struct Parent {
    pub name: String,
    numa_node: i32,
    driver: &'static str,
    types: Vec<Dict>,
    mdevs: Vec<OwnedObjectPath>,
}

#[interface(name = "org.mdevd1.Parent")]
impl Parent {
    #[zbus(property)]
    fn name(&self) -> &str {
        &self.name
    }
    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        self.numa_node
    }
    #[zbus(property)]
    fn driver(&self) -> &str {
        self.driver
    }
    #[zbus(property)]
    fn types(&self) -> Vec<Dict> {
        self.types.clone()
    }
    #[zbus(property)]
    pub fn mdevs(&self) -> Vec<OwnedObjectPath> {
        self.mdevs.clone()
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        "ok"
    }
}

fn mdev_type(id: &str, name: &str, description: &str, available: u32) -> Dict {
    dict([
        ("id", id.into()),
        ("name", name.into()),
        ("description", description.into()),
        ("device_api", "vfio-pci".into()),
        ("available", available.into()),
    ])
}

pub fn parents() -> Vec<Parent> {
    let nvidia = |left| {
        vec![
            mdev_type(
                "nvidia-63",
                "GRID M60-0B",
                "num_heads=2, frl_config=45, framebuffer=512M, max_resolution=2560x1600, max_instance=16",
                left,
            ),
            mdev_type(
                "nvidia-64",
                "GRID M60-1Q",
                "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=8",
                0,
            ),
        ]
    };
    vec![
        Parent {
            name: "0000:41:00.0".into(),
            numa_node: 0,
            driver: "nvidia",
            types: nvidia(2),
            mdevs: vec![path::mdev(uuid(FOREIGN)), path::mdev(uuid(GPU))],
        },
        Parent { name: "0000:42:00.0".into(), numa_node: 1, driver: "nvidia", types: nvidia(16), mdevs: Vec::new() },
        Parent {
            name: "mtty".into(),
            numa_node: -1,
            driver: "",
            types: vec![mdev_type("mtty-2", "", "two\nports\u{1b}[2J\n", 11)],
            mdevs: vec![path::mdev(uuid(STUCK))],
        },
    ]
}

/// Those of the host with many functions: its own display, and a parent that is none.
pub fn parents_among_functions() -> Vec<Parent> {
    let types = vec![mdev_type("i915-GVTg_V5_4", "", "low_gm_size: 128MB", 1)];
    let display =
        Parent { name: "0000:00:02.0".into(), numa_node: 0, driver: "i915", types, mdevs: vec![path::mdev(uuid(GPU))] };
    std::iter::once(display).chain(parents().into_iter().filter(|parent| parent.name == "mtty")).collect()
}

pub struct Mdev {
    calls: Calls,
    pub uuid: &'static str,
    parent: &'static str,
    mdev_type: &'static str,
    claim: Option<&'static str>,
    state: &'static str,
}

#[interface(name = "org.mdevd1.Mdev")]
impl Mdev {
    async fn get_holders(&self, _options: HashMap<String, OwnedVariant>) -> Result<Vec<(u32, String)>, Error> {
        match self.uuid {
            GPU => Ok(vec![(4711, "qemu-system-x86".into())]),
            STUCK => Err(Error::Unavailable("who holds it is not known: cannot read /proc/812/fd: EACCES".into())),
            _ => Ok(Vec::new()),
        }
    }
    async fn remove(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Remove {}", self.uuid), &options);
        match self.uuid {
            GPU => Err(Error::InUse(format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first"))),
            _ => Ok(self.uuid == FOREIGN),
        }
    }
    async fn hostdev_xml(&self, options: HashMap<String, OwnedVariant>, #[zbus(header)] header: Header<'_>) -> String {
        note(&self.calls, &header, "HostdevXml".into(), &options);
        hostdev(self.uuid)
    }
    async fn nodedev_xml(&self, _options: HashMap<String, OwnedVariant>) -> String {
        format!("<device>\n  <name>mdev_{}</name>\n</device>\n", self.uuid.replace('-', "_"))
    }
    #[zbus(property)]
    fn uuid(&self) -> &str {
        self.uuid
    }
    #[zbus(property)]
    fn parent(&self) -> OwnedObjectPath {
        path::parent(self.parent)
    }
    #[zbus(property, name = "Type")]
    fn mdev_type(&self) -> &str {
        self.mdev_type
    }
    #[zbus(property)]
    fn device_api(&self) -> &str {
        "vfio-pci"
    }
    #[zbus(property)]
    fn iommu_group(&self) -> i32 {
        if self.state == "ok" { 12 } else { -1 }
    }
    #[zbus(property)]
    fn numa_node(&self) -> i32 {
        if self.parent == "mtty" { -1 } else { 0 }
    }
    #[zbus(property)]
    fn driver(&self) -> &str {
        "vfio_mdev"
    }
    #[zbus(property)]
    fn claim(&self) -> OwnedObjectPath {
        self.claim.map_or_else(path::none, |id| path::claim(uuid(id)))
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        self.state
    }
    #[zbus(property)]
    fn origin(&self) -> &str {
        if self.claim.is_some() { "claim" } else { "foreign" }
    }
}

pub fn mdevs(calls: &Calls) -> Vec<Mdev> {
    let mdev =
        |uuid, parent, mdev_type, claim, state| Mdev { calls: calls.clone(), uuid, parent, mdev_type, claim, state };
    vec![
        mdev(GPU, "0000:41:00.0", "nvidia-63", Some(VM), "ok"),
        mdev(FOREIGN, "0000:41:00.0", "nvidia-63", None, "ok"),
        mdev(STUCK, "mtty", "mtty-2", Some(MANUAL), "stuck"),
    ]
}

/// Those of the host with many functions.
pub fn mdevs_among_functions(calls: &Calls) -> Vec<Mdev> {
    let (parent, mdev_type, claim) = ("0000:00:02.0", "i915-GVTg_V5_4", Some(VM));
    let gpu = Mdev { calls: calls.clone(), uuid: GPU, parent, mdev_type, claim, state: "ok" };
    std::iter::once(gpu).chain(mdevs(calls).into_iter().filter(|mdev| mdev.uuid == STUCK)).collect()
}

fn hostdev(uuid: &str) -> String {
    format!(
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>\n  <source>\n    <address uuid='{uuid}'/>\n  </source>\n</hostdev>\n"
    )
}

pub struct Claim {
    calls: Calls,
    pub id: String,
    owner: [String; 3],
    state: [&'static str; 2],
    grants: Vec<Dict>,
}

#[interface(name = "org.mdevd1.Claim")]
impl Claim {
    async fn release(
        &self,
        options: HashMap<String, OwnedVariant>,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<bool, Error> {
        note(&self.calls, &header, format!("Release {}", self.id), &options);
        match self.id.as_str() {
            VM => Err(Error::InUse(format!("{GPU} is open in qemu-system-x86 (pid 4711); stop VM vm1 first"))),
            _ => Ok(true),
        }
    }
    async fn hostdev_xml(&self, _options: HashMap<String, OwnedVariant>) -> String {
        self.grants.iter().map(|grant| mdevd_dbus::wire::text(grant, "xml")).collect()
    }
    #[zbus(property)]
    fn id(&self) -> &str {
        &self.id
    }
    #[zbus(property)]
    fn owner_kind(&self) -> &str {
        &self.owner[0]
    }
    #[zbus(property)]
    fn owner_uuid(&self) -> &str {
        &self.owner[1]
    }
    #[zbus(property)]
    fn owner_name(&self) -> &str {
        &self.owner[2]
    }
    #[zbus(property)]
    fn owner_uid(&self) -> u32 {
        if self.owner[0] == "domain" { 0 } else { 1000 }
    }
    #[zbus(property)]
    fn state(&self) -> &str {
        self.state[0]
    }
    #[zbus(property)]
    fn step(&self) -> &str {
        self.state[1]
    }
    #[zbus(property)]
    fn grants(&self) -> Vec<Dict> {
        self.grants.clone()
    }
    #[zbus(property)]
    fn created(&self) -> u64 {
        1_700_000_000
    }
    #[zbus(property)]
    fn run(&self) -> &str {
        if self.owner[0] == "domain" { "9d8c7b6a-0000-7000-8000-000000000001" } else { "" }
    }
}

fn grant(request: &str, device: &str, undo: &str) -> Dict {
    dict([
        ("request", request.into()),
        ("device", device.into()),
        ("object", path::mdev(uuid(device)).into_inner().into()),
        ("uuid", device.into()),
        ("undo", undo.into()),
        ("xml", hostdev(device).into()),
    ])
}

fn claim(calls: &Calls, id: &str, owner: [&str; 3], state: [&'static str; 2], grants: Vec<Dict>) -> Claim {
    Claim { calls: calls.clone(), id: id.to_owned(), owner: owner.map(str::to_owned), state, grants }
}

pub fn claims(calls: &Calls) -> Vec<Claim> {
    vec![
        claim(
            calls,
            VM,
            ["domain", VM, "vm1"],
            ["preparing", "create nvidia-63 on 0000:42:00.0"],
            vec![grant("gpu0", GPU, "remove"), grant("gpu1", COMING, "remove")],
        ),
        claim(calls, MANUAL, ["manual", "", "test"], ["ready", ""], vec![grant("dev0", STUCK, "keep")]),
        claim(calls, EVIL, ["manual", "", "harm\u{1b}[2J\u{202e}less"], ["failed", ""], Vec::new()),
    ]
}

/// Those of the host with many functions: of every function what its claim says, and the mdev of a VM.
pub fn claims_among_functions(calls: &Calls) -> Vec<Claim> {
    let all = functions::functions(calls);
    let grants = |id: &str| -> Vec<Dict> {
        let held = all.iter().filter(|function| function.claim.as_deref() == Some(id));
        let grant = |(index, function): (usize, &functions::Function)| {
            dict([
                ("request", format!("dev{index}").into()),
                ("device", function.address.as_str().into()),
                ("object", path::function(&function.address).into_inner().into()),
                ("address", function.address.as_str().into()),
                ("undo", "restore".into()),
                ("xml", functions::hostdev(&function.address).into()),
            ])
        };
        held.enumerate().map(grant).collect()
    };
    let domain = |number: usize| {
        let id = vm(number);
        claim(calls, &id, ["domain", &id, &format!("vm{number:02}")], ["ready", ""], grants(&id))
    };
    let mut claims: Vec<Claim> = (1..=14).chain([20]).map(domain).collect();
    claims.push(claim(calls, VM, ["domain", VM, "vm1"], ["ready", ""], vec![grant("gpu0", GPU, "remove")]));
    let mut manual = grants(MANUAL);
    manual.push(grant("tty", STUCK, "keep"));
    claims.push(claim(calls, MANUAL, ["manual", "", "test"], ["ready", ""], manual));
    claims
}
