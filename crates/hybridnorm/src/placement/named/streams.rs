//! Placements with two residual streams.

use super::super::spec::{Formula, HeadNorm, LearnedShape, Placement, Scale, Streams};
use super::build::*;

/// `x' = N(x + G(x)),  y' = y + G(x);  output x + N(y)`
pub(super) fn resi_dual() -> Placement {
    post_norm_base().streams(Streams::ResidualDual)
}

/// `g = G(N(x + N(y))),  x' = N(x + g/√(2l)),  y' = y + g;  output x + N(y)`
pub(super) fn siamese_norm() -> Placement {
    post_norm_base()
        .sub_layers(in_norm)
        .sub_layers(out_scale(formula(Formula::InvSqrt2Layer)))
        .streams(Streams::Siamese)
}

/// The released `hybrid_pre`: HybridNorm's attention on `c·x + N(y)` with a norm on the sum, a
/// pre-norm feed-forward on `x + N(y)`, and a norm on each stream and on their sum at the end.
pub(super) fn siamese_hybrid() -> Placement {
    let mut placement = base()
        .inner(head_norms("qkv", HeadNorm::PerHead))
        .attn(read_scale(learned(LearnedShape::Vector, Scale::Const(1.0))))
        .attn(post_norm)
        .ffn(in_norm)
        .sub_layers(out_scale(formula(Formula::InvSqrt2Layer)))
        .streams(Streams::Siamese);
    placement.merge_norm = true;
    placement
}
