//! Files that a process writes into a run directory before its first step. A process that runs no step writes
//! none.

use super::super::checkpoint;
use super::super::layers::LayersRow;
use super::super::metrics::Metrics;
use super::super::rows::{Row, RowsFile};
use super::super::run_directory;
use super::super::segments;
use super::Trainer;
use crate::error::Result;
use crate::files;
use crate::memory;

/// Parts of the run directory that are written before the first step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    /// True if the configuration is new or changed.
    pub(super) writes_config: bool,
    /// True if the run is resumed in its directory.
    pub(super) is_resumed: bool,
    /// True if the run is not restarted from scratch after a kill.
    pub(super) is_for_good: bool,
}

impl Trainer {
    /// Writes the files that are due before the first step, once.
    pub(super) fn begin(&mut self) -> Result<()> {
        let Some(beginning) = self.beginning else {
            return Ok(());
        };
        let step = self.state.step;
        for name in [
            segments::FILE,
            run_directory::CONFIG,
            Metrics::FILE,
            LayersRow::FILE,
        ] {
            self.claim.will_write(name)?;
        }
        self.claim.will_write_events();
        // Segments first: if the process is killed here, they still describe the old configuration correctly,
        // whereas a new configuration without them would be taken for that of all steps.
        segments::write(&self.run, &self.segments)?;
        if beginning.writes_config {
            let path = self.run.join(run_directory::CONFIG);
            files::write(path, self.config.to_toml().as_bytes())?;
        }
        self.metrics = Some(RowsFile::open(&self.run, step)?);
        self.recorder.begin(step)?;
        if beginning.is_resumed {
            // A process may have been killed between saving and pruning.
            checkpoint::prune(&self.run, step, self.config.train.keep_checkpoints)?;
        }
        if beginning.is_for_good {
            run_directory::finish(&self.run)?;
        }
        self.claim.keep();
        self.beginning = None;
        Ok(())
    }

    /// Flushes to disk all records that a checkpoint is about to cover.
    pub(super) fn sync_rows(&self) -> Result<()> {
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
        }
        self.recorder.sync()?;
        // Their directory entries as well.
        files::sync_parent(&self.run.join(Metrics::FILE))
    }

    /// Records in the segments that this process saved a checkpoint.
    pub(super) fn note_saved(&mut self) -> Result<()> {
        if let Some(segment) = self.segments.last_mut() {
            segment.last_step = Some(self.state.step);
            segment.peak_memory_bytes = memory::peak_bytes();
        }
        segments::write(&self.run, &self.segments)
    }

    /// Marks the run as finished; otherwise a run opened with `OpenOptions::unfinished` is restarted from scratch.
    ///
    /// # Errors
    /// If the mark of an unfinished run cannot be removed, or the directory is no longer locked.
    pub fn finish(&self) -> Result<()> {
        self.claim.check_held()?;
        run_directory::finish(&self.run)
    }
}
