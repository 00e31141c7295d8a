//! Merging of the folders of one study.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::difference;
use super::folder::StudyFolder;
use super::history::History;
use super::plan::Study;
use super::record::RunRecord;
use super::records::{DataFingerprints, record_file_name};
use crate::error::{Error, Result};
use crate::files::Locking;

/// Content of the target folder after merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeSummary {
    /// Number of runs that ended.
    pub runs: usize,
    /// Number of records of earlier versions, which have no checksum.
    pub without_checksum: usize,
}

/// Merges the records in folders of one study into another folder. The source folders are only read.
///
/// # Errors
/// If the studies differ, two records of one run differ in more than cost, a record does not match its run, or
/// another process is working in the target folder.
pub fn merge(from: &[PathBuf], into: &Path, locking: Locking) -> Result<MergeSummary> {
    let Some(first) = from.first() else {
        return Err(Error::missing("folder to merge", ": give at least one"));
    };
    let study = StudyFolder::new(first).study()?;
    if study.config.study.halving.is_some() {
        return Err(Error::conflict(
            ["study.halving", "merge"],
            "a study with halving cannot be merged: its runs depend on each other and are all in one folder",
        ));
    }
    let mut merged = MergeState::default();
    for path in from {
        merged.add(&StudyFolder::new(path), &study, first)?;
    }
    // The source folders are valid; the target is read only once no other process can change it.
    let target = StudyFolder::new(into);
    let lock = target.lock_exclusive(locking)?;
    // Existing records are kept, even if another folder has them with a checksum.
    let mut without_checksum = BTreeSet::new();
    if target.has_study()? {
        // Its history is continued below.
        merged.add_records(&target, &study, first)?;
        without_checksum.extend(target.read(&study.runs)?.without_checksum);
    }
    without_checksum.extend(merged.without_checksum.iter().cloned());
    DataFingerprints::common(merged.records.values())?;
    target.write_study(&study)?;
    // Records without a checksum stay without one, and changes recorded in the source histories are carried over.
    let mut history = target.history_or_new(Some(&study))?;
    let unknown = merged.records_before + merged.records_without_history.len();
    let unknown = unknown.min(merged.records.len());
    history.records_before = history.records_before.max(unknown);
    history.without_checksum = without_checksum
        .iter()
        .map(|id| record_file_name(id))
        .collect();
    if merged.history.states.len() > history.states.len() {
        history.states = merged.history.states;
    }
    target.write_history(&history)?;
    for (id, record) in &merged.records {
        if target.has_record(id)? {
            continue;
        }
        match without_checksum.contains(id) {
            true => target.write_without_checksum(record)?,
            false => target.write_record(record)?,
        }
    }
    lock.release_and_remove();
    Ok(MergeSummary {
        runs: merged.records.len(),
        without_checksum: without_checksum.len(),
    })
}

#[derive(Default)]
struct MergeState {
    records: BTreeMap<String, RunRecord>,
    /// Ids of records that have no checksum in any of the folders.
    without_checksum: BTreeSet<String>,
    /// Longest history of the folders.
    history: History,
    /// File names of records in folders without a history.
    records_without_history: BTreeSet<String>,
    /// Number of records older than the histories of the other folders.
    records_before: usize,
}

impl MergeState {
    fn add(&mut self, folder: &StudyFolder, study: &Study, first: &Path) -> Result<()> {
        self.add_records(folder, study, first)?;
        match folder.history()? {
            None => self.records_without_history.extend(folder.record_names()?),
            Some(history) => {
                self.records_before += history.records_before;
                if history.states.len() > self.history.states.len() {
                    self.history = history;
                }
            }
        }
        Ok(())
    }

    fn add_records(&mut self, folder: &StudyFolder, study: &Study, first: &Path) -> Result<()> {
        let theirs = folder.study()?.config;
        if theirs != study.config {
            return Err(Error::conflict(
                ["folder", "study"],
                format!(
                    "{} and {} hold different studies: {}",
                    first.display(),
                    folder.path().display(),
                    difference::changes_text(&study.config, &theirs)
                ),
            ));
        }
        let read = folder.read(&study.runs)?;
        for record in read.records {
            let lacks_checksum = read.without_checksum.contains(&record.id);
            // A record with a checksum is known to be unmodified; one with a fingerprint of the validation data is more
            // complete.
            let rank = |has_checksum: bool, record: &RunRecord| {
                (has_checksum, record.validation_data.is_some())
            };
            match self.records.get(&record.id) {
                Some(other) if !other.eq_ignoring_cost(&record) => {
                    return Err(Error::format(
                        folder.record_path(&record.id),
                        format!(
                            "{} has different results in another folder",
                            record.grid_point.label()
                        ),
                    ));
                }
                Some(other)
                    if rank(!self.without_checksum.contains(&record.id), other)
                        >= rank(!lacks_checksum, &record) => {}
                Some(_) | None => {
                    match lacks_checksum {
                        true => self.without_checksum.insert(record.id.clone()),
                        false => self.without_checksum.remove(&record.id),
                    };
                    self.records.insert(record.id.clone(), record);
                }
            }
        }
        Ok(())
    }
}
