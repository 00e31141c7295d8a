//! Where a report may be written.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::lab::study;
use crate::train::run_directory;

/// Checks that a report at `out` does not take the place of a part of what it is about.
///
/// # Errors
/// If it does.
pub fn check_target(out: &Path, inputs: &[PathBuf]) -> Result<()> {
    // What is not there takes no place.
    let Ok(target) = out.canonicalize() else {
        return Ok(());
    };
    let is_part = |input: &&PathBuf| {
        let Ok(input) = input.canonicalize() else {
            return false;
        };
        let below = target.strip_prefix(&input).ok();
        let first = below.and_then(|below| below.iter().next());
        target == input
            || first.is_some_and(|name| run_directory::writes(name) || study::writes(name))
    };
    match inputs.iter().find(is_part) {
        None => Ok(()),
        Some(input) => Err(Error::config(format!(
            "{} is a part of {}, which the report is about; choose another name",
            out.display(),
            input.display()
        ))),
    }
}
