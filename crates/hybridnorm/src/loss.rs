//! Loss and perplexity of a model on tokens.

use serde::Serialize;

use crate::data::{SlidingWindow, TokenDataset, Windows};
use crate::error::{Error, Result};
use crate::model::Model;

/// Mean loss over tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Loss {
    /// Mean negative log-likelihood, in nats per token.
    pub loss: f64,
    /// `exp(loss)`; null in JSON if it overflows f64.
    pub perplexity: f64,
    /// Number of predicted tokens.
    pub tokens: u64,
}

impl Loss {
    /// Returns the mean of a sum over `tokens` targets.
    pub(crate) fn mean(nats: f64, tokens: u64) -> Self {
        let loss = nats / tokens as f64;
        Self {
            loss,
            perplexity: loss.exp(),
            tokens,
        }
    }
}

/// Evaluates a model on the windows of a dataset, in order, `batch_size` at a time.
///
/// The mean is over all predicted tokens, whatever the length of their window, so it does not depend on
/// `batch_size` beyond rounding.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::data::{TokenDataset, Windows};
/// use hybridnorm::eval;
/// use hybridnorm::model::{Model, ModelConfig};
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8);
/// # let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let tokens: Vec<u32> = (0..22).map(|i| i % 8).collect();
/// let data = TokenDataset::from_tokens(&tokens, 8, 8)?;
/// let loss = eval::loss(&mut model, &data, 2, Windows::All)?;
/// assert_eq!(loss.tokens, 21);
/// assert_eq!(loss.perplexity, loss.loss.exp());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
///
/// # Errors
/// If the data cannot be read, contain token ids outside the vocabulary, or are empty, or the loss is not finite.
pub fn loss(
    model: &mut Model,
    data: &TokenDataset,
    batch_size: usize,
    windows: Windows,
) -> Result<Loss> {
    let (mut sum, mut tokens) = (0.0, 0u64);
    for batch in data.windows(batch_size, windows) {
        let batch = batch?;
        let (b, t) = (batch.len(), batch.seq_len);
        let count = (b * t) as f64;
        model.check_ids(&batch.targets, b, t)?;
        let losses = model.losses(&batch.inputs, &batch.targets, [b, t], count)?;
        sum += losses.cross_entropy * count;
        tokens += (b * t) as u64;
    }
    finished(sum, tokens)
}

/// Evaluates a model as [`loss`] does, on overlapping windows that advance by `stride` tokens, so that every target has
/// a context of at least the sequence length minus `stride`, except at the start of its stream. Every target counts
/// once.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::data::TokenDataset;
/// use hybridnorm::eval;
/// use hybridnorm::model::{Model, ModelConfig};
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8);
/// # let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let tokens: Vec<u32> = (0..22).map(|i| i % 8).collect();
/// let data = TokenDataset::from_tokens(&tokens, 8, 8)?;
/// assert_eq!(eval::sliding_loss(&mut model, &data, 2, 4)?.tokens, 21);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
///
/// # Errors
/// As [`loss`], or if `stride` is 0 or larger than the sequence length.
pub fn sliding_loss(
    model: &mut Model,
    data: &TokenDataset,
    batch_size: usize,
    stride: usize,
) -> Result<Loss> {
    let (mut sum, mut tokens) = (0.0, 0u64);
    let mut windows = data.sliding_windows(stride)?.peekable();
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    let (mut rows, mut scored) = (0, 0u64);
    while let Some(window) = windows.next() {
        let window = window?;
        let seq = window.inputs.len();
        inputs.extend_from_slice(&window.inputs);
        targets.extend_from_slice(&window.targets);
        (rows, scored) = (rows + 1, scored + window.scored);
        let is_same_length =
            |next: &Result<SlidingWindow>| next.as_ref().is_ok_and(|next| next.inputs.len() == seq);
        if rows < batch_size && windows.peek().is_some_and(is_same_length) {
            continue;
        }
        model.check_targets(&targets, rows, seq)?;
        // One divisor for all batches of a shape, since it is part of their program.
        let divisor = (rows * seq) as f64;
        let losses = model.losses(&inputs, &targets, [rows, seq], divisor)?;
        sum += losses.cross_entropy * divisor;
        tokens += scored;
        inputs.clear();
        targets.clear();
        (rows, scored) = (0, 0);
    }
    finished(sum, tokens)
}

/// Returns the mean of a sum over targets, and checks it.
fn finished(sum: f64, tokens: u64) -> Result<Loss> {
    if tokens == 0 {
        return Err(Error::invalid_value(
            "data",
            "the evaluation data contain no target token",
        ));
    }
    let loss = Loss::mean(sum, tokens);
    if !loss.loss.is_finite() {
        return Err(Error::not_finite(format!(
            "the loss on {tokens} tokens is {}; the model's weights may be corrupt",
            loss.loss
        )));
    }
    Ok(loss)
}
