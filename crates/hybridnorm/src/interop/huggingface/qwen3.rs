//! Qwen 3 (arXiv 2505.09388): Pre-Norm with norms on q and k of each head.

use super::family::Family;
use super::layer_types::Windows;
use super::layout::{self, Layout};

const LAYOUT: Layout = Layout {
    windows: Windows::LastIfEnabled,
    ..Layout::PRE_NORM_QK
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read(json, &LAYOUT)
}
