//! The doctor: whether a PCI function can be given to a VM, whether the host can give any, and what a person does where the answer is no.
//!
//! What a function is judged by is in the inventory and in [`facts::HostFacts`]; nothing is looked at here. A fact that is not known is
//! no fault: nothing is said of it.

mod boot;
pub mod facts;
mod function;
mod host;
mod iommu;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

pub use function::check_function;
pub use host::check_host;

/// How good or bad a finding is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// All is well.
    Ready,
    /// It works, and a person ought to know something.
    ReadyWithWarning,
    /// A person has to do something first.
    NeedsSetup,
    /// It must not be done.
    Refused,
}

impl Grade {
    /// `ready`, `ready-with-warning`, `needs-setup` or `refused`, as on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ReadyWithWarning => "ready-with-warning",
            Self::NeedsSetup => "needs-setup",
            Self::Refused => "refused",
        }
    }
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The thing: an address, or a part of the host such as `iommu`.
    pub subject: String,
    /// How it stands.
    pub verdict: Grade,
    /// Why, as a stable code; `ok` where all is well.
    pub reason: &'static str,
    /// The same for a person, with all that applies.
    pub message: String,
    /// What to do, fit to be copied; empty where there is nothing to do.
    pub fix: String,
}

/// The code of what is as it should be.
const OK: &str = "ok";

/// One thing to say of a subject.
struct Note {
    grade: Grade,
    reason: &'static str,
    message: String,
    fix: String,
}

impl Note {
    fn new(grade: Grade, reason: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { grade, reason, message: message.into(), fix: fix.into() }
    }

    fn ready(message: impl Into<String>) -> Self {
        Self::new(Grade::Ready, OK, message, "")
    }

    fn warning(reason: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Grade::ReadyWithWarning, reason, message, fix)
    }

    fn setup(reason: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Grade::NeedsSetup, reason, message, fix)
    }

    fn refused(reason: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Grade::Refused, reason, message, fix)
    }
}

impl Finding {
    /// The worst of what there is to say, with all of it in the message and the worst's ways out in the fix.
    fn of(subject: impl Into<String>, first: Note, more: impl IntoIterator<Item = Note>) -> Self {
        let mut notes = vec![&first];
        let more: Vec<Note> = more.into_iter().collect();
        notes.extend(&more);
        // The sort is stable: among equals the first said counts.
        notes.sort_by_key(|note| Reverse(note.grade));
        let worst = notes.iter().copied().next().unwrap_or(&first);
        let messages: Vec<&str> = notes.iter().map(|note| note.message.as_str()).collect();
        let mut fixes: Vec<&str> = Vec::new();
        for note in notes.iter().filter(|note| note.grade == worst.grade && !note.fix.is_empty()) {
            if !fixes.contains(&note.fix.as_str()) {
                fixes.push(&note.fix);
            }
        }
        Self {
            subject: subject.into(),
            verdict: worst.grade,
            reason: worst.reason,
            message: messages.join("; "),
            fix: fixes.join("; "),
        }
    }
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[impl AsRef<str>]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        text.push_str(match index {
            0 => "",
            _ if index + 1 == names.len() => " and ",
            _ => ", ",
        });
        text.push_str(name.as_ref());
    }
    text
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
