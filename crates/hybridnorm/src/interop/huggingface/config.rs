//! What the families' `config.json` have in common.

use serde::Deserialize;
use serde_json::Value;

/// Keys that decide the computation of every family.
#[derive(Deserialize)]
pub(super) struct Common {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "eps")]
    pub(super) rms_norm_eps: f64,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    #[serde(default = "std")]
    pub(super) initializer_range: f64,
    #[serde(default = "silu")]
    hidden_act: String,
    pub(super) head_dim: Option<usize>,
    quantization_config: Option<Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    attention_dropout: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
}

/// Where newer versions of `transformers` write what concerns rotations.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    #[serde(default = "default_type")]
    rope_type: String,
    partial_rotary_factor: Option<f64>,
}

fn eps() -> f64 {
    1e-6
}
fn std() -> f64 {
    0.02
}
fn silu() -> String {
    "silu".into()
}
fn default_type() -> String {
    "default".into()
}

impl Common {
    /// The base of the rotations' wavelengths.
    pub(super) fn rope_theta(&self) -> Result<f64, String> {
        if let Some(scaling) = &self.rope_scaling
            && !scaling.is_null()
        {
            return Err(format!("rope_scaling {scaling}, expected none"));
        }
        let parameters = self.rope_parameters.as_ref();
        if let Some(other) = parameters.map(|p| &p.rope_type).filter(|t| *t != "default") {
            return Err(format!("rope_type {other:?}, expected \"default\""));
        }
        let partial = parameters.and_then(|parameters| parameters.partial_rotary_factor);
        if let Some(factor) = partial.filter(|factor| *factor != 1.0) {
            return Err(format!("partial_rotary_factor {factor}, expected 1"));
        }
        let newer = parameters.and_then(|parameters| parameters.rope_theta);
        Ok(newer.or(self.rope_theta).unwrap_or(10_000.0))
    }

    pub(super) fn refuse_what_is_not_there(&self) -> Result<(), String> {
        if self.hidden_act != "silu" {
            return Err(format!(
                "hidden_act {:?}, expected \"silu\"",
                self.hidden_act
            ));
        }
        if self
            .quantization_config
            .as_ref()
            .is_some_and(|q| !q.is_null())
        {
            return Err("quantization_config is set, expected weights as they are".into());
        }
        if self.attention_bias {
            return Err("attention_bias is set, which is not supported".into());
        }
        if self.attention_dropout != 0.0 {
            return Err("attention_dropout is set, which is not supported".into());
        }
        Ok(())
    }
}
