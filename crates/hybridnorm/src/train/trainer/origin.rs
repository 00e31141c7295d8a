//! The state of a run directory that a training begins from.

use std::path::Path;

use super::super::checkpoint::{self, Checkpoint};
use super::super::claim::RunDirectoryGuard;
use super::super::config::Config;
use super::super::run_directory;
use super::{Event, OpenOptions, Start};
use crate::error::{Error, Result};
use crate::files;

/// Origin of a training.
pub(super) enum Origin {
    /// The beginning of a run.
    Fresh,
    /// A checkpoint of the same run.
    Resumed(Checkpoint),
    /// A checkpoint of another run.
    Branch(Checkpoint),
}

impl Origin {
    /// Finds the checkpoint to begin from, and checks that the run directory may be written.
    pub(super) fn find(
        run: &Path,
        start: Start,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        match start {
            Start::Fresh => run_directory::refuse_to_overwrite(run).map(|()| Self::Fresh),
            Start::Branch(checkpoint) => {
                run_directory::refuse_to_share(run).map(|()| Self::Branch(checkpoint))
            }
            Start::Resume | Start::ResumeOrFresh => {
                let found = run_directory::find_resume_point(run, on_event)?;
                if found.is_none() {
                    on_event(Event::Note(
                        "no checkpoint to resume from; starting from step 1".into(),
                    ));
                }
                Ok(found.map_or(Self::Fresh, Self::Resumed))
            }
        }
    }

    /// The checkpoint.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Self::Fresh => None,
            Self::Resumed(checkpoint) | Self::Branch(checkpoint) => Some(checkpoint),
        }
    }

    /// True if the training continues a run.
    pub(super) fn is_resumed(&self) -> bool {
        matches!(self, Self::Resumed(_))
    }

    /// The configuration in the run directory, if there is one.
    pub(super) fn written_config(&self, run: &Path) -> Result<Option<Config>> {
        let path = run.join(run_directory::CONFIG);
        match files::exists(&path)? {
            true => Config::load(&path, &[]).map(Some),
            false if self.is_resumed() => Err(Error::format(
                path,
                "missing: the configuration of the run is unknown",
            )),
            false => Ok(None),
        }
    }
}

/// Claims the run directory.
pub(super) fn claim(run: &Path, start: &Start, options: &OpenOptions) -> Result<RunDirectoryGuard> {
    let mut claim = match start {
        Start::Resume => {
            run_directory::require_run(run)?;
            RunDirectoryGuard::existing(run, options.locking)
        }
        _ => RunDirectoryGuard::create(run, options.locking),
    }?;
    if let Some(purpose) = &options.restart_purpose {
        run_directory::begin_unfinished(run, purpose, &mut claim)?;
    }
    Ok(claim)
}

/// Removes the temporary files of killed processes.
pub(super) fn remove_stale(run: &Path) {
    files::remove_stale_in(run);
    files::remove_stale_in(&run.join(checkpoint::CHECKPOINTS));
}
