//! The directory of a run: its lock, its files, and the checkpoint to resume from.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::layers::LayerRecord;
use super::metrics::Metrics;
use super::recorder;
use super::records::Record;
use super::run_directory_guard::RunDirectoryGuard;
use super::segments;
use super::tensorboard;
use super::trainer::Event;
use crate::error::{Error, Result};
use crate::files::{self, Lock, Locking};

/// File name of the configuration in a run directory.
pub const CONFIG: &str = "config.toml";
/// File that marks a run to be restarted from scratch unless it is finished.
pub const UNFINISHED: &str = "unfinished.txt";
const LOCKED_MESSAGE: &str = "another process is training here";
const PURPOSE_LIMIT: u64 = 1 << 20;
pub(super) const LOCK: &str = "lock";

/// Locks a directory for the lifetime of the returned lock.
///
/// # Errors
/// If another process holds the lock, or the file system does not support locks.
pub fn lock(run: &Path) -> Result<Lock> {
    lock_with(run, Locking::Required)
}

pub(super) fn lock_with(run: &Path, locking: Locking) -> Result<Lock> {
    Lock::exclusive(&run.join(LOCK), locking, LOCKED_MESSAGE)
}

/// Removes the files that a run wrote into its directory, except the mark of an unfinished run ([`UNFINISHED`]), and
/// nothing else.
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
pub fn is_run_file(name: &OsStr) -> bool {
    let names = [
        CONFIG,
        LOCK,
        UNFINISHED,
        Metrics::FILE,
        LayerRecord::FILE,
        segments::FILE,
        checkpoint::CHECKPOINTS,
        recorder::FLIGHT,
    ];
    names.iter().any(|known| name == *known) || tensorboard::is_events(name)
}

/// Removes files as [`remove`] does, in the process that holds the lock. The lock file stays.
pub(super) fn clear(run: &Path) -> Result<()> {
    checkpoint::remove_all(run)?;
    recorder::remove_dumps(run)?;
    tensorboard::remove(run)?;
    for name in [Metrics::FILE, LayerRecord::FILE, CONFIG, segments::FILE] {
        remove_file(&run.join(name))?;
    }
    files::remove_stale_in(run);
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    ignore_missing(fs::remove_file(path)).map_err(Error::io(path))
}

/// Removes a folder if it is empty.
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

/// Refuses a directory that contains a run. Files left by a process that was killed before its first step do not
/// count.
pub(super) fn check_no_run(run: &Path) -> Result<()> {
    let run_name = run.display();
    if checkpoint::exists(run)? {
        return Err(Error::exists(
            run,
            format!("{run_name} already contains a run; resume it, or choose another directory"),
        ));
    }
    match find_run_output(run)? {
        None => Ok(()),
        Some(name) => Err(Error::exists(
            run,
            format!(
                "{run_name} already contains {name}, which belongs to a run without checkpoints or is an unrelated \
                 file; resume the run to restart it, or choose another directory"
            ),
        )),
    }
}

/// Checks that the directory for a run that branches off contains no run.
pub(super) fn check_no_run_for_branch(run: &Path) -> Result<()> {
    match checkpoint::exists(run)? || find_run_output(run)?.is_some() {
        true => Err(Error::exists(
            run,
            format!(
                "{} already contains a run; choose another directory",
                run.display()
            ),
        )),
        false => Ok(()),
    }
}

/// Returns the file that shows that a run without checkpoints was started in a directory.
fn find_run_output(run: &Path) -> Result<Option<&'static str>> {
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
    // Segments are written first: other files without a step are leftovers of a kill.
    if files::exists(run.join(segments::FILE))? {
        return Ok(None);
    }
    match is_empty(LayerRecord::FILE)? {
        false => Ok(Some(LayerRecord::FILE)),
        true => Ok(files::exists(run.join(CONFIG))?.then_some(CONFIG)),
    }
}

/// Marks the directory as that of an unfinished run. An unfinished run for the same purpose is restarted from
/// scratch.
pub(super) fn mark_unfinished(
    run: &Path,
    purpose: &str,
    guard: &mut RunDirectoryGuard,
) -> Result<()> {
    let path = run.join(UNFINISHED);
    if !files::exists(&path)? {
        check_no_run_for_branch(run)?;
        guard.register_file(UNFINISHED)?;
        return files::write(path, purpose.as_bytes()).map(drop);
    }
    if files::read_small(&path, PURPOSE_LIMIT)? != purpose.as_bytes() {
        return Err(Error::exists(
            run,
            format!(
                "{} contains an unfinished run with a different purpose ({UNFINISHED}); choose another \
             directory, or remove it",
                run.display()
            ),
        ));
    }
    clear(run)?;
    guard.create_folder(run.join(checkpoint::CHECKPOINTS))
}

/// Removes the mark of an unfinished run.
pub(super) fn unmark_unfinished(run: &Path) -> Result<()> {
    remove_file(&run.join(UNFINISHED))
}

/// Checks that there is a run to resume, before anything is created.
pub(super) fn require_run(run: &Path) -> Result<()> {
    if files::exists(run)? && (files::exists(run.join(CONFIG))? || checkpoint::exists(run)?) {
        return Ok(());
    }
    Err(Error::missing(
        format!(
            "a configuration or checkpoint to resume from in {}",
            run.display()
        ),
        "; start a new run instead, or choose another directory",
    ))
}

/// Formats the note about a corrupt checkpoint that is skipped in favour of an older one.
pub fn skipped_checkpoint_note(problem: &str) -> String {
    format!("skipped a corrupt checkpoint: {problem}")
}

/// Finds the checkpoint that a run is resumed from; `None` if it starts from scratch.
pub(super) fn find_resume_point(
    run: &Path,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Checkpoint>> {
    let found = checkpoint::newest(run)?;
    // Starting from scratch would drop the metrics of steps that a repaired checkpoint may still hold.
    if let (None, Some(problem)) = (&found.checkpoint, found.corrupt.first()) {
        return Err(Error::format(
            run.join(checkpoint::CHECKPOINTS),
            format!("no valid checkpoint to resume from; {problem}"),
        ));
    }
    for problem in found.corrupt {
        on_event(Event::Note(skipped_checkpoint_note(&problem)));
    }
    Ok(found.checkpoint.map(|(_, checkpoint)| checkpoint))
}
