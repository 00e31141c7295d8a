//! Elementwise functions: clamp, soft cap, reciprocal.

use std::ops::Range;

use hybridnorm_kernels::elementwise;

use super::device::Pointwise;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Elements clamped to plus and minus a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    limit: f32,
}

/// Gradient of [`Clamp`]: 0 outside the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampGrad(Clamp);

/// `cap · tanh(x / cap)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softcap {
    pub(crate) cap: f32,
}

/// Gradient of [`Softcap`] from its output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftcapGrad(Softcap);

/// `1 / max(x, min)` of a few elements, such as the temperatures of heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reciprocal {
    min: f32,
}

/// Gradient of [`Reciprocal`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReciprocalGrad(Reciprocal);

/// Clamps elements to plus and minus `limit`.
pub fn clamp(x: Value<'_>, limit: f64) -> Value<'_> {
    let limit = limit as f32;
    let [y] = x.builder().op(Clamp { limit }, &[x]);
    y
}

/// Computes `cap · tanh(x / cap)` (Gemma 2, arXiv 2408.00118).
pub fn softcap(x: Value<'_>, cap: f64) -> Value<'_> {
    let cap = cap as f32;
    let [y] = x.builder().op(Softcap { cap }, &[x]);
    y
}

/// Computes `1 / max(x, min)`.
pub fn reciprocal(x: Value<'_>, min: f64) -> Value<'_> {
    let min = min as f32;
    let [y] = x.builder().op(Reciprocal { min }, &[x]);
    y
}

impl Operation for Clamp {
    fn name(&self) -> &'static str {
        "clamp"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs.to_vec()
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dx] = at.graph().op(ClampGrad(*self), &[at.input(0), at.gradient()]);
        vec![Some(dx)]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let limit = f64::from(self.limit);
        io.write().iter_mut().for_each(|y| *y = y.clamp(-limit, limit));
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::clamp(self.limit, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        io.pointwise(Pointwise::Clamp, self.limit, None);
        Ok(())
    }
}

impl Operation for ClampGrad {
    fn name(&self) -> &'static str {
        "clamp, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for (x, d) in io.read(0).iter().zip(io.write()) {
            if x.abs() > f64::from(self.0.limit) {
                *d = 0.0;
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::clamp_backward(self.0.limit, io.read(0), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        io.pointwise(Pointwise::ClampGradient, self.0.limit, Some(io.read(0)));
        Ok(())
    }
}

impl Operation for Softcap {
    fn name(&self) -> &'static str {
        "soft cap"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs.to_vec()
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dx] = at.graph().op(SoftcapGrad(*self), &[at.output(0), at.gradient()]);
        vec![Some(dx)]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let cap = f64::from(self.cap);
        io.write().iter_mut().for_each(|y| *y = cap * (*y / cap).tanh());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::softcap(self.cap, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        io.pointwise(Pointwise::Softcap, self.cap, None);
        Ok(())
    }
}

impl Operation for SoftcapGrad {
    fn name(&self) -> &'static str {
        "soft cap, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(1, 0)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let cap = f64::from(self.0.cap);
        for (y, d) in io.read(0).iter().zip(io.write()) {
            *d *= 1.0 - (y / cap).powi(2);
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::softcap_backward(self.0.cap, io.read(0), io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        io.pointwise(Pointwise::SoftcapGradient, self.0.cap, Some(io.read(0)));
        Ok(())
    }
}

impl Operation for Reciprocal {
    fn name(&self) -> &'static str {
        "reciprocal"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        inputs.to_vec()
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dx] = at.graph().op(ReciprocalGrad(*self), &[at.input(0), at.gradient()]);
        vec![Some(dx)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        for (x, y) in io.read(0).iter().zip(io.write()) {
            *y = 1.0 / x.max(f64::from(self.min));
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        for (x, y) in io.read(0).iter().zip(io.write()) {
            *y = 1.0 / x.max(self.min);
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        io.pointwise(Pointwise::Reciprocal, self.min, Some(io.read(0)));
        Ok(())
    }
}

impl Operation for ReciprocalGrad {
    fn name(&self) -> &'static str {
        "reciprocal, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0]]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let pairs = io.read(0).iter().zip(io.read(1));
        for ((&x, dy), dx) in pairs.zip(io.write()) {
            *dx = if x < f64::from(self.0.min) { 0.0 } else { -dy / (x * x) };
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let pairs = io.read(0).iter().zip(io.read(1));
        for ((&x, dy), dx) in pairs.zip(io.write()) {
            *dx = if x < self.0.min { 0.0 } else { -dy / (x * x) };
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, dy) = (io.read(0), io.read(1));
        let out = io.write();
        io.copy(dy, out);
        io.pointwise_to(Pointwise::ReciprocalGradient, self.0.min, x, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats, mapped_floats};
    use super::*;

    #[test]
    fn functions_of_elements() {
        check(&[floats(1, [3, 11])], |_, x| clamp(x[0], 0.4));
        check(&[mapped_floats(1, [3, 11], |x| 5.0 * x)], |_, x| softcap(x[0], 2.0));
        let given = [mapped_floats(1, [11], |x| 0.5 + 0.6 * x)];
        check(&given, |_, x| reciprocal(x[0], 0.1));
    }
}
