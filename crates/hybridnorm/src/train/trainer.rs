//! The training loop.

mod begin;
mod change;
mod failure;
mod open;
mod parts;
mod resume;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{self, Contents};
use super::claim::Claim;
use super::config::Config;
use super::gradients;
use super::layers::LayersRow;
use super::metrics::{Metrics, RouterMetrics};
use super::optimizer::Optimizer;
use super::recorder::{Kind, Recorder, Weights};
use super::rows::{self, RowsFile};
use super::schedule::Schedule;
use super::segments::Segment;
use super::sources::{self, DataUse};
use super::spikes::Spike;
use super::step::TrainingStep;
use crate::data::{Batch, BatchStream, TokenDataset, Tokenizer};
use crate::error::{Error, Result};
use crate::eval;
use crate::files;
use crate::model::{Activations, Model};
use crate::placement::Warning;
use begin::Beginning;
use failure::Moment;
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

/// Activations are sampled for one in so many tokens of a step.
const LOOKED_AT: usize = 8;
/// Fewest positions of a sampled sequence: attention over fewer is not representative.
const FEWEST_POSITIONS: usize = 32;

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

    /// One optimizer step.
    ///
    /// # Errors
    /// See [`Trainer::run`].
    pub fn step(&mut self) -> Result<Step> {
        let started = Instant::now();
        let train = &self.config.train;
        let step = self.state.step + 1;
        let (micro, seq) = (train.batch_size / train.grad_accum_steps, train.seq_len);
        let targets = (train.batch_size * seq) as f32;

        let (targets, accumulated) = (targets, train.grad_accum_steps);
        let lr = self.schedule.lr(step as usize);
        let mut training = match self.training.take() {
            Some(training) => training,
            None => {
                let shape = train.step_shape();
                if self.validation.is_some() {
                    // An evaluation that does not fit is refused before the first step.
                    self.model.prepare_losses([micro, seq])?;
                }
                TrainingStep::new(shape, &mut self.model, &mut self.optimizer)?
            }
        };
        // A step that is refused leaves no file.
        self.begin()?;
        let mut instances = Vec::with_capacity(micro * accumulated);
        let mut activations = None;
        // The micro-batch with the largest loss, which is where to look if something is wrong.
        let mut worst: Option<(f64, Batch)> = None;
        for _ in 0..accumulated {
            let batch = self.stream.next_batch(micro)?;
            if worst.is_none() && self.recorder.is_due(step) {
                activations = Some(self.sample_activations(&batch)?);
            }
            self.model.check_ids(&batch.targets, micro, seq)?;
            let (model, optimizer) = (&mut self.model, &mut self.optimizer);
            let losses = training.pass(model, optimizer, &batch.inputs, &batch.targets, lr)?;
            let part = losses.cross_entropy;
            instances.extend_from_slice(&batch.instance_ids);
            // A part that is no number is worse than any.
            if !worst
                .as_ref()
                .is_some_and(|(most, _)| part <= *most || most.is_nan())
            {
                worst = Some((part, batch));
            }
        }
        let (_, batch) = worst.expect("there is a micro-batch at least");
        let outcome = training.finish(&mut self.model, &mut self.optimizer, lr)?;
        self.training = Some(training);
        let (loss, objective) = (outcome.losses.cross_entropy, outcome.losses.objective);
        let norms = outcome.norms;

        let mut metrics = Metrics {
            step,
            loss,
            grad_norm: norms.gradient,
            update_norm: norms.update,
            lr,
            tokens: self.state.tokens + targets as u64,
            tokens_per_second: f64::NAN,
            objective: (objective != loss).then_some(objective),
            router: RouterMetrics::new(&outcome.routing),
            qk_clip: norms.qk_clip,
            validation_loss: None,
        };
        let mut moment = Moment {
            instances,
            batch,
            weights: Weights::Before,
            norms: norms.by_name,
        };
        if !loss.is_finite() {
            return Err(self.diverged(&metrics, &moment, format!("loss {loss}")));
        }
        let Metrics {
            grad_norm,
            update_norm,
            ..
        } = metrics;
        if !grad_norm.is_finite() {
            let found = format!("loss {loss}, gradient norm {grad_norm}");
            return Err(self.diverged(&metrics, &moment, found));
        }
        moment.weights = Weights::After;
        if !update_norm.is_finite() {
            let found =
                format!("loss {loss}, gradient norm {grad_norm}, update norm {update_norm}");
            return Err(self.diverged(&metrics, &moment, found));
        }

        self.state.step = step;
        self.state.tokens = metrics.tokens;
        self.state.cursor = self.stream.cursor();
        self.state.max_grad_norm = self.state.max_grad_norm.max(grad_norm);
        let layers = activations.map(|mut activations| {
            // Of experts the whole step is known, not only the part that was looked at.
            let mixtures = activations
                .iter_mut()
                .filter_map(|seen| seen.routing.as_mut());
            for (seen, routing) in mixtures.zip(outcome.routing) {
                *seen = routing;
            }
            LayersRow::new(step, &self.model, &activations, &moment.norms)
        });
        let seconds = started.elapsed().as_secs_f64();
        if seconds > 0.0 {
            metrics.tokens_per_second = f64::from(targets) / seconds;
        }
        let spikes = self.recorder.watch(&metrics);
        if !spikes.is_empty() && self.recorder.has_room() {
            let reasons = spikes.iter().map(Spike::to_string).collect();
            let dump = self.describe(&metrics, &moment, Kind::Spike, reasons)?;
            self.recorder.dump(&dump)?;
        }
        Ok(Step {
            metrics,
            layers,
            spikes,
            seconds,
        })
    }

    /// Activations for about one in [`LOOKED_AT`] tokens of a step: whole sequences, or the beginning of
    /// one where there are fewer sequences than that.
    fn sample_activations(&mut self, batch: &Batch) -> Result<Vec<Activations>> {
        let (whole, seq) = (self.config.train.batch_size, batch.seq_len);
        let sequences = (whole / LOOKED_AT).clamp(1, batch.len());
        let positions = match whole < LOOKED_AT {
            true => (seq * whole / LOOKED_AT).max(seq.min(FEWEST_POSITIONS)),
            false => seq,
        };
        self.look(batch, sequences, positions)
    }

    /// Activations for the first positions of the first sequences of a batch.
    fn look(
        &mut self,
        batch: &Batch,
        sequences: usize,
        positions: usize,
    ) -> Result<Vec<Activations>> {
        let rows = batch.inputs.chunks(batch.seq_len).take(sequences);
        let ids: Vec<i32> = rows.flat_map(|row| row[..positions].to_vec()).collect();
        self.model.activations(&ids, sequences, positions)
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
