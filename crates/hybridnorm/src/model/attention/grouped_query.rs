//! Grouped-query attention.
//!
//! HybridNorm (arXiv 2503.04598) normalizes queries, keys and values here: `q_norm`, `k_norm` and `v_norm`, per head,
//! applied by [`ops::qkv_transform`].

use super::super::bias::bias;
use super::super::norm::{Norm, l2_norm_config};
use super::super::parameter_builder::{Matrix, ParameterBuilder, Part};
use super::super::registry::{Param, Role};
use super::super::scale::Scale;
use super::{AttentionOutput, OutputProjection, PositionContext, head_norm, logit_scale};
use crate::graph::Value;
use crate::ops;
use crate::placement::{self, AttnScale};
use hybridnorm_kernels::attention::AttentionConfig;
use hybridnorm_kernels::matmul::Precision;
use hybridnorm_kernels::qkv::QkvTransform;

/// Minimum temperature of cosine attention (Swin-v2).
const COSINE_TAU_MIN: f64 = 0.01;
/// Initial temperature of cosine attention.
const COSINE_TAU_INIT: f64 = 0.1;

/// Causal grouped-query attention with rotary embedding:
/// `W_out · ctx_norm(softmax(scale · q kᵀ) v)`, where `[q | k | v] = W_qkv · u`, clamped, normalized, rotated and
/// scaled. Both projections may have a bias, and a sliding window may limit the keys.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedQueryAttention {
    /// Packed projection, rows `[q heads | k heads | v heads]`; ((h + 2g)·k, d).
    pub(in super::super) qkv: Param,
    pub(in super::super) qkv_bias: Option<Param>,
    /// Norm of queries.
    pub q_norm: Option<Norm>,
    /// Norm of keys.
    pub k_norm: Option<Norm>,
    /// Norm of values.
    pub v_norm: Option<Norm>,
    /// Scale of normalized queries and keys.
    pub qk_scale: Scale,
    /// Temperature of cosine attention, per head.
    tau: Option<Param>,
    output_projection: OutputProjection,
    qkv_transform: QkvTransform,
    scale: f32,
    softcap: Option<f32>,
    window: Option<usize>,
}

impl GroupedQueryAttention {
    /// Declares the attention of a block.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>) -> Self {
        let config = builder.config;
        let inner = builder.attention().clone();
        let (h, g, k) = (config.n_heads, config.n_kv_heads, config.head_dim());
        let qkv = packed_projection(builder);
        let qkv_bias = builder.add_bias("attention.qkv_bias", (h + 2 * g) * k, config.bias.qkv);
        let q_norm = head_norm(builder, "attention.q_norm", inner.q_norm, h, k);
        let k_norm = head_norm(builder, "attention.k_norm", inner.k_norm, g, k);
        let v_norm = head_norm(builder, "attention.v_norm", inner.v_norm, g, k);
        let is_cosine = inner.attn_scale == AttnScale::Cosine;
        let of_qk = |norm: Option<Norm>| match norm {
            Some(norm) => Some(norm.config),
            None => is_cosine.then(|| l2_norm_config(k)),
        };
        let qk_scale = Scale::new(builder, "attention.qk_scale", inner.qk_post_scale, g * k);
        let tau = is_cosine.then_some(("", h, COSINE_TAU_INIT));
        Self {
            qkv,
            qkv_bias,
            q_norm,
            k_norm,
            v_norm,
            qk_scale,
            tau: builder.add_vectors("attention.tau", Role::Scale, tau.as_slice()),
            output_projection: OutputProjection::new(builder, h, k),
            qkv_transform: QkvTransform {
                heads: h,
                kv_heads: g,
                head_dim: k,
                q: of_qk(q_norm),
                k: of_qk(k_norm),
                v: v_norm.map(|norm| norm.config),
                order: inner.qk_order,
                qk_scale: qk_scale.constant().unwrap_or(1.0) as f32,
                clip: inner.clip_qkv.map(|clip| clip as f32),
            },
            scale: logit_scale(inner.attn_scale, k) as f32,
            softcap: inner.attn_softcap.map(|cap| cap as f32),
            window: config.window_of_layer(builder.index()),
        }
    }

    /// Computes attention; see [`Attention::forward`](super::Attention::forward).
    pub(super) fn forward<'g>(
        &self,
        u_btd: Value<'g>,
        positions: &PositionContext<'g>,
    ) -> AttentionOutput<'g> {
        let projection = ops::linear(u_btd, self.qkv.value(u_btd.builder()));
        let projection = bias(&self.qkv_bias, projection);
        let norms = [&self.q_norm, &self.k_norm, &self.v_norm];
        let params = norms.map(|norm| norm.and_then(|norm| norm.param_value(projection)));
        let transformed =
            ops::qkv_transform(projection, positions.rope_table, params, self.qkv_transform);
        let packed = self.apply_learned_scales(transformed);
        let config = self.attention_config(u_btd);
        let context = match positions.cache {
            None => ops::attention(packed, config),
            Some(cache) => {
                positions.append(packed, config.heads * config.head_dim, cache);
                positions.attend(packed, cache, config)
            }
        };
        AttentionOutput {
            output: self.output_projection.forward(context),
            packed: Some((packed, config)),
        }
    }

    fn attention_config(&self, u_btd: Value<'_>) -> AttentionConfig {
        let &[batch, seq, _] = u_btd.shape().sizes() else {
            panic!(
                "attention: the input is {:?}, expected (b, t, d)",
                u_btd.shape()
            )
        };
        AttentionConfig {
            batch,
            seq,
            heads: self.qkv_transform.heads,
            kv_heads: self.qkv_transform.kv_heads,
            head_dim: self.qkv_transform.head_dim,
            value_dim: self.qkv_transform.head_dim,
            scale: self.scale,
            softcap: self.softcap,
            window: self.window,
            precision: Precision::F32,
        }
    }

    /// Applies learned scales: `qk_scale` to keys, by key/value head, and to the queries of its group; `1/τ` to the
    /// queries of each head.
    fn apply_learned_scales<'g>(&self, packed: Value<'g>) -> Value<'g> {
        let g = packed.builder();
        let factors = self.qk_scale.learned(g);
        if factors.is_none() && self.tau.is_none() {
            return packed;
        }
        let QkvTransform {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.qkv_transform;
        let widths = [heads, kv_heads, kv_heads].map(|n| n * head_dim);
        let [mut q, mut k, v] = ops::split(packed, widths);
        if let Some(factors) = factors {
            let on_k = match factors.shape().elements() {
                1 => ops::repeat_interleave(factors, 1, kv_heads * head_dim),
                _ => factors,
            };
            let on_q = ops::repeat_interleave(on_k, head_dim, heads / kv_heads);
            q = ops::scale_columns(q, on_q, 1);
            k = ops::scale_columns(k, on_k, 1);
        }
        if let Some(tau) = self.tau {
            let by_head = ops::reciprocal(tau.value(g), COSINE_TAU_MIN);
            q = ops::scale_columns(q, by_head, head_dim);
        }
        ops::concat(&[q, k, v])
    }
}

/// Declares the packed projection to queries, keys and values.
fn packed_projection(builder: &mut ParameterBuilder<'_>) -> Param {
    let config = builder.config;
    let (h, g, k) = (config.n_heads, config.n_kv_heads, config.head_dim());
    let part = |name: &str, heads: usize, projection, count_category| Part {
        path: format!("attention.qkv.{name}"),
        rows: heads * k,
        projection,
        count_category,
    };
    builder.add_matrix(Matrix {
        path: "attention.qkv",
        label: "qkv",
        role: Role::Attention,
        columns: config.d_model,
        parts: vec![
            part("q", h, placement::Projection::Q, "attention q"),
            part("k", g, placement::Projection::K, "attention k"),
            part("v", g, placement::Projection::V, "attention v"),
        ],
        n_interleaved_groups: 1,
        writes_residual: false,
        experts: 1,
    })
}
