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

use std::time::Duration;

pub use error::ErrorName;
pub use proxy::{
    ClaimProxy, FunctionProxy, ManagerProxy, MdevProxy, ParentProxy, PhysicalFunctionProxy, VirtualFunctionProxy,
};
pub use wire::{Dict, Options, TextDict};

/// The name of the daemon on the system bus.
pub const BUS_NAME: &str = "org.mdevd1";

/// How long mdevd lets a person sit at a polkit prompt; then the call is refused. Whoever allows one has to wait longer for the
/// answer: by what the call itself may take, which begins after it.
pub const PROMPT_DEADLINE: Duration = Duration::from_secs(120);

/// The names of the interfaces.
pub mod interface {
    /// Asks for devices, on the root object.
    pub const MANAGER: &str = "org.mdevd1.Manager";
    /// A device that offers mdev types.
    pub const PARENT: &str = "org.mdevd1.Parent";
    /// A mediated device.
    pub const MDEV: &str = "org.mdevd1.Mdev";
    /// A PCI function.
    pub const FUNCTION: &str = "org.mdevd1.Function";
    /// A PCI function that can have virtual functions.
    pub const PHYSICAL_FUNCTION: &str = "org.mdevd1.PhysicalFunction";
    /// A virtual function.
    pub const VIRTUAL_FUNCTION: &str = "org.mdevd1.VirtualFunction";
    /// Devices promised to one owner.
    pub const CLAIM: &str = "org.mdevd1.Claim";
}
