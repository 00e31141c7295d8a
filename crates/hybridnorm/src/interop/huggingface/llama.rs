//! Llama (arXiv 2302.13971, 2407.21783): Pre-Norm.

use super::family::Family;
use super::layout::{self, Layout};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &Layout::PRE_NORM)
}
