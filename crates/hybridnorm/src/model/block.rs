//! One block: attention and feed-forward in their wiring.

use super::attention::{Attention, Positions};
use super::config::ModelConfig;
use super::declare::Declare;
use super::feed_forward::{FeedForward, Routed};
use super::norm::norm;
use super::registry::Registry;
use super::scale::scale;
use super::sublayer::{Residual, SubLayer, Sum};
use crate::error::{Error, Result};
use crate::graph::Value;
use crate::placement::Topology;
use hybridnorm_kernels::attention::Attention as Spec;

/// A decoder block whose every norm, skip and scale comes from a
/// [`BlockSpec`](crate::placement::BlockSpec).
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Wiring of the attention sub-layer.
    pub attn: SubLayer,
    /// The attention function.
    pub attention: Attention,
    /// Wiring of the feed-forward sub-layer.
    pub ffn: SubLayer,
    /// The feed-forward function.
    pub feed_forward: FeedForward,
    topology: Topology,
}

/// The residual stream behind a block, and the values within it that taps may ask for.
#[derive(Debug, Clone, Copy)]
pub struct BlockOutput<'g> {
    /// The residual streams.
    pub residual: Residual<'g>,
    /// The residual streams that entered the block, (b, t, d).
    pub entered: Residual<'g>,
    /// Output of the attention sub-layer, after its output norm and factor, (b, t, d).
    pub attention: Value<'g>,
    /// Output of the feed-forward sub-layer, after its output norm and factor, (b, t, d).
    pub feed_forward: Value<'g>,
    /// Packed and prepared q·k·v, and the attention that reads them; absent where generation absorbs them.
    pub packed: Option<(Value<'g>, Spec)>,
    /// Routing statistics, in a mixture of experts.
    pub routed: Option<Routed<'g>>,
}

impl Block {
    /// Declares block `layer` (0-based) of a model on its own, for graphs of your own.
    ///
    /// # Errors
    /// If the configuration is not valid or has no such block.
    pub fn declare(config: &ModelConfig, layer: usize, registry: &mut Registry) -> Result<Self> {
        let (resolved, _) = config.resolve()?;
        if layer >= resolved.blocks.len() {
            return Err(Error::config(format!(
                "there is no block {layer} in a model of {} blocks",
                config.n_layers
            )));
        }
        Ok(Self::new(&mut Declare {
            config,
            resolved: &resolved,
            registry,
            layer: Some(layer),
        }))
    }

    /// Declares a block of a model.
    pub(super) fn new(declare: &mut Declare<'_>) -> Self {
        let spec = declare.spec().clone();
        let mut ffn = spec.ffn.clone();
        // With one shared input norm, the feed-forward reads attention's.
        ffn.in_norm &= spec.topology != Topology::ParallelShared;
        Self {
            attn: SubLayer::new(declare, "attn", &spec.attn),
            attention: Attention::new(declare),
            ffn: SubLayer::new(declare, "ffn", &ffn),
            feed_forward: FeedForward::new(declare),
            topology: spec.topology,
        }
    }

    /// From the residual streams (b, t, d) to these. With a cache, they hold the new positions only.
    pub fn forward<'g>(
        &self,
        residual: Residual<'g>,
        positions: &Positions<'g>,
    ) -> BlockOutput<'g> {
        let entered = residual;
        let x = residual.x;
        let (mut packed, mut routed) = (None, None);
        let mut attention = |u| {
            let attended = self.attention.forward(u, positions);
            packed = attended.packed;
            attended.output
        };
        let mut feed_forward = |u| {
            let (y, found) = self.feed_forward.forward(u);
            routed = found;
            y
        };
        let (residual, of_attention, of_feed_forward) = match self.topology {
            Topology::Sequential => {
                let Sum { residual, branch } = self.attn.forward(residual, x, attention);
                let of_attention = branch;
                let Sum { residual, branch } = self.ffn.forward(residual, x, feed_forward);
                (residual, of_attention, branch)
            }
            Topology::ParallelShared | Topology::ParallelTwo => {
                let (attn, ffn) = (&self.attn, &self.ffn);
                let n = norm(&attn.in_norm, x);
                let n_ffn = match self.topology {
                    Topology::ParallelShared => n,
                    _ => norm(&ffn.in_norm, x),
                };
                let o = norm(&attn.out_norm, attention(scale(&attn.in_scale, n)));
                let o = scale(&attn.out_scale, o);
                let o_ffn = norm(&ffn.out_norm, feed_forward(scale(&ffn.in_scale, n_ffn)));
                let o_ffn = scale(&ffn.out_scale, o_ffn);
                let x = norm(&attn.post_norm, scale(&attn.skip_scale, x) + (o + o_ffn));
                (Residual { x, y: None }, o, o_ffn)
            }
        };
        BlockOutput {
            residual,
            entered,
            attention: of_attention,
            feed_forward: of_feed_forward,
            packed,
            routed,
        }
    }
}
