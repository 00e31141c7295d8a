//! Lines and bytes of text files, decompressed and decoded to UTF-8, with their positions.
//!
//! Memory: one line, at most [`RECORD_LIMIT`] bytes, in a buffer of up to twice its size.

use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::memory;

use super::source::ALLOW_REPLACING;
use super::source::InvalidUtf8;
use super::source::compressed;
use super::source::kind::Compression;

/// Maximum size of a line or record in bytes; longer ones are an error, so that memory stays bounded.
pub(super) const RECORD_LIMIT: usize = 256 << 20;

/// Maximum size of a line that is read without checking the available memory, in bytes.
const MEMORY_CHECK_THRESHOLD: usize = 16 << 20;

/// Reason why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InvalidRecord {
    /// Short reason; records with the same reason are counted together.
    pub(super) reason: String,
    /// Full message, without the file name.
    pub(super) message: String,
}

/// Line reader of a text file.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    compression: Compression,
    invalid: InvalidUtf8,
    /// Number of the line last returned, or of the reader's current line, from 1.
    pub(super) number: u64,
    /// Bytes of (decompressed) text before the line last returned.
    start: u64,
    /// Bytes of (decompressed) text read so far.
    pub(super) offset: u64,
    /// Lines and records in which invalid bytes were replaced.
    pub(super) replaced: u64,
}

impl Lines {
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        invalid: InvalidUtf8,
    ) -> Result<Self> {
        let mut lines = Self {
            path: path.to_path_buf(),
            reader: compressed::open(path, compression)?,
            compression,
            invalid,
            number: 0,
            start: 0,
            offset: 0,
            replaced: 0,
        };
        // Decompressed bytes are checked here; uncompressed ones were checked on opening.
        let head = lines.fill()?;
        let has_bom = head.starts_with(b"\xef\xbb\xbf");
        compressed::check_encoding(head).map_err(|problem| Error::format(path, problem))?;
        if has_bom {
            lines.reader.consume(3);
            lines.offset = 3;
        }
        Ok(lines)
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the next line with its newline; `None` at the end of the file. After an invalid line,
    /// reading continues with the next one.
    pub(super) fn next(&mut self) -> Result<Option<Result<String, InvalidRecord>>> {
        let bytes = self.read_line()?;
        let read = bytes.len();
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.start = self.offset;
        self.offset += read as u64;
        if read > RECORD_LIMIT {
            drop(bytes);
            self.skip_line()?;
            return Ok(Some(Err(InvalidRecord {
                reason: format!("longer than {} MiB", RECORD_LIMIT >> 20),
                message: format!(
                    "line {}: longer than {} MiB; break it into shorter lines",
                    self.number,
                    RECORD_LIMIT >> 20
                ),
            })));
        }
        Ok(Some(self.decode(bytes)))
    }

    /// Returns the next line as [`Lines::next`] does; an invalid line is an error.
    pub(super) fn next_or_fail(&mut self) -> Result<Option<String>> {
        match self.next()? {
            Some(Ok(line)) => Ok(Some(line)),
            Some(Err(problem)) => Err(match self.compression {
                Compression::None => Error::corrupt_at(&self.path, self.start, problem.message),
                // Offsets are those of the decompressed text.
                _ => Error::corrupt(&self.path, problem.message),
            }),
            None => Ok(None),
        }
    }

    /// Reads the bytes of the next line, at most `RECORD_LIMIT + 1`.
    fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let remaining =
                (RECORD_LIMIT + 1 - bytes.len()).min(bytes.len().max(MEMORY_CHECK_THRESHOLD));
            let read = (&mut self.reader)
                .take(remaining as u64)
                .read_until(b'\n', &mut bytes)
                .map_err(|error| self.read_error(&error))?;
            if read < remaining || bytes.ends_with(b"\n") || bytes.len() > RECORD_LIMIT {
                return Ok(bytes);
            }
            // The buffer doubles, and the text is copied out of it.
            let line = format!(
                "line {}, longer than {} MiB,",
                self.number + 1,
                bytes.len() >> 20
            );
            memory::check_available_for_text(3 * bytes.len() as u64, &line)
                .map_err(|error| self.error(error.to_string()))?;
        }
    }

    fn skip_line(&mut self) -> Result<()> {
        loop {
            let (used, ends) = {
                let bytes = self.fill()?;
                match bytes.iter().position(|&byte| byte == b'\n') {
                    Some(at) => (at + 1, true),
                    None => (bytes.len(), bytes.is_empty()),
                }
            };
            self.reader.consume(used);
            self.offset += used as u64;
            if ends {
                return Ok(());
            }
        }
    }

    /// Returns the next buffered bytes; empty at the end of the file.
    pub(super) fn fill(&mut self) -> Result<&[u8]> {
        // Two calls, for the borrow checker: the second one returns what the first one read.
        if let Err(error) = self.reader.fill_buf() {
            return Err(self.read_error(&error));
        }
        self.reader.fill_buf().map_err(Error::io(&self.path))
    }

    /// Consumes bytes returned by [`Lines::fill`], which contain `newlines` newlines.
    pub(super) fn consume(&mut self, bytes: usize, newlines: u64) {
        self.reader.consume(bytes);
        self.offset += bytes as u64;
        self.number += newlines;
    }

    /// Returns the bytes of the next line, at most `RECORD_LIMIT + 1`, without consuming them.
    pub(super) fn peek_line(&mut self) -> Result<Vec<u8>> {
        let bytes = self.read_line()?;
        let rest = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        self.reader = Box::new(Cursor::new(bytes.clone()).chain(rest));
        Ok(bytes)
    }

    /// Marks the current offset as the start of a record.
    pub(super) fn begin_record(&mut self) {
        self.start = self.offset;
    }

    /// Decodes a line or record that begins at the byte `start`, which [`Lines::next`] and [`Lines::begin_record`] set.
    pub(super) fn decode(&mut self, bytes: Vec<u8>) -> Result<String, InvalidRecord> {
        let error = match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(error) => error,
        };
        if self.invalid == InvalidUtf8::Replace {
            self.replaced += 1;
            return Ok(String::from_utf8_lossy(error.as_bytes()).into_owned());
        }
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        let of = match self.compression {
            Compression::None => "",
            Compression::Gzip | Compression::Zstd => " of the decompressed text",
        };
        Err(InvalidRecord {
            reason: "invalid UTF-8".into(),
            message: format!(
                "invalid UTF-8 (0x{byte:02x}) at byte {}{of}, line {}; convert the file to UTF-8, or allow replacing \
                 invalid bytes ({ALLOW_REPLACING})",
                self.start + at as u64,
                self.number
            ),
        })
    }

    /// Returns an error that names the file.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::format(&self.path, message)
    }

    fn read_error(&self, error: &io::Error) -> Error {
        let os_error = error.raw_os_error().map(io::Error::from_raw_os_error);
        let name = match (os_error, self.compression) {
            (Some(os_error), _) => return Error::io(&self.path)(os_error),
            (None, Compression::None) => return Error::io(&self.path)(error.kind().into()),
            (None, Compression::Gzip) => "gzip",
            (None, Compression::Zstd) => "zstd",
        };
        let (place, problem) = (
            format!("{} bytes of text (line {})", self.offset, self.number + 1),
            compressed::damage(error),
        );
        match compressed::exceeds_limit(error) {
            true => self.error(format!("after {place}: {problem}")),
            false => Error::corrupt(
                &self.path,
                format!("damaged {name} data after {place}: {problem}"),
            ),
        }
    }
}
