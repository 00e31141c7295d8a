//! Sums, and learned scales of channels or of whole heads.

use crate::parallel::{ELEMENTS, rows_per_chunk, sum_partials};
use crate::simd::dispatch;
use rayon::prelude::*;

/// `sum += x`, both of one length.
pub fn add_to(x: &[f32], sum: &mut [f32]) {
    assert_eq!(x.len(), sum.len(), "add_to: x is not as long as sum");
    sum.par_chunks_mut(ELEMENTS)
        .zip(x.par_chunks(ELEMENTS))
        .for_each(|(sum, x)| {
            dispatch(
                #[inline(always)]
                || {
                    for (sum, &x) in sum.iter_mut().zip(x) {
                        *sum += x;
                    }
                },
            );
        });
}

/// `y[r, c] = x[r, c] * s[c / repeat]` for `x`, `y` (n, w) and `s` (w / repeat).
///
/// With `repeat` 1 each channel has its scale; with the width of a head each head has (the head
/// gain of NormFormer, arXiv 2110.09456).
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

/// Gradients of [`scale_columns`]: `dx` (n, w) and `ds` (w / repeat) from `dy` (n, w).
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
    assert!(width > 0, "{name}: no scales");
    assert_eq!(
        x.len() % width,
        0,
        "{name}: x is not made of rows of {width}"
    );
    width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, all_close, check_gradient, same_bits_on_any_pool, weigh, wide};
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
            all_close(&y, &naive(&wide(&x), &wide(&s), repeat), 1e-6);
            let (mut dx, mut ds) = (vec![f32::NAN; len], vec![f32::NAN; count]);
            scale_columns_backward(&x, &s, repeat, &dy, &mut dx, &mut ds);
            check_gradient(|x| weigh(&naive(x, &wide(&s), repeat), &dy), &x, &dx, 1e-5);
            check_gradient(|s| weigh(&naive(&wide(&x), s, repeat), &dy), &s, &ds, 1e-5);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let mut rng = Rng::new(63);
        let (n, width, repeat) = (2000, 48, 8);
        let len = n * width;
        let (x, s, dy) = (rng.normal(len), rng.normal(width / repeat), rng.normal(len));
        same_bits_on_any_pool(|| {
            let (mut y, mut sum, mut dx) = (vec![0.0; len], dy.clone(), vec![0.0; len]);
            let mut ds = vec![0.0; s.len()];
            scale_columns(&x, &s, repeat, &mut y);
            add_to(&x, &mut sum);
            scale_columns_backward(&x, &s, repeat, &dy, &mut dx, &mut ds);
            [y, sum, dx, ds].concat()
        });
    }
}
