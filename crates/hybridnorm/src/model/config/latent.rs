//! Configuration of multi-head latent attention.

use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::{MAX_SIZE, MAX_WIDTH};
use crate::error::{Error, Result};

/// `[model.mla]`: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
///
/// Queries, keys and values of all heads are projected from low-rank latents; decoding caches only the key/value
/// latent and one rotary key per position.
///
/// ```
/// use hybridnorm::model::MlaConfig;
///
/// let mla = MlaConfig::new(32, 16, 8, 16).with_q_rank(24);
/// assert_eq!(mla.head_dim(), 24);
/// assert_eq!(mla.cache_width(), 40);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(deny_unknown_fields)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct MlaConfig {
    /// Width of the query latent; without it queries are projected directly from the sub-layer input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub q_rank: Option<usize>,
    /// Width of the key/value latent, R.
    pub kv_rank: usize,
    /// Channels of a head's query and key without rotary embedding.
    pub nope_dim: usize,
    /// Rotary channels of a head's query, and of the key that all heads share.
    pub rope_dim: usize,
    /// Channels of a head's value.
    pub v_dim: usize,
}

impl MlaConfig {
    /// Creates the settings without a query latent.
    pub fn new(kv_rank: usize, nope_dim: usize, rope_dim: usize, v_dim: usize) -> Self {
        Self {
            q_rank: None,
            kv_rank,
            nope_dim,
            rope_dim,
            v_dim,
        }
    }

    /// Returns the width of a head's query and key.
    pub fn head_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// Returns the widths of the outputs of the first projection: queries or query latent, key/value latent, rotary
    /// key.
    pub fn down_widths(&self, n_heads: usize) -> [usize; 3] {
        let q = self.q_rank.unwrap_or(n_heads * self.head_dim());
        [q, self.kv_rank, self.rope_dim]
    }

    /// Returns the number of cached elements per position.
    pub fn cache_width(&self) -> usize {
        self.kv_rank + self.rope_dim
    }

    /// Checks the configuration for `n_heads` heads.
    pub(super) fn check(&self, n_heads: usize) -> Result<()> {
        let sizes = [
            ("q_rank", self.q_rank.unwrap_or(1)),
            ("kv_rank", self.kv_rank),
            ("nope_dim", self.nope_dim),
            ("rope_dim", self.rope_dim),
            ("v_dim", self.v_dim),
        ];
        for (key, value) in sizes {
            if !(1..=MAX_WIDTH).contains(&value) {
                let expected = format!("1 to {MAX_WIDTH}");
                return Err(Error::out_of_range(
                    format!("model.mla.{key}"),
                    value,
                    expected,
                ));
            }
        }
        let widest = self.head_dim().max(self.nope_dim + self.v_dim);
        if n_heads.saturating_mul(widest) > MAX_SIZE {
            return Err(Error::conflict(
                ["model.n_heads", "model.mla"],
                format!(
                    "model.n_heads = {n_heads} times {widest} channels per head (model.mla) exceeds \
                     {MAX_SIZE}"
                ),
            ));
        }
        if !self.rope_dim.is_multiple_of(2) {
            return Err(Error::out_of_range(
                "model.mla.rope_dim",
                self.rope_dim,
                "an even number, for the rotary embedding",
            ));
        }
        Ok(())
    }
}
