//! A safetensors file; the header is read first, tensors on demand.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::header::{self, Entry};
use super::to_f32;
use crate::error::{Error, Result};
use crate::files;
use crate::tensors::HostTensor;

/// The largest header of the format.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes that are converted at a time.
const CHUNK: usize = 1 << 18;

/// A safetensors file. Tensors are read one by one, and memory is allocated only for the header and the tensor: a
/// header that describes more data than the file contains is rejected.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::model::Model;
/// use hybridnorm::tensors::{self, TensorFile};
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
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("model.safetensors");
/// let model = Model::new(&config, 0, Device::Cpu)?;
/// tensors::write(&path, &tensors::parameters(&model), model.executor())?;
///
/// let file = TensorFile::open(&path)?;
/// assert_eq!(file.names().count(), model.parameters().count());
/// assert_eq!(file.shape("embedding"), Some(&[8, 16][..]));
/// assert_eq!(file.read("embedding")?, model.values()["embedding"]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    /// Offset of the data.
    data: u64,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Reads the header.
    ///
    /// # Errors
    /// If it cannot be read, is not a regular file, or the header is inconsistent or does not match the file size.
    pub fn open(path: &Path) -> Result<Self> {
        let format_error = |problem: String| Error::format(path, problem);
        let mut file = files::open(path)?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let mut start = [0; 8];
        if length < 8 {
            return Err(format_error(format!(
                "not a safetensors file: it has {length} bytes, but the length field of the header alone takes 8"
            )));
        }
        file.read_exact(&mut start).map_err(Error::io(path))?;
        let header = u64::from_le_bytes(start);
        if header > HEADER_LIMIT.min(length - 8) {
            return Err(format_error(format!(
                "not a safetensors file: its first 8 bytes, `{}`, give a header length of {header} bytes, expected at \
                 most {}",
                String::from_utf8_lossy(&start).escape_debug(),
                HEADER_LIMIT.min(length - 8)
            )));
        }
        let mut json = vec![0; header as usize];
        file.read_exact(&mut json).map_err(Error::io(path))?;
        let data = 8 + header;
        let entries = header::parse(&json, length - data).map_err(format_error)?;
        Ok(Self {
            path: path.to_path_buf(),
            data,
            entries,
        })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Iterates over the names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// True if it has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Returns the shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a tensor of f32, f16 or bf16, as f32.
    ///
    /// # Errors
    /// If it is missing, has a different dtype, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let mut data = Vec::with_capacity(self.elements(name)?);
        self.read_chunks(name, |chunk| data.extend_from_slice(chunk))?;
        let shape = self.shape(name).unwrap_or_default().to_vec();
        Ok(HostTensor { shape, data })
    }

    /// Returns the number of elements of a tensor that can be read.
    ///
    /// # Errors
    /// If it is missing or has a different dtype; the shapes of such tensors are not checked against the file size.
    pub fn elements(&self, name: &str) -> Result<usize> {
        let (entry, _) = self.entry(name)?;
        Ok(entry.shape.iter().product())
    }

    fn entry(&self, name: &str) -> Result<(&Entry, Dtype)> {
        let format_error = |problem: String| Error::format(&self.path, problem);
        let entry = self.entries.get(name);
        let entry = entry.ok_or_else(|| format_error(format!("tensor {name} is missing")))?;
        let dtype = match entry.dtype.as_str() {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            other => {
                return Err(format_error(format!(
                    "tensor {name} is {other}, expected F32, F16 or BF16"
                )));
            }
        };
        Ok((entry, dtype))
    }

    /// Reads a tensor as [`TensorFile::read`] does, but passes the elements to `each` in chunks, in order, so that the
    /// tensor is never in memory as a whole.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read_chunks(&self, name: &str, mut each: impl FnMut(&[f32])) -> Result<()> {
        let (entry, dtype) = self.entry(name)?;
        let mut file = files::open(&self.path)?;
        file.seek(SeekFrom::Start(self.data + entry.begin))
            .map_err(Error::io(&self.path))?;
        let mut left = (entry.end - entry.begin) as usize;
        let mut buffer = vec![0; CHUNK.min(left)];
        while left > 0 {
            let chunk = &mut buffer[..CHUNK.min(left)];
            file.read_exact(chunk).map_err(Error::io(&self.path))?;
            each(&to_f32(dtype, chunk).expect("`entry` rejects other dtypes"));
            left -= chunk.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_unknown_types_take_no_memory() {
        let side = u64::MAX / 4;
        let mut json =
            format!(r#"{{"a":{{"dtype":"F4","shape":[{side},{side}],"data_offsets":[0,8]}}}}"#);
        json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let header = (json.len() as u64).to_le_bytes();
        std::fs::write(&path, [&header, json.as_bytes(), &[0; 8]].concat()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        for problem in [file.read("a").map(drop), file.elements("a").map(drop)] {
            let problem = problem.unwrap_err().to_string();
            assert!(
                problem.ends_with("tensor a is F4, expected F32, F16 or BF16"),
                "{problem}"
            );
        }
    }
}
