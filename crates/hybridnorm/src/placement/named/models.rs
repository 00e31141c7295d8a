//! Placements of particular model families.

use super::super::spec::{
    AttnScale, Formula, Gain, HeadNorm, InitScheme, NormFn, Placement, QkOrder, Scale, StdRule,
};
use super::build::*;

fn gemma() -> Placement {
    let mut placement = pre_norm_base().sub_layers(out_norm).eps(1e-6);
    placement.embed.scale = formula(Formula::SqrtWidth);
    placement
}

pub(super) fn gemma2() -> Placement {
    let mut placement = gemma().inner(|inner| inner.attn_softcap = Some(50.0));
    placement.norm.gain = Gain::OnePlus;
    placement.logits.softcap = Some(30.0);
    placement
}

pub(super) fn gemma3() -> Placement {
    let mut placement = gemma().inner(head_norms("qk", HeadNorm::PerHead));
    placement.norm.gain = Gain::OnePlus;
    placement
}

/// AltUp, LAuReL and per-layer embeddings of the model are not part of a placement.
pub(super) fn gemma3n() -> Placement {
    gemma()
        .inner(head_norms("qk", HeadNorm::PerHead))
        .inner(head_norms("v", HeadNorm::PerHeadNoGain))
        .inner(|inner| inner.attn_scale = AttnScale::Const(1.0))
}

/// The released code passes no eps to its norm, which then uses the machine epsilon; logits are capped at 15.
pub(super) fn nanochat() -> Placement {
    let mut placement = pre_norm_base()
        .inner(head_norms("qk", HeadNorm::PerHeadNoGain))
        .inner(|inner| {
            inner.qk_order = QkOrder::AfterRope;
            inner.qk_post_scale = Scale::Const(1.2);
        })
        .eps(f64::from(f32::EPSILON));
    placement.norm.gain = Gain::None;
    placement.embed.norm = true;
    placement.logits.softcap = Some(15.0);
    placement
}

/// Norms on the query latent and the key/value latent; on q and v with grouped-query attention. The
/// initial standard deviation of the weights is 0.006.
pub(super) fn deepseek_v3() -> Placement {
    pre_norm_base()
        .inner(head_norms("qv", HeadNorm::PerHead))
        .eps(1e-6)
        .init(InitScheme::Normal, StdRule::Const(0.006))
}

/// Residual stream and weights on the unit sphere, as in the released code: it scales gate and up by √d, the
/// paper's text only the gate. Its norm has no eps, here 1e-12. It takes the absolute value of the
/// learned interpolation rates; here they may change sign.
pub(super) fn ngpt() -> Placement {
    let start = || formula(Formula::InvSqrtWidth);
    let hidden = || vector_from(formula(Formula::SqrtWidth), Scale::Const(1.0));
    let mut placement = base()
        .inner(head_norms("qk", HeadNorm::PerHeadNoGain))
        .inner(|inner| {
            inner.qk_order = QkOrder::AfterRope;
            inner.qk_post_scale = vector_from(Scale::Const(1.0), start());
            inner.attn_scale = AttnScale::SqrtHeadDim;
        })
        .ffn_inner(|inner| {
            inner.gate_scale = hidden();
            inner.up_scale = hidden();
        })
        .sub_layers(out_norm)
        .sub_layers(lerp_unit(vector_from(Scale::Const(0.05), start())))
        .without_final_norm()
        .kind(NormFn::L2)
        .eps(1e-12);
    placement.norm.gain = Gain::None;
    placement.logits.scale = vector_from(Scale::Const(1.0), start());
    placement.unit_weights = true;
    placement
}
