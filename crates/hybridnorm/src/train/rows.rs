//! Files of a run that grow by a row of JSON every so many steps.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::files;

/// What is known at a step.
pub trait Row: Serialize + DeserializeOwned {
    /// The file in the run directory.
    const FILE: &'static str;

    /// The step, counted from 1.
    fn step(&self) -> u64;
}

/// Appends rows to the file of a run.
#[derive(Debug)]
pub struct RowsFile<R> {
    path: PathBuf,
    file: File,
    rows: PhantomData<R>,
}

impl<R: Row> RowsFile<R> {
    /// Opens the file of a run that has done `step` steps: rows of later steps, and a last row
    /// cut short by a kill, are dropped, since those steps will be done again.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let path = run.join(R::FILE);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
            let text = String::from_utf8_lossy(&bytes);
            let mut kept = String::new();
            let mut lines = (1..).zip(text.lines()).peekable();
            while let Some((number, line)) = lines.next() {
                match serde_json::from_str::<R>(line) {
                    Ok(row) if row.step() <= step => kept.extend([line, "\n"]),
                    Ok(_) => {}
                    Err(_) if lines.peek().is_none() => {}
                    Err(error) => return Err(not_a_row(&path, number, &error)),
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
        let rows = PhantomData;
        Ok(Self { path, file, rows })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, row: &R) -> Result<()> {
        let mut line = serde_json::to_string(row)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io(&self.path))
    }
}

/// Reads the rows of a run; none where it has no such file. A last row cut short by a kill is passed
/// over.
///
/// # Errors
/// If the file cannot be read or a row is not one.
pub fn read<R: Row>(run: &Path) -> Result<Vec<R>> {
    let path = run.join(R::FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let whole = match text.ends_with('\n') {
        true => text.as_str(),
        false => text.rsplit_once('\n').map_or("", |(whole, _)| whole),
    };
    (1..)
        .zip(whole.lines())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| not_a_row(&path, number, &error))
        })
        .collect()
}

fn not_a_row(path: &Path, number: usize, error: &serde_json::Error) -> Error {
    Error::format(
        path,
        format!("line {number} is no row of this file: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::*;

    fn row(step: u64) -> Metrics {
        Metrics {
            step,
            loss: 2.5,
            grad_norm: 1.0,
            update_norm: 0.5,
            lr: 1e-3,
            tokens: 10 * step,
            tokens_per_second: 100.0,
            objective: None,
            router: None,
            qk_clip: None,
            validation_loss: None,
        }
    }

    #[test]
    fn reopening_drops_rows_that_will_come_again() {
        let run = tempfile::tempdir().unwrap();
        let mut file = RowsFile::open(run.path(), 0).unwrap();
        (1..=5).for_each(|step| file.append(&row(step)).unwrap());
        file.file.write_all(b"{\"step\": 6, \"lo").unwrap();
        drop(file);
        assert_eq!(read::<Metrics>(run.path()).unwrap().len(), 5);
        let mut file = RowsFile::open(run.path(), 3).unwrap();
        file.append(&row(4)).unwrap();
        let rows: Vec<Metrics> = read(run.path()).unwrap();
        assert_eq!(rows, [1, 2, 3, 4].map(row));
    }

    #[test]
    fn a_row_that_is_none_is_named() {
        let run = tempfile::tempdir().unwrap();
        std::fs::write(run.path().join(Metrics::FILE), "{}\n{}\n").unwrap();
        let found = read::<Metrics>(run.path()).unwrap_err().to_string();
        assert!(found.contains("metrics.jsonl: line 1 is no row"), "{found}");
    }
}
