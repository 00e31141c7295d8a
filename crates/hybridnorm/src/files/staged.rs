//! Folders that are either complete or absent.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::temporary;
use crate::error::{Error, Result};

/// A folder that is written under a temporary name next to its target and renamed when it is
/// complete. Removed if dropped before that.
#[derive(Debug)]
pub struct StagedFolder {
    target: PathBuf,
    path: PathBuf,
    is_published: bool,
    /// Lock that marks the folder as being written.
    _lock: File,
}

impl StagedFolder {
    /// Creates the temporary folder that [`StagedFolder::publish`] renames to `target`, whose parent must exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(target: &Path) -> Result<Self> {
        if target.file_name().is_none() {
            return Err(Error::invalid_value(
                "path",
                format!(
                    "{}: has no file name, expected the path of a folder to write",
                    target.display()
                ),
            ));
        }
        temporary::remove_stale(target);
        let (lock, path) = temporary::create_folder(target)?;
        Ok(Self {
            target: target.to_path_buf(),
            path,
            is_published: false,
            _lock: lock,
        })
    }

    /// Returns the path of the temporary folder, to write its files to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to its target, which must be absent or an empty folder.
    ///
    /// # Errors
    /// If the target is something else, or the rename fails or cannot be synced to disk; the target is then unchanged.
    pub fn publish(mut self) -> Result<()> {
        self.sync()?;
        let existed = fs::symlink_metadata(&self.target).is_ok();
        // Of existing targets, the rename replaces an empty folder only.
        fs::rename(&self.path, &self.target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory => Error::format(
                &self.target,
                "was created by another process in the meantime; choose another name, or remove it",
            ),
            _ => Error::io(&self.target)(error),
        })?;
        super::sync_parent(&self.target).inspect_err(|_| {
            // So that the same command can be repeated.
            self.is_published = fs::rename(&self.target, &self.path).is_err();
            if existed && !self.is_published {
                let _ = fs::create_dir(&self.target);
            }
        })?;
        self.is_published = true;
        Ok(())
    }

    /// Renames the folder to its target and removes the old one. At every moment the target is the old folder or
    /// the new one, or, on file systems that cannot exchange two names, absent, with the old folder next to it until
    /// the next writer restores it.
    ///
    /// `may_remove` checks the old folder, which has a temporary name by then, before its removal: other files may
    /// have been added to it.
    ///
    /// # Errors
    /// If the rename fails or cannot be synced to disk, another process replaces the same folder, or `may_remove`
    /// fails; the target is then unchanged.
    pub fn replace(mut self, may_remove: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let old = match temporary::open_folder(&self.target) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.publish(),
            Err(error) => return Err(Error::io(&self.target)(error)),
        };
        // Held until the end, so that no process takes the old folder for abandoned.
        if let Err(fs::TryLockError::WouldBlock) = old.try_lock() {
            return Err(Error::locked(
                &self.target,
                "another process is replacing this folder",
            ));
        }
        self.sync()?;
        let backup = swap(&self.path, &self.target)?;
        if let Err(error) = may_remove(&backup).and_then(|()| super::sync_parent(&self.target)) {
            match backup == self.path {
                true => exchange(&self.path, &self.target),
                false => fs::rename(&self.target, &self.path)
                    .and_then(|()| fs::rename(&backup, &self.target)),
            }
            .map_err(Error::io(&backup))?;
            return Err(error);
        }
        self.is_published = true;
        // The new folder is in place; the next writer removes what is left of the old one.
        let _ = fs::remove_dir_all(&backup);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        temporary::open_folder(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io(&self.target))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// True if the file system cannot exchange names. NFS and others return `EINVAL`.
fn cannot_exchange(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    )
}

/// Renames `new` to `target`; returns the new path of the old folder.
fn swap(new: &Path, target: &Path) -> Result<PathBuf> {
    match exchange(new, target) {
        Ok(()) => Ok(new.to_path_buf()),
        Err(error) if cannot_exchange(&error) => move_to_backup(new, target),
        Err(error) => Err(Error::io(target)(error)),
    }
}

/// Does what [`swap`] does, in two renames.
fn move_to_backup(new: &Path, target: &Path) -> Result<PathBuf> {
    let backup = temporary::backup_path(target);
    fs::rename(target, &backup).map_err(Error::io(target))?;
    if let Err(error) = fs::rename(new, target) {
        fs::rename(&backup, target).map_err(Error::io(&backup))?;
        return Err(Error::io(target)(error));
    }
    Ok(backup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(target: &Path, content: &str) -> StagedFolder {
        let folder = StagedFolder::create(target).unwrap();
        fs::write(folder.path().join("a"), content).unwrap();
        folder
    }

    #[test]
    fn publishing_is_atomic_and_dropped_folders_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        drop(staged(&target, "x"));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        staged(&target, "x").publish().unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"x");
        let found = staged(&target, "y").publish().unwrap_err().to_string();
        assert!(found.contains("was created by another process"), "{found}");
        assert_eq!(fs::read(target.join("a")).unwrap(), b"x");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn replacing_leaves_the_new_folder_alone() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        staged(&target, "old").publish().unwrap();
        staged(&target, "new").replace(|_| Ok(())).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"new");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn folder_that_must_not_be_removed_is_unchanged() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        staged(&target, "old").publish().unwrap();
        let refuse = |_: &Path| Err(Error::format("notes.txt", "not ours"));
        let found = staged(&target, "new").replace(refuse).unwrap_err();
        assert!(found.to_string().contains("notes.txt"), "{found}");
        assert_eq!(fs::read(target.join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn replacing_falls_back_to_two_renames() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("out");
        staged(&target, "old").publish().unwrap();
        let new = parent.path().join("new");
        fs::create_dir(&new).unwrap();
        let backup = move_to_backup(&new, &target).unwrap();
        assert!(backup.join("a").exists() && !target.join("a").exists());
        assert!(move_to_backup(&parent.path().join("missing"), &target).is_err());
        assert!(target.exists());
    }
}
