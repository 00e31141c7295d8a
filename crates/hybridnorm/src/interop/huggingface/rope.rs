//! Rotary embedding in `config.json`.

use serde::Deserialize;

use super::config::Common;
use crate::model::{Rope, RopeScaling};

/// Parameters of RoPE: `rope_scaling`, or `rope_parameters`, as newer versions of `transformers` write them.
#[derive(Deserialize)]
pub(super) struct RopeParameters {
    pub(super) rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`.
    #[serde(rename = "type")]
    older_type: Option<String>,
    pub(super) partial_rotary_factor: Option<f64>,
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
    /// The tables of each type of layer, in place of the keys above.
    full_attention: Option<Box<RopeParameters>>,
    sliding_attention: Option<Box<RopeParameters>>,
}

/// Type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerType {
    /// Attention to all positions.
    Full,
    /// Attention within a sliding window.
    Sliding,
}

impl Common {
    /// Returns the tables of RoPE for layers without a window, by key.
    fn rope_tables(&self) -> Vec<(&'static str, &RopeParameters)> {
        let newer = self
            .rope_parameters
            .iter()
            .map(|table| match &table.full_attention {
                Some(nested) => ("rope_parameters.full_attention", &**nested),
                None => ("rope_parameters", table),
            });
        let older = self.rope_scaling.iter();
        newer
            .chain(older.map(|table| ("rope_scaling", table)))
            .collect()
    }

    /// True if `rope_parameters` has a table for each type of layer.
    pub(super) fn has_rope_by_layer_type(&self) -> bool {
        let tables = self.rope_parameters.as_ref();
        tables.is_some_and(|table| {
            table.full_attention.is_some() || table.sliding_attention.is_some()
        })
    }

    /// Rejects a table for each type of layer.
    pub(super) fn reject_rope_by_layer_type(&self) -> Result<(), String> {
        match self.has_rope_by_layer_type() {
            true => {
                Err("rope_parameters has types of layers, which this family does not have".into())
            }
            false => Ok(()),
        }
    }

    /// Returns the rotary embedding of layers with a window, in a family that has one for each type of layer; `theta` is
    /// its base where no table has it.
    pub(super) fn sliding_rope(&self, theta: f64) -> Result<Rope, String> {
        let tables = self.rope_parameters.as_ref();
        if tables.is_some() && !self.has_rope_by_layer_type() {
            return Err(
                "rope_parameters has no full_attention and sliding_attention, the types of layers of this family"
                    .into(),
            );
        }
        let table = tables.and_then(|tables| tables.sliding_attention.as_ref());
        if let Some(factor) = table.and_then(|table| table.partial_rotary_factor) {
            return Err(format!(
                "rope_parameters.sliding_attention.partial_rotary_factor {factor}, expected none"
            ));
        }
        match table {
            None => Ok(Rope::On {
                theta,
                scaling: None,
            }),
            Some(table) => Ok(Rope::On {
                theta: table.rope_theta.unwrap_or(theta),
                scaling: table.scaling(
                    self.max_position_embeddings,
                    "rope_parameters.sliding_attention",
                )?,
            }),
        }
    }

    /// Returns the rotary embedding of layers without a window: base and scaling.
    pub(super) fn rope(&self) -> Result<(f64, Option<RopeScaling>), String> {
        Ok((self.rope_theta()?, self.scaling()?))
    }

    /// Returns the rotary embedding of a family that rotates all channels of all layers alike: base and scaling.
    pub(super) fn uniform_rope(&self) -> Result<(f64, Option<RopeScaling>), String> {
        self.reject_partial_rotation()?;
        self.reject_rope_by_layer_type()?;
        self.rope()
    }

    /// Returns the factor of the attention logits of DeepSeek's YaRN: `(0.1 mscale_all_dim ln(factor) + 1)²`.
    pub(super) fn yarn_logit_factor(&self) -> f64 {
        let tables = self.rope_tables();
        let found = tables
            .iter()
            .find_map(|(_, table)| table.factor.zip(table.mscale_all_dim));
        match found {
            Some((factor, all_dim)) if all_dim != 0.0 => magnitude(factor, all_dim).powi(2),
            _ => 1.0,
        }
    }

    /// Returns the base of RoPE.
    fn rope_theta(&self) -> Result<f64, String> {
        let tables = self.rope_tables();
        let in_tables = tables.iter().map(|(_, table)| table.rope_theta);
        let given: Vec<f64> = in_tables.chain([self.rope_theta]).flatten().collect();
        match given.first() {
            None => Ok(self.default_rope_theta),
            Some(&first) => match given.iter().find(|other| **other != first) {
                None => Ok(first),
                Some(other) => Err(format!(
                    "rope_theta is both {first} and {other}; expected one of them"
                )),
            },
        }
    }

    /// Returns the scaling of RoPE, if any.
    fn scaling(&self) -> Result<Option<RopeScaling>, String> {
        let mut found = None;
        for (name, table) in self.rope_tables() {
            table.reject_mixed_tables(name)?;
            let scaling = table.scaling(self.max_position_embeddings, name)?;
            if found.is_some() && scaling.is_some() && found != scaling {
                return Err("rope_parameters and rope_scaling differ; expected one of them".into());
            }
            found = found.or(scaling);
        }
        Ok(found)
    }

    /// Returns the share of a head's channels that is rotated.
    pub(super) fn partial_rotary_factor(&self) -> Result<f64, String> {
        let tables = self.rope_tables();
        let in_tables = tables.iter().map(|(_, table)| table.partial_rotary_factor);
        let given: Vec<f64> = in_tables
            .chain([self.partial_rotary_factor])
            .flatten()
            .collect();
        match given[..] {
            [] => Ok(1.0),
            [first, ..] if given.iter().any(|other| *other != first) => {
                Err("partial_rotary_factor is given twice, with different values".into())
            }
            [factor, ..] if factor > 0.0 && factor <= 1.0 => Ok(factor),
            [factor, ..] => Err(format!(
                "partial_rotary_factor {factor}, expected a number up to 1"
            )),
        }
    }

    pub(super) fn reject_partial_rotation(&self) -> Result<(), String> {
        match self.partial_rotary_factor()? {
            1.0 => Ok(()),
            factor => Err(format!("partial_rotary_factor {factor}, expected 1")),
        }
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

    /// Rejects keys beside the tables of each type of layer.
    fn reject_mixed_tables(&self, name: &str) -> Result<(), String> {
        let has_tables = self.full_attention.is_some() || self.sliding_attention.is_some();
        let has_keys =
            self.rope_type.is_some() || self.older_type.is_some() || self.rope_theta.is_some();
        match has_tables && (has_keys || self.key_of_scaling().is_some()) {
            true => Err(format!(
                "{name} has both keys and tables of types of layers; expected one of them"
            )),
            false => Ok(()),
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
        let attention_factor = match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                magnitude(factor, mscale) / magnitude(factor, all_dim)
            }
            _ => magnitude(factor, 1.0),
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

/// Returns YaRN's factor of cosines and sines for frequencies divided by `factor` (arXiv 2309.00071).
fn magnitude(factor: f64, mscale: f64) -> f64 {
    match factor <= 1.0 {
        true => 1.0,
        false => 0.1 * mscale * factor.ln() + 1.0,
    }
}
