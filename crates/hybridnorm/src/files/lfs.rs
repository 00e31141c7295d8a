//! Git LFS pointers, which replace large files that were not fetched.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Prefix of every pointer.
const PREFIX: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Exclusive upper bound of a pointer's size in bytes, from its specification.
const LIMIT: u64 = 1024;

/// Error message for a pointer.
pub(super) const PROBLEM: &str = "is a Git LFS pointer, not the file itself; fetch it with \
    `git lfs pull` in the repository that it is from";

/// True if a file is a pointer. Resets the file to its start.
pub(super) fn is_pointer(mut file: &File) -> io::Result<bool> {
    if file.metadata()?.len() >= LIMIT {
        return Ok(false);
    }
    let mut start = Vec::with_capacity(PREFIX.len());
    file.take(PREFIX.len() as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(start == PREFIX)
}

#[cfg(test)]
mod tests {
    use super::super::{open, read_small, write};

    #[test]
    fn lfs_pointers_are_rejected_and_other_files_are_read_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        write(&path, pointer.as_bytes()).unwrap();
        let found = open(&path).unwrap_err().to_string();
        assert!(found.contains("git lfs pull"), "{found}");
        for other in ["version https://example.org", "", "{}"] {
            write(&path, other.as_bytes()).unwrap();
            assert_eq!(read_small(&path, 100).unwrap(), other.as_bytes());
        }
    }
}
