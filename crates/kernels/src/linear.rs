//! Linear layers without bias, weights (out, in) as in PyTorch's `torch.nn.Linear`.
//!
//! `y = x w^T`, hence `dx = dy w` and `dw = dy^T x`.

use crate::floats::{Float, Floats, FloatsMut, round, round_to};
use crate::matmul::{
    Matrix, MatrixMut, Packed, Precision, is_parallel, multiply, multiply_transposed,
    transposed_workspace, workspace,
};
use crate::simd::dots;
use half::bf16;
use rayon::prelude::*;

/// Minimum number of outputs per task of a matrix-vector product: less work would not pay for a task.
const OUTPUTS_PER_TASK: usize = 64;
/// Maximum number of outputs per task of a matrix-vector product; large tasks read long streams.
const MAX_OUTPUTS_PER_TASK: usize = 512;
/// Tasks per thread of a matrix-vector product with enough outputs, so that threads finish together.
const TASKS_PER_THREAD: usize = 8;
/// Rows and columns that are transposed together: one cache line.
const TILE: usize = 16;
/// Number of multiply-adds from which the two matmuls of the backward pass run one after the other, since the operands
/// of each fill the caches.
const SEQUENTIAL_BACKWARD_WORK: usize = 1 << 28;
/// Minimum number of rows of `x` for which packing the weights pays off.
const MIN_ROWS_TO_PACK: usize = 128;

/// Shape and precision of a linear layer.
///
/// ```
/// use hybridnorm_kernels::linear::Linear;
/// use hybridnorm_kernels::matmul::Precision;
///
/// let layer = Linear { inputs: 2, outputs: 1, precision: Precision::F32 };
/// let (x, w, mut y) = ([1.0, 2.0, 3.0, 4.0], [0.5, 1.0], [0.0; 2]);
/// layer.forward(&x, &w, &mut y);
/// assert_eq!(y, [2.5, 5.5]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Width of a row of `x`.
    pub inputs: usize,
    /// Width of a row of `y`.
    pub outputs: usize,
    /// Precision of the operands of its matmuls.
    pub precision: Precision,
}

impl Linear {
    /// Computes `y = x w^T` for `x` (n, inputs), `w` (outputs, inputs), `y` (n, outputs).
    pub fn forward<'a>(
        &self,
        x: impl Into<Floats<'a>>,
        w: impl Into<Floats<'a>>,
        y: impl Into<FloatsMut<'a>>,
    ) {
        let (x, w, y) = (x.into(), w.into(), y.into());
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        let n = rows("Linear::forward: y", y.len(), outputs);
        self.check("Linear::forward", n, x.len(), w.len());
        match y {
            FloatsMut::F32(y) if n == 1 && inputs > 0 => self.forward_row(x, w, y),
            FloatsMut::Bf16(y) if n == 1 && inputs > 0 => {
                let mut sums = vec![0.0; outputs];
                self.forward_row(x, w, &mut sums);
                FloatsMut::from(y).copy_from(&sums);
            }
            FloatsMut::F32(y) if n < MIN_ROWS_TO_PACK => self.forward_few_rows(x, w, y, |sum| sum),
            FloatsMut::Bf16(y) if n < MIN_ROWS_TO_PACK => self.forward_few_rows(x, w, y, round),
            y => {
                let w = Packed::transposed(precision, Matrix::new(w, outputs, inputs));
                multiply(
                    Matrix::new(x, n, inputs),
                    &w,
                    MatrixMut::new(y, n, outputs),
                    1.0,
                );
            }
        }
    }

    /// Computes `y = x w^T` for one row.
    fn forward_row(&self, x: Floats, w: Floats, y: &mut [f32]) {
        let x = x.to_f32();
        match (self.precision, w) {
            (Precision::F32, Floats::F32(w)) => parallel_matvec(w, &x, y, matvec),
            (Precision::F32, Floats::Bf16(w)) => parallel_matvec(w, &x, y, matvec),
            (Precision::Bf16, w) => {
                let mut x = x.into_owned();
                round_to(self.precision, &mut x);
                match w {
                    Floats::Bf16(w) => parallel_matvec(w, &x, y, matvec),
                    Floats::F32(w) => parallel_matvec(w, &x, y, |w, x, y| {
                        // In parts that stay in cache.
                        let parts = w.chunks(OUTPUTS_PER_TASK * x.len());
                        for (w, y) in parts.zip(y.chunks_mut(OUTPUTS_PER_TASK)) {
                            let mut rounded = vec![bf16::ZERO; w.len()];
                            FloatsMut::from(&mut rounded).copy_from(w);
                            matvec(&rounded, x, y);
                        }
                    }),
                }
            }
        }
    }

    /// Computes `y = x w^T` for few rows as `w x^T`, so that the rows are packed instead of the weights.
    fn forward_few_rows<T: Copy + Send>(
        &self,
        x: Floats,
        w: Floats,
        y: &mut [T],
        convert: impl Fn(f32) -> T + Sync,
    ) {
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        let n = y.len() / outputs;
        let x = Packed::transposed(precision, Matrix::new(x, n, inputs));
        let mut columns = vec![0.0; y.len()];
        multiply(
            Matrix::new(w, outputs, inputs),
            &x,
            MatrixMut::new(&mut columns[..], outputs, n),
            1.0,
        );
        let tiles = y.par_chunks_mut(TILE * outputs).enumerate();
        tiles.for_each(|(tile, y)| {
            for (c, columns) in columns.chunks(TILE * n).enumerate() {
                for (r, y) in y.chunks_exact_mut(outputs).enumerate() {
                    for (y, column) in y[c * TILE..].iter_mut().zip(columns.chunks_exact(n)) {
                        *y = convert(column[tile * TILE + r]);
                    }
                }
            }
        });
    }

    /// Returns an upper bound on the bytes that [`Linear::forward`] of `n` rows allocates on `threads` threads.
    pub fn forward_workspace(&self, n: usize, threads: usize) -> usize {
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        // Of all numbers of rows up to n: experts have fewer.
        let one_row = match precision {
            Precision::F32 => 0,
            Precision::Bf16 => 4 * (inputs + outputs) + 2 * threads * OUTPUTS_PER_TASK * inputs,
        };
        let few = n.min(MIN_ROWS_TO_PACK - 1);
        let few = 4 * few * outputs + workspace(precision, outputs, few, inputs, threads);
        let many = match n < MIN_ROWS_TO_PACK {
            true => 0,
            false => workspace(precision, n, outputs, inputs, threads),
        };
        one_row.max(few).max(many)
    }

    /// Computes `dx = dy w` for `dy` (n, outputs), `w` (outputs, inputs), `dx` (n, inputs).
    pub fn backward_input<'a>(
        &self,
        dy: impl Into<Floats<'a>>,
        w: impl Into<Floats<'a>>,
        dx: impl Into<FloatsMut<'a>>,
    ) {
        let (dy, w, dx) = (dy.into(), w.into(), dx.into());
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        let n = rows("Linear::backward_input: dy", dy.len(), outputs);
        self.check("Linear::backward_input", n, dx.len(), w.len());
        let w = Packed::new(precision, Matrix::new(w, outputs, inputs));
        multiply(
            Matrix::new(dy, n, outputs),
            &w,
            MatrixMut::new(dx, n, inputs),
            1.0,
        );
    }

    /// Computes `dw = dy^T x` for `dy` (n, outputs), `x` (n, inputs), `dw` (outputs, inputs).
    pub fn backward_weight<'a>(
        &self,
        dy: impl Into<Floats<'a>>,
        x: impl Into<Floats<'a>>,
        dw: &mut [f32],
    ) {
        let (dy, x) = (dy.into(), x.into());
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        let n = rows("Linear::backward_weight: dy", dy.len(), outputs);
        self.check("Linear::backward_weight", n, x.len(), dw.len());
        let (dy, x) = (Matrix::new(dy, n, outputs), Matrix::new(x, n, inputs));
        multiply_transposed(
            precision,
            dy,
            x,
            MatrixMut::new(dw, outputs, inputs),
            1.0,
            false,
        );
    }

    /// Runs [`Linear::backward_input`] and [`Linear::backward_weight`]; concurrently, so that threads that finish one
    /// continue with the other, unless they are too small for several threads or so large that each needs the caches
    /// for itself.
    pub fn backward(&self, dy: Floats, x: Floats, w: Floats, dx: FloatsMut, dw: &mut [f32]) {
        let for_input = || self.backward_input(dy, w, dx);
        let mut for_weight = || self.backward_weight(dy, x, &mut *dw);
        if is_parallel(dy.len(), self.inputs, 1)
            && dy.len().saturating_mul(self.inputs) < SEQUENTIAL_BACKWARD_WORK
        {
            rayon::join(for_input, for_weight);
        } else {
            for_input();
            for_weight();
        }
    }

    /// Returns an upper bound on the bytes that [`Linear::backward_input`], [`Linear::backward_weight`] or both
    /// allocate for `n` rows on `threads` threads.
    pub fn backward_workspace(&self, n: usize, threads: usize) -> usize {
        let Self {
            inputs,
            outputs,
            precision,
        } = *self;
        workspace(precision, n, inputs, outputs, threads)
            + transposed_workspace(precision, outputs, inputs, n, threads)
    }

    fn check(&self, name: &str, n: usize, x: usize, w: usize) {
        let Self {
            inputs, outputs, ..
        } = *self;
        assert_eq!(x, n * inputs, "{name}: x or dx is not ({n}, {inputs})");
        assert_eq!(
            w,
            outputs * inputs,
            "{name}: w or dw is not ({outputs}, {inputs})"
        );
    }
}

/// Computes the matrix-vector product `y = w x` with `matvec` of blocks of rows.
fn parallel_matvec<W: Sync>(
    w: &[W],
    x: &[f32],
    y: &mut [f32],
    matvec: impl Fn(&[W], &[f32], &mut [f32]) + Sync,
) {
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let outputs = y.len().div_ceil(tasks);
    let outputs = outputs.clamp(OUTPUTS_PER_TASK, MAX_OUTPUTS_PER_TASK);
    let blocks = w
        .par_chunks(outputs * x.len())
        .zip(y.par_chunks_mut(outputs));
    blocks.for_each(|(w, y)| matvec(w, x, y));
}

/// Computes the matrix-vector product `y = w x`, memory-bound on `w` (outputs, inputs): several dot products at once. Each
/// reads rows of its own quarter of `w`, since hardware prefetchers follow long sequential reads.
pub(crate) fn matvec<W: Float>(w: &[W], x: &[f32], y: &mut [f32]) {
    const STREAMS: usize = 4;
    let row = |i: usize| &w[i * x.len()..][..x.len()];
    let len = y.len() / STREAMS;
    for i in 0..len {
        let outputs: [usize; STREAMS] = std::array::from_fn(|stream| stream * len + i);
        let sums = dots(x, outputs.map(row));
        for (output, sum) in outputs.into_iter().zip(sums) {
            y[output] = sum;
        }
    }
    for (i, y) in y.iter_mut().enumerate().skip(STREAMS * len) {
        [*y] = dots(x, [row(i)]);
    }
}

fn rows(name: &str, len: usize, width: usize) -> usize {
    assert!(width > 0, "{name}: the width must be at least 1");
    assert_eq!(
        len % width,
        0,
        "{name}: length is not a multiple of {width}"
    );
    len / width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
        to_f64,
    };
    use proptest::prelude::*;

    fn layer(inputs: usize, outputs: usize) -> Linear {
        let precision = Precision::F32;
        Linear {
            inputs,
            outputs,
            precision,
        }
    }

    fn naive(x: &[f64], w: &[f64], inputs: usize) -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        x.chunks(inputs)
            .flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w)))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn matches_the_reference(n in 1usize..9, i in 1usize..20, o in 1usize..20) {
            let layer = layer(i, o);
            let mut rng = Rng::new(11);
            let (x, w, dy) = (rng.normal(n * i), rng.normal(o * i), rng.normal(n * o));
            let mut y = vec![f32::NAN; n * o];
            layer.forward(&x, &w, &mut y);
            assert_all_close(&y, &naive(&to_f64(&x), &to_f64(&w), i), 1e-5);
            let mut dx = vec![f32::NAN; n * i];
            layer.backward_input(&dy, &w, &mut dx);
            check_gradient(|x| dot_f64(&naive(x, &to_f64(&w), i), &dy), &x, &dx, 1e-5);
            let mut dw = vec![f32::NAN; o * i];
            layer.backward_weight(&dy, &x, &mut dw);
            check_gradient(|w| dot_f64(&naive(&to_f64(&x), w, i), &dy), &w, &dw, 1e-5);
        }
    }

    #[test]
    fn a_long_single_row_matches_the_reference() {
        let mut rng = Rng::new(12);
        let (x, w) = (rng.normal(130), rng.normal(130 * 700));
        let mut y = vec![0.0; 700];
        layer(130, 700).forward(&x, &w, &mut y);
        assert_all_close(&y, &naive(&to_f64(&x), &to_f64(&w), 130), 1e-5);
    }

    #[test]
    fn no_inputs_give_zeros() {
        let mut y = vec![f32::NAN; 2 * MIN_ROWS_TO_PACK];
        layer(0, 2).forward(&[0.0f32; 0], &[0.0f32; 0], &mut y);
        assert!(y.iter().all(|&y| y == 0.0));
    }

    #[test]
    fn few_rows_are_bit_identical_to_many() {
        let (n, i, o) = (MIN_ROWS_TO_PACK, 40, 70);
        let mut rng = Rng::new(15);
        let (x, w) = (rng.normal(n * i), rng.normal(o * i));
        for precision in [Precision::F32, Precision::Bf16] {
            let layer = Linear {
                precision,
                ..layer(i, o)
            };
            let mut want = vec![f32::NAN; n * o];
            layer.forward(&x, &w, &mut want);
            for few in [2, 7, n - 1, n] {
                let mut y = vec![f32::NAN; few * o];
                layer.forward(&x[..few * i], &w, &mut y);
                assert_eq!(y, want[..few * o]);
                if precision == Precision::Bf16 {
                    let narrow: Vec<bf16> = w.iter().map(|w| round(*w)).collect();
                    let mut of_narrow = vec![f32::NAN; few * o];
                    layer.forward(&x[..few * i], &narrow, &mut of_narrow);
                    assert_eq!(of_narrow, y);
                }
                let mut narrow = vec![bf16::NAN; few * o];
                layer.forward(&x[..few * i], &w, &mut narrow);
                let rounded: Vec<bf16> = y.iter().map(|y| bf16::from_f32(*y)).collect();
                assert_eq!(narrow, rounded);
            }
        }
    }

    #[test]
    fn matvec_in_bfloat16_sums_products_of_rounded_numbers() {
        let (i, o) = (150, 3 * OUTPUTS_PER_TASK + 5);
        let mut rng = Rng::new(16);
        let narrow = |x: &[f32]| x.iter().map(|x| round(*x)).collect::<Vec<bf16>>();
        let widen = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (x, w) = (rng.normal(i), rng.normal(o * i));
        let (narrow_x, narrow_w) = (narrow(&x), narrow(&w));
        let layer = Linear {
            precision: Precision::Bf16,
            ..layer(i, o)
        };
        let mut want = vec![f32::NAN; o];
        layer.forward(&x, &w, &mut want);
        assert_all_close(&want, &naive(&widen(&narrow_x), &widen(&narrow_w), i), 1e-5);
        let each_x = [Floats::F32(&x), Floats::Bf16(&narrow_x)];
        for (x, w) in each_x
            .iter()
            .flat_map(|&x| [Floats::F32(&w), Floats::Bf16(&narrow_w)].map(|w| (x, w)))
        {
            let (mut y, mut narrow_y) = (vec![f32::NAN; o], vec![bf16::NAN; o]);
            layer.forward(x, w, &mut y);
            assert_eq!(y, want);
            layer.forward(x, w, &mut narrow_y);
            assert_eq!(narrow_y, narrow(&want));
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let mut rng = Rng::new(13);
        for n in [1, 130] {
            let (i, o) = (96, 530);
            let (x, w, dy) = (rng.normal(n * i), rng.normal(o * i), rng.normal(n * o));
            let layer = layer(i, o);
            assert_bit_identical_for_any_thread_count(|| {
                let (mut y, mut dx, mut dw) =
                    (vec![0.0; n * o], vec![0.0; n * i], vec![0.0; o * i]);
                layer.forward(&x, &w, &mut y);
                layer.backward_input(&dy, &w, &mut dx);
                layer.backward_weight(&dy, &x, &mut dw);
                [y, dx, dw].concat()
            });
        }
    }
}
