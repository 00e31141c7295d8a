//! Positions of the tokens of a run, for learned position embeddings.

use super::device::CacheRows;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Builder, Type, Value};

/// Positions of the tokens of a run, from [`Arguments::past`](super::Arguments::past) on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Positions {
    batch: usize,
    seq: usize,
}

/// Returns the positions (b, t) of the tokens: `past`, `past + 1`, … in every sequence.
pub fn positions(graph: &Builder, batch: usize, seq: usize) -> Value<'_> {
    let [y] = graph.op(Positions { batch, seq }, &[]);
    y
}

impl Positions {
    fn fill(&self, past: usize, positions: &mut [i32]) {
        for (index, position) in positions.iter_mut().enumerate() {
            *position = (past + index % self.seq) as i32;
        }
    }
}

impl Operation for Positions {
    fn name(&self) -> &'static str {
        "positions"
    }

    fn outputs(&self, _inputs: &[Type]) -> Vec<Type> {
        vec![Type::i32([self.batch, self.seq])]
    }

    fn backward<'g>(&self, _at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        Vec::new()
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        self.fill(io.arguments().past, io.write_ints());
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        self.fill(io.arguments().past, io.write_ints());
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let positions = io.write();
        CacheRows::of_sequences(io, positions.len(), self.seq).positions(io, positions);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::embedding;
    use super::super::stateful::{Executors, arguments_after};
    use super::super::testing::floats;
    use super::*;

    #[test]
    fn positions_start_at_the_number_of_cached_positions() {
        let given = [floats(1, [8, 3])];
        let after = Executors::new(&[]).run(arguments_after(2), &given, |g, _, x| {
            vec![embedding(positions(g, 2, 3), x[0])]
        });
        let rows = &after.reference.outputs[0];
        assert_eq!(rows[..9], given[0].elements()[6..15]);
        assert_eq!(rows[..9], rows[9..]);
    }
}
