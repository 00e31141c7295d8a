//! Expected values of a forward pass, with which a conversion is checked block by block.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::error::{Error, Result};
use crate::exec::Tensor;
use crate::files;
use crate::model::{Model, ModelConfig};

/// File of the expected values.
pub(super) const VALUES: &str = "selftest.safetensors";
/// Script that compares them with `transformers`.
pub(super) const SCRIPT: &str = "selftest.py";
pub(super) const SCRIPT_TEXT: &str = include_str!("selftest.py");
/// Number of tokens, or after the longest window.
const TOKENS: usize = 16;
/// Largest number of tokens for a window: logits of more would make a large file.
const LIMIT: usize = 256;

/// Returns the number of tokens: enough that the last ones are outside of every window, if that is possible.
pub(super) fn n_tokens(config: &ModelConfig) -> usize {
    let beyond_window = longest_window(config).map(|window| window.saturating_add(TOKENS));
    let wanted = beyond_window.filter(|n| *n <= LIMIT).unwrap_or(TOKENS);
    wanted.min(config.max_seq_len)
}

/// True if a window is at least as long as the self-test, so that it has no effect there.
pub(super) fn misses_window(config: &ModelConfig) -> bool {
    longest_window(config).is_some_and(|window| window >= n_tokens(config))
}

fn longest_window(config: &ModelConfig) -> Option<usize> {
    let windows = (0..config.n_layers).filter_map(|layer| config.window_of_layer(layer));
    windows.max()
}

/// Expected values of a forward pass.
pub(super) struct SelfTest {
    pub(super) ids: Vec<i32>,
    pub(super) logits: Vec<f32>,
    /// Name, shape and values of all tensors but the ids.
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl SelfTest {
    /// Runs the model on pseudo-random tokens.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn new(model: &mut Model) -> Result<Self> {
        let config = model.config();
        let (t, d, v) = (n_tokens(config), config.d_model, config.vocab_size);
        let mut state: u64 = 1;
        let mut id = || {
            // Knuth's linear congruential generator (MMIX).
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % v as u64) as i32
        };
        let ids: Vec<i32> = (0..t).map(|_| id()).collect();
        let states = model.forward_states(&ids, 1, t)?;
        let mut tensors = Vec::new();
        for (block, streams) in states.blocks.into_iter().enumerate() {
            for (stream, values) in ["x", "y"].iter().zip(streams) {
                tensors.push((
                    format!("blocks.{block}.{stream}"),
                    vec![1, t, d],
                    values.into_f32(),
                ));
            }
        }
        let logits = Tensor::into_f32(states.logits);
        tensors.push(("logits".into(), vec![1, t, v], logits.clone()));
        Ok(Self {
            ids,
            logits,
            tensors,
        })
    }

    /// Returns the largest difference of a model's logits from these.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(super) fn logits_difference(&self, model: &mut Model) -> Result<f32> {
        let logits = model.logits(&self.ids, 1, self.ids.len())?.into_f32();
        let differences = logits.iter().zip(&self.logits).map(|(a, b)| (a - b).abs());
        Ok(differences.fold(0.0, f32::max))
    }

    /// Returns the largest absolute value of the logits.
    pub(super) fn largest_logit(&self) -> f32 {
        self.logits
            .iter()
            .fold(0.0, |max, logit| max.max(logit.abs()))
    }

    /// Writes the values.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(VALUES);
        let ids: Vec<u8> = self
            .ids
            .iter()
            .flat_map(|id| i64::from(*id).to_le_bytes())
            .collect();
        let problem = |error: safetensors::SafeTensorError| Error::format(&path, error.to_string());
        let tokens = TensorView::new(Dtype::I64, vec![1, self.ids.len()], &ids).map_err(problem)?;
        let mut views = vec![("tokens", tokens)];
        for (name, shape, values) in &self.tensors {
            let bytes = bytemuck::cast_slice(values);
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(problem)?;
            views.push((name, view));
        }
        let bytes = serialize(views, None).map_err(problem)?;
        files::write(&path, &bytes).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AttentionOverride;
    use crate::placement::Selector;

    #[test]
    fn tokens_reach_beyond_windows_up_to_a_limit() {
        let config = |max_seq_len: usize, window: Option<usize>| {
            let layers = AttentionOverride::of_layers(Selector::Indices(vec![0]));
            let windows = window.map(|window| AttentionOverride {
                window: Some(window),
                ..layers
            });
            ModelConfig::default()
                .with_n_layers(2)
                .with_max_seq_len(max_seq_len)
                .with_attention_overrides(windows.into_iter().collect())
        };
        for (longest, window, tokens, misses) in [
            (512, None, 16, false),
            (8, None, 8, false),
            (512, Some(4), 20, false),
            (512, Some(240), 256, false),
            (512, Some(241), 16, true),
            (40, Some(30), 40, false),
        ] {
            let config = config(longest, window);
            assert_eq!(n_tokens(&config), tokens, "{longest} {window:?}");
            assert_eq!(misses_window(&config), misses, "{longest} {window:?}");
        }
    }
}
