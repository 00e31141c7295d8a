//! Columns of rows: split, concatenated, and scaled by learned factors.

use std::ops::Range;

use hybridnorm_kernels::elementwise;

use super::device::{Columns, Factors};
use super::{BackwardContext, DeviceOperands, Operands, Operation, fill};
use crate::graph::{Type, Value};

/// Rows split into parts of given widths.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    widths: Vec<usize>,
}

/// Concatenation of rows of given widths.
#[derive(Debug, Clone, PartialEq)]
pub struct Concat {
    widths: Vec<usize>,
}

/// Rows with every block of `repeat` columns multiplied by its factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleColumns {
    repeat: usize,
}

/// Gradients of rows and factors of [`ScaleColumns`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleColumnsGrad(ScaleColumns);

/// Splits rows: (.., Σ widths) to one value (.., width) per width.
///
/// # Panics
/// If the widths do not sum to that of the rows.
pub fn split<'g, const N: usize>(x: Value<'g>, widths: [usize; N]) -> [Value<'g>; N] {
    let widths = widths.to_vec();
    x.builder().op(Split { widths }, &[x])
}

/// Splits rows as [`split`] does, into any number of parts.
///
/// # Panics
/// If the widths do not sum to that of the rows.
pub fn split_into(x: Value<'_>, widths: Vec<usize>) -> Vec<Value<'_>> {
    x.builder().op_with_outputs(Split { widths }, &[x])
}

/// Concatenates the rows of all parts, in order.
///
/// # Panics
/// If the parts do not have the same number of rows.
pub fn concat<'g>(parts: &[Value<'g>]) -> Value<'g> {
    let widths = parts.iter().map(|part| part.shape().width()).collect();
    let [y] = parts[0].builder().op(Concat { widths }, parts);
    y
}

/// Multiplies columns: `s` has one factor per block of `repeat` consecutive columns.
///
/// # Panics
/// If the blocks do not add up to the width of the rows.
pub fn scale_columns<'g>(x: Value<'g>, s: Value<'g>, repeat: usize) -> Value<'g> {
    let [y] = x.builder().op(ScaleColumns { repeat }, &[x, s]);
    y
}

impl Operation for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let shape = inputs[0].shape;
        assert_eq!(shape.width(), self.widths.iter().sum::<usize>(), "split: widths");
        let part = |&width| Type::f32(shape.with_width(width));
        self.widths.iter().map(part).collect()
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let part = |index| match at.gradient_of(index) {
            Some(gradient) => gradient,
            None => fill(at.graph(), 0.0, at.output(index).ty()),
        };
        let parts: Vec<_> = (0..self.widths.len()).map(part).collect();
        vec![Some(concat(&parts))]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, all) = (io.read(0), self.widths.iter().sum());
        let mut first = 0;
        for &width in &self.widths {
            for (y, x) in io.write().chunks_mut(width).zip(x.chunks(all)) {
                y.copy_from_slice(&x[first..first + width]);
            }
            first += width;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, all) = (io.read(0), self.widths.iter().sum());
        let mut first = 0;
        for &width in &self.widths {
            elementwise::copy_columns((x, all, first), (io.write(), width, 0), width);
            first += width;
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, all) = (io.read(0), self.widths.iter().sum());
        let mut first = 0;
        for &width in &self.widths {
            let y = io.write();
            let [from, to] = [Columns::new(x, all, first), Columns::new(y, width, 0)];
            io.copy_columns(from, to, width, false);
            first += width;
        }
        Ok(())
    }
}

impl Operation for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let shape = inputs[0].shape;
        let same = inputs.iter().all(|part| part.shape.rows() == shape.rows());
        assert!(same, "concat: numbers of rows differ");
        vec![Type::f32(shape.with_width(self.widths.iter().sum()))]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let widths = self.widths.clone();
        let parts = at.graph().op_with_outputs(Split { widths }, &[at.gradient()]);
        parts.into_iter().map(Some).collect()
    }

    fn positionwise_inputs(&self, inputs: &[Type]) -> Range<usize> {
        let rows = inputs[0].shape.with_width(1);
        match inputs.iter().all(|part| part.shape.with_width(1) == rows) {
            true => 0..inputs.len(),
            false => 0..0,
        }
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (y, all) = (io.write(), self.widths.iter().sum());
        let mut first = 0;
        for (part, &width) in self.widths.iter().enumerate() {
            for (y, x) in y.chunks_mut(all).zip(io.read(part).chunks(width)) {
                y[first..first + width].copy_from_slice(x);
            }
            first += width;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (y, all) = (io.write(), self.widths.iter().sum());
        let mut first = 0;
        for (part, &width) in self.widths.iter().enumerate() {
            elementwise::copy_columns((io.read(part), width, 0), (y, all, first), width);
            first += width;
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (y, all) = (io.write(), self.widths.iter().sum());
        let mut first = 0;
        for (part, &width) in self.widths.iter().enumerate() {
            let [from, to] = [Columns::new(io.read(part), width, 0), Columns::new(y, all, first)];
            io.copy_columns(from, to, width, false);
            first += width;
        }
        Ok(())
    }
}

impl Operation for ScaleColumns {
    fn name(&self) -> &'static str {
        "scale columns"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let [x, s] = [inputs[0], inputs[1]];
        let width = s.elements() * self.repeat;
        assert_eq!(x.shape.width(), width, "scale columns: width of the rows");
        vec![x]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let inputs = [at.input(0), at.input(1), at.gradient()];
        let [dx, ds] = at.graph().op(ScaleColumnsGrad(*self), &inputs);
        vec![Some(dx), Some(ds)]
    }

    fn positionwise_inputs(&self, _inputs: &[Type]) -> Range<usize> {
        0..1
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, s, y) = (io.read(0), io.read(1), io.write());
        for (i, (x, y)) in x.iter().zip(y).enumerate() {
            *y = x * s[i / self.repeat % s.len()];
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        elementwise::scale_columns(io.read(0), io.read(1), self.repeat, io.write());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, values, y) = (io.read(0), io.read(1), io.write());
        let repeat = self.repeat;
        Factors { values, repeat }.multiply(io, x, y);
        Ok(())
    }
}

impl Operation for ScaleColumnsGrad {
    fn name(&self) -> &'static str {
        "scale columns, gradients"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![inputs[0], inputs[1]]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, s, dy) = (io.read(0), io.read(1), io.read(2));
        let (dx, ds) = (io.write(), io.write());
        ds.fill(0.0);
        for (i, (x, dy)) in x.iter().zip(dy).enumerate() {
            let factor = i / self.0.repeat % s.len();
            dx[i] = dy * s[factor];
            ds[factor] += dy * x;
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, s, dy) = (io.read(0), io.read(1), io.read(2));
        let (dx, ds) = (io.write(), io.write());
        elementwise::scale_columns_backward(x, s, self.0.repeat, dy, dx, ds);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, s, dy) = (io.read(0), io.read(1), io.read(2));
        let (dx, ds) = (io.write(), io.write());
        let factors = |values| Factors { values, repeat: self.0.repeat };
        factors(s).multiply(io, dy, dx);
        factors(ds).write_gradients(io, x, Some(dy));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, check_with, floats};
    use super::*;

    #[test]
    fn split_and_concat_match_the_reference() {
        check_with(&[floats(1, [2, 3, 9])], &[], |_, x| split(x[0], [2, 3, 4]).to_vec());
        let given = [floats(1, [6, 2]), floats(2, [6, 5])];
        check(&given, |_, x| concat(&[x[0], x[1], x[0]]));
        // A part without a gradient.
        check(&[floats(1, [4, 5])], |_, x| {
            let [a, _] = split(x[0], [2, 3]);
            a
        });
    }

    #[test]
    fn factors_per_column_and_per_block_of_columns() {
        for (factors, repeat) in [(1, 12), (4, 3), (12, 1)] {
            let given = [floats(1, [5, 12]), floats(2, [factors])];
            check(&given, |_, x| scale_columns(x[0], x[1], repeat));
        }
    }
}
