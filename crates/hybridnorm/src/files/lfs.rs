//! Pointers that Git leaves in place of large files where its extension LFS did not fetch them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// How every pointer begins.
const BEGIN: &[u8] = b"version https://git-lfs.github.com/spec/";
/// No pointer is longer, by its specification.
const LIMIT: u64 = 1024;

/// What is wrong with a file that is one.
pub(super) const PROBLEM: &str = "is a Git LFS pointer, not the file itself; fetch it with \
    `git lfs pull` in the repository that it is from";

/// Whether a file holds a pointer. It is read from its beginning after.
pub(super) fn is_pointer(mut file: &File) -> io::Result<bool> {
    if file.metadata()?.len() >= LIMIT {
        return Ok(false);
    }
    let mut start = Vec::with_capacity(BEGIN.len());
    file.take(BEGIN.len() as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(start == BEGIN)
}

#[cfg(test)]
mod tests {
    use super::super::{open, read_small, write};

    #[test]
    fn pointers_are_named_and_other_files_are_read_from_their_beginning() {
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
