//! Keys in which two studies or configurations differ, in words.

use serde::Serialize;

use crate::text::at_most;
use crate::train::history;
use crate::train::segments::Change;

/// Characters of a value in a sentence.
const VALUE_CHARS: usize = 80;

/// Both values of a key, each `nothing` where the key is not set.
pub(super) fn values(change: &Change) -> [String; 2] {
    [&change.from, &change.to].map(|value| {
        let value = value.as_deref().unwrap_or("nothing");
        at_most(value, VALUE_CHARS).into_owned()
    })
}

/// `study.rules.margin from 0.01 to 0.5`.
pub(super) fn words(change: &Change) -> String {
    let [from, to] = values(change);
    format!("{} from {from} to {to}", change.key)
}

/// `study.rules.margin from 0.01 to 0.5, train.steps from 4 to 9`.
pub(super) fn in_words<T: Serialize>(from: &T, to: &T) -> String {
    let changes = history::changes(from, to);
    changes.iter().map(words).collect::<Vec<_>>().join(", ")
}
