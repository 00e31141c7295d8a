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
    /// The programs of a step, made for the first one.
    training: Option<TrainingStep>,
    state: State,
    metrics: Option<RowsFile<Metrics>>,
    recorder: Recorder,
    new_parameters: Vec<String>,
    warnings: Vec<Warning>,
    last_saved: Option<u64>,
    /// The last one is of this process.
    segments: Vec<Segment>,
    /// Files to be written before the first step; none after it.
    beginning: Option<Beginning>,
    claim: Claim,
}

/// Losses of one model on the same data differ less, relatively, on two processors.
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

    /// Trains until step `limit` or the last one is done, or until `stop` becomes true; saves at the end
    /// in any case.
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

    /// Tokens of the data that are used and left out.
    pub fn data_use(&self) -> &DataUse {
        &self.data_use
    }

    /// Loss on the validation data, where there are any.
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

    /// True if there are validation data.
    pub fn has_validation(&self) -> bool {
        self.validation.is_some()
    }

    /// Writes a checkpoint of the present step, unless there is one.
    ///
    /// # Errors
    /// If it cannot be written, or the run could not go on from it because its numbers are not
    /// finite; older ones are then untouched.
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

    /// The model as it stands.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model as it stands, to be evaluated or generated from.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// State of the run.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Total number of steps.
    pub fn steps(&self) -> u64 {
        self.config.train.steps as u64
    }

    /// The tokenizer of the data, where known.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The training data.
    pub fn training_data(&self) -> &TokenDataset {
        self.stream.dataset()
    }

    /// Prepared folders among the training data, those made from raw text included.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Parameters that began with their initial values because the checkpoint that the run branched off
    /// does not have them.
    pub fn new_parameters(&self) -> &[String] {
        &self.new_parameters
    }

    /// Gives a loss that the run recorded for its last step in the place of one that was measured anew, perhaps
    /// on other data.
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

    /// The segment of the run that is this process's, the last one of several.
    pub fn segment(&self) -> &Segment {
        self.segments.last().expect("one is of this process")
    }

    /// Norm of the gradient of the next micro-batch's mean loss at the state that enters each block, of
    /// both streams together where there are two. Nothing is changed.
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

    /// Warnings about the placement.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}
