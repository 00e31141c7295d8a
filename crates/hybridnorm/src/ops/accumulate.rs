//! Gradient accumulation: sums over micro-batches in a buffer.

use hybridnorm_kernels::elementwise;

use super::device::add_to;
use super::{DeviceOperands, Operands, Operation};
use crate::graph::{Type, Value};

/// Addition of a value to state that is updated, or overwriting of that state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accumulate {
    overwrites: bool,
}

/// Adds `x` to `sum`, state of the executor, or overwrites it if `overwrites` is set, as for the first micro-batch. It
/// runs as soon as `x` is available, so no other op of the program may read `sum`.
///
/// # Panics
/// If their types differ.
pub fn accumulate<'g>(x: Value<'g>, sum: Value<'g>, overwrites: bool) {
    let [] = x.builder().op(Accumulate { overwrites }, &[x, sum]);
}

impl Operation for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn outputs(&self, inputs: &[Type]) -> Vec<Type> {
        assert_eq!(inputs[0], inputs[1], "accumulate: types differ");
        Vec::new()
    }

    fn is_scheduled_early(&self) -> bool {
        true
    }

    fn state_inputs(&self, _inputs: usize) -> std::ops::Range<usize> {
        1..2
    }

    fn reference(&self, io: &mut Operands<'_, f64>) {
        let (x, sum) = (io.read(0), io.write());
        if self.overwrites {
            sum.fill(0.0);
        }
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }

    fn cpu(&self, io: &mut Operands<'_, f32>) {
        let (x, sum) = (io.read(0), io.write());
        match self.overwrites {
            true => sum.copy_from_slice(x),
            false => elementwise::add_to(x, sum),
        }
    }

    fn device(&self, io: &mut DeviceOperands) -> Result<(), String> {
        let (x, sum) = (io.read(0), io.write());
        match self.overwrites {
            true => io.copy(x, sum),
            false => add_to(io, x, sum),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::stateful::{Executors, inputs};
    use super::*;
    use crate::ops::Arguments;

    #[test]
    fn the_first_overwrites_and_others_add() {
        let mut executors = Executors::new(&[vec![7.0; 12]]);
        let all: Vec<_> = (1..4).flat_map(|seed| inputs(seed, [[1, 3, 4]])).collect();
        let mut expected = vec![0.0; 12];
        for (i, given) in all.into_iter().enumerate() {
            expected.iter_mut().zip(given.elements()).for_each(|(sum, x)| *sum += x);
            let found = executors.run(Arguments::default(), &[given], |g, state, x| {
                accumulate(x[0], g.state(state[0], 0, x[0].ty()), i == 0);
                Vec::new()
            });
            assert_eq!(found.reference.buffers, [expected.clone()]);
        }
    }
}
