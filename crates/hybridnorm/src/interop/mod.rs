//! Other people's checkpoints.

mod beside;
mod experts;
pub mod huggingface;
mod keys;
pub mod official;
mod python_dict;
mod pytorch;
mod source;

use std::path::Path;

use crate::Device;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::omissions::LeftOut;

pub use beside::{Beside, not_read, tokenizer};

/// A model and an account of the tensors it was made of.
#[derive(Debug)]
pub struct Imported {
    /// The model.
    pub model: Model,
    /// How many tensors the checkpoint has, and how many of them were read.
    pub tensors: Tensors,
    /// The others, by reason.
    pub left_out: LeftOut,
    /// Files of the folder that were read.
    pub files: Vec<String>,
    /// What is worth a line.
    pub notes: Vec<String>,
}

/// Tensors of a checkpoint. Those that were not read are in what was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tensors {
    /// How many there are.
    pub all: u64,
    /// How many the model was made of.
    pub read: u64,
}

/// Checks that there is a folder to import.
///
/// # Errors
/// If there is none, or something else.
pub fn require_folder(folder: &Path) -> Result<()> {
    let expected = "a folder with config.json or config.yaml and the weights beside it";
    files::require_folder(folder, expected)
}

/// Reads a checkpoint folder of somebody else: of Hugging Face's format where it holds a `config.json`,
/// else of the official HybridNorm code.
///
/// # Errors
/// See [`huggingface::import`] and [`official::import`].
pub fn import(folder: &Path, device: Device) -> Result<Imported> {
    require_folder(folder)?;
    let imported = match huggingface::is_folder(folder)? {
        true => huggingface::read(folder, device)?,
        false => official::read(folder, device)?,
    };
    match imported.model.broken() {
        Some(name) => Err(Error::format(
            folder,
            format!("{name}, as it is called here, is not finite"),
        )),
        None => Ok(imported),
    }
}
