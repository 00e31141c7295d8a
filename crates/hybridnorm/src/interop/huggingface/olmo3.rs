//! OLMo 3 (arXiv 2512.13961): OLMo 2 with a sliding window in three of four layers, whose rotary frequencies are never
//! scaled.

use super::family::{Defaults, Family};
use super::layer_types::Windows;
use super::layout::{self, Layout, NoKeys};
use super::olmo2;

const LAYOUT: Layout = Layout {
    defaults: Defaults {
        keys: r#""sliding_window": 4096"#,
        rope_theta: 500_000.0,
    },
    windows: Windows::AllButEvery(4),
    ..olmo2::LAYOUT
};

/// Reads a `config.json` of this family.
pub(super) fn read(json: &[u8]) -> Result<Box<dyn Family>, String> {
    layout::read_with(json, &LAYOUT, |_: NoKeys, draft| {
        let common = draft.common;
        let theta = common.rope_theta.unwrap_or(common.default_rope_theta);
        draft.sliding_rope = Some(common.sliding_rope(theta)?);
        Ok(())
    })
}
