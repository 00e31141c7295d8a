//! Replay of the steps around a step of a run, from the newest checkpoint before it and with changed settings.

mod comparison;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use derive_setters::Setters;
use serde::Serialize;
use serde_json::Value;

use crate::Device;
use crate::error::{Error, Result};
use crate::files::Locking;
use crate::omissions::Omissions;
use crate::train::metrics::Metrics;
use crate::train::segments::{self, Change, Segment};
use crate::train::{
    DataCoverage, Event, OpenOptions, Start, Trainer, checkpoint, history, records, run_directory,
};

pub use comparison::{Comparison, Difference};
use plan::ReplaySegment;

/// Options of a replay.
///
/// ```
/// use hybridnorm::lab::replay::Options;
///
/// let options = Options::new(120, "runs/small-replay")
///     .with_steps_after(10)
///     .with_placement("pre-norm")
///     .with_settings(["optimizer.lr=1e-3".to_owned()]);
/// assert_eq!((options.step, options.steps_after), (120, 10));
/// ```
#[derive(Debug, Clone, PartialEq, Setters)]
#[setters(prefix = "with_", strip_option)]
#[non_exhaustive]
pub struct Options {
    /// Step of interest.
    pub step: u64,
    /// Number of steps to replay after it.
    pub steps_after: u64,
    /// Placement that replaces that of the run: a name, a [`Placement`](crate::placement::Placement), or a table of
    /// placement fields.
    #[setters(into)]
    pub placement: Option<Value>,
    /// `section.key=value` settings on top of the run's configuration.
    #[setters(into)]
    pub settings: Vec<String>,
    /// Run directory of the replay.
    #[setters(into)]
    pub out: PathBuf,
    /// Locking of that directory.
    pub locking: Locking,
}

impl Options {
    /// Returns options for replaying up to `step` without changes, into the run directory `out`.
    pub fn new(step: u64, out: impl Into<PathBuf>) -> Self {
        Self {
            step,
            steps_after: 0,
            placement: None,
            settings: Vec::new(),
            out: out.into(),
            locking: Locking::Required,
        }
    }

    /// Returns the changes as `section.key=value` settings.
    fn changes(&self) -> Result<Vec<String>> {
        let mut changes = self.settings.clone();
        if let Some(placement) = &self.placement {
            let placement = toml::Value::try_from(placement)
                .map_err(|error| Error::invalid_value("placement", error.to_string()))?;
            changes.push(format!("model.placement={placement}"));
        }
        Ok(changes)
    }

    /// Returns the text that marks an unfinished replay, so that the same replay can replace it after a kill.
    fn unfinished_marker(&self, run: &Path) -> String {
        let placement = self.placement.as_ref().map(|placement| match placement {
            Value::String(name) => name.clone(),
            table => table.to_string(),
        });
        format!(
            "an unfinished replay of step {} and {} more of {}, with {placement:?} {:?}\n",
            self.step,
            self.steps_after,
            run.display(),
            self.settings
        )
    }
}

/// Result of a replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Replay {
    /// Run directory of the original run.
    pub run: PathBuf,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// Step of the checkpoint; 0 if there was none.
    pub from: u64,
    /// Changed settings.
    pub changed: Vec<String>,
    /// Configuration changes of the run itself, which the replay applied at the same steps.
    #[serde(rename = "followed")]
    pub config_changes: Vec<ConfigChange>,
    /// Parameters that are not in the checkpoint and start from their initial values.
    pub new_parameters: Vec<String>,
    /// Comparison of the metrics of the run and the replay.
    pub comparison: Comparison,
    /// Replayed steps, paired with those of the run.
    pub steps: Vec<StepPair>,
    /// Reason for ending early, if any.
    #[serde(rename = "ended")]
    pub early_end_reason: Option<String>,
    /// Used and omitted tokens of the data.
    pub data: DataCoverage,
    /// Omissions from the data, by reason.
    #[serde(rename = "left_out")]
    pub omissions: Omissions,
}

/// Configuration keys that changed in the run after one of its steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConfigChange {
    /// Step after which the new values hold.
    pub after_step: u64,
    /// Changed keys with their values.
    pub changed: Vec<Change>,
}

/// One step in the run and in the replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepPair {
    /// Step, counted from 1.
    pub step: u64,
    /// Metrics of the run; `None` if it did not reach this step.
    pub run: Option<Metrics>,
    /// Metrics of the replay.
    pub replay: Metrics,
}

/// Runs the replay; `None` if it was stopped before the step of interest.
///
/// Every step uses the configuration of that step in the run, with the changes of the replay on top. Without
/// changes, the metrics are bit-identical to those of the run; this is [checked](Comparison). Of the earlier
/// content of the directory, only an unfinished run of the same replay is replaced.
///
/// # Errors
/// If the run has no such step, a changed key does not allow resuming from its checkpoint, or the weights that
/// the run started from are no longer available.
///
/// ```
/// use hybridnorm::Device;
/// use hybridnorm::lab::replay;
/// use hybridnorm::placement::{Scale, named};
/// use hybridnorm::train::{Start, Trainer};
/// # use hybridnorm::train::{Config, DataSection, ModelSection, TrainSection};
///
/// # let model = ModelSection::new("hybridnorm")
/// #     .with_d_model(16)
/// #     .with_n_layers(2)
/// #     .with_n_heads(2)
/// #     .with_d_ff(32);
/// # let data = DataSection::default()
/// #     .with_train(vec!["stories:20".to_owned()])
/// #     .with_tokenizer("bytes");
/// # let train = TrainSection::default()
/// #     .with_steps(4)
/// #     .with_batch_size(2)
/// #     .with_seq_len(16)
/// #     .with_eval_sequences(2);
/// # let config = Config::default()
/// #     .with_model(model)
/// #     .with_data(data)
/// #     .with_train(train);
/// # let folder = tempfile::tempdir().unwrap();
/// # let run = folder.path().join("run");
/// let stop = false.into();
/// let mut trainer = Trainer::open(config, &run, Start::Fresh, Device::Cpu, &mut |_| {})?;
/// trainer.run(&stop, &mut |_| {})?;
///
/// // Without changes, the metrics of the replay are bit-identical to those of the run.
/// let options = replay::Options::new(3, folder.path().join("replay"));
/// let same = replay::run(&run, &options, Device::Cpu, &stop, &mut |_| {})?;
/// assert_eq!(same.expect("`stop` is false").comparison.first_difference, None);
///
/// let options = replay::Options::new(3, folder.path().join("slower"))
///     .with_settings(["optimizer.lr=1e-5".to_owned()]);
/// let slower = replay::run(&run, &options, Device::Cpu, &stop, &mut |_| {})?;
/// let difference = slower.expect("`stop` is false").comparison.first_difference;
/// assert_eq!(difference.map(|found| (found.step, found.quantity)), Some((1, "learning rate")));
///
/// let mut custom = named("hybridnorm")?;
/// custom.block.ffn.out_scale = Scale::Const(0.5);
/// let options = replay::Options::new(3, folder.path().join("custom")).with_placement(custom);
/// let other = replay::run(&run, &options, Device::Cpu, &stop, &mut |_| {})?;
/// let difference = other.expect("`stop` is false").comparison.first_difference;
/// assert_eq!(difference.map(|found| (found.step, found.quantity)), Some((1, "loss")));
/// # Ok::<(), hybridnorm::Error>(())
/// ```
pub fn run(
    run: &Path,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Replay>> {
    let recorded: Vec<Metrics> = records::read(run)?;
    check_step(run, options.step, &recorded)?;
    let history = segments::read(run)?;
    let found = checkpoint::newest_before(run, options.step)?;
    for problem in &found.corrupt {
        on_event(Event::Note(run_directory::skipped_checkpoint_note(problem)));
    }
    let from = found.checkpoint.as_ref().map_or(0, |(step, _)| *step);
    let (segments, last) = plan::plan_segments(run, &history, options, from)?;
    let start = match found.checkpoint {
        Some((_, checkpoint)) => Start::Branch(checkpoint),
        None => Start::Fresh,
    };
    let open = OpenOptions::default()
        .with_locking(options.locking)
        .with_restart_purpose(options.unfinished_marker(run));
    let first = segments[0].config.clone();
    let mut trainer = Trainer::open_with(first, &options.out, start, &open, device, on_event)?;
    if from == 0 && !segments[0].changes_weights {
        check_weights(run, &history, &trainer)?;
    }
    on_event(Event::Note(format!(
        "replaying steps {} to {last} (newest checkpoint before step {}: step {from})",
        from + 1,
        options.step
    )));
    let early_end_reason = match train(&mut trainer, &segments, last, options.step, stop, on_event)?
    {
        ReplayEnd::StepReached => None,
        ReplayEnd::Diverged(problem) => Some(problem),
        ReplayEnd::Stopped => return Ok(None),
    };
    let replayed: Vec<Metrics> = records::read(&options.out)?;
    trainer.mark_finished()?;
    let steps = pair_steps(&recorded, replayed);
    let config_changes = segments.into_iter().skip(1).map(|segment| ConfigChange {
        after_step: segment.after,
        changed: segment.changed,
    });
    Ok(Some(Replay {
        run: run.to_path_buf(),
        out: options.out.clone(),
        from,
        changed: options.changes()?,
        config_changes: config_changes.collect(),
        new_parameters: trainer.new_parameters().to_vec(),
        comparison: Comparison::new(&steps, from, &history, trainer.segment()),
        steps,
        early_end_reason,
        omissions: trainer.data_coverage().omissions(),
        data: trainer.data_coverage().clone(),
    }))
}

/// Checks that a run has a step. A diverged run has no record of the step at which it diverged.
fn check_step(run: &Path, step: u64, recorded: &[Metrics]) -> Result<()> {
    let newest = recorded.last().map_or(0, |metrics| metrics.step);
    match (1..=newest + 1).contains(&step) {
        true => Ok(()),
        false => Err(Error::invalid_value(
            "step",
            format!(
                "{}: step = {step}, expected 1 to {}: the run completed {newest} steps",
                run.display(),
                newest + 1
            ),
        )),
    }
}

/// Reason why the replay ended.
enum ReplayEnd {
    /// The step of interest was reached.
    StepReached,
    /// The replay diverged, with this problem.
    Diverged(String),
    /// The replay was stopped before the step of interest.
    Stopped,
}

/// Trains the segments up to step `last`, each with its own configuration.
fn train(
    trainer: &mut Trainer,
    segments: &[ReplaySegment],
    last: u64,
    step: u64,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<ReplayEnd> {
    for (at, segment) in segments.iter().enumerate() {
        if at > 0 {
            for change in &segment.changed {
                on_event(Event::Note(format!(
                    "configuration change of the run, from step {} on: {}",
                    segment.after + 1,
                    history::describe_change(change)
                )));
            }
            trainer.set_config(segment.config.clone())?;
        }
        let end = segments.get(at + 1).map_or(last, |next| next.after);
        match trainer.run_to(end, stop, on_event) {
            Ok(outcome) if outcome.step >= end => {}
            Ok(outcome) if outcome.step < step => return Ok(ReplayEnd::Stopped),
            Ok(_) => break,
            Err(error @ Error::Diverged { .. }) => {
                return Ok(ReplayEnd::Diverged(error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(ReplayEnd::StepReached)
}

/// Pairs the replayed steps with those of the run.
fn pair_steps(recorded: &[Metrics], replayed: Vec<Metrics>) -> Vec<StepPair> {
    let pair = |replay: Metrics| StepPair {
        step: replay.step,
        run: recorded
            .iter()
            .find(|metrics| metrics.step == replay.step)
            .cloned(),
        replay,
    };
    replayed.into_iter().map(pair).collect()
}

/// Checks that a run initialized from a checkpoint starts from the same weights again, by SHA-256.
fn check_weights(run: &Path, history: &[Segment], trainer: &Trainer) -> Result<()> {
    let recorded = history.first().filter(|first| first.after_step == 0);
    let Some(recorded) = recorded.and_then(|first| first.weights.as_deref()) else {
        return Ok(());
    };
    match trainer.segment().weights.as_deref() {
        Some(found) if found == recorded => Ok(()),
        found => Err(Error::invalid_value(
            "init.from",
            format!(
                "{}: the weights at init.from have changed since the run started (SHA-256 {recorded}, now {}); \
                 restore them, or replay a step after the first checkpoint",
                run.display(),
                found.unwrap_or("none")
            ),
        )),
    }
}
