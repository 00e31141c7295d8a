//! Locks of a study folder: exclusive for a whole study, shared by shards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::files::{self, Lock, Locking};

/// Lock file: exclusive for a whole study, shared by shards.
pub(super) const LOCK: &str = "lock";
/// Lock file, exclusive to a shard while it reads the folder and starts.
pub(super) const BEGIN: &str = "begin.lock";
const BUSY: &str = "another process works on this study";
/// Longest wait for other shards to start, which normally takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Lock of a study folder, held until dropped.
#[derive(Debug)]
pub(super) struct Hold {
    folder: PathBuf,
    locking: Locking,
    lock: Option<Lock>,
    /// Held while a shard starts.
    entry: Option<Passing>,
    is_shared: bool,
}

impl Hold {
    /// Locks the folder exclusively.
    pub fn alone(folder: &Path, locking: Locking) -> Result<Self> {
        let lock = Lock::exclusive(&folder.join(LOCK), locking, BUSY)?;
        // A shard that was killed while it started has left its lock file.
        if files::exists(folder.join(BEGIN))? {
            drop(Passing::take(&folder.join(BEGIN), locking, BUSY));
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            locking,
            lock: Some(lock),
            entry: None,
            is_shared: false,
        })
    }

    /// Locks the folder together with other shards; none of them starts before [`Hold::has_begun`].
    pub fn beside_others(folder: &Path, locking: Locking) -> Result<Self> {
        let path = folder.join(BEGIN);
        let started = Instant::now();
        let entry = loop {
            match Passing::take(&path, locking, BUSY) {
                // Another shard is starting.
                Err(Error::Locked { .. }) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(PAUSE);
                }
                taken => break taken?,
            }
        };
        let lock = Lock::shared(&folder.join(LOCK), locking, BUSY)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            locking,
            lock: Some(lock),
            entry: Some(entry),
            is_shared: true,
        })
    }

    /// Runs `work` under an exclusive lock, so that no other shard sees it half done.
    pub fn while_alone<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.is_shared {
            return work();
        }
        self.lock = None;
        let path = self.folder.join(LOCK);
        let busy = "shards of the study as it was before are at work here; wait for their end";
        let alone = Lock::exclusive(&path, self.locking, busy)?;
        let done = work()?;
        drop(alone);
        self.lock = Some(Lock::shared(&path, self.locking, BUSY)?);
        Ok(done)
    }

    /// Lets other shards start.
    pub fn has_begun(&mut self) {
        self.entry = None;
    }

    /// Releases the folder and removes the lock file.
    pub fn leave_no_trace(mut self) {
        if let Some(lock) = self.lock.take() {
            remove(&lock, &self.folder.join(LOCK));
        }
    }
}

impl Drop for Hold {
    /// Removes the lock file if this is the last shard.
    fn drop(&mut self) {
        if !self.is_shared || self.lock.take().is_none() {
            return;
        }
        // Not while another shard starts, which would find the folder locked.
        let entry = self.entry.take().map_or_else(
            || Passing::take(&self.folder.join(BEGIN), self.locking, BUSY),
            Ok,
        );
        let path = self.folder.join(LOCK);
        if let Ok(_entry) = entry
            && let Ok(lock) = Lock::exclusive(&path, self.locking, BUSY)
        {
            remove(&lock, &path);
        }
    }
}

/// Lock whose file is removed on release.
#[derive(Debug)]
pub(super) struct Passing {
    path: PathBuf,
    lock: Lock,
}

impl Passing {
    /// Acquires the lock exclusively.
    pub fn take(path: &Path, locking: Locking, busy: &str) -> Result<Self> {
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

impl Drop for Passing {
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
    fn shards_stand_beside_each_other_and_a_whole_study_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let begin = || {
            let mut hold = Hold::beside_others(path, Locking::Required).unwrap();
            hold.has_begun();
            hold
        };
        let (mut one, two) = (begin(), begin());
        let alone = Hold::alone(path, Locking::Required).unwrap_err();
        assert!(alone.to_string().ends_with(BUSY), "{alone}");
        let busy = one.while_alone(|| Ok(())).unwrap_err();
        assert!(busy.to_string().contains("at work here"), "{busy}");
        drop(one);
        assert_eq!(names(path), [LOCK]);
        drop(two);
        assert!(names(path).is_empty());
        let mut last = begin();
        assert_eq!(last.while_alone(|| Ok(7)).unwrap(), 7);
        assert!(Hold::alone(path, Locking::Required).is_err());
        drop(last);
        let whole = Hold::alone(path, Locking::Required).unwrap();
        assert!(Hold::beside_others(path, Locking::Required).is_err());
        drop(whole);
        assert_eq!(names(path), [LOCK]);
        Hold::alone(path, Locking::Required)
            .unwrap()
            .leave_no_trace();
        assert!(names(path).is_empty());
    }
}
