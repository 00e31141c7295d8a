//! OLMo 2 (arXiv 2501.00656): norms on the outputs of sub-layers, and on q and k over all heads.

use super::family::Family;
use super::layout::{self, Layout};

pub(super) const LAYOUT: Layout = Layout {
    placement: "olmo2",
    norms: &[
        ("self_attn.q_norm", "attention.q_norm.gain"),
        ("self_attn.k_norm", "attention.k_norm.gain"),
        ("post_attention_layernorm", "attn.out_norm.gain"),
        ("post_feedforward_layernorm", "ffn.out_norm.gain"),
    ],
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
