//! Writing of a safetensors file whose tensors are computed one after another.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::header::Header;
use crate::error::{Error, Result};

/// Floating-point type of the tensors of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FloatType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits: 8 of exponent, 8 of precision.
    Bf16,
    /// 16 bits: 5 of exponent, 11 of precision; at most 65504.
    F16,
}

impl FloatType {
    /// Returns the name in `torch`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Returns the nearest number of this type.
    ///
    /// ```
    /// use hybridnorm::tensors::FloatType;
    /// assert_eq!(FloatType::Bf16.round(1.001), 1.0);
    /// assert_eq!(FloatType::F32.round(1.001), 1.001);
    /// assert!(FloatType::F16.round(1e6).is_infinite());
    /// ```
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::F16 => half::f16::from_f32(x).to_f32(),
        }
    }

    fn name_in_files(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    fn append(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::Bf16 => {
                bytes.extend(
                    values
                        .iter()
                        .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()),
                );
            }
            Self::F16 => {
                bytes.extend(
                    values
                        .iter()
                        .flat_map(|x| half::f16::from_f32(*x).to_le_bytes()),
                );
            }
        }
    }
}

/// Writer of a safetensors file: names and shapes first, then the elements of all tensors in this order. Not atomic:
/// the caller publishes the folder atomically.
///
/// ```
/// use hybridnorm::tensors::{self, FloatType, StreamWriter};
///
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("model.safetensors");
/// let tensors = [("b".to_owned(), vec![2, 1]), ("a".to_owned(), vec![1])];
/// let mut writer = StreamWriter::create(&path, &tensors, FloatType::Bf16, &Default::default())?;
/// writer.write(&[1.0, 2.0])?;
/// writer.write(&[3.0])?;
/// writer.finish()?;
/// assert_eq!(tensors::read(&path)?["b"].data, [1.0, 2.0]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug)]
pub struct StreamWriter {
    path: PathBuf,
    writer: BufWriter<File>,
    dtype: FloatType,
    /// Number of elements still to be written.
    remaining: usize,
}

impl StreamWriter {
    /// Creates the file and writes its header: metadata, and names and shapes of the tensors.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(
        path: &Path,
        tensors: &[(String, Vec<usize>)],
        dtype: FloatType,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut header = Header::default();
        if !metadata.is_empty() {
            header.push_metadata(metadata);
        }
        let mut remaining = 0;
        for (name, shape) in tensors {
            let elements = shape.iter().product::<usize>();
            remaining += elements;
            header.push(
                name,
                dtype.name_in_files(),
                shape,
                dtype.size() * elements as u64,
            );
        }
        let file = File::create(path).map_err(Error::io(path))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        writer
            .write_all(&header.into_bytes())
            .map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_path_buf(),
            writer,
            dtype,
            remaining,
        })
    }

    /// Writes the next elements.
    ///
    /// # Errors
    /// If the file cannot be written.
    ///
    /// # Panics
    /// If there are more elements than the header describes.
    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.remaining = self
            .remaining
            .checked_sub(values.len())
            .expect("elements of the header");
        let mut bytes = Vec::new();
        for chunk in values.chunks(super::CHUNK) {
            bytes.clear();
            self.dtype.append(chunk, &mut bytes);
            self.writer
                .write_all(&bytes)
                .map_err(Error::io(&self.path))?;
        }
        Ok(())
    }

    /// Writes the remaining buffer to the disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    ///
    /// # Panics
    /// If there are fewer elements than the header describes.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.remaining, 0, "elements of the header");
        let path = self.path;
        let file = self
            .writer
            .into_inner()
            .map_err(|error| Error::io(&path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(&path))
    }
}
