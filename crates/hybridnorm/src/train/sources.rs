//! Data of a run.

#[cfg(feature = "data")]
mod open;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::data::{self, Coverage, TextStats, TokenDataset, Tokenizer, Windows};
use crate::error::{Error, Result};
use crate::format_number::with_thousands_separators;
use crate::model::ModelConfig;
use crate::omissions::Omissions;

#[cfg(feature = "data")]
pub use open::{cache_dir, open};

/// `data.order`: order of instances within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DataOrder {
    /// Shuffled by (seed, epoch).
    #[default]
    Shuffled,
    /// Order of the data.
    Sequential,
}

impl DataOrder {
    /// Returns the order for the batch stream.
    pub fn seeded(self, seed: u64) -> data::Order {
        match self {
            Self::Shuffled => data::Order::Shuffled { seed },
            Self::Sequential => data::Order::Sequential,
        }
    }
}

/// Counts of used and omitted tokens of a run's data: for each, `all_tokens = tokens + omissions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DataCoverage {
    /// Training data, once per epoch.
    pub train: Coverage,
    /// Validation data, per evaluation, if any.
    pub validation: Option<Coverage>,
    /// Raw text that the training data were prepared from, with its held-out part; absent for token files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextStats>,
    /// Raw text that separate validation data were prepared from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_text: Option<TextStats>,
    /// Notes on the data, such as records omitted, truncated or replaced when text was prepared.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl DataCoverage {
    /// Returns the omissions from the training and validation data, and from the text that they were prepared from, by
    /// reason.
    pub fn omissions(&self) -> Omissions {
        let mut all = self.train.omissions.clone();
        if let Some(text) = &self.text {
            all.extend(&text.omissions);
        }
        let validation = self.validation.iter().map(|found| &found.omissions);
        let text = self.validation_text.iter().map(|text| &text.omissions);
        for omission in validation.chain(text).flat_map(Omissions::iter) {
            let reason = format!("validation data: {}", omission.reason);
            let example = omission.examples.first().cloned();
            all.add(omission.unit, &reason, omission.count, example);
        }
        all
    }

    /// Describes the training and the validation data, one line each, and the text that they were prepared from.
    pub fn lines(&self) -> Vec<String> {
        let line = |name: &str, found: &Coverage| {
            let omissions: Vec<_> = found.omissions.lines();
            format!(
                "{name}: {} of {} tokens are targets; {}",
                with_thousands_separators(found.tokens),
                with_thousands_separators(found.all_tokens),
                omissions.join("; ")
            )
        };
        let text = |name: &str, text: &Option<TextStats>| {
            let text = text.as_ref()?;
            Some(format!("{name}: prepared from {}", text.summary()))
        };
        let validation = self.validation.as_ref();
        let validation = validation.map(|found| line("validation data", found));
        text("training data", &self.text)
            .into_iter()
            .chain([line("training data", &self.train)])
            .chain(text("validation data", &self.validation_text))
            .chain(validation)
            .collect()
    }
}

/// Opened training and validation data, with their coverage, tokenizer and notes.
///
/// ```
/// use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::{Config, TrainingData};
///
/// let tokens: Vec<u32> = (0..41).map(|i| i % 8).collect();
/// let train = TokenDataset::from_tokens(&tokens, 8, 8)?;
/// let validation = TokenDataset::from_tokens(&tokens[..18], 8, 8)?;
/// let data = TrainingData::new(&Config::default(), train, Some(validation));
/// assert_eq!(data.vocab_size, Some(8));
/// assert_eq!(data.coverage.train.tokens, 40);
/// // The last of 17 targets is in no complete sequence.
/// assert_eq!(data.coverage.validation.unwrap().tokens, 16);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct TrainingData {
    /// Training data.
    pub train: TokenDataset,
    /// Validation data, if any.
    pub validation: Option<TokenDataset>,
    /// Reason why there is no validation data; empty if there is.
    pub no_validation_reason: String,
    /// Counts of used and omitted tokens of both.
    pub coverage: DataCoverage,
    /// Notes on the data, such as records omitted, truncated or replaced when text was prepared.
    pub notes: Vec<String>,
    /// Tokenizer of the data, if known.
    pub tokenizer: Option<Tokenizer>,
    /// Exclusive upper bound of token ids, if known.
    pub vocab_size: Option<usize>,
    /// Prepared folders among the training data, including those of raw text.
    pub folders: Vec<PathBuf>,
}

impl TrainingData {
    /// Creates the data of a run from the caller's tokens; the vocabulary size is the larger of the
    /// two. `config.train.eval_sequences` limits the sequences per evaluation.
    pub fn new(config: &Config, train: TokenDataset, validation: Option<TokenDataset>) -> Self {
        let validation_vocab_size = validation.as_ref().map_or(0, TokenDataset::vocab_size);
        let vocab_size = train.vocab_size().max(validation_vocab_size);
        let no_validation_reason = match validation {
            Some(_) => String::new(),
            None => "the run was opened on training tokens only".into(),
        };
        Self {
            coverage: DataCoverage {
                train: train.coverage(Windows::Full { limit: None }),
                validation: validation
                    .as_ref()
                    .map(|data| data.coverage(validation_windows(config))),
                ..DataCoverage::default()
            },
            vocab_size: Some(vocab_size),
            train,
            validation,
            no_validation_reason,
            notes: Vec::new(),
            tokenizer: None,
            folders: Vec::new(),
        }
    }
}

/// Returns the windows of validation data evaluated in training: full windows only, at most
/// `train.eval_sequences`.
pub fn validation_windows(config: &Config) -> Windows {
    let limit = config.train.eval_sequences as u64;
    Windows::Full {
        limit: (limit > 0).then_some(limit),
    }
}

/// Checks that the model's vocabulary covers that of its data.
///
/// # Errors
/// If it does not.
pub fn check_vocabulary(data: &TrainingData, model: &ModelConfig) -> Result<()> {
    match data.vocab_size {
        Some(needed) if needed > model.vocab_size => Err(Error::conflict(
            ["model.vocab_size"],
            format!(
                "the data's vocabulary of {needed} is larger than the model's of {}",
                model.vocab_size
            ),
        )),
        _ => Ok(()),
    }
}
