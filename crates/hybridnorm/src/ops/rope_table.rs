//! Rotary position embedding: the table of cosines and sines of positions.

use hybridnorm_kernels::qkv;

use super::{BackwardContext, Operands, Operation};
use crate::graph::{Builder, Type, Value};

/// Cosines and sines of the positions of a run, from [`Arguments::past`](super::Arguments::past) on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeTable {
    theta: f64,
    channels: usize,
    positions: usize,
}

/// Computes the rotary table (t, k) of t positions and k channels, in each row k/2 cosines, then as many sines, of
/// `position · theta^(-2i/k)` (arXiv 2104.09864).
pub fn rope_table(graph: &Builder, theta: f64, channels: usize, positions: usize) -> Value<'_> {
    let op = RopeTable {
        theta,
        channels,
        positions,
    };
    let [table] = graph.op(op, &[]);
    table
}

impl Operation for RopeTable {
    fn name(&self) -> &'static str {
        "rotations"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![Type::f32([self.positions, self.channels])]
    }

    fn backward<'g>(&self, _at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        Vec::new()
    }

    /// Rounded to single precision, as in all executors.
    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (past, half) = (io.arguments().past, self.channels / 2);
        for (t, row) in io.write().chunks_mut(self.channels).enumerate() {
            for i in 0..half {
                let frequency = self.theta.powf(-((2 * i) as f64) / self.channels as f64);
                let (sin, cos) = ((past + t) as f64 * frequency).sin_cos();
                row[i] = f64::from(cos as f32);
                row[half + i] = f64::from(sin as f32);
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let past = io.arguments().past;
        let table = qkv::rope_table(self.theta, self.channels, past, self.positions);
        io.write().copy_from_slice(&table);
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::{Executors, arguments_after};
    use super::*;

    #[test]
    fn positions_start_at_the_number_of_cached_positions() {
        let rows = |past: usize| {
            let after = Executors::new(&[]).run(arguments_after(past), &[], |g, _, _| {
                vec![rope_table(g, 100.0, 6, 3)]
            });
            after.cpu.outputs[0].clone()
        };
        // Position 0 is not rotated.
        assert_eq!(rows(0)[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(rows(0)[6..], rows(1)[..12]);
    }
}
