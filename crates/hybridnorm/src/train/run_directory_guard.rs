//! Guard of a run directory: holds its lock, and removes created files unless a step was run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::checkpoint;
use super::run_directory::{self, LOCK};
use super::tensorboard;
use crate::error::{Error, Result};
use crate::files::{self, Lock, Locking};

/// Attempts to create and lock a directory, which a failing process may remove in between.
const ATTEMPTS: usize = 8;

/// A run directory locked by this process. Files that it created there are removed on drop, unless the guard is
/// [disarmed](RunDirectoryGuard::disarm).
#[derive(Debug)]
pub(super) struct RunDirectoryGuard {
    run: PathBuf,
    lock: Lock,
    /// In order of creation.
    created: Vec<Created>,
}

#[derive(Debug)]
enum Created {
    File(PathBuf),
    Folder(PathBuf),
    /// A folder whose event files all belong to this process.
    Events(PathBuf),
}

impl RunDirectoryGuard {
    /// Creates the directory if it is missing, and locks it.
    pub(super) fn create(run: &Path, locking: Locking) -> Result<Self> {
        let run = &files::resolve_links(run)?;
        let mut created = Vec::new();
        for attempt in 1.. {
            match create_dir_all(run, &mut created).and_then(|()| Self::lock(run, locking)) {
                Ok(mut guard) => {
                    created.append(&mut guard.created);
                    guard.created = created;
                    return guard.with_checkpoints();
                }
                Err(error) if is_not_found(&error) && attempt < ATTEMPTS => {}
                Err(error) => {
                    remove(created);
                    return Err(error);
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Locks an existing directory.
    pub(super) fn open(run: &Path, locking: Locking) -> Result<Self> {
        Self::lock(run, locking)?.with_checkpoints()
    }

    fn with_checkpoints(mut self) -> Result<Self> {
        self.create_folder(self.run.join(checkpoint::CHECKPOINTS))?;
        Ok(self)
    }

    fn lock(run: &Path, locking: Locking) -> Result<Self> {
        let path = run.join(LOCK);
        let is_new = match File::create_new(&path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Error::io(path)(error)),
        };
        match run_directory::lock_with(run, locking) {
            Ok(lock) => Ok(Self {
                run: run.to_path_buf(),
                lock,
                created: is_new.then_some(Created::File(path)).into_iter().collect(),
            }),
            Err(error) => {
                // A process that holds the lock needs the file; if locking itself fails, no process holds it.
                if is_new && !error.is_user_error() {
                    let _ = fs::remove_file(&path);
                }
                Err(error)
            }
        }
    }

    /// Announces that the file `name` will be written. If it does not exist yet, it belongs to this process.
    pub(super) fn register_file(&mut self, name: &str) -> Result<()> {
        let path = self.run.join(name);
        if !files::exists(&path)? {
            self.created.push(Created::File(path));
        }
        Ok(())
    }

    /// Announces that event files will be written. If the directory is new, all belong to this process.
    pub(super) fn register_event_files(&mut self) {
        let is_run = |created: &Created| matches!(created, Created::Folder(at) if *at == self.run);
        if self.created.iter().any(is_run) {
            self.created.push(Created::Events(self.run.clone()));
        }
    }

    /// Creates a folder if it does not exist; its parent must exist.
    pub(super) fn create_folder(&mut self, path: PathBuf) -> Result<()> {
        if files::create_new_dir(&path)? {
            self.created.push(Created::Folder(path));
        }
        Ok(())
    }

    /// Keeps the created files from now on.
    pub(super) fn disarm(&mut self) {
        self.created.clear();
    }

    /// Checks that the directory is still the one that this process locked.
    pub(super) fn check_held(&self) -> Result<()> {
        match self.lock.is_held()? {
            true => Ok(()),
            false => Err(Error::format(
                &self.run,
                "is no longer the directory this run started in; it was moved or recreated",
            )),
        }
    }
}

impl Drop for RunDirectoryGuard {
    fn drop(&mut self) {
        remove(std::mem::take(&mut self.created));
    }
}

/// Creates a folder and its parents; new ones are pushed to `created`, parents first.
fn create_dir_all(path: &Path, created: &mut Vec<Created>) -> Result<()> {
    let made = match files::create_new_dir(path) {
        Err(error) if is_not_found(&error) => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => {
                create_dir_all(parent, created)?;
                files::create_new_dir(path)
            }
            _ => Err(error),
        },
        made => made,
    }?;
    if made {
        created.push(Created::Folder(path.to_path_buf()));
        files::sync_parent(path)?;
    }
    Ok(())
}

fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Removes files, and folders that are then empty. Errors are ignored, since the caller already reports one.
fn remove(created: Vec<Created>) {
    for created in created.into_iter().rev() {
        let _ = match created {
            Created::File(path) => fs::remove_file(path),
            Created::Folder(path) => fs::remove_dir(path),
            Created::Events(path) => tensorboard::remove(&path).map_err(io::Error::other),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_removes_only_created_files() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("a/b/run");
        let mut guard = RunDirectoryGuard::create(&run, Locking::Required).unwrap();
        guard.register_file("config.toml").unwrap();
        files::write(run.join("config.toml"), b"").unwrap();
        assert!(run.join(checkpoint::CHECKPOINTS).is_dir());
        drop(guard);
        assert!(!folder.path().join("a").exists());

        let guard = RunDirectoryGuard::create(&run, Locking::Required).unwrap();
        files::write(run.join("notes.txt"), b"").unwrap();
        drop(guard);
        let left: Vec<_> = fs::read_dir(&run).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        files::write(run.join("config.toml"), b"theirs").unwrap();
        let mut guard = RunDirectoryGuard::create(&run, Locking::Required).unwrap();
        guard.register_file("config.toml").unwrap();
        drop(guard);
        assert!(run.join("config.toml").exists());
    }

    #[test]
    fn a_second_process_is_refused_and_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = RunDirectoryGuard::create(&run, Locking::Required).unwrap();
        let found = RunDirectoryGuard::create(&run, Locking::Required).unwrap_err();
        assert!(found.to_string().contains("another process"), "{found}");
        first.check_held().unwrap();
        drop(first);
        assert!(!run.exists());
    }

    #[test]
    fn a_disarmed_guard_keeps_created_files() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let mut guard = RunDirectoryGuard::create(&run, Locking::Required).unwrap();
        guard.disarm();
        drop(guard);
        assert!(run.join(LOCK).exists() && run.join(checkpoint::CHECKPOINTS).exists());
    }
}
