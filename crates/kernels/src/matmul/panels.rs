//! Packed right operands of matmuls.
//!
//! The columns of a matrix (k, n) are split into panels of 16. A panel is a sequence of rows of 64 bytes, one for
//! each step of the inner dimension: one element of every column in single precision, a pair of consecutive ones in
//! bfloat16 (the layout of AMX tiles and of VDPBF16PS). The last panel is filled up with zero columns, an odd inner
//! dimension with one zero. Without a unit for bfloat16, a step is a rounded element in single precision.

use super::kernel::Kernel;
use super::transpose::transposed;
use crate::floats::{Floats, round};
use crate::prefetch::prefetch;
use crate::simd::dispatch;
use bytemuck::{Pod, Zeroable};
use half::bf16;
use std::mem::MaybeUninit;

/// Columns of a panel.
pub(crate) const PANEL: usize = 16;

/// One step of a panel: 16 single-precision numbers, or 16 pairs of bfloat16 ones, the first in the lower half.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct PanelRow(pub(crate) [u32; PANEL]);

impl PanelRow {
    /// A row of zeros.
    pub const ZERO: Self = Self([0; PANEL]);
}

/// Destination of a panel row, which holds one or nothing before.
pub(crate) trait PanelSlot {
    /// Writes the row.
    fn put(&mut self, row: PanelRow);
}

impl PanelSlot for PanelRow {
    #[inline(always)]
    fn put(&mut self, row: PanelRow) {
        *self = row;
    }
}

impl PanelSlot for MaybeUninit<PanelRow> {
    #[inline(always)]
    fn put(&mut self, row: PanelRow) {
        self.write(row);
    }
}

/// Returns the number of panels for `columns` columns.
pub(crate) fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Rows of a matrix: row i starts at `i * stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) data: Floats<'a>,
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(data: impl Into<Floats<'a>>, stride: usize) -> Self {
        let data = data.into();
        Rows { data, stride }
    }

    /// Returns the rows from `row` on.
    pub(crate) fn from(self, row: usize) -> Self {
        self.skip(row * self.stride)
    }

    /// Returns the rows without their first elements.
    pub(super) fn skip(self, count: usize) -> Self {
        let data = self.data.skip(count);
        Rows { data, ..self }
    }

    /// Returns elements of a row.
    pub(crate) fn row(self, row: usize, width: usize) -> Floats<'a> {
        let start = row * self.stride;
        self.data.slice(start..start + width)
    }
}

/// Calls `put` with each step of `n` rows of `width`, 16 columns at a time: the index of the step, the first column,
/// and the step of these columns; columns beyond the width, and a missing last row of a pair, are zero.
#[inline(always)]
pub(super) fn for_each_step(
    kernel: Kernel,
    rows: Rows,
    n: usize,
    width: usize,
    put: impl FnMut(usize, usize, [u32; PANEL]),
) {
    let stride = rows.stride;
    match (kernel, rows.data) {
        (Kernel::F32, Floats::F32(data)) => {
            for_each_step_of::<_, 1>(data, stride, n, width, |x, _| x.to_bits(), put);
        }
        (Kernel::Rounded, Floats::F32(data)) => {
            for_each_step_of::<_, 1>(data, stride, n, width, |x, _| bits(round(x)) << 16, put);
        }
        (Kernel::F32 | Kernel::Rounded, Floats::Bf16(data)) => {
            for_each_step_of::<_, 1>(data, stride, n, width, |x, _| bits(x) << 16, put);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Floats::F32(data)) => {
            let join = |x, y| bits(round(x)) | bits(round(y)) << 16;
            for_each_step_of::<_, 2>(data, stride, n, width, join, put);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Floats::Bf16(data)) => {
            for_each_step_of::<_, 2>(data, stride, n, width, |x, y| bits(x) | bits(y) << 16, put);
        }
    }
}

/// Returns the bits of a number.
#[inline(always)]
fn bits(x: bf16) -> u32 {
    u32::from(x.to_bits())
}

/// Rows that are asked for before they are read.
const ROWS_AHEAD: usize = 8;

/// Calls `put` as [`for_each_step`] does, with steps of `GROUP` rows.
#[inline(always)]
fn for_each_step_of<T: Copy + Default, const GROUP: usize>(
    data: &[T],
    stride: usize,
    n: usize,
    width: usize,
    join: impl Fn(T, T) -> u32,
    mut put: impl FnMut(usize, usize, [u32; PANEL]),
) {
    let row = |i: usize| data[i * stride..][..width].as_chunks::<PANEL>();
    let padded = |rest: &[T]| {
        let mut padded = [T::default(); PANEL];
        padded[..rest.len()].copy_from_slice(rest);
        padded
    };
    let join = |first: &[T; PANEL], second: &[T; PANEL]| {
        let mut out = [0; PANEL];
        for ((out, x), y) in out.iter_mut().zip(first).zip(second) {
            *out = join(*x, *y);
        }
        out
    };
    let zeros = [T::default(); PANEL];
    for step in 0..n.div_ceil(GROUP) {
        let ahead = step * GROUP + ROWS_AHEAD;
        for row in ahead..(ahead + GROUP).min(n) {
            prefetch(&data[row * stride..][..width]);
        }
        let (first, first_rest) = row(step * GROUP);
        let has_second = GROUP == 2 && step * GROUP + 1 < n;
        let (second, second_rest) = if has_second {
            row(step * GROUP + 1)
        } else {
            (&[][..], &[][..])
        };
        for (p, first) in first.iter().enumerate() {
            let second = if has_second { &second[p] } else { &zeros };
            put(step, p * PANEL, join(first, second));
        }
        if !first_rest.is_empty() {
            put(
                step,
                first.len() * PANEL,
                join(&padded(first_rest), &padded(second_rest)),
            );
        }
    }
}

/// Packs `n` rows of `width` as the right operand (n, width) into the first steps of the panels of `out`, which have
/// `steps` rows each: all rows of these steps.
pub(crate) fn pack(
    kernel: impl Into<Kernel>,
    rows: Rows,
    n: usize,
    width: usize,
    out: &mut [impl PanelSlot],
    steps: usize,
) {
    let kernel = kernel.into();
    dispatch(
        #[inline(always)]
        || {
            for_each_step(
                kernel,
                rows,
                n,
                width,
                #[inline(always)]
                |step, column, row| out[column / PANEL * steps + step].put(PanelRow(row)),
            );
        },
    );
}

/// Packs `n` rows of `width` as the right operand (width, n) into panels of `steps` rows, the number of steps of
/// `width`: panel p holds rows `16 p ..` as its columns.
pub(crate) fn pack_transposed(
    kernel: impl Into<Kernel>,
    rows: Rows,
    n: usize,
    width: usize,
    out: &mut [impl PanelSlot],
    steps: usize,
) {
    let kernel = kernel.into();
    debug_assert_eq!(steps, kernel.steps(width));
    dispatch(
        #[inline(always)]
        || {
            for (p, panel) in out
                .chunks_exact_mut(steps.max(1))
                .take(panels(n))
                .enumerate()
            {
                let count = PANEL.min(n - p * PANEL);
                for (block, out) in panel.chunks_mut(PANEL).enumerate() {
                    let mut square = [[0; PANEL]; PANEL];
                    for (i, square) in square.iter_mut().enumerate().take(count) {
                        let first = block * PANEL * kernel.group();
                        let len = (width - first).min(PANEL * kernel.group());
                        load_row(
                            kernel,
                            rows.from(p * PANEL + i).data.slice(first..first + len),
                            square,
                        );
                    }
                    for (out, row) in out.iter_mut().zip(&transposed(&square)) {
                        out.put(*row);
                    }
                }
            }
        },
    );
}

/// Writes the transpose of `n` rows of `width` as rows of steps, `stride` apart: row c of `out` holds column c. Rows and
/// steps are filled up with zeros to multiples of 16.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) fn transpose_steps(
    kernel: Kernel,
    rows: Rows,
    n: usize,
    width: usize,
    out: &mut [u32],
    stride: usize,
) {
    /// Panels of a block: whole cache lines of rows in bfloat16.
    const PANELS: usize = 2;
    dispatch(
        #[inline(always)]
        || {
            for column in (0..width).step_by(PANELS * PANEL) {
                let width = (width - column).min(PANELS * PANEL);
                for first in (0..n).step_by(PANEL * kernel.group()) {
                    let n = (n - first).min(PANEL * kernel.group());
                    let mut squares = [[[0; PANEL]; PANEL]; PANELS];
                    for_each_step(
                        kernel,
                        rows.from(first).skip(column),
                        n,
                        width,
                        #[inline(always)]
                        |step, column, row| squares[column / PANEL][step] = row,
                    );
                    let step = first / kernel.group();
                    for (p, square) in squares.iter().enumerate().take(panels(width)) {
                        for (i, row) in transposed(square).iter().enumerate() {
                            let start = (column + p * PANEL + i) * stride + step;
                            out[start..start + PANEL].copy_from_slice(&row.0);
                        }
                    }
                }
            }
        },
    );
}

/// Writes the steps of a row to the start of `out`; a missing second element of a pair is zero.
#[inline(always)]
pub(super) fn load_row(kernel: Kernel, row: Floats, out: &mut [u32]) {
    match (kernel, row) {
        (Kernel::F32, Floats::F32(row)) => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = x.to_bits();
            }
        }
        (Kernel::Rounded, Floats::F32(row)) => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = bits(round(*x)) << 16;
            }
        }
        (Kernel::F32 | Kernel::Rounded, Floats::Bf16(row)) => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = bits(*x) << 16;
            }
        }
        #[cfg(target_arch = "x86_64")]
        (_, row) => {
            // The first element of a pair is the lower half, as on all processors with these kernels.
            let out: &mut [bf16] = bytemuck::cast_slice_mut(&mut out[..kernel.steps(row.len())]);
            if let Some(missing) = out.get_mut(row.len()) {
                *missing = bf16::ZERO;
            }
            match row {
                Floats::F32(row) => crate::floats::narrow(row, out),
                Floats::Bf16(row) => out[..row.len()].copy_from_slice(row),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Precision;
    use super::*;

    /// `Packed` reads all rows of its panels, and clears none of them.
    #[test]
    fn every_row_of_the_panels_is_written() {
        const OLD: PanelRow = PanelRow([u32::MAX; PANEL]);
        for kernel in [Precision::F32, Precision::Bf16].map(Kernel::from) {
            for (n, width) in [(1, 1), (2, 16), (5, 17), (16, 48), (33, 130), (64, 5)] {
                let data = vec![1.0; n * width];
                let rows = Rows::new(&data, width);
                let steps = kernel.steps(n);
                let mut out = vec![OLD; steps * panels(width)];
                pack(kernel, rows, n, width, &mut out, steps);
                assert!(!out.contains(&OLD), "({n}, {width})");
                let steps = kernel.steps(width);
                let mut out = vec![OLD; steps * panels(n)];
                pack_transposed(kernel, rows, n, width, &mut out, steps);
                assert!(!out.contains(&OLD), "({n}, {width}), transposed");
            }
        }
    }
}
