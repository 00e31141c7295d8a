//! Token embedding: a table lookup, and its gradient, the sum over the rows that read an entry.

use crate::chunks::{Output, for_each_rows};
use crate::floats::{Floats, FloatsMut};
use crate::parallel::rows_per_chunk;
use rayon::prelude::*;

/// Number of vocabulary ranges of the backward pass.
const RANGES: usize = 32;

/// Computes `y` (n, d) = rows `ids` (n) of `w` (v, d). The width d is `y.len() / ids.len()`.
///
/// # Panics
///
/// If an id is negative or not below v.
pub fn forward<'a>(ids: &[i32], w: &[f32], y: impl Into<FloatsMut<'a>>) {
    let y = y.into();
    let Some(width) = width("embedding::forward", ids, w.len(), y.len()) else {
        return;
    };
    for_each_rows(
        rows_per_chunk(ids.len(), width),
        [],
        [(Output::Overwrite(y), width)],
        #[inline(always)]
        |first, [], [y]| {
            for (y, &id) in y.chunks_exact_mut(width).zip(&ids[first..]) {
                let at = id as usize * width;
                y.copy_from_slice(&w[at..at + width]);
            }
        },
    );
}

/// Computes `dw` (v, d): for each entry the sum, in row order, of the rows of `dy` (n, d) that read it.
///
/// # Panics
///
/// If an id is negative or not below v.
pub fn backward<'a>(ids: &[i32], dy: impl Into<Floats<'a>>, dw: &mut [f32]) {
    dw.fill(0.0);
    backward_add(ids, dy, dw);
}

/// Adds the gradient of [`backward`] to `dw`.
///
/// # Panics
///
/// As [`backward`].
pub fn backward_add<'a>(ids: &[i32], dy: impl Into<Floats<'a>>, dw: &mut [f32]) {
    let dy = dy.into();
    let Some(width) = width("embedding::backward", ids, dw.len(), dy.len()) else {
        return;
    };
    // Rows sorted by entry; rows of the same entry keep their order.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&row| ids[row]);
    let entries = (dw.len() / width).div_ceil(RANGES);
    dw.par_chunks_mut(entries * width)
        .enumerate()
        .for_each(|(range, dw)| {
            let first = range * entries;
            let below = |end: usize| order.partition_point(|&row| (ids[row] as usize) < end);
            let rows = &order[below(first)..below(first + entries)];
            let (mut sum, mut term) = (vec![0.0; width], vec![0.0; width]);
            for same in rows.chunk_by(|&a, &b| ids[a] == ids[b]) {
                sum.fill(0.0);
                for &row in same {
                    dy.slice(row * width..(row + 1) * width).widen(&mut term);
                    sum.iter_mut().zip(&term).for_each(|(sum, dy)| *sum += dy);
                }
                let dw = &mut dw[(ids[same[0]] as usize - first) * width..][..width];
                dw.iter_mut().zip(&sum).for_each(|(dw, sum)| *dw += sum);
            }
        });
}

/// Checks shapes and ids; returns the width, or `None` without ids.
fn width(name: &str, ids: &[i32], table: usize, rows: usize) -> Option<usize> {
    if ids.is_empty() {
        assert!(rows == 0, "{name}: rows without ids");
        return None;
    }
    let width = rows / ids.len();
    assert!(width > 0, "{name}: the width must be at least 1");
    assert_eq!(rows, ids.len() * width, "{name}: rows are not (ids, width)");
    assert_eq!(
        table % width,
        0,
        "{name}: the length of table is not a multiple of {width}"
    );
    let entries = table / width;
    for &id in ids {
        let known = usize::try_from(id).is_ok_and(|id| id < entries);
        assert!(known, "{name}: id {id} is not in 0..{entries}");
    }
    Some(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
        to_f64,
    };
    use proptest::prelude::*;

    fn naive(ids: &[i32], w: &[f64], d: usize) -> Vec<f64> {
        ids.iter()
            .flat_map(|&id| w[id as usize * d..][..d].to_vec())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn matches_the_reference(n in 1usize..20, v in 1usize..80, d in 1usize..9) {
            let mut rng = Rng::new(41);
            let ids = rng.below(v, n);
            let (w, dy) = (rng.normal(v * d), rng.normal(n * d));
            let mut y = vec![f32::NAN; n * d];
            forward(&ids, &w, &mut y);
            assert_all_close(&y, &naive(&ids, &to_f64(&w), d), 0.0);
            let mut dw = vec![f32::NAN; v * d];
            backward(&ids, &dy, &mut dw);
            check_gradient(|w| dot_f64(&naive(&ids, w, d), &dy), &w, &dw, 1e-5);
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let mut rng = Rng::new(42);
        let ids = rng.below(30, 2000);
        let dy = rng.normal(2000 * 12);
        assert_bit_identical_for_any_thread_count(|| {
            let (mut dw, mut y) = (vec![0.0; 30 * 12], vec![0.0; 2000 * 12]);
            backward(&ids, &dy, &mut dw);
            forward(&ids, &dw, &mut y);
            [dw, y].concat()
        });
    }

    #[test]
    fn no_ids_give_a_zero_gradient() {
        let mut dw = vec![1.0; 6];
        backward(&[], &[0.0f32; 0], &mut dw);
        assert_eq!(dw, [0.0; 6]);
    }

    #[test]
    #[should_panic(expected = "id 5 is not in 0..3")]
    fn id_out_of_range_is_rejected() {
        forward(&[5], &[0.0; 6], &mut [0.0f32; 2]);
    }
}
