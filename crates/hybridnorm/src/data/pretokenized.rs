//! Pre-tokenized files written by other programs.
//!
//! | file | read as |
//! |---|---|
//! | `.npy` of one dimension, of integers | a stream |
//! | `.npy` of two dimensions | one instance per row, in the given order |
//! | `.bin` | a raw stream of u16, u32 or u64, detected from the bytes; if ambiguous, the type must be specified |
//! | `.u16`, `.u32` | a raw stream of that type |
//! | `.bin` with the header of llm.c (magic 20240520 or 20240801) | a stream, u16 or u32 |
//! | `.bin` next to a Megatron `.idx` | a raw stream of the type that the index records |
//! | any of these followed by `:u16`, `:u32`, `:u64`, `:u8`, `:i8`, `:i16`, `:i32` or `:i64` | a raw stream of that type |
//!
//! The last row also covers OLMo's data: raw u16 or u32 in files named `.npy`. All files are little-endian
//! and memory-mapped.

use std::io::Read;
use std::path::{Path, PathBuf};

use hybridnorm_mapped::MappedFile;

use crate::error::{Error, Result};
use crate::files;

use super::manifest::Dtype;
#[cfg(feature = "data")]
use super::numpy;
use super::raw;
use super::shard::TokenStream;

/// Pre-tokenized file.
#[derive(Debug)]
pub struct PretokenizedFile {
    path: PathBuf,
    tokens: TokenStream,
    /// Tokens per row of a two-dimensional array.
    width: Option<u64>,
    note: Option<String>,
}

/// Parses `path` or `path:u16` into path and type; `None` if it does not name a pre-tokenized file.
pub fn parse_name(input: &str) -> Option<(&Path, Option<Dtype>)> {
    if let Some((path, dtype)) = input.rsplit_once(':')
        && let Some(dtype) = Dtype::from_name(dtype)
    {
        return Some((Path::new(path), Some(dtype)));
    }
    let path = Path::new(input);
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "npy" | "bin" => Some((path, None)),
        "u16" => Some((path, Some(Dtype::U16))),
        "u32" => Some((path, Some(Dtype::U32))),
        _ => None,
    }
}

impl PretokenizedFile {
    /// Opens `input` according to the table in the [module documentation](self); ids must be below `vocab_size`, which
    /// is checked when they are read.
    ///
    /// # Errors
    /// If it cannot be mapped, is of another kind, or its length does not match its header or type.
    pub fn open(input: &str, vocab_size: usize) -> Result<Self> {
        let Some((path, dtype)) = parse_name(input) else {
            return Err(Error::invalid_value(
                "data path",
                format!(
                    "{input}: not a token file; expected `.npy`, `.bin`, `.u16`, `.u32`, or a type at the end as in \
                     `{input}:u16`"
                ),
            ));
        };
        let file = files::open(path)?;
        let mapped = hybridnorm_mapped::map(&file).map_err(Error::io(path))?;
        let name = path.to_string_lossy();
        let layout = match dtype {
            Some(dtype) => layout_of_specified_type(&mapped, &name, dtype, input),
            None => match megatron_type(path)? {
                Some(dtype) => megatron(&mapped, &name, dtype),
                None => layout(path, &mapped, vocab_size),
            },
        };
        let layout = layout.map_err(|problem| Error::format(path, problem))?;
        let mut tokens = TokenStream::new(vocab_size);
        tokens.push(path, mapped, layout.offset, layout.dtype);
        Ok(Self {
            path: path.to_path_buf(),
            tokens,
            width: layout.width,
            note: layout.note,
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns all tokens in order.
    pub fn tokens(&self) -> &TokenStream {
        &self.tokens
    }

    /// Returns the tokens per row of a two-dimensional array; `None` for a stream.
    pub fn row_width(&self) -> Option<u64> {
        self.width
    }

    /// Returns a note on how the data type was detected, or on evidence against the specified type, if any.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    pub(super) fn into_tokens(self) -> TokenStream {
        self.tokens
    }
}

struct Layout {
    offset: usize,
    dtype: Dtype,
    width: Option<u64>,
    note: Option<String>,
}

fn stream(file: &MappedFile, offset: usize, dtype: Dtype) -> Result<Layout, String> {
    let bytes = file.len() - offset;
    if bytes == 0 {
        return Err("contains no tokens".into());
    }
    if !bytes.is_multiple_of(dtype.size()) {
        return Err(format!(
            "{bytes} bytes of tokens, not a multiple of {} ({}): the file is truncated or has another type",
            dtype.size(),
            dtype.name()
        ));
    }
    Ok(Layout {
        offset,
        dtype,
        width: None,
        note: None,
    })
}

/// Returns the layout of a raw stream whose type was specified.
fn layout_of_specified_type(
    file: &MappedFile,
    path: &str,
    dtype: Dtype,
    input: &str,
) -> Result<Layout, String> {
    #[cfg(feature = "data")]
    if numpy::is_numpy(file) {
        let remedy = match input == path {
            true => "rename it to end in `.npy`".to_owned(),
            false => format!("write `{path}` instead of `{input}`"),
        };
        return Err(format!(
            "has a NumPy header, but a raw type was given; {remedy}"
        ));
    }
    if llm_c_type(file)?.is_some() {
        return Err(format!(
            "has the header of llm.c, but a raw type was given; write `{path}` instead of `{input}`"
        ));
    }
    let found = stream(file, 0, dtype)?;
    Ok(Layout {
        note: raw::type_warning(file, path, dtype),
        ..found
    })
}

/// Bytes of a Megatron index up to the token type, inclusive.
const MEGATRON_HEADER: usize = 18;

/// Returns the token type recorded in the Megatron index next to a `.bin`, if there is one.
fn megatron_type(path: &Path) -> Result<Option<Result<Dtype, u8>>> {
    let index = path.with_extension("idx");
    if path.extension().is_none_or(|name| name != "bin") || !files::exists(&index)? {
        return Ok(None);
    }
    let mut header = [0; MEGATRON_HEADER];
    let mut file = files::open(&index)?;
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"MMIDIDX\0\0") {
        return Ok(None);
    }
    Ok(Some(match header[MEGATRON_HEADER - 1] {
        1 => Ok(Dtype::U8),
        2 => Ok(Dtype::I8),
        3 => Ok(Dtype::I16),
        4 => Ok(Dtype::I32),
        5 => Ok(Dtype::I64),
        8 => Ok(Dtype::U16),
        code => Err(code),
    }))
}

fn megatron(file: &MappedFile, path: &str, dtype: Result<Dtype, u8>) -> Result<Layout, String> {
    let dtype = dtype.map_err(|code| {
        format!(
            "the Megatron index next to it records type {code}, expected integers; specify the type of the tokens: \
             `{path}:u16` or `{path}:u32`"
        )
    })?;
    let found = stream(file, 0, dtype)?;
    Ok(Layout {
        note: Some(format!(
            "{path}: read as {}, as the Megatron index next to it records",
            dtype.name()
        )),
        ..found
    })
}

fn layout(path: &Path, file: &MappedFile, vocab_size: usize) -> Result<Layout, String> {
    #[cfg(feature = "data")]
    if numpy::is_numpy(file) {
        let array = numpy::parse(file)?;
        if array.shape.contains(&0) {
            return Err("contains no tokens".into());
        }
        return Ok(Layout {
            offset: array.offset,
            dtype: array.dtype,
            width: array.shape.get(1).copied(),
            note: None,
        });
    }
    if path
        .extension()
        .is_some_and(|name| name.eq_ignore_ascii_case("npy"))
    {
        #[cfg(not(feature = "data"))]
        return Err("NumPy files need the feature `data` of the crate".into());
        #[cfg(feature = "data")]
        return Err(format!(
            "no NumPy header; if it contains raw tokens, as in OLMo, write `{0}:u16` or `{0}:u32`",
            path.display()
        ));
    }
    if let Some(dtype) = llm_c_type(file)? {
        return llm_c(file, dtype);
    }
    if file.is_empty() {
        return Err("contains no tokens".into());
    }
    let (dtype, note) = raw::detect(file, &path.to_string_lossy(), vocab_size)?;
    let found = stream(file, 0, dtype)?;
    Ok(Layout { note, ..found })
}

/// Size of the header of llm.c token files in bytes: 256 four-byte integers.
const LLM_C_HEADER: usize = 1024;

fn llm_c_type(file: &[u8]) -> Result<Option<Dtype>, String> {
    let word = |i: usize| Dtype::U32.decode_token(file.get(4 * i..4 * i + 4)?);
    match (word(0), word(1)) {
        (Some(20_240_520), Some(1)) => Ok(Some(Dtype::U16)),
        (Some(20_240_801), Some(7)) => Ok(Some(Dtype::U32)),
        (Some(magic @ (20_240_520 | 20_240_801)), Some(version)) if file.len() >= LLM_C_HEADER => {
            Err(format!(
                "llm.c header with magic {magic} and version {version}, expected magic 20240520 with version 1 or \
                 magic 20240801 with version 7"
            ))
        }
        _ => Ok(None),
    }
}

fn llm_c(file: &MappedFile, dtype: Dtype) -> Result<Layout, String> {
    if file.len() < LLM_C_HEADER {
        return Err("truncated within its header".into());
    }
    let tokens = u64::from(Dtype::U32.decode_token(&file[8..12]).unwrap_or_default());
    let found = (file.len() - LLM_C_HEADER) as u64;
    if tokens * dtype.size() as u64 != found {
        return Err(format!(
            "the header declares {tokens} tokens of {}, but {found} bytes of data follow",
            dtype.name()
        ));
    }
    stream(file, LLM_C_HEADER, dtype)
}
