//! The meeting of a domain's requests with its hostdevs: what each request needs, and what to add where one of the two is missing.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use thiserror::Error;
use uuid::Uuid;

use super::{AsPair, FunctionOptions, Request, Wanted, WantedFunction, WantedVgpu, XmlOptions};
use crate::domain_xml::request_element;
use crate::hostdev::{Hostdev, HostdevSource, MdevHostdevXml};
use crate::names::{MdevUuid, NumaNode, PciAddress, printable};

/// One device that is needed: an instance of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// A mediated device.
    Mdev(MdevNeed),
    /// A PCI function.
    Function(FunctionNeed),
}

impl Need {
    /// The request's name, with `.N` where its count is above one.
    pub fn name(&self) -> &str {
        match self {
            Self::Mdev(need) => &need.name,
            Self::Function(need) => &need.name,
        }
    }

    /// The mediated device that is needed.
    pub fn mdev(&self) -> Option<&MdevNeed> {
        match self {
            Self::Mdev(need) => Some(need),
            Self::Function(_) => None,
        }
    }
}

/// A mediated device that is needed, and the UUID it will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevNeed {
    /// The request's name, with `.N` where its count is above one.
    pub name: String,
    /// The UUID that the device has or will have.
    pub uuid: MdevUuid,
    /// Which device would do.
    pub wanted: Wanted,
    /// The NUMA node that it must be near to.
    pub numa_node: Option<NumaNode>,
    /// The device API that the domain's hostdev expects; `None` where there is no hostdev yet.
    pub model: Option<String>,
    /// What the printed XML says beside the device.
    pub xml: XmlOptions,
}

/// A PCI function that is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionNeed {
    /// The request's name, with `.N` where its count is above one.
    pub name: String,
    /// Which function would do.
    pub wanted: WantedFunction,
    /// The NUMA node that it must be near to.
    pub numa_node: Option<NumaNode>,
    /// The domain's element for it; `None` where there is none yet.
    pub hostdev: Option<Hostdev>,
    /// What becomes of it.
    pub options: FunctionOptions,
    /// What the printed XML says beside the device.
    pub xml: XmlOptions,
}

/// Why a domain's requests and hostdevs do not fit together. Each names the element to paste.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BindError {
    /// A request without its hostdev.
    #[error("request '{request}' has no {what} in this domain{hint}; add to <devices>:\n{element}")]
    MissingHostdev {
        /// The request's name.
        request: String,
        /// What it has none of.
        what: String,
        /// What may have happened, or empty.
        hint: String,
        /// The element.
        element: String,
    },
    /// Two requests lead to one hostdev.
    #[error("the requests '{0}' and '{1}' lead to the same <hostdev> {2}; each needs its own")]
    SharedHostdev(String, String, String),
    /// A PCI function that is named by what it is and not by its address.
    #[error(
        "request '{request}' asks for {wanted}, but the XML of a domain names one address, which mdevd cannot change when the VM starts; put \
         address=\"…\" in its place, as its <hostdev> has it ('hostdevctl explain {pairs}' lists what would do)"
    )]
    AnyFunction {
        /// The request's name.
        request: String,
        /// What it asks for.
        wanted: String,
        /// The same for the command line.
        pairs: String,
    },
    /// The request and its hostdev contradict each other.
    #[error("request '{request}' and its <{element}> {address} differ: {why}; make them equal")]
    Differ {
        /// The request's name.
        request: String,
        /// `hostdev` or `interface`.
        element: &'static str,
        /// The function.
        address: PciAddress,
        /// In what.
        why: String,
    },
}

/// Finds each request's hostdev: of a mediated device by the request's `uuid`, else by the alias `ua-mdevd-NAME`, else by the derived
/// UUID; of a PCI function by its address.
///
/// # Errors
/// [`BindError`] where a request has no hostdev, two have the same, or the two contradict each other.
pub fn bind(domain: Uuid, requests: &[Request], hostdevs: &[Hostdev]) -> Result<Vec<Need>, BindError> {
    let mdevs: Vec<(&Hostdev, MdevUuid)> = hostdevs
        .iter()
        .filter_map(|hostdev| match hostdev.source {
            HostdevSource::Mdev(uuid) => Some((hostdev, uuid)),
            HostdevSource::Pci(_) => None,
        })
        .collect();
    let find = |request: &Request, name: &str| match request.uuid {
        Some(uuid) => mdevs.iter().find(|(_, u)| *u == uuid),
        None => {
            let alias = format!("ua-mdevd-{name}");
            let derived = MdevUuid::derived(domain, name);
            // libvirt drops an alias with a dot in it: the instances of a count are found by their derived UUIDs.
            mdevs
                .iter()
                .find(|(hostdev, _)| hostdev.alias.as_deref() == Some(alias.as_str()))
                .or_else(|| mdevs.iter().find(|(_, u)| *u == derived))
        }
    };
    let mut needs: Vec<Need> = Vec::new();
    for request in requests {
        if let Wanted::Function(wanted) = &request.wanted {
            bind_function(&mut needs, request, wanted, hostdevs)?;
            continue;
        }
        for name in request.instance_names() {
            let Some((hostdev, uuid)) = find(request, &name) else {
                let uuid = request.uuid.unwrap_or_else(|| MdevUuid::derived(domain, &name));
                let mut spare: BTreeSet<MdevUuid> = mdevs.iter().map(|(_, uuid)| *uuid).collect();
                for (_, led_to) in
                    requests.iter().flat_map(|r| r.instance_names().into_iter().filter_map(|name| find(r, &name)))
                {
                    spare.remove(led_to);
                }
                return Err(missing_hostdev(request, name, uuid, &spare));
            };
            if let Some(other) = needs.iter().filter_map(Need::mdev).find(|need| need.uuid == *uuid) {
                return Err(BindError::SharedHostdev(other.name.clone(), name, uuid.to_string()));
            }
            needs.push(Need::Mdev(MdevNeed {
                model: Some(hostdev.model.clone()).filter(|m| !m.is_empty()),
                ..mdev_need(request, name, *uuid)
            }));
        }
    }
    Ok(needs)
}

/// A PCI function's request has its address, and the domain one element with that address; a card's has one for each function.
fn bind_function(
    needs: &mut Vec<Need>,
    request: &Request,
    wanted: &WantedFunction,
    hostdevs: &[Hostdev],
) -> Result<(), BindError> {
    let named = |address: PciAddress| match wanted {
        WantedFunction::Address(only) => *only == address,
        WantedFunction::Card(card) => address.card() == *card,
        WantedFunction::Any { .. } => false,
    };
    if let WantedFunction::Any { .. } = wanted {
        let vgpu_type = request.function.vgpu_type.as_ref();
        let key = match vgpu_type {
            None => String::new(),
            Some(WantedVgpu::Id(id)) => format!("vgpu-type={id}"),
            Some(WantedVgpu::Name(name)) => format!("\"vgpu-type={}\"", printable(name)),
        };
        let pairs: Vec<String> = [wanted.to_cli(), key].into_iter().filter(|part| !part.is_empty()).collect();
        let pairs = pairs.join(",");
        let wanted = match vgpu_type {
            None => wanted.to_string(),
            Some(vgpu_type) => format!("{wanted} with the vGPU type {vgpu_type}"),
        };
        return Err(BindError::AnyFunction { request: request.name.to_string(), wanted, pairs });
    }
    let mut found = false;
    for hostdev in hostdevs {
        let HostdevSource::Pci(address) = hostdev.source else { continue };
        if !named(address) {
            continue;
        }
        found = true;
        let same = |need: &&Need| match need {
            Need::Function(need) => need.wanted == WantedFunction::Address(address),
            Need::Mdev(_) => false,
        };
        if let Some(other) = needs.iter().find(same) {
            let (other, name) = (other.name().to_string(), request.name.to_string());
            return Err(BindError::SharedHostdev(other, name, address.to_string()));
        }
        let name = match wanted {
            WantedFunction::Card(_) => format!("{}.{}", request.name, address.function),
            _ => request.name.to_string(),
        };
        request.function.fits(hostdev).map_err(|why| BindError::Differ {
            request: name.clone(),
            element: if hostdev.interface { "interface" } else { "hostdev" },
            address,
            why,
        })?;
        needs.push(Need::Function(FunctionNeed {
            wanted: WantedFunction::Address(address),
            hostdev: Some(hostdev.clone()),
            ..function_need(request, wanted, name)
        }));
    }
    if found {
        return Ok(());
    }
    let address = match wanted {
        WantedFunction::Address(address) => *address,
        WantedFunction::Card(card) => card.function(0),
        WantedFunction::Any { .. } => return Ok(()),
    };
    Err(BindError::MissingHostdev {
        request: request.name.to_string(),
        what: format!("<hostdev> or <interface type='hostdev'> with the address {address}"),
        hint: String::new(),
        element: request.function_xml(address),
    })
}

/// `spare` are the mdev hostdevs that no request leads to.
fn missing_hostdev(request: &Request, name: String, uuid: MdevUuid, spare: &BTreeSet<MdevUuid>) -> BindError {
    let hint = if spare.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = spare.iter().take(4).map(|uuid| uuid.to_string()).collect();
        // virt-clone and `virsh dumpxml | virsh define` give a new domain UUID but keep the hostdev's.
        format!(
            " (was the domain cloned? no request leads to its <hostdev> {}; then put this one in its place)",
            list.join(", ")
        )
    };
    let element = MdevHostdevXml::from_options(uuid, "", request.xml.0.iter().map(AsPair::as_pair))
        .map(|xml| xml.to_xml())
        .unwrap_or_default();
    BindError::MissingHostdev { request: name, what: "<hostdev>".into(), hint, element }
}

/// The devices that requests without a domain need: `uuid` makes the UUID where the request names none. A card stands for itself.
pub fn needs_without_domain(requests: &[Request], mut uuid: impl FnMut() -> MdevUuid) -> Vec<Need> {
    let mut needs = Vec::new();
    for request in requests {
        for name in request.instance_names() {
            needs.push(match &request.wanted {
                Wanted::Function(wanted) => Need::Function(function_need(request, wanted, name)),
                _ => Need::Mdev(mdev_need(request, name, request.uuid.unwrap_or_else(&mut uuid))),
            });
        }
    }
    needs
}

fn mdev_need(request: &Request, name: String, uuid: MdevUuid) -> MdevNeed {
    MdevNeed {
        name,
        uuid,
        wanted: request.wanted.clone(),
        numa_node: request.numa_node,
        model: None,
        xml: request.xml.clone(),
    }
}

fn function_need(request: &Request, wanted: &WantedFunction, name: String) -> FunctionNeed {
    FunctionNeed {
        name,
        wanted: wanted.clone(),
        numa_node: request.numa_node,
        hostdev: None,
        options: request.function.clone(),
        xml: request.xml.clone(),
    }
}

/// The mdev hostdevs that no need covers.
pub fn uncovered(needs: &[Need], hostdevs: &[Hostdev]) -> Vec<MdevUuid> {
    hostdevs
        .iter()
        .filter_map(|hostdev| match hostdev.source {
            HostdevSource::Mdev(uuid) => Some(uuid),
            HostdevSource::Pci(_) => None,
        })
        .filter(|uuid| needs.iter().filter_map(Need::mdev).all(|need| need.uuid != *uuid))
        .collect()
}

/// The request to paste for a hostdev that no request covers and whose device does not exist.
pub fn request_to_paste(uuid: &MdevUuid, taken: &[Need]) -> String {
    // A request with a count has taken its own name too, not only NAME.1, NAME.2, ….
    let free = |name: &String| taken.iter().all(|need| need.name().split('.').next() != Some(name));
    let name = (0..).map(|i| format!("dev{i}")).find(free).unwrap_or_default();
    request_element(&[("name".into(), name), ("type".into(), "TYPE".into()), ("uuid".into(), uuid.to_string())])
}
