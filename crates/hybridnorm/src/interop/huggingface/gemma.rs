//! Gemma 2 (arXiv 2408.00118) and the text model of Gemma 3 (arXiv 2503.19786): norms on inputs and outputs of
//! sub-layers with gains `1 + g`, and sliding windows in a part of the layers.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::config::ActivationKey;
use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, Draft, Layout};
use crate::placement::AttnScale;

const NORMS: [(&str, &str); 6] = [
    ("input_layernorm", "attn.in_norm.gain"),
    ("post_attention_layernorm", "attn.out_norm.gain"),
    ("pre_feedforward_layernorm", "ffn.in_norm.gain"),
    ("post_feedforward_layernorm", "ffn.out_norm.gain"),
    ("self_attn.q_norm", "attention.q_norm.gain"),
    ("self_attn.k_norm", "attention.k_norm.gain"),
];

const GEMMA2: Layout = Layout {
    placement: "gemma2",
    defaults: Defaults {
        keys: r#""attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4, "sliding_window": 4096,
            "tie_word_embeddings": true"#,
        rope_theta: 10_000.0,
    },
    activation: ActivationKey::HiddenActivation,
    norms: NORMS.split_at(4).0,
    windows: Windows::AllButEvery(2),
    ..Layout::PRE_NORM
};

const GEMMA3: Layout = Layout {
    placement: "gemma3",
    defaults: Defaults {
        keys: r#""head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4,
            "rope_local_base_freq": 10000.0, "sliding_window": 4096, "tie_word_embeddings": true"#,
        rope_theta: 1_000_000.0,
    },
    activation: ActivationKey::HiddenActivation,
    norms: &NORMS,
    windows: Windows::AllButEvery(6),
    ..Layout::PRE_NORM
};

#[derive(Deserialize)]
struct Keys {
    /// The scale of the attention logits is one over its root.
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    /// Every n-th layer has no window.
    sliding_window_pattern: Option<usize>,
    /// The pattern of `layer_types` in newer files, without effect.
    #[serde(rename = "_sliding_window_pattern")]
    newer_sliding_window_pattern: Option<usize>,
    layer_types: Option<IgnoredAny>,
    /// Base of the rotary embedding in layers with a window; Gemma 2 has none.
    rope_local_base_freq: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// Reads a `config.json` of Gemma 2.
pub(super) fn read_gemma2(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &GEMMA2, adapt)
}

/// Reads a `config.json` of the text model of Gemma 3.
pub(super) fn read_gemma3(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &GEMMA3, adapt)
}

fn adapt(keys: Keys, draft: &mut Draft) -> Result<(), String> {
    if keys.use_bidirectional_attention == Some(true) {
        return Err("use_bidirectional_attention is true, expected false".into());
    }
    let scalar = keys.query_pre_attn_scalar;
    if !(scalar.is_finite() && scalar > 0.0) {
        return Err(format!(
            "query_pre_attn_scalar {scalar}, expected a positive number"
        ));
    }
    let head_dim = draft.config.head_dim();
    let inner = &mut draft.config.placement.block.attn_inner;
    inner.attn_scale = match scalar == head_dim as f64 {
        true => AttnScale::InvSqrtHeadDim,
        false => AttnScale::Const(scalar.powf(-0.5)),
    };
    inner.attn_softcap = keys.attn_logit_softcapping;
    draft.config.placement.logits.softcap = keys.final_logit_softcapping;
    let Windows::AllButEvery(default) = draft.windows else {
        unreachable!("this family has windows in a pattern")
    };
    let pattern = keys.sliding_window_pattern.unwrap_or(default);
    if pattern == 0 {
        return Err("sliding_window_pattern 0, expected at least 1".into());
    }
    if let (None, Some(other)) = (&keys.layer_types, keys.newer_sliding_window_pattern)
        && other != pattern
    {
        return Err(format!(
            "_sliding_window_pattern {other} without layer_types, expected {pattern}: only layer_types and \
             sliding_window_pattern have an effect"
        ));
    }
    draft.windows = Windows::AllButEvery(pattern);
    if let Some(theta) = keys.rope_local_base_freq {
        draft.sliding_rope = Some(draft.common.sliding_rope(theta)?);
    }
    Ok(())
}
