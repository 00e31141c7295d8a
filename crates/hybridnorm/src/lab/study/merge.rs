//! Merging of the folders of one study.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::difference;
use super::folder::Folder;
use super::history::History;
use super::plan::Study;
use super::record::RunRecord;
use super::records::{DataOf, name};
use crate::error::{Error, Result};
use crate::files::Locking;

/// Content of the target folder after merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Number of finished runs.
    pub runs: usize,
    /// Number of records of earlier versions, which have no checksum.
    pub without_checksum: usize,
}

/// Merges the finished runs in folders of one study into another folder. The source folders are only read.
///
/// # Errors
/// If the studies differ, two records of one run differ in more than cost, a record does not match its run, or
/// another process works in the target folder.
pub fn merge(from: &[PathBuf], into: &Path, locking: Locking) -> Result<Merged> {
    let Some(first) = from.first() else {
        return Err(Error::config("nothing to merge: name the folders"));
    };
    let study = Folder::new(first).study()?;
    if study.file.study.halving.is_some() {
        return Err(Error::config(
            "runs of a study with halving depend on each other and are all in one folder",
        ));
    }
    let mut found = Found::default();
    for path in from {
        found.add(&Folder::new(path), &study, first)?;
    }
    // The source folders are valid; the target is read only once no other process can change it.
    let target = Folder::new(into);
    let hold = target.hold(locking)?;
    // Existing records are kept, even if another folder has them with a checksum.
    let mut unsealed = BTreeSet::new();
    if target.holds_study()? {
        // Its history is continued below.
        found.add_records(&target, &study, first)?;
        unsealed.extend(target.read(&study.runs)?.without_checksum);
    }
    unsealed.extend(found.unsealed.iter().cloned());
    DataOf::all(found.records.values())?;
    target.set_up(&study)?;
    // Records without a checksum stay so, and changes recorded in the source histories are carried over.
    let mut history = target.history_or_begin(Some(&study))?;
    let unknown = found.records_before + found.without_history.len();
    let unknown = unknown.min(found.records.len());
    history.records_before = history.records_before.max(unknown);
    history.without_checksum = unsealed.iter().map(|id| name(id)).collect();
    if found.history.stated.len() > history.stated.len() {
        history.stated = found.history.stated;
    }
    target.write_history(&history)?;
    for (id, record) in &found.records {
        if target.is_finished(id)? {
            continue;
        }
        match unsealed.contains(id) {
            true => target.write_unsealed(record)?,
            false => target.write_record(record)?,
        }
    }
    hold.leave_no_trace();
    Ok(Merged {
        runs: found.records.len(),
        without_checksum: unsealed.len(),
    })
}

#[derive(Default)]
struct Found {
    records: BTreeMap<String, RunRecord>,
    /// Ids of records that have no checksum in any of the folders.
    unsealed: BTreeSet<String>,
    /// Longest history of the folders.
    history: History,
    /// Records of folders without a history.
    without_history: BTreeSet<String>,
    /// Number of records older than the histories of the other folders.
    records_before: usize,
}

impl Found {
    fn add(&mut self, folder: &Folder, study: &Study, first: &Path) -> Result<()> {
        self.add_records(folder, study, first)?;
        match folder.history()? {
            None => self.without_history.extend(folder.record_names()?),
            Some(history) => {
                self.records_before += history.records_before;
                if history.stated.len() > self.history.stated.len() {
                    self.history = history;
                }
            }
        }
        Ok(())
    }

    fn add_records(&mut self, folder: &Folder, study: &Study, first: &Path) -> Result<()> {
        let theirs = folder.study()?.file;
        if theirs != study.file {
            return Err(Error::config(format!(
                "{} holds another study than {}: {}",
                folder.path().display(),
                first.display(),
                difference::in_words(&study.file, &theirs)
            )));
        }
        let read = folder.read(&study.runs)?;
        for record in read.records {
            let is_unsealed = read.without_checksum.contains(&record.id);
            // A record with a checksum is known to be unmodified; one with validation data holds more.
            let rank =
                |is_sealed: bool, record: &RunRecord| (is_sealed, record.validation_data.is_some());
            match self.records.get(&record.id) {
                Some(other) if !other.is_same(&record) => {
                    return Err(Error::format(
                        folder.record_path(&record.id),
                        format!(
                            "{} has other numbers than in another folder",
                            record.cell.label()
                        ),
                    ));
                }
                Some(other)
                    if rank(!self.unsealed.contains(&record.id), other)
                        >= rank(!is_unsealed, &record) => {}
                Some(_) | None => {
                    match is_unsealed {
                        true => self.unsealed.insert(record.id.clone()),
                        false => self.unsealed.remove(&record.id),
                    };
                    self.records.insert(record.id.clone(), record);
                }
            }
        }
        Ok(())
    }
}
