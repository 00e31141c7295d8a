//! Common keys of the families' `config.json`.

use serde::Deserialize;

use super::rope::RopeParameters;
use crate::model::Activation;

/// Keys that affect the computation in every family.
#[derive(Deserialize)]
pub(super) struct Common {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    #[serde(default = "default_initializer_range")]
    pub(super) initializer_range: f64,
    pub(super) hidden_act: Option<String>,
    /// Gemma's name of `hidden_act`.
    hidden_activation: Option<String>,
    pub(super) head_dim: Option<usize>,
    pub(super) attention_bias: Option<bool>,
    #[serde(default)]
    pub(super) attention_dropout: f64,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) rope_scaling: Option<RopeParameters>,
    pub(super) rope_parameters: Option<RopeParameters>,
    /// Base of the family's rotary embedding.
    #[serde(skip)]
    pub(super) default_rope_theta: f64,
}

/// Key of the activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ActivationKey {
    HiddenAct,
    /// Gemma's, which has no other.
    HiddenActivation,
}

fn default_initializer_range() -> f64 {
    0.02
}

impl Common {
    /// Returns the eps of the norms.
    pub(super) fn rms_norm_eps(&self) -> Result<f64, String> {
        self.rms_norm_eps
            .ok_or_else(|| "missing field `rms_norm_eps`".to_owned())
    }

    /// Returns the activation of gated feed-forwards.
    pub(super) fn gated_activation(&self, key: ActivationKey) -> Result<Activation, String> {
        let (key, name) = match (key, &self.hidden_activation) {
            (ActivationKey::HiddenActivation, Some(name)) => ("hidden_activation", name.as_str()),
            (ActivationKey::HiddenActivation, None) => {
                return Err("hidden_activation is null, expected a name".into());
            }
            (ActivationKey::HiddenAct, None) => {
                ("hidden_act", self.hidden_act.as_deref().unwrap_or("silu"))
            }
            (ActivationKey::HiddenAct, Some(name)) => {
                return Err(format!(
                    "hidden_activation {name:?}, expected none: this family has hidden_act"
                ));
            }
        };
        match name {
            "silu" | "swish" => Ok(Activation::Swiglu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::Geglu),
            other => Err(format!(
                "{key} {other:?}, expected \"silu\" or \"gelu_pytorch_tanh\""
            )),
        }
    }

    /// Rejects what no family supports.
    pub(super) fn reject_unsupported(&self) -> Result<(), String> {
        if self.attention_dropout != 0.0 {
            return Err("attention_dropout is set, which is not supported".into());
        }
        Ok(())
    }
}
