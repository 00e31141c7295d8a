//! Checks that a folder of prepared data may be written or replaced.
//!
//! Replacing a folder removes only files that a preparation wrote: regular files listed in its manifest,
//! the manifest, the tokenizer's files, and temporary files of these. If it holds anything else, nothing
//! is replaced.

use std::fs::{self, DirEntry};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

use super::manifest::{self, MANIFEST_NAME};
use super::tokenizer::RECORD_NAME;

/// Checks that `out` does not exist, is empty, or contains only prepared data that may be replaced.
pub(super) fn check(out: &Path, overwrite: bool) -> Result<()> {
    files::check_folder_name(out)?;
    files::create_parent(out)?;
    if !files::exists(out)? || fs::read_dir(out).map_err(Error::io(out))?.next().is_none() {
        return Ok(());
    }
    // Damaged prepared data counts too, and may be prepared again.
    if !files::exists(out.join(RECORD_NAME))? {
        return Err(Error::exists(
            out,
            format!(
                "{}: contains other files; choose an empty folder",
                out.display()
            ),
        ));
    }
    if !overwrite {
        return Err(Error::exists(
            out,
            format!(
                "{}: already holds prepared data; choose another folder, or allow overwriting",
                out.display()
            ),
        ));
    }
    check_only_prepared_files(out)
}

/// Checks that a folder contains only files that a preparation wrote.
///
/// # Errors
/// If it contains anything else.
pub(super) fn check_only_prepared_files(folder: &Path) -> Result<()> {
    let listed = manifest::listed_files(folder)?;
    let mut entries = fs::read_dir(folder)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(Error::io(folder))?;
    entries.sort_by_key(DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let kind = entry.file_type().map_err(Error::io(entry.path()))?;
        let is_prepared_file = |name: &str| is_prepared_file(name, listed.as_deref());
        let by_name = name
            .to_str()
            .is_some_and(|name| is_prepared_file(files::target_of_temporary(name).unwrap_or(name)));
        if !kind.is_file() || !by_name {
            return Err(Error::exists(
                folder,
                format!(
                    "{}: contains other files ({}); choose an empty folder",
                    folder.display(),
                    name.display()
                ),
            ));
        }
    }
    Ok(())
}

/// True if a preparation writes files of this name. Without a manifest, shards are recognized by name.
fn is_prepared_file(name: &str, listed: Option<&[String]>) -> bool {
    let is_shard = match listed {
        Some(listed) => listed.iter().any(|shard| shard == name),
        None => is_shard_name(name),
    };
    is_shard
        || [
            MANIFEST_NAME,
            "tokenizer.json",
            "tokenizer_config.json",
            RECORD_NAME,
        ]
        .contains(&name)
}

/// True for shard names: `train-00000.bin`, `validation-00012.bin`.
fn is_shard_name(name: &str) -> bool {
    let number = name
        .strip_prefix("train-")
        .or_else(|| name.strip_prefix("validation-"))
        .and_then(|rest| rest.strip_suffix(".bin"));
    number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a folder with a manifest that lists one shard.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let manifest = r#"{"train":{"shards":[{"file":"train-00000.bin"}]}}"#;
        for (name, content) in [
            (MANIFEST_NAME, manifest),
            (RECORD_NAME, "{}"),
            ("tokenizer.json", "{}"),
            ("train-00000.bin", "ab"),
            ("train-00000.bin.0123456789abcdef.partial", "a"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn assert_rejected(folder: &Path, name: &str) {
        let error = check(folder, true).unwrap_err().to_string();
        assert!(error.contains(&format!("other files ({name})")), "{error}");
    }

    #[test]
    fn rejects_files_that_the_manifest_does_not_list() {
        let folder = folder();
        check(folder.path(), true).unwrap();
        assert!(check(folder.path(), false).is_err());
        for name in [
            "train-mine.bin",
            "train-00001.bin",
            "validation-00000.bin",
            "notes.0123456789abcdef.partial",
            "train-00000.bin.bak",
        ] {
            let path = folder.path().join(name);
            fs::write(&path, "x").unwrap();
            assert_rejected(folder.path(), name);
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert_rejected(folder.path(), name);
            fs::remove_dir(&path).unwrap();
        }
        check(folder.path(), true).unwrap();
    }

    #[test]
    fn rejects_folders_and_links_with_shard_names() {
        let folder = folder();
        let shard = folder.path().join("train-00000.bin");
        fs::remove_file(&shard).unwrap();
        fs::create_dir(&shard).unwrap();
        assert_rejected(folder.path(), "train-00000.bin");
        fs::remove_dir(&shard).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/dev/null", &shard).unwrap();
            assert_rejected(folder.path(), "train-00000.bin");
        }
    }

    #[test]
    fn recognizes_shards_by_name_without_manifest() {
        let folder = folder();
        for damaged in [Some("{"), None] {
            let path = folder.path().join(MANIFEST_NAME);
            match damaged {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            check(folder.path(), true).unwrap();
            fs::create_dir(folder.path().join("train-mine.bin")).unwrap();
            assert_rejected(folder.path(), "train-mine.bin");
            fs::remove_dir(folder.path().join("train-mine.bin")).unwrap();
        }
    }
}
