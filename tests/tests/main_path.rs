//! The main job on a fake host: a domain asks, gets its device, and the host is clean again when it stops.

use mdevd_dbus::wire::text;
use mdevd_tests::fakesys;
use mdevd_tests::harness::{Bus, Daemon, Domain, claim_files, claim_json};

#[tokio::test]
async fn a_domain_gets_its_device_and_gives_it_back() {
    let host = fakesys::host().parent("0000:41:00.0").mdev_type("nvidia-63", 4).mount().unwrap();
    host.process(1, "systemd", &["/sbin/init"]);
    let bus = Bus::start();
    let _daemon = Daemon::start(&host, &bus).await;
    let manager = bus.manager().await;
    let domain = Domain::wants("vm1", &["nvidia-63"]);

    let grants = domain.prepare(&manager).await.unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(text(&grants[0], "uuid"), domain.mdevs[0].to_string());
    assert!(text(&grants[0], "xml").contains(&domain.mdevs[0].to_string()));
    assert_eq!(host.mdevs(), [(domain.mdevs[0], "0000:41:00.0".into(), "nvidia-63".into())]);
    let claim = claim_json(&domain.claim_file(&host));
    assert_eq!(claim["state"], "ready");
    assert_eq!(claim["plan"]["done"], 1);

    assert!(domain.release(&manager).await.unwrap());
    assert_eq!(host.mdevs(), []);
    assert!(claim_files(&host).is_empty());
    // Said again, it changes nothing.
    assert!(!domain.release(&manager).await.unwrap());
}
