//! The error type of the library: what was found, where, and what was expected, on one line.

use std::io;
use std::path::{Path, PathBuf};

use crate::text::one_line;
use crate::wording::plain;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors of this crate. Every message is one line that names the file or the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An I/O error of the operating system.
    #[error("{}", one_line(&format!("{}: {}", path.display(), plain_io(source))))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error that the system returned.
        source: io::Error,
    },
    /// A file or folder exists, but its content is not as expected.
    #[error("{}", one_line(&format!("{}: {}", path.display(), plain(problem))))]
    Format {
        /// File or folder.
        path: PathBuf,
        /// Position in it, what was found and what was expected.
        problem: String,
    },
    /// A file is corrupted: it is truncated, or its bytes have changed.
    #[error("{}", one_line(&format!("{}: {}", path.display(), plain(problem))))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Position in it, and what was found.
        problem: String,
    },
    /// A configuration, or a value given in code or on the command line, is invalid.
    #[error("{}", one_line(&plain(.0)))]
    Config(String),
    /// A placement is not valid.
    #[error("{0}")]
    Placement(#[from] crate::placement::PlacementError),
    /// Losses or other values of a model are not finite.
    #[error("{}", one_line(&format!("{}{problem}", at_step(*step))))]
    Diverged {
        /// Training step; `None` outside training.
        step: Option<u64>,
        /// Description of the problem.
        problem: String,
    },
    /// An external program or a resource of the system is missing or failed.
    #[error("{}", one_line(.0))]
    External(String),
}

impl Error {
    /// Attaches the path to an I/O error; for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Returns an [`Error::Format`].
    pub fn format(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Damaged`].
    pub fn damaged(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Config`].
    pub fn config(problem: impl Into<String>) -> Self {
        Self::Config(problem.into())
    }

    /// Returns an [`Error::Diverged`] outside training.
    pub fn not_finite(problem: impl Into<String>) -> Self {
        Self::Diverged {
            step: None,
            problem: problem.into(),
        }
    }

    /// True if the user can fix this by other arguments (exit code 2 on the command line).
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Placement(_))
    }
}

fn at_step(step: Option<u64>) -> String {
    step.map(|step| format!("step {step}: "))
        .unwrap_or_default()
}

fn plain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or folder".into(),
        io::ErrorKind::AlreadyExists => "already there".into(),
        io::ErrorKind::NotADirectory => "a part of the path is a file, expected a folder".into(),
        io::ErrorKind::IsADirectory => "is a folder, expected a file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".into(),
        io::ErrorKind::FileTooLarge => {
            "larger than a file may become here (ulimit -f, or the file system)".into()
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        _ => error.to_string(),
    }
}
