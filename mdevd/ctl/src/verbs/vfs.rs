//! `vfs`: the VFs of a PF, and how many there are.

use mdevd_core::names::PciAddress;
use mdevd_dbus::Options;
use mdevd_dbus::path::Object;

use crate::card::range;
use crate::cli::{OnOff, Vfs};
use crate::client::{Client, VFS_PATIENCE, functions};
use crate::error::Error;
use crate::json;
use crate::outline::Outline;
use crate::table::{BOLD, Cell, Fit, Table, terminal_width};
use crate::verbs::{Said, counted, not_one, or_dash, rows};
use crate::view::{Function, Host, Physical};

/// Runs the verb.
pub async fn run(args: &Vfs) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let found = client.find(&args.pf).await?;
    let address = one_pf(&args.pf, &found, &client.host().await?)?;
    let mut note = None;
    if let Some(count) = args.count {
        let mut options = Options::from([("timeout-ms", VFS_PATIENCE.into())]);
        if let Some(autoprobe) = args.drivers_autoprobe {
            options.insert("drivers-autoprobe", (autoprobe == OnOff::On).into());
        }
        note = Some(client.physical(address).await?.set_num_vfs(count, &options).await?);
    }
    let host = client.host().await?;
    let gone = || Error::Refused(format!("{address} went away just now; see: hostdevctl list"));
    let pf = host.function(address).ok_or_else(gone)?;
    let physical = pf.physical().ok_or_else(gone)?;
    let notes: Vec<String> = note.map(|changed| outcome(changed, pf, physical, &host)).into_iter().collect();
    if args.output.json {
        return Ok(Said { out: json::document(&json::vfs(pf, &host)), notes, code: 0 });
    }
    if args.count.is_some() {
        return Ok(Said { notes, ..Said::default() });
    }
    let mut said = Said::from(text(pf, physical, &host, args.all, terminal_width()));
    if physical.num_vfs == 0 && physical.total_vfs > 0 {
        said.notes.push(format!("to make some: hostdevctl vfs {address} COUNT"));
    }
    Ok(said)
}

/// The only PF among what was found.
fn one_pf(word: &str, found: &[Object], host: &Host) -> Result<PciAddress, Error> {
    let all: Vec<&Function> = functions(found).into_iter().filter_map(|address| host.function(address)).collect();
    let pfs: Vec<&&Function> = all.iter().filter(|function| function.physical().is_some()).collect();
    match (pfs.as_slice(), all.as_slice()) {
        ([pf], _) => Ok(pf.address),
        ([], [only]) => Err(Error::Refused(match only.vf().map(|vf| vf.pf) {
            Some(Some(pf)) => format!("{} is itself a VF, of {pf}\nto see them all: hostdevctl vfs {pf}", only.address),
            Some(None) => format!("{} is itself a VF", only.address),
            None => format!("{} can have no VFs: it is no PF of SR-IOV", only.address),
        })),
        _ => Err(not_one(word, "one PF", found)),
    }
}

/// What has become of a PF.
fn outcome(changed: bool, pf: &Function, physical: &Physical, host: &Host) -> String {
    let address = pf.address;
    let count = counted(usize::try_from(physical.num_vfs).unwrap_or(usize::MAX), "VF");
    if !changed {
        return format!("nothing to do: {address} has {count} already");
    }
    match host.vfs_of(address).as_slice() {
        [] => format!("{address} has no VFs now"),
        [only] => format!("{address} has 1 VF now: {}", only.address),
        [first, .., last] => format!("{address} has {count} now: {}", range(first.address, last.address)),
    }
}

fn text(pf: &Function, physical: &Physical, host: &Host, all: bool, width: Option<usize>) -> String {
    let vfs = host.vfs_of(pf.address);
    let mut heading = Table::new(0, &[Fit::Keep, Fit::Hint, Fit::Shorten, Fit::Wrap]);
    let mut parts = vec![if vfs.is_empty() { "no VFs".to_owned() } else { rows::vf_use(&vfs, host, false) }];
    parts.push(format!("{} at most", physical.total_vfs));
    parts.push(if physical.drivers_autoprobe { "new ones get drivers" } else { "new ones get no driver" }.to_owned());
    if !physical.eswitch_mode.is_empty() {
        parts.push(format!("eswitch {}", physical.eswitch_mode));
    }
    heading.row([
        Cell::styled(&pf.address.to_string(), BOLD),
        pf.what().into(),
        or_dash(&pf.driver).into(),
        parts.join("; ").into(),
    ]);
    let mut lines = Outline::default();
    rows::vfs(&mut lines, 2, &vfs, host, all);
    heading.render(width) + &lines.render(width)
}
