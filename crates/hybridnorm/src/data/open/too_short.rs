//! The error for data without a single window.

use crate::data::{Split, TokenDataset, Windows};
use crate::error::Error;

/// Returns the error for data without a window to train on or to evaluate; its message says how to fix it.
pub(super) fn error(
    paths: &[String],
    split: Split,
    windows: Windows,
    dataset: &TokenDataset,
) -> Error {
    let (what, advice) = match split {
        Split::Validation => (
            "validation tokens",
            "hold out a larger fraction, specify validation data separately",
        ),
        Split::Train => ("training tokens", "use more text"),
        Split::All => ("tokens", "use more text"),
    };
    let (paths, found) = (paths.join(", "), dataset.tokens());
    let problem = match windows {
        Windows::All if found == 0 && split == Split::Validation => {
            format!("{paths}: the validation split is empty; evaluate another split")
        }
        Windows::All => format!(
            "{paths}: {found} {what}: no targets, since every target needs a preceding token in its stream"
        ),
        Windows::Full { .. } if dataset.has_rows() => format!(
            "{paths}: {found} {what} in rows, none of which contains a complete sequence of {} and its targets; \
             use a shorter sequence length, or evaluate all windows",
            dataset.seq_len()
        ),
        Windows::Full { .. } => format!(
            "{paths}: {found} {what}, fewer than one sequence of {} and its targets; {advice}, or use a shorter \
             sequence length",
            dataset.seq_len()
        ),
    };
    Error::invalid_value("data path", problem)
}
