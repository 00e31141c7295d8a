//! Small in-cache matmuls, for ops that work tile by tile.
//!
//! The right operand is packed once into panels of 16 columns and read many times. Each output element
//! is one chain of fused multiply-adds over the inner index, so that its bits do not depend on the
//! vector width of the machine. Blocks that are not needed, such as those hidden by a causal mask, are
//! skipped.

use crate::simd::{Chunk, LANES, SimdKernel, run_simd, vectors, vectors_mut};
use pulp::Simd;
use std::ops::Range;

/// Columns of a panel.
pub(crate) const PANEL: usize = LANES;

/// One row of a panel.
pub(crate) type PanelRow = Chunk;

/// Returns the number of panels for `columns` columns.
pub(crate) fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Rows of a matrix: row i starts at `i * stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn from(self, row: usize) -> Rows<'a> {
        Rows {
            data: &self.data[row * self.stride..],
            stride: self.stride,
        }
    }

    pub(crate) fn row(&self, row: usize, width: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..width]
    }
}

/// Packs `n` rows of `width` as the right operand (n, width): panel p holds columns `16 p ..` as n rows; columns beyond
/// the width are zero.
pub(crate) fn pack(rows: Rows, n: usize, width: usize, out: &mut [PanelRow]) {
    for i in 0..n {
        let row = rows.row(i, width);
        let (whole, rest) = row.as_chunks::<PANEL>();
        for (p, values) in whole.iter().enumerate() {
            out[p * n + i] = *values;
        }
        if !rest.is_empty() {
            let padded = &mut out[whole.len() * n + i];
            padded.fill(0.0);
            padded[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Packs `n` rows of `width` as the right operand (width, n): panel p holds rows `16 p ..` as its columns;
/// columns beyond n are zero.
pub(crate) fn pack_transposed(rows: Rows, n: usize, width: usize, out: &mut [PanelRow]) {
    for (p, panel) in out.chunks_exact_mut(width).take(panels(n)).enumerate() {
        let count = PANEL.min(n - p * PANEL);
        if count == PANEL {
            // Rows of the panel in the outer loop: each is written once, as a whole.
            let mut columns: [&[f32]; PANEL] = [&[]; PANEL];
            for (i, column) in columns.iter_mut().enumerate() {
                *column = rows.row(p * PANEL + i, width);
            }
            for (c, out) in panel.iter_mut().enumerate() {
                for (out, column) in out.iter_mut().zip(&columns) {
                    *out = column[c];
                }
            }
        } else {
            panel.as_flattened_mut().fill(0.0);
            for column in 0..count {
                let row = rows.row(p * PANEL + column, width);
                for (out, &value) in panel.iter_mut().zip(row) {
                    out[column] = value;
                }
            }
        }
    }
}

/// Memory layout of the left operand.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LhsLayout {
    /// Element (i, l) at `i * stride + l`.
    RowMajor,
    /// Element (i, l) at `l * stride + i`.
    ColumnMajor,
}

/// Matmul `c = a b`, or `c += a b`.
pub(crate) struct PackedMatmul<'a> {
    /// Left operand, (m, inner).
    pub(crate) a: Rows<'a>,
    pub(crate) a_layout: LhsLayout,
    pub(crate) m: usize,
    /// Right operand, (inner, n), packed.
    pub(crate) b: &'a [PanelRow],
    pub(crate) inner: usize,
    pub(crate) n: usize,
    /// Output rows of n values, with stride `c_stride`.
    pub(crate) c: &'a mut [f32],
    pub(crate) c_stride: usize,
    pub(crate) accumulate: bool,
}

/// Needed part of a block of output rows.
pub(crate) struct ActiveRegion {
    /// Inner indices with nonzero terms.
    pub(crate) inner: Range<usize>,
    /// Number of leading columns that are read afterwards; their last panel is written as a whole.
    pub(crate) columns: usize,
}

impl PackedMatmul<'_> {
    /// Runs the matmul; of each block of rows only the part returned by `active`, which must be within the
    /// operands.
    #[inline(always)]
    pub(crate) fn run(self, active: impl Fn(Range<usize>) -> ActiveRegion) {
        run_simd(Run {
            matmul: self,
            active,
        });
    }
}

struct Run<'a, F> {
    matmul: PackedMatmul<'a>,
    active: F,
}

impl<F: Fn(Range<usize>) -> ActiveRegion> SimdKernel for Run<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        // Enough accumulators to hide the latency of a multiply-add, few enough to stay in registers: 16 of AVX-512's
        // 32 registers, each of which holds a panel row, else 12 of AVX2's 16.
        match V {
            1 => self.blocks::<S, V, 8, 2>(simd),
            _ => self.blocks::<S, V, 6, 1>(simd),
        }
    }
}

impl<F: Fn(Range<usize>) -> ActiveRegion> Run<'_, F> {
    /// Iterates over blocks of `M` rows and `P` panels, with smaller ones at the edges.
    #[inline(always)]
    fn blocks<S: Simd, const V: usize, const M: usize, const P: usize>(mut self, simd: S) {
        let m = self.matmul.m;
        for first in (0..panels(self.matmul.n)).step_by(P) {
            let mut row = 0;
            while row < m {
                let rows = match m - row {
                    rest if rest >= M => self.rows::<S, V, M, P>(simd, row, first),
                    4.. => self.rows::<S, V, 4, P>(simd, row, first),
                    2.. => self.rows::<S, V, 2, P>(simd, row, first),
                    _ => self.rows::<S, V, 1, P>(simd, row, first),
                };
                row += rows;
            }
        }
    }

    /// Computes rows `row..row + M` of up to `P` panels from `first` on, as far as they are active; returns `M`.
    #[inline(always)]
    fn rows<S: Simd, const V: usize, const M: usize, const P: usize>(
        &mut self,
        simd: S,
        row: usize,
        first: usize,
    ) -> usize {
        let ActiveRegion { inner, columns } = (self.active)(row..row + M);
        match panels(columns.min(self.matmul.n)).saturating_sub(first) {
            0 => (),
            count if count >= P => self.block::<S, V, M, P>(simd, row, first, inner),
            _ => self.block::<S, V, M, 1>(simd, row, first, inner),
        }
        M
    }

    /// Computes rows `row..row + M` of panels `first..first + P`.
    #[inline(always)]
    fn block<S: Simd, const V: usize, const M: usize, const P: usize>(
        &mut self,
        simd: S,
        row: usize,
        first: usize,
        inner: Range<usize>,
    ) {
        let matmul = &mut self.matmul;
        let mut right: [&[PanelRow]; P] = [&[]; P];
        for (p, right) in right.iter_mut().enumerate() {
            *right = &matmul.b[(first + p) * matmul.inner..][inner.clone()];
        }
        let stride = matmul.a.stride;
        // Accumulators are indexed by constants only; otherwise they would not stay in registers.
        let mut sums = [[[simd.splat_f32s(0.0); V]; P]; M];
        match matmul.a_layout {
            LhsLayout::RowMajor => {
                let a = &matmul.a.data[row * stride..];
                let mut rows: [&[f32]; M] = [&[]; M];
                for i in 0..M {
                    rows[i] = &a[i * stride..][inner.clone()];
                }
                for l in 0..inner.len() {
                    let b = right.map(|right| vectors::<S, V>(&right[l]));
                    for i in 0..M {
                        let a = simd.splat_f32s(rows[i][l]);
                        for p in 0..P {
                            for v in 0..V {
                                sums[i][p][v] = simd.mul_add_f32s(a, b[p][v], sums[i][p][v]);
                            }
                        }
                    }
                }
            }
            LhsLayout::ColumnMajor => {
                let a = &matmul.a.data[inner.start * stride + row..];
                let steps = inner.len().saturating_sub(1);
                assert!(
                    a.len() >= steps * stride + M,
                    "panels: the left operand is too short"
                );
                for (l, a) in (0..inner.len()).zip(a.chunks(stride)) {
                    // A panic here would move the accumulators out of registers.
                    let Some(a) = a.first_chunk::<M>() else { break };
                    let b = right.map(|right| vectors::<S, V>(&right[l]));
                    for i in 0..M {
                        let a = simd.splat_f32s(a[i]);
                        for p in 0..P {
                            for v in 0..V {
                                sums[i][p][v] = simd.mul_add_f32s(a, b[p][v], sums[i][p][v]);
                            }
                        }
                    }
                }
            }
        }
        matmul.store(simd, row, first, &sums);
    }
}

impl PackedMatmul<'_> {
    /// Writes or adds a block of sums to the output.
    #[inline(always)]
    fn store<S: Simd, const V: usize, const M: usize, const P: usize>(
        &mut self,
        simd: S,
        row: usize,
        first: usize,
        sums: &[[[S::f32s; V]; P]; M],
    ) {
        for (i, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                let start = (first + p) * PANEL;
                let c = &mut self.c[(row + i) * self.c_stride + start..];
                let c = &mut c[..PANEL.min(self.n - start)];
                match <&mut PanelRow>::try_from(&mut *c) {
                    Ok(c) => {
                        let c = vectors_mut::<S, V>(c);
                        for v in 0..V {
                            c[v] = match self.accumulate {
                                true => simd.add_f32s(c[v], sums[v]),
                                false => sums[v],
                            };
                        }
                    }
                    Err(_) => {
                        let mut row = [0.0; PANEL];
                        S::as_mut_simd_f32s(&mut row).0.copy_from_slice(sums);
                        for (c, sum) in c.iter_mut().zip(row) {
                            *c = if self.accumulate { *c + sum } else { sum };
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_all_close};
    use proptest::prelude::*;
    use std::cell::Cell;

    /// Runs with the block sizes of AVX-512 on any machine.
    struct Avx512Blocks<'a, F>(Run<'a, F>);

    impl<F: Fn(Range<usize>) -> ActiveRegion> SimdKernel for Avx512Blocks<'_, F> {
        type Output = ();

        fn run<S: Simd, const V: usize>(self, simd: S) {
            self.0.blocks::<S, V, 8, 2>(simd);
        }
    }

    /// Computes the matmul by definition, overwriting `before` or added to it; its rows may be longer than n.
    fn naive(
        [m, n, inner]: [usize; 3],
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        before: &[f32],
        accumulate: bool,
    ) -> Vec<f64> {
        let mut out: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        let stride = before.len() / m;
        for i in 0..m {
            for j in 0..n {
                let terms = (0..inner).map(|l| f64::from(a(i, l)) * f64::from(b(l, j)));
                let sum: f64 = terms.sum();
                let at = i * stride + j;
                out[at] = sum + if accumulate { out[at] } else { 0.0 };
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn matmuls_match_the_definition(
            m in 1usize..20, n in 1usize..40, inner in 1usize..30, by_column in any::<bool>(),
            transposed in any::<bool>(), accumulate in any::<bool>(), padding in 0usize..3,
            first in 0usize..8, seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let (a_layout, stride) = match by_column {
                true => (LhsLayout::ColumnMajor, m + padding),
                false => (LhsLayout::RowMajor, inner + padding),
            };
            let mut a = rng.normal(m.max(inner) * stride);
            // Row i has nonzero terms up to inner index first + i.
            let active_inner = |i: usize| (first + i + 1).min(inner);
            for i in 0..m {
                for l in active_inner(i)..inner {
                    a[if by_column { l * stride + i } else { i * stride + l }] = 0.0;
                }
            }
            let a_at = |i: usize, l: usize| match a_layout {
                LhsLayout::RowMajor => a[i * stride + l],
                LhsLayout::ColumnMajor => a[l * stride + i],
            };
            let (rows, width) = if transposed { (n, inner) } else { (inner, n) };
            let b = rng.normal(rows * (width + padding));
            let b_rows = Rows { data: &b, stride: width + padding };
            let mut packed = vec![[f32::NAN; PANEL]; panels(n) * inner];
            let pack_rows = if transposed { pack_transposed } else { pack };
            pack_rows(b_rows, rows, width, &mut packed);
            let b_at = |l: usize, j: usize| match transposed {
                true => b[j * (width + padding) + l],
                false => b[l * (width + padding) + j],
            };
            let before = rng.normal(m * (n + padding));
            let want = naive([m, n, inner], a_at, b_at, &before, accumulate);
            let mut found = [before.clone(), before];
            for (avx512_blocks, c) in [false, true].into_iter().zip(&mut found) {
                let matmul = PackedMatmul {
                    a: Rows { data: &a, stride },
                    a_layout,
                    m,
                    b: &packed,
                    inner,
                    n,
                    c,
                    c_stride: n + padding,
                    accumulate,
                };
                let active = |rows: Range<usize>| ActiveRegion {
                    inner: 0..active_inner(rows.end - 1),
                    columns: n,
                };
                match avx512_blocks {
                    false => matmul.run(active),
                    true => run_simd(Avx512Blocks(Run { matmul, active })),
                }
            }
            assert_all_close(&found[0], &want, 1e-5);
            prop_assert_eq!(&found[0], &found[1]);
        }
    }

    #[test]
    fn inactive_columns_are_not_written() {
        let b = vec![[1.0; PANEL]; 3 * 2];
        let cases = [(0, 0), (9, 16), (17, 32), (33, 40), (40, 40)];
        let cases = cases.into_iter().flat_map(|c| [(c, false), (c, true)]);
        for ((active, written), avx512_blocks) in cases {
            let mut c = vec![-1.0; 7 * 40];
            let matmul = PackedMatmul {
                a: Rows {
                    data: &[1.0; 14],
                    stride: 2,
                },
                a_layout: LhsLayout::RowMajor,
                m: 7,
                b: &b,
                inner: 2,
                n: 40,
                c: &mut c,
                c_stride: 40,
                accumulate: false,
            };
            // Needed columns of the first block; the other blocks need all.
            let first = Cell::new(0);
            let active = |rows: Range<usize>| ActiveRegion {
                inner: 0..2,
                columns: if rows.start == 0 {
                    first.set(rows.end);
                    active
                } else {
                    40
                },
            };
            match avx512_blocks {
                false => matmul.run(active),
                true => run_simd(Avx512Blocks(Run { matmul, active })),
            }
            assert!((1..7).contains(&first.get()));
            for (i, row) in c.chunks(40).enumerate() {
                let written = if i < first.get() { written } else { 40 };
                assert!(row[..written].iter().all(|&v| v == 2.0), "{written}");
                assert!(row[written..].iter().all(|&v| v == -1.0), "{written}");
            }
        }
    }
}
