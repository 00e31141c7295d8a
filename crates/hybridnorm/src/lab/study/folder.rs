//! The folder of a study: `study.toml`, `runs/ID.json` of every finished run, `work/ID` of those that are
//! not, and `kept/ID` of finished ones that are to be kept.
//!
//! A record is the last thing that is written of a run: what it says is there, is there. A run that is to
//! be kept is moved before, and moved back where a kill came in between.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{Hold, Passing};
use super::plan::{Planned, Study};
use super::record::RunRecord;
use super::{sealed, tied};
use crate::error::{Error, Result};
use crate::files::{self, Locking};
use crate::train::metrics::Metrics;
use crate::train::rows;

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

/// Records as they stand in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Records {
    /// In the order of the plan.
    pub records: Vec<RunRecord>,
    /// Those of earlier versions, which have no checksum.
    pub without_checksum: usize,
}

/// How a study is begun in a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    /// Go on with what was begun there.
    pub resume: bool,
    /// Only a part of the runs is done, beside others.
    pub is_shard: bool,
    pub locking: Locking,
}

/// A study that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    /// What changed in its file, if something did.
    pub note: Option<String>,
    /// Nobody else may begin what this process does, as long as this lives.
    pub _hold: Hold,
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
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn holds_study(&self) -> Result<bool> {
        let path = self.0.join(STUDY);
        match fs::metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(false),
                _ => Err(Error::io(path)(error)),
            },
        }
    }

    /// The study that was begun here.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn study(&self) -> Result<Study> {
        Study::load(&self.0.join(STUDY), &[])
    }

    /// Takes hold of the folder for this process alone, and creates it where it is missing.
    pub(super) fn hold(&self, locking: Locking) -> Result<Hold> {
        files::create_dir(&self.0)?;
        let hold = Hold::alone(&self.0, locking)?;
        // Nobody else writes here now: what is not whole was left by a killed process.
        for folder in [self.0.clone(), self.0.join(RUNS), self.0.join(KEPT)] {
            files::remove_stale_in(&folder);
        }
        Ok(hold)
    }

    /// Begins a study here, or goes on with one. Nothing is looked at or written before the folder is
    /// held.
    ///
    /// # Errors
    /// If a study was begun here and `resume` does not say to go on, another process works here, or a
    /// file cannot be written.
    pub(super) fn begin(&self, study: &Study, how: Begin) -> Result<Begun> {
        let mut hold = match how.is_shard {
            false => self.hold(how.locking)?,
            true => {
                files::create_dir(&self.0)?;
                let hold = Hold::beside_others(&self.0, how.locking)?;
                files::remove_stale(&self.0.join(STUDY));
                hold
            }
        };
        let is_there = self.holds_study()?;
        let is_same = is_there && self.study()?.file == study.file;
        // Shards of one study begin on their own, and so does what was killed before it did anything.
        let may_begin = how.resume || is_same && (how.is_shard || !self.holds_runs()?);
        if is_there && !may_begin {
            let which = match how.is_shard {
                true => "another",
                false => "a",
            };
            return Err(Error::config(format!(
                "{} already holds {which} study; go on with it by --resume, or choose another --out",
                self.0.display()
            )));
        }
        match is_there && !is_same {
            true => hold.while_alone(|| self.set_up(study))?,
            false => self.set_up(study)?,
        }
        hold.has_begun();
        Ok(Begun {
            note: (is_there && !is_same).then(|| {
                "the study differs from the one this folder was begun with; runs of both are kept"
                    .into()
            }),
            _hold: hold,
        })
    }

    /// Creates the folders, and writes the study unless what stands there says the same: it may be
    /// somebody's own, with comments.
    pub(super) fn set_up(&self, study: &Study) -> Result<()> {
        for folder in [RUNS, WORK] {
            let folder = self.0.join(folder);
            if files::create_new_dir(&folder)? {
                files::sync_parent(&folder)?;
            }
        }
        match self.holds_study()? && self.study()?.file == study.file {
            true => Ok(()),
            false => files::write(self.0.join(STUDY), study.to_toml().as_bytes()).map(drop),
        }
    }

    /// Whether any run was begun here.
    fn holds_runs(&self) -> Result<bool> {
        for folder in [RUNS, WORK, KEPT] {
            let folder = self.0.join(folder);
            match fs::read_dir(&folder) {
                Ok(mut entries) => {
                    if entries.next().is_some() {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(folder)(error)),
            }
        }
        Ok(false)
    }

    /// Where a run works.
    pub fn work(&self, id: &str) -> PathBuf {
        self.0.join(WORK).join(id)
    }

    fn kept(&self, id: &str) -> PathBuf {
        self.0.join(KEPT).join(id)
    }

    pub(super) fn record_path(&self, id: &str) -> PathBuf {
        self.0.join(RUNS).join(format!("{id}.json"))
    }

    /// Takes hold of a single run, so that no other process works on it.
    pub(super) fn claim(&self, id: &str, locking: Locking) -> Result<Passing> {
        let path = self.0.join(WORK).join(format!("{id}.lock"));
        let claim = Passing::take(
            &path,
            locking,
            &format!("another process works on run {id}"),
        )?;
        files::remove_stale(&self.record_path(id));
        Ok(claim)
    }

    /// Whether a run is finished.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn is_finished(&self, id: &str) -> Result<bool> {
        files::exists(self.record_path(id))
    }

    /// The record of a finished run, and whether it has a checksum.
    fn record(&self, run: &Planned) -> Result<(RunRecord, bool)> {
        let path = self.record_path(&run.id);
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Error::format(&path, error.to_string()))?;
        let opened = sealed::open::<RunRecord>(value, "")
            .map_err(|problem| Error::format(&path, problem))?;
        let is_sealed = opened.checksum.is_some();
        let record = match is_sealed {
            true => opened.content,
            // Nothing says that no key is there twice.
            false => serde_json::from_slice(&bytes)
                .map_err(|error| Error::format(&path, error.to_string()))?,
        };
        match tied::problem(&record, run) {
            None => Ok((record, is_sealed)),
            Some(problem) => Err(Error::format(
                path,
                format!("{problem}; move the file away to have the run done again"),
            )),
        }
    }

    /// Records of those of the runs that are finished, in the order of the plan.
    ///
    /// # Errors
    /// As [`Folder::read`].
    pub fn records(&self, runs: &[Planned]) -> Result<Vec<RunRecord>> {
        self.read(runs).map(|read| read.records)
    }

    /// Records of those of the runs that are finished, in the order of the plan.
    ///
    /// # Errors
    /// If one cannot be read, is damaged, is not that of its run, or they were not all trained on the
    /// same data.
    pub fn read(&self, runs: &[Planned]) -> Result<Records> {
        let mut records = Vec::new();
        let mut without_checksum = 0;
        for run in runs {
            if !self.is_finished(&run.id)? {
                continue;
            }
            let (record, is_sealed) = self.record(run)?;
            without_checksum += usize::from(!is_sealed);
            // The same numbers may have another name in this plan.
            let cell = run.cell.clone();
            records.push(RunRecord { cell, ..record });
        }
        check_same_data(&records)?;
        Ok(Records {
            records,
            without_checksum,
        })
    }

    pub(super) fn write_record(&self, record: &RunRecord) -> Result<()> {
        let path = self.record_path(&record.id);
        let (text, _) =
            sealed::seal(record, "").map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }

    /// Ends a run: moves what it has worked on to `kept/` and writes its record, or writes the record
    /// and then removes what it has worked on.
    ///
    /// # Errors
    /// If a file cannot be written, moved or removed.
    pub(super) fn finish(&self, record: &RunRecord, keep: bool) -> Result<()> {
        if keep && files::exists(self.work(&record.id))? {
            self.keep(&record.id)?;
        }
        self.write_record(record)?;
        match keep {
            true => Ok(()),
            false => self.clear(&record.id),
        }
    }

    fn keep(&self, id: &str) -> Result<()> {
        let folder = self.0.join(KEPT);
        if files::create_new_dir(&folder)? {
            files::sync_parent(&folder)?;
        }
        self.refuse_two(id)?;
        rename(&self.work(id), &self.kept(id))
    }

    /// Puts a run back to where it works that was moved before a kill kept its record from being written.
    ///
    /// # Errors
    /// If it stands in both places, or cannot be moved.
    pub(super) fn reclaim(&self, id: &str) -> Result<()> {
        if !files::exists(self.kept(id))? {
            return Ok(());
        }
        self.refuse_two(id)?;
        rename(&self.kept(id), &self.work(id))
    }

    fn refuse_two(&self, id: &str) -> Result<()> {
        let (work, kept) = (self.work(id), self.kept(id));
        match files::exists(&work)? && files::exists(&kept)? {
            false => Ok(()),
            true => Err(Error::format(
                kept,
                format!(
                    "stands beside {} of the same run; move one of them away",
                    work.display()
                ),
            )),
        }
    }

    /// Does what a kill has left undone after a run's record was written. Gives what is left to a person.
    ///
    /// # Errors
    /// If something cannot be moved or removed.
    pub(super) fn settle(&self, record: &RunRecord, keep: bool) -> Result<Option<String>> {
        let id = &record.id;
        self.remove_what_goes(id)?;
        let work = self.work(id);
        if !files::exists(&work)? {
            return Ok(None);
        }
        if !keep {
            return self.clear(id).map(|()| None);
        }
        let stays = |why: &str| Ok(Some(format!("{} stays: {why}", work.display())));
        if files::exists(self.kept(id))? {
            return stays("the finished run is in kept/ already");
        }
        let rows: Vec<Metrics> = rows::read(&work)?;
        match rows.last().map_or(0, |row| row.step) {
            step if step < record.steps => stays(&format!(
                "it holds {step} of the {} steps of a run whose record is there",
                record.steps
            )),
            _ => self.keep(id).map(|()| None),
        }
    }

    /// Removes what a run has worked on.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn clear(&self, id: &str) -> Result<()> {
        self.remove_what_goes(id)?;
        let work = self.work(id);
        if !files::exists(&work)? {
            return Ok(());
        }
        // Half a run must not be taken for one.
        rename(&work, &self.goes(id))?;
        self.remove_what_goes(id)
    }

    /// The name of what a run has worked on while it is removed.
    fn goes(&self, id: &str) -> PathBuf {
        self.0.join(WORK).join(format!("{id}.removed"))
    }

    fn remove_what_goes(&self, id: &str) -> Result<()> {
        let goes = self.goes(id);
        match files::exists(&goes)? {
            true => fs::remove_dir_all(&goes).map_err(Error::io(goes)),
            false => Ok(()),
        }
    }

    /// What successive halving has decided so far.
    pub(super) fn rungs(&self) -> Result<Vec<Rung>> {
        let path = self.0.join(HALVING);
        if !files::exists(&path)? {
            return Ok(Vec::new());
        }
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        read_rungs(&bytes).map_err(|problem| Error::format(path, problem))
    }

    pub(super) fn write_rungs(&self, rungs: &[Rung]) -> Result<()> {
        let path = self.0.join(HALVING);
        let text = rungs_text(rungs).map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }
}

/// Every rung has a checksum in which those before it take part.
fn rungs_text(rungs: &[Rung]) -> serde_json::Result<String> {
    let mut texts = Vec::new();
    let mut before = String::new();
    for rung in rungs {
        let (text, sum) = sealed::seal(rung, &before)?;
        texts.push(text);
        before = sum;
    }
    Ok(format!("[{}]", texts.join(",")))
}

fn read_rungs(bytes: &[u8]) -> Result<Vec<Rung>, String> {
    let values: Vec<Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut rungs = Vec::new();
    let mut before = String::new();
    for value in values {
        let opened = sealed::open(value, &before)?;
        rungs.push(opened.content);
        before = opened.checksum.unwrap_or_default();
    }
    Ok(rungs)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(to))?;
    files::sync_parent(to)?;
    files::sync_parent(from)
}

/// Runs of a study are compared, so that they must have read the same.
pub(super) fn check_same_data<'a>(records: impl IntoIterator<Item = &'a RunRecord>) -> Result<()> {
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

#[cfg(test)]
mod tests;
