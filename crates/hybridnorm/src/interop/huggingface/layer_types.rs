//! Layers with sliding windows, and rotary embeddings that differ between layers.

use serde::Deserialize;

use super::config::Common;
use super::rope::LayerType;
use crate::model::{AttentionOverride, ModelConfig, Rope};
use crate::placement::Selector;

/// Rule by which layers have a sliding window where `layer_types` does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// The family has no windows.
    Never,
    /// All layers, if `sliding_window` is set.
    All,
    /// All layers, if `use_sliding_window` is true.
    AllIfEnabled,
    /// Layers from `max_window_layers` on, if `use_sliding_window` is true.
    LastIfEnabled,
    /// All layers except every n-th.
    AllButEvery(usize),
}

/// Keys of windows.
#[derive(Deserialize)]
pub(super) struct WindowKeys {
    /// Width of the window, in positions.
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl WindowKeys {
    /// Returns the type of every layer.
    pub(super) fn layer_types(
        &self,
        rule: Windows,
        n_layers: usize,
    ) -> Result<Vec<LayerType>, String> {
        let has_types = !matches!(rule, Windows::All | Windows::AllIfEnabled);
        match &self.layer_types {
            Some(types) if has_types => return self.given_types(types, n_layers),
            _ => {}
        }
        if let (Windows::Never, Some(window)) = (rule, self.sliding_window)
            && self.use_sliding_window != Some(false)
        {
            return Err(format!(
                "sliding_window {window} without layer_types, expected none in this family"
            ));
        }
        let is_enabled = self.sliding_window.is_some();
        let is_switched_on = is_enabled && self.use_sliding_window.unwrap_or(false);
        let is_sliding = |layer: usize| match rule {
            Windows::Never => false,
            Windows::All => is_enabled,
            Windows::AllIfEnabled => is_switched_on,
            Windows::LastIfEnabled => {
                is_switched_on && layer >= self.max_window_layers.unwrap_or(0)
            }
            Windows::AllButEvery(n) => is_enabled && !(layer + 1).is_multiple_of(n),
        };
        let types: Vec<LayerType> = (0..n_layers)
            .map(|layer| to_type(is_sliding(layer)))
            .collect();
        match &self.layer_types {
            Some(given) if self.given_types(given, n_layers)? != types => Err(
                "layer_types differs from sliding_window, by which alone this family has windows"
                    .into(),
            ),
            _ => Ok(types),
        }
    }

    fn given_types(&self, types: &[String], n_layers: usize) -> Result<Vec<LayerType>, String> {
        if types.len() != n_layers {
            return Err(format!(
                "layer_types has {} entries, expected num_hidden_layers = {n_layers}",
                types.len()
            ));
        }
        let of_name = |name: &String| match name.as_str() {
            "full_attention" => Ok(LayerType::Full),
            "sliding_attention" if self.sliding_window.is_none() => Err(
                "layer_types has \"sliding_attention\", but sliding_window is missing".to_owned(),
            ),
            "sliding_attention" => Ok(LayerType::Sliding),
            other => Err(format!(
                "layer_types has {other:?}, expected \"full_attention\" or \"sliding_attention\""
            )),
        };
        types.iter().map(of_name).collect()
    }

    /// Sets the model's rotary embedding and, for layers with another one or a window, overrides. A window as long as
    /// the longest sequence is none.
    pub(super) fn apply(
        &self,
        types: &[LayerType],
        common: &Common,
        sliding_rope: Option<Rope>,
        config: &mut ModelConfig,
    ) -> Result<(), String> {
        let (theta, scaling) = common.rope()?;
        let full = Rope::On { theta, scaling };
        let sliding = match sliding_rope {
            Some(rope) => rope,
            None => {
                common.reject_rope_by_layer_type()?;
                full
            }
        };
        let has_full = types.contains(&LayerType::Full);
        let base = if has_full { full } else { sliding };
        if let Rope::On { theta, scaling } = base {
            (config.rope_theta, config.rope_scaling) = (theta, scaling);
        }
        let longest = config.max_seq_len;
        let window = self.sliding_window.filter(|window| *window < longest);
        let layers: Vec<usize> = (0..types.len())
            .filter(|&layer| types[layer] == LayerType::Sliding)
            .collect();
        if layers.is_empty() || (window.is_none() && sliding == base) {
            return Ok(());
        }
        let layers = match has_full {
            true => Selector::Indices(layers),
            false => Selector::Range {
                start: 0,
                end: types.len(),
            },
        };
        let mut entry = AttentionOverride {
            window,
            ..AttentionOverride::of_layers(layers)
        };
        if let (Rope::On { theta, scaling }, true) = (sliding, sliding != base) {
            (entry.rope_theta, entry.rope_scaling) = (Some(theta), scaling);
        }
        config.attention_overrides.push(entry);
        Ok(())
    }
}

fn to_type(is_sliding: bool) -> LayerType {
    match is_sliding {
        true => LayerType::Sliding,
        false => LayerType::Full,
    }
}
