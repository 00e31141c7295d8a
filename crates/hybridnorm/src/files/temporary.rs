//! Temporary names of incomplete files, and removal of those left by killed processes, but not of those still
//! being written.
//!
//! The temporary file of `NAME` is `NAME.RANDOM.partial`. It is created exclusively, so that it is not a link or
//! another process's file, and its writer holds a lock on it, so that a later writer of the same target can
//! remove it if, and only if, its writer is gone.

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Suffix of temporary files and folders.
pub const TEMPORARY_SUFFIX: &str = ".partial";
/// Suffix of a folder that was moved aside while it is replaced.
const BACKUP_SUFFIX: &str = ".replaced";
/// Hexadecimal digits in a temporary name.
const RANDOM_DIGITS: usize = 16;
/// File names have at most 255 bytes on common file systems; the rest is for random part and suffix.
const STEM_BYTES: usize = 200;
/// Attempts to create a temporary file, which another process may take for abandoned.
const ATTEMPTS: usize = 16;

/// Creates a temporary file, open for writing.
pub(super) fn create_file(target: &Path) -> Result<(File, PathBuf)> {
    create(target, |path| File::create_new(path))
}

/// Creates a temporary folder; returns its open handle, which holds its lock, and its path.
pub(super) fn create_folder(target: &Path) -> Result<(File, PathBuf)> {
    create(target, |path| {
        fs::create_dir(path)?;
        open_folder(path)
    })
}

fn create(target: &Path, make: impl Fn(&Path) -> io::Result<File>) -> Result<(File, PathBuf)> {
    for attempt in 0..ATTEMPTS {
        let path = sibling(target, TEMPORARY_SUFFIX);
        let file = match make(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            // Another process removed it as abandoned before it could be opened, unless its parent is missing.
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt + 1 < ATTEMPTS => {
                continue;
            }
            Err(error) => {
                // The folder may exist although it could not be opened.
                let _ = fs::remove_dir(&path);
                return Err(Error::io(target)(error));
            }
        };
        // Between creation and lock, another process may have taken it for abandoned.
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => continue,
            // Without locks nothing is taken for abandoned.
            Ok(()) | Err(fs::TryLockError::Error(_)) => {}
        }
        match fs::symlink_metadata(&path) {
            Ok(_) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
                return Err(Error::io(target)(error));
            }
        }
    }
    Err(Error::format(
        target,
        "no temporary file could be created next to it",
    ))
}

/// Returns a new name next to `target`.
pub(super) fn sibling(target: &Path, suffix: &str) -> PathBuf {
    // Seeded by the system.
    let random = RandomState::new().build_hasher().finish();
    target.with_file_name(format!("{}.{random:016x}{suffix}", stem(target)))
}

/// Returns a new path next to `target` for the folder that is being replaced.
pub(super) fn backup_path(target: &Path) -> PathBuf {
    sibling(target, BACKUP_SUFFIX)
}

fn stem(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=STEM_BYTES.min(name.len()))
        .rev()
        .find(|&end| name.is_char_boundary(end));
    name[..end.unwrap_or(0)].to_owned()
}

/// Opens a folder, to lock it or to sync it to disk.
pub(super) fn open_folder(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt;
        const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
        options.custom_flags(FILE_FLAG_BACKUP_SEMANTICS);
    }
    options.open(path)
}

/// Removes temporary files that killed writers of `target` left next to it, and restores the backup of a
/// folder that one of them was replacing. Files of running processes are kept. Errors are ignored, since writers do not
/// depend on this; the next one retries the removal.
pub fn remove_stale(target: &Path) {
    let stem = stem(target);
    remove_in(super::parent(target), |name| {
        name.strip_prefix(&stem)
            .is_some_and(|rest| temporary_suffix(rest).is_some())
    });
}

/// Does what [`remove_stale`] does for every target in `folder`, which must belong to this process.
pub fn remove_stale_in(folder: &Path) {
    remove_in(folder, |name| {
        name.rfind('.')
            .and_then(|dot| name[..dot].rfind('.'))
            .is_some_and(|dot| temporary_suffix(&name[dot..]).is_some())
    });
}

/// Returns the target name of a temporary file; `None` if the name is not one.
pub fn target_of_temporary(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(TEMPORARY_SUFFIX)?;
    let (original, _) = stem.rsplit_once('.')?;
    temporary_suffix(&name[original.len()..]).map(|_| original)
}

/// Returns the suffix after `.RANDOM`, if it is one of this module.
fn temporary_suffix(rest: &str) -> Option<&'static str> {
    let rest = rest.strip_prefix('.')?;
    let (random, suffix) = rest.split_at_checked(RANDOM_DIGITS)?;
    let suffix = [TEMPORARY_SUFFIX, BACKUP_SUFFIX]
        .into_iter()
        .find(|ours| *ours == suffix)?;
    random
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        .then_some(suffix)
}

fn remove_in(folder: &Path, is_ours: impl Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| is_ours(name)) {
            let _ = remove_abandoned(&entry.path(), name);
        }
    }
}

fn remove_abandoned(path: &Path, name: &str) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() && !found.is_dir() {
        return Ok(());
    }
    let file = open_folder(path)?;
    if file.try_lock().is_err() || !super::is_same(&file.metadata()?, &found) {
        return Ok(());
    }
    if found.is_file() {
        return fs::remove_file(path);
    }
    if let Some(original) = name.strip_suffix(BACKUP_SUFFIX) {
        let original = path.with_file_name(&original[..original.len() - RANDOM_DIGITS - 1]);
        match fs::symlink_metadata(&original) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return fs::rename(path, original);
            }
            // It is not known whether the original exists, and this may be the only copy.
            Err(error) => return Err(error),
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::names;

    #[test]
    fn only_files_of_killed_writers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let living = create_file(&target).unwrap();
        let dead = create_file(&target).unwrap();
        let dead_folder = create_folder(&target).unwrap();
        fs::write(dead_folder.1.join("inside"), "x").unwrap();
        drop((dead, dead_folder));
        remove_stale(&target);
        let living_name = living.1.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(names(folder.path()), [living_name]);
        drop(living);
        remove_stale_in(folder.path());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn unrelated_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let others = [
            "out",
            "out.partial",
            "out.0123456789abcdef.txt",
            "out.0123456789ABCDEF.partial",
            "other.0123456789abcdef.partial",
        ];
        for name in others {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_stale(&folder.path().join("out"));
        assert_eq!(names(folder.path()).len(), others.len());
    }

    #[test]
    fn backup_folder_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let backup = backup_path(&target);
        fs::create_dir(&backup).unwrap();
        fs::write(backup.join("only copy"), "x").unwrap();
        remove_stale(&target);
        assert!(target.join("only copy").exists());
    }

    #[test]
    fn long_names_have_temporary_siblings_too() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("ü".repeat(127));
        let (file, path) = create_file(&target).unwrap();
        drop(file);
        assert!(path.exists());
        remove_stale(&target);
        assert!(!path.exists());
    }
}
