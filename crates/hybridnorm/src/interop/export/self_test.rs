//! Expected values of a forward pass, with which a conversion is checked block by block.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use crate::error::{Error, Result};
use crate::exec::Tensor;
use crate::model::Model;

/// File of the expected values.
pub(super) const VALUES: &str = "selftest.safetensors";
/// Script that compares them with `transformers`.
pub(super) const SCRIPT: &str = "selftest.py";
pub(super) const SCRIPT_TEXT: &str = include_str!("selftest.py");
/// Number of tokens, if the model's maximum sequence length allows it.
const TOKENS: usize = 16;

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
        let (t, d, v) = (
            TOKENS.min(config.max_seq_len),
            config.d_model,
            config.vocab_size,
        );
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
        serialize_to_file(views, None, &path).map_err(problem)
    }
}
