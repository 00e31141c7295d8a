//! Llama (arXiv 2302.13971, 2407.21783) and Mistral (arXiv 2310.06825): Pre-Norm.

use super::dense::{self, Layout};
use super::family::Family;

const LAYOUT: Layout = Layout {
    placement: "pre-norm",
    norms: &[
        ("input_layernorm", "attn.in_norm.gain"),
        ("post_attention_layernorm", "ffn.in_norm.gain"),
    ],
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    dense::read(json, &LAYOUT)
}
