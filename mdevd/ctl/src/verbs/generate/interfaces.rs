//! Of `generate`: what org.mdevd1(5) says of each interface, from the XML that is the contract.

use mdevd_dbus::xml::{ACTION, ALL, NONE_ROOT_ONLY};
use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::roff::{line, text};
use crate::error::Error;

const DOC: &str = "org.gtk.GDBus.DocString";
const CHANGES: &str = "org.freedesktop.DBus.Property.EmitsChangedSignal";

/// A section for each interface, with a subsection for its properties and one for each method.
pub fn page() -> Result<String, Error> {
    let sections: Result<Vec<String>, quick_xml::Error> = ALL.iter().map(|(_, xml)| section(xml)).collect();
    sections
        .map(|sections| sections.concat())
        .map_err(|error| Error::Refused(format!("the interface XML in this program cannot be read: {error}")))
}

/// A method or property that is being read.
#[derive(Debug, Default)]
struct Member {
    name: String,
    /// Of a property.
    signature: Option<String>,
    /// Of a method: the arguments, and the results.
    takes: Vec<String>,
    gives: Vec<String>,
    doc: String,
    action: String,
    changes: String,
}

fn section(xml: &str) -> Result<String, quick_xml::Error> {
    let mut reader = Reader::from_str(xml);
    reader.config_mut().expand_empty_elements = true;
    let (mut head, mut properties, mut methods) = (String::new(), String::new(), String::new());
    let (mut path, mut doc, mut member) = (None, String::new(), None::<Member>);
    loop {
        match reader.read_event()? {
            // The first comment begins with `org.mdevd1.Claim, on /org/mdevd1/claim/*: `.
            Event::Comment(comment) => {
                let found = comment.split_once(", on ").and_then(|(_, rest)| rest.split_once(':'));
                path = path.or(found.map(|(path, _)| path.to_owned()));
            }
            Event::Start(element) => {
                let get = |name| attribute(&element, name);
                match (element.name().0, &mut member) {
                    ("interface", _) => head = format!(".SH \"{}\"\n", line(&get("name")?)),
                    ("method", _) => member = Some(Member { name: get("name")?, ..Member::default() }),
                    ("property", _) => {
                        let signature = Some(get("type")?);
                        member = Some(Member { name: get("name")?, signature, ..Member::default() });
                    }
                    ("arg", Some(member)) => {
                        let list = if get("direction")? == "out" { &mut member.gives } else { &mut member.takes };
                        list.push(format!("{} {}", get("type")?, get("name")?));
                    }
                    ("annotation", of) => match (get("name")?.as_str(), of) {
                        (DOC, Some(member)) => member.doc = get("value")?,
                        (DOC, None) => doc = get("value")?,
                        (ACTION, Some(member)) => member.action = get("value")?,
                        (CHANGES, Some(member)) => member.changes = get("value")?,
                        _ => {}
                    },
                    _ => {}
                }
            }
            Event::End(element) if matches!(element.name().0, "method" | "property") => match member.take() {
                Some(member) if member.signature.is_some() => properties += &member.property(),
                Some(member) => methods += &member.method(),
                None => {}
            },
            Event::Eof => break,
            _ => {}
        }
    }
    if let Some(path) = path {
        head += &format!("On \\fI{}\\fR.\n", line(&path));
    }
    head += &format!(".PP\n{}", paragraphs(&doc));
    if !properties.is_empty() {
        head += &format!(".SS \"Properties\"\n{properties}");
    }
    Ok(head + &methods)
}

/// The value of an attribute with its line ends, or nothing.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<String, quick_xml::Error> {
    match element.try_get_attribute(name)? {
        Some(attribute) => Ok(unescape(&attribute.value)?.into_owned()),
        None => Ok(String::new()),
    }
}

impl Member {
    fn property(&self) -> String {
        let constant = if self.changes == "const" { ", never changes" } else { "" };
        let signature = self.signature.as_deref().unwrap_or_default();
        format!(".TP\n\\fB{}\\fR ({}{constant})\n{}\n", line(&self.name), line(signature), text(&self.doc))
    }

    fn method(&self) -> String {
        let gives =
            if self.gives.is_empty() { String::new() } else { format!(" \\(-> {}", line(&self.gives.join(", "))) };
        let who = match self.action.split_once(' ') {
            Some((own, others)) => {
                format!("polkit action {own} for what is the caller's own, else {others}")
            }
            None if self.action == NONE_ROOT_ONLY => "uid 0 only".to_owned(),
            None => format!("polkit action {}", self.action),
        };
        format!(
            ".SS \"{}({}){gives}\"\n{}.PP\nWho may: {}.\n",
            line(&self.name),
            line(&self.takes.join(", ")),
            paragraphs(&self.doc),
            text(&who)
        )
    }
}

/// A description; its options, its errors and what is said of dictionaries are paragraphs of their own.
fn paragraphs(doc: &str) -> String {
    let mut paragraphs: Vec<Vec<&str>> = vec![Vec::new()];
    for line in doc.lines().map(str::trim) {
        let begins = ["Options:", "No options", "Errors:"].iter().any(|word| line.starts_with(word))
            || line.contains(" has the keys ");
        match paragraphs.last_mut() {
            Some(last) if !begins => last.push(line),
            _ => paragraphs.push(vec![line]),
        }
    }
    let paragraphs: Vec<String> = paragraphs.iter().map(|lines| text(&lines.join(" ")) + "\n").collect();
    paragraphs.join(".PP\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_says_where_it_is_and_who_may_call_its_methods() {
        let page = page().unwrap();
        for (name, xml) in ALL {
            assert!(page.contains(&format!(".SH \"{name}\"\nOn \\fI/org/mdevd1")), "{name}");
            for method in xml.split("<method name=\"").skip(1) {
                let method = method.split('"').next().unwrap();
                let (_, section) = page.split_once(&format!(".SS \"{method}(")).unwrap();
                let section = section.split(".SS").next().unwrap();
                assert!(section.contains("\nWho may: polkit action org.mdevd1.") || section.contains("uid 0 only"));
            }
        }
    }

    #[test]
    fn a_member_is_told_in_paragraphs() {
        let xml = "<node><!-- x, on /org/mdevd1: it --><interface name='x'>
            <annotation name='org.gtk.GDBus.DocString' value='An x.'/>
            <method name='M'>
            <annotation name='org.gtk.GDBus.DocString' value='Does &lt;it&gt;,
              well.
              Options: a b, what.
              Errors: NotFound.'/>
            <annotation name='org.mdevd1.Action' value='none-root-only'/>
            <arg name='what' type='s' direction='in'/><arg name='done' type='b' direction='out'/>
            </method></interface></node>";
        let expected = ".SH \"x\"\nOn \\fI/org/mdevd1\\fR.\n.PP\nAn x.\n.SS \"M(s what) \\(-> b done\"\nDoes <it>, well.\n\
                        .PP\nOptions: a b, what.\n.PP\nErrors: NotFound.\n.PP\nWho may: uid 0 only.\n";
        assert_eq!(section(xml).unwrap(), expected);
    }
}
