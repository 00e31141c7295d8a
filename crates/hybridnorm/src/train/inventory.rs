//! Parameter counts and training memory of a model, from its configuration alone: nothing is allocated.

use serde::Serialize;

use super::optimizer::{Layout, OptimizerConfig};
use super::step::{self, StepBuffers, StepShape};
use crate::error::Result;
use crate::graph::Buffer;
use crate::model::inventory::{Counts, counts};
use crate::model::{Decoder, ModelConfig};

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
    /// The arena of a step: all activations, gradients and scratch of a micro-batch.
    pub activations: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        (self.weights + self.gradients + self.optimizer).saturating_add(self.activations)
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
    let programs = step::plan(shape, &decoder, &layout, buffers)?;
    let elements = decoder.registry().elements() as u64;
    Ok(Inventory {
        counts: counts(config, shape.seq_len)?,
        memory: Memory {
            weights: 4 * elements,
            gradients: buffers.sums.map_or(0, |_| 4 * elements),
            optimizer: 4 * layout.elements().iter().sum::<usize>() as u64,
            activations: programs.arena_bytes() as u64,
        },
        micro_batch: shape.micro_batch,
    })
}
