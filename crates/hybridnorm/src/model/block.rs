//! One block: attention and feed-forward in their wiring.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::attention::{Attention, Positions};
use super::cache::LayerCache;
use super::config::ModelConfig;
use super::feed_forward::FeedForward;
use super::init::Initializer;
use super::norm::Norm;
use super::stream::Stream;
use super::sublayer::SubLayer;
use crate::error::{Error, Result};
use crate::placement::{BlockSpec, NormSpec, Topology};

/// A decoder block whose every norm, skip and scale comes from a [`BlockSpec`].
#[derive(Module, Debug)]
pub struct Block {
    /// Wiring of the attention sub-layer.
    pub attn: SubLayer,
    /// The attention function.
    pub attention: Attention,
    /// Wiring of the feed-forward sub-layer.
    pub ffn: SubLayer,
    /// The feed-forward function.
    pub feed_forward: FeedForward,
    #[module(skip)]
    topology: Topology,
}

/// What a block makes on its way from the stream to the stream; all (b, t, d).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    /// The stream that enters the block.
    Stream,
    /// What the attention function reads.
    AttentionInput,
    /// What attention adds to the stream.
    Attention,
    /// What the feed-forward adds to the stream.
    FeedForward,
}

impl Block {
    /// Makes block `layer` (0-based) of a model on its own, with initial values drawn by `seed`.
    ///
    /// # Errors
    /// If the configuration is not valid or has no such block.
    pub fn of(config: &ModelConfig, layer: usize, seed: u64, device: &Device) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        let spec = resolved.blocks.get(layer).ok_or_else(|| {
            Error::config(format!(
                "there is no block {layer} in a model of {} blocks",
                config.n_layers
            ))
        })?;
        let initializer = Initializer::new(Some(seed), &resolved);
        let norm = &resolved.norm;
        Ok(Self::new(config, spec, norm, layer, &initializer, device))
    }

    /// Makes block `layer` (0-based) of a model.
    pub fn new(
        config: &ModelConfig,
        spec: &BlockSpec,
        norm: &NormSpec,
        layer: usize,
        initializer: &Initializer<'_>,
        device: &Device,
    ) -> Self {
        let d = config.d_model;
        let mut ffn = spec.ffn.clone();
        // With one shared input norm, the feed-forward reads attention's.
        ffn.in_norm &= spec.topology != Topology::ParallelShared;
        Self {
            attn: SubLayer::new(&spec.attn, norm, d, device),
            attention: Attention::new(config, &spec.attn_inner, norm, layer, initializer, device),
            ffn: SubLayer::new(&ffn, norm, d, device),
            feed_forward: FeedForward::new(
                config,
                &spec.ffn_inner,
                norm,
                layer,
                initializer,
                device,
            ),
            topology: spec.topology,
        }
    }

    /// All its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let (attention, feed_forward) = (&self.attention, &self.feed_forward);
        let inner = [
            &attention.q_norm,
            &attention.k_norm,
            &attention.v_norm,
            &attention.ctx_norm,
            &feed_forward.gate_norm,
            &feed_forward.up_norm,
            &feed_forward.mid_norm,
        ];
        let outer = self.attn.norms().chain(self.ffn.norms());
        outer.chain(inner.into_iter().flatten())
    }

    /// From the stream (b, t, d) to the stream. With a cache, `x_btd` holds the new positions
    /// only.
    pub fn forward(
        &self,
        x_btd: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        self.step(Stream::Whole(x_btd), positions, cache).whole()
    }

    /// The same, for a block in a row of them.
    pub(crate) fn step(
        &self,
        x: Stream,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Stream {
        self.watched(x, positions, cache, &|_, _| {})
    }

    /// The same; `watch` is shown what is made on the way.
    pub(super) fn watched(
        &self,
        x: Stream,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        watch: &dyn Fn(Site, &Tensor<3>),
    ) -> Stream {
        let see = |site: Site| move |x: &Tensor<3>| watch(site, x);
        let attention = |u| {
            watch(Site::AttentionInput, &u);
            self.attention.forward(u, positions, cache)
        };
        let feed_forward = |u| self.feed_forward.forward(u);
        match self.topology {
            Topology::Sequential => {
                let (x, n) = self.attn.normed(x);
                watch(Site::Stream, &x);
                let y = self
                    .attn
                    .forward(x.clone(), n, &x, attention, see(Site::Attention));
                let (y, n) = self.ffn.normed(y);
                self.ffn
                    .forward(y, n, &x, feed_forward, see(Site::FeedForward))
            }
            Topology::ParallelShared | Topology::ParallelTwo => {
                let (x, n_attn) = self.attn.normed(x);
                watch(Site::Stream, &x);
                let n_ffn = match self.topology {
                    Topology::ParallelShared => n_attn.clone(),
                    _ => self.ffn.normed(Stream::Whole(x.clone())).1,
                };
                let o_attn = self.attn.branch(n_attn, attention);
                let o_ffn = self.ffn.branch(n_ffn, feed_forward);
                watch(Site::Attention, &o_attn);
                watch(Site::FeedForward, &o_ffn);
                self.attn.merge(x, o_attn + o_ffn)
            }
        }
    }
}
