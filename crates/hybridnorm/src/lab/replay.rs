//! The steps around one of a run, done again from the nearest checkpoint with something changed.

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

/// What to do again.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The step of interest.
    pub step: u64,
    /// Steps to go beyond it.
    pub after: u64,
    /// Another placement.
    pub placement: Option<String>,
    /// `section.key=value` settings on top of the run's configuration.
    pub settings: Vec<String>,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// Whether to lock it.
    pub locking: Locking,
}

impl Options {
    /// What is to be changed, in words.
    fn changes(&self) -> Vec<String> {
        let placement = self.placement.iter();
        let placement = placement.map(|name| format!("model.placement=\"{name}\""));
        self.settings.iter().cloned().chain(placement).collect()
    }

    /// What a killed replay leaves, so that the same one can begin anew in its place.
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

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// The run.
    pub run: PathBuf,
    /// Run directory of the replay.
    pub out: PathBuf,
    /// The checkpoint's step; 0 where it began anew.
    pub from: u64,
    /// What was changed.
    pub changed: Vec<String>,
    /// Changes of the run's own on the way, which the replay followed.
    pub followed: Vec<Followed>,
    /// Parameters that the checkpoint does not have, and which begin with their initial values.
    pub new_parameters: Vec<String>,
    /// How the numbers of the run and of the replay compare.
    pub comparison: Comparison,
    /// Steps done again, side by side.
    pub steps: Vec<Pair>,
    /// Why it ended early, if it did.
    pub ended: Option<String>,
    /// How much of the data takes part.
    pub data: DataUse,
    /// Omissions from them, by reason.
    pub left_out: LeftOut,
}

/// Keys that had other values in the run from one of its steps on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Followed {
    /// They had them after this step.
    pub after_step: u64,
    /// What changed.
    pub changed: Vec<Change>,
}

/// One step in the run and in the replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// The step, counted from 1.
    pub step: u64,
    /// In the run; `None` where it did not come so far.
    pub run: Option<Metrics>,
    /// In the replay.
    pub replay: Metrics,
}

/// Does it; `None` when it was asked to stop.
///
/// Every step is done with the configuration that held at it in the run, and what is to be changed on top
/// of that. With nothing changed, the numbers of the run come out again to the bit; whether they do is
/// [compared](Comparison). Of the directory's earlier content, only what the same replay left when it was
/// killed is replaced.
///
/// # Errors
/// If the run has no such step, a changed key does not allow to go on from its checkpoint, or the weights
/// that it began with are not there any more.
pub fn run(
    run: &Path,
    options: &Options,
    device: Device,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Replay>> {
    let originals: Vec<Metrics> = rows::read(run)?;
    let newest = originals.last().map_or(0, |row| row.step);
    // A run that diverged has no row of the step at which it did.
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

/// A run that began from a checkpoint begins again from the same weights, whatever stands there now.
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
