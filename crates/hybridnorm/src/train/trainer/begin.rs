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
    /// The configuration is new, or another one.
    pub(super) writes_config: bool,
    /// The run goes on in its directory.
    pub(super) is_resumed: bool,
    /// The run is not begun anew when it is killed.
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
        // The segments come first: with the old configuration beside them, what they say of it is still
        // true, while without them a new one would be taken for that of all steps.
        segments::write(&self.run, &self.segments)?;
        if beginning.writes_config {
            let path = self.run.join(run_directory::CONFIG);
            files::write(path, self.config.to_toml().as_bytes())?;
        }
        self.metrics = Some(RowsFile::open(&self.run, step)?);
        self.recorder.begin(step)?;
        if beginning.is_resumed {
            // A kill may have come between saving and pruning.
            checkpoint::prune(&self.run, step, self.config.train.keep_checkpoints)?;
        }
        if beginning.is_for_good {
            run_directory::finish(&self.run)?;
        }
        self.claim.keep();
        self.beginning = None;
        Ok(())
    }

    /// Makes all rows last that a checkpoint is about to cover.
    pub(super) fn sync_rows(&self) -> Result<()> {
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
        }
        self.recorder.sync()?;
        // Their names, too.
        files::sync_parent(&self.run.join(Metrics::FILE))
    }

    /// Writes down that this process saved a checkpoint.
    pub(super) fn note_saved(&mut self) -> Result<()> {
        if let Some(segment) = self.segments.last_mut() {
            segment.last_step = Some(self.state.step);
            segment.peak_memory_bytes = memory::peak_bytes();
        }
        segments::write(&self.run, &self.segments)
    }

    /// Says that a run came to its end that would be begun anew otherwise.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.claim.check_held()?;
        run_directory::finish(&self.run)
    }
}
