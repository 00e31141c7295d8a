//! The data of a run, opened.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::data::open::TokenizerChoice;
use crate::data::{
    self, OpenOptions, Opened, Progress, Split, TokenDataset, Tokenizer, TokenizerSpec,
};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// `data.order`: the order of instances within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataOrder {
    /// Decided by (seed, epoch).
    #[default]
    Shuffled,
    /// As they stand.
    Sequential,
}

impl DataOrder {
    /// The order as the batch stream takes it.
    pub fn seeded(self, seed: u64) -> data::Order {
        match self {
            Self::Shuffled => data::Order::Shuffled { seed },
            Self::Sequential => data::Order::Sequential,
        }
    }
}

/// Training and validation data with what is known of them.
#[derive(Debug)]
pub struct Sources {
    /// To learn from.
    pub train: TokenDataset,
    /// To measure on, where there are any.
    pub validation: Option<TokenDataset>,
    /// What turned text into tokens, where known.
    pub tokenizer: Option<Tokenizer>,
    /// Ids are below this, where known.
    pub vocab_size: Option<usize>,
    /// Prepared folders among the training data, those made from raw text included.
    pub folders: Vec<PathBuf>,
    /// What was left out, cut and replaced when they were made from text, a line each.
    pub notes: Vec<String>,
}

/// Opens the data that a configuration names. Raw text is tokenized into [`cache_dir`] once.
///
/// # Errors
/// If data are missing, damaged, too short, or do not fit together.
pub fn open(config: &Config, progress: &mut dyn FnMut(Progress)) -> Result<Sources> {
    if config.data.train.is_empty() {
        return Err(Error::config(
            "data.train is empty; name text, token files or a prepared folder, \
             e.g. data.train = [\"stories:20000\"]",
        ));
    }
    let given = match (&config.model, &config.init) {
        (Some(model), _) => model.vocab_size,
        (None, Some(init)) => Some(super::Checkpoint::open(&init.from)?.config()?.vocab_size),
        (None, None) => None,
    };
    let mut options = OpenOptions::new(config.train.seq_len, cache_dir());
    options.vocab_size = given;
    options.tokenizer = tokenizer(config)?;
    if let Some(text) = &config.data.text {
        check_text_options(config)?;
        options.prepare.source = text.clone();
    }
    if !config.data.validation.is_empty() {
        options.prepare.validation_fraction = 0.0;
    }
    let train = data::open(&config.data.train, Split::Train, &options, progress)?;
    let mut notes = data_notes(&train);
    let validation = open_validation(config, &train, options, &mut notes, progress)?;
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
        tokenizer: train.tokenizer,
        vocab_size,
        notes,
    })
}

/// The tokenizer a run asks for: `data.tokenizer`, else that of the checkpoint it starts from.
fn tokenizer(config: &Config) -> Result<Option<TokenizerChoice>> {
    if let Some(spec) = &config.data.tokenizer {
        let spec: TokenizerSpec = spec.parse()?;
        return Ok(Some(TokenizerChoice::Spec(spec)));
    }
    let Some(init) = &config.init else {
        return Ok(None);
    };
    let tokenizer = super::Checkpoint::open(&init.from)?.tokenizer()?;
    Ok(tokenizer.map(TokenizerChoice::Loaded))
}

fn open_validation(
    config: &Config,
    train: &Opened,
    mut options: OpenOptions,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<TokenDataset>> {
    if let Some(tokenizer) = &train.tokenizer {
        options.tokenizer = Some(TokenizerChoice::Loaded(tokenizer.clone()));
    }
    if config.data.validation.is_empty() {
        let mut held_out = TokenDataset::new(config.train.seq_len)?;
        for folder in &train.folders {
            let tokens = folder.validation()?;
            let identity = format!("{}/validation", folder.folder().display());
            held_out.push_stream(tokens, &identity);
        }
        return Ok((!held_out.is_empty()).then_some(held_out));
    }
    // What had an effect on the training text need not have one here.
    options.prepare.source.may_be_unused = has_raw_text(&config.data.train);
    let opened = data::open(&config.data.validation, Split::All, &options, progress)?;
    notes.extend(data_notes(&opened));
    Ok(Some(opened.dataset))
}

fn has_raw_text(inputs: &[String]) -> bool {
    inputs.iter().any(|input| {
        let path = std::path::Path::new(input);
        match path.is_dir() {
            true => !data::PreparedFolder::is_prepared(path),
            false => data::source::is_text_input(input),
        }
    })
}

fn check_text_options(config: &Config) -> Result<()> {
    let data = &config.data;
    match has_raw_text(&data.train) || has_raw_text(&data.validation) {
        true => Ok(()),
        false => Err(Error::config(
            "[data.text] has no effect: neither data.train nor data.validation names raw text",
        )),
    }
}

/// What was left out, cut and replaced when the data were made from text.
fn data_notes(opened: &Opened) -> Vec<String> {
    let folders = opened.folders.iter();
    folders
        .flat_map(|folder| folder.manifest().notes())
        .collect()
}

/// Checks that a model has a row for every token of its data.
///
/// # Errors
/// If it has not.
pub fn check_vocabulary(sources: &Sources, model: &ModelConfig) -> Result<()> {
    match sources.vocab_size {
        Some(needed) if needed > model.vocab_size => Err(Error::config(format!(
            "the data's vocabulary of {needed} is larger than the model's of {}",
            model.vocab_size
        ))),
        _ => Ok(()),
    }
}

/// Where tokenized text is kept between runs, if the environment tells where caches belong.
pub fn cache_dir() -> Option<PathBuf> {
    let books = data::gutenberg::cache_folder().ok()?;
    Some(books.with_file_name("tokens"))
}
