//! Activations of the feed-forward network.
//!
//! GELU is the tanh approximation of GPT-2 and Gemma (Hendrycks, Gimpel 2016, arXiv 1606.08415),
//! `x / (1 + exp(-2u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, which equals
//! `0.5 x (1 + tanh(u))`. Gated forms: Shazeer 2020, arXiv 2002.05202. Squared ReLU: So et al.
//! 2021, arXiv 2109.08668. `GeluErf` is GELU as defined, with the error function.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::chunks::{Output, for_each_rows};
use crate::floats::{Floats, FloatsMut};
use crate::math::{erf, erf_derivative, sigmoid};
use crate::parallel::rows_per_chunk;

/// An activation; see [`Activation::inputs`] for the width of its rows.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Activation {
    /// `silu(gate) * up` on rows of `[gate | up]` (arXiv 2002.05202).
    #[default]
    Swiglu,
    /// `gelu(gate) * up` on rows of `[gate | up]` (Gemma).
    Geglu,
    /// `gelu(x)` (GPT-2).
    Gelu,
    /// `x (1 + erf(x / sqrt(2))) / 2`, GELU without approximation (GPT-NeoX).
    GeluErf,
    /// `max(x, 0)^2` (arXiv 2109.08668).
    Relu2,
}

impl Activation {
    /// True if there is a gate projection beside the up projection.
    pub fn is_gated(self) -> bool {
        self.inputs(1) == 2
    }

    /// Returns the values per input row for `f` output values: 2f if gated, else f.
    pub fn inputs(self, f: usize) -> usize {
        match self {
            Activation::Swiglu | Activation::Geglu => 2 * f,
            Activation::Gelu | Activation::GeluErf | Activation::Relu2 => f,
        }
    }
}

/// Computes `y` (n, f) from `x`, (n, 2f) in the layout `[gate | up]` if gated, else (n, f).
pub fn forward<'a>(
    act: Activation,
    x: impl Into<Floats<'a>>,
    y: impl Into<FloatsMut<'a>>,
    f: usize,
) {
    let (x, y) = (x.into(), y.into());
    check_lengths("activation::forward", act, x.len(), y.len(), f);
    let chunk = rows_per_chunk(y.len() / f, f);
    for_each_rows(
        chunk,
        [(x, act.inputs(f))],
        [(Output::Overwrite(y), f)],
        #[inline(always)]
        |_, [x], [y]| match act {
            Activation::Swiglu => forward_gated(x, y, f, sigmoid),
            Activation::Geglu => forward_gated(x, y, f, gelu_factor),
            Activation::Gelu => forward_plain(x, y, gelu_factor),
            Activation::GeluErf => forward_plain(x, y, normal_cdf),
            Activation::Relu2 => forward_plain(x, y, relu),
        },
    );
}

/// Computes `dx`, shaped like the `x` of [`forward`], from `dy` (n, f), and overwrites `dy` with the recomputed
/// activation `y`, so that callers need not save it.
pub fn backward<'a>(
    act: Activation,
    x: impl Into<Floats<'a>>,
    dy: impl Into<FloatsMut<'a>>,
    dx: impl Into<FloatsMut<'a>>,
    f: usize,
) {
    let (x, dy, dx) = (x.into(), dy.into(), dx.into());
    check_lengths("activation::backward", act, x.len(), dy.len(), f);
    assert_eq!(
        dx.len(),
        x.len(),
        "activation::backward: dx is not as long as x"
    );
    let chunk = rows_per_chunk(dy.len() / f, f);
    let wide = act.inputs(f);
    for_each_rows(
        chunk,
        [(x, wide)],
        [(Output::Update(dy), f), (Output::Overwrite(dx), wide)],
        #[inline(always)]
        |_, [x], [dy, dx]| match act {
            Activation::Swiglu => backward_gated(x, dy, dx, f, sigmoid, silu_derivative),
            Activation::Geglu => backward_gated(x, dy, dx, f, gelu_factor, gelu_derivative),
            Activation::Gelu => backward_plain(x, dy, dx, gelu_factor, gelu_derivative),
            Activation::GeluErf => backward_plain(x, dy, dx, normal_cdf, gelu_erf_derivative),
            Activation::Relu2 => backward_plain(x, dy, dx, relu, |_, r| 2.0 * r),
        },
    );
}

fn check_lengths(name: &str, act: Activation, x: usize, y: usize, f: usize) {
    assert!(f > 0, "{name}: f must be at least 1");
    assert_eq!(
        y % f,
        0,
        "{name}: output length {y} is not a multiple of {f}"
    );
    let rows = y / f;
    let inputs = act.inputs(f);
    assert_eq!(x, rows * inputs, "{name}: x is not ({rows}, {inputs})");
}

/// Values that stay in the L1 cache while the backward pass runs all its loops over them.
const BLOCK: usize = 512;

// Each activation is `x * factor(x)`, and its derivative follows from x and the factor.

#[inline(always)]
fn forward_gated(x: &[f32], y: &mut [f32], f: usize, factor: impl Fn(f32) -> f32) {
    for (x, y) in x.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
        let (gate, up) = x.split_at(f);
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * factor(gate) * up;
        }
    }
}

#[inline(always)]
fn forward_plain(x: &[f32], y: &mut [f32], factor: impl Fn(f32) -> f32) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * factor(x);
    }
}

#[inline(always)]
fn backward_gated(
    x: &[f32],
    dy: &mut [f32],
    dx: &mut [f32],
    f: usize,
    factor: impl Fn(f32) -> f32,
    derivative: impl Fn(f32, f32) -> f32,
) {
    let mut factors = [0.0; BLOCK];
    let inputs = x.chunks_exact(2 * f).zip(dy.chunks_exact_mut(f));
    for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(2 * f)) {
        let (gate, up) = x.split_at(f);
        let (dgate, dup) = dx.split_at_mut(f);
        let gates = gate.chunks(BLOCK).zip(dgate.chunks_mut(BLOCK));
        let ups = up.chunks(BLOCK).zip(dup.chunks_mut(BLOCK));
        // One output per loop: a loop with several is not vectorized.
        for (((gate, dgate), (up, dup)), dy) in gates.zip(ups).zip(dy.chunks_mut(BLOCK)) {
            let factors = &mut factors[..gate.len()];
            for (factors, &gate) in factors.iter_mut().zip(gate) {
                *factors = factor(gate);
            }
            let inputs = gate.iter().zip(up).zip(&*dy);
            for ((dgate, &factor), ((&gate, &up), &dy)) in
                dgate.iter_mut().zip(&*factors).zip(inputs)
            {
                *dgate = dy * up * derivative(gate, factor);
            }
            let inputs = gate.iter().zip(&*dy);
            for ((dup, &factor), (&gate, &dy)) in dup.iter_mut().zip(&*factors).zip(inputs) {
                *dup = factor * (dy * gate);
            }
            let inputs = gate.iter().zip(up);
            for ((y, &factor), (&gate, &up)) in dy.iter_mut().zip(&*factors).zip(inputs) {
                *y = gate * factor * up;
            }
        }
    }
}

#[inline(always)]
fn backward_plain(
    x: &[f32],
    dy: &mut [f32],
    dx: &mut [f32],
    factor: impl Fn(f32) -> f32,
    derivative: impl Fn(f32, f32) -> f32,
) {
    let mut factors = [0.0; BLOCK];
    let inputs = x.chunks(BLOCK).zip(dy.chunks_mut(BLOCK));
    for ((x, dy), dx) in inputs.zip(dx.chunks_mut(BLOCK)) {
        let factors = &mut factors[..x.len()];
        for (factors, &x) in factors.iter_mut().zip(x) {
            *factors = factor(x);
        }
        for ((dx, &factor), (&x, &dy)) in dx.iter_mut().zip(&*factors).zip(x.iter().zip(&*dy)) {
            *dx = dy * derivative(x, factor);
        }
        for ((y, &factor), &x) in dy.iter_mut().zip(&*factors).zip(x) {
            *y = x * factor;
        }
    }
}

/// Derivative of `x sigmoid(x)`, given the sigmoid.
#[inline(always)]
fn silu_derivative(x: f32, s: f32) -> f32 {
    s + x * s * (1.0 - s)
}

const GELU_SCALE: f32 = 0.797_884_6; // sqrt(2/pi)
const GELU_CUBE: f32 = 0.044_715;

/// Clamps to ±20, beyond which GELU is x or 0 to `f32` precision; keeps x^3 finite.
#[inline(always)]
fn gelu_clamp(x: f32) -> f32 {
    x.clamp(-20.0, 20.0)
}

/// `1 / (1 + exp(-2u))`.
#[inline(always)]
fn gelu_factor(x: f32) -> f32 {
    let x = gelu_clamp(x);
    sigmoid(2.0 * GELU_SCALE * x * (1.0 + GELU_CUBE * x * x))
}

/// Derivative of GELU, given its factor.
#[inline(always)]
fn gelu_derivative(x: f32, s: f32) -> f32 {
    let x = gelu_clamp(x);
    s + x * s * (1.0 - s) * (2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x))
}

/// Cumulative distribution function of the standard normal distribution.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(FRAC_1_SQRT_2 * x)
}

/// Derivative of `x normal_cdf(x)`, given the function's value.
#[inline(always)]
fn gelu_erf_derivative(x: f32, cdf: f32) -> f32 {
    let x = gelu_clamp(x);
    cdf + 0.5 * FRAC_1_SQRT_2 * x * erf_derivative(FRAC_1_SQRT_2 * x)
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        Rng, assert_all_close, assert_bit_identical_for_any_thread_count, check_gradient, dot_f64,
        erf_f64, to_f64,
    };
    use proptest::prelude::*;

    const ALL: [Activation; 5] = [
        Activation::Swiglu,
        Activation::Geglu,
        Activation::Gelu,
        Activation::GeluErf,
        Activation::Relu2,
    ];

    fn naive(act: Activation, x: &[f64], f: usize) -> Vec<f64> {
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        };
        let one = |x: f64| match act {
            Activation::Swiglu => x / (1.0 + (-x).exp()),
            Activation::Geglu | Activation::Gelu => gelu(x),
            Activation::GeluErf => 0.5 * x * (1.0 + erf_f64(x / 2_f64.sqrt())),
            Activation::Relu2 => x.max(0.0).powi(2),
        };
        let row = |x: &[f64]| -> Vec<f64> {
            (0..f)
                .map(|i| one(x[i]) * if x.len() > f { x[f + i] } else { 1.0 })
                .collect()
        };
        x.chunks(act.inputs(f)).flat_map(row).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn matches_the_reference(
            act in prop::sample::select(ALL.to_vec()), n in 1usize..5, f in 1usize..40,
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let (x, dy) = (rng.normal(n * act.inputs(f)), rng.normal(n * f));
            let mut y = vec![f32::NAN; n * f];
            forward(act, &x, &mut y, f);
            assert_all_close(&y, &naive(act, &to_f64(&x), f), 1e-6);
            let (mut dx, mut recomputed) = (vec![f32::NAN; x.len()], dy.clone());
            backward(act, &x, &mut recomputed, &mut dx, f);
            prop_assert_eq!(recomputed, y);
            check_gradient(|x| dot_f64(&naive(act, x, f), &dy), &x, &dx, 1e-5);
        }
    }

    #[test]
    fn large_values_stay_finite() {
        let x = [-1e20f32, -100.0, 100.0, 1e18];
        for act in [
            Activation::Gelu,
            Activation::GeluErf,
            Activation::Swiglu,
            Activation::Geglu,
        ] {
            let x: Vec<f32> = x.iter().flat_map(|&v| vec![v; act.inputs(1)]).collect();
            let (mut y, mut dx) = (vec![0.0; 4], vec![0.0; x.len()]);
            forward(act, &x, &mut y, 1);
            backward(act, &x, &mut [1.0; 4], &mut dx, 1);
            assert!(
                y.iter().chain(&dx).all(|v| v.is_finite()),
                "{act:?}: {y:?} {dx:?}"
            );
        }
    }

    #[test]
    fn bit_identical_for_any_thread_count() {
        for act in ALL {
            let (n, f) = (300, 50);
            let mut rng = Rng::new(31);
            let (x, dy) = (rng.normal(n * act.inputs(f)), rng.normal(n * f));
            assert_bit_identical_for_any_thread_count(|| {
                let (mut y, mut dx) = (vec![0.0; n * f], vec![0.0; x.len()]);
                forward(act, &x, &mut y, f);
                let mut recomputed = dy.clone();
                backward(act, &x, &mut recomputed, &mut dx, f);
                [y, recomputed, dx].concat()
            });
        }
    }
}
