//! Expansion of glob patterns to paths.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::error::{Error, Result};
use crate::files;

use super::invalid_pattern;

/// Returns the files and folders that match `pattern`, sorted; `base` is the path before its first wildcard.
///
/// # Errors
/// If the pattern is invalid, or a folder cannot be listed.
pub(super) fn expand(pattern: &str, base: &Path) -> Result<Vec<PathBuf>> {
    let invalid = |error| invalid_pattern(pattern, &error);
    if pattern.contains("**") {
        return expand_recursive(&Pattern::new(pattern).map_err(invalid)?, base);
    }
    glob::glob(pattern)
        .map_err(invalid)?
        .map(|path| {
            path.map_err(|error| {
                let path = error.path().to_path_buf();
                Error::io(path)(error.into())
            })
        })
        .collect()
}

/// Returns the matches in a folder and its subfolders. Each folder is visited once, through any link: two
/// links back to a parent would double the paths at every level.
fn expand_recursive(pattern: &Pattern, base: &Path) -> Result<Vec<PathBuf>> {
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::new()
    };
    let mut visited = HashSet::new();
    let mut found = Vec::new();
    let mut pending = vec![base.to_path_buf()];
    while let Some(folder) = pending.pop() {
        let here = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => &folder,
        };
        if !files::is_dir(here)? || !visited.insert(here.canonicalize().map_err(Error::io(here))?) {
            continue;
        }
        let mut links = Vec::new();
        for entry in fs::read_dir(here).map_err(Error::io(here))? {
            let entry = entry.map_err(Error::io(here))?;
            let path = folder.join(entry.file_name());
            if pattern.matches_path_with(&path, options) {
                found.push(path.clone());
            }
            let kind = entry.file_type().map_err(Error::io(&path))?;
            if kind.is_symlink() {
                links.push(path);
            } else if kind.is_dir() {
                pending.push(path);
            }
        }
        // Links are visited last, so that folders are found under their own names.
        pending.splice(0..0, links);
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_levels_match_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        for name in ["x.txt", "a/y.txt", "a/b/z.txt", "a/b/z.csv"] {
            fs::write(at(name), "x").unwrap();
        }
        #[cfg(unix)]
        for link in ["l1", "l2", "a/l3"] {
            std::os::unix::fs::symlink(folder.path(), at(link)).unwrap();
        }
        let pattern = at("**/*.txt");
        let found = expand(pattern.to_str().unwrap(), folder.path()).unwrap();
        assert_eq!(found, [at("a/b/z.txt"), at("a/y.txt"), at("x.txt")]);
        assert!(expand("a/**b/*", Path::new("a")).is_err());
    }
}
