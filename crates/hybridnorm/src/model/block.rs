//! One block: attention and feed-forward in their wiring.

use std::cell::RefCell;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::attention::{Attention, Positions};
use super::blueprint::Blueprint;
use super::cache::LayerCache;
use super::config::ModelConfig;
use super::feed_forward::{FeedForward, Mixture, Routed};
use super::init::Initializer;
use super::matrices;
use super::norm::Norm;
use super::stream::State;
use super::sublayer::SubLayer;
use crate::error::{Error, Result};
use crate::placement::Topology;

/// A decoder block whose every norm, skip and scale comes from a
/// [`BlockSpec`](crate::placement::BlockSpec).
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
    #[module(skip)]
    streams: usize,
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
        if layer >= resolved.blocks.len() {
            return Err(Error::config(format!(
                "there is no block {layer} in a model of {} blocks",
                config.n_layers
            )));
        }
        let block = Self::new(&Blueprint {
            config,
            resolved: &resolved,
            layer,
            initializer: &Initializer::new(Some(seed), &resolved),
            device,
        });
        Ok(match resolved.unit_weights {
            true => matrices::with_unit_vectors(block, config),
            false => block,
        })
    }

    /// Makes a block of a model.
    pub(super) fn new(blueprint: &Blueprint<'_>) -> Self {
        let (spec, norm) = (blueprint.spec(), blueprint.norm());
        let (d, streams) = (blueprint.config.d_model, blueprint.resolved.streams);
        let mut ffn = spec.ffn.clone();
        // With one shared input norm, the feed-forward reads attention's.
        ffn.in_norm &= spec.topology != Topology::ParallelShared;
        let wiring = |sub| SubLayer::new(sub, streams, norm, d, blueprint.device);
        Self {
            attn: wiring(&spec.attn),
            attention: Attention::new(blueprint),
            ffn: wiring(&ffn),
            feed_forward: FeedForward::new(blueprint),
            topology: spec.topology,
            streams: if streams.are_two() { 2 } else { 1 },
        }
    }

    /// All its norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let outer = self.attn.norms().chain(self.ffn.norms());
        let inner = self.attention.norms().into_iter();
        outer.chain(inner).chain(self.feed_forward.norms())
    }

    /// Its mixture of experts, if it has one.
    pub(super) fn mixture_mut(&mut self) -> Option<&mut Mixture> {
        match &mut self.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Mixture(mixture) => Some(mixture),
        }
    }

    /// From the stream (b, t, d) to the stream. With a cache, `x_btd` holds the new positions only.
    ///
    /// # Panics
    /// If the placement has two streams: [`Block::forward_streams`] is for any.
    pub fn forward(
        &self,
        x_btd: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<3> {
        let (mut streams, _) = self.forward_streams(vec![x_btd], positions, cache);
        streams.remove(0)
    }

    /// From the placement's streams (b, t, d), the main one first, to these, and where the tokens of a
    /// mixture of experts went: whose losses are for the caller to add, and whose load to answer with
    /// [`Mixture::rebalance`].
    ///
    /// # Panics
    /// If the number of streams is not that of the placement.
    pub fn forward_streams(
        &self,
        streams: Vec<Tensor<3>>,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> (Vec<Tensor<3>>, Option<Routed>) {
        assert_eq!(
            streams.len(),
            self.streams,
            "the placement's number of streams"
        );
        let (state, routed) = self.step(State::of(streams), positions, cache);
        (state.whole(), routed)
    }

    /// The same, for a block in a row of them, with where its experts' tokens went.
    pub(crate) fn step(
        &self,
        state: State,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
    ) -> (State, Option<Routed>) {
        self.watched(state, positions, cache, &|_, _| {})
    }

    /// The same, with the largest score of every head of attention.
    pub(crate) fn step_with_maxima(
        &self,
        state: State,
        positions: &Positions,
    ) -> (State, Option<Routed>, Vec<f32>) {
        let maxima = RefCell::new(Vec::new());
        let (state, routed) = self.watched(state, positions, None, &|site, u| {
            if site == Site::AttentionInput {
                maxima.replace(self.attention.head_maxima(u, positions));
            }
        });
        (state, routed, maxima.into_inner())
    }

    /// The same; `watch` is shown what is made on the way.
    pub(super) fn watched(
        &self,
        state: State,
        positions: &Positions,
        cache: Option<&mut LayerCache>,
        watch: &dyn Fn(Site, &Tensor<3>),
    ) -> (State, Option<Routed>) {
        let see = |site: Site| move |x: &Tensor<3>| watch(site, x);
        let attention = |u| {
            watch(Site::AttentionInput, &u);
            self.attention.forward(u, positions, cache)
        };
        let mut routed = None;
        let feed_forward = |u| {
            let (y, found) = self.feed_forward.forward(u);
            routed = found;
            y
        };
        let state = match self.topology {
            Topology::Sequential => {
                let reading = self.attn.read(state);
                let b = reading.x.clone();
                watch(Site::Stream, &b);
                let seen = see(Site::Attention);
                let state = self.attn.forward(reading, &b, attention, seen);
                let reading = self.ffn.read(state);
                let seen = see(Site::FeedForward);
                self.ffn.forward(reading, &b, feed_forward, seen)
            }
            Topology::ParallelShared | Topology::ParallelTwo => {
                let reading = self.attn.read(state);
                let (x, n_attn) = (reading.x, reading.n);
                watch(Site::Stream, &x);
                let n_ffn = match self.topology {
                    Topology::ParallelShared => n_attn.clone(),
                    _ => self.ffn.read(State::single(x.clone())).n,
                };
                let o_attn = self.attn.branch(n_attn, attention);
                let o_attn = self.attn.out_scale.forward(o_attn);
                let o_ffn = self.ffn.branch(n_ffn, feed_forward);
                let o_ffn = self.ffn.out_scale.forward(o_ffn);
                watch(Site::Attention, &o_attn);
                watch(Site::FeedForward, &o_ffn);
                let x = self.attn.merge(x, o_attn + o_ffn);
                State { x, y: None }
            }
        };
        (state, routed)
    }
}
