//! The D-Bus objects. Each method is the same three lines: may the caller, what does it say, have the engine do it. Getters read the
//! object's view and neither wait nor fail.

mod claim;
mod function;
mod manager;
mod mdev;
mod parent;

pub use claim::ClaimObject;
pub use function::{FunctionObject, PhysicalObject, VirtualObject};
pub use manager::ManagerObject;
pub use mdev::MdevObject;
pub use parent::ParentObject;

use mdevd_dbus::Dict;

use crate::error::Result;
use crate::options::Options;

/// For a method that has no options: any is an error that names it.
fn no_options(options: Dict) -> Result<()> {
    Options::new(options).finish()
}
