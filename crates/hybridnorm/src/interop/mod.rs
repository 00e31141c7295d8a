//! Other people's checkpoints.

mod experts;
pub mod huggingface;
pub mod official;
mod python_dict;

use std::path::Path;

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::model::Decoder;
use crate::tensors;

/// Reads a checkpoint folder of somebody else: of Hugging Face's format where it holds a `config.json`,
/// else of the official HybridNorm code.
///
/// # Errors
/// See [`huggingface::import`] and [`official::import`].
pub fn import(folder: &Path, device: &Device) -> Result<Decoder> {
    let model = match huggingface::is_folder(folder) {
        true => huggingface::import(folder, device)?,
        false => official::import(folder, device)?,
    };
    match tensors::broken(&model) {
        Some(name) => Err(Error::format(
            folder,
            format!("{name}, as it is called here, is not finite"),
        )),
        None => Ok(model),
    }
}
