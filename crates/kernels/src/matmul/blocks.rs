//! Blocks of the output of a matmul, which are computed by different threads.

use super::panels::PANEL;
use super::tiles::Output;
use crate::floats::Float;
use crate::prefetch::prefetch;
use crate::simd::dispatch;
use rayon::prelude::*;

/// Part of the output of a matmul.
pub(super) struct Block<'a, T> {
    /// First row and column.
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) columns: usize,
    pub(super) rows: Vec<&'a mut [T]>,
}

/// Output of a block: `scale` times the sums, added to what is there if `accumulate`.
pub(super) struct BlockOutput<'b, 'a, T> {
    pub(super) rows: &'b mut [&'a mut [T]],
    /// First column within the block.
    pub(super) column: usize,
    pub(super) scale: f32,
    pub(super) accumulate: bool,
}

impl<T: Float> BlockOutput<'_, '_, T> {
    /// Takes the sums of all rows, `stride` apart, for `columns` columns.
    pub(super) fn put_all(&mut self, sums: &[f32], columns: usize, stride: usize) {
        dispatch(
            #[inline(always)]
            || {
                for (row, sums) in sums.chunks_exact(stride).enumerate() {
                    self.put(row, 0, columns, sums.as_chunks().0);
                }
            },
        );
    }
}

impl<T: Float> Output for BlockOutput<'_, '_, T> {
    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, count: usize, sums: &[[f32; PANEL]]) {
        let (whole, rest) =
            self.rows[row][self.column + column..][..count].as_chunks_mut::<PANEL>();
        for (out, sums) in whole.iter_mut().zip(sums) {
            self::put(out, sums, self.scale, self.accumulate);
        }
        if !rest.is_empty() {
            let mut padded = [T::default(); PANEL];
            padded[..rest.len()].copy_from_slice(rest);
            self::put(&mut padded, &sums[whole.len()], self.scale, self.accumulate);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, column: usize, count: usize) {
        prefetch(&self.rows[row][self.column + column..][..count]);
    }
}

/// Writes `scale * sums`, or adds it.
#[inline(always)]
fn put<T: Float>(out: &mut [T; PANEL], sums: &[f32; PANEL], scale: f32, accumulate: bool) {
    let mut after = *sums;
    after.iter_mut().for_each(|x| *x *= scale);
    if accumulate {
        for (after, before) in after.iter_mut().zip(&*out) {
            *after += before.widen();
        }
    }
    T::narrow(&after, out);
}

/// Runs `f` on blocks of at most (rows, columns) elements of a row-major matrix.
pub(super) fn for_each_block<T: Send>(
    data: &mut [T],
    (rows, columns, stride): (usize, usize, usize),
    size: (usize, usize),
    parallel: bool,
    f: impl Fn(&mut Block<'_, T>) + Sync + Send,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let mut blocks = split(data, rows, columns, stride, size);
    match parallel {
        true => blocks.par_iter_mut().with_max_len(1).for_each(f),
        false => blocks.iter_mut().for_each(f),
    }
}

/// Splits rows into blocks.
fn split<T>(
    data: &mut [T],
    rows: usize,
    columns: usize,
    stride: usize,
    (block_rows, block_columns): (usize, usize),
) -> Vec<Block<'_, T>> {
    let count = columns.div_ceil(block_columns);
    let mut blocks = Vec::with_capacity(rows.div_ceil(block_rows) * count);
    for (i, row) in data.chunks_mut(stride).take(rows).enumerate() {
        if i % block_rows == 0 {
            blocks.extend((0..columns).step_by(block_columns).map(|column| Block {
                row: i,
                column,
                columns: block_columns.min(columns - column),
                rows: Vec::with_capacity(block_rows.min(rows - i)),
            }));
        }
        let first = blocks.len() - count;
        let parts = row[..columns].chunks_mut(block_columns);
        for (block, part) in blocks[first..].iter_mut().zip(parts) {
            block.rows.push(part);
        }
    }
    blocks
}
