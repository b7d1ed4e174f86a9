//! What has booted the machine: by its own word where it leaves one, else by what is installed.

use std::fs::File;
use std::io::Read;

use mdevd_core::check::facts::BootLoader;

use super::Look;
use crate::error::EffectError;
use crate::read;

/// The variable by which a boot loader tells its name, of the Boot Loader Interface.
const LOADER_INFO: &str = "LoaderInfo-4a67b082-0a4c-471d-b6cf-b88027c97ea2";

/// The flags before a variable's value.
const FLAGS: usize = 4;

/// The longest name that is read.
const NAME_LIMIT: u64 = 4096;

/// The boot loader, where there is only one that it can be.
pub(super) fn loader(look: &mut Look<'_>) -> Option<BootLoader> {
    if look.exists(&look.roots.run.join("ostree-booted")) {
        return Some(BootLoader::Ostree);
    }
    let (etc, boot) = (&look.roots.etc, &look.system.boot);
    let efivars = look.roots.sys.join("firmware/efi/efivars");
    let variables = look.folder(&efivars).unwrap_or_default();
    let systemd_boot = if let Some(name) = variables.iter().find(|name| *name == LOADER_INFO) {
        let info = loader_info(look, &efivars.join(name))?;
        match (info.contains("systemd-boot"), info.contains("GRUB")) {
            (false, false) => return None,
            (systemd_boot, _) => systemd_boot,
        }
    } else {
        // GRUB says its name from 2.12 on, systemd-boot always has.
        let grub = [etc.join("default/grub"), boot.join("grub/grub.cfg"), boot.join("grub2/grub.cfg")];
        let grub = grub.iter().any(|path| look.exists(path));
        let systemd_boot = [boot.join("loader/loader.conf"), boot.join("efi/loader/loader.conf")];
        let systemd_boot = systemd_boot.iter().any(|path| look.exists(path));
        match (grub, systemd_boot) {
            (true, false) => false,
            (false, true) => true,
            // With variables to read, it would have said so.
            (true, true) if !variables.is_empty() => false,
            _ => return None,
        }
    };
    Some(if !systemd_boot {
        BootLoader::Grub
    } else if look.exists(&etc.join("kernel/proxmox-boot-uuids")) {
        BootLoader::ProxmoxBootTool
    } else {
        BootLoader::SystemdBoot { command_line_file: look.exists(&etc.join("kernel/cmdline")) }
    })
}

fn loader_info(look: &mut Look<'_>, path: &std::path::Path) -> Option<String> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(NAME_LIMIT).read_to_end(&mut bytes));
    look.known(read::unless_gone(result.map_err(|error| EffectError::io("read", path, &error)))).flatten()?;
    let units = bytes.get(FLAGS..)?.chunks_exact(2).filter_map(|unit| Some(u16::from_le_bytes(unit.try_into().ok()?)));
    Some(char::decode_utf16(units).filter_map(Result::ok).collect())
}
