//! What particular model families do.

use super::super::spec::{AttnScale, Formula, Gain, HeadNorm, Placement, QkOrder, Scale};
use super::build::*;

fn gemma() -> Placement {
    let mut placement = pre().both(out_norm).eps(1e-6);
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
    let mut placement = gemma().inner(heads("qk", HeadNorm::PerHead));
    placement.norm.gain = Gain::OnePlus;
    placement
}

/// The model's other side paths are no matter of placement.
pub(super) fn gemma3n() -> Placement {
    gemma()
        .inner(heads("qk", HeadNorm::PerHead))
        .inner(heads("v", HeadNorm::PerHeadPlain))
        .inner(|inner| inner.attn_scale = AttnScale::Const(1.0))
}

/// The released code gives its norm no eps, which is the machine's; logits are capped at 15.
pub(super) fn nanochat() -> Placement {
    let mut placement = pre()
        .inner(heads("qk", HeadNorm::PerHeadPlain))
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
