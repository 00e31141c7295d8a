//! Read-only memory maps behind a safe function.
//!
//! The library forbids `unsafe`, and mapping a file is `unsafe` because another process may change
//! the file while it is mapped. This crate contains that single call and its safety argument.
#![warn(missing_docs)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

/// Bytes of a file, mapped read-only; an empty slice for an empty file.
#[derive(Debug, Default)]
pub struct MappedFile(Option<Mmap>);

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Maps a file that is never modified in place.
///
/// Token files are written once, to a temporary file, and renamed when complete; nothing in this
/// workspace writes to or truncates a file under its final name. Replacing or deleting a mapped file
/// is harmless: the map keeps the old content. If a user truncates a token file in place while it is
/// mapped, the process ends with a bus error, as in any program that maps files.
///
/// # Errors
/// If the path cannot be opened, is not a regular file, or the system refuses to map it.
///
/// ```
/// let path = std::env::temp_dir().join(format!("mapped-{}", std::process::id()));
/// std::fs::write(&path, b"tokens")?;
/// let mapped = hybridnorm_mapped::map_file(&path)?;
/// assert_eq!(&mapped[..], b"tokens");
/// # drop(mapped);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn map_file(path: impl AsRef<Path>) -> io::Result<MappedFile> {
    // Checked before opening, since opening a pipe waits for its writer.
    require_regular(&std::fs::metadata(&path)?)?;
    map(&File::open(path)?)
}

/// Maps an open file; see [`map_file`].
///
/// # Errors
/// If it is not a regular file, or the system refuses to map it.
pub fn map(file: &File) -> io::Result<MappedFile> {
    let metadata = file.metadata()?;
    require_regular(&metadata)?;
    let length = usize::try_from(metadata.len())
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "too large to map"))?;
    if length == 0 {
        return Ok(MappedFile::default());
    }
    // SAFETY: the map is read-only and its length is the file's. The file must also not be changed
    // or truncated while the map lives; the documentation of `map_file` states why its intended
    // files are not.
    let map = unsafe { MmapOptions::new().len(length).map(file)? };
    Ok(MappedFile(Some(map)))
}

fn require_regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_stays_readable_after_the_file_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"tokens").unwrap();
        let mapped = map_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*mapped, b"tokens");
    }

    #[test]
    fn empty_files_and_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"").unwrap();
        assert!(map_file(&path).unwrap().is_empty());
        assert!(map_file(folder.path()).is_err());
    }
}
