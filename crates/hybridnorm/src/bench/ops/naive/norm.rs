//! Norms with a gain, without a bias, with one group of parameters.

use hybridnorm_kernels::norm::{Norm, NormFn};

/// The error function, Abramowitz and Stegun 7.1.26; absolute error below 1.5e-7.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let factors = [
        1.061_405_4,
        -1.453_152,
        1.421_413_7,
        -0.284_496_74,
        0.254_829_6,
    ];
    let sum = factors.iter().fold(0.0, |sum, a| (sum + a) * t);
    (1.0 - sum * (-x * x).exp()).copysign(x)
}

/// Mean (0 unless it is a LayerNorm) and root of the mean (L2: of the sum) of squares.
fn statistics(n: &Norm, x: &[f32]) -> (f32, f32) {
    let count = n.width as f32;
    let mean = match n.function {
        NormFn::Layernorm => x.iter().sum::<f32>() / count,
        _ => 0.0,
    };
    let squares: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    let size = match n.function {
        NormFn::L2 => squares,
        _ => squares / count,
    };
    (mean, (size + n.eps).sqrt())
}

/// `y` (rows, width) from `x` (rows, width).
pub fn forward(n: &Norm, x: &[f32], params: &[f32], y: &mut [f32]) {
    let (gain, scalars) = params.split_at(n.width);
    for (x, y) in x.chunks(n.width).zip(y.chunks_mut(n.width)) {
        match n.function {
            NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2 => {
                let (mean, root) = statistics(n, x);
                for c in 0..n.width {
                    y[c] = gain[c] * (x[c] - mean) / root;
                }
            }
            NormFn::Dyt => {
                for c in 0..n.width {
                    y[c] = gain[c] * (scalars[0] * x[c]).tanh();
                }
            }
            NormFn::Derf => {
                for c in 0..n.width {
                    y[c] = gain[c] * erf(scalars[0] * x[c] + scalars[1]);
                }
            }
        }
    }
}

/// `dx` (rows, width) and `dparams` from `dy` (rows, width).
pub fn backward(
    n: &Norm,
    x: &[f32],
    params: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dparams: &mut [f32],
) {
    dparams.fill(0.0);
    add_gradients(n, x, params, dy, dx, dparams);
}

/// As [`backward`], but adds to `dparams`.
pub fn add_gradients(
    n: &Norm,
    x: &[f32],
    params: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dparams: &mut [f32],
) {
    let (gain, scalars) = params.split_at(n.width);
    let (dgain, dscalars) = dparams.split_at_mut(n.width);
    let rows = x.chunks(n.width).zip(dy.chunks(n.width));
    for ((x, dy), dx) in rows.zip(dx.chunks_mut(n.width)) {
        match n.function {
            NormFn::Rmsnorm | NormFn::Layernorm | NormFn::L2 => {
                let (mean, root) = statistics(n, x);
                let count = match n.function {
                    NormFn::L2 => 1.0,
                    _ => n.width as f32,
                };
                let (mut along, mut plain) = (0.0, 0.0);
                for c in 0..n.width {
                    let normed = (x[c] - mean) / root;
                    along += gain[c] * dy[c] * normed;
                    plain += gain[c] * dy[c];
                    dgain[c] += dy[c] * normed;
                }
                if n.function != NormFn::Layernorm {
                    plain = 0.0;
                }
                for c in 0..n.width {
                    let normed = (x[c] - mean) / root;
                    dx[c] = (gain[c] * dy[c] - plain / count - normed * along / count) / root;
                }
            }
            NormFn::Dyt => {
                for c in 0..n.width {
                    let normed = (scalars[0] * x[c]).tanh();
                    let inner = gain[c] * dy[c] * (1.0 - normed * normed);
                    dx[c] = inner * scalars[0];
                    dscalars[0] += inner * x[c];
                    dgain[c] += dy[c] * normed;
                }
            }
            NormFn::Derf => {
                for c in 0..n.width {
                    let u = scalars[0] * x[c] + scalars[1];
                    let inner = gain[c] * dy[c] * std::f32::consts::FRAC_2_SQRT_PI * (-u * u).exp();
                    dx[c] = inner * scalars[0];
                    dscalars[0] += inner * x[c];
                    dscalars[1] += inner;
                    dgain[c] += dy[c] * erf(u);
                }
            }
        }
    }
}
