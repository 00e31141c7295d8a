//! Configuration of a model's shape.

mod attention_override;
mod bias;
mod latent;
mod mixture;
mod rope;

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::placement::{ModelFacts, Placement, Resolved, Warning, resolve, validate};
pub use hybridnorm_kernels::activation::Activation;

pub use attention_override::AttentionOverride;
pub use bias::Bias;
pub use latent::MlaConfig;
pub use mixture::{MoeConfig, Scoring};
#[cfg(feature = "interop")]
pub(crate) use rope::yarn_ramp;
pub use rope::{PositionEmbedding, Rope, RopeScaling};

/// Maximum width of the residual stream and of the feed-forward, bounded so that no count in
/// `model/counts.rs` overflows 64 bits.
const MAX_WIDTH: usize = 1 << 20;
/// Maximum vocabulary size and sequence length, and bound of every other size.
const MAX_SIZE: usize = 1 << 24;
/// Default base of the rotary embedding.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// Shape of a decoder and its placement of norms. Widths are in elements.
///
/// ```
/// use hybridnorm::model::ModelConfig;
/// use hybridnorm::placement;
///
/// let config = ModelConfig::default()
///     .with_d_model(16)
///     .with_n_layers(2)
///     .with_n_heads(4)
///     .with_n_kv_heads(2)
///     .with_d_ff(40)
///     .with_vocab_size(50)
///     .with_max_seq_len(32)
///     .with_placement(placement::named("hybridnorm")?);
/// let (resolved, _warnings) = config.resolve()?;
/// assert_eq!(resolved.blocks.len(), 2);
/// assert_eq!(config.head_dim(), 4);
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Width of the residual stream, d.
    pub d_model: usize,
    /// Number of blocks, L.
    pub n_layers: usize,
    /// Number of query heads, h.
    pub n_heads: usize,
    /// Width of a head, k, an even number; `None`: `d_model / n_heads`, or as [`MlaConfig`] sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Number of key/value heads, g; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Inner width of a dense feed-forward, f: the input of the down projection. 0 if there is none.
    #[serde(default)]
    pub d_ff: usize,
    /// Vocabulary size: rows of the embedding, v.
    pub vocab_size: usize,
    /// Maximum sequence length, in tokens.
    pub max_seq_len: usize,
    /// Embedding of positions.
    #[serde(default, skip_serializing_if = "PositionEmbedding::is_rope")]
    pub position_embedding: PositionEmbedding,
    /// Number of rotary channels of a head, an even number; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_dim: Option<usize>,
    /// Base of the rotary position embedding.
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
    pub tie_embeddings: bool,
    /// Activation function of the feed-forward.
    pub activation: Activation,
    /// Mixture of experts instead of dense feed-forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// Multi-head latent attention instead of multi-head or grouped-query attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mla: Option<MlaConfig>,
    /// Norms and skip connections of every block, norm function, and initialization.
    pub placement: Placement,
}

impl Default for ModelConfig {
    /// Returns the default settings. Sizes are 0, which [`ModelConfig::resolve`] rejects, and no placement is
    /// chosen.
    fn default() -> Self {
        Self {
            d_model: 0,
            n_layers: 0,
            n_heads: 0,
            head_dim: None,
            n_kv_heads: 0,
            d_ff: 0,
            vocab_size: 0,
            max_seq_len: 0,
            position_embedding: PositionEmbedding::default(),
            rope_dim: None,
            rope_theta: DEFAULT_ROPE_THETA,
            rope_scaling: None,
            attention_overrides: Vec::new(),
            bias: Bias::default(),
            tie_embeddings: false,
            activation: Activation::default(),
            moe: None,
            mla: None,
            placement: Placement::default(),
        }
    }
}

/// True if a size is omitted in serialization.
pub(crate) fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl ModelConfig {
    /// Returns the width of a head's query and key, k; 0 while `n_heads` is 0, as by default.
    pub fn head_dim(&self) -> usize {
        match (&self.mla, self.head_dim) {
            (Some(mla), _) => mla.head_dim(),
            (None, Some(head_dim)) => head_dim,
            (None, None) => self.d_model.checked_div(self.n_heads).unwrap_or(0),
        }
    }

    /// Returns the width of a head's value.
    pub fn value_dim(&self) -> usize {
        self.mla.map_or(self.head_dim(), |mla| mla.v_dim)
    }

    /// Returns the number of rotary channels of a head.
    pub fn rope_dim(&self) -> usize {
        match (&self.mla, self.rope_dim) {
            (Some(mla), _) => mla.rope_dim,
            (None, Some(rope_dim)) => rope_dim,
            (None, None) => self.head_dim(),
        }
    }

    /// Returns the rotary embedding of blocks without an override.
    pub fn rope(&self) -> Rope {
        match self.position_embedding {
            PositionEmbedding::Rope => Rope::On {
                theta: self.rope_theta,
                scaling: self.rope_scaling,
            },
            PositionEmbedding::Learned | PositionEmbedding::None => Rope::Off,
        }
    }

    /// Returns the frequencies of the rotary channel pairs of block `layer` (0-based), and the factor of their cosines
    /// and sines; see [`Rope::frequencies`].
    pub fn rope_frequencies(&self, layer: usize) -> (Vec<f64>, f64) {
        let width = self.mla.map_or(self.head_dim(), |mla| mla.rope_dim);
        self.rope_of_layer(layer)
            .frequencies(self.rope_dim(), width)
    }

    /// Returns the number of cached elements per position of a block.
    pub fn cache_width(&self) -> usize {
        match &self.mla {
            Some(mla) => mla.cache_width(),
            None => 2 * self.n_kv_heads * self.head_dim(),
        }
    }

    /// Returns the rows of a feed-forward's input projection of inner width `f`: 2f if gated, else f.
    pub fn ffn_in_width(&self, f: usize) -> usize {
        f * if self.activation.is_gated() { 2 } else { 1 }
    }

    /// Returns the mixture of experts of block `layer` (0-based), unless its feed-forward is dense.
    pub fn moe_of_layer(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe.as_ref().filter(|moe| moe.applies_to_layer(layer))
    }

    /// Returns the number of blocks with a dense feed-forward.
    pub fn n_dense_layers(&self) -> usize {
        let first_dense = |moe: &MoeConfig| moe.first_dense;
        self.moe.as_ref().map_or(self.n_layers, first_dense)
    }

    /// Returns the properties of the model that validating and explaining a placement depend on.
    pub fn facts(&self) -> ModelFacts {
        ModelFacts {
            d_model: self.d_model,
            head_dim: self.head_dim(),
            has_gated_activation: self.activation.is_gated(),
            is_latent_attention: self.mla.is_some(),
        }
    }

    /// Checks the shape and the placement, and resolves the placement for this depth.
    ///
    /// # Errors
    /// An error that names the key, its value and its allowed values.
    pub fn resolve(&self) -> Result<(Resolved, Vec<Warning>)> {
        self.check_shape()?;
        let warnings = validate(&self.placement, self.n_layers, &self.facts())?;
        let resolved = resolve(&self.placement, self.n_layers, self.d_model)?;
        Ok((resolved, warnings))
    }

    fn check_shape(&self) -> Result<()> {
        let sizes = [
            ("d_model", self.d_model, MAX_WIDTH),
            ("n_layers", self.n_layers, MAX_SIZE),
            ("n_heads", self.n_heads, MAX_SIZE),
            ("n_kv_heads", self.n_kv_heads, MAX_SIZE),
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("max_seq_len", self.max_seq_len, MAX_SIZE),
        ];
        let key = |key: &str| format!("model.{key}");
        if let Some((name, ..)) = sizes.iter().find(|(_, value, _)| *value == 0) {
            return Err(Error::out_of_range(key(name), 0, "at least 1"));
        }
        if let Some(moe) = &self.moe {
            moe.check(self.n_layers)?;
        }
        self.check_feed_forward()?;
        self.check_heads()?;
        if let Some((name, value, max)) = sizes.iter().find(|(_, value, max)| value > max) {
            let expected = format!("at most {max}");
            return Err(Error::out_of_range(key(name), value, expected));
        }
        self.check_numbers()?;
        self.check_positions()?;
        self.check_bias()?;
        self.check_attention_overrides()
    }

    fn check_feed_forward(&self) -> Result<()> {
        match (self.n_dense_layers(), self.d_ff) {
            (0, 0) => Ok(()),
            (0, d_ff) => Err(Error::no_effect(
                format!("model.d_ff = {d_ff}"),
                ": every block is a mixture of experts, of inner width model.moe.d_expert",
            )),
            (_, 0) => Err(Error::missing("model.d_ff", " or 0, expected at least 1")),
            (_, d_ff) if d_ff > MAX_WIDTH => {
                let expected = format!("at most {MAX_WIDTH}");
                Err(Error::out_of_range("model.d_ff", d_ff, expected))
            }
            _ => Ok(()),
        }
    }

    fn check_heads(&self) -> Result<()> {
        let Self {
            d_model,
            n_heads,
            n_kv_heads,
            ..
        } = *self;
        let indivisible = |key: &str, divisor: usize, of: &str, value: usize| {
            let problem = format!("{key} = {divisor} does not divide {of} = {value}");
            Err(Error::conflict([key, of], problem))
        };
        if let Some(mla) = &self.mla {
            mla.check(n_heads)?;
            if let Some(head_dim) = self.head_dim {
                return Err(Error::no_effect(
                    format!("model.head_dim = {head_dim}"),
                    " with model.mla, which sets the widths of heads",
                ));
            }
            if n_kv_heads != n_heads {
                return Err(Error::no_effect(
                    format!("model.n_kv_heads = {n_kv_heads}"),
                    " with model.mla: every head has separate keys and values, projected from one latent",
                ));
            }
        } else if self.head_dim.is_none() && d_model % n_heads != 0 {
            return indivisible("model.n_heads", n_heads, "model.d_model", d_model);
        }
        let head_dim_key = match self.head_dim {
            Some(_) => "model.head_dim",
            None => "model.d_model / model.n_heads",
        };
        let widths = [
            (head_dim_key, self.head_dim()),
            ("model.rope_dim", self.rope_dim()),
        ];
        let is_odd = |(_, width): &&(&str, usize)| *width == 0 || !width.is_multiple_of(2);
        // Those of latent attention are checked with it.
        if let Some((key, width)) = widths.iter().find(is_odd).filter(|_| self.mla.is_none()) {
            let expected = "an even number of at least 2, for the rotary embedding";
            return Err(Error::out_of_range(*key, width, expected));
        }
        if let Some(head_dim) = self.head_dim
            && n_heads.saturating_mul(head_dim) > MAX_WIDTH
        {
            let problem = format!(
                "model.n_heads · model.head_dim = {}, expected at most {MAX_WIDTH}",
                n_heads.saturating_mul(head_dim)
            );
            return Err(Error::conflict(
                ["model.n_heads", "model.head_dim"],
                problem,
            ));
        }
        if n_heads % n_kv_heads != 0 {
            return indivisible("model.n_kv_heads", n_kv_heads, "model.n_heads", n_heads);
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let eps = self.placement.norm.eps;
        if !(eps as f32).is_normal() {
            return Err(Error::out_of_range(
                "placement.norm.eps",
                format!("{eps:e}"),
                "a positive number in the range of single precision",
            ));
        }
        rope::check_theta("model.rope_theta", self.rope_theta)?;
        let scaling = self.rope_scaling.as_ref();
        scaling.map_or(Ok(()), |scaling| scaling.check("model.rope_scaling"))
    }

    fn check_positions(&self) -> Result<()> {
        if let Some(rope_dim) = self.rope_dim {
            if self.mla.is_some() {
                let reason = " with model.mla, which sets the number of rotary channels";
                return Err(Error::no_effect(
                    format!("model.rope_dim = {rope_dim}"),
                    reason,
                ));
            }
            if rope_dim >= self.head_dim() {
                let expected = format!("less than the width of a head, {}", self.head_dim());
                return Err(Error::out_of_range("model.rope_dim", rope_dim, expected));
            }
        }
        if self.position_embedding.is_rope() {
            return Ok(());
        }
        if self.mla.is_some() {
            let problem = "model.position_embedding is not \"rope\" with model.mla, whose keys have rotary channels";
            return Err(Error::conflict(
                ["model.position_embedding", "model.mla"],
                problem,
            ));
        }
        let rope_keys = [
            ("rope_dim", self.rope_dim.is_some()),
            ("rope_theta", self.rope_theta != DEFAULT_ROPE_THETA),
            ("rope_scaling", self.rope_scaling.is_some()),
        ];
        match rope_keys.iter().find(|(_, is_set)| *is_set) {
            None => Ok(()),
            Some((key, _)) => Err(Error::no_effect(
                format!("model.{key}"),
                ": model.position_embedding is not \"rope\"",
            )),
        }
    }

    fn check_bias(&self) -> Result<()> {
        if self.bias.feed_forward && self.n_dense_layers() == 0 {
            return Err(Error::no_effect(
                "model.bias.feed_forward = true",
                ": every block is a mixture of experts, whose projections have no bias",
            ));
        }
        match self.bias.qkv && self.mla.is_some() {
            false => Ok(()),
            true => Err(Error::conflict(
                ["model.bias.qkv", "model.mla"],
                "model.bias.qkv = true with model.mla: the projections of latent attention have no bias",
            )),
        }
    }
}
