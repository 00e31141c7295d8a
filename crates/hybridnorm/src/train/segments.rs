//! Segments of a run, one for every process that trained a part of it.
//!
//! A run may be stopped, moved and resumed with a different number of threads, on a different machine, with a different
//! version of hybridnorm, or with different values of keys that may change. `segments.json` in its directory records
//! how each range of steps was run.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{self, checksummed};

/// File name in the run directory.
pub const FILE: &str = "segments.json";
/// Placeholder for the fingerprint of validation data if there is none.
pub const NO_VALIDATION: &str = "none";
const LIMIT: u64 = 16 << 20;

/// A configuration key whose value differs from the previous segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Change {
    /// Section and key: `optimizer.lr`.
    pub key: String,
    /// Previous value, as TOML; absent if the key was.
    pub from: Option<String>,
    /// New value, as TOML; absent if the key is.
    pub to: Option<String>,
}

/// Steps run by one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Segment {
    /// Last step before the segment.
    pub after_step: u64,
    /// Last step for which it saved a checkpoint; absent if it saved none.
    pub last_step: Option<u64>,
    /// Start time, in UTC, as RFC 3339.
    pub started: String,
    /// Configuration keys that differ from the previous segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<Change>,
    /// Number of compute threads.
    pub threads: usize,
    /// CPU model name.
    pub machine: String,
    /// Unit of the matmuls, if they are in bfloat16, where results depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_unit: Option<String>,
    /// Version of hybridnorm.
    pub version: String,
    /// Fingerprint of the training data.
    pub data: String,
    /// Fingerprint of the validation data, or [`NO_VALIDATION`]; absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
    /// SHA-256 of the weights of the checkpoint that the run started from; absent if it started from random
    /// initial values, in resumed segments, and in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Peak memory of the process up to its last checkpoint, in bytes, if the system reports it.
    pub peak_memory_bytes: Option<u64>,
}

#[cfg(test)]
impl Segment {
    /// Returns a segment after this step, with empty fields.
    pub(super) fn of_test(after_step: u64) -> Self {
        Self {
            after_step,
            last_step: None,
            started: String::new(),
            changed: Vec::new(),
            threads: 1,
            machine: String::new(),
            bf16_unit: None,
            version: String::new(),
            data: String::new(),
            validation: None,
            weights: None,
            peak_memory_bytes: None,
        }
    }
}

/// Reads the segments of a run, oldest first; empty if the run predates this file.
///
/// # Errors
/// If the file cannot be read, or a segment does not match its checksum.
pub fn read(run: &Path) -> Result<Vec<Segment>> {
    let path = run.join(FILE);
    if !files::exists(&path)? {
        return Ok(Vec::new());
    }
    let bytes = files::read_small(&path, LIMIT)?;
    let parsed =
        checksummed::parse_list(&bytes).map_err(|problem| Error::format(&path, problem))?;
    Ok(parsed.into_iter().map(|segment| segment.content).collect())
}

/// Writes the segments of a run.
///
/// # Errors
/// If the file cannot be written.
pub fn write(run: &Path, segments: &[Segment]) -> Result<()> {
    let path = run.join(FILE);
    let text = checksummed::to_json_list_with_checksums(segments)
        .map_err(|error| Error::format(&path, error.to_string()))?;
    files::write(&path, text.as_bytes()).map(drop)
}
