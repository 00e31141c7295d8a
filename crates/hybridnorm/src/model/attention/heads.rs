//! Attention whose heads have keys and values of their own.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::{Positions, head_norm, read_out, score_scale};
use crate::eager::{self as ops, QkOrder, QkvPrep};
use crate::model::blueprint::Blueprint;
use crate::model::cache::LayerCache;
use crate::model::norm::{Norm, unit_length};
use crate::model::qk_clip;
use crate::model::scale::Scale;
use crate::placement::{self, AttnScale, Role};

/// Smallest temperature of cosine attention (Swin-v2).
const COSINE_TAU_MIN: f64 = 0.01;
/// Where that temperature starts.
const COSINE_TAU_INIT: f32 = 0.1;

/// Causal grouped-query attention with rotary embedding:
/// `W_out · ctx_norm(softmax(scale · q kᵀ) v)`, q, k, v = prepared `W_qkv · u`.
#[derive(Module, Debug)]
pub struct Heads {
    /// Packed projection, rows `[q heads | k heads | v heads]`; ((h + 2g)·k, d).
    pub qkv: Param<Tensor<2>>,
    /// Norm on queries.
    pub q_norm: Option<Norm>,
    /// Norm on keys.
    pub k_norm: Option<Norm>,
    /// Norm on values.
    pub v_norm: Option<Norm>,
    /// Factor on normed queries and keys.
    pub qk_scale: Scale,
    /// Cosine attention's temperature per head.
    pub tau: Option<Param<Tensor<1>>>,
    /// Norm on the context.
    pub ctx_norm: Option<Norm>,
    /// Factor per head on the context.
    pub head_gain: Option<Param<Tensor<1>>>,
    /// Output projection, (d, h·k).
    pub out: Param<Tensor<2>>,
    #[module(skip)]
    shape: HeadShape,
    #[module(skip)]
    prepare: Prepare,
}

#[derive(Debug, Clone, Copy)]
struct HeadShape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
}

#[derive(Debug, Clone, Copy)]
struct Prepare(QkvPrep);

impl Heads {
    /// Makes the attention of a block.
    pub(super) fn new(blueprint: &Blueprint<'_>) -> Self {
        let Blueprint { config, device, .. } = *blueprint;
        let inner = &blueprint.spec().attn_inner;
        let (d, h, g, k) = (
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim(),
        );
        let draw = |field: &str, role: Role, shape: [usize; 2]| {
            blueprint.draw(&format!("attention.{field}"), role, shape)
        };
        let qkv = [
            draw("qkv.q", Role::Q, [h * k, d]),
            draw("qkv.k", Role::K, [g * k, d]),
            draw("qkv.v", Role::V, [g * k, d]),
        ]
        .concat();
        let out = draw("out", Role::O, [d, h * k]);

        let (q_norm, k_norm, v_norm) = (
            head_norm(inner.q_norm, h, k, blueprint),
            head_norm(inner.k_norm, g, k, blueprint),
            head_norm(inner.v_norm, g, k, blueprint),
        );
        let is_cosine = inner.attn_scale == AttnScale::Cosine;
        let qk_op = |site: &Option<Norm>| match site {
            Some(site) => Some(site.op()),
            None => is_cosine.then(|| unit_length(k)),
        };
        let qk_scale = Scale::new(inner.qk_post_scale, g * k, device);
        let prepare = QkvPrep {
            heads: h,
            kv_heads: g,
            head_dim: k,
            q: qk_op(&q_norm),
            k: qk_op(&k_norm),
            v: v_norm.as_ref().map(Norm::op),
            order: match inner.qk_order {
                placement::QkOrder::BeforeRope => QkOrder::BeforeRope,
                placement::QkOrder::AfterRope => QkOrder::AfterRope,
            },
            qk_scale: qk_scale.constant().unwrap_or(1.0) as f32,
            clip: inner.clip_qkv.map(|clip| clip as f32),
        };
        let per_head = |value: f32| Param::from_data(vec![value; h].as_slice(), device);
        Self {
            qkv: blueprint.matrix(qkv, d),
            q_norm,
            k_norm,
            v_norm,
            qk_scale,
            tau: is_cosine.then(|| per_head(COSINE_TAU_INIT)),
            ctx_norm: head_norm(inner.ctx_norm, h, k, blueprint),
            head_gain: inner.head_gain.then(|| per_head(1.0)),
            out: blueprint.matrix(out, h * k),
            shape: HeadShape {
                heads: h,
                kv_heads: g,
                head_dim: k,
                scale: score_scale(inner.attn_scale, k) as f32,
                softcap: inner.attn_softcap.map(|cap| cap as f32),
            },
            prepare: Prepare(prepare),
        }
    }

    /// See [`Attention::forward`](super::Attention::forward).
    pub(super) fn forward(
        &self,
        u_btd: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let spec = self.spec(&u_btd);
        let ops::Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = spec;
        let qkv_btc = ops::linear(u_btd, self.qkv.val());
        let is_plain = self.qk_scale.factor.is_none() && self.tau.is_none();
        let ctx_btd = match cache {
            None if is_plain => {
                let (prepare, rope) = (self.prepare.0, positions.rope.clone());
                let params = self.norm_params(&qkv_btc.device());
                ops::normed_attention(qkv_btc, params, prepare, rope, spec)
            }
            None => ops::causal_attention(self.prepared(qkv_btc, positions), spec),
            Some(cache) => {
                let qkv_btc = self.prepared(qkv_btc, positions);
                let kv = qkv_btc
                    .clone()
                    .narrow(2, heads * head_dim, 2 * kv_heads * head_dim);
                let kv_bsc = cache.append(kv, positions.past);
                ops::cached_attention(qkv_btc, kv_bsc, positions.past, spec)
            }
        };
        read_out(
            ctx_btd,
            head_dim,
            &self.ctx_norm,
            &self.head_gain,
            &self.out,
        )
    }

    /// Packed queries, keys and values as the scores read them.
    pub(super) fn packed(
        &self,
        u_btd: Tensor<3>,
        positions: &Positions,
    ) -> (Tensor<3>, ops::Attention) {
        let spec = self.spec(&u_btd);
        let qkv_btc = ops::linear(u_btd, self.qkv.val());
        (self.prepared(qkv_btc, positions), spec)
    }

    /// Multiplies the scores of every head.
    pub(super) fn scale_scores(&mut self, factors: &[f32]) {
        let HeadShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let (queries, keys) = qk_clip::shared_out(factors, kv_heads);
        let values = std::iter::repeat_n(1.0, kv_heads * head_dim);
        let rows = qk_clip::repeated(&queries, head_dim)
            .chain(qk_clip::repeated(&keys, head_dim))
            .chain(values);
        qk_clip::scale_rows(&mut self.qkv, rows.collect());
    }

    /// Its norms.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        [&self.q_norm, &self.k_norm, &self.v_norm, &self.ctx_norm]
            .into_iter()
            .flatten()
    }

    fn spec(&self, u_btd: &Tensor<3>) -> ops::Attention {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap,
        } = self.shape;
        let [batch, seq, _] = u_btd.dims();
        ops::Attention {
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            scale,
            softcap,
        }
    }

    fn norm_params(&self, device: &Device) -> [Tensor<1>; 3] {
        [&self.q_norm, &self.k_norm, &self.v_norm].map(|norm| match norm {
            Some(norm) => norm.params(device),
            None => Tensor::empty([0], device),
        })
    }

    /// The projection with all that comes before the scores.
    fn prepared(&self, qkv_btc: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let params = self.norm_params(&qkv_btc.device());
        let rope = positions.rope.clone();
        self.learned_qk_scales(ops::qkv_norm_rope(qkv_btc, params, self.prepare.0, rope))
    }

    /// Learned factors on q and k: `qk_scale` on both, by key/value head, `1/τ` on the queries of each
    /// head.
    fn learned_qk_scales(&self, mut qkv_btc: Tensor<3>) -> Tensor<3> {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let options = (&qkv_btc.device(), qkv_btc.dtype());
        let ones = |n: usize| Tensor::<1>::ones([n], options);
        if let Some(factor) = self.qk_scale.learned() {
            let on_k = match factor.dims()[0] {
                1 => factor.repeat_dim(0, kv_heads * head_dim),
                _ => factor,
            };
            // Queries have the factors of the key that they meet.
            let by_group = on_k.clone().reshape([kv_heads, 1, head_dim]);
            let on_q = by_group.repeat_dim(1, heads / kv_heads);
            let on_q = on_q.reshape([heads * head_dim]);
            let all = Tensor::cat(vec![on_q, on_k, ones(kv_heads * head_dim)], 0);
            qkv_btc = ops::scale_columns(qkv_btc, all, 1);
        }
        if let Some(tau) = &self.tau {
            let on_q = tau.val().clamp_min(COSINE_TAU_MIN).recip();
            let all = Tensor::cat(vec![on_q, ones(2 * kv_heads)], 0);
            qkv_btc = ops::scale_columns(qkv_btc, all, head_dim);
        }
        qkv_btc
    }
}
