//! A run as a report knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use crate::lab::study::RunRecord;
use crate::train::segments::Segment;

/// A run of a study, or one that was named by its directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportedRun {
    /// What is kept of it.
    #[serde(flatten)]
    pub record: RunRecord,
    /// What its directory tells beside, where it was named by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Directory>,
}

/// What the directory of a run tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    /// Its name.
    pub name: String,
    /// The placement, and what of the configuration differs from other runs of the report.
    pub label: String,
    /// Those keys that differ, with their values.
    pub differing: BTreeMap<String, String>,
    /// Position of its data among [`Document::sets`](super::Document::sets).
    pub set: usize,
    /// Steps that the configuration asks for.
    pub planned_steps: u64,
    /// What it did not record, and is known by its path only, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_recorded: Vec<String>,
    /// Peak learning rates with the steps after which they held. Empty where the rates of the steps are
    /// not those of the configuration, and nothing says why.
    pub rates: Vec<RateSince>,
    /// Which steps were done how; empty where that was not recorded.
    pub segments: Vec<Segment>,
    /// Which steps have rows.
    pub rows: Rows,
}

/// A peak learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RateSince {
    /// It held after this step.
    pub after_step: u64,
    /// Peak learning rate.
    pub lr: f64,
}

/// The rows of `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Rows of steps that had none before.
    pub found: u64,
    /// Steps up to the last one that have no row, or one that a later row of an earlier step undoes.
    pub missing: u64,
    /// The first of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_missing: Option<u64>,
    /// Rows of steps that had one before; the last counts.
    pub repeated: u64,
}

impl Rows {
    /// Counts the steps of rows, as they stand in the file.
    pub(super) fn of(steps: impl Iterator<Item = u64>) -> Self {
        let (mut rows, mut seen) = (Self::default(), BTreeSet::new());
        // Steps whose rows count: one that is done again takes those of later steps with it.
        let mut kept = BTreeSet::new();
        for step in steps {
            match seen.insert(step) {
                true => rows.found += 1,
                false => rows.repeated += 1,
            }
            kept.split_off(&step);
            kept.insert(step);
        }
        let end = seen.last().map(|last| last.saturating_add(1));
        let mut next = 1;
        for step in kept.into_iter().chain(end) {
            if step > next {
                rows.missing += step - next;
                rows.first_missing.get_or_insert(next);
            }
            next = step.saturating_add(1);
        }
        rows
    }
}

impl ReportedRun {
    /// How it is called among the runs of its report.
    pub(super) fn label(&self) -> &str {
        match &self.directory {
            Some(directory) => &directory.label,
            None => &self.record.cell.placement,
        }
    }

    /// Its peak learning rate, where it had one from the first step to the last.
    pub(super) fn rate(&self) -> Option<f64> {
        match &self.directory {
            None => Some(self.record.cell.lr),
            Some(directory) => match directory.rates.as_slice() {
                [only] => Some(only.lr),
                _ => None,
            },
        }
    }

    /// The set of data that it belongs to.
    pub(super) fn set(&self) -> usize {
        self.directory.as_ref().map_or(0, |directory| directory.set)
    }
}

impl From<RunRecord> for ReportedRun {
    fn from(record: RunRecord) -> Self {
        let directory = None;
        Self { record, directory }
    }
}

impl Deref for ReportedRun {
    type Target = RunRecord;

    fn deref(&self) -> &RunRecord {
        &self.record
    }
}

impl DerefMut for ReportedRun {
    fn deref_mut(&mut self) -> &mut RunRecord {
        &mut self.record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_repetitions_are_counted() {
        let rows = Rows::of([1, 2, 5, 6, 6, 9].into_iter());
        let expected = Rows {
            found: 5,
            missing: 4,
            first_missing: Some(3),
            repeated: 1,
        };
        assert_eq!(rows, expected);
        assert_eq!(Rows::of(1..=3).missing, 0);
        assert_eq!(Rows::of(std::iter::empty()), Rows::default());
    }
}
