//! A regression gate: minimum speedup of each op over the reference executor.
//!
//! Both sides of the ratio are measured in one run, so that it depends little on the machine and much on
//! the code.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ops::OpsReport;
use crate::error::{Error, Result};
use crate::files;

/// Maximum bytes of a file of minimum speedups.
const LIMIT: u64 = 1 << 20;

/// Content of a file of minimum speedups: `[[kernel]]` tables with `op`, `direction` and `speedup`.
#[derive(Debug, Clone, PartialEq)]
pub struct MinSpeedups {
    path: PathBuf,
    kernels: Vec<MinSpeedup>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct MinSpeedup {
    op: String,
    direction: String,
    speedup: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    kernel: Vec<MinSpeedup>,
}

impl MinSpeedups {
    /// Reads a file of minimum speedups.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, names no kernel, or has a speedup that is not above 0.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = files::read_small(path, LIMIT)?;
        let contents: Contents = toml::from_slice(&bytes)
            .map_err(|error| Error::format(path, error.message().to_owned()))?;
        if contents.kernel.is_empty() {
            return Err(Error::format(
                path,
                "contains no [[kernel]] table, expected at least one",
            ));
        }
        if let Some(minimum) = (contents.kernel.iter())
            .find(|minimum| !(minimum.speedup.is_finite() && minimum.speedup > 0.0))
        {
            return Err(Error::format(
                path,
                format!("speedup = {} is not above 0", minimum.speedup),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            kernels: contents.kernel,
        })
    }

    /// Checks that every kernel named in the file reaches its minimum speedup, and matches its reference to within
    /// [its tolerance](super::ops::OpRow::tolerance).
    ///
    /// # Errors
    /// If a kernel does not, or was not measured; the message names all of these.
    pub fn check(&self, report: &OpsReport) -> Result<()> {
        let problems: Vec<String> = self
            .kernels
            .iter()
            .filter_map(|minimum| minimum.problem(report))
            .collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::format(&self.path, problems.join("; "))),
        }
    }
}

impl MinSpeedup {
    fn problem(&self, report: &OpsReport) -> Option<String> {
        let Self {
            op,
            direction,
            speedup,
        } = self;
        let row = report
            .rows
            .iter()
            .find(|row| row.op == op && row.direction == direction);
        match row {
            None => Some(format!("there is no kernel `{op}`, `{direction}`")),
            Some(row)
                if row.largest_difference.is_nan() || row.largest_difference > row.tolerance() =>
            {
                Some(format!(
                    "{op} {direction} differs from the reference by {:.1e}, expected at most {:.1e}",
                    row.largest_difference,
                    row.tolerance()
                ))
            }
            Some(row)
                if row.speedup_over_reference.is_nan() || row.speedup_over_reference < *speedup =>
            {
                Some(format!(
                    "{op} {direction} is {:.1} times as fast as the reference, expected at least {speedup}",
                    row.speedup_over_reference
                ))
            }
            Some(_) => None,
        }
    }
}
