//! Opening of a run's data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::config::Config;
use crate::data::open::TokenizerChoice;
use crate::data::{
    self, Coverage, OpenOptions, Opened, Progress, SourceOptions, Split, TextAccount, TokenDataset,
    Tokenizer, TokenizerSpec, Windows,
};
use crate::digits::grouped;
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::omissions::LeftOut;

/// `data.order`: order of instances within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// Counts of used and omitted tokens of a run's data: for each, `all_tokens = tokens + left_out`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataUse {
    /// Training data, once per epoch.
    pub train: Coverage,
    /// Validation data, per evaluation, if any.
    pub validation: Option<Coverage>,
    /// Text that the training data were made from, and what they hold out; absent for token files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextAccount>,
    /// Text that separate validation data were made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_text: Option<TextAccount>,
    /// Notes on the data, such as records omitted, truncated or replaced when text was prepared.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl DataUse {
    /// Returns the omissions from both, and from the text that they were made from, by reason.
    pub fn left_out(&self) -> LeftOut {
        let mut all = self.train.left_out.clone();
        if let Some(text) = &self.text {
            all.extend(&text.left_out);
        }
        let validation = self.validation.iter().map(|found| &found.left_out);
        let text = self.validation_text.iter().map(|text| &text.left_out);
        for omission in validation.chain(text).flat_map(LeftOut::iter) {
            let reason = format!("validation data: {}", omission.reason);
            let example = omission.examples.first().cloned();
            all.add(omission.unit, &reason, omission.count, example);
        }
        all
    }

    /// Describes the training and the validation data, one line each, and the text that they were made from.
    pub fn lines(&self) -> Vec<String> {
        let line = |name: &str, found: &Coverage| {
            let left_out: Vec<_> = found.left_out.lines();
            format!(
                "{name}: {} of {} tokens are targets; {}",
                grouped(found.tokens),
                grouped(found.all_tokens),
                left_out.join("; ")
            )
        };
        let text = |name: &str, text: &Option<TextAccount>| {
            let text = text.as_ref()?;
            Some(format!("{name}: made of {}", text.line()))
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

/// Opened training and validation data, and facts about them.
#[derive(Debug)]
pub struct Sources {
    /// Training data.
    pub train: TokenDataset,
    /// Validation data, if any.
    pub validation: Option<TokenDataset>,
    /// Reason why there is no validation data; empty if there is.
    pub no_validation: String,
    /// Counts of used and omitted tokens of both.
    pub data_use: DataUse,
    /// Notes on the data, such as records omitted, truncated or replaced when text was prepared.
    pub notes: Vec<String>,
    /// Tokenizer of the data, if known.
    pub tokenizer: Option<Tokenizer>,
    /// Exclusive upper bound of token ids, if known.
    pub vocab_size: Option<usize>,
    /// Prepared folders among the training data, including those made from raw text.
    pub folders: Vec<PathBuf>,
}

/// Opens the data of a configuration. Raw text is tokenized into [`cache_dir`] once. For a resumed run that
/// started from a checkpoint, `own` is the run's own checkpoint, since the original may no longer exist.
///
/// # Errors
/// If data are missing, damaged, too short, or inconsistent.
pub fn open(
    config: &Config,
    own: Option<&Checkpoint>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Sources> {
    if config.data.train.is_empty() {
        return Err(Error::config(
            "data.train is empty; name text, token files or a prepared folder, \
             e.g. data.train = [\"stories:20000\"]",
        ));
    }
    let from = match (&config.init, own) {
        (None, _) => None,
        (Some(_), Some(own)) => Some(own.clone()),
        (Some(init), None) => Some(Checkpoint::open(&init.from)?),
    };
    let given = match (&config.model, &from) {
        (Some(model), _) => model.vocab_size,
        (None, Some(from)) => Some(from.config()?.vocab_size),
        (None, None) => None,
    };
    let mut options = OpenOptions::new(config.train.seq_len, cache_dir());
    options.vocab_size = given;
    options.tokenizer = tokenizer(config, from.as_ref())?;
    if let Some(text) = &config.data.text {
        check_text_options(config)?;
        options.prepare.source = text.clone();
    }
    if !config.data.validation.is_empty() {
        options.prepare.validation_fraction = 0.0;
    }
    let train = data::open(&config.data.train, Split::Train, &options, progress)?;
    let mut notes = data_notes(&train);
    let mut validation_text = None;
    let (validation, no_validation) = match config.data.validation.is_empty() {
        true => held_out(config, &train, &mut notes)?,
        false => {
            let opened = open_validation(config, &train, options, &mut notes, progress)?;
            validation_text = opened.text();
            Ok(opened.dataset)
        }
    }
    .map_or_else(
        |reason| (None, reason),
        |validation| (Some(validation), String::new()),
    );
    let data_use = DataUse {
        text: train.text(),
        validation_text,
        notes: notes.clone(),
        train: train.dataset.coverage(Windows::Whole { limit: None }),
        validation: validation
            .as_ref()
            .map(|data| data.coverage(validation_windows(config))),
    };
    let vocab_size = train
        .tokenizer
        .as_ref()
        .map(Tokenizer::vocab_size)
        .or(given);
    Ok(Sources {
        folders: train
            .folders
            .iter()
            .map(|folder| folder.folder().to_path_buf())
            .collect(),
        train: train.dataset,
        validation,
        no_validation,
        data_use,
        notes,
        tokenizer: train.tokenizer,
        vocab_size,
    })
}

/// Returns the tokenizer of a run: `data.tokenizer`, else that of the checkpoint it starts from.
fn tokenizer(config: &Config, from: Option<&Checkpoint>) -> Result<Option<TokenizerChoice>> {
    if let Some(spec) = &config.data.tokenizer {
        let spec: TokenizerSpec = spec.parse()?;
        return Ok(Some(TokenizerChoice::Spec(spec)));
    }
    let Some(from) = from else {
        return Ok(None);
    };
    let tokenizer = from.tokenizer()?;
    Ok(tokenizer.map(TokenizerChoice::Loaded))
}

/// Returns the windows of validation data evaluated in training: whole ones, `train.eval_sequences` of them.
pub fn validation_windows(config: &Config) -> Windows {
    let most = config.train.eval_sequences as u64;
    Windows::Whole {
        limit: (most > 0).then_some(most),
    }
}

/// Opens separate validation data.
fn open_validation(
    config: &Config,
    train: &Opened,
    mut options: OpenOptions,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened> {
    if let Some(tokenizer) = &train.tokenizer {
        options.tokenizer = Some(TokenizerChoice::Loaded(tokenizer.clone()));
    }
    // Options that apply to the training text need not apply to this text.
    options.prepare.source.may_be_unused = has_raw_text(&config.data.train)?;
    let opened = data::open(&config.data.validation, Split::All, &options, progress)?;
    notes.extend(data_notes(&opened));
    let has_same_text = || shares_text(config, &options.prepare.source);
    if !opened.dataset.overlaps(&train.dataset)
        && let Some(problem) = has_same_text()?
    {
        notes.push(format!(
            "data.validation shares text with data.train, so its loss is partly that of training data: {problem}"
        ));
    }
    if opened.dataset.overlaps(&train.dataset) {
        notes.push(
            "data.validation shares tokens with data.train: its loss is partly that of training \
             data; a prepared folder is taken as a whole there, so leave data.validation out to measure \
             what the folder holds out"
                .into(),
        );
    }
    Ok(opened)
}

/// Returns the error for raw text in both the training and the validation data, if any.
fn shares_text(config: &Config, options: &SourceOptions) -> Result<Option<String>> {
    let raw = |inputs: &[String]| -> Result<Vec<String>> {
        let mut text = Vec::new();
        for input in inputs {
            if data::is_raw_text(input)? {
                text.push(input.clone());
            }
        }
        Ok(text)
    };
    let (train, validation) = (raw(&config.data.train)?, raw(&config.data.validation)?);
    if train.is_empty() || validation.is_empty() {
        return Ok(None);
    }
    let options = SourceOptions {
        may_be_unused: true,
        ..options.clone()
    };
    let found = data::Sources::resolve_all(&[&train, &validation], &options);
    Ok(found.err().map(|error| error.to_string()))
}

/// Returns the held-out part of the training data, or the reason why it cannot be evaluated on.
fn held_out(
    config: &Config,
    train: &Opened,
    notes: &mut Vec<String>,
) -> Result<Result<TokenDataset, String>> {
    let mut held_out = TokenDataset::new(config.train.seq_len)?;
    let mut nothing = Vec::new();
    for folder in &train.folders {
        let tokens = folder.validation()?;
        if tokens.is_empty() {
            nothing.push(folder.folder().display().to_string());
        }
        // Identified by content, not by path.
        let identity = serde_json::json!(folder.manifest().validation).to_string();
        held_out.push_stream(tokens, &identity);
    }
    let prepared: u64 = train
        .folders
        .iter()
        .map(|folder| folder.manifest().train.tokens)
        .sum();
    let ready = train.dataset.tokens() - prepared.min(train.dataset.tokens());
    let reason = match (held_out.tokens(), ready) {
        _ if !held_out.is_empty() => {
            if ready > 0 {
                nothing.push("token files".into());
            }
            if !nothing.is_empty() {
                notes.push(format!(
                    "validation loss is measured on a part of the training data's kinds only: nothing is held \
                     out of {}",
                    nothing.join(", ")
                ));
            }
            return Ok(Ok(held_out));
        }
        (0, 0) => "the data hold nothing out".into(),
        (0, _) => "token files hold nothing out".to_owned(),
        (tokens, _) => format!(
            "the data hold out {tokens} tokens, fewer than a sequence of {} and its targets",
            config.train.seq_len
        ),
    };
    Ok(Err(reason))
}

fn has_raw_text(inputs: &[String]) -> Result<bool> {
    for input in inputs {
        if data::is_raw_text(input)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check_text_options(config: &Config) -> Result<()> {
    let data = &config.data;
    match has_raw_text(&data.train)? || has_raw_text(&data.validation)? {
        true => Ok(()),
        false => Err(Error::config(
            "[data.text] has no effect: neither data.train nor data.validation names raw text",
        )),
    }
}

/// Returns the notes on records that were omitted, truncated or replaced when the data were made from text.
fn data_notes(opened: &Opened) -> Vec<String> {
    let folders = opened.folders.iter();
    let made = folders.flat_map(|folder| folder.manifest().notes());
    made.map(|note| format!("data: {note}"))
        .chain(opened.notes.iter().cloned())
        .collect()
}

/// Checks that the model's vocabulary covers that of its data.
///
/// # Errors
/// If it does not.
pub fn check_vocabulary(sources: &Sources, model: &ModelConfig) -> Result<()> {
    match sources.vocab_size {
        Some(needed) if needed > model.vocab_size => Err(Error::config(format!(
            "the data's vocabulary of {needed} is larger than the model's of {}",
            model.vocab_size
        ))),
        _ => Ok(()),
    }
}

/// Returns the directory of tokenized text kept between runs, if the environment names a cache directory.
pub fn cache_dir() -> Option<PathBuf> {
    let books = data::gutenberg::cache_folder().ok()?;
    Some(books.with_file_name("tokens"))
}
