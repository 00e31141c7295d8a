//! Model, optimizer, learning-rate schedule, and the programs of a step.

use crate::data::{Batch, BatchStream};
use crate::error::Result;
use crate::model::{BlockActivationStats, Model};
use crate::train::optimizer::{Optimizer, OptimizerConfig};
use crate::train::schedule::Schedule;
use crate::train::step::{StepOutcome, StepShape, TrainingStep};

/// Reciprocal of the fraction of a step's tokens for which activations are sampled.
const SAMPLING_DIVISOR: usize = 8;
/// Minimum number of positions of a sampled sequence: attention over fewer is not representative.
const MIN_SAMPLED_POSITIONS: usize = 32;

/// Model and optimizer. A step is [`Learner::plan`] (once), [`Learner::forward_backward`], [`Learner::update`].
pub(super) struct Learner {
    pub(super) model: Model,
    pub(super) optimizer: Optimizer,
    schedule: Schedule,
    /// Programs of a step; `None` before the first step and after a change of the configuration.
    programs: Option<TrainingStep>,
}

/// Result of the forward and backward passes of a step.
pub(super) struct Passes {
    /// Ids of the step's instances.
    pub(super) instances: Vec<u64>,
    /// The micro-batch with the largest loss, for a dump after a spike or a non-finite value.
    pub(super) max_loss_batch: Batch,
    /// Activations of the first micro-batch, if requested.
    pub(super) activations: Option<Vec<BlockActivationStats>>,
}

impl Learner {
    pub(super) fn new(model: Model, optimizer: Optimizer, schedule: Schedule) -> Self {
        Self {
            model,
            optimizer,
            schedule,
            programs: None,
        }
    }

    /// Returns the learning rate of step `step`, counted from 1.
    pub(super) fn lr(&self, step: u64) -> f64 {
        self.schedule.lr(step as usize)
    }

    /// Changes the settings of the optimizer and the schedule; the next step is replanned.
    ///
    /// # Errors
    /// If the optimizer kind differs, since its moments do.
    pub(super) fn reconfigure(
        &mut self,
        config: OptimizerConfig,
        schedule: Schedule,
    ) -> Result<()> {
        self.optimizer.set_config(config)?;
        self.schedule = schedule;
        self.programs = None;
        Ok(())
    }

    /// Plans the programs of a step and allocates their memory, unless already done. With `evaluates`, also those of an
    /// evaluation, so that one that does not fit into memory fails before the first step.
    pub(super) fn plan(&mut self, shape: StepShape, evaluates: bool) -> Result<()> {
        if self.programs.is_some() {
            return Ok(());
        }
        if evaluates {
            self.model
                .prepare_losses([shape.micro_batch, shape.seq_len])?;
        }
        self.programs = Some(TrainingStep::new(
            shape,
            &mut self.model,
            &mut self.optimizer,
        )?);
        Ok(())
    }

    /// Runs forward and backward passes over the next micro-batches; their gradients are summed.
    ///
    /// # Panics
    /// If no step is planned.
    pub(super) fn forward_backward(
        &mut self,
        batches: &mut BatchStream,
        lr: f64,
        samples_activations: bool,
    ) -> Result<Passes> {
        let mut programs = self.programs.take().expect("the step is planned");
        let passes = self.run_passes(&mut programs, batches, lr, samples_activations)?;
        // After an error the next step is replanned, without the passes of this one.
        self.programs = Some(programs);
        Ok(passes)
    }

    fn run_passes(
        &mut self,
        programs: &mut TrainingStep,
        batches: &mut BatchStream,
        lr: f64,
        samples_activations: bool,
    ) -> Result<Passes> {
        let shape = programs.shape();
        let mut instances = Vec::new();
        let mut activations = None;
        let mut max_loss_batch: Option<(f64, Batch)> = None;
        for _ in 0..shape.grad_accum_steps {
            let batch = batches.next_batch(shape.micro_batch)?;
            if max_loss_batch.is_none() && samples_activations {
                let sequences = shape.micro_batch * shape.grad_accum_steps;
                activations = Some(self.sample_activations(&batch, sequences)?);
            }
            let (model, optimizer) = (&mut self.model, &mut self.optimizer);
            model.check_ids(&batch.targets, shape.micro_batch, shape.seq_len)?;
            let losses =
                programs.run_micro_batch(model, optimizer, &batch.inputs, &batch.targets, lr)?;
            let loss = losses.cross_entropy;
            instances.extend_from_slice(&batch.instance_ids);
            // NaN is larger than any loss.
            let is_larger = |max_loss: f64| !(loss <= max_loss || max_loss.is_nan());
            if max_loss_batch
                .as_ref()
                .is_none_or(|(max_loss, _)| is_larger(*max_loss))
            {
                max_loss_batch = Some((loss, batch));
            }
        }
        let (_, max_loss_batch) = max_loss_batch.expect("a step has at least one micro-batch");
        Ok(Passes {
            instances,
            max_loss_batch,
            activations,
        })
    }

    /// Clips the global gradient norm and updates the parameters, both in the update ops ([`AdamW`](crate::ops::AdamW),
    /// [`Muon`](crate::ops::Muon)); nothing is updated if the gradient is not finite.
    ///
    /// # Panics
    /// If a micro-batch of the step has not run yet.
    pub(super) fn update(&mut self, lr: f64) -> Result<StepOutcome> {
        let mut programs = self.programs.take().expect("the step is planned");
        let outcome = programs.finish(&mut self.model, &mut self.optimizer, lr)?;
        self.programs = Some(programs);
        Ok(outcome)
    }

    /// Returns the loss of a micro-batch, without a backward pass.
    pub(super) fn loss(&mut self, batch: &Batch) -> Result<f64> {
        let shape = [batch.len(), batch.seq_len];
        let divisor = (batch.len() * batch.seq_len) as f64;
        let losses = self
            .model
            .losses(&batch.inputs, &batch.targets, shape, divisor)?;
        Ok(losses.cross_entropy)
    }

    /// Returns the name of the first parameter or moment that is not finite.
    pub(super) fn first_non_finite(&self) -> Option<String> {
        let parameter = self.model.first_non_finite();
        parameter.or_else(|| self.optimizer.first_non_finite(&self.model))
    }

    /// Returns activations for about one in [`SAMPLING_DIVISOR`] tokens of a step of `sequences`: whole sequences of its
    /// first micro-batch, or the beginning of one if a step has fewer than [`SAMPLING_DIVISOR`] sequences.
    fn sample_activations(
        &mut self,
        batch: &Batch,
        sequences: usize,
    ) -> Result<Vec<BlockActivationStats>> {
        let seq = batch.seq_len;
        let sampled = (sequences / SAMPLING_DIVISOR).clamp(1, batch.len());
        let positions = match sequences < SAMPLING_DIVISOR {
            true => (seq * sequences / SAMPLING_DIVISOR).max(seq.min(MIN_SAMPLED_POSITIONS)),
            false => seq,
        };
        self.activations(batch, sampled, positions)
    }

    /// Returns activations for the first positions of the first sequences of a batch.
    pub(super) fn activations(
        &mut self,
        batch: &Batch,
        sequences: usize,
        positions: usize,
    ) -> Result<Vec<BlockActivationStats>> {
        let rows = batch.inputs.chunks(batch.seq_len).take(sequences);
        let ids: Vec<i32> = rows.flat_map(|row| row[..positions].to_vec()).collect();
        self.model.activation_stats(&ids, sequences, positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::tiny;
    use crate::train::trainer::testing::{LR, SEQ, batches, learner};

    fn shape(micro_batch: usize, grad_accum_steps: usize) -> StepShape {
        StepShape::new(micro_batch, SEQ).with_grad_accum_steps(grad_accum_steps)
    }

    fn step(learner: &mut Learner, batches: &mut BatchStream, shape: StepShape) -> StepOutcome {
        learner.plan(shape, false).unwrap();
        learner.forward_backward(batches, LR, false).unwrap();
        learner.update(LR).unwrap()
    }

    #[test]
    fn steps_lower_the_loss_of_a_repeated_batch() {
        let (mut learner, mut batches) = (learner(), batches(usize::MAX));
        let batch = batches.peek(2).unwrap();
        let before = learner.loss(&batch).unwrap();
        for _ in 0..20 {
            step(&mut learner, &mut batches, shape(2, 1));
        }
        let after = learner.loss(&batch).unwrap();
        assert!(after < 0.5 * before, "{before} {after}");
    }

    #[test]
    fn gradients_of_micro_batches_are_summed() {
        let [mut whole, mut parts] = [learner(), learner()];
        let expected = step(&mut whole, &mut batches(usize::MAX), shape(2, 1));
        let found = step(&mut parts, &mut batches(usize::MAX), shape(1, 2));
        let relative = |found: f64, expected: f64| (found / expected - 1.0).abs();
        let losses = [found.losses, expected.losses].map(|losses| losses.cross_entropy);
        assert!(relative(losses[0], losses[1]) < 1e-5, "{losses:?}");
        for (name, expected) in &expected.norms.by_name {
            let found = found.norms.by_name[name];
            let difference = relative(found.gradient, expected.gradient);
            assert!(difference < 1e-4, "{name}: {found:?} {expected:?}");
        }
    }

    #[test]
    fn passes_report_instance_ids_and_the_batch_with_the_largest_loss() {
        let (mut learner, mut batches) = (learner(), batches(usize::MAX));
        let [first, second] = [(); 2].map(|()| batches.next_batch(1).unwrap());
        let losses = [&first, &second].map(|batch| learner.loss(batch).unwrap());
        learner.plan(shape(1, 2), true).unwrap();
        let passes = learner.forward_backward(&mut batches, LR, true).unwrap();
        let ids = [&first, &second].map(|batch| batch.instance_ids[0]);
        assert_eq!(passes.instances, ids);
        let largest = usize::from(losses[1] > losses[0]);
        assert_eq!(passes.max_loss_batch.instance_ids, [ids[largest]]);
        assert_eq!(passes.activations.unwrap().len(), tiny().n_layers);
    }

    #[test]
    fn an_error_in_a_pass_leaves_the_next_step_usable() {
        let (mut interrupted, mut fresh) = (learner(), learner());
        interrupted.plan(shape(1, 2), false).unwrap();
        let mut unknown = batches(SEQ + 1);
        let error = interrupted.forward_backward(&mut unknown, LR, false).err();
        assert!(error.is_some(), "the second sequence has unknown tokens");
        let expected = step(&mut fresh, &mut batches(usize::MAX), shape(1, 2));
        let found = step(&mut interrupted, &mut batches(usize::MAX), shape(1, 2));
        assert_eq!(found, expected);
        assert_eq!(interrupted.model.values(), fresh.model.values());
    }
}
