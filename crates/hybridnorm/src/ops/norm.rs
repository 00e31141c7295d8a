//! Norms of rows, and the residual add before a norm.

use std::f64::consts::FRAC_2_SQRT_PI;
use std::ops::Range;

use hybridnorm_cuda::{self as cuda, Elements};
use hybridnorm_kernels::norm::{self, Gain, NormConfig, NormFn, NormScalar};
use libm::erf;

use super::device::Grid;
use super::{BackwardContext, DeviceOperands, Operands, Operation, fill};
use crate::graph::{Type, Value};

/// `norm(x)` of rows; see [`NormConfig`] for the functions and the layout of the parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm(pub(crate) NormConfig);

/// Gradients of x and of the parameters from those of [`Norm`]'s output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormGrad(pub(crate) NormConfig);

/// `s = x + o` and `norm(s)`: [`Add`](super::Add) and [`Norm`] in one op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddNorm(pub(crate) NormConfig);

/// [`NormGrad`] with the gradient of x added to another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormGradAdd(pub(crate) NormConfig);

/// Normalizes rows of `config.width` elements; `params_p` as [`NormConfig`] lays them out, (p), `None` if
/// there are none.
///
/// # Panics
/// If x does not consist of such rows, or the number of parameters differs.
pub fn norm<'g>(x: Value<'g>, params_p: impl Into<Option<Value<'g>>>, config: NormConfig) -> Value<'g> {
    let nothing = || fill(x.builder(), 0.0, Type::f32([0]));
    let params_p = params_p.into().unwrap_or_else(nothing);
    let [y] = x.builder().op(Norm(config), &[x, params_p]);
    y
}

fn check(config: &NormConfig, x: Type, params: Type) {
    assert_eq!(x.elements() % config.width, 0, "norm: width of the rows");
    assert_eq!(params, Type::f32([config.params_len()]), "norm: parameters");
}

/// Appends `NormConfig` of the kernels.
pub(super) fn device_config(arguments: cuda::Arguments, config: &NormConfig) -> cuda::Arguments {
    let function = match config.function {
        NormFn::Rmsnorm => 0,
        NormFn::Layernorm => 1,
        NormFn::L2 => 2,
        NormFn::Dyt => 3,
        NormFn::Derf => 4,
    };
    let gain = match config.gain {
        Gain::None => 0,
        Gain::Plain => 1,
        Gain::OnePlus => 2,
    };
    arguments
        .int(function)
        .int(gain)
        .int(config.bias.into())
        .count(config.width)
        .count(config.groups)
        .float(config.eps)
}

/// Records `y = norm(x)`, of `x + other` in place of x if given.
fn record_forward(
    io: &mut DeviceOperands,
    config: &NormConfig,
    other: Option<Elements>,
    [x, params, y]: [Elements; 3],
) {
    let rows = x.len() / config.width;
    let arguments = match other {
        Some(other) => cuda::Arguments::default().floats(other),
        None => cuda::Arguments::default().no_floats(),
    };
    let arguments = arguments.floats(x).floats(y).address(params.span).long(rows as i64);
    io.launch("norm_forward", Grid::warps(rows), device_config(arguments, config));
}

/// Records the gradients of x, which overwrite `dx` or are added to it, and of the parameters.
fn record_backward(
    io: &mut DeviceOperands,
    config: &NormConfig,
    [x, params, dy, dx, dparams]: [Elements; 5],
    accumulate: bool,
) -> Result<(), String> {
    let rows = x.len() / config.width;
    let grid = Grid::summing_warps(rows, dparams.len())?;
    let partials = io.scratch(cuda::ElementType::F32, grid.block_count() * dparams.len());
    let arguments = cuda::Arguments::default()
        .floats(x)
        .floats(dy)
        .floats(dx)
        .address(params.span)
        .address(partials.span)
        .long(rows as i64);
    let arguments = device_config(arguments, config).int(accumulate.into());
    io.launch("norm_backward", grid, arguments);
    io.sum_partials(partials, dparams);
    Ok(())
}

impl Operation for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        check(&self.0, inputs[0], inputs[1]);
        vec![inputs[0]]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.input(1), at.gradient()];
        let [dx, dparams] = at.graph().op(NormGrad(self.0), &inputs);
        vec![Some(dx), Some(dparams)]
    }

    fn positionwise_inputs(&self, inputs: &[Type]) -> Range<usize> {
        // The parameter vector of a row must not depend on the position.
        let period = self.0.width * self.0.groups;
        0..usize::from(inputs[0].shape.width().is_multiple_of(period))
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        forward(&self.0, io.read(0), io.read(1), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        norm::forward(&self.0, io.floats(0), io.read(1), io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, params, y) = (io.read(0), io.read(1), io.write());
        record_forward(io, &self.0, None, [x, params, y]);
        Ok(())
    }
}

impl Operation for NormGrad {
    fn name(&self) -> &'static str {
        "norm, gradients"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[1]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(2, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, params, d, dparams) = (io.read(0), io.read(1), io.write(), io.write());
        let dy = d.to_vec();
        d.fill(0.0);
        backward(&self.0, x, params, &dy, d, dparams);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, params, d) = (io.floats(0), io.read(1), io.write_floats());
        norm::backward_in_place(&self.0, x, params, d, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, params, dx, dparams) = (io.read(0), io.read(1), io.write(), io.write());
        record_backward(io, &self.0, [x, params, dx, dx, dparams], false)?;
        Ok(())
    }
}

impl Operation for AddNorm {
    fn name(&self) -> &'static str {
        "add and norm"
    }

    /// Reads x, o and the parameters.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        assert_eq!(inputs[0], inputs[1], "add and norm: shapes differ");
        check(&self.0, inputs[0], inputs[2]);
        vec![inputs[0]; 2]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, params, sum, y) = (io.read(0), io.read(2), io.write(), io.write());
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
        forward(&self.0, sum, params, y);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, params, sum) = (io.floats(0), io.read(2), io.write_floats());
        norm::add_forward(&self.0, x, sum, params, io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, params, sum, y) = (io.read(0), io.read(2), io.write(), io.write());
        record_forward(io, &self.0, Some(x), [sum, params, y]);
        Ok(())
    }
}

impl Operation for NormGradAdd {
    fn name(&self) -> &'static str {
        "norm, gradients added"
    }

    /// Reads x, the parameters, the gradient of the norm's output, and the gradient to add to.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[1]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(3, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, params, dy) = (io.read(0), io.read(1), io.read(2));
        let (sum, dparams) = (io.write(), io.write());
        backward(&self.0, x, params, dy, sum, dparams);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, params, dy) = (io.floats(0), io.read(1), io.floats(2));
        norm::backward_add(&self.0, x, params, dy, io.write_floats(), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, params, dy) = (io.read(0), io.read(1), io.read(2));
        let (sum, dparams) = (io.write(), io.write());
        record_backward(io, &self.0, [x, params, dy, sum, dparams], true)?;
        Ok(())
    }
}

/// Gain, bias, α and shift; gains of 1 and biases of 0 if absent.
struct Params {
    gain: Vec<f64>,
    bias: Vec<f64>,
    alpha: f64,
    shift: f64,
}

fn unpack(config: &NormConfig, params: &[f64]) -> Params {
    let channels = config.groups * config.width;
    let has_gain = config.gain != Gain::None;
    let (gain, rest) = params.split_at(if has_gain { channels } else { 0 });
    let (bias, scalars) = rest.split_at(if config.bias { channels } else { 0 });
    let mut gain = if has_gain { gain.to_vec() } else { vec![1.0; channels] };
    if config.gain == Gain::OnePlus {
        gain.iter_mut().for_each(|g| *g += 1.0);
    }
    Params {
        gain,
        bias: if config.bias { bias.to_vec() } else { vec![0.0; channels] },
        alpha: scalars.first().copied().unwrap_or(1.0),
        shift: scalars.get(1).copied().unwrap_or(0.0),
    }
}

/// A row before gain and bias, and the gradients of its inputs.
struct Row {
    h: Vec<f64>,
    dx: Vec<f64>,
    dalpha: f64,
    dshift: f64,
}

/// Computes the norm function of a row x, and its vector-Jacobian product with `dh`.
fn row(config: &NormConfig, p: &Params, x: &[f64], dh: &[f64]) -> Row {
    let (w, eps) = (x.len() as f64, f64::from(config.eps));
    match config.function {
        NormFn::Rmsnorm => rescaled(x, dh, false, w, eps),
        NormFn::Layernorm => rescaled(x, dh, true, w, eps),
        NormFn::L2 => rescaled(x, dh, false, 1.0, eps),
        NormFn::Dyt => pointwise(p, x, dh, |z| (z.tanh(), 1.0 - z.tanh().powi(2))),
        NormFn::Derf => pointwise(p, x, dh, |z| (erf(z), FRAC_2_SQRT_PI * (-z * z).exp())),
    }
}

/// Computes `(x − mean) · inv_std` with `inv_std = 1 / √(Σ(x − mean)² / count + eps)`; a mean of 0 unless centered.
fn rescaled(x: &[f64], dh: &[f64], is_centered: bool, count: f64, eps: f64) -> Row {
    let mean = |x: &[f64]| match is_centered {
        true => x.iter().sum::<f64>() / x.len() as f64,
        false => 0.0,
    };
    let (mean_x, mean_dh) = (mean(x), mean(dh));
    let squares: f64 = x.iter().map(|x| (x - mean_x).powi(2)).sum();
    let inv_std = 1.0 / (squares / count + eps).sqrt();
    let h: Vec<f64> = x.iter().map(|x| (x - mean_x) * inv_std).collect();
    // The mean and `inv_std` depend on every element of the row.
    let projection = dh.iter().zip(&h).map(|(dh, h)| dh * h).sum::<f64>() / count;
    let dx = dh.iter().zip(&h).map(|(dh, h)| (dh - mean_dh - h * projection) * inv_std);
    Row {
        dx: dx.collect(),
        h,
        dalpha: 0.0,
        dshift: 0.0,
    }
}

/// Computes `f(α · x + shift)` of every element, where `f` returns value and derivative.
fn pointwise(p: &Params, x: &[f64], dh: &[f64], f: impl Fn(f64) -> (f64, f64)) -> Row {
    let at = x.iter().map(|x| f(p.alpha * x + p.shift));
    let (h, derivatives): (Vec<f64>, Vec<f64>) = at.unzip();
    let dz: Vec<f64> = dh.iter().zip(derivatives).map(|(dh, derivative)| dh * derivative).collect();
    Row {
        h,
        dx: dz.iter().map(|dz| dz * p.alpha).collect(),
        dalpha: dz.iter().zip(x).map(|(dz, x)| dz * x).sum(),
        dshift: dz.iter().sum(),
    }
}

/// Computes [`Norm`] in double precision.
pub(super) fn forward(config: &NormConfig, x: &[f64], params: &[f64], y: &mut [f64]) {
    let p = unpack(config, params);
    let no_gradient = vec![0.0; config.width];
    for (r, (x, y)) in x.chunks(config.width).zip(y.chunks_mut(config.width)).enumerate() {
        let first = r % config.groups * config.width;
        let Row { h, .. } = row(config, &p, x, &no_gradient);
        for (c, (y, h)) in (first..).zip(y.iter_mut().zip(h)) {
            *y = h * p.gain[c] + p.bias[c];
        }
    }
}

/// Computes [`NormGrad`] in double precision; the gradient of x is added to `dx`.
pub(super) fn backward(
    config: &NormConfig,
    x: &[f64],
    params: &[f64],
    dy: &[f64],
    dx: &mut [f64],
    dparams: &mut [f64],
) {
    let p = unpack(config, params);
    let channels = config.groups * config.width;
    let (mut dgain, mut dbias) = (vec![0.0; channels], vec![0.0; channels]);
    let (mut dalpha, mut dshift) = (0.0, 0.0);
    let width = config.width;
    let rows = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width));
    for (r, ((x, dy), dx)) in rows.enumerate() {
        let first = r % config.groups * width;
        let dh: Vec<f64> = (first..).zip(dy).map(|(c, dy)| dy * p.gain[c]).collect();
        let row = row(config, &p, x, &dh);
        for (i, dy) in dy.iter().enumerate() {
            dgain[first + i] += dy * row.h[i];
            dbias[first + i] += dy;
            dx[i] += row.dx[i];
        }
        dalpha += row.dalpha;
        dshift += row.dshift;
    }
    let scalars = config.function.scalars().iter().map(|scalar| match scalar {
        NormScalar::Alpha => dalpha,
        NormScalar::Shift => dshift,
    });
    let parts = [
        if config.gain == Gain::None { Vec::new() } else { dgain },
        if config.bias { dbias } else { Vec::new() },
        scalars.collect(),
    ];
    dparams.copy_from_slice(&parts.concat());
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats, mapped_floats};
    use super::*;

    #[test]
    fn every_function_with_every_gain() {
        for function in NormFn::ALL {
            for (gain, bias, groups) in [
                (Gain::None, false, 1),
                (Gain::Plain, false, 1),
                (Gain::OnePlus, true, 1),
                (Gain::Plain, true, 3),
            ] {
                let config = NormConfig {
                    function,
                    eps: 1e-5,
                    gain,
                    bias,
                    width: 10,
                    groups,
                };
                let x = mapped_floats(1, [2, 3, 10], |x| 2.0 * x);
                let given = [x, floats(2, [config.params_len()]), floats(3, [2, 3, 10])];
                check(&given[..2], |_, x| norm(x[0], x[1], config));
                check(&given, |_, x| {
                    let sum = x[0] + x[2];
                    sum + norm(sum, x[1], config)
                });
            }
        }
    }
}
