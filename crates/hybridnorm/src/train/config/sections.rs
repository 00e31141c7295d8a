//! `[init]`, `[data]`, `[train]` and `[log]`.

use std::path::PathBuf;

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::precision::FloatFormat;
#[cfg(feature = "data")]
use crate::data::SourceOptions;
use crate::error::{Error, Result};
use crate::plan::{Options, Precision, Recompute};
use crate::train::sources::DataOrder;
use crate::train::step::StepShape;

/// Maximum tokens of one optimizer step; larger batches are rejected as likely typos.
const MAX_BATCH_TOKENS: u64 = 1 << 30;
/// `[init]`: checkpoint to initialize the weights from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InitSection {
    /// Checkpoint to initialize the weights from; the optimizer state is not loaded.
    pub from: PathBuf,
}

impl InitSection {
    /// Returns the section that starts from a checkpoint or a run directory.
    pub fn new(from: impl Into<PathBuf>) -> Self {
        Self { from: from.into() }
    }

    /// Checks that a path is given.
    pub(super) fn check(&self) -> Result<()> {
        match self.from.as_os_str().is_empty() {
            true => Err(Error::invalid_value(
                "init.from",
                "init.from is empty, expected a checkpoint or a run directory",
            )),
            false => Ok(()),
        }
    }
}

/// `[data]`: training and validation data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct DataSection {
    /// Training text or tokens: files, folders, globs, `gutenberg`, `stories:N`, prepared folders.
    pub train: Vec<String>,
    /// Validation text or tokens. Empty: the held-out part of the training data.
    pub validation: Vec<String>,
    /// `bytes`, `r50k`, `cl100k`, `bpe:N`, or a path. Not needed for pre-tokenized data.
    #[setters(into)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Order of instances within an epoch.
    pub order: DataOrder,
    /// Options for reading raw text.
    #[cfg(feature = "data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<SourceOptions>,
}

/// `[train]`: number of steps, batch size, sequence length, intervals.
///
/// ```
/// use hybridnorm::train::TrainSection;
///
/// let section = TrainSection::default()
///     .with_batch_size(32)
///     .with_grad_accum_steps(4)
///     .with_seq_len(128);
/// assert_eq!(section.tokens_per_step(), 32 * 128);
/// assert_eq!(section.step_shape().micro_batch, 8);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct TrainSection {
    /// Optimizer steps.
    pub steps: usize,
    /// Sequences per optimizer step.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches per optimizer step; divides `batch_size`. Changes memory use; results only by rounding, except for
    /// the load-balancing loss of a mixture of experts, which is computed per micro-batch.
    pub grad_accum_steps: usize,
    /// Activations that the backward pass recomputes: `"none"`: only cheap ones; `"block"`: all within blocks;
    /// `"budget:BYTES"`: those of as few blocks as needed to keep activations, gradients and scratch of a
    /// micro-batch within this many bytes. Changes memory use and time, not results.
    pub recompute: Recompute,
    /// Precision of matmuls and activations: `"f32"`, or `"bf16"` for mixed precision with bfloat16 operands and
    /// single-precision sums. Parameters, gradients and moments are in single precision in any case.
    #[serde(skip_serializing_if = "FloatFormat::is_f32")]
    pub precision: FloatFormat,
    /// Format of the residual stream in mixed precision, `"f32"` or `"bf16"`.
    #[serde(skip_serializing_if = "is_f32")]
    pub residual_precision: Option<FloatFormat>,
    /// True if copies of the weights of matmuls in bfloat16, which AdamW updates, are kept in mixed precision, instead of
    /// rounding weights where they are used: half of their memory again, for less time. Changes no result.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub bf16_weight_copies: bool,
    /// Steps between evaluations, besides the one at the end; 0: only at the end.
    pub eval_every: usize,
    /// Maximum sequences per evaluation; 0: all.
    pub eval_sequences: usize,
    /// Steps between checkpoints, besides the one at the end; 0: only at the end.
    pub checkpoint_every: usize,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 16,
            seq_len: 256,
            grad_accum_steps: 1,
            recompute: Recompute::None,
            precision: FloatFormat::F32,
            residual_precision: None,
            bf16_weight_copies: false,
            eval_every: 100,
            eval_sequences: 256,
            checkpoint_every: 500,
            keep_checkpoints: 2,
        }
    }
}

/// True if the residual stream is in single precision, by default or not.
fn is_f32(format: &Option<FloatFormat>) -> bool {
    format.unwrap_or_default() == FloatFormat::F32
}

impl TrainSection {
    /// Returns the tokens of an optimizer step, each of which is a target.
    pub fn tokens_per_step(&self) -> u64 {
        (self.batch_size * self.seq_len) as u64
    }

    /// Returns the shape of an optimizer step.
    pub fn step_shape(&self) -> StepShape {
        StepShape {
            micro_batch: self.batch_size / self.grad_accum_steps.max(1),
            seq_len: self.seq_len,
            grad_accum_steps: self.grad_accum_steps,
            recompute: self.recompute,
            precision: self.program_precision(),
            keep_rounded_weights: self.bf16_weight_copies,
        }
    }

    /// Returns the options of evaluations.
    pub(crate) fn evaluation_options(&self) -> Options {
        Options::default()
            .with_precision(self.program_precision())
            .with_keep_rounded_weights(self.bf16_weight_copies)
    }

    /// Returns the precision of the programs.
    pub fn program_precision(&self) -> Precision {
        match self.precision {
            FloatFormat::F32 => Precision::F32,
            FloatFormat::Bf16 => Precision::Bf16 {
                residual: self.residual_precision.unwrap_or_default().dtype(),
            },
        }
    }

    /// Checks the ranges of the section, and that a step is not too large.
    pub(super) fn check(&self) -> Result<()> {
        // An explicit "f32" takes back what a configuration file or a run has set.
        if self.precision == FloatFormat::F32 && !is_f32(&self.residual_precision) {
            return Err(Error::conflict(
                ["train.residual_precision", "train.precision"],
                "train.residual_precision = \"bf16\" has no effect with train.precision = \"f32\"; set train.precision = \
                 \"bf16\" or train.residual_precision = \"f32\""
                    .to_owned(),
            ));
        }
        if self.precision == FloatFormat::F32 && self.bf16_weight_copies {
            return Err(Error::conflict(
                ["train.bf16_weight_copies", "train.precision"],
                "train.bf16_weight_copies has no effect with train.precision = \"f32\"; set train.precision = \"bf16\" \
                 or train.bf16_weight_copies = false"
                    .to_owned(),
            ));
        }
        let positive = [
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("seq_len", self.seq_len),
            ("grad_accum_steps", self.grad_accum_steps),
            ("keep_checkpoints", self.keep_checkpoints),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::out_of_range(format!("train.{key}"), 0, "at least 1"));
        }
        if !self.batch_size.is_multiple_of(self.grad_accum_steps) {
            return Err(Error::conflict(
                ["train.grad_accum_steps", "train.batch_size"],
                format!(
                    "train.grad_accum_steps = {} does not divide train.batch_size = {}",
                    self.grad_accum_steps, self.batch_size
                ),
            ));
        }
        let tokens = (self.batch_size as u64).checked_mul(self.seq_len as u64);
        if tokens.is_none_or(|tokens| tokens > MAX_BATCH_TOKENS) {
            return Err(Error::conflict(
                ["train.batch_size", "train.seq_len"],
                format!(
                    "train.batch_size = {} sequences of train.seq_len = {} are more than {MAX_BATCH_TOKENS} \
                     tokens per step",
                    self.batch_size, self.seq_len
                ),
            ));
        }
        Ok(())
    }
}

/// `[eval]`: downstream tasks that are evaluated during training.
///
/// ```
/// use hybridnorm::train::EvalSection;
///
/// let section = EvalSection::default()
///     .with_tasks(vec!["arc_easy".to_owned(), "hellaswag".to_owned()])
///     .with_every(1000)
///     .with_limit(200);
/// assert_eq!(section.tasks.len(), 2);
/// ```
#[cfg(feature = "data")]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct EvalSection {
    /// Names or paths of the tasks, as in `eval --tasks`.
    pub tasks: Vec<String>,
    /// Steps between evaluations, besides the one at the end; 0: only at the end.
    pub every: usize,
    /// Maximum number of documents per task, the first ones; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

#[cfg(feature = "data")]
impl EvalSection {
    /// Checks that there is a task, and the range of the limit.
    pub(super) fn check(&self) -> Result<()> {
        if self.tasks.is_empty() {
            return Err(Error::missing(
                "eval.tasks",
                ", the names of the tasks in [eval]",
            ));
        }
        match self.limit {
            Some(0) => Err(Error::out_of_range("eval.limit", 0, "at least 1")),
            _ => Ok(()),
        }
    }
}

/// `[log]`: logging of a run. Does not affect results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct LogSection {
    /// Steps between records of per-block activation statistics (`layers.jsonl`); 0: none. Computing one takes 5 to 10
    /// % of the time of a step (`bench/recorder.py`).
    pub layers_every: usize,
    /// True if event files for TensorBoard are written.
    pub tensorboard: bool,
    /// Maximum number of dumps of the model's state after spikes; after non-finite values, the state is always dumped.
    pub dumps: usize,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            layers_every: 10,
            tensorboard: false,
            dumps: 16,
        }
    }
}
