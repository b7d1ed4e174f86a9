//! `types`: what can be created, and how often still; and the vendor's vGPU types of VFs, by PF.

use std::collections::BTreeMap;

use mdevd_core::names::PciAddress;
use serde_json::Value;

use crate::cli::Types;
use crate::client::{Client, address, unknown};
use crate::error::Error;
use crate::json;
use crate::table::{BOLD, Cell, DIM, Fit, PLAIN, Table, terminal_width};
use crate::verbs::{NO_TYPES, Said, number, or_dash};
use crate::view::{Function, Host, Parent};

/// One of the vendor's vGPU types, over all VFs of a PF.
#[derive(Debug, Default)]
pub struct Vgpu<'a> {
    /// What the vendor calls it, or empty.
    pub name: &'a str,
    /// How many VFs could have it now.
    pub available: usize,
    /// How many have it.
    pub used: usize,
}

/// Runs the verb.
pub async fn run(args: &Types) -> Result<Said, Error> {
    let host = Client::connect().await?.host().await?;
    let of = args.parent.as_deref();
    let wanted = of.map(|name| address(name).map_or_else(|| name.to_owned(), |address| address.to_string()));
    let meant = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let parents: Vec<&Parent> = host.parents.iter().filter(|parent| meant(&parent.name)).collect();
    let pfs: Vec<&Function> =
        host.functions.iter().filter(|f| f.physical().is_some() && meant(&f.address.to_string())).collect();
    if let Some(name) = of.filter(|_| parents.is_empty() && pfs.is_empty()) {
        let known = wanted.as_deref().and_then(|text| host.function(text.parse().ok()?)).is_some();
        let none = format!(
            "{name} offers no types: it is neither an mdev parent nor a PF\nhostdevctl types lists those of all"
        );
        return Err(Error::Refused(if known { none } else { unknown(name, &host) }));
    }
    if args.output.json {
        let mdevs = parents.iter().flat_map(|p| p.types.iter().map(|t| json::mdev_type(p, t, &host)));
        let vgpus = pfs.iter().flat_map(|pf| {
            vgpus(pf.address, &host).into_iter().map(|(id, t)| json::vgpu_type(pf, id, t.name, t.available, t.used))
        });
        return Ok(json::document(&mdevs.chain(vgpus).collect::<Vec<Value>>().into()).into());
    }
    let mut table = table(0, &parents, &host);
    let mut none = parents.iter().all(|parent| parent.types.is_empty());
    for pf in &pfs {
        for (id, t) in vgpus(pf.address, &host) {
            none = false;
            table.row([
                pf.address.to_string().into(),
                Cell::styled(&id.to_string(), BOLD),
                Cell::styled(&t.available.to_string(), if t.available == 0 { DIM } else { PLAIN }),
                t.used.to_string().into(),
                "VF".into(),
                or_dash(t.name).into(),
                "-".into(),
            ]);
        }
    }
    let mut said = Said::default();
    match (none, parents.is_empty()) {
        (true, true) => said.notes.push(NO_TYPES.to_owned()),
        (true, false) => said.notes.push(
            "no types: the driver offers none at present; hostdevctl status shows what could not be read".to_owned(),
        ),
        (false, _) => said.out = table.render(terminal_width()),
    }
    Ok(said)
}

/// The vGPU types of a PF's VFs, by number.
pub fn vgpus(pf: PciAddress, host: &Host) -> BTreeMap<u32, Vgpu<'_>> {
    let mut types: BTreeMap<u32, Vgpu<'_>> = BTreeMap::new();
    for vf in host.vfs_of(pf).into_iter().filter_map(Function::vf) {
        for (id, name) in &vf.creatable_vgpu_types {
            let known = types.entry(*id).or_default();
            known.name = name;
            known.available += usize::from(vf.vgpu_type.is_none());
        }
        if let Some(id) = vf.vgpu_type {
            let known = types.entry(id).or_default();
            known.used += 1;
            known.name = host.vgpu_name(id).unwrap_or_default();
        }
    }
    types
}

/// One row for each type of these parents, under a line of column names.
pub fn table(indent: usize, parents: &[&Parent], host: &Host) -> Table {
    let mut table =
        Table::new(indent, &[Fit::Keep, Fit::Keep, Fit::Keep, Fit::Keep, Fit::Keep, Fit::Keep, Fit::Shorten]);
    table.header(&["PARENT", "TYPE", "FREE", "USED", "API", "NAME", "DESCRIPTION"]);
    for parent in parents {
        for t in &parent.types {
            let free = if t.available == Some(0) { DIM } else { PLAIN };
            table.row([
                parent.name.as_str().into(),
                Cell::styled(&t.id, BOLD),
                Cell::styled(&number(t.available), free),
                json::used(parent, &t.id, host).to_string().into(),
                or_dash(&t.device_api).into(),
                or_dash(&t.name).into(),
                or_dash(&t.description).into(),
            ]);
        }
    }
    table
}
