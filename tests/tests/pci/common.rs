//! What these tests share: a host with NICs and cards, the daemon over it, domains that want functions, and taking errors apart.

use std::fmt::Debug;

use mdevd_core::claim::Claim;
use mdevd_dbus::{
    BUS_NAME, ErrorName, FunctionProxy, ManagerProxy, Options, PhysicalFunctionProxy, VirtualFunctionProxy, path, wire,
};
use mdevd_tests::fakesys::{self, Builder, Errno, FakeHost, FakeProcess};
use mdevd_tests::harness::{Bus, Daemon, Domain, FakePolkit, Verdict, eventually, manager, text_dict};
use zbus::Connection;
use zbus::fdo::ManagedObjects;
use zbus::proxy::CacheProperties;

/// A network card that makes virtual functions.
pub const PF: &str = "0000:01:00.0";
/// Its first virtual functions.
pub const VFS: [&str; 3] = ["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"];
/// A network card that makes none.
pub const NIC: &str = "0000:03:00.0";
/// A graphics card and its sound, in one IOMMU group.
pub const CARD: [&str; 2] = ["0000:41:00.0", "0000:41:00.1"];
/// The same without saying which function.
pub const WHOLE_CARD: &str = "0000:41:00";
/// A GPU with vGPU types.
pub const GPU: &str = "0000:c1:00.0";

/// What the host has mounted: nothing of any device.
const MOUNTS: &str = "22 1 0:21 / / rw,relatime shared:1 - tmpfs tmpfs rw\n";

/// A network card with room for seven virtual functions, one without, and a graphics card.
pub fn nics() -> Builder {
    fakesys::host()
        .pf(PF, 7)
        .ids(0x8086, 0x10c9)
        .class(0x02_0000)
        .driver("igb")
        .netdev("enp1s0", "52:54:00:00:00:01")
        .hardware_vfs(8)
        .vf_ids(0x8086, 0x10ca)
        .vf_driver("igbvf")
        .vf_netdevs("enp1s0v")
        .offset_stride(128, 2)
        .function(NIC)
        .ids(0x8086, 0x10d3)
        .class(0x02_0000)
        .driver("e1000e")
        .netdev("enp3s0", "52:54:00:00:00:02")
        .function(CARD[0])
        .ids(0x10de, 0x2204)
        .class(0x03_0000)
        .driver("nouveau")
        .function(CARD[1])
        .ids(0x10de, 0x1aef)
        .class(0x04_0300)
        .driver("snd_hda_intel")
        .group_with(CARD[0])
}

/// A GPU with 32 virtual functions and 48 GB, whose types are all of one size at a time.
pub fn gpu() -> Builder {
    fakesys::host()
        .vgpu_card(GPU, 32)
        .framebuffer(48)
        .vgpu_type(1145, "NVIDIA L40S-1B", 1)
        .vgpu_type(1147, "NVIDIA L40S-1Q", 1)
        .vgpu_type(1148, "NVIDIA L40S-2Q", 2)
        .vgpu_type(1152, "NVIDIA L40S-8Q", 8)
        .vgpu_type(1156, "NVIDIA L40S-48Q", 48)
}

/// The daemon over a host, and a connection to it. The daemon goes first when this is dropped.
pub struct Lab {
    pub daemon: Daemon,
    pub manager: ManagerProxy<'static>,
    pub connection: Connection,
    pub polkit: Option<FakePolkit>,
    pub bus: Bus,
    pub host: FakeHost,
}

impl Lab {
    /// Starts the daemon over this host.
    pub async fn start(builder: Builder) -> Self {
        Self::start_with(builder, |_| {}).await
    }

    /// Starts the daemon over this host as `before` leaves it.
    pub async fn start_with(builder: Builder, before: impl FnOnce(&FakeHost)) -> Self {
        let mut lab = Self::start_without_polkit(builder, before).await;
        if !rustix::process::geteuid().is_root() {
            // Then nobody is root, and somebody has to allow.
            lab.polkit = Some(FakePolkit::start(&lab.bus, Verdict::Allow).await);
        }
        lab
    }

    /// The same where the test brings its own polkit, or none.
    pub async fn start_without_polkit(builder: Builder, before: impl FnOnce(&FakeHost)) -> Self {
        let host = builder.mount().unwrap();
        host.process(1, "systemd", &["/sbin/init"]);
        host.set_text("proc/1/mountinfo", MOUNTS);
        before(&host);
        let bus = Bus::start();
        let daemon = Daemon::start(&host, &bus).await;
        let connection = bus.connect().await;
        let manager = manager(&connection).await;
        Self { daemon, manager, connection, polkit: None, bus, host }
    }

    /// Kills the daemon and starts the next one.
    pub async fn restart(&mut self) {
        self.daemon.kill(&self.bus).await;
        self.daemon = Daemon::start(&self.host, &self.bus).await;
    }

    pub async fn function(&self, address: &str) -> FunctionProxy<'static> {
        function(&self.connection, address).await
    }

    pub async fn physical(&self, address: &str) -> PhysicalFunctionProxy<'static> {
        let builder = PhysicalFunctionProxy::builder(&self.connection).path(path::function(address));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    pub async fn virtual_function(&self, address: &str) -> VirtualFunctionProxy<'static> {
        let builder = VirtualFunctionProxy::builder(&self.connection).path(path::function(address));
        builder.cache_properties(CacheProperties::No).build().await.unwrap()
    }

    /// Gives a physical function so many virtual ones.
    pub async fn set_num_vfs(&self, pf: &str, count: u32) -> zbus::Result<bool> {
        self.physical(pf).await.set_num_vfs(count, &none()).await
    }

    /// Everything under `/org/mdevd1`.
    pub async fn objects(&self) -> ManagedObjects {
        let proxy = zbus::fdo::ObjectManagerProxy::new(&self.connection, BUS_NAME, path::ROOT).await.unwrap();
        proxy.get_managed_objects().await.unwrap()
    }

    /// Whether there is an object for this function.
    pub async fn shows(&self, address: &str) -> bool {
        self.objects().await.contains_key(&path::function(address))
    }

    /// What mdevd lists under Problems.
    pub async fn problems(&self) -> Vec<String> {
        let problems = self.manager.problems().await.unwrap();
        let line = |problem| format!("{}: {}", wire::text(problem, "subject"), wire::text(problem, "message"));
        problems.iter().map(line).collect()
    }

    /// The claim of a domain, as its file says.
    pub fn claim(&self, domain: &Domain) -> Option<Claim> {
        let text = self.host.view().text(&format!("run/mdevd/claims/{}.json", domain.uuid))?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// Driver and override of a function.
    pub fn bound(&self, address: &str) -> (Option<String>, Option<String>) {
        let view = self.host.view();
        (view.driver_of(address), view.override_of(address))
    }

    /// Waits until a function has this driver and no override.
    pub async fn restored(&self, address: &str, driver: Option<&str>) {
        let want = (driver.map(str::to_owned), None);
        eventually(&format!("{address} is on {want:?}"), || async { self.bound(address) == want }).await;
    }

    /// Waits until a domain has no claim any more.
    pub async fn freed(&self, domain: &Domain) {
        eventually("the claim ends", || async { self.claim(domain).is_none() }).await;
    }

    /// Nothing is promised, and nothing is wrong.
    pub async fn nothing_left(&self) {
        eventually("no claim is left", || async { mdevd_tests::harness::claim_files(&self.host).is_empty() }).await;
        assert_eq!(self.problems().await, Vec::<String>::new());
    }

    /// The writes that concern this function, as `(file, value)`: those to its folder, and those of its address to its bus or a driver.
    pub fn writes_of(&self, address: &str) -> Vec<(String, String)> {
        let home = format!("/{address}/");
        let of_it = |(path, value, _): &(String, String, Option<Errno>)| path.contains(&home) || value == address;
        let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let writes = self.host.sys_writes().into_iter().filter(of_it);
        writes.map(|(path, value, _)| (last(&path), value)).collect()
    }
}

/// A function's object.
pub async fn function(connection: &Connection, address: &str) -> FunctionProxy<'static> {
    let builder = FunctionProxy::builder(connection).path(path::function(address));
    builder.cache_properties(CacheProperties::No).build().await.unwrap()
}

/// A domain that wants nothing yet.
pub fn domain(name: &str) -> Domain {
    Domain::wants(name, &[])
}

/// The same with one more request, for this function (or card) with these keys, and no hostdev for it.
pub fn asks(mut domain: Domain, address: &str, keys: &[(&str, &str)]) -> Domain {
    let name = format!("dev{}", domain.requests.len());
    let mut request = text_dict(&[("name", &name), ("address", address)]);
    request.extend(text_dict(keys));
    domain.requests.push(request);
    domain
}

/// The same with one more hostdev.
pub fn has(mut domain: Domain, address: &str, managed: &str) -> Domain {
    domain.hostdevs.push(text_dict(&[("kind", "pci"), ("address", address), ("managed", managed)]));
    domain
}

/// A domain that wants this function, and leaves binding it to mdevd.
pub fn wants(name: &str, address: &str) -> Domain {
    wants_with(name, address, &[])
}

/// The same with more keys in its request.
pub fn wants_with(name: &str, address: &str, keys: &[(&str, &str)]) -> Domain {
    has(asks(domain(name), address, keys), address, "no")
}

/// A domain that wants this function, which libvirt binds.
pub fn wants_managed(name: &str, address: &str) -> Domain {
    has(asks(domain(name), address, &[]), address, "yes")
}

/// A domain that wants both functions of [`CARD`].
pub fn wants_card(name: &str) -> Domain {
    has(has(asks(domain(name), WHOLE_CARD, &[]), CARD[0], "no"), CARD[1], "no")
}

/// QEMU, which has this function open.
pub fn qemu(host: &FakeHost, pid: u32, address: &str) -> FakeProcess {
    host.process(pid, "qemu-system-x86", &["qemu-system-x86_64"]).opens_function(address)
}

/// No options.
pub fn none() -> Options<'static> {
    Options::new()
}

/// A routing table whose default route is this interface.
pub fn default_route(interface: &str) -> String {
    let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
    format!("{header}{interface}\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n")
}

/// The error of ours that a call failed with: its name, and its message, which has these words and is fit for a terminal.
#[track_caller]
pub fn assert_refused<T: Debug>(result: zbus::Result<T>, name: ErrorName, words: &[&str]) {
    let error = result.expect_err("this must be refused");
    let (got, message) = mdevd_dbus::error::split(&error);
    assert_eq!(got, Some(name), "{message}");
    assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "control characters in {message:?}");
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}
