//! Locks of a study folder: exclusive for a whole study, shared by shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::files::{self, Lock, Locking};

/// Lock file: exclusive for a whole study, shared by shards.
pub(super) const LOCK: &str = "lock";
/// Lock file, exclusive to a shard while it reads the folder and starts.
pub(super) const START_LOCK: &str = "begin.lock";
const LOCKED_MESSAGE: &str = "another process is working on this study";
/// Longest wait for other shards to start, which normally takes a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Lock of a study folder, held until dropped.
#[derive(Debug)]
pub(super) struct FolderLock {
    folder: PathBuf,
    locking: Locking,
    lock: Option<Lock>,
    /// Held while a shard starts.
    start_lock: Option<TemporaryLock>,
    is_shared: bool,
}

impl FolderLock {
    /// Locks the folder exclusively.
    pub fn exclusive(folder: &Path, locking: Locking) -> Result<Self> {
        let lock = Lock::exclusive(&folder.join(LOCK), locking, LOCKED_MESSAGE)?;
        // A shard that was killed while it started has left its lock file.
        if files::exists(folder.join(START_LOCK))? {
            drop(TemporaryLock::acquire(
                &folder.join(START_LOCK),
                locking,
                LOCKED_MESSAGE,
            ));
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            locking,
            lock: Some(lock),
            start_lock: None,
            is_shared: false,
        })
    }

    /// Locks the folder together with other shards; none of them starts before [`FolderLock::finish_start`].
    pub fn shared(folder: &Path, locking: Locking) -> Result<Self> {
        let path = folder.join(START_LOCK);
        let started = Instant::now();
        let start_lock = loop {
            match TemporaryLock::acquire(&path, locking, LOCKED_MESSAGE) {
                // Another shard is starting.
                Err(Error::Locked { .. }) if started.elapsed() < LOCK_TIMEOUT => {
                    std::thread::sleep(POLL_INTERVAL);
                }
                taken => break taken?,
            }
        };
        let lock = Lock::shared(&folder.join(LOCK), locking, LOCKED_MESSAGE)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            locking,
            lock: Some(lock),
            start_lock: Some(start_lock),
            is_shared: true,
        })
    }

    /// Runs `work` under an exclusive lock, so that no other shard sees an intermediate state.
    pub fn with_exclusive<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.is_shared {
            return work();
        }
        self.lock = None;
        let path = self.folder.join(LOCK);
        let busy =
            "shards of the previous version of this study are running here; wait until they end";
        let exclusive = Lock::exclusive(&path, self.locking, busy)?;
        let done = work()?;
        drop(exclusive);
        self.lock = Some(Lock::shared(&path, self.locking, LOCKED_MESSAGE)?);
        Ok(done)
    }

    /// Lets other shards start.
    pub fn finish_start(&mut self) {
        self.start_lock = None;
    }

    /// Releases the folder and removes the lock file.
    pub fn release_and_remove(mut self) {
        if let Some(lock) = self.lock.take() {
            remove(&lock, &self.folder.join(LOCK));
        }
    }
}

impl Drop for FolderLock {
    /// Removes the lock file if this is the last shard.
    fn drop(&mut self) {
        if !self.is_shared || self.lock.take().is_none() {
            return;
        }
        // Not while another shard starts, which would find the folder locked.
        let start_lock = self.start_lock.take().map_or_else(
            || TemporaryLock::acquire(&self.folder.join(START_LOCK), self.locking, LOCKED_MESSAGE),
            Ok,
        );
        let path = self.folder.join(LOCK);
        if let Ok(_start_lock) = start_lock
            && let Ok(lock) = Lock::exclusive(&path, self.locking, LOCKED_MESSAGE)
        {
            remove(&lock, &path);
        }
    }
}

/// Lock whose file is removed on release.
#[derive(Debug)]
pub(super) struct TemporaryLock {
    path: PathBuf,
    lock: Lock,
}

impl TemporaryLock {
    /// Acquires the lock exclusively.
    pub fn acquire(path: &Path, locking: Locking, busy: &str) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            lock: Lock::exclusive(path, locking, busy)?,
        })
    }

    /// Releases the lock. Unlike dropping it, reports a file that cannot be removed.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn release(self) -> Result<()> {
        match self.lock.is_held()? {
            true => fs::remove_file(&self.path).map_err(Error::io(&self.path)),
            false => Ok(()),
        }
    }
}

impl Drop for TemporaryLock {
    fn drop(&mut self) {
        remove(&self.lock, &self.path);
    }
}

/// Removes the lock file. A process that had already opened it detects that it is gone, and retries.
fn remove(lock: &Lock, path: &Path) {
    if lock.is_held().unwrap_or(false) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::names;

    #[test]
    fn shard_locks_are_shared_and_study_locks_are_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let start_shard = || {
            let mut lock = FolderLock::shared(path, Locking::Required).unwrap();
            lock.finish_start();
            lock
        };
        let (mut one, two) = (start_shard(), start_shard());
        let error = FolderLock::exclusive(path, Locking::Required).unwrap_err();
        assert!(error.to_string().ends_with(LOCKED_MESSAGE), "{error}");
        let busy = one.with_exclusive(|| Ok(())).unwrap_err();
        assert!(busy.to_string().contains("previous version"), "{busy}");
        drop(one);
        assert_eq!(names(path), [LOCK]);
        drop(two);
        assert!(names(path).is_empty());
        let mut last = start_shard();
        assert_eq!(last.with_exclusive(|| Ok(7)).unwrap(), 7);
        assert!(FolderLock::exclusive(path, Locking::Required).is_err());
        drop(last);
        let whole = FolderLock::exclusive(path, Locking::Required).unwrap();
        assert!(FolderLock::shared(path, Locking::Required).is_err());
        drop(whole);
        assert_eq!(names(path), [LOCK]);
        FolderLock::exclusive(path, Locking::Required)
            .unwrap()
            .release_and_remove();
        assert!(names(path).is_empty());
    }
}
