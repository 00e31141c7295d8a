//! Qwen 3 (arXiv 2505.09388): Pre-Norm with norms on q and k of each head.

use super::dense::{self, Layout};
use super::family::Family;

const LAYOUT: Layout = Layout {
    placement: "pre-norm-qk",
    norms: &[
        ("input_layernorm", "attn.in_norm.gain"),
        ("self_attn.q_norm", "attention.q_norm.gain"),
        ("self_attn.k_norm", "attention.k_norm.gain"),
        ("post_attention_layernorm", "ffn.in_norm.gain"),
    ],
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    dense::read(json, &LAYOUT)
}
