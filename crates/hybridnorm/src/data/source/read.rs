//! Iterator over documents, with statistics of text that was read and omitted.

use std::path::{Path, PathBuf};

use crate::data::lines::Lines;
use crate::data::stories;
use crate::error::{Error, Result};
use crate::omissions::{Omissions, Unit};

use super::kind::{Compression, FileKind, Format, file_kind};
use super::parquet_texts::ParquetTexts;
use super::plain::PlainTextReader;
use super::records::Records;
use super::{Document, Input, InputKind, SourceOptions, SourceStats, Sources, find};

const NO_TEXT: &str = "contains no text";
const DAMAGED: &str = "damaged";
const UNREADABLE: &str = "not readable as text";
const REST: &str = "after the damaged part of a file";

/// Iterator over the documents of [`Sources`]; stops after the first error.
pub struct Documents<'s> {
    sources: &'s Sources,
    input: usize,
    /// Index of the next file or story of the current input.
    item: u64,
    file: Option<OpenFile>,
    /// Statistics by input.
    stats: Vec<SourceStats>,
    text_bytes: u64,
    failed: bool,
}

impl<'s> Documents<'s> {
    pub(super) fn new(sources: &'s Sources) -> Self {
        let found = |kind: &InputKind| match kind {
            InputKind::Files(files) => SourceStats {
                omissions: files.omissions.clone(),
                ..SourceStats::default()
            },
            InputKind::Stories(_, first) => {
                let mut stats = SourceStats::default();
                let reason = "story already in an earlier input";
                stats.omissions.add(Unit::Documents, reason, *first, None);
                stats
            }
        };
        Self {
            sources,
            input: 0,
            item: first_item(sources, 0),
            file: None,
            stats: sources
                .inputs
                .iter()
                .map(|input| found(&input.kind))
                .collect(),
            text_bytes: 0,
            failed: false,
        }
    }

    /// Returns the statistics so far, over all inputs.
    pub fn stats(&self) -> SourceStats {
        let mut all = SourceStats::default();
        self.stats.iter().for_each(|stats| all.merge(stats));
        all
    }

    /// Returns the statistics so far, by input.
    pub fn stats_by_input(&self) -> &[SourceStats] {
        &self.stats
    }

    /// Returns the number of bytes of text returned so far.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        let skips = self.sources.options.skip_invalid;
        while let Some(input) = self.sources.inputs.get(self.input) {
            let text = match &input.kind {
                InputKind::Stories(stories, _) if self.item < stories.count => {
                    self.item += 1;
                    Some(stories::story(stories.seed, self.item - 1))
                }
                InputKind::Stories(..) => None,
                InputKind::Files(files) => self.next_from(&files.paths)?,
            };
            let stats = &mut self.stats[self.input];
            match text {
                Some(text) => {
                    stats.documents += 1;
                    stats.text_bytes += text.len() as u64;
                    self.text_bytes += text.len() as u64;
                    let input = self.input;
                    return Ok(Some(Document { text, input }));
                }
                None if stats.documents == 0 && !input.is_repeated() && !skips => {
                    return Err(no_text(&input.given, &stats.omissions));
                }
                None => {
                    self.input += 1;
                    self.item = first_item(self.sources, self.input);
                }
            }
        }
        let all = self.stats();
        let given = self
            .sources
            .inputs
            .first()
            .filter(|_| skips && all.documents == 0);
        match given {
            Some(first) if !self.sources.inputs.iter().any(Input::is_repeated) => {
                Err(no_text(&first.given, &all.omissions))
            }
            _ => Ok(None),
        }
    }

    fn next_from(&mut self, files: &[PathBuf]) -> Result<Option<String>> {
        let stats = &mut self.stats[self.input];
        let options = &self.sources.options;
        loop {
            let path = match (&self.file, files.get(self.item as usize)) {
                (Some(_), _) => None,
                (None, Some(path)) => Some(path),
                (None, None) => return Ok(None),
            };
            let file = match path {
                None => self.file.as_mut(),
                Some(path) => {
                    self.item += 1;
                    match OpenFile::open(path, options) {
                        Err(error) => {
                            let (reason, example) = unreadable(error, options)?;
                            stats.omissions.add(Unit::Files, reason, 1, example);
                            continue;
                        }
                        Ok(file) => Some(self.file.insert(file)),
                    }
                }
            };
            let Some(file) = file else { return Ok(None) };
            match file.reader.next(options, stats) {
                Err(error) => {
                    let damage = damage_message(error, options)?;
                    let left = file.reader.finish(options, stats);
                    match file.has_text {
                        true => stats.omissions.add(Unit::Records, REST, left, damage),
                        false => stats.omissions.add(Unit::Files, DAMAGED, 1, damage),
                    }
                    self.file = None;
                    continue;
                }
                Ok(Some(text)) => {
                    stats.files += u64::from(!file.has_text);
                    file.has_text = true;
                    return Ok(Some(text));
                }
                Ok(None) => {}
            }
            if !file.has_text {
                let example = Some(file.path.display().to_string());
                let reason = match file.reader {
                    Reader::TooShort => "too short for a Parquet file",
                    _ => NO_TEXT,
                };
                stats.omissions.add(Unit::Files, reason, 1, example);
            }
            self.file = None;
        }
    }
}

/// Returns the error for inputs without any text, including their omissions.
fn no_text(given: &str, omissions: &Omissions) -> Error {
    let more = omissions
        .lines()
        .iter()
        .filter(|line| !line.contains(NO_TEXT))
        .fold(String::new(), |text, line| text + "; " + line);
    Error::invalid_value("input text", format!("{given}: {NO_TEXT}{more}"))
}

/// Returns the reason for leaving out a file that cannot be opened as text, and the full message.
///
/// # Errors
/// The given error if it is an I/O error, or without `skip_invalid`.
fn unreadable(error: Error, options: &SourceOptions) -> Result<(&'static str, Option<String>)> {
    let reason = match error {
        Error::Corrupt { .. } if options.skip_invalid => DAMAGED,
        Error::Format { .. } if options.skip_invalid => UNREADABLE,
        error => return Err(error),
    };
    Ok((reason, Some(error.to_string())))
}

/// Returns the message for a damaged file that is omitted.
///
/// # Errors
/// The given error if it is not damage, or without `skip_invalid`.
fn damage_message(error: Error, options: &SourceOptions) -> Result<Option<String>> {
    match error {
        Error::Corrupt { .. } if options.skip_invalid => Ok(Some(error.to_string())),
        error => Err(error),
    }
}

/// Returns the index of the first file or story of an input.
fn first_item(sources: &Sources, input: usize) -> u64 {
    match sources.inputs.get(input).map(|input| &input.kind) {
        Some(InputKind::Stories(_, first)) => *first,
        _ => 0,
    }
}

impl Input {
    /// True if earlier inputs include a part of it.
    fn is_repeated(&self) -> bool {
        match &self.kind {
            InputKind::Files(files) => files.duplicates > 0,
            InputKind::Stories(_, first) => *first > 0,
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
    path: PathBuf,
    reader: Reader,
    has_text: bool,
}

enum Reader {
    Plain(PlainTextReader),
    Records(Box<Records>),
    Parquet(Box<ParquetTexts>),
    /// File that is too short for a Parquet file.
    TooShort,
}

impl OpenFile {
    fn open(path: &Path, options: &SourceOptions) -> Result<Self> {
        find::check_known_kind(path)?;
        let kind = file_kind(path).unwrap_or(FileKind {
            format: Format::Plain,
            compression: Compression::None,
        });
        let lines = || Lines::open(path, kind.compression, options.invalid_utf8);
        Ok(Self {
            path: path.to_path_buf(),
            reader: match kind.format {
                Format::Plain => Reader::Plain(PlainTextReader::new(lines()?)),
                Format::JsonLines => Reader::Records(Box::new(Records::lines(lines()?))),
                Format::Json => Reader::Records(Box::new(Records::json(lines()?)?)),
                Format::Parquet if ParquetTexts::is_too_short(path)? => Reader::TooShort,
                Format::Parquet => {
                    Reader::Parquet(Box::new(ParquetTexts::open(path, &options.text_field)?))
                }
            },
            has_text: false,
        })
    }
}

impl Reader {
    /// Adds the counts so far to `stats` after damage; returns the number of remaining records, 1 if unknown.
    fn finish(&mut self, options: &SourceOptions, stats: &mut SourceStats) -> u64 {
        match self {
            Self::Plain(plain) => plain.finish(options, stats),
            Self::Records(records) => records.finish(stats),
            Self::Parquet(texts) => return texts.rows_left(),
            Self::TooShort => {}
        }
        1
    }

    fn next(&mut self, options: &SourceOptions, stats: &mut SourceStats) -> Result<Option<String>> {
        match self {
            Self::Plain(plain) => plain.next(options, stats),
            Self::Records(records) => records.next(options, stats),
            Self::Parquet(texts) => texts.next(options, stats),
            Self::TooShort => Ok(None),
        }
    }
}
