//! HybridNorm and the ablation family of its paper (arXiv 2503.04598, appendix G).
//!
//! With `#` a subset of q, k, v and the context c, `#-post` has norms on the subset, no input norm before attention
//! and a normalized feed-forward skip; `#-pre` has a raw feed-forward skip; the prefix `pre-` adds the input norm
//! before attention. Head norms are per head, before the rotary embedding, with one gain for
//! all heads. All members use the official initialization, `full_megatron` with σ = 1/√(2.5·d), so
//! that they differ in norms only.

use serde_json::json;

use super::super::spec::{Formula, HeadNorm, InitScheme, Placement, Scale, Selector, StdRule};
use super::build::*;

fn family() -> Placement {
    base().init(InitScheme::Megatron, StdRule::SmallInit)
}

/// `Y = X + A_#(X);  X' = N(Y) + F(N(Y))`
fn subset_post(subset: &'static str) -> Placement {
    family()
        .inner(head_norms(subset, HeadNorm::PerHead))
        .ffn(normed_skip)
}

/// `Y = X + A_#(X);  X' = Y + F(N(Y))`
fn subset_pre(subset: &'static str) -> Placement {
    family()
        .inner(head_norms(subset, HeadNorm::PerHead))
        .ffn(in_norm)
}

fn first_block() -> Selector {
    Selector::Indices(vec![0])
}

pub(super) fn hybridnorm() -> Placement {
    subset_post("qkv")
}

pub(super) fn hybridnorm_star() -> Placement {
    hybridnorm().override_blocks(
        first_block(),
        json!({ "attn": { "in_norm": true }, "ffn": { "skip": "raw" } }),
    )
}

pub(super) fn hybridnorm_7b() -> Placement {
    hybridnorm_star().attn(out_norm_from(formula(Formula::InvSqrt2Depth)))
}

/// The SiameseNorm paper divides by √(l₀+1), i.e. √l; the authors' two-stream code divides by √(2l).
pub(super) fn hybridnorm_ds() -> Placement {
    hybridnorm().sub_layers(out_scale(Scale::Formula(Formula::InvSqrtLayer)))
}

pub(super) fn first_qkv_pre() -> Placement {
    hybridnorm().override_blocks(first_block(), json!({ "ffn": { "skip": "raw" } }))
}

pub(super) fn first_embed_norm() -> Placement {
    let mut placement = hybridnorm();
    placement.embed.norm = true;
    placement
}

pub(super) fn qkv_pre() -> Placement {
    subset_pre("qkv")
}

pub(super) fn pre_qkv_pre() -> Placement {
    subset_pre("qkv").attn(in_norm)
}

pub(super) fn pre_qkv_post() -> Placement {
    subset_post("qkv").attn(in_norm)
}

pub(super) fn qkvc_post() -> Placement {
    subset_post("qkvc")
}

pub(super) fn qkc_post() -> Placement {
    subset_post("qkc")
}

pub(super) fn kv_post() -> Placement {
    subset_post("kv")
}

pub(super) fn kc_post() -> Placement {
    subset_post("kc")
}

pub(super) fn qk_post() -> Placement {
    subset_post("qk")
}

pub(super) fn pre_post() -> Placement {
    family().attn(in_norm).ffn(normed_skip)
}

pub(super) fn post_pre() -> Placement {
    family().attn(normed_skip).ffn(in_norm)
}
