//! Multiplication by a constant, and constants.

use std::ops::Range;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Builder, Type, Value};
use hybridnorm_kernels::elementwise;

/// `factor · x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub(crate) factor: f32,
}

/// A value with all elements equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fill {
    pub(crate) value: f32,
    ty: Type,
}

/// Computes `factor · x`, the factor rounded to single precision; returns x itself if that is 1.
pub fn scale(x: Value<'_>, factor: f64) -> Value<'_> {
    let factor = factor as f32;
    if factor == 1.0 {
        return x;
    }
    let [y] = x.builder().op(Scale { factor }, &[x]);
    y
}

/// Creates a value with all elements equal to `value`.
pub fn fill(graph: &Builder, value: f32, ty: Type) -> Value<'_> {
    let [y] = graph.op(Fill { value, ty }, &[]);
    y
}

impl Operation for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs.to_vec()
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        vec![Some(scale(at.gradient(), f64::from(self.factor)))]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for y in io.write() {
            *y *= f64::from(self.factor);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::scale(self.factor, io.write_floats());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let y = io.write();
        let arguments = cuda::Arguments::default()
            .floats(y)
            .long(y.len() as i64)
            .float(self.factor);
        io.launch("scale_by", Grid::elements(y.len()), arguments);
        Ok(())
    }
}

impl Operation for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![self.ty]
    }

    fn backward<'g>(&self, _at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        Vec::new()
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        io.write().fill(f64::from(self.value));
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        io.write().fill(self.value);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let y = io.write();
        io.fill(y, self.value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn a_factor_multiplies_and_one_is_no_op() {
        check(&[floats(1, [3, 4])], |_, x| scale(x[0], -0.5));
        let g = Builder::new();
        let x = g.input("x", Type::f32([3]));
        assert_eq!(scale(x, 1.0).id(), x.id());
    }

    #[test]
    fn a_constant_has_no_gradient() {
        check(&[floats(2, [5])], |g, x| x[0] + fill(g, 2.0, Type::f32([5])));
    }
}
