//! Serialization of a GGUF file's metadata and tensor descriptions.

use super::quantize::MatrixType;

/// Alignment of tensors, in bytes: the default of the format.
pub(super) const ALIGNMENT: u64 = 32;

/// A value to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(u32),
    Number(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Numbers(Vec<f32>),
}

/// Name, shape (the outermost dimension first) and type of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: MatrixType,
}

impl Described {
    /// Returns the bytes of the tensor.
    pub(super) fn size(&self) -> u64 {
        self.kind
            .size(self.shape.iter().map(|size| *size as u64).product())
    }
}

/// Returns everything before the data of the tensors, padded to [`ALIGNMENT`].
pub(super) fn header(keys: &[(String, Value)], tensors: &[Described]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut bytes, key);
        value.write(&mut bytes);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            bytes.extend((*size as u64).to_le_bytes());
        }
        bytes.extend(tensor.kind.id().to_le_bytes());
        bytes.extend(u64::to_le_bytes(offset));
        offset += tensor.size().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Value {
    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Integer(value) => scalar(bytes, 4, value.to_le_bytes()),
            Self::Number(value) => scalar(bytes, 6, value.to_le_bytes()),
            Self::Bool(value) => scalar(bytes, 7, [u8::from(*value)]),
            Self::Text(value) => {
                bytes.extend(8_u32.to_le_bytes());
                text(bytes, value);
            }
            Self::Texts(values) => {
                array(bytes, 8, values.len());
                values.iter().for_each(|value| text(bytes, value));
            }
            Self::Integers(values) => {
                array(bytes, 5, values.len());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Numbers(values) => {
                array(bytes, 6, values.len());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

fn scalar<const N: usize>(bytes: &mut Vec<u8>, kind: u32, value: [u8; N]) {
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
}

fn array(bytes: &mut Vec<u8>, kind: u32, count: usize) {
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
}
