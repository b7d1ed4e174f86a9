//! Object paths: from a device's name to its path and back.
//!
//! UUIDs are written with `_` for `-`, so that a person can type them. The name of a parent is escaped as systemd
//! escapes names in its bus paths: every byte but an ASCII letter or digit, and a digit that comes first, becomes `_`
//! and two hex digits. In the address of a PCI function `_` stands for `:` and `.`. `systemd-escape` is not that; `busctl tree org.mdevd1` shows the result.

use uuid::Uuid;
use zbus::{ObjectPath, OwnedObjectPath};

/// The object with `org.mdevd1.Manager`; every other path is below it.
pub const ROOT: &str = "/org/mdevd1";

/// How "no object" is written.
pub const NONE: &str = "/";

const MDEV: &str = "/org/mdevd1/mdev/";
const CLAIM: &str = "/org/mdevd1/claim/";
const PARENT: &str = "/org/mdevd1/parent/";
const FUNCTION: &str = "/org/mdevd1/function/";

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A parent, by its name in sysfs.
    Parent(String),
    /// An mdev.
    Mdev(Uuid),
    /// A claim, by its id.
    Claim(Uuid),
    /// A PCI function, by its address.
    Function(String),
}

impl Object {
    /// Its path.
    pub fn path(&self) -> OwnedObjectPath {
        match self {
            Self::Parent(name) => parent(name),
            Self::Mdev(uuid) => mdev(*uuid),
            Self::Claim(id) => claim(*id),
            Self::Function(address) => function(address),
        }
    }

    /// What a path of ours stands for; `None` for [`ROOT`], [`NONE`], any path that is not ours, and any other
    /// spelling than the one that [`Object::path`] gives.
    pub fn from_path(path: &str) -> Option<Self> {
        let object = if let Some(label) = path.strip_prefix(MDEV) {
            Self::Mdev(uuid_from_label(label)?)
        } else if let Some(label) = path.strip_prefix(CLAIM) {
            Self::Claim(uuid_from_label(label)?)
        } else if let Some(label) = path.strip_prefix(FUNCTION) {
            Self::Function(address_from_label(label)?)
        } else {
            Self::Parent(unescape(path.strip_prefix(PARENT)?)?)
        };
        (object.path().as_str() == path).then_some(object)
    }
}

/// The path of the root object.
pub fn root() -> OwnedObjectPath {
    owned(ROOT.to_owned())
}

/// The path of an mdev.
pub fn mdev(uuid: Uuid) -> OwnedObjectPath {
    owned(format!("{MDEV}{}", uuid_label(uuid)))
}

/// The path of a claim.
pub fn claim(id: Uuid) -> OwnedObjectPath {
    owned(format!("{CLAIM}{}", uuid_label(id)))
}

/// The path of a parent.
pub fn parent(name: &str) -> OwnedObjectPath {
    owned(format!("{PARENT}{}", escape(name)))
}

/// The path of a PCI function. An address has no other characters than a path may have, but for `:` and `.`.
pub fn function(address: &str) -> OwnedObjectPath {
    let label: String = address.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    owned(format!("{FUNCTION}{label}"))
}

/// The path that stands for no object.
pub fn none() -> OwnedObjectPath {
    owned(NONE.to_owned())
}

/// Only called with what this module has put together from the characters that a path may have; the tests hold every
/// result against the rules of D-Bus.
fn owned(path: String) -> OwnedObjectPath {
    ObjectPath::from_string_unchecked(path).into()
}

fn uuid_label(uuid: Uuid) -> String {
    uuid.hyphenated().to_string().replace('-', "_")
}

fn uuid_from_label(label: &str) -> Option<Uuid> {
    Uuid::try_parse(&label.replace('_', "-")).ok()
}

/// `0000:41:00.4` from `0000_41_00_4`.
fn address_from_label(label: &str) -> Option<String> {
    let mut parts = label.split('_');
    let (domain, bus, device, function) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, digits: core::ops::RangeInclusive<usize>| {
        let lower = part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        digits.contains(&part.len()) && lower
    };
    let fits = hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1);
    (fits && parts.next().is_none()).then(|| format!("{domain}:{bus}:{device}.{function}"))
}

/// A name as one element of a path.
fn escape(name: &str) -> String {
    if name.is_empty() {
        return "_".to_owned();
    }
    let mut label = String::with_capacity(name.len() + 8);
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            label.push(char::from(byte));
        } else {
            label.push_str(&format!("_{byte:02x}"));
        }
    }
    label
}

/// The name that [`escape`] made the label of.
fn unescape(label: &str) -> Option<String> {
    if label == "_" {
        return Some(String::new());
    }
    let mut name = Vec::with_capacity(label.len());
    let mut bytes = label.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'_' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            name.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_those_of_the_contract() {
        let uuid = Uuid::from_u128(0xc2177883_f1bb_47f0_914d_32a22e3a8804);
        assert_eq!(mdev(uuid).as_str(), "/org/mdevd1/mdev/c2177883_f1bb_47f0_914d_32a22e3a8804");
        assert_eq!(claim(uuid).as_str(), "/org/mdevd1/claim/c2177883_f1bb_47f0_914d_32a22e3a8804");
        assert_eq!(parent("mtty").as_str(), "/org/mdevd1/parent/mtty");
        assert_eq!(parent("0000:41:00.0").as_str(), "/org/mdevd1/parent/_30000_3a41_3a00_2e0");
        assert_eq!(parent("10000:e1:00.0").as_str(), "/org/mdevd1/parent/_310000_3ae1_3a00_2e0");
        assert_eq!(function("0000:41:00.4").as_str(), "/org/mdevd1/function/0000_41_00_4");
        assert_eq!(function("10000:e1:1f.7").as_str(), "/org/mdevd1/function/10000_e1_1f_7");
        assert_eq!(parent("").as_str(), "/org/mdevd1/parent/_");
        assert_eq!(parent("a_b").as_str(), "/org/mdevd1/parent/a_5fb");
    }

    #[test]
    fn other_spellings_and_other_paths_stand_for_nothing() {
        for path in [
            "/",
            "/org/mdevd1",
            "/org/mdevd1/mdev",
            "/org/mdevd1/mdev/",
            "/org/mdevd1/mdev/C2177883_f1bb_47f0_914d_32a22e3a8804",
            "/org/mdevd1/mdev/c2177883f1bb47f0914d32a22e3a8804",
            "/org/mdevd1/claim/mtty",
            "/org/mdevd1/parent/",
            "/org/mdevd1/parent/0000",
            "/org/mdevd1/parent/_6dtty",
            "/org/mdevd1/parent/mtty_",
            "/org/mdevd1/parent/mtty_2",
            "/org/mdevd1/parent/mtty_2E0",
            "/org/mdevd1/parent/mtty_+1",
            "/org/mdevd1/parent/_ff",
            "/org/mdevd1/parent/a/b",
            "/org/mdevd1/function/0000_41_00",
            "/org/mdevd1/function/0000_41_00_0_1",
            "/org/mdevd1/function/0000_4A_00_0",
            "/org/mdevd1/function/000_41_00_0",
            "/org/mdevd1/pool/gold",
            "/org/freedesktop/DBus",
        ] {
            assert_eq!(Object::from_path(path), None, "{path}");
        }
    }

    fn object() -> impl Strategy<Value = Object> {
        prop_oneof![
            any::<String>().prop_map(Object::Parent),
            "[0-9a-z:._-]{0,16}".prop_map(Object::Parent),
            any::<u128>().prop_map(|n| Object::Mdev(Uuid::from_u128(n))),
            any::<u128>().prop_map(|n| Object::Claim(Uuid::from_u128(n))),
            "[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]".prop_map(Object::Function),
        ]
    }

    proptest! {
        #[test]
        fn every_path_is_valid_and_leads_back(object in object()) {
            let path = object.path();
            prop_assert!(ObjectPath::try_from(path.as_str()).is_ok(), "{path}");
            prop_assert_eq!(Object::from_path(path.as_str()), Some(object));
        }

        #[test]
        fn whatever_is_read_is_written_the_same(path in "/org/mdevd1/(mdev|claim|parent|function)/[0-9a-f_]{1,40}") {
            if let Some(object) = Object::from_path(&path) {
                let again = object.path();
                prop_assert_eq!(again.as_str(), path.as_str());
            }
        }
    }
}
