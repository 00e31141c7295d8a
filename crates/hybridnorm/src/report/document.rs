//! What a report is made of.

use serde::{Deserialize, Serialize};

use crate::lab::probe::ProbeReport;
use crate::lab::study::{Group, RunRecord};

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
    /// All runs, of a study those that are finished.
    pub runs: Vec<RunRecord>,
    /// What a few steps showed of each placement.
    pub probe: Option<ProbeReport>,
}
