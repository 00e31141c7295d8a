//! Qwen 2 (arXiv 2407.10671): Pre-Norm with biases on queries, keys and values.

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Layout};

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""max_window_layers": 28, "num_key_value_heads": 32, "sliding_window": 4096"#,
        rope_theta: 10_000.0,
    },
    attention_bias: AttentionBias::Qkv,
    windows: Windows::LastIfEnabled,
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
