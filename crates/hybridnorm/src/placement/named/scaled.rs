//! Placements that scale skip connections or outputs, many of them by a formula of the depth.

use serde_json::json;

use super::super::spec::{
    Formula, InitScheme, LearnedShape, Placement, Scale, Selector, Skip, StdRule,
};
use super::build::*;

/// Decoder-only constants: skip scale (2L)^(1/4), Xavier gains (8L)^(−1/4) on all but q and k.
pub(super) fn deepnorm() -> Placement {
    post_norm_base()
        .sub_layers(skip_scale(depth_power(2.0, 0.25)))
        .init(InitScheme::Xavier, StdRule::SmallInit)
        .gains(depth_power(8.0, -0.25), all_but_qk)
}

/// The released code initializes the embedding with standard deviation √(2/5) and has eps 1e-6.
pub(super) fn mix_ln() -> Placement {
    let post = json!({ "in_norm": false, "post_norm": true });
    let mut placement = pre_norm_base()
        .override_blocks(
            Selector::FirstFraction(0.25),
            json!({ "attn": post, "ffn": post }),
        )
        .eps(1e-6);
    placement.embed.init_std = Some(0.4_f64.sqrt());
    placement
}

pub(super) fn lns() -> Placement {
    pre_norm_base().sub_layers(in_scale(formula(Formula::InvSqrtLayer)))
}

/// The first attention is plain pre-norm; the first feed-forward keeps its post-norm.
pub(super) fn keel() -> Placement {
    post_norm_base()
        .sub_layers(in_norm)
        .sub_layers(skip_scale(formula(Formula::TwoDepth)))
        .override_blocks(
            Selector::Indices(vec![0]),
            json!({
                "attn": { "skip_scale": 1.0, "post_norm": false },
                "ffn": { "skip_scale": 1.0 },
            }),
        )
}

/// The paper also scales the initial weights by depth; those constants are not included.
pub(super) fn spannorm() -> Placement {
    post_norm_base()
        .ffn(skip(Skip::BlockInput))
        .override_blocks(
            Selector::Indices(vec![0]),
            json!({ "attn": { "in_norm": true } }),
        )
}

pub(super) fn b2t() -> Placement {
    post_norm_base().ffn(skip(Skip::RawPlusBlockInput))
}

pub(super) fn layerscale() -> Placement {
    pre_norm_base().sub_layers(out_scale(learned(
        LearnedShape::Vector,
        formula(Formula::LayerScale),
    )))
}

pub(super) fn rezero() -> Placement {
    base()
        .sub_layers(out_scale(learned(LearnedShape::Scalar, Scale::Const(0.0))))
        .without_final_norm()
        .kind(None)
}

/// The separate output factor β is 1 in the released configuration.
pub(super) fn minimax_text_01() -> Placement {
    base()
        .sub_layers(normed_skip)
        .sub_layers(skip_scale(depth_power(2.0, 0.25)))
}
