//! Study folder: `study.toml`, `runs/ID.json` for every finished run, `work/ID` for unfinished runs, and
//! `kept/ID` for finished runs that are kept.
//!
//! `history.json` holds the study as it was whenever runs started, and lists the files without a checksum.
//!
//! The record of a run is written last, so that everything it refers to exists. A kept run is moved before that,
//! and moved back if a kill came in between.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::difference::in_words;
use super::history::HISTORY;
use super::hold::{BEGIN, Hold, LOCK, Passing};
use super::plan::{Planned, Study};
use super::record::RunRecord;
use super::rungs::HALVING;
use crate::error::{Error, Result};
use crate::files::{self, Locking};
use crate::train::metrics::Metrics;
use crate::train::rows;

const STUDY: &str = "study.toml";
pub(super) const RUNS: &str = "runs";
const WORK: &str = "work";
const KEPT: &str = "kept";

/// Options for starting a study in a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    /// Resume the study in the folder.
    pub resume: bool,
    /// Do only a shard of the runs, alongside other shards.
    pub is_shard: bool,
    pub locking: Locking,
}

/// Started study.
#[derive(Debug)]
pub(super) struct Begun {
    /// Changes in the study file, if any.
    pub note: Option<String>,
    /// Keeps other processes from starting the same work while it lives.
    pub _hold: Hold,
}

/// Folder of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// True if a study writes a file or folder of this name into its folder.
pub(crate) fn writes(name: &OsStr) -> bool {
    let names = [STUDY, RUNS, WORK, KEPT, HISTORY, HALVING, LOCK, BEGIN];
    names.iter().any(|known| name == *known)
}

impl Folder {
    /// Returns the folder at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns true if the folder holds a study.
    ///
    /// # Errors
    /// If the file system returns an error.
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

    /// Reads the study in the folder.
    ///
    /// # Errors
    /// If there is no study, or it cannot be read.
    pub fn study(&self) -> Result<Study> {
        Study::load(&self.0.join(STUDY), &[])
    }

    /// Locks the folder exclusively for this process; creates it if missing.
    pub(super) fn hold(&self, locking: Locking) -> Result<Hold> {
        files::create_dir(&self.0)?;
        let hold = Hold::alone(&self.0, locking)?;
        // No other process writes here now: partial files are left over from killed processes.
        for folder in [self.0.clone(), self.0.join(RUNS), self.0.join(KEPT)] {
            files::remove_stale_in(&folder);
        }
        Ok(hold)
    }

    /// Starts or resumes a study in the folder, of which this process does `runs`. Nothing is read or written
    /// before the folder is locked.
    ///
    /// The study in the folder is replaced only if runs of the changed one start.
    ///
    /// # Errors
    /// If the folder holds a study and `resume` is not set, another process works here, or a file cannot be
    /// written.
    pub(super) fn begin(&self, study: &Study, runs: &[Planned], how: Begin) -> Result<Begun> {
        if how.resume && !files::exists(&self.0)? {
            return Err(Error::format(
                &self.0,
                "no such folder, so that there is no study to go on with; begin one without --resume",
            ));
        }
        let mut hold = match how.is_shard {
            false => self.hold(how.locking)?,
            true => {
                files::create_dir(&self.0)?;
                let hold = Hold::beside_others(&self.0, how.locking)?;
                files::remove_stale(&self.0.join(STUDY));
                files::remove_stale(&self.0.join(HISTORY));
                hold
            }
        };
        let before = match self.holds_study()? {
            true => Some(self.study()?),
            false => None,
        };
        let changed = before.as_ref().filter(|before| before.file != study.file);
        // Shards of the same study start without `resume`, and so does a study without runs after a kill.
        let is_same = before.is_some() && changed.is_none();
        let may_begin = how.resume || is_same && (how.is_shard || !self.holds_runs()?);
        if before.is_some() && !may_begin {
            let which = match how.is_shard {
                true => "another",
                false => "a",
            };
            return Err(Error::config(format!(
                "{} already holds {which} study; go on with it by --resume, or choose another --out",
                self.0.display()
            )));
        }
        let trains = !self.are_finished(runs)?;
        let note = match changed {
            None => None,
            Some(before) => {
                self.check_rungs(study)?;
                let differences = in_words(&before.file, &study.file);
                // Nothing relies on a study of which no run was started.
                Some(match trains || !self.has_begun(&before.runs)? {
                    true => {
                        hold.while_alone(|| self.set_up(study))?;
                        format!(
                            "the study differs from the one this folder was begun with \
                             ({differences}); runs of both are kept"
                        )
                    }
                    false => format!(
                        "nothing is left to train, so that {} stays as it is; this study differs \
                         from it ({differences})",
                        self.0.join(STUDY).display()
                    ),
                })
            }
        };
        match changed {
            None if trains || before.is_none() => self.set_up(study)?,
            _ => self.create_folders()?,
        }
        hold.has_begun();
        Ok(Begun { note, _hold: hold })
    }

    /// Creates the folders and writes the study, unless an equal one exists: that may be hand-written, with
    /// comments. Then records the study in the history before the next run starts.
    pub(super) fn set_up(&self, study: &Study) -> Result<()> {
        self.create_folders()?;
        let before = match self.holds_study()? {
            true => Some(self.study()?),
            false => None,
        };
        // After a kill in between, the study file shows that the history is out of date.
        let mut history = self.history_or_begin(before.as_ref())?;
        if before.as_ref().map(|before| &before.file) != Some(&study.file) {
            files::write(self.0.join(STUDY), study.to_toml().as_bytes())?;
        }
        history.state(study, self)?;
        self.write_history(&history)
    }

    fn create_folders(&self) -> Result<()> {
        for folder in [RUNS, WORK] {
            let folder = self.0.join(folder);
            if files::create_new_dir(&folder)? {
                files::sync_parent(&folder)?;
            }
        }
        Ok(())
    }

    fn are_finished(&self, runs: &[Planned]) -> Result<bool> {
        for run in runs {
            if !self.is_finished(&run.id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns true if any of these runs was started in the folder.
    fn has_begun(&self, runs: &[Planned]) -> Result<bool> {
        for run in runs {
            let id = &run.id;
            for path in [self.record_path(id), self.work(id), self.kept(id)] {
                if files::exists(path)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Returns true if any run was started in the folder.
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

    /// Returns the run directory of an unfinished run.
    pub fn work(&self, id: &str) -> PathBuf {
        self.0.join(WORK).join(id)
    }

    fn kept(&self, id: &str) -> PathBuf {
        self.0.join(KEPT).join(id)
    }

    pub(super) fn record_path(&self, id: &str) -> PathBuf {
        self.0.join(RUNS).join(format!("{id}.json"))
    }

    /// Locks a single run, so that no other process works on it.
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

    /// Returns true if a run is finished.
    ///
    /// # Errors
    /// If the file system returns an error.
    pub fn is_finished(&self, id: &str) -> Result<bool> {
        files::exists(self.record_path(id))
    }

    /// Finishes a run: moves its run directory to `kept/` and writes its record, or writes the record and then
    /// removes the run directory.
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

    /// Moves a run back to `work/` that was moved to `kept/` before a kill kept its record from being written.
    ///
    /// # Errors
    /// If it exists in both places, or cannot be moved.
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

    /// Completes the clean-up of a recorded run after a kill. Returns a note if manual action is needed.
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

    /// Removes the run directory of a run.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn clear(&self, id: &str) -> Result<()> {
        self.remove_what_goes(id)?;
        let work = self.work(id);
        if !files::exists(&work)? {
            return Ok(());
        }
        // A partly removed run directory must not be mistaken for a run.
        rename(&work, &self.goes(id))?;
        self.remove_what_goes(id)
    }

    /// Returns the name of a run directory while it is being removed.
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
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(to))?;
    files::sync_parent(to)?;
    files::sync_parent(from)
}

#[cfg(test)]
mod tests;
