//! What is said of ill-formed XML. The parser's own words quote the document, whose text may be long or play tricks on a terminal.

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

pub(super) fn unknown_entity(name: &str) -> String {
    format!("the entity '&{};' is not one of XML's own", printable(name))
}

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
    let (at, what) = match error {
        AttrError::Duplicated(at, _) => (at, "is there twice"),
        AttrError::ExpectedEq(at) | AttrError::ExpectedValue(at) => (at, "has no value"),
        AttrError::UnquotedValue(at) => (at, "is not quoted"),
        AttrError::ExpectedQuote(at, _) => (at, "has no closing quote"),
    };
    let rest = element.get(*at..).unwrap_or("");
    let word = rest.split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or("");
    format!(
        "in {}: the attribute {}{what}",
        tag(element.name().0),
        if word.is_empty() { String::new() } else { format!("'{}' ", printable(word)) }
    )
}
