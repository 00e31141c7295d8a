//! Texts of one column of a Parquet file.
//!
//! Memory: the footer, one page of the column (at most 512 MiB; larger ones are rejected by their header
//! before decompression) with its dictionary, and [`BATCH`] texts.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use crate::error::{Error, Result};
use crate::files;
use crate::omissions::Unit;
use crate::untrusted;

use super::fault::ParquetReadError;
use super::{ALLOW_REPLACING, InvalidUtf8, SourceOptions, SourceStats, pages};

/// Texts read per batch.
const BATCH: usize = 32;
/// Maximum footer size in bytes; the footer is read completely.
const FOOTER_LIMIT: u64 = 256 << 20;
/// Minimum size of a Parquet file, in bytes: leading magic, footer length, trailing magic.
const MIN_FILE_LEN: u64 = 12;
/// First and last bytes of a Parquet file.
const MAGIC: &[u8] = b"PAR1";

/// Reader of a text column of a Parquet file.
pub(super) struct ParquetTexts {
    path: PathBuf,
    file: File,
    reader: SerializedFileReader<File>,
    /// Index of the column.
    column: usize,
    /// Definition level of non-null values.
    max_def_level: i16,
    /// Index of the next row group.
    group: usize,
    column_reader: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Rows of the row group that are not read yet.
    rows_left_in_group: i64,
    /// Values read but not returned yet, in reverse order; `None` is null.
    pending: Vec<Option<ByteArray>>,
    /// Number of the row last returned, from 1.
    row: u64,
    /// Rows of a column of null type that are not counted yet.
    null_rows: u64,
}

impl ParquetTexts {
    /// Returns true if a file is too short for a Parquet file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn is_too_short(path: &Path) -> Result<bool> {
        let metadata = files::open(path)?.metadata().map_err(Error::io(path))?;
        Ok(metadata.len() < MIN_FILE_LEN)
    }

    /// Opens the text column `field` of a Parquet file.
    ///
    /// # Errors
    /// If this is not a Parquet file or has no such text column.
    pub(super) fn open(path: &Path, field: &str) -> Result<Self> {
        let fail = |problem: String| Error::format(path, problem);
        let file = files::open(path)?;
        check_ends(&file, path)?;
        let copy = file.try_clone().map_err(Error::io(path))?;
        let reader = catch_panic(|| SerializedFileReader::new(copy))
            .map_err(|fault| fault.error(path, ""))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let column = find_column(schema, field).map_err(fail)?;
        let descriptor = schema.column(column);
        let is_text = matches!(
            descriptor.logical_type_ref(),
            None | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json)
        ) && matches!(
            descriptor.converted_type(),
            ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        );
        if descriptor.max_rep_level() > 0 {
            return Err(fail(format!(
                "column `{field}` contains lists, expected one text per row"
            )));
        }
        let is_null = descriptor.logical_type_ref() == Some(&LogicalType::Unknown);
        if !is_null && (descriptor.physical_type() != PhysicalType::BYTE_ARRAY || !is_text) {
            return Err(fail(format!("column `{field}` is not a text column")));
        }
        let max_def_level = descriptor.max_def_level();
        // A column of null type need not be read.
        let (group, null_rows) = match is_null {
            true => (reader.num_row_groups(), rows(&reader)),
            false => (0, 0),
        };
        Ok(Self {
            path: path.to_path_buf(),
            file,
            reader,
            column,
            max_def_level,
            group,
            column_reader: None,
            rows_left_in_group: 0,
            pending: Vec::new(),
            row: 0,
            null_rows,
        })
    }

    /// Returns the next text; rows without one are counted, or are an error.
    pub(super) fn next(
        &mut self,
        options: &SourceOptions,
        stats: &mut SourceStats,
    ) -> Result<Option<String>> {
        let null = format!("field `{}` is null", options.text_field);
        if self.null_rows > 0 {
            let rows = std::mem::take(&mut self.null_rows);
            let place = Some(format!("{}:1", self.path.display()));
            stats.omissions.add(Unit::Records, &null, rows, place);
        }
        loop {
            let Some(value) = self.pending.pop() else {
                match self.read_batch()? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            self.row += 1;
            let place = format!("{}:{}", self.path.display(), self.row);
            let Some(value) = value else {
                stats.omissions.add(Unit::Records, &null, 1, Some(place));
                continue;
            };
            let text = match std::str::from_utf8(value.data()) {
                Ok(text) => text.to_owned(),
                Err(_) if options.invalid_utf8 == InvalidUtf8::Replace => {
                    stats.replaced_lines += 1;
                    String::from_utf8_lossy(value.data()).into_owned()
                }
                Err(_) if options.skip_invalid => {
                    stats
                        .omissions
                        .add(Unit::Records, "invalid UTF-8", 1, Some(place));
                    continue;
                }
                Err(error) => {
                    return Err(Error::format(
                        &self.path,
                        format!(
                            "row {}: invalid UTF-8 at byte {} of the text; allow replacing invalid bytes \
                             ({ALLOW_REPLACING})",
                            self.row,
                            error.valid_up_to()
                        ),
                    ));
                }
            };
            stats.records += 1;
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
            stats
                .omissions
                .add(Unit::Documents, "blank", 1, Some(place));
        }
    }

    /// Reads the next batch of rows; returns `false` at the end.
    fn read_batch(&mut self) -> Result<bool> {
        loop {
            if self.column_reader.is_none() && !self.open_group()? {
                return Ok(false);
            }
            let Some(column_reader) = &mut self.column_reader else {
                continue;
            };
            let (mut levels, mut values) = (Vec::new(), Vec::new());
            let has_levels = self.max_def_level > 0;
            let levels_out = has_levels.then_some(&mut levels);
            let (read, _, _) =
                catch_panic(|| column_reader.read_records(BATCH, levels_out, None, &mut values))
                    .map_err(|fault| self.error(self.group - 1, fault))?;
            self.rows_left_in_group -= read as i64;
            if self.rows_left_in_group < 0 || read == 0 && self.rows_left_in_group > 0 {
                let than = if self.rows_left_in_group < 0 {
                    "more"
                } else {
                    "fewer"
                };
                let problem = format!("{than} rows than its metadata states");
                return Err(self.damaged(self.group - 1, &problem));
            }
            if read == 0 {
                self.column_reader = None;
                continue;
            }
            let nulls = levels.iter().filter(|&&level| level != self.max_def_level);
            if has_levels && (levels.len() != read || levels.len() - nulls.count() != values.len())
            {
                let problem = "inconsistent levels and values";
                return Err(self.damaged(self.group - 1, problem));
            }
            let mut values = values.into_iter();
            self.pending = match has_levels {
                false => values.map(Some).collect(),
                true => levels
                    .iter()
                    .map(|&level| {
                        (level == self.max_def_level)
                            .then(|| values.next())
                            .flatten()
                    })
                    .collect(),
            };
            self.pending.reverse();
            return Ok(true);
        }
    }

    /// Opens the next row group, if there is one.
    fn open_group(&mut self) -> Result<bool> {
        if self.group == self.reader.num_row_groups() {
            return Ok(false);
        }
        let group = self.group;
        self.group += 1;
        let described = self.reader.metadata().row_group(group);
        let chunk = described.column(self.column);
        // One value per row: the column holds no lists.
        if described.num_rows() != chunk.num_values() {
            let (rows, values) = (described.num_rows(), chunk.num_values());
            return Err(self.damaged(group, &format!("{rows} rows, but {values} values")));
        }
        self.rows_left_in_group = described.num_rows();
        if self.rows_left_in_group == 0 {
            return Ok(true);
        }
        self.check_chunk(chunk)
            .map_err(|fault| self.error(group, fault))?;
        let opened = catch_panic(|| {
            self.reader
                .get_row_group(group)?
                .get_column_reader(self.column)
        })
        .map_err(|fault| self.error(group, fault))?;
        match opened {
            ColumnReader::ByteArrayColumnReader(column_reader) => {
                self.column_reader = Some(column_reader)
            }
            _ => return Err(self.damaged(group, "its column is not a text column")),
        }
        Ok(true)
    }

    fn check_chunk(&self, chunk: &ColumnChunkMetaData) -> Result<(), ParquetReadError> {
        let length = self.file.metadata().map_err(ParquetReadError::Io)?.len();
        let begin = chunk
            .dictionary_page_offset()
            .unwrap_or(chunk.data_page_offset());
        let (Ok(begin), Ok(bytes)) = (
            u64::try_from(begin.min(chunk.data_page_offset())),
            u64::try_from(chunk.compressed_size()),
        ) else {
            return Err(ParquetReadError::Corrupt("negative offset or size".into()));
        };
        if begin.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(ParquetReadError::Corrupt(format!(
                "{bytes} bytes at byte {begin}, but the file has {length} bytes"
            )));
        }
        pages::check(&self.file, begin, bytes)
    }

    fn damaged(&self, group: usize, problem: &str) -> Error {
        self.error(group, ParquetReadError::Corrupt(problem.to_owned()))
    }

    fn error(&self, group: usize, fault: ParquetReadError) -> Error {
        fault.error(&self.path, &format!(" in row group {group}"))
    }

    /// Returns the number of rows that were neither returned nor counted.
    pub(super) fn rows_left(&self) -> u64 {
        rows(&self.reader).saturating_sub(self.row)
    }
}

/// Returns the index of a column.
fn find_column(schema: &SchemaDescriptor, field: &str) -> Result<usize, String> {
    let names: Vec<String> = schema
        .columns()
        .iter()
        .map(|column| column.path().string())
        .collect();
    let found = names.iter().position(|name| name == field);
    found.ok_or_else(|| {
        let names = names.iter().take(8).map(|name| format!("`{name}`"));
        format!(
            "no column `{field}`; the columns are {}",
            names.collect::<Vec<_>>().join(", ")
        )
    })
}

/// Returns the number of rows of all row groups.
fn rows(reader: &SerializedFileReader<File>) -> u64 {
    let of_group = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).unwrap_or(0);
    reader.metadata().row_groups().iter().map(of_group).sum()
}

/// Checks the start and end of the file, for error messages that name the problem.
fn check_ends(file: &File, path: &Path) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = file;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut ends = [0; 12];
    let leading = (length.min(4)) as usize;
    file.read_exact(&mut ends[..leading])
        .map_err(Error::io(path))?;
    if length >= 12 {
        file.seek(SeekFrom::End(-8))
            .and_then(|_| file.read_exact(&mut ends[4..]))
            .map_err(Error::io(path))?;
    }
    let mut head = [0; 64];
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let read = file.read(&mut head).map_err(Error::io(path))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let fail = |problem: &str| Err(Error::format(path, problem));
    let damaged = |problem: &str| Err(Error::corrupt(path, problem));
    if head[..read].starts_with(b"version https://git-lfs.github.com/spec/") {
        return fail("a Git LFS pointer, not the file itself; run `git lfs pull`");
    }
    match (&ends[..4], &ends[8..]) {
        (b"PARE", _) | (_, b"PARE") => fail("encrypted Parquet files are not supported"),
        (MAGIC, MAGIC) => {
            let footer = u32::from_le_bytes([ends[4], ends[5], ends[6], ends[7]]).into();
            match footer {
                0..=FOOTER_LIMIT if footer + 12 <= length => Ok(()),
                _ => damaged(&format!(
                    "damaged Parquet file: a footer of {footer} bytes in a file of {length}"
                )),
            }
        }
        (MAGIC, _) => damaged("not a Parquet file, or truncated: it does not end in `PAR1`"),
        _ => fail("not a Parquet file: it does not begin with `PAR1`"),
    }
}

/// Calls `read` and converts a panic, which the `parquet` crate may cause on a damaged file, to an error.
fn catch_panic<T>(
    read: impl FnOnce() -> parquet::errors::Result<T>,
) -> Result<T, ParquetReadError> {
    match untrusted::catch_panic(read) {
        Some(result) => result.map_err(ParquetReadError::from),
        None => Err(ParquetReadError::Corrupt(
            "inconsistent file structure".into(),
        )),
    }
}
