//! Reads the input paths of a report into a [`Document`].

use std::path::{Path, PathBuf};

use super::directory;
use super::document::Document;
use super::run::ReportedRun;
use crate::error::{Error, Result};
use crate::files;
use crate::lab::probe::ProbeReport;
use crate::lab::study::{self, StudyFolder};
use crate::machine;
use crate::train::run_directory;

/// Maximum bytes of a probe report.
const PROBE_LIMIT: u64 = 256 << 20;

impl Document {
    /// Reads a study folder, any number of run directories, or the output of `probe`, which may also be given
    /// with either.
    ///
    /// # Errors
    /// If a path is none of these, several studies or a study and runs are given, or a file cannot be
    /// read.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut document = Self {
            title: title(paths),
            created: machine::date().unwrap_or_else(|| "date unknown".to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Self::default()
        };
        let (mut studies, mut directories) = (0, Vec::new());
        for path in paths {
            let folder = StudyFolder::new(path);
            if folder.has_study()? {
                let study = folder.study()?;
                let analysis = study::analyze_folder(&folder, &study)?;
                document.groups = analysis.groups;
                let records =
                    study::with_relative_status(analysis.records, &study.config.study.rules);
                document
                    .runs
                    .extend(records.into_iter().map(ReportedRun::from));
                document.planned = Some(study.runs.len());
                studies += 1;
            } else if !files::is_dir(path)? {
                if document.probe.is_some() {
                    return Err(Error::invalid_value(
                        "paths",
                        "more than one probe given, expected at most one",
                    ));
                }
                document.probe = Some(probe(path)?);
            } else if files::exists(path.join(run_directory::CONFIG))? {
                directories.push(path.clone());
            } else {
                return Err(Error::format(
                    path,
                    "neither a study (no study.toml) nor a run directory (no config.toml)",
                ));
            }
        }
        if studies > 1 || studies == 1 && !directories.is_empty() {
            return Err(Error::conflict(
                ["study", "runs"],
                "a report takes one study or any number of runs; merge folders of one study with `study merge`",
            ));
        }
        if !directories.is_empty() {
            (document.runs, document.data_groups) = directory::read(&directories)?;
        }
        Ok(document)
    }
}

fn probe(path: &Path) -> Result<ProbeReport> {
    let bytes = files::read_small(path, PROBE_LIMIT)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::format(path, format!("not a probe report: {error}")))
}

fn title(paths: &[PathBuf]) -> String {
    let name = |path: &PathBuf| {
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = whole.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    paths.iter().map(name).collect::<Vec<_>>().join(", ")
}
