//! Output paths given by the user: resolution of links, and checks that they can be written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{describe_file_type, parent, remove_stale, write};
use crate::error::{Error, Result};

/// Maximum length of a chain of links, as in Linux.
const MAX_LINKS: usize = 40;

/// Follows symbolic links, also those whose target does not exist yet. Writing to the result keeps the links.
///
/// # Errors
/// If a link cannot be read, or links form a cycle.
pub fn resolve_links(target: &Path) -> Result<PathBuf> {
    let mut path = target.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_symlink() => {
                let to = fs::read_link(&path).map_err(Error::io(target))?;
                path = parent(&path).join(to);
            }
            Ok(_) => return Ok(path),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(path);
            }
            Err(error) => return Err(Error::io(target)(error)),
        }
    }
    Err(Error::format(target, "symbolic links form a cycle"))
}

/// Writes to a path given by the user: atomically, following symbolic links. A target that is not a regular file, such
/// as `/dev/null` or this process's own output, is written to instead of replaced.
///
/// # Errors
/// If it cannot be written, or is a named pipe.
pub fn write_user_path(target: &Path, bytes: &[u8]) -> Result<()> {
    refuse_pipe(target)?;
    match fs::metadata(target) {
        Ok(found) if !found.is_file() => fs::write(target, bytes).map_err(Error::io(target)),
        Ok(_) => replace(&target.canonicalize().map_err(Error::io(target))?, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(&resolve_links(target)?, bytes)
        }
        Err(error) => Err(Error::io(target)(error)),
    }
}

fn replace(target: &Path, bytes: &[u8]) -> Result<()> {
    remove_stale(target);
    write(target, bytes).map(drop)
}

/// Checks that a path given by the user can be written to, before a long computation whose result goes there.
///
/// # Errors
/// If it is a folder or a pipe, or its folder does not exist.
pub fn check_writable(target: &Path) -> Result<()> {
    if super::is_dir(target)? {
        return Err(Error::format(
            target,
            "is a folder, expected the name of a file",
        ));
    }
    refuse_pipe(target)?;
    let resolved = resolve_links(target)?;
    match resolved
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) if !super::is_dir(parent)? => Err(Error::format(parent, "no such folder")),
        _ => Ok(()),
    }
}

/// Checks that a folder can be created under this name: neither it nor a folder above it is an existing
/// file.
///
/// # Errors
/// If one is a file, or cannot be accessed.
pub fn check_folder_name(target: &Path) -> Result<()> {
    if target.file_name().is_none() {
        return Err(Error::invalid_value(
            "path",
            format!(
                "{}: has no file name, expected the path of a folder to write",
                target.display()
            ),
        ));
    }
    // The first one that exists decides.
    for path in target
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
    {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => return Err(Error::format(path, "is a file, expected a folder")),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
    Ok(())
}

/// Rejects a named pipe, since opening it blocks until it has a reader. This process's standard output and descriptors
/// that the shell opened (`/dev/stdout`, `/dev/fd/63`) are already open.
fn refuse_pipe(target: &Path) -> Result<()> {
    if target.starts_with("/dev") || target.starts_with("/proc") {
        return Ok(());
    }
    let Ok(found) = fs::metadata(target) else {
        return Ok(());
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() || kind.is_socket() {
            return Err(Error::format(
                target,
                format!("{}, expected the name of a file", describe_file_type(kind)),
            ));
        }
    }
    let _ = (found, describe_file_type);
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_to_missing_targets_are_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        symlink("deep/second", at("first")).unwrap();
        symlink("../real", at("deep/second")).unwrap();
        let found = resolve_links(&at("first")).unwrap();
        assert_eq!(found, at("deep").join("../real"));
        write_user_path(&at("first"), b"x").unwrap();
        assert_eq!(fs::read(at("real")).unwrap(), b"x");
        assert!(at("first").is_symlink() && at("deep/second").is_symlink());
        symlink("round", at("round")).unwrap();
        let found = resolve_links(&at("round")).unwrap_err().to_string();
        assert!(found.contains("form a cycle"), "{found}");
    }

    #[test]
    fn pipes_are_refused_and_devices_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        for found in [check_writable(&path), write_user_path(&path, b"x")] {
            let found = found.unwrap_err().to_string();
            assert!(found.ends_with("is a pipe, expected the name of a file"));
        }
        check_writable(Path::new("/dev/null")).unwrap();
        write_user_path(Path::new("/dev/null"), b"x").unwrap();
    }

    #[test]
    fn existing_file_in_a_folder_path_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        for path in [file.clone(), file.join("a"), file.join("a/b")] {
            let found = check_folder_name(&path).unwrap_err().to_string();
            assert!(
                found.ends_with("file: is a file, expected a folder"),
                "{found}"
            );
        }
        check_folder_name(&folder.path().join("a/b")).unwrap();
    }
}
