//! Left operands and outputs of matmuls of tiles that fit the caches.

use super::kernel::{Kernel, lanes};
use super::panels::{self, PANEL, Rows};
use super::tiles::{Left, LeftLayout, Output};
use crate::floats::Floats;
use crate::simd::dispatch;

/// Padding of a step of a packed left operand, so that the steps of a tile do not map to the same set of the L1 cache.
const PADDING: usize = 16;

/// Buffer of a left operand in steps, for operands that are not read in place.
#[derive(Default)]
pub(crate) struct LeftBuffer(Vec<u32>);

impl LeftBuffer {
    /// Returns the maximum bytes of a buffer for a left operand (rows, inner).
    pub(crate) fn bytes(kernel: impl Into<Kernel>, rows: usize, inner: usize) -> usize {
        4 * kernel.into().steps(inner) * (rows.next_multiple_of(PANEL) + PADDING)
    }

    /// Returns the left operand `x` (rows, inner).
    #[inline(always)]
    pub(crate) fn row_major<'a>(
        &'a mut self,
        kernel: impl Into<Kernel>,
        x: Rows<'a>,
        rows: usize,
        inner: usize,
    ) -> Left<'a> {
        let kernel = kernel.into();
        let layout = LeftLayout::RowMajor;
        let in_place = match (kernel, x.data) {
            (Kernel::F32, Floats::F32(data)) => Some(bytemuck::cast_slice(data)),
            // Pairs of a row must not share a step with another row.
            (_, Floats::Bf16(data))
                if kernel.group() == 2 && x.stride.is_multiple_of(2) && inner.is_multiple_of(2) =>
            {
                bytemuck::try_cast_slice(&data[..data.len() / 2 * 2]).ok()
            }
            _ => None,
        };
        if let Some(data) = in_place {
            return Left {
                data,
                stride: x.stride / kernel.group(),
                layout,
            };
        }
        let stride = kernel.steps(inner);
        self.0.resize(rows * stride, 0);
        dispatch(
            #[inline(always)]
            || {
                for (i, out) in self.0.chunks_exact_mut(stride.max(1)).enumerate() {
                    panels::load_row(kernel, x.row(i, inner), out);
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
        kernel: impl Into<Kernel>,
        x: Rows<'a>,
        inner: usize,
        rows: usize,
    ) -> Left<'a> {
        let kernel = kernel.into();
        let layout = LeftLayout::StepMajor;
        // Tiles of narrower vectors have fewer rows and read less of each cache line, which costs more than packing.
        if let (Kernel::F32, Floats::F32(data)) = (kernel, x.data)
            && lanes() == PANEL
        {
            return Left {
                data: bytemuck::cast_slice(data),
                stride: x.stride,
                layout,
            };
        }
        let stride = rows.next_multiple_of(PANEL) + PADDING;
        self.0.resize(kernel.steps(inner) * stride, 0);
        dispatch(
            #[inline(always)]
            || {
                panels::for_each_step(kernel, x, inner, rows, |step, column, row| {
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
