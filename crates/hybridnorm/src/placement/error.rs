//! Error type of this module, and suggestions for misspelled names.

use std::fmt;

use serde::de;

/// Reason why a placement is invalid: the field, its value and its allowed values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", full_path(field))]
#[non_exhaustive]
pub struct PlacementError {
    /// The kind of the problem.
    pub kind: PlacementErrorKind,
    /// Path of the field, e.g. `block.ffn.skip` or `overrides[0].set`; empty for the whole value.
    pub field: String,
    /// The problem and its remedy, on one line.
    pub problem: String,
}

/// Kinds of problems with a placement, for callers that act on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlacementErrorKind {
    /// No named placement has this name.
    UnknownPlacement,
    /// No field has this name.
    UnknownField,
    /// A value of the wrong type or form, or not one of the known values.
    InvalidValue,
    /// A number or a size outside its range.
    OutOfRange,
    /// A setting that another one cancels or disables.
    NoEffect,
    /// Values that are each valid, but not together.
    Conflict,
}

fn full_path(field: &str) -> String {
    match field {
        "" => "placement".into(),
        path if path.starts_with('[') => format!("placement{path}"),
        path => format!("placement.{path}"),
    }
}

impl PlacementError {
    /// Creates an error at `field`.
    ///
    /// ```
    /// use hybridnorm::placement::{PlacementError, PlacementErrorKind, named};
    /// let error = PlacementError::new(PlacementErrorKind::InvalidValue, "block.ffn.skip", "unknown value");
    /// assert_eq!(error.to_string(), "placement.block.ffn.skip: unknown value");
    /// assert_eq!(named("pre-nrom").unwrap_err().kind, PlacementErrorKind::UnknownPlacement);
    /// ```
    pub fn new(
        kind: PlacementErrorKind,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// Prefixes the field's path with that of the enclosing value.
    pub(super) fn under(mut self, parent: &str) -> Self {
        self.field = join(parent, &self.field);
        self
    }
}

/// Joins two paths; `child` may be empty or begin with an index.
pub(super) fn join(parent: &str, child: &str) -> String {
    match (parent, child) {
        ("", _) => child.into(),
        (_, "") => parent.into(),
        _ if child.starts_with('[') => format!("{parent}{child}"),
        _ => format!("{parent}.{child}"),
    }
}

/// Formats a key for a path: quoted unless it is a plain word, truncated if long.
pub(super) fn key(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let short = shorten(text);
    if !short.is_empty() && short.chars().all(plain) {
        short
    } else {
        format!("{short:?}")
    }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 60;
    if text.chars().count() <= LIMIT {
        return text.into();
    }
    text.chars().take(LIMIT).chain("...".chars()).collect()
}

/// Returns at most three of the names `known` that are similar to `word`, nearest first.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    if word.chars().count() > 60 {
        return Vec::new();
    }
    let word = word.to_lowercase();
    let mut near: Vec<(f64, &str)> = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&word, name), name))
        .filter(|(similarity, _)| *similarity > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.dedup();
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Hint for norms inside attention, which are often set as a field of the model or the block.
const INSIDE_ATTENTION: &str = "norms inside attention are set with block = { attn_inner = { \
                                           q_norm = \"per_head\", k_norm = \"per_head\" } }";

/// Formats `what` with the most similar known name, if there is one, and the list of known names.
pub(super) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    if let "q_norm" | "k_norm" | "v_norm" | "qk_norm" | "ctx_norm" = word {
        return format!("{what}; {INSIDE_ATTENTION}");
    }
    let list = known
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    match nearest(word, known.iter().copied()).first() {
        Some(near) => format!("{what}, did you mean `{near}`? Known: {list}"),
        None if known.is_empty() => format!("{what}; no keys are allowed here"),
        None => format!("{what}. Known: {list}"),
    }
}

impl de::Error for PlacementError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string().replace(['\n', '\r'], " ");
        Self::new(PlacementErrorKind::InvalidValue, "", message)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let problem = unknown("unknown field", field, expected);
        Self::new(PlacementErrorKind::UnknownField, key(field), problem)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let what = format!("unknown value {:?}", shorten(variant));
        let problem = unknown(&what, variant, expected);
        Self::new(PlacementErrorKind::InvalidValue, "", problem)
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = match expected.to_string().as_str() {
            "f64" => "a number".to_string(),
            "usize" => "a non-negative integer".to_string(),
            "a boolean" => "true or false".to_string(),
            other => crate::parse_errors::expected_type(other).into_owned(),
        };
        let found = describe(found);
        let problem = format!("expected {expected}, found {found}");
        Self::new(PlacementErrorKind::InvalidValue, "", problem)
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

fn describe(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => format!("the string {:?}", shorten(text)),
        de::Unexpected::Map => "a table".into(),
        de::Unexpected::Seq => "an array".into(),
        de::Unexpected::Unit | de::Unexpected::Option => "null".into(),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(value) => value.to_string(),
        de::Unexpected::Signed(value) => value.to_string(),
        de::Unexpected::Float(value) => format!("{value:?}"),
        other => other.to_string(),
    }
}
