//! Qwen 3 (arXiv 2505.09388): Pre-Norm with norms on q and k of each head.

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, Layout};

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""head_dim": 128, "max_window_layers": 28, "num_key_value_heads": 32, "sliding_window": 4096"#,
        rope_theta: 10_000.0,
    },
    windows: Windows::LastIfEnabled,
    ..Layout::PRE_NORM_QK
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
