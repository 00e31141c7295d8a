//! Normalization of weight vectors to unit norm (nGPT, arXiv 2410.01131).

use crate::parallel::rows_per_chunk;
use crate::simd::{dispatch, sum_squares_f64};
use rayon::prelude::*;

/// Divides every row of `w` (n, `columns`) by its Euclidean norm; zero rows are unchanged.
pub fn normalize_rows(w: &mut [f32], columns: usize) {
    let n = check("unit::normalize_rows", w, columns);
    let chunk = rows_per_chunk(n, columns) * columns;
    w.par_chunks_mut(chunk).for_each(|w| {
        dispatch(
            #[inline(always)]
            || {
                for row in w.chunks_exact_mut(columns) {
                    let factor = factor(sum_squares_f64(row));
                    for w in row {
                        *w = (f64::from(*w) * factor) as f32;
                    }
                }
            },
        );
    });
}

/// Divides every column of `w` (n, `columns`) by its Euclidean norm; zero columns are unchanged.
pub fn normalize_columns(w: &mut [f32], columns: usize) {
    let n = check("unit::normalize_columns", w, columns);
    let chunk = rows_per_chunk(n, columns) * columns;
    let partials: Vec<Vec<f64>> = w
        .par_chunks(chunk)
        .map(|w| {
            let mut squares = vec![0.0; columns];
            dispatch(
                #[inline(always)]
                || {
                    for row in w.chunks_exact(columns) {
                        for (square, &w) in squares.iter_mut().zip(row) {
                            *square += f64::from(w) * f64::from(w);
                        }
                    }
                },
            );
            squares
        })
        .collect();
    let mut factors = vec![0.0; columns];
    for partial in partials {
        for (total, square) in factors.iter_mut().zip(partial) {
            *total += square;
        }
    }
    factors
        .iter_mut()
        .for_each(|square| *square = factor(*square));
    w.par_chunks_mut(chunk).for_each(|w| {
        dispatch(
            #[inline(always)]
            || {
                for row in w.chunks_exact_mut(columns) {
                    for (w, factor) in row.iter_mut().zip(&factors) {
                        *w = (f64::from(*w) * factor) as f32;
                    }
                }
            },
        );
    });
}

/// Returns the factor that scales a vector with this sum of squares to unit norm. In double precision the square of
/// no `f32` overflows or underflows.
#[inline(always)]
fn factor(squares: f64) -> f64 {
    if squares == 0.0 {
        1.0
    } else {
        1.0 / squares.sqrt()
    }
}

/// Checks the shape; returns the number of rows.
fn check(name: &str, w: &[f32], columns: usize) -> usize {
    assert!(columns > 0, "{name}: columns must be at least 1");
    assert!(
        w.len().is_multiple_of(columns),
        "{name}: the length of w is not a multiple of {columns}"
    );
    w.len() / columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, to_f64,
    };
    use proptest::prelude::*;

    /// Normalizes every row, or every column, by definition.
    fn naive(w: &[f64], columns: usize, by_row: bool) -> Vec<f64> {
        let of = |i: usize| if by_row { i / columns } else { i % columns };
        let mut squares = vec![0.0; columns.max(w.len() / columns)];
        for (i, w) in w.iter().enumerate() {
            squares[of(i)] += w * w;
        }
        let unit = |(i, w): (usize, &f64)| match squares[of(i)] {
            0.0 => 0.0,
            square => w / square.sqrt(),
        };
        w.iter().enumerate().map(unit).collect()
    }

    fn both(w: &[f32], width: usize) -> [Vec<f32>; 2] {
        let (mut by_row, mut by_column) = (w.to_vec(), w.to_vec());
        normalize_rows(&mut by_row, width);
        normalize_columns(&mut by_column, width);
        [by_row, by_column]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn matches_the_reference(n in 0usize..300, width in 1usize..70) {
            let w = Rng::new(71).normal(n * width);
            let [by_row, by_column] = both(&w, width);
            assert_all_close(&by_row, &naive(&to_f64(&w), width, true), 1e-7);
            assert_all_close(&by_column, &naive(&to_f64(&w), width, false), 1e-7);
        }
    }

    #[test]
    fn zero_vectors_are_unchanged() {
        let w = [0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0];
        let [by_row, by_column] = both(&w, 3);
        assert_eq!(by_row, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(by_column, [0.0, 0.6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.8, 0.0]);
    }

    #[test]
    fn extreme_magnitudes_are_normalized() {
        for size in [1e-42, 1e-30, 1e30, 1e38] {
            let [by_row, by_column] = both(&[size, -size, size, size], 2);
            let want = [1.0, -1.0, 1.0, 1.0].map(|sign| sign * 0.5f64.sqrt());
            assert_all_close(&by_row, &want, 1e-7);
            assert_all_close(&by_column, &want, 1e-7);
        }
    }

    #[test]
    fn non_finite_values_propagate() {
        for broken in [f32::NAN, f32::INFINITY] {
            let [by_row, by_column] = both(&[1.0, broken, 1.0, 1.0], 2);
            assert!(by_row[1].is_nan() && by_row[2].is_finite());
            assert!(by_column[1].is_nan() && by_column[2].is_finite());
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let w = Rng::new(72).normal(3000 * 70);
        assert_bit_identical_for_any_thread_count(|| both(&w, 70).concat());
    }
}
