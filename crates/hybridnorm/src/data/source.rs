//! Sources of documents.
//!
//! An input is written as one string:
//!
//! | input | documents |
//! |---|---|
//! | `book.txt`, `.text`, `.md` | the file, split at [`SourceOptions::separator`] or, when long, at blank lines (see [`SourceOptions::document_chars`]) |
//! | `pile.jsonl`, `.ndjson` | one per line, from [`SourceOptions::text_field`] |
//! | `pile.json` | one per line; or one per element of an array of records or strings; or records over several lines |
//! | any of these with `.gz`, `.zst` or `.zstd` | as above, decompressed |
//! | `pile.parquet` | one per row, from the column [`SourceOptions::text_field`] (nested: `meta.text`) |
//! | `folder/` | all such files in it and below, sorted by path |
//! | `books/*.txt` | the files that match, sorted by path; each must be of a known kind |
//! | `stories`, `stories:N`, `stories:N:SEED` | N generated stories (see [`super::stories`]) |
//! | `gutenberg` | 18 classic books (see [`super::gutenberg`]) |
//!
//! To read a file named `stories` or `gutenberg`, write `./stories`. Symbolic links are followed, and each
//! file is read once, through the first input that reaches it; the same holds for stories with the same seed.
//! Text that is both training and validation text is an error.
//!
//! Text is not normalized; only a byte order mark at the start of a file is removed. In plain text, blank
//! lines before a document, trailing newlines, and separators are not part of any document. Records
//! are not trimmed.
//!
//! Omissions are counted by reason in [`SourceStats::omissions`]:
//! - files: hidden files, unknown kinds, files that [`SourceOptions::include`] and
//!   [`SourceOptions::exclude`] do not select, pipes and devices, broken links, files and folders
//!   reached a second time, files without any text, and with [`SourceOptions::skip_invalid`] damaged files
//!   from which nothing was read and files whose content does not match their name;
//! - records: records whose text is null, and with [`SourceOptions::skip_invalid`] invalid records, and the
//!   rest of a damaged file, counted as one record (in Parquet files, by rows);
//! - documents: documents without any visible character.
//!
//! Files read plus files omitted are all files; the same holds for records and for documents.
//!
//! **Memory.** A reader holds at most 4 times the largest record (or line, or plain text document), which
//! is at most 256 MiB for lines and records and 1 GiB for plain text documents, plus 16 MiB; for zstd the
//! declared window, at most 2 GiB; for Parquet twice a page and its dictionary, at most 512 MiB each.

mod expand;
mod fault;
mod find;
mod pages;
mod parquet_texts;
mod plain;
mod read;
mod records;

pub(super) mod compressed;
pub(super) mod kind;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use derive_setters::Setters;

use crate::error::{Error, Result};
use crate::omissions::Omissions;

use super::gutenberg;
use super::stories::Stories;

use find::{Files, Filter, SeenFiles};
use kind::{Format, file_kind};
pub use read::Documents;

/// Options that allow replacing bytes that are not UTF-8, for messages.
pub(super) const ALLOW_REPLACING: &str =
    "--replace-invalid-utf8, or invalid_utf8 = \"replace\" in [data.text]";

/// Handling of bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum InvalidUtf8 {
    /// Return an error that names the file and byte offset.
    #[default]
    Error,
    /// Replace them by U+FFFD; [`SourceStats::replaced_lines`] counts the lines.
    Replace,
}

/// Options for reading text.
///
/// ```
/// use hybridnorm::data::{InvalidUtf8, SourceOptions};
///
/// let options = SourceOptions::default()
///     .with_text_field("body")
///     .with_invalid_utf8(InvalidUtf8::Replace);
/// assert_eq!(options.text_field, "body");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Setters)]
#[setters(prefix = "with_", strip_option)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SourceOptions {
    /// Field of a JSON record, or column of a Parquet file, that holds the text.
    #[setters(into)]
    pub text_field: String,
    /// Handling of bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
    /// Number of characters up to which a plain text file is one document. A longer file is split at the next
    /// blank line after that many, or, without one within four times as many, at the next newline; the last part is
    /// shorter. Thus a few long books become many documents, and a validation split by document is possible. 0: never
    /// split.
    pub document_chars: usize,
    /// Separator between the documents of plain text files, such as `<|endoftext|>`. Files are split only
    /// there, and the separator is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[setters(into)]
    pub separator: Option<String>,
    /// Patterns of the files of folders and globs to read; empty: all. A pattern with `/` is matched against
    /// the path below the input, one without against every component of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Patterns of the files of folders and globs to leave out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Skip and count invalid records of JSON and Parquet files (malformed, without the field, with a field
    /// that is not text, not UTF-8, or too long), the rest of damaged compressed and Parquet files, files
    /// that are not text, and Parquet files without the column. Otherwise the first of these is an error.
    #[serde(rename = "skip_bad")]
    pub skip_invalid: bool,
    /// Accept options that have no effect, for example because they were also given for other inputs.
    #[serde(skip)]
    pub allow_unused_options: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            text_field: "text".into(),
            invalid_utf8: InvalidUtf8::Error,
            document_chars: 20_000,
            separator: None,
            include: Vec::new(),
            exclude: Vec::new(),
            skip_invalid: false,
            allow_unused_options: false,
        }
    }
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Document {
    /// Its text, never blank.
    pub text: String,
    /// Index of the input it came from, in the order given.
    pub input: usize,
}

/// Statistics of text that was read and omitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStats {
    /// Documents returned.
    pub documents: u64,
    /// Bytes of UTF-8 text in them.
    pub text_bytes: u64,
    /// Files that documents came from.
    pub files: u64,
    /// Records of JSON and Parquet files that contain text, blank text included.
    pub records: u64,
    /// Plain text files that were split because of their length.
    pub split_texts: u64,
    /// Documents that resulted from splitting them.
    pub split_documents: u64,
    /// Separators found between documents.
    pub separators: u64,
    /// Lines and records in which invalid UTF-8 was replaced.
    pub replaced_lines: u64,
    /// Texts in which an unpaired surrogate was replaced.
    pub replaced_surrogates: u64,
    /// Omissions, by reason.
    pub omissions: Omissions,
}

impl SourceStats {
    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.documents += other.documents;
        self.text_bytes += other.text_bytes;
        self.files += other.files;
        self.records += other.records;
        self.split_texts += other.split_texts;
        self.split_documents += other.split_documents;
        self.separators += other.separators;
        self.replaced_lines += other.replaced_lines;
        self.replaced_surrogates += other.replaced_surrogates;
        self.omissions.extend(&other.omissions);
    }
}

/// Resolved inputs in the given order, each with its sorted files; they can be read any number of times.
///
/// ```
/// use hybridnorm::data::{SourceOptions, Sources};
///
/// let sources = Sources::resolve(&["stories:3".into()], &SourceOptions::default())?;
/// for document in sources.documents() {
///     assert!(!document?.text.is_empty());
/// }
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sources {
    inputs: Vec<Input>,
    options: SourceOptions,
}

#[derive(Debug, Clone)]
struct Input {
    given: String,
    kind: InputKind,
}

#[derive(Debug, Clone)]
enum InputKind {
    Files(Files),
    /// Stories from the given index on; an earlier input has the preceding ones.
    Stories(Stories, u64),
}

/// True if `input` names text that [`Sources::resolve`] reads, judged by its name only.
pub fn is_text_input(input: &str) -> bool {
    is_generated(input) || file_kind(Path::new(input)).is_some() || is_pattern(input)
}

fn is_generated(input: &str) -> bool {
    input == "gutenberg" || input == "stories" || input.starts_with("stories:")
}

fn is_pattern(input: &str) -> bool {
    input.contains(['*', '?', '['])
}

impl Sources {
    /// Resolves the inputs; downloads the `gutenberg` books if they are named and not cached yet. Reads no
    /// text.
    ///
    /// # Errors
    /// If there are no inputs, one does not exist or cannot be listed, matches nothing, or is of
    /// an unknown kind; or if an option has no effect on them.
    pub fn resolve(inputs: &[String], options: &SourceOptions) -> Result<Self> {
        let mut all = Self::resolve_all(&[inputs], options)?;
        all.pop().ok_or_else(|| Error::missing("input text", ""))
    }

    /// Resolves several lists of inputs as [`Sources::resolve`] does; every option must have an effect on at
    /// least one of them.
    pub(crate) fn resolve_all(lists: &[&[String]], options: &SourceOptions) -> Result<Vec<Self>> {
        let mut filter = Filter::new(&options.include, &options.exclude)?;
        let mut all = Vec::new();
        let mut seen_files = SeenFiles::default();
        let mut stories = HashMap::new();
        for (list, inputs) in lists.iter().enumerate() {
            if inputs.is_empty() {
                return Err(Error::missing("input text", ""));
            }
            let mut found = Vec::new();
            for given in *inputs {
                found.push(Input {
                    given: given.clone(),
                    kind: match is_generated(given) && given != "gutenberg" {
                        true => new_stories(given, list, &mut stories)?,
                        false => resolve(given, &mut filter, &mut seen_files)?,
                    },
                });
            }
            seen_files.next_list();
            all.push(Self {
                inputs: found,
                options: options.clone(),
            });
        }
        if !options.allow_unused_options {
            filter.check_used()?;
            check_effect(&all, options)?;
        }
        Ok(all)
    }

    /// Returns an iterator over all documents, input by input.
    pub fn documents(&self) -> Documents<'_> {
        Documents::new(self)
    }

    /// Returns the inputs as given.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.given.as_str())
    }

    /// Returns the files of each input; none for generated text.
    pub fn files(&self) -> impl Iterator<Item = &[PathBuf]> {
        self.inputs.iter().map(|input| match &input.kind {
            InputKind::Files(files) => files.paths.as_slice(),
            InputKind::Stories(..) => &[],
        })
    }

    /// Returns the SHA-256 of everything that determines the documents, which is the options and the content of every
    /// file, and of the omissions. Reads all files once.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut parts = vec![serde_json::json!(self.options)];
        for input in &self.inputs {
            parts.push(match &input.kind {
                InputKind::Stories(stories, 0) => serde_json::json!(stories.to_string()),
                InputKind::Stories(stories, first) => {
                    serde_json::json!((stories.to_string(), first))
                }
                InputKind::Files(files) => serde_json::json!((
                    files
                        .paths
                        .iter()
                        .map(|file| Ok((
                            format!("{:?}", file_kind(file)),
                            crate::files::fingerprint(file)?.sha256
                        )))
                        .collect::<Result<Vec<_>>>()?,
                    &files.omissions,
                )),
            });
        }
        let text = serde_json::Value::from(parts).to_string();
        Ok(crate::files::sha256(text.as_bytes()))
    }
}

/// Rejects options that have no effect on any of these inputs.
fn check_effect(all: &[Sources], options: &SourceOptions) -> Result<()> {
    let default = SourceOptions::default();
    if options.separator.as_deref() == Some("") {
        return Err(Error::invalid_value("separator", "separator is empty"));
    }
    if options.separator.is_some() && options.document_chars != default.document_chars {
        return Err(Error::no_effect(
            "document_chars",
            " together with separator",
        ));
    }
    let files = all.iter().flat_map(Sources::files).flatten();
    let (mut plain, mut records) = (false, false);
    for kind in files.filter_map(|path| file_kind(path)) {
        match kind.format {
            Format::Plain => plain = true,
            Format::Json | Format::JsonLines | Format::Parquet => records = true,
        }
    }
    let given = [
        ("separator", options.separator.is_some(), plain),
        (
            "document_chars",
            options.document_chars != default.document_chars,
            plain,
        ),
        (
            "text_field",
            options.text_field != default.text_field,
            records,
        ),
        ("skip_bad", options.skip_invalid, records || plain),
    ];
    match given
        .iter()
        .find(|(_, is_given, is_used)| *is_given && !is_used)
    {
        None => Ok(()),
        Some((name, _, _)) => {
            let kind = match *name {
                "separator" | "document_chars" => "plain text file (`.txt`, `.text`, `.md`)",
                "skip_bad" => "file",
                _ => "JSON or Parquet file",
            };
            Err(Error::no_effect(
                *name,
                format!(": no {kind} is among the inputs"),
            ))
        }
    }
}

/// Returns the stories that no earlier input names; `known` maps a seed to its count and list.
fn new_stories(
    given: &str,
    list: usize,
    known: &mut HashMap<u64, (u64, usize)>,
) -> Result<InputKind> {
    let stories: Stories = given.parse()?;
    match known.get_mut(&stories.seed) {
        None => {
            known.insert(stories.seed, (stories.count, list));
            Ok(InputKind::Stories(stories, 0))
        }
        Some((_, other)) if *other != list => Err(Error::invalid_value(
            "input text",
            format!(
                "{given}: stories of the same seed are both training text and validation text, so training text \
                 would leak into validation; use another seed, as in `stories:{}:{}`",
                stories.count,
                stories.seed + 1
            ),
        )),
        Some((count, _)) => {
            let first = stories.count.min(*count);
            *count = stories.count.max(*count);
            Ok(InputKind::Stories(stories, first))
        }
    }
}

/// Opens a file of JSON lines, compressed or not, for reading.
///
/// # Errors
/// If it cannot be opened, or its name does not end in `.jsonl`, `.ndjson` or these with `.gz`, `.zst` or `.zstd`.
pub(crate) fn open_text(path: &Path) -> Result<Box<dyn std::io::BufRead + Send>> {
    match file_kind(path) {
        Some(kind) if kind.format == Format::JsonLines => compressed::open(path, kind.compression),
        _ => Err(Error::format(
            path,
            "expected a file of JSON lines: `.jsonl` or `.ndjson`, also with `.gz`, `.zst` or `.zstd`",
        )),
    }
}

/// Returns the error for an invalid glob pattern.
pub(super) fn invalid_pattern(pattern: &str, error: &glob::PatternError) -> Error {
    Error::invalid_value(
        "pattern",
        format!("`{pattern}` is not a valid pattern: {error}"),
    )
}

fn resolve(given: &str, filter: &mut Filter, seen_files: &mut SeenFiles) -> Result<InputKind> {
    if given == "gutenberg" {
        let mut found = Files::default();
        for book in gutenberg::books()? {
            let metadata = std::fs::metadata(&book).map_err(Error::io(&book))?;
            found.add(find::resolve_file(&book, &metadata, seen_files)?);
        }
        return Ok(InputKind::Files(found));
    }
    let path = Path::new(given);
    if given.is_empty() {
        return Err(Error::invalid_value("input text", "an input path is empty"));
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            find::in_folder(path, filter, seen_files).map(InputKind::Files)
        }
        Ok(metadata) => find::resolve_file(path, &metadata, seen_files).map(InputKind::Files),
        Err(_) if is_pattern(given) => {
            find::matching(given, filter, seen_files).map(InputKind::Files)
        }
        Err(error) => Err(Error::io(path)(error)),
    }
}
