//! Rotary position embedding: the angles of positions.

use hybridnorm_kernels::qkv::rope_table;

use super::{Backward, Io, Operation};
use crate::graph::{Builder, Type, Value};

/// Cosines and sines of the positions of a run, from [`Arguments::past`](super::Arguments::past) on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotations {
    theta: f64,
    channels: usize,
    positions: usize,
}

/// The rotations (t, k) of t positions and k channels, in each row k/2 cosines, then as many sines, of
/// `position · theta^(-2i/k)` (arXiv 2104.09864).
pub fn rotations(graph: &Builder, theta: f64, channels: usize, positions: usize) -> Value<'_> {
    let op = Rotations {
        theta,
        channels,
        positions,
    };
    let [table] = graph.op(op, &[]);
    table
}

impl Operation for Rotations {
    fn name(&self) -> &'static str {
        "rotations"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32([self.positions, self.channels])]
    }

    fn backward<'g>(&self, _at: &Backward<'g>) -> Vec<Option<Value<'g>>> {
        Vec::new()
    }

    /// The angles in single precision, as all executors have them.
    fn reference(&self, io: &mut Io<'_, f64>) {
        let table = rope_table(self.theta, self.channels, io.arguments().past, self.positions);
        for (y, x) in io.write().iter_mut().zip(table) {
            *y = f64::from(x);
        }
    }

    fn cpu(&self, io: &mut Io<'_, f32>) {
        let past = io.arguments().past;
        let table = rope_table(self.theta, self.channels, past, self.positions);
        io.write().copy_from_slice(&table);
    }
}
