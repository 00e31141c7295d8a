//! Sizes of the pages of a Parquet column, read from their headers before any page is decompressed.
//!
//! A page header is a struct in Thrift's compact protocol. Only its sizes are read.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use crate::error::Error;
use crate::memory;

use super::fault::ParquetReadError;

/// Maximum uncompressed page size in bytes. Writers aim at 1 MiB; a page holds at least one value.
const PAGE_LIMIT: i64 = 512 << 20;
/// Maximum page size that is read without checking the available memory, in bytes.
const MEMORY_CHECK_THRESHOLD: i64 = 64 << 20;
/// Maximum number of values per page.
const VALUES_LIMIT: i64 = 1 << 26;
/// Maximum nesting depth of structs in a header.
const DEPTH_LIMIT: usize = 8;

/// Checks every page of a column chunk of `length` bytes at offset `begin`.
///
/// # Errors
/// If a page is damaged, too large, or cannot be read.
pub(super) fn check(
    file: impl Read + Seek,
    begin: u64,
    length: u64,
) -> Result<(), ParquetReadError> {
    let mut reader = BufReader::with_capacity(1 << 12, file);
    let mut at = begin;
    let end = (begin.checked_add(length)).ok_or_else(|| damaged_by("its size overflows"))?;
    while at < end {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(_) => ParquetReadError::Io(error),
            None => ParquetReadError::Corrupt(format!("page at byte {at}: {error}")),
        };
        reader.seek(SeekFrom::Start(at)).map_err(failed)?;
        let mut header = Header {
            reader: (&mut reader).take(end - at),
            sizes: Sizes::default(),
        };
        header.read_struct(0, StructKind::Page).map_err(failed)?;
        let (rest, sizes) = (header.reader.limit(), header.sizes);
        if sizes.uncompressed > PAGE_LIMIT || sizes.values > VALUES_LIMIT {
            return Err(ParquetReadError::Unsupported(format!(
                "page at byte {at}: {} bytes and {} values, more than the {PAGE_LIMIT} bytes and {VALUES_LIMIT} values that are accepted",
                sizes.uncompressed, sizes.values
            )));
        }
        let compressed = u64::try_from(sizes.compressed).unwrap_or(u64::MAX);
        if compressed > rest || sizes.uncompressed < 0 || sizes.values < 0 {
            return Err(damaged_by(format!(
                "page at byte {at}: invalid sizes in the page header"
            )));
        }
        if sizes.uncompressed > MEMORY_CHECK_THRESHOLD {
            let bytes = sizes.uncompressed.cast_unsigned();
            let page = format!("page at byte {at} of {} MiB", bytes >> 20);
            // Texts are copied out of their page.
            memory::check_available_for_text(2 * bytes, &page)
                .map_err(|error: Error| ParquetReadError::Unsupported(error.to_string()))?;
        }
        at = end - rest + compressed;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    compressed: i64,
    uncompressed: i64,
    values: i64,
}

/// Struct that is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StructKind {
    Page,
    /// Header of the page type, whose first field is the number of values.
    PageTypeHeader,
    Other,
}

struct Header<R> {
    reader: R,
    sizes: Sizes,
}

impl<R: BufRead> Header<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    fn zigzag_varint(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match io::copy(&mut (&mut self.reader).take(bytes), &mut io::sink())? {
            copied if copied == bytes => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn read_struct(&mut self, depth: usize, struct_kind: StructKind) -> io::Result<()> {
        if depth > DEPTH_LIMIT {
            return Err(damaged());
        }
        let mut field = 0_i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.zigzag_varint()?,
                step => field.wrapping_add(step.into()),
            };
            match (struct_kind, field, head & 15) {
                (StructKind::Page, 2, 4..=6) => self.sizes.uncompressed = self.zigzag_varint()?,
                (StructKind::Page, 3, 4..=6) => self.sizes.compressed = self.zigzag_varint()?,
                (StructKind::PageTypeHeader, 1, 4..=6) => {
                    self.sizes.values = self.zigzag_varint()?
                }
                (StructKind::Page, _, 12) => {
                    self.read_struct(depth + 1, StructKind::PageTypeHeader)?
                }
                (_, _, kind) => self.skip_value(depth, kind, true)?,
            }
        }
    }

    /// Skips a value of a kind; a boolean field is encoded in the field header.
    fn skip_value(&mut self, depth: usize, kind: u8, is_field: bool) -> io::Result<()> {
        match kind {
            1 | 2 if is_field => Ok(()),
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let bytes = self.varint()?;
                self.skip(bytes)
            }
            9 | 10 => {
                let head = self.byte()?;
                let items = match head >> 4 {
                    15 => self.varint()?,
                    items => items.into(),
                };
                // Each item takes at least one byte, so a wrong count stops at the end of the file.
                (0..items).try_for_each(|_| self.skip_value(depth, head & 15, false))
            }
            12 => self.read_struct(depth + 1, StructKind::Other),
            _ => Err(damaged()),
        }
    }
}

fn damaged_by(problem: impl Into<String>) -> ParquetReadError {
    ParquetReadError::Corrupt(problem.into())
}

fn damaged() -> io::Error {
    io::Error::other("damaged page header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Returns a data page: type 0, sizes, and a header with values, a boolean and a string.
    fn page(uncompressed: u64, content: &[u8], values: u64) -> Vec<u8> {
        let zigzag = |value: u64| {
            let mut value = value << 1;
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            bytes
        };
        let mut page = vec![0x15, 0, 0x15];
        page.extend(zigzag(uncompressed));
        page.push(0x15);
        page.extend(zigzag(content.len() as u64));
        page.extend([0x2c, 0x15]);
        page.extend(zigzag(values));
        page.extend([0x11, 0x18, 2, b'h', b'i', 0, 0]);
        page.extend(content);
        page
    }

    #[test]
    fn checks_every_page() {
        let check = |pages: &[Vec<u8>]| {
            let bytes = pages.concat();
            let length = bytes.len() as u64;
            check(Cursor::new(bytes), 0, length).map_err(|fault| match fault {
                ParquetReadError::Corrupt(problem) => problem,
                ParquetReadError::Unsupported(problem) => format!("not read: {problem}"),
                ParquetReadError::Io(error) => panic!("{error}"),
            })
        };
        assert_eq!(check(&[page(9, b"abc", 4), page(8, b"", 0)]), Ok(()));
        let found = check(&[page(9, b"abc", 4), page(1 << 30, b"", 0)]).unwrap_err();
        assert!(found.starts_with("not read: "), "{found}");
        assert!(found.contains("1073741824 bytes"), "{found}");
        assert!(check(&[page(9, b"", 1 << 30)]).is_err());
        let mut cut = page(9, b"abc", 4);
        cut.truncate(cut.len() - 1);
        assert!(check(&[cut.clone()]).unwrap_err().contains("invalid sizes"));
        cut.truncate(4);
        assert!(check(&[cut]).is_err());
    }
}
