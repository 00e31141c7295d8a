//! Pre, post, output and sandwich norms, norms after linear layers, parallel blocks, other norm
//! functions.

use super::super::spec::{
    AttnScale, Formula, HeadNorm, InitScheme, LearnedShape, NormFn, Placement, Scale, StdRule,
    Topology,
};
use super::build::*;

/// The original multiplies the embedding by √d and adds positional encodings; here the embedding is unscaled, so
/// that the placement differs from pre-norm in its norms only.
pub(super) fn post_norm() -> Placement {
    post_norm_base()
}

/// `u' = N(u) + G(N(u))` at every sub-layer: post-norm with each norm moved from the end of a sub-layer to the start of
/// the next one.
pub(super) fn post_norm_entry() -> Placement {
    base().sub_layers(normed_skip)
}

pub(super) fn pre_norm() -> Placement {
    pre_norm_base()
}

pub(super) fn pre_norm_qk() -> Placement {
    pre_norm_base().inner(head_norms("qk", HeadNorm::PerHead))
}

pub(super) fn pre_norm_qk_full() -> Placement {
    pre_norm_base().inner(head_norms("qk", HeadNorm::Full))
}

pub(super) fn sandwich() -> Placement {
    pre_norm_base().sub_layers(out_norm)
}

pub(super) fn olmo2() -> Placement {
    base()
        .inner(head_norms("qk", HeadNorm::Full))
        .sub_layers(out_norm)
        .eps(1e-6)
}

/// Gains and biases of the output norms start at 0. The extra norm every six blocks of the largest
/// model is not included.
pub(super) fn swin_v2() -> Placement {
    base()
        .inner(|inner| inner.attn_scale = AttnScale::Cosine)
        .sub_layers(out_norm_from(Scale::Const(0.0)))
        .kind(NormFn::Layernorm)
}

/// Decoder-only gains: a factor √(ln 2L) on the Xavier weights of v, o, up and down.
pub(super) fn sub_ln() -> Placement {
    pre_norm_base()
        .inner(head_norms("c", HeadNorm::Full))
        .ffn_inner(|inner| inner.mid_norm = true)
        .init(InitScheme::Xavier, StdRule::SmallInit)
        .gains(formula(Formula::SqrtLn2Depth), |g| {
            vec![&mut g.v, &mut g.o, &mut g.up, &mut g.down]
        })
}

pub(super) fn normformer() -> Placement {
    pre_norm_base()
        .inner(|inner| inner.head_gain = true)
        .attn(out_norm)
        .ffn_inner(|inner| inner.mid_norm = true)
        .ffn(skip_scale(learned(LearnedShape::Vector, Scale::Const(1.0))))
        .kind(NormFn::Layernorm)
}

/// Initial standard deviations: 0.02, 0.02/√(2l) for o, up and down, 1 for the embedding.
pub(super) fn simple_norm() -> Placement {
    let mut placement = base()
        .inner(head_norms("qkv", HeadNorm::Full))
        .sub_layers(out_norm)
        .ffn_inner(|inner| {
            inner.gate_norm = true;
            inner.up_norm = true;
        })
        .init(InitScheme::Normal, StdRule::Const(0.02))
        .gains(formula(Formula::InvSqrt2Layer), |g| {
            vec![&mut g.o, &mut g.up, &mut g.down]
        });
    placement.embed.init_std = Some(1.0);
    placement
}

pub(super) fn gpt_j_parallel() -> Placement {
    parallel(Topology::ParallelShared)
}

pub(super) fn neox_parallel() -> Placement {
    parallel(Topology::ParallelTwo)
}

fn parallel(topology: Topology) -> Placement {
    let mut placement = pre_norm_base();
    placement.block.topology = topology;
    placement
}

/// The paper's language models have no bias, and a learned scalar on the embedding that starts at √d.
pub(super) fn dyt() -> Placement {
    let mut placement = pre_norm_base().kind(NormFn::Dyt);
    placement.embed.scale = learned(LearnedShape::Scalar, formula(Formula::SqrtWidth));
    placement
}

pub(super) fn derf() -> Placement {
    pre_norm_base().kind(NormFn::Derf)
}
