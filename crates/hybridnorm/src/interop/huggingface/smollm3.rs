//! SmolLM3: Pre-Norm, with layers without rotary embedding.

use serde::Deserialize;

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, Draft, Layout};
use crate::model::AttentionOverride;
use crate::placement::Selector;

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""num_key_value_heads": 4, "tie_word_embeddings": true"#,
        rope_theta: 2_000_000.0,
    },
    has_mlp_bias_key: true,
    windows: Windows::Never,
    ..Layout::PRE_NORM
};

#[derive(Deserialize)]
struct Keys {
    /// 0 for layers without rotary embedding.
    no_rope_layers: Option<Vec<u8>>,
    /// Without `no_rope_layers`, every n-th layer has no rotary embedding.
    no_rope_layer_interval: Option<usize>,
}

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &LAYOUT, adapt)
}

fn adapt(keys: Keys, draft: &mut Draft) -> Result<(), String> {
    let n_layers = draft.config.n_layers;
    let interval = keys.no_rope_layer_interval.unwrap_or(4);
    let without: Vec<usize> = match &keys.no_rope_layers {
        Some(flags) if flags.len() != n_layers => {
            return Err(format!(
                "no_rope_layers has {} entries, expected num_hidden_layers = {n_layers}",
                flags.len()
            ));
        }
        Some(flags) => (0..n_layers).filter(|&layer| flags[layer] == 0).collect(),
        None if interval == 0 => return Err("no_rope_layer_interval 0, expected at least 1".into()),
        None => (0..n_layers)
            .filter(|layer| (layer + 1).is_multiple_of(interval))
            .collect(),
    };
    if !without.is_empty() {
        draft.config.attention_overrides.push(AttentionOverride {
            no_rope: true,
            ..AttentionOverride::of_layers(Selector::Indices(without))
        });
    }
    Ok(())
}
