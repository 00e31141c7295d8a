//! Differences between two studies or configurations, as text.

use serde::Serialize;

use crate::text::truncated_line;
use crate::train::history;
use crate::train::segments::Change;

/// Maximum number of characters of a value in a sentence.
const VALUE_CHARS: usize = 80;

/// Returns both values of a key, each its default or `not set` if the key is not set.
pub(super) fn values(change: &Change) -> [String; 2] {
    [&change.from, &change.to].map(|value| {
        let default = history::omitted_default(&change.key).unwrap_or("not set");
        let value = value.as_deref().unwrap_or(default);
        truncated_line(value, VALUE_CHARS).into_owned()
    })
}

/// Formats a change: `study.rules.margin from 0.01 to 0.5`.
pub(super) fn change_text(change: &Change) -> String {
    let [from, to] = values(change);
    format!("{} from {from} to {to}", change.key)
}

/// Formats all changes: `study.rules.margin from 0.01 to 0.5, train.steps from 4 to 9`.
pub(super) fn changes_text<T: Serialize>(from: &T, to: &T) -> String {
    let changes = history::diff(from, to);
    changes
        .iter()
        .map(change_text)
        .collect::<Vec<_>>()
        .join(", ")
}
