//! The folder of a study: `study.toml`, `runs/ID.json` of every finished run, `work/ID` of those that are
//! not, and `kept/ID` of finished ones that are to be kept.
//!
//! `history.json` says what the study stated when its runs began, and which files have no checksum.
//!
//! A record is the last thing that is written of a run: what it says is there, is there. A run that is to
//! be kept is moved before, and moved back where a kill came in between.

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

/// True if a study writes a file or folder of this name into its folder.
pub(crate) fn writes(name: &OsStr) -> bool {
    let names = [STUDY, RUNS, WORK, KEPT, HISTORY, HALVING, LOCK, BEGIN];
    names.iter().any(|known| name == *known)
}

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

    /// Begins a study here, or goes on with one, of which this process does these runs. Nothing is looked
    /// at or written before the folder is held.
    ///
    /// What the folder says of its study is changed only where runs of the changed one begin.
    ///
    /// # Errors
    /// If a study was begun here and `resume` does not say to go on, another process works here, or a
    /// file cannot be written.
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
        // Shards of one study begin on their own, and so does what was killed before it did anything.
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
                // A study of which no run was begun says nothing that anybody could rely on.
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

    /// Creates the folders, and writes the study unless what stands there says the same: it may be
    /// somebody's own, with comments. Then notes what was stated before the next run begins.
    pub(super) fn set_up(&self, study: &Study) -> Result<()> {
        self.create_folders()?;
        let before = match self.holds_study()? {
            true => Some(self.study()?),
            false => None,
        };
        // Whoever is killed in between finds by the study that the history is behind.
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

    /// Whether any of these runs was begun here.
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
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(to))?;
    files::sync_parent(to)?;
    files::sync_parent(from)
}

#[cfg(test)]
mod tests;
