//! Documents of plain text files.
//!
//! Memory: one document and one line, of at most [`DOCUMENT_LIMIT`] and 256 MiB, in buffers of up to
//! twice their size.

use crate::data::lines::Lines;
use crate::error::Result;
use crate::memory;

use super::{SourceOptions, SourceStats};
use crate::omissions::Unit;

/// Maximum size of a document, in bytes.
const DOCUMENT_LIMIT: usize = 1 << 30;

/// Maximum size of a document that is read without checking the available memory, in bytes.
const MEMORY_CHECK_THRESHOLD: usize = 64 << 20;

/// Reader of a plain text file.
pub(super) struct PlainTextReader {
    lines: Lines,
    /// Text read but not returned yet.
    buffer: String,
    /// Start of the next document in `buffer`.
    begin: usize,
    /// Documents returned.
    documents: u64,
    /// Separators found.
    separators: u64,
    stats_added: bool,
    /// Document size in bytes for which memory is available.
    checked_bytes: usize,
}

impl PlainTextReader {
    pub(super) fn new(lines: Lines) -> Self {
        Self {
            lines,
            buffer: String::new(),
            begin: 0,
            documents: 0,
            separators: 0,
            stats_added: false,
            checked_bytes: MEMORY_CHECK_THRESHOLD,
        }
    }

    /// Returns the next document; blank ones between two separators are counted.
    pub(super) fn next(
        &mut self,
        options: &SourceOptions,
        stats: &mut SourceStats,
    ) -> Result<Option<String>> {
        let next = match &options.separator {
            Some(separator) => self.next_separated(separator, stats)?,
            None => self.next_by_length(options.document_chars)?,
        };
        if next.is_some() {
            self.documents += 1;
        } else {
            self.finish(options, stats);
        }
        Ok(next)
    }

    /// Adds the counts of replaced lines, separators and splits to `stats`, once.
    pub(super) fn finish(&mut self, options: &SourceOptions, stats: &mut SourceStats) {
        if std::mem::replace(&mut self.stats_added, true) {
            return;
        }
        stats.replaced_lines += self.lines.replaced;
        stats.separators += self.separators;
        if options.separator.is_none() && self.documents > 1 {
            stats.split_texts += 1;
            stats.split_documents += self.documents;
        }
    }

    fn next_by_length(&mut self, document_chars: usize) -> Result<Option<String>> {
        let mut document = String::new();
        let mut chars = 0;
        while let Some(line) = self.lines.next_or_fail()? {
            let blank = line.trim().is_empty();
            if blank && document.is_empty() {
                continue;
            }
            chars += line.chars().count();
            document.push_str(&line);
            self.check_length(document.len())?;
            let splits_here = blank && chars >= document_chars
                || chars / 4 >= document_chars && line.ends_with('\n');
            if document_chars > 0 && splits_here {
                break;
            }
        }
        if document.is_empty() {
            return Ok(None);
        }
        document.truncate(document.trim_end_matches(['\n', '\r']).len());
        Ok(Some(document))
    }

    fn next_separated(
        &mut self,
        separator: &str,
        stats: &mut SourceStats,
    ) -> Result<Option<String>> {
        loop {
            let is_first = self.separators == 0;
            let Some(document) = self.up_to(separator)? else {
                return Ok(None);
            };
            if let Some(document) = without_blank_ends(&document.text) {
                return Ok(Some(document.to_owned()));
            }
            // The text before the first and after the last separator may be blank.
            if !is_first && !document.is_last {
                stats.omissions.add(
                    Unit::Documents,
                    "blank",
                    1,
                    Some(format!(
                        "{}:{}",
                        self.lines.path().display(),
                        self.lines.number
                    )),
                );
            }
        }
    }

    /// Returns the text up to the next separator or the end.
    fn up_to(&mut self, separator: &str) -> Result<Option<Separated>> {
        let mut searched = self.begin;
        loop {
            let rest = &self.buffer[searched..];
            if let Some(at) = rest.find(separator) {
                let end = searched + at;
                let text = self.buffer[self.begin..end].to_owned();
                self.begin = end + separator.len();
                self.separators += 1;
                return Ok(Some(Separated {
                    text,
                    is_last: false,
                }));
            }
            // Returned text is removed to make room for the next line.
            self.buffer.drain(..self.begin);
            self.begin = 0;
            // A separator may continue in the next line.
            searched = self.buffer.len().saturating_sub(separator.len() - 1);
            while !self.buffer.is_char_boundary(searched) {
                searched -= 1;
            }
            match self.lines.next_or_fail()? {
                Some(line) => self.buffer.push_str(&line),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Ok(Some(Separated {
                        text: std::mem::take(&mut self.buffer),
                        is_last: true,
                    }));
                }
            }
            self.check_length(self.buffer.len())?;
        }
    }

    fn check_length(&mut self, bytes: usize) -> Result<()> {
        let number = self.lines.number;
        if bytes > DOCUMENT_LIMIT {
            return Err(self.lines.error(format!(
                "line {number}: a document longer than {} MiB; set document_chars to split long text, or separator to \
                 separate documents",
                DOCUMENT_LIMIT >> 20
            )));
        }
        if bytes > self.checked_bytes {
            let document = format!("line {number}: a document longer than {} MiB", bytes >> 20);
            memory::check_available_for_text(2 * bytes as u64, &document)
                .map_err(|error| self.lines.error(error.to_string()))?;
            self.checked_bytes = 2 * bytes;
        }
        Ok(())
    }
}

struct Separated {
    text: String,
    is_last: bool,
}

/// Strips leading blank lines and trailing newlines of a document; `None` if it is blank.
fn without_blank_ends(text: &str) -> Option<&str> {
    let visible = text.len() - text.trim_start().len();
    let begin = text[..visible].rfind('\n').map_or(0, |at| at + 1);
    let text = text[begin..].trim_end_matches(['\n', '\r']);
    (!text.trim().is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_blank_lines_around_documents() {
        assert_eq!(without_blank_ends("\n \n  a\n\nb\r\n\n"), Some("  a\n\nb"));
        assert_eq!(without_blank_ends(" \n\t"), None);
        assert_eq!(without_blank_ends("  x"), Some("  x"));
    }
}
