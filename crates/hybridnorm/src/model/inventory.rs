//! What a model consists of and costs, from its configuration alone: nothing is allocated.

use std::collections::BTreeMap;

use serde::Serialize;

use super::config::ModelConfig;
use super::params::Kind;
use super::recompute::Recompute;
use crate::eager::LossSpec;
use crate::error::Result;
use crate::placement::{
    AttnInner, AttnScale, BlockSpec, Factor, Gain, HeadNorm, LearnedShape, NormKind, NormSpec,
    Resolved, Streams, Topology,
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
    /// Parameters but for those of the experts that a token does not pass through.
    pub active: u64,
    /// Parameters that a token's forward pass multiplies with: the matrices among the active ones but
    /// for the embedding table (the head counts, tied or not).
    pub active_matrices: u64,
    /// Parameters of the matrices within blocks, of all experts.
    pub inner_matrices: u64,
    /// Arithmetic of one training step per token at `seq_len`: `6 · matrix parameters`
    /// plus `3 · L · h·(k + value width) · (T + 1)` for causal attention (forward and backward).
    pub train_flops_per_token: u64,
    /// Arithmetic of generating one token after `seq_len` others: `2 · matrix parameters`
    /// plus `2 · L · h·(k + value width) · T`; with latent attention the widths are those of latents.
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
    /// AdamW's two moments, f32; see [`Inventory::with_muon`].
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

impl Inventory {
    /// The same trained with Muon, which keeps one moment of a matrix within blocks.
    pub fn with_muon(mut self) -> Self {
        self.memory.optimizer -= 4 * self.inner_matrices;
        self
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
    let (mut total, mut active, mut matrices, mut inner) = (0u64, 0u64, 0u64, 0u64);
    for entry in entries(config, &resolved) {
        let count = entry.shape.iter().map(|&n| n as u64).product::<u64>();
        let kind = Kind::of(&entry.name);
        for (role, part) in by_role(&entry, config) {
            *parameters.entry(role).or_insert(0) += part;
        }
        total += count;
        let met = match &config.moe {
            Some(moe) if is_of_experts(&entry) => count / moe.n_experts as u64 * moe.top_k as u64,
            _ => count,
        };
        active += met;
        if matches!(kind, Kind::Attention | Kind::FeedForward | Kind::Router) {
            matrices += met;
            inner += count;
        }
    }
    matrices += (config.vocab_size * config.d_model) as u64;
    // A pair of positions takes a product of a query and a key and one with a value.
    let widths = config.head_dim() + config.value_dim();
    let attention = (config.n_layers * config.n_heads * widths) as u64;
    let t = seq_len as u64;
    let tokens = (micro_batch * seq_len) as u64;
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
            gradients: 4 * total,
            optimizer: 8 * total,
            activations: tokens.saturating_mul(4 * kept_per_token(config, &resolved, recompute)),
            working: 4 * working(config, tokens),
        },
        seq_len,
        micro_batch,
    })
}

/// Arithmetic of attending to one position in generation, of all blocks. Latent attention reads latents,
/// not keys and values.
fn decode_attention(config: &ModelConfig) -> u64 {
    let widths = match &config.mla {
        None => config.head_dim() + config.value_dim(),
        Some(mla) => mla.cache_width() + mla.kv_rank,
    };
    2 * (config.n_layers * config.n_heads * widths) as u64
}

/// Whether a matrix is a stack with a part for every expert.
fn is_of_experts(entry: &Entry) -> bool {
    entry.shape.len() == 2 && entry.name.contains(".feed_forward.experts.")
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
        (Kind::Attention, "out") => vec![("attention out", all)],
        (Kind::Attention, _) => vec![("attention latents", all)],
        (Kind::Router, _) => vec![("router", all)],
        (Kind::SelectionBias, _) => vec![("selection bias", all)],
        (Kind::FeedForward, _) if is_of_experts(entry) => vec![("experts", all)],
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
        let path = format!("blocks.{layer}");
        list.sublayers(&path, config.d_model, block, resolved);
        let (inner, norm) = (&block.attn_inner, &resolved.norm);
        list.attention(&format!("{path}.attention"), config, inner, norm);
        let feed_forward = format!("{path}.feed_forward");
        list.feed_forward(&feed_forward, config, layer, block, &resolved.norm);
    }
    for (site, there) in [
        ("merge_norm", resolved.merge_norm),
        ("second_norm", resolved.streams.are_two()),
        ("final_norm", resolved.final_norm),
    ] {
        if there {
            list.norm(site, &resolved.norm, d, true);
        }
    }
    list.scale("logit_scale", resolved.logits.scale, v);
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

    fn sublayers(&mut self, path: &str, d: usize, block: &BlockSpec, resolved: &Resolved) {
        let norm = &resolved.norm;
        for (field, sub) in [("attn", &block.attn), ("ffn", &block.ffn)] {
            let norms = [
                ("second_norm", resolved.streams == Streams::Siamese),
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
                ("read_scale", sub.read_scale),
                ("in_scale", sub.in_scale),
                ("skip_scale", sub.skip_scale),
                ("out_scale", sub.out_scale),
            ] {
                self.scale(&format!("{path}.{field}.{site}"), factor, d);
            }
        }
    }

    fn attention(
        &mut self,
        path: &str,
        config: &ModelConfig,
        inner: &AttnInner<Factor>,
        norm: &NormSpec,
    ) {
        let (d, h, g) = (config.d_model, config.n_heads, config.n_kv_heads);
        let (k, value) = (config.head_dim(), config.value_dim());
        self.add(format!("{path}.out"), &[d, h * value]);
        let sites = match &config.mla {
            None => {
                self.add(format!("{path}.qkv"), &[config.qkv_width(), d]);
                [(h, k), (g, k), (g, k)]
            }
            Some(mla) => {
                let widths = mla.down_widths(h);
                let [q, kv, key] = widths;
                self.add(format!("{path}.latents"), &[widths.iter().sum(), d]);
                self.add(format!("{path}.kv_up"), &[h * (mla.nope_dim + value), kv]);
                if let Some(rank) = mla.q_rank {
                    self.add(format!("{path}.q_up"), &[h * k, rank]);
                }
                let q = if mla.q_rank.is_some() { (1, q) } else { (h, k) };
                [q, (1, key), (1, kv)]
            }
        };
        let [q, key, v] = sites;
        for (site, kind, (heads, width)) in [
            ("q_norm", inner.q_norm, q),
            ("k_norm", inner.k_norm, key),
            ("v_norm", inner.v_norm, v),
            ("ctx_norm", inner.ctx_norm, (h, value)),
        ] {
            self.head_norm(format!("{path}.{site}"), kind, norm, heads, width);
        }
        self.scale(&format!("{path}.qk_scale"), inner.qk_post_scale, g * k);
        if inner.attn_scale == AttnScale::Cosine {
            self.add(format!("{path}.tau"), &[h]);
        }
        if inner.head_gain {
            self.add(format!("{path}.head_gain"), &[h]);
        }
    }

    fn feed_forward(
        &mut self,
        path: &str,
        config: &ModelConfig,
        layer: usize,
        block: &BlockSpec,
        norm: &NormSpec,
    ) {
        let mlp = |list: &mut Self, path: &str, copies: usize, f: usize| {
            let d = config.d_model;
            list.add(format!("{path}.up"), &[copies * config.ffn_in_width(f), d]);
            list.add(format!("{path}.down"), &[copies * d, f]);
            for (site, there) in [
                ("gate_norm", block.ffn_inner.gate_norm),
                ("up_norm", block.ffn_inner.up_norm),
                ("mid_norm", block.ffn_inner.mid_norm),
            ] {
                if there {
                    list.norm(&format!("{path}.{site}"), norm, f, true);
                }
            }
            let inner = &block.ffn_inner;
            list.scale(&format!("{path}.gate_scale"), inner.gate_scale, f);
            list.scale(&format!("{path}.up_scale"), inner.up_scale, f);
        };
        let Some(moe) = config.moe_at(layer) else {
            return mlp(self, path, 1, config.d_ff);
        };
        self.add(format!("{path}.router"), &[moe.n_experts, config.d_model]);
        if moe.bias_rate.is_some() {
            self.add(format!("{path}.selection_bias"), &[moe.n_experts]);
        }
        mlp(
            self,
            &format!("{path}.experts"),
            moe.n_experts,
            moe.d_expert,
        );
        if moe.n_shared > 0 {
            mlp(self, &format!("{path}.shared"), 1, moe.d_shared());
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
    let routed = config.moe.as_ref().map_or(0, |moe| {
        moe.top_k * config.ffn_in_width(moe.d_expert).max(config.d_model)
    });
    let dense = config.ffn_in_width(config.d_ff);
    let widest = config.qkv_width().max(dense).max(routed) as u64;
    logits.saturating_add(tokens.saturating_mul(2 * widest))
}

/// Elements that the backward pass needs, per token.
fn kept_per_token(config: &ModelConfig, resolved: &Resolved, recompute: Recompute) -> u64 {
    let (d, c) = (config.d_model, config.qkv_width());
    let attended = config.n_heads * config.value_dim();
    let blocks = resolved.blocks.iter().enumerate().map(|(layer, block)| {
        let stream: usize = [&block.attn, &block.ffn]
            .iter()
            .map(|sub| {
                // Every norm keeps its input; the function keeps what it reads; and the sum.
                let norms = [sub.in_norm, sub.out_norm.is_some(), sub.post_norm];
                d * (1 + norms.into_iter().filter(|there| *there).count())
            })
            .sum();
        // Projection; its prepared copy, where something learned stands between that and the
        // scores; context; the log-sum-exp of every head.
        let inner_attn = &block.attn_inner;
        let copies = match inner_attn.qk_post_scale {
            Factor::Const(_) if inner_attn.attn_scale != AttnScale::Cosine => 1,
            _ => 3,
        };
        let latents = match &config.mla {
            None => 0,
            // Twice what the stream gives, and the projected latents beside their packed copy.
            Some(mla) => 2 * mla.down_widths(config.n_heads).iter().sum::<usize>() + c,
        };
        let attention = latents + copies * c + attended + config.n_heads;
        let context = attended
            * (usize::from(block.attn_inner.ctx_norm != HeadNorm::None)
                + usize::from(block.attn_inner.head_gain));
        let ffn = |f: usize| kept_by_mlp(config, block, f);
        let feed_forward = match config.moe_at(layer) {
            None => ffn(config.d_ff),
            Some(moe) => {
                let shared = if moe.n_shared > 0 {
                    ffn(moe.d_shared())
                } else {
                    0
                };
                moe.n_experts + moe.top_k * (1 + ffn(moe.d_expert)) + shared
            }
        };
        // A second stream is kept by every sub-layer that reads it, with its sum.
        let second = match resolved.streams {
            Streams::Single => 0,
            Streams::ResidualDual => d,
            Streams::Siamese => 4 * d,
        };
        stream + second + attention + context + feed_forward
    });
    let blocks: usize = match recompute {
        Recompute::None => blocks.sum(),
        // What enters each block, and all of the block that is being differentiated.
        Recompute::Block => d * config.n_layers + blocks.max().unwrap_or(0),
    };
    // Input and output of the final norm, and the gradient that the loss takes at once.
    (blocks + 3 * d) as u64
}

/// Elements that the backward pass of a feed-forward of inner width `f` needs, per token.
fn kept_by_mlp(config: &ModelConfig, block: &BlockSpec, f: usize) -> usize {
    let inner = &block.ffn_inner;
    let norms = [inner.gate_norm, inner.up_norm, inner.mid_norm];
    let hidden = if inner.mid_norm { f } else { 0 };
    let copies = norms.into_iter().filter(|there| *there).count();
    config.ffn_in_width(f) + hidden + f * copies
}
