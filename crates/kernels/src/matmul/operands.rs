//! Left operands and outputs of matmuls of tiles that fit the caches.

use super::panels::{self, PANEL, Precision, Rows};
use super::tiles::{Left, LeftLayout, Output};
use crate::floats::Floats;

/// Buffer of a left operand in steps.
#[derive(Default)]
pub(crate) struct LeftBuffer(Vec<u32>);

impl LeftBuffer {
    /// Returns the bytes of a buffer for a left operand (rows, inner), or (inner, rows) before it is transposed.
    pub(crate) const fn bytes(precision: Precision, rows: usize, inner: usize) -> usize {
        match precision {
            Precision::F32 => 0,
            Precision::Bf16 => 4 * precision.steps(inner) * rows.next_multiple_of(PANEL),
        }
    }

    /// Returns the left operand `x` (rows, inner): in place in single precision, else rounded.
    #[inline(always)]
    pub(crate) fn row_major<'a>(
        &'a mut self,
        precision: Precision,
        x: &'a [f32],
        inner: usize,
    ) -> Left<'a> {
        let layout = LeftLayout::RowMajor;
        if precision == Precision::F32 {
            return Left {
                data: bytemuck::cast_slice(x),
                stride: inner,
                layout,
            };
        }
        let stride = precision.steps(inner);
        self.0.resize(x.len() / inner * stride, 0);
        for (row, out) in x.chunks_exact(inner).zip(self.0.chunks_exact_mut(stride)) {
            panels::load_row(precision, Floats::F32(row), out);
        }
        Left {
            data: &self.0,
            stride,
            layout,
        }
    }

    /// Returns the left operand `xᵀ` for `x` (inner, rows): in place in single precision, else rounded.
    #[inline(always)]
    pub(crate) fn step_major<'a>(
        &'a mut self,
        precision: Precision,
        x: &'a [f32],
        rows: usize,
    ) -> Left<'a> {
        let layout = LeftLayout::StepMajor;
        if precision == Precision::F32 {
            return Left {
                data: bytemuck::cast_slice(x),
                stride: rows,
                layout,
            };
        }
        let (stride, inner) = (rows.next_multiple_of(PANEL), x.len() / rows);
        self.0.resize(precision.steps(inner) * stride, 0);
        panels::for_each_step(
            precision,
            Rows::new(x, rows),
            inner,
            rows,
            |step, column, row| {
                self.0[step * stride + column..][..PANEL].copy_from_slice(&row);
            },
        );
        Left {
            data: &self.0,
            stride,
            layout,
        }
    }
}

/// Output rows in single precision, `stride` apart.
pub(crate) struct OutputRows<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) stride: usize,
    /// True if the sums are added to what is there.
    pub(crate) accumulate: bool,
}

impl Output for OutputRows<'_> {
    #[inline(always)]
    fn put(&mut self, row: usize, column: usize, count: usize, sums: &[[f32; PANEL]]) {
        let out = &mut self.data[row * self.stride + column..][..count];
        let (whole, rest) = out.as_chunks_mut::<PANEL>();
        for (out, sums) in whole.iter_mut().zip(sums) {
            let mut new = *sums;
            if self.accumulate {
                for (new, out) in new.iter_mut().zip(&*out) {
                    *new += out;
                }
            }
            *out = new;
        }
        for (out, sum) in rest.iter_mut().zip(&sums[whole.len().min(sums.len() - 1)]) {
            *out = if self.accumulate { *out + sum } else { *sum };
        }
    }
}
