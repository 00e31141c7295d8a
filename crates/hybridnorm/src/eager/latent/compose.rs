//! The same from Burn's ops, see [`compose`](super::super::compose).

use burn::tensor::Tensor;
use hybridnorm_kernels::attention::LatentAttention;
use hybridnorm_kernels::latent::Latent;

use super::super::compose::{causal_weights, rotate};

/// See [`latent_heads`](super::latent_heads).
pub fn latent_heads([q, kv, key_btr]: [Tensor<3>; 3], heads: Latent, rope: &[f32]) -> Tensor<3> {
    let Latent {
        heads: h,
        nope,
        rope: r,
        value,
    } = heads;
    let [b, t, _] = q.dims();
    let q = rotated_queries(q, heads, rope).reshape([b, t, h * (nope + r)]);
    let kv = kv.reshape([b, t, h, nope + value]);
    let key = rotate(key_btr, r, rope).reshape([b, t, 1, r]);
    let content = kv.clone().narrow(3, 0, nope);
    let k = Tensor::cat(vec![content, key.repeat_dim(2, h)], 3);
    let k = k.reshape([b, t, h * (nope + r)]);
    let v = kv.narrow(3, nope, value).reshape([b, t, h * value]);
    Tensor::cat(vec![q, k, v], 2)
}

/// Queries (b, t, h, nope + r) with their last channels rotated.
fn rotated_queries(q: Tensor<3>, heads: Latent, rope: &[f32]) -> Tensor<4> {
    let (h, nope, r) = (heads.heads, heads.nope, heads.rope);
    let [b, t, _] = q.dims();
    let q = q.reshape([b, t, h, nope + r]);
    let turned = q.clone().narrow(3, nope, r).reshape([b, t, h * r]);
    let turned = rotate(turned, r, rope).reshape([b, t, h, r]);
    Tensor::cat(vec![q.narrow(3, 0, nope), turned], 3)
}

/// The rows of `kv_up` of every head: `[keys' content | values]`, (h, nope + value, l).
fn by_head(kv_up: Tensor<2>, heads: Latent) -> Tensor<3> {
    let l = kv_up.dims()[1];
    kv_up.reshape([heads.heads, heads.nope + heads.value, l])
}

/// See [`absorbed_queries`](super::absorbed_queries).
pub fn absorbed_queries(q: Tensor<3>, kv_up: Tensor<2>, heads: Latent, rope: &[f32]) -> Tensor<3> {
    let (h, nope, r) = (heads.heads, heads.nope, heads.rope);
    let ([b, t, _], l) = (q.dims(), kv_up.dims()[1]);
    let q = rotated_queries(q, heads, rope);
    let content = q.clone().narrow(3, 0, nope).reshape([b * t, h, nope]);
    let absorbed = content
        .swap_dims(0, 1)
        .matmul(by_head(kv_up, heads).narrow(1, 0, nope));
    let absorbed = absorbed.swap_dims(0, 1).reshape([b, t, h, l]);
    Tensor::cat(vec![absorbed, q.narrow(3, nope, r)], 3).reshape([b, t, h * (l + r)])
}

/// See [`latent_attention`](super::latent_attention).
pub fn latent_attention(
    q: Tensor<3>,
    cache: &Tensor<3>,
    past: usize,
    spec: LatentAttention,
) -> Tensor<3> {
    let (b, t, h, l) = (spec.batch, spec.seq, spec.heads, spec.latent);
    let (width, s) = (l + spec.rope, past + t);
    let rows = cache.clone().narrow(1, 0, s).reshape([b, 1, s, width]);
    let q = q.reshape([b, t, h, width]).swap_dims(1, 2);
    let mut scores_bhts = q.matmul(rows.clone().swap_dims(2, 3)) * f64::from(spec.scale);
    if let Some(cap) = spec.softcap.map(f64::from) {
        scores_bhts = (scores_bhts / cap).tanh() * cap;
    }
    let weights = causal_weights(scores_bhts, past);
    let latents = rows.narrow(3, 0, l);
    let ctx = weights.matmul(latents).swap_dims(1, 2);
    ctx.reshape([b, t, h * l])
}

/// See [`expanded_context`](super::expanded_context).
pub fn expanded_context(ctx: Tensor<3>, kv_up: Tensor<2>, heads: Latent) -> Tensor<3> {
    let (h, nope, value) = (heads.heads, heads.nope, heads.value);
    let ([b, t, _], l) = (ctx.dims(), kv_up.dims()[1]);
    let values = by_head(kv_up, heads).narrow(1, nope, value).swap_dims(1, 2);
    let ctx = ctx.reshape([b * t, h, l]).swap_dims(0, 1).matmul(values);
    ctx.swap_dims(0, 1).reshape([b, t, h * value])
}
