//! Conversion of the tensor types of ggml to single precision, one function per type of block.
//!
//! Layouts are those of `ggml-common.h`, formulas those of `dequantize_row_*` in `ggml-quants.c` (llama.cpp); products
//! are formed in the order of the Python package `gguf`, so that results are bit-identical with its.

use half::{bf16, f16};

/// A type of tensors: blocks of equal size, each a number of elements.
#[derive(Debug, Clone, Copy)]
pub(in crate::interop) struct TensorType {
    /// Number in the file.
    pub(super) id: u32,
    pub(super) name: &'static str,
    /// Elements of a block; rows consist of whole blocks.
    pub(super) elements: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Converts a block.
    dequantize: fn(&[u8], &mut [f32]),
}

/// All types that can be read.
const TYPES: [TensorType; 13] = [
    of(0, "F32", 1, 4, single),
    of(1, "F16", 1, 2, half_precision),
    of(2, "Q4_0", 32, 18, q4_0),
    of(3, "Q4_1", 32, 20, q4_1),
    of(6, "Q5_0", 32, 22, q5_0),
    of(7, "Q5_1", 32, 24, q5_1),
    of(8, "Q8_0", 32, 34, q8_0),
    of(10, "Q2_K", 256, 84, q2_k),
    of(11, "Q3_K", 256, 110, q3_k),
    of(12, "Q4_K", 256, 144, q4_k),
    of(13, "Q5_K", 256, 176, q5_k),
    of(14, "Q6_K", 256, 210, q6_k),
    of(30, "BF16", 1, 2, brain),
];

/// Names of types that cannot be read, for messages.
const OTHER_TYPES: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

const fn of(
    id: u32,
    name: &'static str,
    elements: usize,
    bytes: usize,
    dequantize: fn(&[u8], &mut [f32]),
) -> TensorType {
    TensorType {
        id,
        name,
        elements,
        bytes,
        dequantize,
    }
}

impl TensorType {
    /// Returns the type of a number in the file.
    pub(super) fn by_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|known| known.id == id)
    }

    /// Converts whole blocks; the result has as many elements as they.
    pub(super) fn dequantize(&self, blocks: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; blocks.len() / self.bytes * self.elements];
        let outputs = values.chunks_exact_mut(self.elements);
        for (block, output) in blocks.chunks_exact(self.bytes).zip(outputs) {
            (self.dequantize)(block, output);
        }
        values
    }
}

/// Returns the problem of a tensor of a type that cannot be read.
pub(super) fn unsupported(id: u32) -> String {
    let other = OTHER_TYPES.iter().find(|(other, _)| *other == id);
    let found = other.map_or_else(|| format!("of type {id}"), |(_, name)| (*name).to_owned());
    let known: Vec<&str> = TYPES.iter().map(|known| known.name).collect();
    format!("is {found}, expected one of {}", known.join(", "))
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn single(block: &[u8], y: &mut [f32]) {
    y[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn half_precision(block: &[u8], y: &mut [f32]) {
    y[0] = half_at(block, 0);
}

fn brain(block: &[u8], y: &mut [f32]) {
    y[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// Writes the 32 numbers of 4 bits in 16 bytes: first all lower halves, then all upper ones.
fn nibbles(bytes: &[u8], y: &mut [f32], convert: impl Fn(usize, u8) -> f32) {
    for (j, byte) in bytes.iter().enumerate() {
        y[j] = convert(j, byte & 15);
        y[j + bytes.len()] = convert(j + bytes.len(), byte >> 4);
    }
}

/// `d·(q − 8)`, with `d` in half precision before 32 numbers of 4 bits.
fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], y, |_, q| d * (f32::from(q) - 8.0));
}

/// `d·q + m`, with `d` and `m` in half precision before 32 numbers of 4 bits.
fn q4_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], y, |_, q| d * f32::from(q) + m);
}

/// Returns the fifth bits of 32 numbers.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 + use<> {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |j| ((bits >> j & 1) << 4) as u8
}

/// `d·(q − 16)`: `d`, the fifth bits, then the lower 4 bits of 32 numbers.
fn q5_0(block: &[u8], y: &mut [f32]) {
    let (d, fifth) = (half_at(block, 0), fifth_bits(block, 2));
    nibbles(&block[6..], y, |j, q| d * (f32::from(q | fifth(j)) - 16.0));
}

/// `d·q + m`: `d`, `m`, the fifth bits, then the lower 4 bits of 32 numbers.
fn q5_1(block: &[u8], y: &mut [f32]) {
    let (d, m, fifth) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    nibbles(&block[8..], y, |j, q| d * f32::from(q | fifth(j)) + m);
}

/// `d·q`, with `d` in half precision before 32 signed bytes.
fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (y, q) in y.iter_mut().zip(&block[2..]) {
        *y = d * f32::from(*q as i8);
    }
}

/// `d·s·q − d_min·m` for 16 groups of 16 numbers of 2 bits: 16 bytes of `s` (lower half) and `m` (upper half), 64 bytes
/// of numbers, `d`, `d_min`.
fn q2_k(block: &[u8], y: &mut [f32]) {
    let (scales, q) = (&block[..16], &block[16..80]);
    let (d, d_min) = (half_at(block, 80), half_at(block, 82));
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (scales[group] & 15, scales[group] >> 4);
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        let (begin, shift) = two_bit_group(group);
        for (y, q) in y.iter_mut().zip(&q[begin..]) {
            *y = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

/// Returns for a group of 16 numbers of 2 bits the first byte and the shift: each 32 bytes hold 128 numbers, 32 at each
/// shift.
fn two_bit_group(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// `d·s·(q − 4·[high bit not set])` for 16 groups of 16 numbers: 32 bytes of high bits, 64 bytes of the lower 2 bits,
/// 12 bytes of 6-bit scales, which are offset by 32, and `d`.
fn q3_k(block: &[u8], y: &mut [f32]) {
    let (high, q, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let low = match group {
            0..8 => scales[group] & 15,
            _ => scales[group - 8] >> 4,
        };
        let upper = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * (f32::from(low | upper << 4) - 32.0);
        let (begin, shift) = two_bit_group(group);
        let bits = group % 2 * 16;
        for (l, y) in y.iter_mut().enumerate() {
            let low = f32::from(q[begin + l] >> shift & 3);
            let is_high = high[bits + l] >> (group / 2) & 1 == 1;
            *y = scale * (low - if is_high { 0.0 } else { 4.0 });
        }
    }
}

/// Returns scale and minimum of a group of 32 numbers, 6 bits each, from 12 bytes: the first four of both in 8 bytes,
/// whose upper bits hold those of the last four.
fn scale_and_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = match group {
        0..4 => (scales[group] & 63, scales[group + 4] & 63),
        _ => (
            scales[group + 4] & 15 | scales[group - 4] >> 6 << 4,
            scales[group + 4] >> 4 | scales[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

/// `d·s·q − d_min·m` for 8 groups of 32 numbers of 4 bits: `d`, `d_min`, 12 bytes of `s` and `m`, 128 bytes of numbers,
/// in which 32 bytes hold two groups.
fn q4_k(block: &[u8], y: &mut [f32]) {
    let (d, d_min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, d_min * min);
        let q = &block[16 + group / 2 * 32..];
        for (y, q) in y.iter_mut().zip(q) {
            *y = scale * f32::from(q >> (group % 2 * 4) & 15) - min;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the numbers: bit `g` of byte `l` is that of number `l` in group `g`.
fn q5_k(block: &[u8], y: &mut [f32]) {
    let (d, d_min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let fifth = &block[16..48];
    for (group, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (d * scale, d_min * min);
        let q = &block[48 + group / 2 * 32..];
        for ((y, q), fifth) in y.iter_mut().zip(q).zip(fifth) {
            let q = q >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
            *y = scale * f32::from(q) - min;
        }
    }
}

/// `d·s·(q − 32)` for 16 groups of 16 numbers of 6 bits: 128 bytes of the lower 4 bits, 64 bytes of the upper 2 bits,
/// 16 signed bytes of `s`, and `d`. Each half of the block has 64 and 32 of these bytes.
fn q6_k(block: &[u8], y: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (group, y) in y.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] as i8);
        let (half, quarter, begin) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + begin..];
        let high = &high[half * 32 + begin..];
        for ((y, low), high) in y.iter_mut().zip(low).zip(high) {
            let low = low >> (quarter / 2 * 4) & 15;
            let high = high >> (quarter * 2) & 3;
            *y = scale * (f32::from(low | high << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bytes and their values by `gguf.quants.dequantize` (`fixtures/gguf/make.py`).
    const BLOCKS: &str = include_str!("../../../tests/fixtures/gguf/blocks.json");

    #[test]
    fn every_type_equals_the_reference_implementation() {
        let reference: serde_json::Value = serde_json::from_str(BLOCKS).unwrap();
        for known in &TYPES {
            let of = &reference[known.name];
            let bytes: Vec<u8> = serde_json::from_value(of["bytes"].clone()).unwrap();
            let bits: Vec<u32> = serde_json::from_value(of["bits"].clone()).unwrap();
            assert!(bytes.len() >= 2 * known.bytes, "{}", known.name);
            let found = known.dequantize(&bytes);
            assert_eq!(found.len(), bits.len(), "{}", known.name);
            for (n, (found, bits)) in found.iter().zip(&bits).enumerate() {
                let expected = f32::from_bits(*bits);
                assert!(*found == expected, "{} {n}: {found} {expected}", known.name);
            }
        }
        assert_eq!(reference.as_object().unwrap().len(), TYPES.len());
    }

    #[test]
    fn types_that_cannot_be_read_are_named() {
        assert!(unsupported(20).starts_with("is IQ4_NL, expected one of F32, F16, Q4_0"));
        assert!(unsupported(77).starts_with("is of type 77, "));
        assert!(
            OTHER_TYPES
                .iter()
                .all(|(id, _)| TensorType::by_id(*id).is_none())
        );
    }
}
