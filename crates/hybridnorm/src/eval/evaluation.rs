//! Evaluation on several datasets: the loss on each, and over all of them.

use std::f64::consts::LN_2;

use serde::Serialize;

use super::overlap;
use super::sets::{EvalOptions, EvalSet};
use super::text_bytes::{evaluated_bytes, no_bits_per_byte};
use super::text_options::TextOptions;
use crate::data::{Coverage, Split, TextStats, Tokenizer};
use crate::error::{Error, Result};
use crate::loss::{Loss, loss, sliding_loss};
use crate::model::Model;
use crate::omissions::Omissions;
use crate::plan::Precision;

/// Loss on one dataset.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SetLoss {
    /// Name as given.
    pub name: String,
    /// Split that was evaluated: `train`, `validation` or `all`.
    pub split: &'static str,
    /// Loss and its coverage.
    #[serde(flatten)]
    pub measured: LossWithCoverage,
    /// Targets that are the unknown token of the vocabulary.
    pub unknown_tokens: u64,
    /// Statistics of the text that the set was prepared from, over all splits of prepared data; absent for token files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<TextStats>,
    /// Notes for the user, besides those of `text`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A mean over tokens and its coverage: `all_tokens = tokens + omissions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LossWithCoverage {
    /// Mean loss.
    #[serde(flatten)]
    pub loss: Loss,
    /// Bits per byte of text: the total loss of all evaluated tokens, end-of-text tokens included, over the
    /// bytes that these tokens represent. `None` if the bytes are not known.
    pub bits_per_byte: Option<f64>,
    /// Reason why there are no bits per byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "no_bits_per_byte")]
    pub bits_per_byte_missing_reason: Option<String>,
    /// Bytes that the evaluated tokens represent.
    pub text_bytes: Option<u64>,
    /// Number of all tokens.
    pub all_tokens: u64,
    /// Tokens that are not evaluated, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
}

/// Loss on every dataset, and the mean over the tokens of all of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// All sets pooled.
    #[serde(flatten)]
    pub pooled: LossWithCoverage,
    /// Means of loss and perplexity over the sets, each with the same weight, as in tables of papers; absent for a single
    /// set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_of_sets: Option<SetMeans>,
    /// Distance between overlapping windows in tokens: each window has the maximum sequence length, and after the first
    /// one of a stream only its last tokens are scored, so that every token counts once. Absent if windows do not
    /// overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Precision of the model, such as `bf16, residual stream in f32`.
    pub precision: String,
    /// Each set, in the order given.
    pub sets: Vec<SetLoss>,
    /// Options with which raw text was read, if there is any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_options: Option<TextOptions>,
    /// Notes for the user about all sets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Means over data sets, each with the same weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SetMeans {
    /// Mean of the losses, in nats per token.
    pub loss: f64,
    /// Mean of the perplexities.
    pub perplexity: f64,
}

/// Evaluates a model on every dataset.
///
/// # Errors
/// [`Error::Missing`] without a set; otherwise see [`loss`], and the message names the set.
///
/// ```
/// use hybridnorm::data::{Windows, quiet};
/// use hybridnorm::eval::{EvalOptions, evaluate, open_sets};
/// # use hybridnorm::Device;
/// # use hybridnorm::data::Tokenizer;
/// # use hybridnorm::model::{Model, ModelConfig};
///
/// # let tokenizer = Tokenizer::bytes();
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(tokenizer.vocab_size())
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// # let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let paths = ["stories:5", "stories:5:5"].map(str::to_owned);
/// let options = EvalOptions::default().with_windows(Windows::Full { limit: Some(4) });
/// let sets = open_sets(&paths, &options, &model, Some(&tokenizer), &mut quiet)?;
/// let found = evaluate(&mut model, &sets, &options)?;
/// let tokens: Vec<u64> = found.sets.iter().map(|set| set.measured.loss.tokens).collect();
/// assert_eq!(tokens, [4 * 8, 4 * 8]);
/// assert_eq!(found.pooled.loss.tokens, 64);
/// assert!(found.pooled.bits_per_byte.is_some(), "the tokens are bytes");
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn evaluate(model: &mut Model, sets: &[EvalSet], options: &EvalOptions) -> Result<Evaluation> {
    if sets.is_empty() {
        return Err(Error::missing("data", ": no set to evaluate on"));
    }
    let mut found = Vec::new();
    for set in sets {
        let measured = match options.stride {
            Some(stride) => sliding_loss(model, &set.data, options.batch_size, stride),
            None => loss(model, &set.data, options.batch_size, options.windows),
        };
        let measured = measured.map_err(|error| match error {
            Error::Diverged { step, problem } => Error::Diverged {
                step,
                problem: format!("{}: {problem}", set.name),
            },
            error => error,
        })?;
        let bytes = evaluated_bytes(set, options);
        let unknown_tokens = unknown_tokens(set, options)?;
        let mut notes = set.notes.clone();
        notes.extend(uncovered_text_note(set, unknown_tokens, bytes.is_ok()));
        if model.precision() != Precision::F32 {
            notes.push(format!("computed in {}", model.precision()));
        }
        let Coverage {
            all_tokens,
            omissions,
            ..
        } = set.data.coverage(options.windows);
        found.push(SetLoss {
            name: set.name.clone(),
            split: name(set.split),
            unknown_tokens,
            text: set.text.clone(),
            measured: LossWithCoverage {
                bits_per_byte_missing_reason: bytes.as_ref().err().cloned(),
                bits_per_byte: bytes.as_ref().ok().map(|&bytes| bits(measured, bytes)),
                text_bytes: bytes.ok(),
                loss: measured,
                all_tokens,
                omissions,
            },
            notes,
        });
    }
    Ok(Evaluation {
        pooled: pooled(&found),
        mean_of_sets: mean_of_sets(&found),
        stride: options.stride,
        precision: model.precision().to_string(),
        sets: found,
        text_options: sets.iter().find_map(|set| set.text_options.clone()),
        notes: overlap::overlap_notes(sets)?,
    })
}

/// Counts the targets that are the unknown token.
fn unknown_tokens(set: &EvalSet, options: &EvalOptions) -> Result<u64> {
    let Some(unknown) = set.tokenizer.as_ref().and_then(Tokenizer::unknown_id) else {
        return Ok(0);
    };
    let mut count = 0;
    for batch in set.data.windows(64, options.windows) {
        let targets = batch?.targets;
        count += targets.iter().filter(|&&id| id as u32 == unknown).count() as u64;
    }
    Ok(count)
}

/// Returns a note if some of the text is not covered by the loss: unknown tokens and dropped characters.
fn uncovered_text_note(set: &EvalSet, unknown_tokens: u64, has_bits: bool) -> Option<String> {
    let dropped = set.text.as_ref().map_or(0, |text| text.dropped_chars);
    let what = match (unknown_tokens, dropped) {
        (0, 0) => return None,
        (unknown, 0) => format!("{unknown} of the targets are the unknown token"),
        (0, dropped) => format!("{dropped} characters of the text are not in the vocabulary"),
        (unknown, dropped) => format!(
            "{unknown} of the targets are the unknown token, and {dropped} characters of the text are \
             not in the vocabulary"
        ),
    };
    let bits = match has_bits {
        true => ", and bits per byte includes their bytes",
        false => "",
    };
    Some(format!("{what}: the loss does not cover them{bits}"))
}

fn name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "validation",
        Split::All => "all",
    }
}

fn bits(loss: Loss, bytes: u64) -> f64 {
    loss.loss * loss.tokens as f64 / LN_2 / bytes as f64
}

fn mean_of_sets(sets: &[SetLoss]) -> Option<SetMeans> {
    let mean = |value: fn(&Loss) -> f64| {
        let sum: f64 = sets.iter().map(|set| value(&set.measured.loss)).sum();
        sum / sets.len() as f64
    };
    (sets.len() > 1).then(|| SetMeans {
        loss: mean(|loss| loss.loss),
        perplexity: mean(|loss| loss.perplexity),
    })
}

fn pooled(sets: &[SetLoss]) -> LossWithCoverage {
    let measured = || sets.iter().map(|set| &set.measured);
    let nats = |loss: &Loss| loss.loss * loss.tokens as f64;
    let loss = match sets {
        [set] => set.measured.loss,
        _ => Loss::mean(
            measured().map(|set| nats(&set.loss)).sum(),
            measured().map(|set| set.loss.tokens).sum(),
        ),
    };
    let mut omissions = Omissions::default();
    for set in measured() {
        omissions.extend(&set.omissions);
    }
    let text_bytes = measured().map(|set| set.text_bytes).sum::<Option<u64>>();
    LossWithCoverage {
        loss,
        bits_per_byte: text_bytes.map(|bytes| bits(loss, bytes)),
        bits_per_byte_missing_reason: no_bits_per_byte(sets),
        text_bytes,
        all_tokens: measured().map(|set| set.all_tokens).sum(),
        omissions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::model::testing::tiny;

    #[test]
    fn an_evaluation_needs_a_set() {
        let mut model = Model::new(&tiny(), 0, Device::Cpu).unwrap();
        let error = evaluate(&mut model, &[], &EvalOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{error}");
    }
}
