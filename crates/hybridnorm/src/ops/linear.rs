//! `y = x Wᵀ`, with the weight (out, in) as in PyTorch.

use std::ops::Range;

use hybridnorm_cuda::Elements;
use hybridnorm_kernels::linear;
use hybridnorm_kernels::matmul::Precision;

use super::device::{Matrix, element_type_of};
use super::reference_math::operand;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// `y = x Wᵀ` on rows of `inputs` elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear(pub(crate) linear::Linear);

/// `dx = dy W`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearInputGrad(pub(crate) Linear);

/// `dW = dyᵀ x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearWeightGrad(pub(crate) Linear);

/// [`LinearInputGrad`] and [`LinearWeightGrad`] in one op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearGrad(pub(crate) Linear);

/// Computes `x Wᵀ`: (.., in) and (out, in) to (.., out).
///
/// # Panics
/// If the widths of rows and weight differ.
pub fn linear<'g>(x: Value<'g>, w_oi: Value<'g>) -> Value<'g> {
    let &[outputs, inputs] = w_oi.shape().sizes() else {
        panic!("linear: the weight is not a matrix but {:?}", w_oi.shape())
    };
    let layer = linear::Linear {
        inputs,
        outputs,
        precision: Precision::F32,
    };
    let [y] = x.builder().op(Linear(layer), &[x, w_oi]);
    y
}

impl Linear {
    fn matmul_flops(&self, rows: usize) -> u64 {
        2 * (rows * self.0.inputs * self.0.outputs) as u64
    }

    fn backward_workspace(&self, rows: usize, threads: usize) -> usize {
        self.0.backward_workspace(rows, threads)
    }

    fn weight(&self) -> Type {
        Type::f32([self.0.outputs, self.0.inputs])
    }

    fn record_input_grad(&self, io: &mut DeviceOperands, dy: Elements, w: Elements, dx: Elements) {
        let (dy, w) = (Matrix::new(dy, self.0.outputs), Matrix::new(w, self.0.inputs));
        io.matmul(self.0.precision, dy, w, dx, false);
    }

    fn record_weight_grad(&self, io: &mut DeviceOperands, dy: Elements, x: Elements, dw: Elements) {
        let (dy, x) = (Matrix::new(dy, self.0.outputs), Matrix::new(x, self.0.inputs));
        io.matmul(self.0.precision, dy.transposed(), x, dw, false);
    }

    /// Computes `dx = dy W` in double precision.
    fn input_grad(&self, dy: &[f64], w: &[f64], dx: &mut [f64]) {
        for (dy, dx) in dy.chunks(self.0.outputs).zip(dx.chunks_mut(self.0.inputs)) {
            dx.fill(0.0);
            for (dy, w) in dy.iter().zip(w.chunks(self.0.inputs)) {
                for (dx, w) in dx.iter_mut().zip(w) {
                    *dx += dy * w;
                }
            }
        }
    }

    /// Computes `dW = dyᵀ x` in double precision.
    fn weight_grad(&self, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        dw.fill(0.0);
        for (dy, x) in dy.chunks(self.0.outputs).zip(x.chunks(self.0.inputs)) {
            for (dy, dw) in dy.iter().zip(dw.chunks_mut(self.0.inputs)) {
                for (dw, x) in dw.iter_mut().zip(x) {
                    *dw += dy * x;
                }
            }
        }
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x, w] = inputs else {
            panic!("linear: expected rows and a weight")
        };
        assert_eq!(*w, self.weight(), "linear: weight");
        assert_eq!(x.shape.width(), self.0.inputs, "linear: width of the rows");
        vec![Type::f32(x.shape.with_width(self.0.outputs))]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let (x, w, dy) = (at.input(0), at.input(1), at.gradient());
        let dx = at.needs_gradient(0).then(|| {
            let [dx] = at.graph().op(LinearInputGrad(*self), &[dy, w]);
            dx
        });
        let dw = at.needs_gradient(1).then(|| {
            let [dw] = at.graph().op(LinearWeightGrad(*self), &[dy, x]);
            dw
        });
        vec![dx, dw]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.matmul_flops(inputs[0].shape.rows())
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.forward_workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [x, w] = [0, 1].map(|i| operand(self.0.precision, io.read(i)));
        let y = io.write();
        let rows = x.chunks(self.0.inputs).zip(y.chunks_mut(self.0.outputs));
        for (x, y) in rows {
            for (y, w) in y.iter_mut().zip(w.chunks(self.0.inputs)) {
                *y = x.iter().zip(w).map(|(x, w)| x * w).sum();
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.0.forward(io.floats(0), io.floats(1), io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, w, y) = (io.read(0), io.read(1), io.write());
        let [x, w] = [x, w].map(|m| Matrix::new(m, self.0.inputs));
        io.matmul(self.0.precision, x, w.transposed(), y, false);
        Ok(())
    }
}

impl Operation for LinearInputGrad {
    fn name(&self) -> &'static str {
        "linear, gradient of the input"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32(inputs[0].shape.with_width(self.0.0.inputs))]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.0.matmul_flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [dy, w] = [0, 1].map(|i| operand(self.0.0.precision, io.read(i)));
        self.0.input_grad(&dy, &w, io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.0.0.backward_input(io.floats(0), io.floats(1), io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dy, w, dx) = (io.read(0), io.read(1), io.write());
        self.0.record_input_grad(io, dy, w, dx);
        Ok(())
    }
}

impl Operation for LinearWeightGrad {
    fn name(&self) -> &'static str {
        "linear, gradient of the weight"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![self.0.weight()]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.0.matmul_flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [dy, x] = [0, 1].map(|i| operand(self.0.0.precision, io.read(i)));
        self.0.weight_grad(&dy, &x, io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.0.0.backward_weight(io.floats(0), io.floats(1), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dy, x, dw) = (io.read(0), io.read(1), io.write());
        self.0.record_weight_grad(io, dy, x, dw);
        Ok(())
    }
}

impl Operation for LinearGrad {
    fn name(&self) -> &'static str {
        "linear, gradients"
    }

    /// Reads the gradient of the output, the rows and the weight.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32(inputs[1].shape), inputs[2]]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        2 * self.0.matmul_flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows(), threads)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let [dy, x, w] = [0, 1, 2].map(|i| operand(self.0.0.precision, io.read(i)));
        self.0.input_grad(&dy, &w, io.write());
        self.0.weight_grad(&dy, &x, io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dy, x, w) = (io.floats(0), io.floats(1), io.floats(2));
        self.0.0.backward(dy, x, w, io.write_floats(), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let operand = element_type_of(self.0.0.precision);
        let [dy, x, w] = [0, 1, 2].map(|i| io.converted(io.read(i), operand));
        let (dx, dw) = (io.write(), io.write());
        self.0.record_input_grad(io, dy, w, dx);
        self.0.record_weight_grad(io, dy, x, dw);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn matmuls_and_their_gradients() {
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (33, 17, 40)] {
            let given = [floats(1, [1, rows, inputs]), floats(2, [outputs, inputs])];
            check(&given, |_, x| linear(x[0], x[1]));
        }
    }
}
