//! `y = x Wᵀ`, with the weight (out, in) as in PyTorch.

use std::ops::Range;

use hybridnorm_kernels::linear;

use super::{BackwardContext, Operands, Operation};
use crate::graph::{Type, Value};

/// `y = x Wᵀ` on rows of `inputs` elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
}

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
    let [y] = x.builder().op(Linear { inputs, outputs }, &[x, w_oi]);
    y
}

impl Linear {
    fn matmul_flops(&self, rows: usize) -> u64 {
        2 * (rows * self.inputs * self.outputs) as u64
    }

    fn backward_workspace(&self, rows: usize) -> usize {
        linear::backward_workspace(rows, self.inputs, self.outputs)
    }

    fn weight(&self) -> Type {
        Type::f32([self.outputs, self.inputs])
    }

    /// Computes `dx = dy W` in double precision.
    fn input_grad(&self, dy: &[f64], w: &[f64], dx: &mut [f64]) {
        for (dy, dx) in dy.chunks(self.outputs).zip(dx.chunks_mut(self.inputs)) {
            dx.fill(0.0);
            for (dy, w) in dy.iter().zip(w.chunks(self.inputs)) {
                for (dx, w) in dx.iter_mut().zip(w) {
                    *dx += dy * w;
                }
            }
        }
    }

    /// Computes `dW = dyᵀ x` in double precision.
    fn weight_grad(&self, dy: &[f64], x: &[f64], dw: &mut [f64]) {
        dw.fill(0.0);
        for (dy, x) in dy.chunks(self.outputs).zip(x.chunks(self.inputs)) {
            for (dy, dw) in dy.iter().zip(dw.chunks_mut(self.inputs)) {
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
        assert_eq!(x.shape.width(), self.inputs, "linear: width of the rows");
        vec![Type::f32(x.shape.with_width(self.outputs))]
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

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        linear::forward_workspace(inputs[0].shape.rows(), self.inputs, self.outputs)
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, w, y) = (io.read(0), io.read(1), io.write());
        let rows = x.chunks(self.inputs).zip(y.chunks_mut(self.outputs));
        for (x, y) in rows {
            for (y, w) in y.iter_mut().zip(w.chunks(self.inputs)) {
                *y = x.iter().zip(w).map(|(x, w)| x * w).sum();
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, w, y) = (io.read(0), io.read(1), io.write());
        linear::forward(x, w, y, self.inputs, self.outputs);
    }
}

impl Operation for LinearInputGrad {
    fn name(&self) -> &'static str {
        "linear, gradient of the input"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32(inputs[0].shape.with_width(self.0.inputs))]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        self.0.matmul_flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows())
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.0.input_grad(io.read(0), io.read(1), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dy, w, dx) = (io.read(0), io.read(1), io.write());
        linear::backward_input(dy, w, dx, self.0.inputs, self.0.outputs);
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

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows())
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.0.weight_grad(io.read(0), io.read(1), io.write());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dy, x, dw) = (io.read(0), io.read(1), io.write());
        linear::backward_weight(dy, x, dw, self.0.inputs, self.0.outputs);
    }
}

impl Operation for LinearGrad {
    fn name(&self) -> &'static str {
        "linear, gradients"
    }

    /// Reads the gradient of the output, the rows and the weight.
    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[1], inputs[2]]
    }

    fn flops(&self, inputs: &[Type]) -> u64 {
        2 * self.0.matmul_flops(inputs[0].shape.rows())
    }

    fn workspace(&self, inputs: &[Type], _threads: usize) -> usize {
        self.0.backward_workspace(inputs[0].shape.rows())
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (dy, x, w, dx, dw) = (io.read(0), io.read(1), io.read(2), io.write(), io.write());
        self.0.input_grad(dy, w, dx);
        self.0.weight_grad(dy, x, dw);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dy, x, w, dx, dw) = (io.read(0), io.read(1), io.read(2), io.write(), io.write());
        linear::backward(dy, x, w, dx, dw, self.0.inputs, self.0.outputs);
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
