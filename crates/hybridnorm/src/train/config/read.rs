//! Deserialization of TOML with `section.key=value` settings on top.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::explain::{in_settings, in_text};
use super::model::Finite;
use crate::error::{Error, Result};
use crate::files;
use crate::placement;

/// Size limit of a configuration, which is hand-written text.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Reads a placement from a TOML file with a table of placement fields.
///
/// # Errors
/// If the file cannot be read, is not TOML, or does not contain a placement.
pub fn placement_from_file(path: &Path) -> Result<placement::Placement> {
    let bytes = files::read_small(path, CONFIG_LIMIT)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| Error::format(path, error.utf8_error().to_string()))?;
    let Finite(value) =
        toml::from_str(&text).map_err(|error| in_text(&text, "", &error).in_file(path))?;
    placement::from_value(value).map_err(|error| Error::from(error).in_file(path))
}

/// Reads the text of a configuration file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = files::read_small(path, CONFIG_LIMIT)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::invalid_value("configuration", format!("invalid UTF-8 at byte {at}"))
    })
}

/// Deserializes a value from TOML with `section.key=value` settings on top. Errors name the line and the
/// nearest known key.
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str, settings: &[String]) -> Result<T> {
    // The text itself is deserialized first, so that errors have its line numbers.
    let reader = toml::Deserializer::parse(text).map_err(|error| in_text(text, "", &error))?;
    check_sections(&with_settings(text, &[])?)?;
    let plain: T = serde_path_to_error::deserialize(reader)
        .map_err(|error| in_text(text, &error.path().to_string(), error.inner()))?;
    if settings.is_empty() {
        return Ok(plain);
    }
    let table = with_settings(text, settings)?;
    check_sections(&table)?;
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
        let invalid_setting = invalid_setting::<T>(text, settings, error.inner());
        in_settings(invalid_setting, &error.path().to_string(), error.inner())
    })
}

/// Parses a text into a table with settings on top.
pub(crate) fn with_settings(text: &str, settings: &[String]) -> Result<toml::Table> {
    let mut table: toml::Table = toml::from_str(text).map_err(|error| in_text(text, "", &error))?;
    for setting in settings {
        apply(&mut table, setting)?;
    }
    Ok(table)
}

/// Names of sections. Serde would also accept an array, as the values of the section's keys in order.
const SECTIONS: [&str; 8] = [
    "data",
    "init",
    "log",
    "model",
    "optimizer",
    "schedule",
    "study",
    "train",
];

fn check_sections(table: &toml::Table) -> Result<()> {
    let is_list = |name: &&&str| table.get(**name).is_some_and(toml::Value::is_array);
    match SECTIONS.iter().find(is_list) {
        None => Ok(()),
        Some(name) => Err(Error::invalid_value(
            *name,
            format!(
                "{name}: expected a section, found an array; write [{name}] with a key = value on each line below"
            ),
        )),
    }
}

/// Sets `section.key=value` in a table. A value that is not valid TOML is treated as a string.
fn apply(table: &mut toml::Table, setting: &str) -> Result<()> {
    let (key, value) = setting.split_once('=').ok_or_else(|| {
        Error::invalid_value(
            "settings",
            format!("setting {setting}: expected section.key=value, e.g. train.steps=100"),
        )
    })?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    if parsed.is_none() && value.parse::<i128>().is_ok() {
        return Err(Error::invalid_value(
            "settings",
            format!(
                "setting {setting}: expected an integer of at most {}",
                i64::MAX
            ),
        ));
    }
    let parsed = parsed.unwrap_or_else(|| toml::Value::String(value.to_owned()));
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path.pop().unwrap_or_default();
    if last.is_empty() || path.iter().any(|part| part.is_empty()) {
        return Err(Error::invalid_value(
            "settings",
            format!("setting {setting}: {key:?} is not a key, expected section.key"),
        ));
    }
    let mut at = table;
    for part in path {
        let next = at
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = next.as_table_mut().ok_or_else(|| {
            Error::unknown_key(part, format!("setting {setting}: {part} is not a section"))
        })?;
    }
    at.insert(last.to_owned(), parsed);
    Ok(())
}

/// Returns the invalid setting: the first that alone causes the same error.
fn invalid_setting<'a, T: DeserializeOwned>(
    text: &str,
    settings: &'a [String],
    error: &toml::de::Error,
) -> Option<&'a str> {
    let alone = |setting: &&String| {
        let Ok(mut table) = toml::from_str::<toml::Table>(text) else {
            return false;
        };
        let applied = apply(&mut table, setting);
        let read: Result<T, toml::de::Error> = table.try_into();
        applied.is_ok() && read.is_err_and(|found| found.message() == error.message())
    };
    settings.iter().find(alone).map(String::as_str)
}
