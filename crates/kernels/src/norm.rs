//! Normalizations of rows, and the element-wise functions that replace them.
//!
//! With `h` the normalized row and `g` the effective gain, every backward pass has the form
//! `dx = factor * (g dy - corrections)`, the factor being the inverse standard deviation or the derivative of
//! the function; for RMSNorm `dx = (g dy - h mean(g dy h)) / r` with
//! `r = sqrt(mean(x^2) + eps)`.
//!
//! Sources: LayerNorm (Ba, Kiros, Hinton 2016, arXiv 1607.06450), RMSNorm (Zhang, Sennrich 2019,
//! arXiv 1910.07467), DyT (Zhu et al. 2025, arXiv 2503.10622), Derf (arXiv 2512.10938), unit-norm rows (nGPT,
//! arXiv 2410.01131).

mod params;

use crate::chunks::{Output, fold_rows, for_each_rows};
use crate::floats::{Floats, FloatsMut, round_to};
use crate::math::{erf, erf_derivative, tanh};
use crate::parallel::{rows_per_chunk, sum_partials};
use crate::simd::{dot, sum, sum3};
use std::borrow::Cow;

pub use params::Gain;
pub(crate) use params::Params;

/// A norm function of a row x, before gain and bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormFn {
    /// `x / sqrt(mean(x^2) + eps)`.
    Rmsnorm,
    /// `(x - mean(x)) / sqrt(var(x) + eps)` with the biased variance, in two passes.
    Layernorm,
    /// `x / sqrt(sum(x^2) + eps)`.
    L2,
    /// `tanh(alpha x)` with a learned scalar alpha.
    Dyt,
    /// `erf(alpha x + shift)` with learned scalars alpha and shift.
    Derf,
}

/// Learned scalar of a norm function, shared by all channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormScalar {
    /// Factor on x inside the function.
    Alpha,
    /// Offset added to `alpha x`.
    Shift,
}

impl NormFn {
    /// All norm functions.
    pub const ALL: [Self; 5] = [
        Self::Rmsnorm,
        Self::Layernorm,
        Self::L2,
        Self::Dyt,
        Self::Derf,
    ];

    /// Returns the learned scalars, in the order in which they follow gain and bias.
    pub fn scalars(self) -> &'static [NormScalar] {
        match self {
            Self::Rmsnorm | Self::Layernorm | Self::L2 => &[],
            Self::Dyt => &[NormScalar::Alpha],
            Self::Derf => &[NormScalar::Alpha, NormScalar::Shift],
        }
    }
}

/// A normalization of rows of `width` values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// The function of the row.
    pub function: NormFn,
    /// Added under the square root; not used by `Dyt` and `Derf`.
    pub eps: f32,
    /// The gain.
    pub gain: Gain,
    /// True if a learned bias is added.
    pub bias: bool,
    /// Values per row.
    pub width: usize,
    /// Number of gain and bias vectors: row r uses vector `r % groups`.
    pub groups: usize,
}

impl NormConfig {
    /// Returns the length of the flat parameter slice:
    /// `[gain: groups * width][bias: groups * width][scalars]`, without gain for [`Gain::None`], without bias
    /// if there is none, and with the scalars of [`NormFn::scalars`].
    pub fn params_len(&self) -> usize {
        self.parts().iter().sum()
    }

    /// Returns the length of gain and bias.
    fn affine_len(&self) -> usize {
        let [gain, bias, _] = self.parts();
        gain + bias
    }

    /// Returns gain and bias of a group from a slice laid out like the parameters, with or without the scalars; empty
    /// if absent.
    #[inline(always)]
    pub(crate) fn group_of<'a>(&self, params: &'a mut [f32], group: usize) -> [&'a mut [f32]; 2] {
        let [gain_len, bias_len, _] = self.parts();
        let channels = group * self.width..(group + 1) * self.width;
        let (gain, rest) = params.split_at_mut(gain_len);
        [gain, &mut rest[..bias_len]].map(|part| part.get_mut(channels.clone()).unwrap_or_default())
    }

    /// Returns the lengths of gain, bias and scalars.
    fn parts(&self) -> [usize; 3] {
        let channels = self.groups * self.width;
        [
            if self.gain == Gain::None { 0 } else { channels },
            if self.bias { channels } else { 0 },
            self.function.scalars().len(),
        ]
    }

    pub(crate) fn check_params(&self, name: &str, params: &[f32]) {
        assert!(
            self.width > 0 && self.groups > 0,
            "{name}: width and groups must not be 0"
        );
        assert_eq!(
            params.len(),
            self.params_len(),
            "{name}: wrong number of parameters"
        );
    }

    /// Checks that `x` consists of whole rows and that `others` are as long as `x`.
    fn check_rows(&self, name: &str, x: usize, others: &[(&str, usize)]) {
        let width = self.width;
        assert_eq!(
            x % width,
            0,
            "{name}: the length of x is not a multiple of {width}"
        );
        for (other, len) in others {
            assert_eq!(*len, x, "{name}: {other} is not as long as x");
        }
    }

    /// Checks the parameters of a backward pass; returns the rows per chunk.
    fn check_backward(&self, x: usize, params: &[f32], dparams: &[f32]) -> usize {
        self.check_params("norm::backward", params);
        assert_eq!(
            dparams.len(),
            params.len(),
            "norm::backward: dparams is not as long as params"
        );
        rows_per_chunk(x / self.width, self.width)
    }

    pub(crate) fn resolve<'a>(&self, params: &'a [f32]) -> Params<'a> {
        let [gain_len, bias_len, _] = self.parts();
        let (gain, rest) = params.split_at(gain_len);
        let (bias, scalars) = rest.split_at(bias_len);
        let channels = self.groups * self.width;
        Params {
            gain: match self.gain {
                Gain::None => Cow::Owned(vec![1.0; channels]),
                Gain::Plain => Cow::Borrowed(gain),
                Gain::OnePlus => Cow::Owned(gain.iter().map(|w| 1.0 + w).collect()),
            },
            bias: if self.bias {
                Cow::Borrowed(bias)
            } else {
                Cow::Owned(vec![0.0; channels])
            },
            alpha: scalars.first().copied().unwrap_or(1.0),
            shift: scalars.get(1).copied().unwrap_or(0.0),
        }
    }
}

/// Normalizes each row of `x` (rows, width) into `y` of the same shape.
///
/// ```
/// use hybridnorm_kernels::norm::{self, Gain, NormConfig, NormFn};
///
/// let rms = NormConfig {
///     function: NormFn::Rmsnorm,
///     eps: 1e-6,
///     gain: Gain::Plain,
///     bias: false,
///     width: 2,
///     groups: 1,
/// };
/// let mut y = [0.0f32; 4];
/// norm::forward(&rms, &[3.0f32, 3.0, 5.0, -5.0], &[1.0, 2.0], &mut y);
/// for (y, expected) in y.iter().zip([1.0, 2.0, 1.0, -2.0]) {
///     assert!((y - expected).abs() < 1e-5);
/// }
/// ```
pub fn forward<'a>(
    n: &NormConfig,
    x: impl Into<Floats<'a>>,
    params: &[f32],
    y: impl Into<FloatsMut<'a>>,
) {
    let (x, y) = (x.into(), y.into());
    n.check_params("norm::forward", params);
    n.check_rows("norm::forward", x.len(), &[("y", y.len())]);
    let p = n.resolve(params);
    for_each_rows(
        rows_per_chunk(x.len() / n.width, n.width),
        [(x, n.width)],
        [(Output::Overwrite(y), n.width)],
        #[inline(always)]
        |first, [x], [y]| forward_rows(n, &p, first, x, y),
    );
}

/// Computes `sum += x`, then [`forward`] from `sum` to `y`, all (rows, width), a few rows at a time while
/// they are cached: a residual addition fused with the next norm.
///
/// The gradient is that of [`forward`] at `sum`, the same for both terms.
pub fn add_forward<'a>(
    n: &NormConfig,
    x: impl Into<Floats<'a>>,
    sum: impl Into<FloatsMut<'a>>,
    params: &[f32],
    y: impl Into<FloatsMut<'a>>,
) {
    let (x, sum, y) = (x.into(), sum.into(), y.into());
    n.check_params("norm::add_forward", params);
    let lengths = [("sum", sum.len()), ("y", y.len())];
    n.check_rows("norm::add_forward", x.len(), &lengths);
    let p = n.resolve(params);
    let precision = sum.precision();
    for_each_rows(
        rows_per_chunk(x.len() / n.width, n.width),
        [(x, n.width)],
        [
            (Output::Update(sum), n.width),
            (Output::Overwrite(y), n.width),
        ],
        #[inline(always)]
        |first, [x], [sum, y]| {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
            round_to(precision, sum);
            forward_rows(n, &p, first, sum, y);
        },
    );
}

/// Normalizes rows from row `first` on.
#[inline(always)]
fn forward_rows(n: &NormConfig, p: &Params, first: usize, x: &[f32], y: &mut [f32]) {
    let rows = x.chunks_exact(n.width).zip(y.chunks_exact_mut(n.width));
    for (r, (x, y)) in (first..).zip(rows) {
        forward_row(n, p, r % n.groups, x, y);
    }
}

/// Computes the gradients of [`forward`] in place: `d` (rows, width) holds the output gradient and receives the input
/// gradient; `dparams` is laid out like `params` and summed over the rows of each group.
pub fn backward_in_place<'a>(
    n: &NormConfig,
    x: impl Into<Floats<'a>>,
    params: &[f32],
    d: impl Into<FloatsMut<'a>>,
    dparams: &mut [f32],
) {
    let (x, d) = (x.into(), d.into());
    n.check_rows("norm::backward_in_place", x.len(), &[("d", d.len())]);
    let rows_per_chunk = n.check_backward(x.len(), params, dparams);
    let p = n.resolve(params);
    let partials = fold_rows(
        rows_per_chunk,
        [(x, n.width)],
        [(Output::Update(d), n.width)],
        || vec![0.0; n.width],
        || vec![0.0; params.len()],
        #[inline(always)]
        |dy, dparams, first, [x], [d]| {
            let rows = x.chunks_exact(n.width).zip(d.chunks_exact_mut(n.width));
            for (r, (x, d)) in (first..).zip(rows) {
                dy.copy_from_slice(d);
                backward_row(n, &p, r % n.groups, x, dy, d, dparams);
            }
        },
    );
    sum_partials(&partials, dparams);
}

/// Computes the gradients of [`forward`] from `dy` (rows, width), with the input gradient added to `sum` (rows, width);
/// `dparams` is as in [`backward_in_place`].
pub fn backward_add<'a>(
    n: &NormConfig,
    x: impl Into<Floats<'a>>,
    params: &[f32],
    dy: impl Into<Floats<'a>>,
    sum: impl Into<FloatsMut<'a>>,
    dparams: &mut [f32],
) {
    let (x, dy, sum) = (x.into(), dy.into(), sum.into());
    n.check_rows(
        "norm::backward_add",
        x.len(),
        &[("dy", dy.len()), ("sum", sum.len())],
    );
    let rows_per_chunk = n.check_backward(x.len(), params, dparams);
    let (p, precision) = (n.resolve(params), sum.precision());
    let partials = fold_rows(
        rows_per_chunk,
        [(x, n.width), (dy, n.width)],
        [(Output::Update(sum), n.width)],
        || vec![0.0; n.width],
        || vec![0.0; params.len()],
        #[inline(always)]
        |dx, dparams, first, [x, dy], [sum]| {
            let rows = x.chunks_exact(n.width).zip(dy.chunks_exact(n.width));
            let rows = rows.zip(sum.chunks_exact_mut(n.width));
            for (r, ((x, dy), sum)) in (first..).zip(rows) {
                backward_row(n, &p, r % n.groups, x, dy, dx, dparams);
                round_to(precision, dx);
                for (sum, dx) in sum.iter_mut().zip(&*dx) {
                    *sum += *dx;
                }
            }
        },
    );
    sum_partials(&partials, dparams);
}

/// Computes one row of [`forward`].
#[inline(always)]
pub(crate) fn forward_row(n: &NormConfig, p: &Params, group: usize, x: &[f32], y: &mut [f32]) {
    let [gain, bias] = p.of_group(n, group);
    match n.function {
        NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2 => {
            let (mean, inv_std) = n.statistics(x);
            affine(x, gain, bias, y, |x| (x - mean) * inv_std);
        }
        NormFn::Dyt => affine(x, gain, bias, y, |x| tanh(p.alpha * x)),
        NormFn::Derf => affine(x, gain, bias, y, |x| erf(p.alpha * x + p.shift)),
    }
}

impl NormConfig {
    /// True if the mean of a row is subtracted.
    #[inline(always)]
    fn subtracts_mean(&self) -> bool {
        match self.function {
            NormFn::Layernorm => true,
            NormFn::Rmsnorm | NormFn::L2 | NormFn::Dyt | NormFn::Derf => false,
        }
    }

    /// Returns the divisor of the sum of squares in the scale of a row, `1 / sqrt(sum / divisor + eps)`;
    /// `None` for element-wise functions.
    #[inline(always)]
    pub(crate) fn divisor_of_squares(&self) -> Option<f32> {
        match self.function {
            NormFn::Rmsnorm | NormFn::Layernorm => Some(self.width as f32),
            NormFn::L2 => Some(1.0),
            NormFn::Dyt | NormFn::Derf => None,
        }
    }

    /// Returns the divisor of the sum of squares if a row is scaled by that sum and not centered.
    #[inline(always)]
    pub(crate) fn uncentered_divisor_of_squares(&self) -> Option<f32> {
        self.divisor_of_squares().filter(|_| !self.subtracts_mean())
    }

    /// Returns the mean (0 if none is subtracted) and the scale of a row, for functions that have one.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let mean = match self.subtracts_mean() {
            true => sum(x, |x| x) / self.width as f32,
            false => 0.0,
        };
        let squares = sum(x, |x| (x - mean) * (x - mean));
        let divisor = self.divisor_of_squares().unwrap_or(1.0);
        (mean, 1.0 / (squares / divisor + self.eps).sqrt())
    }
}

#[inline(always)]
fn affine(x: &[f32], gain: &[f32], bias: &[f32], y: &mut [f32], h: impl Fn(f32) -> f32) {
    for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gain).zip(bias) {
        *y = h(x) * g + b;
    }
}

/// Computes one row of [`backward`]; adds to `grads`, which is laid out like the parameters.
#[inline(always)]
pub(crate) fn backward_row(
    n: &NormConfig,
    p: &Params,
    group: usize,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    grads: &mut [f32],
) {
    let [gain, _] = p.of_group(n, group);
    let (affine, dscalars) = grads.split_at_mut(n.affine_len());
    let [dgain, dbias] = n.group_of(affine, group);
    for (db, &dy) in dbias.iter_mut().zip(dy) {
        *db += dy;
    }
    match n.function {
        NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2 => {
            let (mean, inv_std) = n.statistics(x);
            let h = |x: f32| (x - mean) * inv_std;
            let divisor = n.divisor_of_squares().unwrap_or(1.0);
            let projection = sum3(x, dy, gain, |x, dy, g| g * dy * h(x)) / divisor;
            let mean_gradient = match n.subtracts_mean() {
                true => dot(gain, dy) / n.width as f32,
                false => 0.0,
            };
            for (((dx, &x), &dy), &g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                *dx = (g * dy - mean_gradient - h(x) * projection) * inv_std;
            }
            add_gain_gradient(dgain, x, dy, h);
        }
        NormFn::Dyt => {
            let derivative = |x: f32| {
                let h = tanh(p.alpha * x);
                1.0 - h * h
            };
            let [dalpha, _] = elementwise_backward(p.alpha, x, dy, gain, dx, derivative);
            dscalars[0] += dalpha;
            add_gain_gradient(dgain, x, dy, |x| tanh(p.alpha * x));
        }
        NormFn::Derf => {
            let derivative = |x: f32| erf_derivative(p.alpha * x + p.shift);
            let [dalpha, dshift] = elementwise_backward(p.alpha, x, dy, gain, dx, derivative);
            dscalars[0] += dalpha;
            dscalars[1] += dshift;
            add_gain_gradient(dgain, x, dy, |x| erf(p.alpha * x + p.shift));
        }
    }
}

/// Adds the gradient of the gain, `dgain += dy h(x)`; no effect without a gain.
#[inline(always)]
fn add_gain_gradient(dgain: &mut [f32], x: &[f32], dy: &[f32], h: impl Fn(f32) -> f32) {
    for ((dg, &x), &dy) in dgain.iter_mut().zip(x).zip(dy) {
        *dg += dy * h(x);
    }
}

/// Computes `dx = g dy derivative(x) alpha` for a function of `alpha x + shift`; returns the gradients of alpha
/// and shift.
#[inline(always)]
fn elementwise_backward(
    alpha: f32,
    x: &[f32],
    dy: &[f32],
    gain: &[f32],
    dx: &mut [f32],
    derivative: impl Fn(f32) -> f32,
) -> [f32; 2] {
    for (((dx, &x), &dy), &g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
        *dx = g * dy * derivative(x);
    }
    let scalars = [dot(x, dx), sum(dx, |du| du)];
    for dx in dx {
        *dx *= alpha;
    }
    scalars
}

#[cfg(test)]
pub(crate) mod tests;
