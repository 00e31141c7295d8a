//! Common keys of the families' `config.json`.

use serde::Deserialize;
use serde_json::Value;

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
    pub(super) rms_norm_eps: f64,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    #[serde(default = "default_initializer_range")]
    pub(super) initializer_range: f64,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    pub(super) head_dim: Option<usize>,
    quantization_config: Option<Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    attention_dropout: f64,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
}

/// RoPE parameters, as newer versions of `transformers` write them.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    older_type: Option<String>,
    partial_rotary_factor: Option<f64>,
}

fn default_initializer_range() -> f64 {
    0.02
}
fn default_hidden_act() -> String {
    "silu".into()
}

impl Common {
    /// Returns the base of RoPE.
    pub(super) fn rope_theta(&self) -> Result<f64, String> {
        if let Some(scaling) = &self.rope_scaling
            && !scaling.is_null()
        {
            return Err(format!("rope_scaling {scaling}, expected none"));
        }
        let parameters = self.rope_parameters.as_ref();
        let types = parameters
            .into_iter()
            .flat_map(|p| [&p.rope_type, &p.older_type]);
        if let Some(other) = types.flatten().find(|found| *found != "default") {
            return Err(format!("rope_type {other:?}, expected \"default\""));
        }
        let partial = parameters.and_then(|parameters| parameters.partial_rotary_factor);
        let mut factors = [partial, self.partial_rotary_factor].into_iter().flatten();
        if let Some(factor) = factors.find(|factor| *factor != 1.0) {
            return Err(format!("partial_rotary_factor {factor}, expected 1"));
        }
        let newer = parameters.and_then(|parameters| parameters.rope_theta);
        match (newer, self.rope_theta) {
            (Some(newer), Some(older)) if newer != older => Err(format!(
                "rope_theta is {older}, and {newer} in rope_parameters; expected one of them"
            )),
            (newer, older) => Ok(newer.or(older).unwrap_or(10_000.0)),
        }
    }

    pub(super) fn reject_unsupported(&self) -> Result<(), String> {
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
            return Err("quantization_config is set, expected unquantized weights".into());
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
