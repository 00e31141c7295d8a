//! Runs in a report.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use crate::lab::study::RunRecord;
use crate::train::segments::Segment;

/// A run of a study, or one that was given by its directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReportedRun {
    /// Record of the run.
    #[serde(flatten)]
    pub record: RunRecord,
    /// Further data from its directory, if it was given by directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<RunDirectoryData>,
}

/// Data from a run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunDirectoryData {
    /// Name of the directory.
    pub name: String,
    /// Placement, and the configuration keys that differ from other runs of the report.
    pub label: String,
    /// Keys that differ, with their values.
    pub differing: BTreeMap<String, String>,
    /// Index of its data group in [`Document::data_groups`](super::Document::data_groups).
    #[serde(rename = "set")]
    pub group: usize,
    /// Number of steps in the configuration.
    pub planned_steps: u64,
    /// Descriptions of inputs of which only the path was recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_recorded: Vec<String>,
    /// Peak learning rates with the steps after which they apply. Empty if the learning rates of the steps do
    /// not follow the configuration, for an unknown reason.
    #[serde(rename = "rates")]
    pub peak_lrs: Vec<PeakLr>,
    /// Training segments; empty if they were not recorded.
    pub segments: Vec<Segment>,
    /// Steps with and without records.
    #[serde(rename = "rows")]
    pub records: RecordCounts,
}

/// Peak learning rate with the step after which it applies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeakLr {
    /// Step after which it applies.
    pub after_step: u64,
    /// Peak learning rate.
    pub lr: f64,
}

/// Counts of records in `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecordCounts {
    /// Number of different steps with a record.
    #[serde(rename = "found")]
    pub distinct_steps: u64,
    /// Number of steps, up to the last recorded one, that have no record or whose record is followed by that of an
    /// earlier step.
    pub missing: u64,
    /// First missing step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_missing: Option<u64>,
    /// Number of records of steps that already had one; the last record of a step is used.
    pub repeated: u64,
}

impl RecordCounts {
    /// Counts the steps of records, in file order.
    pub(super) fn of(steps: impl Iterator<Item = u64>) -> Self {
        let (mut counts, mut seen) = (Self::default(), BTreeSet::new());
        // Steps whose records are used: a repeated step invalidates earlier records of later steps.
        let mut kept = BTreeSet::new();
        for step in steps {
            match seen.insert(step) {
                true => counts.distinct_steps += 1,
                false => counts.repeated += 1,
            }
            kept.split_off(&step);
            kept.insert(step);
        }
        let end = seen.last().map(|last| last.saturating_add(1));
        let mut next = 1;
        for step in kept.into_iter().chain(end) {
            if step > next {
                counts.missing += step - next;
                counts.first_missing.get_or_insert(next);
            }
            next = step.saturating_add(1);
        }
        counts
    }
}

impl ReportedRun {
    /// Returns its label in the report.
    pub(super) fn label(&self) -> &str {
        match &self.directory {
            Some(directory) => &directory.label,
            None => &self.record.grid_point.placement,
        }
    }

    /// Returns its peak learning rate, if it was the same from the first step to the last.
    pub(super) fn peak_lr(&self) -> Option<f64> {
        match &self.directory {
            None => Some(self.record.grid_point.lr),
            Some(directory) => match directory.peak_lrs.as_slice() {
                [only] => Some(only.lr),
                _ => None,
            },
        }
    }

    /// Returns the index of its data group.
    pub(super) fn data_group(&self) -> usize {
        self.directory
            .as_ref()
            .map_or(0, |directory| directory.group)
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
    fn missing_and_repeated_steps_are_counted() {
        let counts = RecordCounts::of([1, 2, 5, 6, 6, 9].into_iter());
        let expected = RecordCounts {
            distinct_steps: 5,
            missing: 4,
            first_missing: Some(3),
            repeated: 1,
        };
        assert_eq!(counts, expected);
        assert_eq!(RecordCounts::of(1..=3).missing, 0);
        assert_eq!(
            RecordCounts::of(std::iter::empty()),
            RecordCounts::default()
        );
    }
}
