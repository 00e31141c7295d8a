//! The data of a run.

use std::path::PathBuf;

#[cfg(feature = "data")]
use super::tasks::RunTasks;
use crate::data::{BatchStream, Cursor, Order, TokenDataset, Tokenizer};
use crate::error::Result;
use crate::loss::{self, Loss};
use crate::model::Model;
use crate::train::config::Config;
use crate::train::sources::{self, DataCoverage, TrainingData};

/// Training batches from the data cursor on, validation data, and the coverage and tokenizer of both.
pub(super) struct RunData {
    pub(super) stream: BatchStream,
    pub(super) validation: Option<TokenDataset>,
    pub(super) coverage: DataCoverage,
    pub(super) tokenizer: Option<Tokenizer>,
    /// Downstream tasks.
    #[cfg(feature = "data")]
    pub(super) tasks: RunTasks,
    /// Prepared folders among the training data.
    pub(super) folders: Vec<PathBuf>,
}

impl RunData {
    /// Creates the data of a run whose batches start at `cursor`.
    ///
    /// # Errors
    /// If the position is beyond the data.
    pub(super) fn new(data: TrainingData, order: Order, cursor: Cursor) -> Result<Self> {
        Ok(Self {
            stream: BatchStream::new(data.train, order, cursor)?,
            validation: data.validation,
            coverage: data.coverage,
            tokenizer: data.tokenizer,
            #[cfg(feature = "data")]
            tasks: RunTasks::default(),
            folders: data.folders,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::model::testing::tiny;
    use crate::train::TrainSection;

    const SEQ: usize = 8;

    fn tokens(count: usize) -> TokenDataset {
        let vocab = tiny().vocab_size;
        let tokens: Vec<u32> = (0..count).map(|i| (i * i % vocab) as u32).collect();
        TokenDataset::from_tokens(&tokens, SEQ, vocab).unwrap()
    }

    /// Returns the validation loss of a new model, evaluated on at most three sequences.
    fn evaluate(validation: Option<TokenDataset>) -> Option<Loss> {
        let train = TrainSection::default()
            .with_seq_len(SEQ)
            .with_batch_size(4)
            .with_grad_accum_steps(2)
            .with_eval_sequences(3);
        let config = Config::default().with_train(train);
        let data = TrainingData::new(&config, tokens(4 * SEQ + 1), validation);
        let data = RunData::new(data, Order::Sequential, Cursor::default()).unwrap();
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let found = data.evaluate(&mut model, &config).unwrap();
        assert_eq!(data.stream.cursor(), Cursor::default());
        found
    }

    #[test]
    fn without_validation_data_there_is_no_loss() {
        assert_eq!(evaluate(None), None);
    }

    #[test]
    fn evaluation_is_limited_to_eval_sequences() {
        let found = evaluate(Some(tokens(5 * SEQ + 1))).unwrap();
        assert_eq!(found.tokens, 3 * SEQ as u64);
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let windows = crate::data::Windows::Full { limit: None };
        let expected = loss::loss(&mut model, &tokens(3 * SEQ + 1), 2, windows).unwrap();
        assert_eq!(found, expected);
    }
}
