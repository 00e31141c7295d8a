//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::{Positions, head_norm, read_out, score_scale};
use crate::eager::{self as ops, LatentHeads};
use crate::model::blueprint::Blueprint;
use crate::model::cache::LayerCache;
use crate::model::config::MlaConfig;
use crate::model::norm::Norm;
use crate::model::qk_clip;
use crate::placement::{Factor, Role};

/// Causal attention whose keys and values are all made of one latent a position:
///
/// ```text
/// [c_q | c_kv | k_r] = W_down · u          c_q, c_kv, k_r normed as the placement says
/// q = W_q · c_q                            a head's query: [content | rotated]
/// [k_c | v] = W_kv · c_kv                  a head's key: [k_c | rotated k_r]
/// W_out · ctx_norm(softmax(scale · q kᵀ) v)
/// ```
///
/// Generation keeps only `c_kv` and the rotated `k_r`: instead of making every key and value again,
/// `W_kv` is absorbed into the query and the context.
#[derive(Module, Debug)]
pub struct Latent {
    /// What reads the stream, rows `[c_q | c_kv | k_r]`; without a query latent the first are the
    /// queries of all heads.
    pub latents: Param<Tensor<2>>,
    /// Norm on the query latent, or on the queries where there is none.
    pub q_norm: Option<Norm>,
    /// Norm on the rotary key.
    pub k_norm: Option<Norm>,
    /// Norm on the latent of keys and values.
    pub v_norm: Option<Norm>,
    /// Queries from their latent, (h·k, q_rank).
    pub q_up: Option<Param<Tensor<2>>>,
    /// Keys' content and values from their latent, rows `[k_c | v]` head by head.
    pub kv_up: Param<Tensor<2>>,
    /// Norm on the context.
    pub ctx_norm: Option<Norm>,
    /// Factor per head on the context.
    pub head_gain: Option<Param<Tensor<1>>>,
    /// Output projection, (d, heads of values).
    pub out: Param<Tensor<2>>,
    #[module(skip)]
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: LatentHeads,
    /// Rows of `latents` by what they give.
    widths: [usize; 3],
    scale: f32,
    softcap: Option<f32>,
    clip: Option<f64>,
}

impl Latent {
    /// Makes the attention of a block.
    pub(super) fn new(blueprint: &Blueprint<'_>, mla: &MlaConfig) -> Self {
        let Blueprint { config, device, .. } = *blueprint;
        let inner = &blueprint.spec().attn_inner;
        let (d, h) = (config.d_model, config.n_heads);
        let widths = mla.down_widths(h);
        let draw = |field: &str, role: Role, shape: [usize; 2]| {
            blueprint.draw(&format!("attention.{field}"), role, shape)
        };
        let [q_width, kv_width, key_width] = widths;
        let latents = [
            draw("latents.q", Role::Q, [q_width, d]),
            draw("latents.kv", Role::K, [kv_width, d]),
            draw("latents.k", Role::K, [key_width, d]),
        ]
        .concat();
        let keys = draw("kv_up.k", Role::K, [h * mla.nope_dim, mla.kv_rank]);
        let values = draw("kv_up.v", Role::V, [h * mla.v_dim, mla.kv_rank]);
        let by_head = keys.chunks(mla.nope_dim * mla.kv_rank);
        let by_head = by_head.zip(values.chunks(mla.v_dim * mla.kv_rank));
        let kv_up: Vec<f32> = by_head.flat_map(|(k, v)| [k, v].concat()).collect();
        let out = draw("out", Role::O, [d, h * mla.v_dim]);
        let q_heads = if mla.q_rank.is_some() { 1 } else { h };
        // Queries and keys are multiplied by it, so that scores are by its square.
        let qk_scale = match inner.qk_post_scale {
            Factor::Const(factor) => factor,
            Factor::Learned { .. } => unreachable!("validation refuses it"),
        };
        Self {
            latents: blueprint.matrix(latents, d),
            q_norm: head_norm(inner.q_norm, q_heads, q_width / q_heads, blueprint),
            k_norm: head_norm(inner.k_norm, 1, key_width, blueprint),
            v_norm: head_norm(inner.v_norm, 1, kv_width, blueprint),
            q_up: mla.q_rank.map(|rank| {
                let rows = h * mla.head_dim();
                blueprint.matrix(draw("q_up", Role::Q, [rows, rank]), rank)
            }),
            kv_up: blueprint.matrix(kv_up, mla.kv_rank),
            ctx_norm: head_norm(inner.ctx_norm, h, mla.v_dim, blueprint),
            head_gain: inner
                .head_gain
                .then(|| Param::from_data(vec![1.0f32; h].as_slice(), device)),
            out: blueprint.matrix(out, h * mla.v_dim),
            shape: Shape {
                heads: LatentHeads {
                    heads: h,
                    nope: mla.nope_dim,
                    rope: mla.rope_dim,
                    value: mla.v_dim,
                },
                widths,
                scale: (score_scale(inner.attn_scale, mla.head_dim()) * qk_scale.powi(2)) as f32,
                softcap: inner.attn_softcap.map(|cap| cap as f32),
                clip: inner.clip_qkv,
            },
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
        let [q, c_kv, k_r] = self.project(u_btd);
        let ctx = match cache {
            None => ops::causal_attention(self.assemble([q, c_kv, k_r], positions), spec),
            // A prompt: keys and values in full are less arithmetic than latents, and are not kept.
            Some(cache) if positions.past == 0 && spec.seq > 1 => {
                let row = ops::latent_row(c_kv.clone(), k_r.clone(), &positions.rope);
                cache.append(row, 0);
                ops::causal_attention(self.assemble([q, c_kv, k_r], positions), spec)
            }
            Some(cache) => {
                let heads = self.shape.heads;
                let spec = ops::LatentAttention {
                    batch: spec.batch,
                    seq: spec.seq,
                    heads: heads.heads,
                    latent: self.shape.widths[1],
                    rope: heads.rope,
                    scale: spec.scale,
                    softcap: spec.softcap,
                };
                let row = ops::latent_row(c_kv, k_r, &positions.rope);
                let cached = cache.append(row, positions.past);
                let q = ops::absorbed_queries(q, self.kv_up.val(), heads, &positions.rope);
                let ctx = ops::latent_attention(q, cached, positions.past, spec);
                ops::expanded_context(ctx, self.kv_up.val(), heads)
            }
        };
        let value = self.shape.heads.value;
        read_out(ctx, value, &self.ctx_norm, &self.head_gain, &self.out)
    }

    /// Packed queries, keys and values as the scores read them.
    pub(super) fn packed(
        &self,
        u_btd: Tensor<3>,
        positions: &Positions,
    ) -> (Tensor<3>, ops::Attention) {
        let spec = self.spec(&u_btd);
        let parts = self.project(u_btd);
        (self.assemble(parts, positions), spec)
    }

    /// Multiplies the scores of every head.
    pub(super) fn scale_scores(&mut self, factors: &[f32]) {
        let LatentHeads {
            nope, rope, value, ..
        } = self.shape.heads;
        let roots: Vec<f32> = factors.iter().map(|factor| factor.sqrt()).collect();
        let heads = roots.iter().zip(factors);
        let of_query =
            |(&root, &factor): (&f32, &f32)| [vec![root; nope], vec![factor; rope]].concat();
        let mut queries: Vec<f32> = heads.flat_map(of_query).collect();
        let matrix = match &mut self.q_up {
            Some(q_up) => q_up,
            None => {
                let [_, kv, key] = self.shape.widths;
                queries.extend(std::iter::repeat_n(1.0, kv + key));
                &mut self.latents
            }
        };
        qk_clip::scale_rows(matrix, queries);
        let keys = roots.iter();
        let keys = keys.flat_map(|&root| [vec![root; nope], vec![1.0; value]].concat());
        qk_clip::scale_rows(&mut self.kv_up, keys.collect());
    }

    /// Its norms.
    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        [&self.q_norm, &self.k_norm, &self.v_norm, &self.ctx_norm]
            .into_iter()
            .flatten()
    }

    /// Queries, the latent of keys and values, the rotary key; nothing is rotated yet.
    fn project(&self, u_btd: Tensor<3>) -> [Tensor<3>; 3] {
        let rows = ops::linear(u_btd, self.latents.val());
        let rows = match self.shape.clip {
            Some(clip) => rows.clamp(-clip, clip),
            None => rows,
        };
        let [q, kv, key] = self.shape.widths;
        let norms = [&self.q_norm, &self.v_norm, &self.k_norm];
        let parts = [(0, q), (q, kv), (q + kv, key)];
        let mut parts = parts.into_iter().zip(norms).map(|((first, width), norm)| {
            let part = rows.clone().narrow(2, first, width);
            match norm {
                Some(norm) => norm.forward(part),
                None => part,
            }
        });
        let mut next = || parts.next().expect("three parts");
        let (c_q, c_kv, k_r) = (next(), next(), next());
        let q = match &self.q_up {
            Some(q_up) => ops::linear(c_q, q_up.val()),
            None => c_q,
        };
        [q, c_kv, k_r]
    }

    fn assemble(&self, [q, c_kv, k_r]: [Tensor<3>; 3], positions: &Positions) -> Tensor<3> {
        let kv = ops::linear(c_kv, self.kv_up.val());
        ops::latent_heads(q, kv, k_r, self.shape.heads, positions.rope.clone())
    }

    fn spec(&self, u_btd: &Tensor<3>) -> ops::Attention {
        let [batch, seq, _] = u_btd.dims();
        let LatentHeads {
            heads,
            nope,
            rope,
            value,
        } = self.shape.heads;
        ops::Attention {
            batch,
            seq,
            heads,
            kv_heads: heads,
            head_dim: nope + rope,
            value_dim: value,
            scale: self.shape.scale,
            softcap: self.shape.softcap,
        }
    }
}
