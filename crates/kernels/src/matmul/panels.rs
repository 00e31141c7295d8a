//! Packed right operands of matmuls.
//!
//! The columns of a matrix (k, n) are split into panels of 16. A panel is a sequence of rows of 64 bytes, one for
//! each step of the inner dimension: one element of every column in single precision, a pair of consecutive ones in
//! bfloat16 (the layout of AMX tiles and of VDPBF16PS). The last panel is filled up with zero columns, an odd inner
//! dimension with one zero. Without a unit for bfloat16, rounded elements are stored in single precision.

use super::transpose::transposed;
use super::unit::Unit;
use crate::floats::{Floats, narrow, round};
use crate::simd::dispatch;
use bytemuck::{Pod, Zeroable};
use half::bf16;

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

/// Precision of the operands of a matmul; sums are always in single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Single precision.
    F32,
    /// bfloat16: operands are rounded to it.
    Bf16,
}

impl Precision {
    /// Returns the elements of a step on this machine.
    #[inline]
    pub(crate) fn group(self) -> usize {
        match (self, Unit::best()) {
            (Self::F32, _) | (Self::Bf16, Unit::F32) => 1,
            #[cfg(target_arch = "x86_64")]
            (Self::Bf16, _) => 2,
        }
    }

    /// Returns the number of steps of an inner dimension, its panel rows.
    pub fn steps(self, inner: usize) -> usize {
        inner.div_ceil(self.group())
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
        let data = self.data.skip(row * self.stride);
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
    precision: Precision,
    rows: Rows,
    n: usize,
    width: usize,
    put: impl FnMut(usize, usize, [u32; PANEL]),
) {
    let stride = rows.stride;
    match (precision, rows.data) {
        (Precision::Bf16, Floats::F32(data)) if precision.group() == 1 => {
            let rounded = |x, _| bits(round(x)) << 16;
            for_each_step_of::<_, 1>(data, stride, n, width, rounded, put);
        }
        (Precision::F32, Floats::F32(data)) => {
            for_each_step_of::<_, 1>(data, stride, n, width, |x, _| x.to_bits(), put);
        }
        (_, Floats::Bf16(data)) if precision.group() == 1 => {
            for_each_step_of::<_, 1>(data, stride, n, width, |x, _| bits(x) << 16, put);
        }
        (Precision::Bf16, Floats::F32(data)) => {
            let join = |x, y| bits(round(x)) | bits(round(y)) << 16;
            for_each_step_of::<_, 2>(data, stride, n, width, join, put);
        }
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
/// `steps` rows each.
pub(crate) fn pack(
    precision: Precision,
    rows: Rows,
    n: usize,
    width: usize,
    out: &mut [PanelRow],
    steps: usize,
) {
    dispatch(
        #[inline(always)]
        || {
            for_each_step(
                precision,
                rows,
                n,
                width,
                #[inline(always)]
                |step, column, row| out[column / PANEL * steps + step] = PanelRow(row),
            );
        },
    );
}

/// Packs `n` rows of `width` as the right operand (width, n) into panels of `steps` rows, the number of steps of
/// `width`: panel p holds rows `16 p ..` as its columns.
pub(crate) fn pack_transposed(
    precision: Precision,
    rows: Rows,
    n: usize,
    width: usize,
    out: &mut [PanelRow],
    steps: usize,
) {
    debug_assert_eq!(steps, precision.steps(width));
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
                        let first = block * PANEL * precision.group();
                        let len = (width - first).min(PANEL * precision.group());
                        load_row(
                            precision,
                            rows.from(p * PANEL + i).data.slice(first..first + len),
                            square,
                        );
                    }
                    out.copy_from_slice(&transposed(&square)[..out.len()]);
                }
            }
        },
    );
}

/// Writes the steps of a row to the start of `out`; a missing second element of a pair is zero.
#[inline(always)]
pub(super) fn load_row(precision: Precision, row: Floats, out: &mut [u32]) {
    match (precision, row) {
        (Precision::F32, Floats::F32(row)) => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = x.to_bits();
            }
        }
        (_, Floats::Bf16(row)) if precision.group() == 1 => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = bits(*x) << 16;
            }
        }
        (_, Floats::F32(row)) if precision.group() == 1 => {
            for (out, x) in out.iter_mut().zip(row) {
                *out = bits(round(*x)) << 16;
            }
        }
        (_, row) => {
            let out = &mut out[..precision.steps(row.len())];
            // The first element of a pair is the lower half.
            const { assert!(cfg!(target_endian = "little")) };
            let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
            if let Some(missing) = out.get_mut(row.len()) {
                *missing = bf16::ZERO;
            }
            match row {
                Floats::F32(row) => narrow(row, out),
                Floats::Bf16(row) => out[..row.len()].copy_from_slice(row),
            }
        }
    }
}
