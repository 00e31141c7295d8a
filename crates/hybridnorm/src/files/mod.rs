//! Atomic writes of files and folders.
//!
//! Everything this crate writes for later reading goes through [`AtomicFile`] or [`StagedFolder`]: bytes are
//! written to a temporary file next to the target with a random name, synced to disk and renamed over the target, and
//! the folder is synced. A reader never sees an incomplete file, whatever stops the writer, and two writers never
//! collide.
//!
//! Functions that check whether a path exists ([`exists`], [`create_new_dir`]) return I/O errors instead of treating
//! them as absence.

mod atomic;
pub(crate) mod checksummed;
mod lfs;
mod lock;
mod staged;
mod temporary;
mod user_paths;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

pub use atomic::AtomicFile;
pub use lock::{Lock, Locking};
pub use staged::StagedFolder;
pub use temporary::{TEMPORARY_SUFFIX, remove_stale, remove_stale_in, target_of_temporary};
pub use user_paths::{check_folder_name, check_writable, resolve_links, write_user_path};

/// Returns the folder of files that can be made or fetched again: `$XDG_CACHE_HOME/hybridnorm`, or below `~/.cache` if
/// that variable is not set.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is set to an absolute path.
pub fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("hybridnorm"))
        .ok_or_else(|| Error::missing("cache folder", ": set XDG_CACHE_HOME or HOME"))
}

/// Size and SHA-256 of a file, as recorded in manifests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub bytes: u64,
    /// Lower-case hexadecimal SHA-256 of the content.
    pub sha256: String,
}

/// Writes `bytes` to `target` atomically.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
///
/// ```
/// use hybridnorm::files;
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("notes.txt");
/// let written = files::write(&path, b"three\n")?;
/// assert_eq!(written.bytes, 6);
/// assert_eq!(files::fingerprint(&path)?, written);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn write(target: impl AsRef<Path>, bytes: &[u8]) -> Result<Fingerprint> {
    let target = target.as_ref();
    let mut file = AtomicFile::create(target)?;
    file.write_all(bytes).map_err(Error::io(target))?;
    file.commit()
}

/// Opens a regular file for reading. A pipe or a device is an error, without blocking.
///
/// # Errors
/// If it cannot be opened, or is not a regular file.
pub fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Otherwise opening a pipe blocks until it has a writer. On regular files it has no effect.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    let file = options.open(path).map_err(Error::io(path))?;
    let kind = file.metadata().map_err(Error::io(path))?.file_type();
    if !kind.is_file() {
        return Err(Error::format(
            path,
            format!("{}, expected a regular file", describe_file_type(kind)),
        ));
    }
    match lfs::is_pointer(&file).map_err(Error::io(path))? {
        true => Err(Error::format(path, lfs::PROBLEM)),
        false => Ok(file),
    }
}

fn describe_file_type(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        return "is a folder";
    }
    if kind.is_file() {
        return "is a file";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "is a pipe";
        }
        if kind.is_socket() {
            return "is a socket";
        }
    }
    "is a device"
}

/// Reads a whole file that is expected to be small.
///
/// # Errors
/// If it cannot be read, is not a regular file, or is larger than `limit` bytes.
pub fn read_small(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = open(path)?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length > limit {
        return Err(Error::format(
            path,
            format!("{length} bytes, expected at most {limit}"),
        ));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    Ok(bytes)
}

/// Reads a file once and returns its fingerprint.
///
/// # Errors
/// If it cannot be read.
pub fn fingerprint(path: impl AsRef<Path>) -> Result<Fingerprint> {
    let path = path.as_ref();
    let mut file = open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(Error::io(path))?;
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok(Fingerprint {
        bytes,
        sha256: hex(&digest.finalize()),
    })
}

/// Creates the folder that contains `path`, and its parents.
///
/// # Errors
/// As [`create_dir`].
pub fn create_parent(path: impl AsRef<Path>) -> Result<()> {
    create_dir(parent(path.as_ref()))
}

/// True if `path` exists.
///
/// # Errors
/// If it cannot be determined.
pub fn exists(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    path.try_exists().map_err(Error::io(path))
}

/// Checks that `path` is a folder; `expected` describes it in the message.
///
/// # Errors
/// If it is something else, does not exist, or cannot be accessed.
pub fn require_folder(path: impl AsRef<Path>, expected: &str) -> Result<()> {
    let path = path.as_ref();
    let kind = fs::metadata(path).map_err(Error::io(path))?.file_type();
    match kind.is_dir() {
        true => Ok(()),
        false => Err(Error::format(
            path,
            format!("{}, expected {expected}", describe_file_type(kind)),
        )),
    }
}

/// True if `path` is a folder.
///
/// # Errors
/// If it cannot be determined.
pub fn is_dir(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Creates a folder, whose parent must exist; if `path` is a symbolic link, its target. Returns true if it is new.
///
/// # Errors
/// If that fails, or `path` exists and is not a folder.
pub fn create_new_dir(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    match fs::create_dir(resolve_links(path)?) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::metadata(path).map_err(Error::io(path))?;
            match found.is_dir() {
                true => Ok(false),
                false => Err(Error::format(path, "is a file, expected a folder")),
            }
        }
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Creates a folder and its parents, if they are missing; if `path` is a symbolic link, its target.
///
/// # Errors
/// If that fails, or `path` exists and is not a folder.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(resolve_links(path)?).map_err(Error::io(path))
}

/// Returns lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the SHA-256 of bytes in memory, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Syncs the folder that contains `path` to disk (fsync), so that a rename in it is durable.
///
/// # Errors
/// If the folder cannot be synced.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = parent(path);
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(parent))
}

/// Returns the folder that contains `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// True if both are metadata of the same file, or if the system does not report file ids.
pub fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (a.dev(), a.ino()) == (b.dev(), b.ino())
    }
    #[cfg(not(unix))]
    {
        let _ = (a, b);
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the names in a folder, sorted.
    pub(crate) fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_are_atomic_and_return_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let written = write(&path, b"abc").unwrap();
        assert_eq!(written, fingerprint(&path).unwrap());
        assert_eq!(
            written.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn dropped_writer_keeps_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_path() {
        let error = write("/nowhere/at/all", b"").unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn pipe_is_an_error_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let found = open(&path).unwrap_err().to_string();
        assert!(
            found.ends_with("is a pipe, expected a regular file"),
            "{found}"
        );
        assert!(
            open(folder.path())
                .unwrap_err()
                .to_string()
                .contains("is a folder")
        );
    }

    #[test]
    fn create_new_dir_reports_whether_it_created_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a");
        assert!(create_new_dir(&folder).unwrap());
        assert!(!create_new_dir(&folder).unwrap());
        #[cfg(unix)]
        {
            let link = parent.path().join("link");
            std::os::unix::fs::symlink("there", &link).unwrap();
            assert!(create_new_dir(&link).unwrap());
            assert!(!create_new_dir(&link).unwrap());
            assert!(parent.path().join("there").is_dir());
        }
        let file = parent.path().join("b");
        write(&file, b"").unwrap();
        let found = create_new_dir(&file).unwrap_err().to_string();
        assert!(found.ends_with("is a file, expected a folder"), "{found}");
        assert!(exists(file.join("below")).is_err() || !exists(file.join("below")).unwrap());
    }

    #[test]
    fn temporary_files_do_not_follow_existing_links() {
        let folder = tempfile::tempdir().unwrap();
        let (target, victim) = (folder.path().join("out"), folder.path().join("victim"));
        write(&victim, b"precious").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&victim, folder.path().join("out.partial")).unwrap();
        write_user_path(&target, b"new").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
    }
}
