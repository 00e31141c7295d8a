//! Left operands and outputs of matmuls of tiles that fit the caches.

use super::panels::{self, PANEL, Precision, Rows};
use super::tiles::{Left, LeftLayout, Output};
use super::unit::lanes;
use crate::floats::Floats;
use crate::simd::dispatch;

/// Padding of a step of a packed left operand, so that the steps of a tile do not map to the same set of the L1 cache.
const PADDING: usize = 16;

/// Buffer of a left operand in steps, for operands that cannot be read in place.
#[derive(Default)]
pub(crate) struct LeftBuffer(Vec<u32>);

impl LeftBuffer {
    /// Returns the maximum bytes of a buffer for a left operand (rows, inner).
    pub(crate) fn bytes(precision: Precision, rows: usize, inner: usize) -> usize {
        4 * precision.steps(inner) * (rows.next_multiple_of(PANEL) + PADDING)
    }

    /// Returns the left operand `x` (rows, inner).
    #[inline(always)]
    pub(crate) fn row_major<'a>(
        &'a mut self,
        precision: Precision,
        x: Rows<'a>,
        rows: usize,
        inner: usize,
    ) -> Left<'a> {
        let layout = LeftLayout::RowMajor;
        let in_place = match (precision, x.data) {
            (Precision::F32, Floats::F32(data)) => Some(bytemuck::cast_slice(data)),
            // Pairs of a row must not share a step with another row.
            (Precision::Bf16, Floats::Bf16(data))
                if precision.group() == 2
                    && x.stride.is_multiple_of(2)
                    && inner.is_multiple_of(2) =>
            {
                bytemuck::try_cast_slice(&data[..data.len() / 2 * 2]).ok()
            }
            _ => None,
        };
        if let Some(data) = in_place {
            return Left {
                data,
                stride: x.stride / precision.group(),
                layout,
            };
        }
        let stride = precision.steps(inner);
        self.0.resize(rows * stride, 0);
        dispatch(
            #[inline(always)]
            || {
                for (i, out) in self.0.chunks_exact_mut(stride.max(1)).enumerate() {
                    panels::load_row(precision, x.row(i, inner), out);
                }
            },
        );
        Left {
            data: &self.0,
            stride,
            layout,
        }
    }

    /// Returns the left operand `xᵀ` (rows, inner) for `x` (inner, rows).
    #[inline(always)]
    pub(crate) fn step_major<'a>(
        &'a mut self,
        precision: Precision,
        x: Rows<'a>,
        inner: usize,
        rows: usize,
    ) -> Left<'a> {
        let layout = LeftLayout::StepMajor;
        // A tile of AVX-512 reads half a cache line of a step, others a quarter, which packing makes up for.
        if let (Precision::F32, Floats::F32(data)) = (precision, x.data)
            && lanes() == PANEL
        {
            return Left {
                data: bytemuck::cast_slice(data),
                stride: x.stride,
                layout,
            };
        }
        let stride = rows.next_multiple_of(PANEL) + PADDING;
        self.0.resize(precision.steps(inner) * stride, 0);
        dispatch(
            #[inline(always)]
            || {
                panels::for_each_step(precision, x, inner, rows, |step, column, row| {
                    self.0[step * stride + column..][..PANEL].copy_from_slice(&row);
                });
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
        if let Some(sums) = sums.get(whole.len()) {
            for (out, sum) in rest.iter_mut().zip(sums) {
                *out = if self.accumulate { *out + sum } else { *sum };
            }
        }
    }
}
