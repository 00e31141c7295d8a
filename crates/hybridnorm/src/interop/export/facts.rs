//! Facts about the training of a model, from its run directory.

use std::path::Path;

use crate::error::Result;
use crate::files;
use crate::train::metrics::Metrics;
use crate::train::{Checkpoint, Config, State, records, run_directory};

/// Facts about the training of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainingFacts {
    /// Completed optimizer steps.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Training data, as the configuration names it.
    pub data: Vec<String>,
    /// Sequence length in training, in tokens.
    pub seq_len: Option<usize>,
    /// Optimizer and learning rate.
    pub optimizer: Option<String>,
    /// Cross-entropy of the batch of the last step, in nats per token.
    pub training_loss: Option<f64>,
    /// Step and mean validation loss of the last evaluation, in nats per token.
    pub validation_loss: Option<(u64, f64)>,
}

impl TrainingFacts {
    /// Reads the facts of a checkpoint; `None` if it was not written by a training run. Those that only the run
    /// directory contains are absent if the checkpoint is not in one.
    ///
    /// # Errors
    /// If a file of the run is corrupt.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if !checkpoint.has_state()? {
            return Ok(None);
        }
        let state: State = checkpoint.state()?;
        let mut facts = Self {
            steps: state.step,
            tokens: state.tokens,
            data: Vec::new(),
            seq_len: None,
            optimizer: None,
            training_loss: None,
            validation_loss: None,
        };
        if let Some(run) = checkpoint.path().parent().and_then(Path::parent) {
            facts.read_run(run)?;
        }
        Ok(Some(facts))
    }

    fn read_run(&mut self, run: &Path) -> Result<()> {
        let config = run.join(run_directory::CONFIG);
        if files::exists(&config)? {
            let config = Config::load(&config, &[])?;
            self.data = config.data.train;
            self.seq_len = Some(config.train.seq_len);
            let kind = format!("{:?}", config.optimizer.kind);
            self.optimizer = Some(format!(
                "{kind}, peak learning rate {:e}",
                config.optimizer.lr
            ));
        }
        let metrics: Vec<Metrics> = records::read(run)?;
        for metrics in metrics.iter().filter(|metrics| metrics.step <= self.steps) {
            self.training_loss = Some(metrics.loss);
            if let Some(loss) = metrics.validation_loss {
                self.validation_loss = Some((metrics.step, loss));
            }
        }
        Ok(())
    }
}
