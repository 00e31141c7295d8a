//! A GGUF file: metadata and tensor descriptions are read at once, tensors on demand.
//!
//! Format: `docs/gguf.md` of the ggml project, versions 2 and 3, little-endian.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::dequantize::{TensorType, unsupported};
use super::metadata::{Bounded, HEADER_LIMIT, Value};
use crate::error::{Error, Result};
use crate::files;
use crate::tensors::HostTensor;

const MAGIC: &[u8; 4] = b"GGUF";
/// Longest key and longest name of a tensor, in bytes.
const NAME_LIMIT: u64 = 1 << 10;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Bytes that are converted at a time, about.
const CHUNK: usize = 1 << 18;

/// A GGUF file. Memory is allocated only for its metadata and the tensor that is read: a file that describes more data
/// than it contains is rejected.
#[derive(Debug)]
pub(in crate::interop) struct GgufFile {
    path: PathBuf,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

/// Type, shape and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Number of the type in the file.
    type_id: u32,
    /// Dimensions, the outermost first.
    shape: Vec<usize>,
    /// First byte, from the start of the file.
    begin: u64,
    /// Number of bytes; 0 for types of unknown size, which are not read.
    bytes: u64,
}

impl GgufFile {
    /// Reads metadata and tensor descriptions.
    ///
    /// # Errors
    /// If it cannot be read, is not a regular file, or its descriptions are inconsistent or do not match its size.
    pub(in crate::interop) fn open(path: &Path) -> Result<Self> {
        let file = files::open(path)?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let (metadata, tensors) = read_header(BufReader::new(file), length)
            .map_err(|problem| Error::format(path, problem))?;
        Ok(Self {
            path: path.to_path_buf(),
            metadata,
            tensors,
        })
    }

    pub(in crate::interop) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::interop) fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Iterates over the names of its tensors.
    pub(in crate::interop) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the shape of a tensor, the outermost dimension first, if there is one of this name.
    pub(in crate::interop) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a tensor, as f32.
    ///
    /// # Errors
    /// If it is missing, has a type that cannot be read, or the file cannot be read.
    pub(in crate::interop) fn read(&self, name: &str) -> Result<HostTensor> {
        let format_error = |problem: String| Error::format(&self.path, problem);
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| format_error(format!("tensor {name} is missing")))?;
        let kind = TensorType::by_id(entry.type_id)
            .ok_or_else(|| format_error(format!("tensor {name} {}", unsupported(entry.type_id))))?;
        let mut file = files::open(&self.path)?;
        file.seek(SeekFrom::Start(entry.begin))
            .map_err(Error::io(&self.path))?;
        let mut data = Vec::with_capacity(entry.shape.iter().product());
        let mut left = entry.bytes as usize;
        let mut buffer = vec![0; (CHUNK / kind.bytes * kind.bytes).min(left)];
        while left > 0 {
            let size = buffer.len().min(left);
            let chunk = &mut buffer[..size];
            file.read_exact(chunk).map_err(Error::io(&self.path))?;
            data.extend_from_slice(&kind.dequantize(chunk));
            left -= size;
        }
        Ok(HostTensor {
            shape: entry.shape.clone(),
            data,
        })
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Reads everything before the data of the tensors; `length` is that of the file.
fn read_header(mut file: impl Read, length: u64) -> std::result::Result<Header, String> {
    let mut magic = [0; 4];
    if length < 24 || file.read_exact(&mut magic).is_err() || &magic != MAGIC {
        return Err(format!(
            "not a GGUF file: it begins with `{}`, expected `GGUF`",
            String::from_utf8_lossy(&magic).escape_debug()
        ));
    }
    let mut header = Bounded::new(file, (length - 4).min(HEADER_LIMIT));
    check_version(header.u32()?)?;
    let tensor_count = header.u64()?;
    let key_count = header.u64()?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = header.text(NAME_LIMIT)?;
        let value = header
            .value()
            .map_err(|problem| format!("key {key}: {problem}"))?;
        if let Some(earlier) = metadata.insert(key.clone(), value) {
            return Err(format!("key {key} is given twice: {}", earlier.describe()));
        }
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let (name, entry) = read_entry(&mut header)?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is given twice"));
        }
    }
    // The magic was read before.
    let data = (header.position() + 4).next_multiple_of(alignment);
    place(&mut tensors, data, alignment, length)?;
    Ok((metadata, tensors))
}

fn check_version(version: u32) -> std::result::Result<(), String> {
    match version {
        2 | 3 => Ok(()),
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            Err("a big-endian GGUF file, expected a little-endian one".into())
        }
        _ => Err(format!("GGUF version {version}, expected 2 or 3")),
    }
}

/// Returns the alignment of the tensors, in bytes.
fn alignment(metadata: &BTreeMap<String, Value>) -> std::result::Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Integer(value @ 8..=1_048_576)) if value % 8 == 0 => Ok(*value as u64),
        Some(other) => Err(format!(
            "general.alignment = {}, expected a multiple of 8 from 8 to 1048576",
            other.describe()
        )),
    }
}

/// Reads the description of a tensor; `begin` is relative to the data.
fn read_entry<R: Read>(header: &mut Bounded<R>) -> std::result::Result<(String, Entry), String> {
    let name = header.text(NAME_LIMIT)?;
    let of_tensor = |problem: String| format!("tensor {name}: {problem}");
    let dimensions = header.u32().map_err(of_tensor)?;
    if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(of_tensor(format!(
            "{dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let size = header.u64().map_err(of_tensor)?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0);
        shape.push(size.ok_or_else(|| of_tensor("a dimension of size 0, or too large".into()))?);
    }
    shape.reverse();
    let type_id = header.u32().map_err(of_tensor)?;
    let begin = header.u64().map_err(of_tensor)?;
    let bytes = match TensorType::by_id(type_id) {
        None => 0,
        Some(kind) => size(&shape, kind).map_err(of_tensor)?,
    };
    let entry = Entry {
        type_id,
        shape,
        begin,
        bytes,
    };
    Ok((name, entry))
}

/// Returns the bytes of a tensor.
fn size(shape: &[usize], kind: &TensorType) -> std::result::Result<u64, String> {
    let row = shape.last().copied().unwrap_or_default();
    if row % kind.elements != 0 {
        return Err(format!(
            "rows of {row} elements, expected a multiple of {} for {}",
            kind.elements, kind.name
        ));
    }
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size as u64));
    elements
        .and_then(|elements| (elements / kind.elements as u64).checked_mul(kind.bytes as u64))
        .ok_or_else(|| format!("shape {shape:?} is too large"))
}

/// Makes the offsets of tensors relative to the file, and checks that they are aligned, do not overlap, and lie in the
/// file.
fn place(
    tensors: &mut BTreeMap<String, Entry>,
    data: u64,
    alignment: u64,
    length: u64,
) -> std::result::Result<(), String> {
    for (name, entry) in tensors.iter_mut() {
        if entry.begin % alignment != 0 {
            return Err(format!(
                "tensor {name} begins at byte {} of the data, expected a multiple of {alignment}",
                entry.begin
            ));
        }
        let end = data
            .checked_add(entry.begin)
            .and_then(|begin| begin.checked_add(entry.bytes));
        if end.is_none_or(|end| end > length) {
            return Err(format!(
                "tensor {name} ends beyond the file of {length} bytes; the file is truncated or corrupted"
            ));
        }
        entry.begin += data;
    }
    let mut by_offset: Vec<(&String, &Entry)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, entry)| (entry.begin, entry.bytes));
    for pair in by_offset.windows(2) {
        let ((first, before), (second, after)) = (pair[0], pair[1]);
        if before.begin + before.bytes > after.begin {
            return Err(format!("tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file with one tensor of 32 numbers in `Q8_0` after `change`.
    fn file(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
        let mut parts = vec![
            MAGIC.to_vec(),
            3_u32.to_le_bytes().to_vec(),
            1_u64.to_le_bytes().to_vec(),
            0_u64.to_le_bytes().to_vec(),
            [&1_u64.to_le_bytes()[..], b"a"].concat(),
            1_u32.to_le_bytes().to_vec(),
            32_u64.to_le_bytes().to_vec(),
            8_u32.to_le_bytes().to_vec(),
            0_u64.to_le_bytes().to_vec(),
        ];
        change(&mut parts);
        let mut bytes = parts.concat();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([0, 0x3c]);
        bytes.extend(0..32);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<GgufFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, bytes).unwrap();
        let file = GgufFile::open(&path)?;
        let found = file.read("a")?;
        assert_eq!(found.shape, [32]);
        assert_eq!(found.data[31], 31.0);
        Ok(file)
    }

    #[test]
    fn inconsistent_descriptions_are_rejected() {
        let file_with = |part: usize, bytes: &[u8]| file(|parts| parts[part] = bytes.to_vec());
        open(&file(|_| {})).unwrap();
        open(&file_with(1, &2_u32.to_le_bytes())).unwrap();
        let large = u64::MAX.to_le_bytes();
        for (part, bytes, expected) in [
            (0, &b"GGML"[..], "begins with `GGML`, expected `GGUF`"),
            (1, &1_u32.to_le_bytes(), "GGUF version 1, expected 2 or 3"),
            (1, &3_u32.to_be_bytes(), "a big-endian GGUF file"),
            (2, &large, "expected"),
            (3, &large, "expected"),
            (4, &large, "expected at most 1024"),
            (5, &9_u32.to_le_bytes(), "9 dimensions, expected 1 to 4"),
            (6, &0_u64.to_le_bytes(), "a dimension of size 0"),
            (6, &large, "rows of"),
            (
                6,
                &33_u64.to_le_bytes(),
                "rows of 33 elements, expected a multiple of 32 for Q8_0",
            ),
            (6, &(1_u64 << 60).to_le_bytes(), "ends beyond the file"),
            (
                7,
                &23_u32.to_le_bytes(),
                "tensor a is IQ4_XS, expected one of F32",
            ),
            (
                8,
                &4_u64.to_le_bytes(),
                "begins at byte 4 of the data, expected a multiple of 32",
            ),
            (8, &32_u64.to_le_bytes(), "ends beyond the file"),
            (8, &(u64::MAX - 31).to_le_bytes(), "ends beyond the file"),
        ] {
            let problem = open(&file_with(part, bytes)).unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
            assert_eq!(problem.lines().count(), 1, "{problem}");
        }
    }

    #[test]
    fn duplicate_and_overlapping_tensors_are_rejected() {
        let with_second = |name: &[u8], offset: u64| {
            file(|parts| {
                parts[2] = 2_u64.to_le_bytes().to_vec();
                let mut second = parts[4..].concat();
                second[8..9].copy_from_slice(name);
                let at = second.len() - 8;
                second[at..].copy_from_slice(&offset.to_le_bytes());
                parts.push(second);
            })
        };
        let problem = open(&with_second(b"a", 0)).unwrap_err().to_string();
        assert!(problem.contains("tensor a is given twice"), "{problem}");
        let problem = open(&with_second(b"b", 0)).unwrap_err().to_string();
        assert!(problem.contains("tensors a and b overlap"), "{problem}");
    }

    #[test]
    fn truncated_files_are_rejected() {
        let whole = file(|_| {});
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length}");
        }
    }
}
