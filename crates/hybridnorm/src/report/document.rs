//! What a report is made of.

use serde::{Deserialize, Serialize};

use super::run::ReportedRun;
use super::sets::Set;
use crate::lab::probe::ProbeReport;
use crate::lab::study::Group;

/// Everything that a report shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Name of the study.
    pub title: String,
    /// Date, as in 2026-11-25.
    pub created: String,
    /// Version of this program.
    pub version: String,
    /// Runs that are compared, one entry an initialization and depth.
    pub groups: Vec<Group>,
    /// How many runs the study consists of, finished or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<usize>,
    /// Of runs that were named by their directories: what they were trained and judged on. Only runs of
    /// the same set are compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<Set>,
    /// All runs, of a study those that are finished.
    pub runs: Vec<ReportedRun>,
    /// What a few steps showed of each placement.
    pub probe: Option<ProbeReport>,
}

impl Document {
    /// How many runs of a study are still to be done. Nothing is ranked before they are.
    pub(super) fn missing(&self) -> usize {
        let planned = self.planned.unwrap_or(0);
        planned.saturating_sub(self.runs.len())
    }
}
