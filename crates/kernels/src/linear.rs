//! Linear layers without bias, weights (out, in) as in PyTorch's `torch.nn.Linear`.
//!
//! `y = x w^T`, hence `dx = dy w` and `dw = dy^T x`.

use crate::gemm::{self, is_parallel, matmul};
use crate::simd::dots;
use rayon::prelude::*;
use std::borrow::Cow;

/// Outputs per task for a single input row.
pub(crate) const OUTPUTS_PER_TASK: usize = 64;
/// Rows whose stride is a multiple of this many values map to the same set of the L1 cache, which holds about ten
/// lines, while a matmul packs dozens of rows side by side.
const CACHE_SET_STRIDE: usize = 1024;
/// Padding of a row, in values, that places neighbouring rows in different cache sets.
const PADDING: usize = 16;
/// Number of multiply-adds from which the two matmuls of the backward pass run one after the other, since the operands
/// of each fill the caches.
const SEQUENTIAL_BACKWARD_WORK: usize = 1 << 28;
/// Minimum number of rows of `x` for which a copy of the weights pays off.
pub(crate) const MIN_ROWS_TO_PAD: usize = 128;

/// Computes `y = x w^T` for `x` (n, inputs), `w` (outputs, inputs), `y` (n, outputs).
pub fn forward(x: &[f32], w: &[f32], y: &mut [f32], inputs: usize, outputs: usize) {
    let n = rows("linear::forward: y", y, outputs);
    check_lengths("linear::forward", n, x, w, inputs, outputs);
    if n == 1 && inputs > 0 {
        return forward_row(x, w, y, inputs);
    }
    let stride = row_stride(inputs);
    let (w, stride) = match n >= MIN_ROWS_TO_PAD && stride > inputs {
        true => (Cow::Owned(pad_rows(w, inputs, stride)), stride),
        false => (Cow::Borrowed(w), inputs),
    };
    let (x_strides, w_strides, y_strides) = ((inputs, 1), (1, stride), (outputs, 1));
    matmul(
        n, outputs, inputs, x, x_strides, &w, w_strides, y, y_strides, 1.0, false, true,
    );
}

/// Returns an upper bound on the bytes that [`forward`] of `n` rows allocates.
pub fn forward_workspace(n: usize, inputs: usize, outputs: usize) -> usize {
    let stride = row_stride(inputs);
    let padded = match n >= MIN_ROWS_TO_PAD && stride > inputs {
        true => 4 * stride * outputs,
        false => 0,
    };
    padded + gemm::workspace(n, outputs, inputs)
}

/// Returns the stride of rows of `width` values with which neighbouring rows do not map to the same cache set.
pub(crate) fn row_stride(width: usize) -> usize {
    match width > 0 && width.is_multiple_of(CACHE_SET_STRIDE) {
        true => width + PADDING,
        false => width,
    }
}

/// Copies weights to rows with a stride of `stride` values.
fn pad_rows(w: &[f32], inputs: usize, stride: usize) -> Vec<f32> {
    let mut out = vec![0.0; w.len() / inputs * stride];
    out.par_chunks_exact_mut(stride)
        .zip(w.par_chunks_exact(inputs))
        .for_each(|(out, w)| out[..inputs].copy_from_slice(w));
    out
}

/// Computes the output of one row, memory-bound on the weights: several dot products at once.
fn forward_row(x: &[f32], w: &[f32], y: &mut [f32], inputs: usize) {
    const ROWS_AT_ONCE: usize = 4;
    y.par_chunks_mut(OUTPUTS_PER_TASK)
        .zip(w.par_chunks(OUTPUTS_PER_TASK * inputs))
        .for_each(|(y, w)| {
            let (groups, rest) = y.as_chunks_mut::<ROWS_AT_ONCE>();
            let mut rows = w.chunks_exact(inputs);
            let mut next = || rows.next().expect("a row of weights for every output");
            for y in groups {
                *y = dots(x, std::array::from_fn::<_, ROWS_AT_ONCE, _>(|_| next()));
            }
            for y in rest {
                [*y] = dots(x, [next()]);
            }
        });
}

/// Returns an upper bound on the bytes that [`backward_input`], [`backward_weight`] or both allocate for
/// `n` rows.
pub fn backward_workspace(n: usize, inputs: usize, outputs: usize) -> usize {
    gemm::workspace(n, inputs, outputs) + gemm::workspace(outputs, inputs, n)
}

/// Computes `dx = dy w` for `dy` (n, outputs), `w` (outputs, inputs), `dx` (n, inputs).
pub fn backward_input(dy: &[f32], w: &[f32], dx: &mut [f32], inputs: usize, outputs: usize) {
    let n = rows("linear::backward_input: dy", dy, outputs);
    check_lengths("linear::backward_input", n, dx, w, inputs, outputs);
    matmul(
        n,
        inputs,
        outputs,
        dy,
        (outputs, 1),
        w,
        (inputs, 1),
        dx,
        (inputs, 1),
        1.0,
        false,
        true,
    );
}

/// Computes `dw = dy^T x` for `dy` (n, outputs), `x` (n, inputs), `dw` (outputs, inputs).
pub fn backward_weight(dy: &[f32], x: &[f32], dw: &mut [f32], inputs: usize, outputs: usize) {
    let n = rows("linear::backward_weight: dy", dy, outputs);
    check_lengths("linear::backward_weight", n, x, dw, inputs, outputs);
    matmul(
        outputs,
        inputs,
        n,
        dy,
        (1, outputs),
        x,
        (inputs, 1),
        dw,
        (inputs, 1),
        1.0,
        false,
        true,
    );
}

/// Runs [`backward_input`] and [`backward_weight`]; concurrently, so that threads that finish one continue with the
/// other, unless they are too small for several threads or so large that each needs the caches for itself.
pub fn backward(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    inputs: usize,
    outputs: usize,
) {
    let mut for_input = || backward_input(dy, w, dx, inputs, outputs);
    let mut for_weight = || backward_weight(dy, x, dw, inputs, outputs);
    if is_parallel(dy.len(), inputs, 1)
        && dy.len().saturating_mul(inputs) < SEQUENTIAL_BACKWARD_WORK
    {
        rayon::join(for_input, for_weight);
    } else {
        for_input();
        for_weight();
    }
}

fn rows(name: &str, slice: &[f32], width: usize) -> usize {
    assert!(width > 0, "{name}: the width must be at least 1");
    assert_eq!(
        slice.len() % width,
        0,
        "{name}: length is not a multiple of {width}"
    );
    slice.len() / width
}

fn check_lengths(name: &str, n: usize, x: &[f32], w: &[f32], inputs: usize, outputs: usize) {
    assert_eq!(
        x.len(),
        n * inputs,
        "{name}: x or dx is not ({n}, {inputs})"
    );
    assert_eq!(
        w.len(),
        outputs * inputs,
        "{name}: w or dw is not ({outputs}, {inputs})"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
        to_f64,
    };
    use proptest::prelude::*;

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
            let mut rng = Rng::new(11);
            let (x, w, dy) = (rng.normal(n * i), rng.normal(o * i), rng.normal(n * o));
            let mut y = vec![f32::NAN; n * o];
            forward(&x, &w, &mut y, i, o);
            assert_all_close(&y, &naive(&to_f64(&x), &to_f64(&w), i), 1e-5);
            let mut dx = vec![f32::NAN; n * i];
            backward_input(&dy, &w, &mut dx, i, o);
            check_gradient(|x| dot_f64(&naive(x, &to_f64(&w), i), &dy), &x, &dx, 1e-5);
            let mut dw = vec![f32::NAN; o * i];
            backward_weight(&dy, &x, &mut dw, i, o);
            check_gradient(|w| dot_f64(&naive(&to_f64(&x), w, i), &dy), &w, &dw, 1e-5);
        }
    }

    #[test]
    fn a_long_single_row_matches_the_reference() {
        let mut rng = Rng::new(12);
        let (x, w) = (rng.normal(130), rng.normal(130 * 700));
        let mut y = vec![0.0; 700];
        forward(&x, &w, &mut y, 130, 700);
        assert_all_close(&y, &naive(&to_f64(&x), &to_f64(&w), 130), 1e-5);
    }

    #[test]
    fn no_inputs_give_zeros() {
        let mut y = vec![f32::NAN; 2 * MIN_ROWS_TO_PAD];
        forward(&[], &[], &mut y, 0, 2);
        assert!(y.iter().all(|&y| y == 0.0));
    }

    #[test]
    fn row_padding_is_bit_identical() {
        let (n, i, o) = (MIN_ROWS_TO_PAD, CACHE_SET_STRIDE, 70);
        let mut rng = Rng::new(15);
        let (x, w) = (rng.normal(n * i), rng.normal(o * i));
        let (mut y, mut want) = (vec![f32::NAN; n * o], vec![f32::NAN; n * o]);
        forward(&x, &w, &mut y, i, o);
        let (x_strides, w_strides, y_strides) = ((i, 1), (1, i), (o, 1));
        matmul(
            n, o, i, &x, x_strides, &w, w_strides, &mut want, y_strides, 1.0, false, true,
        );
        assert_eq!(y, want);
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let mut rng = Rng::new(13);
        for n in [1, 130] {
            let (i, o) = (96, 530);
            let (x, w, dy) = (rng.normal(n * i), rng.normal(o * i), rng.normal(n * o));
            assert_bit_identical_for_any_thread_count(|| {
                let (mut y, mut dx, mut dw) =
                    (vec![0.0; n * o], vec![0.0; n * i], vec![0.0; o * i]);
                forward(&x, &w, &mut y, i, o);
                backward_input(&dy, &w, &mut dx, i, o);
                backward_weight(&dy, &x, &mut dw, i, o);
                [y, dx, dw].concat()
            });
        }
    }
}
