//! What of the host lives on a PCI function, on trees like those of real hosts.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "critical/unread.rs"]
mod unread;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use mdevd_host::critical::host_critical;
use mdevd_host::roots::Roots;

/// Root ports, and what is below them.
const NVME0: &str = "pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0/nvme0n1";
const NVME1: &str = "pci0000:00/0000:00:1d.4/0000:03:00.0/nvme/nvme1/nvme1n1";
const NIC0: &str = "pci0000:00/0000:00:05.0/0000:05:00.0/net/enp5s0f0";
const NIC1: &str = "pci0000:00/0000:00:05.0/0000:05:00.1/net/enp5s0f1";

/// A table of IPv4 routes without any.
const NO_ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

struct Host {
    dir: tempfile::TempDir,
    roots: Roots,
}

impl Host {
    /// A host on nothing, as it were: its root is a memory file system.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc"), ..Roots::default() };
        let host = Self { roots, dir };
        host.file("proc/1/mountinfo", "1 1 0:2 / / rw - rootfs none rw\n");
        host.file("proc/net/route", NO_ROUTES);
        host
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: impl AsRef<Path>, content: &str) {
        std::fs::create_dir_all(self.at(&path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), content).unwrap();
    }

    fn append(&self, path: &str, line: &str) {
        let old = std::fs::read_to_string(self.at(path)).unwrap_or_default();
        self.file(path, &format!("{old}{line}\n"));
    }

    /// A link to a place below the sysfs of this host, relative as the kernel's are.
    fn link(&self, path: &str, to: &str) {
        let path = PathBuf::from("sys").join(path);
        std::fs::create_dir_all(self.at(&path).parent().unwrap()).unwrap();
        let up = "../".repeat(path.components().count() - 2);
        symlink(format!("{up}{to}"), self.at(path)).unwrap();
    }

    /// A device's folder with a link to it in its class.
    fn device(&self, class: &str, path: &str) {
        std::fs::create_dir_all(self.at("sys/devices").join(path)).unwrap();
        let name = path.rsplit('/').next().unwrap();
        self.link(&format!("class/{class}/{name}"), &format!("devices/{path}"));
    }

    fn block(&self, path: &str, number: &str) {
        self.device("block", path);
        self.file(format!("sys/devices/{path}/dev"), &format!("{number}\n"));
        self.link(&format!("dev/block/{number}"), &format!("devices/{path}"));
    }

    fn partition(&self, path: &str, number: &str) {
        self.block(path, number);
        self.file(format!("sys/devices/{path}/partition"), "1\n");
    }

    /// A block device of the device mapper, or of RAID, and what it is made of.
    fn made_of(&self, name: &str, number: &str, of: &[&str]) {
        let path = format!("virtual/block/{name}");
        self.block(&path, number);
        for below in of {
            let name = below.rsplit('/').next().unwrap();
            self.link(&format!("devices/{path}/slaves/{name}"), &format!("devices/{below}"));
        }
    }

    fn mapped(&self, name: &str, number: &str, called: &str, of: &[&str]) {
        self.made_of(name, number, of);
        self.file(format!("sys/devices/virtual/block/{name}/dm/name"), &format!("{called}\n"));
    }

    fn mount(&self, number: &str, root: &str, point: &str, end: &str) {
        self.append("proc/1/mountinfo", &format!("30 1 {number} {root} {point} rw,relatime shared:1 - {end}"));
    }

    /// A real interface, or (below `virtual`) one of the kernel's.
    fn net(&self, path: &str) {
        self.device("net", path);
        if let Some((device, _)) = path.split_once("/net/").filter(|_| !path.starts_with("virtual/")) {
            self.link(&format!("devices/{path}/device"), &format!("devices/{device}"));
        }
    }

    /// An interface over others.
    fn over(&self, name: &str, below: &[&str]) {
        let path = format!("virtual/net/{name}");
        self.net(&path);
        for below in below {
            let lower = below.rsplit('/').next().unwrap();
            self.link(&format!("devices/{path}/lower_{lower}"), &format!("devices/{below}"));
            self.link(&format!("devices/{below}/master"), &format!("devices/{path}"));
        }
    }

    fn route(&self, interface: &str, to: [u8; 4], mask: [u8; 4], flags: u32) {
        let hex = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
        let (to, mask) = (hex(to), hex(mask));
        self.append("proc/net/route", &format!("{interface}\t{to}\t00000000\t{flags:04X}\t0\t0\t0\t{mask}\t0\t0\t0"));
    }

    fn default_route(&self, interface: &str) {
        self.route(interface, [0; 4], [0; 4], 3);
    }

    /// All that is found; nothing may go wrong.
    fn found(&self) -> BTreeMap<String, Vec<String>> {
        let (found, problems) = self.look();
        assert_eq!(problems, [""; 0]);
        found
    }

    fn look(&self) -> (BTreeMap<String, Vec<String>>, Vec<String>) {
        let (found, problems) = host_critical(&self.roots);
        let here = |text: String| text.replace(&format!("{}/", self.dir.path().display()), "");
        let found = found.into_iter();
        (
            found.map(|(address, why)| (address.to_string(), why.into_iter().map(here).collect())).collect(),
            problems.iter().map(|problem| here(problem.to_string())).collect(),
        )
    }
}

/// What is expected, one function to a line: `ADDRESS clause; clause`.
fn wanted(lines: &[&str]) -> BTreeMap<String, Vec<String>> {
    let line = |line: &&str| {
        let (address, clauses) = line.split_once(' ').unwrap();
        (address.to_owned(), clauses.split("; ").map(str::to_owned).collect())
    };
    lines.iter().map(line).collect()
}

#[test]
fn a_host_on_nothing_needs_nothing() {
    assert_eq!(Host::new().found(), wanted(&[]));
}

#[test]
fn root_boot_and_swap_on_an_nvme() {
    let host = Host::new();
    host.block(NVME0, "259:0");
    for (partition, number) in [("p1", "259:1"), ("p2", "259:2"), ("p3", "259:3")] {
        host.partition(&format!("{NVME0}/nvme0n1{partition}"), number);
    }
    host.block(NVME1, "259:8");
    host.mount("259:2", "/var/lib/docker", "/a", "ext4 /dev/nvme0n1p2 rw");
    host.mount("259:2", "/", "/", "ext4 /dev/nvme0n1p2 rw");
    host.mount("259:2", "/", "/mnt/bind", "ext4 /dev/nvme0n1p2 rw");
    host.mount("259:1", "/", "/boot/my\\040efi", "vfat /dev/nvme0n1p1 rw");
    host.mount("0:30", "/", "/run", "tmpfs tmpfs rw");
    host.file(
        "proc/swaps",
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/nvme0n1p3                          partition\t8\t0\t-2\n\
         /swap/file                              file\t8\t0\t-3\n",
    );
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:1d.0 is the bridge above 0000:02:00.0, which carries / on nvme0n1p2, among other things",
            "0000:02:00.0 carries / on nvme0n1p2; carries /boot/my efi on nvme0n1p1; carries swap on nvme0n1p3",
        ])
    );
}

#[test]
fn lvm_on_luks_on_raid_of_two_nvmes() {
    let host = Host::new();
    let parts = [format!("{NVME0}/nvme0n1p2"), format!("{NVME1}/nvme1n1p2")];
    host.block(NVME0, "259:0");
    host.block(NVME1, "259:4");
    host.partition(&parts[0], "259:2");
    host.partition(&parts[1], "259:6");
    host.made_of("md0", "9:0", &[&parts[0], &parts[1]]);
    host.partition("virtual/block/md0/md0p1", "259:9");
    host.mapped("dm-0", "253:0", "luks-1", &["virtual/block/md0/md0p1"]);
    host.mapped("dm-1", "253:1", "vg-root", &["virtual/block/dm-0"]);
    host.mapped("dm-2", "253:2", "vg-swap", &["virtual/block/dm-0"]);
    host.mount("253:1", "/", "/", "xfs /dev/mapper/vg-root rw");
    host.file("proc/swaps", "Filename Type Size Used Priority\n/dev/dm-2 partition 1 0 -2\n");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:1d.0 is the bridge above 0000:02:00.0, which carries / on nvme0n1p2 (vg-root), among other things",
            "0000:00:1d.4 is the bridge above 0000:03:00.0, which carries / on nvme1n1p2 (vg-root), among other things",
            "0000:02:00.0 carries / on nvme0n1p2 (vg-root); carries swap on nvme0n1p2 (vg-swap)",
            "0000:03:00.0 carries / on nvme1n1p2 (vg-root); carries swap on nvme1n1p2 (vg-swap)",
        ])
    );
}

#[test]
fn disks_with_more_than_one_way_and_disks_that_are_many() {
    let host = Host::new();
    // NVMe with multipath: the disk is below no controller.
    for (port, slot, name) in [("1d.0", "02", "nvme0"), ("1d.4", "03", "nvme1")] {
        let controller = format!("pci0000:00/0000:00:{port}/0000:{slot}:00.0/nvme/{name}");
        host.device("nvme", &controller);
        host.link(&format!("devices/virtual/nvme-subsystem/nvme-subsys0/{name}"), &format!("devices/{controller}"));
    }
    host.block("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
    host.mount("259:0", "/", "/", "ext4 /dev/root rw");
    // btrfs over two disks of two SATA controllers, one of them behind LUKS and named so.
    let sda = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda";
    let sdb = "pci0000:00/0000:00:18.0/ata1/host1/target1:0:0/1:0:0:0/block/sdb";
    host.block(sda, "8:0");
    host.block(sdb, "8:16");
    host.mapped("dm-0", "253:0", "luks-a b", &[sda]);
    host.link("fs/btrfs/6f1a/devices/dm-0", "devices/virtual/block/dm-0");
    host.link("fs/btrfs/6f1a/devices/sdb", &format!("devices/{sdb}"));
    host.file("sys/fs/btrfs/features/raid56", "0\n");
    host.mount("0:40", "/@home", "/home", "btrfs /dev/mapper/luks-a\\040b rw,subvol=/@home");
    // bcachefs says all of its own.
    let vda = "pci0000:00/0000:00:01.0/virtio0/block/vda";
    let cciss = "pci0000:00/0000:00:02.0/cciss0/c0d0/block/cciss!c0d0";
    host.block(vda, "252:0");
    host.block(cciss, "104:0");
    host.mount("0:41", "/", "/data", "bcachefs /dev/vda:/dev/cciss/c0d0 rw");
    let both = "is the bridge above";
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:01.0 carries /data on vda",
            "0000:00:02.0 carries /data on cciss/c0d0",
            "0000:00:17.0 carries /home on sda (luks-a b)",
            "0000:00:18.0 carries /home on sdb",
            &format!("0000:00:1d.0 {both} 0000:02:00.0, which carries / on nvme0n1"),
            &format!("0000:00:1d.4 {both} 0000:03:00.0, which carries / on nvme0n1"),
            "0000:02:00.0 carries / on nvme0n1",
            "0000:03:00.0 carries / on nvme0n1",
        ])
    );
}

#[test]
fn a_disk_behind_vmd_and_usb() {
    let host = Host::new();
    host.block("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0/nvme0n1", "259:0");
    host.block("pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host2/target2:0:0/2:0:0:0/block/sda", "8:0");
    host.mount("259:0", "/", "/", "ext4 /dev/nvme0n1 rw");
    host.mount("8:0", "/", "/backup", "ext4 /dev/sda rw");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:0e.0 is the bridge above 10000:e1:00.0, which carries / on nvme0n1",
            "0000:00:14.0 carries /backup on sda",
            "10000:e0:06.0 is the bridge above 10000:e1:00.0, which carries / on nvme0n1",
            "10000:e1:00.0 carries / on nvme0n1",
        ])
    );
}

#[test]
fn a_bond_of_two_nics_under_a_vlan_under_a_bridge() {
    let host = Host::new();
    host.net(NIC0);
    host.net(NIC1);
    host.over("bond0", &[NIC0, NIC1]);
    for nic in [NIC0, NIC1] {
        host.file(format!("sys/devices/{nic}/bonding_slave/state"), "active\n");
    }
    host.over("bond0.7", &["virtual/net/bond0"]);
    host.net("virtual/net/vnet0");
    host.over("br0", &["virtual/net/bond0.7", "virtual/net/vnet0"]);
    host.default_route("br0");
    host.route("br0", [192, 0, 2, 0], [255, 255, 255, 0], 1);
    let above = "0000:00:05.0 is the bridge above 0000:05:00.0, which carries the default route through enp5s0f0 (br0); \
                 is the bridge above 0000:05:00.1, which carries the default route through enp5s0f1 (br0)";
    let found = wanted(&[
        above,
        "0000:05:00.0 carries the default route through enp5s0f0 (br0)",
        "0000:05:00.1 carries the default route through enp5s0f1 (br0)",
    ]);
    assert_eq!(host.found(), found);
}

#[test]
fn a_bond_counts_without_a_route() {
    let host = Host::new();
    host.net(NIC0);
    host.net("pci0000:00/0000:00:1f.6/net/eno1");
    host.over("bond1", &[NIC0]);
    host.file(format!("sys/devices/{NIC0}/bonding_slave/state"), "active\n");
    host.default_route("eno1");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:05.0 is the bridge above 0000:05:00.0, which is part of bond1",
            "0000:00:1f.6 carries the default route through eno1",
            "0000:05:00.0 is part of bond1",
        ])
    );
}

#[test]
fn a_default_route_of_ipv6_alone() {
    let host = Host::new();
    host.net(NIC0);
    host.net(NIC1);
    host.net("virtual/net/lo");
    std::fs::remove_file(host.at("proc/net/route")).unwrap();
    let (none, rest) = ("0".repeat(32), "00000400 00000002 00000000");
    host.file(
        "proc/net/ipv6_route",
        &format!(
            "fd000000000000000000000000000000 40 {none} 00 {none} 00000100 00000001 00000000 00000001 enp5s0f1\n\
             {none} 00 {none} 00 fe800000000000000000000000000001 {rest} 00000003 enp5s0f0\n\
             {none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200       lo\n\
             {none} 00 {none} 00 {none} {rest} 00000201 enp5s0f1\n"
        ),
    );
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:05.0 is the bridge above 0000:05:00.0, which carries the default route through enp5s0f0",
            "0000:05:00.0 carries the default route through enp5s0f0",
        ])
    );
}

#[test]
fn a_virtual_function_brings_its_physical_one() {
    let host = Host::new();
    let pf = "pci0000:00/0000:00:05.0/0000:05:00.0";
    let vf = "pci0000:00/0000:00:05.0/0000:05:10.0";
    host.net(&format!("{pf}/net/enp5s0f0"));
    host.net(&format!("{vf}/net/enp5s0f0v0"));
    symlink("../0000:05:00.0", host.at(format!("sys/devices/{vf}/physfn"))).unwrap();
    host.default_route("enp5s0f0v0");
    let route = "carries the default route through enp5s0f0v0";
    assert_eq!(
        host.found(),
        wanted(&[
            &format!(
                "0000:00:05.0 is the bridge above 0000:05:00.0, which has the virtual function 0000:05:10.0, which {route}; \
                 is the bridge above 0000:05:10.0, which {route}"
            ),
            &format!("0000:05:00.0 has the virtual function 0000:05:10.0, which {route}"),
            &format!("0000:05:10.0 {route}"),
        ])
    );
}

#[test]
fn file_systems_and_disks_that_come_over_the_network() {
    let host = Host::new();
    host.net("pci0000:00/0000:00:1f.6/net/eno1");
    host.net("pci0000:00/0000:00:02.0/net/eno2");
    host.net("pci0000:00/0000:00:03.0/net/eno3");
    host.route("eno1", [0; 4], [0; 4], 3);
    host.route("eno2", [10, 0, 0, 0], [255, 0, 0, 0], 1);
    host.route("eno3", [10, 0, 7, 0], [255, 255, 255, 0], 1);
    host.mount("0:50", "/", "/", "nfs4 server:/export rw,vers=4.2,clientaddr=10.0.7.1,addr=10.0.7.5,x=y");
    host.block("platform/host3/session2/target3:0:0/3:0:0:1/block/sdc", "8:32");
    host.file("sys/class/iscsi_connection/connection2:0/address", "10.1.2.3\n");
    host.mount("8:32", "/", "/srv", "ext4 /dev/sdc rw");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:02.0 carries /srv on sdc through eno2",
            "0000:00:03.0 carries / from 10.0.7.5 through eno3",
            "0000:00:1f.6 carries the default route through eno1",
        ])
    );
}

#[test]
fn open_vswitch_hides_what_is_below_its_own_interface() {
    let host = Host::new();
    host.net(NIC0);
    host.net("virtual/net/br-ex");
    host.default_route("br-ex");
    let (found, problems) = host.look();
    assert_eq!(found, wanted(&[]));
    assert_eq!(
        problems,
        [
            "sys/class/net/br-ex: it carries the default route, and which device it sends through cannot be seen; give none \
          away that does"
        ]
    );
    host.over("ovs-system", &[NIC0]);
    assert_eq!(host.found()["0000:05:00.0"], ["carries the default route through enp5s0f0 (br-ex)"]);
}

#[test]
fn what_is_real_but_on_no_pci_function_is_no_problem() {
    let host = Host::new();
    host.net("platform/a0002000.virtio_mmio/virtio1/net/eth0");
    host.block("platform/a0001000.virtio_mmio/virtio0/block/vda", "254:0");
    host.mount("254:0", "/", "/", "ext4 /dev/vda rw");
    host.default_route("eth0");
    assert_eq!(host.found(), wanted(&[]));
}

#[test]
fn the_boot_display_and_the_console() {
    let host = Host::new();
    let gpu = "pci0000:00/0000:00:01.0/0000:01:00.0";
    for (path, class, boot) in [
        (gpu, "0x030000", Some("1")),
        ("pci0000:00/0000:00:02.0", "0x030000", Some("0")),
        ("pci0000:00/0000:00:03.0", "0x030200", None),
        ("pci0000:00/0000:00:04.0", "0x020000", Some("1")),
    ] {
        let name = path.rsplit('/').next().unwrap();
        host.file(format!("sys/devices/{path}/class"), &format!("{class}\n"));
        if let Some(boot) = boot {
            host.file(format!("sys/devices/{path}/boot_vga"), &format!("{boot}\n"));
        }
        host.link(&format!("bus/pci/devices/{name}"), &format!("devices/{path}"));
    }
    // The first screen is on another card, and a third card has one that nobody looks at.
    for (path, name) in [("pci0000:00/0000:00:02.0", "fb0"), ("pci0000:00/0000:00:03.0", "fb1")] {
        host.device("graphics", &format!("{path}/graphics/{name}"));
        host.link(&format!("devices/{path}/graphics/{name}/device"), &format!("devices/{path}"));
    }
    host.device("tty", "pci0000:00/0000:00:16.3/0000:00:16.3:0/0000:00:16.3:0.0/tty/ttyS4");
    host.device("tty", "pnp0/00:04/00:04:0/00:04:0.0/tty/ttyS0");
    host.device("tty", "virtual/tty/tty0");
    host.file("sys/class/tty/console/active", "tty0 ttyS0 ttyS4\n");
    assert_eq!(
        host.found(),
        wanted(&[
            "0000:00:01.0 is the bridge above 0000:01:00.0, which is the boot display",
            "0000:00:02.0 is the display of the text console (fb0)",
            "0000:00:16.3 is the console (ttyS4)",
            "0000:01:00.0 is the boot display",
        ])
    );
}

#[test]
fn a_function_that_carries_much_says_so_shortly() {
    let host = Host::new();
    host.block(NVME0, "259:0");
    for part in 10..30 {
        host.partition(&format!("{NVME0}/nvme0n1p{part}"), &format!("259:{part}"));
        host.mount(&format!("259:{part}"), "/", &format!("/data/{part}"), "ext4 /dev/x rw");
    }
    let found = host.found();
    let clauses = &found["0000:02:00.0"];
    assert_eq!((clauses.len(), clauses[0].as_str()), (9, "carries /data/10 on nvme0n1p10"));
    assert_eq!(clauses[8], "is needed for 12 more such things");
}

#[test]
fn what_cannot_be_read_is_a_problem_and_the_rest_is_found() {
    let host = Host::new();
    host.net(NIC0);
    host.default_route("enp5s0f0");
    host.append("proc/net/route", "nonsense");
    host.append("proc/1/mountinfo", "nonsense");
    host.append("proc/1/mountinfo", "1 2 8:x / / rw - ext4 /dev/sda rw");
    host.mount("8:99", "/", "/gone", "ext4 /dev/sdz rw");
    host.mount("0:60", "/", "/tank", "zfs tank/data rw");
    host.mount("0:61", "/", "/tank/b", "zfs tank/b rw");
    host.mount("0:62", "/", "/mapped", "btrfs /dev/mapper/nobody rw");
    let (found, problems) = host.look();
    assert!(found["0000:05:00.0"].contains(&"carries the default route through enp5s0f0".to_owned()), "{found:?}");
    assert_eq!(
        problems,
        [
            "proc/net/route: a line in it is no route, so that a route may be missing",
            "proc/1/mountinfo: a line in it is no mount, so that a mount may be missing",
            "sys/dev/block/8:99: cannot resolve it: ENOENT (No such file or directory)",
            "/dev/mapper/nobody: it is in use, and which block device it is cannot be seen",
            "proc/1/mountinfo: which disks the ZFS pool tank is on cannot be seen; give none of their controllers away",
        ]
        .map(str::to_owned)
    );

    let nothing = Roots { sys: host.at("no"), proc: host.at("no"), ..Roots::default() };
    let (found, problems) = host_critical(&nothing);
    assert!(found.is_empty());
    assert_eq!(problems.len(), 1, "without mounts nothing is known: {problems:?}");
}

#[test]
fn links_in_a_circle_end() {
    let host = Host::new();
    host.made_of("dm-0", "253:0", &["virtual/block/dm-1"]);
    host.made_of("dm-1", "253:1", &["virtual/block/dm-0"]);
    host.mount("253:0", "/", "/", "ext4 /dev/dm-0 rw");
    host.over("br0", &["virtual/net/br1"]);
    host.over("br1", &["virtual/net/br0"]);
    host.default_route("br0");
    host.net(NIC0);
    symlink("physfn", host.at("sys/devices/pci0000:00/0000:00:05.0/0000:05:00.0/physfn")).unwrap();
    host.default_route("enp5s0f0");
    let (found, problems) = host.look();
    assert_eq!(found["0000:05:00.0"], ["carries the default route through enp5s0f0"]);
    assert!(problems.iter().any(|problem| problem.contains("ELOOP")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("class/net/br0")), "{problems:?}");
}

#[test]
fn the_host_that_runs_this_test() {
    // Whatever it is, all that its kernel says is understood.
    let (found, problems) = host_critical(&Roots::default());
    for problem in &problems {
        assert!(!problem.why.contains("a line in it"), "{problem}");
    }
    assert!(found.values().flatten().all(|clause| !clause.is_empty()));
}
