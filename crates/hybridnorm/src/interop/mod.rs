//! Import of external checkpoints.

mod experts;
#[cfg(feature = "hub")]
pub mod hub;
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

/// Checks that the folder to import exists.
///
/// # Errors
/// If it does not exist, or is not a folder.
pub fn require_folder(folder: &Path) -> Result<()> {
    let expected = "a folder with config.json or config.yaml and the weights next to it";
    files::require_folder(folder, expected)
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

/// Reads an external checkpoint folder: in Hugging Face format if it contains a `config.json`, in the format of the
/// official HybridNorm code if it contains a `config.yaml`.
///
/// # Errors
/// If the folder is in neither format; otherwise see [`huggingface::import`] and [`official::import`].
pub fn import(folder: &Path, device: Device) -> Result<Imported> {
    require_folder(folder)?;
    let mut found = None;
    for format in &FORMATS {
        if found.is_none() && files::exists(folder.join(format.marker))? {
            found = Some(format);
        }
    }
    let Some(format) = found else {
        let markers = FORMATS.each_ref().map(|format| format.marker).join(" nor ");
        return Err(Error::format(folder, format!("contains neither {markers}")));
    };
    let imported = (format.read)(folder, device)?;
    match imported.model.first_non_finite() {
        Some(name) => Err(Error::format(
            folder,
            format!("parameter {name} contains NaN or infinite values"),
        )),
        None => Ok(imported),
    }
}
