//! Mixtral (arXiv 2401.04088): Pre-Norm with experts whose gate weights sum to 1.

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Layout};
use super::mixture::Mixture;

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""num_key_value_heads": 8"#,
        rope_theta: 1_000_000.0,
    },
    attention_bias: AttentionBias::Never,
    windows: Windows::All,
    mixture: Some(Mixture {
        count: "num_local_experts",
        width: "intermediate_size",
        always_renormalizes: true,
        load_balance: 1e-3,
        z_loss: 0.0,
        path: "block_sparse_moe",
        matrices: ["w1", "w3", "w2"],
    }),
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
