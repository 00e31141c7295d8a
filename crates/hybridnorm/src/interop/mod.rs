//! Import of external checkpoints.

mod experts;
pub mod huggingface;
mod keys;
pub mod official;
mod python_dict;
mod pytorch;
mod source;
mod tokenizer_files;

use std::path::Path;

use crate::Device;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::omissions::Omissions;

pub use tokenizer_files::{ImportedTokenizer, tokenizer, unread_files};

/// A model and an account of the tensors it was read from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The model.
    pub model: Model,
    /// Numbers of tensors in the checkpoint and of those that were read.
    pub tensors: TensorCounts,
    /// Tensors that were not read, by reason.
    pub left_out: Omissions,
    /// Files of the folder that were read.
    pub files: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Counts of a checkpoint's tensors. Those that were not read are in [`Imported::left_out`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TensorCounts {
    /// Number of all tensors.
    pub all: u64,
    /// Number of tensors that the model was read from.
    pub read: u64,
}

/// Checks that the folder to import exists.
///
/// # Errors
/// If it does not exist, or is not a folder.
pub fn require_folder(folder: &Path) -> Result<()> {
    let expected = "a folder with config.json or config.yaml and the weights beside it";
    files::require_folder(folder, expected)
}

/// Reads an external checkpoint folder: in Hugging Face format if it contains a `config.json`, else of the
/// official HybridNorm code.
///
/// # Errors
/// See [`huggingface::import`] and [`official::import`].
pub fn import(folder: &Path, device: Device) -> Result<Imported> {
    require_folder(folder)?;
    let imported = match huggingface::is_folder(folder)? {
        true => huggingface::read(folder, device)?,
        false => official::read(folder, device)?,
    };
    match imported.model.first_non_finite() {
        Some(name) => Err(Error::format(
            folder,
            format!("parameter {name} contains NaN or infinite values"),
        )),
        None => Ok(imported),
    }
}
