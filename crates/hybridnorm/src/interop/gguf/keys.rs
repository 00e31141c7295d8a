//! Typed access to the metadata of one namespace, with a record of the keys that were read.

use std::collections::{BTreeMap, BTreeSet};

use super::metadata::Value;

/// Keys with a common prefix.
pub(super) struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    prefix: &'static str,
    read: BTreeSet<String>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(metadata: &'a BTreeMap<String, Value>, prefix: &'static str) -> Self {
        Self {
            metadata,
            prefix,
            read: BTreeSet::new(),
        }
    }

    /// Returns the full name of a key.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn get(&mut self, key: &str) -> Option<&'a Value> {
        let name = self.name(key);
        let found = self.metadata.get(&name);
        self.read.insert(name);
        found
    }

    fn problem(&self, key: &str, found: &Value, expected: &str) -> String {
        format!(
            "{} = {}, expected {expected}",
            self.name(key),
            found.describe()
        )
    }

    /// Returns an integer that is at least 0, if there is one of this key.
    pub(super) fn integer(&mut self, key: &str) -> Result<Option<usize>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(found) => {
                let value = match found {
                    Value::Integer(value) => usize::try_from(*value).ok(),
                    _ => None,
                };
                let value = value.filter(|value| *value <= u32::MAX as usize);
                value
                    .map(Some)
                    .ok_or_else(|| self.problem(key, found, "one integer from 0 to 4294967295"))
            }
        }
    }

    pub(super) fn required_integer(&mut self, key: &str) -> Result<usize, String> {
        self.integer(key)?
            .ok_or_else(|| format!("{} is missing", self.name(key)))
    }

    /// Returns a number, if there is one of this key.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Integer(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(self.problem(key, other, "a finite number")),
        }
    }

    pub(super) fn required_number(&mut self, key: &str) -> Result<f64, String> {
        self.number(key)?
            .ok_or_else(|| format!("{} is missing", self.name(key)))
    }

    /// Returns a text, if there is one of this key.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.problem(key, other, "a text")),
        }
    }

    /// Marks a key as one that does not affect the computation.
    pub(super) fn ignore(&mut self, key: &str) {
        self.read.insert(self.name(key));
    }

    /// Checks that no key of the namespace remains that was not read, unless its value disables its feature.
    pub(super) fn reject_unread(&self) -> Result<(), String> {
        let prefix = format!("{}.", self.prefix);
        let mut unread = self.metadata.iter().filter(|(key, value)| {
            key.starts_with(&prefix) && !self.read.contains(*key) && !value.is_disabled()
        });
        match unread.next() {
            None => Ok(()),
            Some((key, value)) => Err(format!(
                "{key} = {} is not supported, and may affect the computation",
                value.describe()
            )),
        }
    }
}
