//! Activation functions of the feed-forward network.

use std::f64::consts::FRAC_1_SQRT_2;
use std::ops::Range;

use hybridnorm_kernels::activation::{self, Activation as Function};

use hybridnorm_cuda::{self as cuda, Elements};

use super::device::Grid;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// An activation function; gated ones read rows of `[gate | up]` and halve their width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    pub(crate) function: Function,
    /// Elements of an output row.
    width: usize,
}

/// Gradient of the input, and the recomputed activation, which then need not be saved for backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationGrad(pub(crate) Activation);

/// Computes `function(x)`: (.., f), or (.., 2f) for gated ones, to (.., f).
///
/// # Panics
/// If a gated function is given rows of an odd width.
pub fn activation(x: Value<'_>, function: Function) -> Value<'_> {
    let per_output = function.inputs(1);
    let input_width = x.shape().width();
    assert!(input_width.is_multiple_of(per_output), "activation: expected rows [gate | up], but the row width {input_width} is odd");
    let width = input_width / per_output;
    let [y] = x.builder().op(Activation { function, width }, &[x]);
    y
}

/// Appends what kernels read after the operands.
fn device_arguments(arguments: cuda::Arguments, function: Function, width: usize, rows: usize) -> cuda::Arguments {
    let function = match function {
        Function::Swiglu => 0,
        Function::Geglu => 1,
        Function::Gelu => 2,
        Function::GeluErf => 3,
        Function::Relu2 => 4,
    };
    arguments.long(rows as i64).count(width).int(function)
}

/// Records `y = function(x)` on rows of `width` outputs.
pub(super) fn record_forward(io: &mut DeviceOperands, function: Function, width: usize, x: Elements, y: Elements) {
    let arguments = cuda::Arguments::default().floats(x).floats(y);
    let arguments = device_arguments(arguments, function, width, y.len() / width);
    io.launch("activation_forward", Grid::elements(y.len()), arguments);
}

/// Records the gradient of x; `hidden` holds that of the output, and is overwritten with the output.
pub(super) fn record_backward(io: &mut DeviceOperands, function: Function, width: usize, [x, dx, hidden]: [Elements; 3]) {
    let arguments = cuda::Arguments::default().floats(x).floats(dx).floats(hidden);
    let arguments = device_arguments(arguments, function, width, hidden.len() / width);
    io.launch("activation_backward", Grid::elements(hidden.len()), arguments);
}

impl Operation for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32(inputs[0].shape.with_width(self.width))]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.gradient()];
        let [dx, _] = at.graph().op(ActivationGrad(*self), &inputs);
        vec![Some(dx)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, y) = (io.read(0), io.write());
        forward(self.function, self.width, x, y);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        activation::forward(self.function, io.floats(0), io.write_floats(), self.width);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, y) = (io.read(0), io.write());
        record_forward(io, self.function, self.width, x, y);
        Ok(())
    }
}

impl Operation for ActivationGrad {
    fn name(&self) -> &'static str {
        "activation, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs.to_vec()
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 1)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, dx, hidden) = (io.read(0), io.write(), io.write());
        backward(self.0.function, self.0.width, x, hidden, dx);
        forward(self.0.function, self.0.width, x, hidden);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, dx, hidden) = (io.floats(0), io.write_floats(), io.write_floats());
        activation::backward(self.0.function, x, hidden, dx, self.0.width);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, dx, hidden) = (io.read(0), io.write(), io.write());
        record_backward(io, self.0.function, self.0.width, [x, dx, hidden]);
        Ok(())
    }
}

/// Returns value and derivative of the function of the gate, or of the whole activation if it is not gated.
fn value_and_derivative(function: Function, x: f64) -> (f64, f64) {
    match function {
        // x · sigmoid(x)
        Function::Swiglu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        // x · (1 + tanh(u)) / 2, u = √(2/π) (x + 0.044715 x³)
        Function::Geglu | Function::Gelu => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let du_dx = root * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du_dx)
        }
        // x · (1 + erf(x/√2)) / 2, whose derivative is Φ(x) + x φ(x)
        Function::GeluErf => {
            let cdf = 0.5 * (1.0 + libm::erf(x * FRAC_1_SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (x * cdf, cdf + x * density)
        }
        Function::Relu2 => (x.max(0.0).powi(2), 2.0 * x.max(0.0)),
    }
}

/// Computes [`Activation`] in double precision.
pub(super) fn forward(function: Function, f: usize, x: &[f64], y: &mut [f64]) {
    let input_width = function.inputs(f);
    for (x, y) in x.chunks(input_width).zip(y.chunks_mut(f)) {
        for (i, y) in y.iter_mut().enumerate() {
            let up = if input_width > f { x[f + i] } else { 1.0 };
            *y = value_and_derivative(function, x[i]).0 * up;
        }
    }
}

/// Computes the gradient of [`forward`]'s input.
pub(super) fn backward(function: Function, f: usize, x: &[f64], dy: &[f64], dx: &mut [f64]) {
    let input_width = function.inputs(f);
    let rows = x.chunks(input_width).zip(dy.chunks(f)).zip(dx.chunks_mut(input_width));
    for ((x, dy), dx) in rows {
        for (i, dy) in dy.iter().enumerate() {
            let (value, derivative) = value_and_derivative(function, x[i]);
            let up = if input_width > f { x[f + i] } else { 1.0 };
            dx[i] = dy * derivative * up;
            if input_width > f {
                dx[f + i] = dy * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear;
    use super::super::testing::{check, floats, mapped_floats};
    use super::*;

    #[test]
    fn every_function_alone_and_before_a_projection() {
        let functions = [Function::Swiglu, Function::Geglu, Function::Gelu, Function::GeluErf, Function::Relu2];
        for function in functions {
            let input_width = function.inputs(7);
            let x = || mapped_floats(1, [2, 5, input_width], |x| 3.0 * x);
            check(&[x()], |_, x| activation(x[0], function));
            check(&[x(), floats(2, [4, 7])], |_, x| linear(activation(x[0], function), x[1]));
        }
    }
}
