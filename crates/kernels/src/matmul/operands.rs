//! Left operands and outputs of matmuls of tiles that fit the caches.

use super::kernel::Kernel;
use super::panels::{self, PANEL, PanelRow, Rows};
use super::tiles::{Left, LeftLayout, Output};
use crate::floats::Floats;
use crate::simd::dispatch;

/// Buffer of a left operand, for operands that are not read in place. Rows start at cache lines: a row of a tile of AMX
/// that is split between two of them takes longer to read.
#[derive(Default)]
pub(crate) struct LeftBuffer(Vec<PanelRow>);

impl LeftBuffer {
    /// Returns the maximum bytes of a buffer for a left operand (rows, inner).
    pub(crate) fn bytes(kernel: impl Into<Kernel>, rows: usize, inner: usize) -> usize {
        4 * padded(rows) * padded(kernel.into().steps(inner))
    }

    /// Returns the first elements of the buffer, a multiple of 16, which have any contents.
    fn take(&mut self, len: usize) -> &mut [u32] {
        let len = len / PANEL;
        if self.0.len() < len {
            // Not resized, which would reserve up to twice as much and copy what is overwritten.
            self.0 = Vec::new();
            self.0 = vec![PanelRow::ZERO; len];
        }
        bytemuck::cast_slice_mut(&mut self.0[..len])
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
        let stride = padded(kernel.steps(inner));
        let data = self.take(rows * stride);
        dispatch(
            #[inline(always)]
            || {
                for (i, out) in data.chunks_exact_mut(stride).enumerate() {
                    panels::load_row(kernel, x.row(i, inner), out);
                }
            },
        );
        Left {
            data,
            stride,
            layout,
        }
    }

    /// Returns the left operand `xᵀ` (rows, inner) for `x` (inner, rows).
    #[inline(always)]
    pub(crate) fn transposed<'a>(
        &'a mut self,
        kernel: impl Into<Kernel>,
        x: Rows<'a>,
        inner: usize,
        rows: usize,
    ) -> Left<'a> {
        let kernel = kernel.into();
        let steps = kernel.steps(inner);
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Kernel::Amx(_) = kernel {
            let stride = padded(steps);
            let data = self.take(rows.next_multiple_of(PANEL) * stride);
            panels::transpose_steps(kernel, x, inner, rows, data, stride);
            return Left {
                data,
                stride,
                layout: LeftLayout::RowMajor,
            };
        }
        let stride = padded(rows);
        let data = self.take(steps * stride);
        dispatch(
            #[inline(always)]
            || {
                panels::for_each_step(
                    kernel,
                    x,
                    inner,
                    rows,
                    #[inline(always)]
                    |step, column, row| {
                        data[step * stride + column..][..PANEL].copy_from_slice(&row);
                    },
                );
            },
        );
        Left {
            data,
            stride,
            layout: LeftLayout::StepMajor,
        }
    }
}

/// Returns the elements from a row of a buffer to the next: an odd number of cache lines, so that the rows of a tile do
/// not map to the same sets of the L1 cache.
fn padded(len: usize) -> usize {
    (panels::panels(len) | 1) * PANEL
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

    /// The rows are a buffer of this thread, which is in its caches.
    #[inline(always)]
    fn prefetch(&self, _row: usize, _column: usize, _count: usize) {}
}
