//! Reader of the tensors of a PyTorch file, `model.pt`.
//!
//! Memory: the archive's directory; the objects of the pickle, up to 300 times its size; and the tensors, at most twice
//! the size of the file, converted to f32. The size of the pickle is at most the largest of [`PICKLE_MIN_LIMIT`],
//! 1/[`PICKLE_FILE_DIVISOR`] of the file, and [`PICKLE_PER_TENSOR`] per tensor (up to [`PICKLE_PER_TENSOR_LIMIT`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use pytorch_reader::{DType, PytorchReader};
use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::files;
use crate::tensors;
use crate::tensors::HostTensor;
use crate::untrusted;

/// Maximum size of a pickle that is read whatever the size of the file: names and shapes of about 600 tensors.
const PICKLE_MIN_LIMIT: u64 = 128 << 10;
/// A larger one is read if it is at most the file's size over this divisor, or has at most [`PICKLE_PER_TENSOR`] bytes
/// per member of the archive, as files of many small tensors do.
const PICKLE_FILE_DIVISOR: u64 = 64;
const PICKLE_PER_TENSOR: u64 = 256;
const PICKLE_PER_TENSOR_LIMIT: u64 = 512 << 10;

/// Reads the tensors by name. The pickle is interpreted only as needed for tensors, and no code is
/// executed.
///
/// # Errors
/// If it is not an archive of `torch.save` with uncompressed members, a tensor is not of F32, F16 or BF16, or
/// tensors are larger than the file.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let format_error = |problem: String| Error::format(path, problem);
    let inconsistent = || format_error("not a PyTorch checkpoint: inconsistent archive".into());
    let archive = files::open(path)?;
    let file = archive.metadata().map_err(Error::io(path))?.len();
    untrusted::catch_panic(|| check(archive))
        .ok_or_else(inconsistent)?
        .map_err(format_error)?;
    let reader = untrusted::catch_panic(|| PytorchReader::new(path))
        .ok_or_else(inconsistent)?
        .map_err(|error| format_error(format!("not a PyTorch checkpoint: {error}")))?;
    check_sizes(&reader, file).map_err(format_error)?;
    let mut all = BTreeMap::new();
    for (name, tensor) in reader.tensors() {
        let shape = tensor.shape().to_vec();
        let bytes = untrusted::catch_panic(|| tensor.read())
            .ok_or_else(|| format_error(format!("tensor {name}: inconsistent storage")))?
            .map_err(|error| format_error(format!("tensor {name}: {error}")))?;
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => {
                return Err(format_error(format!(
                    "tensor {name} is {other:?}, expected F32, F16 or BF16"
                )));
            }
        };
        let data = tensors::to_f32(dtype, &bytes).expect("other dtypes are rejected above");
        all.insert(name.clone(), HostTensor { shape, data });
    }
    Ok(all)
}

/// Rejects tensors that are larger than the file: a view can repeat elements (a stride of 0).
fn check_sizes(reader: &PytorchReader, file: u64) -> Result<(), String> {
    let sizes = reader.tensors().iter().map(|(name, tensor)| {
        let elements = tensor.shape().iter();
        let bytes = elements.fold(tensor.dtype().size() as u64, |bytes, n| {
            bytes.saturating_mul(*n as u64)
        });
        (bytes, name.as_str())
    });
    let (mut total, mut largest) = (0u64, (0, ""));
    for (bytes, name) in sizes {
        total = total.saturating_add(bytes);
        largest = largest.max((bytes, name));
    }
    let (bytes, name) = largest;
    // Tied weights share their storage.
    match bytes > file || total > file.saturating_mul(2) {
        false => Ok(()),
        true => Err(format!(
            "tensor {name} would take {bytes} of {total} bytes in memory, but the file has {file}: its strides repeat \
             elements; save contiguous tensors"
        )),
    }
}

/// Rejects files that could expand to more than their size, before anything else is read.
fn check(mut file: File) -> Result<(), String> {
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_err() || &magic != b"PK\x03\x04" {
        return Err(
            "not a PyTorch checkpoint, or saved before PyTorch 1.6: expected a ZIP archive written \
             by torch.save; load it in PyTorch and save it again"
                .into(),
        );
    }
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let invalid_archive = |error| format!("not a PyTorch checkpoint, or truncated: {error}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(invalid_archive)?;
    let members = archive.len() as u64;
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(invalid_archive)?;
        let name = member.name().map_err(invalid_archive)?;
        if member.compression() != CompressionMethod::Stored {
            return Err(format!(
                "member {name} is compressed, which torch.save never does; load it in PyTorch and \
                 save it again"
            ));
        }
        let limit = PICKLE_MIN_LIMIT
            .max(length / PICKLE_FILE_DIVISOR)
            .max(PICKLE_PER_TENSOR_LIMIT.min(PICKLE_PER_TENSOR * members));
        if name.ends_with("data.pkl") && member.size() > limit {
            return Err(format!(
                "{name} has {} bytes, expected at most {limit} for names and shapes of tensors; save \
                 the model's state_dict alone",
                member.size()
            ));
        }
    }
    Ok(())
}
