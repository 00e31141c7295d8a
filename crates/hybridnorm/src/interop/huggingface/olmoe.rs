//! OLMoE (arXiv 2409.02060): Pre-Norm with experts, and norms on q and k over all heads.

use serde::Deserialize;

use super::family::Family;
use super::layout::{self, Layout};
use super::mixture::Mixture;

const LAYOUT: Layout = Layout {
    placement: "pre-norm-qk-full",
    mixture: Some(Mixture {
        count: "num_experts",
        width: "intermediate_size",
        always_renormalizes: false,
        load_balance: 1e-2,
        z_loss: 1e-3,
        path: "mlp",
        matrices: ["gate_proj", "up_proj", "down_proj"],
    }),
    ..Layout::PRE_NORM_QK
};

#[derive(Deserialize)]
struct Keys {
    clip_qkv: Option<f64>,
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &LAYOUT, |keys: Keys, _| match keys.clip_qkv {
        Some(clip) => Err(format!(
            "clip_qkv {clip}, expected none: this family clips after the norms, this crate before them"
        )),
        None => Ok(()),
    })
}
