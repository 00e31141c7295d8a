//! A training step: batches, forward and backward passes, update, metrics. [`Trainer::run_to`] records its result.

use std::time::Instant;

use super::dumps::{self, StepContext};
use super::{Step, Trainer, step_metrics};
use crate::error::Result;
use crate::train::layers::LayerRecord;
use crate::train::metrics::Metrics;
use crate::train::recorder::WeightsVersion;

impl Trainer {
    /// Runs one optimizer step.
    ///
    /// # Errors
    /// See [`Trainer::run`].
    pub fn step(&mut self) -> Result<Step> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let lr = self.learner.lr(step);
        let shape = self.config.train.step_shape();
        self.learner.plan(shape, self.data.validation.is_some())?;
        // If planning fails, no file is written.
        self.write_initial_files()?;

        let samples_activations = self.recorder.is_due(step);
        let batches = &mut self.data.stream;
        let passes = self
            .learner
            .forward_backward(batches, lr, samples_activations)?;
        let outcome = self.learner.update(lr)?;

        let tokens = self.state.tokens + self.config.train.tokens_per_step();
        let mut metrics = step_metrics::metrics(step, lr, tokens, &outcome);
        let context = StepContext {
            instances: passes.instances,
            batch: passes.max_loss_batch,
            weights: WeightsVersion::After,
            norms: outcome.norms.by_name,
        };
        let context = self.check_finite(&metrics, context)?;
        self.advance(&metrics);
        let layers = passes.activations.map(|mut activations| {
            step_metrics::replace_routing(&mut activations, outcome.routing);
            LayerRecord::new(step, &self.learner.model, &activations, &context.norms)
        });
        let seconds = started.elapsed().as_secs_f64();
        if seconds > 0.0 {
            metrics.tokens_per_second = self.config.train.tokens_per_step() as f64 / seconds;
        }
        let spikes =
            dumps::detect_spikes(&mut self.learner, &mut self.recorder, &metrics, &context)?;
        Ok(Step {
            metrics,
            layers,
            spikes,
            seconds,
        })
    }

    /// Fails with a dump if loss or norms are not finite. Without a finite gradient there was no update, so that
    /// the dump is of the weights before the step.
    fn check_finite(&mut self, metrics: &Metrics, context: StepContext) -> Result<StepContext> {
        let Some((found, weights)) = step_metrics::non_finite(metrics) else {
            return Ok(context);
        };
        let context = StepContext { weights, ..context };
        let (learner, recorder) = (&mut self.learner, &mut self.recorder);
        Err(dumps::divergence(
            learner, recorder, metrics, &context, found,
        ))
    }

    /// Updates the state of the run after a step.
    fn advance(&mut self, metrics: &Metrics) {
        self.state.step = metrics.step;
        self.state.tokens = metrics.tokens;
        self.state.cursor = self.data.stream.cursor();
        self.state.max_grad_norm = self.state.max_grad_norm.max(metrics.grad_norm);
    }
}
