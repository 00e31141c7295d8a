//! Replay of the steps around a step of a run, from the newest checkpoint before it and with changed settings.

mod comparison;
mod stretches;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::Device;
use crate::error::{Error, Result};
use crate::files::Locking;
use crate::omissions::LeftOut;
use crate::train::metrics::Metrics;
use crate::train::segments::{self, Change, Segment};
use crate::train::{
    DataUse, Event, OpenOptions, Start, Trainer, checkpoint, history, rows, run_directory,
};

pub use comparison::{Comparison, Difference};

/// Options of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Step of interest.
    pub step: u64,
    /// Number of steps to replay after it.
    pub after: u64,
    /// Placement that replaces that of the run.
    pub placement: Option<String>,
    /// `section.key=value` settings on top of the run's configuration.
    pub settings: Vec<String>,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// Locking of that directory.
    pub locking: Locking,
}

impl Options {
    /// Returns the changes as `section.key=value` settings.
    fn changes(&self) -> Vec<String> {
        let placement = self.placement.iter();
        let placement = placement.map(|name| format!("model.placement=\"{name}\""));
        self.settings.iter().cloned().chain(placement).collect()
    }

    /// Returns the text that marks an unfinished replay, so that the same replay can replace it after a kill.
    fn purpose(&self, run: &Path) -> String {
        format!(
            "an unfinished replay of step {} and {} more of {}, with {:?} {:?}\n",
            self.step,
            self.after,
            run.display(),
            self.placement,
            self.settings
        )
    }
}

/// Result of a replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// Run directory of the original run.
    pub run: PathBuf,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// Step of the checkpoint; 0 if there was none.
    pub from: u64,
    /// Changed settings.
    pub changed: Vec<String>,
    /// Configuration changes of the run itself, which the replay followed.
    pub followed: Vec<Followed>,
    /// Parameters that are not in the checkpoint and start from their initial values.
    pub new_parameters: Vec<String>,
    /// Comparison of the metrics of the run and the replay.
    pub comparison: Comparison,
    /// Replayed steps, paired with those of the run.
    pub steps: Vec<Pair>,
    /// Reason for ending early, if any.
    pub ended: Option<String>,
    /// Tokens of the data that are used and left out.
    pub data: DataUse,
    /// Omissions from the data, by reason.
    pub left_out: LeftOut,
}

/// Configuration keys that changed in the run after one of its steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Followed {
    /// Step after which the new values hold.
    pub after_step: u64,
    /// Changed keys with their values.
    pub changed: Vec<Change>,
}

/// One step in the run and in the replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
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
pub fn run(
    run: &Path,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Replay>> {
    let originals: Vec<Metrics> = rows::read(run)?;
    let newest = originals.last().map_or(0, |row| row.step);
    // A diverged run has no record of the step at which it diverged.
    if options.step == 0 || options.step > newest + 1 {
        return Err(Error::config(format!(
            "{}: no step {}, it did {newest}",
            run.display(),
            options.step
        )));
    }
    let history = segments::read(run)?;
    let found = checkpoint::newest_before(run, options.step)?;
    for problem in &found.broken {
        on_event(Event::Note(run_directory::passed_over(problem)));
    }
    let from = found.checkpoint.as_ref().map_or(0, |(step, _)| *step);
    let (stretches, last) = stretches::follow(run, &history, options, from)?;
    let start = match found.checkpoint {
        Some((_, checkpoint)) => Start::Branch(checkpoint),
        None => Start::Fresh,
    };
    let how = OpenOptions {
        locking: options.locking,
        unfinished: Some(options.purpose(run)),
    };
    let first = stretches[0].config.clone();
    let weights_are_given = stretches[0].other_weights;
    let mut trainer = Trainer::open_with(first, &options.out, start, &how, device, on_event)?;
    if from == 0 && !weights_are_given {
        check_weights(run, &history, &trainer)?;
    }
    on_event(Event::Note(format!(
        "doing steps {} to {last} again; the newest checkpoint before step {} is of step {from}",
        from + 1,
        options.step
    )));
    let mut ended = None;
    for (at, stretch) in stretches.iter().enumerate() {
        if at > 0 {
            for change in &stretch.changed {
                on_event(Event::Note(format!(
                    "as in the run, from step {} on: {}",
                    stretch.after + 1,
                    history::in_words(change)
                )));
            }
            trainer.change(stretch.config.clone())?;
        }
        let end = stretches.get(at + 1).map_or(last, |next| next.after);
        match trainer.run_to(end, stop, on_event) {
            Ok(outcome) if outcome.step >= end => {}
            Ok(outcome) if outcome.step < options.step => return Ok(None),
            Ok(_) => break,
            Err(error @ Error::Diverged { .. }) => {
                ended = Some(error.to_string());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    let replayed: Vec<Metrics> = rows::read(&options.out)?;
    trainer.finish()?;
    let pair = |replay: Metrics| Pair {
        step: replay.step,
        run: originals
            .iter()
            .find(|row| row.step == replay.step)
            .cloned(),
        replay,
    };
    let steps: Vec<Pair> = replayed.into_iter().map(pair).collect();
    let followed = stretches.into_iter().skip(1);
    let followed = followed.map(|stretch| Followed {
        after_step: stretch.after,
        changed: stretch.changed,
    });
    Ok(Some(Replay {
        run: run.to_path_buf(),
        out: options.out.clone(),
        from,
        changed: options.changes(),
        followed: followed.collect(),
        new_parameters: trainer.new_parameters().to_vec(),
        comparison: Comparison::new(&steps, from, &history, trainer.segment()),
        steps,
        ended,
        left_out: trainer.data_use().left_out(),
        data: trainer.data_use().clone(),
    }))
}

/// Checks that a run initialized from a checkpoint starts from the same weights again, by SHA-256.
fn check_weights(run: &Path, history: &[Segment], trainer: &Trainer) -> Result<()> {
    let recorded = history.first().filter(|first| first.after_step == 0);
    let Some(recorded) = recorded.and_then(|first| first.weights.as_deref()) else {
        return Ok(());
    };
    match trainer.segment().weights.as_deref() {
        Some(found) if found == recorded => Ok(()),
        found => Err(Error::config(format!(
            "{}: the weights at [init] from are not those that the run began with (SHA-256 {recorded}, \
             now {}); put those back, or replay a step behind the first checkpoint",
            run.display(),
            found.unwrap_or("none")
        ))),
    }
}
