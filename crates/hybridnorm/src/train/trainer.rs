//! The training loop.

mod change;
mod data;
mod dumps;
mod failure;
mod files;
mod initial;
mod learner;
mod open;
mod resume;
mod start_point;
mod step;
mod step_metrics;
#[cfg(feature = "data")]
mod tasks;
#[cfg(test)]
mod testing;
mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::{self, Contents};
use super::config::Config;
use super::gradients;
use super::metrics::{Metrics, TaskScores};
use super::recorder::Recorder;
use super::records;
use super::segments::Segment;
use super::sources::DataCoverage;
use crate::data::{Batch, TokenDataset, Tokenizer};
use crate::error::{Error, Result};
use crate::loss::Loss;
use crate::model::Model;
use crate::placement::Warning;
use data::RunData;
use files::RunFiles;
use learner::Learner;
#[cfg(feature = "lab")]
pub(crate) use open::{check_inputs, no_validation};
pub use types::{Event, OpenOptions, Outcome, Start, State, Step};

/// A training run.
///
/// ```
/// use std::sync::atomic::AtomicBool;
///
/// use hybridnorm::Device;
/// use hybridnorm::data::TokenDataset;
/// use hybridnorm::train::{Config, ModelSection, Start, TrainSection, Trainer, TrainingData};
///
/// let model = ModelSection::new("hybridnorm")
///     .with_d_model(16)
///     .with_n_layers(2)
///     .with_n_heads(2)
///     .with_d_ff(32)
///     .with_vocab_size(8);
/// let train = TrainSection::default().with_steps(4).with_batch_size(4).with_seq_len(8);
/// let config = Config::default().with_model(model).with_train(train);
///
/// let tokens: Vec<u32> = (0..200).map(|i| i % 8).collect();
/// let dataset = TokenDataset::from_tokens(&tokens, 8, 8)?;
/// let data = TrainingData::new(&config, dataset, None);
///
/// let folder = tempfile::tempdir().unwrap();
/// let run = folder.path().join("run");
/// let (start, device) = (Start::Fresh, Device::Cpu);
/// let mut trainer = Trainer::open_with_data(config, data, &run, start, device, &mut |_| {})?;
/// let outcome = trainer.run(&AtomicBool::new(false), &mut |_| {})?;
/// assert!(outcome.finished && outcome.checkpoint.exists());
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub struct Trainer {
    config: Config,
    /// Batches and validation data.
    data: RunData,
    /// Model and optimizer.
    learner: Learner,
    /// Step, tokens and position in the data.
    state: State,
    /// Recorder of layer statistics, spikes and dumps.
    recorder: Recorder,
    /// The run directory.
    files: RunFiles,
    new_parameters: Vec<String>,
    warnings: Vec<Warning>,
}

/// Relative tolerance between losses of one model on the same data on different processors.
const LOSS_TOLERANCE: f64 = 1e-5;

impl Trainer {
    /// Trains until the last step or until `stop` becomes true; saves at the end in either case.
    ///
    /// # Errors
    /// See [`Trainer::run_to`].
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        self.run_to(u64::MAX, stop, on_event)
    }

    /// Trains until step `limit` or the last step, or until `stop` becomes true; saves at the end in any case.
    ///
    /// # Errors
    /// [`Error::Diverged`] if loss or gradients are not finite; errors of reading data and writing files.
    pub fn run_to(
        &mut self,
        limit: u64,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome> {
        let steps = self.steps();
        let mut validation = None;
        let (mut tokens, mut seconds) = (0.0, 0.0);
        while self.state.step < steps.min(limit) && !stop.load(Ordering::Relaxed) {
            let step = self.step()?;
            tokens += self.config.train.tokens_per_step() as f64;
            seconds += step.seconds;
            validation = match self.is_evaluation_due() {
                true => self.evaluate()?,
                false => None,
            };
            self.record(step, validation, on_event)?;
            if is_due(self.config.train.checkpoint_every, self.state.step) {
                self.save(on_event)?;
            }
        }
        let finished = self.state.step >= steps;
        if finished && validation.is_none() {
            validation = self.evaluate()?;
            if let Some(found) = &mut validation {
                self.prefer_recorded_loss(found, on_event)?;
            }
        }
        self.save(on_event)?;
        Ok(Outcome {
            finished,
            step: self.state.step,
            tokens: self.state.tokens,
            validation,
            omissions: self.data.coverage.omissions(),
            data: self.data.coverage.clone(),
            max_grad_norm: self.state.max_grad_norm,
            spikes: self.recorder.spikes(),
            spike_scores: self.recorder.spike_scores(),
            tokens_per_second: tokens / f64::max(seconds, f64::MIN_POSITIVE),
            checkpoint: checkpoint::step_path(&self.files.run, self.state.step),
        })
    }

    fn is_evaluation_due(&self) -> bool {
        let step = self.state.step;
        is_due(self.config.train.eval_every, step) || step == self.steps()
    }

    /// Writes the records of a step and reports it.
    fn record(
        &mut self,
        step: Step,
        validation: Option<Loss>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        if let Some(layers) = step.layers {
            self.recorder.append(&layers)?;
        }
        let mut metrics = step.metrics;
        metrics.validation_loss = validation.map(|found| found.loss);
        metrics.tasks = self.evaluate_tasks()?;
        self.files.append(&metrics)?;
        self.recorder.log_scalars(&metrics)?;
        on_event(Event::Step(&metrics));
        if !metrics.tasks.is_empty() {
            on_event(Event::Tasks(&metrics));
        }
        let step_number = metrics.step;
        for spike in &step.spikes {
            on_event(Event::Note(format!("step {step_number}: {spike}")));
        }
        if let Some(loss) = validation {
            on_event(Event::Evaluated {
                step: step_number,
                loss,
            });
        }
        Ok(())
    }

    /// Returns the counts of used and omitted tokens of the data.
    pub fn data_coverage(&self) -> &DataCoverage {
        &self.data.coverage
    }

    /// Returns the loss on the validation data, if any.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn evaluate(&mut self) -> Result<Option<Loss>> {
        match self.data.evaluate(&mut self.learner.model, &self.config) {
            Err(Error::Diverged { problem, .. }) => {
                Err(self.divergence_after(self.state.step, format!("evaluation: {problem}"))?)
            }
            found => found,
        }
    }

    /// Returns the scores on the downstream tasks of `[eval]`, if they are due after the current step.
    fn evaluate_tasks(&mut self) -> Result<BTreeMap<String, TaskScores>> {
        #[cfg(feature = "data")]
        if self.data.tasks.is_due(self.state.step, self.steps()) {
            let RunData {
                tasks, tokenizer, ..
            } = &self.data;
            return match tasks.evaluate(&mut self.learner.model, tokenizer.as_ref()) {
                Err(Error::Diverged { problem, .. }) => {
                    Err(self.divergence_after(self.state.step, format!("evaluation: {problem}"))?)
                }
                found => found,
            };
        }
        Ok(BTreeMap::new())
    }

    /// True if the run has validation data.
    pub fn has_validation(&self) -> bool {
        self.data.validation.is_some()
    }

    /// Writes a checkpoint of the current step, unless it is already saved.
    ///
    /// # Errors
    /// If it cannot be written, or the run could not continue from it because weights, moments or the next loss
    /// are not finite; older checkpoints are then untouched.
    pub fn save(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let step = self.state.step;
        if self.files.is_saved(step) {
            return Ok(());
        }
        self.write_initial_files()?;
        self.check_weights()?;
        let contents = Contents {
            model: &self.learner.model,
            tokenizer: self.data.tokenizer.as_ref(),
            training: Some((self.learner.optimizer.moment_handles(), &self.state)),
        };
        let keep = self.config.train.keep_checkpoints;
        let path = self.files.save(contents, step, &self.recorder, keep)?;
        on_event(Event::Saved(&path));
        Ok(())
    }

    /// Writes the initial files before the first step, once.
    fn write_initial_files(&mut self) -> Result<()> {
        let step = self.state.step;
        self.files
            .write_initial(&self.config, &mut self.recorder, step)
    }

    /// Marks the run as finished. A run opened with [`OpenOptions::restart_purpose`] that is not marked is restarted
    /// from scratch.
    ///
    /// # Errors
    /// If the mark of an unfinished run cannot be removed, or the directory is no longer locked.
    pub fn mark_finished(&self) -> Result<()> {
        self.files.mark_finished()
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.learner.model
    }

    /// Returns the model, for evaluation or generation.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.learner.model
    }

    /// Returns the state of the run.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the total number of steps.
    pub fn steps(&self) -> u64 {
        self.config.train.steps as u64
    }

    /// Returns the tokenizer of the data, if known.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.data.tokenizer.as_ref()
    }

    /// Returns the training data.
    pub fn training_data(&self) -> &TokenDataset {
        self.data.stream.dataset()
    }

    /// Returns the prepared folders among the training data, including those of raw text.
    pub fn folders(&self) -> &[PathBuf] {
        &self.data.folders
    }

    /// Returns the parameters that started with their initial values because the checkpoint that the run branched
    /// off does not contain them.
    pub fn new_parameters(&self) -> &[String] {
        &self.new_parameters
    }

    /// Replaces the final validation loss by the one that the run recorded for its last step: data or precision may have
    /// changed since.
    fn prefer_recorded_loss(
        &self,
        found: &mut Loss,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let records: Vec<Metrics> = records::read(&self.files.run)?;
        let last = records
            .last()
            .filter(|metrics| metrics.step == self.state.step);
        let Some(recorded) = last.and_then(|metrics| metrics.validation_loss) else {
            return Ok(());
        };
        if (found.loss - recorded).abs() > LOSS_TOLERANCE * recorded.abs() {
            on_event(Event::Note(format!(
                "keeping the validation loss {recorded:.4} recorded after step {}; the current data and settings \
                 give {:.4}",
                self.state.step, found.loss
            )));
        }
        found.loss = recorded;
        found.perplexity = recorded.exp();
        Ok(())
    }

    /// Returns the segment of this process, the last one of the run.
    pub fn segment(&self) -> &Segment {
        self.files.segments.last().expect("one is of this process")
    }

    /// Returns, for each block, the norm of the gradient of the next micro-batch's training objective (router losses
    /// and z-loss included) with respect to the residual stream at its input; with two streams, of both together.
    /// Changes no state.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn residual_gradient_norms(&mut self) -> Result<Vec<f64>> {
        let recompute = self.config.train.recompute;
        let batch = self.next_micro_batch()?;
        let shape = [batch.len(), batch.seq_len];
        let Batch {
            inputs, targets, ..
        } = &batch;
        let model = &mut self.learner.model;
        gradients::residual_gradient_norms(model, inputs, targets, shape, recompute)
    }

    /// Returns the next micro-batch, without advancing the data cursor.
    fn next_micro_batch(&mut self) -> Result<Batch> {
        self.data
            .stream
            .peek(self.config.train.step_shape().micro_batch)
    }

    /// Returns the warnings about the placement.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// True if an event with the interval `every` in steps (0: never) is due after `step`.
fn is_due(every: usize, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every as u64)
}
