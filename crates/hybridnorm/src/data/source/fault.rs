//! Reasons why a part of a Parquet file cannot be read; only one of them is damage.

use std::io;
use std::path::Path;

use parquet::errors::ParquetError;

use crate::error::Error;

#[derive(Debug)]
pub(super) enum ParquetReadError {
    /// I/O error, which says nothing about the content of the file.
    Io(io::Error),
    /// Exceeds a limit, or is not supported.
    Unsupported(String),
    /// Corrupt data.
    Corrupt(String),
}

impl ParquetReadError {
    /// Returns the error, which names the file and the `place` in it.
    pub(super) fn error(self, path: &Path, place: &str) -> Error {
        match self {
            Self::Io(error) => Error::io(path)(error),
            Self::Unsupported(problem) => {
                Error::format(path, format!("Parquet data{place}: {problem}"))
            }
            Self::Corrupt(problem) => {
                Error::corrupt(path, format!("damaged Parquet data{place}: {problem}"))
            }
        }
    }
}

impl From<ParquetError> for ParquetReadError {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::General(problem) | ParquetError::EOF(problem) => Self::Corrupt(problem),
            ParquetError::NYI(problem) => Self::Unsupported(format!("not supported: {problem}")),
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(error) if error.raw_os_error().is_some() => Self::Io(*error),
                Ok(error) => Self::Corrupt(error.to_string()),
                Err(error) => Self::Corrupt(error.to_string()),
            },
            error => Self::Corrupt(error.to_string()),
        }
    }
}
