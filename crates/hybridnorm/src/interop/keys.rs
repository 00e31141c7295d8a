//! Unread keys of external configurations: one of them may affect the computation, so it is rejected
//! instead of ignored.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_ignored::Path;
use serde_json::Value;

/// A key: its own name after those of the sections that it is in. A name may contain a dot.
pub(super) type Key = Vec<String>;

/// Deserializes a part of a configuration; also returns the unread keys.
pub(super) fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    reader: D,
) -> Result<(T, BTreeSet<Key>), D::Error> {
    let mut unread = BTreeSet::new();
    let read = serde_ignored::deserialize(reader, |path| {
        unread.insert(key(&path));
    })?;
    Ok((read, unread))
}

fn key(path: &Path<'_>) -> Key {
    let (parent, name) = match path {
        Path::Root => return Key::new(),
        Path::Map { parent, key } => (parent, Some(key.clone())),
        Path::Seq { parent, index } => (parent, Some(index.to_string())),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => (parent, None),
    };
    key(parent).into_iter().chain(name).collect()
}

/// Returns the keys that two readers of one configuration leave unread. For a section that only one of them
/// reads, the other reports only the section.
pub(super) fn unread_by_both(a: &BTreeSet<Key>, b: &BTreeSet<Key>) -> BTreeSet<Key> {
    let is_in = |key: &Key, unread: &BTreeSet<Key>| {
        (1..=key.len()).any(|length| unread.contains(&key[..length]))
    };
    let both = |key: &&Key| is_in(key, a) && is_in(key, b);
    a.iter().chain(b).filter(both).cloned().collect()
}

/// Checks that every unread key is in `ignored`, or has a value that disables its feature (null, false, empty).
pub(super) fn reject_unread_keys(
    config: &Value,
    unread: &BTreeSet<Key>,
    ignored: &[&str],
) -> Result<(), String> {
    let is_ignored = |key: &Key| matches!(&key[..], [name] if ignored.contains(&name.as_str()));
    let may_matter = |key: &&Key| {
        let mut names = key.iter();
        let value = names.try_fold(config, |at, name| match at {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            at => at.get(name),
        });
        !is_ignored(key) && !value.is_none_or(is_disabled)
    };
    match unread.iter().find(may_matter) {
        None => Ok(()),
        Some(key) => Err(format!(
            "unknown key {} may affect the computation; remove it if it does not",
            key.join(".")
        )),
    }
}

fn is_disabled(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Reads a key that is required but may be null: if it were missing, its family's default would apply, which
/// differs between versions.
pub(super) fn required_nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    reader: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(reader)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct Part {
        a: usize,
        inner: Option<Inner>,
    }

    #[derive(Deserialize)]
    struct Inner {
        b: usize,
    }

    #[test]
    fn keys_unread_by_both_readers_are_unread() {
        let set = |keys: &[&str]| {
            let key = |key: &&str| key.split('.').map(str::to_owned).collect();
            keys.iter().map(key).collect()
        };
        let both = unread_by_both(&set(&["a", "b", "c.d"]), &set(&["b", "c"]));
        assert_eq!(both, set(&["b", "c.d"]));
    }

    #[test]
    fn unread_keys_are_rejected_unless_disabled_or_ignored() {
        let problem = |more: Value| {
            let mut config = json!({ "a": 1, "inner": { "b": 2 }, "ignored": 3 });
            let fields = config.as_object_mut().unwrap();
            fields.extend(more.as_object().unwrap().clone());
            let (part, unread): (Part, _) = read(&config).unwrap();
            assert_eq!(part.a, 1);
            assert!(part.inner.is_some_and(|inner| inner.b == 2));
            reject_unread_keys(&config, &unread, &["ignored"]).err()
        };
        assert_eq!(problem(json!({})), None);
        assert_eq!(problem(json!({ "c": null, "d": false, "e": [] })), None);
        for (more, key) in [
            (json!({ "c": 0 }), "unknown key c may"),
            (json!({ "c": "yes" }), "unknown key c may"),
            // A name with a dot is no section.
            (json!({ "inner.c": 1 }), "unknown key inner.c may"),
            (json!({ "b.c": true }), "unknown key b.c may"),
            (
                json!({ "inner": { "b": 2, "c": 1.5 } }),
                "unknown key inner.c may",
            ),
        ] {
            let problem = problem(more).unwrap();
            assert!(problem.starts_with(key), "{problem}");
        }
    }
}
