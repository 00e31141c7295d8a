//! Output projection fused with the cross-entropy loss: logits are materialized for one chunk of rows at a time.
//!
//! For a row `x` with target `t`: `z = logit_scale * w x`, soft-capped to
//! `softcap * tanh(z / softcap)` if a cap is set (Gemma 2, arXiv 2408.00118); the cross-entropy is
//! `logsumexp(z) - z_t` and the z-loss `logsumexp(z)^2` (PaLM, arXiv 2204.02311, section 5).
//! With `p = softmax(z)` the gradient of their weighted sum is
//! `dz = (p * (1 + 2 z_loss logsumexp(z)) - onehot(t)) / divisor`.

use crate::floats::{Floats, FloatsMut, narrow};
use crate::math::{exp_bounded, tanh};
use crate::matmul::{
    Matrix, MatrixMut, Packed, Precision, multiply, multiply_add, multiply_transposed,
    transposed_workspace, workspace,
};
use crate::simd::{dispatch, map_sum, max, sum};
use half::bf16;
use rayon::prelude::*;

/// Maximum number of logits in memory at once: 64 MiB.
const MAX_LOGITS: usize = 16 << 20;
/// Minimum and maximum rows per chunk. Each chunk packs the weights twice, and reads and writes their gradient, which
/// takes 5 to 8 % less time with 1024 rows than with 512 at d384.
const ROWS: (usize, usize) = (16, 1024);
/// Vocabulary entries that are packed at a time.
const ENTRIES: usize = 4096;
/// Rows whose stride is a multiple of this many values map to the same set of the L1 cache, while a matmul reads dozens
/// of them side by side.
const CACHE_SET_STRIDE: usize = 1024;
/// Padding of a row, in values, that places neighbouring rows in different cache sets.
const PADDING: usize = 16;
/// Terms summed in single precision before they are added to a double-precision sum.
const SUM_BLOCK: usize = 4096;

/// Shape and parameters of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSpec {
    /// Width of a row of `x`.
    pub width: usize,
    /// Rows of `w`.
    pub vocab: usize,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// Soft cap of the scaled logits.
    pub softcap: Option<f32>,
    /// Weight of the z-loss in the gradient.
    pub z_loss: f32,
    /// Divisor of the gradient, usually the number of tokens of the global batch.
    pub divisor: f32,
    /// Precision of the operands of the matmuls.
    pub precision: Precision,
}

/// Sums over the rows with a target, not divided by their number; the cross-entropy is in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of `logsumexp(z) - z_target`.
    pub cross_entropy: f64,
    /// Sum of `logsumexp(z)^2`, without the weight `z_loss`.
    pub z: f64,
    /// Rows with a target.
    pub tokens: usize,
}

/// Computes the loss of `x` (n, width) under `w` (vocab, width) and `targets` (n).
///
/// Rows with target -1 are ignored. If `nll` (n) is given, it receives the cross-entropy of each row, 0
/// for ignored rows. `logits` is scratch for a chunk of logits, at least [`LossSpec::scratch_len`] long.
///
/// # Panics
///
/// If a target is below -1 or not below `vocab`.
///
/// ```
/// use hybridnorm_kernels::cross_entropy::{LossSpec, loss};
/// use hybridnorm_kernels::matmul::Precision;
///
/// let spec = LossSpec {
///     width: 1,
///     vocab: 2,
///     logit_scale: 1.0,
///     softcap: None,
///     z_loss: 0.0,
///     divisor: 1.0,
///     precision: Precision::F32,
/// };
/// let mut logits = vec![0.0; spec.scratch_len(1)];
/// let sums = loss(&spec, &[0.0f32], &[1.0, 2.0], &[1], None, &mut logits);
/// assert!((sums.cross_entropy - 2f64.ln()).abs() < 1e-6);
/// ```
pub fn loss<'a>(
    spec: &LossSpec,
    x: impl Into<Floats<'a>>,
    w: impl Into<Floats<'a>>,
    targets: &[i32],
    nll: Option<&mut [f32]>,
    logits: &mut [f32],
) -> LossSums {
    let (x, w) = (x.into(), w.into());
    spec.check("cross_entropy::loss", x.len(), w.len(), targets);
    assert!(
        logits.len() >= spec.scratch_len(targets.len()),
        "cross_entropy::loss: logits is shorter than a chunk"
    );
    let mut rows = vec![RowLoss::default(); targets.len()];
    let chunk = spec.rows_per_chunk();
    let chunks = targets.chunks(chunk).zip(rows.chunks_mut(chunk));
    for (c, (targets, rows)) in chunks.enumerate() {
        let x = spec.chunk_of(x, c * chunk, targets.len());
        let logits = spec.logits(x, w, logits);
        let each = spec.rows_of(logits).zip(targets).zip(rows);
        each.for_each(|((z, &target), row)| *row = spec.row_loss(z, target));
    }
    if let Some(nll) = nll {
        assert_eq!(nll.len(), rows.len(), "cross_entropy::loss: nll is not (n)");
        for (nll, row) in nll.iter_mut().zip(&rows) {
            *nll = row.cross_entropy as f32;
        }
    }
    LossSums::of(&rows)
}

/// Computes the loss as in [`loss`], and the gradients of
/// `(cross_entropy + z_loss * z) / divisor` with respect to `x` (n, width) and `w` (vocab, width).
///
/// `logits` is scratch for a chunk of logits, at least [`LossSpec::scratch_len`] long.
pub fn loss_and_gradients<'a>(
    spec: &LossSpec,
    x: impl Into<Floats<'a>>,
    w: impl Into<Floats<'a>>,
    targets: &[i32],
    dx: impl Into<FloatsMut<'a>>,
    dw: &mut [f32],
    logits: &mut [f32],
) -> LossSums {
    let (x, w, mut dx) = (x.into(), w.into(), dx.into());
    spec.check(
        "cross_entropy::loss_and_gradients",
        x.len(),
        w.len(),
        targets,
    );
    assert_eq!(
        dx.len(),
        x.len(),
        "cross_entropy::loss_and_gradients: dx is not as long as x"
    );
    assert_eq!(
        dw.len(),
        w.len(),
        "cross_entropy::loss_and_gradients: dw is not as long as w"
    );
    let LossSpec { width, vocab, .. } = *spec;
    assert!(
        logits.len() >= spec.scratch_len(targets.len()),
        "cross_entropy::loss_and_gradients: logits is shorter than a chunk"
    );
    let mut rows = vec![RowLoss::default(); targets.len()];
    let chunk = spec.rows_per_chunk();
    if targets.is_empty() {
        dw.fill(0.0);
    }
    let mut sums = Vec::new();
    let chunks = targets.chunks(chunk).zip(rows.chunks_mut(chunk));
    for (c, (targets, rows)) in chunks.enumerate() {
        let n = targets.len();
        let x = spec.chunk_of(x, c * chunk, n);
        let logits = spec.logits(x, w, logits);
        let each = spec.rows_of(logits).zip(targets).zip(rows);
        each.for_each(|((z, &target), row)| {
            *row = spec.row_loss_and_gradient(z, target);
            if spec.precision == Precision::Bf16 {
                narrow_in_place(z);
            }
        });
        let dlogits = spec.gradient_of_logits(logits, n);
        let (chunk, rest) = dx.split_at(n * width);
        dx = rest;
        match chunk {
            FloatsMut::F32(dx) => spec.input_gradient(dlogits, w, dx),
            FloatsMut::Bf16(dx) => {
                sums.resize(n * width, 0.0);
                spec.input_gradient(dlogits, w, &mut sums);
                FloatsMut::Bf16(dx).copy_from(&sums);
            }
        }
        let dw = MatrixMut::new(&mut *dw, vocab, width);
        multiply_transposed(spec.precision, dlogits, x, dw, spec.logit_scale, c > 0);
    }
    LossSums::of(&rows)
}

/// Computes the loss of given logits (n, vocab); scale and cap of the spec are not applied.
pub fn loss_from_logits(spec: &LossSpec, logits: &[f32], targets: &[i32]) -> LossSums {
    spec.check_targets("cross_entropy::loss_from_logits", targets);
    let mut rows = vec![RowLoss::default(); targets.len()];
    let each = logits.par_chunks(spec.vocab).zip(targets).zip(&mut rows);
    each.for_each(|((z, &target), row)| *row = row_loss(z, target));
    LossSums::of(&rows)
}

/// Replaces the logits (n, vocab) by the gradient of
/// `upstream * (cross_entropy + z_loss * z) / divisor`.
pub fn logits_backward(spec: &LossSpec, logits: &mut [f32], targets: &[i32], upstream: f32) {
    spec.check_targets("cross_entropy::logits_backward", targets);
    let each = logits.par_chunks_mut(spec.vocab).zip(targets);
    each.for_each(|(z, &target)| {
        spec.uncapped_loss_and_gradient(z, target);
        z.iter_mut().for_each(|z| *z *= upstream);
    });
}

/// Returns the stride of rows of `width` values with which neighbouring rows do not map to the same cache set.
fn row_stride(width: usize) -> usize {
    match width > 0 && width.is_multiple_of(CACHE_SET_STRIDE) {
        true => width + PADDING,
        false => width,
    }
}

/// Rounds a row to bfloat16, into the first half of its memory: both matmuls that read it round their operands, and
/// would do so for every block of columns.
fn narrow_in_place(row: &mut [f32]) {
    const BLOCK: usize = 256;
    dispatch(
        #[inline(always)]
        || {
            for start in (0..row.len()).step_by(BLOCK) {
                let part = start..row.len().min(start + BLOCK);
                let mut block = [bf16::ZERO; BLOCK];
                let block = &mut block[..part.len()];
                narrow(&row[part.clone()], block);
                bytemuck::cast_slice_mut::<f32, bf16>(row)[part].copy_from_slice(block);
            }
        },
    );
}

/// Result for one row.
#[derive(Clone, Copy, Default)]
struct RowLoss {
    has_target: bool,
    log_sum_exp: f64,
    cross_entropy: f64,
}

/// Computes the loss of a row from its logits.
fn row_loss(z: &[f32], target: i32) -> RowLoss {
    let Ok(target) = usize::try_from(target) else {
        return RowLoss::default();
    };
    let (_, log_sum_exp) = largest_and_log_sum_exp(z);
    RowLoss {
        has_target: true,
        log_sum_exp,
        cross_entropy: log_sum_exp - f64::from(z[target]),
    }
}

/// Returns the largest logit of a row, and the logarithm of the sum of the exponentials of all.
fn largest_and_log_sum_exp(z: &[f32]) -> (f32, f64) {
    let (largest, total) = dispatch(
        #[inline(always)]
        || {
            let largest = max(z);
            let block = |z: &[f32]| f64::from(sum(z, |z| exp_bounded(z - largest)));
            let mut total = 0.0f64;
            for z in z.chunks(SUM_BLOCK) {
                total += block(z);
            }
            (largest, total)
        },
    );
    (largest, f64::from(largest) + total.ln())
}

/// Log-partition function and most likely entry of a row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSummary {
    /// Logarithm of the sum of the exponentials of the logits: `log p(i) = z[i] - log_sum_exp`.
    pub log_sum_exp: f64,
    /// Index of the largest logit, the first of several equal ones.
    pub argmax: usize,
}

/// Summarizes each row of logits (n, vocab).
///
/// # Panics
/// If `vocab` is 0 or the logits are not whole rows.
pub fn summarize_rows(logits: &[f32], vocab: usize) -> Vec<RowSummary> {
    assert!(
        vocab > 0 && logits.len().is_multiple_of(vocab),
        "cross_entropy::summarize_rows: logits are not (n, {vocab})"
    );
    let rows = logits.par_chunks(vocab).map(|z| {
        let (largest, log_sum_exp) = largest_and_log_sum_exp(z);
        RowSummary {
            log_sum_exp,
            argmax: z.iter().position(|&z| z == largest).unwrap_or(0),
        }
    });
    rows.collect()
}

impl LossSums {
    fn of(rows: &[RowLoss]) -> Self {
        let mut sums = LossSums::default();
        for row in rows.iter().filter(|row| row.has_target) {
            sums.cross_entropy += row.cross_entropy;
            sums.z += row.log_sum_exp * row.log_sum_exp;
            sums.tokens += 1;
        }
        sums
    }
}

impl LossSpec {
    fn check(&self, name: &str, x: usize, w: usize, targets: &[i32]) {
        let LossSpec { width, vocab, .. } = *self;
        let n = targets.len();
        assert!(
            width > 0 && vocab > 0,
            "{name}: width and vocab must not be 0"
        );
        assert_eq!(x, n * width, "{name}: x is not ({n}, {width})");
        assert_eq!(w, vocab * width, "{name}: w is not ({vocab}, {width})");
        self.check_targets(name, targets);
    }

    fn check_targets(&self, name: &str, targets: &[i32]) {
        let vocab = self.vocab;
        for &target in targets {
            let known = target == -1 || usize::try_from(target).is_ok_and(|t| t < vocab);
            assert!(
                known,
                "{name}: target {target} is neither -1 nor in 0..{vocab}"
            );
        }
    }

    fn rows_per_chunk(&self) -> usize {
        (MAX_LOGITS / self.vocab).clamp(ROWS.0, ROWS.1)
    }

    /// Returns the length of the logits scratch for `rows` rows.
    pub fn scratch_len(&self, rows: usize) -> usize {
        let rows = rows.min(self.rows_per_chunk());
        rows.saturating_mul(row_stride(self.vocab))
    }

    /// Returns an upper bound on the bytes that [`loss`] and [`loss_and_gradients`] of `rows` rows allocate on
    /// `threads` threads.
    pub fn workspace(&self, rows: usize, threads: usize) -> usize {
        let LossSpec {
            width,
            vocab,
            precision,
            ..
        } = *self;
        let (n, entries) = (rows.min(self.rows_per_chunk()), vocab.min(ENTRIES));
        let of_logits = workspace(precision, n, entries, width, threads);
        let of_input = workspace(precision, n, width, entries, threads);
        let of_weight = transposed_workspace(precision, vocab, width, n, threads);
        // The gradient of the input before it is rounded.
        let sums = match precision {
            Precision::F32 => 0,
            Precision::Bf16 => 4 * n * width,
        };
        of_logits.max(of_input).max(of_weight) + sums + rows * size_of::<RowLoss>()
    }

    /// Returns `n` rows of `x`.
    fn chunk_of<'a>(&self, x: Floats<'a>, first: usize, n: usize) -> Matrix<'a> {
        let width = self.width;
        Matrix::new(x.slice(first * width..(first + n) * width), n, width)
    }

    /// Returns the logits of each row of a chunk.
    fn rows_of<'a>(
        &self,
        logits: &'a mut [f32],
    ) -> impl IndexedParallelIterator<Item = &'a mut [f32]> {
        let vocab = self.vocab;
        let rows = logits.par_chunks_mut(row_stride(vocab));
        rows.map(move |row| &mut row[..vocab])
    }

    /// Computes the scaled logits `x w^T` of a chunk, [`row_stride`] apart; divided by the soft cap if there
    /// is one, as input of the tanh.
    fn logits<'a>(&self, x: Matrix, w: Floats, scratch: &'a mut [f32]) -> &'a mut [f32] {
        let (n, stride) = (x.rows(), row_stride(self.vocab));
        let scratch = &mut scratch[..n * stride];
        let scale = self.logit_scale / self.softcap.unwrap_or(1.0);
        for (first, w) in self.blocks(w) {
            let entries = w.rows();
            let packed = Packed::transposed(self.precision, w);
            let out = MatrixMut::with_stride(&mut scratch[first..], n, entries, stride);
            multiply(x, &packed, out, scale);
        }
        scratch
    }

    /// Returns the gradient of the logits of `n` rows: in bfloat16 after [`narrow_in_place`].
    fn gradient_of_logits<'a>(&self, rows: &'a [f32], n: usize) -> Matrix<'a> {
        let (vocab, stride) = (self.vocab, row_stride(self.vocab));
        match self.precision {
            Precision::F32 => Matrix::with_stride(rows, n, vocab, stride),
            Precision::Bf16 => {
                let rows: &[bf16] = bytemuck::cast_slice(rows);
                Matrix::with_stride(rows, n, vocab, 2 * stride)
            }
        }
    }

    /// Computes the gradient of rows of `x` from that of their logits.
    fn input_gradient(&self, dlogits: Matrix, w: Floats, dx: &mut [f32]) {
        let n = dlogits.rows();
        for (first, w) in self.blocks(w) {
            let packed = Packed::new(self.precision, w);
            let out = MatrixMut::new(&mut *dx, n, self.width);
            let dlogits = dlogits.columns(first..first + w.rows());
            match first {
                0 => multiply(dlogits, &packed, out, self.logit_scale),
                _ => multiply_add(dlogits, &packed, out, self.logit_scale),
            }
        }
    }

    /// Splits `w` into blocks of rows whose packed copies do not take much memory; returns the first row of each.
    fn blocks<'a>(&self, w: Floats<'a>) -> impl Iterator<Item = (usize, Matrix<'a>)> {
        let (width, entries) = (self.width, self.vocab);
        (0..entries).step_by(ENTRIES).map(move |first| {
            let rows = ENTRIES.min(entries - first);
            let w = w.slice(first * width..(first + rows) * width);
            (first, Matrix::new(w, rows, width))
        })
    }

    /// Applies the soft cap to the logits `z` of a row and computes their loss.
    fn row_loss(&self, z: &mut [f32], target: i32) -> RowLoss {
        if let Some(cap) = self.softcap {
            dispatch(
                #[inline(always)]
                || {
                    map_sum(z, |z| cap * tanh(z));
                },
            );
        }
        row_loss(z, target)
    }

    /// Computes the loss of a row without a soft cap and replaces its logits by their gradient; the log-sum-exp and the
    /// gradient share the exponentials.
    fn uncapped_loss_and_gradient(&self, z: &mut [f32], target: i32) -> RowLoss {
        let Ok(target) = usize::try_from(target) else {
            z.fill(0.0);
            return RowLoss::default();
        };
        let logit = f64::from(z[target]);
        let (largest, total) = dispatch(
            #[inline(always)]
            || {
                let largest = max(z);
                let mut total = 0.0f64;
                for z in z.chunks_mut(SUM_BLOCK) {
                    total += f64::from(map_sum(z, |z| exp_bounded(z - largest)));
                }
                (largest, total)
            },
        );
        let log_sum_exp = f64::from(largest) + total.ln();
        let weight = self.gradient_weight(log_sum_exp) / total;
        let weight = weight as f32;
        dispatch(
            #[inline(always)]
            || z.iter_mut().for_each(|z| *z *= weight),
        );
        z[target] -= 1.0 / self.divisor;
        RowLoss {
            has_target: true,
            log_sum_exp,
            cross_entropy: log_sum_exp - logit,
        }
    }

    /// Computes the loss of a row from its logits before the soft cap, and replaces them by their gradient.
    fn row_loss_and_gradient(&self, z: &mut [f32], target: i32) -> RowLoss {
        match self.softcap {
            None => self.uncapped_loss_and_gradient(z, target),
            Some(cap) => {
                let row = self.row_loss(z, target);
                self.logits_gradient(z, target, row.log_sum_exp, cap);
                row
            }
        }
    }

    /// Returns the factor on the probabilities in the gradient.
    fn gradient_weight(&self, log_sum_exp: f64) -> f64 {
        (1.0 + 2.0 * f64::from(self.z_loss) * log_sum_exp) / f64::from(self.divisor)
    }

    /// Replaces the logits of a row, capped at `cap`, by the gradient with respect to `logit_scale * w x`.
    fn logits_gradient(&self, z: &mut [f32], target: i32, log_sum_exp: f64, cap: f32) {
        let Ok(target) = usize::try_from(target) else {
            return z.fill(0.0);
        };
        let (weight, log_sum_exp) = (self.gradient_weight(log_sum_exp) as f32, log_sum_exp as f32);
        let derivative = |z: f32| 1.0 - (z / cap) * (z / cap);
        let at_target = derivative(z[target]);
        dispatch(
            #[inline(always)]
            || {
                for z in z.iter_mut() {
                    *z = weight * exp_bounded(*z - log_sum_exp) * derivative(*z);
                }
            },
        );
        z[target] -= at_target / self.divisor;
    }
}

#[cfg(test)]
mod tests;
