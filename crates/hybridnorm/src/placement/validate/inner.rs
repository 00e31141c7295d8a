//! Errors of the norms and scales inside attention and the feed-forward.

use super::super::error::PlacementError;
use super::super::error::PlacementErrorKind::{Conflict, NoEffect, OutOfRange};
use super::super::norm_functions::names_with_alpha;
use super::super::spec::{
    AttnScale, FfnInner, Gain, HeadNorm, LearnedShape, QkOrder, ResolvedScale,
};
use super::model::positive;
use super::{BlockContext, ONE};

pub(super) fn check(block: &BlockContext) -> Result<(), PlacementError> {
    attn_in_scale(block)?;
    head_norms(block)?;
    norm_eps(block)?;
    scores(block)?;
    ffn_inner(block)
}

/// Rejects an input scale that norms on q, k and v cancel by dividing by the magnitude of their input.
fn attn_in_scale(block: &BlockContext) -> Result<(), PlacementError> {
    let inner = &block.spec.attn_inner;
    let is_scale_invariant = block.context.resolved.norm.is_scale_invariant();
    let is_cosine = inner.attn_scale == AttnScale::Cosine;
    let normed = |norm| is_scale_invariant && norm != HeadNorm::None;
    let qk_normed = is_cosine || (normed(inner.q_norm) && normed(inner.k_norm));
    let all_normed = qk_normed && normed(inner.v_norm);
    if block.spec.attn.in_scale == ONE || !all_normed || inner.clip_qkv.is_some() {
        return Ok(());
    }
    block.fail(
        NoEffect,
        "attn.in_scale",
        "the norms on q, k and v cancel a scale on the attention input, so it has no effect; use \
         attn.out_scale",
    )
}

fn head_norms(block: &BlockContext) -> Result<(), PlacementError> {
    let inner = &block.spec.attn_inner;
    let full = |norm| matches!(norm, HeadNorm::Full | HeadNorm::FullNoGain);
    let has_no_gain = |norm| matches!(norm, HeadNorm::PerHeadNoGain | HeadNorm::FullNoGain);
    let normed = inner.q_norm != HeadNorm::None || inner.k_norm != HeadNorm::None;
    if inner.qk_order == QkOrder::AfterRope {
        if !normed {
            return block.fail(
                NoEffect,
                "attn_inner.qk_order",
                "q and k have no norm, so qk_order has no effect; set attn_inner.q_norm and k_norm \
                 or remove it",
            );
        }
        for (path, norm) in [
            ("attn_inner.q_norm", inner.q_norm),
            ("attn_inner.k_norm", inner.k_norm),
        ] {
            if full(norm) {
                return block.fail(
                    Conflict,
                    path,
                    "a norm over all heads after the rotary embedding is not supported; use \
                     `per_head` or qk_order = \"before_rope\"",
                );
            }
        }
    }
    if block.context.resolved.norm.has_alpha() {
        for (path, norm) in [
            ("attn_inner.q_norm", inner.q_norm),
            ("attn_inner.k_norm", inner.k_norm),
            ("attn_inner.v_norm", inner.v_norm),
            ("attn_inner.ctx_norm", inner.ctx_norm),
        ] {
            if has_no_gain(norm) {
                let problem = format!(
                    "{} have a learned α and cannot be used without parameters; use `per_head` or \
                     `full`",
                    names_with_alpha()
                );
                return block.fail(Conflict, path, problem);
            }
        }
    }
    qk_post_scale(block)
}

/// Checks that a separate eps has an effect: norms inside attention, of a function with eps.
fn norm_eps(block: &BlockContext) -> Result<(), PlacementError> {
    let path = "attn_inner.norm_eps";
    let inner = &block.spec.attn_inner;
    let Some(eps) = inner.norm_eps else {
        return Ok(());
    };
    positive(eps, &block.origin(path), "eps")?;
    if !(eps as f32).is_normal() {
        return block.fail(
            OutOfRange,
            path,
            format!("{eps} is out of range, expected a normal single-precision number"),
        );
    }
    let norms = [inner.q_norm, inner.k_norm, inner.v_norm, inner.ctx_norm];
    if norms.iter().all(|norm| *norm == HeadNorm::None) {
        return block.fail(
            NoEffect,
            path,
            "attention has no inner norm, so norm_eps has no effect; set a norm such as \
             attn_inner.q_norm or remove it",
        );
    }
    if block.context.resolved.norm.eps_term().is_none() {
        return block.fail(
            NoEffect,
            path,
            "the norm function has no eps, so it has no effect; remove it",
        );
    }
    Ok(())
}

fn qk_post_scale(block: &BlockContext) -> Result<(), PlacementError> {
    let path = "attn_inner.qk_post_scale";
    let inner = &block.spec.attn_inner;
    let both_normed = inner.q_norm != HeadNorm::None && inner.k_norm != HeadNorm::None;
    let has_gain = |norm| {
        !matches!(norm, HeadNorm::PerHeadNoGain | HeadNorm::FullNoGain)
            && block.context.resolved.norm.gain != Gain::None
    };
    match inner.qk_post_scale {
        ONE => Ok(()),
        ResolvedScale::Const(0.0) => block.fail(OutOfRange, path, "a factor of 0 removes queries and keys"),
        _ if inner.attn_scale == AttnScale::Cosine => block.fail(
            NoEffect,
            path,
            "cosine attention normalizes q and k to unit length, so a scale before it has no \
             effect",
        ),
        _ if !both_normed || block.context.has_no_norm_function() => block.fail(
            Conflict,
            path,
            "requires norms on both q and k, but at least one of them has none; set attn_inner.q_norm and k_norm, \
             or use attn_inner.attn_scale",
        ),
        ResolvedScale::Learned { .. } if has_gain(inner.q_norm) || has_gain(inner.k_norm) => block.fail(
            Conflict,
            path,
            "a learned scale is redundant with the learned gain of the norms on q and k; use norms \
             without gain",
        ),
        _ => Ok(()),
    }
}

fn scores(block: &BlockContext) -> Result<(), PlacementError> {
    let inner = &block.spec.attn_inner;
    for (path, cap) in [
        ("attn_inner.attn_softcap", inner.attn_softcap),
        ("attn_inner.clip_qkv", inner.clip_qkv),
    ] {
        if let Some(cap) = cap {
            positive(cap, &block.origin(path), "the limit")?;
        }
    }
    if let AttnScale::Const(scale) = inner.attn_scale {
        positive(scale, &block.origin("attn_inner.attn_scale"), "the scale")?;
    }
    if inner.attn_scale != AttnScale::Cosine {
        return Ok(());
    }
    for (path, norm) in [
        ("attn_inner.q_norm", inner.q_norm),
        ("attn_inner.k_norm", inner.k_norm),
    ] {
        if norm != HeadNorm::None {
            return block.fail(
                Conflict,
                path,
                "cosine attention already normalizes q and k to unit length; remove the norm",
            );
        }
    }
    Ok(())
}

fn ffn_inner(block: &BlockContext) -> Result<(), PlacementError> {
    let inner = &block.spec.ffn_inner;
    for (path, is_on, what) in [
        ("ffn_inner.gate_norm", inner.gate_norm, "norm"),
        ("ffn_inner.gate_scale", inner.gate_scale != ONE, "scale"),
    ] {
        if is_on && !block.context.facts.has_gated_activation {
            let problem = format!(
                "the model's activation has no gate, so a {what} on it has no effect; use a gated \
                 activation or remove it"
            );
            return block.fail(NoEffect, path, problem);
        }
    }
    for (path, scale) in [
        ("ffn_inner.gate_scale", inner.gate_scale),
        ("ffn_inner.up_scale", inner.up_scale),
    ] {
        if scale == ResolvedScale::Const(0.0) {
            return block.fail(
                OutOfRange,
                path,
                "a constant factor of 0 removes the feed-forward: its weights never receive a \
                 gradient",
            );
        }
    }
    up_scale(block, inner)
}

/// Rejects a scalar on the up projection of a gated activation that the next norm cancels.
fn up_scale(block: &BlockContext, inner: &FfnInner<ResolvedScale>) -> Result<(), PlacementError> {
    let is_number = !matches!(
        inner.up_scale,
        ResolvedScale::Learned {
            shape: LearnedShape::Vector,
            ..
        }
    );
    let is_normed = inner.mid_norm || block.spec.ffn.out_norm.is_some();
    let is_cancelled = block.context.facts.has_gated_activation
        && is_normed
        && block.context.resolved.norm.is_scale_invariant();
    if inner.up_scale == ONE || !is_number || !is_cancelled {
        return Ok(());
    }
    block.fail(
        NoEffect,
        "ffn_inner.up_scale",
        "the norm on the hidden activation or on the output cancels a scalar on the up projection, \
         so it has no effect; remove it or use a learned vector",
    )
}
