//! Rows scaled by learned factors.

use hybridnorm_kernels::elementwise;

use super::device::Factors;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Rows scaled by one factor per row, or by a single factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleRows {
    width: usize,
}

/// Gradients of rows and factors of [`ScaleRows`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleRowsGrad(ScaleRows);

/// Multiplies rows (n, d) by factors (n), or by a single one.
///
/// # Panics
/// If the number of factors is neither 1 nor n.
pub fn scale_rows<'g>(x_nd: Value<'g>, s_n: Value<'g>) -> Value<'g> {
    let width = x_nd.shape().width();
    let [y] = x_nd.builder().op(ScaleRows { width }, &[x_nd, s_n]);
    y
}

impl Operation for ScaleRows {
    fn name(&self) -> &'static str {
        "scale rows"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let (rows, factors) = (inputs[0].shape.rows(), inputs[1].elements());
        assert!(factors == 1 || factors == rows, "scale rows: {factors} factors for {rows} rows");
        vec![inputs[0]]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.input(1), at.gradient()];
        let [dx, ds] = at.graph().op(ScaleRowsGrad(*self), &inputs);
        vec![Some(dx), Some(ds)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, s, y) = (io.read(0), io.read(1), io.write());
        for (i, (x, y)) in x.iter().zip(y).enumerate() {
            *y = x * s[i / self.width % s.len()];
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::scale_rows(io.read(0), io.read(1), self.width, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, values, y) = (io.read(0), io.read(1), io.write());
        let repeat = self.width;
        Factors { values, repeat }.multiply(io, x, y);
        Ok(())
    }
}

impl Operation for ScaleRowsGrad {
    fn name(&self) -> &'static str {
        "scale rows, gradients"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[1]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(2, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, s, d, ds) = (io.read(0), io.read(1), io.write(), io.write());
        ds.fill(0.0);
        for (i, (x, d)) in x.iter().zip(d).enumerate() {
            let factor = i / self.0.width % s.len();
            ds[factor] += *d * x;
            *d *= s[factor];
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, s, d, ds) = (io.read(0), io.read(1), io.write(), io.write());
        elementwise::scale_rows_backward(x, s, self.0.width, d, ds);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, s, d, ds) = (io.read(0), io.read(1), io.write(), io.write());
        let factors = |values| Factors { values, repeat: self.0.width };
        factors(ds).write_gradients(io, x, Some(d));
        factors(s).multiply(io, d, d);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn one_factor_and_one_for_each_row() {
        for factors in [1, 7] {
            check(&[floats(1, [7, 5]), floats(2, [factors])], |_, x| scale_rows(x[0], x[1]));
        }
    }
}
