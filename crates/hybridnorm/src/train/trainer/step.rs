//! A training step: passes of the micro-batches, update, checks, records.

use std::time::Instant;

use super::super::layers::LayersRow;
use super::super::metrics::{Metrics, RouterMetrics};
use super::super::recorder::{Kind, Weights};
use super::super::spikes::Spike;
use super::super::step::{StepOutcome, TrainingStep};
use super::failure::Moment;
use super::{Step, Trainer};
use crate::data::Batch;
use crate::error::Result;
use crate::model::{Activations, Routing};

/// Activations are sampled for one in so many tokens of a step.
const SAMPLED_ONE_IN: usize = 8;
/// Fewest positions of a sampled sequence: attention over fewer is not representative.
const FEWEST_POSITIONS: usize = 32;

/// Result of the forward and backward passes of a step.
struct Passes {
    /// Ids of the step's instances.
    instances: Vec<u64>,
    /// The micro-batch with the largest loss, which is dumped if something is wrong.
    worst: Batch,
    /// Activations of the first micro-batch, where they are due.
    activations: Option<Vec<Activations>>,
}

impl Trainer {
    /// Does one optimizer step.
    ///
    /// # Errors
    /// See [`Trainer::run`].
    pub fn step(&mut self) -> Result<Step> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let lr = self.schedule.lr(step as usize);
        let mut training = self.programs()?;
        // A step that is refused leaves no file.
        self.begin()?;
        let passes = self.passes(&mut training, lr)?;
        let outcome = training.finish(&mut self.model, &mut self.optimizer, lr)?;
        self.training = Some(training);

        let mut metrics = self.metrics_of(&outcome, lr);
        let moment = Moment {
            instances: passes.instances,
            batch: passes.worst,
            weights: Weights::After,
            norms: outcome.norms.by_name,
        };
        let moment = self.check_finite(&metrics, moment)?;
        self.state.step = step;
        self.state.tokens = metrics.tokens;
        self.state.cursor = self.stream.cursor();
        self.state.max_grad_norm = self.state.max_grad_norm.max(metrics.grad_norm);
        let layers = passes
            .activations
            .map(|activations| self.layers_of(activations, outcome.routing, &moment));
        let seconds = started.elapsed().as_secs_f64();
        if seconds > 0.0 {
            metrics.tokens_per_second = self.targets() as f64 / seconds;
        }
        let spikes = self.detect_spikes(&metrics, &moment)?;
        Ok(Step {
            metrics,
            layers,
            spikes,
            seconds,
        })
    }

    /// Targets of a step.
    fn targets(&self) -> u64 {
        (self.config.train.batch_size * self.config.train.seq_len) as u64
    }

    /// The programs of a step, planned for the first one.
    fn programs(&mut self) -> Result<TrainingStep> {
        if let Some(training) = self.training.take() {
            return Ok(training);
        }
        let shape = self.config.train.step_shape();
        if self.validation.is_some() {
            // An evaluation that does not fit is refused before the first step.
            self.model
                .prepare_losses([shape.micro_batch, shape.seq_len])?;
        }
        TrainingStep::new(shape, &mut self.model, &mut self.optimizer)
    }

    /// Runs forward and backward passes over the micro-batches of the next step.
    fn passes(&mut self, training: &mut TrainingStep, lr: f64) -> Result<Passes> {
        let shape = training.shape();
        let is_sampled = self.recorder.is_due(self.state.step + 1);
        let mut instances = Vec::with_capacity(self.config.train.batch_size);
        let mut activations = None;
        let mut worst: Option<(f64, Batch)> = None;
        for _ in 0..shape.grad_accum_steps {
            let batch = self.stream.next_batch(shape.micro_batch)?;
            if worst.is_none() && is_sampled {
                activations = Some(self.sample_activations(&batch)?);
            }
            let (model, optimizer) = (&mut self.model, &mut self.optimizer);
            model.check_ids(&batch.targets, shape.micro_batch, shape.seq_len)?;
            let losses = training.pass(model, optimizer, &batch.inputs, &batch.targets, lr)?;
            let loss = losses.cross_entropy;
            instances.extend_from_slice(&batch.instance_ids);
            // NaN is larger than any loss.
            let is_larger = |most: f64| !(loss <= most || most.is_nan());
            if worst.as_ref().is_none_or(|(most, _)| is_larger(*most)) {
                worst = Some((loss, batch));
            }
        }
        let (_, worst) = worst.expect("a step has a micro-batch at least");
        Ok(Passes {
            instances,
            worst,
            activations,
        })
    }

    /// Activations for about one in [`SAMPLED_ONE_IN`] tokens of a step: whole sequences, or the beginning of
    /// one where there are fewer sequences than that.
    fn sample_activations(&mut self, batch: &Batch) -> Result<Vec<Activations>> {
        let (all, seq) = (self.config.train.batch_size, batch.seq_len);
        let sequences = (all / SAMPLED_ONE_IN).clamp(1, batch.len());
        let positions = match all < SAMPLED_ONE_IN {
            true => (seq * all / SAMPLED_ONE_IN).max(seq.min(FEWEST_POSITIONS)),
            false => seq,
        };
        self.activations_of(batch, sequences, positions)
    }

    /// Activations for the first positions of the first sequences of a batch.
    pub(super) fn activations_of(
        &mut self,
        batch: &Batch,
        sequences: usize,
        positions: usize,
    ) -> Result<Vec<Activations>> {
        let rows = batch.inputs.chunks(batch.seq_len).take(sequences);
        let ids: Vec<i32> = rows.flat_map(|row| row[..positions].to_vec()).collect();
        self.model.activations(&ids, sequences, positions)
    }

    /// Metrics of the step that was just done, without its throughput.
    fn metrics_of(&self, outcome: &StepOutcome, lr: f64) -> Metrics {
        let (loss, objective) = (outcome.losses.cross_entropy, outcome.losses.objective);
        Metrics {
            step: self.state.step + 1,
            loss,
            grad_norm: outcome.norms.gradient,
            update_norm: outcome.norms.update,
            lr,
            tokens: self.state.tokens + self.targets(),
            tokens_per_second: f64::NAN,
            objective: (objective != loss).then_some(objective),
            router: RouterMetrics::new(&outcome.routing),
            qk_clip: outcome.norms.qk_clip.clone(),
            ..Metrics::default()
        }
    }

    /// Fails with a dump if loss or norms are not finite. Without a finite gradient there was no update, so that
    /// the dump is of the weights before the step.
    fn check_finite(&mut self, metrics: &Metrics, moment: Moment) -> Result<Moment> {
        let &Metrics {
            loss,
            grad_norm,
            update_norm,
            ..
        } = metrics;
        let (found, weights) = if !loss.is_finite() {
            (format!("loss {loss}"), Weights::Before)
        } else if !grad_norm.is_finite() {
            let found = format!("loss {loss}, gradient norm {grad_norm}");
            (found, Weights::Before)
        } else if !update_norm.is_finite() {
            let found =
                format!("loss {loss}, gradient norm {grad_norm}, update norm {update_norm}");
            (found, Weights::After)
        } else {
            return Ok(moment);
        };
        let moment = Moment { weights, ..moment };
        Err(self.diverged(metrics, &moment, found))
    }

    /// The record of every block, with the routing of the whole step instead of that of the sampled part.
    fn layers_of(
        &self,
        mut activations: Vec<Activations>,
        routing: Vec<Routing>,
        moment: &Moment,
    ) -> LayersRow {
        let sampled = activations
            .iter_mut()
            .filter_map(|found| found.routing.as_mut());
        for (sampled, of_step) in sampled.zip(routing) {
            *sampled = of_step;
        }
        LayersRow::new(self.state.step, &self.model, &activations, &moment.norms)
    }

    /// Spikes of the step, of which the first ones are dumped.
    fn detect_spikes(&mut self, metrics: &Metrics, moment: &Moment) -> Result<Vec<Spike>> {
        let spikes = self.recorder.watch(metrics);
        if !spikes.is_empty() && self.recorder.has_room() {
            let reasons = spikes.iter().map(Spike::to_string).collect();
            let dump = self.describe(metrics, moment, Kind::Spike, reasons)?;
            self.recorder.dump(&dump)?;
        }
        Ok(spikes)
    }
}
