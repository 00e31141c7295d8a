//! Opens the data paths of a configuration as one dataset.

mod too_short;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use derive_setters::Setters;

use crate::error::{Error, Result};
use crate::files;

use super::ProgressFn;
use super::dataset::TokenDataset;
use super::prepare::{PrepareOptions, prepare, prepare_with};
use super::pretokenized::{self, PretokenizedFile};
use super::shard::{PreparedFolder, TokenStream};
use super::source::kind::KNOWN_KINDS;
use super::source::{Sources, invalid_pattern, is_text_input};
use super::text_stats::TextStats;
use super::tokenizer::{Tokenizer, TokenizerSpec};
use super::windows::Windows;

/// Split of the data to use. Not `#[non_exhaustive]`: a `match` needs no wildcard arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Training tokens.
    Train,
    /// Validation tokens.
    Validation,
    /// Training tokens, then validation tokens. For data that a configuration names separately as
    /// validation data.
    All,
}

/// Tokenizer of the data.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TokenizerChoice {
    /// Specification of a tokenizer.
    Spec(TokenizerSpec),
    /// Loaded tokenizer.
    Loaded(Tokenizer),
}

impl From<TokenizerSpec> for TokenizerChoice {
    fn from(spec: TokenizerSpec) -> Self {
        Self::Spec(spec)
    }
}

impl From<Tokenizer> for TokenizerChoice {
    fn from(tokenizer: Tokenizer) -> Self {
        Self::Loaded(tokenizer)
    }
}

/// Options of [`open()`].
///
/// ```
/// use hybridnorm::data::{OpenOptions, Tokenizer};
///
/// let options = OpenOptions::new(128, None)
///     .with_tokenizer(Tokenizer::bytes())
///     .with_verify(false);
/// assert_eq!(options.seq_len, 128);
/// ```
#[derive(Debug, Clone, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Input tokens per instance.
    pub seq_len: usize,
    /// Tokenizer; required for raw text. Must match that of prepared folders where both are given (`bpe:N` is
    /// compared by name).
    #[setters(into)]
    pub tokenizer: Option<TokenizerChoice>,
    /// Exclusive upper bound of token ids in pre-tokenized files; if absent, the tokenizer's vocabulary size.
    pub vocab_size: Option<usize>,
    /// Cache folder for tokenized raw text, which is stored under a hash of the input names, their content, the
    /// tokenizer and the options. Only needed for raw text.
    #[setters(into)]
    pub cache: Option<PathBuf>,
    /// Options for tokenizing raw text.
    pub prepare: PrepareOptions,
    /// True to verify the checksums of prepared folders first. Pre-tokenized files are always read completely.
    pub verify: bool,
    /// Windows to use: full ones only, as in training, or all.
    pub windows: Windows,
    /// True if rows of two-dimensional arrays may have any length, as in evaluation. In training each row is
    /// one instance.
    pub allow_any_row_length: bool,
}

impl OpenOptions {
    /// Returns the default options: no tokenizer, shards verified.
    pub fn new(seq_len: usize, cache: Option<PathBuf>) -> Self {
        Self {
            seq_len,
            tokenizer: None,
            vocab_size: None,
            cache,
            prepare: PrepareOptions::default(),
            verify: true,
            windows: Windows::Full { limit: None },
            allow_any_row_length: false,
        }
    }
}

/// Opened data and its tokenizer.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenedData {
    /// The instances.
    pub dataset: TokenDataset,
    /// Tokenizer, if known; pre-tokenized files do not record one.
    pub tokenizer: Option<Tokenizer>,
    /// Prepared folders, including those created from raw text.
    pub folders: Vec<PreparedFolder>,
    /// Notes for the user, such as how the data type of a raw file was detected.
    pub notes: Vec<String>,
}

impl OpenedData {
    /// Returns the statistics of the source text of all prepared folders, including those created from raw
    /// text; `None` without prepared folders.
    pub fn text_stats(&self) -> Option<TextStats> {
        TextStats::from_folders(&self.folders)
    }
}

enum Entry {
    Folder(Box<PreparedFolder>),
    /// Path of a pre-tokenized file, with its type if one was given.
    Pretokenized(String),
    /// All raw text together, at the position of its first input.
    Text,
}

/// Opens `paths`: prepared folders, pre-tokenized files ([`super::pretokenized`]), and raw text
/// ([`super::source`]), which is tokenized into the cache unless it is cached already.
///
/// # Errors
/// If a path does not exist, is of an unknown kind, is damaged, was tokenized with another tokenizer, or
/// if all paths together yield no window.
///
/// ```
/// use hybridnorm::data::{OpenOptions, Split, open, quiet};
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("tokens.u16");
/// let tokens: Vec<u8> = (0..100_u16).flat_map(u16::to_le_bytes).collect();
/// std::fs::write(&path, tokens).unwrap();
///
/// let options = OpenOptions::new(8, None).with_vocab_size(100_usize);
/// let opened = open(&[path.display().to_string()], Split::Train, &options, &mut quiet)?;
/// assert_eq!(opened.dataset.len(), 12);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn open(
    paths: &[String],
    split: Split,
    options: &OpenOptions,
    progress: ProgressFn,
) -> Result<OpenedData> {
    if paths.is_empty() {
        return Err(Error::missing("data path", ""));
    }
    let mut entries = Vec::new();
    let mut text = Vec::new();
    for path in paths {
        match classify(path)? {
            Some(found) => entries.extend(found),
            None => {
                if text.is_empty() {
                    entries.push(Entry::Text);
                }
                text.push(path.clone());
            }
        }
    }
    check_named_once(&entries)?;
    let mut tokenizer = agreed_tokenizer(&entries, options)?;
    if !text.is_empty() {
        let folder = open_or_tokenize(&text, tokenizer.as_ref(), options, progress)?;
        if tokenizer.is_none() {
            tokenizer = Some(folder.tokenizer()?);
        }
        for entry in &mut entries {
            if matches!(entry, Entry::Text) {
                *entry = Entry::Folder(Box::new(folder.clone()));
            }
        }
    }
    let mut notes = Vec::new();
    let dataset = build_dataset(&entries, split, tokenizer.as_ref(), options, &mut notes)?;
    if dataset.coverage(options.windows).tokens == 0 {
        return Err(too_short::error(paths, split, options.windows, &dataset));
    }
    let folders = entries
        .into_iter()
        .filter_map(|entry| match entry {
            Entry::Folder(folder) => Some(*folder),
            _ => None,
        })
        .collect();
    Ok(OpenedData {
        dataset,
        tokenizer,
        folders,
        notes,
    })
}

/// Returns true if `input` names raw text: a text file, a folder or a glob of them, or generated text.
///
/// # Errors
/// If the file system cannot be queried.
pub fn is_raw_text(input: &str) -> Result<bool> {
    let path = Path::new(input);
    match files::is_dir(path)? {
        true => Ok(!PreparedFolder::is_prepared(path)?),
        false => Ok(pretokenized::parse_name(input).is_none() && is_text_input(input)),
    }
}

/// Classifies a path; `None` for raw text.
fn classify(given: &str) -> Result<Option<Vec<Entry>>> {
    let path = Path::new(given);
    if given.is_empty() {
        return Err(Error::invalid_value("data path", "a data path is empty"));
    }
    if files::is_dir(path)? {
        return if PreparedFolder::is_prepared(path)? {
            Ok(Some(vec![Entry::Folder(Box::new(PreparedFolder::open(
                path,
            )?))]))
        } else {
            Ok(None)
        };
    }
    if let Some((file, dtype)) = pretokenized::parse_name(given) {
        let name = file.to_string_lossy();
        if files::exists(file)? || !name.contains(['*', '?', '[']) {
            fs::metadata(file).map_err(Error::io(file))?;
            return Ok(Some(vec![Entry::Pretokenized(given.to_owned())]));
        }
        let suffix = dtype
            .filter(|_| name.len() < given.len())
            .map(|dtype| format!(":{}", dtype.name()))
            .unwrap_or_default();
        return matching(&name, &suffix).map(Some);
    }
    if is_text_input(given) {
        return Ok(None);
    }
    fs::metadata(path).map_err(Error::io(path))?;
    Err(Error::format(
        path,
        format!(
            "unknown kind of data; expected a prepared folder, `.npy`, `.bin`, `.u16`, `.u32`, {KNOWN_KINDS}, \
             `stories:N` or `gutenberg`"
        ),
    ))
}

fn matching(pattern: &str, suffix: &str) -> Result<Vec<Entry>> {
    let paths = glob::glob(pattern).map_err(|error| invalid_pattern(pattern, &error))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_path_buf();
            Error::io(path)(error.into())
        })?;
        let name = path
            .to_str()
            .ok_or_else(|| Error::format(&path, "the name is not UTF-8"))?;
        found.push(format!("{name}{suffix}"));
    }
    if found.is_empty() {
        return Err(Error::invalid_value(
            "data path",
            format!("no file matches `{pattern}`"),
        ));
    }
    found.sort();
    Ok(found.into_iter().map(Entry::Pretokenized).collect())
}

/// Rejects token files and prepared folders that are named twice, even under different names or types.
fn check_named_once(entries: &[Entry]) -> Result<()> {
    let mut known: HashMap<PathBuf, String> = HashMap::new();
    for entry in entries {
        let (path, name) = match entry {
            Entry::Folder(folder) => (folder.folder(), folder.folder().display().to_string()),
            Entry::Pretokenized(input) => {
                let path =
                    pretokenized::parse_name(input).map_or(Path::new(input), |(path, _)| path);
                (path, input.clone())
            }
            Entry::Text => continue,
        };
        let same = path.canonicalize().map_err(Error::io(path))?;
        if let Some(other) = known.insert(same, name.clone()) {
            let also = match other == name {
                true => String::new(),
                false => format!(" (also as {other})"),
            };
            return Err(Error::invalid_value(
                "data path",
                format!("{name} is given twice{also}; list it once"),
            ));
        }
    }
    Ok(())
}

/// Returns the tokenizer that the options and all prepared folders agree on, if any is known.
fn agreed_tokenizer(entries: &[Entry], options: &OpenOptions) -> Result<Option<Tokenizer>> {
    let mut agreed = match &options.tokenizer {
        None | Some(TokenizerChoice::Spec(TokenizerSpec::Bpe { .. })) => None,
        Some(TokenizerChoice::Spec(spec)) => Some(Tokenizer::from_spec(spec)?),
        Some(TokenizerChoice::Loaded(tokenizer)) => Some(tokenizer.clone()),
    };
    for entry in entries {
        let Entry::Folder(folder) = entry else {
            continue;
        };
        let in_folder = folder.tokenizer()?;
        if let Some(TokenizerChoice::Spec(spec @ TokenizerSpec::Bpe { .. })) = &options.tokenizer
            && in_folder.name() != spec.to_string()
        {
            return Err(Error::format(
                folder.folder(),
                format!(
                    "tokenized with {} (vocabulary of {} tokens), but {spec} was requested; omit the tokenizer \
                     to use that of the folder, or prepare the text again",
                    in_folder.name(),
                    in_folder.vocab_size()
                ),
            ));
        }
        match &agreed {
            Some(requested) if requested.fingerprint() != in_folder.fingerprint() => {
                return Err(Error::format(
                    folder.folder(),
                    format!(
                        "tokenized with {} (vocabulary of {} tokens), but {} (vocabulary of {} tokens) was requested; \
                         prepare the text again with the requested tokenizer",
                        in_folder.name(),
                        in_folder.vocab_size(),
                        requested.name(),
                        requested.vocab_size()
                    ),
                ));
            }
            Some(_) => {}
            None => agreed = Some(in_folder),
        }
    }
    Ok(agreed)
}

/// Returns the cached tokens of raw text; tokenizes it first if it is not cached.
fn open_or_tokenize(
    inputs: &[String],
    tokenizer: Option<&Tokenizer>,
    options: &OpenOptions,
    progress: ProgressFn,
) -> Result<PreparedFolder> {
    let tokenizer_key = match (tokenizer, &options.tokenizer) {
        (Some(tokenizer), _) => tokenizer.fingerprint().to_owned(),
        (None, Some(TokenizerChoice::Spec(spec))) => spec.to_string(),
        _ => {
            return Err(no_tokenizer());
        }
    };
    let mut contents = vec![Sources::resolve(inputs, &options.prepare.source)?.fingerprint()?];
    if !options.prepare.validation_inputs.is_empty() {
        let inputs = &options.prepare.validation_inputs;
        contents.push(Sources::resolve(inputs, &options.prepare.source)?.fingerprint()?);
    }
    // Input names are part of the key because the manifest records them.
    let key = serde_json::json!(["text 4", inputs, tokenizer_key, options.prepare, contents]);
    let key = key.to_string();
    let name = format!("text-{}", &files::sha256(key.as_bytes())[..24]);
    let cache = options.cache.as_ref().ok_or_else(|| {
        Error::missing(
            "cache folder for tokenized text",
            ": set XDG_CACHE_HOME or HOME",
        )
    })?;
    let folder = cache.join(&name);
    if let Some(prepared) = open_cached(&folder, options.verify) {
        return Ok(prepared);
    }
    files::create_dir(cache)?;
    // One process tokenizes; others wait for the lock. The lock file is kept so that all lock the same file.
    let lock_path = cache.join(format!("{name}.lock"));
    let lock_file = fs::File::options()
        .create(true)
        .append(true)
        .open(&lock_path)
        .map_err(Error::io(&lock_path))?;
    // Without lock support, several processes may tokenize; one of them renames its result into place.
    let _ = lock_file.lock();
    if let Some(prepared) = open_cached(&folder, options.verify) {
        return Ok(prepared);
    }
    // A damaged cache entry is replaced: its source text still exists.
    let prepare_options = &PrepareOptions {
        overwrite: true,
        ..options.prepare.clone()
    };
    match (tokenizer, &options.tokenizer) {
        (None, Some(TokenizerChoice::Spec(spec))) => {
            prepare(inputs, spec, &folder, prepare_options, progress)
        }
        (Some(tokenizer), _) => prepare_with(inputs, tokenizer, &folder, prepare_options, progress),
        (None, _) => Err(no_tokenizer()),
    }?;
    PreparedFolder::open(&folder)
}

/// Returns the cache entry of this name, if it is intact.
fn open_cached(folder: &Path, verify: bool) -> Option<PreparedFolder> {
    let prepared = PreparedFolder::open(folder).ok()?;
    (!verify || prepared.verify().is_ok()).then_some(prepared)
}

fn build_dataset(
    entries: &[Entry],
    split: Split,
    tokenizer: Option<&Tokenizer>,
    options: &OpenOptions,
    notes: &mut Vec<String>,
) -> Result<TokenDataset> {
    let mut dataset = TokenDataset::new(options.seq_len)?;
    for entry in entries {
        match entry {
            Entry::Folder(folder) => {
                if options.verify {
                    folder.verify()?;
                }
                let manifest = folder.manifest();
                let mut push = |tokens: TokenStream, record| {
                    dataset.push_stream(tokens, &serde_json::json!(record).to_string());
                };
                if split != Split::Validation {
                    push(folder.train()?, &manifest.train);
                }
                if split != Split::Train {
                    push(folder.validation()?, &manifest.validation);
                }
            }
            Entry::Pretokenized(input) if split == Split::Validation => {
                return Err(Error::invalid_value(
                    "split",
                    format!(
                        "{input}: a token file has no validation split; specify validation data separately"
                    ),
                ));
            }
            Entry::Pretokenized(input) => {
                let vocab_size = options
                    .vocab_size
                    .or(tokenizer.map(Tokenizer::vocab_size))
                    .ok_or_else(|| {
                        Error::missing(
                            "vocab_size",
                            format!(": required for token file {input} without a tokenizer"),
                        )
                    })?;
                let file = PretokenizedFile::open(input, vocab_size)?;
                // Pushing hashes the content, which reads and checks every token.
                notes.extend(file.note().map(str::to_owned));
                match options.allow_any_row_length {
                    true => dataset.push_pretokenized_rows(file)?,
                    false => dataset.push_pretokenized(file)?,
                }
            }
            Entry::Text => {}
        }
    }
    Ok(dataset)
}

fn no_tokenizer() -> Error {
    Error::missing(
        "tokenizer",
        ", required for raw text: bytes, r50k, cl100k, bpe:N, or the path of a tokenizer.json",
    )
}
