//! Opening a run: its data, its model, and its initial or resumed state.

use std::path::Path;

use super::super::checkpoint;
use super::super::config::{Config, DataSection};
use super::super::history;
use super::super::metrics::Metrics;
use super::super::recorder::Recorder;
use super::super::records::Record;
use super::super::segments::{self, Segment};
#[cfg(feature = "data")]
use super::super::sources;
use super::super::sources::TrainingData;
use super::data::RunData;
use super::files::{InitialFiles, RunFiles};
use super::initial::InitialModel;
use super::learner::Learner;
use super::start_point::{StartPoint, lock_run_directory, remove_stale};
#[cfg(feature = "data")]
use super::tasks::RunTasks;
use super::{Event, OpenOptions, Start, State, Trainer, resume};
use crate::Device;
use crate::data::{Cursor, Order, TokenDataset};
use crate::error::{Error, Result};
use crate::machine;
use crate::model::{Model, ModelConfig};
use crate::threads;

impl Trainer {
    /// Prepares a run in the directory `run`: opens its data, creates or loads its model. The files of the run are
    /// written right before the first step.
    ///
    /// `on_event` receives notes and progress.
    ///
    /// # Errors
    /// If the configuration, the data or the directory do not allow the run. Everything that this call created is
    /// removed again; existing files are untouched.
    pub fn open(
        config: Config,
        run: &Path,
        start: Start,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let options = OpenOptions::default();
        Self::open_with(config, run, start, &options, device, on_event)
    }

    /// Prepares a run as [`Trainer::open`] does, but on the caller's tokens instead of those of `[data]`; of that
    /// section only `order` has an effect. A run is resumed with the tokens that it was started with;
    /// [`lab::replay`](crate::lab) cannot replay it, since its configuration names no data.
    ///
    /// # Errors
    /// As [`Trainer::open`]; [`Error::NoEffect`] if `[data]` sets anything but the order; [`Error::Conflict`] if the
    /// sequence length of the tokens differs from `train.seq_len`, or the validation tokens are fewer than one
    /// sequence.
    pub fn open_with_data(
        config: Config,
        data: TrainingData,
        run: &Path,
        start: Start,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let options = OpenOptions::default();
        Self::open_with_data_and_options(config, data, run, start, &options, device, on_event)
    }

    /// Opens a run as [`Trainer::open_with_data`] does, with options.
    ///
    /// # Errors
    /// As [`Trainer::open_with_data`].
    pub fn open_with_data_and_options(
        config: Config,
        data: TrainingData,
        run: &Path,
        start: Start,
        options: &OpenOptions,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        let effective = DataSection::default().with_order(config.data.order);
        if config.data != effective {
            return Err(Error::no_effect(
                "[data]",
                ", except its order: the run is opened on in-memory tokens",
            ));
        }
        check_sequences(&config, &data)?;
        let data = Some(data);
        Self::open_run(config, data, run, start, options, device, on_event)
    }

    /// Opens a run as [`Trainer::open`] does, with options.
    ///
    /// # Errors
    /// As [`Trainer::open`].
    pub fn open_with(
        config: Config,
        run: &Path,
        start: Start,
        options: &OpenOptions,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        Self::open_run(config, None, run, start, options, device, on_event)
    }

    /// Opens a run on `data`, or on the data that the configuration names.
    fn open_run(
        config: Config,
        data: Option<TrainingData>,
        run: &Path,
        start: Start,
        options: &OpenOptions,
        device: Device,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self> {
        check_config(&config)?;
        let guard = lock_run_directory(run, &start, options)?;
        let start_point = StartPoint::find(run, start, on_event)?;
        remove_stale(run);
        let written = start_point.written_config(run)?;
        let previous = written.as_ref().filter(|_| start_point.is_resumed());
        if let Some(previous) = previous {
            resume::check_same_run(previous, &config, run)?;
        }
        let data = data.map_or_else(|| open_data(&config, &start_point, on_event), Ok)?;
        report_data(&config, &data, on_event);
        let mut initial = InitialModel::new(&config, &start_point, &data, device, on_event)?;
        let evaluation = config.train.evaluation_options();
        initial.model.set_plan_options(evaluation)?;
        check_optimizer(&config, &initial.model, on_event)?;
        let (optimizer, state) = initial.optimizer(&config, &start_point, &data)?;
        let schedule = config.resolved_schedule()?;
        let recorder = Recorder::open(run, &config.log, state.step)?;
        let (mut segments, before) = past_segments(run, previous, &config, state.step)?;
        check_first_record(run, &segments, &recorder, state.step)?;
        let segment = Segment {
            changed: history::diff(&before, &config),
            weights: initial.weights_from,
            ..new_segment(&config, &state, &data)
        };
        if start_point.is_resumed() {
            let configs = (&before, &config);
            let missing = recorder.missing_records();
            resume::report_resume(configs, &segment.changed, state.step, missing, on_event)?;
            match state.step >= config.train.steps as u64 {
                true => complete_interrupted_save(run, state.step, &segments, &before)?,
                false => resume::report_changes(segments.last(), &segment, on_event),
            }
        }
        segments.push(segment);
        let initial_files = InitialFiles {
            // A file with equal values is kept: it may be hand-written and contain comments.
            writes_config: written.as_ref() != Some(&config),
            resumed: start_point.is_resumed().then_some(state.step),
            resumes_after_kill: options.restart_purpose.is_none(),
        };
        let order = config.data.order.seeded(config.seed);
        Ok(Self {
            data: open_run_data(&config, initial.model.config(), data, order, state.cursor)?,
            learner: Learner::new(initial.model, optimizer, schedule),
            files: RunFiles::new(run, segments, initial_files, guard),
            recorder,
            state,
            config,
            new_parameters: initial.new_parameters,
            warnings: initial.warnings,
        })
    }
}

/// Checks that the data and the downstream tasks of a configuration that starts from random weights can be opened, and
/// that its model fits into memory. Nothing is written but tokenized text in the cache.
///
/// # Errors
/// As [`Trainer::open`]; [`Error::Missing`] without validation data.
#[cfg(feature = "lab")]
pub(crate) fn check_inputs(config: &Config, on_event: &mut dyn FnMut(Event<'_>)) -> Result<()> {
    check_config(config)?;
    let in_file = |error| config.origin.prefix_error(error);
    let data = open_data(config, &StartPoint::Fresh, on_event)?;
    if data.validation.is_none() {
        return Err(in_file(no_validation()));
    }
    let section = (config.model.as_ref()).ok_or_else(|| Error::missing("[model]", ""))?;
    let model = section
        .resolve(config.train.seq_len, data.vocab_size)
        .map_err(in_file)?;
    super::initial::check_memory(config, &model)?;
    RunTasks::open(config, &model, data.tokenizer.as_ref())
        .map(drop)
        .map_err(in_file)
}

/// Returns the error of a study without validation data.
#[cfg(feature = "lab")]
pub(crate) fn no_validation() -> Error {
    Error::missing(
        "data.validation",
        ": a study needs validation data, but no full sequence is held out (nothing is held out from pre-tokenized data)",
    )
}

/// Opens the batches and the downstream tasks of a run.
fn open_run_data(
    config: &Config,
    model: &ModelConfig,
    data: TrainingData,
    order: Order,
    cursor: Cursor,
) -> Result<RunData> {
    let data = RunData::new(data, order, cursor)?;
    #[cfg(feature = "data")]
    let data = {
        let tasks = RunTasks::open(config, model, data.tokenizer.as_ref());
        let tasks = tasks.map_err(|error| config.origin.prefix_error(error))?;
        RunData { tasks, ..data }
    };
    #[cfg(not(feature = "data"))]
    let _ = (config, model);
    Ok(data)
}

/// Checks a configuration: one that was built in Rust has not been checked before.
pub(super) fn check_config(config: &Config) -> Result<()> {
    let checked = config.check();
    checked.map_err(|error| config.origin.prefix_error(error))
}

/// Checks that the sequence length of the caller's tokens is `train.seq_len`.
fn check_sequences(config: &Config, data: &TrainingData) -> Result<()> {
    let expected = config.train.seq_len;
    let sets = [Some(&data.train), data.validation.as_ref()];
    let lengths = sets.into_iter().flatten().map(TokenDataset::seq_len);
    if let Some(found) = lengths.into_iter().find(|length| *length != expected) {
        return Err(Error::conflict(
            ["train.seq_len"],
            format!("the tokens are in sequences of {found}, but train.seq_len = {expected}"),
        ));
    }
    match &data.validation {
        Some(validation) if validation.is_empty() => Err(Error::conflict(
            ["train.seq_len"],
            format!(
                "{} validation tokens are fewer than a sequence of {expected} and its targets",
                validation.tokens()
            ),
        )),
        _ => Ok(()),
    }
}

/// Opens the data that the configuration names.
#[cfg(feature = "data")]
fn open_data(
    config: &Config,
    start_point: &StartPoint,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<TrainingData> {
    let mut on_progress = |progress| on_event(Event::Progress(progress));
    sources::open(config, start_point.checkpoint(), &mut on_progress)
        .map_err(|error| config.origin.prefix_error(error))
}

#[cfg(not(feature = "data"))]
fn open_data(_: &Config, _: &StartPoint, _: &mut dyn FnMut(Event<'_>)) -> Result<TrainingData> {
    Err(Error::missing(
        "data",
        ": reading the paths in [data] requires the crate feature `data`; open the run on in-memory tokens instead",
    ))
}

/// Reports the coverage of the data, and notes on them.
fn report_data(config: &Config, data: &TrainingData, on_event: &mut dyn FnMut(Event<'_>)) {
    for note in &data.notes {
        on_event(Event::Note(note.clone()));
    }
    on_event(Event::Data(&data.coverage));
    if data.validation.is_none() && config.train.eval_every > 0 {
        on_event(Event::Note(format!(
            "no validation: {}, and data.validation is empty",
            data.no_validation_reason
        )));
    }
}

/// Checks that the optimizer's settings suit the model.
fn check_optimizer(
    config: &Config,
    model: &Model,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<()> {
    let model_config = model.config();
    if config.optimizer.qk_clip.is_some() {
        model_config
            .check_qk_clip()
            .map_err(|error| config.origin.prefix_error(error))?;
    }
    if model_config.placement.unit_weights && config.optimizer.weight_decay > 0.0 {
        on_event(Event::Note(
            "with unit weights, weight decay does not shrink the weights, which are renormalized after every step, \
             and only scales the effective updates; nGPT uses optimizer.weight_decay = 0"
                .into(),
        ));
    }
    Ok(())
}

/// Returns the segments of the run up to `step`, and the configuration of the last one. `written` is the
/// configuration of a run that is resumed; a new run has no segments, and begins with `config`.
fn past_segments(
    run: &Path,
    written: Option<&Config>,
    config: &Config,
    step: u64,
) -> Result<(Vec<Segment>, Config)> {
    let Some(written) = written else {
        return Ok((Vec::new(), config.clone()));
    };
    history::truncate_segments(segments::read(run)?, written, step)
        .map_err(|error| Error::format(run.join(segments::FILE), error.to_string()))
}

/// Returns the segment of this process, without changed keys and without the fingerprint of initial weights.
fn new_segment(config: &Config, state: &State, data: &TrainingData) -> Segment {
    Segment {
        after_step: state.step,
        last_step: None,
        started: machine::timestamp(),
        changed: Vec::new(),
        threads: threads::count(),
        machine: machine::cpu_name(),
        bf16_unit: config.train.program_precision().bf16_unit(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        data: state.data.clone(),
        validation: Some(match &data.validation {
            Some(found) => found.fingerprint(),
            None => segments::NO_VALIDATION.to_owned(),
        }),
        weights: None,
        peak_memory_bytes: None,
    }
}

/// Checks that the metrics of a resumed run start with its first step.
fn check_first_record(
    run: &Path,
    segments: &[Segment],
    recorder: &Recorder,
    step: u64,
) -> Result<()> {
    let Some(segment) = segments.first() else {
        return Ok(());
    };
    let first = segment.after_step + 1;
    let gap = match recorder.first_record_step() {
        Some(found) if found > first => {
            format!("starts at step {found}, but the run starts at step {first}")
        }
        None if step >= first => format!("has no records of steps {first} to {step}"),
        _ => return Ok(()),
    };
    Err(Error::format(
        run.join(Metrics::FILE),
        format!("{gap}: records are missing; replace the file with a complete copy"),
    ))
}

/// Completes the work of a process that was killed right after its last checkpoint.
fn complete_interrupted_save(
    run: &Path,
    step: u64,
    segments: &[Segment],
    config: &Config,
) -> Result<()> {
    let recorded = segments::read(run)?;
    let is_outdated = |last: &Segment| last.last_step.is_none_or(|saved_step| saved_step < step);
    if recorded.len() == segments.len() && recorded.last().is_some_and(is_outdated) {
        segments::write(run, segments)?;
    }
    checkpoint::prune(run, step, config.train.keep_checkpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{InitSection, ModelSection, OptimizerConfig, ScheduleConfig, TrainSection};

    /// Opens a run of `config` on tokens and returns the error; nothing may be left of the run.
    fn open_error(config: Config) -> String {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let tokens: Vec<u32> = (0..64).map(|i| i % 8).collect();
        let dataset = TokenDataset::from_tokens(&tokens, 8, 8).unwrap();
        let data = TrainingData::new(&config, dataset, None);
        let error =
            Trainer::open_with_data(config, data, &run, Start::Fresh, Device::Cpu, &mut |_| {})
                .map(|_| ())
                .expect_err("the configuration is invalid");
        assert!(!run.exists(), "{error}");
        error.to_string()
    }

    fn valid() -> Config {
        let model = ModelSection::new("hybridnorm")
            .with_d_model(16)
            .with_n_layers(1)
            .with_n_heads(2)
            .with_d_ff(32)
            .with_vocab_size(8);
        let train = TrainSection::default()
            .with_steps(2)
            .with_batch_size(2)
            .with_seq_len(8);
        Config::default().with_model(model).with_train(train)
    }

    #[test]
    fn every_section_of_a_configuration_built_in_rust_is_checked() {
        let model = valid().model.unwrap();
        let train = valid().train;
        let cases = [
            (valid().with_model(model.clone().with_d_model(0)), "d_model"),
            (
                valid().with_model(model.with_placement("pre-nrom")),
                "pre-norm",
            ),
            (valid().with_init(InitSection::new("")), "init.from"),
            (
                valid().with_optimizer(OptimizerConfig::default().with_lr(-1.0)),
                "optimizer.lr",
            ),
            (
                valid().with_schedule(ScheduleConfig::default().with_warmup_steps(3)),
                "warm-up",
            ),
            (
                valid().with_train(train.clone().with_grad_accum_steps(0)),
                "train.grad_accum_steps",
            ),
            (
                valid().with_train(train.with_grad_accum_steps(3)),
                "train.batch_size",
            ),
        ];
        for (config, key) in cases {
            let error = open_error(config);
            assert!(error.contains(key), "{error:?} does not name {key}");
        }
    }

    #[test]
    fn mismatched_sequence_length_is_an_error() {
        let error = open_error(valid().with_train(valid().train.with_seq_len(16)));
        let expected = "the tokens are in sequences of 8, but train.seq_len = 16";
        assert_eq!(error, expected);
        let few = TokenDataset::from_tokens(&[1, 2, 3], 8, 8).unwrap();
        let train = TokenDataset::from_tokens(&[1; 64], 8, 8).unwrap();
        let data = TrainingData::new(&valid(), train, Some(few));
        let error = check_sequences(&valid(), &data).unwrap_err().to_string();
        let expected = "3 validation tokens are fewer than a sequence of 8 and its targets";
        assert_eq!(error, expected);
    }

    #[test]
    fn settings_of_data_without_effect_on_given_tokens_are_errors() {
        let sections = [
            DataSection::default().with_train(vec!["a.txt".into()]),
            DataSection::default().with_validation(vec!["a.txt".into()]),
            DataSection::default().with_tokenizer("bytes"),
            #[cfg(feature = "data")]
            DataSection::default().with_text(crate::data::SourceOptions::default()),
        ];
        for section in sections {
            let error = open_error(valid().with_data(section));
            assert!(error.starts_with("[data] has no effect"), "{error}");
        }
    }
}
