//! Attention that differs between blocks: sliding windows and rotary embedding.

use serde::{Deserialize, Serialize};

use super::ModelConfig;
use super::rope::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::placement::{Selector, select_layers};

/// Key of the overrides in messages.
const KEY: &str = "model.attention_overrides";

/// Attention settings of some blocks, which override those of the model and of earlier overrides.
///
/// ```
/// use hybridnorm::model::{AttentionOverride, ModelConfig};
/// use hybridnorm::placement::{self, Selector};
///
/// let local = AttentionOverride {
///     window: Some(8),
///     ..AttentionOverride::of_layers(Selector::Every(2))
/// };
/// let config = ModelConfig::default()
///     .with_d_model(16)
///     .with_n_layers(4)
///     .with_n_heads(2)
///     .with_n_kv_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(8)
///     .with_max_seq_len(32)
///     .with_attention_overrides(vec![local])
///     .with_placement(placement::named("pre-norm")?);
/// config.resolve()?;
/// assert_eq!([0, 1].map(|layer| config.window_of_layer(layer)), [None, Some(8)]);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionOverride {
    /// The blocks.
    pub layers: Selector,
    /// Sliding window: the number of positions that a query attends to, its own included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Base of the rotary embedding; its frequencies are scaled as [`AttentionOverride::rope_scaling`] sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Scaling of the rotary frequencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// True for blocks without rotary embedding (NoPE, arXiv 2305.19466).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_rope: bool,
}

impl AttentionOverride {
    /// Returns an override of these blocks that sets nothing.
    pub fn of_layers(layers: Selector) -> Self {
        Self {
            layers,
            window: None,
            rope_theta: None,
            rope_scaling: None,
            no_rope: false,
        }
    }

    fn applies_to(&self, layer: usize, n_layers: usize) -> bool {
        select_layers(&self.layers, n_layers).is_ok_and(|layers| layers.contains(&layer))
    }

    /// Returns the rotary embedding, if this override sets it.
    fn rope(&self, base: &Rope) -> Option<Rope> {
        match (self.no_rope, self.rope_theta, self.rope_scaling) {
            (true, ..) => Some(Rope::Off),
            (false, None, None) => None,
            (false, theta, scaling) => Some(Rope::On {
                theta: theta.or(base.theta())?,
                scaling,
            }),
        }
    }
}

impl ModelConfig {
    /// Returns the sliding window of block `layer` (0-based), in positions.
    pub fn window_of_layer(&self, layer: usize) -> Option<usize> {
        let overrides = self.overrides_of_layer(layer);
        overrides.filter_map(|entry| entry.window).last()
    }

    /// Returns the rotary embedding of block `layer` (0-based).
    pub fn rope_of_layer(&self, layer: usize) -> Rope {
        let base = self.rope();
        let overrides = self.overrides_of_layer(layer);
        overrides
            .filter_map(|entry| entry.rope(&base))
            .last()
            .unwrap_or(base)
    }

    fn overrides_of_layer(&self, layer: usize) -> impl Iterator<Item = &AttentionOverride> {
        let applies = move |entry: &&AttentionOverride| entry.applies_to(layer, self.n_layers);
        self.attention_overrides.iter().filter(applies)
    }

    /// Checks the overrides of attention.
    pub(super) fn check_attention_overrides(&self) -> Result<()> {
        for (index, entry) in self.attention_overrides.iter().enumerate() {
            let key = format!("{KEY}[{index}]");
            let layers = select_layers(&entry.layers, self.n_layers).map_err(|error| {
                let key = format!("{key}.layers");
                Error::invalid_value(key.clone(), format!("{key}: {}", error.problem))
            })?;
            if layers.is_empty() {
                let reason = format!(": it selects none of the {} blocks", self.n_layers);
                return Err(Error::no_effect(format!("{key}.layers"), reason));
            }
            self.check_override(entry, &key)?;
        }
        Ok(())
    }

    fn check_override(&self, entry: &AttentionOverride, key: &str) -> Result<()> {
        let sets_rope = entry.no_rope || entry.rope_theta.is_some() || entry.rope_scaling.is_some();
        if entry.window.is_none() && !sets_rope {
            return Err(Error::no_effect(
                key,
                ": it sets neither a window nor the rotary embedding",
            ));
        }
        if let Some(window) = entry.window {
            self.check_window(window, key)?;
        }
        if sets_rope && self.rope() == Rope::Off {
            return Err(Error::no_effect(
                key,
                ": model.position_embedding is not \"rope\", so that no block has a rotary embedding",
            ));
        }
        if entry.no_rope && (entry.rope_theta.is_some() || entry.rope_scaling.is_some()) {
            let keys = [format!("{key}.no_rope"), format!("{key}.rope_theta")];
            return Err(Error::conflict(
                keys.each_ref().map(String::as_str),
                format!("{key} both removes and sets the rotary embedding"),
            ));
        }
        if let Some(theta) = entry.rope_theta {
            super::rope::check_theta(&format!("{key}.rope_theta"), theta)?;
        }
        match &entry.rope_scaling {
            Some(scaling) => scaling.check(&format!("{key}.rope_scaling")),
            None => Ok(()),
        }
    }

    fn check_window(&self, window: usize, key: &str) -> Result<()> {
        let key = format!("{key}.window");
        if self.mla.is_some() {
            let problem =
                format!("{key} = {window} with model.mla: latent attention has no sliding window");
            return Err(Error::conflict([&key, "model.mla"], problem));
        }
        if window == 0 {
            return Err(Error::out_of_range(key, window, "at least 1"));
        }
        match window < self.max_seq_len {
            true => Ok(()),
            false => Err(Error::no_effect(
                format!("{key} = {window}"),
                format!(
                    ": sequences have at most model.max_seq_len = {} positions",
                    self.max_seq_len
                ),
            )),
        }
    }
}
