//! Check of the output path of a report.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::lab::study;
use crate::train::run_directory;

/// Checks that a report at `out` would not overwrite a file of its inputs.
///
/// # Errors
/// If it would.
pub fn check_output_path(out: &Path, inputs: &[PathBuf]) -> Result<()> {
    let out_at = files::resolve_links(out)?;
    // This includes files of the input that do not exist yet: the report would occupy their path.
    let target = match (out_at.canonicalize(), out_at.file_name()) {
        (Ok(target), _) => target,
        (Err(_), Some(name)) => match files::parent(&out_at).canonicalize() {
            Ok(folder) => folder.join(name),
            Err(_) => return Ok(()),
        },
        (Err(_), None) => return Ok(()),
    };
    let is_part = |input: &&PathBuf| {
        let Ok(input) = input.canonicalize() else {
            return false;
        };
        let below = target.strip_prefix(&input).ok();
        let first = below.and_then(|below| below.iter().next());
        target == input
            || first
                .is_some_and(|name| run_directory::is_run_file(name) || study::is_study_file(name))
    };
    match inputs.iter().find(is_part) {
        None => Ok(()),
        Some(input) => Err(Error::conflict(
            ["out", "paths"],
            format!(
                "{} is a part of the input {}; choose another name",
                out.display(),
                input.display()
            ),
        )),
    }
}
