//! The directory of a run: who holds it, what may be written there, where a run goes on.

use std::fs::File;
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::config::Config;
use super::layers::LayersRow;
use super::metrics::Metrics;
use super::recorder::FLIGHT;
use super::rows::Row;
use super::tensorboard;
use super::trainer::Event;
use crate::error::{Error, Result};
use crate::files;

/// The configuration in a run directory.
pub const CONFIG: &str = "config.toml";
const LOCK: &str = "lock";

/// Takes hold of a run directory for as long as the returned file lives.
///
/// # Errors
/// If another process holds it.
pub fn lock(run: &Path) -> Result<File> {
    let path = run.join(LOCK);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::config(format!(
            "{}: another process is training here",
            run.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(Error::io(&path)(error)),
    }
}

/// Checks that a run directory is still the one whose lock this process holds.
///
/// # Errors
/// If it was moved, removed or made anew.
pub(super) fn check_held(run: &Path, lock: &File) -> Result<()> {
    let path = run.join(LOCK);
    let found = std::fs::metadata(&path).map_err(Error::io(&path))?;
    let held = lock.metadata().map_err(Error::io(&path))?;
    match files::is_same(&found, &held) {
        true => Ok(()),
        false => Err(Error::format(
            run,
            "is not the directory this run began in; it was moved or made anew",
        )),
    }
}

/// Removes what a run wrote into its directory, and nothing else.
///
/// # Errors
/// If another process trains there, or a file cannot be removed.
pub fn remove(run: &Path) -> Result<()> {
    let lock = lock(run)?;
    for name in [checkpoint::CHECKPOINTS, FLIGHT] {
        let folder = run.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(Error::io(folder))?;
        }
    }
    tensorboard::remove(run)?;
    for name in [Metrics::FILE, LayersRow::FILE, CONFIG, LOCK] {
        let path = run.join(name);
        if path.exists() {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    drop(lock);
    Ok(())
}

/// A new run needs a directory that holds none.
pub(super) fn refuse_to_overwrite(run: &Path) -> Result<()> {
    if checkpoint::exists(run)? {
        return Err(Error::config(format!(
            "{} already holds a run; go on with it by --resume, or choose another --run",
            run.display()
        )));
    }
    for name in [CONFIG, Metrics::FILE] {
        if run.join(name).exists() {
            return Err(Error::config(format!(
                "{} already holds a run that has not saved yet, or another {name}; begin it again \
                 by --resume, or choose another --run",
                run.display()
            )));
        }
    }
    Ok(())
}

/// A run that branches off needs a directory that holds none.
pub(super) fn refuse_to_share(run: &Path) -> Result<()> {
    let is_there = |name: &str| run.join(name).exists();
    match is_there(CONFIG) || is_there(Metrics::FILE) || checkpoint::exists(run)? {
        true => Err(Error::config(format!(
            "{} already holds a run; choose another --out",
            run.display()
        ))),
        false => Ok(()),
    }
}

/// Where a run goes on; `None` where it begins.
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
        on_event(Event::Note(format!(
            "passed over a broken checkpoint: {problem}"
        )));
    }
    let note = match &found.checkpoint {
        Some((step, _)) => format!("going on after step {step}"),
        None => "no checkpoint to resume from; starting from the beginning".into(),
    };
    on_event(Event::Note(note));
    Ok(found.checkpoint.map(|(_, checkpoint)| checkpoint))
}

/// A resumed run must be the same run: what decides weights' shapes or the order of batches may
/// not change. Other changes take effect and are noted.
pub(super) fn check_same_run(
    config: &Config,
    run: &Path,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let old = Config::load(run.join(CONFIG), &[])?;
    let mut fixed = vec![
        ("seed", old.seed == config.seed),
        ("[model]", old.model == config.model),
        ("[init]", old.init == config.init),
        ("data.train", old.data.train == config.data.train),
        (
            "data.tokenizer",
            old.data.tokenizer == config.data.tokenizer,
        ),
        ("data.order", old.data.order == config.data.order),
        ("train.seq_len", old.train.seq_len == config.train.seq_len),
    ];
    fixed.retain(|(_, same)| !same);
    if let Some((key, _)) = fixed.first() {
        return Err(Error::config(format!(
            "{key} differs from {}; a resumed run must keep it",
            run.join(CONFIG).display()
        )));
    }
    if old != *config {
        on_event(Event::Note(
            "the configuration differs from the one this run was started with; \
             the new values hold from here"
                .into(),
        ));
    }
    Ok(())
}
