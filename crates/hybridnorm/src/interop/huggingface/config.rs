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
    /// Returns the tables of RoPE, by key.
    fn rope_tables(&self) -> impl Iterator<Item = (&'static str, &RopeParameters)> {
        let newer = self
            .rope_parameters
            .iter()
            .map(|table| ("rope_parameters", table));
        newer.chain(
            self.rope_scaling
                .iter()
                .map(|table| ("rope_scaling", table)),
        )
    }

    /// Returns the base of RoPE.
    pub(super) fn rope_theta(&self) -> Result<f64, String> {
        let partial = self
            .rope_tables()
            .map(|(_, table)| table.partial_rotary_factor);
        let mut factors = partial.chain([self.partial_rotary_factor]).flatten();
        if let Some(factor) = factors.find(|factor| *factor != 1.0) {
            return Err(format!("partial_rotary_factor {factor}, expected 1"));
        }
        let in_tables = self.rope_tables().map(|(_, table)| table.rope_theta);
        let given: Vec<f64> = in_tables.chain([self.rope_theta]).flatten().collect();
        match given.first() {
            None => Ok(10_000.0),
            Some(&first) => match given.iter().find(|other| **other != first) {
                None => Ok(first),
                Some(other) => Err(format!(
                    "rope_theta is both {first} and {other}; expected one of them"
                )),
            },
        }
    }

    /// Returns the scaling of RoPE, if any.
    pub(super) fn rope_scaling(&self) -> Result<Option<RopeScaling>, String> {
        let mut found = None;
        for (name, table) in self.rope_tables() {
            let scaling = table.scaling(self.max_position_embeddings, name)?;
            if found.is_some() && scaling.is_some() && found != scaling {
                return Err("rope_parameters and rope_scaling differ; expected one of them".into());
            }
            found = found.or(scaling);
        }
        Ok(found)
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

    /// Returns the first key that is set although only scaled frequencies have it.
    fn key_of_scaling(&self) -> Option<&'static str> {
        let keys = [
            ("factor", self.factor),
            ("low_freq_factor", self.low_freq_factor),
            ("high_freq_factor", self.high_freq_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("attention_factor", self.attention_factor),
            ("mscale", self.mscale),
            ("mscale_all_dim", self.mscale_all_dim),
        ];
        let mut set = keys.iter().filter(|(_, value)| value.is_some());
        set.next().map(|(key, _)| *key)
    }

    /// Returns the scaling, if any; `longest` is `max_position_embeddings`, `name` the key of this table.
    fn scaling(&self, longest: usize, name: &str) -> Result<Option<RopeScaling>, String> {
        let kind = self.kind()?;
        let missing = |key: &str| format!("{name}.{key} is missing for rope_type {kind:?}");
        let required = |key: &str, value: Option<f64>| value.ok_or_else(|| missing(key));
        let original = self.original_max_position_embeddings;
        match &*kind {
            "default" => match self.key_of_scaling() {
                None => Ok(None),
                Some(key) => Err(format!(
                    "{name}.{key} is set, which has no effect with rope_type \"default\""
                )),
            },
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
                original_max_seq_len: original
                    .ok_or_else(|| missing("original_max_position_embeddings"))?,
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
