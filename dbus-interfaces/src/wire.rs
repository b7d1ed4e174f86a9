//! How values travel: the dictionaries of the contract, and reading one without surprises.
//!
//! The keys of each dictionary are listed in the interface XML. A client must not mind a key that it does not know,
//! because dictionaries grow.

use std::collections::{BTreeMap, HashMap};

use zbus::{OwnedVariant, Variant};

/// `a{sv}` as it is received, and as an element of `aa{sv}`: a grant, a candidate, an action, a problem, a type.
pub type Dict = HashMap<String, OwnedVariant>;

/// `a{sv}` as a client sends it: the options of a call.
pub type Options<'a> = HashMap<&'a str, Variant<'a>>;

/// `a{ss}`: a request or a hostdev, flat text as in the domain's XML. Ordered, so that the same words make the same
/// message.
pub type TextDict = BTreeMap<String, String>;

/// The text under `key`, also of an object path; `""`, which is how the contract writes "absent", when it is not there
/// or is something else.
pub fn text<'a>(dict: &'a Dict, key: &str) -> &'a str {
    match dict.get(key).map(|value| &**value) {
        Some(Variant::Str(text)) => text.as_str(),
        Some(Variant::ObjectPath(path)) => path.as_str(),
        _ => "",
    }
}

/// The unsigned number under `key`, of whatever width; `None` when it is not there or is something else.
pub fn number(dict: &Dict, key: &str) -> Option<u64> {
    match dict.get(key).map(|value| &**value) {
        Some(Variant::U8(n)) => Some(u64::from(*n)),
        Some(Variant::U16(n)) => Some(u64::from(*n)),
        Some(Variant::U32(n)) => Some(u64::from(*n)),
        Some(Variant::U64(n)) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::ObjectPath;

    #[test]
    fn a_dictionary_is_read_leniently() {
        let dict = Dict::from(
            [
                ("request", Variant::from("gpu0")),
                ("object", Variant::from(ObjectPath::from_static_str("/org/mdevd1").unwrap())),
                ("available", Variant::from(7u32)),
                ("since", Variant::from(u64::MAX)),
            ]
            .map(|(key, value)| (key.to_owned(), OwnedVariant::try_from(value).unwrap())),
        );
        assert_eq!(text(&dict, "request"), "gpu0");
        assert_eq!(text(&dict, "object"), "/org/mdevd1");
        assert_eq!(text(&dict, "available"), "");
        assert_eq!(text(&dict, "missing"), "");
        assert_eq!(number(&dict, "available"), Some(7));
        assert_eq!(number(&dict, "since"), Some(u64::MAX));
        assert_eq!(number(&dict, "request"), None);
    }
}
