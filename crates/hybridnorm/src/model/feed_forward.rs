//! The feed-forward function of a block: dense, or a mixture of experts.

mod mixture;
mod mlp;
mod routed;

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::config::ModelConfig;
use super::init::Initializer;
use super::norm::Norm;
use crate::placement::{Factor, FfnInner, NormSpec};

pub use mixture::Mixture;
pub use mlp::Mlp;
pub use routed::{Routed, Routing};

/// What a block does between reading the stream a second time and adding to it.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them a block")]
pub enum FeedForward {
    /// Every token passes through the same one.
    Dense(Mlp),
    /// Every token passes through some of many.
    Mixture(Mixture),
}

/// What is needed to make the feed-forward of a block.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    /// Shape of the model.
    pub(super) config: &'a ModelConfig,
    /// Norms inside.
    pub(super) inner: &'a FfnInner<Factor>,
    /// The norm function.
    pub(super) norm: &'a NormSpec,
    /// Index of the block, 0-based.
    pub(super) layer: usize,
    /// Draws weights.
    pub(super) initializer: &'a Initializer<'a>,
    /// Where weights live.
    pub(super) device: &'a Device,
}

impl FeedForward {
    /// Makes the feed-forward of a block.
    pub(super) fn new(site: Site<'_>) -> Self {
        match site.config.moe_at(site.layer) {
            None => Self::Dense(Mlp::new(site, "", site.config.d_ff)),
            Some(moe) => Self::Mixture(Mixture::new(site, moe)),
        }
    }

    /// From what the sub-layer reads (b, t, d) to what it adds (b, t, d), and where the tokens went.
    pub fn forward(&self, u_btd: Tensor<3>) -> (Tensor<3>, Option<Routed>) {
        match self {
            Self::Dense(mlp) => (mlp.forward(u_btd), None),
            Self::Mixture(mixture) => {
                let (y, routed) = mixture.forward(u_btd);
                (y, Some(routed))
            }
        }
    }

    /// Its norms.
    pub fn norms(&self) -> Vec<&Norm> {
        match self {
            Self::Dense(mlp) => mlp.norms().collect(),
            Self::Mixture(mixture) => mixture.norms().collect(),
        }
    }
}
