//! OLMo 3 (arXiv 2512.13961): OLMo 2 with a sliding window in three of four layers, whose rotary frequencies are never
//! scaled.

use super::family::Family;
use super::layer_types::Windows;
use super::layout::{self, Layout, NoKeys};
use super::olmo2;
use super::rope::LayerType;
use crate::model::Rope;

const LAYOUT: Layout = Layout {
    windows: Windows::AllButEvery(4),
    ..olmo2::LAYOUT
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &LAYOUT, |_: NoKeys, draft| {
        if let Rope::On { theta, .. } = draft.common.rope(LayerType::Sliding)? {
            draft.sliding_rope = Some(Rope::On {
                theta,
                scaling: None,
            });
        }
        Ok(())
    })
}
