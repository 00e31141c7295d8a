//! Start of a run: fresh, resumed, or branched off from another run.

use std::path::Path;

use super::super::checkpoint::{self, Checkpoint};
use super::super::config::Config;
use super::super::run_directory;
use super::super::run_directory_guard::RunDirectoryGuard;
use super::{Event, OpenOptions, Start};
use crate::error::{Error, Result};
use crate::files;

/// Start of a run.
pub(super) enum StartPoint {
    /// Step 0 of a new run.
    Fresh,
    /// A checkpoint of the same run.
    Resumed(Checkpoint),
    /// A checkpoint of another run.
    Branch(Checkpoint),
}

impl StartPoint {
    /// Finds the checkpoint to start from, and checks that the run directory may be written.
    pub(super) fn find(
        run: &Path,
        start: Start,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        match start {
            Start::Fresh => run_directory::check_no_run(run).map(|()| Self::Fresh),
            Start::Branch(checkpoint) => {
                run_directory::check_no_run_for_branch(run).map(|()| Self::Branch(checkpoint))
            }
            Start::Resume | Start::ResumeOrFresh => {
                let found = run_directory::find_resume_point(run, on_event)?;
                if found.is_none() {
                    on_event(Event::Note(
                        "no checkpoint to resume from; starting from step 0".into(),
                    ));
                }
                Ok(found.map_or(Self::Fresh, Self::Resumed))
            }
        }
    }

    /// Returns the checkpoint, if any.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Fresh => None,
            Self::Resumed(checkpoint) | Self::Branch(checkpoint) => Some(checkpoint),
        }
    }

    /// True if an existing run is resumed.
    pub(super) fn is_resumed(&self) -> bool {
        matches!(self, Self::Resumed(_))
    }

    /// Returns the configuration in the run directory, if there is one.
    pub(super) fn written_config(&self, run: &Path) -> Result<Option<Config>> {
        let path = run.join(run_directory::CONFIG);
        match files::exists(&path)? {
            true => Config::load(&path, &[]).map(Some),
            false if self.is_resumed() => Err(Error::format(
                path,
                "is missing, but resuming requires the configuration of the run",
            )),
            false => Ok(None),
        }
    }
}

/// Locks the run directory, creating it for a new run.
pub(super) fn lock_run_directory(
    run: &Path,
    start: &Start,
    options: &OpenOptions,
) -> Result<RunDirectoryGuard> {
    let mut guard = match start {
        Start::Resume => {
            run_directory::require_run(run)?;
            RunDirectoryGuard::open(run, options.locking)
        }
        _ => RunDirectoryGuard::create(run, options.locking),
    }?;
    if let Some(purpose) = &options.restart_purpose {
        run_directory::mark_unfinished(run, purpose, &mut guard)?;
    }
    Ok(guard)
}

/// Removes the temporary files of killed processes.
pub(super) fn remove_stale(run: &Path) {
    files::remove_stale_in(run);
    files::remove_stale_in(&run.join(checkpoint::CHECKPOINTS));
}
