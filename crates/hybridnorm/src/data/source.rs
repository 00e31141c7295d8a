//! Where documents come from.
//!
//! An input is written as one string:
//!
//! | input | documents |
//! |---|---|
//! | `book.txt`, `.text`, `.md` | the file, cut at [`SourceOptions::separator`] or, when long, at blank lines (see [`SourceOptions::document_chars`]) |
//! | `pile.jsonl`, `.ndjson` | one per line, from [`SourceOptions::text_field`] |
//! | `pile.json` | one per line; or one per element of an array of records or strings; or records over several lines |
//! | any of these with `.gz`, `.zst` or `.zstd` | the same |
//! | `pile.parquet` | one per row, from the column [`SourceOptions::text_field`] (nested: `meta.text`) |
//! | `folder/` | all such files in it and below, sorted by path |
//! | `books/*.txt` | the files that match, sorted by path; each must be of a known kind |
//! | `stories`, `stories:N`, `stories:N:SEED` | N generated stories (see [`super::stories`]) |
//! | `gutenberg` | 18 classic books (see [`super::gutenberg`]) |
//!
//! To read a file that is called `stories` or `gutenberg`, write `./stories`. Links are
//! followed, and each file is read once, through the first input that reaches it; so with stories of
//! equal seeds. What is training text and validation text at once is an error.
//!
//! Text is taken as it is (no normalization), but for a byte order mark at the start of a file. Of plain
//! text, what stands between documents belongs to none of them: blank lines before a document, line ends
//! after it, and separators. Records keep theirs.
//!
//! What is left out is counted by reason in [`SourceStats::left_out`]:
//! - files: hidden ones, those of unknown kind, those that [`SourceOptions::include`] and
//!   [`SourceOptions::exclude`] do not choose, pipes and devices, broken links, files and folders
//!   reached a second time, files without any text, and with [`SourceOptions::skip_bad`] damaged ones
//!   from which nothing was read and those that are not what their name says;
//! - records: those whose text is null, and with [`SourceOptions::skip_bad`] those that cannot be
//!   read, and as one the rest of a damaged file;
//! - documents: those without any visible character.
//!
//! Files read and files left out are all files; records read and records left out are all records;
//! and so with documents.
//!
//! **Memory.** A reader holds at most 4 times the largest record (or line, or document of plain
//! text), which is at most 256 MiB for lines and records and 1 GiB for documents of plain text, and
//! 16 MiB besides; for zstd the window that the file declares, at most 2 GiB; for Parquet twice a
//! page with its dictionary, which are at most 512 MiB each.

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

use crate::error::{Error, Result};
use crate::omissions::LeftOut;

use super::gutenberg;
use super::stories::Stories;

use find::{Files, Filter, Reached};
use kind::{Format, file_kind};
pub use read::Documents;

/// What to do with bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InvalidUtf8 {
    /// Stop with an error that names file and byte offset.
    #[default]
    Error,
    /// Put U+FFFD in their place; [`SourceStats::replaced_lines`] counts the lines.
    Replace,
}

/// How text is read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// Field of a JSON record, or column of a Parquet file, that holds the text.
    pub text_field: String,
    /// What to do with bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
    /// A plain text file is one document up to this many characters. A longer one is cut at the next
    /// blank line after that many, or, where none comes within four times as many, at the next
    /// line end; the last piece is shorter. So a few long books become many documents, and a
    /// validation split by document is possible. 0: never cut.
    pub document_chars: usize,
    /// Text that stands between the documents of plain text files, such as `<|endoftext|>`. They are
    /// cut there, and nowhere else, and the separator goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Of the files of folders and globs, read those that match one of these patterns only. A
    /// pattern with `/` is compared with the path below the input, one without with every name in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Leave out those that match one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Leave out, and count, records of JSON and Parquet files that cannot be read: malformed,
    /// without the field, with something in it that is no text, not UTF-8, or too long; what
    /// follows in packed and Parquet files that are damaged; and files that are no text, or Parquet files
    /// without the column. Otherwise the first one is an error.
    pub skip_bad: bool,
    /// Accept options that have no effect, as where they were given for other inputs too.
    #[serde(skip)]
    pub may_be_unused: bool,
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
            skip_bad: false,
            may_be_unused: false,
        }
    }
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its text, never blank.
    pub text: String,
    /// Index of the input it came from, in the order given.
    pub input: usize,
}

/// What was read and what was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Documents returned.
    pub documents: u64,
    /// Bytes of UTF-8 text in them.
    pub text_bytes: u64,
    /// Files that documents came from.
    pub files: u64,
    /// Records of JSON and Parquet files that held a text, blank ones included.
    pub records: u64,
    /// Plain text files that were cut for their length.
    pub cut_texts: u64,
    /// Documents they were cut into.
    pub cut_documents: u64,
    /// Separators found between documents.
    pub separators: u64,
    /// Lines and records in which invalid UTF-8 was replaced.
    pub replaced_lines: u64,
    /// Texts in which half a surrogate pair was replaced.
    pub replaced_surrogates: u64,
    /// What was left out.
    pub left_out: LeftOut,
}

impl SourceStats {
    /// Adds what was read elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.text_bytes += other.text_bytes;
        self.files += other.files;
        self.records += other.records;
        self.cut_texts += other.cut_texts;
        self.cut_documents += other.cut_documents;
        self.separators += other.separators;
        self.replaced_lines += other.replaced_lines;
        self.replaced_surrogates += other.replaced_surrogates;
        self.left_out.extend(&other.left_out);
    }
}

/// Inputs found and sorted, ready to be read any number of times.
#[derive(Debug, Clone)]
pub struct Sources {
    inputs: Vec<Input>,
    options: SourceOptions,
}

#[derive(Debug, Clone)]
struct Input {
    given: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Files(Files),
    /// Those from the given one on; an earlier input has the others.
    Stories(Stories, u64),
}

/// Whether `input` names text that [`Sources::resolve`] reads, going by its spelling alone.
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
    /// Finds what the inputs name; downloads the `gutenberg` books if they are named and not
    /// there yet. Reads no text.
    ///
    /// # Errors
    /// If there are no inputs, one does not exist or cannot be listed, matches nothing, or is of
    /// an unknown kind; or if an option has no effect on them.
    pub fn resolve(inputs: &[String], options: &SourceOptions) -> Result<Self> {
        let mut all = Self::resolve_all(&[inputs], options)?;
        all.pop()
            .ok_or_else(|| Error::config("no input text was named"))
    }

    /// As [`Sources::resolve`], for several lists of inputs, on one of which at least every option
    /// must have an effect.
    pub(crate) fn resolve_all(lists: &[&[String]], options: &SourceOptions) -> Result<Vec<Self>> {
        let mut filter = Filter::new(&options.include, &options.exclude)?;
        let mut all = Vec::new();
        let mut reached = Reached::default();
        let mut stories = HashMap::new();
        for (list, inputs) in lists.iter().enumerate() {
            if inputs.is_empty() {
                return Err(Error::config("no input text was named"));
            }
            let mut found = Vec::new();
            for given in *inputs {
                found.push(Input {
                    given: given.clone(),
                    kind: match is_generated(given) && given != "gutenberg" {
                        true => new_stories(given, list, &mut stories)?,
                        false => resolve(given, &mut filter, &mut reached)?,
                    },
                });
            }
            reached.next_list();
            all.push(Self {
                inputs: found,
                options: options.clone(),
            });
        }
        if !options.may_be_unused {
            filter.check_used()?;
            check_effect(&all, options)?;
        }
        Ok(all)
    }

    /// Reads all documents from the start, input by input.
    pub fn documents(&self) -> Documents<'_> {
        Documents::new(self)
    }

    /// The inputs as they were given.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.given.as_str())
    }

    /// Files that each input stands for; none for generated text.
    pub fn files(&self) -> impl Iterator<Item = &[PathBuf]> {
        self.inputs.iter().map(|input| match &input.kind {
            Kind::Files(files) => files.paths.as_slice(),
            Kind::Stories(..) => &[],
        })
    }

    /// SHA-256 over everything that decides the documents: the options, and the content of every
    /// file; and over what was left out. Reads all files once.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut parts = vec![serde_json::json!(self.options)];
        for input in &self.inputs {
            parts.push(match &input.kind {
                Kind::Stories(stories, 0) => serde_json::json!(stories.to_string()),
                Kind::Stories(stories, first) => {
                    serde_json::json!((stories.to_string(), first))
                }
                Kind::Files(files) => serde_json::json!((
                    files
                        .paths
                        .iter()
                        .map(|file| Ok((
                            format!("{:?}", file_kind(file)),
                            crate::files::fingerprint(file)?.sha256
                        )))
                        .collect::<Result<Vec<_>>>()?,
                    &files.left_out,
                )),
            });
        }
        let text = serde_json::Value::from(parts).to_string();
        Ok(crate::files::sha256(text.as_bytes()))
    }
}

/// Refuses options that none of these inputs has a use for.
fn check_effect(all: &[Sources], options: &SourceOptions) -> Result<()> {
    let default = SourceOptions::default();
    if options.separator.as_deref() == Some("") {
        return Err(Error::config("separator is the empty string"));
    }
    if options.separator.is_some() && options.document_chars != default.document_chars {
        return Err(Error::config(
            "document_chars has no effect beside separator, which alone says where documents end",
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
        ("skip_bad", options.skip_bad, records || plain),
    ];
    match given
        .iter()
        .find(|(_, is_given, is_used)| *is_given && !is_used)
    {
        None => Ok(()),
        Some((name @ ("separator" | "document_chars"), _, _)) => Err(Error::config(format!(
            "{name} has no effect: no plain text file (`.txt`, `.text`, `.md`) is among the inputs"
        ))),
        Some((name, _, _)) => Err(Error::config(format!(
            "{name} has no effect: no {} is among the inputs",
            match *name {
                "skip_bad" => "file",
                _ => "JSON or Parquet file",
            }
        ))),
    }
}

/// Stories that no input before this one names; by seed, how many and in which list.
fn new_stories(given: &str, list: usize, known: &mut HashMap<u64, (u64, usize)>) -> Result<Kind> {
    let stories: Stories = given.parse()?;
    match known.get_mut(&stories.seed) {
        None => {
            known.insert(stories.seed, (stories.count, list));
            Ok(Kind::Stories(stories, 0))
        }
        Some((_, other)) if *other != list => Err(Error::config(format!(
            "{given}: stories of the same seed are training text and validation text, which would measure what \
             was learned; name another seed, as in `stories:{}:{}`",
            stories.count,
            stories.seed + 1
        ))),
        Some((count, _)) => {
            let first = stories.count.min(*count);
            *count = stories.count.max(*count);
            Ok(Kind::Stories(stories, first))
        }
    }
}

fn resolve(given: &str, filter: &mut Filter, reached: &mut Reached) -> Result<Kind> {
    if given == "gutenberg" {
        let mut found = Files::default();
        for book in gutenberg::books()? {
            let metadata = std::fs::metadata(&book).map_err(Error::io(&book))?;
            found.add(find::single(&book, &metadata, reached)?);
        }
        return Ok(Kind::Files(found));
    }
    let path = Path::new(given);
    if given.is_empty() {
        return Err(Error::config("an input is the empty string"));
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            find::in_folder(path, filter, reached).map(Kind::Files)
        }
        Ok(metadata) => find::single(path, &metadata, reached).map(Kind::Files),
        Err(_) if is_pattern(given) => find::matching(given, filter, reached).map(Kind::Files),
        Err(error) => Err(Error::io(path)(error)),
    }
}
