//! Study folder: `study.toml`, `runs/ID.json` for every run that ended, `work/ID` for unfinished runs, and
//! `kept/ID` for finished runs that are kept.
//!
//! `history.json` holds every version of the study under which runs ended and the current one, and lists the files
//! without a checksum.
//!
//! The record of a run is written last, so that everything it refers to exists. A kept run is moved before that,
//! and moved back if the process was killed in between.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::difference::changes_text;
use super::folder_lock::{FolderLock, LOCK, START_LOCK, TemporaryLock};
use super::history::HISTORY;
use super::plan::{PlannedRun, Study};
use super::record::RunRecord;
use super::rungs::HALVING;
use crate::error::{Error, Result};
use crate::files::{self, Locking};
use crate::train::metrics::Metrics;
use crate::train::records;

const STUDY: &str = "study.toml";
pub(super) const RUNS: &str = "runs";
const WORK: &str = "work";
const KEPT: &str = "kept";

/// Options for starting a study in a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct StartOptions {
    /// True to resume the study in the folder.
    pub resume: bool,
    /// True if this process executes one shard of the runs.
    pub is_shard: bool,
    pub locking: Locking,
}

/// Started study.
#[derive(Debug)]
pub(super) struct StartedStudy {
    /// Changes in the study file, if any.
    pub note: Option<String>,
    /// Keeps other processes from starting the same work while it is held.
    pub _lock: FolderLock,
}

/// Folder of a study.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::lab::study::{self, Options, Study, StudyFolder, StudySettings};
/// # use hybridnorm::train::{Config, DataSection, ModelSection, TrainSection};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32);
/// # let data = DataSection::default()
/// #     .with_train(vec!["stories:20".to_owned()])
/// #     .with_tokenizer("bytes");
/// # let train = TrainSection::default()
/// #     .with_steps(4)
/// #     .with_batch_size(2)
/// #     .with_seq_len(16)
/// #     .with_eval_sequences(2);
/// # let config = Config::default()
/// #     .with_model(model)
/// #     .with_data(data)
/// #     .with_train(train);
/// # let parent = tempfile::tempdir().unwrap();
/// let folder = StudyFolder::new(parent.path().join("study"));
/// assert!(!folder.has_study()?);
/// let study = Study::from_config(&config, StudySettings::new(["pre-norm"], [3e-3], [1]))?;
/// let (options, stop) = (Options::default(), false.into());
/// study::run(&study, &folder, &options, Device::Cpu, &stop, &|_| {})?;
/// assert!(folder.has_study()?);
/// assert_eq!(folder.study()?.runs, study.runs);
/// assert_eq!(folder.records(&study.runs)?.len(), 1);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyFolder(PathBuf);

/// True if a study writes a file or folder of this name into its folder.
pub fn is_study_file(name: &OsStr) -> bool {
    let names = [STUDY, RUNS, WORK, KEPT, HISTORY, HALVING, LOCK, START_LOCK];
    names.iter().any(|known| name == *known)
}

impl StudyFolder {
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
    pub fn has_study(&self) -> Result<bool> {
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
    pub(super) fn lock_exclusive(&self, locking: Locking) -> Result<FolderLock> {
        files::create_dir(&self.0)?;
        let lock = FolderLock::exclusive(&self.0, locking)?;
        // No other process writes here now: partial files are left over from killed processes.
        for folder in [self.0.clone(), self.0.join(RUNS), self.0.join(KEPT)] {
            files::remove_stale_in(&folder);
        }
        Ok(lock)
    }

    /// Starts or resumes a study in the folder, of which this process executes `runs`. Nothing is read or written
    /// before the folder is locked.
    ///
    /// The study in the folder is replaced only if runs of the changed one start.
    ///
    /// # Errors
    /// If the folder holds a study and `resume` is not set, another process is working in the folder, or a file cannot
    /// be written.
    pub(super) fn start(
        &self,
        study: &Study,
        runs: &[PlannedRun],
        options: StartOptions,
    ) -> Result<StartedStudy> {
        if options.resume && !files::exists(&self.0)? {
            return Err(Error::format(
                &self.0,
                "folder not found: there is no study to resume; start a new one instead",
            ));
        }
        let mut lock = self.lock_to_start(options)?;
        let previous = match self.has_study()? {
            true => Some(self.study()?),
            false => None,
        };
        self.check_may_start(previous.as_ref(), study, options)?;
        let has_unrecorded_runs = !self.have_records(runs)?;
        let note = match previous
            .as_ref()
            .filter(|previous| previous.config != study.config)
        {
            Some(previous) => {
                let note = self.change_study(previous, study, has_unrecorded_runs, &mut lock)?;
                self.create_folders()?;
                Some(note)
            }
            None => {
                match has_unrecorded_runs || previous.is_none() {
                    true => self.write_study(study)?,
                    false => self.create_folders()?,
                }
                None
            }
        };
        lock.finish_start();
        Ok(StartedStudy { note, _lock: lock })
    }

    /// Locks the folder: exclusively for a whole study, together with other shards for a shard.
    fn lock_to_start(&self, options: StartOptions) -> Result<FolderLock> {
        if !options.is_shard {
            return self.lock_exclusive(options.locking);
        }
        files::create_dir(&self.0)?;
        let lock = FolderLock::shared(&self.0, options.locking)?;
        files::remove_stale(&self.0.join(STUDY));
        files::remove_stale(&self.0.join(HISTORY));
        Ok(lock)
    }

    /// Checks that the folder has no study, or one that may be resumed.
    fn check_may_start(
        &self,
        previous: Option<&Study>,
        study: &Study,
        options: StartOptions,
    ) -> Result<()> {
        let Some(previous) = previous else {
            return Ok(());
        };
        // Shards of the same study start without `resume`, and so does a study without runs after a kill.
        let is_same = previous.config == study.config;
        if options.resume || is_same && (options.is_shard || !self.has_runs()?) {
            return Ok(());
        }
        let which = match options.is_shard {
            true => "another",
            false => "a",
        };
        Err(Error::exists(
            &self.0,
            format!(
                "{} already holds {which} study; resume it, or choose another folder",
                self.0.display()
            ),
        ))
    }

    /// Replaces the study in the folder if runs of the changed one start; returns the changes as text.
    fn change_study(
        &self,
        previous: &Study,
        study: &Study,
        has_unrecorded_runs: bool,
        lock: &mut FolderLock,
    ) -> Result<String> {
        self.check_halving(study)?;
        let differences = changes_text(&previous.config, &study.config);
        // Nothing relies on a study of which no run was started.
        if !has_unrecorded_runs && self.has_started(&previous.runs)? {
            return Ok(format!(
                "nothing left to train: {} is unchanged; this study differs from it ({differences})",
                self.0.join(STUDY).display()
            ));
        }
        lock.with_exclusive(|| self.write_study(study))?;
        Ok(format!(
            "the study differs from the one in this folder ({differences}); runs of both are kept"
        ))
    }

    /// Creates the folders and writes the study, unless an equal one exists: that may be hand-written, with
    /// comments. Then records the study in the history before the next run starts.
    pub(super) fn write_study(&self, study: &Study) -> Result<()> {
        self.create_folders()?;
        let previous = match self.has_study()? {
            true => Some(self.study()?),
            false => None,
        };
        // After a kill in between, the study file shows that the history is out of date.
        let mut history = self.history_or_new(previous.as_ref())?;
        if previous.as_ref().map(|previous| &previous.config) != Some(&study.config) {
            files::write(self.0.join(STUDY), study.to_toml().as_bytes())?;
        }
        history.record_study(study, self)?;
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

    fn have_records(&self, runs: &[PlannedRun]) -> Result<bool> {
        for run in runs {
            if !self.has_record(&run.id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns true if any of these runs was started in the folder.
    fn has_started(&self, runs: &[PlannedRun]) -> Result<bool> {
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
    fn has_runs(&self) -> Result<bool> {
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
    pub(super) fn lock_run(&self, id: &str, locking: Locking) -> Result<TemporaryLock> {
        let path = self.0.join(WORK).join(format!("{id}.lock"));
        let lock = TemporaryLock::acquire(
            &path,
            locking,
            &format!("another process is working on run {id}"),
        )?;
        files::remove_stale(&self.record_path(id));
        Ok(lock)
    }

    /// Returns true if a run ended, so that its record exists.
    ///
    /// # Errors
    /// If the file system returns an error.
    pub fn has_record(&self, id: &str) -> Result<bool> {
        files::exists(self.record_path(id))
    }

    /// Records a run that ended: moves its run directory to `kept/` and writes its record, or writes the record and
    /// then removes the run directory.
    ///
    /// # Errors
    /// If a file cannot be written, moved or removed.
    pub(super) fn finish(&self, record: &RunRecord, keep: bool) -> Result<()> {
        if keep && files::exists(self.work(&record.id))? {
            self.move_to_kept(&record.id)?;
        }
        self.write_record(record)?;
        match keep {
            true => Ok(()),
            false => self.remove_work(&record.id),
        }
    }

    fn move_to_kept(&self, id: &str) -> Result<()> {
        let folder = self.0.join(KEPT);
        if files::create_new_dir(&folder)? {
            files::sync_parent(&folder)?;
        }
        self.check_not_duplicated(id)?;
        rename(&self.work(id), &self.kept(id))
    }

    /// Moves a run back to `work/` if the process was killed after moving it to `kept/` and before writing its record.
    ///
    /// # Errors
    /// If it exists in both places, or cannot be moved.
    pub(super) fn move_back_to_work(&self, id: &str) -> Result<()> {
        if !files::exists(self.kept(id))? {
            return Ok(());
        }
        self.check_not_duplicated(id)?;
        rename(&self.kept(id), &self.work(id))
    }

    fn check_not_duplicated(&self, id: &str) -> Result<()> {
        let (work, kept) = (self.work(id), self.kept(id));
        match files::exists(&work)? && files::exists(&kept)? {
            false => Ok(()),
            true => Err(Error::format(
                kept,
                format!(
                    "this directory and {} hold the same run; move one of them elsewhere",
                    work.display()
                ),
            )),
        }
    }

    /// Completes the clean-up of a recorded run after a kill. Returns a note if manual action is needed.
    ///
    /// # Errors
    /// If something cannot be moved or removed.
    pub(super) fn complete_clean_up(
        &self,
        record: &RunRecord,
        keep: bool,
    ) -> Result<Option<String>> {
        let id = &record.id;
        self.remove_leftover(id)?;
        let work = self.work(id);
        if !files::exists(&work)? {
            return Ok(None);
        }
        if !keep {
            return self.remove_work(id).map(|()| None);
        }
        let not_removed = |reason: &str| {
            Ok(Some(format!(
                "{} was not removed: {reason}",
                work.display()
            )))
        };
        if files::exists(self.kept(id))? {
            return not_removed("the finished run is already in kept/");
        }
        let metrics: Vec<Metrics> = records::read(&work)?;
        match metrics.last().map_or(0, |last| last.step) {
            step if step < record.steps => not_removed(&format!(
                "it holds {step} of the {} steps of a run that is already recorded",
                record.steps
            )),
            _ => self.move_to_kept(id).map(|()| None),
        }
    }

    /// Removes the run directory of a run.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove_work(&self, id: &str) -> Result<()> {
        self.remove_leftover(id)?;
        let work = self.work(id);
        if !files::exists(&work)? {
            return Ok(());
        }
        // A partly removed run directory must not be mistaken for a run.
        rename(&work, &self.removal_path(id))?;
        self.remove_leftover(id)
    }

    /// Returns the name of a run directory while it is being removed.
    fn removal_path(&self, id: &str) -> PathBuf {
        self.0.join(WORK).join(format!("{id}.removed"))
    }

    fn remove_leftover(&self, id: &str) -> Result<()> {
        let leftover = self.removal_path(id);
        match files::exists(&leftover)? {
            true => fs::remove_dir_all(&leftover).map_err(Error::io(leftover)),
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
