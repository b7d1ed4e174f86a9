//! What may be needed where it cannot be seen what is.

use super::{Host, wanted};

/// Two disks and two network interfaces, each on a function of its own, and what is neither.
fn four_functions() -> Host {
    let host = Host::new();
    host.block("pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1", "259:0");
    host.partition("pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1/nvme0n1p1", "259:1");
    host.block("pci0000:00/0000:00:02.0/usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sda", "8:0");
    host.mapped("dm-0", "253:0", "luks", &["pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1"]);
    host.block("virtual/block/loop0", "7:0");
    host.net("pci0000:00/0000:00:03.0/net/eth0");
    host.net("pci0000:00/0000:00:04.0/net/eth1");
    host.net("virtual/net/lo");
    host.default_route("eth0");
    host
}

/// What is not a folder can be read, and a folder cannot.
fn unreadable(host: &Host, path: &str) {
    let _ = std::fs::remove_file(host.at(path));
    std::fs::create_dir_all(host.at(path)).unwrap();
}

#[test]
fn without_the_mounts_every_disk_and_every_interface_may_be_needed() {
    let host = four_functions();
    let route = "0000:00:03.0 carries the default route through eth0";
    assert_eq!(host.found(), wanted(&[route]));
    let clause =
        |why: &str| format!("may carry the host's file systems (which does is not known: proc/1/mountinfo: {why})");
    let all = |clause: &str| {
        let all = [
            format!("0000:00:01.0 {clause} on nvme0n1"),
            format!("0000:00:02.0 {clause} on sda"),
            format!("0000:00:03.0 {clause} through eth0; carries the default route through eth0"),
            format!("0000:00:04.0 {clause} through eth1"),
        ];
        wanted(&all.each_ref().map(String::as_str))
    };
    host.append("proc/1/mountinfo", "nonsense");
    let (found, problems) = host.look();
    let why = "a line in it is no mount, so that a mount may be missing";
    assert_eq!((found, problems), (all(&clause(why)), vec![format!("proc/1/mountinfo: {why}")]));
    unreadable(&host, "proc/1/mountinfo");
    unreadable(&host, "proc/self/mountinfo");
    let (found, problems) = host.look();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let shown = found["0000:00:02.0"].join(" ");
    assert!(shown.starts_with("may carry the host's file systems") && shown.contains("EISDIR"), "{shown}");
}

#[test]
fn without_the_swaps_every_disk_may_be_needed() {
    let host = four_functions();
    unreadable(&host, "proc/swaps");
    let (found, problems) = host.look();
    let why = "proc/swaps: cannot read it: EISDIR (Is a directory)";
    let clause = format!("may carry swap (which does is not known: {why})");
    let all = [
        format!("0000:00:01.0 {clause} on nvme0n1"),
        format!("0000:00:02.0 {clause} on sda"),
        "0000:00:03.0 carries the default route through eth0".into(),
    ];
    assert_eq!((found, problems), (wanted(&all.each_ref().map(String::as_str)), vec![why.to_owned()]));
}

#[test]
fn without_the_routes_every_interface_may_be_needed() {
    for (table, other) in [("proc/net/route", "proc/net/ipv6_route"), ("proc/net/ipv6_route", "proc/net/route")] {
        let host = four_functions();
        let _ = std::fs::remove_file(host.at(other));
        unreadable(&host, table);
        let (found, problems) = host.look();
        let why = format!("{table}: cannot read it: EISDIR (Is a directory)");
        let clause = format!("may carry the default route (which does is not known: {why})");
        let all = ["0000:00:03.0 _ through eth0", "0000:00:04.0 _ through eth1"].map(|all| all.replace('_', &clause));
        assert_eq!((found, problems), (wanted(&all.each_ref().map(String::as_str)), vec![why]));
    }
}

#[test]
fn every_disk_may_be_in_a_zfs_pool() {
    let host = four_functions();
    host.mount("0:60", "/", "/tank", "zfs tank/data rw");
    host.mount("0:61", "/", "/tank/b", "zfs tank/b rw");
    let (found, problems) = host.look();
    assert_eq!(
        found,
        wanted(&[
            "0000:00:01.0 may carry the ZFS pool tank on nvme0n1",
            "0000:00:02.0 may carry the ZFS pool tank on sda",
            "0000:00:03.0 carries the default route through eth0",
        ])
    );
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn nvme_over_the_network_is_as_far_as_its_server() {
    let host = Host::new();
    host.net("pci0000:00/0000:00:02.0/net/eth0");
    host.net("pci0000:00/0000:00:03.0/net/eth1");
    host.route("eth0", [10, 0, 0, 0], [255, 255, 255, 0], 1);
    host.route("eth1", [10, 0, 1, 0], [255, 255, 255, 0], 1);
    let ctl = "virtual/nvme-fabrics/ctl";
    let address = |name: &str, text: &str| host.file(format!("sys/devices/{ctl}/{name}/address"), text);
    address("nvme0", "traddr=10.0.0.5,trsvcid=4420,src_addr=10.0.0.1\n");
    address("nvme1", "traddr=10.0.1.5,trsvcid=4420\n");
    // With more than one way to it, and with one.
    for name in ["nvme0", "nvme1"] {
        host.link(&format!("devices/virtual/nvme-subsystem/nvme-subsys0/{name}"), &format!("devices/{ctl}/{name}"));
    }
    host.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
    host.block(&format!("{ctl}/nvme1/nvme1n1"), "259:1");
    host.mount("259:0", "/", "/", "ext4 /dev/nvme0n1 rw");
    host.mount("259:1", "/", "/srv", "ext4 /dev/nvme1n1 rw");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:02.0 carries / on nvme0n1 through eth0",
            "0000:00:03.0 carries / on nvme0n1 through eth1; carries /srv on nvme1n1 through eth1",
        ])
    );
    // Over Fibre Channel it has no address of this kind, and then it is only said.
    address("nvme1", "traddr=nn-0x10000090fae0b5f5:pn-0x10000090fae0b5f5\n");
    let (found, problems) = host.look();
    assert_eq!(found["0000:00:02.0"], ["carries / on nvme0n1 through eth0"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("it carries /srv on nvme1n1, and which device it is behind cannot"), "{problems:?}");
}

#[test]
fn a_disk_that_is_on_no_device_is_said() {
    let host = Host::new();
    for (path, number, said) in [
        ("rbd/0/block/rbd0", "250:0", true),
        ("virtual/block/nbd0", "43:0", true),
        ("platform/host3/session2/target3:0:0/3:0:0:1/block/sdc", "8:32", true),
        ("virtual/block/loop7", "7:7", false),
        ("virtual/block/zram0", "251:0", false),
        ("virtual/block/ram1", "1:1", false),
    ] {
        host.block(path, number);
        host.file("proc/1/mountinfo", "");
        host.mount(number, "/", "/srv", "ext4 /dev/x rw");
        let (found, problems) = host.look();
        assert_eq!((found, problems.len()), (wanted(&[]), usize::from(said)), "{path}: {problems:?}");
        assert!(problems.iter().all(|problem| problem.contains("it carries /srv on ")), "{problems:?}");
    }
}
