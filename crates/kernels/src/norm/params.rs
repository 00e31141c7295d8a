//! Parameters of norms: gains, biases, scalars.

use super::NormConfig;
use std::borrow::Cow;

/// Meaning of the gain parameter `w`.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Gain {
    /// No gain.
    None,
    /// `w h`; starts at 1 (LLaMA).
    #[default]
    Plain,
    /// `(1 + w) h`; starts at 0 (Gemma). For an initial gain g, w starts at g - 1.
    OnePlus,
}

/// Parameters of one call: effective gain and bias of each group, and the two scalars.
pub(crate) struct Params<'a> {
    pub(super) gain: Cow<'a, [f32]>,
    pub(super) bias: Cow<'a, [f32]>,
    pub(super) alpha: f32,
    pub(super) shift: f32,
}

impl Params<'_> {
    /// Returns the effective gain and bias of a group.
    #[inline(always)]
    pub(crate) fn of_group(&self, n: &NormConfig, group: usize) -> [&[f32]; 2] {
        let channels = group * n.width..(group + 1) * n.width;
        [&self.gain[channels.clone()], &self.bias[channels]]
    }
}
