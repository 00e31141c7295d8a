//! What a model consists of and costs, from its configuration alone: nothing is allocated.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::ModelConfig;
use super::decoder::Decoder;
use crate::error::Result;
use crate::graph::Builder;
use crate::passes;
use crate::plan::{Options, Program, Recompute};

/// Counts of a model and the cost of training it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// Parameters by role.
    pub parameters: BTreeMap<&'static str, u64>,
    /// All parameters.
    pub total: u64,
    /// Parameters but for those of the experts that a token does not pass through.
    pub active: u64,
    /// Parameters that a token's forward pass multiplies with: the matrices among the active ones but
    /// for the embedding table (the head counts, tied or not).
    pub active_matrices: u64,
    /// Parameters of the matrices within blocks, of all experts.
    pub inner_matrices: u64,
    /// FLOPs of one training step per token at `seq_len`: `6 · matrix parameters`
    /// plus `3 · L · h·(k + value width) · (T + 1)` for causal attention (forward and backward).
    pub train_flops_per_token: u64,
    /// FLOPs of generating one token after `seq_len` others: `2 · matrix parameters`
    /// plus `2 · L · h·(k + value width) · T`; with latent attention the widths are those of latents.
    pub decode_flops_per_token: u64,
    /// Training memory, in bytes.
    pub memory: Memory,
    /// Sequence length that the FLOPs are counted at.
    pub seq_len: usize,
    /// Sequences in memory at once.
    pub micro_batch: usize,
}

/// How a model is trained, as far as memory is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Micro-batches of an optimizer step.
    pub grad_accum_steps: usize,
    /// Which activations the backward pass recomputes.
    pub recompute: Recompute,
}

/// Bytes that training takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, f32.
    pub weights: u64,
    /// Sums of gradients over micro-batches, f32. Without gradient accumulation there are none: gradients
    /// are a part of `activations`.
    pub gradients: u64,
    /// AdamW's two moments, f32; see [`Inventory::with_muon`].
    pub optimizer: u64,
    /// The arena of a forward and backward pass: all activations, gradients and scratch of a micro-batch,
    /// as planned.
    pub activations: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        (self.weights + self.gradients + self.optimizer).saturating_add(self.activations)
    }
}

impl Inventory {
    /// The same trained with Muon, which keeps one moment of a matrix within blocks.
    pub fn with_muon(mut self) -> Self {
        self.memory.optimizer -= 4 * self.inner_matrices;
        self
    }
}

/// Number of parameters of a configuration.
///
/// # Errors
/// If the configuration is not valid.
pub fn parameters(config: &ModelConfig) -> Result<u64> {
    Ok(Decoder::new(config)?.registry().elements() as u64)
}

/// Takes the inventory of a configuration that is trained so.
///
/// # Errors
/// If the configuration is not valid.
pub fn inventory(config: &ModelConfig, training: &Training) -> Result<Inventory> {
    let decoder = Decoder::new(config)?;
    let mut parameters = BTreeMap::new();
    let (mut active, mut matrices, mut inner, mut trained) = (0u64, 0u64, 0u64, 0u64);
    for spec in decoder.registry().iter() {
        let count = spec.elements() as u64;
        for (name, part) in &spec.counts {
            *parameters.entry(*name).or_insert(0) += part;
        }
        let met = match &config.moe {
            Some(moe) if spec.experts > 1 => count / moe.n_experts as u64 * moe.top_k as u64,
            _ => count,
        };
        active += met;
        trained += if spec.role.is_trained() { count } else { 0 };
        if spec.role.is_inner_matrix() {
            matrices += met;
            inner += count;
        }
    }
    matrices += (config.vocab_size * config.d_model) as u64;
    let total = decoder.registry().elements() as u64;
    let arena = arena_bytes(&decoder, training);
    training.recompute.check(arena)?;
    // A pair of positions takes a product of a query and a key and one with a value.
    let widths = config.head_dim() + config.value_dim();
    let attention = (config.n_layers * config.n_heads * widths) as u64;
    let t = training.seq_len as u64;
    Ok(Inventory {
        parameters,
        total,
        active,
        active_matrices: matrices,
        inner_matrices: inner,
        train_flops_per_token: 6 * matrices + 3 * attention * (t + 1),
        decode_flops_per_token: 2 * matrices + decode_attention(config) * t,
        memory: Memory {
            weights: 4 * total,
            gradients: if training.grad_accum_steps > 1 {
                4 * total
            } else {
                0
            },
            optimizer: 8 * trained,
            activations: arena as u64,
        },
        seq_len: training.seq_len,
        micro_batch: training.micro_batch,
    })
}

/// Bytes of the arena of a pass.
fn arena_bytes(decoder: &Decoder, training: &Training) -> usize {
    let g = Builder::new();
    let shape = (training.micro_batch, training.seq_len);
    let ids = Decoder::tokens(&g, "ids", shape.0, shape.1);
    let targets = Decoder::tokens(&g, "targets", shape.0, shape.1);
    let losses = decoder.losses(ids, targets, 1.0);
    let groups = decoder.registry().groups();
    let trained = groups.filter(|(_, specs)| specs[0].role.is_trained());
    let values: Vec<_> = trained.map(|(param, _)| param.value(&g)).collect();
    let gradients = passes::gradients(losses.objective, &values);
    let mut outputs = vec![losses.objective.id(), losses.cross_entropy.id()];
    let ids: Vec<_> = gradients
        .iter()
        .flatten()
        .map(|gradient| gradient.id())
        .collect();
    match training.grad_accum_steps {
        1 => outputs.extend(ids),
        _ => {
            let registry = decoder.registry();
            for (gradient, (param, _)) in gradients.iter().flatten().zip(
                registry
                    .groups()
                    .filter(|(_, specs)| specs[0].role.is_trained()),
            ) {
                crate::ops::accumulate(*gradient, param.value(&g), false);
            }
        }
    }
    let options = Options {
        recompute: training.recompute,
        ..Options::default()
    };
    Program::new(g.finish(), &outputs, options).arena_bytes()
}

/// FLOPs of attending to one position in generation, of all blocks. Latent attention reads latents,
/// not keys and values.
fn decode_attention(config: &ModelConfig) -> u64 {
    let widths = match &config.mla {
        None => config.head_dim() + config.value_dim(),
        Some(mla) => mla.cache_width() + mla.kv_rank,
    };
    2 * (config.n_layers * config.n_heads * widths) as u64
}
