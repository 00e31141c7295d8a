//! Configuration of a run.

mod explain;
mod model;
mod precision;
mod read;
mod sections;

use std::path::{Path, PathBuf};

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::optimizer::OptimizerConfig;
use super::schedule::{Schedule, ScheduleConfig};
use crate::data::PreparedFolder;
#[cfg(feature = "data")]
use crate::data::{Tokenizer, TokenizerSpec};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Decoder, ModelConfig};

pub use model::ModelSection;
pub use precision::FloatFormat;
pub use read::placement_from_file;
#[cfg(feature = "lab")]
pub(crate) use read::with_settings;
pub(crate) use read::{from_toml, read_text};
#[cfg(feature = "data")]
pub use sections::EvalSection;
pub use sections::{DataSection, InitSection, LogSection, TrainSection};

/// Configuration of a run, in TOML. Every section is optional, except that either `[model]` or `[init]` is required.
///
/// ```
/// use hybridnorm::train::{Config, ModelSection, OptimizerConfig, TrainSection};
///
/// let model = ModelSection::new("hybridnorm")
///     .with_d_model(16)
///     .with_n_layers(2)
///     .with_n_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(8);
/// let config = Config::default()
///     .with_seed(1)
///     .with_model(model)
///     .with_optimizer(OptimizerConfig::default().with_lr(3e-3))
///     .with_train(TrainSection::default().with_steps(100).with_seq_len(32));
/// config.check()?;
/// assert_eq!(config.model_config()?.max_seq_len, 32);
/// assert_eq!(Config::parse(&config.to_toml(), &[])?, config);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Config {
    /// Random seed of weight initialization and data order.
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
    /// Number of steps, batch size, sequence length, intervals of evaluation and checkpoints.
    pub train: TrainSection,
    /// Downstream tasks that are evaluated during training.
    #[cfg(feature = "data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalSection>,
    /// Logging: layer statistics, TensorBoard, dumps.
    pub log: LogSection,
    /// File that the configuration was read from, for later error messages.
    #[setters(skip)]
    #[serde(skip)]
    pub origin: Origin,
}

/// File that a configuration was read from, for errors that are found later. All values compare
/// equal, so that configurations compare by their settings only.
#[derive(Debug, Clone, Default)]
pub struct Origin(Option<PathBuf>);

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    /// Returns the origin of a configuration in a file.
    pub(crate) fn file(path: &Path) -> Self {
        Self(Some(path.to_path_buf()))
    }

    /// Adds the file name to an error about a configuration value.
    pub(crate) fn prefix_error(&self, error: Error) -> Error {
        match (&self.0, error) {
            (Some(path), error) => error.in_file(path),
            (None, error) => error,
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
        let origin = Origin::file(path);
        let config = read_text(path).and_then(|text| Self::parse(&text, settings));
        match config {
            Ok(config) => Ok(Self { origin, ..config }),
            Err(error) => Err(origin.prefix_error(error)),
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
            .map_err(|error| self.origin.prefix_error(error))
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
            None => self.find_vocab_size()?,
        };
        model.resolve(self.train.seq_len, vocab)
    }

    /// Returns the vocabulary size of prepared data, or of the tokenizer.
    fn find_vocab_size(&self) -> Result<Option<usize>> {
        for path in &self.data.train {
            if files::is_dir(path)? && PreparedFolder::is_prepared(path)? {
                return Ok(Some(
                    PreparedFolder::open(path)?.manifest().tokenizer.vocab_size,
                ));
            }
        }
        match &self.data.tokenizer {
            Some(spec) => vocab_size_of(spec).map(Some),
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
        if let Some(init) = &self.init {
            init.check()?;
        }
        self.check_router()?;
        self.train.check()?;
        #[cfg(feature = "data")]
        if let Some(eval) = &self.eval {
            eval.check()?;
        }
        self.resolved_schedule()?;
        match &self.model {
            Some(model) => self.check_model(model),
            None if self.init.is_some() => Ok(()),
            None => Err(Error::missing(
                "[model]",
                " (it may be absent only when [init] from names a checkpoint)",
            )),
        }
    }

    /// Checks that the router of a mixture of experts is trained. An imported model may have this setting, but
    /// training with it is a mistake.
    fn check_router(&self) -> Result<()> {
        match self.model.as_ref().and_then(|model| model.moe.as_ref()) {
            Some(moe) if moe.top_k == 1 && moe.renormalize => Err(Error::no_effect(
                "model.moe.renormalize",
                ": with one expert per token every gate weight is 1, and the router receives no gradient",
            )),
            _ => Ok(()),
        }
    }

    fn check_model(&self, model: &ModelSection) -> Result<()> {
        // The vocabulary size is not known before the tokenizer is; any size suffices for the check.
        let vocab = model.vocab_size.or(Some(1));
        let model = model.resolve(self.train.seq_len, vocab)?;
        model.resolve()?;
        if self.train.residual_precision == Some(FloatFormat::Bf16) {
            Decoder::new(&model)?.check_residual(self.train.program_precision())?;
        }
        match self.optimizer.qk_clip {
            Some(_) => model.check_qk_clip(),
            None => Ok(()),
        }
    }
}

/// Returns the vocabulary size of the tokenizer that a specification describes.
#[cfg(feature = "data")]
fn vocab_size_of(spec: &str) -> Result<usize> {
    Ok(match spec.parse::<TokenizerSpec>()? {
        TokenizerSpec::Bpe { vocab_size } => vocab_size,
        known => Tokenizer::from_spec(&known)?.vocab_size(),
    })
}

#[cfg(not(feature = "data"))]
fn vocab_size_of(_: &str) -> Result<usize> {
    Err(Error::no_effect(
        "data.tokenizer",
        ": tokenizers need the feature `data` of the crate",
    ))
}
