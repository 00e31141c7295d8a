//! Content of a report.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::data_groups::DataGroup;
use super::run::ReportedRun;
use crate::lab::probe::ProbeReport;
use crate::lab::study::Group;

/// All content of a report.
///
/// # Example
/// ```
/// use hybridnorm::report::Document;
///
/// let document = Document::default().with_title("Placements").with_version("1.0.0");
/// let json = serde_json::to_string(&document).unwrap();
/// assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct Document {
    /// Name of the study.
    pub title: String,
    /// Date, as in 2026-11-25.
    pub created: String,
    /// Version of hybridnorm that wrote the report.
    pub version: String,
    /// Compared runs, one entry per initialization and depth.
    pub groups: Vec<Group>,
    /// Number of planned runs of the study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<usize>,
    /// Training and validation data of runs that were given by directory. Only runs of the same
    /// group are compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(rename = "sets")]
    pub data_groups: Vec<DataGroup>,
    /// All runs; of a study, those that ended.
    pub runs: Vec<ReportedRun>,
    /// Probe: per-block metrics of each placement at the first and the last step of a short training.
    pub probe: Option<ProbeReport>,
}

impl Document {
    /// Returns the number of runs of a study that are missing. Placements are compared only if it is 0.
    pub(super) fn missing(&self) -> usize {
        let planned = self.planned.unwrap_or(0);
        planned.saturating_sub(self.runs.len())
    }
}
