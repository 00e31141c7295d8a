//! The forward pass of a batch with its losses, as a program.

use super::decoder::Decoder;
use super::lru_cache::LruCache;
use super::model::BatchLosses;
use crate::error::Result;
use crate::exec::{Executor, TensorRef};
use crate::graph::{Builder, ValueId};
use crate::ops::Arguments;
use crate::plan::Program;

/// Program for the losses of ids and targets (b, t).
pub(crate) struct LossProgram {
    program: Program,
    objective: ValueId,
    cross_entropy: ValueId,
}

/// Programs of the most recently used shapes and divisors.
pub(super) type LossPrograms = LruCache<([usize; 2], u64), LossProgram>;

impl LossPrograms {
    /// Returns the program of a shape (b, t) and a divisor; plans it if it is new.
    pub(super) fn get_or_plan(
        &mut self,
        decoder: &Decoder,
        shape: [usize; 2],
        divisor: f64,
    ) -> &LossProgram {
        let plan = || LossProgram::new(decoder, shape, divisor);
        self.get_or_insert_with((shape, divisor.to_bits()), plan)
    }
}

impl LossProgram {
    /// Plans the program; losses are sums over targets divided by `divisor`.
    pub(crate) fn new(decoder: &Decoder, [batch, seq]: [usize; 2], divisor: f64) -> Self {
        let g = Builder::new();
        let ids = Decoder::tokens(&g, "ids", batch, seq);
        let targets = Decoder::tokens(&g, "targets", batch, seq);
        let losses = decoder.losses(ids, targets, divisor);
        let (objective, cross_entropy) = (losses.objective.id(), losses.cross_entropy.id());
        let outputs = [objective, cross_entropy];
        Self {
            program: Program::new(g.finish(), &outputs, decoder.plan_options()),
            objective,
            cross_entropy,
        }
    }

    pub(crate) fn program(&self) -> &Program {
        &self.program
    }

    /// Runs the program; returns the losses.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn run(
        &self,
        executor: &mut dyn Executor,
        inputs: &[i32],
        targets: &[i32],
    ) -> Result<BatchLosses> {
        let given = [
            ("ids", TensorRef::I32(inputs)),
            ("targets", TensorRef::I32(targets)),
        ];
        executor.run(&self.program, Arguments::default(), &given)?;
        let one = |id| executor.output(&self.program, id).into_f64()[0];
        Ok(BatchLosses {
            objective: one(self.objective),
            cross_entropy: one(self.cross_entropy),
        })
    }
}
