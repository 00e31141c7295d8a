//! Biases of projections.

use serde::{Deserialize, Serialize};

/// Projections of attention and feed-forward that add a bias, initialized to 0.
///
/// ```
/// use hybridnorm::model::{Bias, ModelConfig};
///
/// let config = ModelConfig::default().with_bias(Bias { qkv: true, ..Bias::default() });
/// assert!(config.bias.qkv && !config.bias.feed_forward);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bias {
    /// Queries, keys and values (Qwen 2, arXiv 2407.10671).
    pub qkv: bool,
    /// Output of attention.
    pub out: bool,
    /// Both projections of dense feed-forwards.
    pub feed_forward: bool,
}

impl Bias {
    /// True if no projection has a bias.
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
