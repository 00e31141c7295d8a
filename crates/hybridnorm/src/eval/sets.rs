//! Datasets to evaluate a model on, each opened separately.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use derive_setters::Setters;

use super::text_options::{self, TextOptions, TextOverrides};
use crate::data::open::TokenizerChoice;
use crate::data::{
    self, OpenOptions, OpenedData, PreparedFolder, Progress, Split, SplitRecord, TextStats,
    TokenDataset, Tokenizer, Windows,
};
use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::train::{checkpoint, sources};

/// Options of an evaluation.
///
/// ```
/// use hybridnorm::data::{Split, Windows};
/// use hybridnorm::eval::{EvalOptions, TextOverrides};
///
/// let options = EvalOptions::default()
///     .with_split(Split::Validation)
///     .with_windows(Windows::Full { limit: Some(100) })
///     .with_text(TextOverrides::default().with_text_field("body"));
/// assert_eq!(options.text.text_field.as_deref(), Some("body"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Setters)]
#[setters(prefix = "with_", strip_option, into)]
#[non_exhaustive]
pub struct EvalOptions {
    /// Split of each set. `None`: the validation split if the data are prepared and have one, otherwise all of the set.
    pub split: Option<Split>,
    /// Maximum length of a window; `None`: the model's maximum sequence length.
    pub seq_len: Option<usize>,
    /// Windows per batch.
    pub batch_size: usize,
    /// Windows that are evaluated.
    pub windows: Windows,
    /// Distance between windows that overlap, in tokens; see [`sliding_loss`](super::sliding_loss). `None`: windows do
    /// not overlap.
    pub stride: Option<usize>,
    /// Checkpoint of the model, whose run defines how raw text is read.
    pub checkpoint: Option<PathBuf>,
    /// Overrides of how raw text is read.
    pub text: TextOverrides,
}

impl Default for EvalOptions {
    /// Returns the options for all windows of every set, in batches of 8, with the default text options.
    fn default() -> Self {
        Self {
            split: None,
            seq_len: None,
            batch_size: 8,
            windows: Windows::All,
            stride: None,
            checkpoint: None,
            text: TextOverrides::default(),
        }
    }
}

/// An opened dataset.
///
/// ```
/// use hybridnorm::data::{Split, quiet};
/// use hybridnorm::eval::{EvalOptions, open_sets};
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
/// # let model = Model::new(&config, 0, Device::Cpu)?;
/// let paths = ["stories:5".to_owned()];
/// let sets = open_sets(&paths, &EvalOptions::default(), &model, Some(&tokenizer), &mut quiet)?;
/// let set = &sets[0];
/// // Raw text is not split: only a prepared folder can have a validation split.
/// assert_eq!(set.split, Split::All);
/// // Each document is followed by an end-of-text token, which is not part of the text.
/// assert_eq!(set.data.tokens(), set.text_bytes.unwrap() + 5);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct EvalSet {
    /// Name as given.
    pub name: String,
    /// Split that is evaluated.
    pub split: Split,
    /// Tokens.
    pub data: TokenDataset,
    /// Tokenizer that produced the tokens, or that of the checkpoint.
    pub tokenizer: Option<Tokenizer>,
    /// Bytes of the text of this split, if the prepared data record them.
    pub text_bytes: Option<u64>,
    /// Bytes of the text in the first token of every stream, which is never a target; `None` if the prepared data do
    /// not record them.
    pub first_token_bytes: Option<u64>,
    /// Statistics of the text that it was prepared from, over all splits of a prepared folder; `None` for token
    /// files.
    pub text: Option<TextStats>,
    /// Options that its text was read with; `None` for prepared folders and token files.
    pub text_options: Option<TextOptions>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Opens datasets to evaluate a model on, each separately. A path may have a name for the results before it, `NAME=PATH`.
///
/// [`Split::Validation`] is the part that a training run on that set alone would hold out, for raw text too.
///
/// # Errors
/// If one is missing, corrupt, given twice, tokenized with a different tokenizer, or has no targets.
///
/// ```
/// use hybridnorm::data::{Split, quiet};
/// use hybridnorm::eval::{EvalOptions, open_sets};
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
/// # let model = Model::new(&config, 0, Device::Cpu)?;
/// let paths = ["stories:5", "stories:5:5"].map(str::to_owned);
/// let options = EvalOptions::default().with_split(Split::All);
/// let sets = open_sets(&paths, &options, &model, Some(&tokenizer), &mut quiet)?;
/// assert_eq!(sets[1].name, "stories:5:5");
///
/// let twice = ["stories:5", "stories:5"].map(str::to_owned);
/// assert!(open_sets(&twice, &options, &model, Some(&tokenizer), &mut quiet).is_err());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn open_sets(
    paths: &[String],
    options: &EvalOptions,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<EvalSet>> {
    let config = model.config();
    let seq_len = options.seq_len.unwrap_or(config.max_seq_len);
    if seq_len > config.max_seq_len {
        return Err(Error::out_of_range(
            "sequence length",
            seq_len,
            format!("at most the model's {}", config.max_seq_len),
        ));
    }
    check_stride(options, seq_len)?;
    let mut open = OpenOptions::new(seq_len, sources::cache_dir());
    open.vocab_size = Some(config.vocab_size);
    open.tokenizer = tokenizer.cloned().map(TokenizerChoice::Loaded);
    open.windows = options.windows;
    open.allow_any_row_length = true;
    let (mut names, mut files) = (Vec::new(), Vec::new());
    for given in paths {
        let (name, path) = named_path(given)?;
        names.push(name.unwrap_or(path).to_owned());
        files.push(path.to_owned());
    }
    let raw = raw_text(&files)?;
    if let (None, Some(path)) = (tokenizer, raw.first()) {
        return Err(no_tokenizer(path, options.checkpoint.as_deref()));
    }
    text_options::check_overrides_used(&raw, &options.text)?;
    let checkpoint = options.checkpoint.as_deref().filter(|_| !raw.is_empty());
    let text_options = TextOptions::new(checkpoint, &options.text)?;
    open.prepare.source = text_options.options.clone();
    let mut known = BTreeSet::new();
    let mut sets = Vec::new();
    for (name, path) in names.iter().zip(&files) {
        if !known.insert(identity(path)) {
            return Err(Error::invalid_value(
                "data path",
                format!(
                    "{path} is given twice, and the pooled loss would count it twice; list each dataset once"
                ),
            ));
        }
        let text_options = raw.contains(path).then(|| text_options.clone());
        sets.push(open_set(
            name,
            path,
            text_options,
            options.split,
            &open,
            progress,
        )?);
    }
    text_options::check_separator(&sets, &options.text)?;
    Ok(sets)
}

/// Checks that the stride is valid for all windows of `seq_len` tokens.
fn check_stride(options: &EvalOptions, seq_len: usize) -> Result<()> {
    match options.stride {
        Some(_) if options.windows != Windows::All => Err(Error::conflict(
            ["stride", "windows"],
            "a stride and a choice of windows are both given, but overlapping windows cover all tokens",
        )),
        Some(stride) if stride == 0 || stride > seq_len => Err(Error::out_of_range(
            "stride",
            stride,
            format!("at least 1 and at most {seq_len}, the sequence length"),
        )),
        _ => Ok(()),
    }
}

/// Returns the inputs that are raw text.
fn raw_text(paths: &[String]) -> Result<Vec<String>> {
    let mut raw = Vec::new();
    for path in paths {
        if data::is_raw_text(path)? {
            raw.push(path.clone());
        }
    }
    Ok(raw)
}

/// Returns the error of raw text without a tokenizer.
fn no_tokenizer(path: &str, checkpoint: Option<&Path>) -> Error {
    let model = checkpoint.map_or("the model".into(), |path: &Path| path.display().to_string());
    Error::invalid_value(
        "tokenizer",
        format!("{model}: {}; {path} is text", checkpoint::NO_TOKENIZER),
    )
}

/// Splits `NAME=PATH` into both; without a name, or if a file of the whole name exists, all is the path.
pub(crate) fn named_path(given: &str) -> Result<(Option<&str>, &str)> {
    let is_plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']);
    match given.split_once('=').filter(|(name, _)| is_plain(name)) {
        Some((name, path)) if !files::exists(given)? => Ok((Some(name), path)),
        _ => Ok((None, given)),
    }
}

/// Returns a path that is the same for two names of one file or folder.
fn identity(name: &str) -> PathBuf {
    let path = Path::new(name);
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

fn open_set(
    name: &str,
    path: &str,
    text_options: Option<TextOptions>,
    split: Option<Split>,
    options: &OpenOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<EvalSet> {
    let names = [path.to_owned()];
    let mut options = options.clone();
    let (split, opened) = match split {
        Some(split) => (split, data::open(&names, split, &options, progress)?),
        None => {
            options.prepare.validation_fraction = 0.0;
            let all = data::open(&names, Split::All, &options, progress)?;
            match all.folders.iter().all(has_validation_split) && !all.folders.is_empty() {
                true => {
                    let held_out = data::open(&names, Split::Validation, &options, progress)?;
                    (Split::Validation, held_out)
                }
                false => (Split::All, all),
            }
        }
    };
    let text_bytes = text_bytes(&opened, split);
    let first_token_bytes = first_token_bytes(&opened, split);
    Ok(EvalSet {
        text: opened.text_stats(),
        text_options,
        name: name.to_owned(),
        split,
        data: opened.dataset,
        tokenizer: opened.tokenizer,
        text_bytes,
        first_token_bytes,
        notes: opened.notes,
    })
}

fn has_validation_split(folder: &PreparedFolder) -> bool {
    folder.manifest().validation.tokens > 0
}

/// Returns the bytes of the text of a split; `None` if some tokens are from elsewhere.
fn text_bytes(opened: &OpenedData, split: Split) -> Option<u64> {
    let parts = || {
        opened
            .folders
            .iter()
            .flat_map(|folder| parts(folder, split))
    };
    let tokens: u64 = parts().map(|(record, _)| record.tokens).sum();
    let bytes = parts().map(|(record, _)| record.text_bytes).sum();
    (tokens == opened.dataset.tokens()).then_some(bytes)
}

/// Returns the bytes of the first token of every stream of a split; `None` if one is not recorded.
fn first_token_bytes(opened: &OpenedData, split: Split) -> Option<u64> {
    let parts = opened
        .folders
        .iter()
        .flat_map(|folder| parts(folder, split));
    let filled = parts.filter(|(record, _)| record.tokens > 0);
    filled.map(|(_, first)| first).sum()
}

/// Returns the records of a manifest for a split, with the bytes of their first tokens.
fn parts(
    folder: &PreparedFolder,
    split: Split,
) -> impl Iterator<Item = (&SplitRecord, Option<u64>)> {
    let manifest = folder.manifest();
    let first = manifest.first_token_bytes;
    let all = [
        (&manifest.train, first.train, Split::Validation),
        (&manifest.validation, first.validation, Split::Train),
    ];
    let taken = all.into_iter().filter(move |(_, _, other)| split != *other);
    taken.map(|(record, first, _)| (record, first))
}
