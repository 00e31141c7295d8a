//! Readers of text files that decompress while reading.
//!
//! Memory: buffers of 256 KiB, and for zstd the window that a frame declares, at most
//! 2^[`WINDOW_LOG_MAX`] bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;

use super::kind::Compression;

/// Log2 of the largest accepted zstd window: 2 GiB, as written by `zstd --ultra --long=31`.
const WINDOW_LOG_MAX: u32 = 31;
const BUFFER: usize = 1 << 18;

/// Opens a text file.
pub(in crate::data) fn open(
    path: &Path,
    compression: Compression,
) -> Result<Box<dyn BufRead + Send>> {
    let mut file = BufReader::with_capacity(BUFFER, files::open(path)?);
    let head = file.fill_buf().map_err(Error::io(path))?;
    if head.is_empty() {
        return Ok(Box::new(file));
    }
    check_head(head, compression).map_err(|problem| Error::format(path, problem))?;
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, GzipMembers::new(file))),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(file).map_err(Error::io(path))?;
            decoder
                .window_log_max(WINDOW_LOG_MAX)
                .map_err(Error::io(path))?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    })
}

/// Rejects a file whose first bytes contradict its name, and names its actual format.
fn check_head(head: &[u8], compression: Compression) -> Result<(), String> {
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Err("a Git LFS pointer, not the file itself; run `git lfs pull`".into());
    }
    if compression == Compression::Zstd
        && let Some(window) = zstd_window(head)
        && window > 1 << WINDOW_LOG_MAX
    {
        return Err(format!(
            "its zstd frame needs a window of {window} bytes, but at most {} are accepted; recompress it with a \
             smaller window",
            1_u64 << WINDOW_LOG_MAX
        ));
    }
    if compression != Compression::None {
        return Ok(());
    }
    let packed = |what: &str, suffix: &str| {
        Err(format!(
            "{what} data with a name that does not end in `{suffix}`; rename it"
        ))
    };
    match head {
        [0x1f, 0x8b, ..] => packed("gzip", ".gz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => packed("zstd", ".zst"),
        [b'P', b'A', b'R', b'1', ..] => packed("Parquet", ".parquet"),
        _ => check_encoding(head),
    }
}

/// Rejects UTF-16 and UTF-32, which are not supported.
pub(in crate::data) fn check_encoding(head: &[u8]) -> Result<(), String> {
    let encoding = match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] if *a > 0 && *b > 0 => "UTF-16",
        _ => return Ok(()),
    };
    Err(format!(
        "{encoding} text, expected UTF-8; convert it, e.g. with `iconv -f {encoding} -t UTF-8`"
    ))
}

/// Returns the window size in bytes that the first frame declares; `None` if this is not a frame.
fn zstd_window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = head else {
        return None;
    };
    if descriptor & 0x20 == 0 {
        let window = *rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // Single segment: the window size is the content size.
    let dictionary_id = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary_id..dictionary_id + size)?;
    let value = field
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte));
    Some(value + if size == 2 { 256 } else { 0 })
}

/// Message of the decoder for a frame whose window is larger than accepted.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

/// True if the data are intact but exceed a limit.
pub(in crate::data) fn exceeds_limit(error: &io::Error) -> bool {
    error.to_string() == WINDOW_TOO_LARGE
}

/// Describes the damage of compressed data.
pub(in crate::data) fn damage(error: &io::Error) -> String {
    let message = error.to_string();
    match message.as_str() {
        TRAILING_BYTES => TRAILING_BYTES.into(),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => "the file is truncated".into(),
        "incomplete frame" => "the file is truncated".into(),
        "Unknown frame descriptor" => "invalid zstd frame header".into(),
        "invalid gzip header" => "invalid gzip member header".into(),
        "corrupt gzip stream does not have a matching checksum"
        | "Restored data doesn't match checksum" => {
            "checksum mismatch: the data before this position is damaged".into()
        }
        WINDOW_TOO_LARGE => format!(
            "a frame needs a window of more than {} bytes; recompress it with a smaller window",
            1_u64 << WINDOW_LOG_MAX
        ),
        _ => message,
    }
}

/// Reader of all members of a gzip file. Zeros after the last member are padding, as for `gzip` itself.
struct GzipMembers {
    state: State,
    /// Members whose decompression has started.
    members_started: u64,
}

const TRAILING_BYTES: &str = "trailing bytes after the last gzip member; remove them";

enum State {
    BetweenMembers(BufReader<File>),
    InMember(Box<flate2::bufread::GzDecoder<BufReader<File>>>),
    Done,
}

impl GzipMembers {
    fn new(file: BufReader<File>) -> Self {
        Self {
            state: State::BetweenMembers(file),
            members_started: 0,
        }
    }
}

impl Read for GzipMembers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Ok(0),
                State::BetweenMembers(mut file) => {
                    let head = file.fill_buf()?;
                    if head.is_empty() {
                        return Ok(0);
                    }
                    let zeros = head.iter().take_while(|&&byte| byte == 0).count();
                    self.state = if zeros > 0 {
                        file.consume(zeros);
                        State::BetweenMembers(file)
                    } else if self.members_started > 0
                        && !b"\x1f\x8b".starts_with(&head[..head.len().min(2)])
                    {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, TRAILING_BYTES));
                    } else {
                        self.members_started += 1;
                        State::InMember(Box::new(flate2::bufread::GzDecoder::new(file)))
                    };
                }
                State::InMember(mut member) => {
                    let read = member.read(buffer)?;
                    if read > 0 {
                        self.state = State::InMember(member);
                        return Ok(read);
                    }
                    self.state = State::BetweenMembers(member.into_inner());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_from_the_header() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let head = |rest: &[u8]| zstd_window(&[&magic[..], rest].concat());
        assert_eq!(head(&[0, 0]), Some(1024));
        assert_eq!(head(&[0, 21 << 3 | 1]), Some((1 << 31) + (1 << 28)));
        assert_eq!(head(&[0x20, 7]), Some(7));
        assert_eq!(head(&[0x60, 0, 1]), Some(512));
        assert_eq!(head(&[0xe1, 9, 0, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 32));
        assert_eq!(head(&[]), None);
        assert!(
            check_head(&[&magic[..], &[0, 31 << 3]].concat(), Compression::Zstd)
                .unwrap_err()
                .contains("2199023255552 bytes")
        );
    }

    #[test]
    fn encodings_are_named() {
        assert!(
            check_encoding(b"\xff\xfea\0")
                .unwrap_err()
                .starts_with("UTF-16")
        );
        assert!(
            check_encoding(b"\xff\xfe\0\0")
                .unwrap_err()
                .starts_with("UTF-32")
        );
        assert!(
            check_encoding(b"{\0\"\0")
                .unwrap_err()
                .starts_with("UTF-16")
        );
        for text in [&b""[..], b"a", b"ab\0\0", "ÿþ".as_bytes()] {
            assert!(check_encoding(text).is_ok());
        }
    }
}
