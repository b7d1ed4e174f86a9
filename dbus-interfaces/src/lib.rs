//! The D-Bus contract of mdevd, for its clients and for the daemon alike: the interface XML, the proxies, the wire
//! types, the error names and the object paths.
//!
//! The XML files beside this crate are the contract and carry the documentation; everything here follows them, and
//! the tests of this crate hold it against them. It knows D-Bus and strings, and nothing of devices.

pub mod error;
pub mod path;
pub mod proxy;
pub mod wire;
pub mod xml;

pub use error::ErrorName;
pub use proxy::{ClaimProxy, ManagerProxy, MdevProxy, ParentProxy};
pub use wire::{Dict, Options, TextDict};

/// The name of the daemon on the system bus.
pub const BUS_NAME: &str = "org.mdevd1";

/// The names of the interfaces.
pub mod interface {
    /// Asks for devices, on the root object.
    pub const MANAGER: &str = "org.mdevd1.Manager";
    /// A device that offers mdev types.
    pub const PARENT: &str = "org.mdevd1.Parent";
    /// A mediated device.
    pub const MDEV: &str = "org.mdevd1.Mdev";
    /// Devices promised to one owner.
    pub const CLAIM: &str = "org.mdevd1.Claim";
}
