//! The one authorization gate: who may call which method. Default deny: a method that is not in the table is refused.
//!
//! Root passes. For everyone else polkit is asked about the caller's bus name, which the bus vouches for (a pid or uid sent along
//! could be stale). Without polkit only root passes. Nothing in the environment or the configuration switches this off.

use std::collections::HashMap;
use std::time::Duration;

use mdevd_core::names::printable;
use mdevd_dbus::{ErrorName, PROMPT_DEADLINE};
use zbus::Connection;
use zbus::message::{Flags, Header};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use crate::error::{Error, Result};

/// How long polkit may take when nobody is asked for a password.
const SILENT_DEADLINE: Duration = Duration::from_secs(10);

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// uid 0, whatever polkit says, and the uid of the daemon itself: the words of libvirt's hook.
    RootOnly,
    /// Looking.
    Inspect,
    /// Having a device of one's own.
    Claim,
    /// Changing what belongs to others, or to all.
    Manage,
    /// Changing a PCI function: its driver, its virtual functions, its vGPU type.
    ConfigureFunction,
}

impl Action {
    /// The polkit action's id.
    pub fn id(self) -> Option<&'static str> {
        match self {
            Self::RootOnly => None,
            Self::Inspect => Some("org.mdevd1.inspect"),
            Self::Claim => Some("org.mdevd1.claim"),
            Self::Manage => Some("org.mdevd1.manage"),
            Self::ConfigureFunction => Some("org.mdevd1.configure-function"),
        }
    }
}

/// What each method needs: of one's own, and of somebody else's where that differs. The test of the contract holds it against the
/// interface XML.
pub const TABLE: &[(&str, &str, Action, Action)] = &[
    ("org.mdevd1.Manager", "PrepareDomain", Action::RootOnly, Action::RootOnly),
    ("org.mdevd1.Manager", "ReleaseDomain", Action::RootOnly, Action::RootOnly),
    ("org.mdevd1.Manager", "AdoptDomain", Action::RootOnly, Action::RootOnly),
    ("org.mdevd1.Manager", "CreateMdev", Action::Claim, Action::Claim),
    ("org.mdevd1.Manager", "Acquire", Action::Claim, Action::Claim),
    ("org.mdevd1.Manager", "Explain", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Manager", "Check", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Manager", "Find", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Manager", "Rescan", Action::Manage, Action::Manage),
    ("org.mdevd1.Manager", "Reload", Action::Manage, Action::Manage),
    ("org.mdevd1.Manager", "Reconcile", Action::Manage, Action::Manage),
    ("org.mdevd1.Mdev", "GetHolders", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Mdev", "HostdevXml", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Mdev", "NodedevXml", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Mdev", "Remove", Action::Claim, Action::Manage),
    ("org.mdevd1.Function", "GetHolders", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Function", "HostdevXml", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Function", "Bind", Action::ConfigureFunction, Action::ConfigureFunction),
    ("org.mdevd1.Function", "Restore", Action::ConfigureFunction, Action::ConfigureFunction),
    ("org.mdevd1.PhysicalFunction", "SetNumVfs", Action::ConfigureFunction, Action::ConfigureFunction),
    ("org.mdevd1.VirtualFunction", "Configure", Action::ConfigureFunction, Action::ConfigureFunction),
    ("org.mdevd1.VirtualFunction", "SetVgpuType", Action::ConfigureFunction, Action::ConfigureFunction),
    ("org.mdevd1.Claim", "HostdevXml", Action::Inspect, Action::Inspect),
    ("org.mdevd1.Claim", "Release", Action::Claim, Action::Manage),
];

/// What a person reads who is asked for a password, for each method that changes something. polkit puts a detail in the place of its
/// name, and looks for a translation under [`GETTEXT_DOMAIN`].
const MESSAGES: &[(&str, &str)] = &[
    ("CreateMdev", "Authentication is required to create a device of type $(type) for a virtual machine"),
    ("Acquire", "Authentication is required to take a device of this host for a virtual machine ($(request))"),
    ("Rescan", "Authentication is required to have mdevd look at all devices of this host again"),
    ("Reload", "Authentication is required to have mdevd read its configuration again"),
    ("Reconcile", "Authentication is required to have mdevd give back what ended virtual machines have left behind"),
    ("Remove", "Authentication is required to remove the device $(device), which was made for a virtual machine"),
    ("Release", "Authentication is required to give the devices of the claim $(claim) back to the host"),
    ("Bind", "Authentication is required to take the device $(device) from its driver and bind it to $(driver)"),
    ("Restore", "Authentication is required to give the device $(device) back to the driver that it had"),
    ("SetNumVfs", "Authentication is required to change the number of virtual functions of $(device) to $(count)"),
    ("Configure", "Authentication is required to change the network settings of the virtual function $(device)"),
    ("SetVgpuType", "Authentication is required to change the vGPU type of $(device) to $(type)"),
];

/// Where translations of [`MESSAGES`] are looked for.
const GETTEXT_DOMAIN: &str = "mdevd";

/// Lets a call pass, or not. Answers with the caller's uid.
///
/// `owner` is the uid that owns what the call is about, where that matters; `details` are shown by polkit and can be matched by its
/// rules.
///
/// # Errors
/// `NotAuthorized`, with what is missing.
pub async fn authorize(
    connection: &Connection,
    header: &Header<'_>,
    owner: Option<u32>,
    details: &[(&str, &str)],
) -> Result<u32> {
    let interface = header.interface().map(|name| name.as_str()).unwrap_or_default();
    let member = header.member().map(|name| name.as_str()).unwrap_or_default();
    let denied = |why: String| Error::new(ErrorName::NotAuthorized, why);
    let Some((_, _, own, others)) = TABLE.iter().find(|(i, m, _, _)| *i == interface && *m == member) else {
        return Err(denied(format!(
            "nobody may call {}.{}: it is in no rule",
            printable(interface),
            printable(member)
        )));
    };
    let sender = header.sender().ok_or_else(|| denied("the call has no sender".into()))?;
    let bus = zbus::fdo::DBusProxy::new(connection)
        .await
        .map_err(|e| denied(format!("the bus cannot be asked who calls: {e}")))?;
    let uid = bus
        .get_connection_unix_user(sender.to_owned().into())
        .await
        .map_err(|e| denied(format!("the bus does not say who calls: {e}")))?;
    if uid == 0 {
        return Ok(uid);
    }
    let action = if owner == Some(uid) || own == others { *own } else { *others };
    let Some(id) = action.id() else {
        // The hook runs as the same user as this daemon: root, but for an ordinary user's own daemon over a simulated host.
        if uid == rustix::process::geteuid().as_raw() {
            return Ok(uid);
        }
        return Err(denied(format!("only root may call {member}: it is for libvirt's hook")));
    };
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    if ask_polkit(connection, header, id, details, interactive).await.map_err(denied)? {
        Ok(uid)
    } else {
        Err(denied(format!(
            "uid {uid} is not allowed to do that ({id}); run it as root, or have a polkit rule allow it"
        )))
    }
}

async fn ask_polkit(
    connection: &Connection,
    header: &Header<'_>,
    id: &str,
    details: &[(&str, &str)],
    interactive: bool,
) -> std::result::Result<bool, String> {
    let unavailable =
        |e: &dyn std::fmt::Display| format!("polkit cannot be asked about {id}, and without it only root may: {e}");
    let subject = Subject::new_for_message_header(header).map_err(|e| unavailable(&e))?;
    let authority = AuthorityProxy::new(connection).await.map_err(|e| unavailable(&e))?;
    let mut details: HashMap<&str, &str> = details.iter().copied().filter(|(_, value)| !value.is_empty()).collect();
    let member = header.member().map(|name| name.as_str()).unwrap_or_default();
    if let Some((_, message)) = MESSAGES.iter().find(|(method, _)| *method == member) {
        details.extend([("polkit.message", *message), ("polkit.gettext_domain", GETTEXT_DOMAIN)]);
    }
    let (flags, deadline) = if interactive {
        (CheckAuthorizationFlags::ALLOW_USER_INTERACTION, PROMPT_DEADLINE)
    } else {
        (CheckAuthorizationFlags::empty(), SILENT_DEADLINE)
    };
    let answer = tokio::time::timeout(deadline, authority.check_authorization(&subject, id, &details, flags, "")).await;
    match answer {
        Ok(Ok(answer)) => Ok(answer.is_authorized),
        Ok(Err(error)) => Err(unavailable(&error)),
        Err(_) if interactive => Err(format!("nobody has typed a password for {id} within {} s", deadline.as_secs())),
        Err(_) => Err(unavailable(&format!("no answer in {} s", deadline.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// `org.mdevd1.Action` of every method in the interface XML.
    fn annotations() -> BTreeSet<(String, String, String)> {
        let mut found = BTreeSet::new();
        for xml in mdevd_dbus::xml::ALL.iter().map(|(_, xml)| xml) {
            let interface = between(xml, "<interface name=\"").unwrap();
            for method in xml.split("<method name=\"").skip(1) {
                let name = method.split('"').next().unwrap();
                let body = method.split("</method>").next().unwrap();
                let action = between(body, "<annotation name=\"org.mdevd1.Action\" value=\"").unwrap();
                found.insert((interface.into(), name.into(), action.into()));
            }
        }
        found
    }

    fn between<'a>(text: &'a str, start: &str) -> Option<&'a str> {
        text.split_once(start)?.1.split('"').next()
    }

    #[test]
    fn the_table_is_what_the_contract_says_and_no_method_is_missing() {
        let word = |action: Action| action.id().unwrap_or("none-root-only").to_string();
        let table: BTreeSet<_> = TABLE
            .iter()
            .map(|(interface, method, own, others)| {
                let action = if own == others { word(*own) } else { format!("{} {}", word(*own), word(*others)) };
                (interface.to_string(), method.to_string(), action)
            })
            .collect();
        assert_eq!(table, annotations());
    }

    #[test]
    fn each_method_that_changes_something_says_what() {
        let changes = |action: Action| !matches!(action, Action::RootOnly | Action::Inspect);
        let methods = TABLE.iter().filter(|(_, _, own, _)| changes(*own)).map(|(_, method, ..)| *method);
        let said = MESSAGES.iter().map(|(method, _)| *method);
        assert_eq!(said.collect::<BTreeSet<_>>(), methods.collect::<BTreeSet<_>>());
        for (method, message) in MESSAGES {
            assert!(message.starts_with("Authentication is required to ") && !message.ends_with('.'), "{method}");
        }
    }
}
