//! Element-wise sums, clamps and soft caps, and learned scales of rows, channels or heads.

use crate::chunks::{Output, for_each_rows};
use crate::floats::{Floats, FloatsMut};
use crate::math::tanh;
use crate::parallel::{ELEMENTS, rows_per_chunk, sum_partials};
use crate::simd::{dispatch, dot};
use rayon::prelude::*;

/// `sum += x`, both of the same length.
pub fn add_to<'a>(x: impl Into<Floats<'a>>, sum: impl Into<FloatsMut<'a>>) {
    let (x, sum) = (x.into(), sum.into());
    assert_eq!(x.len(), sum.len(), "add_to: x is not as long as sum");
    for_each_rows(
        ELEMENTS,
        [(x, 1)],
        [(Output::Update(sum), 1)],
        #[inline(always)]
        |_, [x], [sum]| {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
        },
    );
}

/// `x *= factor`.
pub fn scale<'a>(factor: f32, x: impl Into<FloatsMut<'a>>) {
    for_each_rows(
        ELEMENTS,
        [],
        [(Output::Update(x.into()), 1)],
        #[inline(always)]
        |_, [], [x]| x.iter_mut().for_each(|x| *x *= factor),
    );
}

/// Clamps `x` to `±limit`; NaN stays NaN.
pub fn clamp(limit: f32, x: &mut [f32]) {
    map(x, |x| x.clamp(-limit, limit));
}

/// Gradient of [`clamp`] at `x`: `d` is unchanged where x is within the limits and 0 elsewhere.
pub fn clamp_backward(limit: f32, x: &[f32], d: &mut [f32]) {
    zip_map(x, d, |x, d| if x.abs() > limit { 0.0 } else { d });
}

/// `x = cap * tanh(x / cap)` (Gemma 2, arXiv 2408.00118).
pub fn softcap(cap: f32, x: &mut [f32]) {
    map(x, |x| cap * tanh(x / cap));
}

/// Gradient of [`softcap`] from its output `y`: `d *= 1 - (y / cap)^2`.
pub fn softcap_backward(cap: f32, y: &[f32], d: &mut [f32]) {
    zip_map(y, d, |y, d| d * (1.0 - (y / cap) * (y / cap)));
}

/// Copies columns `from..from + width` of `x` (n, x_width) to columns `to..to + width` of `y` (n, y_width).
pub fn copy_columns(
    (x, x_width, from): (&[f32], usize, usize),
    (y, y_width, to): (&mut [f32], usize, usize),
    width: usize,
) {
    assert_eq!(
        x.len() / x_width.max(1),
        y.len() / y_width.max(1),
        "copy_columns: x and y have different numbers of rows"
    );
    let rows = rows_per_chunk(y.len() / y_width.max(1), y_width);
    let chunks = y
        .par_chunks_mut(rows * y_width)
        .zip(x.par_chunks(rows * x_width));
    chunks.for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(y_width).zip(x.chunks_exact(x_width)) {
            y[to..to + width].copy_from_slice(&x[from..from + width]);
        }
    });
}

/// Applies `f` to every element.
fn map(x: &mut [f32], f: impl Fn(f32) -> f32 + Sync) {
    x.par_chunks_mut(ELEMENTS).for_each(|x| {
        dispatch(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x = f(*x)),
        );
    });
}

/// `d = f(x, d)` for every pair of elements.
fn zip_map(x: &[f32], d: &mut [f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    assert_eq!(x.len(), d.len(), "elementwise: lengths differ");
    let chunks = d.par_chunks_mut(ELEMENTS).zip(x.par_chunks(ELEMENTS));
    chunks.for_each(|(d, x)| {
        dispatch(
            #[inline(always)]
            || {
                for (d, &x) in d.iter_mut().zip(x) {
                    *d = f(x, *d);
                }
            },
        );
    });
}

/// `y[r, c] = x[r, c] * s[r]` for `x`, `y` (n, w) and `s` (n), or one number for all rows.
pub fn scale_rows(x: &[f32], s: &[f32], width: usize, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "scale_rows: y is not as long as x");
    let rows = rows_per_chunk(x.len() / width, width);
    let chunks = y
        .par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * width));
    chunks.enumerate().for_each(|(c, (y, x))| {
        dispatch(
            #[inline(always)]
            || {
                let pairs = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for (r, (y, x)) in (c * rows..).zip(pairs) {
                    let s = s[r % s.len()];
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * s;
                    }
                }
            },
        );
    });
}

/// Computes the gradients of [`scale_rows`]: that of x in place of `d`, that of the factors in `ds`.
pub fn scale_rows_backward(x: &[f32], s: &[f32], width: usize, d: &mut [f32], ds: &mut [f32]) {
    assert_eq!(
        x.len(),
        d.len(),
        "scale_rows_backward: d is not as long as x"
    );
    assert_eq!(
        s.len(),
        ds.len(),
        "scale_rows_backward: ds is not as long as s"
    );
    let mut dot_products = vec![0.0; x.len() / width];
    let rows = rows_per_chunk(dot_products.len(), width);
    let chunks = d
        .par_chunks_mut(rows * width)
        .zip(x.par_chunks(rows * width));
    chunks
        .zip(dot_products.par_chunks_mut(rows))
        .enumerate()
        .for_each(|(c, ((d, x), dot_products))| {
            dispatch(
                #[inline(always)]
                || {
                    let pairs = d.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for (r, ((d, x), dot_products)) in (c * rows..).zip(pairs.zip(dot_products)) {
                        *dot_products = dot(x, d);
                        let s = s[r % s.len()];
                        d.iter_mut().for_each(|d| *d *= s);
                    }
                },
            );
        });
    ds.fill(0.0);
    for (r, dot_products) in dot_products.iter().enumerate() {
        ds[r % s.len()] += dot_products;
    }
}

/// `y[r, c] = x[r, c] * s[c / repeat]` for `x`, `y` (n, w) and `s` (w / repeat).
///
/// With `repeat` 1 each channel has a scale; with the head width each head has one (the head gain of
/// NormFormer, arXiv 2110.09456).
pub fn scale_columns(x: &[f32], s: &[f32], repeat: usize, y: &mut [f32]) {
    let width = check_width("scale_columns", x, s, repeat);
    assert_eq!(y.len(), x.len(), "scale_columns: y is not as long as x");
    let size = rows_per_chunk(x.len() / width, width) * width;
    let scales = expand(s, repeat);
    y.par_chunks_mut(size)
        .zip(x.par_chunks(size))
        .for_each(|(y, x)| {
            dispatch(
                #[inline(always)]
                || multiply_rows(x, &scales, y),
            );
        });
}

/// Adds `bias` to every row of `y` (n, bias.len()).
///
/// ```
/// let mut y = [1.0, 2.0, 3.0, 4.0];
/// hybridnorm_kernels::elementwise::add_bias(&[10.0, 20.0], &mut y);
/// assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
/// ```
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    let width = bias.len();
    check_rows("add_bias", y, width);
    let size = rows_per_chunk(y.len() / width, width) * width;
    y.par_chunks_mut(size).for_each(|y| {
        dispatch(
            #[inline(always)]
            || {
                for row in y.chunks_exact_mut(width) {
                    row.iter_mut().zip(bias).for_each(|(y, &bias)| *y += bias);
                }
            },
        );
    });
}

/// Computes the sum of all rows of `x` (n, sums.len()): the gradient of [`add_bias`]'s bias.
///
/// ```
/// let mut sums = [0.0; 2];
/// hybridnorm_kernels::elementwise::sum_rows(&[1.0, 2.0, 3.0, 4.0], &mut sums);
/// assert_eq!(sums, [4.0, 6.0]);
/// ```
pub fn sum_rows(x: &[f32], sums: &mut [f32]) {
    let width = sums.len();
    check_rows("sum_rows", x, width);
    let size = rows_per_chunk(x.len() / width, width) * width;
    let of_chunk = |x: &[f32]| {
        let mut partial = vec![0.0; width];
        dispatch(
            #[inline(always)]
            || {
                for row in x.chunks_exact(width) {
                    partial.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
                }
            },
        );
        partial
    };
    let partials: Vec<Vec<f32>> = x.par_chunks(size).map(of_chunk).collect();
    sum_partials(&partials, sums);
}

fn check_rows(name: &str, x: &[f32], width: usize) {
    assert!(width > 0, "{name}: no columns");
    assert_eq!(x.len() % width, 0, "{name}: x is not (n, {width})");
}

/// Computes the gradients of [`scale_columns`]: `dx` (n, w) and `ds` (w / repeat) from `dy` (n, w).
pub fn scale_columns_backward(
    x: &[f32],
    s: &[f32],
    repeat: usize,
    dy: &[f32],
    dx: &mut [f32],
    ds: &mut [f32],
) {
    let width = check_width("scale_columns_backward", x, s, repeat);
    assert_eq!(
        dy.len(),
        x.len(),
        "scale_columns_backward: dy is not as long as x"
    );
    assert_eq!(
        dx.len(),
        x.len(),
        "scale_columns_backward: dx is not as long as x"
    );
    assert_eq!(
        ds.len(),
        s.len(),
        "scale_columns_backward: ds is not as long as s"
    );
    let size = rows_per_chunk(x.len() / width, width) * width;
    let scales = expand(s, repeat);
    let inputs = x.par_chunks(size).zip(dy.par_chunks(size));
    let partials: Vec<Vec<f32>> = dx
        .par_chunks_mut(size)
        .zip(inputs)
        .map(|(dx, (x, dy))| {
            let mut partial = vec![0.0; width];
            dispatch(
                #[inline(always)]
                || {
                    multiply_rows(dy, &scales, dx);
                    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
                        for ((ds, &x), &dy) in partial.iter_mut().zip(x).zip(dy) {
                            *ds += dy * x;
                        }
                    }
                },
            );
            partial
        })
        .collect();
    let mut per_channel = vec![0.0; width];
    sum_partials(&partials, &mut per_channel);
    for (ds, channels) in ds.iter_mut().zip(per_channel.chunks_exact(repeat)) {
        *ds = channels.iter().sum();
    }
}

#[inline(always)]
fn multiply_rows(x: &[f32], scales: &[f32], y: &mut [f32]) {
    let width = scales.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        for ((y, &x), &s) in y.iter_mut().zip(x).zip(scales) {
            *y = x * s;
        }
    }
}

fn expand(s: &[f32], repeat: usize) -> Vec<f32> {
    s.iter()
        .flat_map(|&s| std::iter::repeat_n(s, repeat))
        .collect()
}

fn check_width(name: &str, x: &[f32], s: &[f32], repeat: usize) -> usize {
    let width = s.len() * repeat;
    assert!(
        width > 0,
        "{name}: s must not be empty, and repeat must be at least 1"
    );
    assert_eq!(
        x.len() % width,
        0,
        "{name}: the length of x is not a multiple of {width}"
    );
    width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
        to_f64,
    };
    use proptest::prelude::*;

    fn naive(x: &[f64], s: &[f64], repeat: usize) -> Vec<f64> {
        let width = s.len() * repeat;
        x.iter()
            .enumerate()
            .map(|(i, x)| x * s[i % width / repeat])
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn scales_match_the_reference(n in 1usize..8, count in 1usize..7, repeat in 1usize..9) {
            let mut rng = Rng::new(61);
            let len = n * count * repeat;
            let (x, s, dy) = (rng.normal(len), rng.normal(count), rng.normal(len));
            let mut y = vec![f32::NAN; len];
            scale_columns(&x, &s, repeat, &mut y);
            assert_all_close(&y, &naive(&to_f64(&x), &to_f64(&s), repeat), 1e-6);
            let (mut dx, mut ds) = (vec![f32::NAN; len], vec![f32::NAN; count]);
            scale_columns_backward(&x, &s, repeat, &dy, &mut dx, &mut ds);
            check_gradient(|x| dot_f64(&naive(x, &to_f64(&s), repeat), &dy), &x, &dx, 1e-5);
            check_gradient(|s| dot_f64(&naive(&to_f64(&x), s, repeat), &dy), &s, &ds, 1e-5);
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let mut rng = Rng::new(63);
        let (n, width, repeat) = (2000, 48, 8);
        let len = n * width;
        let (x, s, dy) = (rng.normal(len), rng.normal(width / repeat), rng.normal(len));
        assert_bit_identical_for_any_thread_count(|| {
            let (mut y, mut sum, mut dx) = (vec![0.0; len], dy.clone(), vec![0.0; len]);
            let mut ds = vec![0.0; s.len()];
            scale_columns(&x, &s, repeat, &mut y);
            add_to(&x, &mut sum);
            scale_columns_backward(&x, &s, repeat, &dy, &mut dx, &mut ds);
            [y, sum, dx, ds].concat()
        });
    }
}
