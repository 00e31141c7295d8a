//! The training loop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoint, Contents};
use super::config::Config;
use super::gradients::GradientSum;
use super::layers::{LayersRow, measured};
use super::metrics::Metrics;
use super::optimizer::{Optimizer, StepNorms};
use super::recorder::{Dump, Recorder, Weights};
use super::rows::RowsFile;
use super::run_directory;
use super::schedule::Schedule;
use super::sources::{self, Sources};
use super::spikes::{Counts, Scores, Spike};
use crate::data::{Batch, BatchStream, Cursor, Progress, TokenDataset, Tokenizer};
use crate::error::{Error, Result};
use crate::eval;
use crate::files;
use crate::memory;
use crate::model::inventory::inventory;
use crate::model::{Activations, Decoder, LossOptions, params};
use crate::ops;
use crate::placement::Warning;
use crate::tensors;

/// Where a run stands; together with weights and moments, all that decides what comes next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Where the batch stream stands.
    pub cursor: Cursor,
    /// Fingerprint of the training data.
    pub data: String,
    /// Largest gradient norm so far.
    pub max_grad_norm: f64,
}

/// What happens in a run, as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something worth a line.
    Note(String),
    /// Text is being turned into tokens.
    Progress(Progress),
    /// A step was done.
    Step(&'a Metrics),
    /// Validation loss was measured.
    Evaluated {
        /// After this step.
        step: u64,
        /// What was found.
        loss: eval::Loss,
    },
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Whether all steps were done; otherwise the run was asked to stop.
    pub finished: bool,
    /// Steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Validation loss after the last step, where there are validation data.
    pub validation: Option<eval::Loss>,
    /// Largest gradient norm of all steps.
    pub max_grad_norm: f64,
    /// Spikes of all steps.
    pub spikes: Counts,
    /// Shares of the last steps that spiked.
    pub spike_scores: Scores,
    /// Throughput of the steps done by this process, evaluation and saving not counted.
    pub tokens_per_second: f64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// A run: a model, what it learns from, and where it stands.
pub struct Trainer {
    config: Config,
    run: PathBuf,
    stream: BatchStream,
    validation: Option<TokenDataset>,
    tokenizer: Option<Tokenizer>,
    folders: Vec<PathBuf>,
    schedule: Schedule,
    model: Option<Decoder>,
    optimizer: Optimizer,
    state: State,
    metrics: RowsFile<Metrics>,
    recorder: Recorder,
    new_parameters: Vec<String>,
    warnings: Vec<Warning>,
    last_saved: Option<u64>,
    lock: File,
}

/// What one optimizer step gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The numbers of the step.
    pub metrics: Metrics,
    /// The inside of the model, where it was due.
    pub layers: Option<LayersRow>,
    /// What left its recent range.
    pub spikes: Vec<Spike>,
}

/// Whether a run may go on where it stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From the beginning; the run directory must not hold a run.
    Fresh,
    /// From the newest valid checkpoint, or from the beginning where none was written yet. Where all
    /// are broken it is an error.
    Resume,
    /// From the checkpoint of another run, in a directory that must not hold a run. Of the
    /// configuration, anything may differ from that run's but what the batches are made of; parameters
    /// that the checkpoint does not have begin with their initial values.
    Branch(Checkpoint),
}

/// One in so many sequences of a micro-batch is looked at, one at least.
const LOOKED_AT: usize = 8;

const PRESENT: &str = "the model is absent only during an update";

impl Trainer {
    /// Prepares a run in the directory `run`: opens its data, makes or loads its model.
    ///
    /// `on_event` hears of what is being prepared.
    ///
    /// # Errors
    /// If the configuration, the data or the directory do not allow the run.
    pub fn open(
        config: Config,
        run: &Path,
        start: Start,
        device: &Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let is_new = !run.exists();
        let opened = Self::prepare(config, run, start, device, on_event);
        if opened.is_err() && is_new {
            // Nothing was done yet: no trace is left. The error to report is the first one.
            let _ = run_directory::remove(run)
                .and_then(|()| std::fs::remove_dir(run).map_err(Error::io(run)));
        }
        opened
    }

    fn prepare(
        config: Config,
        run: &Path,
        start: Start,
        device: &Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        files::create_dir(run.join(checkpoint::CHECKPOINTS))?;
        let lock = run_directory::lock(run)?;
        let is_branch = matches!(start, Start::Branch(_));
        let resumed = match start {
            Start::Fresh => {
                run_directory::refuse_to_overwrite(run)?;
                None
            }
            Start::Resume => run_directory::find_resume_point(run, on_event)?,
            Start::Branch(checkpoint) => {
                run_directory::refuse_to_overwrite(run)?;
                Some(checkpoint)
            }
        };
        checkpoint::remove_leftovers(run)?;
        if resumed.is_some() && !is_branch {
            run_directory::check_same_run(&config, run, on_event)?;
        }
        let name_file = |error| config.origin.name(error);
        let sources = sources::open(&config, &mut |progress| on_event(Event::Progress(progress)))
            .map_err(name_file)?;
        if sources.validation.is_none() && config.train.eval_every > 0 {
            on_event(Event::Note(format!(
                "no validation: the data hold out less than one sequence of {} tokens, and \
                 data.validation names none",
                config.train.seq_len
            )));
        }
        let device = device.clone().autodiff();
        let mut new_parameters = Vec::new();
        let (model, warnings) = match (&resumed, &config.init) {
            (Some(checkpoint), _) if is_branch => {
                let model = match &config.model {
                    Some(section) => section.settle(config.train.seq_len, sources.vocab_size)?,
                    None => checkpoint.config()?,
                };
                let (_, warnings) = model.resolve()?;
                let fresh = Decoder::new(&model, config.seed, &device)?;
                let (model, new) = params::load_shared(fresh, checkpoint.weights()?);
                new_parameters = new;
                (model, warnings)
            }
            (Some(checkpoint), _) => (checkpoint.model(&device)?, Vec::new()),
            (None, Some(init)) => {
                let from = Checkpoint::open(&init.from)?;
                check_init(&config, &from, &sources).map_err(name_file)?;
                (from.model(&device)?, Vec::new())
            }
            (None, None) => {
                let section = config
                    .model
                    .as_ref()
                    .ok_or_else(|| Error::config("[model] is missing"))?;
                let model = section
                    .settle(config.train.seq_len, sources.vocab_size)
                    .map_err(name_file)?;
                let (_, warnings) = model.resolve().map_err(name_file)?;
                let micro = config.train.batch_size / config.train.grad_accum_steps;
                memory::require(
                    inventory(&model, micro, config.train.seq_len, config.train.recompute)?
                        .memory
                        .total(),
                    "the model's weights, gradients, moments and activations",
                )?;
                (Decoder::new(&model, config.seed, &device)?, warnings)
            }
        };
        let mut optimizer = Optimizer::new(config.optimizer.clone(), &model);
        let state = match &resumed {
            Some(checkpoint) => {
                let (state, moments): (State, _) = checkpoint.training()?;
                let found = sources.train.fingerprint();
                if state.data != found {
                    return Err(Error::config(format!(
                        "the training data are not those of {} (fingerprint {}, now {found})",
                        checkpoint.path().display(),
                        state.data
                    )));
                }
                let plain = device.clone().without_autodiff();
                match is_branch {
                    true => optimizer.restore_shared(state.step, moments, &plain)?,
                    false => optimizer.restore(state.step, moments, &plain)?,
                }
                state
            }
            None => State {
                step: 0,
                tokens: 0,
                cursor: Cursor::default(),
                data: sources.train.fingerprint(),
                max_grad_norm: 0.0,
            },
        };
        let Sources {
            train,
            validation,
            tokenizer,
            folders,
            ..
        } = sources;
        let stream = BatchStream::new(train, config.data.order.seeded(config.seed), state.cursor)?;
        let tokens_per_step = (config.train.batch_size * config.train.seq_len) as u64;
        let schedule =
            config
                .schedule
                .settle(config.optimizer.lr, config.train.steps, tokens_per_step)?;
        let metrics = RowsFile::open(run, state.step)?;
        let recorder = Recorder::open(run, &config.log, state.step)?;
        // What says the same already may be somebody's own, with comments.
        let path = run.join(run_directory::CONFIG);
        if !path.exists() || Config::load(&path, &[])? != config {
            files::write(path, config.to_toml().as_bytes())?;
        }
        if resumed.is_some() && !is_branch {
            // A kill may have come between saving and pruning.
            checkpoint::prune(run, state.step, config.train.keep_checkpoints)?;
        }
        Ok(Self {
            metrics,
            recorder,
            last_saved: (resumed.is_some() && !is_branch).then_some(state.step),
            new_parameters,
            config,
            run: run.to_path_buf(),
            stream,
            validation,
            tokenizer,
            folders,
            schedule,
            model: Some(model),
            optimizer,
            state,
            warnings,
            lock,
        })
    }

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
    /// [`Error::Diverged`] when loss or gradients stop being finite; otherwise what reading data
    /// or writing files may give.
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
            } = self.step()?;
            if let Some(layers) = layers {
                self.recorder.append(&layers)?;
            }
            tokens += tokens_per_step;
            seconds += tokens_per_step / row.tokens_per_second;
            validation = None;
            if due(train.eval_every, row.step) || row.step == steps {
                validation = self.evaluate()?;
            }
            row.validation_loss = validation.map(|found| found.loss);
            self.metrics.append(&row)?;
            self.recorder.show(&row)?;
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
        }
        self.save(on_event)?;
        // The next training may have other shapes.
        ops::pool::clear();
        Ok(Outcome {
            finished,
            step: self.state.step,
            tokens: self.state.tokens,
            validation,
            max_grad_norm: self.state.max_grad_norm,
            spikes: self.recorder.spikes(),
            spike_scores: self.recorder.spike_scores(),
            tokens_per_second: tokens / f64::max(seconds, f64::MIN_POSITIVE),
            checkpoint: checkpoint::step_path(&self.run, self.state.step),
        })
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

        let mut gradients = GradientSum::default();
        let mut loss = 0.0;
        let mut instances = Vec::with_capacity(train.batch_size);
        let (mut activations, mut first) = (None, None);
        for _ in 0..train.grad_accum_steps {
            let batch = self.stream.next_batch(micro)?;
            if first.is_none() && self.recorder.is_due(step) {
                activations = Some(self.look(&batch, micro.div_ceil(LOOKED_AT))?);
            }
            let inputs = self.model().ids(&batch.inputs, micro, seq)?;
            let outputs = self.model().ids(&batch.targets, micro, seq)?;
            let options = LossOptions { divisor: targets };
            let losses =
                gradients.accumulate(self.model(), inputs, outputs, options, train.recompute);
            loss += cross_entropy(losses);
            instances.extend_from_slice(&batch.instance_ids);
            first.get_or_insert(batch);
        }
        let first = first.expect("there is a micro-batch at least");

        if !loss.is_finite() {
            let norms = StepNorms::of_gradients(&gradients);
            return Err(self.diverged(step, loss, norms, instances, Weights::Before, &first));
        }
        if step == 1 {
            self.check_every_gradient(&gradients)?;
        }
        let lr = self.schedule.lr(step as usize);
        // Moved out and back, so that no second owner keeps the update from being in place.
        let model = self.model.take().expect(PRESENT);
        let (model, norms) = self.optimizer.step(model, gradients, lr);
        self.model = Some(model);
        let grad_norm = norms.gradient;
        for (norm, weights) in [(grad_norm, Weights::Before), (norms.update, Weights::After)] {
            if !norm.is_finite() {
                return Err(self.diverged(step, loss, norms, instances, weights, &first));
            }
        }

        let tokens = (self.config.train.batch_size * seq) as u64;
        self.state.step = step;
        self.state.tokens += tokens;
        self.state.cursor = self.stream.cursor();
        self.state.max_grad_norm = self.state.max_grad_norm.max(grad_norm);
        let layers = activations
            .map(|activations| LayersRow::new(step, self.model(), &activations, &norms.by_name));
        let metrics = Metrics {
            step,
            loss,
            grad_norm,
            update_norm: norms.update,
            lr,
            tokens: self.state.tokens,
            tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64(),
            validation_loss: None,
        };
        let spikes = self.recorder.watch(&metrics);
        if !spikes.is_empty() && self.recorder.has_room() {
            let reasons = spikes.iter().map(Spike::to_string).collect();
            let dump =
                self.describe(&metrics, reasons, &norms, instances, Weights::After, &first)?;
            self.recorder.dump(&dump)?;
        }
        Ok(Step {
            metrics,
            layers,
            spikes,
        })
    }

    /// Activations of the first `sequences` of a batch.
    fn look(&self, batch: &Batch, sequences: usize) -> Result<Vec<Activations>> {
        let model = self.model().valid();
        let ids = &batch.inputs[..sequences * batch.seq_len];
        let ids = model.ids(ids, sequences, batch.seq_len)?;
        Ok(model.activations(ids))
    }

    fn describe(
        &self,
        metrics: &Metrics,
        reasons: Vec<String>,
        norms: &StepNorms,
        instances: Vec<u64>,
        weights: Weights,
        batch: &Batch,
    ) -> Result<Dump> {
        let activations = self.look(batch, batch.len())?;
        let parameters = norms.by_name.iter();
        Ok(Dump {
            step: metrics.step,
            reasons,
            loss: measured(metrics.loss),
            grad_norm: measured(metrics.grad_norm),
            update_norm: measured(metrics.update_norm),
            lr: metrics.lr,
            instances,
            weights,
            layers: LayersRow::new(metrics.step, self.model(), &activations, &norms.by_name),
            parameters: parameters
                .map(|(name, norms)| (name.clone(), norms.into()))
                .collect(),
        })
    }

    /// Loss on the validation data, where there are any.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn evaluate(&self) -> Result<Option<eval::Loss>> {
        let train = &self.config.train;
        let micro = train.batch_size / train.grad_accum_steps;
        self.validation
            .as_ref()
            .map(|data| eval::loss(self.model(), data, micro, train.eval_sequences))
            .transpose()
            .map_err(|error| match error {
                Error::Diverged { problem, .. } => Error::Diverged {
                    step: Some(self.state.step),
                    problem: format!("evaluation: {problem}; {}", self.last_good(self.state.step)),
                },
                other => other,
            })
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
        self.check_weights()?;
        run_directory::check_held(&self.run, &self.lock)?;
        checkpoint::remove_broken(&self.run, self.state.step)?;
        let path = checkpoint::step_path(&self.run, self.state.step);
        checkpoint::save(
            &path,
            Contents {
                model: self.model(),
                tokenizer: self.tokenizer.as_ref(),
                training: Some((self.optimizer.handles(), &self.state)),
            },
        )?;
        self.last_saved = Some(self.state.step);
        checkpoint::prune(
            &self.run,
            self.state.step,
            self.config.train.keep_checkpoints,
        )?;
        on_event(Event::Saved(&path));
        Ok(())
    }

    /// The model as it stands.
    pub fn model(&self) -> &Decoder {
        self.model.as_ref().expect(PRESENT)
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Total number of steps.
    pub fn steps(&self) -> u64 {
        self.config.train.steps as u64
    }

    /// What turned text into tokens, where known.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
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

    /// Norm of the gradient of the next micro-batch's mean loss at the stream that enters each block.
    /// Nothing is changed.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn stream_gradients(&mut self) -> Result<Vec<f64>> {
        let train = &self.config.train;
        let (micro, seq) = (train.batch_size / train.grad_accum_steps, train.seq_len);
        let batch = self.stream.peek(micro)?;
        let model = self.model();
        let inputs = model.ids(&batch.inputs, micro, seq)?;
        let outputs = model.ids(&batch.targets, micro, seq)?;
        let divisor = (micro * seq) as f32;
        let mut norms = Vec::new();
        let mut see = |dx: &Tensor<3>| {
            let elements = dx.shape().num_elements();
            norms.push(ops::magnitude(dx.clone()).rms * (elements as f64).sqrt());
        };
        let options = LossOptions { divisor };
        GradientSum::default().by_block(model, inputs, outputs, options, &mut see);
        norms.reverse();
        Ok(norms)
    }

    /// What is doubtful about the placement.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    fn check_every_gradient(&self, gradients: &GradientSum) -> Result<()> {
        let missing = gradients.missing(self.model());
        match missing.as_slice() {
            [] => Ok(()),
            names => Err(Error::Diverged {
                step: Some(1),
                problem: format!("no gradient for {}", names.join(", ")),
            }),
        }
    }

    /// Weights and moments are finite, and so is the loss on what comes next. Otherwise the last
    /// good checkpoint could make way for one from which nothing goes on.
    fn check_weights(&mut self) -> Result<()> {
        let step = self.state.step;
        let broken = tensors::broken(self.model()).or_else(|| self.optimizer.broken());
        if let Some(name) = broken {
            let last_good = self.last_good(step);
            return Err(Error::Diverged {
                step: Some(step),
                problem: format!("{name} is not finite after the update; {last_good}"),
            });
        }
        let train = &self.config.train;
        let (micro, seq) = (train.batch_size / train.grad_accum_steps, train.seq_len);
        let batch = self.stream.peek(micro)?;
        let model = self.model().valid();
        let divisor = (micro * seq) as f32;
        let losses = model.loss(
            model.ids(&batch.inputs, micro, seq)?,
            model.ids(&batch.targets, micro, seq)?,
            LossOptions { divisor },
        );
        let loss = cross_entropy(losses);
        match loss.is_finite() {
            true => Ok(()),
            false => Err(Error::Diverged {
                step: Some(step),
                problem: format!(
                    "after the update the loss on the next batch is {loss}; \
                     batch instances {:?}; {}",
                    batch.instance_ids,
                    self.last_good(step)
                ),
            }),
        }
    }

    /// Writes down a step whose loss, gradients or update are not finite.
    fn diverged(
        &mut self,
        step: u64,
        loss: f64,
        norms: StepNorms,
        instances: Vec<u64>,
        weights: Weights,
        batch: &Batch,
    ) -> Error {
        let StepNorms {
            gradient, update, ..
        } = norms;
        let found = match (loss.is_finite(), weights) {
            (false, _) => format!("loss {loss}"),
            (true, Weights::Before) => format!("loss {loss}, gradient norm {gradient}"),
            (true, Weights::After) => {
                format!("loss {loss}, gradient norm {gradient}, update norm {update}")
            }
        };
        let problem = format!(
            "{found}; batch instances {instances:?}; {}",
            self.last_good(step)
        );
        let metrics = Metrics {
            step,
            loss,
            grad_norm: gradient,
            update_norm: update,
            lr: self.schedule.lr(step as usize),
            tokens: self.state.tokens,
            tokens_per_second: 0.0,
            validation_loss: None,
        };
        let reasons = vec![found];
        let dump = self
            .describe(&metrics, reasons, &norms, instances, weights, batch)
            .and_then(|dump| self.recorder.dump(&dump));
        let problem = match dump {
            Ok(path) => format!("{problem}; see {}", path.display()),
            Err(error) => format!("{problem}; no dump: {error}"),
        };
        Error::Diverged {
            step: Some(step),
            problem,
        }
    }

    /// Names the newest checkpoint before that of step `broken`.
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

/// The second of the two numbers that a loss is.
fn cross_entropy(losses: Tensor<1>) -> f64 {
    let losses = losses.into_data_as::<f32>();
    f64::from(losses.as_slice::<f32>().expect("converted to f32")[1])
}

/// A run that starts from a checkpoint takes its shape from there; what `[model]` says beside it
/// must agree, since it would have no effect.
fn check_init(config: &Config, from: &Checkpoint, sources: &Sources) -> Result<()> {
    let theirs = from.config()?;
    sources::check_vocabulary(sources, &theirs)?;
    if config.train.seq_len > theirs.max_seq_len {
        return Err(Error::config(format!(
            "train.seq_len = {} is longer than the {} tokens of the model in {}",
            config.train.seq_len,
            theirs.max_seq_len,
            from.path().display()
        )));
    }
    let Some(section) = &config.model else {
        return Ok(());
    };
    let vocab = section.vocab_size.or(Some(theirs.vocab_size));
    let mut ours = section.settle(config.train.seq_len, vocab)?;
    if section.max_seq_len.is_none() {
        ours.max_seq_len = theirs.max_seq_len;
    }
    if ours != theirs {
        return Err(Error::config(format!(
            "[model] is not the model in {}; leave it out to take that one",
            from.path().display()
        )));
    }
    Ok(())
}
