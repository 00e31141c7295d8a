//! Memory against time.

use serde::{Deserialize, Serialize};

/// Which activations the backward pass makes again instead of keeping them from the forward pass
/// (Chen et al. 2016, arXiv 1604.06174).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// None but those that are cheap to make.
    #[default]
    None,
    /// All within a block: only what enters it is kept, at the price of a second forward pass.
    Block,
}
