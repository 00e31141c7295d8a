//! Checks before a checkpoint is written, and the error of a run whose values are not finite.

use std::collections::BTreeMap;

use super::Trainer;
use super::dumps::{self, StepContext};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::train::metrics::Metrics;
use crate::train::recorder::WeightsVersion;

impl Trainer {
    /// Checks that weights, moments and the loss of the next micro-batch are finite. Otherwise the last good
    /// checkpoint could be pruned and only one with non-finite values would remain.
    pub(super) fn check_weights(&mut self) -> Result<()> {
        if let Some(name) = self.learner.first_non_finite() {
            let found = format!("{name} is not finite after the update");
            return Err(self.divergence_after(self.state.step, found)?);
        }
        let batch = self.next_micro_batch()?;
        let loss = self.learner.loss(&batch)?;
        match loss.is_finite() {
            true => Ok(()),
            // The error that the next step would have returned before saving.
            false => Err(self.divergence_at(self.state.step + 1, batch, format!("loss {loss}"))),
        }
    }

    /// Dumps the state after step `step`; `found` describes the non-finite value. Returns the error.
    pub(super) fn divergence_after(&mut self, step: u64, found: String) -> Result<Error> {
        let batch = self.next_micro_batch()?;
        Ok(self.divergence_at(step, batch, found))
    }

    fn divergence_at(&mut self, step: u64, batch: Batch, found: String) -> Error {
        let metrics = Metrics {
            step,
            loss: f64::NAN,
            grad_norm: f64::NAN,
            update_norm: 0.0,
            lr: self.learner.lr(step),
            tokens: self.state.tokens,
            tokens_per_second: f64::NAN,
            ..Metrics::default()
        };
        let context = StepContext {
            instances: batch.instance_ids.clone(),
            batch,
            weights: WeightsVersion::Before,
            norms: BTreeMap::new(),
        };
        dumps::divergence(
            &mut self.learner,
            &mut self.recorder,
            &metrics,
            &context,
            found,
        )
    }
}
