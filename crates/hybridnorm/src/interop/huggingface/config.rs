//! Common keys of the families' `config.json`.

use serde::Deserialize;
use serde_json::Value;

use crate::model::RopeScaling;

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
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
}

/// Parameters of RoPE: `rope_scaling`, or `rope_parameters`, as newer versions of `transformers` write them.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    older_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
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
        let parameters = self.rope_parameters.as_ref();
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

    /// Returns the scaling of RoPE, if any.
    pub(super) fn rope_scaling(&self) -> Result<Option<RopeScaling>, String> {
        let [newer, older] = [&self.rope_parameters, &self.rope_scaling].map(Option::as_ref);
        for (name, parameters) in [("rope_parameters", newer), ("rope_scaling", older)] {
            parameters.map_or(Ok(()), |parameters| parameters.check_default(name))?;
        }
        let kind = |parameters: Option<&RopeParameters>| match parameters {
            Some(parameters) => parameters.kind(),
            None => Ok("default".to_owned()),
        };
        let (name, parameters, kind) = match (kind(newer)?, kind(older)?) {
            (kind, other) if kind != "default" && other == "default" => {
                ("rope_parameters", newer, kind)
            }
            (other, kind) if other == "default" => ("rope_scaling", older, kind),
            (newer, older) => {
                return Err(format!(
                    "rope_type is {older:?} in rope_scaling, and {newer:?} in rope_parameters; expected one of them"
                ));
            }
        };
        match parameters {
            Some(parameters) => parameters.scaling(&kind, self.max_position_embeddings, name),
            None => Ok(None),
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

impl RopeParameters {
    fn kind(&self) -> Result<String, String> {
        match (&self.rope_type, &self.older_type) {
            (Some(newer), Some(older)) if newer != older => Err(format!(
                "rope_type is {newer:?}, and type {older:?}; expected one of them"
            )),
            (newer, older) => {
                let kind = newer.as_ref().or(older.as_ref()).cloned();
                Ok(kind.unwrap_or_else(|| "default".into()))
            }
        }
    }

    /// Rejects parameters of a scaling where there is none.
    fn check_default(&self, name: &str) -> Result<(), String> {
        let values = [
            ("factor", self.factor),
            ("low_freq_factor", self.low_freq_factor),
            ("high_freq_factor", self.high_freq_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("attention_factor", self.attention_factor),
            ("mscale", self.mscale),
            ("mscale_all_dim", self.mscale_all_dim),
        ];
        let given = values.iter().find(|(_, value)| value.is_some());
        match given {
            Some((key, _)) if self.kind()? == "default" => Err(format!(
                "{name}.{key} is set, which has no effect with rope_type \"default\""
            )),
            _ => Ok(()),
        }
    }

    /// Returns the scaling of this kind; `longest` is `max_position_embeddings`, `name` the key of this table.
    fn scaling(
        &self,
        kind: &str,
        longest: usize,
        name: &str,
    ) -> Result<Option<RopeScaling>, String> {
        let required = |key: &str, value: Option<f64>| {
            value.ok_or_else(|| format!("{name}.{key} is missing for rope_type {kind:?}"))
        };
        let original = self.original_max_position_embeddings;
        match kind {
            "default" => Ok(None),
            // Changes the frequencies only beyond `max_position_embeddings`, the longest sequence of the model.
            "dynamic" if original.is_none_or(|original| original == longest) => Ok(None),
            "dynamic" => Err(format!(
                "{name}.original_max_position_embeddings {original:?} with rope_type \"dynamic\", expected none"
            )),
            "linear" => Ok(Some(RopeScaling::Linear {
                factor: required("factor", self.factor)?,
            })),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: required("factor", self.factor)?,
                low_freq_factor: required("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: required("high_freq_factor", self.high_freq_factor)?,
                original_max_seq_len: original.ok_or_else(|| {
                    format!(
                        "{name}.original_max_position_embeddings is missing for rope_type {kind:?}"
                    )
                })?,
            })),
            "yarn" => self.yarn(longest, name).map(Some),
            other => Err(format!(
                "rope_type {other:?}, expected \"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\""
            )),
        }
    }

    fn yarn(&self, longest: usize, name: &str) -> Result<RopeScaling, String> {
        if self.truncate == Some(false) {
            return Err(format!("{name}.truncate is false, expected true"));
        }
        let original_max_seq_len = self.original_max_position_embeddings.unwrap_or(longest);
        // With both lengths given, their ratio is the factor.
        let factor = match self.original_max_position_embeddings {
            Some(original) if self.factor.is_none() => longest as f64 / original as f64,
            _ => self
                .factor
                .ok_or_else(|| format!("{name}.factor is missing for rope_type \"yarn\""))?,
        };
        let magnitude = |mscale: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * mscale * factor.ln() + 1.0,
        };
        let attention_factor = match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                magnitude(mscale) / magnitude(all_dim)
            }
            _ => magnitude(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.beta_fast.unwrap_or(32.0),
            beta_slow: self.beta_slow.unwrap_or(1.0),
            original_max_seq_len,
            attention_factor,
        })
    }
}
