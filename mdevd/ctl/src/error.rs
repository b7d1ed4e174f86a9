//! What can go wrong, as exit statuses and as sentences that end in what to do next.

use std::fmt;

use mdevd_core::request::RequestError;
use mdevd_dbus::ErrorName;
use mdevd_dbus::error::{is_unreachable, split};
use zbus::fdo;

/// Why a verb did not do what it is for. What it holds is the message.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// mdevd or the kernel refused, or there is no such thing.
    Refused(String),
    /// What was typed cannot be right.
    Usage(String),
    /// mdevd cannot be reached.
    NoDaemon(String),
    /// The caller may not do that.
    NotAuthorized(String),
}

impl Error {
    /// The exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::NoDaemon(_) => 3,
            Self::NotAuthorized(_) => 4,
        }
    }

    /// That the bus itself could not be reached.
    pub fn no_bus(error: &zbus::Error) -> Self {
        let which = match std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS") {
            Some(_) => "the bus of DBUS_SYSTEM_BUS_ADDRESS",
            None => "the system bus",
        };
        Self::NoDaemon(format!(
            "cannot reach {which}: {error}\nmdevd is talked to over D-Bus: see that dbus is installed and runs"
        ))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) | Self::Usage(message) | Self::NoDaemon(message) | Self::NotAuthorized(message) => {
                f.write_str(message)
            }
        }
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        if let zbus::Error::InputOutput(io) = &error
            && io.kind() == std::io::ErrorKind::TimedOut
        {
            return Self::NoDaemon(
                "mdevd does not answer\nit may hang in the kernel: journalctl -u mdevd says what it did last"
                    .to_owned(),
            );
        }
        let (name, message) = split(&error);
        if name == Some(ErrorName::NotAuthorized) {
            return Self::NotAuthorized(format!(
                "{message}\nrun it as root (sudo hostdevctl ...), or let a polkit rule allow it"
            ));
        }
        if is_unreachable(&error) {
            return Self::NoDaemon(format!(
                "{}\n{}",
                unreachable(&error, &message),
                "start it with: systemctl start mdevd (and see: journalctl -u mdevd)"
            ));
        }
        if let zbus::Error::FDO(fdo) = &error
            && let fdo::Error::UnknownObject(_) = **fdo
        {
            return Self::Refused("it was gone before it could be asked; see: hostdevctl list".to_owned());
        }
        Self::Refused(message)
    }
}

/// What happened to the daemon, told by how the call failed.
fn unreachable(error: &zbus::Error, message: &str) -> String {
    if let zbus::Error::FDO(fdo) = error {
        match **fdo {
            fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => return "mdevd is not running".to_owned(),
            fdo::Error::NoReply(_) | fdo::Error::Disconnected(_) => {
                return format!("mdevd went away before it answered: {message}");
            }
            _ => {}
        }
    }
    format!("mdevd is not running and could not be started: {message}")
}

impl From<fdo::Error> for Error {
    fn from(error: fdo::Error) -> Self {
        zbus::Error::from(error).into()
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Self::Usage(error.to_string())
    }
}
