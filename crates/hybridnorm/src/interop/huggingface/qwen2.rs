//! Qwen 2 (arXiv 2407.10671): Pre-Norm with biases on queries, keys and values.

use super::family::Family;
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Layout};

const LAYOUT: Layout = Layout {
    attention_bias: AttentionBias::Qkv,
    windows: Windows::LastIfEnabled,
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
