//! Loops over chunks of rows in single precision, whatever the element types of the operands.
//!
//! Operands in bfloat16 are widened chunk by chunk, while they are in the cache, and rounded afterwards; those in
//! single precision are passed through. The loops of an op are thus written once.

use crate::floats::{Floats, FloatsMut, narrow, widen};
use crate::simd::dispatch;
use half::bf16;
use rayon::prelude::*;

/// Calls `f` with the index, inputs and outputs of each chunk; returns its results in order.
///
/// A chunk has `sizes` elements of each operand, except the last one, and operands must have equally many chunks.
/// Outputs contain their previous elements. `f` must be marked `#[inline(always)]`, see
/// [`dispatch`](crate::simd::dispatch).
#[inline(always)]
pub(crate) fn map_chunks<R: Send, const I: usize, const O: usize>(
    inputs: [(Floats, usize); I],
    outputs: [(FloatsMut, usize); O],
    f: impl Fn(usize, [&[f32]; I], [&mut [f32]; O]) -> R + Sync,
) -> Vec<R> {
    let lengths = inputs.iter().map(|(x, size)| x.len().div_ceil(*size));
    let lengths = lengths.chain(outputs.iter().map(|(y, size)| y.len().div_ceil(*size)));
    let count = lengths.max().unwrap_or(0);
    let mut pieces = outputs.map(|(y, size)| pieces(y, size).into_iter());
    let chunks: Vec<[FloatsMut; O]> = (0..count)
        .map(|_| {
            pieces
                .each_mut()
                .map(|pieces| pieces.next().expect("as many chunks of every output"))
        })
        .collect();
    let chunks = chunks.into_par_iter().enumerate();
    let run = |buffers: &mut Buffers<I, O>, (c, outputs): (usize, [FloatsMut; O])| {
        dispatch(
            #[inline(always)]
            || {
                let Buffers(read, written) = buffers;
                let mut narrow_outputs: [Option<&mut [bf16]>; O] = [const { None }; O];
                let mut wide_outputs: [&mut [f32]; O] = std::array::from_fn(|_| Default::default());
                let all = outputs.into_iter().zip(written);
                let places = wide_outputs.iter_mut().zip(&mut narrow_outputs);
                for ((output, buffer), (wide, narrow)) in all.zip(places) {
                    *wide = match output {
                        FloatsMut::F32(y) => y,
                        FloatsMut::Bf16(y) => {
                            buffer.resize(y.len(), 0.0);
                            widen(y, buffer);
                            *narrow = Some(y);
                            buffer
                        }
                    };
                }
                let mut wide_inputs: [&[f32]; I] = [&[]; I];
                for (((x, size), buffer), wide) in inputs.iter().zip(read).zip(&mut wide_inputs) {
                    *wide = match x.slice(c * size..x.len().min((c + 1) * size)) {
                        Floats::F32(x) => x,
                        Floats::Bf16(x) => {
                            buffer.resize(x.len(), 0.0);
                            widen(x, buffer);
                            buffer
                        }
                    };
                }
                let result = f(c, wide_inputs, wide_outputs.each_mut().map(|y| &mut **y));
                for (narrow_output, wide) in narrow_outputs.into_iter().zip(wide_outputs) {
                    if let Some(output) = narrow_output {
                        narrow(wide, output);
                    }
                }
                result
            },
        )
    };
    chunks.map_init(Buffers::default, run).collect()
}

/// Calls `f` as [`map_chunks`] does.
#[inline(always)]
pub(crate) fn for_each_chunk<const I: usize, const O: usize>(
    inputs: [(Floats, usize); I],
    outputs: [(FloatsMut, usize); O],
    f: impl Fn(usize, [&[f32]; I], [&mut [f32]; O]) + Sync,
) {
    map_chunks(inputs, outputs, f);
}

/// Widened inputs and outputs of a chunk.
struct Buffers<const I: usize, const O: usize>([Vec<f32>; I], [Vec<f32>; O]);

impl<const I: usize, const O: usize> Default for Buffers<I, O> {
    fn default() -> Self {
        Self([const { Vec::new() }; I], [const { Vec::new() }; O])
    }
}

/// Splits elements into pieces of `size`.
fn pieces(y: FloatsMut, size: usize) -> Vec<FloatsMut> {
    match y {
        FloatsMut::F32(y) => y.chunks_mut(size).map(FloatsMut::F32).collect(),
        FloatsMut::Bf16(y) => y.chunks_mut(size).map(FloatsMut::Bf16).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_rounded_once() {
        let x: Vec<f32> = (0..1000).map(|i| 1.0 + 1e-3 * i as f32).collect();
        let mut x_narrow = vec![bf16::ZERO; x.len()];
        narrow(&x, &mut x_narrow);
        let add = |x: Floats, y: FloatsMut| {
            map_chunks(
                [(x, 64)],
                [(y, 64)],
                #[inline(always)]
                |c, [x], [y]| {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                    (c, x.len())
                },
            )
        };
        let (mut wide, mut half) = (vec![0.5f32; 1000], vec![bf16::from_f32(0.5); 1000]);
        let chunks = add(Floats::Bf16(&x_narrow), FloatsMut::F32(&mut wide));
        add(Floats::Bf16(&x_narrow), FloatsMut::Bf16(&mut half));
        assert_eq!(chunks.len(), 16);
        assert!(
            chunks
                .iter()
                .enumerate()
                .all(|(c, (index, n))| c == *index && *n == 64.min(1000 - 64 * c))
        );
        for ((x, wide), half) in x_narrow.iter().zip(&wide).zip(&half) {
            assert_eq!(*wide, 0.5 + x.to_f32());
            assert_eq!(*half, bf16::from_f32(*wide));
        }
    }
}
