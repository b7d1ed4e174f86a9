//! `bind`, `restore` and `configure`: one PCI function by hand.

use mdevd_core::function::LinkState;
use mdevd_core::names::{MacAddress, PciAddress, printable};
use mdevd_core::suggest::nearest;
use mdevd_dbus::Options;
use zbus::Variant;

use crate::cli::{Bind, Configure, Restore};
use crate::client::{Client, address, functions};
use crate::error::Error;
use crate::verbs::{Said, not_one};

/// The settings of a VF.
const SETTINGS: [&str; 8] = ["mac", "vlan", "qos", "trust", "spoof-check", "min-rate", "max-rate", "link-state"];

/// Runs `bind`.
pub async fn bind(args: &Bind) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let found = client.find(&args.address).await?;
    let not_one = || not_one(&args.address, "one PCI function", &found);
    let function = match functions(&found).as_slice() {
        [only] => *only,
        [] => return Err(not_one()),
        [first, ..] => {
            let all = format!("to take all functions of a card: hostdevctl claim address={}", first.card());
            return Err(Error::Refused(format!("{}\n{all}", not_one())));
        }
    };
    let mut options = Options::new();
    if let Some(force) = &args.force {
        // What is no address is for mdevd to refuse.
        options.insert("force", address(force).map_or_else(|| force.clone(), |address| address.to_string()).into());
    }
    let changed = client.function(function).await?.bind(&args.driver, &options).await?;
    let note = if changed {
        format!(
            "{function} is bound to {}; for the XML of a VM: hostdevctl xml {function}; to give it back: hostdevctl restore {function}",
            args.driver
        )
    } else {
        format!("nothing to do: {function} is bound to {} already, and yours", args.driver)
    };
    Ok(Said { notes: vec![note], ..Said::default() })
}

/// Runs `restore`.
pub async fn restore(args: &Restore) -> Result<Said, Error> {
    let client = Client::connect().await?;
    let function = client.find_function(&args.address).await?;
    let changed = client.function(function).await?.restore(&Options::new()).await?;
    if !changed {
        let note = format!("nothing to do: there is no claim on {function}");
        return Ok(Said { notes: vec![note], ..Said::default() });
    }
    // For people only: it is given back, whatever drives it now.
    let driver = client.function(function).await?.driver().await.unwrap_or_default();
    let now =
        if driver.is_empty() { "has no driver, as before".to_owned() } else { format!("is bound to {driver} again") };
    Ok(Said { notes: vec![format!("{function} {now}")], ..Said::default() })
}

/// Runs `configure`.
pub async fn configure(args: &Configure) -> Result<Said, Error> {
    let mut options = Options::new();
    for (key, value) in &args.settings {
        let Some(known) = SETTINGS.into_iter().find(|known| known == key) else {
            let advice = match nearest(key, SETTINGS) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known are {}", SETTINGS.join(", ")),
            };
            return Err(Error::Usage(format!("unknown setting '{}': {advice}", printable(key))));
        };
        let value = setting(known, value).map_err(|why| Error::Usage(format!("{known}: {why}")))?;
        if options.insert(known, value).is_some() {
            return Err(Error::Usage(format!("'{known}' is given twice")));
        }
    }
    let client = Client::connect().await?;
    let vf = client.find_function(&args.vf).await?;
    is_vf(&client, vf).await?;
    let changed = client.vf(vf).await?.configure(&options).await?;
    let note = if changed { format!("{vf} is set") } else { format!("nothing to do: {vf} is set so already") };
    Ok(Said { notes: vec![note], ..Said::default() })
}

/// That a function is a VF, said here because on the bus others have not even the method.
pub async fn is_vf(client: &Client, function: PciAddress) -> Result<(), Error> {
    match client.function(function).await?.role().await?.as_str() {
        "vf" => Ok(()),
        "pf" => Err(Error::Refused(format!(
            "{function} is a PF; its VFs are set one by one\nhostdevctl vfs {function} lists them"
        ))),
        _ => Err(Error::Refused(format!("{function} is no VF: only those can be set"))),
    }
}

/// A setting as it is sent.
fn setting(key: &str, text: &str) -> Result<Variant<'static>, String> {
    let number = |most: u32| {
        let digits = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let value = digits.and_then(|text| text.parse::<u32>().ok()).filter(|value| *value <= most);
        value.map(Variant::from).ok_or_else(|| format!("'{}' is not a number from 0 to {most}", printable(text)))
    };
    match key {
        "mac" => text.parse::<MacAddress>().map(|mac| mac.to_string().into()).map_err(|error| error.to_string()),
        "vlan" => number(4094),
        "qos" => number(7),
        "trust" | "spoof-check" => match text {
            "on" | "yes" => Ok(true.into()),
            "off" | "no" => Ok(false.into()),
            _ => Err(format!("'{}' is neither on nor off", printable(text))),
        },
        "link-state" => text.parse::<LinkState>().map(|state| state.as_str().into()),
        _ => number(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_sent_with_their_types() {
        for (key, text, expected) in [
            ("mac", "52:54:00:6D:90:02", Variant::from("52:54:00:6d:90:02")),
            ("vlan", "0", 0u32.into()),
            ("vlan", "4094", 4094u32.into()),
            ("qos", "7", 7u32.into()),
            ("trust", "on", true.into()),
            ("spoof-check", "no", false.into()),
            ("max-rate", "100000", 100_000u32.into()),
            ("link-state", "auto", "auto".into()),
        ] {
            assert_eq!(setting(key, text), Ok(expected), "{key}={text}");
        }
        for (key, text, why) in [
            ("mac", "52:54", "'52:54' is not a MAC address: it must be like 52:54:00:6d:90:02"),
            ("vlan", "4095", "'4095' is not a number from 0 to 4094"),
            ("qos", "+1", "'+1' is not a number from 0 to 7"),
            ("min-rate", "", "'' is not a number from 0 to 4294967295"),
            ("trust", "maybe", "'maybe' is neither on nor off"),
            ("link-state", "up", "'up' is not auto, enable or disable"),
        ] {
            assert_eq!(setting(key, text), Err(why.to_owned()), "{key}={text}");
        }
    }

    #[test]
    fn every_setting_is_known_by_one_type() {
        for key in SETTINGS {
            assert!(setting(key, "\u{1b}").is_err_and(|why| !why.contains('\u{1b}')), "{key}");
        }
    }
}
