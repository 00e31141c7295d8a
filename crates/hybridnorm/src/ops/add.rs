//! `x + y`, as in a skip connection.

use std::ops::Range;

use hybridnorm_kernels::elementwise;

use super::device::add_to;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Sum of two values of equal shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Add;

/// Computes `x + y`.
///
/// # Panics
/// If the shapes differ.
pub fn add<'g>(x: Value<'g>, y: Value<'g>) -> Value<'g> {
    let [sum] = x.builder().op(Add, &[x, y]);
    sum
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x, y] = inputs else {
            panic!("add: expected two values")
        };
        assert_eq!(x, y, "add: shapes differ");
        vec![*x]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        vec![Some(at.gradient()); 2]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..2
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, sum) = (io.read(0), io.write());
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::add_to(io.floats(0), io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, sum) = (io.read(0), io.write());
        add_to(io, x, sum);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn both_terms_receive_the_gradient() {
        check(&[floats(1, [5, 3]), floats(2, [5, 3])], |_, x| add(x[0], x[1]));
        check(&[floats(1, [2, 5, 3])], |_, x| x[0] + (x[0] + x[0]) * 0.5);
    }
}
