//! Errors of the fields of one block.

use super::super::error::PlacementError;
use super::super::spec::{
    AttnScale, Factor, Gain, HeadNorm, NormKind, QkOrder, Skip, SubLayer, Topology,
};
use super::model::positive;
use super::{ONE, Site};

pub(super) fn check(site: &Site) -> Result<(), PlacementError> {
    for (name, sub) in [("attn", &site.spec.attn), ("ffn", &site.spec.ffn)] {
        sub_layer(site, name, sub)?;
    }
    topology(site)?;
    skips(site)?;
    attn_in_scale(site)?;
    head_norms(site)?;
    scores(site)?;
    ffn_inner(site)
}

fn fail<T>(site: &Site, path: &str, problem: impl Into<String>) -> Result<T, PlacementError> {
    Err(site.error(path, problem))
}

fn sub_layer(site: &Site, name: &str, sub: &SubLayer<Factor>) -> Result<(), PlacementError> {
    if sub.skip == Skip::Normed && !sub.in_norm {
        return fail(
            site,
            &format!("{name}.skip"),
            format!(
                "a normed skip carries the result of {name}.in_norm, which is off; set \
                 {name}.in_norm = true or {name}.skip = \"raw\""
            ),
        );
    }
    for (field, factor) in [("in_scale", sub.in_scale), ("out_scale", sub.out_scale)] {
        if factor == Factor::Const(0.0) {
            return fail(
                site,
                &format!("{name}.{field}"),
                "a constant factor of 0 cuts the sub-layer off for good, and its weights never get \
                 a gradient; use a learned scale that starts at 0",
            );
        }
    }
    out_norm(site, name, sub)
}

fn out_norm(site: &Site, name: &str, sub: &SubLayer<Factor>) -> Result<(), PlacementError> {
    let Some(norm) = &sub.out_norm else {
        return Ok(());
    };
    let path = format!("{name}.out_norm.gain_init");
    let Factor::Const(start) = norm.gain_init else {
        return fail(
            site,
            &path,
            "the gain is a parameter already, so its initial value must be a number or a formula, \
             not learned",
        );
    };
    let norms = &site.case.resolved.norm;
    if start != 1.0 && norms.kind == NormKind::None {
        return fail(
            site,
            &path,
            "norm.kind = \"none\" leaves this norm out, so an initial gain has no effect; use \
             out_scale",
        );
    }
    if start != 1.0 && norms.gain == Gain::None {
        return fail(
            site,
            &path,
            "norm.gain = \"none\" gives this norm no gain, so its initial value has no effect; use \
             out_scale",
        );
    }
    if start == 0.0 && matches!(sub.out_scale, Factor::Learned { init: 0.0, .. }) {
        return fail(
            site,
            &format!("{name}.out_scale"),
            "the output norm's gain and this scale both start at 0, so neither ever gets a \
             gradient; let one of them start elsewhere",
        );
    }
    Ok(())
}

fn topology(site: &Site) -> Result<(), PlacementError> {
    let (attn, ffn) = (&site.spec.attn, &site.spec.ffn);
    if site.spec.topology == Topology::Sequential {
        return Ok(());
    }
    if attn.skip != Skip::Raw {
        return fail(
            site,
            "attn.skip",
            "a parallel block adds both outputs to its raw input; set attn.skip = \"raw\"",
        );
    }
    if ffn.skip != Skip::Raw {
        return fail(
            site,
            "ffn.skip",
            "a parallel block has one skip, that of attention, so this has no effect; set \
             ffn.skip = \"raw\"",
        );
    }
    if ffn.skip_scale != ONE {
        return fail(
            site,
            "ffn.skip_scale",
            "a parallel block has one skip, that of attention, so this has no effect; set \
             attn.skip_scale",
        );
    }
    if ffn.post_norm {
        return fail(
            site,
            "ffn.post_norm",
            "a parallel block has one sum, that of attention, so this has no effect; set \
             attn.post_norm",
        );
    }
    if site.spec.topology == Topology::ParallelShared && attn.in_norm != ffn.in_norm {
        return fail(
            site,
            "ffn.in_norm",
            format!(
                "`parallel_shared` has one input norm for both, but attn.in_norm is {} and \
                 ffn.in_norm is {}; make them equal or use `parallel_two`",
                attn.in_norm, ffn.in_norm
            ),
        );
    }
    Ok(())
}

fn skips(site: &Site) -> Result<(), PlacementError> {
    if matches!(
        site.spec.attn.skip,
        Skip::BlockInput | Skip::RawPlusBlockInput
    ) {
        return fail(
            site,
            "attn.skip",
            "attention comes first, so its state is the block's input itself; skips from the \
             block's input belong to ffn.skip of a sequential block",
        );
    }
    Ok(())
}

/// Norms on q, k and v that divide by the size of what they read take back any scale before them.
fn attn_in_scale(site: &Site) -> Result<(), PlacementError> {
    let inner = &site.spec.attn_inner;
    let rescales = matches!(
        site.case.resolved.norm.kind,
        NormKind::Rmsnorm | NormKind::Layernorm | NormKind::L2
    );
    let is_cosine = inner.attn_scale == AttnScale::Cosine;
    let normed = |norm| rescales && norm != HeadNorm::None;
    let qk_normed = is_cosine || (normed(inner.q_norm) && normed(inner.k_norm));
    let all_normed = qk_normed && normed(inner.v_norm);
    if site.spec.attn.in_scale == ONE || !all_normed || inner.clip_qkv.is_some() {
        return Ok(());
    }
    fail(
        site,
        "attn.in_scale",
        "q, k and v are normed, which takes back a scale on what attention reads, so it has no \
         effect; use attn.out_scale",
    )
}

fn head_norms(site: &Site) -> Result<(), PlacementError> {
    let inner = &site.spec.attn_inner;
    let full = |norm| matches!(norm, HeadNorm::Full | HeadNorm::FullPlain);
    let plain = |norm| matches!(norm, HeadNorm::PerHeadPlain | HeadNorm::FullPlain);
    let normed = inner.q_norm != HeadNorm::None || inner.k_norm != HeadNorm::None;
    if inner.qk_order == QkOrder::AfterRope {
        if !normed {
            return fail(
                site,
                "attn_inner.qk_order",
                "neither q nor k is normed, so an order has no effect; set attn_inner.q_norm and \
                 k_norm or remove it",
            );
        }
        for (path, norm) in [
            ("attn_inner.q_norm", inner.q_norm),
            ("attn_inner.k_norm", inner.k_norm),
        ] {
            if full(norm) {
                return fail(
                    site,
                    path,
                    "a norm over all heads after the rotary embedding is defined by no model; use \
                     `per_head` or qk_order = \"before_rope\"",
                );
            }
        }
    }
    if matches!(site.case.resolved.norm.kind, NormKind::Dyt | NormKind::Derf) {
        for (path, norm) in [
            ("attn_inner.q_norm", inner.q_norm),
            ("attn_inner.k_norm", inner.k_norm),
            ("attn_inner.v_norm", inner.v_norm),
            ("attn_inner.ctx_norm", inner.ctx_norm),
        ] {
            if plain(norm) {
                return fail(
                    site,
                    path,
                    "`dyt` and `derf` have a learned α, so there is no form of them without \
                     parameters; use `per_head` or `full`",
                );
            }
        }
    }
    qk_post_scale(site)
}

fn qk_post_scale(site: &Site) -> Result<(), PlacementError> {
    let path = "attn_inner.qk_post_scale";
    let inner = &site.spec.attn_inner;
    let both_normed = inner.q_norm != HeadNorm::None && inner.k_norm != HeadNorm::None;
    let has_gain = |norm| {
        !matches!(norm, HeadNorm::PerHeadPlain | HeadNorm::FullPlain)
            && site.case.resolved.norm.gain != Gain::None
    };
    match inner.qk_post_scale {
        ONE => Ok(()),
        Factor::Const(0.0) => fail(site, path, "a factor of 0 removes queries and keys"),
        _ if inner.attn_scale == AttnScale::Cosine => fail(
            site,
            path,
            "cosine attention brings q and k to unit length, so a scale before it has no effect",
        ),
        _ if !both_normed || site.case.without_norms() => fail(
            site,
            path,
            "multiplies normed queries and keys, but not both are normed; set attn_inner.q_norm \
             and k_norm, or use attn_inner.attn_scale",
        ),
        Factor::Learned { .. } if has_gain(inner.q_norm) || has_gain(inner.k_norm) => fail(
            site,
            path,
            "is learned, and so is the gain of the q and k norms, which does the same; use norms \
             without gain",
        ),
        _ => Ok(()),
    }
}

fn scores(site: &Site) -> Result<(), PlacementError> {
    let inner = &site.spec.attn_inner;
    for (path, cap) in [
        ("attn_inner.attn_softcap", inner.attn_softcap),
        ("attn_inner.clip_qkv", inner.clip_qkv),
    ] {
        if let Some(cap) = cap {
            positive(cap, &site.origin(path), "the limit")?;
        }
    }
    if let AttnScale::Const(scale) = inner.attn_scale {
        positive(scale, &site.origin("attn_inner.attn_scale"), "the scale")?;
    }
    if inner.attn_scale != AttnScale::Cosine {
        return Ok(());
    }
    for (path, norm) in [
        ("attn_inner.q_norm", inner.q_norm),
        ("attn_inner.k_norm", inner.k_norm),
    ] {
        if norm != HeadNorm::None {
            return fail(
                site,
                path,
                "cosine attention itself brings q and k to unit length; remove the norm",
            );
        }
    }
    Ok(())
}

fn ffn_inner(site: &Site) -> Result<(), PlacementError> {
    if site.spec.ffn_inner.gate_norm && !site.case.facts.gated {
        return fail(
            site,
            "ffn_inner.gate_norm",
            "the model's activation has no gate, so a norm on it has no effect; use a gated \
             activation or set ffn_inner.gate_norm = false",
        );
    }
    Ok(())
}
