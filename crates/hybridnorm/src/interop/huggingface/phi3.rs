//! Phi-3 (arXiv 2404.14219): Pre-Norm with packed projections and, in some models, rotation of a part of the channels.

use serde::Deserialize;

use super::family::Family;
use super::layer_types::Windows;
use super::layout::{self, AttentionBias, Draft, Layout};

const LAYOUT: Layout = Layout {
    attention_bias: AttentionBias::Never,
    windows: Windows::All,
    is_packed: true,
    ..Layout::PRE_NORM
};

#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    embd_pdrop: f64,
    #[serde(default)]
    resid_pdrop: f64,
    /// Used by `rope_type` `longrope` only, which is not supported.
    #[serde(rename = "original_max_position_embeddings")]
    _original_max_position_embeddings: Option<usize>,
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &LAYOUT, adapt)
}

fn adapt(keys: Keys, draft: &mut Draft) -> Result<(), String> {
    for (key, value) in [
        ("embd_pdrop", keys.embd_pdrop),
        ("resid_pdrop", keys.resid_pdrop),
    ] {
        if value != 0.0 {
            return Err(format!(
                "{key} {value}, expected 0: dropout is not supported"
            ));
        }
    }
    let head_dim = draft.config.head_dim();
    let factor = draft.common.partial_rotary_factor()?;
    if factor != 1.0 {
        draft.config.rope_dim = Some((head_dim as f64 * factor) as usize);
    }
    Ok(())
}
