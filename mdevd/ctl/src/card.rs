//! PCI functions as people think of them: cards with all that is on them, who has each function, and runs of free VFs that are alike.

use mdevd_core::names::PciAddress;

use crate::view::{Function, Host, Mdev, Parent, Virtual};

/// What belongs together in one slot: one function, or several that are one card. VFs belong to the card of their PF.
#[derive(Debug)]
pub struct Card<'a> {
    /// The function that gives it its name.
    pub lead: &'a Function,
    /// Its functions without the VFs, by address.
    pub functions: Vec<&'a Function>,
}

/// Who has a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Nobody that mdevd knows of.
    Free,
    /// A claim, on itself or on an mdev of it.
    Claimed,
    /// The host itself.
    Host,
    /// Somebody without a claim: a VFIO driver, a vGPU type or an mdev is there.
    Foreign,
}

impl Use {
    /// The word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Claimed => "claimed",
            Self::Host => "host",
            Self::Foreign => "foreign",
        }
    }

    /// Who has `function`.
    pub fn of(function: &Function, host: &Host) -> Self {
        let mut mdevs = mdevs_on(function, host).peekable();
        if function.claim.is_some() || mdevs.clone().any(|mdev| mdev.claim.is_some()) {
            Self::Claimed
        } else if !function.host_critical.is_empty() || function.is_bridge() {
            Self::Host
        } else if function.on_vfio() || function.vf().is_some_and(|vf| vf.vgpu_type.is_some()) || mdevs.peek().is_some()
        {
            Self::Foreign
        } else {
            Self::Free
        }
    }
}

/// The mdevs on a function that is a parent.
pub fn mdevs_on<'a>(function: &Function, host: &'a Host) -> impl Iterator<Item = &'a Mdev> + Clone {
    let name = function.address.to_string();
    host.mdevs.iter().filter(move |mdev| mdev.parent == name)
}

impl<'a> Card<'a> {
    /// A function for itself.
    pub fn of_one(function: &'a Function) -> Self {
        Self { lead: function, functions: vec![function] }
    }

    /// All cards of a host, by address.
    pub fn all(host: &'a Host) -> Vec<Self> {
        let has_pf = |vf: &Virtual| vf.pf.is_some_and(|pf| host.function(pf).is_some());
        let mut cards: Vec<Self> = Vec::new();
        for function in host.functions.iter().filter(|function| !function.vf().is_some_and(has_pf)) {
            match cards.last_mut() {
                Some(card) if card.lead.address.card() == function.address.card() => card.functions.push(function),
                _ => cards.push(Self::of_one(function)),
            }
        }
        // A slot with a bridge in it is a piece of the mainboard: what else is there has nothing to do with one another.
        cards
            .into_iter()
            .flat_map(|card| {
                if card.functions.iter().any(|function| function.is_bridge()) {
                    card.functions.into_iter().map(Self::of_one).collect()
                } else {
                    vec![card]
                }
            })
            .collect()
    }

    /// Its name, which every verb takes: `0000:41:00`, or the address of its only function.
    pub fn name(&self) -> String {
        match self.functions.as_slice() {
            [only] => only.address.to_string(),
            _ => self.lead.address.card().to_string(),
        }
    }

    /// The VFs of all its PFs.
    pub fn vfs(&self, host: &'a Host) -> Vec<&'a Function> {
        self.functions.iter().flat_map(|function| host.vfs_of(function.address)).collect()
    }

    /// The parents that its functions and VFs are.
    pub fn parents(&self, host: &'a Host) -> Vec<&'a Parent> {
        self.functions.iter().copied().chain(self.vfs(host)).filter_map(|f| host.parent_of(f)).collect()
    }

    /// Whether it is shown unless everything is: a VM could want a function of it, or has one already.
    pub fn is_shown(&self, host: &Host) -> bool {
        self.functions.iter().any(|function| is_shown(function, host))
    }
}

/// Whether a VM could want a function, or what is made of it: it is claimed, or not a bridge and bound for VMs, able to have VFs or mdevs,
/// or of a class that VMs want and not the host's own.
pub fn is_shown(function: &Function, host: &Host) -> bool {
    let of_vms = function.on_vfio()
        || function.vf().is_some()
        || function.physical().is_some_and(|physical| physical.total_vfs > 0)
        || host.parent_of(function).is_some();
    let wanted = function.is_wanted_class() && function.host_critical.is_empty();
    function.claim.is_some() || !function.is_bridge() && (of_vms || wanted)
}

/// One line of a list of VFs.
#[derive(Debug)]
pub enum Run<'a> {
    /// One VF.
    One(&'a Function),
    /// Free ones that are alike and follow one another: the first, the last, and how many.
    Free(&'a Function, &'a Function, usize),
}

/// VFs in lines; with `all` a line each.
pub fn runs<'a>(vfs: &[&'a Function], host: &Host, all: bool) -> Vec<Run<'a>> {
    let alike = |function: &Function| {
        let vf = function.vf()?;
        let free = !all && function.state == "ok" && Use::of(function, host) == Use::Free;
        free.then(|| (function.driver.clone(), vf.vlan, vf.trust))
    };
    let mut runs = Vec::new();
    for chunk in vfs.chunk_by(|a, b| alike(a).is_some_and(|what| alike(b) == Some(what))) {
        match chunk {
            [first, .., last] => runs.push(Run::Free(first, last, chunk.len())),
            _ => runs.extend(chunk.iter().copied().map(Run::One)),
        }
    }
    runs
}

/// `0000:41:00.4 … 0000:41:03.7`.
pub fn range(first: PciAddress, last: PciAddress) -> String {
    format!("{first} … {last}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use mdevd_dbus::{interface, path};
    use zbus::{OwnedVariant, Variant};

    use super::*;

    /// A function: its address, class and driver, and of a VF the PF and its number there.
    type Line<'a> = (&'a str, u32, &'a str, Option<(&'a str, u32)>);

    fn host(functions: &[Line<'_>]) -> Host {
        let dict = |pairs: Vec<(&str, Variant<'_>)>| -> HashMap<String, OwnedVariant> {
            pairs.into_iter().map(|(key, value)| (key.to_owned(), OwnedVariant::try_from(value).unwrap())).collect()
        };
        let object = |(address, class, driver, vf): &Line<'_>| {
            let own = dict(vec![
                ("Class", (*class).into()),
                ("Driver", (*driver).into()),
                ("State", "ok".into()),
                ("Claim", path::none().into_inner().into()),
            ]);
            let mut interfaces = HashMap::from([(interface::FUNCTION.try_into().unwrap(), own)]);
            if let Some((pf, index)) = vf {
                let of_vf = dict(vec![("Pf", path::function(pf).into_inner().into()), ("VfIndex", (*index).into())]);
                interfaces.insert(interface::VIRTUAL_FUNCTION.try_into().unwrap(), of_vf);
            }
            (path::function(address), interfaces)
        };
        Host::read(&functions.iter().map(object).collect())
    }

    #[test]
    fn functions_are_grouped_by_slot_and_vfs_by_their_pf() {
        let host = host(&[
            ("0000:00:1f.0", 0x060100, "", None),
            ("0000:00:1f.3", 0x040300, "snd_hda_intel", None),
            ("0000:41:00.0", 0x030200, "nvidia", None),
            ("0000:41:00.4", 0x030200, "nvidia", Some(("0000:41:00.0", 0))),
            ("0000:41:01.0", 0x030200, "nvidia", Some(("0000:41:00.0", 4))),
            ("0000:82:00.0", 0x030000, "", None),
            ("0000:82:00.1", 0x040300, "", None),
            ("0000:99:00.1", 0x020000, "", Some(("0000:99:00.0", 0))),
        ]);
        let names: Vec<String> = Card::all(&host).iter().map(Card::name).collect();
        // A slot with a bridge is no card, and a VF whose PF is not there stands for itself.
        assert_eq!(names, ["0000:00:1f.0", "0000:00:1f.3", "0000:41:00.0", "0000:82:00", "0000:99:00.1"]);
        let shown: Vec<bool> = Card::all(&host).iter().map(|card| card.is_shown(&host)).collect();
        assert_eq!(shown, [false, true, true, true, true]);
        let vfs: Vec<usize> = Card::all(&host).iter().map(|card| card.vfs(&host).len()).collect();
        assert_eq!(vfs, [0, 0, 2, 0, 0]);
    }

    #[test]
    fn free_vfs_that_are_alike_share_a_line() {
        let pf = "0000:3b:00.0";
        let drivers = ["iavf", "iavf", "vfio-pci", "iavf", "vfio-pci", "", "", ""];
        let addresses: Vec<String> = (0..8).map(|n| format!("0000:3b:01.{n}")).collect();
        let vfs = addresses
            .iter()
            .zip(drivers)
            .zip(0..)
            .map(|((a, driver), n)| (a.as_str(), 0x02_0000, driver, Some((pf, n))));
        let host = host(&vfs.chain([(pf, 0x02_0000, "ice", None)]).collect::<Vec<_>>());
        let vfs = host.vfs_of(pf.parse().unwrap());
        let lines = |all| -> Vec<String> {
            let line = |run: &Run<'_>| match run {
                Run::One(only) => only.address.function.to_string(),
                Run::Free(first, last, count) => {
                    format!("{}-{} {count}", first.address.function, last.address.function)
                }
            };
            runs(&vfs, &host, all).iter().map(line).collect()
        };
        assert_eq!(lines(false), ["0-1 2", "2", "3", "4", "5-7 3"]);
        assert_eq!(lines(true).len(), 8);
    }

    #[test]
    fn who_has_a_function_is_seen_without_asking() {
        let host = host(&[
            ("0000:00:01.0", 0x060400, "pcieport", None),
            ("0000:01:00.0", 0x010802, "nvme", None),
            ("0000:02:00.0", 0x010802, "vfio-pci", None),
            ("0000:03:00.0", 0x020000, "mlx5_vfio_pci", None),
        ]);
        let uses: Vec<Use> = host.functions.iter().map(|function| Use::of(function, &host)).collect();
        assert_eq!(uses, [Use::Host, Use::Free, Use::Foreign, Use::Foreign]);
    }
}
