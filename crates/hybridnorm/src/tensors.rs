//! Named tensors in safetensors files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View};

use crate::error::{Error, Result};
use crate::model::params::{self, Values};
use crate::ops;

/// A tensor to be written: brought to the host only when its turn comes.
pub struct Handle {
    shape: Vec<usize>,
    flat: Tensor<1>,
}

impl Handle {
    /// A handle on a flattened tensor that is written with `shape`.
    pub fn new(flat: Tensor<1>, shape: Vec<usize>) -> Self {
        Self { shape, flat }
    }
}

impl View for Handle {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.flat.clone().into_data_as::<f32>();
        let values = values.as_slice::<f32>().expect("converted to f32");
        Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// Handles on every parameter of a model.
pub fn parameters(model: &impl Module) -> BTreeMap<String, Handle> {
    let mut all = BTreeMap::new();
    params::for_each(model, |name, param| {
        let flat = param.flat().without_autodiff();
        all.insert(name.to_owned(), Handle::new(flat, param.shape()));
    });
    all
}

/// The name of a parameter that is not finite, if there is one.
pub fn broken(model: &impl Module) -> Option<String> {
    let mut found = None;
    params::for_each(model, |name, param| {
        if found.is_none() && !is_finite(&param.flat().without_autodiff()) {
            found = Some(name.to_owned());
        }
    });
    found
}

/// Whether all elements are finite numbers.
pub fn is_finite(flat: &Tensor<1>) -> bool {
    ops::sum_squares(flat.clone()).is_finite()
}

/// Writes a safetensors file. It is not atomic: the caller's folder is.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, tensors: BTreeMap<String, Handle>) -> Result<()> {
    safetensors::serialize_to_file(tensors, None, path).map_err(|error| match error {
        SafeTensorError::IoError(source) => Error::io(path)(source),
        other => Error::format(path, other.to_string()),
    })
}

/// Reads a safetensors file whose tensors are f32, f16 or bf16, as f32.
///
/// # Errors
/// If it cannot be read, its header contradicts its length, or a tensor has another type.
pub fn read(path: &Path) -> Result<BTreeMap<String, Values>> {
    // Reading a pipe would never end.
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::format(path, "is not a file"));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::format(path, format!("not a safetensors file: {error}")))?;
    let mut all = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = to_f32(view.dtype(), view.data()).ok_or_else(|| {
            Error::format(
                path,
                format!(
                    "tensor {name} is {:?}, expected F32, F16 or BF16",
                    view.dtype()
                ),
            )
        })?;
        let shape = view.shape().to_vec();
        all.insert(name, Values { shape, data });
    }
    Ok(all)
}

/// Little-endian bytes as f32, where the type is one of the three that weights come in.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || {
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    match dtype {
        Dtype::F32 => Some(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        Dtype::BF16 => Some(
            halves()
                .map(|b| burn::tensor::bf16::from_bits(b).to_f32())
                .collect(),
        ),
        Dtype::F16 => Some(
            halves()
                .map(|b| burn::tensor::f16::from_bits(b).to_f32())
                .collect(),
        ),
        _ => None,
    }
}
