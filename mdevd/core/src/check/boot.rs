//! How a person changes the kernel's command line: by distribution and boot loader, up to and with the reboot.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::facts::{BootLoader, Distribution, HostFacts, Surroundings};

/// Where GRUB's part of the command line is kept: what is new goes to the first, and what was there may be in either.
const GRUB_FILE: &str = "GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub";
const GRUB_LINES: &str = "GRUB_CMDLINE_LINUX_DEFAULT or GRUB_CMDLINE_LINUX in /etc/default/grub";

/// Where kernel-install's is.
const KERNEL_FILE: &str = "/etc/kernel/cmdline";

/// What to do so that the next boot is without `remove` and with `add`.
pub(super) fn change(host: &HostFacts, remove: &[String], add: &[&str]) -> String {
    if let Surroundings::Container(_) = host.surroundings {
        return format!("on the host itself, outside of this container, {}", parameters_alone(remove, add));
    }
    if host.distribution == Distribution::Nixos {
        let add: Vec<String> = add.iter().map(|parameter| format!("\"{parameter}\"")).collect();
        let add: Vec<&str> = add.iter().map(String::as_str).collect();
        return then(&edit("boot.kernelParams in /etc/nixos/configuration.nix", remove, &add), "nixos-rebuild boot");
    }
    let Some(loader) = host.boot_loader else { return parameters_alone(remove, add) };
    match (loader, host.distribution) {
        (BootLoader::Ostree, _) => {
            let delete = remove.iter().map(|parameter| format!(" --delete-if-present={parameter}"));
            let append = add.iter().map(|parameter| format!(" --append-if-missing={parameter}"));
            command(&format!("rpm-ostree kargs{}", delete.chain(append).collect::<String>()))
        }
        (BootLoader::Grub, Distribution::Fedora) => {
            let option = |name: &str, parameters: String| match parameters.as_str() {
                "" => String::new(),
                _ => format!(" --{name}=\"{parameters}\""),
            };
            let (remove, add) = (option("remove-args", remove.join(" ")), option("args", add.join(" ")));
            command(&format!("grubby --update-kernel=ALL{remove}{add}"))
        }
        (BootLoader::Grub, distribution) => {
            let make = match distribution {
                Distribution::Debian => "update-grub",
                Distribution::Suse => "grub2-mkconfig -o /boot/grub2/grub.cfg",
                _ => "grub-mkconfig -o /boot/grub/grub.cfg",
            };
            then(&edit(if remove.is_empty() { GRUB_FILE } else { GRUB_LINES }, remove, add), make)
        }
        (BootLoader::ProxmoxBootTool, _) => then(&edit(KERNEL_FILE, remove, add), "proxmox-boot-tool refresh"),
        (BootLoader::SystemdBoot { command_line_file: true }, distribution) => {
            let make = match distribution {
                Distribution::Suse => "sdbootutil update-all-entries",
                Distribution::Debian => "kernel-install add \"$(uname -r)\" \"/boot/vmlinuz-$(uname -r)\"",
                _ => "kernel-install add \"$(uname -r)\" \"/usr/lib/modules/$(uname -r)/vmlinuz\"",
            };
            then(&edit(KERNEL_FILE, remove, add), make)
        }
        (BootLoader::SystemdBoot { command_line_file: false }, _) => {
            let place = "the line 'options' of the entry that 'bootctl status' calls the default one";
            format!("{}, and reboot", edit(place, remove, add))
        }
    }
}

/// For those who know their boot loader: the parameters, and that they are the kernel's.
fn parameters_alone(remove: &[String], add: &[&str]) -> String {
    let with = if add.is_empty() { String::new() } else { format!(" with '{}'", add.join(" ")) };
    let without = if remove.is_empty() { String::new() } else { format!(" without '{}'", remove.join(" ")) };
    let and = if add.is_empty() || remove.is_empty() { "" } else { " and" };
    format!("boot the kernel{with}{and}{without} on its command line")
}

fn edit(place: &str, remove: &[String], add: &[&str]) -> String {
    match (remove, add) {
        (_, []) => format!("remove '{}' from {place}", remove.join(" ")),
        ([], _) => format!("add '{}' to {place}", add.join(" ")),
        _ => format!("replace '{}' with '{}' in {place}", remove.join(" "), add.join(" ")),
    }
}

fn then(edit: &str, make: &str) -> String {
    format!("{edit}, run '{make}' and reboot")
}

fn command(command: &str) -> String {
    format!("run '{command}' and reboot")
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
