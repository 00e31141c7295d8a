//! Test utilities of all ops: random numbers, comparisons, derivatives, thread pools.

use crate::splitmix64::SplitMix64;

/// Pseudorandom inputs.
pub(crate) struct Rng(SplitMix64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal, variance 1 (sum of twelve uniforms).
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        let mut one = || (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        (0..len).map(|_| one() as f32).collect()
    }

    /// Integers below `end`.
    pub(crate) fn below(&mut self, end: usize, len: usize) -> Vec<i32> {
        (0..len)
            .map(|_| (self.0.next_u64() % end as u64) as i32)
            .collect()
    }
}

pub(crate) fn to_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Asserts |got - want| <= tolerance * max(1, |want|).
#[track_caller]
pub(crate) fn assert_close(got: f32, want: f64, tolerance: f64) {
    let error = (f64::from(got) - want).abs();
    assert!(
        error <= tolerance * want.abs().max(1.0),
        "got {got}, want {want}: error {error:e}"
    );
}

/// Asserts |got - want| <= tolerance * max(0.25, max |want|) for every element.
#[track_caller]
pub(crate) fn assert_all_close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let scale = want.iter().fold(0.25f64, |m, v| m.max(v.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs();
        assert!(
            error <= tolerance * scale,
            "element {i}: got {g}, want {w}, scale {scale}"
        );
    }
}

/// Relative rounding error of bfloat16 (2^-8), and that of the operations in single precision between two roundings.
#[cfg(test)]
pub(crate) const BF16_ERROR: f64 = 0.00390625 + 1e-5;

/// A number with a bound on its error.
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Bounded {
    pub(crate) value: f64,
    pub(crate) error: f64,
}

#[cfg(test)]
impl Bounded {
    pub(crate) fn add(&mut self, value: f64, error: f64) {
        self.value += value;
        self.error += error;
    }
}

/// Asserts that every element is within the bound on its error, and 1e-6.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_within(found: &[f32], want: &[Bounded]) {
    assert_eq!(found.len(), want.len());
    for (i, (found, Bounded { value, error })) in found.iter().zip(want).enumerate() {
        let distance = (f64::from(*found) - value).abs();
        let bound = error + 1e-6;
        assert!(
            distance <= bound,
            "element {i}: {found}, expected {value} within {bound:e}"
        );
    }
}

/// Compares a gradient with central differences of an `f64` function: every coordinate of a small input,
/// otherwise a sample of coordinates and of random directions, which involve all coordinates.
#[track_caller]
pub(crate) fn check_gradient(
    f: impl Fn(&[f64]) -> f64,
    x: &[f32],
    gradient: &[f32],
    tolerance: f64,
) {
    assert_eq!(
        x.len(),
        gradient.len(),
        "gradient and input differ in length"
    );
    let at = to_f64(x);
    let along = |direction: &[(usize, f64)]| directional_derivative(&f, &at, direction);
    let scale = gradient
        .iter()
        .fold(0.25f64, |m, v| m.max(f64::from(v.abs())));
    let mut rng = Rng::new(x.len() as u64);
    let all = x.len() <= 160;
    let coordinates: Vec<usize> = if all {
        (0..x.len()).collect()
    } else {
        (0..24)
            .map(|_| (rng.0.next_u64() % x.len() as u64) as usize)
            .collect()
    };
    for i in coordinates {
        let want = along(&[(i, 1.0)]);
        let error = (f64::from(gradient[i]) - want).abs();
        assert!(
            error <= tolerance * scale,
            "gradient {i}: got {}, want {want}",
            gradient[i]
        );
    }
    for _ in 0..if all { 0 } else { 4 } {
        let direction: Vec<(usize, f64)> = rng
            .normal(x.len())
            .into_iter()
            .map(f64::from)
            .enumerate()
            .collect();
        let want = along(&direction);
        let got: f64 = direction
            .iter()
            .map(|&(i, d)| f64::from(gradient[i]) * d)
            .sum();
        let size = scale * (x.len() as f64).sqrt();
        assert!(
            (got - want).abs() <= tolerance * size,
            "direction: got {got}, want {want}"
        );
    }
}

/// Returns the central difference of `f` at `x` along a direction given by its nonzero coordinates.
fn directional_derivative(
    f: &impl Fn(&[f64]) -> f64,
    x: &[f64],
    direction: &[(usize, f64)],
) -> f64 {
    const STEP: f64 = 1e-5;
    let moved = |step: f64| {
        let mut y = x.to_vec();
        for &(i, d) in direction {
            y[i] += step * d;
        }
        f(&y)
    };
    (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
}

/// Runs `op` in pools of 1, 2 and 3 threads and asserts that the results are bit-identical.
#[track_caller]
pub(crate) fn assert_bit_identical_for_any_thread_count(op: impl Fn() -> Vec<f32> + Sync) {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(&op)
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<u32>>()
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(
            run(threads) == one,
            "results differ between 1 and {threads} threads"
        );
    }
}

/// Dot product with fixed weights: turns an op's output into a loss whose gradient is `weights`.
pub(crate) fn dot_f64(output: &[f64], weights: &[f32]) -> f64 {
    output
        .iter()
        .zip(weights)
        .map(|(&o, &w)| o * f64::from(w))
        .sum()
}

/// Error function by its Maclaurin series in a form without cancellation
/// (Abramowitz and Stegun 7.1.6).
pub(crate) fn erf_f64(x: f64) -> f64 {
    let mut term = x;
    let mut total = x;
    let mut n = 0.0;
    while term.abs() > 1e-18 * total.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        total += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * total
}
