//! `history.json` of a study: every version under which runs ended, the current version, and a list of the files
//! without a checksum.
//!
//! A rule that was changed after results existed is not prespecified. A file without a checksum is from an
//! earlier version, or was edited: those that existed before this version are listed, so that all other files
//! must have one.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::difference;
use super::folder::{RUNS, StudyFolder};
use super::plan::Study;
use super::records::RECORD_LIMIT;
use super::rungs::HALVING;
use super::settings::StudyConfig;
use crate::error::{Error, Result};
use crate::files::{
    self,
    checksummed::{self, KEY},
};

pub(super) const HISTORY: &str = "history.json";

/// Returns the message for a file that lacks its required checksum.
pub(super) fn missing_checksum() -> String {
    format!(
        "has no checksum ({KEY}), although every file written since this study was started has one: it was \
         modified"
    )
}

/// Content of the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    /// Files of the folder that earlier versions wrote without a checksum.
    pub without_checksum: Vec<String>,
    /// Studies under which runs ended, and the current one.
    #[serde(rename = "stated")]
    pub states: Vec<StudyVersion>,
    /// Number of records older than this file: the study at their start is unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub records_before: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Differences between a study and the earlier versions under which runs ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Changes {
    /// One entry per key.
    pub known: Vec<String>,
    /// Number of records whose rules are unknown.
    pub records_with_unknown_study: usize,
}

/// Version of a study under which runs ended, or the current one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StudyVersion {
    /// The study, as TOML.
    pub study: String,
    /// Number of records in the folder at that time.
    pub records: usize,
    /// Number of runs of the previous study that had ended by then.
    pub ended: usize,
    /// Number of runs of the previous study.
    #[serde(rename = "of")]
    pub planned: usize,
}

impl History {
    /// True if a file may be without a checksum.
    pub fn may_lack_checksum(&self, name: &str) -> bool {
        self.without_checksum.iter().any(|known| known == name)
    }

    /// Adds this study to the history if it differs from the last one; runs of it start now.
    pub fn record_study(&mut self, study: &Study, folder: &StudyFolder) -> Result<()> {
        let records = folder.record_names()?.len();
        // A study under which no run ended has affected nothing.
        while self
            .states
            .last()
            .is_some_and(|last| last.records == records)
        {
            self.states.pop();
        }
        let (ended, planned) = match self.states.last() {
            None => (0, 0),
            Some(last) => {
                let before = Study::parse(&last.study, &[])?;
                if before.config == study.config {
                    return Ok(());
                }
                let mut ended = 0;
                for run in &before.runs {
                    ended += usize::from(folder.has_record(&run.id)?);
                }
                (ended, before.runs.len())
            }
        };
        self.states.push(StudyVersion {
            study: study.to_toml(),
            records,
            ended,
            planned,
        });
        Ok(())
    }

    /// Returns the changes made after results existed, one entry per change of a key.
    fn changes(&self) -> Result<Vec<String>> {
        let mut changes = Vec::new();
        let mut before: Option<StudyConfig> = None;
        for state in &self.states {
            let config = relevant_settings(Study::parse(&state.study, &[])?.config);
            if let Some(before) = &before {
                for change in crate::train::history::diff(before, &config) {
                    changes.push(format!(
                        "{} after {} of {} runs had ended",
                        difference::change_text(&change),
                        state.ended,
                        state.planned
                    ));
                }
            }
            before = Some(config);
        }
        Ok(changes)
    }
}

impl StudyFolder {
    /// Reads the history; `None` if only earlier versions have used the folder.
    pub(super) fn history(&self) -> Result<Option<History>> {
        let path = self.path().join(HISTORY);
        if !files::exists(&path)? {
            return Ok(None);
        }
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        let problem = match checksummed::parse::<History>(&bytes) {
            Ok(parsed) if parsed.checksum.is_some() => return Ok(Some(parsed.content)),
            Ok(_) => missing_checksum(),
            Err(problem) => problem,
        };
        Err(Error::format(
            path,
            format!(
                "{problem}; restore it, or delete it: the history of the study is then unknown"
            ),
        ))
    }

    /// Reads the history, or starts one in a folder with a study of an earlier version.
    pub(super) fn history_or_new(&self, before: Option<&Study>) -> Result<History> {
        if let Some(history) = self.history()? {
            return Ok(history);
        }
        let mut without_checksum = Vec::new();
        let names = self.record_names()?;
        let records = names.len();
        for name in names.into_iter().chain([HALVING.to_owned()]) {
            if self.lacks_checksum(&name)? {
                without_checksum.push(name);
            }
        }
        let before = before.filter(|_| records > 0);
        let states = before.map(|study| StudyVersion {
            study: study.to_toml(),
            records: 0,
            ended: 0,
            planned: 0,
        });
        Ok(History {
            without_checksum,
            states: states.into_iter().collect(),
            records_before: records,
        })
    }

    pub(super) fn write_history(&self, history: &History) -> Result<()> {
        if self.history()?.as_ref() == Some(history) {
            return Ok(());
        }
        let path = self.path().join(HISTORY);
        let (text, _) = checksummed::to_json_with_checksum(history, "")
            .map_err(|error| Error::format(&path, error.to_string()))?;
        files::write(path, text.as_bytes()).map(drop)
    }

    /// Returns the differences between a study and the earlier versions under which runs in this folder ended.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn changes(&self, study: &Study) -> Result<Changes> {
        let Some(mut history) = self.history()? else {
            return Ok(Changes {
                known: Vec::new(),
                records_with_unknown_study: self.record_names()?.len(),
            });
        };
        history.record_study(study, self)?;
        Ok(Changes {
            known: history.changes()?,
            records_with_unknown_study: history.records_before,
        })
    }

    fn lacks_checksum(&self, name: &str) -> Result<bool> {
        let path = self.path().join(name);
        if !files::exists(&path)? {
            return Ok(false);
        }
        let bytes = files::read_small(&path, RECORD_LIMIT)?;
        // Unreadable files are reported where they are needed.
        let value: Option<Value> = serde_json::from_slice(&bytes).ok();
        let lacks = |value: &Value| value.is_object() && value.get(KEY).is_none();
        Ok(value.is_some_and(|value| match value.as_array() {
            Some(values) => values.iter().any(lacks),
            None => lacks(&value),
        }))
    }

    /// Returns the names of the record files, sorted.
    pub(super) fn record_names(&self) -> Result<Vec<String>> {
        let folder = self.path().join(RUNS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::io(&folder))?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".json") {
                names.push(format!("{RUNS}/{name}"));
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Returns a study without settings that affect neither results nor verdicts.
fn relevant_settings(mut config: StudyConfig) -> StudyConfig {
    config.log = Default::default();
    config.study.keep_runs = false;
    config
}
