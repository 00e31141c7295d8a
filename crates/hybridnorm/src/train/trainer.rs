//! The training loop.

mod begin;
mod change;
mod failure;
mod initial;
mod open;
mod origin;
mod parts;
mod resume;
mod step;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::checkpoint::{self, Contents};
use super::claim::Claim;
use super::config::Config;
use super::gradients;
use super::metrics::Metrics;
use super::optimizer::Optimizer;
use super::recorder::Recorder;
use super::rows::{self, RowsFile};
use super::schedule::Schedule;
use super::segments::Segment;
use super::sources::{self, DataUse};
use super::step::TrainingStep;
use crate::data::{Batch, BatchStream, TokenDataset, Tokenizer};
use crate::error::{Error, Result};
use crate::eval;
use crate::files;
use crate::model::Model;
use crate::placement::Warning;
use begin::Beginning;
pub use parts::{Event, OpenOptions, Outcome, Start, State, Step};

/// A training run: model, data, optimizer and state.
pub struct Trainer {
    config: Config,
    run: PathBuf,
    stream: BatchStream,
    validation: Option<TokenDataset>,
    data_use: DataUse,
    tokenizer: Option<Tokenizer>,
    folders: Vec<PathBuf>,
    schedule: Schedule,
    model: Model,
    optimizer: Optimizer,
    /// Programs of a step, planned at the first step.
    training: Option<TrainingStep>,
    state: State,
    metrics: Option<RowsFile<Metrics>>,
    recorder: Recorder,
    new_parameters: Vec<String>,
    warnings: Vec<Warning>,
    last_saved: Option<u64>,
    /// Segments of the run; the last one belongs to this process.
    segments: Vec<Segment>,
    /// Files to be written before the first step; `None` afterwards.
    beginning: Option<Beginning>,
    claim: Claim,
}

/// Relative tolerance between losses of one model on the same data on different processors.
const SAME_LOSS: f64 = 1e-5;

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
        let train = self.config.train.clone();
        let steps = train.steps as u64;
        let due = |every: usize, step: u64| every > 0 && step.is_multiple_of(every as u64);
        let mut validation = None;
        let (mut tokens, mut seconds) = (0.0, 0.0);
        let tokens_per_step = (train.batch_size * train.seq_len) as f64;
        while self.state.step < steps.min(limit) && !stop.load(Ordering::Relaxed) {
            let Step {
                metrics: mut row,
                layers,
                spikes,
                seconds: took,
            } = self.step()?;
            if let Some(layers) = layers {
                self.recorder.append(&layers)?;
            }
            tokens += tokens_per_step;
            seconds += took;
            validation = None;
            if due(train.eval_every, row.step) || row.step == steps {
                validation = self.evaluate()?;
            }
            row.validation_loss = validation.map(|found| found.loss);
            if let Some(metrics) = &mut self.metrics {
                metrics.append(&row)?;
            }
            self.recorder.log_scalars(&row)?;
            on_event(Event::Step(&row));
            for spike in &spikes {
                on_event(Event::Note(format!("step {}: {spike}", row.step)));
            }
            if let Some(loss) = validation {
                on_event(Event::Evaluated {
                    step: row.step,
                    loss,
                });
            }
            if due(train.checkpoint_every, row.step) {
                self.save(on_event)?;
            }
        }
        let finished = self.state.step >= steps;
        if finished && validation.is_none() {
            validation = self.evaluate()?;
            if let Some(found) = &mut validation {
                self.as_recorded(found, on_event)?;
            }
        }
        self.save(on_event)?;
        Ok(Outcome {
            finished,
            step: self.state.step,
            tokens: self.state.tokens,
            validation,
            left_out: self.data_use.left_out(),
            data: self.data_use.clone(),
            max_grad_norm: self.state.max_grad_norm,
            spikes: self.recorder.spikes(),
            spike_scores: self.recorder.spike_scores(),
            tokens_per_second: tokens / f64::max(seconds, f64::MIN_POSITIVE),
            checkpoint: checkpoint::step_path(&self.run, self.state.step),
        })
    }

    /// Returns the counts of used and omitted tokens of the data.
    pub fn data_use(&self) -> &DataUse {
        &self.data_use
    }

    /// Returns the loss on the validation data, if any.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn evaluate(&mut self) -> Result<Option<eval::Loss>> {
        let train = &self.config.train;
        let micro = train.batch_size / train.grad_accum_steps;
        let Some(data) = &self.validation else {
            return Ok(None);
        };
        let windows = sources::validation_windows(&self.config);
        match eval::loss(&mut self.model, data, micro, windows) {
            Ok(loss) => Ok(Some(loss)),
            Err(Error::Diverged { problem, .. }) => {
                Err(self.diverged_between(self.state.step, format!("evaluation: {problem}"))?)
            }
            Err(error) => Err(error),
        }
    }

    /// True if the run has validation data.
    pub fn has_validation(&self) -> bool {
        self.validation.is_some()
    }

    /// Writes a checkpoint of the current step, unless it is already saved.
    ///
    /// # Errors
    /// If it cannot be written, or the run could not continue from it because weights, moments or the next loss
    /// are not finite; older checkpoints are then untouched.
    pub fn save(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        if self.last_saved == Some(self.state.step) {
            return Ok(());
        }
        self.begin()?;
        self.check_weights()?;
        self.claim.check_held()?;
        self.sync_rows()?;
        let path = checkpoint::step_path(&self.run, self.state.step);
        let contents = Contents {
            model: &self.model,
            tokenizer: self.tokenizer.as_ref(),
            training: Some((self.optimizer.handles(), &self.state)),
        };
        match files::exists(&path)? {
            true => checkpoint::replace(&path, contents),
            false => checkpoint::save(&path, contents),
        }?;
        self.last_saved = Some(self.state.step);
        self.note_saved()?;
        checkpoint::prune(
            &self.run,
            self.state.step,
            self.config.train.keep_checkpoints,
        )?;
        on_event(Event::Saved(&path));
        Ok(())
    }

    /// Returns the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the model, for evaluation or generation.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
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
        self.tokenizer.as_ref()
    }

    /// Returns the training data.
    pub fn training_data(&self) -> &TokenDataset {
        self.stream.dataset()
    }

    /// Returns the prepared folders among the training data, including those made from raw text.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Returns the parameters that started with their initial values because the checkpoint that the run branched
    /// off does not contain them.
    pub fn new_parameters(&self) -> &[String] {
        &self.new_parameters
    }

    /// Replaces the final validation loss by the one that the run recorded for its last step, if they differ:
    /// the data may have changed since.
    fn as_recorded(
        &self,
        found: &mut eval::Loss,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let rows: Vec<Metrics> = rows::read(&self.run)?;
        let last = rows.last().filter(|row| row.step == self.state.step);
        let Some(recorded) = last.and_then(|row| row.validation_loss) else {
            return Ok(());
        };
        if (found.loss - recorded).abs() > SAME_LOSS * recorded.abs() {
            on_event(Event::Note(format!(
                "the run's own validation loss is {recorded:.4}, as recorded after step {}; with the data and \
                 settings of this command it would be {:.4}",
                self.state.step, found.loss
            )));
            found.loss = recorded;
            found.perplexity = recorded.exp();
        }
        Ok(())
    }

    /// Returns the segment of this process, the last one of the run.
    pub fn segment(&self) -> &Segment {
        self.segments.last().expect("one is of this process")
    }

    /// Returns the norm of the gradient of the next micro-batch's mean loss at the input of each block; with two
    /// streams, of both together. Changes no state.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn stream_gradients(&mut self) -> Result<Vec<f64>> {
        let train = &self.config.train;
        let (micro, seq) = (train.batch_size / train.grad_accum_steps, train.seq_len);
        let batch = self.stream.peek(micro)?;
        let shape = [micro, seq];
        let Batch {
            inputs, targets, ..
        } = &batch;
        gradients::stream_gradients(&mut self.model, inputs, targets, shape, train.recompute)
    }

    /// Returns the warnings about the placement.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}
