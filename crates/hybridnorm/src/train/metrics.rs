//! `metrics.jsonl`: one row a step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The step, counted from 1.
    pub step: u64,
    /// Mean cross-entropy of the step's batch before the update, in nats per token.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the update.
    pub lr: f64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Throughput of this step, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// Mean validation loss after the update, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// Appends rows to the file of a run.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

pub(super) const NAME: &str = "metrics.jsonl";

impl MetricsFile {
    /// Opens the file of a run that has done `step` steps: rows of later steps, and a last row
    /// cut short by a kill, are dropped, since those steps will be done again.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let path = run.join(NAME);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let text = String::from_utf8_lossy(&bytes);
            let mut kept = String::new();
            let mut lines = (1..).zip(text.lines()).peekable();
            while let Some((number, line)) = lines.next() {
                match serde_json::from_str::<Row>(line) {
                    Ok(row) if row.step <= step => kept.extend([line, "\n"]),
                    Ok(_) => {}
                    Err(_) if lines.peek().is_none() => {}
                    Err(error) => {
                        let problem = format!("line {number} is no row of metrics: {error}");
                        return Err(Error::format(path, problem));
                    }
                }
            }
            if kept != text {
                files::write(&path, kept.as_bytes())?;
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        Ok(Self { path, file })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, row: &Row) -> Result<()> {
        let mut line = serde_json::to_string(row)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io(&self.path))
    }
}

/// Reads the rows of a run.
///
/// # Errors
/// If the file cannot be read or a row is not one.
pub fn read(run: &Path) -> Result<Vec<Row>> {
    let path = run.join(NAME);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| Error::format(&path, format!("line {}: {error}", index + 1)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> Row {
        Row {
            step,
            loss: 2.5,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: 10 * step,
            tokens_per_second: 100.0,
            validation_loss: None,
        }
    }

    #[test]
    fn reopening_drops_rows_that_will_come_again() {
        let run = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::open(run.path(), 0).unwrap();
        (1..=5).for_each(|step| file.append(&row(step)).unwrap());
        file.file.write_all(b"{\"step\": 6, \"lo").unwrap();
        drop(file);
        let mut file = MetricsFile::open(run.path(), 3).unwrap();
        file.append(&row(4)).unwrap();
        let rows = read(run.path()).unwrap();
        assert_eq!(rows, [1, 2, 3, 4].map(row));
    }
}
