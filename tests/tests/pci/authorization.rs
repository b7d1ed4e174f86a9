//! Who may change a PCI function: a caller whom polkit denies it changes nothing, and polkit is told what it is about.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use mdevd_dbus::{ErrorName, Options, PhysicalFunctionProxy, VirtualFunctionProxy, path};
use mdevd_tests::harness::{Bus, FakePolkit, Verdict, claim_files};
use zbus::Connection;

use super::common::*;

/// The right that all of this takes.
const ACTION: &str = "org.mdevd1.configure-function";
/// Who is nobody.
const NOBODY: u32 = 65534;

/// A connection whose other end the bus says is nobody. Only root can have it; an ordinary user is nobody already.
async fn connect_as_nobody(bus: &Bus) -> Connection {
    if !rustix::process::geteuid().is_root() {
        return bus.connect().await;
    }
    let socket = bus.address().strip_prefix("unix:path=").unwrap().split(',').next().unwrap().to_string();
    // Whom the kernel names to the bus is decided when the socket is connected, and by the one thread that does it.
    let connecting = std::thread::spawn(move || {
        use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        let (uid, gid) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        UnixStream::connect(socket).unwrap()
    });
    let stream = connecting.join().unwrap();
    zbus::connection::Builder::unix_stream(stream).user_id(NOBODY).build().await.expect("nobody may connect")
}

/// A way to change a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Bind,
    BindByForce,
    Restore,
    More,
    None,
    Configure,
    Type,
    NoType,
}

const CHANGES: [Change; 8] = [
    Change::Bind,
    Change::BindByForce,
    Change::Restore,
    Change::More,
    Change::None,
    Change::Configure,
    Change::Type,
    Change::NoType,
];

impl Change {
    async fn make(self, connection: &Connection, vfs: &[String]) -> zbus::Result<bool> {
        let of = |vf: &String| VirtualFunctionProxy::builder(connection).path(path::function(vf)).build();
        let pf = PhysicalFunctionProxy::builder(connection).path(path::function(PF)).build();
        match self {
            Self::Bind => function(connection, NIC).await.bind("vfio-pci", &none()).await,
            Self::BindByForce => {
                function(connection, NIC).await.bind("vfio-pci", &Options::from([("force", NIC.into())])).await
            }
            Self::Restore => function(connection, VFS[0]).await.restore(&none()).await,
            Self::More => pf.await?.set_num_vfs(3, &none()).await,
            Self::None => pf.await?.set_num_vfs(0, &Options::from([("drivers-autoprobe", false.into())])).await,
            Self::Configure => of(&vfs[0]).await?.configure(&Options::from([("vlan", 42u32.into())])).await,
            Self::Type => of(&vfs[0]).await?.set_vgpu_type(1152, &none()).await,
            Self::NoType => of(&vfs[1]).await?.set_vgpu_type(0, &none()).await,
        }
    }

    /// What polkit is told.
    fn details(self, vfs: &[String]) -> HashMap<String, String> {
        let (device, more) = match self {
            Self::Bind | Self::BindByForce => (NIC, Some(("driver", "vfio-pci"))),
            Self::Restore => (VFS[0], None),
            Self::More => (PF, Some(("count", "3"))),
            Self::None => (PF, Some(("count", "0"))),
            Self::Configure => (vfs[0].as_str(), None),
            Self::Type => (vfs[0].as_str(), Some(("type", "1152"))),
            Self::NoType => (vfs[1].as_str(), Some(("type", "0"))),
        };
        let message = match self {
            Self::Bind | Self::BindByForce => "take the device $(device) from its driver and bind it to $(driver)",
            Self::Restore => "give the device $(device) back to the driver that it had",
            Self::More | Self::None => "change the number of virtual functions of $(device) to $(count)",
            Self::Configure => "change the network settings of the virtual function $(device)",
            Self::Type | Self::NoType => "change the vGPU type of $(device) to $(type)",
        };
        let message = format!("Authentication is required to {message}");
        let shown = [("polkit.message", message.as_str()), ("polkit.gettext_domain", "mdevd"), ("device", device)];
        shown.into_iter().chain(more).map(|(key, value)| (key.into(), value.into())).collect()
    }
}

/// A host with a virtual function that somebody has bound by hand, and one with a vGPU type.
async fn scene() -> (Lab, Vec<String>, FakePolkit) {
    let builder =
        nics().vgpu_card(GPU, 4).vgpu_type(1148, "NVIDIA L40S-2Q", 2).vgpu_type(1152, "NVIDIA L40S-8Q", 8).mixed();
    let lab = Lab::start_without_polkit(builder, |host| {
        host.set_num_vfs(PF, 2).unwrap();
        host.set_vgpu_type(&host.view().vfs(GPU)[1], 1148).unwrap();
    })
    .await;
    let polkit = FakePolkit::start(&lab.bus, Verdict::Allow).await;
    assert!(lab.function(VFS[0]).await.bind("vfio-pci", &none()).await.unwrap());
    polkit.asked();
    lab.host.clear_log();
    let vfs = lab.host.view().vfs(GPU);
    (lab, vfs, polkit)
}

#[tokio::test]
async fn a_polkit_that_denies_stops_every_change_and_is_told_of_what() {
    let (lab, vfs, polkit) = scene().await;
    polkit.answer(Verdict::Deny);
    let (claims, objects) = (claim_files(&lab.host), lab.objects().await);
    let nobody = connect_as_nobody(&lab.bus).await;
    for change in CHANGES {
        assert_refused(change.make(&nobody, &vfs).await, ErrorName::NotAuthorized, &[ACTION]);
        let asked = polkit.asked();
        assert_eq!(asked.len(), 1, "{change:?}: {asked:?}");
        assert_eq!((asked[0].action.as_str(), asked[0].interactive), (ACTION, true), "{change:?}");
        assert_eq!(
            (asked[0].subject.as_str(), asked[0].name.as_str()),
            ("system-bus-name", nobody.unique_name().unwrap().as_str())
        );
        assert_eq!(asked[0].details, change.details(&vfs), "{change:?}");
    }
    // Nor without polkit at all.
    polkit.die().await;
    for change in CHANGES {
        assert_refused(change.make(&nobody, &vfs).await, ErrorName::NotAuthorized, &["polkit", ACTION]);
    }
    assert_eq!(lab.host.log().iter().map(|entry| entry.path.clone()).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!((claim_files(&lab.host), lab.objects().await), (claims, objects));
    assert_eq!((lab.host.view().vfs(PF).len(), lab.host.view().vgpu_type(&vfs[1])), (2, Some(1148)));
}

#[tokio::test]
async fn a_polkit_that_allows_opens_them() {
    let (lab, vfs, polkit) = scene().await;
    let nobody = connect_as_nobody(&lab.bus).await;
    for change in CHANGES {
        let answer = change.make(&nobody, &vfs).await;
        match change {
            // What the one before has made already.
            Change::BindByForce => assert!(!answer.unwrap()),
            // This card is none for networks.
            Change::Configure => assert_refused(answer, ErrorName::KernelRefused, &[GPU, "network interface"]),
            _ => assert!(answer.unwrap_or_else(|error| panic!("{change:?}: {error}")), "{change:?}"),
        }
        assert_eq!(polkit.asked().len(), 1, "{change:?}");
    }
    assert_eq!(lab.bound(NIC), (Some("vfio-pci".into()), Some("vfio-pci".into())));
    let uid = if rustix::process::geteuid().is_root() { NOBODY } else { rustix::process::geteuid().as_raw() };
    let id = claim_files(&lab.host).first().unwrap().trim_end_matches(".json").parse().unwrap();
    let claim = mdevd_dbus::ClaimProxy::builder(&lab.connection).path(path::claim(id)).build().await.unwrap();
    assert_eq!(claim.owner_uid().await.unwrap(), uid, "the claim is that caller's");
    assert_eq!((lab.host.view().vgpu_type(&vfs[0]), lab.host.view().vgpu_type(&vfs[1])), (Some(1152), None));
    assert_eq!(lab.host.view().vfs(PF), Vec::<String>::new());
}
