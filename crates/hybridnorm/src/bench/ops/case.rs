//! An op at given sizes: its operands, and the function that records it.

use super::Bound;
use crate::exec::Tensor;
use crate::graph::{Shape, Type, Value};
use crate::ops::Arguments;
use crate::passes::vector_jacobian_product;

/// An op whose sizes can be reduced.
pub struct Case {
    pub op: &'static str,
    pub direction: &'static str,
    pub bound: Bound,
    /// Number of independent units: rows, sequences or elements.
    pub units: usize,
    /// Creates the problem for a number of units.
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
    /// Role of the outputs in a model.
    pub outputs: OutputRole,
    record: Box<Record>,
}

/// Role of the outputs of an op in a model, which decides on their type in mixed precision.
#[derive(Clone, Copy, PartialEq)]
pub enum OutputRole {
    /// As the policy says for the op.
    Any,
    /// Added to the residual stream.
    Residual,
    /// Logits, from weights that are kept rounded, as in generation.
    Logits,
}

impl Problem {
    /// Returns a problem; `record` returns the outputs of the op to measure and the state that it updates.
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
            outputs: OutputRole::Any,
            record: Box::new(move |values| {
                record(values.try_into().expect("one value for each operand"))
            }),
        }
    }

    /// Sets the number of past positions, which the caches hold.
    pub fn with_past_positions(mut self, past: usize) -> Self {
        self.arguments.past = past;
        self
    }

    /// Sets the role of the outputs.
    pub fn with_outputs(mut self, role: OutputRole) -> Self {
        self.outputs = role;
        self
    }

    /// Records the outputs from values of the operands.
    pub fn record<'g>(&self, values: &[Value<'g>]) -> Vec<Value<'g>> {
        (self.record)(values)
    }
}

/// Records the vector-Jacobian product: the gradients of `sources` from that of `y`.
pub fn vjp<'g>(y: Value<'g>, dy: Value<'g>, sources: &[Value<'g>]) -> Vec<Value<'g>> {
    let gradients = vector_jacobian_product(y, dy, sources).into_iter();
    gradients.flatten().collect()
}

/// Returns all outputs of the op that produces `value`, including those that its builder does not return.
pub fn all_outputs(value: Value<'_>) -> Vec<Value<'_>> {
    let graph = value.builder().snapshot();
    let node = graph
        .nodes()
        .iter()
        .find(|n| n.outputs.contains(&value.id()));
    let outputs = &node.expect("produced by an op").outputs;
    outputs
        .iter()
        .map(|&id| value.builder().value(id))
        .collect()
}

/// An operand of an op.
pub struct Operand {
    pub ty: Type,
    /// True if the op writes an output into the buffer of this operand, as for a gradient that no other op reads.
    pub is_overwritten: bool,
    /// True for values of the residual stream, and gradients of them.
    pub is_residual: bool,
    contents: Contents,
}

enum Contents {
    /// Between -1 and 1.
    Uniform,
    /// Between 0 and 1.
    Squares,
    /// Integers from 0 up to this bound, exclusive.
    Below(usize),
    Given(Tensor),
}

/// Returns an operand of numbers between -1 and 1.
pub fn floats(shape: impl Into<Shape>) -> Operand {
    Operand::new(Type::f32(shape), Contents::Uniform)
}

/// Returns an operand of squares of numbers between -1 and 1.
pub fn squares(shape: impl Into<Shape>) -> Operand {
    Operand::new(Type::f32(shape), Contents::Squares)
}

/// Returns an operand of integers in `0..end`.
pub fn ids(shape: impl Into<Shape>, end: usize) -> Operand {
    Operand::new(Type::i32(shape), Contents::Below(end))
}

/// Returns an operand with these elements.
pub fn given(ty: Type, contents: Tensor) -> Operand {
    Operand::new(ty, Contents::Given(contents))
}

impl Operand {
    fn new(ty: Type, contents: Contents) -> Self {
        Self {
            ty,
            is_overwritten: false,
            is_residual: false,
            contents,
        }
    }

    /// Marks the operand as overwritten by an output.
    pub fn overwritten(self) -> Self {
        Self {
            is_overwritten: true,
            ..self
        }
    }

    /// Marks the operand as a value of the residual stream, or its gradient.
    pub fn residual(self) -> Self {
        Self {
            is_residual: true,
            ..self
        }
    }

    /// Returns its elements, which depend on the seed.
    pub fn elements(&self, seed: usize) -> Tensor {
        let mut random = Lcg(seed as u32);
        let count = 0..self.ty.elements();
        match &self.contents {
            Contents::Uniform => Tensor::F32(count.map(|_| random.uniform()).collect()),
            Contents::Squares => Tensor::F32(count.map(|_| random.uniform().powi(2)).collect()),
            Contents::Below(end) => {
                let below = |_| (random.bits() as usize % end) as i32;
                Tensor::I32(count.map(below).collect())
            }
            Contents::Given(tensor) => tensor.clone(),
        }
    }
}

/// Pseudorandom numbers (a linear congruential generator).
struct Lcg(u32);

impl Lcg {
    /// Returns 24 bits.
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn uniform(&mut self) -> f32 {
        self.bits() as f32 / (1 << 23) as f32 - 1.0
    }
}
