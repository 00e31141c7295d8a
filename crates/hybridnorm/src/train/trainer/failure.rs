//! Losses, gradients and weights that are not finite: detection, dump and error.

use std::collections::BTreeMap;

use super::Trainer;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::train::checkpoint;
use crate::train::layers::{LayerRecord, finite_or_none};
use crate::train::metrics::Metrics;
use crate::train::optimizer::ParameterNorms;
use crate::train::recorder::{Dump, DumpReason, Weights};

/// Context of a step for a dump, besides its metrics.
pub(super) struct StepContext {
    /// Ids of the step's instances.
    pub(super) instances: Vec<u64>,
    /// The micro-batch whose activations are dumped.
    pub(super) batch: Batch,
    /// Weights of the model: those before the step's update or after it.
    pub(super) weights: Weights,
    /// Norms of every parameter.
    pub(super) norms: BTreeMap<String, ParameterNorms>,
}

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

    /// Dumps the state after step `step`, in which `found` is not finite; returns the error.
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
            weights: Weights::Before,
            norms: BTreeMap::new(),
        };
        self.dump_divergence(&metrics, &context, found)
    }

    /// Dumps a step with a result that is not finite; returns the error.
    pub(super) fn dump_divergence(
        &mut self,
        metrics: &Metrics,
        context: &StepContext,
        found: String,
    ) -> Error {
        let problem = format!(
            "{found}; batch instances {:?}; {}",
            context.instances,
            self.last_good_checkpoint(metrics.step)
        );
        let dump = self
            .build_dump(metrics, context, DumpReason::NotFinite, vec![found])
            .and_then(|dump| self.recorder.dump(&dump));
        let problem = match dump {
            Ok(path) => format!("{problem}; see {}", path.display()),
            Err(error) => format!("{problem}; no dump: {error}"),
        };
        Error::Diverged {
            step: Some(metrics.step),
            problem,
        }
    }

    /// Returns the dump of a step.
    pub(super) fn build_dump(
        &mut self,
        metrics: &Metrics,
        context: &StepContext,
        kind: DumpReason,
        reasons: Vec<String>,
    ) -> Result<Dump> {
        let batch = &context.batch;
        let activations = self
            .learner
            .activations(batch, batch.len(), batch.seq_len)?;
        let parameters = context.norms.iter();
        Ok(Dump {
            step: metrics.step,
            kind,
            reasons,
            loss: finite_or_none(metrics.loss),
            grad_norm: finite_or_none(metrics.grad_norm),
            update_norm: finite_or_none(metrics.update_norm),
            lr: metrics.lr,
            instances: context.instances.clone(),
            weights: context.weights,
            layers: LayerRecord::new(
                metrics.step,
                &self.learner.model,
                &activations,
                &context.norms,
            ),
            parameters: parameters
                .map(|(name, norms)| (name.clone(), norms.into()))
                .collect(),
        })
    }

    /// Describes the newest checkpoint before that of `step`, for messages.
    fn last_good_checkpoint(&self, step: u64) -> String {
        match checkpoint::newest_before(&self.files.run, step) {
            Ok(checkpoint::Newest {
                checkpoint: Some((_, checkpoint)),
                ..
            }) => format!("last good checkpoint: {}", checkpoint.path().display()),
            _ => "there is no earlier checkpoint".into(),
        }
    }
}
