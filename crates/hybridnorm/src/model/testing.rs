//! A small model for tests.

use super::config::ModelConfig;

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
