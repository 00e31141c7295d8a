//! Files that are either whole or absent.
//!
//! Everything this crate writes for later reading goes through [`AtomicFile`]: bytes go to a
//! temporary sibling, which is flushed to disk and renamed over the target, and the folder is
//! flushed after. A reader never sees half a file, whatever stops the writer.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Suffix of temporary siblings; a file that carries it was left by an interrupted writer.
pub const TEMPORARY_SUFFIX: &str = ".partial";

/// A writer whose target appears only on [`AtomicFile::commit`].
pub struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    digest: Sha256,
    length: u64,
    committed: bool,
}

/// Size and SHA-256 of a file, as recorded in manifests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fingerprint {
    /// Bytes.
    pub bytes: u64,
    /// Lower-case hexadecimal SHA-256 of the content.
    pub sha256: String,
}

impl AtomicFile {
    /// Starts writing the file that will stand at `target`.
    ///
    /// # Errors
    /// If the temporary sibling cannot be created.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(TEMPORARY_SUFFIX);
        let temporary = target.with_file_name(name);
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
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
    /// If flushing or renaming fails; the target is then as it was before.
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

/// Writes a file that a person named: whole or absent, too, but through links, and into what is no
/// regular file, such as a pipe or `/dev/null`, instead of in its place.
///
/// # Errors
/// If it cannot be written.
pub fn write_named(target: &Path, bytes: &[u8]) -> Result<()> {
    let resolved = target
        .canonicalize()
        .unwrap_or_else(|_| target.to_path_buf());
    match fs::metadata(&resolved) {
        Ok(found) if !found.is_file() => fs::write(&resolved, bytes).map_err(Error::io(target)),
        _ => write(resolved, bytes).map(drop),
    }
}

/// Checks that a file that a person named can be written later, before long work is done for it.
///
/// # Errors
/// If it is a folder, or would be in one that is not there.
pub fn check_writable(target: &Path) -> Result<()> {
    if target.is_dir() {
        return Err(Error::format(
            target,
            "is a folder, expected the name of a file",
        ));
    }
    let parent = target
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.is_dir() => Err(Error::format(parent, "no such folder")),
        _ => Ok(()),
    }
}

/// Writes `bytes` to `target`, whole or not at all.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write(target: impl AsRef<Path>, bytes: &[u8]) -> Result<Fingerprint> {
    let target = target.as_ref();
    let mut file = AtomicFile::create(target)?;
    file.write_all(bytes).map_err(Error::io(target))?;
    file.commit()
}

/// Reads a whole file that is expected to be small.
///
/// # Errors
/// If it cannot be read or is larger than `limit` bytes.
pub fn read_small(path: impl AsRef<Path>, limit: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io(path))?;
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
    let mut file = File::open(path).map_err(Error::io(path))?;
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

/// Creates a folder and its parents.
///
/// # Errors
/// If that fails, or something that is no folder stands there.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(Error::io(path))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes in memory, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Makes a renaming in the folder of `path` last.
///
/// # Errors
/// If the folder cannot be flushed.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io(parent))
}

/// Where something is written before it gets its name: `NAME.partial` beside it.
pub fn staging(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(TEMPORARY_SUFFIX);
    path.with_file_name(name)
}

/// Whether two files are the same one on disk. Where the system does not tell, yes.
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
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_with_its_fingerprint() {
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
    fn an_abandoned_writer_leaves_the_old_file_and_no_other() {
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
}
