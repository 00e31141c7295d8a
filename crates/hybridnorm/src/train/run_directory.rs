//! The directory of a run: its lock, the files of a run in it, and the checkpoint that a run is resumed from.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::claim::Claim;
use super::layers::LayersRow;
use super::metrics::Metrics;
use super::recorder;
use super::rows::Row;
use super::segments;
use super::tensorboard;
use super::trainer::Event;
use crate::error::{Error, Result};
use crate::files::{self, Lock, Locking};

/// The configuration in a run directory.
pub const CONFIG: &str = "config.toml";
/// Stands in the directory of a run that is begun anew unless it comes to its end.
pub const UNFINISHED: &str = "unfinished.txt";
const BUSY: &str = "another process is training here";
const PURPOSE_LIMIT: u64 = 1 << 20;
pub(super) const LOCK: &str = "lock";

/// Takes hold of a directory for as long as the returned lock lives.
///
/// # Errors
/// If another process holds it, or the file system has no locks.
pub fn lock(run: &Path) -> Result<Lock> {
    lock_with(run, Locking::Required)
}

pub(super) fn lock_with(run: &Path, locking: Locking) -> Result<Lock> {
    Lock::exclusive(&run.join(LOCK), locking, BUSY)
}

/// Removes what a run wrote into its directory, and nothing else.
///
/// # Errors
/// If another process trains there, or a file cannot be removed.
pub fn remove(run: &Path, locking: Locking) -> Result<()> {
    let lock = lock_with(run, locking)?;
    clear(run)?;
    remove_file(&run.join(LOCK))?;
    drop(lock);
    Ok(())
}

/// True if a run writes a file or folder of this name into its directory.
pub(crate) fn writes(name: &OsStr) -> bool {
    let names = [
        CONFIG,
        LOCK,
        UNFINISHED,
        Metrics::FILE,
        LayersRow::FILE,
        segments::FILE,
        checkpoint::CHECKPOINTS,
        recorder::FLIGHT,
    ];
    names.iter().any(|known| name == *known) || tensorboard::is_events(name)
}

/// As [`remove`], by the process that holds the directory. The lock stays.
pub(super) fn clear(run: &Path) -> Result<()> {
    checkpoint::remove_all(run)?;
    recorder::remove_dumps(run)?;
    tensorboard::remove(run)?;
    for name in [Metrics::FILE, LayersRow::FILE, CONFIG, segments::FILE] {
        remove_file(&run.join(name))?;
    }
    files::remove_stale_in(run);
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_file(path)).map_err(Error::io(path))
}

/// Removes a folder unless something stands in it.
pub(super) fn remove_empty(folder: &Path) -> Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => ignore_missing(removed).map_err(Error::io(folder)),
    }
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Refuses a directory that holds a run. Files left by a process that was killed before its first step are no
/// run.
pub(super) fn refuse_to_overwrite(run: &Path) -> Result<()> {
    let run_name = run.display();
    if checkpoint::exists(run)? {
        return Err(Error::config(format!(
            "{run_name} already holds a run; go on with it by --resume, or choose another --run"
        )));
    }
    match what_is_there(run)? {
        None => Ok(()),
        Some(name) => Err(Error::config(format!(
            "{run_name} already holds a run that has not saved yet, or another {name}; begin it \
             again by --resume, or choose another --run"
        ))),
    }
}

/// A run that branches off needs a directory that holds none.
pub(super) fn refuse_to_share(run: &Path) -> Result<()> {
    match checkpoint::exists(run)? || what_is_there(run)?.is_some() {
        true => Err(Error::config(format!(
            "{} already holds a run; choose another --out",
            run.display()
        ))),
        false => Ok(()),
    }
}

/// The file that says that something was done in a directory without checkpoints.
fn what_is_there(run: &Path) -> Result<Option<&'static str>> {
    let is_empty = |name: &str| {
        let path = run.join(name);
        match fs::metadata(&path) {
            Ok(found) => Ok(found.is_file() && found.len() == 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(Error::io(path)(error)),
        }
    };
    if !is_empty(Metrics::FILE)? {
        return Ok(Some(Metrics::FILE));
    }
    // Segments come first: what stands beside them without a step is what a kill left.
    if files::exists(run.join(segments::FILE))? {
        return Ok(None);
    }
    match is_empty(LayersRow::FILE)? {
        false => Ok(Some(LayersRow::FILE)),
        true => Ok(files::exists(run.join(CONFIG))?.then_some(CONFIG)),
    }
}

/// Makes the directory one of a run that is begun anew unless it comes to its end. One that was left
/// so, for the same purpose, is begun anew.
pub(super) fn begin_unfinished(run: &Path, purpose: &str, claim: &mut Claim) -> Result<()> {
    let path = run.join(UNFINISHED);
    if !files::exists(&path)? {
        refuse_to_share(run)?;
        claim.will_write(UNFINISHED)?;
        return files::write(path, purpose.as_bytes()).map(drop);
    }
    if files::read_small(&path, PURPOSE_LIMIT)? != purpose.as_bytes() {
        return Err(Error::config(format!(
            "{} holds something else that was not finished ({UNFINISHED}); choose another --out, or \
             remove it",
            run.display()
        )));
    }
    clear(run)?;
    claim.create_folder(run.join(checkpoint::CHECKPOINTS))
}

/// Makes the directory one that is not begun anew.
pub(super) fn finish(run: &Path) -> Result<()> {
    remove_file(&run.join(UNFINISHED))
}

/// Checks that there is a run to go on with, before anything is created.
pub(super) fn require_run(run: &Path) -> Result<()> {
    let missing = |what: &str| {
        Err(Error::config(format!(
            "{}: {what} to go on with; leave out --resume to begin one, or name another --run",
            run.display()
        )))
    };
    if !files::exists(run)? {
        return missing("no run");
    }
    match files::exists(run.join(CONFIG))? || checkpoint::exists(run)? {
        true => Ok(()),
        false => missing("the folder holds no run"),
    }
}

/// The note about a checkpoint that cannot be used, and in whose place an older one is.
pub fn passed_over(problem: &str) -> String {
    format!("passed over a broken checkpoint: {problem}")
}

/// The checkpoint that a run is resumed from; `None` where it begins.
pub(super) fn find_resume_point(
    run: &Path,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Checkpoint>> {
    let found = checkpoint::newest(run)?;
    // Starting over would drop the metrics of steps that a repaired checkpoint may still hold.
    if let (None, Some(problem)) = (&found.checkpoint, found.broken.first()) {
        return Err(Error::format(
            run.join(checkpoint::CHECKPOINTS),
            format!("no valid checkpoint to resume from; {problem}"),
        ));
    }
    for problem in found.broken {
        on_event(Event::Note(passed_over(&problem)));
    }
    Ok(found.checkpoint.map(|(_, checkpoint)| checkpoint))
}
