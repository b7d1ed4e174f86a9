//! The interface XML, as it is written by hand: one document for each interface.

/// `org.mdevd1.Manager`.
pub const MANAGER: &str = include_str!("../org.mdevd1.Manager.xml");
/// `org.mdevd1.Parent`.
pub const PARENT: &str = include_str!("../org.mdevd1.Parent.xml");
/// `org.mdevd1.Mdev`.
pub const MDEV: &str = include_str!("../org.mdevd1.Mdev.xml");
/// `org.mdevd1.Function`.
pub const FUNCTION: &str = include_str!("../org.mdevd1.Function.xml");
/// `org.mdevd1.PhysicalFunction`.
pub const PHYSICAL_FUNCTION: &str = include_str!("../org.mdevd1.PhysicalFunction.xml");
/// `org.mdevd1.VirtualFunction`.
pub const VIRTUAL_FUNCTION: &str = include_str!("../org.mdevd1.VirtualFunction.xml");
/// `org.mdevd1.Claim`.
pub const CLAIM: &str = include_str!("../org.mdevd1.Claim.xml");

/// All of them, with the name of the interface that each describes.
pub const ALL: [(&str, &str); 7] = [
    (crate::interface::MANAGER, MANAGER),
    (crate::interface::PARENT, PARENT),
    (crate::interface::MDEV, MDEV),
    (crate::interface::FUNCTION, FUNCTION),
    (crate::interface::PHYSICAL_FUNCTION, PHYSICAL_FUNCTION),
    (crate::interface::VIRTUAL_FUNCTION, VIRTUAL_FUNCTION),
    (crate::interface::CLAIM, CLAIM),
];

/// The annotation of ours that says who may call a method: [`NONE_ROOT_ONLY`], or the polkit action that is checked;
/// two of them, with a blank between, are for one's own claims and for those of others.
pub const ACTION: &str = "org.mdevd1.Action";
/// The value of [`ACTION`] for a method that only uid 0 may call and that no polkit action opens to others.
pub const NONE_ROOT_ONLY: &str = "none-root-only";
