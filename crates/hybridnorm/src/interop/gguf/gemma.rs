//! Gemma 2 and 3 in GGUF: soft caps, sliding windows and their rotary base; the scale of the attention logits is not
//! stored, but follows from the size of the model.

use serde_json::{Map, Value as Json, json};

use super::keys::Keys;
use crate::model::{ModelConfig, Rope};

/// Sizes of a model.
pub(super) struct Sizes {
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) layers: usize,
}

/// Keys with their values.
pub(super) type Pairs = Vec<(&'static str, Json)>;

/// Differences between Gemma 2 and 3, as llama.cpp implements them.
#[derive(Debug)]
pub(super) struct Gemma {
    /// Number of layers of the model of 27 billion parameters, whose scale follows from `width / heads`.
    layers_of_27b: usize,
    /// Width of the windows if the file has none; `None`: no windows.
    window: Option<usize>,
    /// Caps of attention logits and of logits if the file has none.
    caps: [Option<f64>; 2],
    /// Base of the rotary embedding in layers with windows if the file has none; `None`: as in the others.
    local_theta: Option<f64>,
}

const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";
const ATTENTION_CAP: &str = "attn_logit_softcapping";
const FINAL_CAP: &str = "final_logit_softcapping";
const LOCAL_THETA: &str = "rope.freq_base_swa";
/// Key of [`LOCAL_THETA`] until [`Gemma::split_rope`].
const LOCAL_BASE: &str = "rope_local_base_freq";

pub(super) const GEMMA2: Gemma = Gemma {
    layers_of_27b: 46,
    window: Some(4096),
    caps: [Some(50.0), Some(30.0)],
    local_theta: None,
};

pub(super) const GEMMA3: Gemma = Gemma {
    layers_of_27b: 62,
    window: None,
    caps: [None, None],
    local_theta: Some(10_000.0),
};

impl Gemma {
    /// Returns the keys of a `config.json` besides those of all families.
    pub(super) fn read(&self, keys: &mut Keys, sizes: &Sizes) -> Result<Pairs, String> {
        let mut pairs = self.constants(sizes);
        let positive = |value: Option<f64>| value.filter(|value| *value != 0.0);
        for (key, default) in [ATTENTION_CAP, FINAL_CAP].into_iter().zip(self.caps) {
            pairs.push((key, json!(positive(keys.number(key)?.or(default)))));
        }
        let window = keys.integer(WINDOW)?.or(self.window);
        pairs.push(("sliding_window", json!(window.filter(|window| *window > 0))));
        if let Some(pattern) = keys.integer(PATTERN)? {
            pairs.push(("sliding_window_pattern", json!(pattern)));
        }
        if let Some(default) = self.local_theta {
            let theta = keys.number(LOCAL_THETA)?.unwrap_or(default);
            pairs.push((LOCAL_BASE, json!(theta)));
        }
        Ok(pairs)
    }

    /// Gives the rotary embedding of a `config.json` by type of layer, if layers differ in it.
    pub(super) fn split_rope(config: &mut Map<String, Json>) {
        let Some(theta) = config.remove(LOCAL_BASE) else {
            return;
        };
        let full = config.remove("rope_parameters");
        let sliding = json!({ "rope_type": "default", "rope_theta": theta });
        let tables = json!({ "full_attention": full, "sliding_attention": sliding });
        config.insert("rope_parameters".into(), tables);
    }

    /// Returns the keys of a `config.json` whose values files do not contain.
    fn constants(&self, sizes: &Sizes) -> Pairs {
        let scalar = match sizes.layers == self.layers_of_27b {
            true => sizes.width / sizes.heads.max(1),
            false => sizes.head_dim,
        };
        vec![
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("query_pre_attn_scalar", json!(scalar)),
        ]
    }

    /// Returns the keys of a `config.json` for a configuration, as [`Gemma::read`] does.
    pub(super) fn config_json(&self, config: &ModelConfig) -> Pairs {
        let mut pairs = self.constants(&Sizes {
            width: config.d_model,
            heads: config.n_heads,
            head_dim: config.head_dim(),
            layers: config.n_layers,
        });
        let placement = &config.placement;
        pairs.push((
            ATTENTION_CAP,
            json!(placement.block.attn_inner.attn_softcap),
        ));
        pairs.push((FINAL_CAP, json!(placement.logits.softcap)));
        pairs.push(("sliding_window", json!(self.window_of(config))));
        if self.local_theta.is_some() {
            pairs.push((LOCAL_BASE, json!(local_theta(config))));
        }
        pairs
    }

    /// Returns a setting that llama.cpp does not have for this family.
    pub(super) fn problem(&self, config: &ModelConfig) -> Option<String> {
        let caps = [
            config.placement.block.attn_inner.attn_softcap,
            config.placement.logits.softcap,
        ];
        if self.caps[0].is_some() && (caps.contains(&None) || !config.tie_embeddings) {
            return Some("attn_softcap, logits.softcap or tie_embeddings is not set".into());
        }
        (self.caps[0].is_none() && caps[0].is_some())
            .then(|| "attn_softcap is set, expected none".into())
    }

    /// Returns the keys of a file besides those of all families.
    pub(super) fn keys(&self, config: &ModelConfig) -> Pairs {
        let placement = &config.placement;
        let mut pairs = vec![(WINDOW, json!(self.window_of(config).unwrap_or(0)))];
        for (key, cap) in [
            (ATTENTION_CAP, placement.block.attn_inner.attn_softcap),
            (FINAL_CAP, placement.logits.softcap),
        ] {
            pairs.extend(cap.map(|cap| (key, json!(cap))));
        }
        if self.local_theta.is_some() {
            pairs.push((LOCAL_THETA, json!(local_theta(config))));
        }
        pairs
    }

    /// Returns the width of the windows; that of the longest sequence where layers differ in their rotary embedding only.
    fn window_of(&self, config: &ModelConfig) -> Option<usize> {
        let has_sliding = !config.attention_overrides.is_empty() || self.window.is_some();
        let window = config.window_of_layer(0).unwrap_or(config.max_seq_len);
        has_sliding.then_some(window)
    }
}

/// Returns the base of the rotary embedding of the first layer, which has a window if any has.
fn local_theta(config: &ModelConfig) -> f64 {
    match config.rope_of_layer(0) {
        Rope::On { theta, .. } => theta,
        Rope::Off => config.rope_theta,
    }
}
