//! Parameter and FLOP counts of a model, from its configuration alone: nothing is allocated.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::ModelConfig;
use super::decoder::Decoder;
use crate::error::Result;

/// Counts of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Parameters by category, see [`ParamSpec::counts`](super::ParamSpec::counts).
    pub parameters: BTreeMap<&'static str, u64>,
    /// All parameters.
    pub total: u64,
    /// Parameters without those of experts that a token is not routed to.
    pub active: u64,
    /// Parameters in the matmuls of a token's forward pass: the active matrices without the embedding table (the
    /// output head counts, tied or not).
    pub active_matrices: u64,
    /// Parameters of the matrices within blocks, including all experts.
    #[serde(rename = "inner_matrices")]
    pub block_matrices: u64,
    /// FLOPs of one training step per token at `seq_len`: `6 · matrix parameters`
    /// plus `3 · L · h·(k + value width) · (T + 1)` for causal attention (forward and backward); with sliding windows,
    /// `(T + 1) / 2` is the mean number of keys of a query.
    pub train_flops_per_token: u64,
    /// FLOPs of decoding one token with `seq_len` cached positions: `2 · matrix parameters`
    /// plus `2 · L · h·(k + value width) · T`; with latent attention the widths are those of latents, with sliding windows
    /// T is at most the window.
    pub decode_flops_per_token: u64,
    /// Sequence length at which FLOPs are counted.
    pub seq_len: usize,
}

/// Returns the number of parameters of a configuration.
///
/// # Errors
/// If the configuration is not valid.
pub fn parameters(config: &ModelConfig) -> Result<u64> {
    Ok(Decoder::new(config)?.registry().elements() as u64)
}

/// Counts parameters and FLOPs of a configuration at sequences of `seq_len` tokens.
///
/// # Errors
/// If the configuration is not valid.
pub fn counts(config: &ModelConfig, seq_len: usize) -> Result<Counts> {
    let decoder = Decoder::new(config)?;
    let mut parameters = BTreeMap::new();
    let (mut active, mut matrices, mut inner) = (0u64, 0u64, 0u64);
    for spec in decoder.registry().iter() {
        let count = spec.elements() as u64;
        for (name, part) in &spec.counts {
            *parameters.entry(*name).or_insert(0) += part;
        }
        let active_count = match &config.moe {
            Some(moe) if spec.experts > 1 => count / moe.n_experts as u64 * moe.top_k as u64,
            _ => count,
        };
        active += active_count;
        if spec.role.is_block_matrix() {
            matrices += active_count;
            inner += count;
        }
    }
    matrices += (config.vocab_size * config.d_model) as u64;
    // Each query-key pair costs one dot product and one scaled value row.
    let widths = config.head_dim() + config.value_dim();
    let pairs: u64 = (0..config.n_layers)
        .map(|layer| query_key_pairs(config, layer, seq_len as u64))
        .sum();
    let attention = 6 * (config.n_heads * widths) as u64 * pairs / (seq_len as u64).max(1);
    Ok(Counts {
        parameters,
        total: decoder.registry().elements() as u64,
        active,
        active_matrices: matrices,
        block_matrices: inner,
        train_flops_per_token: 6 * matrices + attention,
        decode_flops_per_token: 2 * matrices + decode_attention_flops(config, seq_len as u64),
        seq_len,
    })
}

/// Returns the number of pairs of a query and a key that it attends to, in a sequence of `t` tokens.
fn query_key_pairs(config: &ModelConfig, layer: usize, t: u64) -> u64 {
    let window = config
        .window_of_layer(layer)
        .map_or(t, |window| t.min(window as u64));
    window * (window + 1) / 2 + (t - window) * window
}

/// Returns the FLOPs of attention in decoding a token with `t` cached positions, over all blocks. Latent attention
/// reads latents instead of keys and values.
fn decode_attention_flops(config: &ModelConfig, t: u64) -> u64 {
    let widths = match &config.mla {
        None => config.head_dim() + config.value_dim(),
        Some(mla) => mla.cache_width() + mla.kv_rank,
    };
    let visible = |layer: usize| {
        config
            .window_of_layer(layer)
            .map_or(t, |window| t.min(window as u64))
    };
    let positions: u64 = (0..config.n_layers).map(visible).sum();
    2 * (config.n_heads * widths) as u64 * positions
}
