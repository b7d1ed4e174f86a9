//! The one error of the daemon: a name of the contract and a sentence for a person; and the mapping of every other error to it.

use mdevd_core::choose::{Reason, Refusal};
use mdevd_core::hostdev::HostdevError;
use mdevd_core::names::NameError;
use mdevd_core::request::{BindError, RequestError};
use mdevd_dbus::ErrorName;
use mdevd_host::error::EffectError;
use rustix::io::Errno;
use zbus::message::{Header, Message};

/// What a D-Bus call fails with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Which of the contract's errors it is.
    pub name: ErrorName,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// The result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its sentence.
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { name, message: message.into() }
    }

    /// An argument that cannot be right.
    pub fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorName::InvalidArgument, message.to_string())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let name = match refusal.reason {
            Reason::NoSuchType | Reason::NotFound => ErrorName::NotFound,
            Reason::NoInstance => ErrorName::NoCapacity,
            Reason::WrongDeviceApi | Reason::Excluded | Reason::OtherParent | Reason::WrongNumaNode => {
                ErrorName::NoCandidate
            }
            Reason::Stuck => ErrorName::Stuck,
            Reason::KernelRefused => ErrorName::KernelRefused,
            Reason::InUse => ErrorName::InUse,
            Reason::Conflict => ErrorName::Conflict,
            Reason::Bridge | Reason::NoIommu | Reason::WrongKind => ErrorName::NotSupported,
            Reason::HostCritical => ErrorName::HostCritical,
            Reason::GroupNotIsolated => ErrorName::GroupNotIsolated,
        };
        let advice = match refusal.reason {
            Reason::NoInstance | Reason::KernelRefused => {
                "; stop a VM that has one, or ask for another type ('hostdevctl types' lists them)"
            }
            _ => "",
        };
        Self::new(name, format!("{}{advice}", refusal.message))
    }
}

impl From<EffectError> for Error {
    fn from(error: EffectError) -> Self {
        let advice = if [Errno::PERM, Errno::ACCESS, Errno::ROFS].iter().any(|errno| error.is(*errno)) {
            "mdevd must be root and have what its unit gives it: was that changed (systemctl cat mdevd), or does the kernel's log name who stops it (journalctl -k)?"
        } else if error.is_gone() {
            "it has just gone; 'hostdevctl list' shows what is there"
        } else {
            "the driver says why in the kernel's log: journalctl -k"
        };
        Self::new(ErrorName::KernelRefused, format!("{error}; {advice}"))
    }
}

macro_rules! invalid_argument {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::invalid(error)
            }
        })*
    };
}

invalid_argument!(RequestError, BindError, HostdevError, NameError);

impl zbus::DBusError for Error {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, zbus::DBusError::name(self)).build(&(&self.message,))
    }

    fn name(&self) -> zbus::names::ErrorName<'_> {
        zbus::names::ErrorName::from_static_str_unchecked(self.name.full())
    }

    fn description(&self) -> Option<&str> {
        Some(&self.message)
    }
}
