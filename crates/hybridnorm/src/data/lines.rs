//! Lines of possibly compressed text files, with the offset of each, decoded to UTF-8.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

use super::source::InvalidUtf8;

/// Longest line that is read; longer ones are an error, so that memory stays bounded.
pub(super) const LINE_LIMIT: u64 = 256 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    compression: Compression,
    invalid: InvalidUtf8,
    /// Number of the line last returned, from 1.
    pub(super) number: u64,
    /// Bytes of (decompressed) text before the line last returned.
    start: u64,
    /// Bytes of (decompressed) text read so far.
    pub(super) offset: u64,
    /// Lines in which invalid bytes were replaced.
    pub(super) replaced: u64,
}

impl Lines {
    pub(super) fn open(
        path: &Path,
        compression: Compression,
        invalid: InvalidUtf8,
    ) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let buffered = BufReader::with_capacity(1 << 18, file);
        let reader: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(buffered),
            Compression::Gzip => Box::new(BufReader::with_capacity(
                1 << 18,
                flate2::bufread::MultiGzDecoder::new(buffered),
            )),
            Compression::Zstd => Box::new(BufReader::with_capacity(
                1 << 18,
                zstd::stream::read::Decoder::with_buffer(buffered).map_err(Error::io(path))?,
            )),
        };
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            compression,
            invalid,
            number: 0,
            start: 0,
            offset: 0,
            replaced: 0,
        })
    }

    /// The next line with its line end; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader)
            .take(LINE_LIMIT + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| self.read_error(error))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.start = self.offset;
        self.offset += read as u64;
        if read as u64 > LINE_LIMIT {
            return Err(self.error(format!(
                "longer than {} MiB; break it into shorter lines",
                LINE_LIMIT >> 20
            )));
        }
        if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
            self.start += 3;
        }
        match String::from_utf8(bytes) {
            Ok(line) => Ok(Some(line)),
            Err(error) => self.not_utf8(&error).map(Some),
        }
    }

    fn not_utf8(&mut self, error: &std::string::FromUtf8Error) -> Result<String> {
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
        Err(Error::format(
            &self.path,
            format!(
                "invalid UTF-8 (0x{byte:02x}) at byte {}{of}, line {}; convert the file to UTF-8 or allow replacing invalid bytes",
                self.start + at as u64,
                self.number
            ),
        ))
    }

    /// An error that names the file and the line last returned.
    pub(super) fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::format(&self.path, format!("line {}: {problem}", self.number))
    }

    fn read_error(&self, error: io::Error) -> Error {
        let name = match self.compression {
            Compression::None => return Error::io(&self.path)(error),
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        Error::format(
            &self.path,
            format!(
                "damaged {name} data after {} bytes of text: {error}",
                self.offset
            ),
        )
    }
}
