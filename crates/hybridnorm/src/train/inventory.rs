//! Parameter counts and training memory of a model, from its configuration alone: nothing is allocated.

use std::collections::BTreeSet;

use serde::Serialize;

use super::optimizer::{Layout, OptimizerConfig};
use super::step::{self, StepBuffers, StepShape};
use crate::error::Result;
use crate::graph::Buffer;
use crate::model::counts::{Counts, counts};
use crate::model::{Decoder, LossProgram, ModelConfig};
use crate::plan::{self, Program, RoundedRange};

/// Counts of a model, and its training memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inventory {
    /// Counts of the model.
    #[serde(flatten)]
    pub counts: Counts,
    /// Training memory, in bytes.
    pub memory: Memory,
    /// Sequences per micro-batch.
    pub micro_batch: usize,
    /// Precision of the training step, such as `bf16, residual stream in f32`.
    pub precision: String,
}

/// Planned training memory by purpose, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// Weights, f32.
    pub weights: u64,
    /// Copies of the weights of matmuls, bf16; 0 in f32.
    pub weight_copies: u64,
    /// Sums of gradients over micro-batches, f32; 0 without gradient accumulation, where gradients are part of
    /// `activations`.
    pub gradients: u64,
    /// Moments, f32: two for AdamW, one for Muon.
    pub optimizer: u64,
    /// Arena: all activations, gradients and scratch of a micro-batch, or those of its evaluation if larger.
    pub activations: u64,
    /// Largest kernel workspace, for the current number of threads.
    pub workspace: u64,
    /// The process itself: code, libraries, plans, and memory retained by the allocator.
    #[serde(rename = "program")]
    pub process: u64,
}

/// Resident memory of the binary in training, excluding weights, moments, the arena and memory that grows with the
/// number of ops, for kernels with little workspace: 20 MiB of code and libraries, the rest retained by the allocator.
/// Measured, see docs/performance.md.
const PROCESS_BYTES: u64 = 31 << 20;
/// Memory per op of planning the programs, which the allocator retains; measured at 4 to 600 blocks.
const PLAN_BYTES_PER_OP: u64 = 3 << 10;

impl Memory {
    /// Returns the total.
    pub fn total(&self) -> u64 {
        self.total_without_process().saturating_add(self.process)
    }

    /// Returns the total without `process`, which a running process already includes.
    pub fn total_without_process(&self) -> u64 {
        let state = self.weights + self.weight_copies + self.gradients + self.optimizer;
        let running = self.activations.saturating_add(self.workspace);
        state.saturating_add(running)
    }
}

/// Computes the inventory of a configuration trained with steps of this shape.
///
/// # Errors
/// If the configuration is invalid, or recomputation cannot stay within its budget.
pub fn inventory(
    config: &ModelConfig,
    shape: StepShape,
    optimizer: &OptimizerConfig,
) -> Result<Inventory> {
    let mut decoder = Decoder::new(config)?;
    // Of evaluations.
    let options = plan::Options::default().with_precision(shape.precision);
    decoder.set_plan_options(options.with_keep_rounded_weights(shape.keep_rounded_weights));
    // Programs refer to buffers, which need not exist for planning.
    let buffers = StepBuffers {
        moments: [1, 2].map(Buffer),
        sums: (shape.grad_accum_steps > 1).then_some(Buffer(3)),
    };
    let layout = Layout::new(optimizer.clone(), decoder.registry());
    let step = step::plan(shape, &decoder, &layout, buffers)?;
    let evaluation = LossProgram::new(&decoder, [shape.micro_batch, shape.seq_len], 1.0);
    let programs = [step.all(), vec![evaluation.program()]].concat();
    let max_bytes = |bytes: fn(&Program) -> usize| {
        let bytes = programs.iter().map(|program| bytes(program));
        bytes.max().unwrap_or(0) as u64
    };
    let ops: usize = programs
        .iter()
        .map(|program| program.graph().nodes().len())
        .sum();
    let copies = programs.iter().flat_map(|program| program.rounded_ranges());
    let copies: BTreeSet<&RoundedRange> = copies.collect();
    let elements = decoder.registry().elements() as u64;
    Ok(Inventory {
        counts: counts(config, shape.seq_len)?,
        memory: Memory {
            weights: 4 * elements,
            weight_copies: copies.into_iter().map(RoundedRange::bytes).sum::<usize>() as u64,
            gradients: buffers.sums.map_or(0, |_| 4 * elements),
            optimizer: 4 * layout.elements().iter().sum::<usize>() as u64,
            activations: max_bytes(Program::arena_bytes),
            workspace: max_bytes(Program::workspace_bytes),
            process: PROCESS_BYTES + PLAN_BYTES_PER_OP * ops as u64,
        },
        micro_batch: shape.micro_batch,
        precision: shape.precision.to_string(),
    })
}
