use super::kernel::Kernel;
use super::*;
use crate::floats::{Floats, narrow, round, widen};
use crate::testing::{Rng, assert_bit_identical_for_any_thread_count};
use half::bf16;
use proptest::prelude::*;
use std::ops::Range;

/// Relative rounding error of single precision.
const EPSILON: f64 = f32::EPSILON as f64 / 2.0;

fn rounded(x: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; x.len()];
    narrow(x, &mut out);
    out
}

/// Returns the elements as the matmul reads them.
fn operand(precision: Precision, x: &[f32]) -> Vec<f64> {
    let mut x = x.to_vec();
    if precision == Precision::Bf16 {
        let narrow = rounded(&x);
        widen(&narrow, &mut x);
    }
    x.into_iter().map(f64::from).collect()
}

/// Returns the product (m, k) (k, n), and the sums of the absolute values of its terms.
fn naive(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<(f64, f64)> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|l| a(i, l) * b(l, j));
            out.push(terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs())));
        }
    }
    out
}

/// Asserts that sums of `k` terms differ by no more than their rounding errors: each of k additions rounds a partial
/// sum, which is at most the sum of the absolute values.
#[track_caller]
fn assert_sums(found: &[f32], want: &[(f64, f64)], k: usize) {
    assert_eq!(found.len(), want.len());
    for (i, (found, (want, size))) in found.iter().zip(want).enumerate() {
        let bound = (k + 2) as f64 * EPSILON * size + 1e-30;
        let error = (f64::from(*found) - want).abs();
        assert!(
            error <= bound,
            "element {i}: {found}, expected {want} within {bound:e}"
        );
    }
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Returns the matmul of `rows` rows and a packed operand into a matrix.
fn tiled<'a>(
    left: Left<'a>,
    rows: usize,
    right: &'a Packed,
    out: &'a mut [f32],
) -> TiledMatmul<'a, OutputRows<'a>> {
    TiledMatmul {
        kernel: right.kernel(),
        left,
        rows,
        right: right.panels_from(0),
        steps: right.steps(),
        columns: right.columns(),
        out: OutputRows {
            data: out,
            stride: right.columns(),
            accumulate: false,
        },
    }
}

/// Returns every kernel of this machine, and those that can be emulated.
fn kernels() -> Vec<Kernel> {
    let pairs: [Option<Kernel>; _] = [
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Some(Kernel::Amx(amx::Token::emulated())),
        #[cfg(target_arch = "x86_64")]
        avx512::Token::new().map(Kernel::Avx512),
    ];
    let pairs = pairs.into_iter().flatten();
    [Kernel::F32, Kernel::Rounded]
        .into_iter()
        .chain(pairs)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_match_the_definition(
        m in 0usize..30, n in 0usize..120, k in 0usize..70, padding in 0usize..3,
        is_transposed in any::<bool>(), is_narrow in any::<[bool; 2]>(), seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let a = rng.normal(m * (k + padding) + k);
        let (rows, width) = if is_transposed { (n, k) } else { (k, n) };
        let b = rng.normal(rows * width);
        let (a_narrow, b_narrow) = (rounded(&a), rounded(&b));
        for precision in PRECISIONS {
            let a_floats = if is_narrow[0] { Floats::from(&a_narrow[..]) } else { Floats::from(&a[..]) };
            let b_floats = if is_narrow[1] { Floats::from(&b_narrow[..]) } else { Floats::from(&b[..]) };
            let read = |x: &[f32], is_narrow: bool| match is_narrow {
                true => operand(Precision::Bf16, x),
                false => operand(precision, x),
            };
            let (a_read, b_read) = (read(&a, is_narrow[0]), read(&b, is_narrow[1]));
            let left = Matrix::with_stride(a_floats, m, k, k + padding);
            let matrix = Matrix::new(b_floats, rows, width);
            let packed = match is_transposed {
                true => Packed::transposed(precision, matrix),
                false => Packed::new(precision, matrix),
            };
            let b_at = |l: usize, j: usize| b_read[if is_transposed { j * k + l } else { l * n + j }];
            let want = naive([m, n, k], |i, l| a_read[i * (k + padding) + l], b_at);
            let mut c = vec![f32::NAN; m * (n + padding)];
            let stride = n + padding;
            multiply(left, &packed, MatrixMut::with_stride(&mut c[..], m, n, stride), 1.0);
            let found: Vec<f32> = (0..m).flat_map(|i| c[i * stride..][..n].to_vec()).collect();
            assert_sums(&found, &want, k);
            let padding = (0..m).flat_map(|i| c[i * stride + n..][..padding].to_vec());
            prop_assert!(padding.into_iter().all(f32::is_nan));
            // Outputs in bfloat16 are those in single precision, rounded.
            let mut c = vec![bf16::NAN; m * n];
            multiply(left, &packed, MatrixMut::new(&mut c[..], m, n), -0.5);
            let halves: Vec<f32> = found.iter().map(|x| -0.5 * x).collect();
            prop_assert_eq!(c, rounded(&halves));
        }
    }

    #[test]
    fn transposed_products_match_the_definition(
        m in 0usize..60, n in 0usize..70, k in 0usize..70, padding in 0usize..3,
        accumulate in any::<bool>(), is_narrow in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        let a = rng.normal(k * (m + padding));
        let b = rng.normal(k * n);
        let (a_narrow, b_narrow) = (rounded(&a), rounded(&b));
        let before = rng.normal(m * n);
        for precision in PRECISIONS {
            let (left, right) = match is_narrow {
                true => (Floats::from(&a_narrow[..]), Floats::from(&b_narrow[..])),
                false => (Floats::from(&a[..]), Floats::from(&b[..])),
            };
            let read = if is_narrow { Precision::Bf16 } else { precision };
            let (a_read, b_read) = (operand(read, &a), operand(read, &b));
            let stride = m + padding;
            let product = naive([m, n, k], |i, l| a_read[l * stride + i], |l, j| b_read[l * n + j]);
            let want: Vec<(f64, f64)> = product.iter().zip(&before).map(|((sum, size), before)| {
                let before = if accumulate { f64::from(*before) } else { 0.0 };
                (0.5 * sum + before, 0.5 * size + before.abs())
            }).collect();
            let mut c = before.clone();
            multiply_transposed(
                precision,
                Matrix::with_stride(left, k, m, stride),
                Matrix::new(right, k, n),
                MatrixMut::new(&mut c[..], m, n),
                0.5,
                accumulate,
            );
            assert_sums(&c, &want, k);
        }
    }

    /// Rows that are masked, as in attention, on every vector unit.
    #[test]
    fn active_regions_match_the_definition(
        m in 1usize..50, n in 1usize..40, k in 1usize..70, is_transposed in any::<bool>(),
        first in 0usize..8, seed in any::<u64>(),
    ) {
        let mut rng = Rng::new(seed);
        // Row i has nonzero terms up to inner index first + i.
        let end = |i: usize| (first + i + 1).min(k);
        let mut a = rng.normal(m * k);
        for i in 0..m {
            a[i * k + end(i)..(i + 1) * k].fill(0.0);
        }
        let columns: Vec<f32> = (0..k * m).map(|at| a[at % m * k + at / m]).collect();
        let b = rng.normal(k * n);
        for kernel in kernels() {
            let packed = Packed::for_kernel(kernel, Matrix::new(&b[..], k, n));
            let mut buffer = LeftBuffer::default();
            let operand = match is_transposed {
                false => buffer.row_major(kernel, Rows::new(&a, k), m, k),
                true => buffer.transposed(kernel, Rows::new(&columns, m), k, m),
            };
            let mut c = vec![f32::NAN; m * n];
            tiled(operand, m, &packed, &mut c).run_active(|rows: Range<usize>| ActiveRegion {
                inner: 0..end(rows.end - 1),
                columns: n,
            });
            let read = |x: &[f32]| self::operand(kernel.precision(), x);
            let (a_read, b_read) = (read(&a), read(&b));
            let want = naive([m, n, k], |i, l| a_read[i * k + l], |l, j| b_read[l * n + j]);
            assert_sums(&c, &want, k);
        }
    }
}

/// Longer inner dimensions than a sum has are multiplied part by part, for all panels of a block.
#[test]
fn long_inner_dimensions_are_the_same_chains() {
    let mut rng = Rng::new(12);
    for (m, n, k) in [(5, 50, 513), (70, 33, 1023), (33, 17, 1024), (9, 64, 2051)] {
        let (a, b) = (rng.normal(m * k), rng.normal(k * n));
        let before = rng.normal(m * n);
        for kernel in kernels() {
            let packed = Packed::for_kernel(kernel, Matrix::new(&b[..], k, n));
            let mut buffer = LeftBuffer::default();
            let left = buffer.row_major(kernel, Rows::new(&a, k), m, k);
            let mut want = vec![f32::NAN; m * n];
            tiled(left, m, &packed, &mut want).run_active(|_| ActiveRegion {
                inner: 0..k,
                columns: n,
            });
            let mut found = before.clone();
            multiply(
                Matrix::new(&a[..], m, k),
                &packed,
                MatrixMut::new(&mut found[..], m, n),
                0.5,
            );
            assert!(found.iter().zip(&want).all(|(x, sum)| *x == 0.5 * sum));
            found.fill(f32::NAN);
            multiply(
                Matrix::new(&a[..], m, k),
                &packed,
                MatrixMut::new(&mut found[..], m, n),
                1.0,
            );
            assert_eq!(found, want);
            found.copy_from_slice(&before);
            multiply_add(
                Matrix::new(&a[..], m, k),
                &packed,
                MatrixMut::new(&mut found[..], m, n),
                0.5,
            );
            let added = before.iter().zip(&want).map(|(x, sum)| x + 0.5 * sum);
            assert!(found.iter().zip(added).all(|(x, sum)| *x == sum));
            let mut rounded = vec![bf16::ZERO; m * n];
            multiply(
                Matrix::new(&a[..], m, k),
                &packed,
                MatrixMut::new(&mut rounded[..], m, n),
                1.0,
            );
            assert!(rounded.iter().zip(&want).all(|(x, sum)| *x == round(*sum)));
        }
    }
}

/// Row by row, transposed operands are the same steps as those read in place or copied, whatever the buffer held.
#[test]
fn transposed_left_operands_are_the_rows_of_the_transpose() {
    let mut rng = Rng::new(13);
    let other = vec![f32::NAN; 160 * 160];
    for (m, k) in [(1, 1), (70, 33), (130, 75), (32, 1000)] {
        let x = rng.normal(k * m);
        let transpose: Vec<f32> = (0..m * k).map(|at| x[at % k * m + at / k]).collect();
        for kernel in kernels() {
            let mut buffer = LeftBuffer::default();
            let _ = buffer.transposed(kernel, Rows::new(&other, 160), 160, 160);
            let mut want_buffer = LeftBuffer::default();
            let found = buffer.transposed(kernel, Rows::new(&x, m), k, m);
            let want = want_buffer.row_major(kernel, Rows::new(&transpose, k), m, k);
            let at = |left: &Left, row: usize, step: usize| match left.layout {
                LeftLayout::RowMajor => left.data[row * left.stride + step],
                LeftLayout::StepMajor => left.data[step * left.stride + row],
            };
            for row in 0..m {
                for step in 0..kernel.steps(k) {
                    assert_eq!(at(&found, row, step), at(&want, row, step), "{kernel:?}");
                }
            }
        }
    }
}

/// Blocks of more rows than are transposed at a time, and more steps.
#[test]
fn large_transposed_products_match_the_definition() {
    let (m, n, k) = (1000, 20, 1100);
    let mut rng = Rng::new(14);
    let (a, b) = (rng.normal(k * m), rng.normal(k * n));
    for precision in PRECISIONS {
        let (a_read, b_read) = (operand(precision, &a), operand(precision, &b));
        let want = naive(
            [m, n, k],
            |i, l| a_read[l * m + i],
            |l, j| b_read[l * n + j],
        );
        let mut c = vec![f32::NAN; m * n];
        for accumulate in [false, true] {
            let (left, right) = (Matrix::new(&a[..], k, m), Matrix::new(&b[..], k, n));
            let out = MatrixMut::new(&mut c[..], m, n);
            multiply_transposed(precision, left, right, out, 1.0, accumulate);
            let factor = if accumulate { 2.0 } else { 1.0 };
            let want: Vec<_> = want
                .iter()
                .map(|(x, abs)| (factor * x, factor * abs))
                .collect();
            assert_sums(&c, &want, k);
        }
    }
}

#[test]
fn inactive_columns_are_not_written() {
    let (m, n, k) = (39, 40, 2);
    for kernel in kernels() {
        let packed = Packed::for_kernel(kernel, Matrix::new(&vec![1.0; k * n], k, n));
        for (active, written) in [(0, 0), (9, 16), (17, 32), (33, 40), (40, 40)] {
            let ones = vec![1.0; m * k];
            let mut buffer = LeftBuffer::default();
            let mut c = vec![-1.0; m * n];
            // Needed columns of the first block; the other blocks need all.
            let first = Cell::new(0);
            let left = buffer.row_major(kernel, Rows::new(&ones, k), m, k);
            tiled(left, m, &packed, &mut c).run_active(|rows: Range<usize>| {
                let is_first = rows.start == 0;
                first.set(if is_first { rows.end } else { first.get() });
                ActiveRegion {
                    inner: 0..k,
                    columns: if is_first { active } else { n },
                }
            });
            assert!((1..m).contains(&first.get()));
            for (i, row) in c.chunks(n).enumerate() {
                let written = if i < first.get() { written } else { n };
                assert!(row[..written].iter().all(|&v| v == 2.0), "{written}");
                assert!(row[written..].iter().all(|&v| v == -1.0), "{written}");
            }
        }
    }
}

#[test]
fn long_sums_are_split() {
    let (m, n, k) = (9, 50, 3 * tiles::SUM_STEPS + 77);
    let mut rng = Rng::new(5);
    let (a, b) = (rng.normal(m * k), rng.normal(k * n));
    for precision in PRECISIONS {
        let (a_read, b_read) = (operand(precision, &a), operand(precision, &b));
        let want = naive(
            [m, n, k],
            |i, l| a_read[i * k + l],
            |l, j| b_read[l * n + j],
        );
        let packed = Packed::new(precision, Matrix::new(&b[..], k, n));
        let mut c = vec![0.0; m * n];
        multiply(
            Matrix::new(&a[..], m, k),
            &packed,
            MatrixMut::new(&mut c[..], m, n),
            1.0,
        );
        // As if each block of terms were one: the bound of a plain chain is several times as large.
        assert_sums(&c, &want, k / 2);
    }
}

/// Adds the products of a step as VDPBF16PS does: the second elements of the pairs first, without a fused multiply-add
/// of both; each product is exact, and each addition rounds to nearest even.
#[cfg(target_arch = "x86_64")]
fn vdpbf16ps(sum: f32, [a0, a1]: [bf16; 2], [b0, b1]: [bf16; 2]) -> f32 {
    let sum = a1.to_f32().mul_add(b1.to_f32(), sum);
    a0.to_f32().mul_add(b0.to_f32(), sum)
}

#[cfg(target_arch = "x86_64")]
#[test]
fn avx512_bf16_equals_its_plain_model() {
    let Some(kernel) = avx512::Token::new().map(Kernel::Avx512) else {
        println!("not run: the processor has no AVX-512 BF16");
        return;
    };
    let (m, n, k) = (13, 70, 90);
    let mut rng = Rng::new(6);
    let (a, b) = (rounded(&rng.normal(m * k)), rounded(&rng.normal(k * n)));
    let packed = Packed::for_kernel(kernel, Matrix::new(&b, k, n));
    let mut c = vec![0.0; m * n];
    let mut buffer = LeftBuffer::default();
    let left = buffer.row_major(kernel, Rows::new(&a, k), m, k);
    tiled(left, m, &packed, &mut c).run_active(|_| ActiveRegion {
        inner: 0..k,
        columns: n,
    });
    for (i, row) in c.chunks(n).enumerate() {
        for (j, found) in row.iter().enumerate() {
            let pairs = (0..k).step_by(2);
            let sum = pairs.fold(0.0, |sum, l| {
                let left = [a[i * k + l], a[i * k + l + 1]];
                vdpbf16ps(sum, left, [b[l * n + j], b[(l + 1) * n + j]])
            });
            assert_eq!(found.to_bits(), sum.to_bits(), "({i}, {j})");
        }
    }
}

#[test]
fn numbers_that_are_not_finite_propagate() {
    for precision in PRECISIONS {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut a = vec![1.0; 5 * 64];
            a[64 + 3] = bad;
            let packed = Packed::new(precision, Matrix::new(&[1.0; 64 * 17][..], 64, 17));
            let mut c = vec![0.0; 5 * 17];
            multiply(
                Matrix::new(&a[..], 5, 64),
                &packed,
                MatrixMut::new(&mut c[..], 5, 17),
                1.0,
            );
            for (i, row) in c.chunks(17).enumerate() {
                assert!(
                    row.iter().all(|x| x.is_finite() != (i == 1)),
                    "{precision:?} {bad}"
                );
            }
        }
    }
}

#[test]
fn bit_identical_for_any_thread_count() {
    for precision in PRECISIONS {
        for (m, n, k) in [
            (1, 700, 300),
            (700, 1, 300),
            (65, 129, 1000),
            (200, 300, 77),
            (3, 500, 400),
            (300, 129, 2100),
        ] {
            let mut rng = Rng::new(3);
            let (a, b, t) = (rng.normal(m * k), rng.normal(k * n), rng.normal(k * m));
            assert_bit_identical_for_any_thread_count(|| {
                let packed = Packed::new(precision, Matrix::new(&b[..], k, n));
                let mut c = vec![1.0; 2 * m * n];
                let mut d = vec![1.0; m * n];
                for (c, scale) in c.chunks_exact_mut(m * n).zip([0.3, 1.0]) {
                    let left = Matrix::new(&a[..], m, k);
                    multiply(left, &packed, MatrixMut::new(c, m, n), scale);
                }
                let (left, right) = (Matrix::new(&t[..], k, m), Matrix::new(&b[..], k, n));
                let out = MatrixMut::new(&mut d[..], m, n);
                multiply_transposed(precision, left, right, out, 0.3, true);
                [c, d].concat()
            });
        }
    }
}

#[test]
#[should_panic(expected = "with stride 2 does not fit a slice of 3")]
fn slice_that_is_too_short_is_rejected() {
    Matrix::with_stride(&[0.0; 3][..], 2, 2, 2);
}

#[test]
#[should_panic(expected = "rows of 2 with stride 1 overlap")]
fn overlapping_output_is_rejected() {
    MatrixMut::with_stride(&mut [0.0; 4][..], 2, 2, 1);
}
