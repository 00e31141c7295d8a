//! The steps of multi-head latent attention (arXiv 2405.04434).
//!
//! Shape suffixes beyond those of [`super`](super): l width of the latent of keys and values, r rotated
//! channels.

pub mod compose;
mod fused;

use std::sync::Arc;

use burn::backend::{Dispatch, Flex};
use burn::tensor::Tensor;
use hybridnorm_kernels::attention;
pub use hybridnorm_kernels::attention::LatentAttention;
use hybridnorm_kernels::latent;
pub use hybridnorm_kernels::latent::Latent as LatentHeads;

use super::{flex, is_fused, is_plain, primitive};
use fused::FusedLatentOps;

/// Packed `[q heads | k heads | v heads]` from the queries (b, t, heads of `[content | to rotate]`), the
/// projected latents (b, t, heads of `[content of the key | value]`) and the rotary key (b, t, r) that
/// all heads share; queries' and keys' last channels rotated.
pub fn latent_heads(
    q: Tensor<3>,
    kv: Tensor<3>,
    key_btr: Tensor<3>,
    heads: LatentHeads,
    rope: Arc<[f32]>,
) -> Tensor<3> {
    if is_fused(&q) {
        let [q, kv, key] = [q, kv, key_btr].map(Tensor::into_dispatch);
        Tensor::from_dispatch(Dispatch::fused_latent_heads(q, kv, key, heads, rope))
    } else {
        compose::latent_heads([q, kv, key_btr], heads, &rope)
    }
}

/// What generation keeps of each position: `[latent | rotated key]`.
pub fn latent_row(latent_btl: Tensor<3>, key_btr: Tensor<3>, rope: &[f32]) -> Tensor<3> {
    let [b, t, r] = key_btr.dims();
    if !is_plain(&key_btr) {
        let key = super::compose::rotate(key_btr, r, rope);
        return Tensor::cat(vec![latent_btl, key], 2);
    }
    let mut key = flex::floats(&primitive(key_btr)).into_owned();
    latent::rotate_keys(&mut key, r, rope);
    let key = Tensor::from_primitive::<Flex>(flex::tensor(key, [b, t, r]));
    Tensor::cat(vec![latent_btl, key], 2)
}

/// Queries that read latents: of every head `[content · keys' part of W_kv | rotated]`, (b, t, h·(l+r)).
/// Not differentiable on the CPU.
pub fn absorbed_queries(
    q: Tensor<3>,
    kv_up: Tensor<2>,
    heads: LatentHeads,
    rope: &[f32],
) -> Tensor<3> {
    if !is_plain(&q) {
        return compose::absorbed_queries(q, kv_up, heads, rope);
    }
    let ([b, t, _], l) = (q.dims(), kv_up.dims()[1]);
    let shape = [b, t, heads.heads * (l + heads.rope)];
    let mut q = flex::floats(&primitive(q)).into_owned();
    latent::rotate_queries(&heads, &mut q, rope);
    let mut out = vec![0.0; shape.iter().product()];
    let kv_up = primitive(kv_up);
    latent::absorb(&heads, l, &q, &flex::floats(&kv_up), &mut out);
    Tensor::from_primitive::<Flex>(flex::tensor(out, shape))
}

/// Attention of absorbed queries to rows of [`latent_row`] (b, capacity, l+r), of which query i sees
/// `0..=past + i`; gives the weighted latents (b, t, h·l). Not differentiable on the CPU.
pub fn latent_attention(
    q: Tensor<3>,
    cache: &Tensor<3>,
    past: usize,
    spec: LatentAttention,
) -> Tensor<3> {
    if !is_plain(&q) {
        return compose::latent_attention(q, cache, past, spec);
    }
    let shape = [spec.batch, spec.seq, spec.heads * spec.latent];
    let (q, cache) = (primitive(q), primitive(cache.clone()));
    let mut ctx = vec![0.0; shape.iter().product()];
    attention::cached_latent(
        &spec,
        &flex::floats(&q),
        &flex::floats(&cache),
        past,
        &mut ctx,
    );
    Tensor::from_primitive::<Flex>(flex::tensor(ctx, shape))
}

/// Weighted values (b, t, heads of values) from weighted latents (b, t, h·l). Not differentiable on the
/// CPU.
pub fn expanded_context(ctx: Tensor<3>, kv_up: Tensor<2>, heads: LatentHeads) -> Tensor<3> {
    if !is_plain(&ctx) {
        return compose::expanded_context(ctx, kv_up, heads);
    }
    let ([b, t, _], l) = (ctx.dims(), kv_up.dims()[1]);
    let shape = [b, t, heads.heads * heads.value];
    let mut out = vec![0.0; shape.iter().product()];
    let (ctx, kv_up) = (primitive(ctx), primitive(kv_up));
    latent::expand(
        &heads,
        l,
        &flex::floats(&ctx),
        &flex::floats(&kv_up),
        &mut out,
    );
    Tensor::from_primitive::<Flex>(flex::tensor(out, shape))
}
