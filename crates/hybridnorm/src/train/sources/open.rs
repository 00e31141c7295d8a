//! Opening of the data in a configuration: files, folders, text.

use std::path::PathBuf;

use super::{DataCoverage, TrainingData, validation_windows};
use crate::data::open::TokenizerChoice;
use crate::data::{
    self, OpenOptions, OpenedData, Progress, SourceOptions, Split, TokenDataset, Tokenizer,
    TokenizerSpec, Windows,
};
use crate::error::{Error, Result};
use crate::train::{Checkpoint, Config};

/// Opens the data of a configuration. Raw text is tokenized into [`cache_dir`] once. For a resumed run that
/// started from a checkpoint, `own_checkpoint` is the run's own checkpoint, since the original may no longer exist.
///
/// # Errors
/// If data are missing, corrupt, too short, or inconsistent.
pub fn open(
    config: &Config,
    own_checkpoint: Option<&Checkpoint>,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainingData> {
    if config.data.train.is_empty() {
        return Err(Error::missing(
            "data.train",
            ": expected text, token files or a prepared folder, e.g. data.train = [\"stories:20000\"]",
        ));
    }
    let from = start_checkpoint(config, own_checkpoint)?;
    let options = open_options(config, from.as_ref())?;
    let vocab_size = options.vocab_size;
    let train = data::open(&config.data.train, Split::Train, &options, progress)
        .map_err(|error| name_tokenizer_key(error, from.as_ref()))?;
    let mut notes = preparation_notes(&train);
    if let (Some(from), Some(tokenizer)) = (&from, &train.tokenizer) {
        notes.extend(other_tokenizer_note(from, tokenizer)?);
    }
    let mut validation_text = None;
    let (validation, no_validation_reason) = match config.data.validation.is_empty() {
        true => held_out_validation(config, &train, &mut notes)?,
        false => {
            let opened = open_validation(config, &train, options, &mut notes, progress)?;
            validation_text = opened.text_stats();
            Ok(opened.dataset)
        }
    }
    .map_or_else(
        |reason| (None, reason),
        |validation| (Some(validation), String::new()),
    );
    let coverage = DataCoverage {
        text: train.text_stats(),
        validation_text,
        notes: notes.clone(),
        train: train.dataset.coverage(Windows::Full { limit: None }),
        validation: validation
            .as_ref()
            .map(|data| data.coverage(validation_windows(config))),
    };
    let vocab_size = train
        .tokenizer
        .as_ref()
        .map(Tokenizer::vocab_size)
        .or(vocab_size);
    Ok(TrainingData {
        folders: train
            .folders
            .iter()
            .map(|folder| folder.folder().to_path_buf())
            .collect(),
        train: train.dataset,
        validation,
        no_validation_reason,
        coverage,
        notes,
        tokenizer: train.tokenizer,
        vocab_size,
    })
}

/// Returns the checkpoint that a run with `[init]` starts from or is resumed from.
fn start_checkpoint(
    config: &Config,
    own_checkpoint: Option<&Checkpoint>,
) -> Result<Option<Checkpoint>> {
    match (&config.init, own_checkpoint) {
        (None, _) => Ok(None),
        (Some(_), Some(own)) => Ok(Some(own.clone())),
        (Some(init), None) => Checkpoint::open(&init.from).map(Some),
    }
}

/// Names the key of the configuration in the error of raw text without a tokenizer.
fn name_tokenizer_key(error: Error, from: Option<&Checkpoint>) -> Error {
    match error {
        Error::Missing { key, hint } if key == "tokenizer" => {
            let reason = match from {
                Some(from) => format!("; the checkpoint {} has none", from.path().display()),
                None => String::new(),
            };
            Error::missing("data.tokenizer", format!("{hint}{reason}"))
        }
        error => error,
    }
}

/// Returns the note on data whose token ids differ from those that the weights were trained with.
fn other_tokenizer_note(from: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let Some(trained) = from.tokenizer()? else {
        return Ok(None);
    };
    if trained.fingerprint() == tokenizer.fingerprint() {
        return Ok(None);
    }
    let describe = |tokenizer: &Tokenizer| {
        format!(
            "{} (vocabulary of {} tokens)",
            tokenizer.name(),
            tokenizer.vocab_size()
        )
    };
    Ok(Some(format!(
        "warning: the data are tokenized with {}, but the weights in {} were trained with {}: the same id is another \
         token, so that the embeddings have to be learned again; omit data.tokenizer, and use text or data prepared with \
         the tokenizer of the checkpoint, unless the vocabulary is to be replaced",
        describe(tokenizer),
        from.path().display(),
        describe(&trained)
    )))
}

/// Returns the options for opening the training data of a run that starts from the checkpoint `from`, if any.
fn open_options(config: &Config, from: Option<&Checkpoint>) -> Result<OpenOptions> {
    let mut options = OpenOptions::new(config.train.seq_len, cache_dir());
    options.vocab_size = match (&config.model, from) {
        (Some(model), _) => model.vocab_size,
        (None, Some(from)) => Some(from.config()?.vocab_size),
        (None, None) => None,
    };
    options.tokenizer = tokenizer(config, from)?;
    if let Some(text) = &config.data.text {
        check_text_options(config)?;
        options.prepare.source = text.clone();
    }
    if !config.data.validation.is_empty() {
        options.prepare.validation_fraction = 0.0;
    }
    Ok(options)
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

/// Opens separate validation data.
fn open_validation(
    config: &Config,
    train: &OpenedData,
    mut options: OpenOptions,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<OpenedData> {
    if let Some(tokenizer) = &train.tokenizer {
        options.tokenizer = Some(TokenizerChoice::Loaded(tokenizer.clone()));
    }
    // Options that apply to the training text need not apply to this text.
    options.prepare.source.allow_unused_options = has_raw_text(&config.data.train)?;
    // A row of an array is one instance, whatever its length.
    options.allow_any_row_length = true;
    let opened = data::open(&config.data.validation, Split::All, &options, progress)?;
    notes.extend(preparation_notes(&opened));
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
             data; data.validation uses all of a prepared folder; omit data.validation to evaluate on the \
             folder's held-out part"
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
        allow_unused_options: true,
        ..options.clone()
    };
    let found = data::Sources::resolve_all(&[&train, &validation], &options);
    Ok(found.err().map(|error| error.to_string()))
}

/// Returns the held-out part of the training data, or the reason why it cannot be evaluated on.
fn held_out_validation(
    config: &Config,
    train: &OpenedData,
    notes: &mut Vec<String>,
) -> Result<Result<TokenDataset, String>> {
    let mut held_out = TokenDataset::new(config.train.seq_len)?;
    let mut without_held_out = Vec::new();
    for folder in &train.folders {
        let tokens = folder.validation()?;
        if tokens.is_empty() {
            without_held_out.push(folder.folder().display().to_string());
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
    let pretokenized_tokens = train.dataset.tokens() - prepared.min(train.dataset.tokens());
    let reason = match (held_out.tokens(), pretokenized_tokens) {
        _ if !held_out.is_empty() => {
            if pretokenized_tokens > 0 {
                without_held_out.push("token files".into());
            }
            if !without_held_out.is_empty() {
                notes.push(format!(
                    "validation covers only some of the training data: nothing is held out from {}",
                    without_held_out.join(", ")
                ));
            }
            return Ok(Ok(held_out));
        }
        (0, 0) => "no data are held out".into(),
        (0, _) => "token files have no held-out part".to_owned(),
        (tokens, _) => format!(
            "only {tokens} tokens are held out, fewer than a sequence of {} and its targets",
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
        false => Err(Error::no_effect(
            "[data.text]",
            ": neither data.train nor data.validation contains raw text",
        )),
    }
}

/// Returns the notes on records that were omitted, truncated or replaced when the data were prepared from text.
fn preparation_notes(opened: &OpenedData) -> Vec<String> {
    let folders = opened.folders.iter();
    let notes = folders.flat_map(|folder| folder.manifest().notes());
    notes
        .map(|note| format!("data: {note}"))
        .chain(opened.notes.iter().cloned())
        .collect()
}

/// Returns the directory of tokenized text kept between runs, if the environment names a cache directory.
pub fn cache_dir() -> Option<PathBuf> {
    let books = data::gutenberg::cache_folder().ok()?;
    Some(books.with_file_name("tokens"))
}
