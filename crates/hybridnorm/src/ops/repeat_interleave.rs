//! Repetition of blocks of elements: from a scale per key/value head to one per query head of its group.

use super::device::Columns;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Every block of `width` elements repeated `times` times consecutively.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepeatInterleave {
    width: usize,
    times: usize,
}

/// Gradient of [`RepeatInterleave`]: the sum over the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepeatInterleaveGrad(RepeatInterleave);

/// Repeats every block of `width` elements of a vector (n) `times` times consecutively: (n · times),
/// like `torch.repeat_interleave`, but in blocks of `width`.
///
/// # Panics
/// If the vector does not consist of such blocks.
pub fn repeat_interleave(x_n: Value<'_>, width: usize, times: usize) -> Value<'_> {
    if times == 1 {
        return x_n;
    }
    let [y] = x_n.builder().op(RepeatInterleave { width, times }, &[x_n]);
    y
}

impl RepeatInterleave {
    /// Calls `f(index of an element, index of one of its repetitions)`.
    fn for_each(&self, elements: usize, mut f: impl FnMut(usize, usize)) {
        for x in 0..elements {
            let (block, within) = (x / self.width, x % self.width);
            for time in 0..self.times {
                f(x, (block * self.times + time) * self.width + within);
            }
        }
    }
}

impl Operation for RepeatInterleave {
    fn name(&self) -> &'static str {
        "tile"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        let n = inputs[0].elements();
        assert!(n.is_multiple_of(self.width), "repeat_interleave: {n} elements are not a multiple of the width {}", self.width);
        vec![Type::f32([n * self.times])]
    }

    fn backward<'g>(&self, at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        let [dx] = at.graph().op(RepeatInterleaveGrad(*self), &[at.gradient()]);
        vec![Some(dx)]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, y) = (io.read(0), io.write());
        self.for_each(x.len(), |from, to| y[to] = x[from]);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, y) = (io.read(0), io.write());
        self.for_each(x.len(), |from, to| y[to] = x[from]);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, y, width) = (io.read(0), io.write(), self.width);
        for time in 0..self.times {
            let [from, to] = [Columns::new(x, width, 0), Columns::new(y, self.times * width, time * width)];
            io.copy_columns(from, to, width, false);
        }
        Ok(())
    }
}

impl Operation for RepeatInterleaveGrad {
    fn name(&self) -> &'static str {
        "tile, gradient"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32([inputs[0].elements() / self.0.times])]
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (dy, dx) = (io.read(0), io.write());
        dx.fill(0.0);
        self.0.for_each(dx.len(), |to, from| dx[to] += dy[from]);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (dy, dx) = (io.read(0), io.write());
        dx.fill(0.0);
        self.0.for_each(dx.len(), |to, from| dx[to] += dy[from]);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (dy, dx, width) = (io.read(0), io.write(), self.0.width);
        for time in 0..self.0.times {
            let [from, to] = [Columns::new(dy, self.0.times * width, time * width), Columns::new(dx, width, 0)];
            io.copy_columns(from, to, width, time > 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, floats};
    use super::*;

    #[test]
    fn blocks_are_repeated_consecutively() {
        let mut found = Vec::new();
        let op = RepeatInterleave { width: 2, times: 2 };
        op.for_each(4, |from, to| found.push((to, from)));
        found.sort_unstable();
        let order: Vec<usize> = found.into_iter().map(|(_, from)| from).collect();
        assert_eq!(order, [0, 1, 0, 1, 2, 3, 2, 3]);
    }

    #[test]
    fn blocks_are_repeated() {
        for (n, width, times) in [(6, 3, 4), (1, 1, 7), (4, 4, 1)] {
            check(&[floats(1, [n])], |_, x| repeat_interleave(x[0], width, times));
        }
    }
}
