//! Parameter counts and training memory of a model, from its configuration alone: nothing is allocated.

use serde::Serialize;

use super::optimizer::{Layout, OptimizerConfig};
use super::step::{self, StepBuffers, StepShape};
use crate::error::Result;
use crate::graph::Buffer;
use crate::model::inventory::{Counts, counts};
use crate::model::{Decoder, LossProgram, ModelConfig};
use crate::plan::Program;

/// Counts of a model, and the memory that training it takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// Counts of the model.
    #[serde(flatten)]
    pub counts: Counts,
    /// Training memory, in bytes.
    pub memory: Memory,
    /// Sequences in memory at once.
    pub micro_batch: usize,
}

/// Bytes that training takes, as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, f32.
    pub weights: u64,
    /// Sums of gradients over micro-batches, f32. Without gradient accumulation there are none: gradients
    /// are a part of `activations`.
    pub gradients: u64,
    /// Moments, f32: two of AdamW, one of Muon.
    pub optimizer: u64,
    /// The arena: all activations, gradients and scratch of a micro-batch, or those of its evaluation where these
    /// are more.
    pub activations: u64,
    /// Largest workspace of a kernel, on as many threads as compute here.
    pub workspace: u64,
    /// The program itself: its code and libraries, plans, and what its allocator keeps.
    pub program: u64,
}

/// Resident memory of the binary in training but for weights, moments, the arena and what grows with the number of
/// ops, where kernels allocate little: 20 MiB of code and libraries, the rest memory that the allocator keeps.
/// Measured, see docs/performance.md.
const PROGRAM: u64 = 31 << 20;
/// Memory that planning takes for each op of the programs and the allocator keeps, measured at 4 to 600 blocks.
const PLAN_OF_AN_OP: u64 = 3 << 10;

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.besides_program().saturating_add(self.program)
    }

    /// All but the program, which a process already has.
    pub fn besides_program(&self) -> u64 {
        let state = self.weights + self.gradients + self.optimizer;
        let running = self.activations.saturating_add(self.workspace);
        state.saturating_add(running)
    }
}

/// Takes the inventory of a configuration that is trained by such steps.
///
/// # Errors
/// If the configuration is not valid, or recomputation cannot keep within its budget.
pub fn inventory(
    config: &ModelConfig,
    shape: StepShape,
    optimizer: &OptimizerConfig,
) -> Result<Inventory> {
    let decoder = Decoder::new(config)?;
    // Programs name buffers; these need not exist for a plan.
    let buffers = StepBuffers {
        moments: [1, 2].map(Buffer),
        sums: (shape.grad_accum_steps > 1).then_some(Buffer(3)),
    };
    let layout = Layout::new(optimizer.clone(), decoder.registry());
    let step = step::plan(shape, &decoder, &layout, buffers)?;
    let evaluation = LossProgram::new(&decoder, [shape.micro_batch, shape.seq_len], 1.0);
    let programs = [step.all(), vec![evaluation.program()]].concat();
    let most = |bytes: fn(&Program) -> usize| {
        let bytes = programs.iter().map(|program| bytes(program));
        bytes.max().unwrap_or(0) as u64
    };
    let ops: usize = programs
        .iter()
        .map(|program| program.graph().nodes().len())
        .sum();
    let elements = decoder.registry().elements() as u64;
    Ok(Inventory {
        counts: counts(config, shape.seq_len)?,
        memory: Memory {
            weights: 4 * elements,
            gradients: buffers.sums.map_or(0, |_| 4 * elements),
            optimizer: 4 * layout.elements().iter().sum::<usize>() as u64,
            activations: most(Program::arena_bytes),
            workspace: most(Program::workspace_bytes),
            program: PROGRAM + PLAN_OF_AN_OP * ops as u64,
        },
        micro_batch: shape.micro_batch,
    })
}
