//! The names of the errors on the bus, and telling apart what a call can fail with.

use std::{fmt, str::FromStr};

use zbus::fdo;

const PREFIX: &str = "org.mdevd1.Error.";

/// Defines [`ErrorName`] and what goes with each name from one list.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What kind of error it is; on the bus `org.mdevd1.Error.` and the name. The message says the rest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorName {
            $($(#[$doc])* $name,)*
        }

        impl ErrorName {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name without the prefix: `NoCapacity`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The name as it is on the bus: `org.mdevd1.Error.NoCapacity`.
            pub const fn full(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("org.mdevd1.Error.", stringify!($name)),)*
                }
            }
        }
    };
}

names! {
    /// There is no such thing.
    NotFound,
    /// It is there already, and is not what was asked for.
    AlreadyExists,
    /// An argument cannot be right.
    InvalidArgument,
    /// An option is unknown, or of another type.
    InvalidOption,
    /// What could do it is used up.
    NoCapacity,
    /// Nothing on this host could do it.
    NoCandidate,
    /// Someone has the device open, or owns it.
    InUse,
    /// Something else is being done with it; try again.
    Busy,
    /// A write to it does not come back from the kernel.
    Stuck,
    /// It cannot be done with this kind of device.
    NotSupported,
    /// The caller may not do that.
    NotAuthorized,
    /// The host itself needs the device.
    HostCritical,
    /// Its IOMMU group holds devices that would have to come with it.
    GroupNotIsolated,
    /// The kernel answered with an error.
    KernelRefused,
    /// It took longer than it may.
    TimedOut,
    /// It contradicts what was promised to someone else.
    Conflict,
    /// A file of mdevd's own cannot be read.
    CorruptState,
    /// It cannot be known or done at present.
    Unavailable,
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is the name of no error of mdevd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownErrorName(String);

impl fmt::Display for UnknownErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not the name of an error of mdevd", self.0)
    }
}

impl std::error::Error for UnknownErrorName {}

impl FromStr for ErrorName {
    type Err = UnknownErrorName;

    /// Reads the name with or without its prefix.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let short = text.strip_prefix(PREFIX).unwrap_or(text);
        Self::ALL.iter().copied().find(|name| name.as_str() == short).ok_or_else(|| UnknownErrorName(text.to_owned()))
    }
}

/// Takes the error of a call apart: which of our errors it is, and what to show to a person.
///
/// The name is `None` for an error that mdevd did not send. The bus's own refusal to deliver a call counts as
/// [`ErrorName::NotAuthorized`]: for the caller it is the same.
pub fn split(error: &zbus::Error) -> (Option<ErrorName>, String) {
    match error {
        zbus::Error::MethodError(name, message, _) => {
            let known = name.as_str().strip_prefix(PREFIX).and_then(|short| short.parse().ok());
            let message = message.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| name.to_string());
            (known, message)
        }
        zbus::Error::FDO(fdo) => match &**fdo {
            fdo::Error::ZBus(inner) => split(inner),
            fdo::Error::AccessDenied(message) => (Some(ErrorName::NotAuthorized), message.clone()),
            other => (None, description(other)),
        },
        other => (None, other.to_string()),
    }
}

/// The message of an error of the bus itself, without its D-Bus name, which says nothing to a person.
fn description(error: &fdo::Error) -> String {
    match zbus::DBusError::description(error) {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => error.to_string(),
    }
}

/// Whether the call did not reach mdevd, or its answer did not come: no bus, no daemon and none that could be started,
/// or a daemon that went away or is silent. An error that mdevd itself sent is never one of these.
pub fn is_unreachable(error: &zbus::Error) -> bool {
    use fdo::Error as E;
    match error {
        zbus::Error::Connection(..)
        | zbus::Error::InputOutput(_)
        | zbus::Error::Handshake(_)
        | zbus::Error::Address(_) => true,
        // systemd's answers to the bus when the unit is masked or missing or did not start have names of its own.
        zbus::Error::MethodError(name, ..) => name.as_str().starts_with("org.freedesktop.systemd1."),
        zbus::Error::FDO(fdo) => match &**fdo {
            E::ZBus(inner) => is_unreachable(inner),
            E::ServiceUnknown(_)
            | E::NameHasNoOwner(_)
            | E::NoReply(_)
            | E::NoServer(_)
            | E::Timeout(_)
            | E::TimedOut(_)
            | E::Disconnected(_)
            | E::SpawnExecFailed(_)
            | E::SpawnForkFailed(_)
            | E::SpawnChildExited(_)
            | E::SpawnChildSignaled(_)
            | E::SpawnFailed(_)
            | E::SpawnFailedToSetup(_)
            | E::SpawnConfigInvalid(_)
            | E::SpawnServiceNotValid(_)
            | E::SpawnServiceNotFound(_)
            | E::SpawnPermissionsInvalid(_)
            | E::SpawnFileInvalid(_)
            | E::SpawnNoMemory(_) => true,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::{message::Message, names::OwnedErrorName};

    fn method_error(name: &str, text: Option<&str>) -> zbus::Error {
        let call = Message::method_call("/", "M").build(&()).unwrap();
        let name = OwnedErrorName::try_from(name.to_owned()).unwrap();
        zbus::Error::MethodError(name, text.map(str::to_owned), call)
    }

    #[test]
    fn names_lead_back() {
        for name in ErrorName::ALL {
            assert_eq!(name.as_str().parse(), Ok(*name));
            assert_eq!(name.full().parse(), Ok(*name));
            assert!(OwnedErrorName::try_from(name.full().to_owned()).is_ok());
        }
        assert_eq!(ErrorName::ALL.len(), 18);
        assert_eq!("Nope".parse::<ErrorName>().unwrap_err().to_string(), "'Nope' is not the name of an error of mdevd");
    }

    #[test]
    fn our_errors_are_taken_apart() {
        let error = method_error("org.mdevd1.Error.NoCapacity", Some("mtty-1: none left"));
        assert_eq!(split(&error), (Some(ErrorName::NoCapacity), "mtty-1: none left".to_owned()));
        assert!(!is_unreachable(&error));
        // Without a message the name is better than nothing.
        let error = method_error("org.mdevd1.Error.Busy", None);
        assert_eq!(split(&error), (Some(ErrorName::Busy), "org.mdevd1.Error.Busy".to_owned()));
    }

    #[test]
    fn a_name_of_ours_without_our_prefix_is_not_ours() {
        assert_eq!(split(&method_error("com.example.NotFound", Some("x"))), (None, "x".to_owned()));
    }

    #[test]
    fn the_bus_speaks_for_itself() {
        let gone = zbus::Error::FDO(Box::new(fdo::Error::ServiceUnknown("no such name".to_owned())));
        assert_eq!(split(&gone), (None, "no such name".to_owned()));
        assert!(is_unreachable(&gone));
        let denied = zbus::Error::FDO(Box::new(fdo::Error::AccessDenied("rejected".to_owned())));
        assert_eq!(split(&denied), (Some(ErrorName::NotAuthorized), "rejected".to_owned()));
        assert!(!is_unreachable(&denied));
        assert!(is_unreachable(&method_error("org.freedesktop.systemd1.NoSuchUnit", Some("masked"))));
    }
}
