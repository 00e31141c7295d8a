//! Mistral (arXiv 2310.06825): Pre-Norm, with a sliding window in every layer.

use super::family::Family;
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Layout};

const LAYOUT: Layout = Layout {
    attention_bias: AttentionBias::Never,
    windows: Windows::All,
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
