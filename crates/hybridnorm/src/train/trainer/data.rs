//! The data of a run.

use std::path::PathBuf;

use crate::data::{BatchStream, Cursor, Order, TokenDataset, Tokenizer};
use crate::error::Result;
use crate::loss::{self, Loss};
use crate::model::Model;
use crate::train::config::Config;
use crate::train::sources::{self, DataCoverage, Sources};

/// Training batches from the run's position on, validation data, and facts about both.
pub(super) struct RunData {
    pub(super) stream: BatchStream,
    pub(super) validation: Option<TokenDataset>,
    pub(super) coverage: DataCoverage,
    pub(super) tokenizer: Option<Tokenizer>,
    /// Prepared folders among the training data.
    pub(super) folders: Vec<PathBuf>,
}

impl RunData {
    /// # Errors
    /// If the position is beyond the data.
    pub(super) fn new(sources: Sources, order: Order, cursor: Cursor) -> Result<Self> {
        Ok(Self {
            stream: BatchStream::new(sources.train, order, cursor)?,
            validation: sources.validation,
            coverage: sources.coverage,
            tokenizer: sources.tokenizer,
            folders: sources.folders,
        })
    }

    /// Returns the loss of the model on the validation data, if any.
    ///
    /// # Errors
    /// If the data cannot be read, or the loss is not finite.
    pub(super) fn evaluate(&self, model: &mut Model, config: &Config) -> Result<Option<Loss>> {
        let Some(data) = &self.validation else {
            return Ok(None);
        };
        let micro_batch = config.train.step_shape().micro_batch;
        let windows = sources::validation_windows(config);
        loss::loss(model, data, micro_batch, windows).map(Some)
    }
}
