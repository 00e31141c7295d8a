//! Mistral (arXiv 2310.06825): Pre-Norm, with a sliding window in every layer.

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Layout};

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""num_key_value_heads": 8, "sliding_window": 4096"#,
        rope_theta: 10_000.0,
    },
    attention_bias: AttentionBias::Never,
    windows: Windows::All,
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
