//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

use super::super::norm::{Norm, norm};
use super::super::parameter_builder::{Matrix, ParameterBuilder, Part};
use super::super::registry::{Param, Role};
use super::{AttentionOutput, OutputProjection, PositionContext, head_norm, logit_scale};
use crate::graph::Value;
use crate::model::MlaConfig;
use crate::ops;
use crate::placement::{self, ResolvedScale};
use hybridnorm_kernels::attention::{AttentionConfig, LatentAttentionConfig};
use hybridnorm_kernels::latent::MlaHeads;
use hybridnorm_kernels::matmul::Precision;

/// Causal attention whose keys and values are all projected from one latent per position:
///
/// ```text
/// [c_q | c_kv | k_r] = W_down · u          c_q, c_kv, k_r normalized per placement
/// q = W_q · c_q                            a head's query: [nope part | rotated]
/// [k_c | v] = W_kv · c_kv                  a head's key: [k_c | rotated k_r]
/// W_out · ctx_norm(softmax(scale · q kᵀ) v)
/// ```
///
/// Decoding caches only `c_kv` and the rotated `k_r`: `W_kv` is absorbed into the query and the context.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiHeadLatentAttention {
    /// Projection of the sub-layer input, rows `[c_q | c_kv | k_r]`; without a query latent, the first rows are the
    /// queries of all heads.
    pub(in super::super) latents: Param,
    /// Norm of the query latent, or of the queries if there is none.
    pub q_norm: Option<Norm>,
    /// Norm of the rotary key.
    pub k_norm: Option<Norm>,
    /// Norm of the key/value latent.
    pub v_norm: Option<Norm>,
    /// Up-projection of the query latent, (h·k, q_rank).
    pub(in super::super) q_up: Option<Param>,
    /// Up-projection of the key/value latent, rows `[k_c | v]` head by head.
    pub(in super::super) kv_up: Param,
    output_projection: OutputProjection,
    heads: MlaHeads,
    /// Rows of `latents` by output.
    widths: [usize; 3],
    scale: f32,
    softcap: Option<f32>,
    clip: Option<f64>,
}

impl MultiHeadLatentAttention {
    /// Declares the attention of a block.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>, mla: &MlaConfig) -> Self {
        let inner = builder.attention().clone();
        let (d, h) = (builder.config.d_model, builder.config.n_heads);
        let widths = mla.down_widths(h);
        let [q_width, kv_width, key_width] = widths;
        let parts = vec![
            part("latents.q", q_width, placement::Projection::Q),
            part("latents.kv", kv_width, placement::Projection::K),
            part("latents.k", key_width, placement::Projection::K),
        ];
        let latents = builder.add_matrix(matrix("attention.latents", "latents", d, parts, 1));
        let q_heads = if mla.q_rank.is_some() { 1 } else { h };
        let q_head = q_width / q_heads;
        let q_norm = head_norm(builder, "attention.q_norm", inner.q_norm, q_heads, q_head);
        let k_norm = head_norm(builder, "attention.k_norm", inner.k_norm, 1, key_width);
        let v_norm = head_norm(builder, "attention.v_norm", inner.v_norm, 1, kv_width);
        let q_up = mla.q_rank.map(|rank| {
            let parts = vec![part("q_up", h * mla.head_dim(), placement::Projection::Q)];
            builder.add_matrix(matrix("attention.q_up", "q_up", rank, parts, 1))
        });
        let parts = vec![
            part("kv_up.k", h * mla.nope_dim, placement::Projection::K),
            part("kv_up.v", h * mla.v_dim, placement::Projection::V),
        ];
        let kv_up = builder.add_matrix(matrix("attention.kv_up", "kv_up", mla.kv_rank, parts, h));
        // Queries and keys are both multiplied by it, so the logits are multiplied by its square.
        let ResolvedScale::Const(qk_scale) = inner.qk_post_scale else {
            unreachable!("validation rejects learned scales")
        };
        Self {
            latents,
            q_norm,
            k_norm,
            v_norm,
            q_up,
            kv_up,
            output_projection: OutputProjection::new(builder, h, mla.v_dim),
            heads: MlaHeads {
                heads: h,
                nope: mla.nope_dim,
                rope: mla.rope_dim,
                value: mla.v_dim,
            },
            widths,
            scale: (logit_scale(inner.attn_scale, mla.head_dim()) * qk_scale.powi(2)) as f32,
            softcap: inner.attn_softcap.map(|cap| cap as f32),
            clip: inner.clip_qkv,
        }
    }

    /// Computes attention; see [`Attention::forward`](super::Attention::forward).
    pub(super) fn forward<'g>(
        &self,
        u_btd: Value<'g>,
        positions: &PositionContext<'g>,
    ) -> AttentionOutput<'g> {
        let g = u_btd.builder();
        let config = self.attention_config(u_btd);
        let rope_table = positions.rope_table;
        let [q, c_kv, k_r] = self.project(u_btd);
        if let Some(cache) = positions.cache {
            positions.append(ops::concat(&[c_kv, ops::rotate(k_r, rope_table)]), 0, cache);
            // Full keys and values of a prompt take fewer FLOPs than absorbed projections.
            if !positions.is_prefill {
                let kv_up = self.kv_up.value(g);
                let q = ops::absorbed_queries(q, kv_up, rope_table, self.heads);
                let context = positions.attend_latents(q, cache, self.cached_config(&config));
                let context = ops::project_latent_context(context, kv_up, self.heads);
                return AttentionOutput {
                    output: self.output_projection.forward(context),
                    packed: None,
                };
            }
        }
        let kv = ops::linear(c_kv, self.kv_up.value(g));
        let packed = ops::latent_heads(q, kv, k_r, rope_table, self.heads);
        AttentionOutput {
            output: self
                .output_projection
                .forward(ops::attention(packed, config)),
            packed: Some((packed, config)),
        }
    }

    /// Returns queries, the key/value latent and the rotary key, before rotation.
    fn project<'g>(&self, u_btd: Value<'g>) -> [Value<'g>; 3] {
        let g = u_btd.builder();
        let rows = ops::linear(u_btd, self.latents.value(g));
        let rows = match self.clip {
            Some(clip) => ops::clamp(rows, clip),
            None => rows,
        };
        let [c_q, c_kv, k_r] = ops::split(rows, self.widths);
        let c_q = norm(&self.q_norm, c_q);
        let q = match self.q_up {
            Some(q_up) => ops::linear(c_q, q_up.value(g)),
            None => c_q,
        };
        [q, norm(&self.v_norm, c_kv), norm(&self.k_norm, k_r)]
    }

    fn attention_config(&self, u_btd: Value<'_>) -> AttentionConfig {
        let &[batch, seq, _] = u_btd.shape().sizes() else {
            panic!(
                "attention: the input is {:?}, expected (b, t, d)",
                u_btd.shape()
            )
        };
        let MlaHeads {
            heads,
            nope,
            rope,
            value,
        } = self.heads;
        AttentionConfig {
            batch,
            seq,
            heads,
            kv_heads: heads,
            head_dim: nope + rope,
            value_dim: value,
            scale: self.scale,
            softcap: self.softcap,
            window: None,
            precision: Precision::F32,
        }
    }

    /// Returns the attention of absorbed queries over cached latents.
    fn cached_config(&self, config: &AttentionConfig) -> LatentAttentionConfig {
        LatentAttentionConfig {
            batch: config.batch,
            seq: config.seq,
            heads: config.heads,
            latent: self.widths[1],
            rope: self.heads.rope,
            scale: config.scale,
            softcap: config.softcap,
        }
    }
}

/// Returns a part of an attention matrix.
fn part(name: &str, rows: usize, projection: placement::Projection) -> Part {
    Part {
        path: format!("attention.{name}"),
        rows,
        projection,
        count_category: "attention latents",
    }
}

/// Returns an attention matrix that does not write the residual stream.
fn matrix<'a>(
    path: &'a str,
    label: &'static str,
    columns: usize,
    parts: Vec<Part>,
    n_interleaved_groups: usize,
) -> Matrix<'a> {
    Matrix {
        path,
        label,
        role: Role::Attention,
        columns,
        parts,
        n_interleaved_groups,
        writes_residual: false,
        experts: 1,
    }
}
