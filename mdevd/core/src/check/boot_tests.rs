//! What a person is told to do, for each boot loader and distribution.

use super::*;
use alloc::vec;

fn told(loader: Option<BootLoader>, distribution: Distribution, remove: &[&str], add: &[&str]) -> String {
    let host = HostFacts { boot_loader: loader, distribution, ..HostFacts::default() };
    change(&host, &remove.iter().map(|parameter| String::from(*parameter)).collect::<Vec<_>>(), add)
}

const ON: [&str; 2] = ["intel_iommu=on", "iommu=pt"];

#[test]
fn each_boot_loader_has_its_way() {
    let with_file = BootLoader::SystemdBoot { command_line_file: true };
    let without_file = BootLoader::SystemdBoot { command_line_file: false };
    let grub = "add 'intel_iommu=on iommu=pt' to GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub, run";
    let file = "add 'intel_iommu=on iommu=pt' to /etc/kernel/cmdline, run";
    for (loader, distribution, start, end) in [
        (BootLoader::Grub, Distribution::Debian, grub, "'update-grub' and reboot"),
        (BootLoader::Grub, Distribution::Suse, grub, "'grub2-mkconfig -o /boot/grub2/grub.cfg' and reboot"),
        (BootLoader::Grub, Distribution::Arch, grub, "'grub-mkconfig -o /boot/grub/grub.cfg' and reboot"),
        (BootLoader::Grub, Distribution::Other, grub, "'grub-mkconfig -o /boot/grub/grub.cfg' and reboot"),
        (
            BootLoader::Grub,
            Distribution::Fedora,
            "run",
            "'grubby --update-kernel=ALL --args=\"intel_iommu=on iommu=pt\"' and reboot",
        ),
        (
            BootLoader::Ostree,
            Distribution::Fedora,
            "run",
            "'rpm-ostree kargs --append-if-missing=intel_iommu=on --append-if-missing=iommu=pt' and reboot",
        ),
        (BootLoader::ProxmoxBootTool, Distribution::Debian, file, "'proxmox-boot-tool refresh' and reboot"),
        (with_file, Distribution::Suse, file, "'sdbootutil update-all-entries' and reboot"),
        (
            with_file,
            Distribution::Debian,
            file,
            "'kernel-install add \"$(uname -r)\" \"/boot/vmlinuz-$(uname -r)\"' and reboot",
        ),
        (
            with_file,
            Distribution::Arch,
            file,
            "'kernel-install add \"$(uname -r)\" \"/usr/lib/modules/$(uname -r)/vmlinuz\"' and reboot",
        ),
        (
            without_file,
            Distribution::Arch,
            "add 'intel_iommu=on iommu=pt' to the line 'options' of the entry",
            "that 'bootctl status' calls the default one, and reboot",
        ),
        (
            BootLoader::Grub,
            Distribution::Nixos,
            "add '\"intel_iommu=on\" \"iommu=pt\"' to boot.kernelParams in /etc/nixos/configuration.nix, run",
            "'nixos-rebuild boot' and reboot",
        ),
    ] {
        assert_eq!(told(Some(loader), distribution, &[], &ON), format!("{start} {end}"), "{loader:?} {distribution:?}");
    }
}

#[test]
fn what_is_in_the_way_is_removed_or_replaced() {
    let off = ["intel_iommu=off", "iommu=off"];
    assert_eq!(
        told(Some(BootLoader::Grub), Distribution::Debian, &off, &ON),
        "replace 'intel_iommu=off iommu=off' with 'intel_iommu=on iommu=pt' in GRUB_CMDLINE_LINUX_DEFAULT or GRUB_CMDLINE_LINUX in \
         /etc/default/grub, run 'update-grub' and reboot"
    );
    assert_eq!(
        told(Some(BootLoader::Grub), Distribution::Fedora, &off, &[]),
        "run 'grubby --update-kernel=ALL --remove-args=\"intel_iommu=off iommu=off\"' and reboot"
    );
    assert_eq!(
        told(Some(BootLoader::Ostree), Distribution::Fedora, &off, &["iommu=pt"]),
        "run 'rpm-ostree kargs --delete-if-present=intel_iommu=off --delete-if-present=iommu=off --append-if-missing=iommu=pt' and reboot"
    );
    assert_eq!(
        told(Some(BootLoader::ProxmoxBootTool), Distribution::Debian, &["amd_iommu=off"], &[]),
        "remove 'amd_iommu=off' from /etc/kernel/cmdline, run 'proxmox-boot-tool refresh' and reboot"
    );
}

#[test]
fn where_the_loader_is_not_known_the_parameters_are_said_alone() {
    for (remove, add, expected) in [
        (vec![], &ON[..], "boot the kernel with 'intel_iommu=on iommu=pt' on its command line"),
        (vec!["iommu=off"], &[], "boot the kernel without 'iommu=off' on its command line"),
        (
            vec!["iommu=off"],
            &["iommu=pt"],
            "boot the kernel with 'iommu=pt' and without 'iommu=off' on its command line",
        ),
    ] {
        assert_eq!(told(None, Distribution::Debian, &remove, add), expected);
        let inside = HostFacts {
            boot_loader: Some(BootLoader::Grub),
            distribution: Distribution::Debian,
            surroundings: Surroundings::Container("lxc".into()),
            ..HostFacts::default()
        };
        let remove: Vec<String> = remove.iter().map(|parameter| String::from(*parameter)).collect();
        assert_eq!(change(&inside, &remove, add), format!("on the host itself, outside of this container, {expected}"));
    }
}
