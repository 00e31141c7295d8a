//! Atomic writes: a file is either complete or absent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Fingerprint, hex, sync_parent, temporary};
use crate::error::{Error, Result};

/// A writer whose target appears only on [`AtomicFile::commit`].
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    digest: Sha256,
    length: u64,
    committed: bool,
}

impl AtomicFile {
    /// Starts writing the file that will appear at `target`.
    ///
    /// # Errors
    /// If the temporary file cannot be created.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        if target.file_name().is_none() {
            return Err(Error::invalid_value(
                "path",
                format!(
                    "{}: has no file name, expected the path of a file to write",
                    target.display()
                ),
            ));
        }
        let (file, temporary) = temporary::create_file(&target)?;
        Ok(Self {
            target,
            temporary,
            writer: BufWriter::with_capacity(1 << 20, file),
            digest: Sha256::new(),
            length: 0,
            committed: false,
        })
    }

    /// Makes the file visible at its target and returns its fingerprint.
    ///
    /// # Errors
    /// If the file cannot be synced or renamed; the target is then unchanged. If only the folder cannot be synced, the
    /// target is the new file, which may be lost in a power failure.
    pub fn commit(mut self) -> Result<Fingerprint> {
        self.writer.flush().map_err(Error::io(&self.target))?;
        self.writer
            .get_ref()
            .sync_all()
            .map_err(Error::io(&self.target))?;
        fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target))?;
        self.committed = true;
        sync_parent(&self.target)?;
        Ok(Fingerprint {
            bytes: self.length,
            sha256: hex(&self.digest.clone().finalize()),
        })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.writer.write(bytes)?;
        self.digest.update(&bytes[..n]);
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
