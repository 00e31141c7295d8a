//! JSON Lines files of a run, with one record per recorded step.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::files::{self, AtomicFile};

/// Size limit of a record. The largest are those of many blocks with many experts.
const RECORD_LIMIT: u64 = 16 << 20;

/// Record of one step, in a file of a run.
pub trait Record: Serialize + DeserializeOwned {
    /// File name in the run directory.
    const FILE: &'static str;
    /// True if every step has a record, so that a missing one was lost.
    const IS_PER_STEP: bool;

    /// Returns the step, counted from 1.
    fn step(&self) -> u64;
}

/// Writer that appends records to a file of a run.
#[derive(Debug)]
pub struct RecordFile<R> {
    path: PathBuf,
    file: File,
    records: PhantomData<R>,
}

impl<R: Record> RecordFile<R> {
    /// Opens the file of a run that has completed `step` steps: records of later steps, including ones truncated by a
    /// kill or a power cut, are dropped, since those steps will be run again.
    ///
    /// # Errors
    /// If the file cannot be read or written; it is then unchanged.
    pub fn open(run: &Path, step: u64) -> Result<Self> {
        let path = run.join(R::FILE);
        if files::exists(&path)? {
            let kept = KeptRecords::find::<R>(&path, step)?;
            if !kept.is_all {
                kept.copy(&path)?;
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        let records = PhantomData;
        Ok(Self {
            path,
            file,
            records,
        })
    }

    /// Checks that [`RecordFile::open`] will accept the file, before anything of the run is written.
    ///
    /// # Errors
    /// If the file cannot be read, or lacks records of completed steps.
    pub(super) fn check(run: &Path, step: u64) -> Result<()> {
        let path = run.join(R::FILE);
        if files::exists(&path)? {
            KeptRecords::find::<R>(&path, step)?;
        }
        Ok(())
    }

    /// Appends a record.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, record: &R) -> Result<()> {
        let mut line = serde_json::to_string(record)
            .map_err(|error| Error::format(&self.path, error.to_string()))?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io(&self.path))
    }

    /// Flushes all records to disk.
    ///
    /// # Errors
    /// If they cannot be flushed.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

/// Parts of a file that are kept: records up to a step, one per step. Of a step that was run again, the last record
/// is kept.
#[derive(Debug, Default)]
struct KeptRecords {
    /// Step, offset and length in bytes of each line.
    lines: Vec<(u64, u64, u64)>,
    is_all: bool,
}

impl KeptRecords {
    fn find<R: Record>(path: &Path, limit: u64) -> Result<Self> {
        let mut kept = Self {
            lines: Vec::new(),
            is_all: true,
        };
        let is_all = scan(path, limit, |record: R, at, length| {
            kept.push(record.step(), at, length);
        })?;
        kept.is_all &= is_all;
        if R::IS_PER_STEP && !kept.lines.is_empty() && kept.last() < limit {
            return Err(Error::format(
                path,
                format!(
                    "ends with step {}, but the run has completed {limit} steps: records are missing; \
                     replace the file with a complete copy",
                    kept.last()
                ),
            ));
        }
        Ok(kept)
    }

    fn push(&mut self, step: u64, at: u64, length: u64) {
        while self.last() >= step && !self.lines.is_empty() {
            self.lines.pop();
            self.is_all = false;
        }
        self.lines.push((step, at, length));
    }

    fn last(&self) -> u64 {
        self.lines.last().map_or(0, |(step, ..)| *step)
    }

    /// Replaces the file with the kept parts.
    fn copy(&self, path: &Path) -> Result<()> {
        let mut source = BufReader::new(files::open(path)?);
        let mut target = AtomicFile::create(path)?;
        let mut at = 0;
        for &(_, start, length) in &self.lines {
            let mut skip = |bytes: u64| {
                let mut between = (&mut source).take(bytes);
                io::copy(&mut between, &mut io::sink()).map_err(Error::io(path))
            };
            skip(start - at)?;
            let mut line = (&mut source).take(length);
            let copied = io::copy(&mut line, &mut target).map_err(Error::io(path))?;
            if copied < length {
                return Err(Error::format(path, "was truncated while it was read"));
            }
            at = start + length;
        }
        target.commit().map(drop)
    }
}

/// Passes records of steps up to `limit` to `keep`, with offset and length of their lines; returns true if these
/// are all lines. An unreadable line is an error only if a record up to `limit` follows: later steps will be run
/// again.
fn scan<R: Record>(path: &Path, limit: u64, mut keep: impl FnMut(R, u64, u64)) -> Result<bool> {
    let mut is_all = true;
    let mut unreadable = None;
    let mut last = None;
    let mut at = 0;
    let mut lines = Lines::open(path)?;
    while let Some((line, is_whole)) = lines.next()? {
        let length = line.len() as u64;
        match serde_json::from_slice::<R>(line) {
            Ok(record) if is_whole && record.step() <= limit => {
                if let Some(error) = unreadable {
                    return Err(error);
                }
                check_consecutive(path, lines.number, last.replace(record.step()), &record)?;
                keep(record, at, length);
            }
            Ok(_) => is_all = false,
            Err(error) => {
                is_all = false;
                let place = (lines.number, lines.start);
                unreadable.get_or_insert_with(|| invalid_record(path, place, &error));
            }
        }
        at += length;
    }
    Ok(is_all)
}

/// Lines of a file, one at a time.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    line: Vec<u8>,
    /// Number of the line last read, counted from 1.
    number: usize,
    /// Byte offset of that line.
    start: u64,
    /// Byte offset of its end.
    end: u64,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        Ok(Self {
            path,
            reader: BufReader::new(files::open(path)?),
            line: Vec::new(),
            number: 0,
            start: 0,
            end: 0,
        })
    }

    /// Returns the next line with its newline, and true if it has one.
    fn next(&mut self) -> Result<Option<(&[u8], bool)>> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(RECORD_LIMIT);
        let read = limited
            .read_until(b'\n', &mut self.line)
            .map_err(Error::io(self.path))?;
        self.number += 1;
        self.start = self.end;
        self.end += read as u64;
        let is_whole = self.line.ends_with(b"\n");
        // After a power cut a file may end in any number of zeros, which are not a line.
        if !is_whole && read as u64 == RECORD_LIMIT && self.line.iter().any(|byte| *byte != 0) {
            return Err(Error::corrupt_at(
                self.path,
                self.start,
                format!(
                    "line {} has more than {RECORD_LIMIT} bytes and is not a valid record",
                    self.number
                ),
            ));
        }
        Ok((read > 0).then_some((self.line.as_slice(), is_whole)))
    }
}

/// Reads the records of a run, one per step, the last one if a step was run again; empty if the file does not
/// exist. A last record truncated by a kill is skipped.
///
/// # Errors
/// If the file cannot be read or a record is invalid.
pub fn read<R: Record>(run: &Path) -> Result<Vec<R>> {
    let path = run.join(R::FILE);
    let mut records: Vec<R> = Vec::new();
    if !files::exists(&path)? {
        return Ok(records);
    }
    let mut lines = Lines::open(&path)?;
    while let Some((line, is_whole)) = lines.next()? {
        if !is_whole {
            break;
        }
        match serde_json::from_slice::<R>(line) {
            Ok(record) => push(&mut records, record),
            Err(error) => return Err(invalid_record(&path, (lines.number, lines.start), &error)),
        }
    }
    Ok(records)
}

/// Reads the records of the first `limit` steps of a run that is about to be resumed after them, as
/// [`RecordFile::open`] keeps them.
pub(super) fn read_up_to<R: Record>(run: &Path, limit: u64) -> Result<Vec<R>> {
    let path = run.join(R::FILE);
    let mut records = Vec::new();
    if files::exists(&path)? {
        scan(&path, limit, |record: R, _, _| push(&mut records, record))?;
    }
    Ok(records)
}

/// Appends a record; it replaces records of its step and later ones, which were run again.
fn push<R: Record>(records: &mut Vec<R>, record: R) {
    while records
        .last()
        .is_some_and(|last| last.step() >= record.step())
    {
        records.pop();
    }
    records.push(record);
}

/// Checks that no step is missing between two records. Steps may be repeated.
fn check_consecutive<R: Record>(
    path: &Path,
    number: usize,
    last: Option<u64>,
    record: &R,
) -> Result<()> {
    match last {
        Some(last) if R::IS_PER_STEP && record.step() > last + 1 => Err(Error::format(
            path,
            format!(
                "line {number} is for step {}, but the line before it for step {last}: records between them are missing; \
                 replace the file with a complete copy",
                record.step()
            ),
        )),
        _ => Ok(()),
    }
}

/// Returns the error about the record at a line, counted from 1, and byte offset.
fn invalid_record(path: &Path, (number, offset): (usize, u64), error: &serde_json::Error) -> Error {
    Error::corrupt_at(
        path,
        offset,
        format!(
            "line {number} is not a valid record: {}",
            // The parser sees one line only.
            error
                .to_string()
                .replace(" at line 1 column ", " at column ")
        ),
    )
}

#[cfg(test)]
mod tests;
