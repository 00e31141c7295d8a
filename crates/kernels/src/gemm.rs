//! Matrix multiplication with the `gemm-f32` crate; the only `unsafe` code of this crate.

use gemm_common::Parallelism;
use gemm_f32::gemm::f32::get_gemm_fn;

/// Minimum number of multiply-adds for a multi-threaded matmul.
const PARALLEL_WORK: usize = 1 << 18;

/// Maximum extent of the inner dimension that the `gemm-f32` crate packs at once.
const PACKED_DEPTH: usize = 512;
/// Maximum number of columns of `b` that it packs at once, for a row-major result.
const PACKED_COLUMNS: usize = 768;

/// Returns an upper bound on the bytes that a [`matmul`] of (m, k) and (k, n) with a row-major result
/// allocates.
pub fn workspace(m: usize, n: usize, k: usize) -> usize {
    4 * k.min(PACKED_DEPTH) * (m + n.min(PACKED_COLUMNS))
}

/// Computes `c = alpha * a b`, or `c += alpha * a b` if `accumulate`.
///
/// `a` is (m, k), `b` is (k, n) and `c` is (m, n); element (i, j) of a matrix is at
/// `i * strides.0 + j * strides.1` of its slice, so a transpose is a swap of the strides.
/// Each element is a sum over k in an order that depends on the shapes only, hence the result is
/// bit-identical for any `parallel` and any number of threads.
///
/// # Panics
///
/// If a slice is too short for its shape and strides, or if elements of `c` overlap.
#[expect(
    clippy::too_many_arguments,
    reason = "three matrices with strides, as in BLAS"
)]
pub fn matmul(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_strides: (usize, usize),
    c: &mut [f32],
    c_strides: (usize, usize),
    alpha: f32,
    accumulate: bool,
    parallel: bool,
) {
    check_bounds("a", m, k, a_strides, a.len());
    check_bounds("b", k, n, b_strides, b.len());
    check_bounds("c", m, n, c_strides, c.len());
    let is_valid = has_distinct_elements(m, n, c_strides);
    assert!(is_valid, "matmul: elements of c overlap: {c_strides:?}");
    let stride = |s: usize| isize::try_from(s).expect("matmul: a stride fits isize");
    // The crate's kernels need contiguous columns of the result: a row-major result is computed as
    // the transposed matmul, `cᵀ = bᵀ aᵀ`.
    let is_row_major = c_strides.1 < c_strides.0;
    let (m, n, lhs, lhs_strides, rhs, rhs_strides) = match is_row_major {
        true => (n, m, b, swapped(b_strides), a, swapped(a_strides)),
        false => (m, n, a, a_strides, b, b_strides),
    };
    let c_strides = match is_row_major {
        true => swapped(c_strides),
        false => c_strides,
    };
    let parallelism = parallelism(parallel && is_parallel(m, n, k));
    // SAFETY: `check_bounds` has shown that every element read or written lies within its slice,
    // `c` is borrowed mutably and so overlaps neither `a` nor `b`, and `has_distinct_elements` has
    // shown that no two threads can access the same element of `c`.
    unsafe {
        get_gemm_fn()(
            m,
            n,
            k,
            c.as_mut_ptr(),
            stride(c_strides.1),
            stride(c_strides.0),
            accumulate,
            lhs.as_ptr(),
            stride(lhs_strides.1),
            stride(lhs_strides.0),
            rhs.as_ptr(),
            stride(rhs_strides.1),
            stride(rhs_strides.0),
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn parallelism(parallel: bool) -> Parallelism {
    match parallel {
        true => Parallelism::Rayon(rayon::current_num_threads()),
        false => Parallelism::None,
    }
}

/// Strides of the transposed matrix.
fn swapped((down, right): (usize, usize)) -> (usize, usize) {
    (right, down)
}

/// True if a matmul of (m, k) and (k, n) should be multi-threaded.
pub(crate) fn is_parallel(m: usize, n: usize, k: usize) -> bool {
    m.saturating_mul(n).saturating_mul(k) >= PARALLEL_WORK
}

fn check_bounds(name: &str, rows: usize, columns: usize, strides: (usize, usize), len: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let down = (rows - 1).checked_mul(strides.0);
    let right = (columns - 1).checked_mul(strides.1);
    let last = down.zip(right).and_then(|(d, r)| d.checked_add(r));
    assert!(
        last.is_some_and(|last| last < len),
        "matmul: {name} of shape ({rows}, {columns}) with strides {strides:?} \
         does not fit a slice of {len}"
    );
}

/// True if rows are disjoint in memory, or columns are, so that no element is shared.
fn has_distinct_elements(rows: usize, columns: usize, strides: (usize, usize)) -> bool {
    let nested = |inner: usize, inner_stride: usize, outer: usize, outer_stride: usize| {
        (inner <= 1 || inner_stride > 0)
            && (outer <= 1 || outer_stride > inner.saturating_sub(1) * inner_stride)
    };
    rows * columns == 0
        || nested(columns, strides.1, rows, strides.0)
        || nested(rows, strides.0, columns, strides.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_all_close, assert_bit_identical_for_any_thread_count};
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    struct Case {
        m: usize,
        n: usize,
        k: usize,
        transposed: [bool; 3],
        padding: usize,
        alpha: f32,
        accumulate: bool,
    }

    fn layout(rows: usize, columns: usize, transposed: bool, padding: usize) -> (usize, usize) {
        if transposed {
            (1, rows + padding)
        } else {
            (columns + padding, 1)
        }
    }

    fn check(case: Case) {
        let Case {
            m,
            n,
            k,
            transposed: [ta, tb, tc],
            padding,
            alpha,
            accumulate,
        } = case;
        let (sa, sb) = (layout(m, k, ta, padding), layout(k, n, tb, padding));
        let sc = layout(m, n, tc, padding);
        let mut rng = Rng::new(7);
        let a = rng.normal((m + padding) * (k + padding));
        let b = rng.normal((k + padding) * (n + padding));
        let before = rng.normal((m + padding) * (n + padding));
        let mut want: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
        for i in 0..m {
            for j in 0..n {
                let at = i * sc.0 + j * sc.1;
                let product: f64 = (0..k)
                    .map(|l| f64::from(a[i * sa.0 + l * sa.1]) * f64::from(b[l * sb.0 + j * sb.1]))
                    .sum();
                let start = if accumulate { want[at] } else { 0.0 };
                want[at] = start + f64::from(alpha) * product;
            }
        }
        for parallel in [false, true] {
            let mut c = before.clone();
            matmul(
                m, n, k, &a, sa, &b, sb, &mut c, sc, alpha, accumulate, parallel,
            );
            assert_all_close(&c, &want, 1e-5);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn matches_the_definition(
            m in 0usize..40, n in 0usize..40, k in 0usize..70,
            transposed in any::<[bool; 3]>(), padding in 0usize..3,
            alpha in prop::sample::select(vec![1.0f32, 0.5, -2.0]), accumulate in any::<bool>(),
        ) {
            check(Case { m, n, k, transposed, padding, alpha, accumulate });
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        let shapes = [
            (1, 700, 300),
            (700, 1, 300),
            (65, 129, 1000),
            (200, 300, 77),
            (3, 500, 400),
        ];
        for (m, n, k) in shapes {
            for transposed in [false, true] {
                let mut rng = Rng::new(3);
                let (a, b) = (rng.normal(m * k), rng.normal(k * n));
                let sa = layout(m, k, transposed, 0);
                let sb = layout(k, n, !transposed, 0);
                let run = |parallel: bool| {
                    let mut c = vec![1.0; m * n];
                    matmul(m, n, k, &a, sa, &b, sb, &mut c, (n, 1), 0.3, true, parallel);
                    c
                };
                assert_bit_identical_for_any_thread_count(|| run(true));
                assert_eq!(run(true), run(false));
            }
        }
    }

    #[test]
    #[should_panic(expected = "matmul: b of shape")]
    fn slice_that_is_too_short_is_rejected() {
        matmul(
            2,
            2,
            2,
            &[0.0; 4],
            (2, 1),
            &[0.0; 3],
            (2, 1),
            &mut [0.0; 4],
            (2, 1),
            1.0,
            false,
            false,
        );
    }

    #[test]
    #[should_panic(expected = "elements of c overlap")]
    fn overlapping_output_is_rejected() {
        matmul(
            2,
            2,
            2,
            &[0.0; 4],
            (2, 1),
            &[0.0; 4],
            (2, 1),
            &mut [0.0; 4],
            (1, 1),
            1.0,
            false,
            false,
        );
    }
}
