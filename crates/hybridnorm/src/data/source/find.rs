//! Resolution of inputs to files, with the reasons for files that are omitted.
//!
//! Symbolic links are followed. A file or folder that is reached twice counts once, preferably under a name
//! that is not a link, and for the first input that reaches it; a file that is both training and validation
//! text is an error. Thus cycles terminate, and the result does not depend on the order of directory
//! entries.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::data::shard::PreparedFolder;
use crate::data::tokenizer::RECORD_NAME;
use crate::error::{Error, Result};
use crate::files;
use crate::omissions::{Omissions, Unit};

use super::kind::{KNOWN_KINDS, file_kind};
use super::{expand, invalid_pattern};

const NOT_SELECTED: &str = "not selected by include/exclude";

/// The files of one input.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    /// Files to read, sorted.
    pub(super) paths: Vec<PathBuf>,
    /// Files and folders that are omitted.
    pub(super) omissions: Omissions,
    /// Files that an earlier input reached; if there are any, an input without other files is not an error.
    pub(super) duplicates: u64,
}

/// Files reached through any input: index of the list of inputs, by file identity.
#[derive(Debug, Default)]
pub(super) struct SeenFiles {
    files: HashMap<Identity, usize>,
    /// Index of the list whose inputs are being searched.
    list: usize,
}

impl SeenFiles {
    /// Advances to the next list of inputs.
    pub(super) fn next_list(&mut self) {
        self.list += 1;
    }

    /// Records a file; returns true if it was not reached before.
    ///
    /// # Errors
    /// If it was reached through another list of inputs.
    pub(super) fn insert(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<bool> {
        let identity = identity(path, metadata).map_err(Error::io(path))?;
        match self.files.insert(identity, self.list) {
            None => Ok(true),
            Some(list) if list == self.list => Ok(false),
            Some(_) => Err(Error::invalid_value(
                "input text",
                format!(
                    "{} is both training text and validation text, so training text would leak into validation; \
                     remove it from one",
                    path.display()
                ),
            )),
        }
    }
}

/// Resolves a single file.
///
/// # Errors
/// If it is of an unknown kind, not a regular file, or in another list of inputs.
pub(super) fn resolve_file(
    path: &Path,
    metadata: &fs::Metadata,
    seen_files: &mut SeenFiles,
) -> Result<Files> {
    check_known_kind(path)?;
    if !metadata.is_file() {
        return Err(Error::format(path, "not a regular file"));
    }
    let mut found = Files::default();
    match seen_files.insert(path, metadata)? {
        true => found.paths.push(path.to_path_buf()),
        false => found.add_duplicate(path),
    }
    Ok(found)
}

impl Files {
    /// Adds the files and counts of `other`.
    pub(super) fn add(&mut self, other: Self) {
        self.paths.extend(other.paths);
        self.omissions.extend(&other.omissions);
        self.duplicates += other.duplicates;
    }

    fn add_duplicate(&mut self, path: &Path) {
        let example = Some(path.display().to_string());
        self.omissions
            .add(Unit::Files, "duplicate file", 1, example);
        self.duplicates += 1;
    }
}

/// Patterns that select files of folders and globs.
#[derive(Debug, Default)]
pub(super) struct Filter {
    include: Vec<Rule>,
    exclude: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    is_used: bool,
}

impl Filter {
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let rules = |patterns: &[String]| -> Result<Vec<Rule>> {
            patterns.iter().map(|text| rule(text)).collect()
        };
        Ok(Self {
            include: rules(include)?,
            exclude: rules(exclude)?,
        })
    }

    /// Returns true if a file is selected, by its path within the input.
    fn selects(&mut self, relative_path: &Path) -> bool {
        // No short circuit: `is_used` must be updated for every rule.
        let matches_any = |rules: &mut [Rule]| {
            let matched = rules.iter_mut().map(|rule| rule.matches(relative_path));
            matched.fold(false, |any, matched| any | matched)
        };
        let included = self.include.is_empty() || matches_any(&mut self.include);
        included && !matches_any(&mut self.exclude)
    }

    /// Checks that every pattern matched a file.
    ///
    /// # Errors
    /// If a pattern matched nothing.
    pub(super) fn check_used(&self) -> Result<()> {
        for (option, rules) in [("include", &self.include), ("exclude", &self.exclude)] {
            if let Some(rule) = rules.iter().find(|rule| !rule.is_used) {
                let which = match option == "exclude" && !self.include.is_empty() {
                    true => "text file selected by include",
                    false => "text file of the inputs",
                };
                return Err(Error::invalid_value(
                    option,
                    format!(
                        "{option} `{}`: matches no {which} (a pattern with `/` is matched against the path below the \
                         input, a pattern without `/` against each component of that path)",
                        rule.pattern
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn rule(text: &str) -> Result<Rule> {
    let pattern =
        Pattern::new(text.trim_end_matches('/')).map_err(|error| invalid_pattern(text, &error))?;
    Ok(Rule {
        pattern,
        is_used: false,
    })
}

impl Rule {
    fn matches(&mut self, relative_path: &Path) -> bool {
        let options = MatchOptions {
            require_literal_separator: true,
            ..MatchOptions::default()
        };
        let with_path = self.pattern.as_str().contains('/');
        let matched = relative_path.ancestors().any(|path| match with_path {
            true => self.pattern.matches_path_with(path, options),
            false => path
                .file_name()
                .is_some_and(|name| self.pattern.matches_with(&name.to_string_lossy(), options)),
        });
        self.is_used |= matched;
        matched
    }
}

/// File system entry.
struct Entry {
    path: PathBuf,
    /// Its path within the input.
    relative_path: PathBuf,
    is_link: bool,
}

/// Identity of a file, equal for all names of the same file.
type Identity = (u64, u64, PathBuf);

#[cfg(unix)]
fn identity(_: &Path, metadata: &fs::Metadata) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    Ok((metadata.dev(), metadata.ino(), PathBuf::new()))
}

#[cfg(not(unix))]
fn identity(path: &Path, _: &fs::Metadata) -> io::Result<Identity> {
    Ok((0, 0, path.canonicalize()?))
}

struct Search<'f> {
    filter: &'f mut Filter,
    /// Files of all inputs.
    seen_files: &'f mut SeenFiles,
    /// Visited folders of this input.
    visited_folders: HashSet<Identity>,
    /// Links found so far, followed after all other entries.
    links: Vec<Entry>,
    found: Files,
}

/// Finds the text files in a folder and its subfolders.
///
/// # Errors
/// If there are no text files, or a folder cannot be listed.
pub(super) fn in_folder(
    folder: &Path,
    filter: &mut Filter,
    seen_files: &mut SeenFiles,
) -> Result<Files> {
    let mut search = Search::new(filter, seen_files);
    search.visit_folder(folder, Path::new(""))?;
    search.follow_links()?;
    let found = search.finish();
    match found.paths.is_empty() && found.duplicates == 0 {
        false => Ok(found),
        true => Err(Error::format(
            folder,
            format!(
                "no {KNOWN_KINDS} file in this folder or below{}",
                omission_suffix(&found.omissions)
            ),
        )),
    }
}

/// Finds the text files that match a pattern.
///
/// # Errors
/// If the pattern is not valid, nothing matches, or a file is of an unknown kind.
pub(super) fn matching(
    pattern: &str,
    filter: &mut Filter,
    seen_files: &mut SeenFiles,
) -> Result<Files> {
    let base: PathBuf = Path::new(pattern)
        .components()
        .take_while(|part| !super::is_pattern(&part.as_os_str().to_string_lossy()))
        .collect();
    let paths = expand::expand(pattern, &base)?;
    let shows_hidden = Path::new(pattern)
        .strip_prefix(&base)
        .is_ok_and(|below| below.iter().any(starts_with_dot));
    let mut search = Search::new(filter, seen_files);
    let mut entries = Vec::new();
    for path in paths {
        let is_link = path.is_symlink();
        let below = path.strip_prefix(&base).unwrap_or(&path);
        let is_hidden = below.iter().any(starts_with_dot) && !shows_hidden;
        if files::is_dir(&path)? {
            search.omit_folder("in a folder that a pattern matches", &path)?;
        } else if is_hidden {
            search.omit("hidden", &path);
        } else {
            let relative_path = below.to_path_buf();
            match file_kind(&path) {
                None if search.filter.selects(&relative_path) => check_known_kind(&path)?,
                None => search.omit(NOT_SELECTED, &path),
                Some(_) => entries.push(Entry {
                    path,
                    relative_path,
                    is_link,
                }),
            }
        }
    }
    // Links come last.
    entries.sort_by(|a, b| (a.is_link, &a.path).cmp(&(b.is_link, &b.path)));
    for entry in entries {
        search.add_entry(entry)?;
    }
    let found = search.finish();
    match found.paths.is_empty() && found.duplicates == 0 {
        false => Ok(found),
        true => Err(Error::invalid_value(
            "input text",
            format!(
                "no file matches `{pattern}`{}",
                omission_suffix(&found.omissions)
            ),
        )),
    }
}

fn omission_suffix(omissions: &Omissions) -> String {
    let lines = omissions.lines().into_iter();
    lines.fold(String::new(), |text, line| format!("{text}; {line}"))
}

/// Checks that a file is of a known kind.
///
/// # Errors
/// If it is of an unknown kind.
pub(super) fn check_known_kind(path: &Path) -> Result<()> {
    match file_kind(path) {
        Some(_) => Ok(()),
        None => Err(Error::format(
            path,
            format!("unknown kind of text file; expected {KNOWN_KINDS}"),
        )),
    }
}

/// True if a folder holds prepared data, not only some `manifest.json`.
fn is_prepared(folder: &Path) -> Result<bool> {
    let has_both = || -> Result<bool> {
        Ok(PreparedFolder::is_prepared(folder)? && files::exists(folder.join(RECORD_NAME))?)
    };
    has_both().map_err(|error| match error {
        // The folder cannot be searched: name it rather than a file that it might contain.
        Error::Io { source, .. } => Error::io(folder)(source),
        error => error,
    })
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(starts_with_dot)
}

fn starts_with_dot(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

impl<'f> Search<'f> {
    fn new(filter: &'f mut Filter, seen_files: &'f mut SeenFiles) -> Self {
        Self {
            filter,
            seen_files,
            visited_folders: HashSet::new(),
            links: Vec::new(),
            found: Files::default(),
        }
    }

    fn omit(&mut self, reason: &str, path: &Path) {
        let example = Some(path.display().to_string());
        self.found.omissions.add(Unit::Files, reason, 1, example);
    }

    /// Counts the files of a folder that is not visited, including subfolders. Links in it are not followed.
    fn omit_folder(&mut self, reason: &str, folder: &Path) -> Result<()> {
        let mut count = 0;
        let mut pending = vec![folder.to_path_buf()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
                let entry = entry.map_err(Error::io(&folder))?;
                let path = entry.path();
                match entry.file_type().map_err(Error::io(&path))?.is_dir() {
                    true => pending.push(path),
                    false => count += 1,
                }
            }
        }
        let example = Some(folder.join("").display().to_string());
        self.found
            .omissions
            .add(Unit::Files, reason, count, example);
        Ok(())
    }

    /// Visits a folder and its subfolders.
    fn visit_folder(&mut self, folder: &Path, relative_path: &Path) -> Result<()> {
        let mut pending = vec![(folder.to_path_buf(), relative_path.to_path_buf())];
        while let Some((folder, relative_path)) = pending.pop() {
            let metadata = fs::metadata(&folder).map_err(Error::io(&folder))?;
            let identity = identity(&folder, &metadata).map_err(Error::io(&folder))?;
            if !self.visited_folders.insert(identity) {
                self.omit("duplicate folder", &folder);
                continue;
            }
            let mut entries = fs::read_dir(&folder)
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(Error::io(&folder))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = entry.path();
                let kind = entry.file_type().map_err(Error::io(&path))?;
                let relative_path = relative_path.join(entry.file_name());
                if is_hidden(&path) && kind.is_dir() {
                    self.omit_folder("hidden", &path)?;
                } else if is_hidden(&path) {
                    self.omit("hidden", &path);
                } else if kind.is_dir() && is_prepared(&path)? {
                    self.omit_folder("prepared data folder within a text input", &path)?;
                } else if kind.is_dir() {
                    pending.push((path, relative_path));
                } else {
                    let is_link = kind.is_symlink();
                    let entry = Entry {
                        path,
                        relative_path,
                        is_link,
                    };
                    match is_link {
                        true => self.links.push(entry),
                        false => self.add_entry(entry)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn follow_links(&mut self) -> Result<()> {
        while !self.links.is_empty() {
            let mut links = std::mem::take(&mut self.links);
            links.sort_by(|a, b| a.path.cmp(&b.path));
            for link in links {
                match fs::metadata(&link.path) {
                    Ok(found) if found.is_dir() => {
                        self.visit_folder(&link.path, &link.relative_path)?
                    }
                    _ => self.add_entry(link)?,
                }
            }
        }
        Ok(())
    }

    /// Adds a file, or counts it as omitted with the reason.
    fn add_entry(&mut self, entry: Entry) -> Result<()> {
        let path = &entry.path;
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if entry.is_link && is_broken_link(&error) => {
                self.omit("a broken link", path);
                return Ok(());
            }
            Err(error) => return Err(Error::io(path)(error)),
        };
        if !metadata.is_file() {
            self.omit(not_a_file(metadata.file_type()), path);
        } else if file_kind(path).is_none() {
            self.omit("unknown kind", path);
        } else if !self.filter.selects(&entry.relative_path) {
            self.omit(NOT_SELECTED, path);
        } else if !self.seen_files.insert(path, &metadata)? {
            self.found.add_duplicate(path);
        } else {
            self.found.paths.push(entry.path);
        }
        Ok(())
    }

    fn finish(self) -> Files {
        let mut found = self.found;
        found.paths.sort();
        found
    }
}

/// True for the error of a dangling or cyclic symbolic link.
fn is_broken_link(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return true;
    }
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn not_a_file(kind: FileType) -> &'static str {
    match kind.is_dir() {
        true => "a folder",
        false => "not a regular file",
    }
}
