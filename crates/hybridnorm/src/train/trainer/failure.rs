//! Losses, gradients and weights that are not finite: detection, dump and error.

use std::collections::BTreeMap;

use super::super::checkpoint;
use super::super::layers::{LayersRow, measured};
use super::super::metrics::Metrics;
use super::super::optimizer::SlotNorms;
use super::super::recorder::{Dump, Kind, Weights};
use super::Trainer;
use crate::data::Batch;
use crate::error::{Error, Result};

/// Context of a step for a dump, besides its metrics.
pub(super) struct Moment {
    /// Ids of the step's instances.
    pub(super) instances: Vec<u64>,
    /// The micro-batch whose activations are dumped.
    pub(super) batch: Batch,
    /// Weights of the model: those before the step's update or after it.
    pub(super) weights: Weights,
    /// Norms of every parameter.
    pub(super) norms: BTreeMap<String, SlotNorms>,
}

impl Trainer {
    /// Checks that weights, moments and the loss of the next micro-batch are finite. Otherwise the last good
    /// checkpoint could be pruned in favour of one from which no run can continue.
    pub(super) fn check_weights(&mut self) -> Result<()> {
        let broken = self.model.broken();
        let broken = broken.or_else(|| self.optimizer.broken(&self.model));
        if let Some(name) = broken {
            let found = format!("{name} is not finite after the update");
            return Err(self.diverged_between(self.state.step, found)?);
        }
        let (batch, loss) = self.next_loss()?;
        match loss.is_finite() {
            true => Ok(()),
            // The error that the next step would have returned before saving.
            false => Err(self.diverged_at(self.state.step + 1, batch, format!("loss {loss}"))),
        }
    }

    /// Returns the next micro-batch and its loss.
    fn next_loss(&mut self) -> Result<(Batch, f64)> {
        let train = &self.config.train;
        let (micro, seq) = (train.batch_size / train.grad_accum_steps, train.seq_len);
        let batch = self.stream.peek(micro)?;
        let (shape, divisor) = ([micro, seq], (micro * seq) as f64);
        let losses = self
            .model
            .losses(&batch.inputs, &batch.targets, shape, divisor)?;
        Ok((batch, losses.cross_entropy))
    }

    /// Dumps the state after step `step`, in which `found` is not finite; returns the error.
    pub(super) fn diverged_between(&mut self, step: u64, found: String) -> Result<Error> {
        let (batch, _) = self.next_loss()?;
        Ok(self.diverged_at(step, batch, found))
    }

    fn diverged_at(&mut self, step: u64, batch: Batch, found: String) -> Error {
        let metrics = Metrics {
            step,
            loss: f64::NAN,
            grad_norm: f64::NAN,
            update_norm: 0.0,
            lr: self.schedule.lr(step as usize),
            tokens: self.state.tokens,
            tokens_per_second: f64::NAN,
            ..Metrics::default()
        };
        let moment = Moment {
            instances: batch.instance_ids.clone(),
            batch,
            weights: Weights::Before,
            norms: BTreeMap::new(),
        };
        self.diverged(&metrics, &moment, found)
    }

    /// Dumps a step with a result that is not finite; returns the error.
    pub(super) fn diverged(&mut self, metrics: &Metrics, moment: &Moment, found: String) -> Error {
        let problem = format!(
            "{found}; batch instances {:?}; {}",
            moment.instances,
            self.last_good(metrics.step)
        );
        let dump = self
            .describe(metrics, moment, Kind::NotFinite, vec![found])
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

    pub(super) fn describe(
        &mut self,
        metrics: &Metrics,
        moment: &Moment,
        kind: Kind,
        reasons: Vec<String>,
    ) -> Result<Dump> {
        let batch = &moment.batch;
        let activations = self.activations_of(batch, batch.len(), batch.seq_len)?;
        let parameters = moment.norms.iter();
        Ok(Dump {
            step: metrics.step,
            kind,
            reasons,
            loss: measured(metrics.loss),
            grad_norm: measured(metrics.grad_norm),
            update_norm: measured(metrics.update_norm),
            lr: metrics.lr,
            instances: moment.instances.clone(),
            weights: moment.weights,
            layers: LayersRow::new(metrics.step, &self.model, &activations, &moment.norms),
            parameters: parameters
                .map(|(name, norms)| (name.clone(), norms.into()))
                .collect(),
        })
    }

    /// Describes the newest checkpoint before that of step `broken`, for messages.
    fn last_good(&self, broken: u64) -> String {
        match checkpoint::newest_before(&self.run, broken) {
            Ok(checkpoint::Newest {
                checkpoint: Some((_, checkpoint)),
                ..
            }) => format!("last good checkpoint: {}", checkpoint.path().display()),
            _ => "there is no earlier checkpoint".into(),
        }
    }
}
