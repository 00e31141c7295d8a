//! Records of runs that ended, `runs/ID.json` of a study.

use super::folder::{RUNS, StudyFolder};
use super::history::{History, missing_checksum};
use super::plan::PlannedRun;
use super::plan_match;
use super::record::RunRecord;
use crate::error::{Error, Result};
use crate::files::{self, checksummed};

/// Maximum size of a record file, in bytes.
pub(super) const RECORD_LIMIT: u64 = 64 << 20;

/// Records read from a folder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Records {
    /// Records in the order of the plan.
    pub records: Vec<RunRecord>,
    /// Ids of records of earlier versions, which have no checksum.
    pub without_checksum: Vec<String>,
}

impl StudyFolder {
    /// Reads the record of a run that ended; the flag is true if it has a checksum.
    fn record(&self, run: &PlannedRun, history: Option<&History>) -> Result<(RunRecord, bool)> {
        let path = self.record_path(&run.id);
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        let parsed = checksummed::parse::<RunRecord>(&bytes)
            .map_err(|problem| Error::format(&path, problem))?;
        let (record, has_checksum) = (parsed.content, parsed.checksum.is_some());
        let needs_checksum =
            history.is_some_and(|history| !history.may_lack_checksum(&record_file_name(&run.id)));
        let problem = match needs_checksum && !has_checksum {
            true => Some(missing_checksum()),
            false => plan_match::mismatch(&record, run),
        };
        match problem {
            None => Ok((record, has_checksum)),
            Some(problem) => Err(Error::format(
                path,
                format!("{problem}; delete or move the file to rerun"),
            )),
        }
    }

    /// Reads the records of those `runs` that ended, in the order of the plan.
    ///
    /// # Errors
    /// As [`StudyFolder::read`].
    pub fn records(&self, runs: &[PlannedRun]) -> Result<Vec<RunRecord>> {
        self.read(runs).map(|read| read.records)
    }

    /// Reads the records of those `runs` that ended, in the order of the plan.
    ///
    /// # Errors
    /// If a record cannot be read, is corrupt, lacks its required checksum, contradicts itself or does not match
    /// its run, or not all runs were trained on the same data.
    pub fn read(&self, runs: &[PlannedRun]) -> Result<Records> {
        let history = self.history()?;
        let mut records = Vec::new();
        let mut without_checksum = Vec::new();
        for run in runs {
            if !self.has_record(&run.id)? {
                continue;
            }
            let (record, has_checksum) = self.record(run, history.as_ref())?;
            if !has_checksum {
                without_checksum.push(run.id.clone());
            }
            // The same run may have another name in this plan.
            let grid_point = run.grid_point.clone();
            records.push(RunRecord {
                grid_point,
                ..record
            });
        }
        DataFingerprints::common(&records)?;
        Ok(Records {
            records,
            without_checksum,
        })
    }

    pub(super) fn write_record(&self, record: &RunRecord) -> Result<()> {
        let path = self.record_path(&record.id);
        let (text, _) = checksummed::to_json_with_checksum(record, "")
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }

    /// Writes a record that was read without a checksum: adding one now would certify content that was never
    /// verified.
    pub(super) fn write_without_checksum(&self, record: &RunRecord) -> Result<()> {
        let path = self.record_path(&record.id);
        let text = serde_json::to_string(record)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }
}

/// Returns the name of a record's file, as in [`History`].
pub(super) fn record_file_name(id: &str) -> String {
    format!("{RUNS}/{id}.json")
}

/// Fingerprints of the data of a run.
#[derive(Debug, Clone)]
pub(super) struct DataFingerprints {
    /// Label of the run.
    pub run: String,
    /// Fingerprint of the training data.
    pub training: String,
    /// Fingerprint of the validation data, if known.
    pub validation: Option<String>,
}

impl DataFingerprints {
    /// Returns the data common to the runs of a study, which must agree for a comparison.
    ///
    /// # Errors
    /// If two runs were trained or evaluated on different data.
    pub(super) fn common<'a>(
        records: impl IntoIterator<Item = &'a RunRecord>,
    ) -> Result<Option<Self>> {
        let mut common: Option<Self> = None;
        for record in records {
            let own = Self {
                run: record.grid_point.label(),
                training: record.data.clone(),
                validation: record.validation_data.clone(),
            };
            if let Some(problem) = Self::merge(&mut common, own) {
                return Err(Error::conflict(
                    ["data.train", "data.validation"],
                    format!(
                        "{problem}: runs on different data cannot be compared; move the records of one of the data \
                         sets elsewhere to rerun their runs"
                    ),
                ));
            }
        }
        Ok(common)
    }

    /// Merges the data of a run into the common data; returns the difference as text, if any.
    pub(super) fn merge(common: &mut Option<Self>, own: Self) -> Option<String> {
        let Some(common) = common else {
            *common = Some(own);
            return None;
        };
        let mismatch_text = |kind: &str, found: &str, expected: &str| {
            Some(format!(
                "{} has {kind} data with fingerprint {found}, but {} has fingerprint {expected}",
                own.run, common.run
            ))
        };
        if own.training != common.training {
            return mismatch_text("training", &own.training, &common.training);
        }
        match (&common.validation, &own.validation) {
            (Some(expected), Some(found)) if expected != found => {
                mismatch_text("validation", found, expected)
            }
            _ => {
                common.validation = common.validation.take().or(own.validation);
                None
            }
        }
    }
}
