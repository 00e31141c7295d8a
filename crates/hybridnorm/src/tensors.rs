//! Named tensors in safetensors files.

mod file;
mod header;
mod stream;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::error::{Error, Result};
use crate::exec::{Executor, TensorRef};
use crate::graph::Buffer;
use crate::model::{Model, PARAMETERS};

pub use file::TensorFile;
pub use stream::{FloatType, StreamWriter};

/// A tensor on the host.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::Model;
/// # use hybridnorm::model::ModelConfig;
///
/// # let config = ModelConfig::default()
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_n_kv_heads(2)
/// #     .with_d_ff(32)
/// #     .with_vocab_size(8)
/// #     .with_max_seq_len(8)
/// #     .with_placement(hybridnorm::placement::named("hybridnorm")?);
/// let mut model = Model::new(&config, 0, Device::Cpu)?;
/// let mut values = model.values();
/// let embedding = values.get_mut("embedding").unwrap();
/// assert_eq!(embedding.shape, [8, 16]);
/// // The row of token 3.
/// embedding.data[3 * 16..4 * 16].fill(0.0);
/// model.load(values)?;
/// assert_eq!(model.values()["embedding"].data[48], 0.0);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

/// A tensor on an executor: the range of its elements in a buffer, and its shape in files.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorHandle {
    buffer: Buffer,
    range: Range<usize>,
    shape: Vec<usize>,
}

impl TensorHandle {
    /// Creates a handle to elements of a buffer that are written to files with `shape`.
    pub fn new(buffer: Buffer, range: Range<usize>, shape: Vec<usize>) -> Self {
        Self {
            buffer,
            range,
            shape,
        }
    }

    /// Returns the sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.range.len()
    }

    /// Copies the elements to the host in chunks: a full copy of an embedding would take memory that the memory
    /// estimate does not include.
    fn chunks(&self, executor: &dyn Executor) -> impl Iterator<Item = Vec<f32>> {
        self.range.clone().step_by(CHUNK).map(|start| {
            let end = self.range.end.min(start + CHUNK);
            executor.read(self.buffer, start..end).into_f32()
        })
    }

    /// True if no element is infinite or NaN.
    pub fn is_finite(&self, executor: &dyn Executor) -> bool {
        self.chunks(executor)
            .all(|chunk| chunk.iter().all(|x| x.is_finite()))
    }

    /// Overwrites the elements.
    ///
    /// # Panics
    /// If the number of values differs from the number of elements.
    pub fn write(&self, executor: &mut dyn Executor, values: &[f32]) {
        assert_eq!(values.len(), self.elements(), "elements of a tensor");
        executor.write(self.buffer, self.range.start, TensorRef::F32(values));
    }

    /// Overwrites the elements with those of a tensor of `file`.
    ///
    /// # Errors
    /// If the tensor has a different number of elements or cannot be read; some elements may then have been
    /// overwritten.
    pub fn load(&self, executor: &mut dyn Executor, file: &TensorFile, name: &str) -> Result<()> {
        let elements = file.elements(name)?;
        if elements != self.elements() {
            return Err(Error::format(
                file.path(),
                format!(
                    "tensor {name} has {elements} elements, expected {}",
                    self.elements()
                ),
            ));
        }
        let mut at = self.range.start;
        file.read_chunks(name, |chunk| {
            executor.write(self.buffer, at, TensorRef::F32(chunk));
            at += chunk.len();
        })
    }

    /// Overwrites the elements with zeros.
    pub fn clear(&self, executor: &mut dyn Executor) {
        let zeros = vec![0.0; CHUNK.min(self.elements())];
        for start in self.range.clone().step_by(CHUNK) {
            let chunk = &zeros[..CHUNK.min(self.range.end - start)];
            executor.write(self.buffer, start, TensorRef::F32(chunk));
        }
    }

    fn bytes(&self) -> u64 {
        4 * self.elements() as u64
    }
}

/// Returns handles to all parameters of a model.
pub fn parameters(model: &Model) -> BTreeMap<String, TensorHandle> {
    let handle = |spec: &crate::model::ParamSpec| {
        let handle = TensorHandle::new(PARAMETERS, spec.range(), spec.shape.clone());
        (spec.name.clone(), handle)
    };
    model.parameters().map(handle).collect()
}

/// Writes a safetensors file, one tensor at a time. Not atomic: the caller publishes the folder atomically.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    path: &Path,
    tensors: &BTreeMap<String, TensorHandle>,
    executor: &dyn Executor,
) -> Result<()> {
    let file = File::create(path).map_err(Error::io(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write_to(&mut writer, tensors, executor)
        .and_then(|()| writer.flush())
        .map_err(Error::io(path))
}

fn write_to(
    to: &mut impl Write,
    tensors: &BTreeMap<String, TensorHandle>,
    executor: &dyn Executor,
) -> io::Result<()> {
    let mut header = header::Header::default();
    for (name, tensor) in tensors {
        header.push(name, "F32", &tensor.shape, tensor.bytes());
    }
    to.write_all(&header.into_bytes())?;
    for tensor in tensors.values() {
        let mut buffer = Vec::with_capacity(4 * CHUNK);
        for chunk in tensor.chunks(executor) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|x| x.to_le_bytes()));
            to.write_all(&buffer)?;
        }
    }
    Ok(())
}

/// Elements per copy to the host.
const CHUNK: usize = 1 << 16;

/// Reads a safetensors file whose tensors are f32, f16 or bf16, as f32.
///
/// # Errors
/// If it cannot be read, its header does not match its size, or a tensor has a different dtype.
pub fn read(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let file = TensorFile::open(path)?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let mut all = BTreeMap::new();
    for name in names {
        let values = file.read(&name)?;
        all.insert(name, values);
    }
    Ok(all)
}

/// Converts little-endian bytes to f32; `None` unless the type is f32, f16 or bf16.
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
                .map(|b| half::bf16::from_bits(b).to_f32())
                .collect(),
        ),
        Dtype::F16 => Some(halves().map(|b| half::f16::from_bits(b).to_f32()).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::exec::Cpu;
    use crate::graph::DType;
    use safetensors::tensor::{TensorView, serialize};

    use super::*;

    #[test]
    fn written_files_equal_those_of_the_safetensors_crate() {
        let values: Vec<f32> = (0..CHUNK + 30).map(|i| i as f32 / 7.0).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let names = ["a.\"quoted\"", "b", "b.c", "empty"];
        let shapes = [vec![2, 3], vec![values.len()], vec![5, 1], vec![0, 4]];
        let mut executor = Cpu::new();
        let buffer = executor.allocate(DType::F32, values.len()).unwrap();
        executor.write(buffer, 0, TensorRef::F32(&values));
        let mut handles = BTreeMap::new();
        let mut views = Vec::new();
        for (name, shape) in names.into_iter().zip(shapes) {
            let n = shape.iter().product::<usize>();
            handles.insert(
                name.to_owned(),
                TensorHandle::new(buffer, 0..n, shape.clone()),
            );
            let view = TensorView::new(Dtype::F32, shape, &bytes[..4 * n]).unwrap();
            views.push((name, view));
        }
        let mut written = Vec::new();
        write_to(&mut written, &handles, &executor).unwrap();
        assert!(written == serialize(views, None).unwrap());
    }
}
