//! `vgpu-type`: which of the vendor's vGPU types a VF has, which it could have, and giving it one.

use mdevd_core::names::{PciAddress, printable};
use mdevd_core::suggest::nearest;
use mdevd_dbus::Options;

use crate::cli::VgpuType;
use crate::client::Client;
use crate::error::Error;
use crate::json;
use crate::table::{BOLD, Cell, Fit, Table, terminal_width};
use crate::verbs::{Said, function, rows};
use crate::view::{Host, Virtual};

/// Runs the verb.
pub async fn run(args: &VgpuType) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let address = client.find_function(&args.vf).await?;
    function::is_vf(&client, address).await?;
    let host = client.host().await?;
    let gone = || Error::Refused(format!("{address} went away just now; see: hostdevctl list"));
    let own = host.function(address).ok_or_else(gone)?;
    let vf = own.vf().ok_or_else(gone)?;
    let Some(wanted) = &args.vgpu_type else {
        if args.output.json {
            return Ok(json::document(&json::vgpu_types(own, vf, &host)).into());
        }
        return Ok(text(address, vf, &host, terminal_width()));
    };
    let id = number(wanted, vf, &host).ok_or_else(|| unknown(wanted, address, vf, &host))?;
    let changed = client.vf(address).await?.set_vgpu_type(id, &Options::new()).await?;
    let now = if id == 0 { "no vGPU type".to_owned() } else { rows::vgpu_type(id, &host) };
    let note = match changed {
        true => format!("{address} has {now} now"),
        false => format!("nothing to do: {address} has {now} already"),
    };
    let mut said = Said { notes: vec![note], ..Said::default() };
    if args.output.json {
        let host = client.host().await?;
        if let Some((own, vf)) = host.function(address).and_then(|own| Some((own, own.vf()?))) {
            said.out = json::document(&json::vgpu_types(own, vf, &host));
        }
    }
    Ok(said)
}

/// The number of a type that is named by number or name, the name with or without the vendor's before it; 0 for none.
fn number(wanted: &str, vf: &Virtual, host: &Host) -> Option<u32> {
    if wanted == "none" {
        return Some(0);
    }
    if wanted.bytes().all(|b| b.is_ascii_digit()) {
        return wanted.parse().ok();
    }
    // The list of a VF that has a type is short: its siblings' name the others.
    let siblings = host.vfs_of(vf.pf?).into_iter().filter_map(|sibling| sibling.vf());
    let mut types = std::iter::once(vf).chain(siblings).flat_map(|vf| &vf.creatable_vgpu_types);
    let same = |name: &str| name == wanted || name.split_once(' ').is_some_and(|(_, rest)| rest == wanted);
    types.find(|(_, name)| same(name)).map(|(id, _)| *id)
}

fn unknown(wanted: &str, address: PciAddress, vf: &Virtual, host: &Host) -> Error {
    if !vf.has_vgpu_types() && host.function(address).is_some_and(|own| own.driver.is_empty()) {
        return Error::Refused(format!(
            "{address} has no vGPU types while it has no driver: the vendor's driver offers them"
        ));
    }
    let names = vf.creatable_vgpu_types.iter().map(|(_, name)| name.as_str());
    let advice = match nearest(wanted, names) {
        Some(near) => format!("did you mean '{}'?", printable(near)),
        None => format!("hostdevctl vgpu-type {address} lists those that it can have now"),
    };
    Error::Refused(format!("{address} cannot have the vGPU type '{}'\n{advice}", printable(wanted)))
}

fn text(address: PciAddress, vf: &Virtual, host: &Host, width: Option<usize>) -> Said {
    let mut heading = Table::new(0, &[Fit::Keep, Fit::Shorten]);
    let has = vf.vgpu_type.map_or_else(|| "no vGPU type".to_owned(), |id| rows::vgpu_type(id, host));
    heading.row([Cell::styled(&address.to_string(), BOLD), has.into()]);
    let mut table = Table::new(2, &[Fit::Keep, Fit::Shorten]);
    for (id, name) in &vf.creatable_vgpu_types {
        table.row([id.to_string().into(), name.as_str().into()]);
    }
    let notes = match (vf.vgpu_type, vf.creatable_vgpu_types.is_empty()) {
        (Some(_), _) => vec!["what else it could have shows fully only when it has none".to_owned()],
        (None, true) => vec!["it can have none now: it has none of the vendor's types, or its card is full".to_owned()],
        (None, false) => Vec::new(),
    };
    Said { out: heading.render(width) + &table.render(width), notes, code: 0 }
}
