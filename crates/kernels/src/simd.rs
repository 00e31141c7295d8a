//! Run-time choice of instruction set, and reductions in a fixed order that still vectorize.
//!
//! Floating-point addition is not associative, so a compiler may not vectorize a plain sum. Here a
//! reduction runs over `LANES` independent accumulators which are folded in a fixed tree: the
//! order is part of the code and the same on every machine.

use pulp::{Simd, WithSimd};

/// Independent accumulators of a reduction: two AVX2 registers, enough to hide the latency.
pub(crate) const LANES: usize = 16;

/// Terms that are written down before they are added up.
const BLOCK: usize = 256;

/// Runs `body` compiled for the best instruction set of this machine.
///
/// The body must be inlined to profit: write `dispatch(#[inline(always)] || ...)` and mark what it
/// calls `#[inline(always)]`.
#[inline(always)]
pub(crate) fn dispatch<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// A chunk of numbers that explicit vector code works on at a time.
pub(crate) type Chunk = [f32; LANES];

/// Work on chunks in explicit vectors, for what the compiler does not vectorize well by itself.
pub(crate) trait Chunked {
    /// What comes out.
    type Output;

    /// Runs with `V` vectors a chunk. That must be a constant for accumulators to stay in registers.
    fn run<S: Simd, const V: usize>(self, simd: S) -> Self::Output;
}

/// Runs such work with the vectors of this machine.
#[inline(always)]
pub(crate) fn by_chunks<C: Chunked>(work: C) -> C::Output {
    struct ByVectors<C>(C);
    impl<C: Chunked> WithSimd for ByVectors<C> {
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
    pulp::Arch::new().dispatch(ByVectors(work))
}

/// The vectors of a chunk.
#[inline(always)]
pub(crate) fn vectors<S: Simd, const V: usize>(chunk: &Chunk) -> &[S::f32s; V] {
    S::as_simd_f32s(chunk)
        .0
        .try_into()
        .expect("V vectors a chunk")
}

/// The vectors of a chunk, to be written.
#[inline(always)]
pub(crate) fn vectors_mut<S: Simd, const V: usize>(chunk: &mut Chunk) -> &mut [S::f32s; V] {
    let vectors = S::as_mut_simd_f32s(chunk).0;
    vectors.try_into().expect("V vectors a chunk")
}

/// Sum of a chunk's numbers, first and second half added until one is left.
#[inline(always)]
pub(crate) fn total<S: Simd, const V: usize>(simd: S, mut chunk: [S::f32s; V]) -> f32 {
    let mut count = V;
    while count > 1 {
        count /= 2;
        for v in 0..count {
            chunk[v] = simd.add_f32s(chunk[v], chunk[v + count]);
        }
    }
    simd.reduce_sum_f32s(chunk[0])
}

/// Joins the accumulators in a fixed tree.
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

/// Sum of the accumulators.
///
/// Not inlined on purpose: the call makes the caller keep its accumulators side by side in memory
/// order, and only then does LLVM put them into full vector registers. Inlined, the tree's pairs
/// become the vectors and the loop runs at a quarter of the speed.
#[inline(never)]
fn add_up(lanes: &[f32; LANES]) -> f32 {
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Largest accumulator; not inlined for the same reason.
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
    let mut total = add_up(&lanes);
    for &v in tail {
        total += f(v);
    }
    total
}

/// Sum of `f(x, y, z)` over three slices of the same length.
///
/// The terms of a block are written down before they are added up: a loop over several slices that
/// also adds into accumulators is not vectorized.
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

/// Dot products of `x` with `N` rows at once, for long rows that come from memory: several streams
/// are in flight. Each adds up `LANES` chains of fused multiply-adds, whatever the vectors' width.
#[inline(always)]
pub(crate) fn dots<const N: usize>(x: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    by_chunks(Dots { x, rows })
}

struct Dots<'a, const N: usize> {
    x: &'a [f32],
    rows: [&'a [f32]; N],
}

impl<const N: usize> Chunked for Dots<'_, N> {
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
                let row = vectors::<S, V>(&rows[i].0[l]);
                for v in 0..V {
                    sums[i][v] = simd.mul_add_f32s(x[v], row[v], sums[i][v]);
                }
            }
        }
        let mut totals = [0.0; N];
        for i in 0..N {
            totals[i] = total(simd, sums[i]);
            for (x, y) in x_tail.iter().zip(rows[i].1) {
                totals[i] = x.mul_add(*y, totals[i]);
            }
        }
        totals
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
    let mut total = add_up(&lanes);
    for v in tail {
        *v = f(*v);
        total += *v;
    }
    total
}

/// Largest value; negative infinity for an empty slice. A NaN is passed over.
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

#[inline(never)]
fn add_up_f64(lanes: &[f64; LANES]) -> f64 {
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
    let total = add_up_f64(&lanes);
    tail.iter()
        .fold(total, |t, &v| t + f64::from(v) * f64::from(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, close};

    #[test]
    fn reductions_match_double_precision_at_every_length() {
        let mut rng = Rng::new(1);
        for len in (0..100).chain([BLOCK, 3 * BLOCK + 21]) {
            let x = rng.normal(len);
            let y = rng.normal(len);
            let exact: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
            close(sum(&x, |v| v * v), exact, 1e-5);
            close(sum_squares_f64(&x) as f32, exact, 1e-6);
            let exact: f64 = x
                .iter()
                .zip(&y)
                .map(|(&a, &b)| f64::from(a) * f64::from(b))
                .sum();
            close(dot(&x, &y), exact, 1e-5);
            for product in dots(&x, [&y, &y]) {
                close(product, exact, 1e-5);
            }
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), largest);
            let mut doubled = x.clone();
            let total = map_sum(&mut doubled, |v| 2.0 * v);
            close(total, x.iter().map(|&v| 2.0 * f64::from(v)).sum(), 1e-5);
            assert!(doubled.iter().zip(&x).all(|(d, v)| *d == 2.0 * v));
        }
    }

    #[test]
    fn dispatched_loops_give_the_bits_of_the_baseline() {
        let x = Rng::new(2).normal(1000);
        let plain = sum(&x, crate::math::exp);
        let fast = dispatch(
            #[inline(always)]
            || sum(&x, crate::math::exp),
        );
        assert_eq!(plain.to_bits(), fast.to_bits());
    }
}
