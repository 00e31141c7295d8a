//! Conversion of single precision to the types of tensors that are written.

use half::f16;

/// Type of the matrices of a written file; vectors are in single precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MatrixType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// 8 bits, with a scale for every 32 elements of a row; half precision for matrices whose rows are not multiples of
    /// 32 elements.
    Q8_0,
}

/// Elements of a block of `Q8_0`.
const BLOCK: usize = 32;

impl MatrixType {
    /// Returns the type of a tensor of this shape.
    pub(super) fn of(self, shape: &[usize]) -> Self {
        match (self, shape) {
            (_, [] | [_]) => Self::F32,
            (Self::Q8_0, [.., width]) if width % BLOCK != 0 => Self::F16,
            _ => self,
        }
    }

    /// Returns its name in llama.cpp.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Returns the largest error of rounding a row to this type, relative to its largest element; vectors and, in single
    /// precision, matrices are exact but for a gain that the file contains plus 1.
    pub(in crate::interop) fn largest_error(self, shape: &[usize]) -> f32 {
        match self.of(shape) {
            Self::F32 => f32::EPSILON,
            // Half the distance of neighbors.
            Self::F16 => 2_f32.powi(-11),
            // Half a step of 1/127, and the rounding of the scale.
            Self::Q8_0 => 0.5 / 127.0 + 2_f32.powi(-11),
        }
    }

    /// Number of the type in the file.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
        }
    }

    /// Number of the type of a file, `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
        }
    }

    /// Returns the bytes of this number of elements.
    pub(super) fn size(self, elements: u64) -> u64 {
        match self {
            Self::F32 => elements * 4,
            Self::F16 => elements * 2,
            Self::Q8_0 => elements / BLOCK as u64 * (BLOCK as u64 + 2),
        }
    }

    /// Converts elements; for `Q8_0` their number is a multiple of 32. An element that is too large for half precision
    /// is an error.
    pub(super) fn convert(self, values: &[f32]) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(self.size(values.len() as u64) as usize);
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => {
                for value in values {
                    bytes.extend(half(*value)?);
                }
            }
            Self::Q8_0 => {
                for block in values.chunks_exact(BLOCK) {
                    q8_0(block, &mut bytes)?;
                }
            }
        }
        Ok(bytes)
    }
}

fn half(value: f32) -> Result<[u8; 2], String> {
    let half = f16::from_f32(value);
    match half.is_finite() {
        true => Ok(half.to_le_bytes()),
        false => Err(format!(
            "{value} is outside the range of half precision, use f32"
        )),
    }
}

/// The largest absolute value becomes 127 (`quantize_row_q8_0_ref` of `ggml-quants.c`).
fn q8_0(block: &[f32], bytes: &mut Vec<u8>) -> Result<(), String> {
    let largest = block
        .iter()
        .fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    bytes.extend(half(scale)?);
    bytes.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and their blocks by `gguf.quants.quantize` (`fixtures/gguf/make.py`).
    const REFERENCE: &str = include_str!("../../../../tests/fixtures/gguf/quantized.json");

    #[test]
    fn q8_0_equals_the_reference_implementation() {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
        let bits: Vec<u32> = serde_json::from_value(reference["bits"].clone()).unwrap();
        let expected: Vec<u8> = serde_json::from_value(reference["bytes"].clone()).unwrap();
        let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        assert_eq!(MatrixType::Q8_0.convert(&values).unwrap(), expected);
        assert_eq!(
            MatrixType::Q8_0.size(values.len() as u64),
            expected.len() as u64
        );
    }

    #[test]
    fn values_outside_half_precision_are_an_error() {
        assert!(MatrixType::F16.convert(&[65504.0, -65504.0]).is_ok());
        let problem = MatrixType::F16.convert(&[1.0, 1e6]).unwrap_err();
        assert!(problem.starts_with("1000000 is outside"), "{problem}");
        assert!(MatrixType::Q8_0.convert(&[1e8; 32]).is_err());
    }

    #[test]
    fn types_depend_on_shapes() {
        assert_eq!(MatrixType::Q8_0.of(&[64]), MatrixType::F32);
        assert_eq!(MatrixType::Q8_0.of(&[3, 64]), MatrixType::Q8_0);
        assert_eq!(MatrixType::Q8_0.of(&[64, 48]), MatrixType::F16);
        assert_eq!(MatrixType::F32.of(&[64, 48]), MatrixType::F32);
    }
}
