//! What is said of ill-formed XML. The parser's own words quote the document, whose text may be long, play tricks on a terminal, or be
//! a password: the names of elements and attributes are said, and the place; never a text or a value.

use alloc::format;
use alloc::string::{String, ToString};

use quick_xml::errors::{Error as XmlError, IllFormedError};
use quick_xml::events::BytesStart;
use quick_xml::events::attributes::AttrError;

use crate::names::printable;

/// An element's name in a message.
pub(super) fn tag(name: &str) -> String {
    format!("<{}>", printable(name))
}

/// What looks like an entity is often a text with a `&` in it.
pub(super) const UNKNOWN_ENTITY: &str = "an entity that is not one of XML's own; a '&' itself is written '&amp;'";

/// The parser's error.
pub(super) fn parser_words(error: &XmlError) -> String {
    match error {
        XmlError::IllFormed(IllFormedError::MismatchedEndTag { expected, found }) => {
            format!("{} is closed by {}", tag(expected), tag(&format!("/{found}")))
        }
        XmlError::IllFormed(IllFormedError::UnmatchedEndTag(name)) => {
            format!("{} closes nothing", tag(&format!("/{name}")))
        }
        XmlError::Syntax(e) => e.to_string(),
        e => printable(&e.to_string()),
    }
}

pub(super) fn attribute_words(element: &BytesStart<'_>, error: &AttrError) -> String {
    let what = match error {
        AttrError::Duplicated(at, _) => {
            let rest = element.get(*at..).unwrap_or("");
            let name = rest.split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or("");
            format!("the attribute '{}' is there twice", printable(name))
        }
        // Where the parser stopped may be in the middle of a value.
        AttrError::ExpectedEq(_) | AttrError::ExpectedValue(_) => "an attribute has no value".into(),
        AttrError::UnquotedValue(_) => "the value of an attribute is not quoted".into(),
        AttrError::ExpectedQuote(..) => "the value of an attribute has no closing quote".into(),
    };
    format!("in {}: {what}", tag(element.name().0))
}
