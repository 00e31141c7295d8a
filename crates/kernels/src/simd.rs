//! Run-time selection of the instruction set, and reductions in a fixed order that still vectorize.
//!
//! Floating-point addition is not associative, so a compiler may not vectorize a plain sum. Here a
//! reduction runs over `LANES` independent accumulators which are folded in a fixed tree: the
//! order is part of the code and the same on every machine.

use crate::floats::Float;
use pulp::{Simd, WithSimd};

/// Independent accumulators of a reduction: two AVX2 registers, enough to hide the latency.
pub(crate) const LANES: usize = 16;

/// Terms that are buffered before they are summed.
const BLOCK: usize = 256;

/// Runs `body` compiled for the best instruction set of this machine.
///
/// The body must be inlined to benefit: write `dispatch(#[inline(always)] || ...)` and mark its callees
/// `#[inline(always)]`.
#[inline(always)]
pub(crate) fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Chunk of numbers that explicit vector code processes at a time.
pub(crate) type Chunk = [f32; LANES];

/// Kernel on chunks in explicit SIMD vectors, for loops that the compiler does not vectorize well.
pub(crate) trait SimdKernel {
    /// Result of the kernel.
    type Output;

    /// Runs with `V` vectors per chunk. `V` must be a constant for accumulators to stay in registers.
    fn run<S: Simd, const V: usize>(self, simd: S) -> Self::Output;
}

/// Runs a kernel with the best instruction set of this machine.
#[inline(always)]
pub(crate) fn run_simd<C: SimdKernel>(kernel: C) -> C::Output {
    struct ByVectors<C>(C);
    impl<C: SimdKernel> WithSimd for ByVectors<C> {
        type Output = C::Output;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> C::Output {
            match LANES / S::F32_LANES {
                1 => self.0.run::<S, 1>(simd),
                2 => self.0.run::<S, 2>(simd),
                4 => self.0.run::<S, 4>(simd),
                _ => self.0.run::<S, LANES>(simd),
            }
        }
    }
    pulp::Arch::new().dispatch(ByVectors(kernel))
}

/// Returns the vectors of a chunk.
#[inline(always)]
pub(crate) fn vectors<S: Simd, const V: usize>(chunk: &Chunk) -> &[S::f32s; V] {
    S::as_simd_f32s(chunk)
        .0
        .try_into()
        .expect("a chunk holds V vectors")
}

/// Returns the vectors of a chunk for writing.
#[inline(always)]
pub(crate) fn vectors_mut<S: Simd, const V: usize>(chunk: &mut Chunk) -> &mut [S::f32s; V] {
    let vectors = S::as_mut_simd_f32s(chunk).0;
    vectors.try_into().expect("a chunk holds V vectors")
}

/// Sums the numbers of a chunk, adding the first and the second half until one is left.
#[inline(always)]
pub(crate) fn horizontal_sum<S: Simd, const V: usize>(simd: S, mut chunk: [S::f32s; V]) -> f32 {
    let mut count = V;
    while count > 1 {
        count /= 2;
        for v in 0..count {
            chunk[v] = simd.add_f32s(chunk[v], chunk[v + count]);
        }
    }
    simd.reduce_sum_f32s(chunk[0])
}

/// Folds the accumulators in a fixed tree.
#[inline(always)]
fn fold(lanes: &[f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sums the accumulators.
///
/// Deliberately not inlined: the call makes the caller keep its accumulators side by side in memory
/// order, and only then does LLVM put them into full vector registers. Inlined, the tree's pairs
/// become the vectors and the loop runs at a quarter of the speed.
#[inline(never)]
fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Returns the largest accumulator; not inlined for the same reason.
#[inline(never)]
fn largest(lanes: &[f32; LANES]) -> f32 {
    fold(lanes, larger)
}

/// Sum of `f(x)` over a slice.
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    let mut total = sum_lanes(&lanes);
    for &v in tail {
        total += f(v);
    }
    total
}

/// Sum of `f(x, y, z)` over three slices of the same length.
///
/// The terms of a block are buffered before they are summed: a loop over several slices that also adds
/// into accumulators is not vectorized.
#[inline(always)]
pub(crate) fn sum3(x: &[f32], y: &[f32], z: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut block = [0.0f32; BLOCK];
    let mut total = 0.0;
    for ((x, y), z) in x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(z.chunks(BLOCK)) {
        let terms = &mut block[..x.len()];
        for (((term, &x), &y), &z) in terms.iter_mut().zip(x).zip(y).zip(z) {
            *term = f(x, y, z);
        }
        total += sum(terms, |term| term);
    }
    total
}

/// Dot product.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum3(x, y, y, |x, y, _| x * y)
}

/// Dot products of `x` with `N` rows at once, for long rows in memory: several streams are in flight.
/// Each sums `LANES` chains of fused multiply-adds, for any vector width.
#[inline(always)]
pub(crate) fn dots<W: Float, const N: usize>(x: &[f32], rows: [&[W]; N]) -> [f32; N] {
    run_simd(Dots { x, rows })
}

struct Dots<'a, W, const N: usize> {
    x: &'a [f32],
    rows: [&'a [W]; N],
}

impl<W: Float, const N: usize> SimdKernel for Dots<'_, W, N> {
    type Output = [f32; N];

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) -> [f32; N] {
        let (x, x_tail) = self.x.as_chunks::<LANES>();
        let rows = self
            .rows
            .map(|row| row[..self.x.len()].as_chunks::<LANES>());
        let mut sums = [[simd.splat_f32s(0.0); V]; N];
        for l in 0..x.len() {
            let x = vectors::<S, V>(&x[l]);
            for i in 0..N {
                let row = rows[i].0[l].map(
                    #[inline(always)]
                    |w| w.widen(),
                );
                let row = vectors::<S, V>(&row);
                for v in 0..V {
                    sums[i][v] = simd.mul_add_f32s(x[v], row[v], sums[i][v]);
                }
            }
        }
        let mut totals = [0.0; N];
        for i in 0..N {
            totals[i] = horizontal_sum(simd, sums[i]);
            for (x, y) in x_tail.iter().zip(rows[i].1) {
                totals[i] = x.mul_add(y.widen(), totals[i]);
            }
        }
        totals
    }
}

/// Dot products of `M` vectors with `N` rows, bit-identical to [`dots`], which is 5% faster for a single vector.
pub(crate) struct DotProducts<'a, const M: usize, const N: usize> {
    pub(crate) x: [&'a [f32]; M],
    pub(crate) rows: [&'a [f32]; N],
}

impl<const M: usize, const N: usize> SimdKernel for DotProducts<'_, M, N> {
    type Output = [[f32; N]; M];

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) -> [[f32; N]; M] {
        let width = self.x[0].len();
        let (mut x, mut rows): ([&[Chunk]; M], [&[Chunk]; N]) = ([&[]; M], [&[]; N]);
        // Loops instead of `map`, which is not always inlined.
        for (chunks, x) in x.iter_mut().zip(self.x) {
            *chunks = x[..width].as_chunks().0;
        }
        for (chunks, row) in rows.iter_mut().zip(self.rows) {
            *chunks = row[..width].as_chunks().0;
        }
        let mut sums = [[[simd.splat_f32s(0.0); V]; N]; M];
        for l in 0..x[0].len() {
            for i in 0..N {
                let row = vectors::<S, V>(&rows[i][l]);
                for j in 0..M {
                    let x = vectors::<S, V>(&x[j][l]);
                    for v in 0..V {
                        sums[j][i][v] = simd.mul_add_f32s(x[v], row[v], sums[j][i][v]);
                    }
                }
            }
        }
        let mut totals = [[0.0; N]; M];
        for j in 0..M {
            for i in 0..N {
                totals[j][i] = horizontal_sum(simd, sums[j][i]);
                for l in width - width % LANES..width {
                    totals[j][i] = self.x[j][l].mul_add(self.rows[i][l], totals[j][i]);
                }
            }
        }
        totals
    }
}

/// Addition of `N` weighted rows to each of `M` sums: a chain of fused multiply-adds for each element, in
/// the order of the rows.
pub(crate) struct AccumulateRows<'a, const M: usize, const N: usize> {
    pub(crate) weights: [[f32; N]; M],
    pub(crate) rows: [&'a [f32]; N],
    pub(crate) sums: [&'a mut [f32]; M],
}

impl<const M: usize, const N: usize> SimdKernel for AccumulateRows<'_, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let AccumulateRows {
            weights,
            rows,
            sums,
        } = self;
        let width = sums[0].len();
        let mut splat = [[simd.splat_f32s(0.0); N]; M];
        let mut row_chunks: [&[Chunk]; N] = [&[]; N];
        // Loops instead of `map`, which is not always inlined.
        for i in 0..N {
            row_chunks[i] = rows[i][..width].as_chunks().0;
            for j in 0..M {
                splat[j][i] = simd.splat_f32s(weights[j][i]);
            }
        }
        for l in 0..width / LANES {
            for v in 0..V {
                // In registers, since to the compiler the sums might alias the rows.
                let mut row = [simd.splat_f32s(0.0); N];
                for i in 0..N {
                    row[i] = vectors::<S, V>(&row_chunks[i][l])[v];
                }
                for j in 0..M {
                    let sum = &mut sums[j][l * LANES..][..LANES];
                    let sum = &mut vectors_mut::<S, V>(sum.try_into().expect("a chunk"))[v];
                    for i in 0..N {
                        *sum = simd.mul_add_f32s(splat[j][i], row[i], *sum);
                    }
                }
            }
        }
        for j in 0..M {
            for l in width - width % LANES..width {
                for i in 0..N {
                    sums[j][l] = weights[j][i].mul_add(rows[i][l], sums[j][l]);
                }
            }
        }
    }
}

/// Replaces each `x` by `f(x)` and returns the sum of the new values.
#[inline(always)]
pub(crate) fn map_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            chunk[lane] = f(chunk[lane]);
            lanes[lane] += chunk[lane];
        }
    }
    let mut total = sum_lanes(&lanes);
    for v in tail {
        *v = f(*v);
        total += *v;
    }
    total
}

/// Largest value; negative infinity for an empty slice. NaN is ignored.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    tail.iter().fold(largest(&lanes), |a, &b| larger(a, b))
}

/// Returns the larger number; NaN if either is.
#[inline(always)]
pub fn larger_or_nan(a: f32, b: f32) -> f32 {
    if (b <= a) | a.is_nan() { a } else { b }
}

/// Returns the largest accumulator, or NaN if one is; not inlined for the same reason.
#[inline(never)]
fn largest_or_nan(lanes: &[f32; LANES]) -> f32 {
    fold(lanes, larger_or_nan)
}

/// Returns the largest value, or NaN if one is; negative infinity for an empty slice.
#[inline(always)]
pub(crate) fn max_or_nan(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger_or_nan(lanes[lane], chunk[lane]);
        }
    }
    tail.iter()
        .fold(largest_or_nan(&lanes), |a, &b| larger_or_nan(a, b))
}

#[inline(never)]
fn sum_lanes_f64(lanes: &[f64; LANES]) -> f64 {
    lanes.iter().sum()
}

/// Sum of squares in double precision.
#[inline(always)]
pub(crate) fn sum_squares_f64(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let v = f64::from(chunk[lane]);
            lanes[lane] += v * v;
        }
    }
    let total = sum_lanes_f64(&lanes);
    tail.iter()
        .fold(total, |t, &v| t + f64::from(v) * f64::from(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, assert_close};

    #[test]
    fn reductions_match_double_precision_at_every_length() {
        let mut rng = Rng::new(1);
        for len in (0..100).chain([BLOCK, 3 * BLOCK + 21]) {
            let x = rng.normal(len);
            let y = rng.normal(len);
            let exact: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
            assert_close(sum(&x, |v| v * v), exact, 1e-5);
            assert_close(sum_squares_f64(&x) as f32, exact, 1e-6);
            let exact: f64 = x
                .iter()
                .zip(&y)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum();
            assert_close(dot(&x, &y), exact, 1e-5);
            let products = dots(&x, [&y, &y]);
            for product in products {
                assert_close(product, exact, 1e-5);
            }
            let twice = || DotProducts {
                x: [&x, &x],
                rows: [&y, &y],
            };
            assert_eq!(run_simd(twice()), [products; 2]);
            assert_eq!(twice().run::<_, LANES>(pulp::Scalar), [products; 2]);
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), largest);
            assert_eq!(max_or_nan(&x), largest);
            for at in [0, len / 2, len.saturating_sub(1)] {
                let mut broken = x.clone();
                if let Some(x) = broken.get_mut(at) {
                    *x = f32::NAN;
                    assert!(max_or_nan(&broken).is_nan());
                }
            }
            let mut doubled = x.clone();
            let total = map_sum(&mut doubled, |v| 2.0 * v);
            assert_close(total, x.iter().map(|&v| 2.0 * f64::from(v)).sum(), 1e-5);
            assert!(doubled.iter().zip(&x).all(|(d, v)| *d == 2.0 * v));
        }
    }

    #[test]
    fn added_rows_are_chains_of_multiply_adds() {
        let mut rng = Rng::new(3);
        for len in [0, 7, 16, 53] {
            let (rows, before) = (rng.normal(3 * len), rng.normal(2 * len));
            let row = |i: usize| &rows[i * len..][..len];
            let weights = [[0.3f32, -1.7, 0.9], [2.1, 0.6, -0.2]];
            let mut want = before.clone();
            for (j, weights) in weights.iter().enumerate() {
                for (i, weight) in weights.iter().enumerate() {
                    for (sum, x) in want[j * len..][..len].iter_mut().zip(row(i)) {
                        *sum = weight.mul_add(*x, *sum);
                    }
                }
            }
            let (mut best, mut baseline) = (before.clone(), before);
            let add = |(first, second)| AccumulateRows {
                weights,
                rows: [row(0), row(1), row(2)],
                sums: [first, second],
            };
            run_simd(add(best.split_at_mut(len)));
            add(baseline.split_at_mut(len)).run::<_, LANES>(pulp::Scalar);
            assert_eq!(best, want);
            assert_eq!(baseline, want);
        }
    }

    #[test]
    fn dispatched_loops_are_bit_identical_to_the_baseline() {
        let x = Rng::new(2).normal(1000);
        let plain = sum(&x, crate::math::exp);
        let fast = dispatch(
            #[inline(always)]
            || sum(&x, crate::math::exp),
        );
        assert_eq!(plain.to_bits(), fast.to_bits());
    }
}
