//! Logits of selected positions.

use super::model::Model;
use crate::error::Result;
use crate::exec::TensorRef;
use crate::graph::{Builder, Type};
use crate::ops::Arguments;
use crate::plan::Program;

/// Rows of hidden states whose logits are computed at a time.
const HEAD_ROWS: usize = 64;

impl Model {
    /// Computes the logits (n, v) of hidden states (n, d) of [`Model::hidden`] or [`Model::slot_hidden`].
    ///
    /// # Errors
    /// If there is not enough memory.
    ///
    /// # Panics
    /// If the hidden states are not whole rows.
    pub fn logits_of_hidden(&mut self, hidden: &[f32]) -> Result<Vec<f32>> {
        let config = self.decoder.config();
        let (d, v) = (config.d_model, config.vocab_size);
        assert!(
            hidden.len().is_multiple_of(d),
            "hidden states are not (n, {d})"
        );
        let mut logits = Vec::with_capacity(hidden.len() / d * v);
        let mut padded = vec![0.0; HEAD_ROWS * d];
        for rows in hidden.chunks(HEAD_ROWS * d) {
            padded[..rows.len()].copy_from_slice(rows);
            let decoder = &self.decoder;
            let (program, output) = self.head.get_or_insert_with((), || {
                let g = Builder::new();
                let hidden = g.input("hidden", Type::f32([HEAD_ROWS, d]));
                let logits = decoder.logits(hidden).id();
                (
                    Program::new(g.finish(), &[logits], decoder.plan_options()),
                    logits,
                )
            });
            self.executor.run(
                program,
                Arguments::default(),
                &[("hidden", TensorRef::F32(&padded))],
            )?;
            let found = self.executor.output(program, *output).into_f32();
            logits.extend_from_slice(&found[..rows.len() / d * v]);
        }
        Ok(logits)
    }
}
