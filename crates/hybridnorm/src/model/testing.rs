//! A small model for tests.

use super::config::ModelConfig;
use crate::placement;

/// Returns a configuration with one block of width 16, a vocabulary of 8 and up to 32 positions.
pub(crate) fn tiny() -> ModelConfig {
    ModelConfig {
        d_model: 16,
        n_layers: 1,
        n_heads: 2,
        n_kv_heads: 2,
        d_ff: 32,
        vocab_size: 8,
        max_seq_len: 32,
        ..ModelConfig::default()
    }
}

/// Vocabulary of [`small`].
pub(crate) const VOCAB: usize = 37;

/// Returns a configuration with two blocks of width 16, four query and two key/value heads, and up to 16 positions.
pub(crate) fn small(placement: &str) -> ModelConfig {
    ModelConfig {
        d_model: 16,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        d_ff: 24,
        vocab_size: VOCAB,
        max_seq_len: 16,
        placement: placement::named(placement).expect("a named placement"),
        ..ModelConfig::default()
    }
}
