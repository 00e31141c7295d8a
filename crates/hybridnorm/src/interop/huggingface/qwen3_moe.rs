//! Qwen 3 with experts (arXiv 2505.09388).

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, Layout};
use super::mixture::Mixture;

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""num_key_value_heads": 4, "sliding_window": 4096"#,
        rope_theta: 10_000.0,
    },
    windows: Windows::AllIfEnabled,
    mixture: Some(Mixture {
        count: "num_experts",
        width: "moe_intermediate_size",
        always_renormalizes: false,
        load_balance: 1e-3,
        z_loss: 0.0,
        path: "mlp",
        matrices: ["gate_proj", "up_proj", "down_proj"],
    }),
    ..Layout::PRE_NORM_QK
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
