//! Configuration of a run.

mod explain;
mod read;

use derive_setters::Setters;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

use super::optimizer::OptimizerConfig;
use super::schedule::{Schedule, ScheduleConfig};
use super::sources::DataOrder;
use super::step::StepShape;
use crate::data::PreparedFolder;
#[cfg(feature = "data")]
use crate::data::{SourceOptions, Tokenizer, TokenizerSpec};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Activation, MlaConfig, ModelConfig, MoeConfig};
use crate::placement;
use crate::plan::Recompute;

pub use read::placement_from_file;
#[cfg(feature = "lab")]
pub(crate) use read::with_overrides;
pub(crate) use read::{from_toml, read_text};

/// Maximum tokens of one optimizer step; larger batches are typing errors.
const LARGEST_BATCH: u64 = 1 << 30;

/// Configuration of a run, in TOML. Every section may be absent until it is needed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Config {
    /// Random seed of initial values and data order.
    pub seed: u64,
    /// Shape and placement of the model. May be absent if `[init] from` names a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSection>,
    /// Checkpoint to take the weights from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitSection>,
    /// Training and validation data.
    pub data: DataSection,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning-rate schedule.
    pub schedule: ScheduleConfig,
    /// Steps, batch and sequence sizes, intervals of evaluation and checkpoints.
    pub train: TrainSection,
    /// Records of the run.
    pub log: LogSection,
    /// File that it was read from.
    #[setters(skip)]
    #[serde(skip)]
    pub origin: Origin,
}

/// File that a configuration was read from, for errors that are found later. It is not part of the
/// configuration's value: all are equal.
#[derive(Debug, Clone, Default)]
pub struct Origin(Option<PathBuf>);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    /// Prefixes a problem with a value of the configuration with the name of the file.
    pub(crate) fn name(&self, error: Error) -> Error {
        match (&self.0, error) {
            (Some(path), error) => error.in_file(path),
            (None, error) => error,
        }
    }
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct ModelSection {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; by default as many as query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Inner width of a dense feed-forward; absent if every block is a mixture of experts.
    #[serde(default, skip_serializing_if = "crate::model::is_zero")]
    pub d_ff: usize,
    /// Rows of the embedding; by default the tokenizer's vocabulary size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Maximum sequence length; by default `train.seq_len`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    /// Base of the rotary position embedding.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// True if the output head shares the weights of the embedding.
    #[serde(default)]
    pub tie_embeddings: bool,
    /// Activation function of the feed-forward.
    #[serde(default)]
    pub activation: Activation,
    /// Mixture of experts instead of dense feed-forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// Multi-head latent attention instead of multi-head or grouped-query attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<MlaConfig>,
    /// A name, a [`placement::Placement`], or a table of placement fields (optionally with `base = "NAME"`).
    #[setters(into)]
    #[serde(default = "default_placement", deserialize_with = "without_nan")]
    pub placement: Value,
    /// Fields of the norm function that override the placement.
    #[serde(
        default,
        deserialize_with = "some_without_nan",
        skip_serializing_if = "Option::is_none"
    )]
    pub norm: Option<Value>,
    /// Fields of the initialization that override the placement.
    #[serde(
        default,
        deserialize_with = "some_without_nan",
        skip_serializing_if = "Option::is_none"
    )]
    pub init: Option<Value>,
}

/// Deserializes a tree without non-finite numbers, which TOML has and JSON reads as null.
fn without_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(fields) => fields.values().any(has_null),
            _ => false,
        }
    }
    let value = Value::deserialize(deserializer)?;
    match has_null(&value) {
        true => Err(de::Error::custom("nan and inf are no values here")),
        false => Ok(value),
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Finite(#[serde(deserialize_with = "without_nan")] Value);

fn some_without_nan<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    without_nan(d).map(Some)
}

fn default_rope_theta() -> f64 {
    ModelConfig::default().rope_theta
}

fn default_placement() -> Value {
    "hybridnorm".into()
}

/// `[init]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InitSection {
    /// Checkpoint whose weights to start from, with a fresh optimizer.
    pub from: PathBuf,
}

impl InitSection {
    /// Returns the section that starts from a checkpoint or a run directory.
    pub fn new(from: impl Into<PathBuf>) -> Self {
        Self { from: from.into() }
    }
}

/// `[data]`.
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

/// Returns the vocabulary size of a tokenizer's specification.
#[cfg(feature = "data")]
fn vocabulary_of(spec: &str) -> Result<usize> {
    Ok(match spec.parse::<TokenizerSpec>()? {
        TokenizerSpec::Bpe { vocab_size } => vocab_size,
        known => Tokenizer::from_spec(&known)?.vocab_size(),
    })
}

#[cfg(not(feature = "data"))]
fn vocabulary_of(_: &str) -> Result<usize> {
    Err(Error::no_effect(
        "data.tokenizer",
        ": tokenizers need the feature `data` of the crate",
    ))
}

/// `[train]`.
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
    /// Micro-batches per optimizer step; divides `batch_size`. Changes memory, not results, except for the
    /// load-balancing loss of a mixture of experts, which is computed per micro-batch.
    pub grad_accum_steps: usize,
    /// Activations that the backward pass recomputes: `"none"`: only cheap ones; `"block"`: all within blocks;
    /// `"budget:BYTES"`: those of as few blocks as needed to keep activations, gradients and scratch of a
    /// micro-batch within this many bytes. Changes memory and time, not results.
    pub recompute: Recompute,
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
            eval_every: 100,
            eval_sequences: 256,
            checkpoint_every: 500,
            keep_checkpoints: 2,
        }
    }
}

/// `[log]`: records of a run. They do not affect results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct LogSection {
    /// Steps between records of every block's activations; 0: none. A record takes 5 to 10 % of a step
    /// (`bench/recorder.py`).
    pub layers_every: usize,
    /// True if event files for TensorBoard are written.
    pub tensorboard: bool,
    /// Maximum number of dumps of the model's state for spikes; non-finite values are always dumped.
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
        }
    }
}

impl Config {
    /// Reads a configuration and applies `section.key=value` settings on top.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or has an unknown key, a wrong type or a value out
    /// of range; the message names the file, the line and the nearest known key.
    pub fn load(path: impl AsRef<Path>, settings: &[String]) -> Result<Self> {
        let path = path.as_ref();
        let origin = Origin(Some(path.to_path_buf()));
        let config = read_text(path).and_then(|text| Self::parse(&text, settings));
        match config {
            Ok(config) => Ok(Self { origin, ..config }),
            Err(error) => Err(origin.name(error)),
        }
    }

    /// Reads a configuration from text; see [`Config::load`].
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, settings: &[String]) -> Result<Self> {
        let config: Self = from_toml(text, settings)?;
        config.check()?;
        Ok(config)
    }

    /// Serializes the configuration as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is plain data")
    }

    /// Returns the model's configuration without opening the data: the vocabulary size is the one given, or the
    /// tokenizer's if known beforehand.
    ///
    /// # Errors
    /// If the model comes from a checkpoint that cannot be read, or the vocabulary is not known.
    pub fn model_config(&self) -> Result<ModelConfig> {
        self.find_model_config()
            .map_err(|error| self.origin.name(error))
    }

    fn find_model_config(&self) -> Result<ModelConfig> {
        let Some(model) = &self.model else {
            let init = self
                .init
                .as_ref()
                .ok_or_else(|| Error::missing("[model]", ""))?;
            let mut model = super::Checkpoint::open(&init.from)?.config()?;
            model.max_seq_len = model.max_seq_len.max(self.train.seq_len);
            return Ok(model);
        };
        let vocab = match model.vocab_size {
            Some(_) => None,
            None => self.find_vocabulary()?,
        };
        model.resolve(self.train.seq_len, vocab)
    }

    /// Returns the vocabulary size of prepared data, or of the tokenizer.
    fn find_vocabulary(&self) -> Result<Option<usize>> {
        for path in &self.data.train {
            if files::is_dir(path)? && PreparedFolder::is_prepared(path)? {
                return Ok(Some(
                    PreparedFolder::open(path)?.manifest().tokenizer.vocab_size,
                ));
            }
        }
        match &self.data.tokenizer {
            Some(spec) => vocabulary_of(spec).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the schedule for the run's steps, with its defaults filled in.
    ///
    /// # Errors
    /// If a key of the schedule has no effect or is out of range.
    pub fn resolved_schedule(&self) -> Result<Schedule> {
        let tokens = (self.train.batch_size * self.train.seq_len) as u64;
        self.schedule
            .resolve(self.optimizer.lr, self.train.steps, tokens)
    }

    /// Checks everything that can be checked without opening the data.
    ///
    /// # Errors
    /// If a value is out of range or has no effect.
    pub fn check(&self) -> Result<()> {
        self.optimizer.check()?;
        if let Some(init) = &self.init
            && init.from.as_os_str().is_empty()
        {
            return Err(Error::invalid_value(
                "init.from",
                "init.from is empty, expected a checkpoint or a run directory",
            ));
        }
        // An imported model may have this setting, but training with it is a mistake.
        if let Some(moe) = self.model.as_ref().and_then(|model| model.moe.as_ref())
            && moe.top_k == 1
            && moe.renormalize
        {
            return Err(Error::no_effect(
                "model.moe.renormalize",
                ": with one expert per token every gate weight is 1, and the router receives no gradient",
            ));
        }
        let train = &self.train;
        let positive = [
            ("steps", train.steps),
            ("batch_size", train.batch_size),
            ("seq_len", train.seq_len),
            ("grad_accum_steps", train.grad_accum_steps),
            ("keep_checkpoints", train.keep_checkpoints),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::out_of_range(format!("train.{key}"), 0, "at least 1"));
        }
        if !train.batch_size.is_multiple_of(train.grad_accum_steps) {
            return Err(Error::conflict(
                ["train.grad_accum_steps", "train.batch_size"],
                format!(
                    "train.grad_accum_steps = {} does not divide train.batch_size = {}",
                    train.grad_accum_steps, train.batch_size
                ),
            ));
        }
        let tokens = (train.batch_size as u64)
            .checked_mul(train.seq_len as u64)
            .filter(|&tokens| tokens <= LARGEST_BATCH)
            .ok_or_else(|| {
                Error::conflict(["train.batch_size", "train.seq_len"], format!(
                    "train.batch_size = {} sequences of train.seq_len = {} are more than {LARGEST_BATCH} tokens per step",
                    train.batch_size, train.seq_len
                ))
            })?;
        self.schedule
            .resolve(self.optimizer.lr, train.steps, tokens)?;
        if self.model.is_none() && self.init.is_none() {
            return Err(Error::missing(
                "[model]",
                " (it may be absent only when [init] from names a checkpoint)",
            ));
        }
        if let Some(model) = &self.model {
            // The vocabulary size is not known before the tokenizer is; any size suffices for the check.
            let vocab = model.vocab_size.or(Some(1));
            let model = model.resolve(train.seq_len, vocab)?;
            model.resolve()?;
            if self.optimizer.qk_clip.is_some() {
                model.check_qk_clip()?;
            }
        }
        Ok(())
    }
}

impl ModelSection {
    /// Returns the section of a model with this placement and the default settings. Sizes are 0, which
    /// [`Config::check`] rejects.
    pub fn new(placement: impl Into<Value>) -> Self {
        Self {
            d_model: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: None,
            d_ff: 0,
            vocab_size: None,
            max_seq_len: None,
            rope_theta: default_rope_theta(),
            tie_embeddings: false,
            activation: Activation::default(),
            moe: None,
            mla: None,
            placement: placement.into(),
            norm: None,
            init: None,
        }
    }

    /// Returns the model's configuration; `vocab` is the vocabulary size of the tokenizer or the data.
    ///
    /// # Errors
    /// If the placement is invalid, or a size is missing or contradicts another.
    pub fn resolve(&self, seq_len: usize, vocab: Option<usize>) -> Result<ModelConfig> {
        let vocab_size = match (self.vocab_size, vocab) {
            (Some(given), Some(needed)) if given < needed => {
                return Err(Error::conflict(
                    ["model.vocab_size"],
                    format!(
                        "model.vocab_size = {given} is smaller than the data's vocabulary of {needed}"
                    ),
                ));
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => {
                return Err(Error::missing(
                    "model.vocab_size",
                    ", and neither a tokenizer nor the data determine it",
                ));
            }
        };
        let max_seq_len = self.max_seq_len.unwrap_or(seq_len);
        if max_seq_len < seq_len {
            return Err(Error::conflict(
                ["model.max_seq_len", "train.seq_len"],
                format!(
                    "model.max_seq_len = {max_seq_len} is smaller than train.seq_len = {seq_len}"
                ),
            ));
        }
        Ok(ModelConfig {
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads.unwrap_or(self.n_heads),
            d_ff: self.d_ff,
            vocab_size,
            max_seq_len,
            rope_theta: self.rope_theta,
            tie_embeddings: self.tie_embeddings,
            activation: self.activation,
            moe: self.moe.clone(),
            mla: self.mla,
            placement: self.placement()?,
        })
    }

    fn placement(&self) -> Result<placement::Placement> {
        let mut value = match &self.placement {
            Value::String(name) => Map::from_iter([("base".to_owned(), name.clone().into())]),
            Value::Object(table) => table.clone(),
            _ => {
                return Err(Error::invalid_value(
                    "model.placement",
                    "model.placement must be a name or a table, as in placement = \"pre-norm\" or placement = { base = \"pre-norm\" }",
                ));
            }
        };
        for (key, patch) in [("norm", &self.norm), ("init", &self.init)] {
            let Some(patch) = patch else { continue };
            let Value::Object(patch) = patch else {
                return Err(Error::invalid_value(
                    format!("model.{key}"),
                    format!(
                        "model.{key} must be a table, as in {}",
                        match key {
                            "norm" =>
                                "norm = { kind = \"rmsnorm\" }; where to normalize is set with placement = \"pre-norm\"",
                            _ => "init = { scheme = \"normal\" }",
                        }
                    ),
                ));
            };
            let slot = value
                .entry(key)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(slot) = slot {
                slot.extend(patch.clone());
            }
        }
        Ok(placement::from_value(Value::Object(value))?)
    }
}
