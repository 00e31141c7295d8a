//! The CPU implementation, see [`fused`](super::super::fused).

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn_flex::FlexTensor;
use hybridnorm_kernels::latent::{self, Latent};

use super::super::flex::{buffer, floats, last_dim, like, tensor};
use super::super::node::node;
use super::super::pool::{give, give_all, take};

/// The fused op as Burn sees it. Use the functions of [`ops`](super::super) instead.
#[backend_extension(Flex, Autodiff)]
pub trait FusedLatentOps: Backend {
    /// See [`latent_heads`](super::latent_heads).
    fn fused_latent_heads(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        key: FloatTensor<Self>,
        heads: Latent,
        rope: Arc<[f32]>,
    ) -> FloatTensor<Self>;
}

impl FusedLatentOps for Flex {
    fn fused_latent_heads(
        q: FlexTensor,
        kv: FlexTensor,
        key: FlexTensor,
        heads: Latent,
        rope: Arc<[f32]>,
    ) -> FlexTensor {
        let mut shape = q.layout().shape().clone();
        let key_width = heads.heads * (heads.nope + heads.rope);
        shape[2] = last_dim(&q) + key_width + heads.heads * heads.value;
        let mut packed = take(shape.num_elements());
        let (q, kv, key) = (floats(&q), floats(&kv), floats(&key));
        latent::assemble(&heads, &q, &kv, &key, &rope, &mut packed);
        tensor(packed, shape)
    }
}

impl<C: CheckpointStrategy> FusedLatentOps for Autodiff<Flex, C> {
    fn fused_latent_heads(
        q: FloatTensor<Self>,
        kv: FloatTensor<Self>,
        key: FloatTensor<Self>,
        heads: Latent,
        rope: Arc<[f32]>,
    ) -> FloatTensor<Self> {
        node::<C, _, 3>(
            "latent heads",
            [q, kv, key],
            |[q, kv, key]| {
                let inputs = [q.clone(), kv.clone(), key.clone()];
                let packed = Flex::fused_latent_heads(q, kv, key, heads, rope.clone());
                (packed, (inputs, rope))
            },
            move |([q, kv, key], rope), dpacked| {
                let (mut dq, mut dkv, mut dkey) = (buffer(&q), buffer(&kv), buffer(&key));
                let packed = floats(&dpacked);
                latent::assemble_backward(&heads, &packed, &rope, &mut dq, &mut dkv, &mut dkey);
                drop(packed);
                let gradients = [like(dq, &q), like(dkv, &kv), like(dkey, &key)];
                give_all([q, kv, key]);
                give(dpacked);
                gradients
            },
        )
    }
}
