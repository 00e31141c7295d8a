//! Matmuls in the caches of one core, tile by tile.
//!
//! A tile is a few rows of the left operand times a few panels of the right one, with its sums in registers. Rows are
//! in the outer loop: a group of them stays in the L1 cache while the panels stream from the L2 cache.

use super::arithmetic::{Arithmetic, Fused};
use super::kernel::Kernel;
use super::panels::{PANEL, PanelRow, Rows, panels};
use crate::simd::{SimdKernel, run_simd};
use pulp::Simd;
use std::ops::Range;

/// Steps that are summed in registers, before their sums are added to those of the steps before: bounds the rounding
/// error of long inner dimensions.
pub(super) const SUM_STEPS: usize = 512;

/// Rows times panels of the largest tile.
const MAX_TILE: usize = 24;
/// Sums of a tile, row by row.
type Sums = [[f32; PANEL]; MAX_TILE];

/// Memory layout of the left operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LeftLayout {
    /// Step l of row i at `i * stride + l`.
    RowMajor,
    /// Step l of row i at `l * stride + i`.
    StepMajor,
}

/// Left operand (m, k), in steps: the bits of an element, or of a pair of them.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) layout: LeftLayout,
}

impl<'a> Left<'a> {
    /// Returns rows in single precision as a left operand.
    pub(crate) fn in_place(rows: Rows<'a>) -> Self {
        Self {
            data: bytemuck::cast_slice(rows.data.single()),
            stride: rows.stride,
            layout: LeftLayout::RowMajor,
        }
    }
}

/// Needed part of a block of output rows.
pub(crate) struct ActiveRegion {
    /// Inner indices with nonzero terms. Elements beyond them that belong to the same step must be zero.
    pub(crate) inner: Range<usize>,
    /// Number of leading columns that are read afterwards; their last panel is written as a whole.
    pub(crate) columns: usize,
}

/// Destination of a matmul.
pub(crate) trait Output {
    /// Takes the sums of a row for the first `count` columns of some panels, from `column` on.
    fn put(&mut self, row: usize, column: usize, count: usize, sums: &[[f32; PANEL]]);
    /// Asks for the cache lines that [`Output::put`] will write, before the sums are computed.
    fn prefetch(&self, row: usize, column: usize, count: usize);
}

/// Matmul of (rows, k) and (k, columns) on one thread.
pub(crate) struct TiledMatmul<'a, O> {
    pub(crate) kernel: Kernel,
    pub(crate) left: Left<'a>,
    pub(crate) rows: usize,
    /// Panels of `steps` rows each.
    pub(crate) right: &'a [PanelRow],
    pub(crate) steps: usize,
    pub(crate) columns: usize,
    pub(crate) out: O,
}

impl<O: Output> TiledMatmul<'_, O> {
    /// Computes, of each block of rows, only the part returned by `active`, which must be within the operands.
    #[inline(always)]
    pub(crate) fn run_active(self, active: impl Fn(Range<usize>) -> ActiveRegion) {
        let group = self.kernel.group();
        let active = |rows: Range<usize>| {
            let ActiveRegion { inner, columns } = active(rows);
            (inner.start / group..inner.end.div_ceil(group), columns)
        };
        match self.kernel {
            Kernel::F32 | Kernel::Rounded => run_simd(RunFused(self, active)),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kernel::Amx(token) => token.run(self, active),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(token) => token.run(self, active),
        }
    }

    /// Iterates over groups of `M` rows and `P` panels, with smaller ones at the edges.
    #[inline(always)]
    pub(super) fn groups<A: Arithmetic, const M: usize, const P: usize>(
        &mut self,
        arithmetic: A,
        active: impl Fn(Range<usize>) -> (Range<usize>, usize),
    ) {
        // Zeroed once, not for each tile.
        let mut totals = [[0.0; PANEL]; MAX_TILE];
        let mut row = 0;
        while row < self.rows {
            row += match self.rows - row {
                rest if rest >= M => self.group::<A, M, P>(arithmetic, row, &active, &mut totals),
                4.. => self.group::<A, 4, P>(arithmetic, row, &active, &mut totals),
                2.. => self.group::<A, 2, P>(arithmetic, row, &active, &mut totals),
                _ => self.group::<A, 1, P>(arithmetic, row, &active, &mut totals),
            };
        }
    }

    /// Computes rows `row..row + M`, as far as they are active; returns `M`.
    #[inline(always)]
    fn group<A: Arithmetic, const M: usize, const P: usize>(
        &mut self,
        arithmetic: A,
        row: usize,
        active: &impl Fn(Range<usize>) -> (Range<usize>, usize),
        totals: &mut Sums,
    ) -> usize {
        let (steps, columns) = active(row..row + M);
        let count = panels(columns.min(self.columns));
        let mut panel = 0;
        while panel < count {
            panel += match count - panel {
                rest if rest >= P => {
                    self.tile::<A, M, P>(arithmetic, row, panel, steps.clone(), totals)
                }
                2.. => self.tile::<A, M, 2>(arithmetic, row, panel, steps.clone(), totals),
                _ => self.tile::<A, M, 1>(arithmetic, row, panel, steps.clone(), totals),
            };
        }
        M
    }

    /// Computes rows `row..row + M` of panels `panel..panel + P`; returns `P`.
    #[inline(always)]
    fn tile<A: Arithmetic, const M: usize, const P: usize>(
        &mut self,
        arithmetic: A,
        row: usize,
        panel: usize,
        steps: Range<usize>,
        totals: &mut Sums,
    ) -> usize {
        let column = panel * PANEL;
        let count = (P * PANEL).min(self.columns - column);
        for i in 0..M {
            self.out.prefetch(row + i, column, count);
        }
        let first = steps.end.min(steps.start + SUM_STEPS);
        self.sum::<A, M, P>(arithmetic, row, panel, steps.start..first, totals);
        for start in (first..steps.end).step_by(SUM_STEPS) {
            let end = steps.end.min(start + SUM_STEPS);
            let mut sums = [[0.0; PANEL]; MAX_TILE];
            self.sum::<A, M, P>(arithmetic, row, panel, start..end, &mut sums);
            let sums = sums[..M * P].as_flattened();
            for (total, sum) in totals[..M * P].as_flattened_mut().iter_mut().zip(sums) {
                *total += sum;
            }
        }
        for i in 0..M {
            self.out
                .put(row + i, column, count, &totals[i * P..(i + 1) * P]);
        }
        P
    }

    /// Writes the sums of the products of some steps.
    #[inline(always)]
    fn sum<A: Arithmetic, const M: usize, const P: usize>(
        &self,
        arithmetic: A,
        row: usize,
        panel: usize,
        steps: Range<usize>,
        out: &mut Sums,
    ) {
        // Slices of a common length, so that the loops below do not check bounds: a possible panic would move the
        // accumulators out of registers.
        let n = steps.len();
        if n == 0 {
            return out[..M * P].fill([0.0; PANEL]);
        }
        let mut right: [&[PanelRow]; P] = [&[]; P];
        for (p, right) in right.iter_mut().enumerate() {
            *right = &self.right[(panel + p) * self.steps + steps.start..][..n];
        }
        let stride = self.left.stride;
        // Accumulators are indexed by constants only; otherwise they would not stay in registers.
        let mut sums = [[arithmetic.zero(); P]; M];
        match self.left.layout {
            LeftLayout::RowMajor => {
                let left = &self.left.data[row * stride..];
                let mut rows: [&[u32]; M] = [&[]; M];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = &left[i * stride + steps.start..][..n];
                }
                for l in 0..n {
                    let mut panels = [arithmetic.load(&PanelRow::ZERO); P];
                    for p in 0..P {
                        panels[p] = arithmetic.load(&right[p][l]);
                    }
                    for i in 0..M {
                        for p in 0..P {
                            sums[i][p] = arithmetic.multiply_add(rows[i][l], panels[p], sums[i][p]);
                        }
                    }
                }
            }
            LeftLayout::StepMajor => {
                let left = &self.left.data[steps.start * stride + row..];
                assert!(
                    left.len() >= (n - 1) * stride + M,
                    "matmul: the left operand is too short"
                );
                for (l, left) in (0..n).zip(left.chunks(stride)) {
                    let Some(left) = left.first_chunk::<M>() else {
                        break;
                    };
                    let mut panels = [arithmetic.load(&PanelRow::ZERO); P];
                    for p in 0..P {
                        panels[p] = arithmetic.load(&right[p][l]);
                    }
                    for i in 0..M {
                        for p in 0..P {
                            sums[i][p] = arithmetic.multiply_add(left[i], panels[p], sums[i][p]);
                        }
                    }
                }
            }
        }
        // Nothing but the store in this loop: it is unrolled only if it is small.
        for i in 0..M {
            for p in 0..P {
                out[i * P + p] = arithmetic.store(sums[i][p]);
            }
        }
    }
}

/// Single precision. The number of accumulators hides the latency of a multiply-add, and leaves registers for the
/// operands: 24 of AVX-512's 32 registers, 12 of AVX2's 16.
struct RunFused<'a, O, F>(TiledMatmul<'a, O>, F);

impl<O: Output, F: Fn(Range<usize>) -> (Range<usize>, usize)> SimdKernel for RunFused<'_, O, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(mut self, simd: S) {
        match V {
            1 => self.0.groups::<_, 8, 3>(Fused::<S, V>(simd), self.1),
            _ => self.0.groups::<_, 6, 1>(Fused::<S, V>(simd), self.1),
        }
    }
}
