//! An op at given sizes: its operands, and how it is recorded.

use super::Bound;
use crate::exec::Tensor;
use crate::graph::{Shape, Type, Value};
use crate::ops::Arguments;
use crate::passes::vector_jacobian_product;

/// An op at sizes that can be made smaller.
pub struct Case {
    pub op: &'static str,
    pub direction: &'static str,
    pub bound: Bound,
    /// How many independent pieces there are: rows, sequences or elements.
    pub units: usize,
    /// The problem of so many of them.
    pub problem: Box<dyn Fn(usize) -> Problem>,
}

impl Case {
    pub fn new(
        op: &'static str,
        direction: &'static str,
        bound: Bound,
        units: usize,
        problem: impl Fn(usize) -> Problem + 'static,
    ) -> Self {
        Self {
            op,
            direction,
            bound,
            units,
            problem: Box::new(problem),
        }
    }
}

type Record = dyn for<'g> Fn(&[Value<'g>]) -> Vec<Value<'g>>;

/// Operands, and the outputs to compute from them.
pub struct Problem {
    pub operands: Vec<Operand>,
    pub arguments: Arguments,
    record: Box<Record>,
}

impl Problem {
    /// `record` returns the outputs of the op to measure, and the state that it updates.
    pub fn new<const N: usize>(
        operands: [Operand; N],
        record: impl for<'g> Fn([Value<'g>; N]) -> Vec<Value<'g>> + 'static,
    ) -> Self {
        Self {
            operands: operands.into(),
            arguments: Arguments {
                past: 0,
                lr: 1e-3,
                step: 10,
            },
            record: Box::new(move |values| {
                record(values.try_into().expect("one value for each operand"))
            }),
        }
    }

    /// After so many positions, which the caches hold.
    pub fn after(mut self, past: usize) -> Self {
        self.arguments.past = past;
        self
    }

    /// Records the outputs from values of the operands.
    pub fn record<'g>(&self, values: &[Value<'g>]) -> Vec<Value<'g>> {
        (self.record)(values)
    }
}

/// Records the gradients of `sources` from that of `y`.
pub fn vjp<'g>(y: Value<'g>, dy: Value<'g>, sources: &[Value<'g>]) -> Vec<Value<'g>> {
    let gradients = vector_jacobian_product(y, dy, sources).into_iter();
    gradients.flatten().collect()
}

/// All outputs of the op that makes `value`, also those that its builder does not return.
pub fn all_outputs(value: Value<'_>) -> Vec<Value<'_>> {
    let graph = value.builder().recorded();
    let node = graph
        .nodes()
        .iter()
        .find(|n| n.outputs.contains(&value.id()));
    let outputs = &node.expect("made by an op").outputs;
    outputs
        .iter()
        .map(|&id| value.builder().value(id))
        .collect()
}

/// An operand of an op.
pub struct Operand {
    pub ty: Type,
    /// True if the op writes an output where this operand was, as it does with a gradient that nothing else
    /// reads.
    pub is_overwritten: bool,
    contents: Contents,
}

enum Contents {
    /// Between -1 and 1.
    Uniform,
    /// Between 0 and 1.
    Squares,
    /// Integers from 0 to below this one.
    Below(usize),
    Given(Tensor),
}

/// Numbers between -1 and 1.
pub fn floats(shape: impl Into<Shape>) -> Operand {
    Operand::new(Type::f32(shape), Contents::Uniform)
}

/// Squares of numbers between -1 and 1.
pub fn squares(shape: impl Into<Shape>) -> Operand {
    Operand::new(Type::f32(shape), Contents::Squares)
}

/// Integers from 0 to below `end`.
pub fn ids(shape: impl Into<Shape>, end: usize) -> Operand {
    Operand::new(Type::i32(shape), Contents::Below(end))
}

/// These numbers.
pub fn given(ty: Type, contents: Tensor) -> Operand {
    Operand::new(ty, Contents::Given(contents))
}

impl Operand {
    fn new(ty: Type, contents: Contents) -> Self {
        Self {
            ty,
            is_overwritten: false,
            contents,
        }
    }

    /// The op writes an output where this operand was.
    pub fn overwritten(self) -> Self {
        Self {
            is_overwritten: true,
            ..self
        }
    }

    /// Its elements; those of two seeds differ.
    pub fn elements(&self, seed: usize) -> Tensor {
        let mut draw = Draw(seed as u32);
        let count = 0..self.ty.elements();
        match &self.contents {
            Contents::Uniform => Tensor::F32(count.map(|_| draw.uniform()).collect()),
            Contents::Squares => Tensor::F32(count.map(|_| draw.uniform().powi(2)).collect()),
            Contents::Below(end) => {
                let below = |_| (draw.bits() as usize % end) as i32;
                Tensor::I32(count.map(below).collect())
            }
            Contents::Given(tensor) => tensor.clone(),
        }
    }
}

/// Numbers without a visible pattern (a linear congruential generator).
struct Draw(u32);

impl Draw {
    /// 24 of them.
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn uniform(&mut self) -> f32 {
        self.bits() as f32 / (1 << 23) as f32 - 1.0
    }
}
