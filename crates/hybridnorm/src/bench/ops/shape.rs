//! Sizes of the ops of a model.

use hybridnorm_kernels::activation::Activation;

use crate::model::ModelConfig;

/// Sizes of a model's ops. Not the shape of a tensor, which is `graph::Shape`.
#[derive(Debug, Clone, Copy)]
pub struct ModelShape {
    pub batch: usize,
    pub seq: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Hidden width of the dense feed-forward network; 0 if there is none.
    pub d_ff: usize,
    /// Output width of the feed-forward network's up projection, including the gate.
    pub up: usize,
    pub vocab: usize,
    pub activation: Activation,
    pub experts: Option<Experts>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    pub count: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Hidden width of each expert.
    pub width: usize,
}

impl ModelShape {
    pub fn new(config: &ModelConfig, batch: usize, seq: usize) -> Self {
        Self {
            batch,
            seq,
            d_model: config.d_model,
            heads: config.n_heads,
            kv_heads: config.n_kv_heads,
            head_dim: config.head_dim(),
            d_ff: config.d_ff,
            up: config.ffn_in_width(config.d_ff),
            vocab: config.vocab_size,
            activation: config.activation,
            experts: config.moe.as_ref().map(|moe| Experts {
                count: moe.n_experts,
                top_k: moe.top_k,
                width: moe.d_expert,
            }),
        }
    }

    /// Returns the tokens per micro-batch.
    pub fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// Returns the hidden width of the feed-forward network per token, over all its experts.
    pub fn hidden(&self) -> usize {
        let routed = self
            .experts
            .map_or(0, |experts| experts.top_k * experts.width);
        self.d_ff.max(routed)
    }

    /// Returns the width of the packed q, k and v.
    pub fn packed(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Returns the bytes of the largest op, which reads and writes at most four arrays as large as the embedding or the
    /// up projection of a gated feed-forward network: the reference holds each in double precision, and copies the
    /// inputs of an op.
    pub fn largest_bytes(&self) -> u64 {
        let widest = (2 * self.hidden()).max(self.packed()) as u64;
        let stacks = self.experts.map_or(0, |experts| {
            experts.count * self.activation.inputs(experts.width)
        });
        let table = (self.vocab.max(stacks) * self.d_model) as u64;
        let largest = table.max((self.rows() as u64).saturating_mul(widest));
        largest.saturating_mul(4 * 2 * size_of::<f64>() as u64)
    }
}
