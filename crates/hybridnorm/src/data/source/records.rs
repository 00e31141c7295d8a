//! Records of JSON files: one per line, in one array, or over several lines.
//!
//! Memory: one record of at most 256 MiB in a buffer of up to twice its size, and its text.

use crate::data::jsonl::{FieldValue, JsonError, is_one_value, text_field};
use crate::data::lines::{InvalidRecord, Lines, RECORD_LIMIT};
use crate::error::Result;
use crate::omissions::Unit;

use super::{SourceOptions, SourceStats};

/// Reader of a JSON file.
pub(super) struct Records {
    lines: Lines,
    layout: Layout,
    /// Number of records started.
    number: u64,
    stats_added: bool,
    /// True if the file ended within the last record.
    is_truncated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One record per line; blank lines are skipped.
    Lines,
    /// Records one after another, with whitespace between them.
    Values,
    /// Records in one array, and the position in it.
    Array(ArrayState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArrayState {
    Start,
    AfterRecord,
    Ended,
}

/// Record, or the reason why it is invalid, and its line.
struct Record {
    text: Result<String, InvalidRecord>,
    line: u64,
}

/// Next item of a file.
enum Next {
    Record(Record),
    /// Invalid data from this byte on; the start of the next record is unknown.
    Invalid {
        byte: u64,
        message: String,
    },
    End,
}

impl Records {
    /// Returns a reader of one record per line.
    pub(super) fn lines(lines: Lines) -> Self {
        Self::new(lines, Layout::Lines)
    }

    /// Returns a reader whose layout is detected from the start of the file.
    pub(super) fn json(mut lines: Lines) -> Result<Self> {
        lines.number = 1;
        if skip_space(&mut lines)? == Some(b'[') {
            lines.consume(1, 0);
            return Ok(Self::new(lines, Layout::Array(ArrayState::Start)));
        }
        // If the first line is one complete value, the file has one record per line.
        let line = lines.peek_line()?;
        let layout = match is_one_value(&String::from_utf8_lossy(&line)) {
            true => Layout::Lines,
            false => Layout::Values,
        };
        if layout == Layout::Lines {
            lines.number -= 1;
        }
        Ok(Self::new(lines, layout))
    }

    fn new(lines: Lines, layout: Layout) -> Self {
        Self {
            lines,
            layout,
            number: 0,
            stats_added: false,
            is_truncated: false,
        }
    }

    /// Returns the next text; records without one are counted, or are an error.
    pub(super) fn next(
        &mut self,
        options: &SourceOptions,
        stats: &mut SourceStats,
    ) -> Result<Option<String>> {
        loop {
            let record = match self.next_record()? {
                Next::Record(record) => record,
                Next::End => break,
                Next::Invalid { byte, .. } if options.skip_invalid => {
                    let reason = "the rest of a file that is not valid JSON";
                    let place = format!("{} from byte {byte} on", self.lines.path().display());
                    stats.omissions.add(Unit::Records, reason, 1, Some(place));
                    self.skip_rest()?;
                    break;
                }
                Next::Invalid { message, .. } => return Err(self.lines.error(message)),
            };
            self.number += 1;
            let place = format!("{}:{}", self.lines.path().display(), record.line);
            let begins_line = self.layout == Layout::Lines;
            let found = record.text.and_then(|text| {
                text_field(&text, &options.text_field)
                    .map_err(|error| with_position(&text, record.line, begins_line, error))
            });
            match found {
                Ok(FieldValue::Text { text, replaced }) => {
                    stats.records += 1;
                    stats.replaced_surrogates += u64::from(replaced);
                    if !text.trim().is_empty() {
                        return Ok(Some(text));
                    }
                    stats
                        .omissions
                        .add(Unit::Documents, "blank", 1, Some(place));
                }
                Ok(FieldValue::Null) => {
                    let reason = format!("field `{}` is null", options.text_field);
                    stats.omissions.add(Unit::Records, &reason, 1, Some(place));
                }
                Err(problem) if options.skip_invalid => {
                    let InvalidRecord { reason, .. } = problem;
                    stats.omissions.add(Unit::Records, &reason, 1, Some(place));
                }
                Err(problem) => return Err(self.lines.error(problem.message)),
            }
        }
        self.finish(stats);
        Ok(None)
    }

    /// Adds the number of replaced lines to `stats`, once.
    pub(super) fn finish(&mut self, stats: &mut SourceStats) {
        if !std::mem::replace(&mut self.stats_added, true) {
            stats.replaced_lines += self.lines.replaced;
        }
    }

    fn skip_rest(&mut self) -> Result<()> {
        loop {
            let length = self.lines.fill()?.len();
            if length == 0 {
                self.layout = Layout::Array(ArrayState::Ended);
                return Ok(());
            }
            self.lines.consume(length, 0);
        }
    }

    fn next_record(&mut self) -> Result<Next> {
        match self.layout {
            Layout::Lines => self.next_line(),
            Layout::Values => match skip_space(&mut self.lines)? {
                Some(_) => self.value(),
                None => Ok(Next::End),
            },
            Layout::Array(array) => self.next_element(array),
        }
    }

    fn next_line(&mut self) -> Result<Next> {
        loop {
            let text = match self.lines.next()? {
                None => return Ok(Next::End),
                Some(Ok(line)) if line.trim().is_empty() => continue,
                Some(text) => text,
            };
            return Ok(Next::Record(Record {
                text,
                line: self.lines.number,
            }));
        }
    }

    fn next_element(&mut self, array: ArrayState) -> Result<Next> {
        let next = skip_space(&mut self.lines)?;
        let expected = match (array, next) {
            (ArrayState::Ended, None) => return Ok(Next::End),
            // The truncated record is counted already.
            (ArrayState::AfterRecord, None) if self.is_truncated => return Ok(Next::End),
            (ArrayState::Ended, _) => "the end of the file",
            (ArrayState::Start | ArrayState::AfterRecord, Some(b']')) => {
                self.lines.consume(1, 0);
                self.layout = Layout::Array(ArrayState::Ended);
                return self.next_element(ArrayState::Ended);
            }
            (ArrayState::AfterRecord, Some(b',')) => {
                self.lines.consume(1, 0);
                return match skip_space(&mut self.lines)? {
                    Some(b']' | b'}' | b',') | None => self.unexpected_token("a record"),
                    Some(_) => self.value(),
                };
            }
            (ArrayState::AfterRecord, _) => "`,` or `]`",
            (ArrayState::Start, _) => {
                self.layout = Layout::Array(ArrayState::AfterRecord);
                return self.value();
            }
        };
        self.unexpected_token(expected)
    }

    /// Returns the error for an unexpected token in an array.
    fn unexpected_token(&mut self, expected: &str) -> Result<Next> {
        let next = self.lines.fill()?.first().copied();
        let found = match next {
            None => "the file ends".to_owned(),
            Some(byte) => format!("found `{}`", byte.escape_ascii()),
        };
        Ok(Next::Invalid {
            byte: self.lines.offset,
            message: format!(
                "line {}: {found} after {} record{} of an array, expected {expected}",
                self.lines.number,
                self.number,
                if self.number == 1 { "" } else { "s" }
            ),
        })
    }

    /// Reads the bytes of one value, which begins here.
    fn value(&mut self) -> Result<Next> {
        let line = self.lines.number;
        let byte = self.lines.offset;
        self.lines.begin_record();
        let mut bytes = Vec::new();
        let mut scan = Scan::default();
        loop {
            let chunk = self.lines.fill()?;
            let is_end = chunk.is_empty();
            let (used, ended) = scan.value_bytes(chunk);
            bytes.extend_from_slice(&chunk[..used]);
            let newlines = bytes[bytes.len() - used..]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            self.lines.consume(used, newlines as u64);
            if ended || is_end {
                self.is_truncated = !ended;
                break;
            }
            if bytes.len() > RECORD_LIMIT {
                return Ok(Next::Invalid {
                    byte,
                    message: format!(
                        "line {line}: a record exceeds {} MiB or is unterminated",
                        RECORD_LIMIT >> 20
                    ),
                });
            }
        }
        Ok(Next::Record(Record {
            text: self.lines.decode(bytes),
            line,
        }))
    }
}

/// State of the scan for the end of a value.
#[derive(Default)]
struct Scan {
    depth: u64,
    in_string: bool,
    is_escaped: bool,
    has_started: bool,
}

impl Scan {
    /// Returns the number of bytes that belong to the value, and true if it ends with them.
    fn value_bytes(&mut self, chunk: &[u8]) -> (usize, bool) {
        for (at, &byte) in chunk.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' if self.depth == 0 && self.has_started => return (at, true),
                b'"' => self.in_string = true,
                b'{' | b'[' if self.depth == 0 && self.has_started => return (at, true),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => return (at + 1, true),
                // No value begins with these; a single one is consumed, and the parser rejects it.
                b'}' | b']' | b',' if self.depth == 0 => {
                    return (at + usize::from(!self.has_started), true);
                }
                b'}' | b']' => self.depth -= 1,
                b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => return (at, true),
                _ => {}
            }
            self.has_started = true;
        }
        (chunk.len(), false)
    }
}

/// Skips whitespace and returns the byte that follows.
fn skip_space(lines: &mut Lines) -> Result<Option<u8>> {
    loop {
        let chunk = lines.fill()?;
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let space = chunk.iter().take_while(|byte| is_space(byte)).count();
        let next = chunk.get(space).copied();
        let is_end = chunk.is_empty();
        let newlines = chunk[..space].iter().filter(|&&byte| byte == b'\n').count();
        lines.consume(space, newlines as u64);
        if next.is_some() || is_end {
            return Ok(next);
        }
    }
}

/// Adds the position to the error of a record that begins on `line`.
fn with_position(record: &str, line: u64, begins_line: bool, error: JsonError) -> InvalidRecord {
    let message = match error.at {
        None => format!("line {line}: {}", error.problem),
        Some(at) => {
            let before = record.get(..at).unwrap_or(record);
            let lines = before.matches('\n').count() as u64;
            let of_line = before.rfind('\n').map_or(before, |end| &before[end + 1..]);
            let place = match lines == 0 && !begins_line {
                true => "character",
                false => "column",
            };
            let of = match place {
                "character" => " of the record",
                _ => "",
            };
            format!(
                "line {}, {place} {}{of}: not valid JSON: {}",
                line + lines,
                of_line.chars().count() + 1,
                error.problem
            )
        }
    };
    InvalidRecord {
        reason: error.reason,
        message,
    }
}
