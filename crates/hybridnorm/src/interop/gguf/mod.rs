//! GGUF files of llama.cpp: metadata, tensors and tokenizer in one file.
//!
//! A file is read as the checkpoint in Hugging Face's format that it was converted from: `families` translates keys and
//! tensors, and the importer of that format does the rest.

mod dequantize;
mod families;
mod gemma;
mod keys;
mod metadata;
mod pieces;
mod pre_tokenizers;
mod reader;
mod rope;
mod tensors;
mod tokenizer;
mod write;

use std::path::{Path, PathBuf};

use super::source::TensorSource;
use super::tokenizer_files::ImportedTokenizer;
use super::{Imported, huggingface};
use crate::Device;
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::files;
use reader::GgufFile;
use tensors::Tensors;

pub(super) use write::problem_of;
pub use write::{MatrixType, check, write};

/// File name extension.
const EXTENSION: &str = "gguf";

/// Returns the `general.architecture` of every family that can be imported.
///
/// ```
/// assert!(hybridnorm::interop::gguf::architectures().contains(&"llama"));
/// ```
pub fn architectures() -> Vec<&'static str> {
    families::architectures()
}

/// True for the name of a GGUF file.
pub(super) fn has_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default();
    extension.eq_ignore_ascii_case(EXTENSION)
}

/// Returns the GGUF file at a path: the file itself, or the only one of a folder.
///
/// # Errors
/// If the folder cannot be listed, or has several such files.
pub(super) fn find(path: &Path) -> Result<Option<PathBuf>> {
    if !files::is_dir(path)? {
        return Ok(Some(path.to_path_buf()));
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if has_extension(&file) {
            found.push(file);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        count => Err(Error::format(
            path,
            format!(
                "{count} files with the extension .{EXTENSION}, expected one; import one of them by its path"
            ),
        )),
    }
}

/// Reads the model of a GGUF file.
///
/// # Errors
/// If it cannot be read, is malformed, or has an unsupported key, tensor, or type of tensors.
pub fn read(path: &Path, device: Device) -> Result<Imported> {
    let format_error = |problem: String| Error::format(path, problem);
    let file = GgufFile::open(path)?;
    let family = families::family(&file).map_err(format_error)?;
    let config = family.config(&file).map_err(format_error)?;
    let names = Tensors::new(file, family).map_err(format_error)?;
    let source = TensorSource::new(vec![names]).map_err(format_error)?;
    let config = config.to_string();
    huggingface::read_translated(path, config.as_bytes(), source, device)
}

/// Reads the tokenizer of a GGUF file, if it has one.
///
/// # Errors
/// If it cannot be read or converted.
pub(super) fn read_tokenizer(path: &Path) -> Result<Option<ImportedTokenizer>> {
    let format_error = |problem: String| Error::format(path, problem);
    let file = GgufFile::open(path)?;
    let Some(converted) = tokenizer::convert(file.metadata()).map_err(format_error)? else {
        return Ok(None);
    };
    let tokenizer = Tokenizer::from_json(converted.json, converted.eos.as_deref())
        .map_err(|error| format_error(error.to_string()))?;
    let name = path.file_name().unwrap_or_default();
    Ok(Some(ImportedTokenizer {
        tokenizer: tokenizer
            .with_name(&path.display().to_string())
            .with_bos_id(converted.bos)
            .with_end_ids(&converted.ends)
            .with_chat_template(converted.chat_template),
        files: vec![name.to_string_lossy().into_owned()],
        notes: converted.notes,
    }))
}
