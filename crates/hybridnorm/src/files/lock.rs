//! Advisory locks, so that two processes do not write the same folder.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Locking mode. Some file systems do not support locks, such as Lustre without `flock` and some NFS mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Locking {
    /// Fail if the file system does not support locks.
    #[default]
    Required,
    /// Lock if the file system supports it, else continue without. The caller ensures that there is no second process.
    IfSupported,
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Acquires the lock exclusively. The file is created if it is missing, and is not removed.
    ///
    /// # Errors
    /// [`Error::Locked`] with the message `busy` if another process holds it; [`Error::NoFileLocks`] if locks are
    /// required and not supported.
    pub fn exclusive(path: &Path, locking: Locking, busy: &str) -> Result<Self> {
        Self::acquire(path, locking, busy, File::try_lock)
    }

    /// Acquires a shared lock, unless the lock is held exclusively.
    ///
    /// # Errors
    /// As [`Lock::exclusive`].
    pub fn shared(path: &Path, locking: Locking, busy: &str) -> Result<Self> {
        Self::acquire(path, locking, busy, File::try_lock_shared)
    }

    fn acquire(
        path: &Path,
        locking: Locking,
        busy: &str,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self> {
        loop {
            let file = open(path)?;
            let held = Self {
                path: path.to_path_buf(),
                file,
            };
            match lock(&held.file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::locked(super::parent(path), busy));
                }
                Err(TryLockError::Error(_)) if locking == Locking::IfSupported => {}
                Err(TryLockError::Error(error)) if is_unsupported(&error) => {
                    let path = super::parent(path).to_path_buf();
                    return Err(Error::NoFileLocks { path });
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(path)(error)),
            }
            // The previous holder may have removed the file that this process had already opened.
            match held.is_in_place() {
                Ok(true) => return Ok(held),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(path)(error)),
            }
        }
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let found = fs::metadata(&self.path)?;
        Ok(super::is_same(&found, &self.file.metadata()?))
    }

    /// True if the file at the lock's path is still the one that is locked.
    ///
    /// # Errors
    /// If the file cannot be accessed, or is missing.
    pub fn is_held(&self) -> Result<bool> {
        self.is_in_place().map_err(Error::io(&self.path))
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Otherwise opening a pipe blocks until it has a reader. On regular files it has no effect.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let not_regular = |kind: fs::FileType| {
        let kind = super::describe_file_type(kind);
        Error::format(
            path,
            format!("{kind}, expected a regular file to lock; remove it"),
        )
    };
    match options.open(path) {
        Ok(file) => match file.metadata().map_err(Error::io(path))?.file_type() {
            kind if kind.is_file() => Ok(file),
            kind => Err(not_regular(kind)),
        },
        Err(error) => match fs::metadata(path) {
            Ok(found) if !found.is_file() => Err(not_regular(found.file_type())),
            _ => Err(Error::io(path)(error)),
        },
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    // ENOLCK and ENOSYS do not have a distinct `ErrorKind` on every platform.
    const ENOLCK: i32 = 37;
    const ENOSYS: i32 = 38;
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(ENOLCK | ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_exclusive_or_shared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let alone = Lock::exclusive(&path, Locking::Required, "busy").unwrap();
        for second in [
            Lock::exclusive(&path, Locking::Required, "somebody writes here"),
            Lock::shared(&path, Locking::Required, "somebody writes here"),
            // A lock that another process holds is respected in every mode.
            Lock::shared(&path, Locking::IfSupported, "somebody writes here"),
        ] {
            let found = second.unwrap_err().to_string();
            assert!(found.ends_with("somebody writes here"), "{found}");
        }
        drop(alone);
        let one = Lock::shared(&path, Locking::Required, "busy").unwrap();
        let two = Lock::shared(&path, Locking::Required, "busy").unwrap();
        assert!(one.is_held().unwrap() && two.is_held().unwrap());
        assert!(Lock::exclusive(&path, Locking::Required, "busy").is_err());
        fs::remove_file(&path).unwrap();
        let new = Lock::exclusive(&path, Locking::Required, "busy").unwrap();
        assert!(new.is_held().unwrap() && !one.is_held().unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn non_regular_files_are_rejected_by_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            &path,
            rustix::fs::Mode::from_raw_mode(0o600),
        )
        .unwrap();
        let locked = || {
            Lock::exclusive(&path, Locking::Required, "busy")
                .unwrap_err()
                .to_string()
        };
        assert!(
            locked().contains("lock: is a pipe, expected a regular file"),
            "{}",
            locked()
        );
        // With a reader the pipe can be opened, but is not a regular file either.
        let reader = rustix::fs::open(
            &path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        assert!(locked().contains("is a pipe"), "{}", locked());
        drop(reader);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(locked().contains("lock: is a folder"), "{}", locked());
    }

    #[test]
    fn missing_lock_support_is_distinguished_from_other_errors() {
        assert!(is_unsupported(&io::Error::from_raw_os_error(37)));
        assert!(is_unsupported(&io::ErrorKind::Unsupported.into()));
        assert!(!is_unsupported(&io::Error::from_raw_os_error(5)));
    }
}
