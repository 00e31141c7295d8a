//! Loops over rows in single precision, whatever the element types of the operands.
//!
//! Operands in bfloat16 are widened and rounded a few rows at a time, while these are in the L1 cache; those in single
//! precision are passed through. The loops of an op are thus written once.

use crate::floats::{Floats, FloatsMut, narrow, widen};
use crate::simd::dispatch;
use half::bf16;
use rayon::prelude::*;

/// Maximum elements of the widest operand of a block, unless a row has more: all operands together fit the L1 cache.
const BLOCK: usize = 1024;

/// Elements that a loop writes.
pub(crate) enum Output<'a> {
    /// Overwritten without being read.
    Overwrite(FloatsMut<'a>),
    /// Read and written.
    Update(FloatsMut<'a>),
}

/// Splits rows into chunks of `rows_per_chunk`. For each creates a result with `init` and calls `f` with the result, the
/// index of the first row, and the inputs and outputs of each block of its rows, in order; returns the results in order.
/// `f` also gets memory from `scratch`, with any contents.
///
/// Each operand comes with its width, and all have equally many rows. `f` must be marked `#[inline(always)]`, see
/// [`dispatch`](crate::simd::dispatch).
#[inline(always)]
pub(crate) fn fold_rows<S, R: Send, const I: usize, const O: usize>(
    rows_per_chunk: usize,
    inputs: [(Floats, usize); I],
    outputs: [(Output, usize); O],
    scratch: impl Fn() -> S + Sync + Send,
    init: impl Fn() -> R + Sync,
    f: impl Fn(&mut S, &mut R, usize, [&[f32]; I], [&mut [f32]; O]) + Sync,
) -> Vec<R> {
    let is_read = outputs
        .each_ref()
        .map(|(y, _)| matches!(y, Output::Update(_)));
    let outputs = outputs.map(|(y, width)| match y {
        Output::Overwrite(y) | Output::Update(y) => (y, width),
    });
    let output_widths = outputs.each_ref().map(|(_, width)| *width);
    let lengths = inputs.iter().map(|(x, width)| x.len() / width);
    let lengths = lengths.chain(outputs.iter().map(|(y, width)| y.len() / width));
    let rows = lengths.max().unwrap_or(0);
    let widths = inputs.iter().map(|(_, width)| width);
    let widest = widths.chain(&output_widths).max();
    let rows_per_block = (BLOCK / widest.copied().unwrap_or(1)).max(1);
    let mut pieces = outputs.map(|(y, width)| pieces(y, rows_per_chunk * width).into_iter());
    let chunks: Vec<[FloatsMut; O]> = (0..rows.div_ceil(rows_per_chunk))
        .map(|_| {
            pieces
                .each_mut()
                .map(|pieces| pieces.next().expect("as many chunks of every output"))
        })
        .collect();
    let chunks = chunks.into_par_iter().enumerate();
    let run = |(scratch, buffers): &mut (S, Buffers<I, O>),
               (c, mut outputs): (usize, [FloatsMut; O])| {
        let mut result = init();
        let end = rows.min((c + 1) * rows_per_chunk);
        dispatch(
            #[inline(always)]
            || {
                let mut row = c * rows_per_chunk;
                while row < end {
                    let count = rows_per_block.min(end - row);
                    let mut wide_inputs: [&[f32]; I] = [&[]; I];
                    let all = inputs.iter().zip(&mut buffers.inputs);
                    for (((x, width), buffer), wide) in all.zip(&mut wide_inputs) {
                        *wide = match x.slice(row * width..(row + count) * width) {
                            Floats::F32(x) => x,
                            Floats::Bf16(x) => buffer.widened(x),
                        };
                    }
                    let first = row - c * rows_per_chunk;
                    let mut wide_outputs: [&mut [f32]; O] =
                        std::array::from_fn(|_| Default::default());
                    let all = outputs.iter_mut().zip(&mut buffers.outputs);
                    for (o, ((output, buffer), wide)) in all.zip(&mut wide_outputs).enumerate() {
                        let width = output_widths[o];
                        let part = first * width..(first + count) * width;
                        *wide = match output {
                            FloatsMut::F32(y) => &mut y[part],
                            FloatsMut::Bf16(y) if is_read[o] => buffer.widened(&y[part]),
                            FloatsMut::Bf16(_) => buffer.of_len(part.len()),
                        };
                    }
                    f(scratch, &mut result, row, wide_inputs, wide_outputs);
                    for (o, output) in outputs.iter_mut().enumerate() {
                        if let FloatsMut::Bf16(y) = output {
                            let width = output_widths[o];
                            let part = first * width..(first + count) * width;
                            narrow(&buffers.outputs[o].0, &mut y[part]);
                        }
                    }
                    row += count;
                }
            },
        );
        result
    };
    chunks
        .map_init(|| (scratch(), Buffers::default()), run)
        .collect()
}

/// Calls `f` as [`fold_rows`] does, without results.
#[inline(always)]
pub(crate) fn for_each_rows<const I: usize, const O: usize>(
    rows_per_chunk: usize,
    inputs: [(Floats, usize); I],
    outputs: [(Output, usize); O],
    f: impl Fn(usize, [&[f32]; I], [&mut [f32]; O]) + Sync,
) {
    fold_rows(
        rows_per_chunk,
        inputs,
        outputs,
        || (),
        || (),
        #[inline(always)]
        |(), (), row, inputs, outputs| f(row, inputs, outputs),
    );
}

/// Widened inputs and outputs of a block.
struct Buffers<const I: usize, const O: usize> {
    inputs: [Buffer; I],
    outputs: [Buffer; O],
}

impl<const I: usize, const O: usize> Default for Buffers<I, O> {
    fn default() -> Self {
        Self {
            inputs: [const { Buffer(Vec::new()) }; I],
            outputs: [const { Buffer(Vec::new()) }; O],
        }
    }
}

struct Buffer(Vec<f32>);

impl Buffer {
    /// Returns elements that are to be overwritten.
    #[inline(always)]
    fn of_len(&mut self, len: usize) -> &mut [f32] {
        self.0.resize(len, 0.0);
        &mut self.0
    }

    /// Returns the elements in single precision.
    #[inline(always)]
    fn widened(&mut self, x: &[bf16]) -> &mut [f32] {
        let out = self.of_len(x.len());
        widen(x, out);
        out
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
            fold_rows(
                64,
                [(x, 1)],
                [(Output::Update(y), 1)],
                || (),
                Vec::new,
                #[inline(always)]
                |(), blocks: &mut Vec<(usize, usize)>, first, [x], [y]| {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                    blocks.push((first, x.len()));
                },
            )
        };
        let (mut wide, mut half) = (vec![0.5f32; 1000], vec![bf16::from_f32(0.5); 1000]);
        let chunks = add(Floats::Bf16(&x_narrow), FloatsMut::F32(&mut wide));
        add(Floats::Bf16(&x_narrow), FloatsMut::Bf16(&mut half));
        assert_eq!(chunks.len(), 16);
        for (c, blocks) in chunks.iter().enumerate() {
            assert_eq!(*blocks, [(64 * c, 64.min(1000 - 64 * c))]);
        }
        for ((x, wide), half) in x_narrow.iter().zip(&wide).zip(&half) {
            assert_eq!(*wide, 0.5 + x.to_f32());
            assert_eq!(*half, bf16::from_f32(*wide));
        }
    }
}
