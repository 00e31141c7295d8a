//! The error type of the library: what was found, where, and what was expected, on one line.

use std::io;
use std::path::{Path, PathBuf};

use crate::parse_errors::plain_message;
use crate::text::one_line;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All errors of this crate. Every message is one line that names the file or the key.
///
/// ```
/// use hybridnorm::Error;
/// use hybridnorm::train::{Config, ModelSection, TrainSection};
///
/// let config = Config::default()
///     .with_model(ModelSection::new("hybridnorm"))
///     .with_train(TrainSection::default().with_steps(0));
/// match config.check() {
///     Err(Error::OutOfRange { key, value, .. }) => {
///         assert_eq!((key.as_str(), value.as_str()), ("train.steps", "0"));
///     }
///     other => panic!("{other:?}"),
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An I/O error of the operating system.
    #[error("{}", one_line(&format!("{}: {}", path.display(), io_message(source))))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error that the system returned.
        source: io::Error,
    },
    /// A file or folder exists, but its content is not as expected.
    #[error("{}", one_line(&format!("{}: {}", path.display(), plain_message(problem))))]
    Format {
        /// File or folder.
        path: PathBuf,
        /// Position in it, what was found and what was expected.
        problem: String,
    },
    /// A file is corrupted: it is truncated, or its bytes have changed.
    #[error("{}", one_line(&format!("{}: {}", path.display(), plain_message(problem))))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Byte offset of the first corrupted byte, if known.
        offset: Option<u64>,
        /// Position in it, and what was found.
        problem: String,
    },
    /// A key, an option or a name that does not exist.
    #[error("{}", one_line(problem))]
    UnknownKey {
        /// The key as given, with its section: `train.step`.
        key: String,
        /// The key, and the nearest valid ones.
        problem: String,
    },
    /// A key, an option or a parameter that is required but was not given.
    #[error("{}", one_line(&format!("{key} is missing{hint}")))]
    Missing {
        /// The key with its section: `model.d_ff`.
        key: String,
        /// Continuation of the message: the value to set, or when the key may be omitted. May be empty.
        hint: String,
    },
    /// A value outside its allowed range.
    #[error("{}", one_line(&format!("{key} = {value}, expected {expected}")))]
    OutOfRange {
        /// The key with its section, or the name of the argument.
        key: String,
        /// The value as given.
        value: String,
        /// Allowed range.
        expected: String,
    },
    /// A value that cannot be parsed, or that refers to something that does not exist: a specification, a pattern, a
    /// path.
    #[error("{}", one_line(&plain_message(problem)))]
    InvalidValue {
        /// The key, the option or the kind of value: `data.tokenizer`, `settings`, `pattern`.
        key: String,
        /// The value, what is wrong with it, and what was expected.
        problem: String,
    },
    /// A key or an option that would change nothing.
    #[error("{}", one_line(&format!("{key} has no effect{reason}")))]
    NoEffect {
        /// The key with its section, or the option.
        key: String,
        /// Continuation of the message: why, as in `: the model has no experts`.
        reason: String,
    },
    /// Values that are valid individually, but not in combination.
    #[error("{}", one_line(problem))]
    Conflict {
        /// The keys or options.
        keys: Vec<String>,
        /// The values, and the condition that they do not meet.
        problem: String,
    },
    /// A parameter in a file has a different shape than in the model.
    #[error("{}", one_line(&format!("parameter {name} has shape {found:?}, expected {expected:?}")))]
    ShapeMismatch {
        /// Name of the parameter.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the model.
        expected: Vec<usize>,
    },
    /// More memory is needed than is available to this process.
    #[error("{}", one_line(problem))]
    OutOfMemory {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are available; `None` if an allocation failed and the available amount is not known.
        available: Option<u64>,
        /// Purpose, both amounts, and what to change.
        problem: String,
    },
    /// A file or folder that is to be created exists and is not overwritten.
    #[error("{}", one_line(problem))]
    Exists {
        /// The file or folder.
        path: PathBuf,
        /// The path, what it holds, and what to do.
        problem: String,
    },
    /// Another process holds the lock of a file or folder.
    #[error("{}", one_line(&format!("{}: {problem}", path.display())))]
    Locked {
        /// The locked file or folder.
        path: PathBuf,
        /// The operation that holds the lock: `another process is replacing this folder`.
        problem: String,
    },
    /// The file system of a folder that has to be locked does not support file locks.
    #[error("{}", one_line(&format!("{}: this file system does not support file locks (flock), which prevent a \
        second process from writing here; turn locking off if no other process uses this folder", path.display())))]
    NoFileLocks {
        /// The folder.
        path: PathBuf,
    },
    /// An invalid value in a configuration file.
    #[error("{}", one_line(&format!("{}: {source}", path.display())))]
    InFile {
        /// The configuration file.
        path: PathBuf,
        /// The problem.
        source: Box<Error>,
    },
    /// A placement is not valid.
    #[error("{0}")]
    Placement(#[from] crate::placement::PlacementError),
    /// A loss, a parameter, a gradient or an activation is NaN or infinite.
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

    /// Returns an [`Error::Corrupt`] without an offset.
    pub fn corrupt(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.as_ref().to_path_buf(),
            offset: None,
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Corrupt`] at a byte of the file.
    pub fn corrupt_at(path: impl AsRef<Path>, offset: u64, problem: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.as_ref().to_path_buf(),
            offset: Some(offset),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::UnknownKey`].
    pub fn unknown_key(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::UnknownKey {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Missing`]; `hint` continues the message and may be empty.
    pub fn missing(key: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Missing {
            key: key.into(),
            hint: hint.into(),
        }
    }

    /// Returns an [`Error::OutOfRange`].
    pub fn out_of_range(
        key: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::OutOfRange {
            key: key.into(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }

    /// Returns an [`Error::InvalidValue`].
    pub fn invalid_value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidValue {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::NoEffect`]; `reason` continues the message, as in `: the data are not text`.
    pub fn no_effect(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::NoEffect {
            key: key.into(),
            reason: reason.into(),
        }
    }

    /// Returns an [`Error::Conflict`].
    pub fn conflict<const N: usize>(keys: [&str; N], problem: impl Into<String>) -> Self {
        Self::Conflict {
            keys: keys.map(str::to_owned).to_vec(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Exists`].
    pub fn exists(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Exists {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Locked`].
    pub fn locked(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Locked {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Returns an [`Error::Diverged`] outside training.
    pub fn not_finite(problem: impl Into<String>) -> Self {
        Self::Diverged {
            step: None,
            problem: problem.into(),
        }
    }

    /// Names the configuration file that an invalid value was read from; other errors are returned unchanged.
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            error if !error.is_user_error() => error,
            error => Self::InFile {
                path: path.as_ref().to_path_buf(),
                source: Box::new(error),
            },
        }
    }

    /// True if the user can fix this by changing arguments or the configuration (exit code 2 on the command line).
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::UnknownKey { .. }
            | Self::Missing { .. }
            | Self::OutOfRange { .. }
            | Self::InvalidValue { .. }
            | Self::NoEffect { .. }
            | Self::Conflict { .. }
            | Self::ShapeMismatch { .. }
            | Self::OutOfMemory { .. }
            | Self::Exists { .. }
            | Self::Locked { .. }
            | Self::InFile { .. }
            | Self::Placement(_) => true,
            Self::Io { .. }
            | Self::Format { .. }
            | Self::Corrupt { .. }
            | Self::NoFileLocks { .. }
            | Self::Diverged { .. }
            | Self::External(_) => false,
        }
    }
}

fn at_step(step: Option<u64>) -> String {
    step.map(|step| format!("step {step}: "))
        .unwrap_or_default()
}

fn io_message(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or folder".into(),
        io::ErrorKind::AlreadyExists => "already exists".into(),
        io::ErrorKind::NotADirectory => "a part of the path is a file, expected a folder".into(),
        io::ErrorKind::IsADirectory => "is a folder, expected a file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::StorageFull => "the disk is full".into(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".into(),
        io::ErrorKind::FileTooLarge => {
            "exceeds the maximum file size (ulimit -f, or the file system)".into()
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        _ => error.to_string(),
    }
}
