//! Muon: SGD with momentum whose update matrices are orthogonalized.
//!
//! The update is that of Jordan et al. 2024 (<https://kellerjordan.github.io/posts/muon/>), with the scale
//! and decay of Liu et al. 2025 (arXiv 2502.16982), so that learning rate and weight decay of AdamW apply.
//! Momentum is a sum, `m = momentum m + g` and `u = g + momentum m`, as in the original post and arXiv 2502.16982. The
//! later code of Jordan et al. takes averages, `m.lerp(g, 1 - momentum)` and
//! `g.lerp(m, momentum)`, which are `1 - momentum` times as large; the orthogonalization removes the
//! factor.

use crate::adamw::{BLOCK, ParameterNorms, Squares};
use crate::matmul::{
    ActiveRegion, Kernel, Left, LeftLayout, OutputRows, PANEL, PanelRow, Rows, TiledMatmul, pack,
    pack_transposed, panels,
};
use crate::parallel::ELEMENTS;
use crate::simd::{dispatch, sum_squares_f64};
use rayon::prelude::*;
use std::ops::Range;

/// Coefficients of the Newton-Schulz iteration: steep at zero, and close enough to one elsewhere.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Added to the norm by which a matrix is divided.
const EPS: f64 = 1e-7;

/// Root mean square of the elements of an update per unit of learning rate, about that of AdamW.
const UPDATE_RMS: f64 = 0.2;

/// Minimum elements of matrices that are processed one after another, so that scratch copies of many
/// threads do not fill the memory.
const LARGE: usize = 1 << 20;

/// Rows of a matmul per task, a multiple of the panel width.
const TILE: usize = 64;

/// Panels of the lower triangle of a square matrix per task: rows differ in length, so tasks are smaller.
const TRIANGLE: usize = 2;

/// Inner indices and columns that are processed before the next block of them: panels of the right operand are still in
/// the L2 cache when the next rows need them.
const INNER: usize = 512;
const COLUMNS: usize = 384;

/// Panels that are packed together, so that most reads cover whole cache lines.
const PACKED: usize = 4;

/// Hyperparameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate.
    pub lr: f64,
    /// Momentum, the decay of the sum of gradients, usually 0.95.
    pub momentum: f64,
    /// True for Nesterov momentum: the gradient is added again to the momentum that already contains it.
    pub nesterov: bool,
    /// Newton-Schulz iterations, usually 5.
    pub iterations: usize,
    /// Factor on the gradients, from clipping by a global norm that the caller computes.
    pub clip_coefficient: f32,
}

/// A matrix or a stack of matrices with gradient and momentum; all slices have the same length.
#[derive(Debug)]
pub struct ParameterState<'a> {
    /// Parameter values.
    pub p: &'a mut [f32],
    /// Gradient.
    pub g: &'a [f32],
    /// Momentum, the decaying sum of gradients.
    pub m: &'a mut [f32],
    /// Columns of the matrix, i.e. inputs.
    pub columns: usize,
    /// Rows of each matrix in the stack; their sum is the number of rows.
    pub rows_per_matrix: &'a [usize],
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
}

/// Returns the scratch elements that [`step`] needs for matrices of `rows_per_matrix` rows and `columns`
/// columns: those of the large ones. Small ones use a buffer per thread, see [`workspace`].
pub fn scratch_len(columns: usize, rows_per_matrix: &[usize]) -> usize {
    max_scratch_elements(columns, rows_per_matrix, |elements| elements >= LARGE)
}

/// Returns an upper bound on the bytes that [`step`] allocates for such matrices on `threads` threads.
pub fn workspace(columns: usize, rows_per_matrix: &[usize], threads: usize) -> usize {
    4 * threads * max_scratch_elements(columns, rows_per_matrix, |elements| elements < LARGE)
}

/// Returns the elements of the largest [`Scratch`] of the matrices whose number of elements `selects`.
fn max_scratch_elements(
    columns: usize,
    rows_per_matrix: &[usize],
    selects: impl Fn(usize) -> bool,
) -> usize {
    let selected = rows_per_matrix
        .iter()
        .filter(|&rows| selects(rows * columns));
    let elements = selected.map(|&rows| Scratch::elements(rows, columns));
    elements.max().unwrap_or(0)
}

/// Updates all matrices in place by one step; returns the norms of each parameter in order; the update norm
/// includes weight decay. `scratch` is at least as long as [`scratch_len`] of every parameter.
///
/// With `g' = clip_coefficient g`: `m = momentum m + g'`, `u = g' + momentum m`, or `u = m` without
/// `nesterov`, and for each matrix of the stack
/// `p = (1 - lr weight_decay) p - 0.2 lr sqrt(max(rows, columns)) O(u)`. O starts from
/// `X = u / (|u| + 1e-7)`, transposed if it has more rows than columns, and iterates `iterations` times
/// `X = a X + (b A + c A^2) X` with `A = X X^T`, which brings its singular values close to 1. A
/// matrix of zeros stays zero.
pub fn step(
    muon: &Muon,
    parameters: &mut [ParameterState],
    scratch: &mut [f32],
) -> Vec<ParameterNorms> {
    for parameter in &*parameters {
        let n = parameter.p.len();
        assert_eq!(parameter.g.len(), n, "muon::step: g is not as long as p");
        assert_eq!(parameter.m.len(), n, "muon::step: m is not as long as p");
        let (rows, columns) = (
            parameter.rows_per_matrix.iter().sum::<usize>(),
            parameter.columns,
        );
        assert_eq!(
            n,
            rows * columns,
            "muon::step: p is not ({rows}, {columns})"
        );
        assert!(
            scratch.len() >= scratch_len(columns, parameter.rows_per_matrix),
            "muon::step: scratch is too short"
        );
    }
    let counts: Vec<usize> = parameters
        .iter()
        .map(|parameter| parameter.rows_per_matrix.len())
        .collect();
    let matrices: Vec<Matrix> = parameters.iter_mut().flat_map(Matrix::split).collect();
    let mut squares = vec![Squares::default(); matrices.len()];
    let (large, small): (Vec<_>, Vec<_>) = matrices
        .into_iter()
        .zip(&mut squares)
        .partition(|(matrix, _)| matrix.p.len() >= LARGE);
    for (matrix, change) in large {
        *change = matrix.step(muon, scratch);
    }
    // Matmuls are multi-threaded as well, for the last of the matrices.
    small
        .into_par_iter()
        .for_each_init(Vec::new, |scratch, (matrix, change)| {
            let needed = Scratch::elements(matrix.rows, matrix.columns);
            scratch.resize(needed.max(scratch.len()), 0.0);
            *change = matrix.step(muon, scratch);
        });
    let mut squares = squares.into_iter();
    let norms = counts.into_iter().map(|count| {
        let matrices = squares.by_ref().take(count);
        let change = matrices.fold(Squares::default(), |sum, change| sum + change);
        ParameterNorms::from(change)
    });
    norms.collect()
}

/// One matrix of a stack.
struct Matrix<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    rows: usize,
    columns: usize,
    weight_decay: f64,
}

impl<'a> Matrix<'a> {
    fn split(parameter: &'a mut ParameterState) -> impl Iterator<Item = Matrix<'a>> {
        let ParameterState {
            columns,
            weight_decay,
            ..
        } = *parameter;
        let (mut p, mut g, mut m) = (&mut *parameter.p, parameter.g, &mut *parameter.m);
        parameter.rows_per_matrix.iter().map(move |&rows| Matrix {
            p: p.split_off_mut(..rows * columns).expect("rows of p"),
            g: g.split_off(..rows * columns).expect("rows of g"),
            m: m.split_off_mut(..rows * columns).expect("rows of m"),
            rows,
            columns,
            weight_decay,
        })
    }

    fn step(self, muon: &Muon, scratch: &mut [f32]) -> Squares {
        let Matrix { rows, columns, .. } = self;
        if self.p.is_empty() {
            return Squares::default();
        }
        let mut scratch = Scratch::new(scratch, rows, columns);
        let norm = accumulate(muon, self.g, self.m, scratch.x).sqrt();
        let factor = (1.0 / (norm + EPS)) as f32;
        scratch.x.par_chunks_mut(ELEMENTS).for_each(|x| {
            dispatch(
                #[inline(always)]
                || x.iter_mut().for_each(|x| *x *= factor),
            );
        });
        let wide = columns > rows;
        if wide {
            transpose(scratch.x, columns, scratch.next);
            std::mem::swap(&mut scratch.x, &mut scratch.next);
        }
        scratch.orthogonalize(rows.min(columns), muon.iterations);
        if wide {
            transpose(scratch.x, rows, scratch.next);
            std::mem::swap(&mut scratch.x, &mut scratch.next);
        }
        let decay_factor = (1.0 - muon.lr * self.weight_decay) as f32;
        let step_size = (muon.lr * UPDATE_RMS * (rows.max(columns) as f64).sqrt()) as f32;
        let chunks = self
            .p
            .par_chunks_mut(ELEMENTS)
            .zip(scratch.x.par_chunks(ELEMENTS))
            .map(|(p, o)| {
                dispatch(
                    #[inline(always)]
                    || apply(p, o, decay_factor, step_size),
                )
            });
        let squares: Vec<Squares> = chunks.collect();
        squares
            .into_iter()
            .fold(Squares::default(), |sum, part| sum + part)
    }
}

/// Adds the gradient to the momentum and writes the matrix to orthogonalize; returns its sum of squares.
fn accumulate(muon: &Muon, g: &[f32], m: &mut [f32], u: &mut [f32]) -> f64 {
    let (scale, momentum) = (muon.clip_coefficient, muon.momentum as f32);
    // Factors on the gradient and on the momentum that contains it.
    let (gradient_factor, momentum_factor) = match muon.nesterov {
        true => (1.0, momentum),
        false => (0.0, 1.0),
    };
    let chunks = m
        .par_chunks_mut(ELEMENTS)
        .zip(g.par_chunks(ELEMENTS))
        .zip(u.par_chunks_mut(ELEMENTS))
        .map(|((m, g), u)| {
            dispatch(
                #[inline(always)]
                || {
                    for ((m, &g), u) in m.iter_mut().zip(g).zip(&mut *u) {
                        let g = g * scale;
                        *m = momentum * *m + g;
                        *u = gradient_factor * g + momentum_factor * *m;
                    }
                    sum_squares_f64(u)
                },
            )
        });
    let squares: Vec<f64> = chunks.collect();
    squares.iter().sum()
}

#[inline(always)]
fn apply(p: &mut [f32], o: &[f32], decay_factor: f32, step_size: f32) -> Squares {
    let mut squares = Squares::default();
    let mut updates = [0.0; BLOCK];
    for (p, o) in p.chunks_mut(BLOCK).zip(o.chunks(BLOCK)) {
        squares.value += sum_squares_f64(p);
        let updates = &mut updates[..p.len()];
        for ((p, &o), update) in p.iter_mut().zip(o).zip(&mut *updates) {
            let new = *p * decay_factor - step_size * o;
            *update = new - *p;
            *p = new;
        }
        squares.update += sum_squares_f64(updates);
    }
    squares
}

/// Writes the transpose of `x` (rows, `columns`) to `out`.
fn transpose(x: &[f32], columns: usize, out: &mut [f32]) {
    let rows = x.len() / columns;
    out.par_chunks_mut(PANEL * rows)
        .enumerate()
        .for_each(|(strip, out)| {
            let width = out.len() / rows;
            for (i, x) in x.chunks_exact(columns).enumerate() {
                for (c, &x) in x[strip * PANEL..][..width].iter().enumerate() {
                    out[c * rows + i] = x;
                }
            }
        });
}

/// A matrix with at least as many rows as columns, and the scratch of its orthogonalization.
///
/// Wide matrices are transposed, which commutes with the iteration: then the one matmul on the long side
/// has many rows, and its right operand is square and symmetric.
struct Scratch<'a> {
    x: &'a mut [f32],
    next: &'a mut [f32],
    /// `x` as a right operand.
    packed: &'a mut [PanelRow],
    /// `A = X^T X` and its polynomial; only lower triangles are stored, up to the end of each row's last
    /// panel.
    gram: &'a mut [f32],
    polynomial: &'a mut [f32],
    /// One of these as a right operand.
    square: &'a mut [PanelRow],
}

impl<'a> Scratch<'a> {
    /// Returns the elements of the scratch of a matrix of this shape.
    fn elements(rows: usize, columns: usize) -> usize {
        let (long, short) = (rows.max(columns), rows.min(columns));
        // With what aligning the panels may skip.
        2 * (long + short) * short + PANEL * ((long + short) * panels(short) + 1)
    }

    fn new(scratch: &'a mut [f32], rows: usize, columns: usize) -> Self {
        let (long, short) = (rows.max(columns), rows.min(columns));
        let count = (long + short) * panels(short);
        let (aligned, mut rest) = scratch.split_at_mut(PANEL * (count + 1));
        let (_, aligned, _) = bytemuck::pod_align_to_mut::<f32, PanelRow>(aligned);
        let (packed, square) = aligned[..count].split_at_mut(long * panels(short));
        let mut take = |n: usize| rest.split_off_mut(..n).expect("memory of a matrix");
        Self {
            packed,
            square,
            x: take(long * short),
            next: take(long * short),
            gram: take(short * short),
            polynomial: take(short * short),
        }
    }

    /// Runs the Newton-Schulz iterations on `x` (rows, `columns`).
    fn orthogonalize(&mut self, columns: usize, iterations: usize) {
        for _ in 0..iterations {
            pack_columns(self.x, columns, self.packed);
            syrk_lower(self.packed, columns, self.gram);
            pack_symmetric(self.gram, columns, self.square);
            syrk_lower(self.square, columns, self.polynomial);
            combine(self.gram, columns, self.polynomial);
            pack_symmetric(self.polynomial, columns, self.square);
            multiply(self.x, self.square, columns, self.next);
            std::mem::swap(&mut self.x, &mut self.next);
        }
    }
}

/// Packs `x` (rows, `columns`) as a right operand.
fn pack_columns(x: &[f32], columns: usize, out: &mut [PanelRow]) {
    let rows = x.len() / columns;
    out.par_chunks_mut(PACKED * rows)
        .enumerate()
        .for_each(|(strip, out)| {
            let first = strip * PACKED * PANEL;
            let width = (PACKED * PANEL).min(columns - first);
            let from = Rows::new(&x[first..], columns);
            pack(Kernel::F32, from, rows, width, out, rows);
        });
}

/// Packs the symmetric matrix whose lower triangle is in `x` as a right operand.
fn pack_symmetric(x: &[f32], n: usize, out: &mut [PanelRow]) {
    out.par_chunks_mut(n).enumerate().for_each(|(panel, out)| {
        let first = panel * PANEL;
        let width = PANEL.min(n - first);
        let (above, below) = out.split_at_mut(first);
        let rows = Rows::new(x, n).from(first);
        if first > 0 {
            pack_transposed(Kernel::F32, rows, width, first, above, first);
        }
        let from = Rows::new(rows.data.skip(first), n);
        pack(Kernel::F32, from, n - first, width, below, n - first);
    });
}

/// Computes the lower triangle of `x^T x` for a packed `x` of `n` columns; each panel of `x` also serves as a
/// column-major left operand.
fn syrk_lower(x: &[PanelRow], n: usize, out: &mut [f32]) {
    let inner = x.len() / panels(n);
    out.par_chunks_mut(TRIANGLE * PANEL * n)
        .enumerate()
        .for_each(|(tile, out)| {
            for (i, c) in out.chunks_mut(PANEL * n).enumerate() {
                let panel = tile * TRIANGLE + i;
                let left = Left {
                    data: bytemuck::cast_slice(&x[panel * inner..][..inner]),
                    stride: PANEL,
                    layout: LeftLayout::StepMajor,
                };
                multiply_blocks(left, x, inner, n, c, |rows| n.min(panel * PANEL + rows.end));
            }
        });
}

/// Computes `a + b A + c A^2` from the lower triangles of `A` and `A^2`, in place of `A^2`.
fn combine(gram: &[f32], n: usize, square: &mut [f32]) {
    let [a, b, c] = COEFFICIENTS;
    square
        .par_chunks_mut(TILE * n)
        .zip(gram.par_chunks(TILE * n))
        .enumerate()
        .for_each(|(tile, (square, gram))| {
            let rows = square.chunks_exact_mut(n).zip(gram.chunks_exact(n));
            for (i, (square, gram)) in (tile * TILE..).zip(rows) {
                let stored = n.min(panels(i + 1) * PANEL);
                dispatch(
                    #[inline(always)]
                    || {
                        for (square, gram) in square[..stored].iter_mut().zip(gram) {
                            *square = b * gram + c * *square;
                        }
                    },
                );
                square[i] += a;
            }
        });
}

/// Computes `out = x right` for rows of `n` and a square right operand.
fn multiply(x: &[f32], right: &[PanelRow], n: usize, out: &mut [f32]) {
    out.par_chunks_mut(TILE * n)
        .zip(x.par_chunks(TILE * n))
        .for_each(|(c, data)| {
            let left = Left::in_place(Rows::new(data, n));
            multiply_blocks(left, right, n, n, c, |_| n);
        });
}

/// Computes rows of `n` of a matmul with inner dimension `inner`; of a block of rows only the leading columns that
/// `active` returns.
fn multiply_blocks(
    left: Left,
    right: &[PanelRow],
    inner: usize,
    n: usize,
    out: &mut [f32],
    active: impl Fn(Range<usize>) -> usize,
) {
    let rows = out.len() / n;
    for start in (0..inner).step_by(INNER) {
        for column in (0..n).step_by(COLUMNS) {
            TiledMatmul {
                kernel: Kernel::F32,
                left,
                rows,
                right: &right[column / PANEL * inner..],
                steps: inner,
                columns: COLUMNS.min(n - column),
                out: OutputRows {
                    data: &mut out[column..],
                    stride: n,
                    accumulate: start > 0,
                },
            }
            .run_active(|rows| ActiveRegion {
                inner: start..inner.min(start + INNER),
                columns: active(rows).saturating_sub(column),
            });
        }
    }
}

#[cfg(test)]
mod tests;
