//! Keys in which two configurations differ.

use serde::Serialize;

use crate::text::at_most;

/// What stands where a key is not set.
const NOT_SET: &str = "nothing";
/// Characters of a value in a sentence.
const VALUE_CHARS: usize = 80;

/// A key with both of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub key: String,
    pub from: String,
    pub to: String,
}

/// All differences, in the order of the keys.
pub(super) fn all<T: Serialize>(from: &T, to: &T) -> Vec<Difference> {
    let (from, to) = (flat(from), flat(to));
    let value = |of: &[(String, String)], key: &str| {
        let found = of.iter().find(|(other, _)| other == key);
        found.map_or_else(|| NOT_SET.to_owned(), |(_, value)| value.clone())
    };
    let only_there = to
        .iter()
        .filter(|(key, _)| !from.iter().any(|(known, _)| known == key));
    let keys = from.iter().chain(only_there).map(|(key, _)| key);
    keys.map(|key| Difference {
        key: key.clone(),
        from: value(&from, key),
        to: value(&to, key),
    })
    .filter(|difference| difference.from != difference.to)
    .collect()
}

/// `study.rules.margin from 0.01 to 0.5, train.steps from 4 to 9`.
pub(super) fn in_words<T: Serialize>(from: &T, to: &T) -> String {
    let words = all(from, to)
        .iter()
        .map(Difference::to_string)
        .collect::<Vec<_>>();
    words.join(", ")
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, from, to } = self;
        let (from, to) = (at_most(from, VALUE_CHARS), at_most(to, VALUE_CHARS));
        write!(f, "{key} from {from} to {to}")
    }
}

fn flat<T: Serialize>(config: &T) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    if let Ok(table) = toml::Table::try_from(config) {
        flatten("", &table, &mut keys);
    }
    keys
}

fn flatten(prefix: &str, table: &toml::Table, keys: &mut Vec<(String, String)>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => flatten(&format!("{prefix}{key}."), table, keys),
            other => keys.push((format!("{prefix}{key}"), other.to_string())),
        }
    }
}
