//! What a model consists of and costs, from its configuration alone: nothing is allocated.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::ModelConfig;
use super::params::Kind;
use super::recompute::Recompute;
use crate::error::Result;
use crate::ops::LossSpec;
use crate::placement::{
    AttnScale, BlockSpec, Factor, Gain, HeadNorm, LearnedShape, NormKind, NormSpec, Resolved,
    Topology,
};

/// A parameter as the model will have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Module path.
    pub name: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
}

/// Counts of a model and the cost of training it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// Parameters by role.
    pub parameters: BTreeMap<&'static str, u64>,
    /// All parameters.
    pub total: u64,
    /// Parameters that a token's forward pass multiplies with: all but the embedding table (the
    /// head counts, tied or not).
    pub active_matrices: u64,
    /// Arithmetic of one training step per token at `seq_len`: `6 · matrix parameters`
    /// plus `6 · L · h·k · (T + 1)` for causal attention (forward and backward).
    pub train_flops_per_token: u64,
    /// Arithmetic of generating one token after `seq_len` others: `2 · matrix parameters`
    /// plus `4 · L · h·k · T`.
    pub decode_flops_per_token: u64,
    /// Training memory, in bytes.
    pub memory: Memory,
    /// Sequence length that the arithmetic is counted at.
    pub seq_len: usize,
    /// Sequences in memory at once.
    pub micro_batch: usize,
}

/// Bytes that training takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Weights, f32.
    pub weights: u64,
    /// Gradients, f32.
    pub gradients: u64,
    /// AdamW's two moments, f32.
    pub optimizer: u64,
    /// An estimate of what the forward pass keeps for the backward pass: every op's input once,
    /// unless it is cheaper to make again or [`Recompute`] says so.
    pub activations: u64,
    /// An estimate of what is worked on at a time: a chunk of logits, the largest op's gradient.
    pub working: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        (self.weights + self.gradients + self.optimizer)
            .saturating_add(self.activations)
            .saturating_add(self.working)
    }
}

/// Takes the inventory of a configuration, trained on `micro_batch` sequences of `seq_len` tokens
/// at a time.
///
/// # Errors
/// If the configuration is not valid.
pub fn inventory(
    config: &ModelConfig,
    micro_batch: usize,
    seq_len: usize,
    recompute: Recompute,
) -> Result<Inventory> {
    let (resolved, _) = config.resolve()?;
    let mut parameters = BTreeMap::new();
    let (mut total, mut matrices) = (0u64, 0u64);
    for entry in entries(config, &resolved) {
        let count = entry.shape.iter().map(|&n| n as u64).product::<u64>();
        let kind = Kind::of(&entry.name);
        for (role, part) in by_role(&entry, config) {
            *parameters.entry(role).or_insert(0) += part;
        }
        total += count;
        if matches!(kind, Kind::Attention | Kind::FeedForward) {
            matrices += count;
        }
    }
    matrices += (config.vocab_size * config.d_model) as u64;
    let attention = (config.n_layers * config.n_heads * config.head_dim()) as u64;
    let t = seq_len as u64;
    let tokens = (micro_batch * seq_len) as u64;
    Ok(Inventory {
        parameters,
        total,
        active_matrices: matrices,
        train_flops_per_token: 6 * matrices + 6 * attention * (t + 1),
        decode_flops_per_token: 2 * matrices + 4 * attention * t,
        memory: Memory {
            weights: 4 * total,
            gradients: 4 * total,
            optimizer: 8 * total,
            activations: tokens.saturating_mul(4 * kept_per_token(config, &resolved, recompute)),
            working: 4 * working(config, tokens),
        },
        seq_len,
        micro_batch,
    })
}

/// What the rows of a parameter are for, and how many elements each role has.
fn by_role(entry: &Entry, config: &ModelConfig) -> Vec<(&'static str, u64)> {
    let count = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    let all = count(&entry.shape);
    let heads = |n: usize| count(&[n, config.head_dim(), config.d_model]);
    let field = entry.name.rsplit('.').next().unwrap_or_default();
    match (Kind::of(&entry.name), field) {
        (Kind::Attention, "qkv") => vec![
            ("attention q", heads(config.n_heads)),
            ("attention k", heads(config.n_kv_heads)),
            ("attention v", heads(config.n_kv_heads)),
        ],
        (Kind::Attention, _) => vec![("attention out", all)],
        (Kind::FeedForward, "up") if config.activation.is_gated() => {
            vec![("feed-forward gate", all / 2), ("feed-forward up", all / 2)]
        }
        (Kind::FeedForward, "up") => vec![("feed-forward up", all)],
        (Kind::FeedForward, _) => vec![("feed-forward down", all)],
        (Kind::Embedding, _) => vec![("embedding", all)],
        (Kind::Head, _) => vec![("head", all)],
        (Kind::Norm, _) => vec![("norms", all)],
        (Kind::Scale, _) => vec![("scales", all)],
    }
}

/// Every parameter of the model, in no particular order.
pub fn entries(config: &ModelConfig, resolved: &Resolved) -> Vec<Entry> {
    let mut list = List::default();
    let (v, d) = (config.vocab_size, config.d_model);
    list.add("embedding", &[v, d]);
    list.scale("embed_scale", resolved.embed_scale, d);
    if resolved.embed_norm {
        list.norm("embed_norm", &resolved.norm, d, true);
    }
    for (layer, block) in resolved.blocks.iter().enumerate() {
        list.block(&format!("blocks.{layer}"), config, block, &resolved.norm);
    }
    if resolved.final_norm {
        list.norm("final_norm", &resolved.norm, d, true);
    }
    list.scale("logit_scale", resolved.logits.scale, d);
    if !config.tie_embeddings {
        list.add("head", &[v, d]);
    }
    list.0
}

#[derive(Default)]
struct List(Vec<Entry>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(Entry {
            name: name.into(),
            shape: shape.to_vec(),
        });
    }

    fn scale(&mut self, path: &str, factor: Factor, width: usize) {
        if let Factor::Learned { shape, .. } = factor {
            let n = match shape {
                LearnedShape::Scalar => 1,
                LearnedShape::Vector => width,
            };
            self.add(format!("{path}.factor"), &[n]);
        }
    }

    fn norm(&mut self, path: &str, spec: &NormSpec, affine_width: usize, affine: bool) {
        if affine && spec.gain != Gain::None {
            self.add(format!("{path}.gain"), &[affine_width]);
        }
        if affine && spec.bias {
            self.add(format!("{path}.bias"), &[affine_width]);
        }
        if matches!(spec.kind, NormKind::Dyt | NormKind::Derf) {
            self.add(format!("{path}.alpha"), &[1]);
        }
        if spec.kind == NormKind::Derf {
            self.add(format!("{path}.shift"), &[1]);
        }
    }

    fn head_norm(&mut self, path: String, kind: HeadNorm, spec: &NormSpec, heads: usize, k: usize) {
        match kind {
            HeadNorm::None => {}
            HeadNorm::PerHead => self.norm(&path, spec, k, true),
            HeadNorm::PerHeadOwn | HeadNorm::Full => self.norm(&path, spec, heads * k, true),
            HeadNorm::PerHeadPlain | HeadNorm::FullPlain => self.norm(&path, spec, 0, false),
        }
    }

    fn block(&mut self, path: &str, config: &ModelConfig, block: &BlockSpec, norm: &NormSpec) {
        let (d, f) = (config.d_model, config.d_ff);
        let (h, g, k) = (config.n_heads, config.n_kv_heads, config.head_dim());
        for (field, sub) in [("attn", &block.attn), ("ffn", &block.ffn)] {
            let norms = [
                ("in_norm", sub.in_norm),
                ("out_norm", sub.out_norm.is_some()),
                ("post_norm", sub.post_norm),
            ];
            for (site, _) in norms.into_iter().filter(|(_, there)| *there) {
                // With one shared input norm, the feed-forward reads attention's.
                if (field, site, block.topology) == ("ffn", "in_norm", Topology::ParallelShared) {
                    continue;
                }
                self.norm(&format!("{path}.{field}.{site}"), norm, d, true);
            }
            for (site, factor) in [
                ("in_scale", sub.in_scale),
                ("skip_scale", sub.skip_scale),
                ("out_scale", sub.out_scale),
            ] {
                self.scale(&format!("{path}.{field}.{site}"), factor, d);
            }
        }
        let inner = &block.attn_inner;
        let attention = format!("{path}.attention");
        self.add(format!("{attention}.qkv"), &[config.qkv_width(), d]);
        self.add(format!("{attention}.out"), &[d, h * k]);
        for (site, kind, heads) in [
            ("q_norm", inner.q_norm, h),
            ("k_norm", inner.k_norm, g),
            ("v_norm", inner.v_norm, g),
            ("ctx_norm", inner.ctx_norm, h),
        ] {
            self.head_norm(format!("{attention}.{site}"), kind, norm, heads, k);
        }
        self.scale(&format!("{attention}.qk_scale"), inner.qk_post_scale, k);
        if inner.attn_scale == AttnScale::Cosine {
            self.add(format!("{attention}.tau"), &[h]);
        }
        if inner.head_gain {
            self.add(format!("{attention}.head_gain"), &[h]);
        }
        let feed_forward = format!("{path}.feed_forward");
        self.add(format!("{feed_forward}.up"), &[config.ffn_in_width(), d]);
        self.add(format!("{feed_forward}.down"), &[d, f]);
        for (site, there) in [
            ("gate_norm", block.ffn_inner.gate_norm),
            ("up_norm", block.ffn_inner.up_norm),
            ("mid_norm", block.ffn_inner.mid_norm),
        ] {
            if there {
                self.norm(&format!("{feed_forward}.{site}"), norm, f, true);
            }
        }
    }
}

/// Elements that are worked on at a time.
fn working(config: &ModelConfig, tokens: u64) -> u64 {
    let loss = LossSpec {
        width: config.d_model,
        vocab: config.vocab_size,
        logit_scale: 1.0,
        softcap: None,
        z_loss: 0.0,
        divisor: 1.0,
    };
    let logits = loss.scratch(usize::try_from(tokens).unwrap_or(usize::MAX)) as u64;
    // A gradient and what was made again for it.
    let widest = config.qkv_width().max(config.ffn_in_width()) as u64;
    logits.saturating_add(tokens.saturating_mul(2 * widest))
}

/// Elements that the backward pass needs, per token.
fn kept_per_token(config: &ModelConfig, resolved: &Resolved, recompute: Recompute) -> u64 {
    let (d, f, c) = (config.d_model, config.d_ff, config.qkv_width());
    let attended = config.n_heads * config.head_dim();
    let blocks = resolved.blocks.iter().map(|block| {
        let stream: usize = [&block.attn, &block.ffn]
            .iter()
            .map(|sub| {
                // Every norm keeps its input; the function keeps what it reads; and the sum.
                let norms = [sub.in_norm, sub.out_norm.is_some(), sub.post_norm];
                d * (1 + norms.into_iter().filter(|there| *there).count())
            })
            .sum();
        let inner = &block.ffn_inner;
        let ffn_norms = [inner.gate_norm, inner.up_norm, inner.mid_norm];
        // Projection; its prepared copy, where something learned stands between that and the
        // scores; context; the log-sum-exp of every head.
        let inner_attn = &block.attn_inner;
        let copies = match inner_attn.qk_post_scale {
            Factor::Const(_) if inner_attn.attn_scale != AttnScale::Cosine => 1,
            _ => 3,
        };
        let attention = copies * c + attended + config.n_heads;
        let context = attended
            * (usize::from(block.attn_inner.ctx_norm != HeadNorm::None)
                + usize::from(block.attn_inner.head_gain));
        let hidden = if inner.mid_norm { f } else { 0 };
        let ffn = config.ffn_in_width()
            + hidden
            + f * ffn_norms.into_iter().filter(|there| *there).count();
        stream + attention + context + ffn
    });
    let blocks: usize = match recompute {
        Recompute::None => blocks.sum(),
        // What enters each block, and all of the block that is being differentiated.
        Recompute::Block => d * config.n_layers + blocks.max().unwrap_or(0),
    };
    // Input and output of the final norm, and the gradient that the loss takes at once.
    (blocks + 3 * d) as u64
}
