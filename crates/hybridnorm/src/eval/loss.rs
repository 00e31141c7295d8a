//! Loss and perplexity of a model on tokens.

use burn::module::Module;
use serde::Serialize;

use crate::data::open::TokenizerChoice;
use crate::data::{self, OpenOptions, Progress, Split, TokenDataset, Tokenizer};
use crate::error::{Error, Result};
use crate::model::{Decoder, LossOptions};
use crate::train::sources;

/// Mean loss over tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    /// Mean negative log-likelihood, in nats per token.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

/// Evaluates a model on the first `max_instances` instances of a data set (all of them if 0), in
/// order, `batch_size` at a time.
///
/// The mean is over all predicted tokens, so it does not depend on `batch_size` beyond the last
/// bits.
///
/// # Errors
/// If the data cannot be read, hold ids beyond the vocabulary, or are empty, or the loss is not
/// finite.
pub fn loss(
    model: &Decoder,
    data: &TokenDataset,
    batch_size: usize,
    max_instances: usize,
) -> Result<Loss> {
    let model = model.valid();
    let limit = (max_instances > 0).then_some(max_instances as u64);
    let (mut sum, mut tokens) = (0.0, 0u64);
    for batch in data.sequential(batch_size, limit) {
        let batch = batch?;
        let (b, t) = (batch.len(), batch.seq_len);
        let count = (b * t) as f64;
        let inputs = model.ids(&batch.inputs, b, t)?;
        let targets = model.ids(&batch.targets, b, t)?;
        let divisor = count as f32;
        let means = model.loss(inputs, targets, LossOptions { divisor });
        let means = means.into_data_as::<f32>();
        let mean = means.as_slice::<f32>().expect("converted to f32")[1];
        sum += f64::from(mean) * count;
        tokens += (b * t) as u64;
    }
    if tokens == 0 {
        return Err(Error::config("the evaluation data hold no whole sequence"));
    }
    let loss = sum / tokens as f64;
    if !loss.is_finite() {
        return Err(Error::not_finite(format!(
            "the loss on {tokens} tokens is {loss}; the model's weights are broken"
        )));
    }
    Ok(Loss {
        loss,
        perplexity: loss.exp(),
        tokens,
    })
}

/// Opens data to evaluate a model on.
///
/// [`Split::Validation`] is what a training on the same data holds out, of raw text too. Without a
/// split, raw text is taken as a whole, and prepared folders that hold a part out give that part.
///
/// # Errors
/// If the data are missing, damaged, were made with another tokenizer, or give no sequence.
pub fn open_data(
    paths: &[String],
    split: Option<Split>,
    model: &Decoder,
    tokenizer: Option<Tokenizer>,
    seq_len: Option<usize>,
    progress: &mut dyn FnMut(Progress),
) -> Result<TokenDataset> {
    let config = model.config();
    let seq_len = seq_len.unwrap_or(config.max_seq_len);
    if seq_len > config.max_seq_len {
        return Err(Error::config(format!(
            "sequences of {seq_len} tokens are longer than the model's {}",
            config.max_seq_len
        )));
    }
    let mut options = OpenOptions::new(seq_len, sources::cache_dir());
    options.vocab_size = Some(config.vocab_size);
    options.tokenizer = tokenizer.map(TokenizerChoice::Loaded);
    if let Some(split) = split {
        return Ok(data::open(paths, split, &options, progress)?.dataset);
    }
    options.prepare.validation_fraction = 0.0;
    let all = data::open(paths, Split::All, &options, progress)?;
    let holds_out = |folder: &data::PreparedFolder| folder.manifest().validation.tokens > 0;
    if all.folders.is_empty() || !all.folders.iter().all(holds_out) {
        return Ok(all.dataset);
    }
    Ok(data::open(paths, Split::Validation, &options, progress)?.dataset)
}
