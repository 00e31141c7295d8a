//! The feed-forward function of a block: dense, or a mixture of experts.

mod mixture;
mod mlp;
mod routed;

use burn::module::Module;
use burn::tensor::Tensor;

use super::blueprint::Blueprint;
use super::norm::Norm;

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

impl FeedForward {
    /// Makes the feed-forward of a block.
    pub(super) fn new(blueprint: &Blueprint<'_>) -> Self {
        match blueprint.config.moe_at(blueprint.layer) {
            None => Self::Dense(Mlp::new(blueprint, "", blueprint.config.d_ff)),
            Some(moe) => Self::Mixture(Mixture::new(blueprint, moe)),
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
