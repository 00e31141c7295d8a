//! The history of a run: one segment for every process that trained a part of it.
//!
//! A run may be stopped, moved and gone on with, with other threads, another machine, another version
//! of this program, or keys changed that may be. `segments.json` in its directory says which steps
//! were done how.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{self, sealed};

/// The file in the run directory.
pub const FILE: &str = "segments.json";
/// Stands for the fingerprint of validation data where there are none.
pub const NO_VALIDATION: &str = "none";
const LIMIT: u64 = 16 << 20;

/// A key of the configuration with another value than in the segment before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Section and key: `optimizer.lr`.
    pub key: String,
    /// The value before, as TOML; absent where the key was.
    pub from: Option<String>,
    /// The value since, as TOML; absent where the key is.
    pub to: Option<String>,
}

/// Steps that one process did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// It began after this step.
    pub after_step: u64,
    /// The last step that it saved a checkpoint of; absent where it saved none.
    pub last_step: Option<u64>,
    /// When it began, in UTC, as RFC 3339.
    pub started: String,
    /// Keys of the configuration that differ from the segment before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Change>,
    /// Threads that computed.
    pub threads: usize,
    /// The processor.
    pub machine: String,
    /// Version of this program.
    pub version: String,
    /// Fingerprint of the training data.
    pub data: String,
    /// Fingerprint of the validation data, or [`NO_VALIDATION`]; absent in histories that an older version
    /// wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// SHA-256 of the weights of the checkpoint that the run began from; absent where it began with
    /// initial values of its own, where it went on with its own, and in histories that an older version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Peak memory of the process up to its last checkpoint, in bytes, where the system tells.
    pub peak_memory_bytes: Option<u64>,
}

/// The segments of a run, oldest first; none where the run is older than this file.
///
/// # Errors
/// If the file cannot be read, or a segment is not what its checksum says.
pub fn read(run: &Path) -> Result<Vec<Segment>> {
    let path = run.join(FILE);
    if !files::exists(&path)? {
        return Ok(Vec::new());
    }
    let bytes = files::read_small(&path, LIMIT)?;
    let opened = sealed::open_list(&bytes).map_err(|problem| Error::format(&path, problem))?;
    Ok(opened.into_iter().map(|segment| segment.content).collect())
}

/// Writes the segments of a run.
///
/// # Errors
/// If the file cannot be written.
pub fn write(run: &Path, segments: &[Segment]) -> Result<()> {
    let path = run.join(FILE);
    let text =
        sealed::seal_list(segments).map_err(|error| Error::format(&path, error.to_string()))?;
    files::write(&path, text.as_bytes()).map(drop)
}
