//! Rotary position embedding: the table of cosines and sines of positions.

use std::sync::Arc;

use hybridnorm_kernels::qkv;

use hybridnorm_cuda as cuda;

use super::device::Grid;
use super::{BackwardContext, DeviceOperands, Operands, Operation};
use crate::graph::{Builder, Type, Value};

/// Cosines and sines of the positions of a run, from [`Arguments::past`](super::Arguments::past) on.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    pub(super) frequencies: Arc<[f64]>,
    pub(super) magnitude: f64,
    pub(super) positions: usize,
}

/// Computes the rotary table (t, k) of t positions and k channels, in each row k/2 cosines, then as many sines, of
/// `position · frequency` (arXiv 2104.09864), times `magnitude`; `frequencies` (k/2).
pub fn rope_table<'g>(
    graph: &'g Builder,
    frequencies: &[f64],
    magnitude: f64,
    positions: usize,
) -> Value<'g> {
    let op = RopeTable {
        frequencies: frequencies.into(),
        magnitude,
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
        vec![Type::f32([self.positions, 2 * self.frequencies.len()])]
    }

    fn backward<'g>(&self, _at: &BackwardContext<'g>) -> Vec<Option<Value<'g>>> {
        Vec::new()
    }

    /// Rounded to single precision, as in all executors.
    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (past, half) = (io.arguments().past, self.frequencies.len());
        for (t, row) in io.write().chunks_mut(2 * half).enumerate() {
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let (sin, cos) = ((past + t) as f64 * frequency).sin_cos();
                row[i] = f64::from((self.magnitude * cos) as f32);
                row[half + i] = f64::from((self.magnitude * sin) as f32);
            }
        }
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let past = io.arguments().past;
        let table = qkv::rope_table(&self.frequencies, self.magnitude, past, self.positions);
        io.write().copy_from_slice(&table);
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        self.record(io, None)
    }
}

impl RopeTable {
    /// Records the table of positions, by default those after the cached ones.
    pub(super) fn record(
        &self,
        io: &mut DeviceOperands,
        positions: Option<cuda::Elements>,
    ) -> Result<(), String> {
        const MAX_FREQUENCIES: usize = 128;
        let count = self.frequencies.len();
        if count > MAX_FREQUENCIES {
            return Err(format!("takes at most {MAX_FREQUENCIES} frequencies, not {count}"));
        }
        let table = io.write();
        let arguments = cuda::Arguments::default()
            .address(io.run_arguments())
            .optional_address(positions.map(|positions| positions.span))
            .address(table.span)
            .count(self.positions)
            .count(count)
            .double(self.magnitude);
        let missing = std::iter::repeat_n(&0.0, MAX_FREQUENCIES - count);
        let frequencies = self.frequencies.iter().chain(missing);
        let arguments = frequencies.fold(arguments, |all, frequency| all.double(*frequency));
        io.launch("rope_table", Grid::elements(table.len() / 2), arguments);
        Ok(())
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
                vec![rope_table(g, &[1.0, 0.2, 0.0], 1.0, 3)]
            });
            after.cpu.outputs[0].clone()
        };
        // Position 0 is not rotated.
        assert_eq!(rows(0)[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(rows(0)[6..], rows(1)[..12]);
    }
}
