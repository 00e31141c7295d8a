//! Where documents come from.
//!
//! An input is written as one string:
//!
//! | input | documents |
//! |---|---|
//! | `book.txt` | the file, cut at blank lines when long (see [`SourceOptions::document_chars`]) |
//! | `pile.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.json.gz` | one per line, from [`SourceOptions::text_field`] |
//! | `folder/` | all such files in it and below, sorted by path; other files are left alone |
//! | `books/*.txt` | the files that match, sorted by path; each must be of a known kind |
//! | `stories`, `stories:N`, `stories:N:SEED` | N generated stories (see [`super::stories`]) |
//! | `gutenberg` | 18 classic books (see [`super::gutenberg`]) |
//!
//! To read a file that is called `stories` or `gutenberg`, write `./stories`. An input given twice
//! counts twice. Text is taken as it is (no normalization), except that a byte order mark at the
//! start of a file is dropped. Documents without any visible character are skipped and counted.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::gutenberg;
use super::jsonl::text_field;
use super::lines::{Compression, Lines};
use super::stories::Stories;

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
    /// Field of a JSON line that holds the text.
    pub text_field: String,
    /// What to do with bytes that are not UTF-8.
    pub invalid_utf8: InvalidUtf8,
    /// A `.txt` file is one document up to this many characters. A longer one is cut at the next
    /// blank line after that many, or, where none comes within four times as many, at the next
    /// line end; the last piece is shorter. So a few long books become many documents, and a
    /// validation split by document is possible. 0: never cut.
    pub document_chars: usize,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            text_field: "text".into(),
            invalid_utf8: InvalidUtf8::Error,
            document_chars: 20_000,
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
    /// Files read.
    pub files: u64,
    /// Files without any document.
    pub empty_files: u64,
    /// Blank documents left out.
    pub empty_documents: u64,
    /// Lines in which invalid UTF-8 was replaced.
    pub replaced_lines: u64,
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
    Files(Vec<PathBuf>),
    Stories(Stories),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Text,
    JsonLines(Compression),
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

const KNOWN_KINDS: &str = "`.txt`, `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.json.gz`";

fn file_kind(path: &Path) -> Option<FileKind> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let ends = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
    if ends(".txt") {
        Some(FileKind::Text)
    } else if ends(".jsonl") {
        Some(FileKind::JsonLines(Compression::None))
    } else if ends(".jsonl.gz") || ends(".json.gz") {
        Some(FileKind::JsonLines(Compression::Gzip))
    } else if ends(".jsonl.zst") {
        Some(FileKind::JsonLines(Compression::Zstd))
    } else {
        None
    }
}

impl Sources {
    /// Finds what the inputs name; downloads the `gutenberg` books if they are named and not
    /// there yet. Reads no text.
    ///
    /// # Errors
    /// If there are no inputs, one does not exist or cannot be listed, matches nothing, or is of
    /// an unknown kind.
    pub fn resolve(inputs: &[String], options: &SourceOptions) -> Result<Self> {
        if inputs.is_empty() {
            return Err(Error::config("no input text was named"));
        }
        let inputs = inputs
            .iter()
            .map(|given| {
                Ok(Input {
                    given: given.clone(),
                    kind: resolve(given)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            inputs,
            options: options.clone(),
        })
    }

    /// Reads all documents from the start, input by input.
    pub fn documents(&self) -> Documents<'_> {
        Documents {
            sources: self,
            input: 0,
            item: 0,
            file: None,
            found: vec![0; self.inputs.len()],
            stats: SourceStats::default(),
            failed: false,
        }
    }

    /// The inputs as they were given.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.given.as_str())
    }

    /// Files that each input stands for; none for generated text.
    pub fn files(&self) -> impl Iterator<Item = &[PathBuf]> {
        self.inputs.iter().map(|input| match &input.kind {
            Kind::Files(files) => files.as_slice(),
            Kind::Stories(_) => &[],
        })
    }

    /// SHA-256 over everything that decides the documents: the options, and the content of every
    /// file. Reads all files once.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut parts = vec![serde_json::json!(self.options)];
        for input in &self.inputs {
            parts.push(match &input.kind {
                Kind::Stories(stories) => serde_json::json!(stories.to_string()),
                Kind::Files(files) => serde_json::json!(
                    files
                        .iter()
                        .map(|file| Ok((
                            format!("{:?}", file_kind(file)),
                            crate::files::fingerprint(file)?.sha256
                        )))
                        .collect::<Result<Vec<_>>>()?
                ),
            });
        }
        let text = serde_json::Value::from(parts).to_string();
        Ok(crate::files::sha256(text.as_bytes()))
    }
}

fn resolve(given: &str) -> Result<Kind> {
    if given == "gutenberg" {
        return Ok(Kind::Files(gutenberg::books()?));
    }
    if is_generated(given) {
        return Ok(Kind::Stories(given.parse()?));
    }
    let path = Path::new(given);
    if given.is_empty() {
        return Err(Error::config("an input is the empty string"));
    }
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let mut files = Vec::new();
            walk(path, &mut files)?;
            if files.is_empty() {
                return Err(Error::format(
                    path,
                    format!("no {KNOWN_KINDS} file in this folder or below"),
                ));
            }
            files.sort();
            Ok(Kind::Files(files))
        }
        Ok(metadata) => {
            known(path)?;
            if !metadata.is_file() {
                return Err(Error::format(path, "not a regular file"));
            }
            Ok(Kind::Files(vec![path.to_path_buf()]))
        }
        Err(_) if is_pattern(given) => matching(given),
        Err(error) => Err(Error::io(path)(error)),
    }
}

fn known(path: &Path) -> Result<()> {
    match file_kind(path) {
        Some(_) => Ok(()),
        None => Err(Error::format(
            path,
            format!("unknown kind of text file; expected {KNOWN_KINDS}"),
        )),
    }
}

/// Adds the known files in `folder` and below. Links to folders are not followed.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io(&path))?;
        if kind.is_dir() {
            walk(&path, files)?;
        } else if file_kind(&path).is_some() && (kind.is_file() || path.is_file()) {
            files.push(path);
        }
    }
    Ok(())
}

fn matching(pattern: &str) -> Result<Kind> {
    let paths = glob::glob(pattern)
        .map_err(|error| Error::config(format!("`{pattern}` is not a valid pattern: {error}")))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_path_buf();
            Error::io(path)(error.into())
        })?;
        if !path.is_dir() {
            known(&path)?;
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::config(format!("no file matches `{pattern}`")));
    }
    files.sort();
    Ok(Kind::Files(files))
}

/// Iterator over the documents of [`Sources`]; stops after the first error.
pub struct Documents<'s> {
    sources: &'s Sources,
    input: usize,
    /// Next file or story of the current input.
    item: u64,
    file: Option<OpenFile>,
    /// Documents per input so far.
    found: Vec<u64>,
    stats: SourceStats,
    failed: bool,
}

impl Documents<'_> {
    /// What was read so far.
    pub fn stats(&self) -> &SourceStats {
        &self.stats
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        while let Some(input) = self.sources.inputs.get(self.input) {
            let text = match &input.kind {
                Kind::Stories(stories) if self.item < stories.count => {
                    self.item += 1;
                    Some(super::stories::story(stories.seed, self.item - 1))
                }
                Kind::Stories(_) => None,
                Kind::Files(files) => self.next_from(files)?,
            };
            match text {
                Some(text) => {
                    self.found[self.input] += 1;
                    self.stats.documents += 1;
                    self.stats.text_bytes += text.len() as u64;
                    let input = self.input;
                    return Ok(Some(Document { text, input }));
                }
                None if self.found[self.input] == 0 => {
                    return Err(Error::config(format!("{}: no text in it", input.given)));
                }
                None => {
                    self.input += 1;
                    self.item = 0;
                }
            }
        }
        Ok(None)
    }

    fn next_from(&mut self, files: &[PathBuf]) -> Result<Option<String>> {
        loop {
            let file = match &mut self.file {
                Some(file) => file,
                None => {
                    let Some(path) = files.get(self.item as usize) else {
                        return Ok(None);
                    };
                    self.item += 1;
                    self.stats.files += 1;
                    self.file
                        .insert(OpenFile::open(path, &self.sources.options)?)
                }
            };
            match file.next(&self.sources.options)? {
                Some(text) if text.trim().is_empty() => self.stats.empty_documents += 1,
                Some(text) => {
                    file.documents += 1;
                    return Ok(Some(text));
                }
                None => {
                    self.stats.replaced_lines += file.lines.replaced;
                    self.stats.empty_files += u64::from(file.documents == 0);
                    self.file = None;
                }
            }
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Result<Document>> {
        if self.failed {
            return None;
        }
        let next = self.next_document().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

struct OpenFile {
    kind: FileKind,
    lines: Lines,
    documents: u64,
}

impl OpenFile {
    fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        known(path)?;
        let kind = file_kind(path).unwrap_or(FileKind::Text);
        let compression = match kind {
            FileKind::Text => Compression::None,
            FileKind::JsonLines(compression) => compression,
        };
        Ok(Self {
            kind,
            lines: Lines::open(path, compression, options.invalid_utf8)?,
            documents: 0,
        })
    }

    fn next(&mut self, options: &SourceOptions) -> Result<Option<String>> {
        match self.kind {
            FileKind::Text => self.next_piece(options.document_chars),
            FileKind::JsonLines(_) => self.next_record(&options.text_field),
        }
    }

    fn next_record(&mut self, field: &str) -> Result<Option<String>> {
        while let Some(line) = self.lines.next()? {
            let line = line.trim();
            if !line.is_empty() {
                return text_field(line, field)
                    .map(Some)
                    .map_err(|problem| self.lines.error(problem));
            }
        }
        Ok(None)
    }

    fn next_piece(&mut self, document_chars: usize) -> Result<Option<String>> {
        let mut piece = String::new();
        let mut chars = 0;
        while let Some(line) = self.lines.next()? {
            let blank = line.trim().is_empty();
            if blank && piece.is_empty() {
                continue;
            }
            chars += line.chars().count();
            piece.push_str(&line);
            let cut = blank && chars >= document_chars
                || chars / 4 >= document_chars && line.ends_with('\n');
            if document_chars > 0 && cut {
                break;
            }
        }
        if piece.is_empty() {
            return Ok(None);
        }
        piece.truncate(piece.trim_end_matches(['\n', '\r']).len());
        Ok(Some(piece))
    }
}
