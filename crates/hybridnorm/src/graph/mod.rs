//! Computation graph: values with shape and type, and the ops between them.
//!
//! A [`Builder`] records ops on symbolic [`Value`]s; [finishing](Builder::finish) it returns a plain
//! [`Graph`], which [passes](crate::passes) rewrite and a [plan](crate::plan) turns into a program.
//!
//! ```
//! use hybridnorm::graph::{Builder, Type};
//!
//! let g = Builder::new();
//! let x = g.input("x", Type::f32([2, 3]));
//! let y = (x + x) * 0.5;
//! assert_eq!(y.shape().sizes(), [2, 3]);
//! ```
//!
//! A graph is displayed as a listing with one op per line, with the path of the module that recorded it:
//!
//! ```
//! # use hybridnorm::graph::{Builder, Type};
//! let g = Builder::new();
//! let x = g.input("x", Type::f32([2, 3]));
//! g.named_scope("blocks.0", || x + x);
//! assert_eq!(
//!     g.finish().to_string(),
//!     "%0 = input x: f32[2, 3]\n%1: f32[2, 3] = add %0 %0  # blocks.0\n"
//! );
//! ```

mod builder;
mod types;

use std::fmt;
use std::sync::Arc;

use crate::ops::Op;

pub use builder::{Builder, Value};
pub use types::{DType, Shape, Type};

/// Id of a value in a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) usize);

/// A buffer of an executor that outlives the run of a program: parameters, moments, caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Buffer(pub(crate) usize);

/// Source of a value's elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Computed by an op.
    Computed,
    /// Provided by the host before each run.
    Input(Arc<str>),
    /// Elements of a buffer, starting at this offset (in elements).
    State(Buffer, usize),
    /// Elements of a buffer in single precision, rounded to bfloat16: from a copy that the executor keeps. An op that changes
    /// the elements may update the copy; otherwise the executor renews it after they have changed.
    RoundedState(Buffer, usize),
}

/// Type and source of a value.
#[derive(Debug, Clone)]
pub struct ValueInfo {
    /// Shape and element type.
    pub ty: Type,
    /// Source of its elements.
    pub source: Source,
}

/// An op with its inputs and outputs.
#[derive(Debug, Clone)]
pub struct Node {
    /// The op.
    pub op: Op,
    /// Inputs, including those updated in place ([`Operation::state_inputs`](crate::ops::Operation::state_inputs)).
    pub inputs: Vec<ValueId>,
    /// Outputs.
    pub outputs: Vec<ValueId>,
    /// Path of the module that recorded it, such as `blocks.3.attention`.
    pub path: Arc<str>,
    /// Segment of the forward pass, which may be recomputed as a whole.
    pub segment: Option<usize>,
    /// True if it was recorded by [`gradients`](crate::passes::gradients).
    pub is_backward: bool,
}

/// Ops in execution order, and the values between them.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<ValueInfo>,
}

impl Graph {
    /// Returns the ops in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns type and source of a value.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.0]
    }

    /// Returns shape and element type of a value.
    pub fn ty(&self, id: ValueId) -> Type {
        self.values[id.0].ty
    }

    /// Adds a value with this source: an input, a buffer or the output of an op.
    pub(crate) fn add_value(&mut self, ty: Type, source: Source) -> ValueId {
        self.values.push(ValueInfo { ty, source });
        ValueId(self.values.len() - 1)
    }

    /// Returns the index of the op that computes each value.
    pub(crate) fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.values.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for output in &node.outputs {
                producers[output.0] = Some(index);
            }
        }
        producers
    }

    /// Returns the indices of the ops that read each value, in order; an op that reads it twice counts twice.
    pub(crate) fn consumers(&self) -> Vec<Vec<usize>> {
        let mut consumers = vec![Vec::new(); self.values.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for input in &node.inputs {
                consumers[input.0].push(index);
            }
        }
        consumers
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.values.iter().enumerate() {
            match &value.source {
                Source::Computed => (),
                Source::Input(name) => writeln!(f, "%{index} = input {name}: {}", value.ty)?,
                Source::State(Buffer(buffer), offset) => {
                    writeln!(f, "%{index} = buffer {buffer} from {offset}: {}", value.ty)?;
                }
                Source::RoundedState(Buffer(buffer), offset) => {
                    let ty = value.ty;
                    writeln!(f, "%{index} = rounded buffer {buffer} from {offset}: {ty}")?;
                }
            }
        }
        for node in &self.nodes {
            let outputs = node.outputs.iter();
            let outputs = outputs.map(|&id| format!("%{}: {}", id.0, self.ty(id)));
            let outputs: Vec<_> = outputs.collect();
            let equals = if outputs.is_empty() { "" } else { " = " };
            let name = node.op.operation().name();
            write!(f, "{}{equals}{name}", outputs.join(", "))?;
            for input in &node.inputs {
                write!(f, " %{}", input.0)?;
            }
            match &*node.path {
                "" => writeln!(f)?,
                path => writeln!(f, "  # {path}")?,
            }
        }
        Ok(())
    }
}
