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

use mdevd_core::holders::Holders;
use mdevd_core::names::DeviceKey;
use mdevd_dbus::{Dict, ErrorName};

use crate::engine::Handle;
use crate::error::{Error, Result};
use crate::options::Options;

/// `GetHolders` of a device: process ids and names, or why they are not known.
async fn holders_of(engine: &Handle, device: DeviceKey) -> Result<Vec<(u32, String)>> {
    let looked =
        engine.call(move |engine| async move { Ok(engine.holders(&[device]).await.into_iter().next()) }).await?;
    match looked {
        Some((_, Holders::Known(list))) => Ok(list.into_iter().map(|holder| (holder.pid, holder.command)).collect()),
        Some((_, Holders::Unknown(why))) => {
            Err(Error::new(ErrorName::Unavailable, format!("who holds {device} is not known: {why}")))
        }
        None => Err(Error::new(ErrorName::NotFound, format!("{device} is gone"))),
    }
}

/// For a method that has no options: any is an error that names it.
fn no_options(options: Dict) -> Result<()> {
    Options::new(options).finish()
}
