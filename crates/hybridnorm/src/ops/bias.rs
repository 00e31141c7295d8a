//! Bias of a projection: a vector added to every row.

use std::ops::Range;

use super::device::Factors;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};
use hybridnorm_kernels::elementwise;

/// `x + bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddBias;

/// Gradient of the bias: the sum of all rows of the output's gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BiasGrad;

/// Adds `bias` (d) to every row of `x` (.., d).
///
/// # Panics
/// If the bias is not as long as the rows.
pub fn add_bias<'g>(x: Value<'g>, bias: Value<'g>) -> Value<'g> {
    let [y] = x.builder().op(AddBias, &[x, bias]);
    y
}

impl Operation for AddBias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x, bias] = [inputs[0], inputs[1]];
        assert_eq!(bias, Type::f32([x.shape.width()]), "bias: width of the rows");
        vec![x]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [bias] = at.graph().op(BiasGrad, &[at.gradient()]);
        vec![Some(at.gradient()), Some(bias)]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (bias, y) = (io.read(1), io.write());
        for row in y.chunks_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::add_bias(io.read(1), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (bias, y) = (io.read(1), io.write());
        Factors { values: bias, repeat: 1 }.add(io, y);
        Ok(())
    }
}

impl Operation for BiasGrad {
    fn name(&self) -> &'static str {
        "bias, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32([inputs[0].shape.width()])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (dy, dbias) = (io.read(0), io.write());
        dbias.fill(0.0);
        for row in dy.chunks(dbias.len()) {
            dbias.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::sum_rows(io.read(0), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dy, dbias) = (io.read(0), io.write());
        Factors { values: dbias, repeat: 1 }.write_gradients(io, dy, None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn every_row_receives_the_bias() {
        for rows in [1, 3, 700] {
            check(&[floats(1, [rows, 5]), floats(2, [5])], |_, x| add_bias(x[0], x[1]));
        }
        // The input has other readers.
        check(&[floats(1, [2, 3, 4]), floats(2, [4])], |_, x| add_bias(x[0], x[1]) + x[0] * 2.0);
    }
}
