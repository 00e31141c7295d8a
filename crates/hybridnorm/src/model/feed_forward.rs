//! The feed-forward function of a block: dense, or a mixture of experts.

mod mixture;
mod mlp;

use super::parameter_builder::ParameterBuilder;
use crate::graph::Value;

pub use mixture::{MixtureOfExperts, RouterOutputs};
pub use mlp::Mlp;

/// The feed-forward sub-layer of a block, dense or a mixture of experts.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one per block")]
pub enum FeedForward {
    /// One MLP for all tokens.
    Dense(Mlp),
    /// Mixture of experts with top-k routing.
    Moe(MixtureOfExperts),
}

impl FeedForward {
    /// Declares the feed-forward of a block.
    pub(super) fn new(builder: &mut ParameterBuilder<'_>) -> Self {
        match builder.config.moe_of_layer(builder.index()).cloned() {
            None => {
                let f = builder.config.d_ff;
                Self::Dense(Mlp::dense(builder, "", f).with_bias(builder, f))
            }
            Some(moe) => Self::Moe(MixtureOfExperts::new(builder, &moe)),
        }
    }

    /// Computes the output (b, t, d) from the sub-layer input (b, t, d).
    pub fn output<'g>(&self, u_btd: Value<'g>) -> Value<'g> {
        self.forward(u_btd).0
    }

    /// Computes [`FeedForward::output`], and the router statistics.
    pub(super) fn forward<'g>(&self, u_btd: Value<'g>) -> (Value<'g>, Option<RouterOutputs<'g>>) {
        match self {
            Self::Dense(mlp) => (mlp.forward(u_btd), None),
            Self::Moe(mixture) => {
                let (y, routed) = mixture.forward(u_btd);
                (y, Some(routed))
            }
        }
    }
}
