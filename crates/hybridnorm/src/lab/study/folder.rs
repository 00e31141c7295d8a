//! The folder of a study: `study.toml`, `runs/ID.json` of every finished run, `work/ID` of those that are
//! not, and `kept/ID` of finished ones that are to be kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Planned, Study};
use super::record::RunRecord;
use crate::error::{Error, Result};
use crate::files;

const STUDY: &str = "study.toml";
const RUNS: &str = "runs";
const WORK: &str = "work";
const KEPT: &str = "kept";
const HALVING: &str = "halving.json";
/// A record is small; anything larger is not one.
const RECORD_LIMIT: u64 = 64 << 20;

/// What successive halving decided after one share of the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rung {
    /// Ids of the runs that it was decided over.
    pub of: Vec<String>,
    /// Ids of those that go on.
    pub on: Vec<String>,
}

/// Where a study's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder at `path`, which need not be there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether a study was begun here.
    pub fn holds_study(&self) -> bool {
        self.0.join(STUDY).exists()
    }

    /// The study that was begun here.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn study(&self) -> Result<Study> {
        Study::load(&self.0.join(STUDY), &[])
    }

    /// Begins a study here, or goes on with one. Gives what changed in its file, if something did.
    ///
    /// # Errors
    /// If a study was begun here and `resume` does not say to go on, or a file cannot be written.
    pub fn begin(&self, study: &Study, resume: bool) -> Result<Option<String>> {
        if self.holds_study() && !resume {
            return Err(Error::config(format!(
                "{} already holds a study; go on with it by --resume, or choose another --out",
                self.0.display()
            )));
        }
        files::create_dir(self.0.join(RUNS))?;
        files::create_dir(self.0.join(WORK))?;
        // What says the same already may be somebody's own, with comments.
        if self.holds_study() && self.study()?.file == study.file {
            return Ok(None);
        }
        let is_new = !self.holds_study();
        files::write(self.0.join(STUDY), study.to_toml().as_bytes())?;
        Ok((!is_new).then(|| {
            "the study differs from the one this folder was begun with; runs of both are kept"
                .into()
        }))
    }

    /// Where a run works.
    pub fn work(&self, id: &str) -> PathBuf {
        self.0.join(WORK).join(id)
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.0.join(RUNS).join(format!("{id}.json"))
    }

    /// Whether a run is finished.
    pub fn is_finished(&self, id: &str) -> bool {
        self.record_path(id).exists()
    }

    /// The record of a finished run.
    ///
    /// # Errors
    /// If it cannot be read, or is the record of another run.
    pub fn record(&self, id: &str) -> Result<RunRecord> {
        let path = self.record_path(id);
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        let record: RunRecord = serde_json::from_slice(&bytes)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        match record.id == id {
            true => Ok(record),
            false => {
                let problem = format!("holds run {}, expected {id}", record.id);
                Err(Error::format(path, problem))
            }
        }
    }

    /// Records of those of the runs that are finished, in the order of the plan.
    ///
    /// # Errors
    /// If one cannot be read, or they were not all trained on the same data.
    pub fn records(&self, runs: &[Planned]) -> Result<Vec<RunRecord>> {
        let finished = runs.iter().filter(|run| self.is_finished(&run.id));
        let read = |run: &Planned| {
            let record = self.record(&run.id)?;
            // The same numbers may have another name in this plan.
            let cell = run.cell.clone();
            Ok(RunRecord { cell, ..record })
        };
        let records: Vec<RunRecord> = finished.map(read).collect::<Result<_>>()?;
        check_same_data(&records)?;
        Ok(records)
    }

    /// Writes a record, and then removes what the run has worked on, or moves it to `kept/`.
    ///
    /// # Errors
    /// If a file cannot be written or removed.
    pub fn finish(&self, record: &RunRecord, keep: bool) -> Result<()> {
        let path = self.record_path(&record.id);
        let text =
            serde_json::to_vec(record).map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(&path, &text)?;
        if !keep || !self.work(&record.id).exists() {
            return self.clear(&record.id);
        }
        let kept = self.0.join(KEPT);
        files::create_dir(&kept)?;
        let kept = kept.join(&record.id);
        fs::rename(self.work(&record.id), &kept).map_err(Error::io(kept))
    }

    /// Removes what a run has worked on.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn clear(&self, id: &str) -> Result<()> {
        let work = self.work(id);
        match work.exists() {
            true => fs::remove_dir_all(&work).map_err(Error::io(work)),
            false => Ok(()),
        }
    }

    /// What successive halving has decided so far.
    pub(super) fn rungs(&self) -> Result<Vec<Rung>> {
        let path = self.0.join(HALVING);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::format(&path, error.to_string()))
    }

    pub(super) fn write_rungs(&self, rungs: &[Rung]) -> Result<()> {
        let path = self.0.join(HALVING);
        let text =
            serde_json::to_vec(rungs).map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, &text).map(drop)
    }
}

/// Joins the finished runs of folders of one study in another folder; gives how many that holds then.
///
/// # Errors
/// If the studies are not the same, or two records of one run differ in more than their cost.
pub fn merge(from: &[PathBuf], into: &Path) -> Result<usize> {
    let Some(first) = from.first() else {
        return Err(Error::config("nothing to merge: name the folders"));
    };
    let study = Folder::new(first).study()?;
    if study.file.study.halving.is_some() {
        return Err(Error::config(
            "runs of a study with halving depend on each other and are all in one folder",
        ));
    }
    let target = Folder::new(into);
    if target.holds_study() && target.study()?.file != study.file {
        return Err(another_study(into, first));
    }
    let mut found: BTreeMap<String, RunRecord> = BTreeMap::new();
    let all = from.iter().map(PathBuf::as_path);
    for path in all.chain(target.holds_study().then_some(into)) {
        let folder = Folder::new(path);
        if folder.study()?.file != study.file {
            return Err(another_study(path, first));
        }
        for record in folder.records(&study.runs)? {
            match found.get(&record.id) {
                Some(other) if !other.is_same(&record) => {
                    return Err(Error::format(
                        folder.record_path(&record.id),
                        format!(
                            "{} has other numbers than in another folder",
                            record.cell.label()
                        ),
                    ));
                }
                Some(_) => {}
                None => drop(found.insert(record.id.clone(), record)),
            }
        }
    }
    check_same_data(found.values())?;
    target.begin(&study, true)?;
    for record in found.values() {
        if !target.is_finished(&record.id) {
            target.finish(record, false)?;
        }
    }
    Ok(found.len())
}

/// Runs of a study are compared, so that they must have read the same.
fn check_same_data<'a>(records: impl IntoIterator<Item = &'a RunRecord>) -> Result<()> {
    let mut records = records.into_iter();
    let Some(first) = records.next() else {
        return Ok(());
    };
    match records.find(|record| record.data != first.data) {
        None => Ok(()),
        Some(other) => Err(Error::config(format!(
            "{} was trained on other data (fingerprint {}) than {} (fingerprint {})",
            other.cell.label(),
            other.data,
            first.cell.label(),
            first.data
        ))),
    }
}

fn another_study(path: &Path, first: &Path) -> Error {
    Error::config(format!(
        "{} holds another study than {}",
        path.display(),
        first.display()
    ))
}
