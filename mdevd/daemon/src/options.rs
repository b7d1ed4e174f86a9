//! The options of a call: `a{sv}` read key by key, where a key that nobody asked for is an error that names it.

use mdevd_core::names::printable;
use mdevd_core::suggest::nearest;
use mdevd_dbus::{Dict, ErrorName};
use zbus::{OwnedVariant, Variant};

use crate::error::{Error, Result};

/// The options of one call. Take each with its type, then [`Options::finish`].
#[derive(Debug)]
pub struct Options {
    left: Dict,
    known: Vec<&'static str>,
}

impl Options {
    /// The options as they came.
    pub fn new(dict: Dict) -> Self {
        Self { left: dict, known: Vec::new() }
    }

    /// The value under `key`, if it is there.
    ///
    /// # Errors
    /// `InvalidOption` when it is of another type than `what` says.
    pub fn take<T>(&mut self, key: &'static str, what: &str) -> Result<Option<T>>
    where
        T: TryFrom<OwnedVariant>,
    {
        self.known.push(key);
        let Some(value) = self.left.remove(key) else { return Ok(None) };
        let signature = value.value_signature().to_string();
        T::try_from(value).map(Some).map_err(|_| {
            Error::new(
                ErrorName::InvalidOption,
                format!("the option '{key}' must be {what}, but its D-Bus type is '{signature}'"),
            )
        })
    }

    /// `a(ss)` under `key`; empty when it is not there.
    ///
    /// # Errors
    /// `InvalidOption` when it is of another type.
    pub fn take_pairs(&mut self, key: &'static str) -> Result<Vec<(String, String)>> {
        self.known.push(key);
        let Some(value) = self.left.remove(key) else { return Ok(Vec::new()) };
        let bad = || {
            Error::new(
                ErrorName::InvalidOption,
                format!("the option '{key}' must be a list of pairs of strings, a(ss)"),
            )
        };
        let value: Variant<'_> = value.into();
        let Variant::Array(array) = value else { return Err(bad()) };
        if array.element_signature() != "(ss)" {
            return Err(bad());
        }
        Vec::<(String, String)>::try_from(array).map_err(|_| bad())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// `InvalidOption` that names a key which was not asked for, and the nearest that was.
    pub fn finish(self) -> Result<()> {
        let Some(key) = self.left.keys().min() else { return Ok(()) };
        let hint = match nearest(key, self.known.iter().copied()) {
            Some(known) => format!("; did you mean '{known}'?"),
            None if self.known.is_empty() => "; this call has no options".to_string(),
            None => format!("; the options are {}", self.known.join(", ")),
        };
        Err(Error::new(ErrorName::InvalidOption, format!("unknown option '{}'{hint}", printable(key))))
    }
}
