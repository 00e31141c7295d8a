//! `[model]`: shape and placement of the model.

use derive_setters::Setters;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::{
    Activation, AttentionOverride, Bias, MlaConfig, ModelConfig, MoeConfig, PositionEmbedding,
    RopeScaling,
};
use crate::placement;

/// `[model]`: shape and placement of the model.
///
/// ```
/// use hybridnorm::placement::NormSpec;
/// use hybridnorm::train::ModelSection;
///
/// let section = ModelSection::new("hybridnorm")
///     .with_d_model(16)
///     .with_n_layers(2)
///     .with_n_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(8)
///     .with_tie_embeddings(true);
/// let config = section.resolve(64, None)?;
/// assert_eq!((config.head_dim(), config.max_seq_len), (8, 64));
/// assert!(section.resolve(64, Some(9)).is_err(), "the vocabulary of the data is larger");
///
/// let norm = NormSpec { eps: 1e-6, ..NormSpec::default() };
/// assert_eq!(section.with_norm(norm).resolve(64, None)?.placement.norm.eps, 1e-6);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct ModelSection {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Width of a head; by default `d_model / n_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Number of key/value heads; by default as many as query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Inner width of a dense feed-forward; absent if every block is a mixture of experts.
    #[serde(default, skip_serializing_if = "crate::model::is_zero")]
    pub d_ff: usize,
    /// Rows of the embedding; by default the tokenizer's vocabulary size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Maximum sequence length; by default `train.seq_len`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    /// Embedding of positions.
    #[serde(default, skip_serializing_if = "PositionEmbedding::is_rope")]
    pub position_embedding: PositionEmbedding,
    /// Number of rotary channels of a head; by default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_dim: Option<usize>,
    /// Base of the rotary position embedding.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies for longer contexts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Sliding windows and rotary embeddings of some blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attention_overrides: Vec<AttentionOverride>,
    /// Biases of projections.
    #[serde(default, skip_serializing_if = "Bias::is_none")]
    pub bias: Bias,
    /// True if the output head shares the weights of the embedding.
    #[serde(default)]
    pub tie_embeddings: bool,
    /// Activation function of the feed-forward.
    #[serde(default)]
    pub activation: Activation,
    /// Mixture of experts instead of dense feed-forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// Multi-head latent attention instead of multi-head or grouped-query attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<MlaConfig>,
    /// A name, a [`placement::Placement`], or a table of placement fields (optionally with `base = "NAME"`).
    #[setters(into)]
    #[serde(default = "default_placement", deserialize_with = "deserialize_finite")]
    pub placement: Value,
    /// Fields of the norm function that override the placement; a [`placement::NormSpec`] overrides all.
    #[setters(into)]
    #[serde(
        default,
        deserialize_with = "deserialize_some_finite",
        skip_serializing_if = "Option::is_none"
    )]
    pub norm: Option<Value>,
    /// Fields of the initialization that override the placement; a [`placement::Init`] overrides all.
    #[setters(into)]
    #[serde(
        default,
        deserialize_with = "deserialize_some_finite",
        skip_serializing_if = "Option::is_none"
    )]
    pub init: Option<Value>,
}

impl ModelSection {
    /// Returns the section of a model with this placement and the default settings. Sizes are 0, which
    /// [`Config::check`](super::Config::check) rejects.
    pub fn new(placement: impl Into<Value>) -> Self {
        Self {
            d_model: 0,
            n_layers: 0,
            n_heads: 0,
            head_dim: None,
            n_kv_heads: None,
            d_ff: 0,
            vocab_size: None,
            max_seq_len: None,
            position_embedding: PositionEmbedding::default(),
            rope_dim: None,
            rope_theta: default_rope_theta(),
            rope_scaling: None,
            attention_overrides: Vec::new(),
            bias: Bias::default(),
            tie_embeddings: false,
            activation: Activation::default(),
            moe: None,
            mla: None,
            placement: placement.into(),
            norm: None,
            init: None,
        }
    }

    /// Serializes the section as TOML, with its heading.
    ///
    /// ```
    /// use hybridnorm::train::ModelSection;
    ///
    /// let section = ModelSection::new("pre-norm").with_d_model(16);
    /// assert!(section.to_toml().starts_with("[model]\nd_model = 16\n"));
    /// ```
    pub fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct File<'a> {
            model: &'a ModelSection,
        }
        toml::to_string(&File { model: self }).expect("a section is plain data")
    }

    /// Returns the model's configuration; `vocab` is the vocabulary size of the tokenizer or the data.
    ///
    /// # Errors
    /// If the placement is invalid, or a size is missing or contradicts another.
    pub fn resolve(&self, seq_len: usize, vocab: Option<usize>) -> Result<ModelConfig> {
        let vocab_size = self.resolve_vocab_size(vocab)?;
        let max_seq_len = self.max_seq_len.unwrap_or(seq_len);
        if max_seq_len < seq_len {
            return Err(Error::conflict(
                ["model.max_seq_len", "train.seq_len"],
                format!(
                    "model.max_seq_len = {max_seq_len} is smaller than train.seq_len = {seq_len}"
                ),
            ));
        }
        Ok(ModelConfig {
            d_model: self.d_model,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            head_dim: self.head_dim,
            n_kv_heads: self.n_kv_heads.unwrap_or(self.n_heads),
            d_ff: self.d_ff,
            vocab_size,
            max_seq_len,
            rope_theta: self.rope_theta,
            position_embedding: self.position_embedding,
            rope_dim: self.rope_dim,
            rope_scaling: self.rope_scaling,
            attention_overrides: self.attention_overrides.clone(),
            bias: self.bias,
            tie_embeddings: self.tie_embeddings,
            activation: self.activation,
            moe: self.moe.clone(),
            mla: self.mla,
            placement: self.placement()?,
        })
    }

    /// Returns the rows of the embedding; `vocab` is the vocabulary size of the tokenizer or the data.
    fn resolve_vocab_size(&self, vocab: Option<usize>) -> Result<usize> {
        match (self.vocab_size, vocab) {
            (Some(given), Some(needed)) if given < needed => Err(Error::conflict(
                ["model.vocab_size"],
                format!(
                    "model.vocab_size = {given} is smaller than the data's vocabulary of {needed}"
                ),
            )),
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Err(Error::missing(
                "model.vocab_size",
                ", and neither a tokenizer nor the data determines it",
            )),
        }
    }

    /// Returns the placement with the overrides of `norm` and `init`.
    fn placement(&self) -> Result<placement::Placement> {
        let mut value = match &self.placement {
            Value::String(name) => Map::from_iter([("base".to_owned(), name.clone().into())]),
            Value::Object(table) => table.clone(),
            _ => {
                return Err(Error::invalid_value(
                    "model.placement",
                    "model.placement must be a name or a table, as in placement = \"pre-norm\" or placement = { base \
                     = \"pre-norm\" }",
                ));
            }
        };
        for (key, patch) in [("norm", &self.norm), ("init", &self.init)] {
            let Some(patch) = patch else { continue };
            let Value::Object(patch) = patch else {
                return Err(not_a_table(key));
            };
            let slot = value
                .entry(key)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(slot) = slot {
                slot.extend(patch.clone());
            }
        }
        Ok(placement::from_value(Value::Object(value))?)
    }
}

/// The section of a model. Its placement is a name where it is a named one, otherwise a table with the differences from
/// the nearest named one.
impl From<&ModelConfig> for ModelSection {
    fn from(config: &ModelConfig) -> Self {
        Self {
            d_model: config.d_model,
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            head_dim: config.head_dim,
            n_kv_heads: Some(config.n_kv_heads),
            d_ff: config.d_ff,
            vocab_size: Some(config.vocab_size),
            max_seq_len: Some(config.max_seq_len),
            position_embedding: config.position_embedding,
            rope_dim: config.rope_dim,
            rope_theta: config.rope_theta,
            rope_scaling: config.rope_scaling,
            attention_overrides: config.attention_overrides.clone(),
            bias: config.bias,
            tie_embeddings: config.tie_embeddings,
            activation: config.activation,
            moe: config.moe.clone(),
            mla: config.mla,
            placement: shortest_form(&config.placement),
            norm: None,
            init: None,
        }
    }
}

/// Returns a placement as the name of a named one, or as a table of the fewest differences from one.
fn shortest_form(placement: &placement::Placement) -> Value {
    let value = |placement: &placement::Placement| {
        without_null(serde_json::to_value(placement).expect("a placement has a JSON form"))
    };
    let full = value(placement);
    let mut forms = Vec::new();
    for named in placement::named_placements() {
        let patch = match difference(&full, &value(&named.placement())) {
            None => return named.name.into(),
            Some(patch) => patch,
        };
        let count = leaves(&patch);
        if let Value::Object(mut table) = patch {
            table.insert("base".to_owned(), named.name.into());
            forms.push((count, Value::Object(table)));
        }
    }
    forms.sort_by_key(|(count, _)| *count);
    let is_equal =
        |form: &Value| placement::from_value(form.clone()).is_ok_and(|parsed| parsed == *placement);
    let shortest = forms.into_iter().map(|(_, form)| form).find(is_equal);
    shortest.unwrap_or(full)
}

/// Returns the part of `value` that differs from `base`; `None` if nothing does.
fn difference(value: &Value, base: &Value) -> Option<Value> {
    match (value, base) {
        _ if value == base => None,
        (Value::Object(value), Value::Object(base)) => {
            let differing = value.iter().filter_map(|(key, value)| {
                let found = match base.get(key) {
                    Some(base) => difference(value, base)?,
                    None => value.clone(),
                };
                Some((key.clone(), found))
            });
            Some(Value::Object(differing.collect()))
        }
        _ => Some(value.clone()),
    }
}

/// Counts the values of a table and of the tables in it.
fn leaves(value: &Value) -> usize {
    match value {
        Value::Object(table) => table.values().map(leaves).sum(),
        _ => 1,
    }
}

/// Removes keys without a value, which TOML cannot express.
fn without_null(value: Value) -> Value {
    match value {
        Value::Object(table) => Value::Object(
            table
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_null(value)))
                .collect(),
        ),
        Value::Array(items) => items.into_iter().map(without_null).collect(),
        value => value,
    }
}

/// Returns the error for `model.norm` or `model.init` that is not a table.
fn not_a_table(key: &str) -> Error {
    let example = match key {
        "norm" => {
            "norm = { kind = \"rmsnorm\" }; the norm placement is set with placement = \"pre-norm\""
        }
        _ => "init = { scheme = \"normal\" }",
    };
    Error::invalid_value(
        format!("model.{key}"),
        format!("model.{key} must be a table, as in {example}"),
    )
}

/// Deserializes a JSON value; rejects non-finite numbers, which TOML allows and `serde_json` turns into null.
fn deserialize_finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(fields) => fields.values().any(has_null),
            _ => false,
        }
    }
    let value = Value::deserialize(deserializer)?;
    match has_null(&value) {
        true => Err(de::Error::custom("nan and inf are not allowed")),
        false => Ok(value),
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Finite(#[serde(deserialize_with = "deserialize_finite")] pub(super) Value);

fn deserialize_some_finite<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    deserialize_finite(d).map(Some)
}

fn default_rope_theta() -> f64 {
    ModelConfig::default().rope_theta
}

fn default_placement() -> Value {
    "hybridnorm".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Config;

    fn assert_round_trip(placement: placement::Placement) -> ModelSection {
        let config = ModelConfig::default()
            .with_d_model(16)
            .with_n_layers(2)
            .with_n_heads(2)
            .with_n_kv_heads(1)
            .with_d_ff(32)
            .with_vocab_size(9)
            .with_max_seq_len(8)
            .with_rope_theta(5e5)
            .with_placement(placement);
        let section = ModelSection::from(&config);
        let parsed = Config::parse(&section.to_toml(), &["train.seq_len=8".to_owned()])
            .unwrap()
            .model
            .unwrap();
        assert_eq!(parsed.resolve(8, None).unwrap(), config);
        section
    }

    #[test]
    fn section_of_a_model_resolves_to_it() {
        for named in placement::named_placements() {
            let section = assert_round_trip(named.placement());
            assert_eq!(section.placement, named.name);
        }
        let mut other = placement::named("gemma2").unwrap();
        other.norm.eps = 1e-3;
        other.block.attn_inner.attn_softcap = Some(7.0);
        let expected = serde_json::json!({
            "base": "gemma2",
            "block": {"attn_inner": {"attn_softcap": 7.0}},
            "norm": {"eps": 1e-3},
        });
        assert_eq!(assert_round_trip(other).placement, expected);
    }
}
