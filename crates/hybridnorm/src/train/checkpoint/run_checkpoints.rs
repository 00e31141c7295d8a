//! Checkpoints of a run: finding the newest valid one, and removing old ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Checkpoint;
use crate::error::{Error, Result};
use crate::files;
use crate::train::run_directory;

/// Folder of a run that contains its checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// Returns the path of the checkpoint of a step.
pub fn step_path(run: &Path, step: u64) -> PathBuf {
    run.join(CHECKPOINTS).join(format!("step-{step:08}"))
}

/// Result of [`newest`].
#[derive(Debug)]
pub struct Newest {
    /// The newest valid checkpoint and its step.
    pub checkpoint: Option<(u64, Checkpoint)>,
    /// Errors of newer checkpoints that were skipped.
    pub corrupt: Vec<String>,
}

/// Finds the newest valid checkpoint of a run.
///
/// # Errors
/// If the run's folder cannot be listed, or a newer checkpoint cannot be read: such a checkpoint is not necessarily
/// corrupt.
pub fn newest(run: &Path) -> Result<Newest> {
    newest_before(run, u64::MAX)
}

/// Finds the newest valid checkpoint of a run before a step.
///
/// # Errors
/// As [`newest`].
pub fn newest_before(run: &Path, limit: u64) -> Result<Newest> {
    let mut corrupt = Vec::new();
    for (step, path) in list(run)?.into_iter().rev() {
        if step >= limit {
            continue;
        }
        match Checkpoint::verify(&path) {
            Ok(checkpoint) => {
                return Ok(Newest {
                    checkpoint: Some((step, checkpoint)),
                    corrupt,
                });
            }
            Err(Error::Io { path: file, source }) if !is_corruption(&source) => {
                return Err(Error::Io {
                    path: file,
                    source: io::Error::new(
                        source.kind(),
                        format!(
                            "{source}; retry, or remove the checkpoint {} to resume from an older one",
                            path.display()
                        ),
                    ),
                });
            }
            Err(error) => corrupt.push(error.to_string()),
        }
    }
    Ok(Newest {
        checkpoint: None,
        corrupt,
    })
}

/// True if the error indicates a corrupt checkpoint; all other errors may be temporary.
fn is_corruption(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        NotFound | NotADirectory | IsADirectory | InvalidData | UnexpectedEof
    )
}

/// True if a run has a checkpoint, valid or not.
///
/// # Errors
/// If the run's folder cannot be listed.
pub fn exists(run: &Path) -> Result<bool> {
    Ok(!list(run)?.is_empty())
}

/// Deletes all but the newest `keep` checkpoints of a run up to `step`, whose checkpoint was just written, so that at
/// least one valid checkpoint remains. Checkpoints of later steps are corrupt and were skipped on resuming; they do not
/// count toward `keep`, and are replaced when the run reaches their steps.
///
/// # Errors
/// If one cannot be deleted.
pub fn prune(run: &Path, step: u64, keep: usize) -> Result<()> {
    let mut all = list(run)?;
    all.retain(|&(saved_step, _)| saved_step <= step);
    let surplus = all.len().saturating_sub(keep.max(1));
    for (_, path) in &all[..surplus] {
        fs::remove_dir_all(path).map_err(Error::io(path))?;
    }
    Ok(())
}

/// Removes the checkpoints of a run, valid or not, and their folder if it is then empty.
///
/// # Errors
/// If one cannot be deleted.
pub(in crate::train) fn remove_all(run: &Path) -> Result<()> {
    for (_, path) in list(run)? {
        fs::remove_dir_all(&path).map_err(Error::io(path))?;
    }
    let folder = run.join(CHECKPOINTS);
    files::remove_stale_in(&folder);
    run_directory::remove_empty(&folder)
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Lists the checkpoints of a run by step, oldest first, valid or not.
fn list(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let folder = run.join(CHECKPOINTS);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&folder)(error)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(&folder))?.path();
        let step = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(step_of);
        if let Some(step) = step {
            all.push((step, path));
        }
    }
    all.sort();
    Ok(all)
}
