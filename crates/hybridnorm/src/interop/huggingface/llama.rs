//! Llama (arXiv 2302.13971, 2407.21783): Pre-Norm.

use super::family::Family;
use super::layout::{self, Layout};

const LAYOUT: Layout = Layout {
    has_mlp_bias_key: true,
    ..Layout::PRE_NORM
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
