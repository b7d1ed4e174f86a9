//! The lines of `list`, `tree`, `vfs` and `show`: a card, a parent, a function, VFs, an mdev; and in words how much of each is used.

use crate::card::{Card, Run, Use, mdevs_on, range, runs};
use crate::json;
use crate::outline::{Kind, Outline};
use crate::table::{BAD, BOLD, Cell, DIM, ODD, PLAIN};
use crate::verbs::{counted, holder_of, number, or_dash, owner, owner_name, state};
use crate::view::{Function, Host, Mdev, Parent};

/// The most owners that a line names.
const NAMES: usize = 3;

/// One line for a card; with `who` it names who has its VFs.
pub fn card(lines: &mut Outline, card: &Card<'_>, host: &Host, who: bool) {
    lines.row(
        Kind::Card,
        0,
        [
            Cell::styled(&card.name(), BOLD),
            card.lead.what().into(),
            or_dash(&card.lead.driver).into(),
            format!("NUMA {}", number(card.lead.numa_node)).into(),
            card_use(card, host, who),
        ],
    );
}

/// One line for a function of a card that has several.
pub fn function(lines: &mut Outline, indent: usize, function: &Function, host: &Host) {
    let cells = [
        function.address.to_string().into(),
        function.what().into(),
        or_dash(&function.driver).into(),
        card_use(&Card::of_one(function), host, false),
    ];
    lines.row(Kind::Function, indent, cells);
}

/// One line for a parent that is no function.
pub fn parent(lines: &mut Outline, parent: &Parent, host: &Host) {
    let style = if parent.state == "ok" { PLAIN } else { BAD };
    let name = Cell::styled(or_dash(&parent.name), BOLD);
    let numa = format!("NUMA {}", number(parent.numa_node)).into();
    let usage = Cell::styled(&parent_use(&[parent], host), style);
    if host.functions.is_empty() {
        lines.row(Kind::Parent, 0, [name, or_dash(&parent.driver).into(), numa, usage]);
    } else {
        lines.row(Kind::Card, 0, [name, "mdev parent".into(), or_dash(&parent.driver).into(), numa, usage]);
    }
}

/// One line for an mdev.
pub fn mdev(lines: &mut Outline, indent: usize, mdev: &Mdev, host: &Host) {
    let style = if mdev.claim.is_some() { PLAIN } else { ODD };
    let cells = [
        mdev.uuid.to_string().into(),
        or_dash(&mdev.mdev_type).into(),
        state(&mdev.state),
        Cell::styled(&holder_of(mdev, host), style),
    ];
    lines.row(Kind::Mdev, indent, cells);
}

/// A line for each VF with its mdevs beneath, and one for each run of free VFs that are alike; with `all` a line each.
pub fn vfs(lines: &mut Outline, indent: usize, vfs: &[&Function], host: &Host, all: bool) {
    for run in runs(vfs, host, all) {
        match run {
            Run::Free(first, last, count) => {
                let free = Cell::styled(&format!("{count} free VFs"), DIM);
                let cells = [range(first.address, last.address).into(), free, or_dash(&first.driver).into()];
                lines.row(Kind::Run, indent, cells);
            }
            Run::One(function) => {
                let index = function.vf().map_or_else(String::new, |vf| format!("VF {}", vf.index));
                let cells = [
                    function.address.to_string().into(),
                    index.into(),
                    or_dash(&function.driver).into(),
                    or_dash(&settings(function, host)).into(),
                    holder(function, host),
                ];
                lines.row(Kind::Vf, indent, cells);
                for of_vf in mdevs_on(function, host) {
                    mdev(lines, indent + 2, of_vf, host);
                }
            }
        }
    }
}

/// What tells a VF from its siblings: its vGPU type, or else its address and VLAN on the network.
fn settings(function: &Function, host: &Host) -> String {
    let Some(vf) = function.vf() else { return String::new() };
    if let Some(id) = vf.vgpu_type {
        return vgpu_type(id, host);
    }
    let mac = Some(vf.mac.as_str()).filter(|mac| mac.bytes().any(|b| !matches!(b, b'0' | b':')));
    let vlan = (vf.vlan != 0).then(|| format!("VLAN {}", vf.vlan));
    let trust = vf.trust.then(|| "trusted".to_owned());
    let parts: Vec<String> = mac.map(str::to_owned).into_iter().chain(vlan).chain(trust).collect();
    match (parts.is_empty(), function.netdevs.as_slice()) {
        (true, [(name, _), ..]) => name.clone(),
        _ => parts.join(", "),
    }
}

/// What a function is: `VF 3 of 0000:41:00.0, NVIDIA L40S`.
pub fn role_of(function: &Function) -> String {
    match (function.vf(), function.physical()) {
        (Some(vf), _) => {
            let pf = vf.pf.map_or_else(String::new, |pf| format!(" of {pf}"));
            format!("VF {}{pf}, {}", vf.index, function.what())
        }
        (None, Some(_)) => format!("PF, {}", function.what()),
        (None, None) => function.what(),
    }
}

/// One of the vendor's vGPU types, by name and number.
pub fn vgpu_type(id: u32, host: &Host) -> String {
    host.vgpu_name(id).map_or_else(|| format!("vGPU type {id}"), |name| format!("{name} ({id})"))
}

/// Who has a function, in its colour.
pub fn holder(function: &Function, host: &Host) -> Cell {
    if function.state != "ok" {
        return state(&function.state);
    }
    let style = match Use::of(function, host) {
        Use::Free => DIM,
        Use::Foreign => ODD,
        Use::Claimed | Use::Host => PLAIN,
    };
    Cell::styled(&holder_text(function, host), style)
}

/// Who has a function, in words.
pub fn holder_text(function: &Function, host: &Host) -> String {
    match (Use::of(function, host), function.claim) {
        (_, Some(id)) => host.claim(id).map_or_else(|| format!("claim {id}"), owner),
        (Use::Claimed, None) => owners(&[function], host).join(", "),
        (Use::Host, None) if function.host_critical.is_empty() => "a bridge".to_owned(),
        (Use::Host, None) => format!("the host needs it: {}", function.host_critical.join(", ")),
        (Use::Foreign, None) => "foreign".to_owned(),
        (Use::Free, None) => "free".to_owned(),
    }
}

/// The names of those who have these functions, each once.
fn owners(functions: &[&Function], host: &Host) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for function in functions {
        let mdevs: Vec<&Mdev> = mdevs_on(function, host).collect();
        let claims: Vec<Option<_>> = match (function.claim, mdevs.is_empty()) {
            (Some(id), _) => vec![Some(id)],
            (None, false) => mdevs.iter().map(|mdev| mdev.claim).collect(),
            (None, true) => vec![None],
        };
        for claim in claims {
            let name = match claim.map(|id| (id, host.claim(id))) {
                Some((_, Some(claim))) => owner_name(claim),
                Some((id, None)) => id.to_string(),
                None => "somebody else".to_owned(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// How much of a card is used.
fn card_use(card: &Card<'_>, host: &Host, who: bool) -> Cell {
    let vfs = card.vfs(host);
    let parents = card.parents(host);
    let whole = whole_use(card, host);
    let most: u64 = card.functions.iter().filter_map(|f| f.physical()).map(|physical| physical.total_vfs).sum();
    let mut parts = Vec::new();
    if !vfs.is_empty() {
        parts.push(vf_use(&vfs, host, who));
    }
    if !parents.is_empty() {
        parts.push(parent_use(&parents, host));
    }
    parts.extend(whole);
    if vfs.is_empty() && most > 0 {
        parts.push(format!("can have {}", counted(usize::try_from(most).unwrap_or(usize::MAX), "VF")));
    }
    let well = card.functions.iter().chain(&vfs).all(|f| f.state == "ok") && parents.iter().all(|p| p.state == "ok");
    let nothing = parts.iter().all(|part| part == "free");
    Cell::styled(
        &parts.join("; "),
        if !well {
            BAD
        } else if nothing {
            DIM
        } else {
            PLAIN
        },
    )
}

/// Who has the functions of a card as they are, without what is made of them.
fn whole_use(card: &Card<'_>, host: &Host) -> Option<String> {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    for function in &card.functions {
        let made_of = host.parent_of(function).is_some() || !host.vfs_of(function.address).is_empty();
        let text = match Use::of(function, host) {
            _ if function.state != "ok" => function.state.clone(),
            Use::Claimed if function.claim.is_none() => continue,
            Use::Free | Use::Foreign if made_of => continue,
            _ => holder_text(function, host),
        };
        let place = format!(".{:x}", function.address.function);
        match said.iter_mut().find(|(known, _)| *known == text) {
            Some((_, places)) => places.push(place),
            None => said.push((text, vec![place])),
        }
    }
    match said.as_slice() {
        [] => None,
        [(text, places)] if places.len() == card.functions.len() => Some(text.clone()),
        _ => {
            let each: Vec<String> = said.iter().map(|(text, places)| format!("{} {text}", places.join(" "))).collect();
            Some(each.join("; "))
        }
    }
}

/// `32 VFs, 12 used by vm1, vm2, vm3 and 9 more`.
pub fn vf_use(vfs: &[&Function], host: &Host, who: bool) -> String {
    let used: Vec<&Function> = vfs.iter().copied().filter(|vf| Use::of(vf, host) != Use::Free).collect();
    let mut text = format!("{}, {} used", counted(vfs.len(), "VF"), none_or(used.len()));
    if who && !used.is_empty() {
        let names = owners(&used, host);
        text += &format!(" by {}", names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", "));
        if names.len() > NAMES {
            text += &format!(" and {} more", names.len() - NAMES);
        }
    }
    let stuck = vfs.iter().filter(|vf| vf.state != "ok").count();
    if stuck > 0 {
        text += &format!(", {stuck} stuck");
    }
    text
}

fn none_or(count: usize) -> String {
    if count == 0 { "none".to_owned() } else { count.to_string() }
}

/// How much of parents is used, for each type that is.
fn parent_use(parents: &[&Parent], host: &Host) -> String {
    let mut parts: Vec<String> = Vec::new();
    for parent in parents {
        match parent.state.as_str() {
            "gone" => return "gone: the kernel has these mdevs still, but not their parent".to_owned(),
            "ok" => {}
            state if parts.iter().any(|part| part == state) => {}
            state => parts.push(state.to_owned()),
        }
    }
    // The VFs of one card each offer the same types.
    let mut types: Vec<(&str, usize, Option<u64>)> = Vec::new();
    for parent in parents {
        for t in &parent.types {
            let used = json::used(parent, &t.id, host);
            match types.iter_mut().find(|(id, ..)| *id == t.id) {
                Some((_, all_used, available)) => {
                    *all_used += used;
                    *available = available.zip(t.available).map(|(a, b)| a.saturating_add(b));
                }
                None => types.push((&t.id, used, t.available)),
            }
        }
    }
    let before = parts.len();
    let used = types.iter().filter(|(_, used, _)| *used > 0);
    parts.extend(used.map(|(id, used, available)| format!("{id} {used} used, {} free", number(*available))));
    if parts.len() == before {
        parts.push(match types.len() {
            0 => "no types".to_owned(),
            n => format!("{}, none used", counted(n, "type")),
        });
    }
    parts.join("; ")
}
