//! The shape of a model, independent of any tensor.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::Activation;
use crate::placement::{ModelFacts, Placement, Resolved, Warning, resolve, validate};

/// Largest width of the stream and of the feed-forward; with it every count of the inventory stays
/// within 64 bits.
const WIDEST: usize = 1 << 20;
/// Largest vocabulary and sequence, and bound of every other size.
const LONGEST: usize = 1 << 24;

/// The shape of a decoder and where it normalizes. Widths are in elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the stream, d.
    pub d_model: usize,
    /// Number of blocks, L.
    pub n_layers: usize,
    /// Number of query heads, h; divides `d_model` into heads of an even width.
    pub n_heads: usize,
    /// Number of key/value heads, g; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Inner width of the feed-forward, f: what the down projection reads.
    pub d_ff: usize,
    /// Rows of the embedding, v.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// Whether the output head is the embedding.
    pub tie_embeddings: bool,
    /// The feed-forward's nonlinearity.
    pub activation: FfnActivation,
    /// Where norms and skips sit, the norm function, and how weights start.
    pub placement: Placement,
}

/// The feed-forward's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnActivation {
    /// `silu(gate) · up` (arXiv 2002.05202).
    #[default]
    Swiglu,
    /// `gelu(gate) · up`, GELU by its tanh approximation (Gemma).
    Geglu,
    /// `gelu(x)`, the tanh approximation (GPT-2).
    Gelu,
    /// `max(x, 0)²` (arXiv 2109.08668).
    Relu2,
}

impl FfnActivation {
    /// Whether a gate projection stands beside the up projection.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::Geglu)
    }

    /// The op that computes it.
    pub fn op(self) -> Activation {
        match self {
            Self::Swiglu => Activation::Swiglu,
            Self::Geglu => Activation::Geglu,
            Self::Gelu => Activation::Gelu,
            Self::Relu2 => Activation::Relu2,
        }
    }
}

impl ModelConfig {
    /// Width of one head, k.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.n_heads
    }

    /// Rows of the packed q, k, v projection: `(h + 2g)·k`.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim()
    }

    /// Rows of the feed-forward's input projection: 2f when gated, else f.
    pub fn ffn_in_width(&self) -> usize {
        self.d_ff * if self.activation.is_gated() { 2 } else { 1 }
    }

    /// What a placement needs to know of the model.
    pub fn facts(&self) -> ModelFacts {
        ModelFacts {
            d_model: self.d_model,
            head_dim: self.head_dim(),
            gated: self.activation.is_gated(),
        }
    }

    /// Checks the shape and the placement, and resolves the placement for this depth.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Placement`] naming the key, what it holds and what it may
    /// hold.
    pub fn resolve(&self) -> Result<(Resolved, Vec<Warning>)> {
        self.check_shape()?;
        let warnings = validate(&self.placement, self.n_layers, &self.facts())?;
        let resolved = resolve(&self.placement, self.n_layers, self.d_model)?;
        Ok((resolved, warnings))
    }

    fn check_shape(&self) -> Result<()> {
        let positive = [
            ("d_model", self.d_model),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("d_ff", self.d_ff),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::config(format!(
                "model.{key} is 0, expected at least 1"
            )));
        }
        let Self {
            d_model,
            n_heads,
            n_kv_heads,
            ..
        } = *self;
        if d_model % n_heads != 0 {
            return Err(Error::config(format!(
                "model.n_heads = {n_heads} does not divide model.d_model = {d_model}"
            )));
        }
        if !self.head_dim().is_multiple_of(2) {
            return Err(Error::config(format!(
                "model.d_model / model.n_heads = {} must be even for the rotary embedding",
                self.head_dim()
            )));
        }
        if n_heads % n_kv_heads != 0 {
            return Err(Error::config(format!(
                "model.n_kv_heads = {n_kv_heads} does not divide model.n_heads = {n_heads}"
            )));
        }
        for (key, value) in positive {
            let largest = match key {
                "d_model" | "d_ff" => WIDEST,
                _ => LONGEST,
            };
            if value > largest {
                return Err(Error::config(format!(
                    "model.{key} = {value} is larger than {largest}"
                )));
            }
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return Err(Error::config(format!(
                "model.rope_theta = {} must be a finite number above 1",
                self.rope_theta
            )));
        }
        Ok(())
    }
}
