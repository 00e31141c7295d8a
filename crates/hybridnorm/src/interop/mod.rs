//! Import of external checkpoints, and [`export`](mod@export) of models to other programs.

mod experts;
pub mod export;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod huggingface;
mod keys;
pub mod official;
mod python_dict;
mod pytorch;
mod source;
mod tokenizer_files;

use std::path::{Path, PathBuf};

use crate::Device;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::omissions::Omissions;
use crate::train::checkpoint;

pub use tokenizer_files::{ImportedTokenizer, tokenizer, unread_files};

/// A model, with counts of the tensors that it was read from and of omitted ones.
///
/// ```
/// use std::path::Path;
///
/// use hybridnorm::{Device, interop};
///
/// let imported = interop::import(Path::new("tests/fixtures/hf/olmoe"), Device::Cpu)?;
/// assert_eq!(imported.tensors.read, imported.tensors.all);
/// assert!(imported.files.contains(&"config.json".to_owned()));
/// assert!(imported.model.config().moe.is_some());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The model.
    pub model: Model,
    /// Numbers of tensors in the checkpoint and of those that were read.
    pub tensors: TensorCounts,
    /// Tensors that were not read, by reason.
    pub omissions: Omissions,
    /// Files of the folder that were read.
    pub files: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Counts of a checkpoint's tensors. Those that were not read are in [`Imported::omissions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TensorCounts {
    /// Number of all tensors.
    pub all: u64,
    /// Number of tensors that the model was read from.
    pub read: u64,
}

/// Checks that the folder or GGUF file to import exists.
///
/// # Errors
/// If it does not exist, or is a file of another kind.
pub fn require_source(path: &Path) -> Result<()> {
    if gguf::has_extension(path) && files::exists(path)? {
        return Ok(());
    }
    if checkpoint::is_own(path) {
        return Err(Error::format(
            path,
            "a checkpoint or run directory of hybridnorm already; use it without importing it",
        ));
    }
    let expected =
        "a folder with config.json or config.yaml and the weights next to it, or a GGUF file";
    files::require_folder(path, expected)
}

/// A format of checkpoint folders.
struct Format {
    /// File whose presence identifies the format.
    marker: &'static str,
    read: fn(&Path, Device) -> Result<Imported>,
}

/// Known formats; the first whose marker exists is read.
const FORMATS: [Format; 2] = [
    Format {
        marker: huggingface::CONFIG,
        read: huggingface::read,
    },
    Format {
        marker: official::CONFIG,
        read: official::read,
    },
];

/// Returns the format of a folder, if a file identifies it.
fn format(folder: &Path) -> Result<Option<&'static Format>> {
    for format in &FORMATS {
        if files::exists(folder.join(format.marker))? {
            return Ok(Some(format));
        }
    }
    Ok(None)
}

/// Returns the GGUF file at a path: the file itself, or the only one of a folder in no other format.
fn gguf_file(path: &Path) -> Result<Option<PathBuf>> {
    match files::is_dir(path)? && format(path)?.is_some() {
        true => Ok(None),
        false => gguf::find(path),
    }
}

/// Reads an external checkpoint: a folder in Hugging Face format if it contains a `config.json`, in the format of the
/// official HybridNorm code if it contains a `config.yaml`, else a GGUF file, given by its path or that of its folder.
///
/// # Errors
/// If the path has neither format; otherwise see [`huggingface::import`], [`official::import`] and [`gguf::read`].
pub fn import(path: &Path, device: Device) -> Result<Imported> {
    require_source(path)?;
    let imported = if let Some(file) = gguf_file(path)? {
        gguf::read(&file, device)?
    } else if let Some(format) = format(path)? {
        (format.read)(path, device)?
    } else {
        let markers = FORMATS.each_ref().map(|format| format.marker).join(" nor ");
        let problem = match export::is_plain(path) {
            true => "written by `export --format safetensors`, which `import` does not read; use the checkpoint that it \
                     was exported from"
                .to_owned(),
            false => format!("contains neither {markers} nor a GGUF file"),
        };
        return Err(Error::format(path, problem));
    };
    match imported.model.first_non_finite() {
        Some(name) => Err(Error::format(
            path,
            format!("parameter {name} contains NaN or infinite values"),
        )),
        None => Ok(imported),
    }
}
