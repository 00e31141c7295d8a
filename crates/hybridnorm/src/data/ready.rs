//! Tokens that another program prepared.
//!
//! | file | read as |
//! |---|---|
//! | `.npy` of one dimension, u8, u16, u32, i32 or i64 | a stream |
//! | `.npy` of two dimensions | one ready instance per row, in the given order |
//! | `.bin` | a raw stream, u16 up to 65,536 tokens of vocabulary and u32 above (nanoGPT) |
//! | `.u16`, `.u32` | a raw stream of that type |
//! | `.bin` with the header of llm.c (magic 20240520 or 20240801) | a stream, u16 or u32 |
//! | any of these followed by `:u16`, `:u32`, `:u8`, `:i32` or `:i64` | a raw stream of that type |
//!
//! The last line is for OLMo's data, which is raw u16 or u32 under names that end in `.npy`.
//! Everything is little-endian, and mapped rather than loaded.

use std::path::{Path, PathBuf};

use hybridnorm_mapped::{Mapped, map_file};

use crate::error::{Error, Result};

use super::manifest::Dtype;
use super::numpy;
use super::shard::TokenStream;

/// A token file made elsewhere.
#[derive(Debug)]
pub struct ReadyTokens {
    path: PathBuf,
    tokens: TokenStream,
    /// Tokens per row, where rows are instances.
    width: Option<u64>,
}

/// The path and the type in `path` or `path:u16`, where that spells a ready file.
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

impl ReadyTokens {
    /// Opens `input` as the table above says; ids must be below `vocab_size`, which is checked
    /// when they are read.
    ///
    /// # Errors
    /// If it cannot be mapped, is of another kind, or its length does not fit its header or type.
    pub fn open(input: &str, vocab_size: usize) -> Result<Self> {
        let Some((path, dtype)) = parse_name(input) else {
            return Err(Error::config(format!(
                "{input}: not a token file; expected `.npy`, `.bin`, `.u16`, `.u32`, or a type at the end as in `{input}:u16`"
            )));
        };
        let mapped = map_file(path).map_err(Error::io(path))?;
        let layout = match dtype {
            Some(dtype) => raw(&mapped, 0, dtype),
            None => layout(path, &mapped, vocab_size),
        };
        let layout = layout.map_err(|problem| Error::format(path, problem))?;
        let mut tokens = TokenStream::new(vocab_size);
        tokens.push(path, mapped, layout.offset, layout.dtype);
        Ok(Self {
            path: path.to_path_buf(),
            tokens,
            width: layout.width,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All its tokens, in order.
    pub fn tokens(&self) -> &TokenStream {
        &self.tokens
    }

    /// Tokens per row where every row is an instance; `None` for a stream.
    pub fn row_width(&self) -> Option<u64> {
        self.width
    }

    pub(super) fn into_tokens(self) -> TokenStream {
        self.tokens
    }
}

struct Layout {
    offset: usize,
    dtype: Dtype,
    width: Option<u64>,
}

fn raw(file: &Mapped, offset: usize, dtype: Dtype) -> Result<Layout, String> {
    let bytes = file.len() - offset;
    if bytes == 0 {
        return Err("no tokens in it".into());
    }
    if !bytes.is_multiple_of(dtype.size()) {
        return Err(format!(
            "{bytes} bytes of tokens, which is no multiple of {} for {}",
            dtype.size(),
            dtype.name()
        ));
    }
    Ok(Layout {
        offset,
        dtype,
        width: None,
    })
}

fn layout(path: &Path, file: &Mapped, vocab_size: usize) -> Result<Layout, String> {
    if numpy::is_numpy(file) {
        let array = numpy::parse(file)?;
        if array.shape.contains(&0) {
            return Err("no tokens in it".into());
        }
        return Ok(Layout {
            offset: array.offset,
            dtype: array.dtype,
            width: array.shape.get(1).copied(),
        });
    }
    if path
        .extension()
        .is_some_and(|name| name.eq_ignore_ascii_case("npy"))
    {
        return Err(format!(
            "no NumPy header; if it is raw tokens as OLMo writes them, write `{0}:u16` or `{0}:u32`",
            path.display()
        ));
    }
    match llm_c_type(file) {
        Some(dtype) => llm_c(file, dtype),
        None => raw(file, 0, Dtype::for_vocab(vocab_size)),
    }
}

/// Bytes of the header of llm.c's token files: 256 numbers of four bytes.
const LLM_C_HEADER: usize = 1024;

fn llm_c_type(file: &[u8]) -> Option<Dtype> {
    let word = |i: usize| Dtype::U32.read(file.get(4 * i..4 * i + 4)?);
    match (word(0)?, word(1)?) {
        (20_240_520, 1) => Some(Dtype::U16),
        (20_240_801, 7) => Some(Dtype::U32),
        _ => None,
    }
}

fn llm_c(file: &Mapped, dtype: Dtype) -> Result<Layout, String> {
    if file.len() < LLM_C_HEADER {
        return Err("cut short within its header".into());
    }
    let tokens = u64::from(Dtype::U32.read(&file[8..12]).unwrap_or_default());
    let found = (file.len() - LLM_C_HEADER) as u64;
    if tokens * dtype.size() as u64 != found {
        return Err(format!(
            "the header says {tokens} tokens of {}, but {found} bytes follow",
            dtype.name()
        ));
    }
    raw(file, LLM_C_HEADER, dtype)
}
